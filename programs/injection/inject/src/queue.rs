//! qmail-queue: a message on descriptor 0, then its envelope on descriptor 1, to qmail-send (qmail-queue(8)).
//!
//! It connects before it reads, so that a caller in a pipeline waits while the system is down, at most 60 s. It says nothing; its exit
//! code tells what happened, and where the caller opened descriptor 4 or 6 as a pipe a text tells why (exit 82). It adds no line to the
//! message: qmail-send does that, which knows the caller's uid from the socket.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use control::Root;
use ipc::Refusal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::envelope::{Envelope, Reader};
use crate::held::Held;
use crate::outgoing::{self, Exit, Nature};

/// A caller that sends nothing for a day is gone (as ever, the day counts from the start).
pub(crate) const READ_DEADLINE: Duration = Duration::from_secs(86_400);
/// Longest text on descriptor 4 or 6.
const REPORT_LEN_MAX: usize = 255;
const CHUNK_LEN: usize = 32 * 1024;

/// Why the message was not queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// An address over 1002 bytes.
    AddressTooLong,
    /// An address with a line end in it.
    AddressByte,
    /// An envelope over [`crate::envelope::ENVELOPE_LEN_MAX`], or with too many recipients.
    Memory,
    /// 24 hours are over.
    Timeout,
    /// The message could not be held.
    Write,
    /// A descriptor cannot be read, or the envelope ends too early.
    Read,
    /// The environment or the working directory make no root.
    Config,
    /// qmail-send cannot be reached, or there is no socket for it.
    Connect,
    /// By QMQP: a server did not take the connection in time.
    ServerLate,
    /// By QMQP: no server takes connections.
    ServerRefused,
    /// By QMQP: the connection broke, or what came was no answer.
    ServerBroke,
    /// The sandbox cannot be entered.
    Internal,
    /// The envelope is none.
    EnvelopeFormat,
    /// qmail-send said no.
    Refused(Refusal),
}

impl Failure {
    /// The exit code of the qmail-queue interface.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::AddressTooLong => 11,
            Self::AddressByte => 31,
            Self::Memory => 51,
            Self::Timeout => 52,
            Self::Write => 53,
            Self::Read => 54,
            Self::Config => 55,
            Self::Connect => 56,
            Self::ServerLate => 72,
            Self::ServerRefused => 73,
            Self::ServerBroke => 74,
            Self::Internal => 81,
            Self::EnvelopeFormat => 91,
            Self::Refused(refusal) => refused_code(refusal),
        }
    }

    /// Is it worth trying again?
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        !matches!(self.exit_code(), 11..=40)
    }
}

/// The code for a caller that reads no text: the known causes by their enhanced code, otherwise just "no" or "not now".
fn refused_code(refusal: &Refusal) -> u8 {
    let report = refusal.report();
    match (refusal.is_temporary(), report.as_slice()) {
        (true, report) if report.ends_with(b"(#4.3.1)") => 53,
        (true, report) if report.ends_with(b"(#4.4.2)") => 74,
        (true, _) => 71,
        (false, report) if report.ends_with(b"(#5.1.3)") => 11,
        (false, _) => 31,
    }
}

/// Runs the program; gives its exit code.
#[must_use]
pub fn run() -> u8 {
    if [0, 1].into_iter().any(sys::standard::was_closed) {
        return Failure::Read.exit_code();
    }
    let report_fds = report_fds();
    match queue(outgoing::CONNECT_DEADLINE) {
        Ok(()) => 0,
        Err(Failure::Refused(refusal)) if tell(&report_fds, &refusal) => 82,
        Err(failure) => failure.exit_code(),
    }
}

/// Where callers read why a message was refused: notqmail's on descriptor 6, others' on 4, and whoever does not know which of them will be
/// called has one pipe as both. Call it before anything else is opened.
pub(crate) fn report_fds() -> Vec<OwnedFd> {
    distinct([4, 6].into_iter().filter_map(sys::numbered::writable_pipe))
}

/// Each pipe once.
fn distinct(fds: impl Iterator<Item = OwnedFd>) -> Vec<OwnedFd> {
    let mut seen = Vec::new();
    let is_new = |fd: &OwnedFd| {
        let Ok(stat) = rustix::fs::fstat(fd) else { return false };
        let pipe = (stat.st_dev, stat.st_ino);
        let is_new = !seen.contains(&pipe);
        seen.push(pipe);
        is_new
    };
    fds.filter(is_new).collect()
}

/// Writes the text; was there anybody to read it?
pub(crate) fn tell(fds: &[OwnedFd], refusal: &Refusal) -> bool {
    let mut report = refusal.report();
    report.truncate(REPORT_LEN_MAX);
    let told = fds.iter().filter(|fd| rustix::io::write(fd, &report).is_ok_and(|len| len == report.len())).count();
    told > 0
}

