//! Mailboxes on disk: Maildir and mbox deliveries that survive a power cut, and the Maildir listing of POP3.
//!
//! Guarantees: a delivery that returns `Ok` has its file synced and its name synced; one that returns `Err` leaves nothing in
//! `new/` that it could still take back, and never a part of a message there. Every name below a mailbox is opened relative to
//! a directory descriptor, for virtual users with openat2(2) so that neither `..` nor a symbolic link leads out ([`Bounds`]).
//! Existing files are never overwritten.
//!
//! Never here: what a `.qmail` file says (dotqmail), whose mailbox it is (qmail-lspawn), POP3.
//! Every create, write, sync, rename, unlink, truncate and directory sync goes through [`sys::fs::Disk`], so that tests cut the power
//! at each of them (`power`) and make them fail.
//! Used by qmail-local and qmail-pop3d. Formats: qmail-family §3.5, maildir(5), mbox(5).
#![forbid(unsafe_code)]

mod body;
mod bounds;
mod deliver;
mod error;
mod mailbox;
mod mbox;
mod name;
#[cfg(test)]
mod power;
mod quota;

pub use body::{Body, Letter, Stopped};
pub use bounds::{Bounds, open_at, open_dir};
pub use deliver::{Delivery, Maildir, deliver, deliver_batch, make_home};
pub use error::Error;
pub use mailbox::{Entry, Mailbox};
pub use mbox::{Mbox, deliver_mbox};
pub use name::host_name;
pub use quota::{Ledger, Quota};
pub use sys::errno::text as errno_text;
