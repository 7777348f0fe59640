//! A program with the interface of qmail-queue(8), seen from its caller: QMAILQUEUE of qmail-inject, qmail-local and qmail-smtpd.
//!
//! The message comes on descriptor 0, the envelope on 1; the exit code tells what happened, and with 82 or 88 a text on descriptor 4
//! (netqmail's patches) or 6 (notqmail) tells why. How such a program is started differs with the caller, who may be confined by then;
//! what it is given and what its end means is here once. Never here: a shell. (qmail-family §1.1)

use crate::Refusal;
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use sys::inherited::{self, Inherited};
use sys::spawn::{Child, Ended, Spawn};
use wire::Address;

/// The program could not be run (the code of the classic callers).
pub const EXIT_EXEC: u8 = 120;
/// Longest text of a program, in bytes; the classic callers read no more.
pub const REPORT_LEN_MAX: usize = 255;
/// Enough for most envelopes in one write.
const BUFFER_LEN: usize = 32 * 1024;

/// The program and the directory it starts in: below `var/qmail` of the root, as ever, or `/` where there is none.
#[must_use]
pub fn place(program: &OsStr, root: &Path) -> (PathBuf, PathBuf) {
    let home = root.join("var/qmail");
    let dir = if home.is_dir() { home.clone() } else { PathBuf::from("/") };
    (home.join(program), dir)
}

/// The end at which a program's text arrives.
#[derive(Debug)]
pub struct ReportReader(File);

impl ReportReader {
    /// The text, when the program has ended. A grandchild may hold the pipe open: what is there now is all of it.
    #[must_use]
    pub fn read(mut self) -> Vec<u8> {
        let mut text = vec![0; REPORT_LEN_MAX];
        // A text that cannot be read is no text; the exit code says enough.
        let len = self.0.read(&mut text).unwrap_or(0);
        text.truncate(len);
        text
    }
}

/// A pipe for the text; the second end is for [`with_report`].
///
/// # Errors
/// Out of descriptors; temporary.
pub fn report_pipe() -> io::Result<(ReportReader, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Only the reader must not wait.
    rustix::fs::fcntl_setfl(&write, rustix::fs::OFlags::empty())?;
    Ok((ReportReader(read.into()), write))
}

/// Lays the text's pipe on 4 and 6. `third` becomes descriptor 3 under its name, and fills 5.
#[must_use]
pub fn with_report<'a>(spawn: Spawn<'a>, third: (&str, BorrowedFd<'a>), report: BorrowedFd<'a>) -> Spawn<'a> {
    spawn.fd(third.0, third.1).fd("report", report).fd("spare", third.1).fd("report", report)
}

/// Becomes the program, in a process that was started [`with_report`]: it keeps descriptors 0 to 2, 4 and 6, and the environment.
/// Returns only if that failed; the process should end with [`EXIT_EXEC`] then.
#[must_use]
pub fn become_program(fds: &mut Inherited, program: &Path, dir: &Path) -> io::Error {
    let reports = fds.all("report");
    for (_, report) in &reports {
        if let Err(errno) = rustix::io::fcntl_setfd(report, FdFlags::empty()) {
            return errno.into();
        }
    }
    Command::new(program).current_dir(dir).env_remove(inherited::VARIABLE).exec()
}

/// A program that was started by a caller who may start programs, with this process's environment and standard error.
#[derive(Debug)]
pub struct Running {
    child: Child,
    message: File,
    envelope: File,
    report: ReportReader,
    write_failed: bool,
}

impl Running {
    /// Starts it, in `dir`.
    ///
    /// # Errors
    /// It cannot be started, or out of descriptors; temporary.
    pub fn start(program: &Path, dir: &Path) -> io::Result<Self> {
        let (message_read, message) = pipe_with(PipeFlags::CLOEXEC)?;
        let (envelope_read, envelope) = pipe_with(PipeFlags::CLOEXEC)?;
        let (report, report_write) = report_pipe()?;
        let (stderr, null) = (io::stderr(), File::open("/dev/null")?);
        let mut spawn = Spawn::new(program).dir(dir);
        for (name, value) in std::env::vars_os() {
            spawn = spawn.env(name, value);
        }
        let spawn = spawn.stdin(message_read.as_fd()).stdout(envelope_read.as_fd()).stderr(stderr.as_fd());
        let child = with_report(spawn, ("null", null.as_fd()), report_write.as_fd()).start()?;
        Ok(Self { child, message: message.into(), envelope: envelope.into(), report, write_failed: false })
    }

