//! The classic log of qmail-send (qmail-log(5), qmail-family §3.8): byte-stable lines that analysers have read for decades.
//!
//! Lines gather here and are written once a turn of the loop. What strangers wrote never makes a line of its own: bytes below 33,
//! above 126 and `%` become `_`, newlines `/`. When nobody reads the log, lines are dropped and counted, mail never waits for it.

use std::io::{self, Write as _};
use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags};
use schedule::Channel;

/// Bytes that wait at most for a reader of the log.
pub const LOG_LEN_MAX: usize = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub struct Log {
    waiting: Vec<u8>,
    lost: u64,
}

/// Who delivers how many at a time: the status line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub local: (u32, u32),
    pub remote: (u32, u32),
    pub exiting: bool,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Result {
    Success,
    Failure,
    Deferral,
}

impl Log {
    pub fn new_msg(&mut self, id: u64) {
        self.line(|out| write!(out, "new msg {id}"));
    }

    /// The Message-ID stands behind the classic line; qmail-start takes it off again where the format is `classic`.
    pub fn info_msg(&mut self, id: u64, bytes: u64, envelope: &spool::Envelope, message_id: Option<&[u8]>) {
        self.line(|out| {
            write!(out, "info msg {id}: bytes {bytes} from <")?;
            push_safe(out, envelope.sender.as_bytes());
            write!(out, "> qp {} uid {}", envelope.pid, envelope.uid)?;
            if let Some(message_id) = message_id {
                write!(out, " message-id ")?;
                push_safe(out, message_id);
            }
            Ok(())
        });
    }

    pub fn starting(&mut self, delivery: u64, id: u64, channel: Channel, recipient: &[u8]) {
        self.line(|out| {
            write!(out, "starting delivery {delivery}: msg {id} to {} ", channel.name())?;
            push_safe(out, recipient);
            Ok(())
        });
    }

    pub fn status(&mut self, status: Status) {
        let Status { local: (l, local_max), remote: (r, remote_max), exiting } = status;
        let exiting = if exiting { " exitasap" } else { "" };
        self.line(|out| write!(out, "status: local {l}/{local_max} remote {r}/{remote_max}{exiting}"));
    }

    pub fn delivery(&mut self, delivery: u64, result: Result, text: &[u8]) {
        let result = match result {
            Result::Success => "success",
            Result::Failure => "failure",
            Result::Deferral => "deferral",
        };
        self.line(|out| {
            write!(out, "delivery {delivery}: {result}: ")?;
            push_safe(out, text);
            Ok(())
        });
    }

    /// A worker answered, but not for this recipient.
    pub fn mangled(&mut self, delivery: u64) {
        self.line(|out| write!(out, "delivery {delivery}: report mangled, will defer"));
    }

    pub fn bounce_msg(&mut self, id: u64, qp: u32) {
        self.line(|out| write!(out, "bounce msg {id} qp {qp}"));
    }

    pub fn triple_bounce(&mut self, id: u64) {
        self.line(|out| write!(out, "triple bounce: discarding bounce/{id}"));
    }

    pub fn double_bounce_discarded(&mut self, id: u64) {
        self.line(|out| write!(out, "double bounce: discarding bounce/{id}"));
    }

    pub fn end_msg(&mut self, id: u64) {
        self.line(|out| write!(out, "end msg {id}"));
    }

    pub fn exiting(&mut self) {
        self.line(|out| write!(out, "status: exiting"));
    }

    /// Something that may need a look.
    pub fn warning(&mut self, text: &str) {
        self.line(|out| write!(out, "warning: {}", wire::escape::visible(text.as_bytes())));
    }

    /// Something that needs a person.
    pub fn alert(&mut self, text: &str) {
        self.line(|out| write!(out, "alert: {}", wire::escape::visible(text.as_bytes())));
    }

