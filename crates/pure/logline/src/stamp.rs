//! Time stamps before a line, as loggers write them: TAI64N (multilog), ISO 8601 (svlogd, rsyslog, ours), UNIX seconds (splogger), and
//! syslog's without a year.

use wire::civil::Civil;

/// multilog's label of the UNIX epoch: 2^62, and the ten seconds that TAI was ahead (it counts no leap seconds).
const TAI_EPOCH: u64 = (1 << 62) + 10;
const MICRO: u64 = 1_000_000;

/// `2026-11-23T08:05:09.123456Z`
#[must_use]
pub fn rfc3339_us(time_us: u64) -> String {
    let whole = Civil::from_unix(time_us / MICRO).rfc3339();
    format!("{}.{:06}Z", whole.strip_suffix('Z').unwrap_or(&whole), time_us % MICRO)
}

/// Microseconds since 1970 and what is behind the stamp and one blank; `None` if there is no stamp. `now_us` and `offset_s` (of local
/// time) complete what syslog leaves out.
pub(crate) fn take(line: &[u8], now_us: u64, offset_s: i64) -> Option<(u64, &[u8])> {
    tai64n(line).or_else(|| iso(line)).or_else(|| unix(line)).or_else(|| syslog(line, now_us, offset_s))
}

/// Microseconds since 1970 of an ISO 8601 time.
#[must_use]
pub fn time_us_of(text: &str) -> Option<u64> {
    iso(&[text.as_bytes(), b" "].concat()).map(|(time_us, _)| time_us)
}

fn word(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = line.iter().position(|b| *b == b' ')?;
    Some((line.get(..end)?, line.get(end.checked_add(1)?..)?))
}

fn tai64n(line: &[u8]) -> Option<(u64, &[u8])> {
    let (label, rest) = word(line)?;
    let label = label.strip_prefix(b"@").filter(|label| label.len() == 24)?;
    let hex = |part: &[u8]| u64::from_str_radix(std::str::from_utf8(part).ok()?, 16).ok();
    let (seconds, nano) = (hex(label.get(..16)?)?, hex(label.get(16..)?)?);
    Some((seconds.checked_sub(TAI_EPOCH)?.checked_mul(MICRO)?.checked_add(nano / 1000)?, rest))
}

/// `YYYY-MM-DDTHH:MM:SS[.frac][Z|±HH:MM]`, also with `_` for the `T`; without a zone it is UTC.
fn iso(line: &[u8]) -> Option<(u64, &[u8])> {
    let (stamp, rest) = word(line)?;
    let whole = stamp.get(..19)?;
    if !matches!(whole.get(10), Some(b'T' | b'_')) {
        return None;
    }
    let seconds = Civil::unix_of_rfc3339(&[whole.get(..10)?, b"T", whole.get(11..)?, b"Z"].concat())?;
    let behind = stamp.get(19..)?;
    let (fraction, zone) = match behind.strip_prefix(b".") {
        Some(behind) => {
            let end = behind.iter().position(|b| !b.is_ascii_digit()).unwrap_or(behind.len());
            (micros(behind.get(..end)?)?, behind.get(end..)?)
        }
        None => (0, behind),
    };
    let east_s = match zone {
        b"" | b"Z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] | [sign @ (b'+' | b'-'), h1, h2, m1, m2] => {
            let two = |a: &u8, b: &u8| digits(&[*a, *b]);
            let east = two(h1, h2)?.checked_mul(3600)?.checked_add(two(m1, m2)?.checked_mul(60)?)?;
            let east = i64::try_from(east).ok()?;
            if *sign == b'+' { east } else { east.checked_neg()? }
        }
        _ => return None,
    };
    let seconds = seconds.checked_add_signed(east_s.checked_neg()?)?;
    Some((seconds.checked_mul(MICRO)?.checked_add(fraction)?, rest))
}

