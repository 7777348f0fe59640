//! The classic face: one session on standard input and output, for tcpserver, inetd and systemd's `Accept=yes`.
//!
//! tcp-environ(5) says who the client is, else the socket on standard input (systemd, inetd); RELAYCLIENT, DATABYTES and QMAILQUEUE are
//! obeyed. Exit code 0 after QUIT, 1 otherwise. Under inetd standard error is the client: then there is no log.
//! Messages go to the program that QMAILQUEUE names, or a plugin in its place, else to qmail-send. Whether a recipient exists is asked of qmail-auth; a caller
//! who may not ask it (its socket is for root and the service roles), or who replaces the queue and has no running system, has rcpthosts and the
//! virtual domains alone, as with the classic program.

use crate::config::config;
use crate::helper::Helper;
use crate::hooks::{self, Hooks};
use crate::session::{queue_answer, recipient_answer};
use crate::terms::{Programs, listed, stages, terms};
use crate::{Traffic, end_line, now};
use control::{ControlError, Networks, Plugins, Root};
use reception::directory::{Directory, virtual_domains};
use reception::log_line;
use reception::outgoing::{Outgoing, Queue, run_directory};
use reception::stdio::{self, Client, READ_LEN, Read, linger, send};
use smtp::server::{
    Action, Actions, Config, Connection, DsnOffer, End, Envelope, HeaderAnswer, HookAnswer, HookQuestion, Input, LoginAnswer,
    Logins, NO_CONTROLS, RecipientAnswer, SenderAnswer, Session, Stages, StartTls, TlsAnswer,
};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use wire::Address;

/// For the one line of a session that cannot begin.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(60);