    fn line(&mut self, put: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) {
        if self.waiting.len() >= LOG_LEN_MAX {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        // Writing into memory does not fail.
        let _ = put(&mut self.waiting);
        self.waiting.push(b'\n');
    }

    /// Everything is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Hands what waits to `write`, which says how many bytes it took; the rest stays. Says how many lines were dropped as soon as
    /// there is room again.
    pub fn flush(&mut self, write: impl FnOnce(&[u8]) -> usize) {
        if self.waiting.is_empty() {
            return;
        }
        let taken = write(&self.waiting).min(self.waiting.len());
        self.waiting.drain(..taken);
        if self.lost > 0 && self.waiting.len() < LOG_LEN_MAX / 2 {
            let lost = std::mem::take(&mut self.lost);
            self.line(|out| write!(out, "warning: nobody read the log; {lost} lines were dropped"));
        }
    }
}

/// Where the log goes.
pub struct LogWriter(Box<WriteLog>);

type WriteLog = dyn FnMut(&[u8]) -> usize;

impl LogWriter {
    /// Standard error. A pipe is written without waiting: mail goes on when nobody reads.
    #[must_use]
    pub fn stderr() -> Self {
        let stderr = io::stderr();
        let fd = stderr.as_fd();
        let is_pipe = rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if is_pipe && let Ok(flags) = rustix::fs::fcntl_getfl(fd) {
            let _ = rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK);
        }
        Self::new(|bytes| match rustix::io::write(io::stderr(), bytes) {
            Ok(count) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            // Nobody will ever read it.
            Err(_) => bytes.len(),
        })
    }

    /// `write` says how many bytes it took.
    #[must_use]
    pub fn new(write: impl FnMut(&[u8]) -> usize + 'static) -> Self {
        Self(Box::new(write))
    }

    /// Writes what can be written now, and says how many bytes that was.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        (self.0)(bytes)
    }
}

/// `wire::escape::log_report` without a copy.
fn push_safe(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(text.iter().map(|b| match b {
        b'\n' => b'/',
        b'%' | 0..=32 | 127..=255 => b'_',
        b => *b,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(log: &mut Log) -> String {
        let mut all = Vec::new();
        log.flush(|bytes| {
            all.extend_from_slice(bytes);
            bytes.len()
        });
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn the_templates() {
        let mut log = Log::default();
        log.new_msg(53);
        let sender = wire::Address::new(b"a b@x").unwrap();
        let (recipients, options) = (Vec::new(), Box::default());
        let envelope = spool::Envelope { sender, recipients, arrival_s: 0, uid: 1000, pid: 11, flags: 0, options };
        log.info_msg(53, 227, &envelope, None);
        log.info_msg(53, 227, &envelope, Some(b"<\xff% uid@x>"));
        log.starting(1, 53, Channel::Local, b"j%e@y\xff");
        log.starting(2, 53, Channel::Remote, b"z@y");
        log.status(Status { local: (1, 10), remote: (0, 20), exiting: false });
        log.delivery(1, Result::Success, b"did 1+0+0\n");
        log.delivery(2, Result::Failure, b"a\r\nb\n");
        log.delivery(3, Result::Deferral, b"");
        log.mangled(4);
        log.bounce_msg(53, 12);
        log.triple_bounce(53);
        log.end_msg(53);
        log.status(Status { local: (0, 10), remote: (0, 20), exiting: true });
        log.exiting();
        log.warning("x\ny");
        let expected = "new msg 53\ninfo msg 53: bytes 227 from <a_b@x> qp 11 uid 1000\n\
            info msg 53: bytes 227 from <a_b@x> qp 11 uid 1000 message-id <___uid@x>\n\
            starting delivery 1: msg 53 to local j_e@y_\n\
            starting delivery 2: msg 53 to remote z@y\nstatus: local 1/10 remote 0/20\ndelivery 1: success: did_1+0+0/\n\
            delivery 2: failure: a_/b/\ndelivery 3: deferral: \ndelivery 4: report mangled, will defer\nbounce msg 53 qp 12\n\
            triple bounce: discarding bounce/53\nend msg 53\nstatus: local 0/10 remote 0/20 exitasap\nstatus: exiting\n\
            warning: x\\x0ay\n";
        assert_eq!(text(&mut log), expected);
    }

    #[test]
    fn safe_is_what_wire_says() {
        let all: Vec<u8> = (0..=255).collect();
        let mut out = Vec::new();
        push_safe(&mut out, &all);
        assert_eq!(String::from_utf8(out).unwrap(), wire::escape::log_report(&all));
    }

    #[test]
    fn a_log_nobody_reads_is_bounded_and_says_so() {
        let mut log = Log::default();
        for id in 0..200_000 {
            log.new_msg(id);
        }
        assert!(log.waiting.len() < LOG_LEN_MAX + 100 && log.lost > 0);
        log.flush(|_| 5);
        assert!(log.lost > 0, "not yet");
        let first = text(&mut log);
        assert!(first.starts_with("sg 0\nnew msg 1\n"), "the rest of the line stays");
        assert!(text(&mut log).starts_with("warning: nobody read the log; "));
    }
}
