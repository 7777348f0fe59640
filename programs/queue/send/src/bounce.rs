//! Writes bounces on a thread of its own, since that reads the original from the disk.
//!
//! A bounce that fits is one piece of memory; a longer one goes to a side file, a chunk at a time. Both begin with the trace line
//! `for bounce`. Failures are temporary: the failed recipients stay in the spool, and the bounce is made again.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use message::bounce::{self, Action, Decision, Failure, Notice, Original};
use message::header::Scanner;
use message::received::{self, InvokedBy};
use spool::{BODY_INLINE_MAX, SIDE_BACKLOG_MAX, SideBody};
use sys::wake::Wake;
use wire::{Address, Domain};

/// Bytes of the original read at a time.
const CHUNK_LEN: usize = 64 * 1024;
/// A header longer than that counts as ended there.
const HEADER_LEN_MAX: u64 = 1 << 20;
/// How long to wait for the side-file writer between two looks.
const BACKLOG_PAUSE: Duration = Duration::from_millis(2);

/// What stands in the place of an original that cannot be read.
const UNREADABLE: &[u8] = b"Subject: (the original message cannot be read any more)\n\n";

/// One recipient that a report is about.
#[derive(Debug)]
pub struct Failed {
    pub action: Action,
    pub recipient: Address,
    /// Its ORCPT, decoded.
    pub original: Option<Vec<u8>>,
    pub report: Vec<u8>,
}

/// A bounce to write.
#[derive(Debug)]
pub struct Order {
    pub message: u64,
    /// A report that is no bounce.
    pub notice: Option<Notice>,
    /// The message's ENVID, decoded.
    pub envelope_id: Option<Vec<u8>>,
    /// Of the original only the header comes back.
    pub headers_only: bool,
    /// When the message is given up.
    pub retry_until_s: u64,
    pub decision: Decision,
    /// Envelope sender of the original.
    pub sender: Address,
    pub arrival_s: u64,
    /// Flags of the original; they go with its copy.
    pub flags: u32,
    /// Length of the original.
    pub len: u64,
    pub failed: Vec<Failed>,
    /// The original, if it can be read.
    pub original: Option<Arc<OwnedFd>>,
    pub bouncefrom: Vec<u8>,
    pub bouncehost: Domain,
    pub copy_len_max: Option<u64>,
    pub now_s: u64,
    pub pid: u32,
    /// Where to write it when it is long.
    pub side: Option<SideBody>,
}

/// A bounce as it goes into the spool.
#[derive(Debug)]
pub enum Written {
    Small(Vec<u8>),
    /// The side file and its length.
    Large(SideBody, u64),
    /// It is long: order it again with a side file.
    NeedsSide,
}

/// The thread and the way to it.
pub struct Writer {
    orders: Sender<Order>,
    done: Receiver<(Order, io::Result<Written>)>,
    wake: Wake,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// Out of descriptors or threads; temporary.
    pub fn start() -> io::Result<Self> {
        let wake = Wake::new()?;
        let (orders, inbox) = channel::<Order>();
        let (outbox, done) = channel();
        let bell = wake.clone();
        std::thread::Builder::new().name("bounce".to_owned()).spawn(move || {
            sys::vital(|| {
                for mut order in inbox {
                    let written = write(&mut order);
                    if outbox.send((order, written)).is_err() {
                        return;
                    }
                    bell.wake();
                }
            });
        })?;
        Ok(Self { orders, done, wake })
    }

    /// Readable when bounces are done.
    #[must_use]
    pub fn wake(&self) -> &Wake {
        &self.wake
    }

    pub fn order(&self, order: Order) {
        // The thread ends only with this value.
        let _ = self.orders.send(order);
    }

    /// The bounces that are done.
    pub fn take(&self) -> impl Iterator<Item = (Order, io::Result<Written>)> {
        self.wake.clear();
        self.done.try_iter()
    }
}

