//! MAIL and RCPT: who may send what to whom.
//!
//! Pipelined RCPTs are judged together: up to [`QUESTIONS_MAX`] questions are with the directory at a time, and the replies
//! keep the order of the commands. No other command is looked at while a question is open.

use super::exchange::{Action, Actions, Asked, Envelope, RecipientAnswer};
use super::policy::{self, Passage as Verdict, answered};
use super::submission::hold_until;
use super::{Session, State, replies};
use crate::command::{self, MailParameters, RcptParameters, Syntax};
use std::collections::VecDeque;
use wire::{Address, DeliverBy, Priority};

/// Questions to the directory that one session may have open.
pub const QUESTIONS_MAX: usize = 32;
/// Bytes of all recipients of a message, in memory; 452 4.5.3 beyond it, so that a session's memory has a bound.
const RECIPIENTS_LEN_MAX: usize = 1 << 20;

/// What MAIL opened.
#[derive(Debug)]
pub(super) struct Transaction {
    sender: Address,
    parameters: MailParameters,
    /// Checked against what was offered.
    hold_until_s: Option<u64>,
    deliver_by: Option<DeliverBy>,
    /// As this client may have it.
    priority: Option<Priority>,
    recipients: Vec<Address>,
    /// What is asked for of some of them, by their place.
    asked: Vec<(u32, RcptParameters)>,
    recipients_len: usize,
    waiting: VecDeque<Waiting>,
}

/// An RCPT that has no reply yet.
#[derive(Debug)]
struct Waiting {
    recipient: Address,
    parameters: RcptParameters,
    /// The open question; `None` once there is a verdict.
    question: Option<u32>,
    verdict: Verdict,
    /// The verdict if the directory knows the recipient.
    if_known: Verdict,
    /// The words of a program that refuses.
    own_words: Option<Box<[u8]>>,
    /// The verdict is about the command itself, so that it holds even if there is no room for another recipient.
    is_about_syntax: bool,
}

impl Transaction {
    pub(super) fn is_asking(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn is_full_of_questions(&self) -> bool {
        self.waiting.len() >= QUESTIONS_MAX
    }

    pub(super) fn has_recipients(&self) -> bool {
        !self.recipients.is_empty()
    }

    pub(super) fn sender(&self) -> &Address {
        &self.sender
    }

    pub(super) fn is_utf8(&self) -> bool {
        self.parameters.utf8
    }

    pub(super) fn priority(&self) -> Option<Priority> {
        self.priority
    }

    /// The priority that the message has instead of the one that was asked for.
    pub(super) fn new_priority(&self) -> Option<Priority> {
        self.priority.filter(|_| self.priority != self.parameters.priority)
    }

    /// What MAIL is answered.
    pub(super) fn mail_reply(&self) -> Vec<u8> {
        self.new_priority()
            .map_or_else(|| replies::MAIL.as_bytes().to_vec(), |priority| replies::new_priority(priority).into_bytes())
    }

    pub(super) fn recipients_count(&self) -> u64 {
        self.recipients.len() as u64
    }

    pub(super) fn into_envelope(self) -> Box<Envelope> {
        let MailParameters { eight_bit, utf8, requiretls, ret, envid, .. } = self.parameters;
        let (hold_until_s, deliver_by, priority) = (self.hold_until_s, self.deliver_by, self.priority);
        let asked = Asked { ret, envid, hold_until_s, deliver_by, priority, recipients: self.asked };
        Box::new(Envelope { sender: self.sender, recipients: self.recipients, eight_bit, utf8, requiretls, asked })
    }
}

impl Session {
    /// MAIL; a second one starts over, as with qmail.
    pub(super) fn mail(&mut self, argument: &[u8], out: &mut Actions) {
        match self.judge_mail(argument) {
            Ok((transaction, sender)) if self.must_own(&sender) => {
                self.state = State::JudgingSender(transaction);
                out.push(Action::CheckSender { sender });
            }
            Ok((transaction, _)) => {
                out.reply(&transaction.mail_reply());
                self.state = State::Mail(transaction);
            }
            Err((reply, sender)) => {
                self.state = State::Idle;
                self.log_refusal(sender.as_ref(), None, reply, out);
                self.refuse_unlogged(reply, out);
            }
        }
    }

