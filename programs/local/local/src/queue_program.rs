//! The program in QMAILQUEUE, which takes copies the way qmail-queue(8) does ([`ipc::queue_program`]).

use crate::failure::Failure;
use crate::forward::{Copy, Envelope};
use ipc::Refusal;
use ipc::queue_program::{not_run, outcome, place, report_pipe, with_report, write_envelope};
use maildir::Stopped;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use sys::spawn::{Child, Spawn};

/// A program that queues.
#[derive(Debug)]
pub struct QueueProgram {
    path: PathBuf,
    dir: PathBuf,
}

impl QueueProgram {
    /// The one that QMAILQUEUE names.
    #[must_use]
    pub fn from_environment(root: &control::Root) -> Option<Self> {
        let program = std::env::var_os("QMAILQUEUE").filter(|path| !path.is_empty())?;
        let (path, dir) = place(&program, root.path());
        Some(Self { path, dir })
    }

    pub(crate) fn submit(&self, copy: &Copy<'_>, envelope: &Envelope) -> Result<u32, Failure> {
        let broken = |_: io::Error| Refusal::temporary("qq temporary problem (#4.3.0)");
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| broken(e.into()));
        let (message, envelopes) = (pipe()?, pipe()?);
        let (report, report_write) = report_pipe().map_err(broken)?;
        let child = self.start(&message.0, &envelopes.0, &report_write).map_err(|_| not_run())?;
        drop((message.0, envelopes.0, report_write));
        let wrote = write_message(message.1, copy)
            .and_then(|()| write_envelope(File::from(envelopes.1), &envelope.sender, &envelope.recipients));
        outcome(child.wait(), wrote.is_err(), &report.read())?;
        Ok(child.pid.as_raw_nonzero().get().unsigned_abs())
    }

    fn start(&self, message: &OwnedFd, envelope: &OwnedFd, report: &OwnedFd) -> io::Result<Child> {
        let (stderr, null) = (io::stderr(), File::open("/dev/null")?);
        let mut spawn = Spawn::new(&self.path).dir(&self.dir);
        for (name, value) in std::env::vars_os() {
            spawn = spawn.env(name, value);
        }
        let spawn = spawn.stdin(message.as_fd()).stdout(envelope.as_fd()).stderr(stderr.as_fd());
        with_report(spawn, ("null", null.as_fd()), report.as_fd()).start()
    }
}

fn write_message(pipe: OwnedFd, copy: &Copy<'_>) -> io::Result<()> {
    let mut pipe = File::from(pipe);
    pipe.write_all(copy.delivered_to)?;
    copy.body.each_chunk(|chunk| pipe.write_all(chunk).map(|()| true)).map_err(|stopped| match stopped {
        Stopped::Read(e) | Stopped::Take(e) => e,
    })
}
