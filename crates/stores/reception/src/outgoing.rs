//! Where the classic face hands its messages: to the program that QMAILQUEUE names, else to qmail-send. Whoever asks plugins may have another
//! named for a message.

use std::ffi::{OsStr, OsString};
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
pub struct Queue {
    /// What QMAILQUEUE names.
    named: Option<OsString>,
    /// Starts programs, where one is named or may be.
    programs: Option<QueueProgram>,
    /// qmail-send is below it, if it is there.
    run: Option<OwnedFd>,
    /// That of qmail-send which this caller may use.
    socket: Socket,
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
    /// As QMAILQUEUE says. Before the sandbox: the helper for programs is started here; `may_change`: others than QMAILQUEUE may be named.
    ///
    /// # Errors
    /// Out of processes or descriptors; temporary.
    pub fn open(root: &Root, run: Option<OwnedFd>, may_change: bool) -> io::Result<Self> {
        let named = std::env::var_os("QMAILQUEUE").filter(|program| !program.is_empty());
        let socket = if may_call(root, Socket::Queue) { Socket::Queue } else { Socket::Inject };
        let programs = (named.is_some() || may_change).then(|| QueueProgram::start(root.path(), may_change)).transpose()?;
        Ok(Self { named, programs, run, socket })
    }

    /// What QMAILQUEUE names.
    #[must_use]
    pub fn program(&self) -> Option<&OsStr> {
        self.named.as_deref()
    }

    /// Begins a message, as QMAILQUEUE says. `None` if nobody takes it; [`Queue::finish`] says so at its end.
    #[must_use]
    pub fn begin(&self) -> Option<Outgoing> {
        self.begin_by(self.program(), &[])
    }

    /// As [`Queue::begin`], by this program, or by qmail-send. `changes` of the program's environment: `NAME=VALUE` to set, `NAME` to take away.
    #[must_use]
    pub fn begin_by(&self, program: Option<&OsStr>, changes: &[Vec<u8>]) -> Option<Outgoing> {
        match program {
            Some(program) => self.programs.as_ref()?.begin(program, changes).ok().map(Outgoing::Program),
            None => {
                let submission = connect(self.run.as_ref()?.as_fd(), self.socket).ok()?;
                Some(Outgoing::Send { submission, is_broken: false })
            }
        }
    }

    /// The end of a message; a program gets the envelope now, qmail-send has it already.
    #[must_use]
    pub fn finish(&self, message: Option<Outgoing>, sender: &Address, recipients: &[Address]) -> Verdict {
        match (&self.programs, message) {
            (Some(programs), Some(Outgoing::Program(handover))) => programs.finish(handover, sender, recipients),
            (_, Some(Outgoing::Send { mut submission, is_broken: false })) => {
                submission.commit().map_or_else(|_| not_now("4.3.0 the queue did not answer"), Verdict::from)
            }
            _ => not_now("4.3.0 the queue cannot be reached"),
        }
    }

    pub fn give_up(&self, message: Option<Outgoing>) {
        if let (Some(programs), Some(Outgoing::Program(handover))) = (&self.programs, message) {
            programs.give_up(handover);
        }
    }
}

impl Outgoing {
    /// Does a program take it?
    #[must_use]
    pub fn is_program(&self) -> bool {
        matches!(self, Self::Program(_))
    }

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