    /// The transaction, and the sender before XVERP changed it.
    fn judge_mail(&self, argument: &[u8]) -> Result<(Transaction, Address), (&'static str, Option<Address>)> {
        let (sender, parameters) =
            command::path(argument, "FROM").map_err(|why| (syntax_reply(why, replies::SENDER_SYNTAX), None))?;
        let sender = self.with_localiphost(sender).map_err(|sender| (replies::PATH_TOO_LONG, Some(sender)))?;
        let now_s = self.now.unix_s;
        let unwanted = self.sender_refusal(&sender);
        let refused = match MailParameters::parse(parameters, self.offered()) {
            Err(why) => syntax_reply(why, replies::SENDER_SYNTAX),
            Ok(p) if self.databytes() != 0 && p.size > self.databytes() => replies::TOO_LARGE,
            // Nothing is that large: refused even where no bound is set.
            Ok(p) if p.size == u64::MAX => replies::TOO_LARGE,
            Ok(p) if sender.is_utf8_only() && !p.utf8 => replies::NEEDS_UTF8,
            Ok(_) if unwanted.is_some() => unwanted.unwrap_or(replies::BAD_MAIL_FROM),
            Ok(MailParameters { hold: Some(hold), .. }) if hold_until(hold, now_s).is_none() => replies::VALUE,
            Ok(MailParameters { by: Some(by), hold, .. }) if self.deliver_by_refusal(by, hold).is_some() => {
                self.deliver_by_refusal(by, hold).unwrap_or(replies::VALUE)
            }
            // What XVERP makes of the user's own address has to be a sub-address of it.
            Ok(p) if self.is_bound() && !matches!(p.verp, None | Some(b'-' | b'+')) => replies::VALUE,
            Ok(parameters) => match with_verp(&sender, parameters.verp) {
                Some(expanded) => {
                    let transaction = Transaction {
                        sender: expanded,
                        hold_until_s: parameters.hold.and_then(|hold| hold_until(hold, now_s)).filter(|until_s| *until_s > now_s),
                        deliver_by: parameters.by.map(|by| DeliverBy::new(by, now_s)),
                        priority: self.allowed(parameters.priority),
                        parameters,
                        recipients: Vec::new(),
                        asked: Vec::new(),
                        recipients_len: 0,
                        waiting: VecDeque::new(),
                    };
                    return Ok((transaction, sender));
                }
                None => replies::VALUE,
            },
        };
        Err((refused, Some(sender)))
    }

    /// RCPT; the reply comes when the directory has answered.
    pub(super) fn rcpt(&mut self, argument: &[u8], out: &mut Actions) {
        let State::Mail(transaction) = &self.state else {
            let reply = if matches!(self.state, State::BetweenChunks(_)) { replies::BDAT_OPEN } else { replies::MAIL_FIRST };
            return self.refuse(reply, out);
        };
        let (judged, parameters) = self.judge_rcpt(argument, transaction);
        let listed = self.peer.listed.clone();
        let question = self.questions.wrapping_add(1);
        self.questions = question;
        let State::Mail(transaction) = &mut self.state else { return };
        let mut if_known = Ok(());
        let (recipient, question, verdict, is_about_syntax) = match judged {
            Judged::Ask { recipient, otherwise, known } => {
                if_known = known;
                let size = transaction.parameters.size;
                out.push(Action::CheckRecipient { question, recipient: recipient.clone(), size });
                (recipient, Some(question), otherwise, false)
            }
            Judged::Now { recipient, verdict } => (recipient, None, verdict, false),
            Judged::Syntax { recipient, reply } => (recipient, None, Err(reply), true),
        };
        let own_words = listed.filter(|_| verdict == Err(replies::LISTED));
        transaction.waiting.push_back(Waiting { recipient, parameters, question, verdict, if_known, own_words, is_about_syntax });
        self.settle_recipients(out);
    }

