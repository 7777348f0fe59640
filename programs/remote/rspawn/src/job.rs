//! One job of qmail-send: the program runs for one recipient after the other, as it does under the classic qmail-rspawn, and each
//! result is told at once.
//!
//! The classic interface has no words for some of what a job may say: a message that needs REQUIRETLS, or has to come back when its time is
//! over, fails as it would at a server that knows neither; a route of `control/lmtproutes` waits. Routes of `smtproutes` and
//! `authsenders` are the program's own affair.

use std::fs::File;
use std::os::fd::OwnedFd;

use ipc::field::Verdict;
use ipc::job::{Answer, FLAG_REQUIRETLS, Job, Outcome, Route};
use ipc::options::Options;
use ipc::{Message as _, clip};
use message::verp;
use wire::Address;

use crate::program::{self, Program};

const UNREADABLE: &str = "Unable to read message. (#4.3.0)\n";
const NO_REQUIRETLS: &str =
    "The program in the place of qmail-remote does not support REQUIRETLS, which this message needs. (#5.7.30)\n";
const NO_DELIVERBY: &str =
    "The program in the place of qmail-remote does not support DELIVERBY, which this message needs. (#5.3.3)\n";
const NO_LMTP: &str = "A program in the place of qmail-remote is not for the domains of control/lmtproutes. (#4.3.5)\n";
const NO_THREAD: &str = "qmail-rspawn cannot take this now. (#4.3.0)\n";
const NOT_REMOTE: &str = "This is a local job; qmail-rspawn takes remote ones. (#4.3.5)\n";

/// The answer to a job that is not even begun: its number and one deferral for each recipient.
pub fn refusal(job: &Job) -> Vec<u8> {
    let (number, count) = match job {
        Job::Remote { number, recipients, .. } => (*number, recipients.len()),
        Job::System { number, .. } | Job::Mailbox { number, .. } | Job::Alias { number, .. } => (*number, 1),
    };
    all(number, count, Verdict::Deferral, NO_THREAD)
}

/// Carries out a job; `say` sends a datagram to qmail-send, or to nobody if that is gone.
pub fn carry(program: &Program, job: Job, body: Option<OwnedFd>, say: impl Fn(&[u8])) {
    let (number, sender, recipients, route, flags, options) = match job {
        Job::Remote { number, sender, recipients, route, flags, options, .. } => {
            (number, sender, recipients, route, flags, options)
        }
        Job::System { number, .. } | Job::Mailbox { number, .. } | Job::Alias { number, .. } => {
            return say(&answer(number, vec![outcome(0, Verdict::Deferral, NOT_REMOTE.as_bytes())], true));
        }
    };
    if let Err((verdict, text)) = may_go(&route, flags, options.as_ref()) {
        return say(&all(number, recipients.len(), verdict, text));
    }
    let Some(body) = body.filter(|_| !recipients.is_empty()) else {
        return say(&all(number, recipients.len(), Verdict::Deferral, UNREADABLE));
    };
    let last = recipients.len().saturating_sub(1);
    for (at, recipient) in recipients.iter().enumerate() {
        let (verdict, text) = match program::message(&body) {
            Ok(message) => run(program, &sender, recipient, &message),
            Err(_) => (Verdict::Deferral, UNREADABLE.as_bytes().to_vec()),
        };
        say(&answer(number, vec![outcome(at, verdict, &text)], at == last));
    }
}

/// Can the program be told what the message needs?
fn may_go(route: &Route, flags: u32, options: Option<&Options>) -> Result<(), (Verdict, &'static str)> {
    let returns = options.and_then(|options| options.deliver_by).is_some_and(|by| by.returns);
    match route {
        Route::Lmtp { .. } | Route::LmtpSocket { .. } => Err((Verdict::Deferral, NO_LMTP)),
        _ if flags & FLAG_REQUIRETLS != 0 => Err((Verdict::Failure, NO_REQUIRETLS)),
        _ if returns => Err((Verdict::Failure, NO_DELIVERBY)),
        _ => Ok(()),
    }
}

fn run(program: &Program, sender: &Address, recipient: &Address, message: &File) -> (Verdict, Vec<u8>) {
    let sender = verp::expand(sender, recipient);
    program.run(recipient.domain().unwrap_or_default(), sender.as_bytes(), recipient.as_bytes(), message)
}

fn outcome(at: usize, verdict: Verdict, text: &[u8]) -> Outcome {
    Outcome { recipient: u32::try_from(at).unwrap_or(u32::MAX), verdict, text: clip(text).into() }
}

/// The same for all; the texts are short.
fn all(number: u64, recipients: usize, verdict: Verdict, text: &str) -> Vec<u8> {
    let outcomes = (0..recipients).map(|at| outcome(at, verdict, text.as_bytes())).collect();
    answer(number, outcomes, true)
}

fn answer(number: u64, outcomes: Vec<Outcome>, last: bool) -> Vec<u8> {
    Answer::Done { number, outcomes, untried: Vec::new(), last }.encode()
}
