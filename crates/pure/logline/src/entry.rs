//! A line of a log file, as any of the usual loggers left it: `[STAMP ][HOST ][TAG[PID]: ]LINE`.

use crate::stamp;

/// What begins a line of qmail-send, which has no name in front.
const CLASSIC: [&[u8]; 9] = [
    b"new msg ",
    b"info msg ",
    b"starting delivery ",
    b"delivery ",
    b"status: ",
    b"bounce msg ",
    b"double bounce: ",
    b"triple bounce: ",
    b"end msg ",
];
/// Names in front of each other: a service manager's, splogger's, the process's own.
const NAMES_MAX: usize = 3;

/// What a reader knows beside the line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings {
    pub now_us: u64,
    /// Of local time, in which syslog writes.
    pub offset_s: i64,
}

/// A line and who wrote it when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Microseconds since 1970.
    pub time_us: Option<u64>,
    /// `qmail-send` where nobody is named.
    pub process: &'a str,
    pub pid: Option<u32>,
    pub text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Any bytes are an entry.
    #[must_use]
    pub fn parse(line: &'a [u8], around: Surroundings) -> Self {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let stamped = stamp::take(line, around.now_us, around.offset_s);
        let (time_us, rest) = stamped.map_or((None, line), |(time_us, rest)| (Some(time_us), rest));
        let mut entry = Self { time_us, process: "qmail-send", pid: None, text: rest };
        if time_us.is_some() && !is_classic(rest) && name(rest).is_none() {
            // syslog's host.
            if let Some(behind) = rest.iter().position(|b| *b == b' ').and_then(|at| rest.get(at.checked_add(1)?..))
                && name(behind).is_some()
            {
                entry.text = behind;
            }
        }
        for _ in 0..NAMES_MAX {
            // The name before such a line is the logger's; a process of ours that is neither cannot pass for qmail-send.
            let may_be_a_logger = !entry.process.starts_with("qmail-") || matches!(entry.process, "qmail-send" | "qmail-start");
            if is_classic(entry.text) && may_be_a_logger {
                (entry.process, entry.pid) = ("qmail-send", entry.pid.filter(|_| entry.process == "qmail-send"));
                break;
            }
            let Some((process, pid, text)) = name(entry.text) else { break };
            // splogger's tag says nothing of who wrote the line, and a time of its own may follow.
            let is_ours = process.starts_with("qmail-");
            (entry.process, entry.pid) = if is_ours { (process, pid) } else { ("qmail-send", None) };
            entry.text = text;
            if let Some((time_us, behind)) = stamp::take(text, around.now_us, around.offset_s).filter(|_| !is_ours) {
                (entry.time_us, entry.text) = (Some(time_us), behind);
            }
        }
        entry
    }
}

fn is_classic(text: &[u8]) -> bool {
    CLASSIC.iter().any(|begin| text.starts_with(begin))
}

/// `NAME[PID]: ` or `NAME: ` in front, and what is behind. `alert: ` and `warning: ` are no names.
fn name(text: &[u8]) -> Option<(&str, Option<u32>, &[u8])> {
    let end = text.windows(2).take(80).position(|part| part == b": ")?;
    let (tag, behind) = (text.get(..end)?, text.get(end.checked_add(2)?..)?);
    let (name, pid) = match tag.iter().position(|b| *b == b'[') {
        Some(at) => {
            let pid = std::str::from_utf8(tag.get(at..)?.strip_prefix(b"[")?.strip_suffix(b"]")?).ok()?;
            (tag.get(..at)?, Some(pid.parse().ok()?))
        }
        None => (tag, None),
    };
    let is_name = !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'));
    let is_trouble = matches!(name, b"alert" | b"warning" | b"fatal" | b"status" | b"login" | b"TLS");
    // A word and a colon is a name only if it is one of ours or splogger's.
    let is_known = pid.is_some() || name.starts_with(b"qmail") || name == b"splogger";
    (is_name && !is_trouble && is_known).then_some((std::str::from_utf8(name).ok()?, pid, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_loggers_leave_them() {
        let around = Surroundings { now_us: 1_764_057_909_000_000, offset_s: 0 };
        for (line, process, pid, text, stamped) in [
            ("new msg 5", "qmail-send", None, "new msg 5", false),
            ("@4000000069256600075bca00 new msg 5", "qmail-send", None, "new msg 5", true),
            ("@4000000069256600075bca00 qmail-smtpd[7]: session end=quit", "qmail-smtpd", Some(7), "session end=quit", true),
            ("2025-11-25T08:05:09.1Z qmail-send[9]: end msg 5", "qmail-send", Some(9), "end msg 5", true),
            ("2025-11-25T08:05:09+00:00 mx qmail-smtpd[7]: accepted msg=1", "qmail-smtpd", Some(7), "accepted msg=1", true),
            ("Nov 25 08:05:09 mx qmail: 1764057909.5 status: exiting", "qmail-send", None, "status: exiting", true),
            ("Nov 25 08:05:09 mx qmail-start[1]: qmail-popup[3]: session a=1", "qmail-popup", Some(3), "session a=1", true),
            ("Nov 25 08:05:09 mx qmail-start[1]: new msg 5", "qmail-send", None, "new msg 5", true),
            ("qmail-smtpd[1]: new msg 5", "qmail-smtpd", Some(1), "new msg 5", false),
            ("qmail-start[1]: alert: qmail-send ended", "qmail-start", Some(1), "alert: qmail-send ended", false),
            ("warning: trouble", "qmail-send", None, "warning: trouble", false),
            ("login: user=x", "qmail-send", None, "login: user=x", false),
            ("", "qmail-send", None, "", false),
        ] {
            let entry = Entry::parse(line.as_bytes(), around);
            assert_eq!((entry.process, entry.pid, entry.text), (process, pid, text.as_bytes()), "{line}");
            assert_eq!(entry.time_us.is_some(), stamped, "{line}");
        }
    }
}
