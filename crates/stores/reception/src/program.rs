//! QMAILQUEUE in the classic face: another program with the interface of qmail-queue gets the messages.
//!
//! The session's process confines itself before it reads a stranger's byte and can start nothing then. So it starts a helper first:
//! this executable again, which does nothing but start the one program that QMAILQUEUE names, once for each message, with the
//! descriptors it is sent: the message on 0, the envelope on 1, a pipe for an error text on 4 and 6 (both conventions, exit code 82 or
//! 88). The helper reads no byte of a message. It ends when the session does.

use ipc::queue_program::{self, EXIT_EXEC, REPORT_LEN_MAX};
use ipc::{DATAGRAM_LEN_MAX, Refusal};
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use sys::inherited::Inherited;
use sys::spawn::{Ended, Spawn};
use sys::{Received, Seqpacket};
use wire::Address;

use crate::Verdict;

/// First argument of the helper; then the program and its working directory.
const HELPER: &str = "--queue-programs";
/// First argument of the process that becomes the program; same arguments.
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
    /// Starts the helper for `program`; a relative path is taken below var/qmail of the root, as ever.
    ///
    /// # Errors
    /// Out of processes or descriptors; temporary.
    pub fn start(program: &OsStr, root: &Path) -> io::Result<Self> {
        let (program, dir) = queue_program::place(program, root);
        let (ours, theirs) = Seqpacket::pair()?;
        let mut spawn = Spawn::new(Path::new(SELF)).arg(HELPER).arg(program).arg(dir);
        for (name, value) in std::env::vars_os() {
            spawn = spawn.env(name, value);
        }
        spawn.stderr(rustix::stdio::stderr()).fd("session", theirs.as_fd()).start()?;
        Ok(Self { helper: ours })
    }

    /// Starts the program for a message.
    ///
    /// # Errors
    /// The helper is gone, or there are no descriptors; temporary.
    pub fn begin(&self) -> io::Result<Handover> {
        let (text_read, text) = pipe_with(PipeFlags::CLOEXEC)?;
        let (envelope_read, envelope_pipe) = pipe_with(PipeFlags::CLOEXEC)?;
        self.helper.send_with_fd(b"t", text_read.as_fd())?;
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
    let [face, program, dir] = args else { return None };
    let (program, dir) = (PathBuf::from(program), PathBuf::from(dir));
    if face == HELPER {
        return Some(serve(&program, &dir).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS));
    }
    (face == BECOME).then(|| {
        let failed =
            Inherited::take().map_or_else(|error| error, |mut fds| queue_program::become_program(&mut fds, &program, &dir));
        crate::log_line(format_args!("{me}: cannot run {}: {failed}", program.display()));
        ExitCode::from(EXIT_EXEC)
    })
}

fn serve(program: &Path, dir: &Path) -> io::Result<()> {
    let session = Seqpacket::from_fd(Inherited::take()?.one("session")?);
    loop {
        let (Some(text), Some(envelope)) = (receive(&session, b't')?, receive(&session, b'e')?) else { return Ok(()) };
        let (ended, pid, report) =
            run(program, dir, text, envelope).unwrap_or_else(|_| (Ended::Code(EXIT_EXEC.into()), 0, Vec::new()));
        let (kind, number) = match ended {
            Ended::Code(code) => (b'c', code),
            Ended::Signal(signal) => (b's', signal),
            Ended::Unknown => (b'u', 0),
        };
        session.send(&[&[kind][..], &number.to_le_bytes(), &pid.to_le_bytes(), &report].concat())?;
    }
}

/// The next descriptor; `None` at the end of the session.
fn receive(session: &Seqpacket, kind: u8) -> io::Result<Option<OwnedFd>> {
    let mut buf = [0; 8];
    match session.recv_with_fd(&mut buf)? {
        Received::Datagram(1, Some(fd)) if buf.first() == Some(&kind) => Ok(Some(fd)),
        Received::Datagram(..) => Err(io::ErrorKind::InvalidData.into()),
        Received::End => Ok(None),
    }
}

/// Runs the program for one message.
fn run(program: &Path, dir: &Path, text: OwnedFd, envelope: OwnedFd) -> io::Result<(Ended, u32, Vec<u8>)> {
    let (report, report_write) = queue_program::report_pipe()?;
    let mut spawn = Spawn::new(Path::new(SELF)).arg(BECOME).arg(program).arg(dir);
    for (name, value) in std::env::vars_os() {
        spawn = spawn.env(name, value);
    }
    let spawn = spawn.stdin(text.as_fd()).stdout(envelope.as_fd()).stderr(rustix::stdio::stderr());
    // 3 and 5 are closed again before the program runs.
    let spare = ("spare", report_write.as_fd());
    let child = queue_program::with_report(spawn, spare, report_write.as_fd()).start()?;
    // Only the program holds them now, so that the session sees when it reads no more.
    drop((text, envelope, report_write));
    let ended = child.wait();
    Ok((ended, child.pid.as_raw_nonzero().get().unsigned_abs(), report.read()))
}
