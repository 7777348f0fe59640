//! Carries out a plan: files and programs in order, then all forwards in one submission (dot-qmail(5)).

use crate::failure::Failure;
use crate::forward::{Copy, Forwarder};
use crate::home::{DotQmail, Home};
use crate::quota_warning::{Warning, put_if_due};
use crate::shell::Shell;
use dotqmail::exit::Verdict;
use dotqmail::{Delivery, Instruction, Plan, search};
use ipc::inheritance::Inheritance;
use ipc::worker::Lmtp;
use maildir::{Body, Bounds, Ledger, Letter, Maildir, Mbox, Quota};
use message::header::Scanner;
use std::os::fd::AsFd;
use wire::Address;

/// The permanent failure of a message that has been here before (qmail-local(8)).
const LOOPING: &str = "This message is looping: it already has my Delivered-To line. (#5.4.6)";
const NO_MAILBOX: &str = "Sorry, no mailbox here by that name. (#5.1.1)";

/// Everything that a plan's lines need.
pub(crate) struct Carrier<'a> {
    pub home: &'a Home,
    pub delivery: Delivery<'a>,
    pub default_at: Option<usize>,
    pub body: &'a Body,
    /// This machine's name in file names.
    pub host: &'a [u8],
    pub now_s: u64,
    /// `None`: this face starts no programs, and was asked only for plans without.
    pub shell: Option<&'a Shell>,
    pub forwarder: &'a Forwarder,
    /// Bounds every Maildir below the home.
    pub quota: Quota,
    /// What forwards have of the message.
    pub inherits: &'a Inheritance,
    /// What the owner is told when it is nearly used up.
    pub warning: &'a [u8],
    /// It gets what the plan's files would.
    pub lmtp: Option<&'a Lmtp>,
}

/// What was done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    pub files: u64,
    pub forwards: u64,
    pub programs: u64,
    pub qp: Option<u32>,
    /// What an LMTP server said; lines.
    pub said: String,
}

impl Done {
    /// The report of a success: `did F+W+P`, and `qp N` if something was forwarded.
    pub(crate) fn text(&self) -> String {
        let qp = self.qp.map(|qp| format!("qp {qp}\n")).unwrap_or_default();
        format!("did {}+{}+{}\n{qp}{}", self.files, self.forwards, self.programs, self.said)
    }

    /// Counts a line.
    pub(crate) fn count(&mut self, instruction: &Instruction<'_>) {
        let counter = match instruction {
            Instruction::Mbox(_) | Instruction::Maildir(_) => &mut self.files,
            Instruction::Program(_) => &mut self.programs,
            Instruction::Forward(_) => &mut self.forwards,
        };
        *counter = counter.saturating_add(1);
    }
}

/// Fails when the message has our Delivered-To line already.
pub(crate) fn check_loop(delivery: &Delivery<'_>, body: &Body) -> Result<(), Failure> {
    let mut scanner = Scanner::looking_for_delivered_to(&delivery.recipient());
    let read = body.each_chunk(|chunk| {
        scanner.feed(chunk);
        Ok::<_, ()>(scanner.header_len().is_none() && !scanner.is_found())
    });
    if let Err(maildir::Stopped::Read(e)) = read {
        return Err(Failure::system("Unable to read message", &e));
    }
    if scanner.is_found() { Err(Failure::permanent(LOOPING)) } else { Ok(()) }
}

/// The file that speaks for the address; the bare user without a file has an empty one, an extension without a file does not exist.
pub(crate) fn dot_qmail(home: &Home, dash: &[u8], ext: &[u8]) -> Result<DotQmail, Failure> {
    match home.find(dash, ext)? {
        Some(found) => Ok(found),
        None if dash.is_empty() => Ok(DotQmail::default()),
        None => Err(Failure::permanent(NO_MAILBOX)),
    }
}

/// Return-Path and Delivered-To, as they stand before a message in a file.
pub(crate) fn trace(delivery: &Delivery<'_>) -> Vec<u8> {
    [delivery.return_path_line(), delivery.delivered_to_line()].concat()
}

/// Opens a Maildir; a virtual user's is made where it is missing.
pub(crate) fn open_maildir(home: &Home, path: &[u8], quota: Quota) -> Result<Maildir, Failure> {
    let maildir = match home.bounds() {
        Bounds::Anywhere => Maildir::open(home.dir(), path, Bounds::Anywhere)?,
        Bounds::Beneath => Maildir::open_or_create(home.dir(), path, Bounds::Beneath)?,
    };
    bounded(maildir, home, path, quota)
}

