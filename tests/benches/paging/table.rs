//! What is printed: a line for each thing measured, beside its baseline and goal.

/// The heading of a part.
pub fn heading(title: &str) {
    println!("\n{title}");
    println!("  {:<42} {:>11} {:>11} {:>7}  goal", "", "here", "baseline", "ratio");
}

/// A line; the ratio is of the first number to the second.
pub fn row(what: &str, here: f64, baseline: f64, goal: &str) {
    println!("  {what:<42} {:>11} {:>11} {:>7.2}  {goal}", number(here), number(baseline), here / baseline);
}

/// A remark.
pub fn note(text: &str) {
    println!("  {text}");
}

/// The value in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// With as many digits as there is reason for.
pub fn number(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