/// Writes one bounce.
///
/// # Errors
/// The system's random numbers or the original failed; temporary.
pub fn write(order: &mut Order) -> io::Result<Written> {
    let header_len = header_len(order)?;
    let len = if order.original.is_some() { order.len } else { UNREADABLE.len() as u64 };
    let original = Original {
        sender: &order.sender,
        arrival_s: order.arrival_s,
        len,
        header_len,
        is_smtputf8: order.flags & ipc::queue::FLAG_SMTPUTF8 != 0,
        envelope_id: order.envelope_id.as_deref(),
        headers_only: order.headers_only,
        retry_until_s: Some(order.retry_until_s),
    };
    let failures: Vec<Failure<'_>> = order.failed.iter().map(failure).collect();
    let from =
        bounce::Sender { bounce_from: &order.bouncefrom, bounce_host: &order.bouncehost, copy_len_max: order.copy_len_max };
    let random = u128::from_ne_bytes(sys::random::bytes16()?);
    let bounce = match (order.notice, &order.decision) {
        (None, decision) => bounce::build(decision, from, original, &failures, order.now_s, random),
        (Some(about), Decision::Bounce { to }) => Some(bounce::notice(about, to, from, original, &failures, order.now_s, random)),
        (Some(_), _) => None,
    };
    let bounce = bounce.ok_or_else(|| io::Error::other("nobody is to be told"))?;
    drop(failures);
    let trace = received::line(order.pid, InvokedBy::Bounce, order.now_s);
    let fixed = trace.len().saturating_add(bounce.prologue.len()).saturating_add(bounce.epilogue.len());
    let total = bounce.copy_len.saturating_add(fixed as u64);
    let original = order.original.clone();
    if total <= BODY_INLINE_MAX as u64 {
        let mut body = [trace, bounce.prologue].concat();
        copy(original.as_deref(), bounce.copy_len, |chunk| body.extend_from_slice(chunk))?;
        body.extend_from_slice(&bounce.epilogue);
        return Ok(Written::Small(body));
    }
    let Some(mut side) = order.side.take() else { return Ok(Written::NeedsSide) };
    side.write(trace);
    side.write(bounce.prologue);
    copy(original.as_deref(), bounce.copy_len, |chunk| {
        while side.backlog() > SIDE_BACKLOG_MAX {
            std::thread::sleep(BACKLOG_PAUSE);
        }
        side.write(chunk.to_vec());
    })?;
    side.write(bounce.epilogue);
    let total = side.len();
    Ok(Written::Large(side, total))
}

fn failure(failed: &Failed) -> Failure<'_> {
    let Failed { action, recipient, original, report } = failed;
    Failure { action: *action, recipient, original_recipient: original.as_deref(), report, remote_mta: None }
}

fn header_len(order: &Order) -> io::Result<u64> {
    let whole = !order.headers_only && order.copy_len_max.is_none_or(|max| order.len <= max);
    if whole || order.original.is_none() {
        return Ok(order.len);
    }
    let mut scanner = Scanner::new();
    let mut left = HEADER_LEN_MAX.min(order.len);
    let mut at = 0u64;
    while left > 0 && scanner.header_len().is_none() {
        let chunk = read(order.original.as_deref(), at, left)?;
        scanner.feed(&chunk);
        at = at.saturating_add(chunk.len() as u64);
        left = left.saturating_sub(chunk.len() as u64);
    }
    Ok(scanner.header_len().unwrap_or(at))
}

fn copy(original: Option<&OwnedFd>, len: u64, mut put: impl FnMut(&[u8])) -> io::Result<()> {
    let mut at = 0u64;
    while at < len {
        let chunk = read(original, at, len.saturating_sub(at))?;
        put(&chunk);
        at = at.saturating_add(chunk.len() as u64);
    }
    Ok(())
}

