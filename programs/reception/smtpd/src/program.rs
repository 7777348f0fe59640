//! QMAILQUEUE in the classic face: another program with the interface of qmail-queue gets the messages.
//!
//! The session's process confines itself before it reads a stranger's byte and can start nothing then. So it starts a helper first:
//! this executable again, which does nothing but start the one program that QMAILQUEUE names, once for each message, with the
//! descriptors it is sent: the message on 0, the envelope on 1, a pipe for an error text on 4 and 6 (both conventions, exit code 82 or
//! 88). The helper reads no byte of a message. It ends when the session does.

use ipc::DATAGRAM_LEN_MAX;
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use smtp::server::{Envelope, QueueAnswer};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use sys::inherited::Inherited;
use sys::spawn::{Ended, Spawn};
use sys::{Received, Seqpacket};

/// First argument of the helper; then the program and its working directory.
const HELPER: &str = "--queue-programs";
/// First argument of the process that becomes the program; same arguments.
const BECOME: &str = "--become-queue-program";
/// This executable, wherever it is.
const SELF: &str = "/proc/self/exe";
/// The program could not be run (the code of the classic caller).
const EXIT_EXEC: u8 = 120;
/// Longest error text; the classic callers read no more.
const REPORT_LEN_MAX: usize = 255;

/// The helper, seen from the session.
#[derive(Debug)]
pub(crate) struct QueueProgram {
    helper: Seqpacket,
}

/// A message under way to the program. Finished or given up, never just dropped, so that its answer is read.
#[derive(Debug)]
pub(crate) struct Handover {
    text: io::BufWriter<File>,
    envelope_pipe: File,
    envelope: Envelope,
    write_failed: bool,
}

