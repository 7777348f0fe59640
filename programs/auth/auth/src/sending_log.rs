//! What was sent, on the disk: so that neither a restart nor a crash of qmail-auth gives an account its limits anew.
//!
//! `var/lib/qmail/sending`, a line for each message, `KIND UNIX MESSAGES RECIPIENTS LOGIN`: written when the message is counted, never synced (a
//! power cut costs the last seconds). Kinds: `m` a message, `h` and `d` what a part of an hour and of a day held together, `q` that the
//! account's limit was told of. A file that has grown over its bound is written anew from what still counts; a line that cannot be
//! read is passed over. If the file cannot be written, limits are counted in memory alone, and the log says so.

use crate::sending::{Kind, Past, Sending};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

/// A larger file is written anew; so is one twice as large as when that was done last.
const LEN_MAX: u64 = 4 << 20;
/// As much is read, and written anew: of more accounts than that the ones that sent least recently have their limits anew.
const READ_MAX: u64 = 32 << 20;
/// Longest login that is noted; none that exists is longer.
const LOGIN_LEN_MAX: usize = 320;

/// The file.
pub(crate) struct SendingLog {
    path: PathBuf,
    file: File,
    len: u64,
    len_max: u64,
}

impl SendingLog {
    /// Opens the file and takes what it holds into `sending`, whose time is `now`; `now_s` is the same in UNIX seconds.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub(crate) fn open(path: PathBuf, sending: &mut Sending, now: Duration, now_s: u64) -> io::Result<Self> {
        let file = File::options().append(true).read(true).create(true).mode(0o600).open(&path)?;
        let len = file.metadata()?.len();
        let mut text = Vec::new();
        (&file).take(READ_MAX).read_to_end(&mut text)?;
        for line in text.split(|b| *b == b'\n') {
            if let Some((at_s, login, past)) = understand(line) {
                // What seems to be of the future is of a clock that was wrong.
                sending.restore(login, past, Duration::from_secs(now_s.saturating_sub(at_s)), now);
            }
        }
        // Whatever broke off in the middle of a line is not to spoil the next.
        if text.last().is_some_and(|last| *last != b'\n') {
            (&file).write_all(b"\n")?;
        }
        Ok(Self { path, file, len, len_max: LEN_MAX })
    }

    /// # Errors
    /// It is not noted.
    pub(crate) fn note(&mut self, login: &[u8], past: Past, sending: &mut Sending, now: Duration, now_s: u64) -> io::Result<()> {
        let Some(line) = line(login, past, now_s) else { return Ok(()) };
        self.file.write_all(&line)?;
        self.len = self.len.saturating_add(line.len() as u64);
        if self.len > self.len_max { self.write_anew(sending, now, now_s) } else { Ok(()) }
    }

    fn write_anew(&mut self, sending: &mut Sending, now: Duration, now_s: u64) -> io::Result<()> {
        let mut text = Vec::new();
        for (login, past, age) in sending.all(now) {
            if text.len() as u64 >= READ_MAX / 2 {
                break;
            }
            text.extend(line(&login, past, now_s.saturating_sub(age.as_secs())).unwrap_or_default());
        }
        let new = self.path.with_extension("new");
        let _ = std::fs::remove_file(&new);
        let mut file = File::options().append(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        std::fs::rename(&new, &self.path)?;
        self.file = file;
        self.len = text.len() as u64;
        self.len_max = LEN_MAX.max(self.len.saturating_mul(2));
        Ok(())
    }
}

/// `None`: no login that anybody has.
fn line(login: &[u8], past: Past, at_s: u64) -> Option<Vec<u8>> {
    if login.is_empty() || login.len() > LOGIN_LEN_MAX || login.iter().any(|b| matches!(b, 0..=32 | 127)) {
        return None;
    }
    let Past { kind, messages, recipients } = past;
    let mut line = format!("{} {at_s} {messages} {recipients} ", kind.letter()).into_bytes();
    line.extend_from_slice(login);
    line.push(b'\n');
    Some(line)
}