    /// Its process id: the number behind `qp`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Bytes of the message. That the program reads no more is seen from its exit code.
    pub fn put(&mut self, bytes: &[u8]) {
        self.write_failed = self.write_failed || self.message.write_all(bytes).is_err();
    }

    /// The envelope, and what the program says. Dropped before this, the program finds an envelope without an end and queues nothing.
    ///
    /// # Errors
    /// By its exit code.
    pub fn finish(self, sender: &Address, recipients: &[Address]) -> Result<(), Refusal> {
        let Self { child, message, envelope, report, mut write_failed } = self;
        drop(message);
        write_failed = write_failed || write_envelope(&envelope, sender, recipients).is_err();
        drop(envelope);
        outcome(child.wait(), write_failed, &report.read())
    }
}

/// Writes `F sender NUL (T recipient NUL)… NUL`.
///
/// # Errors
/// The program reads no more.
pub fn write_envelope(out: impl Write, sender: &Address, recipients: &[Address]) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(BUFFER_LEN, out);
    for (letter, address) in std::iter::once((b"F", sender)).chain(recipients.iter().map(|recipient| (b"T", recipient))) {
        out.write_all(letter)?;
        out.write_all(address.as_bytes())?;
        out.write_all(b"\0")?;
    }
    out.write_all(b"\0")?;
    out.flush()
}

/// What the end of a program means. `write_failed`: it did not take all of the message and its envelope.
///
/// # Errors
/// The message was not taken; temporary but for the codes 11 to 40, 115 and a text that says `D`.
pub fn outcome(ended: Ended, write_failed: bool, report: &[u8]) -> Result<(), Refusal> {
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
        120 => not_run(),
        11..=40 => Refusal::permanent("qq permanent problem (#5.3.0)"),
        _ => Refusal::temporary("qq temporary problem (#4.3.0)"),
    })
}

/// The program could not be started.
#[must_use]
pub fn not_run() -> Refusal {
    Refusal::temporary("unable to exec qq (#4.3.0)")
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
        assert_eq!(report(Ended::Code(82), false, b"Xwhat"), b"Zqq temporary problem (#4.3.0)");
    }

    #[test]
    fn every_code_is_permanent_or_temporary_as_the_interface_says() {
        for code in 1..=255 {
            let refusal = outcome(Ended::Code(code), false, b"").unwrap_err();
            assert_eq!(refusal.is_permanent, (11..=40).contains(&code) || code == 115, "{code}");
        }
    }

    #[test]
    fn the_envelope_is_as_qmail_queue_reads_it() {
        let address = |text: &str| Address::new(text.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        write_envelope(&mut bytes, &address(""), &[address("a@b"), address("c@d")]).unwrap();
        assert_eq!(bytes, b"F\0Ta@b\0Tc@d\0\0");
    }

    #[test]
    fn a_text_is_what_is_there_even_if_somebody_holds_the_pipe() {
        let (reader, write) = report_pipe().unwrap();
        rustix::io::write(&write, &[b'x'; 300]).unwrap();
        assert_eq!(reader.read(), [b'x'; REPORT_LEN_MAX]);
        let (reader, _write) = report_pipe().unwrap();
        assert_eq!(reader.read(), b"");
    }

    #[test]
    fn a_relative_program_lies_in_the_classic_home() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("var/qmail");
        assert_eq!(place("bin/x".as_ref(), root.path()), (home.join("bin/x"), "/".into()));
        std::fs::create_dir_all(&home).unwrap();
        assert_eq!(place("bin/x".as_ref(), root.path()), (home.join("bin/x"), home.clone()));
        assert_eq!(place("/bin/x".as_ref(), root.path()), ("/bin/x".into(), home));
    }
}