impl QueueProgram {
    /// Starts the helper for `program`; a relative path is taken below var/qmail of the root, as ever.
    ///
    /// # Errors
    /// Out of processes or descriptors; temporary.
    pub(crate) fn start(program: &OsStr, root: &Path) -> io::Result<Self> {
        let home = root.join("var/qmail");
        let dir = if home.is_dir() { home.as_path() } else { Path::new("/") };
        let (ours, theirs) = Seqpacket::pair()?;
        let mut spawn = Spawn::new(Path::new(SELF)).arg(HELPER).arg(home.join(program)).arg(dir);
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
    pub(crate) fn begin(&self, envelope: Envelope) -> io::Result<Handover> {
        let (text_read, text) = pipe_with(PipeFlags::CLOEXEC)?;
        let (envelope_read, envelope_pipe) = pipe_with(PipeFlags::CLOEXEC)?;
        self.helper.send_with_fd(b"t", text_read.as_fd())?;
        self.helper.send_with_fd(b"e", envelope_read.as_fd())?;
        let text = io::BufWriter::with_capacity(DATAGRAM_LEN_MAX, text.into());
        Ok(Handover { text, envelope_pipe: envelope_pipe.into(), envelope, write_failed: false })
    }

    /// Ends the message and waits for the program.
    pub(crate) fn finish(&self, mut handover: Handover) -> QueueAnswer {
        handover.write_failed |= handover.text.flush().is_err();
        let Handover { text, envelope_pipe, envelope, mut write_failed } = handover;
        drop(text);
        if !write_failed {
            write_failed = write_envelope(envelope_pipe, &envelope).is_err();
        }
        match self.answer() {
            Ok((ended, pid, report)) => answer(ended, write_failed, &report, pid),
            Err(_) => temporary("unable to exec qq (#4.3.0)"),
        }
    }

    /// Gives the message up: the program sees an envelope that ends too early (exit 54).
    pub(crate) fn give_up(&self, handover: Handover) {
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
                let ended = if *kind == b'c' { Ended::Code(number) } else { Ended::Signal(number) };
                Ok((ended, u32::from_le_bytes([*e, *f, *g, *h]), report.to_vec()))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl Handover {
    /// Bytes of the message. That the program reads no more is seen from its exit code.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.write_failed |= !self.write_failed && self.text.write_all(bytes).is_err();
    }
}

fn write_envelope(out: File, envelope: &Envelope) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(DATAGRAM_LEN_MAX, out);
    out.write_all(&[b"F", envelope.sender.as_bytes(), b"\0"].concat())?;
    for recipient in &envelope.recipients {
        out.write_all(&[b"T", recipient.as_bytes(), b"\0"].concat())?;
    }
    out.write_all(b"\0")?;
    out.flush()
}

fn temporary(text: &str) -> QueueAnswer {
    QueueAnswer::Temporary(text.into())
}

/// What the end of the program means (qmail-queue(8)).
fn answer(ended: Ended, write_failed: bool, report: &[u8], pid: u32) -> QueueAnswer {
    let permanent = |text: &str| QueueAnswer::Permanent(text.into());
    let Ended::Code(code) = ended else { return temporary("qq crashed (#4.3.0)") };
    match code {
        0 if !write_failed => QueueAnswer::Accepted { qp: pid },
        11 | 115 => permanent("envelope address too long for qq (#5.1.3)"),
        31 => permanent("mail server permanently rejected message (#5.3.0)"),
        51 => temporary("qq out of memory (#4.3.0)"),
        52 => temporary("qq timeout (#4.3.0)"),
        53 => temporary("qq write error or disk full (#4.3.0)"),
        0 | 54 => temporary("qq read error (#4.3.0)"),
        55 => temporary("qq unable to read configuration (#4.3.0)"),
        56 => temporary("qq trouble making network connection (#4.3.0)"),
        61 => temporary("qq trouble in home directory (#4.3.0)"),
        62..=66 => temporary("qq trouble creating files in queue (#4.3.0)"),
        71 => temporary("mail server temporarily rejected message (#4.3.0)"),
        72 => temporary("connection to mail server timed out (#4.4.1)"),
        73 => temporary("connection to mail server rejected (#4.4.1)"),
        74 => temporary("communication with mail server failed (#4.4.2)"),
        81 | 91 => temporary("qq internal bug (#4.3.0)"),
        82 | 88 => of_report(report).unwrap_or_else(|| temporary("qq temporary problem (#4.3.0)")),
        120 => temporary("unable to exec qq (#4.3.0)"),
        11..=40 => permanent("qq permanent problem (#5.3.0)"),
        _ => temporary("qq temporary problem (#4.3.0)"),
    }
}

/// `D` or `Z` and more than one byte of text.
fn of_report(report: &[u8]) -> Option<QueueAnswer> {
    let (letter, text) = report.split_first()?;
    let text = text.trim_ascii_end();
    match letter {
        b'D' if text.len() > 1 => Some(QueueAnswer::Permanent(text.to_vec())),
        b'Z' if text.len() > 1 => Some(QueueAnswer::Temporary(text.to_vec())),
        _ => None,
    }
}

/// The helper's side: `None` if these are no arguments of a helper, else its exit code.
pub(crate) fn helper(args: &[OsString]) -> Option<ExitCode> {
    let [face, program, dir] = args else { return None };
    let (program, dir) = (PathBuf::from(program), PathBuf::from(dir));
    if face == HELPER {
        return Some(serve(&program, &dir).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS));
    }
    (face == BECOME).then(|| {
        let failed = become_program(&program, &dir);
        crate::log_line(format_args!("qmail-smtpd: cannot run {}: {failed}", program.display()));
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
    let (report, report_write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    rustix::fs::fcntl_setfl(&report_write, rustix::fs::OFlags::empty())?;
    let mut spawn = Spawn::new(Path::new(SELF)).arg(BECOME).arg(program).arg(dir);
    for (name, value) in std::env::vars_os() {
        spawn = spawn.env(name, value);
    }
    let spawn = spawn.stdin(text.as_fd()).stdout(envelope.as_fd()).stderr(rustix::stdio::stderr());
    // 3 and 5 are closed again before the program runs.
    let spawn = spawn.fd("spare", report_write.as_fd()).fd("report", report_write.as_fd());
    let child = spawn.fd("spare", report_write.as_fd()).fd("report", report_write.as_fd()).start()?;
    // Only the program holds them now, so that the session sees when it reads no more.
    drop((text, envelope, report_write));
    let ended = child.wait();
    let mut buf = [0; REPORT_LEN_MAX];
    // A grandchild may hold the pipe open: what is there now is the text.
    let len = File::from(report).read(&mut buf).unwrap_or(0);
    Ok((ended, child.pid.as_raw_nonzero().get().unsigned_abs(), buf.get(..len).unwrap_or_default().to_vec()))
}

/// Returns only if it failed.
fn become_program(program: &Path, dir: &Path) -> io::Error {
    let mut fds = match Inherited::take() {
        Ok(fds) => fds,
        Err(error) => return error,
    };
    let reports = fds.all("report");
    for (_, report) in &reports {
        if let Err(errno) = rustix::io::fcntl_setfd(report, FdFlags::empty()) {
            return errno.into();
        }
    }
    Command::new(program).current_dir(dir).env_remove(sys::inherited::VARIABLE).exec()
}
