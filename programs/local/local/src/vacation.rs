//! The reply while the user is away: sent through the queue when a message has been delivered, once to each sender in so many days.
//!
//! Who has had one stands in the file `vacation.replied` of the home, a line `UNIX address` each, the latest last; it is noted before the
//! reply goes out, so that in doubt nobody gets two. Whatever goes wrong here costs a reply and never the delivery, which is done.

use crate::forward::{Copy, Forwarder};
use crate::home::Home;
use ipc::mailbox::Vacation;
use maildir::{Body, Bounds, open_at};
use message::header::Scanner;
use message::vacation::{Reply, is_due};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};

const NAME: &[u8] = b"vacation.replied";
const NEW_NAME: &[u8] = b"vacation.replied.new";
/// Senders that are remembered; with more the oldest are forgotten.
const SENDERS_MAX: usize = 1000;
/// A longer file is somebody's mistake and begins anew.
const LEN_MAX: u64 = 2 << 20;
/// As much of a header is looked at. One that is longer gets no reply: what forbids it may stand behind.
const HEADER_LEN_MAX: usize = 256 * 1024;
const DAY_S: u64 = 86_400;

/// Is it to be sent at this time?
pub(crate) fn counts_at(vacation: &Vacation, now_s: u64) -> bool {
    vacation.from_s <= now_s && (vacation.until_s == 0 || now_s < vacation.until_s)
}

/// What was delivered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivered<'a> {
    pub(crate) sender: &'a [u8],
    /// The address as the sender had it.
    pub(crate) recipient: &'a [u8],
    pub(crate) body: &'a Body,
    pub(crate) now_s: u64,
}

/// Replies, if the sender is to have a reply.
pub(crate) fn reply(vacation: &Vacation, home: &Home, delivered: Delivered<'_>, forwarder: &Forwarder) {
    let Delivered { sender, recipient, body, now_s } = delivered;
    let Some(header) = header(body) else { return };
    let others = vacation.others.iter().map(wire::Address::as_bytes);
    let own: Vec<&[u8]> = [vacation.address.as_bytes(), recipient].into_iter().chain(others).collect();
    if !is_due(sender, &header, &own) || !matches!(note(home, vacation, sender, now_s), Ok(true)) {
        return;
    }
    let Ok(random) = sys::random::bytes16() else { return };
    let reply = Reply {
        from: vacation.address.as_bytes(),
        to: sender,
        subject: &vacation.subject,
        text: &vacation.text,
        header: &header,
        now_s,
        unique: random.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)),
    };
    let Ok(body) = sys::memfd::sealed(&reply.build()).and_then(|fd| Body::new(File::from(fd))) else { return };
    // RFC 3834 §3.3: a reply has an empty return path, so nothing ever answers it.
    let _ = forwarder.submit(&Copy { sender: b"", recipients: &[sender], delivered_to: b"", body: &body });
}

/// `None`: longer than is looked at, or not to be read.
fn header(body: &Body) -> Option<Vec<u8>> {
    let (mut scanner, mut header) = (Scanner::new(), Vec::new());
    let read = body.each_chunk(|chunk| {
        header.extend_from_slice(chunk);
        scanner.feed(chunk);
        Ok::<_, ()>(scanner.header_len().is_none() && header.len() <= HEADER_LEN_MAX)
    });
    read.ok()?;
    if scanner.header_len().is_none() && header.len() <= HEADER_LEN_MAX {
        scanner.finish();
    }
    header.truncate(usize::try_from(scanner.header_len()?).ok()?);
    (header.len() <= HEADER_LEN_MAX).then_some(header)
}