    /// What can be said before the directory is asked, and the parameters.
    fn judge_rcpt(&self, argument: &[u8], transaction: &Transaction) -> (Judged, RcptParameters) {
        let syntax = |recipient, why| Judged::Syntax { recipient, reply: syntax_reply(why, replies::RECIPIENT_SYNTAX) };
        let (recipient, parameters) = match command::path(argument, "TO") {
            Ok(parsed) => parsed,
            Err(why) => return (syntax(Address::null(), why), RcptParameters::default()),
        };
        match RcptParameters::parse(parameters, self.offered()) {
            Ok(parameters) => (self.judge_recipient(recipient, transaction), parameters),
            Err(why) => (syntax(recipient, why), RcptParameters::default()),
        }
    }

    fn judge_recipient(&self, recipient: Address, transaction: &Transaction) -> Judged {
        let complaint = match () {
            () if recipient.is_null() => Some(replies::RECIPIENT_SYNTAX),
            () if recipient.is_utf8_only() && !transaction.parameters.utf8 => Some(replies::NEEDS_UTF8),
            () => None,
        };
        if let Some(reply) = complaint {
            return Judged::Syntax { recipient, reply };
        }
        let recipient = match self.rewritten(recipient) {
            Ok(recipient) => recipient,
            Err(recipient) => return Judged::Syntax { recipient, reply: replies::PATH_TOO_LONG },
        };
        if transaction.is_full(self.recipients_max(), 0) {
            return Judged::Now { recipient, verdict: Err(replies::TOO_MANY_RECIPIENTS) };
        }
        match self.rules().recipient(&recipient) {
            policy::Judged::Now(verdict) => Judged::Now { recipient, verdict },
            policy::Judged::Ask { otherwise, known } => Judged::Ask { recipient, otherwise, known },
        }
    }

    /// `user@[our address]` is `user@localiphost`: of a recipient, and of a sender, whose bounces would leave this host to come back.
    fn with_localiphost(&self, address: Address) -> Result<Address, Address> {
        let is_ours = |host: &[u8]| command::literal(host).is_some_and(|ip| Some(ip.to_canonical()) == self.peer.local_ip);
        match address.domain() {
            Some(host) if is_ours(host) => Address::join(address.local(), &self.config.localiphost).map_err(|_| address),
            _ => Ok(address),
        }
    }

    /// RELAYCLIENT's value goes behind the recipient.
    fn rewritten(&self, recipient: Address) -> Result<Address, Address> {
        let recipient = self.with_localiphost(recipient)?;
        match self.peer.relay_client.as_deref() {
            Some(suffix) if !suffix.is_empty() => Address::new(&[recipient.as_bytes(), suffix].concat()).map_err(|_| recipient),
            _ => Ok(recipient),
        }
    }

    /// May this client send to a domain that is none of ours (promise 5)? An address without a domain never leaves this system.
    pub(super) fn may_pass(&self, recipient: &Address) -> Verdict {
        self.rules().may_pass(recipient)
    }

    /// An answer of the directory.
    pub(super) fn recipient_answered(&mut self, question: u32, answer: RecipientAnswer, out: &mut Actions) {
        let State::Mail(transaction) = &mut self.state else { return };
        let Some(waiting) = transaction.waiting.iter_mut().find(|waiting| waiting.question == Some(question)) else { return };
        waiting.question = None;
        (waiting.verdict, waiting.own_words) = answered(waiting.verdict, waiting.if_known, answer);
        self.settle_recipients(out);
    }

