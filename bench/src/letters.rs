//! One letter after the other, at a modest rate: how long each takes from MAIL to its final 250, and to its file in `new/`.
//!
//! The next one is sent when the last one is there and its time has come, so that the server is measured and not a queue of
//! letters. The kernel tells when a file comes into a Maildir: nothing is polled for.

use crate::generator::{self, user_name};
use crate::mailboxes::Mailboxes;
use crate::server::LOCAL;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A letter that takes longer is lost.
const ARRIVAL_WAIT: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
const SIZE_BYTES: usize = 4096;

/// Times of letters, in milliseconds.
#[derive(Debug, Default, Clone)]
pub(crate) struct Times {
    /// MAIL to the final 250.
    pub(crate) accepted_ms: Vec<f64>,
    /// MAIL to the file in `new/`.
    pub(crate) delivered_ms: Vec<f64>,
}

impl Times {
    pub(crate) fn extend(&mut self, others: &Self) {
        self.accepted_ms.extend_from_slice(&others.accepted_ms);
        self.delivered_ms.extend_from_slice(&others.delivered_ms);
    }
}

/// Writes to the users in turn.
#[derive(Debug)]
pub(crate) struct Correspondent {
    to: SocketAddrV4,
    arrivals: OwnedFd,
    body: Vec<u8>,
    users: usize,
    sent: usize,
}

impl Correspondent {
    /// Watches the mailboxes, which must be there and stay.
    ///
    /// # Errors
    /// A mailbox is missing.
    pub(crate) fn new(to: SocketAddrV4, mailboxes: &Mailboxes) -> Result<Self> {
        let arrivals = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut users = 0usize;
        for dir in mailboxes.new_dirs() {
            inotify::add_watch(&arrivals, &dir, WatchFlags::CREATE | WatchFlags::MOVED_TO)
                .with_context(|| dir.display().to_string())?;
            users = users.saturating_add(1);
        }
        Ok(Self { to, arrivals, body: generator::body(SIZE_BYTES), users, sent: 0 })
    }

    /// Sends `count` letters, one each `every`, or one after the other where that is too fast.
    ///
    /// # Errors
    /// A letter is refused or does not arrive.
    pub(crate) fn letters(&mut self, count: usize, every: Duration) -> Result<Times> {
        let mut times = Times::default();
        let mut next = Instant::now();
        for _ in 0..count {
            let (accepted, delivered) = self.letter(next).with_context(|| format!("letter {}", self.sent))?;
            times.accepted_ms.push(accepted.as_secs_f64() * 1e3);
            times.delivered_ms.push(delivered.as_secs_f64() * 1e3);
            next = (next + every).max(Instant::now());
        }
        Ok(times)
    }

    /// One letter on a connection of its own, its MAIL not before `at`.
    fn letter(&mut self, at: Instant) -> Result<(Duration, Duration)> {
        let n = self.sent;
        self.sent = n.saturating_add(1);
        let mut session = Session::open(self.to)?;
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        self.forget_arrivals();
        let begin = Instant::now();
        session.say(b"MAIL FROM:<sender@from.test>\r\n", b'2')?;
        session.say(format!("RCPT TO:<{}@{LOCAL}>\r\n", user_name(n % self.users.max(1))).as_bytes(), b'2')?;
        session.say(b"DATA\r\n", b'3')?;
        let header = format!("From: <sender@from.test>\r\nSubject: timed\r\nMessage-ID: <timed-{n}@from.test>\r\n\r\n");
        session.say(&[header.as_bytes(), &self.body, b".\r\n"].concat(), b'2')?;
        let accepted = begin.elapsed();
        if poll(&mut [PollFd::new(&self.arrivals, PollFlags::IN)], Some(&ARRIVAL_WAIT))? == 0 {
            bail!("accepted, and not delivered within {} s", ARRIVAL_WAIT.tv_sec);
        }
        let delivered = begin.elapsed();
        let _ = session.say(b"QUIT\r\n", b'2');
        Ok((accepted, delivered))
    }

    fn forget_arrivals(&self) {
        let mut events = [0; 4096];
        while rustix::io::read(&self.arrivals, &mut events).is_ok_and(|n| n > 0) {}
    }
}

struct Session {
    stream: BufReader<TcpStream>,
}

impl Session {
    fn open(to: SocketAddrV4) -> Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(ARRIVAL_WAIT.tv_sec.unsigned_abs())))?;
        let mut session = Self { stream: BufReader::new(stream) };
        session.say(b"", b'2')?;
        session.say(b"EHLO client.bench.test\r\n", b'2')?;
        Ok(session)
    }

    /// Says it and waits for the whole answer, whose code must begin so.
    fn say(&mut self, text: &[u8], wanted: u8) -> Result<()> {
        self.stream.get_mut().write_all(text)?;
        let mut line = String::new();
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                bail!("closed by the server");
            }
            if line.as_bytes().first() != Some(&wanted) {
                bail!("refused: {}", line.trim_end());
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responder::Responder;
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn letters_that_arrive() {
        let base = std::env::temp_dir().join(format!("bench-letters-{}", std::process::id()));
        std::fs::create_dir_all(&base).unwrap();
        let mailboxes = Mailboxes::below(&base, 3);
        mailboxes.renew().unwrap();
        let server = Responder::start(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), false).unwrap();
        let mut correspondent = Correspondent::new(server.address(), &mailboxes).unwrap();
        // Something arrives every 20 ms, as if it were the letters.
        let done = AtomicBool::new(false);
        let times = std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0.. {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                    std::fs::write(base.join(format!("u00{}/Maildir/new/{n}", n % 3 + 1)), "").unwrap();
                }
            });
            let times = correspondent.letters(5, Duration::from_millis(30));
            done.store(true, Ordering::Relaxed);
            times.unwrap()
        });
        assert_eq!((times.accepted_ms.len(), times.delivered_ms.len()), (5, 5));
        assert!(
            times.accepted_ms.iter().zip(&times.delivered_ms).all(|(accepted, delivered)| accepted <= delivered),
            "{times:?}"
        );
        std::fs::remove_dir_all(&base).unwrap();
    }
}