/// The next bytes, at least one.
fn read(original: Option<&OwnedFd>, at: u64, max: u64) -> io::Result<Vec<u8>> {
    let max = usize::try_from(max).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
    let Some(original) = original else {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let rest = UNREADABLE.get(start..).filter(|rest| !rest.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?;
        return Ok(rest.get(..max.min(rest.len())).unwrap_or_default().to_vec());
    };
    let mut chunk = vec![0; max];
    let count = rustix::io::retry_on_intr(|| rustix::io::pread(original, &mut chunk[..], at))?;
    if count == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    chunk.truncate(count);
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use spool::{Log as _, model::Model};

    fn order(body: &[u8], copy_len_max: Option<u64>) -> Order {
        Order {
            message: 5,
            notice: None,
            envelope_id: None,
            headers_only: false,
            retry_until_s: 9,
            decision: Decision::Bounce { to: Address::new(b"s@x").unwrap() },
            sender: Address::new(b"s@x").unwrap(),
            arrival_s: 1,
            flags: 0,
            len: body.len() as u64,
            failed: vec![Failed {
                action: Action::Failed,
                recipient: Address::new(b"r@y").unwrap(),
                original: None,
                report: b"No. (#5.1.1)\n".to_vec(),
            }],
            original: Some(Arc::new(sys::memfd::sealed(body).unwrap())),
            bouncefrom: b"MAILER-DAEMON".to_vec(),
            bouncehost: Domain::new(b"h.example").unwrap(),
            copy_len_max,
            now_s: 2,
            pid: 9,
            side: None,
        }
    }

    const TRACE: &[u8] = b"Received: (qmail 9 invoked for bounce); 1 Jan 1970 00:00:02 -0000\nDate: ";

    fn contains(text: &[u8], what: &[u8]) -> bool {
        text.windows(what.len()).any(|window| window == what)
    }

    #[test]
    fn a_small_one_holds_everything() {
        let Written::Small(body) = write(&mut order(b"Subject: hello\n\ntext of it\n", Some(50_000))).unwrap() else { panic!() };
        assert!(body.starts_with(TRACE));
        assert!(contains(&body, b"Hi. This is the qmail-send program at h.example.\n"));
        assert!(contains(&body, b"\n<r@y>:\nNo. (#5.1.1)\n\n"));
        assert!(contains(&body, b"Return-Path: <s@x>\nSubject: hello\n\ntext of it\n\n--qmail-"));
    }

    #[test]
    fn of_a_long_one_just_the_header() {
        let body = [&b"Subject: hello\n\n"[..], &[b'x'; 60_000]].concat();
        let Written::Small(bounce) = write(&mut order(&body, Some(50_000))).unwrap() else { panic!() };
        assert!(contains(&bounce, b"text/rfc822-headers") && contains(&bounce, b"Subject: hello\n\n--qmail-"));
    }

    #[test]
    fn a_large_one_is_streamed() {
        let body = [&b"Subject: hello\n\n"[..], &vec![b'x'; 3_000_000]].concat();
        let mut order = order(&body, None);
        assert!(matches!(write(&mut order).unwrap(), Written::NeedsSide));
        let mut model = Model::new().unwrap();
        // The model's side files are written by nobody: give it room for everything.
        let mut small = self::order(&body[..300_000], None);
        small.side = Some(model.side_file());
        let Written::Large(side, len) = write(&mut small).unwrap() else { panic!() };
        assert!(len > 300_000 && side.len() == len);
    }

    #[test]
    fn an_original_that_cannot_be_read_does_not_stop_the_bounce() {
        let mut order = order(b"x", None);
        order.original = None;
        order.len = 100_000;
        let Written::Small(body) = write(&mut order).unwrap() else { panic!() };
        assert!(contains(&body, b"cannot be read any more"));
    }

    #[test]
    fn the_thread_hands_back_what_it_was_given() {
        let writer = Writer::start().unwrap();
        writer.order(order(b"Subject: hello\n\n", None));
        let mut done = Vec::new();
        while done.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            done.extend(writer.take());
        }
        assert_eq!(done.pop().map(|(order, written)| (order.message, written.is_ok())), Some((5, true)));
    }
}
