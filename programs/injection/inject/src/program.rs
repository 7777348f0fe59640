//! QMAILQUEUE: another program with the interface of qmail-queue gets the message.
//!
//! What is started before the sandbox is a helper: this same executable, which waits for a byte on a pipe, then becomes the program.
//! So nothing runs for a message whose header is wrong, though the confined caller could start nothing by then. If the caller goes away
//! first the helper ends. The program finds a pipe for its error text on descriptors 4 and 6 (both conventions, exit code 82 or 88).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use control::Root;
use ipc::Refusal;
use ipc::queue_program::{self, EXIT_EXEC, ReportReader};
use rustix::pipe::{PipeFlags, pipe_with};
use sys::inherited::Inherited;
use sys::spawn::{Child, Spawn};
use wire::Address;

use crate::env::Env;

/// The first argument of the helper; the second is the program, the third its working directory.
const HELPER: &str = "--queue-program";

/// The helper, and later the program.
#[derive(Debug)]
pub struct QueueProgram {
    child: Child,
    go: Option<OwnedFd>,
    message: Option<File>,
    envelope: File,
    report: ReportReader,
    write_failed: bool,
}

impl QueueProgram {
    /// Starts the helper for the program `path`; a relative path is taken below `var/qmail` of the root, as ever.
    ///
    /// # Errors
    /// Out of processes or descriptors; temporary.
    pub fn start(path: &[u8], root: &Root, env: &Env) -> io::Result<Self> {
        let (program, dir) = queue_program::place(OsStr::from_bytes(path), root.path());
        let (go_read, go) = pipe_with(PipeFlags::CLOEXEC)?;
        let (message_read, message) = pipe_with(PipeFlags::CLOEXEC)?;
        let (envelope_read, envelope) = pipe_with(PipeFlags::CLOEXEC)?;
        let (report, report_write) = queue_program::report_pipe()?;
        let mut spawn = Spawn::new(Path::new("/proc/self/exe")).arg(HELPER).arg(program).arg(dir);
        for (name, value) in env.iter() {
            spawn = spawn.env(name, value);
        }
        let stderr = io::stderr();
        let spawn = spawn.stdin(message_read.as_fd()).stdout(envelope_read.as_fd()).stderr(stderr.as_fd());
        let child = queue_program::with_report(spawn, ("go", go_read.as_fd()), report_write.as_fd()).start()?;
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
            self.write_failed = queue_program::write_envelope(&mut self.envelope, sender, recipients).is_err();
        }
        drop(self.envelope);
        let ended = self.child.wait();
        queue_program::outcome(ended, self.write_failed, &self.report.read())
    }
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
    Err(queue_program::become_program(&mut fds, program, dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_arguments_are_not_the_helpers() {
        for args in [&[][..], &["-a"], &["--queue-program", "x"], &["a", "b", "c"]] {
            assert_eq!(serve(&args.iter().map(OsString::from).collect::<Vec<_>>()), None);
        }
    }
}