/// The whole program.
pub(crate) fn run(root: Result<Root, ControlError>) -> ExitCode {
    reception::look_at_the_log();
    let mut talk = match start(root) {
        Ok(talk) => talk,
        Err(error) => {
            log_line(format_args!("qmail-smtpd: {error}"));
            let _ = send(format!("{NO_CONTROLS}\r\n").as_bytes(), REFUSAL_DEADLINE);
            return ExitCode::FAILURE;
        }
    };
    match talk.converse() {
        End::Quit => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Control files, then what must be open, then the sandbox.
fn start(root: Result<Root, ControlError>) -> io::Result<Talk> {
    let root = root.map_err(io::Error::other)?;
    let control = control::Smtpd::read(&root).map_err(io::Error::other)?;
    let plugins = plugins(&root)?;
    let queue = Queue::open(&root, run_directory(&root), plugins.is_some())?;
    let run = run_directory(&root);
    let directory = Directory::open(run.as_ref(), &root, queue.program().is_some());
    let alone = matches!(directory, Directory::RcptHosts);
    let virtual_domains = if alone { virtual_domains(&root) } else { Vec::new() };
    let mut peer = connection(&control.relayclients);
    let variable = |name: &str| std::env::var_os(name).map(OsString::into_vec);
    peer.terms = terms(variable, control.greet_delay_s);
    peer.listed = listed(variable("RBLSMTPD").as_deref());
    peer.hooks = plugins.as_ref().map_or_else(Stages::default, stages);
    let programs = Programs {
        queue: queue.program().map(|program| program.as_encoded_bytes().to_vec()),
        check: variable("RCPTCHECK").filter(|program| !program.is_empty()),
        checks_relay_clients: variable("RCPTCHECKRELAYCLIENT").and_then(|value| control::read::int_of(&value)).unwrap_or(0) > 0,
        ..Programs::default()
    };
    let helper = (plugins.is_some() || programs.check.is_some()).then(|| Helper::start(root.path())).transpose()?;
    sandbox::enter(&sandbox::table::TOOL, root.path(), &[])?;
    let mut actions = Actions::default();
    let mut config = config(control, virtual_domains)?;
    if queue.program().is_some() || plugins.is_some() {
        // The interface of qmail-queue has no place for what is asked for, and a plugin may name such a program any time.
        config.dsn = DsnOffer::Nobody;
    }
    let config = Arc::new(config);
    let session = Session::new(Arc::clone(&config), peer, now(), &mut actions);
    let (hooks, plugins) = (Hooks::new(programs), plugins.unwrap_or_default());
    let (message, envelope, output, traffic) = (None, Default::default(), Vec::new(), Traffic::default());
    Ok(Talk { session, actions, config, helper, hooks, plugins, queue, directory, message, envelope, output, traffic })
}

/// The plugins, where ENABLE_SPP wants them; SPPCONFFILE names another file, below var/qmail unless it begins with `/`.
pub(crate) fn plugins(root: &Root) -> io::Result<Option<Plugins>> {
    if std::env::var_os("ENABLE_SPP").is_none() {
        return Ok(None);
    }
    let plugins = match std::env::var_os("SPPCONFFILE").filter(|path| !path.is_empty()) {
        Some(path) => Plugins::of(&ipc::queue_program::place(&path, root.path()).0),
        None => Plugins::read(root),
    };
    plugins.map(|plugins| Some(plugins).filter(|plugins| !plugins.is_empty())).map_err(io::Error::other)
}

fn connection(relayclients: &Networks) -> Connection {
    let client = Client::of_environment(relayclients);
    Connection {
        is_lmtp: false,
        remote_ip: client.remote_ip,
        remote_host: client.remote_host,
        remote_info: client.remote_info,
        local_ip: client.local_ip,
        local_host: Some(client.local_host),
        relay_client: client.relay_client,
        // qmail-auth may not answer the caller, and what kind of connection it is only the caller knows.
        logins: Logins::NotHere,
        starttls: StartTls::NotHere,
        tls: None,
        is_submission: false,
        xclient: false,
        databytes: client.databytes,
        ..Connection::default()
    }
}

struct Talk {
    session: Session,
    actions: Actions,
    config: Arc<Config>,
    /// Runs the programs of others.
    helper: Option<Helper>,
    hooks: Hooks,
    plugins: Plugins,
    queue: Queue,
    directory: Directory,
    message: Option<Outgoing>,
    /// For a program, which gets it at the end.
    envelope: (Address, Vec<Address>),
    output: Vec<u8>,
    traffic: Traffic,
}

impl Talk {
    fn converse(&mut self) -> End {
        let mut buf = vec![0; READ_LEN];
        let end = loop {
            while !self.actions.0.is_empty() {
                self.carry_out();
            }
            let output = std::mem::take(&mut self.output);
            let is_sent = send(&output, self.session.write_deadline()).is_ok();
            self.traffic.sent = self.traffic.sent.saturating_add(if is_sent { output.len() as u64 } else { 0 });
            match self.session.end() {
                Some(end) => break end,
                None if !is_sent => self.session.step(now(), Input::Closed, &mut self.actions),
                None => self.read(&mut buf),
            }
        };
        log_line(format_args!("qmail-smtpd[{}]: {}", std::process::id(), end_line(&self.session, now().boot, self.traffic)));
        if end != End::Gone {
            linger(&mut buf);
        }
        end
    }

    fn read(&mut self, buf: &mut [u8]) {
        let left = self.session.deadline().saturating_sub(now().boot);
        let input = match stdio::read(buf, left) {
            Read::Bytes(len) => {
                self.traffic.taken = self.traffic.taken.saturating_add(len as u64);
                Input::Bytes(buf.get(..len).unwrap_or_default())
            }
            Read::Nothing => return,
            Read::Late => Input::Deadline,
            Read::Closed => Input::Closed,
        };
        self.session.step(now(), input, &mut self.actions);
    }

    fn begin(&mut self, envelope: Envelope) {
        self.message = self.queue_message();
        match &mut self.message {
            Some(message) if message.is_program() => self.envelope = (envelope.sender, envelope.recipients),
            Some(message) => crate::envelope::items(envelope).for_each(|item| message.item(&item)),
            None => {}
        }
        let header = self.hooks.said.take_header();
        self.message.iter_mut().for_each(|message| message.put(&header));
    }

    /// What plugins have said counts for who takes the message, and for the environment of a program.
    fn queue_message(&mut self) -> Option<Outgoing> {
        if self.plugins.is_empty() {
            return self.queue.begin();
        }
        self.hooks.note(&self.session);
        let program = self.hooks.queue().map(OsString::from_vec);
        self.queue.begin_by(program.as_deref(), &self.hooks.said.environment()?)
    }

    fn carry_out(&mut self) {
        for action in std::mem::take(&mut self.actions.0) {
            match action {
                Action::Reply(bytes) => self.output.extend_from_slice(&bytes),
                Action::CheckRecipient { question, recipient, size } => {
                    let answer = recipient_answer(&self.directory.check(recipient.clone(), size));
                    let answer = self.check_further(&recipient, answer);
                    self.session.step(now(), Input::Recipient { question, answer }, &mut self.actions);
                }
                // Not offered, so it does not come.
                Action::LogIn { .. } | Action::SaslStart { .. } | Action::SaslStep { .. } => {
                    self.session.step(now(), Input::Login(LoginAnswer::Temporary), &mut self.actions);
                }
                // Not offered: descriptors 0 and 1 belong to whoever started this program.
                Action::StartTls { .. } => self.session.step(now(), Input::Tls(TlsAnswer::Unavailable), &mut self.actions),
                // There is no login, so these do not come either.
                Action::CheckSender { .. } => {
                    self.session.step(now(), Input::Sender(SenderAnswer::Temporary), &mut self.actions);
                }
                Action::JudgeHeader { .. } => {
                    self.session.step(now(), Input::Header(HeaderAnswer::Temporary), &mut self.actions);
                }
                // XCLIENT is not offered here, and no header is judged.
                Action::Admit { .. } | Action::Priority(_) => {}
                Action::Hook(question) => {
                    let answer = self.ask_plugins(&question);
                    self.session.step(now(), Input::Hook(answer), &mut self.actions);
                }
                Action::Begin(envelope) => self.begin(*envelope),
                Action::Body(text) => self.message.iter_mut().for_each(|message| message.put(&text)),
                Action::Commit => {
                    let (sender, recipients) = std::mem::take(&mut self.envelope);
                    let answer = queue_answer(self.queue.finish(self.message.take(), &sender, &recipients));
                    self.session.step(now(), Input::Queue(answer), &mut self.actions);
                }
                Action::Abandon => self.queue.give_up(self.message.take()),
                Action::Log(line) => log_line(format_args!("qmail-smtpd[{}]: {line}", std::process::id())),
                Action::Close => {}
            }
        }
    }
}

impl Talk {
    /// Asks the plugins of a stage, one after the other.
    fn ask_plugins(&mut self, question: &HookQuestion) -> HookAnswer {
        self.hooks.note(&self.session);
        let mut asking = match self.hooks.said.begin(question) {
            Ok(asking) => asking,
            Err(answer) => return answer,
        };
        for line in self.plugins.0.get(hooks::section(question)).into_iter().flatten() {
            let request = self.hooks.plugin(line);
            match self.helper.as_ref().and_then(|helper| helper.ask(&request?)) {
                Some(ipc::hook::Answer::Ended { output, .. }) => {
                    if self.hooks.said.hear(&mut asking, &output) {
                        break;
                    }
                }
                _ => return self.hooks.said.failed(asking),
            }
        }
        self.hooks.said.answer(asking)
    }

    /// The program that judges recipients, behind the directory.
    fn check_further(&mut self, recipient: &Address, answer: RecipientAnswer) -> RecipientAnswer {
        if !self.hooks.may_be_checked(&answer) {
            return answer;
        }
        self.hooks.note(&self.session);
        let is_listed = recipient.domain().is_none_or(|domain| self.config.rcpthosts.contains(domain).unwrap_or(false));
        let known = answer == RecipientAnswer::Exists;
        match self.hooks.check(&self.session, recipient, known, is_listed) {
            Ok(Some(request)) => hooks::judged(answer, self.helper.as_ref().and_then(|helper| helper.ask(&request))),
            Ok(None) => answer,
            Err(cannot_tell) => cannot_tell,
        }
    }
}
