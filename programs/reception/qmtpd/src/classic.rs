//! The classic face: one session on standard input and output, for tcpserver, inetd and systemd's `Accept=yes`.
//!
//! tcp-environ(5) says who the client is, else the socket on standard input; QMAILQUEUE is obeyed, and by qmail-qmtpd RELAYCLIENT, DATABYTES
//! and what else qmail-smtpd does but for plugins; a RCPTCHECK is not asked, and no mail passes it by. Exit code 0 at the end of the connection or behind QMQP's answer, 100 when the client spoke something else, 111 when it took
//! too long or something is missing here. qmail-qmqpd serves whoever is connected to it: who that may be is for the caller to say.
//! Whether a recipient exists is asked of qmail-auth, as by qmail-smtpd.

use crate::config::config;
use crate::conversation::{ASKING_MAX, Machine, Protocol, begin, from, queue_answer, recipient_answer};
use control::{ControlError, Networks, Root};
use qmtp::exchange::{Action, Config, End, Input, NEEDS_PROGRAM, Peer, WRITE_DEADLINE};
use reception::directory::{Directory, virtual_domains};
use reception::log_line;
use reception::outgoing::{Outgoing, Queue, run_directory};
use reception::stdio::{self, Client, READ_LEN, Read};
use reception::terms::{listed, terms};
use smtp::server::RecipientAnswer;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use wire::Address;

/// The whole program.
pub(crate) fn run(protocol: Protocol, root: Result<Root, ControlError>) -> ExitCode {
    reception::look_at_the_log();
    match start(protocol, root) {
        Ok(mut talk) => ExitCode::from(talk.converse().exit_code()),
        Err(error) => {
            log_line(format_args!("{}: {error}", protocol.program()));
            ExitCode::from(111)
        }
    }
}

/// Control files, then what must be open, then the sandbox.
fn start(protocol: Protocol, root: Result<Root, ControlError>) -> io::Result<Talk> {
    let root = root.map_err(io::Error::other)?;
    // qmail-qmqpd has no control files: it looks at nothing but its client, and that is the caller's affair here.
    let control = match protocol {
        Protocol::Qmtp => Some(control::Smtpd::read(&root).map_err(io::Error::other)?),
        Protocol::Qmqp => None,
    };
    let queue = Queue::open(&root, run_directory(&root), false)?;
    let directory = match protocol {
        Protocol::Qmtp => Directory::open(run_directory(&root).as_ref(), &root, queue.program().is_some()),
        Protocol::Qmqp => Directory::RcptHosts,
    };
    let alone = matches!(directory, Directory::RcptHosts);
    let client = Client::of_environment(control.as_ref().map_or(&Networks::default(), |control| &control.relayclients));
    let (config, peer) = match control {
        Some(control) => (config(control, if alone { virtual_domains(&root) } else { Vec::new() }), qmtp_peer(client)),
        None => (Config { timeout_s: qmtp::exchange::MESSAGE_S, ..Config::default() }, peer(client)),
    };
    sandbox::enter(&sandbox::table::TOOL, root.path(), &[])?;
    let machine = Machine::new(protocol, Arc::new(config), peer);
    let prefix = format!("{}[{}]: ", protocol.program(), std::process::id());
    Ok(Talk { machine, queue, directory, message: None, recipients: Vec::new(), is_lost: false, asking: None, prefix })
}

fn peer(client: Client) -> Peer {
    Peer {
        remote_ip: client.remote_ip,
        remote_host: client.remote_host,
        remote_info: client.remote_info,
        local_host: Some(client.local_host),
        ..Peer::default()
    }
}

fn qmtp_peer(client: Client) -> Peer {
    let variable = |name: &str| std::env::var_os(name).map(OsString::into_vec);
    let (relay_client, databytes) = (client.relay_client.clone(), client.databytes);
    let checks_all = variable("RCPTCHECKRELAYCLIENT").and_then(|value| control::read::int_of(&value)).unwrap_or(0) > 0;
    let is_checked = variable("RCPTCHECK").is_some_and(|program| !program.is_empty()) && (relay_client.is_none() || checks_all);
    Peer {
        relay_client,
        databytes,
        listed: listed(variable("RBLSMTPD").as_deref()),
        terms: terms(variable, 0),
        refusal: is_checked.then_some(NEEDS_PROGRAM),
        ..peer(client)
    }
}