    /// Replies to the RCPTs at the front whose verdict is known.
    fn settle_recipients(&mut self, out: &mut Actions) {
        while let State::Mail(transaction) = &mut self.state {
            if transaction.waiting.front().is_none_or(|waiting| waiting.question.is_some()) {
                return;
            }
            let Some(Waiting { recipient, parameters, verdict, own_words, is_about_syntax, .. }) =
                transaction.waiting.pop_front()
            else {
                return;
            };
            let len = recipient.as_bytes().len().saturating_add(size_of::<Address>()).saturating_add(asked_len(&parameters));
            // Without room it does not matter what the directory says, nor whether it was asked before there was no room.
            let most = if self.peer.terms.any_number { usize::MAX } else { self.config.limits.recipients_max };
            let is_full = transaction.is_full(most, if verdict.is_ok() { len } else { 0 });
            match verdict {
                _ if is_full && !is_about_syntax => self.refuse_recipient(&recipient, replies::TOO_MANY_RECIPIENTS, out),
                Ok(()) => {
                    transaction.recipients_len = transaction.recipients_len.saturating_add(len);
                    if !parameters.is_empty() {
                        let place = u32::try_from(transaction.recipients.len()).unwrap_or(u32::MAX);
                        transaction.asked.push((place, parameters));
                    }
                    transaction.recipients.push(recipient);
                    out.reply(replies::RCPT.as_bytes());
                }
                Err(reply) => {
                    let reply = match &own_words {
                        Some(words) => String::from_utf8_lossy(&replies::refusal(words)).into_owned(),
                        None => reply.to_owned(),
                    };
                    self.refuse_recipient(&recipient, &reply, out);
                }
            }
        }
    }

    fn recipients_max(&self) -> usize {
        if self.peer.terms.any_number { usize::MAX } else { self.config.limits.recipients_max }
    }

    pub(super) fn refuse_recipient(&mut self, recipient: &Address, reply: &str, out: &mut Actions) {
        let sender = match &self.state {
            State::Mail(transaction) => Some(transaction.sender.clone()),
            _ => None,
        };
        self.log_refusal(sender.as_ref(), Some(recipient), reply, out);
        self.counts.refused = self.counts.refused.saturating_add(1);
        self.counts.refused_recipients = self.counts.refused_recipients.saturating_add(1);
        // RFC 5321 §3.8: 421 is the last word.
        if reply.starts_with("421") {
            return self.close(super::End::Limit, Some(reply), out);
        }
        out.reply(reply.as_bytes());
        if replies::is_clients_fault(reply.as_bytes()) {
            self.bad_recipients = self.bad_recipients.saturating_add(1);
        }
        let most = self.peer.terms.bad_recipients_max.unwrap_or(self.config.limits.bad_recipients_max);
        if most != 0 && self.bad_recipients >= most {
            self.close(super::End::Limit, Some(replies::TOO_MANY_BAD_RECIPIENTS), out);
        }
    }
}

impl Transaction {
    /// Is there no room for one more recipient of `len` bytes?
    fn is_full(&self, recipients_max: usize, len: usize) -> bool {
        self.recipients.len() >= recipients_max || self.recipients_len.saturating_add(len) > RECIPIENTS_LEN_MAX
    }
}

enum Judged {
    /// The directory decides; `otherwise`: the verdict if the domain is none of ours.
    Ask {
        recipient: Address,
        otherwise: Verdict,
        /// The verdict if it is known here.
        known: Verdict,
    },
    Now {
        recipient: Address,
        verdict: Verdict,
    },
    Syntax {
        recipient: Address,
        reply: &'static str,
    },
}

/// What the parameters of a recipient take in memory.
fn asked_len(parameters: &RcptParameters) -> usize {
    let orcpt = parameters.orcpt.as_ref().map_or(0, |orcpt| orcpt.as_bytes().len());
    if parameters.is_empty() { 0 } else { orcpt.saturating_add(size_of::<(u32, RcptParameters)>()) }
}

/// The sender that qmail-send expands for each recipient: `pre-@host-@[]`. `None` if there is nothing to expand.
fn with_verp(sender: &Address, delimiter: Option<u8>) -> Option<Address> {
    let Some(delimiter) = delimiter else { return Some(sender.clone()) };
    let host = sender.domain()?;
    Address::new(&[sender.local(), &[delimiter], b"@", host, b"-@[]"].concat()).ok()
}

fn syntax_reply(why: Syntax, mailbox: &'static str) -> &'static str {
    match why {
        Syntax::Form => replies::PATH_FORM,
        Syntax::TooLong => replies::PATH_TOO_LONG,
        Syntax::Mailbox => mailbox,
        Syntax::Parameter => replies::PARAMETER,
        Syntax::Value => replies::VALUE,
    }
}
