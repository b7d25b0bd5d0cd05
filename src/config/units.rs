//! Sizes, shares and durations as people write them: `200G`, `25%`, `2ms`, `10min`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// Bytes. Units are powers of 1024: `K`, `M`, `G`, `T`, `P`, also `KiB`, …; none is bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub u64);

/// Bytes as in [`Size`], or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SizeOrOff(pub Option<u64>);

/// A length of time: `us`, `ms`, `s`, `min` or `h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

/// How much of a filesystem the cache may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Bytes(u64),
    /// Of the filesystem's size; 1..=100.
    Percent(u64),
}

/// What is logged: `off`, `error`, `warn`, `info`, `debug` or `trace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LogLevel(pub log::LevelFilter);

/// Text that is not what it should be, and what it should look like.
#[derive(Debug, PartialEq, Eq)]
pub struct Unparsable(String);

impl fmt::Display for Unparsable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unparsable {}

impl Unparsable {
    pub(super) fn new(message: impl Into<String>) -> Unparsable {
        Unparsable(message.into())
    }
}

/// Splits `200G` into 200 and `G`; `None` without digits, or with more than fit.
fn split(text: &str) -> Option<(u64, &str)> {
    let unit_at = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    Some((digits.parse().ok()?, unit))
}

impl FromStr for Size {
    type Err = Unparsable;

    fn from_str(text: &str) -> Result<Size, Unparsable> {
        size(text).map(Size).ok_or_else(|| {
            Unparsable(format!(
                "`{text}` is not a size; write for example 512M or 200G"
            ))
        })
    }
}

impl FromStr for SizeOrOff {
    type Err = Unparsable;

    fn from_str(text: &str) -> Result<SizeOrOff, Unparsable> {
        match (text, size(text)) {
            ("off", _) => Ok(SizeOrOff(None)),
            (_, Some(bytes)) => Ok(SizeOrOff(Some(bytes))),
            _ => Err(Unparsable(format!(
                "`{text}` is not a size; write for example 64M, or off"
            ))),
        }
    }
}

fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let shift = match unit.trim_end_matches("iB") {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        "P" | "p" => 50,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

impl FromStr for Span {
    type Err = Unparsable;

    fn from_str(text: &str) -> Result<Span, Unparsable> {
        span(text).map(Span).ok_or_else(|| {
            Unparsable(format!(
                "`{text}` is not a duration; write for example 2ms, 5s or 10min"
            ))
        })
    }
}

fn span(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let unit = match unit {
        "us" => Duration::from_micros(1),
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "min" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return None,
    };
    unit.checked_mul(u32::try_from(number).ok()?)
}

impl FromStr for Limit {
    type Err = Unparsable;

    fn from_str(text: &str) -> Result<Limit, Unparsable> {
        let unparsable = || {
            Unparsable(format!(
                "`{text}` is not a limit; write for example 200G or 25%"
            ))
        };
        match text.strip_suffix('%') {
            Some(share) => match share.parse() {
                Ok(percent @ 1..=100) => Ok(Limit::Percent(percent)),
                _ => Err(unparsable()),
            },
            None => size(text).map(Limit::Bytes).ok_or_else(unparsable),
        }
    }
}

impl Limit {
    /// The limit in bytes on a filesystem of this size.
    pub fn of(self, filesystem_bytes: u64) -> u64 {
        match self {
            Limit::Bytes(bytes) => bytes,
            Limit::Percent(percent) => filesystem_bytes / 100 * percent,
        }
    }
}

impl FromStr for LogLevel {
    type Err = Unparsable;

    fn from_str(text: &str) -> Result<LogLevel, Unparsable> {
        text.parse().map(LogLevel).map_err(|_| {
            Unparsable(format!(
                "`{text}` is not a log level; write off, error, warn, info, debug or trace"
            ))
        })
    }
}

/// serde reads the types above from text.
macro_rules! from_text {
    ($($kind:ty),*) => {$(
        impl TryFrom<String> for $kind {
            type Error = Unparsable;

            fn try_from(text: String) -> Result<$kind, Unparsable> {
                text.parse()
            }
        }
    )*};
}
from_text!(Size, SizeOrOff, Span, LogLevel);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!("0".parse(), Ok(Size(0)));
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!("512M".parse(), Ok(Size(512 << 20)));
        assert_eq!("200G".parse(), Ok(Size(200 << 30)));
        assert_eq!("2TiB".parse(), Ok(Size(2 << 40)));
    }

    #[test]
    fn a_size_may_be_off() {
        assert_eq!("off".parse(), Ok(SizeOrOff(None)));
        assert_eq!("64M".parse(), Ok(SizeOrOff(Some(64 << 20))));
        assert!("no".parse::<SizeOrOff>().is_err());
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "1.5G",
            "1 G",
            "1GB",
            "99999999P",
            "iB",
            "25%",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!("2ms".parse(), Ok(Span(Duration::from_millis(2))));
        assert_eq!("10min".parse(), Ok(Span(Duration::from_secs(600))));
        assert_eq!("0s".parse(), Ok(Span(Duration::ZERO)));
        for text in ["2", "2m", "ms", "", "-2ms", "2 ms", "99999999999s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn limits_are_bytes_or_a_share() {
        assert_eq!("25%".parse(), Ok(Limit::Percent(25)));
        assert_eq!("1G".parse(), Ok(Limit::Bytes(1 << 30)));
        assert_eq!(Limit::Percent(25).of(1000), 250);
        for text in ["0%", "101%", "%", "-5%", "2.5%"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }
}
