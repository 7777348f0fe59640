//! QMAILQUEUE: another program with the interface of qmail-queue gets the message.
//!
//! What is started before the sandbox is a helper: this same executable, which waits for a byte on a pipe, then becomes the program.
//! So nothing runs for a message whose header is wrong, though the confined caller could start nothing by then. If the caller goes away
//! first the helper ends. The program finds a pipe for its error text on descriptors 4 and 6 (both conventions, exit code 82 or 88).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use control::Root;
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use sys::inherited::Inherited;
use sys::spawn::{Child, Ended, Spawn};
use wire::Address;

use crate::env::Env;
use crate::outgoing::Refusal;

/// The first argument of the helper; the second is the program, the third its working directory.
const HELPER: &str = "--queue-program";
/// The program could not be run (the code of the classic caller).
const EXIT_EXEC: u8 = 120;
/// Longest error text; the classic callers read no more.
const REPORT_LEN_MAX: usize = 255;
/// Enough for most envelopes in one write.
const BUFFER_LEN: usize = 32 * 1024;

/// The helper, and later the program.
#[derive(Debug)]
pub struct QueueProgram {
    child: Child,
    go: Option<OwnedFd>,
    message: Option<File>,
    envelope: File,
    report: OwnedFd,
    write_failed: bool,
}

impl QueueProgram {
    /// Starts the helper for the program `path`; a relative path is taken below `var/qmail` of the root, as ever.
    ///
    /// # Errors
    /// Out of processes or descriptors; temporary.
    pub fn start(path: &[u8], root: &Root, env: &Env) -> io::Result<Self> {
        let path = PathBuf::from(<OsString as std::os::unix::ffi::OsStringExt>::from_vec(path.to_vec()));
        let home = root.path().join("var/qmail");
        let dir = if home.is_dir() { home.as_path() } else { Path::new("/") };
        let (go_read, go) = pipe_with(PipeFlags::CLOEXEC)?;
        let (message_read, message) = pipe_with(PipeFlags::CLOEXEC)?;
        let (envelope_read, envelope) = pipe_with(PipeFlags::CLOEXEC)?;
        let (report, report_write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        rustix::fs::fcntl_setfl(&report_write, rustix::fs::OFlags::empty())?;
        let mut spawn = Spawn::new(Path::new("/proc/self/exe")).arg(HELPER).arg(home.join(path)).arg(dir);
        for (name, value) in env.iter() {
            spawn = spawn.env(name, value);
        }
        let stderr = io::stderr();
        let spawn = spawn.stdin(message_read.as_fd()).stdout(envelope_read.as_fd()).stderr(stderr.as_fd());
        let spawn = spawn.fd("go", go_read.as_fd()).fd("report", report_write.as_fd());
        let child = spawn.fd("unused", go_read.as_fd()).fd("report", report_write.as_fd()).start()?;
        Ok(Self { child, go: Some(go), message: Some(message.into()), envelope: envelope.into(), report, write_failed: false })
    }

    /// Lets the helper become the program.
    pub fn go(&mut self) {
        if let Some(go) = self.go.take() {
            self.write_failed |= rustix::io::write(&go, b"g").is_err();
        }
    }

    /// Bytes of the message. That the program reads no more is seen from its exit code.
    pub fn put(&mut self, bytes: &[u8]) {
        if let Some(message) = &mut self.message {
            self.write_failed |= !self.write_failed && message.write_all(bytes).is_err();
        }
    }

    /// The envelope, and what the program says.
    ///
    /// # Errors
    /// By its exit code.
    pub fn finish(mut self, sender: &Address, recipients: &[Address]) -> Result<(), Refusal> {
        self.message = None;
        if !self.write_failed {
            self.write_failed = write_envelope(&mut self.envelope, sender, recipients).is_err();
        }
        drop(self.envelope);
        let ended = self.child.wait();
        let mut report = [0; REPORT_LEN_MAX];
        let read = File::from(self.report).read(&mut report).unwrap_or(0);
        outcome(ended, self.write_failed, report.get(..read).unwrap_or_default())
    }
}

fn write_envelope(out: &mut File, sender: &Address, recipients: &[Address]) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(BUFFER_LEN, out);
    out.write_all(&[b"F", sender.as_bytes(), b"\0"].concat())?;
    for recipient in recipients {
        out.write_all(&[b"T", recipient.as_bytes(), b"\0"].concat())?;
    }
    out.write_all(b"\0")?;
    out.flush()
}

