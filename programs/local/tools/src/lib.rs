//! Programs that `.qmail` files call, and those that make the tables some of them read: bouncesaying, condredirect, except, forward,
//! preline, qreceipt, qbiff, dot-forward, fastforward with setforward, printforward, setmaillist, printmaillist, newinclude and
//! newaliases, autorespond.
//!
//! They run as the recipient, with the message on descriptor 0 and what qmail-command(8) says in the environment. Guarantees: a copy of
//! the message is in the queue before success is said; an exit code means what it means to qmail-local; no address reaches a shell.
#![forbid(unsafe_code)]

pub mod aliases;
pub mod autorespond;
pub mod dot_forward;
pub mod fastforward;
pub mod forward;
pub mod judge;
pub mod preline;
pub mod qbiff;
pub mod qreceipt;
pub mod tables;

/// What the exit code of a program line means for the program that ran it: 0, 100 or 111 (qmail-command(8)). 99 has no meaning there.
fn verdict(code: u8) -> u8 {
    match dotqmail::exit::verdict(code) {
        dotqmail::exit::Verdict::Done => 0,
        dotqmail::exit::Verdict::Permanent => tool::PERMANENT,
        dotqmail::exit::Verdict::DoneStop | dotqmail::exit::Verdict::Temporary => tool::TEMPORARY,
    }
}
