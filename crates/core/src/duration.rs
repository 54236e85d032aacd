//! Durations that read as they are said.

use std::time::Duration;

use crate::error::BoxError;

/// `200.millis()`, `30.secs()`, `5.minutes()`, `1.hours()`.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::DurationExt;
///
/// assert_eq!(200.millis(), Duration::from_millis(200));
/// assert_eq!(2.hours(), Duration::from_secs(7200));
/// ```
pub trait DurationExt {
    /// That many milliseconds.
    fn millis(self) -> Duration;
    /// That many seconds.
    fn secs(self) -> Duration;
    /// That many minutes.
    fn minutes(self) -> Duration;
    /// That many hours.
    fn hours(self) -> Duration;
}

impl DurationExt for u64 {
    fn millis(self) -> Duration {
        Duration::from_millis(self)
    }

    fn secs(self) -> Duration {
        Duration::from_secs(self)
    }

    fn minutes(self) -> Duration {
        Duration::from_secs(self.saturating_mul(60))
    }

    fn hours(self) -> Duration {
        Duration::from_secs(self.saturating_mul(3600))
    }
}

/// Reads `250ms`, `30s`, `5m`, `2h`, `1d`, and several in a row, as `1h30m`.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::parse_duration;
///
/// assert_eq!(parse_duration("1m30s").unwrap(), Duration::from_secs(90));
/// let error = parse_duration("5 parsecs").unwrap_err().to_string();
/// assert!(error.contains("5 parsecs") && error.contains("30s"), "{error}");
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, BoxError> {
    let odd =
        || BoxError::from(format!("`{text}` is no duration: write it as 250ms, 30s, 5m, 2h, 1d or 1h30m"));
    let (mut rest, mut sum) = (text.trim(), Duration::ZERO);
    if rest.is_empty() {
        return Err(odd());
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(odd)?;
        let (count, tail) = rest.split_at(number);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let millis = match unit.trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(odd()),
        };
        let count: u64 = count.parse().map_err(|_| odd())?;
        sum = sum.saturating_add(Duration::from_millis(count.saturating_mul(millis)));
        rest = tail;
    }
    Ok(sum)
}

/// As [`parse_duration`] reads it, in the largest unit that leaves no rest; begun milliseconds count whole.
pub(crate) fn duration_text(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match units.into_iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}

/// A duration in a config file.
pub(crate) mod text {
    use std::borrow::Cow;
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::duration_text(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
        let text = Cow::<str>::deserialize(input)?;
        super::parse_duration(&text).map_err(de::Error::custom)
    }
}

/// Several.
pub(crate) mod texts {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(serde::Serialize, Deserialize)]
    struct Text(#[serde(with = "super::text")] Duration);

    pub(crate) fn serialize<S: Serializer>(durations: &[Duration], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(durations.iter().copied().map(Text))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Duration>, D::Error> {
        Ok(Vec::<Text>::deserialize(input)?.into_iter().map(|Text(duration)| duration).collect())
    }
}

/// One, or none.
pub(crate) mod optional_text {
    use std::borrow::Cow;
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    // serde hands over the field as it is
    #[expect(clippy::ref_option, reason = "the signature is serde's")]
    pub(crate) fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => to.serialize_some(&super::duration_text(*duration)),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
        let text = Option::<Cow<'_, str>>::deserialize(input)?;
        text.map(|text| super::parse_duration(&text).map_err(de::Error::custom)).transpose()
    }
}
