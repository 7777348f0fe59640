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
use logline::Line;
use reception::log_line;
use smtp::server::End;
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

/// Bytes of a session from the client and to it.
#[derive(Debug, Clone, Copy, Default)]
struct Traffic {
    taken: u64,
    sent: u64,
}

/// The line of a session that is over.
fn end_line(session: &smtp::server::Session, boot: Duration, traffic: Traffic) -> Line {
    let (counts, peer) = (session.counts(), session.peer());
    let service = match () {
        () if peer.is_lmtp => "lmtp",
        () if peer.is_submission => "submission",
        () => "smtp",
    };
    let line = logline::Session {
        service,
        remote: &peer.remote_ip,
        end: end_name(session.end().unwrap_or(End::Gone)),
        seconds: boot.saturating_sub(session.started()).as_secs(),
        taken: traffic.taken,
        sent: traffic.sent,
        cipher: peer.tls.as_ref().map(|tls| &*tls.cipher),
        user: session.user(),
        helo: session.helo(),
    }
    .line();
    let line = line.put("messages", counts.messages).put("recipients", counts.recipients).put("bytes", counts.bytes);
    let line = line.put("refused", counts.refused).put("refused_recipients", counts.refused_recipients);
    line.put("refused_messages", counts.refused_messages)
}

fn end_name(end: End) -> &'static str {
    match end {
        End::Quit => "quit",
        End::Gone => "gone",
        End::Timeout => "timeout",
        End::Tls => "tls",
        End::Limit => "limit",
        End::Refused => "refused",
        End::Drain => "shutdown",
    }
}

fn now() -> smtp::server::Now {
    smtp::server::Now { unix_s: sys::clock::unix_s(), boot: sys::clock::boottime() }
}