fn queue(wait: Duration) -> Result<(), Failure> {
    let root = Root::from_env().map_err(|_| Failure::Config)?;
    let deadline = outgoing::deadline_after(wait);
    let Exit::Send { run, .. } = Exit::to_send(&root.run(), wait).map_err(|_| Failure::Connect)? else {
        return Err(Failure::Internal);
    };
    let mut submission = outgoing::connect(run.as_fd(), deadline).map_err(|_| Failure::Connect)?;
    let mut held = Held::new();
    sandbox::enter(&sandbox::table::TOOL, root.path(), &[]).map_err(|_| Failure::Internal)?;

    let read_deadline = outgoing::deadline_after(READ_DEADLINE);
    let (message_fd, envelope_fd) = (std::io::stdin(), std::io::stdout());
    read_all(message_fd.as_fd(), read_deadline, |chunk| held.push(chunk).map(|()| true).map_err(|_| Failure::Write))?;
    let envelope = read_envelope(envelope_fd.as_fd(), read_deadline)?;

    let nature = Nature { is_eight_bit: held.is_eight_bit(), is_utf8_envelope: envelope.is_utf8_only() };
    let broken = |error| Failure::Refused(outgoing::broken(&error));
    outgoing::begin(&mut submission, envelope.sender, envelope.recipients, nature).map_err(broken)?;
    held.for_each(|part| submission.data(part)).map_err(broken)?;
    outgoing::commit(&mut submission).map_err(Failure::Refused)
}

/// The envelope, read no further than its end.
pub(crate) fn read_envelope(fd: BorrowedFd<'_>, deadline: Instant) -> Result<Envelope, Failure> {
    let mut reader = Reader::default();
    read_all(fd, deadline, |chunk| Ok(!reader.feed(chunk)?))?;
    reader.finish()
}

/// Reads until the end of the file or until `each` wants no more.
pub(crate) fn read_all(
    fd: BorrowedFd<'_>,
    deadline: Instant,
    mut each: impl FnMut(&[u8]) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    // poll(2) would wait for ever on the writing end of a pipe.
    let mode = rustix::fs::fcntl_getfl(fd).map_err(|_| Failure::Read)? & OFlags::RWMODE;
    if mode == OFlags::WRONLY {
        return Err(Failure::Read);
    }
    let mut buf = vec![0; CHUNK_LEN];
    loop {
        wait_readable(fd, deadline)?;
        match rustix::io::read(fd, &mut buf[..]) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                if !each(buf.get(..len).unwrap_or_default())? {
                    return Ok(());
                }
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => return Err(Failure::Read),
        }
    }
}

fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> Result<(), Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).map_err(|_| Failure::Internal)?;
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)) {
        Ok(0) => Err(Failure::Timeout),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(_) => Err(Failure::Read),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pipe_as_both_descriptors_is_told_once() {
        let ((_read, write), (_other, another)) = (rustix::pipe::pipe().unwrap(), rustix::pipe::pipe().unwrap());
        let again = write.try_clone().unwrap();
        assert_eq!(distinct([write, again, another].into_iter()).len(), 2);
    }

    #[test]
    fn exit_codes_agree_with_what_is_permanent() {
        for (failure, code, temporary) in [
            (Failure::AddressTooLong, 11, false),
            (Failure::AddressByte, 31, false),
            (Failure::Memory, 51, true),
            (Failure::Timeout, 52, true),
            (Failure::Write, 53, true),
            (Failure::Read, 54, true),
            (Failure::Config, 55, true),
            (Failure::Connect, 56, true),
            (Failure::ServerLate, 72, true),
            (Failure::ServerRefused, 73, true),
            (Failure::ServerBroke, 74, true),
            (Failure::Internal, 81, true),
            (Failure::EnvelopeFormat, 91, true),
            (Failure::Refused(Refusal::temporary("x (#4.3.0)")), 71, true),
            (Failure::Refused(Refusal::temporary("full (#4.3.1)")), 53, true),
            (Failure::Refused(Refusal::temporary("gone (#4.4.2)")), 74, true),
            (Failure::Refused(Refusal::permanent("x (#5.7.1)")), 31, false),
            (Failure::Refused(Refusal::permanent("long (#5.1.3)")), 11, false),
        ] {
            assert_eq!((failure.exit_code(), failure.is_temporary()), (code, temporary), "{failure:?}");
        }
    }

    #[test]
    fn a_silent_caller_is_given_up() {
        let (read, _write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let soon = outgoing::deadline_after(Duration::from_millis(30));
        assert_eq!(read_envelope(read.as_fd(), soon), Err(Failure::Timeout));
    }

    #[test]
    fn nobody_waits_for_a_descriptor_that_cannot_be_read() {
        let (_read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let later = outgoing::deadline_after(Duration::from_secs(86_400));
        assert_eq!(read_envelope(write.as_fd(), later), Err(Failure::Read));
    }

    #[test]
    fn the_envelope_is_read_to_its_end_only() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        rustix::io::write(&write, b"Fa\0Tb\0\0").unwrap();
        let later = outgoing::deadline_after(Duration::from_secs(20));
        assert_eq!(read_envelope(read.as_fd(), later).unwrap().recipients.len(), 1);
    }
}
