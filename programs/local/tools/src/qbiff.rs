//! qbiff(1): two lines about new mail on the terminals of USER that allow it (`biff y`: executable for their owner). Never an error.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use message::header::fields;
use tool::{End, input};

/// Who is logged in where (utmp(5)); machines without it have nobody to tell.
const UTMP: &str = "/var/run/utmp";
/// Length of a record of glibc: 32-bit times on x86-64 for the sake of old programs.
const RECORD_LEN: usize = if cfg!(target_arch = "x86_64") { 384 } else { 400 };
const USER_PROCESS: u8 = 7;
/// O_NONBLOCK and O_NOCTTY, of Linux on all machines this is built for: a terminal is neither waited for nor made ours.
const NONBLOCK: i32 = 0o4000;
const NOCTTY: i32 = 0o400;
/// Longest second line.
const TEXT_LEN_MAX: usize = 78;

/// The program.
///
/// # Errors
/// None.
pub fn main(_: &[OsString]) -> Result<u8, End> {
    let (user, sender, local) = (input::variable("USER"), input::variable("SENDER"), input::variable("LOCAL"));
    let (Some(user), Some(sender), Some(local)) = (user, sender, local) else { return Ok(0) };
    let Ok(head) = input::stdin().and_then(|mut message| input::head(&mut message)) else { return Ok(0) };
    let text = notice(&local, &sender, &head);
    let Ok(utmp) = File::open(UTMP).and_then(|file| input::all(&file, 16 << 20)) else { return Ok(0) };
    for line in utmp.chunks_exact(RECORD_LEN).filter_map(|record| terminal(record, &user)) {
        tell(&line, &text);
    }
    Ok(0)
}

/// The terminal of a record that is this user's.
fn terminal(record: &[u8], user: &[u8]) -> Option<Vec<u8>> {
    let until_nul = |bytes: &[u8]| bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec();
    let (line, name) = (until_nul(record.get(8..40)?), until_nul(record.get(44..76)?));
    let is_user = record.first() == Some(&USER_PROCESS) && record.get(1) == Some(&0) && name == user && !name.is_empty();
    // A terminal, below /dev: nothing that leads elsewhere.
    (is_user && !line.is_empty() && !line.starts_with(b"/") && !line.contains(&b'.')).then_some(line)
}

fn notice(local: &[u8], sender: &[u8], head: &[u8]) -> Vec<u8> {
    let mut text = b"    ".to_vec();
    let mut header_len = 0usize;
    for field in fields(head).take_while(|field| field.name().is_some()) {
        header_len = header_len.saturating_add(field.raw().len());
        if field.is(b"subject") {
            let after = field.raw().iter().position(|b| *b == b':').and_then(|colon| field.raw().get(colon.checked_add(1)?..));
            let after = after.unwrap_or_default();
            text.extend_from_slice(
                after.get(after.iter().take_while(|b| matches!(b, b' ' | b'\t')).count()..).unwrap_or_default(),
            );
        }
    }
    let body = head.get(header_len..).unwrap_or_default();
    text.extend_from_slice(body);
    text.truncate(TEXT_LEN_MAX);
    let safe =
        |bytes: &[u8], other: u8| -> Vec<u8> { bytes.iter().map(|b| if (32..=126).contains(b) { *b } else { other }).collect() };
    let first = safe(&[b"*** TO <", local, b"> FROM <", sender, b">"].concat(), b'_');
    [b"\r\n\x07", &first[..], b"\r\n", &safe(&text, b'/'), b"\r\n"].concat()
}

/// Writes to a terminal of this user's own that has its x bit, without waiting for it.
fn tell(line: &[u8], text: &[u8]) {
    let path = Path::new("/dev").join(input::path(line));
    let Ok(mut terminal) = File::options().append(true).custom_flags(NONBLOCK | NOCTTY).open(path) else { return };
    let owner = std::fs::metadata("/proc/self").map(|own| own.uid());
    if terminal.metadata().is_ok_and(|held| held.mode() & 0o100 != 0 && owner.is_ok_and(|own| own == held.uid())) {
        let _ = terminal.write_all(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lines_that_no_terminal_obeys() {
        let text = notice(b"joe", b"s\x1b@x", b"A: b\nSubject:  hi\x1b\n\nbody\nmore\n");
        assert_eq!(text, b"\r\n\x07*** TO <joe> FROM <s_@x>\r\n    hi///body/more/\r\n");
        let long = notice(b"joe", b"s@x", &[b"Subject: ", &[b'x'; 500][..], b"\n\n"].concat());
        assert_eq!(long.len(), b"\r\n\x07*** TO <joe> FROM <s@x>\r\n\r\n".len() + TEXT_LEN_MAX);
    }

    #[test]
    fn only_terminals_of_that_user() {
        let record = |kind: u8, line: &str, user: &str| {
            let mut record = vec![0; RECORD_LEN];
            record[0] = kind;
            record[8..8 + line.len()].copy_from_slice(line.as_bytes());
            record[44..44 + user.len()].copy_from_slice(user.as_bytes());
            record
        };
        assert_eq!(terminal(&record(7, "pts/0", "joe"), b"joe"), Some(b"pts/0".to_vec()));
        for (kind, line, user) in
            [(8, "pts/0", "joe"), (7, "/pts", "joe"), (7, "../x", "joe"), (7, "", "joe"), (7, "pts/0", "jo")]
        {
            assert_eq!(terminal(&record(kind, line, user), b"joe"), None, "{kind} {line} {user}");
        }
    }
}
