//! qmail-qmtpd and qmail-qmqpd: take mail by QMTP from anybody, and by QMQP from our own hosts, and hand it to the queue.
//!
//! As qmail-smtpd they have two faces over their machines ([`qmtp::server`], [`qmtp::qmqp`]): the *service* face is started by
//! qmail-start with listening sockets, the *classic* face speaks on standard input and output. Both protocols send the text before the
//! envelope; it goes on to qmail-send as it comes, and the envelope behind it ([`ipc::queue::Item::From`]), so nothing is kept here.
//!
//! Guarantees: `K` only after the queue said that the message is durable; what cannot be decided or handed on now is a temporary refusal
//! (promises 1, 8). QMQP is served to `control/qmqpclients` alone, by default nobody. Once strangers talk it opens no file, starts no
//! program, and has AF_UNIX sockets only. Never: sees the spool, a mailbox, a key or a hash.
#![forbid(unsafe_code)]

mod classic;
mod config;
mod conversation;
mod service;
mod session;

use control::Root;
use conversation::Protocol;
use reception::log_line;
use std::ffi::OsString;
use std::process::ExitCode;

/// `qmail-qmtpd [--root DIR] [--service]`
#[must_use]
pub fn qmail_qmtpd() -> ExitCode {
    run(Protocol::Qmtp)
}

/// `qmail-qmqpd [--root DIR] [--service]`
#[must_use]
pub fn qmail_qmqpd() -> ExitCode {
    run(Protocol::Qmqp)
}

fn run(protocol: Protocol) -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(code) = reception::program::helper(protocol.program(), &args) {
        return code;
    }
    let root = Root::from_args(&mut args);
    if args.first().is_some_and(|face| face == "--service") {
        let served = root.map_err(std::io::Error::other).and_then(|root| service::start(protocol, &root));
        return match served {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                log_line(format_args!("cannot start: {error}"));
                ExitCode::from(111)
            }
        };
    }
    classic::run(protocol, root)
}