struct Talk {
    machine: Machine,
    queue: Queue,
    directory: Directory,
    message: Option<Outgoing>,
    /// For a program, which gets them at the end.
    recipients: Vec<Address>,
    /// The client takes no answer.
    is_lost: bool,
    /// When the first question about the message under way was asked, since boot, and how long may be asked from then on.
    asking: Option<(Duration, Duration)>,
    prefix: String,
}

impl Talk {
    fn converse(&mut self) -> End {
        let (mut buf, mut actions) = (vec![0; READ_LEN], Vec::new());
        let end = loop {
            match self.machine.end() {
                Some(end) => break end,
                None if self.is_lost => self.machine.step(Input::Closed, &mut actions),
                None => self.read(&mut buf, &mut actions),
            }
            while !actions.is_empty() {
                self.carry_out(&mut actions);
            }
        };
        // Where the client was lost it may not have heard of the end.
        self.queue.give_up(self.message.take());
        log_line(format_args!("{}{}", self.prefix, self.machine.end_line()));
        if end != End::Gone {
            stdio::linger(&mut buf);
        }
        end
    }

    fn read(&mut self, buf: &mut [u8], actions: &mut Vec<Action>) {
        let input = match stdio::read(buf, self.machine.left()) {
            Read::Bytes(len) => Input::Bytes(buf.get(..len).unwrap_or_default()),
            Read::Nothing => return,
            Read::Late => Input::Deadline,
            Read::Closed => Input::Closed,
        };
        self.machine.step(input, actions);
    }

    /// What the directory says, if there is time to ask it: a client that has given up would send again what is taken in the end.
    fn check(&mut self, recipient: Address, size: u64) -> RecipientAnswer {
        let (left, boot) = (self.machine.left().min(ASKING_MAX), sys::clock::boottime());
        let (began, left) = *self.asking.get_or_insert((boot, left));
        if boot.saturating_sub(began) >= left {
            return RecipientAnswer::Temporary;
        }
        recipient_answer(&self.directory.check(recipient, size))
    }

    fn carry_out(&mut self, actions: &mut Vec<Action>) {
        for action in std::mem::take(actions) {
            // Nothing further is taken of a client that would not hear of it.
            if self.is_lost {
                return;
            }
            match action {
                Action::Begin => {
                    self.asking = None;
                    self.message = self.queue.begin();
                    self.message.iter_mut().for_each(|message| message.item(&begin()));
                }
                Action::Text(text) => self.message.iter_mut().for_each(|message| message.put(&text)),
                Action::CheckRecipient { question, recipient, size } => {
                    let answer = self.check(recipient, size);
                    self.machine.step(Input::Recipient { question, answer }, actions);
                }
                Action::Recipient(recipient) if self.queue.program().is_some() => self.recipients.push(recipient),
                Action::Recipient(recipient) => {
                    let item = ipc::queue::Item::Recipient(recipient);
                    self.message.iter_mut().for_each(|message| message.item(&item));
                }
                Action::Commit(commit) => {
                    self.message.iter_mut().for_each(|message| message.item(&from(&commit)));
                    let recipients = std::mem::take(&mut self.recipients);
                    let verdict = self.queue.finish(self.message.take(), &commit.sender, &recipients);
                    self.machine.step(Input::Queue(queue_answer(verdict)), actions);
                }
                Action::Abandon => {
                    self.recipients.clear();
                    self.queue.give_up(self.message.take());
                }
                // At once: whoever has no answer while his next message is looked at might send this one again.
                Action::Answer(bytes) => self.is_lost = stdio::send(&bytes, WRITE_DEADLINE).is_err(),
                Action::Log(line) => log_line(format_args!("{}{line}", self.prefix)),
                Action::Close => {}
            }
        }
    }
}
