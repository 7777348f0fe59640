//! The program in QMAILQUEUE, which takes copies the way qmail-queue(8) does ([`ipc::queue_program`]).

use crate::failure::Failure;
use crate::forward::{Copy, Envelope};
use ipc::Refusal;
use ipc::queue_program::{Running, not_run, place};
use std::convert::Infallible;
use std::path::PathBuf;

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
        let mut running = Running::start(&self.path, &self.dir).map_err(|_| not_run())?;
        running.put(copy.delivered_to);
        let copied = copy.body.each_chunk(|chunk| {
            running.put(chunk);
            Ok::<_, Infallible>(true)
        });
        // Dropped, the program gets no envelope.
        copied.map_err(|_| Refusal::temporary("qq read error (#4.3.0)"))?;
        let pid = running.pid();
        running.finish(&envelope.sender, &envelope.recipients)?;
        Ok(pid)
    }
}
