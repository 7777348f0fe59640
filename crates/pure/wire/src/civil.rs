//! UNIX seconds ⇄ UTC calendar, and the date that qmail writes (qmail-family §3.7): `23 Nov 2026 08:05:09 -0000`.

/// A moment in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Civil {
    pub year: u64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
    /// 0 is Sunday.
    pub weekday: u8,
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

impl Civil {
    /// From UNIX seconds; any `u64` has an answer (years beyond ten thousand included).
    #[must_use]
    pub fn from_unix(unix_s: u64) -> Self {
        let (days, rest) = (unix_s / 86_400, unix_s % 86_400);
        // Days since 0000-03-01, in eras of 400 years (the proleptic Gregorian calendar).
        let z = days.saturating_add(719_468);
        let (era, doe) = (z / 146_097, z % 146_097);
        let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let small = |n: u64| u8::try_from(n).unwrap_or(0);
        Self {
            year: yoe + era * 400 + u64::from(month <= 2),
            month: small(month),
            day: small(doy - (153 * mp + 2) / 5 + 1),
            hour: small(rest / 3600),
            minute: small(rest % 3600 / 60),
            second: small(rest % 60),
            weekday: small((days % 7 + 4) % 7),
        }
    }

    /// `Jan` to `Dec`.
    #[must_use]
    pub fn month_name(&self) -> &'static str {
        MONTHS.get(usize::from(self.month).wrapping_sub(1)).copied().unwrap_or("???")
    }

    /// `Sun` to `Sat`.
    #[must_use]
    pub fn weekday_name(&self) -> &'static str {
        WEEKDAYS.get(usize::from(self.weekday)).copied().unwrap_or("???")
    }

    /// qmail's form of an RFC 5322 §3.3 date: UTC, day unpadded, zone `-0000`.
    #[must_use]
    pub fn rfc5322(&self) -> String {
        let Self { year, day, hour, minute, second, .. } = self;
        format!("{day} {} {year} {hour:02}:{minute:02}:{second:02} -0000", self.month_name())
    }

    /// An RFC 3339 date-time in UTC: `2026-11-23T08:05:09Z`.
    #[must_use]
    pub fn rfc3339(&self) -> String {
        let Self { year, month, day, hour, minute, second, .. } = self;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    /// UNIX seconds of what [`Civil::rfc3339`] writes; `None` for other forms, days that no month has, and years before 1970.
    #[must_use]
    pub fn unix_of_rfc3339(text: &[u8]) -> Option<u64> {
        let number = |from: usize, to: usize| {
            let digits = text.get(from..to).filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
            std::str::from_utf8(digits).ok()?.parse::<u64>().ok()
        };
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        // Days since 0000-03-01, as in `from_unix`; a year below 1970 has none since 1970.
        let (y, m) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
        let days = (y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day).checked_sub(719_469)?;
        let unix_s = days * 86_400 + hour * 3600 + minute * 60 + second;
        (Self::from_unix(unix_s).rfc3339().as_bytes() == text).then_some(unix_s)
    }

    /// The date of an mbox `From ` line (asctime form): `Mon Nov 23 08:05:09 2026`.
    #[must_use]
    pub fn mbox(&self) -> String {
        let Self { year, day, hour, minute, second, .. } = self;
        format!("{} {} {day:02} {hour:02}:{minute:02}:{second:02} {year}", self.weekday_name(), self.month_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        for (unix_s, text, mbox) in [
            (0, "1 Jan 1970 00:00:00 -0000", "Thu Jan 01 00:00:00 1970"),
            (951_782_399, "28 Feb 2000 23:59:59 -0000", "Mon Feb 28 23:59:59 2000"),
            (951_782_400, "29 Feb 2000 00:00:00 -0000", "Tue Feb 29 00:00:00 2000"),
            (4_107_542_400, "1 Mar 2100 00:00:00 -0000", "Mon Mar 01 00:00:00 2100"),
        ] {
            let civil = Civil::from_unix(unix_s);
            assert_eq!((civil.rfc5322().as_str(), civil.mbox().as_str()), (text, mbox));
        }
        let _ = Civil::from_unix(u64::MAX).rfc5322();
        for unix_s in [0, 951_782_399, 951_782_400, 1_795_422_709, 4_107_542_400, 253_402_300_799] {
            assert_eq!(Civil::unix_of_rfc3339(Civil::from_unix(unix_s).rfc3339().as_bytes()), Some(unix_s));
        }
        assert_eq!(Civil::unix_of_rfc3339(b"2026-11-23T08:05:09Z"), Some(1_795_421_109));
        for bad in [
            "",
            "2026-11-23",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01T00:00:00z",
            "2026-01-01T00:00:00+00:00",
            "2026-01-01T00:00:00.5Z",
            "2026-01-01 00:00:00Z",
            "1969-12-31T23:59:59Z",
            "0000-01-01T00:00:00Z",
            "+026-01-01T00:00:00Z",
        ] {
            assert_eq!(Civil::unix_of_rfc3339(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = Civil::from_unix(0);
        for day in 1..80_000u64 {
            let now = Civil::from_unix(day * 86_400);
            assert_eq!(now.weekday, (before.weekday + 1) % 7);
            assert!((now.year, now.month, now.day) > (before.year, before.month, before.day));
            before = now;
        }
    }
}
