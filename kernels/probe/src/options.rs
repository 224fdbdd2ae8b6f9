//! Steps from their options, `,KEY=VALUE` each: the leaves of a program's grammar.

use crate::distribution::Distribution;
use crate::fills::{KindMix, Recipe};
use crate::program::{ParseError, Span, Spoil, Step};
use crate::quantity::{milliseconds, number, size};

/// Calls `set(option, key, value)` for every option; it answers whether it knows the key.
fn for_each_option<'a>(
    options: Option<&'a str>,
    mut set: impl FnMut(&'a str, &'a str, Option<&'a str>) -> Result<bool, ParseError<'a>>,
) -> Result<(), ParseError<'a>> {
    let Some(options) = options else { return Ok(()) };
    for option in options.split(',').map(str::trim) {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim())),
            None => (option, None),
        };
        if !set(option, key, value)? {
            return Err(ParseError { near: option, cause: "unknown option" });
        }
    }
    Ok(())
}

/// A step without options.
pub(crate) fn no_options(options: Option<&str>, step: Step) -> Result<Step, ParseError<'_>> {
    for_each_option(options, |_, _, _| Ok(false)).map(|()| step)
}

fn value<'a>(option: &'a str, value: Option<&'a str>) -> Result<&'a str, ParseError<'a>> {
    value.ok_or(ParseError { near: option, cause: "a value is missing" })
}

/// `fill:SIZE`
pub(crate) fn fill(pages: u32, options: Option<&str>) -> Result<Step, ParseError<'_>> {
    let (mut kinds, mut seed) = ([0u8; 4], 0);
    let (mut any_kind, mut churn) = (false, false);
    for_each_option(options, |option, key, given| {
        let at = match key {
            "zero" => 0,
            "dup" => 1,
            "text" => 2,
            "random" => 3,
            "churn" if given.is_none() => {
                churn = true;
                return Ok(true);
            }
            "seed" => {
                seed = number(value(option, given)?, u64::MAX)?;
                return Ok(true);
            }
            _ => return Ok(false),
        };
        kinds[at] = number(value(option, given)?, 100)? as u8;
        any_kind = true;
        Ok(true)
    })?;
    if churn {
        let error = ParseError { near: options.unwrap_or_default(), cause: "churned pages have all kinds in turn" };
        return if any_kind { Err(error) } else { Ok(Step::Fill { pages, recipe: Recipe::Churn, seed }) };
    }
    if !any_kind {
        kinds[3] = 100;
    }
    if kinds.iter().map(|&percent| u32::from(percent)).sum::<u32>() != 100 {
        return Err(ParseError { near: options.unwrap_or_default(), cause: "the kinds do not sum to 100 percent" });
    }
    let [zero, dup, text, random] = kinds;
    Ok(Step::Fill { pages, recipe: KindMix { zero, dup, text, random }.into(), seed })
}

/// `walk:SIZE`
pub(crate) fn walk(pages: u32, options: Option<&str>) -> Result<Step, ParseError<'_>> {
    let (mut span, mut distribution, mut write_percent) = (None, Distribution::Uniform, 0);
    for_each_option(options, |option, key, given| {
        match key {
            "secs" | "touches" if span.is_some() => {
                return Err(ParseError { near: option, cause: "a walk has one end" });
            }
            "secs" => span = Some(Span::Milliseconds(milliseconds(value(option, given)?)?)),
            "touches" => span = Some(Span::Touches(number(value(option, given)?, u64::MAX)?)),
            "write" => write_percent = number(value(option, given)?, 100)? as u8,
            "dist" => {
                distribution = match value(option, given)? {
                    "uniform" => Distribution::Uniform,
                    "zipf" => Distribution::Zipf,
                    "sequential" | "seq" => Distribution::Sequential,
                    _ => return Err(ParseError { near: option, cause: "unknown distribution" }),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Step::Walk { pages, span: span.unwrap_or(Span::Milliseconds(1000)), distribution, write_percent })
}

/// `idle:SECONDS`
pub(crate) fn idle(duration: u64, options: Option<&str>) -> Result<Step, ParseError<'_>> {
    let (mut touch_pages, mut every) = (0, 1000);
    for_each_option(options, |option, key, given| {
        match key {
            "touch" => touch_pages = size(value(option, given)?)?,
            "every" => every = milliseconds(value(option, given)?)?,
            _ => return Ok(false),
        }
        if every == 0 {
            return Err(ParseError { near: option, cause: "every=0 is not idle" });
        }
        Ok(true)
    })?;
    Ok(Step::Idle { milliseconds: duration, touch_pages, every_milliseconds: every })
}

/// `free:SIZE`
pub(crate) fn free(pages: u32, options: Option<&str>) -> Result<Step, ParseError<'_>> {
    let mut silent = false;
    for_each_option(options, |_, key, given| {
        silent |= key == "silent" && given.is_none();
        Ok(key == "silent" && given.is_none())
    })?;
    Ok(Step::Free { pages, silent })
}

/// `damage:HOW`
pub(crate) fn damage<'a>(spoil: &'a str, options: Option<&'a str>) -> Result<Step, ParseError<'a>> {
    let spoil = match spoil {
        "stale" => Spoil::Stale,
        "foreign" => Spoil::Foreign,
        "flip" => Spoil::Flip,
        _ => return Err(ParseError { near: spoil, cause: "unknown damage" }),
    };
    let mut page = 0;
    for_each_option(options, |option, key, given| {
        if key == "page" {
            page = number(value(option, given)?, u32::MAX.into())? as u32;
        }
        Ok(key == "page")
    })?;
    Ok(Step::Damage { spoil, page })
}
