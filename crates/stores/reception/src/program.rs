//! QMAILQUEUE in the classic face: another program with the interface of qmail-queue gets the messages.
//!
//! The session's process confines itself before it reads a stranger's byte and can start nothing then. So it starts a helper first:
//! this executable again, which does nothing but start a program for each message, with the descriptors it is sent: the message on 0, the
//! envelope on 1, a pipe for an error text on 4 and 6 (both conventions, exit code 82 or 88). It is the one that QMAILQUEUE names, or one
//! that a plugin named in its place, which has to be root's file then; where no plugin is asked the helper starts no other program, and in no
//! other environment, whatever becomes of the session. The helper reads no byte of a message. It ends when the session does.

use ipc::queue_program::{self, EXIT_EXEC, REPORT_LEN_MAX};
use ipc::{DATAGRAM_LEN_MAX, Refusal, hook_program};
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use sys::inherited::Inherited;
use sys::spawn::{Ended, Spawn};
use sys::{Received, Seqpacket};
use wire::Address;

use crate::Verdict;

/// First argument of the helper for what QMAILQUEUE names alone; then the root.
const HELPER: &str = "--queue-programs";
/// First argument of the helper for programs that plugins may name, too; then the root.
const FREE_HELPER: &str = "--any-queue-programs";
/// First argument of the process that becomes the program; then that and its working directory.
const BECOME: &str = "--become-queue-program";
/// This executable, wherever it is.
const SELF: &str = "/proc/self/exe";

/// The helper, seen from the session.
#[derive(Debug)]
pub struct QueueProgram {
    helper: Seqpacket,
}

/// A message under way to the program. Finished or given up, never just dropped, so that its answer is read.
#[derive(Debug)]
pub struct Handover {
    text: io::BufWriter<File>,
    envelope_pipe: File,
    write_failed: bool,
}

impl QueueProgram {
    /// Starts the helper; `may_change`: for other programs and environments than those of this process.
    ///
    /// # Errors
    /// Out of processes or descriptors; temporary.
    pub fn start(root: &Path, may_change: bool) -> io::Result<Self> {
        let (ours, theirs) = Seqpacket::pair()?;
        let mut spawn = Spawn::new(Path::new(SELF)).arg(if may_change { FREE_HELPER } else { HELPER }).arg(root);
        for (name, value) in std::env::vars_os() {
            spawn = spawn.env(name, value);
        }
        spawn.stderr(rustix::stdio::stderr()).fd("session", theirs.as_fd()).start()?;
        Ok(Self { helper: ours })
    }

    /// Starts the program for a message; a relative path is taken below var/qmail of the root, as ever. `changes` of its environment:
    /// `NAME=VALUE` to set, `NAME` to take away; no NUL in any.
    ///
    /// # Errors
    /// The helper is gone, or there are no descriptors; temporary.
    pub fn begin(&self, program: &OsStr, changes: &[Vec<u8>]) -> io::Result<Handover> {
        let mut request = [b"t", program.as_bytes()].concat();
        changes.iter().for_each(|change| request.extend([b"\0", &change[..]].concat()));
        if request.len() > DATAGRAM_LEN_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (text_read, text) = pipe_with(PipeFlags::CLOEXEC)?;
        let (envelope_read, envelope_pipe) = pipe_with(PipeFlags::CLOEXEC)?;
        self.helper.send_with_fd(&request, text_read.as_fd())?;
        self.helper.send_with_fd(b"e", envelope_read.as_fd())?;
        let text = io::BufWriter::with_capacity(DATAGRAM_LEN_MAX, text.into());
        Ok(Handover { text, envelope_pipe: envelope_pipe.into(), write_failed: false })
    }

    /// Ends the message and waits for the program.
    #[must_use]
    pub fn finish(&self, mut handover: Handover, sender: &Address, recipients: &[Address]) -> Verdict {
        handover.write_failed |= handover.text.flush().is_err();
        let Handover { text, envelope_pipe, mut write_failed } = handover;
        drop(text);
        if !write_failed {
            write_failed = queue_program::write_envelope(envelope_pipe, sender, recipients).is_err();
        }
        match self.answer() {
            Ok((ended, pid, report)) => queue_program::outcome(ended, write_failed, &report)
                .map_or_else(answer, |()| Verdict::Accepted { id: None, qp: pid }),
            Err(_) => answer(queue_program::not_run()),
        }
    }

    /// Gives the message up: the program sees an envelope that ends too early (exit 54).
    pub fn give_up(&self, handover: Handover) {
        // What BufWriter still holds is not to be written.
        let _ = handover.text.into_parts();
        drop(handover.envelope_pipe);
        let _ = self.answer();
    }