fn understand(line: &[u8]) -> Option<(u64, &[u8], Past)> {
    let mut words = line.split(|b| *b == b' ');
    let kind = match words.next()? {
        [letter] => Kind::of(*letter)?,
        _ => return None,
    };
    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse::<u64>().ok();
    let (at_s, messages, recipients) = (number(words.next()?)?, number(words.next()?)?, number(words.next()?)?);
    let login = words.next().filter(|login| !login.is_empty() && words.next().is_none())?;
    let narrow = |number| u32::try_from(number).unwrap_or(u32::MAX);
    Some((at_s, login, Past { kind, messages: narrow(messages), recipients: narrow(recipients) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sending::Sent;
    use control::submission::SubmissionLimits;

    const LIMITS: SubmissionLimits =
        SubmissionLimits { messages_per_hour: 3, recipients_per_hour: 0, messages_per_day: 5, recipients_per_day: 0 };
    const START: Duration = Duration::from_secs(1_000_000);
    const START_S: u64 = 2_000_000_000;

    fn path() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sending");
        (dir, path)
    }

    fn send(log: &mut SendingLog, sending: &mut Sending, login: &[u8], after_s: u64) -> bool {
        let (now, now_s) = (START + Duration::from_secs(after_s), START_S + after_s);
        let is_sent = sending.send(login, 1, &LIMITS, now) == Sent::Yes;
        if is_sent {
            log.note(login, Past::message(1), sending, now, now_s).unwrap();
        }
        is_sent
    }

    fn reopen(path: &std::path::Path, after_s: u64) -> (SendingLog, Sending) {
        let mut sending = Sending::default();
        // Another boot: another time since.
        let log =
            SendingLog::open(path.to_owned(), &mut sending, START + Duration::from_secs(after_s), START_S + after_s).unwrap();
        (log, sending)
    }

    #[test]
    fn a_restart_gives_nobody_his_limits_anew() {
        let (_dir, path) = path();
        let (mut log, mut sending) = reopen(&path, 0);
        for after_s in 0..3 {
            assert!(send(&mut log, &mut sending, b"ann@a", after_s));
        }
        assert!(!send(&mut log, &mut sending, b"ann@a", 3));
        let (mut log, mut sending) = reopen(&path, 10);
        assert!(!send(&mut log, &mut sending, b"ann@a", 10) && send(&mut log, &mut sending, b"bob@a", 10));
        // An hour and a slot later the hour is over, and the day is not.
        let (mut log, mut sending) = reopen(&path, 4300);
        assert!(send(&mut log, &mut sending, b"ann@a", 4300) && send(&mut log, &mut sending, b"ann@a", 4301));
        assert!(!send(&mut log, &mut sending, b"ann@a", 4302));
        let (mut log, mut sending) = reopen(&path, 100_000);
        assert!(send(&mut log, &mut sending, b"ann@a", 100_000));
    }

    #[test]
    fn a_file_that_has_grown_is_written_anew_and_says_the_same() {
        let (_dir, path) = path();
        let (mut log, mut sending) = reopen(&path, 0);
        log.len_max = 200;
        for n in 0..50 {
            let login = format!("u{n}@a");
            for after_s in 0..3 {
                assert!(send(&mut log, &mut sending, login.as_bytes(), after_s));
            }
        }
        assert!(log.len_max > 200 && std::fs::metadata(&path).unwrap().len() < 5000);
        let (mut log, mut sending) = reopen(&path, 100);
        for n in 0..50 {
            assert!(!send(&mut log, &mut sending, format!("u{n}@a").as_bytes(), 100), "{n}");
        }
    }

    #[test]
    fn odd_lines_are_passed_over_and_what_broke_off_spoils_nothing() {
        let (_dir, path) = path();
        std::fs::write(&path, format!("x 1 1 1 a\n\u{ff}\nm {START_S} 9\nm {START_S} 2 2 ann@a\nh 5 1 1 a b\nm 1")).unwrap();
        let (mut log, mut sending) = reopen(&path, 0);
        assert!(send(&mut log, &mut sending, b"ann@a", 0) && !send(&mut log, &mut sending, b"ann@a", 0));
        for odd in [&b""[..], b"a b", b"a\nb", &[b'x'; 400]] {
            assert_eq!(line(odd, Past::message(1), 0), None);
        }
        let (mut log, mut sending) = reopen(&path, 1);
        assert!(!send(&mut log, &mut sending, b"ann@a", 1));
    }
}
