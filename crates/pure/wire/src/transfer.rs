//! What a sender asks for of the transfer itself: a time by which a message is delivered (RFC 2852) and its priority (RFC 6710).
//!
//! A value that exists is within the bounds of its RFC. Used by qmail-smtpd, qmail-send and qmail-remote.

/// Most seconds of BY= either way: nine digits (RFC 2852 §4).
pub const BY_S_MAX: u64 = 999_999_999;
/// The numbers of priorities (RFC 6710 §3): from -9 to 9.
pub const PRIORITY_MAX: i8 = 9;

/// BY= as a command has it: the time counts from the command on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct By {
    /// At most [`BY_S_MAX`] either way; at least 1 with `returns`. Below 0: the sender was told already that the time has passed.
    pub seconds: i64,
    /// `R`: after that time the message goes back, undelivered. Else `N`: the sender is told, and it goes on.
    pub returns: bool,
    /// `T`: the sender is told about each server that the message is relayed to.
    pub traces: bool,
}

impl By {
    /// `by-time ";" by-mode [by-trace]` (RFC 2852 §4); letters in any case. `None`: anything else, and a time that is over with `R`.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let semicolon = value.iter().position(|b| *b == b';')?;
        let (time, mode) = (value.get(..semicolon)?, value.get(semicolon.checked_add(1)?..)?);
        let (is_negative, digits) = match time {
            [b'-', digits @ ..] => (true, digits),
            [b'+', digits @ ..] => (false, digits),
            digits => (false, digits),
        };
        let is_number = (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
        let seconds: i64 = std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()?;
        let seconds = if is_negative { seconds.checked_neg()? } else { seconds };
        let (returns, traces) = match mode.to_ascii_uppercase().as_slice() {
            b"R" => (true, false),
            b"RT" => (true, true),
            b"N" => (false, false),
            b"NT" => (false, true),
            _ => return None,
        };
        (!returns || seconds > 0).then_some(Self { seconds, returns, traces })
    }

    /// As a command writes it.
    #[must_use]
    pub fn text(self) -> String {
        let mode = if self.returns { "R" } else { "N" };
        format!("{};{mode}{}", self.seconds, if self.traces { "T" } else { "" })
    }
}

/// The same while a message is on its way through this system: with the moment instead of the time that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliverBy {
    /// UNIX seconds.
    pub at_s: u64,
    pub returns: bool,
    pub traces: bool,
    /// The sender was told already that the time has passed.
    pub told: bool,
}

impl DeliverBy {
    /// What a command that came at `now_s` means.
    #[must_use]
    pub fn new(by: By, now_s: u64) -> Self {
        let at_s = now_s.saturating_add_signed(by.seconds);
        Self { at_s, returns: by.returns, traces: by.traces, told: by.seconds < 0 }
    }

    /// What is left of it at `now_s`, for another server; `None`: the time has passed, and the message goes back. A time that has passed
    /// is written as below zero once the sender was `told`, and as zero before.
    #[must_use]
    pub fn left(self, now_s: u64, told: bool) -> Option<By> {
        let ahead = i64::try_from(self.at_s.saturating_sub(now_s).min(BY_S_MAX)).unwrap_or(0);
        let behind = i64::try_from(now_s.saturating_sub(self.at_s).clamp(1, BY_S_MAX)).unwrap_or(1);
        let seconds = match (ahead, self.told || told) {
            (1.., _) => ahead,
            (_, true) => behind.saturating_neg(),
            (_, false) => 0,
        };
        (!self.returns || seconds > 0).then_some(By { seconds, returns: self.returns, traces: self.traces })
    }

    /// All but the moment, as a number; back by [`DeliverBy::from_bits`].
    #[must_use]
    pub fn bits(self) -> u8 {
        u8::from(self.returns) | u8::from(self.traces) << 1 | u8::from(self.told) << 2
    }

    #[must_use]
    pub fn from_bits(at_s: u64, bits: u8) -> Option<Self> {
        (bits < 8).then_some(Self { at_s, returns: bits & 1 != 0, traces: bits & 2 != 0, told: bits & 4 != 0 })
    }
}

/// How urgent a message is (RFC 6710 §3): 9 goes first, 0 is usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Priority(i8);

impl Priority {
    pub const NORMAL: Self = Self(0);

    #[must_use]
    pub fn new(number: i8) -> Option<Self> {
        (-PRIORITY_MAX..=PRIORITY_MAX).contains(&number).then_some(Self(number))
    }

