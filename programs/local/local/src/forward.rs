//! Hands a copy of the message to the queue, for all forwards of a delivery together.
//!
//! Through inject.sock as the recipient, or to the program in QMAILQUEUE where a face that may start programs finds one set.
//! The copy starts with the Delivered-To line; success is said only after the queue has it on the disk.

use crate::failure::Failure;
use crate::queue_program::QueueProgram;
use ipc::Refusal;
use ipc::inheritance::Inheritance;
use ipc::queue::{Answer, FLAG_EIGHT_BIT, FLAG_REQUIRETLS, FLAG_SMTPUTF8};
use ipc::submission::Submission;
use maildir::{Body, Stopped};
use sandbox::Socket;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use wire::Address;

/// How long a full accept queue is tried again before the delivery is put off.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Where forwards go.
#[derive(Debug)]
pub enum Forwarder {
    /// The open run directory of the instance; `None` if it could not be opened.
    Socket(Option<OwnedFd>),
    Program(QueueProgram),
}

/// A copy to be queued.
#[derive(Debug)]
pub struct Copy<'a> {
    pub sender: &'a [u8],
    pub recipients: &'a [&'a [u8]],
    /// Goes before the body.
    pub delivered_to: &'a [u8],
    pub body: &'a Body,
    /// What it has of the message that it is a copy of.
    pub inherits: Inheritance,
}

/// Sender and recipients, checked.
pub(crate) struct Envelope {
    pub sender: Address,
    pub recipients: Vec<Address>,
}

impl Forwarder {
    /// The queue of this instance, never a program.
    #[must_use]
    pub fn socket(root: &control::Root) -> Self {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        Self::Socket(rustix::fs::open(root.run(), flags, rustix::fs::Mode::empty()).ok())
    }

    /// QMAILQUEUE if it is set, else the queue of this instance.
    #[must_use]
    pub fn from_environment(root: &control::Root) -> Self {
        QueueProgram::from_environment(root).map_or_else(|| Self::socket(root), Self::Program)
    }

    /// Queues the copy. Returns the number that follows `qp`.
    ///
    /// # Errors
    /// As the queue says; an address that no envelope can hold is permanent where the classic queue refuses it.
    pub fn submit(&self, copy: &Copy<'_>) -> Result<u32, Failure> {
        let envelope = envelope(copy)?;
        let result = match self {
            Self::Socket(run) => submit_socket(run.as_ref(), copy, envelope),
            // The interface of qmail-queue has no word for it, and nothing may go on without the protection that was asked for.
            Self::Program(_) if copy.inherits.flags & FLAG_REQUIRETLS != 0 => {
                return Err(Failure::temporary(
                    "Unable to forward message: QMAILQUEUE cannot take one that demands TLS. (#4.7.0)",
                ));
            }
            Self::Program(program) => program.submit(copy, &envelope),
        };
        result.map_err(|refused| {
            let text = [b"Unable to forward message: ", &refused.text[..], b"."].concat();
            Failure { is_permanent: refused.is_permanent, text }
        })
    }
}

fn envelope(copy: &Copy<'_>) -> Result<Envelope, Failure> {
    let address = |bytes: &&[u8]| {
        Address::new(bytes).map_err(|error| match error {
            wire::AddressError::TooLong => {
                Failure::permanent("Unable to forward message: envelope address too long for qq (#5.1.3).")
            }
            // Most likely a file with CRLF line ends: its owner can repair that.
            _ => Failure::temporary("Uh-oh: .qmail has a forward address that holds a control byte. (#4.7.0)"),
        })
    };
    Ok(Envelope { sender: address(&copy.sender)?, recipients: copy.recipients.iter().map(address).collect::<Result<_, _>>()? })
}

fn submit_socket(run: Option<&OwnedFd>, copy: &Copy<'_>, envelope: Envelope) -> Result<u32, Failure> {
    let no_queue = |_: io::Error| Failure::temporary("qq trouble making network connection (#4.3.0)");
    let run = run.ok_or_else(|| no_queue(io::ErrorKind::NotFound.into()))?;
    let flags = flags(copy.body, &envelope)? | copy.inherits.flags;
    let mut submission = connect(run).map_err(no_queue)?;
    let Envelope { sender, recipients } = envelope;
    submission.begin(sender, flags).map_err(no_queue)?;
    copy.inherits.of_message().try_for_each(|item| submission.item(&item)).map_err(no_queue)?;
    for recipient in recipients {
        submission.recipient(recipient).map_err(no_queue)?;
        copy.inherits.of_recipient().try_for_each(|item| submission.item(&item)).map_err(no_queue)?;
    }
    submission.data(copy.delivered_to).map_err(no_queue)?;
    let sent = copy.body.each_chunk(|chunk| submission.data(chunk).map(|()| true));
    sent.map_err(|stopped| match stopped {
        Stopped::Read(_) => Failure::temporary("qq read error (#4.3.0)"),
        Stopped::Take(e) => no_queue(e),
    })?;
    match submission.commit().map_err(no_queue)? {
        Answer::Accepted { pid, .. } => Ok(pid),
        Answer::Temporary { text } => Err(Refusal::of_answer(false, &text).into()),
        Answer::Permanent { text } => Err(Refusal::of_answer(true, &text).into()),
    }
}

fn connect(run: &OwnedFd) -> io::Result<Submission> {
    let start = sys::clock::boottime();
    loop {
        match Submission::connect(run.as_fd(), Socket::Inject.path()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && sys::clock::boottime().saturating_sub(start) < CONNECT_WAIT => {
                std::thread::sleep(CONNECT_PAUSE);
            }
            result => return result,
        }
    }
}

/// What the next hop must know, found by looking: a job does not carry the flags that the message came with.
fn flags(body: &Body, envelope: &Envelope) -> Result<u32, Failure> {
    let mut flags = 0;
    if envelope.recipients.iter().chain([&envelope.sender]).any(Address::is_utf8_only) {
        flags |= FLAG_SMTPUTF8;
    }
    let looked = body.each_chunk(|chunk| {
        if !chunk.is_ascii() {
            flags |= FLAG_EIGHT_BIT;
        }
        Ok::<_, ()>(flags & FLAG_EIGHT_BIT == 0)
    });
    looked.map_err(|_| Failure::temporary("qq read error (#4.3.0)"))?;
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_no_envelope_can_hold() {
        let body = Body::new(tempfile::tempfile().unwrap()).unwrap();
        let submit = |recipient: &[u8]| {
            let copy =
                Copy { sender: b"", recipients: &[recipient], delivered_to: b"", body: &body, inherits: Inheritance::nothing() };
            Forwarder::Socket(None).submit(&copy).unwrap_err()
        };
        assert!(submit(&[b'a'; 1003]).is_permanent);
        assert!(!submit(b"a@b\r").is_permanent);
        assert_eq!(submit(b"a@b").text, b"Unable to forward message: qq trouble making network connection (#4.3.0).");
    }
}
