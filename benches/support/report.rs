//! The figures, for people and for programs.

use std::fmt::Write as _;

use crate::contest::Row;
use crate::targets::Target;

/// A table for people: each row with its target, and whether it was reached.
pub fn table(rows: &[Row]) -> String {
    let mut text = line(["", "ours", "bare", "", "ratio", "spread", "target", ""]);
    for row in rows {
        let target = Target::of(row);
        let wanted = target.map_or_else(String::new, |target| match target {
            Target::Ratio(least) => format!("≥ {least}"),
            Target::Cost(most) => format!("≤ {most}"),
            Target::Ours(least) => format!("ours ≥ {}", figure(least)),
        });
        let mark = target.map_or("", |target| if target.reached(row) { "reached" } else { "MISSED" });
        let (ratio, spread) = (format!("{:.2}", row.ratio), row.spread.map(|ratio| format!("{ratio:.2}")));
        let (ours, bare) = (figure(row.ours), figure(row.bare));
        text += &line([&row.name, &ours, &bare, row.unit, &ratio, &spread.join("–"), &wanted, mark]);
    }
    text
}

/// The same for programs: an object whose `rows` are the rows.
pub fn json(rows: &[Row]) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(&serde_json::json!({ "rows": rows })).map(|json| json + "\n")
}

fn line([name, ours, bare, unit, ratio, spread, target, mark]: [&str; 8]) -> String {
    let mut line = String::new();
    // writing to a string does not fail
    _ = write!(line, "{name:31}{ours:>11}{bare:>11} {unit:7}{ratio:>7}  {spread:13}{target:18}{mark}");
    line.truncate(line.trim_end().len());
    line + "\n"
}

/// With as many digits as mean something, and thousands apart.
fn figure(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let head = digits.len() % 3;
    let groups = digits.as_bytes()[head..].chunks(3).map(String::from_utf8_lossy);
    let groups = (head > 0).then(|| digits[..head].into()).into_iter().chain(groups);
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_grouped() {
        assert_eq!(figure(3.145), "3.15");
        assert_eq!(figure(123.4), "123");
        assert_eq!(figure(1_234_567.0), "1,234,567");
        assert_eq!(figure(98_765.0), "98,765");
    }

    #[test]
    fn a_row_says_whether_its_target_was_reached() {
        let row = |ratio| Row {
            name: "consume-redis-cpu".to_owned(),
            ours: 3.0,
            bare: 2.0,
            ratio,
            spread: [ratio, ratio],
            unit: "µs/msg",
        };
        assert!(table(&[row(1.4)]).contains("reached"));
        assert!(table(&[row(1.6)]).contains("MISSED"));
    }
}