/// Notes that the sender gets a reply now. False: had one not long ago.
fn note(home: &Home, vacation: &Vacation, sender: &[u8], now_s: u64) -> io::Result<bool> {
    let lock = open_at(home.dir(), b".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty(), Bounds::Beneath)?;
    // Two messages of one sender at the same moment: one reply. It ends with the descriptor.
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let text = read(&lock)?;
    let sender = sender.to_ascii_lowercase();
    // Replies of another absence do not count.
    let since_s = now_s.saturating_sub(u64::from(vacation.days).saturating_mul(DAY_S)).max(vacation.from_s.saturating_sub(1));
    let fresh = |line: &&[u8]| at(line).is_some_and(|at_s| at_s > since_s && at_s <= now_s);
    let mut lines: Vec<&[u8]> = text.split(|b| *b == b'\n').filter(fresh).collect();
    if lines.iter().any(|line| line.splitn(2, |b| *b == b' ').nth(1) == Some(&sender)) {
        return Ok(false);
    }
    let line = [now_s.to_string().as_bytes(), b" ", &sender].concat();
    lines.push(&line);
    let kept = lines.get(lines.len().saturating_sub(SENDERS_MAX)..).unwrap_or_default();
    let mut text = kept.join(&b'\n');
    text.push(b'\n');
    replace(&lock, &text)?;
    Ok(true)
}

fn at(line: &[u8]) -> Option<u64> {
    std::str::from_utf8(line.split(|b| *b == b' ').next()?).ok()?.parse().ok()
}

/// What cannot be read as a file begins anew.
fn read(dir: &OwnedFd) -> io::Result<Vec<u8>> {
    let file = match open_at(dir.as_fd(), NAME, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty(), Bounds::Beneath) {
        Ok(fd) => File::from(fd),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > LEN_MAX {
        return Ok(Vec::new());
    }
    let mut text = Vec::new();
    file.take(LEN_MAX).read_to_end(&mut text)?;
    Ok(text)
}

fn replace(dir: &OwnedFd, text: &[u8]) -> io::Result<()> {
    let _ = rustix::fs::unlinkat(dir, NEW_NAME, AtFlags::empty());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut file = File::from(open_at(dir.as_fd(), NEW_NAME, flags, Mode::RUSR | Mode::WUSR, Bounds::Beneath)?);
    file.write_all(text)?;
    rustix::fs::renameat(dir, NEW_NAME, dir, NAME)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;
    use wire::Address;

    fn vacation(from_s: u64, days: u32) -> Vacation {
        let address = Address::new(b"joe@example.org").unwrap();
        Vacation { address, others: Vec::new(), subject: "".into(), text: "away".into(), from_s, until_s: 0, days }
    }

    #[test]
    fn one_reply_in_so_many_days() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path().as_os_str().as_bytes()).unwrap();
        let note = |from_s: u64, sender: &[u8], now_s: u64| note(&home, &vacation(from_s, 2), sender, now_s).unwrap();
        let start = 100 * DAY_S;
        assert!(note(0, b"ann@x", start));
        assert!(!note(0, b"Ann@X", start + 1));
        assert!(note(0, b"bob@x", start + 1));
        assert!(!note(0, b"ann@x", start + 2 * DAY_S - 1));
        assert!(note(0, b"ann@x", start + 2 * DAY_S));
        assert!(note(start + 2 * DAY_S + 5, b"ann@x", start + 2 * DAY_S + 5), "another absence");
        assert!(note(0, b"ann@x", start), "a clock that was wrong does not silence anybody for years");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_file_has_a_bound_and_odd_ones_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path().as_os_str().as_bytes()).unwrap();
        let path = dir.path().join("vacation.replied");
        let many: String = (0..SENDERS_MAX + 50).map(|n| format!("{} a{n}@x\n", 1000 + n)).collect();
        std::fs::write(&path, many).unwrap();
        assert!(note(&home, &vacation(0, 1), b"new@x", 5000).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!((text.lines().count(), text.lines().last()), (SENDERS_MAX, Some("5000 new@x")));
        std::fs::write(&path, b"\xff\n\nx y\n99999999999999999999999 z\n").unwrap();
        assert!(note(&home, &vacation(0, 1), b"new@x", 5000).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "5000 new@x\n");
        File::create(&path).unwrap().set_len(LEN_MAX + 1).unwrap();
        assert!(note(&home, &vacation(0, 1), b"new@x", 5000).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(note(&home, &vacation(0, 1), b"new@x", 5000).is_err());
    }
}