    fn answer(&self) -> io::Result<(Ended, u32, Vec<u8>)> {
        let mut buf = [0; 9 + REPORT_LEN_MAX];
        let Received::Datagram(len, _) = self.helper.recv(&mut buf)? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        match buf.get(..len) {
            Some([kind, a, b, c, d, e, f, g, h, report @ ..]) => {
                let number = i32::from_le_bytes([*a, *b, *c, *d]);
                let ended = match *kind {
                    b'c' => Ended::Code(number),
                    b's' => Ended::Signal(number),
                    _ => Ended::Unknown,
                };
                Ok((ended, u32::from_le_bytes([*e, *f, *g, *h]), report.to_vec()))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl Handover {
    /// Bytes of the message. That the program reads no more is seen from its exit code.
    pub fn put(&mut self, bytes: &[u8]) {
        self.write_failed |= !self.write_failed && self.text.write_all(bytes).is_err();
    }
}

/// The refusal as the queue's answer.
fn answer(refusal: Refusal) -> Verdict {
    if refusal.is_permanent { Verdict::Permanent(refusal.text) } else { Verdict::Temporary(refusal.text) }
}

/// The helper's side, for the program `me`: `None` if these are no arguments of a helper, else its exit code.
#[must_use]
pub fn helper(me: &str, args: &[OsString]) -> Option<ExitCode> {
    let (program, dir) = match args {
        [face, root] if face == HELPER || face == FREE_HELPER => {
            let may_change = face == FREE_HELPER;
            return Some(serve(me, Path::new(root), may_change).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS));
        }
        [face, program, dir] if face == BECOME => (PathBuf::from(program), PathBuf::from(dir)),
        _ => return None,
    };
    let failed = Inherited::take().map_or_else(|error| error, |mut fds| queue_program::become_program(&mut fds, &program, &dir));
    crate::log_line(format_args!("{me}: cannot run {}: {failed}", program.display()));
    Some(ExitCode::from(EXIT_EXEC))
}

fn serve(me: &str, root: &Path, may_change: bool) -> io::Result<()> {
    let named = std::env::var_os("QMAILQUEUE");
    let session = Seqpacket::from_fd(Inherited::take()?.one("session")?);
    loop {
        let Some((request, text)) = receive(&session, b't')? else { return Ok(()) };
        let Some((_, envelope)) = receive(&session, b'e')? else { return Ok(()) };
        let mut words = request.split(|b| *b == 0);
        let program = OsStr::from_bytes(words.next().unwrap_or_default());
        let changes = words.collect::<Vec<_>>();
        let is_named = named.as_deref() == Some(program);
        if !may_change && (!is_named || !changes.is_empty()) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let place = queue_program::place(program, root);
        // The caller's own choice is the caller's matter.
        let trusted = if is_named { Ok(place.0) } else { hook_program::trusted(&place.0, root) };
        let ran = trusted.and_then(|program| run(&program, &place.1, &changes, text, envelope));
        let (ended, pid, report) = ran.unwrap_or_else(|error| {
            crate::log_line(format_args!("{me}: {error}"));
            (Ended::Code(EXIT_EXEC.into()), 0, Vec::new())
        });
        let (kind, number) = match ended {
            Ended::Code(code) => (b'c', code),
            Ended::Signal(signal) => (b's', signal),
            Ended::Unknown => (b'u', 0),
        };
        session.send(&[&[kind][..], &number.to_le_bytes(), &pid.to_le_bytes(), &report].concat())?;
    }
}

/// What is behind the letter, and the descriptor beside it; `None` at the end of the session.
fn receive(session: &Seqpacket, kind: u8) -> io::Result<Option<(Vec<u8>, OwnedFd)>> {
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    match session.recv_with_fd(&mut buf)? {
        Received::Datagram(len, Some(fd)) => match buf.get(..len).and_then(<[u8]>::split_first) {
            Some((letter, request)) if *letter == kind => Ok(Some((request.to_vec(), fd))),
            _ => Err(io::ErrorKind::InvalidData.into()),
        },
        Received::Datagram(..) => Err(io::ErrorKind::InvalidData.into()),
        Received::End => Ok(None),
    }
}

/// Runs the program for one message.
fn run(program: &Path, dir: &Path, changes: &[&[u8]], text: OwnedFd, envelope: OwnedFd) -> io::Result<(Ended, u32, Vec<u8>)> {
    let (report, report_write) = queue_program::report_pipe()?;
    let spawn = Spawn::new(Path::new(SELF)).arg(BECOME).arg(program).arg(dir);
    let environment = std::env::vars_os().collect::<Vec<_>>();
    let spawn = hook_program::with_changes(spawn, &environment, changes)?;
    let spawn = spawn.stdin(text.as_fd()).stdout(envelope.as_fd()).stderr(rustix::stdio::stderr());
    // 3 and 5 are closed again before the program runs.
    let spare = ("spare", report_write.as_fd());
    let child = queue_program::with_report(spawn, spare, report_write.as_fd()).start()?;
    // Only the program holds them now, so that the session sees when it reads no more.
    drop((text, envelope, report_write));
    let ended = child.wait();
    Ok((ended, child.pid.as_raw_nonzero().get().unsigned_abs(), report.read()))
}
