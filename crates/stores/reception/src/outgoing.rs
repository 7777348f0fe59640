//! Where the classic face hands its messages: to the program that QMAILQUEUE names, else to qmail-send.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use control::Root;
use ipc::queue::Item;
use ipc::submission::Submission;
use rustix::fs::{Mode, OFlags};
use sandbox::Socket;
use wire::Address;

use crate::directory::may_call;
use crate::program::{Handover, QueueProgram};
use crate::{Verdict, not_now};

/// Where messages go.
#[derive(Debug)]
pub enum Queue {
    Program(QueueProgram),
    /// qmail-send, below the run directory if there is one, by the socket that this caller may use.
    Send {
        run: Option<OwnedFd>,
        socket: Socket,
    },
}

/// A message under way.
#[derive(Debug)]
pub enum Outgoing {
    Program(Handover),
    Send { submission: Submission, is_broken: bool },
}

/// The run directory, if the system is there.
#[must_use]
pub fn run_directory(root: &Root) -> Option<OwnedFd> {
    rustix::fs::open(root.run(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
}

impl Queue {
    /// As QMAILQUEUE says. Before the sandbox: a program's helper is started here.
    ///
    /// # Errors
    /// Out of processes or descriptors; temporary.
    pub fn open(root: &Root, run: Option<OwnedFd>) -> io::Result<Self> {
        let program = std::env::var_os("QMAILQUEUE").filter(|program| !program.is_empty());
        let socket = if may_call(root, Socket::Queue) { Socket::Queue } else { Socket::Inject };
        match program {
            Some(program) => Ok(Self::Program(QueueProgram::start(&program, root.path())?)),
            None => Ok(Self::Send { run, socket }),
        }
    }

    #[must_use]
    pub fn is_program(&self) -> bool {
        matches!(self, Self::Program(_))
    }

    /// Begins a message. `None` if nobody takes it; [`Queue::finish`] says so at its end.
    #[must_use]
    pub fn begin(&self) -> Option<Outgoing> {
        match self {
            Self::Program(program) => program.begin().ok().map(Outgoing::Program),
            Self::Send { run, socket } => {
                let submission = connect(run.as_ref()?.as_fd(), *socket).ok()?;
                Some(Outgoing::Send { submission, is_broken: false })
            }
        }
    }

    /// The end of a message; a program gets the envelope now, qmail-send has it already.
    #[must_use]
    pub fn finish(&self, message: Option<Outgoing>, sender: &Address, recipients: &[Address]) -> Verdict {
        match (self, message) {
            (Self::Program(program), Some(Outgoing::Program(handover))) => program.finish(handover, sender, recipients),
            (Self::Send { .. }, Some(Outgoing::Send { mut submission, is_broken: false })) => {
                submission.commit().map_or_else(|_| not_now("4.3.0 the queue did not answer"), Verdict::from)
            }
            _ => not_now("4.3.0 the queue cannot be reached"),
        }
    }

    pub fn give_up(&self, message: Option<Outgoing>) {
        if let (Self::Program(program), Some(Outgoing::Program(handover))) = (self, message) {
            program.give_up(handover);
        }
    }
}

impl Outgoing {
    /// A step of the queue protocol but data; a program hears none of it.
    pub fn item(&mut self, item: &Item<'_>) {
        if let Self::Send { submission, is_broken } = self {
            *is_broken |= !*is_broken && submission.item(item).is_err();
        }
    }

    /// Bytes of the message.
    pub fn put(&mut self, text: &[u8]) {
        match self {
            Self::Program(handover) => handover.put(text),
            Self::Send { submission, is_broken } => *is_broken |= !*is_broken && submission.data(text).is_err(),
        }
    }
}

fn connect(run: BorrowedFd<'_>, socket: Socket) -> io::Result<Submission> {
    match Submission::connect(run, socket.path()) {
        // The directory of the service roles is closed to others, whatever ids says.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Submission::connect(run, Socket::Inject.path()),
        other => other,
    }
}
