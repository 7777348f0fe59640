//! Values as they are typed: sizes, numbers, days.

use crate::Failure;

/// `10M` as bytes; 0 for no limit.
///
/// # Errors
/// It is no size.
pub fn size(text: &str) -> Result<u64, Failure> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(0);
    }
    let wrong = || Failure::usage(format!("{}: a size is a number, with K, M or G behind it, or `none`", text.escape_debug()));
    let (digits, shift) = match text.char_indices().next_back().ok_or_else(wrong)? {
        (at, 'k' | 'K') => (text.get(..at), 10),
        (at, 'm' | 'M') => (text.get(..at), 20),
        (at, 'g' | 'G') => (text.get(..at), 30),
        _ => (Some(text), 0),
    };
    let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_digit())).ok_or_else(wrong)?;
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// A number; `None` for `none`.
///
/// # Errors
/// It is no number.
pub fn count(text: &str) -> Result<Option<u32>, Failure> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|_| is_number);
    number.map(Some).ok_or_else(|| Failure::usage(format!("{}: must be a number, or `none`", text.escape_debug())))
}

/// `2026-12-24` as the UNIX seconds of its beginning in UTC.
///
/// # Errors
/// It is no day of the calendar from 1970 to 9999.
pub fn day(text: &str) -> Result<u64, Failure> {
    let wrong = || Failure::usage(format!("{}: a day is written YYYY-MM-DD", text.escape_debug()));
    let numbers: Vec<&str> = text.split('-').collect();
    let (&[year, month, day], true) = (&numbers[..], text.bytes().all(|b| b.is_ascii_digit() || b == b'-')) else {
        return Err(wrong());
    };
    if (year.len(), month.len(), day.len()) != (4, 2, 2) {
        return Err(wrong());
    }
    let number = |digits: &str| digits.parse::<u64>().map_err(|_| wrong());
    let (year, month, day) = (number(year)?, number(month)?, number(day)?);
    let unix_s = days_before(year, month, day).and_then(|days| days.checked_mul(86_400)).ok_or_else(wrong)?;
    // What is no day of the calendar comes back as another.
    let civil = wire::civil::Civil::from_unix(unix_s);
    let is_it = (civil.year, u64::from(civil.month), u64::from(civil.day)) == (year, month, day);
    if is_it { Ok(unix_s) } else { Err(wrong()) }
}

/// `30m`, `12h`, `7d` ago, a day, or `2026-12-24T18:00:00` (also with a blank for the `T`), as UNIX seconds; all in UTC.
///
/// # Errors
/// It is none of them.
pub fn since(text: &str, now_s: u64) -> Result<u64, Failure> {
    let wrong = || {
        let text = text.escape_debug();
        Failure::usage(format!("{text}: a time is YYYY-MM-DD, YYYY-MM-DDTHH:MM:SS, or so long ago: 30m, 12h, 7d"))
    };
    if let Some((at, unit)) = text.char_indices().next_back()
        && let Some(seconds) = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)].iter().find(|(name, _)| *name == unit)
    {
        let digits = text.get(..at).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit())).ok_or_else(wrong)?;
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        return number.checked_mul(seconds.1).map(|ago| now_s.saturating_sub(ago)).ok_or_else(wrong);
    }
    if text.contains(['T', ' ']) {
        return logline::time_us_of(&text.replace(' ', "T")).map(|us| us / 1_000_000).ok_or_else(wrong);
    }
    day(text)
}

/// Days from 1970-01-01 to this one, as [`wire::civil`] counts them: years begin in March, so that a leap day is the last.
fn days_before(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) = if month > 2 { (year, month.checked_sub(3)?) } else { (year.checked_sub(1)?, month.checked_add(9)?) };
    let in_year = month.checked_mul(153)?.checked_add(2)?.checked_div(5)?.checked_add(day.checked_sub(1)?)?;
    let before_year = year.checked_mul(365)?.checked_add(year / 4)?.checked_sub(year / 100)?.checked_add(year / 400)?;
    before_year.checked_add(in_year)?.checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("none", Some(0)),
            ("0", Some(0)),
            ("7", Some(7)),
            ("2k", Some(2048)),
            ("10M", Some(10 << 20)),
            ("3G", Some(3 << 30)),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
        for bad in ["", "M", "-1", "+1", "1.5M", "1T", "10 M", "99999999999999999G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts() {
        assert_eq!((count("none").unwrap(), count("0").unwrap(), count("7").unwrap()), (None, Some(0), Some(7)));
        for bad in ["", "-1", "+1", "1k", "4294967296"] {
            assert!(count(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (text, expected) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("2026-12-24", 1_798_070_400),
            ("2024-12-31", 1_735_603_200),
            ("9999-12-31", 253_402_214_400),
        ] {
            assert_eq!(day(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "2026", "2026-2-3", "2025-02-29", "2026-13-01", "2026-00-10", "1969-12-31", "2026-12-24x", "+026-12-24"] {
            assert!(day(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_to_begin_with() {
        let now_s = 1_764_057_909;
        for (text, unix_s) in [
            ("30m", Some(now_s - 1800)),
            ("2d", Some(now_s - 172_800)),
            ("2025-11-25", Some(1_764_028_800)),
            ("2025-11-25 08:05:09", Some(now_s)),
            ("2025-11-25T08:05:09Z", Some(now_s)),
            ("x", None),
            ("", None),
            ("d", None),
            ("-1d", None),
            ("2025-11-31", None),
            ("99999999999999999999d", None),
        ] {
            assert_eq!(since(text, now_s).ok(), unix_s, "{text}");
        }
    }
}
