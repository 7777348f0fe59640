//! The one way out: a message and its envelope to qmail-send by inject.sock, or to the program that QMAILQUEUE names.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use ipc::Refusal;
use ipc::queue::{Answer, FLAG_EIGHT_BIT, FLAG_SMTPUTF8};
use ipc::submission::Submission;
use rustix::fs::{Mode, OFlags};
use wire::Address;

use crate::asked::Asked;

use crate::program::QueueProgram;

/// How long a caller waits for a system that is down; systemd, which holds the socket, makes most waits shorter.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(60);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(1);

/// What a message is besides its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Nature {
    pub is_eight_bit: bool,
    pub is_utf8_envelope: bool,
}

impl Nature {
    fn flags(self) -> u32 {
        let eight_bit = if self.is_eight_bit { FLAG_EIGHT_BIT } else { 0 };
        eight_bit | if self.is_utf8_envelope { FLAG_SMTPUTF8 } else { 0 }
    }
}

/// Where messages go, opened before the sandbox is entered.
#[derive(Debug)]
pub enum Exit {
    /// The run directory of the instance.
    Send {
        run: OwnedFd,
        deadline: Instant,
    },
    Program(QueueProgram),
}

impl Exit {
    /// The way to qmail-send; waits until the run directory exists.
    ///
    /// # Errors
    /// The system is not there; temporary.
    pub fn to_send(run: &Path, wait: Duration) -> Result<Self, Refusal> {
        let deadline = deadline_after(wait);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let run = retry(deadline, || Ok(rustix::fs::open(run, flags, Mode::empty())?)).map_err(|error| not_there(&error))?;
        Ok(Self::Send { run, deadline })
    }

    /// Opens a message. Its bytes follow by [`Outgoing::put`], its end by [`Outgoing::finish`]; dropping it abandons the message.
    ///
    /// # Errors
    /// The system is down; temporary.
    pub fn open(self, sender: Address, recipients: Vec<Address>, nature: Nature, asked: Asked) -> Result<Outgoing, Refusal> {
        match self {
            Self::Send { run, deadline } => {
                let mut submission = connect(run.as_fd(), deadline)?;
                submission.begin(sender, nature.flags()).map_err(|error| broken(&error))?;
                asked.put(&mut submission, recipients).map_err(|error| broken(&error))?;
                Ok(Outgoing::Send(submission))
            }
            Self::Program(mut program) => {
                program.go();
                Ok(Outgoing::Program { program, sender, recipients })
            }
        }
    }
}

/// A message on its way.
#[derive(Debug)]
pub enum Outgoing {
    Send(Submission),
    Program { program: QueueProgram, sender: Address, recipients: Vec<Address> },
}

impl Outgoing {
    /// The next bytes.
    ///
    /// # Errors
    /// qmail-send is gone; temporary. A program that reads no more tells why at the end.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        match self {
            Self::Send(submission) => submission.data(bytes).map_err(|error| broken(&error)),
            Self::Program { program, .. } => {
                program.put(bytes);
                Ok(())
            }
        }
    }

    /// Ends the message and waits until it is safe.
    ///
    /// # Errors
    /// It was refused, or nobody knows; the latter is temporary.
    pub fn finish(self) -> Result<(), Refusal> {
        match self {
            Self::Send(mut submission) => commit(&mut submission),
            Self::Program { program, sender, recipients } => program.finish(&sender, &recipients),
        }
    }
}

/// A connection to qmail-send, made again and again until `deadline`.
///
/// # Errors
/// The system is down; temporary.
pub fn connect(run: BorrowedFd<'_>, deadline: Instant) -> Result<Submission, Refusal> {
    retry(deadline, || Submission::connect(run, sandbox::Socket::Inject.path())).map_err(|error| not_there(&error))
}

/// The envelope.
///
/// # Errors
/// The connection broke; temporary.
pub fn begin(submission: &mut Submission, sender: Address, recipients: Vec<Address>, nature: Nature) -> io::Result<()> {
    submission.begin(sender, nature.flags())?;
    recipients.into_iter().try_for_each(|recipient| submission.recipient(recipient))
}

/// The end, and qmail-send's answer.
///
/// # Errors
/// It was refused, or the connection broke.
pub fn commit(submission: &mut Submission) -> Result<(), Refusal> {
    match submission.commit().map_err(|error| broken(&error))? {
        Answer::Accepted { .. } => Ok(()),
        Answer::Temporary { text } => Err(Refusal::of_answer(false, text.as_ref())),
        Answer::Permanent { text } => Err(Refusal::of_answer(true, text.as_ref())),
    }
}

/// The moment `wait` from now.
#[must_use]
pub fn deadline_after(wait: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(wait).unwrap_or(now)
}

fn retry<T>(deadline: Instant, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut pause = RETRY_FIRST;
    loop {
        let error = match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(error);
        }
        std::thread::sleep(pause.min(left));
        pause = pause.saturating_mul(2).min(RETRY_LAST);
    }
}

fn not_there(error: &io::Error) -> Refusal {
    Refusal::temporary(&format!("unable to reach qmail-send: {} (#4.3.0)", sys::errno::text(error)))
}

pub(crate) fn broken(error: &io::Error) -> Refusal {
    Refusal::temporary(&format!("connection to qmail-send broke: {} (#4.4.2)", sys::errno::text(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_up_at_the_deadline() {
        let start = Instant::now();
        let missing = Path::new("/nonexistent/run");
        assert!(Exit::to_send(missing, Duration::from_millis(120)).unwrap_err().is_temporary());
        assert!(start.elapsed() >= Duration::from_millis(120) && start.elapsed() < Duration::from_secs(20));
    }
}
