//! The classic face: one session on standard input and output, for tcpserver, inetd and systemd's `Accept=yes`.
//!
//! tcp-environ(5) says who the client is, else the socket on standard input; QMAILQUEUE is obeyed, and by qmail-qmtpd RELAYCLIENT and
//! DATABYTES. Exit code 0 at the end of the connection or behind QMQP's answer, 100 when the client spoke something else, 111 when it took
//! too long or something is missing here. qmail-qmqpd serves whoever is connected to it: who that may be is for the caller to say.
//! Whether a recipient exists is asked of qmail-auth, as by qmail-smtpd.

use crate::config::config;
use crate::conversation::{Machine, Protocol, begin, from, queue_answer, recipient_answer};
use control::{ControlError, Networks, Root};
use qmtp::exchange::{Action, Config, End, Input, Peer, WRITE_DEADLINE};
use reception::directory::{Directory, virtual_domains};
use reception::log_line;
use reception::outgoing::{Outgoing, Queue, run_directory};
use reception::stdio::{self, Client, READ_LEN, Read};
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
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
    Ok(Talk { machine, queue, directory, message: None, recipients: Vec::new(), output: Vec::new(), prefix })
}

fn peer(client: Client) -> Peer {
    Peer {
        remote_ip: client.remote_ip,
        remote_host: client.remote_host,
        remote_info: client.remote_info,
        local_host: Some(client.local_host),
        relay_client: None,
        databytes: None,
    }
}

fn qmtp_peer(client: Client) -> Peer {
    let (relay_client, databytes) = (client.relay_client.clone(), client.databytes);
    Peer { relay_client, databytes, ..peer(client) }
}

struct Talk {
    machine: Machine,
    queue: Queue,
    directory: Directory,
    message: Option<Outgoing>,
    /// For a program, which gets them at the end.
    recipients: Vec<Address>,
    output: Vec<u8>,
    prefix: String,
}

impl Talk {
    fn converse(&mut self) -> End {
        let (mut buf, mut actions) = (vec![0; READ_LEN], Vec::new());
        let end = loop {
            let is_sent = stdio::send(&std::mem::take(&mut self.output), WRITE_DEADLINE).is_ok();
            match self.machine.end() {
                Some(end) => break end,
                None if !is_sent => self.machine.step(Input::Closed, &mut actions),
                None => self.read(&mut buf, &mut actions),
            }
            while !actions.is_empty() {
                self.carry_out(&mut actions);
            }
        };
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

    fn carry_out(&mut self, actions: &mut Vec<Action>) {
        for action in std::mem::take(actions) {
            match action {
                Action::Begin => {
                    self.message = self.queue.begin();
                    self.message.iter_mut().for_each(|message| message.item(&begin()));
                }
                Action::Text(text) => self.message.iter_mut().for_each(|message| message.put(&text)),
                Action::CheckRecipient { question, recipient, size } => {
                    let answer = recipient_answer(&self.directory.check(recipient, size));
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
                Action::Answer(bytes) => self.output.extend_from_slice(&bytes),
                Action::Log(line) => log_line(format_args!("{}{line}", self.prefix)),
                Action::Close => {}
            }
        }
    }
}
