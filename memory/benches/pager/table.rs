//! What is printed: a line for each thing measured, beside its baseline and goal.

/// The heading of a part.
pub fn heading(title: &str) {
    println!("\n{title}");
    println!("  {:<44} {:>11} {:>11} {:>7}  goal", "", "here", "baseline", "ratio");
}

/// A line. `unit` stands for both numbers; the ratio is of the first to the second.
pub fn row(what: &str, here: f64, baseline: Option<f64>, unit: &str, goal: &str) {
    let number = |value: f64| if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.3}") };
    let other = baseline.map_or("-".to_owned(), number);
    let ratio = baseline.map_or("-".to_owned(), |baseline| format!("{:.2}", here / baseline));
    println!("  {:<44} {:>11} {other:>11} {ratio:>7}  {goal}", format!("{what}, {unit}"), number(here));
}

/// A remark.
pub fn note(text: &str) {
    println!("  {text}");
}