    /// `["-"] 1-9` or `0` (RFC 6710 §3).
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        match value {
            b"0" => Some(Self::NORMAL),
            [b'-', digit @ b'1'..=b'9'] => Some(Self(0i8.saturating_sub_unsigned(digit.wrapping_sub(b'0')))),
            [digit @ b'1'..=b'9'] => Some(Self(0i8.saturating_add_unsigned(digit.wrapping_sub(b'0')))),
            _ => None,
        }
    }

    #[must_use]
    pub fn number(self) -> i8 {
        self.0
    }

    /// 0 for what goes first, to 18.
    #[must_use]
    pub fn rank(self) -> u8 {
        PRIORITY_MAX.saturating_sub(self.0).unsigned_abs()
    }

    /// As a byte; back by [`Priority::from_byte`].
    #[must_use]
    pub fn byte(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::new(i8::from_le_bytes([byte]))
    }
}

impl std::fmt::Display for Priority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times() {
        for (text, written) in [
            ("120;R", Some("120;R")),
            ("+120;rt", Some("120;RT")),
            ("999999999;N", Some("999999999;N")),
            ("-999999999;nT", Some("-999999999;NT")),
            ("0;N", Some("0;N")),
            ("-0;N", Some("0;N")),
            ("000000001;R", Some("1;R")),
            ("0;R", None),
            ("-1;R", None),
            ("1000000000;N", None),
            ("0000000001;N", None),
            (";N", None),
            ("-;N", None),
            ("+-1;N", None),
            ("1", None),
            ("1;", None),
            ("1;T", None),
            ("1;TR", None),
            ("1;RR", None),
            ("1;R;", None),
            (" 1;R", None),
            ("1x;R", None),
            ("", None),
        ] {
            assert_eq!(By::parse(text.as_bytes()).map(By::text).as_deref(), written, "{text}");
        }
    }

    #[test]
    fn what_is_left() {
        let by = |text: &str| By::parse(text.as_bytes()).unwrap();
        let left = |text: &str, passed: u64, told| DeliverBy::new(by(text), 1000).left(1000 + passed, told).map(By::text);
        for (text, passed, told, expected) in [
            ("60;R", 0, false, Some("60;R")),
            ("60;RT", 59, false, Some("1;RT")),
            ("60;R", 60, false, None),
            ("60;N", 60, false, Some("0;N")),
            ("60;N", 60, true, Some("-1;N")),
            ("60;N", 90, true, Some("-30;N")),
            ("-5;NT", 7, false, Some("-12;NT")),
            ("0;N", 0, false, Some("0;N")),
            ("-999999999;N", 5, false, Some("-1005;N")),
        ] {
            assert_eq!(left(text, passed, told).as_deref(), expected, "{text} {passed} {told}");
        }
        let long = DeliverBy { at_s: u64::MAX, returns: true, traces: false, told: false };
        assert_eq!(long.left(0, false).map(By::text).as_deref(), Some("999999999;R"));
    }

    #[test]
    fn priorities() {
        for (text, number) in [
            ("0", Some(0)),
            ("9", Some(9)),
            ("-9", Some(-9)),
            ("-0", None),
            ("+1", None),
            ("10", None),
            ("01", None),
            ("", None),
            ("-", None),
            ("x", None),
        ] {
            assert_eq!(Priority::parse(text.as_bytes()).map(Priority::number), number, "{text}");
        }
        assert_eq!([9, 0, -9].map(|n| Priority::new(n).unwrap().rank()), [0, 9, 18]);
        assert!(Priority::new(10).is_none() && Priority::new(-10).is_none() && Priority::from_byte(100).is_none());
    }

    proptest! {
        #[test]
        fn what_is_a_value_is_one_word_and_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..12), now: u64, told: bool) {
            if let Some(by) = By::parse(&bytes) {
                prop_assert_eq!(By::parse(by.text().as_bytes()), Some(by));
                let at = DeliverBy::new(by, now);
                prop_assert_eq!(DeliverBy::from_bits(at.at_s, at.bits()), Some(at));
                if let Some(left) = at.left(now, told) {
                    prop_assert_eq!(By::parse(left.text().as_bytes()), Some(left));
                }
            }
            if let Some(priority) = Priority::parse(&bytes) {
                prop_assert_eq!(Priority::parse(priority.to_string().as_bytes()), Some(priority));
                prop_assert_eq!(Priority::from_byte(priority.byte()), Some(priority));
            }
        }
    }
}
