//! A message for the queue: by the program in QMAILQUEUE, else by this release's qmail-queue (its interface: qmail-queue(8)).
//!
//! That is one way for all small programs: none of them waits for a system that is down in a way of its own, and where a filter is
//! set it sees their mail, too. Success is said only when that program has said it.

use std::path::{Path, PathBuf};

use control::Root;
use ipc::Refusal;
use ipc::queue_program::{Running, not_run, place};
use wire::{Address, AddressError};

use crate::{End, Name, PERMANENT, TEMPORARY};

/// A message that is being handed over.
#[derive(Debug)]
pub struct Queue {
    me: Name,
    running: Running,
}

impl Queue {
    /// Starts the program.
    ///
    /// # Errors
    /// It cannot be started; temporary.
    pub fn open(me: Name) -> Result<Self, End> {
        let (program, dir) = program(me)?;
        let running = Running::start(&program, &dir).map_err(|_| refused(me, &not_run()))?;
        Ok(Self { me, running })
    }

    /// The next bytes of the message.
    pub fn put(&mut self, bytes: &[u8]) {
        self.running.put(bytes);
    }

    /// What is left of a file.
    ///
    /// # Errors
    /// It cannot be read; temporary. Nothing is queued then.
    pub fn copy(&mut self, from: &mut std::fs::File) -> Result<(), End> {
        let copied = crate::input::copy(from, |piece| {
            self.running.put(piece);
            Ok::<(), ()>(())
        });
        match copied {
            Err(Ok(error)) => Err(self.me.system("unable to read message", &error)),
            _ => Ok(()),
        }
    }

    /// Ends the message, gives its envelope and waits for the answer: the number that stands behind `qp`.
    ///
    /// # Errors
    /// An address that no envelope can hold; or what the queue says. Nothing is queued then.
    pub fn finish(self, sender: &[u8], recipients: &[&[u8]]) -> Result<u32, End> {
        let pid = self.running.pid();
        self.close(sender, recipients).map_err(|(me, refusal)| refused(me, &refusal))?;
        Ok(pid)
    }

    /// As [`Queue::finish`], for a caller that has words of its own.
    ///
    /// # Errors
    /// As [`Queue::finish`].
    pub fn close(self, sender: &[u8], recipients: &[&[u8]]) -> Result<(), (Name, Refusal)> {
        let me = self.me;
        let fail = |refusal| (me, refusal);
        let sender = address(sender).map_err(fail)?;
        let recipients = recipients.iter().map(|to| address(to)).collect::<Result<Vec<_>, _>>().map_err(fail)?;
        self.running.finish(&sender, &recipients).map_err(fail)
    }
}

/// `NAME: fatal: TEXT`, with 100 or 111.
fn refused(me: Name, refusal: &Refusal) -> End {
    me.fatal(if refusal.is_permanent { PERMANENT } else { TEMPORARY }, &refusal.text)
}

fn address(bytes: &[u8]) -> Result<Address, Refusal> {
    Address::new(bytes).map_err(|error| match error {
        AddressError::TooLong => Refusal::permanent("envelope address too long for qq (#5.1.3)"),
        AddressError::ControlByte | AddressError::Domain => {
            Refusal::permanent("envelope address holds a NUL or a line end (#5.1.3)")
        }
    })
}

/// The program and its working directory.
fn program(me: Name) -> Result<(PathBuf, PathBuf), End> {
    let root = Root::from_env().map_err(|error| me.temporary(error.to_string()))?;
    let named = std::env::var_os("QMAILQUEUE").filter(|name| !name.is_empty());
    let named = named.unwrap_or_else(|| control::program::sibling("qmail-queue").into_os_string());
    Ok(place(&named, Path::new(root.path())))
}
