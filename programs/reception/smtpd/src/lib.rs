//! qmail-smtpd: takes mail by SMTP and hands it to the queue.
//!
//! Two faces over one machine ([`smtp::server`], which holds the whole conversation): the *service* face is started by qmail-start
//! with listening sockets and serves thousands of sessions on one thread; the *classic* face speaks on standard input and output,
//! under tcpserver, inetd or systemd, with tcp-environ(5) and QMAILQUEUE as ever.
//!
//! Guarantees: 250 for a message only after the queue said it is durable; what cannot be decided or handed on now is a temporary
//! refusal (promises 1, 8). Once strangers talk it opens no file, starts no program, and has AF_UNIX sockets only.
//! Never: sees the spool, a mailbox, a key or a hash. RFC 5321 and the extensions named in [`smtp::server`].
#![forbid(unsafe_code)]

mod classic;
mod config;
mod elsewhere;
mod envelope;
mod helper;
mod hooks;
mod login;
mod service;
mod session;
mod submission;
mod terms;
mod trust;

use control::Root;
use reception::log_line;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

/// `qmail-smtpd [--root DIR] [--service]`
#[must_use]
pub fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(code) = reception::program::helper("qmail-smtpd", &args).or_else(|| helper::helper(&args)) {
        return code;
    }
    let root = Root::from_args(&mut args);
    if args.first().is_some_and(|face| face == "--service") {
        let served = root.map_err(std::io::Error::other).and_then(|root| service::start(&root));
        return match served {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                log_line(format_args!("cannot start: {error}"));
                ExitCode::from(111)
            }
        };
    }
    classic::run(root)
}

/// The line of a session that is over.
fn log_end(session: &smtp::server::Session, boot: Duration, prefix: &str) {
    let counts = session.counts();
    let end = session.end().unwrap_or(smtp::server::End::Gone);
    let seconds = boot.saturating_sub(session.started()).as_secs();
    let helo = wire::escape::visible(session.helo().unwrap_or_default());
    let ip = wire::escape::visible(&session.peer().remote_ip);
    let user = session.user().map(|user| format!(" user {}", wire::escape::visible(user))).unwrap_or_default();
    let tls = session.peer().tls.as_ref().map(|tls| format!(" tls {}", tls.cipher)).unwrap_or_default();
    // What strangers chose comes last, so that it cannot pass for another field.
    log_line(format_args!(
        "{prefix}end {ip} {end:?}: messages {} recipients {} bytes {} refused {} seconds {seconds}{tls}{user} helo {helo}",
        counts.messages, counts.recipients, counts.bytes, counts.refused
    ));
}

fn now() -> smtp::server::Now {
    smtp::server::Now { unix_s: sys::clock::unix_s(), boot: sys::clock::boottime() }
}
