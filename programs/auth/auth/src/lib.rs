//! qmail-auth: the directory (is there somebody of this address?) and the judge of logins.
//!
//! Serves auth.sock for qmail-smtpd (recipients, logins, what a login may send), qmail-popup (logins) and qmail-send (routes of virtual recipients), and
//! admin/auth.sock for `qmail user|alias`. Asks qmail-checkpw about passwords
//! where control/authsources says so, and qmail-lspawn whether there is anybody of a system's local part and a
//! `.qmail` file for a virtual `user-ext`, and for the session of a mailbox whose owner has logged in; it never names a uid or a path. In doubt a user who exists gets the mail, and
//! a source that is down is a temporary failure.
//!
//! Passwords are also judged by LDAP, and tokens by OAuth, where control/authsources says so: qmail-authnet asks the servers, and what comes
//! back is the name of an account, which must be there and open.
//!
//! One thread polls and owns the accounts database; a few threads compute password hashes. No network, no exec, no files but its own
//! database, users/ and control/. `--once-admin` answers admin requests on one socket and ends with it, when the system is down.
#![forbid(unsafe_code)]

mod admin;
mod alert;
mod app_passwords;
mod authnet;
mod clients;
mod directory;
mod elsewhere;
mod exchange;
mod hashing;
mod limits;
mod login;
mod manage;
mod pool;
mod recipients;
mod relays;
mod rename;
mod requests;
mod room;
mod rows;
mod sending;
mod sending_log;
mod server;
mod sources;
mod start;
mod submission;
mod upstream;

pub use server::{Listeners, Server, Setup};
pub use start::main;
