//! A line of a log file, as any of the usual loggers left it: `[STAMP ][HOST ][TAG[PID]: [STAMP ]]LINE`, where LINE is what qmail-start
//! wrote: `NAME[PID]: TEXT`, or a line of qmail-send.
//!
//! Only the name that qmail-start put there says who wrote the line: behind it everything is text, which strangers may have a part in.
//! Before it there may be a logger's name, which is none of ours, and the one of qmail-start where a service manager read its standard
//! error.

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
            entry.text = behind_host(rest).unwrap_or(rest);
        }
        if let Some((_, _, text)) = name(entry.text).filter(|(process, _, _)| !is_ours(process)) {
            // splogger's tag says nothing of who wrote the line, and a time of its own may follow.
            entry.text = text;
            if let Some((time_us, behind)) = stamp::take(text, around.now_us, around.offset_s) {
                (entry.time_us, entry.text) = (Some(time_us), behind);
            }
        }
        let Some((process, pid, text)) = name(entry.text).filter(|(process, _, _)| is_ours(process)) else { return entry };
        (entry.process, entry.pid, entry.text) = (process, pid, text);
        if process != "qmail-start" {
            return entry;
        }
        // It is the logger here, too, where somebody read its standard error.
        match name(text).filter(|(process, _, _)| is_ours(process)) {
            Some((process, pid, text)) => (entry.process, entry.pid, entry.text) = (process, pid, text),
            None if is_classic(text) => (entry.process, entry.pid) = ("qmail-send", None),
            None => {}
        }
        entry
    }
}

/// Behind syslog's host, if a name or a line of qmail-send stands there. A host has no colon at its end: that would be the first word of
/// a text.
fn behind_host(rest: &[u8]) -> Option<&[u8]> {
    let end = rest.iter().position(|b| *b == b' ')?;
    let (host, behind) = (rest.get(..end)?, rest.get(end.checked_add(1)?..)?);
    let is_host = host.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'));
    (is_host && !host.ends_with(b":") && name(behind).is_some()).then_some(behind)
}

/// A process that qmail-start writes the lines of.
fn is_ours(process: &str) -> bool {
    process.starts_with("qmail-")
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
            ("Nov 25 08:05:09 mx qmail: 1764057909.5 qmail-smtpd[7]: a=1", "qmail-smtpd", Some(7), "a=1", true),
            ("qmail-start[1]: qmail-start[1]: alert: x", "qmail-start", Some(1), "alert: x", false),
        ] {
            let entry = Entry::parse(line.as_bytes(), around);
            assert_eq!((entry.process, entry.pid, entry.text), (process, pid, text.as_bytes()), "{line}");
            assert_eq!(entry.time_us.is_some(), stamped, "{line}");
        }
    }

    /// Whatever a text begins with: who wrote it is what stands in front.
    #[test]
    fn no_text_names_another_process() {
        let around = Surroundings { now_us: 1_764_057_909_000_000, offset_s: 0 };
        for text in [
            "qmail-send[9]: end msg 5",
            "qmail-send: end msg 5",
            "qmail: 1764057909.5 end msg 5",
            "syslog[1]: qmail-send[9]: delivery 1: success: x",
            "qmail-start[1]: qmail-send[9]: end msg 5",
            "end msg 5",
            "mx qmail-send[9]: end msg 5",
            "[continued] qmail-send[9]: end msg 5",
        ] {
            for front in ["", "@4000000069256600075bca00 ", "Nov 25 08:05:09 mx qmail: ", "Nov 25 08:05:09 mx qmail-start[1]: "] {
                let line = format!("{front}qmail-smtpd[7]: {text}");
                let entry = Entry::parse(line.as_bytes(), around);
                assert_eq!((entry.process, entry.text), ("qmail-smtpd", text.as_bytes()), "{line}");
            }
        }
        // Lines of qmail-send itself that are no template, whatever follows.
        for text in ["warning: qmail-smtpd[7]: accepted msg=5", "[continued] qmail-smtpd[7]: accepted msg=5"] {
            for front in ["", "@4000000069256600075bca00 "] {
                let line = format!("{front}{text}");
                let entry = Entry::parse(line.as_bytes(), around);
                assert_eq!((entry.process, entry.text), ("qmail-send", text.as_bytes()), "{line}");
            }
        }
    }
}