/// The Maildir with its quota, if there is one.
pub(crate) fn bounded(maildir: Maildir, home: &Home, path: &[u8], quota: Quota) -> Result<Maildir, Failure> {
    if quota.is_none() {
        return Ok(maildir);
    }
    Ok(maildir.bounded_by(Ledger::open(home.dir(), path, home.bounds(), quota)?))
}

impl Carrier<'_> {
    /// Does all of it.
    ///
    /// # Errors
    /// The first line that fails; lines before it have been done and stay done, forwards have not been sent.
    pub(crate) fn carry_out(&self, plan: &Plan<'_>) -> Result<Done, Failure> {
        let trace = trace(&self.delivery);
        let letter = Letter { trace: &trace, body: self.body };
        let new_sender = self.new_sender()?;
        let (mut done, mut forwards, mut stopped) = (Done::default(), Vec::new(), false);
        let mut said = String::new();
        for instruction in &plan.instructions {
            done.count(instruction);
            match instruction {
                Instruction::Maildir(_) | Instruction::Mbox(_) if self.lmtp.is_some() => {
                    // Once, however many files it stands for.
                    if done.files == 1 {
                        said = self.by_lmtp()?;
                    }
                }
                Instruction::Maildir(path) => self.maildir(path, letter)?,
                Instruction::Mbox(path) => self.mbox(path, letter)?,
                Instruction::Program(line) => stopped = self.program(line, &new_sender)? == Verdict::DoneStop,
                Instruction::Forward(address) => forwards.push(*address),
            }
            if stopped {
                break;
            }
        }
        if let Some(refusal) = plan.refusal.filter(|_| !stopped) {
            return Err(refusal.into());
        }
        if !forwards.is_empty() {
            done.qp = Some(self.forward(&forwards, &new_sender)?);
        }
        done.said = said;
        Ok(done)
    }

    /// The sender of forwards, and NEWSENDER.
    pub(crate) fn new_sender(&self) -> Result<Vec<u8>, Failure> {
        let Delivery { sender, local, host, dash, ext, .. } = self.delivery;
        if matches!(sender, b"" | b"#@[]") {
            return Ok(sender.to_vec());
        }
        let [has_owner, has_default] = self.home.owners(dash, ext)?;
        Ok(search::new_sender(sender, local, host, has_owner, has_default))
    }

    /// Queues copies for `recipients`.
    pub(crate) fn forward(&self, recipients: &[&[u8]], new_sender: &[u8]) -> Result<u32, Failure> {
        let delivered_to = self.delivery.delivered_to_line();
        let inherits = self.inherits.clone();
        // With the sender of a list the copy is a new message (RFC 3461 §5.2.7.3).
        let inherits = if new_sender == self.delivery.sender { inherits } else { inherits.for_list() };
        self.forwarder.submit(&Copy { sender: new_sender, recipients, delivered_to: &delivered_to, body: self.body, inherits })
    }

    fn by_lmtp(&self) -> Result<String, Failure> {
        let Some(lmtp) = self.lmtp else { return Ok(String::new()) };
        let sender = Address::new(self.delivery.sender).map_err(|_| Failure::temporary("the sender is no address. (#4.3.0)"))?;
        crate::lmtp::deliver(lmtp, &sender, self.host, &self.delivery.delivered_to_line(), self.body)
    }

    fn maildir(&self, path: &[u8], letter: Letter<'_>) -> Result<(), Failure> {
        let maildir = open_maildir(self.home, path, self.quota)?;
        maildir::deliver(self.host, maildir::Delivery { maildir: &maildir, letter })?;
        let (recipient, percent) = (self.delivery.recipient(), self.quota.warns_at);
        let warning = Warning { recipient: &recipient, domain: self.delivery.host, text: self.warning, percent };
        put_if_due(&maildir, self.host, warning);
        Ok(())
    }

    fn mbox(&self, path: &[u8], letter: Letter<'_>) -> Result<(), Failure> {
        let from_line = self.delivery.from_line(self.now_s);
        let mbox = Mbox { home: self.home.dir(), path, bounds: self.home.bounds(), from_line: &from_line };
        Ok(maildir::deliver_mbox(&mbox, &letter)?)
    }

    fn program(&self, line: &[u8], new_sender: &[u8]) -> Result<Verdict, Failure> {
        let shell = self.shell.ok_or_else(|| Failure::temporary("this worker runs no programs. (#4.3.0)"))?;
        let environment = self.delivery.environment(self.now_s, new_sender, self.default_at);
        shell.run(line, self.delivery.home, &environment, self.body.as_fd())
    }
}