/// What the end of a program with the qmail-queue interface means (qmail-queue(8)).
fn outcome(ended: Ended, write_failed: bool, report: &[u8]) -> Result<(), Refusal> {
    let Ended::Code(code) = ended else { return Err(Refusal::temporary("qq crashed (#4.3.0)")) };
    Err(match code {
        0 if !write_failed => return Ok(()),
        11 | 115 => Refusal::permanent("envelope address too long for qq (#5.1.3)"),
        31 => Refusal::permanent("mail server permanently rejected message (#5.3.0)"),
        51 => Refusal::temporary("qq out of memory (#4.3.0)"),
        52 => Refusal::temporary("qq timeout (#4.3.0)"),
        53 => Refusal::temporary("qq write error or disk full (#4.3.0)"),
        0 | 54 => Refusal::temporary("qq read error (#4.3.0)"),
        55 => Refusal::temporary("qq unable to read configuration (#4.3.0)"),
        56 => Refusal::temporary("qq trouble making network connection (#4.3.0)"),
        61 => Refusal::temporary("qq trouble in home directory (#4.3.0)"),
        62..=66 => Refusal::temporary("qq trouble creating files in queue (#4.3.0)"),
        71 => Refusal::temporary("mail server temporarily rejected message (#4.3.0)"),
        72 => Refusal::temporary("connection to mail server timed out (#4.4.1)"),
        73 => Refusal::temporary("connection to mail server rejected (#4.4.1)"),
        74 => Refusal::temporary("communication with mail server failed (#4.4.2)"),
        81 | 91 => Refusal::temporary("qq internal bug (#4.3.0)"),
        82 | 88 => Refusal::of_report(report).unwrap_or_else(|| Refusal::temporary("qq temporary problem (#4.3.0)")),
        120 => Refusal::temporary("unable to exec qq (#4.3.0)"),
        11..=40 => Refusal::permanent("qq permanent problem (#5.3.0)"),
        _ => Refusal::temporary("qq temporary problem (#4.3.0)"),
    })
}

/// The helper's side: `None` if these are not the arguments of the helper, else its exit code (it returns only if it failed).
#[must_use]
pub fn serve(args: &[OsString]) -> Option<u8> {
    let [helper, program, dir] = args else { return None };
    (helper == HELPER).then(|| become_program(program.as_ref(), dir.as_ref()).unwrap_or(EXIT_EXEC))
}

fn become_program(program: &Path, dir: &Path) -> io::Result<u8> {
    let mut fds = Inherited::take()?;
    let go = fds.one("go")?;
    let mut byte = [0];
    // No byte: whoever started this went away, or its message was no message.
    if rustix::io::retry_on_intr(|| rustix::io::read(&go, &mut byte[..]))? == 0 {
        return Ok(0);
    }
    let reports = fds.all("report");
    for (_, report) in &reports {
        rustix::io::fcntl_setfd(report, FdFlags::empty())?;
    }
    Err(Command::new(program).current_dir(dir).env_remove(sys::inherited::VARIABLE).exec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        for (code, text) in [
            (0, ""),
            (11, "Denvelope address too long for qq (#5.1.3)"),
            (115, "Denvelope address too long for qq (#5.1.3)"),
            (31, "Dmail server permanently rejected message (#5.3.0)"),
            (32, "Dqq permanent problem (#5.3.0)"),
            (40, "Dqq permanent problem (#5.3.0)"),
            (41, "Zqq temporary problem (#4.3.0)"),
            (53, "Zqq write error or disk full (#4.3.0)"),
            (54, "Zqq read error (#4.3.0)"),
            (66, "Zqq trouble creating files in queue (#4.3.0)"),
            (71, "Zmail server temporarily rejected message (#4.3.0)"),
            (82, "Dspam (#5.7.1)"),
            (88, "Dspam (#5.7.1)"),
            (91, "Zqq internal bug (#4.3.0)"),
            (120, "Zunable to exec qq (#4.3.0)"),
            (1, "Zqq temporary problem (#4.3.0)"),
        ] {
            let got = outcome(Ended::Code(code), false, b"Dspam (#5.7.1)\n");
            let got = got.err().map_or(Vec::new(), |refusal| refusal.report());
            assert_eq!(String::from_utf8(got).unwrap(), text, "{code}");
        }
        let report = |ended, failed, text: &[u8]| outcome(ended, failed, text).unwrap_err().report();
        assert_eq!(report(Ended::Code(0), true, b""), b"Zqq read error (#4.3.0)");
        assert_eq!(report(Ended::Signal(9), false, b""), b"Zqq crashed (#4.3.0)");
        assert_eq!(report(Ended::Code(82), false, b"D"), b"Zqq temporary problem (#4.3.0)");
    }

    #[test]
    fn other_arguments_are_not_the_helpers() {
        for args in [&[][..], &["-a"], &["--queue-program", "x"], &["a", "b", "c"]] {
            assert_eq!(serve(&args.iter().map(OsString::from).collect::<Vec<_>>()), None);
        }
    }
}