/// `1764057909.123456`
fn unix(line: &[u8]) -> Option<(u64, &[u8])> {
    let (stamp, rest) = word(line)?;
    let dot = stamp.iter().position(|b| *b == b'.')?;
    let (seconds, fraction) = (stamp.get(..dot)?, stamp.get(dot.checked_add(1)?..)?);
    if !matches!(seconds.len(), 9..=11) {
        return None;
    }
    Some((digits(seconds)?.checked_mul(MICRO)?.checked_add(micros(fraction)?)?, rest))
}

/// `Nov 25 08:05:09`: in this year, or in the last one if that would be later than tomorrow.
fn syslog(line: &[u8], now_us: u64, offset_s: i64) -> Option<(u64, &[u8])> {
    let (stamp, rest) = line.split_at_checked(16)?;
    let name = stamp.get(..3)?;
    let month = (1..=12_u8).find(|month| Civil { month: *month, ..Civil::from_unix(0) }.month_name().as_bytes() == name)?;
    if stamp.get(3) != Some(&b' ') || stamp.get(15) != Some(&b' ') {
        return None;
    }
    let day = digits(stamp.get(4..6)?.trim_ascii_start())?;
    let clock = std::str::from_utf8(stamp.get(7..15)?).ok()?;
    let now_s = now_us / MICRO;
    let year = Civil::from_unix(now_s).year;
    let of = |year: u64| {
        let local = Civil::unix_of_rfc3339(format!("{year:04}-{month:02}-{day:02}T{clock}Z").as_bytes())?;
        local.checked_add_signed(offset_s.checked_neg()?)
    };
    let time_s = of(year).filter(|time| *time <= now_s.saturating_add(86_400)).or_else(|| of(year.saturating_sub(1)))?;
    Some((time_s.checked_mul(MICRO)?, rest))
}

fn digits(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))?;
    text.parse().ok()
}

/// A fraction of a second; digits beyond the sixth are dropped.
fn micros(fraction: &[u8]) -> Option<u64> {
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let shown = fraction.get(..6.min(fraction.len()))?;
    let missing = u32::try_from(6_usize.checked_sub(shown.len())?).ok()?;
    if shown.is_empty() { Some(0) } else { digits(shown)?.checked_mul(10_u64.checked_pow(missing)?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_of_all_loggers() {
        let now_us = 1_764_057_909 * MICRO;
        let (day, before) = (1_764_057_909_u64, 1_735_632_309_u64);
        for (stamp, us) in [
            ("@4000000069256600075bca00", Some((0x6925_6600 - 10) * MICRO + 123_456)),
            ("2025-11-25T08:05:09.123456Z", Some(day * MICRO + 123_456)),
            ("2025-11-25T08:05:09.1234567Z", Some(day * MICRO + 123_456)),
            ("2025-11-25_08:05:09.12345", Some(day * MICRO + 123_450)),
            ("2025-11-25T08:05:09", Some(day * MICRO)),
            ("2025-11-25T09:05:09.5+01:00", Some(day * MICRO + 500_000)),
            ("2025-11-25T07:05:09-0100", Some(day * MICRO)),
            ("1764057909.25", Some(day * MICRO + 250_000)),
            ("Nov 25 08:05:09", Some(day * MICRO)),
            ("Dec 31 08:05:09", Some(before * MICRO)),
            ("Nov 35 08:05:09", None),
            ("2025-13-25T08:05:09Z", None),
            ("@40000000692566", None),
            ("new msg", None),
            ("", None),
        ] {
            let line = format!("{stamp} rest of it");
            assert_eq!(take(line.as_bytes(), now_us, 0), us.map(|us| (us, &b"rest of it"[..])), "{stamp}");
        }
        assert_eq!(take(b"Nov 25 09:05:09 x", now_us, 3600), Some((day * MICRO, &b"x"[..])), "local time");
        assert_eq!(rfc3339_us(day * MICRO + 42), "2025-11-25T08:05:09.000042Z");
    }
}
