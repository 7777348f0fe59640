//! Exit codes: of qmail-local itself and of the programs it runs (qmail-command(8)).

/// Delivered.
pub const SUCCESS: u8 = 0;
/// Permanent failure: the message bounces.
pub const PERMANENT: u8 = 100;
/// Temporary failure: try again later.
pub const TEMPORARY: u8 = 111;

/// What a program's exit code means for the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// 0: go on with the next line.
    Done,
    /// 99: done, and the lines below are not looked at; the forwards above are still sent.
    DoneStop,
    /// 100 and the sysexits(3) that mean "will never work".
    Permanent,
    /// Anything else.
    Temporary,
}

/// Reads the exit code of a program line. A program that was killed by a signal has none: that is temporary.
#[must_use]
pub fn verdict(code: u8) -> Verdict {
    match code {
        0 => Verdict::Done,
        99 => Verdict::DoneStop,
        100 | 64 | 65 | 70 | 76 | 77 | 78 | 112 => Verdict::Permanent,
        _ => Verdict::Temporary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_the_meaning_of_qmail_command_8() {
        for code in 0..=255u8 {
            let expected = match code {
                0 => Verdict::Done,
                99 => Verdict::DoneStop,
                c if [64, 65, 70, 76, 77, 78, 100, 112].contains(&c) => Verdict::Permanent,
                _ => Verdict::Temporary,
            };
            assert_eq!(verdict(code), expected, "{code}");
        }
        assert_eq!((SUCCESS, PERMANENT, TEMPORARY), (0, 100, 111));
    }
}
