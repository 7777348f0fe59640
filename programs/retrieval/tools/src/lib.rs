//! Small programs for Maildirs: maildirmake; maildir2mbox, and elq, pinq and qail, which run it before a mail reader; maildirwatch.
//!
//! Guarantees: a message leaves the Maildir only after the mbox that has it is synced and in its place.
#![forbid(unsafe_code)]

pub mod maildir2mbox;
pub mod maildirmake;
pub mod maildirwatch;

use std::os::fd::AsFd as _;

use maildir::{Bounds, Mailbox};
use tool::{End, Name, input};

/// The Maildir in MAILDIR, swept of what crashes left in `tmp/`.
fn open(me: Name) -> Result<Mailbox, End> {
    let path = input::variable("MAILDIR").ok_or_else(|| me.temporary("MAILDIR not set"))?;
    let here = std::fs::File::open(".").map_err(|error| me.system("unable to open current directory", &error))?;
    if let Err(error) = std::fs::read_dir(input::path(&path)) {
        return Err(me.system([b"unable to chdir to ", &path[..]].concat(), &error));
    }
    let mailbox = Mailbox::open(here.as_fd(), &path, Bounds::Anywhere);
    let mailbox = mailbox.map_err(|error| match error.io() {
        Some(io) => me.system("unable to scan $MAILDIR/new", io),
        None => me.temporary(error.to_string()),
    })?;
    mailbox.sweep(sys::clock::unix_s());
    Ok(mailbox)
}
