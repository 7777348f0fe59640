//! qmail-inject: a message as its author wrote it, completed and sent (qmail-inject(8)).
//!
//! The header is held and rewritten (crate `message`), the body streams. Text with CRLF lines is taken as well. Exit code 0, 100 or 111,
//! and a line on standard error that begins with `qmail-inject: fatal: `.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use control::{ControlError, Inject, Root};
use ipc::Refusal;
use message::crlf::DosToUnix;
use message::inject::{InjectError, Injection, Letters, Options, RecipientsFrom, Splitter, rewrite};
use sys::{errno, standard};
use tool::Name;
use wire::Address;

use crate::asked::Asked;
use crate::env::Env;
use crate::outgoing::{self, Exit, Nature, Outgoing};
use crate::program::QueueProgram;
use crate::{EXIT_PERMANENT, EXIT_TEMPORARY};
use tool::options::{self, Opt};

const CHUNK_LEN: usize = 32 * 1024;
/// So much of the body is looked at before the message is opened, to know whether it has bytes over 127.
const LOOK_AHEAD_LEN: usize = 64 * 1024;

/// Why nothing was sent.
#[derive(Debug)]
pub enum Fatal {
    /// The command line is wrong; a line on standard error has said where.
    Usage,
    /// A variable, or the option that stands for it, makes no sense; the text says which.
    Value(&'static str),
    Control(ControlError),
    Message(InjectError),
    Refused(Refusal),
    Read(io::Error),
    Write(io::Error),
    Sandbox(io::Error),
}

impl Fatal {
    /// Is it worth trying again?
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Usage | Self::Value(_) => false,
            Self::Control(error) => error.is_temporary(),
            Self::Message(error) => error.is_temporary(),
            Self::Refused(refusal) => refusal.is_temporary(),
            Self::Read(_) | Self::Write(_) | Self::Sandbox(_) => true,
        }
    }
}

impl std::fmt::Display for Fatal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usage => f.write_str("bad option"),
            Self::Value(text) => f.write_str(text),
            Self::Control(error) => write!(f, "{error}"),
            Self::Message(error) => write!(f, "{error}"),
            Self::Refused(refusal) => write!(f, "{refusal}"),
            // Callers know the two by these words alone.
            Self::Read(_) => f.write_str("read error"),
            Self::Write(_) => f.write_str("write error"),
            Self::Sandbox(error) => write!(f, "unable to confine itself: {}", errno::text(error)),
        }
    }
}

/// What the command line says.
#[derive(Debug, Default)]
pub struct Command {
    pub recipients_from: RecipientsFrom,
    pub sender: Option<Vec<u8>>,
    /// `-n`: print the message instead of sending it.
    pub print: bool,
    pub arguments: Vec<Vec<u8>>,
}

impl Command {
    fn parse(args: &[OsString]) -> Result<Self, Fatal> {
        let letters = options::Letters { flags: b"aAhHnN", with_value: b"f", with_glued_value: b"" };
        let (options, arguments) = options::known(Name("qmail-inject"), args, letters).ok_or(Fatal::Usage)?;
        let mut command = Self { arguments, ..Self::default() };
        for option in options {
            match option {
                Opt::Flag(b'a') => command.recipients_from = RecipientsFrom::Arguments,
                Opt::Flag(b'A') => command.recipients_from = RecipientsFrom::ArgumentsElseHeader,
                Opt::Flag(b'h') => command.recipients_from = RecipientsFrom::Header,
                Opt::Flag(b'H') => command.recipients_from = RecipientsFrom::Both,
                Opt::Flag(b'n') => command.print = true,
                Opt::Flag(b'N') => command.print = false,
                Opt::Value(b'f', sender) => command.sender = Some(sender),
                // There are no others.
                _ => {}
            }
        }
        Ok(command)
    }
}

/// Runs the program; gives its exit code.
pub fn run(args: &mut Vec<OsString>, env: &Env) -> u8 {
    let root = Root::from_args(args).map_err(Fatal::Control);
    let done = root.and_then(|root| inject(&root, Command::parse(args)?, env));
    report("qmail-inject", done, EXIT_TEMPORARY)
}

/// Says what went wrong, and gives the exit code.
pub(crate) fn report(name: &str, done: Result<(), Fatal>, exit_temporary: u8) -> u8 {
    let Err(fatal) = done else { return 0 };
    // The queue that takes nothing now is what callers wait for; what this program cannot read or write is their own affair.
    let exit_temporary = if matches!(fatal, Fatal::Refused(_)) { exit_temporary } else { EXIT_TEMPORARY };
    // A caller without standard error still gets the exit code.
    if !matches!(fatal, Fatal::Usage) {
        let _ = io::stderr().write_all(format!("{name}: fatal: {fatal}\n").as_bytes());
    }
    if fatal.is_temporary() { exit_temporary } else { EXIT_PERMANENT }
}

/// Does it all: configuration, sandbox, header, body, answer.
///
/// # Errors
/// [`Fatal`]
pub fn inject(root: &Root, command: Command, env: &Env) -> Result<(), Fatal> {
    let (stdin, print) = (standard::input().map_err(Fatal::Read)?, command.print);
    let asked = Asked::read(env).map_err(Fatal::Value)?;
    let options = options(root, command, env)?;
    let exit = if print { None } else { Some(exit(root, env)?) };
    sandbox::enter(&sandbox::table::TOOL, root.path(), &[]).map_err(Fatal::Sandbox)?;

    let mut input = Input::new(stdin);
    let (injection, between) = input.header(&options)?;
    match exit {
        None => {
            let mut out = standard::output().map(io::BufWriter::new).map_err(Fatal::Write)?;
            let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Fatal::Write);
            put(&injection.return_path_line())?;
            put(&injection.header)?;
            input.body(between, put)?;
            out.flush().map_err(Fatal::Write)
        }
        Some(exit) => send(exit, injection, between, &mut input, asked),
    }
}

/// Opens the way out: QMAILQUEUE, or qmail-send.
fn exit(root: &Root, env: &Env) -> Result<Exit, Fatal> {
    match env.get("QMAILQUEUE") {
        Some(program) => QueueProgram::start(&program, root, env).map(Exit::Program).map_err(|error| {
            Fatal::Refused(Refusal::temporary(&format!("unable to run qmail-queue: {} (#4.3.0)", errno::text(&error))))
        }),
        None => Exit::to_send(&root.run(), outgoing::CONNECT_DEADLINE).map_err(Fatal::Refused),
    }
}

fn send(exit: Exit, injection: Injection, between: Vec<u8>, input: &mut Input, asked: Asked) -> Result<(), Fatal> {
    input.look_ahead()?;
    let Injection { header, sender, recipients } = injection;
    let nature = Nature {
        is_eight_bit: !header.is_ascii() || !between.is_ascii() || !input.held().is_ascii(),
        is_utf8_envelope: sender.is_utf8_only() || recipients.iter().any(Address::is_utf8_only),
    };
    let mut outgoing: Outgoing = exit.open(sender, recipients, nature, asked).map_err(Fatal::Refused)?;
    outgoing.put(&header).map_err(Fatal::Refused)?;
    input.body(between, |bytes| outgoing.put(bytes).map_err(Fatal::Refused))?;
    outgoing.finish().map_err(Fatal::Refused)
}

/// Command line, environment and control files as the rewriting wants them.
fn options(root: &Root, command: Command, env: &Env) -> Result<Options, Fatal> {
    let defaults = Inject::read(root).map_err(Fatal::Control)?;
    let Command { recipients_from, sender, arguments, .. } = command;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Ok(Options {
        recipients_from,
        arguments,
        sender,
        letters: Letters::parse(&env.get("QMAILINJECT").unwrap_or_default()),
        user: env.first(&["QMAILUSER", "MAILUSER", "USER", "LOGNAME"]).unwrap_or_else(|| b"anonymous".to_vec()),
        host: env.first(&["QMAILHOST", "MAILHOST"]),
        sender_user: env.get("QMAILSUSER"),
        sender_host: env.get("QMAILSHOST"),
        full_name: env.first(&["QMAILNAME", "MAILNAME", "NAME"]),
        default_domain: env.get("QMAILDEFAULTDOMAIN").unwrap_or(defaults.default_domain),
        default_host: env.get("QMAILDEFAULTHOST").unwrap_or(defaults.default_host),
        plus_domain: env.get("QMAILPLUSDOMAIN").unwrap_or(defaults.plus_domain),
        id_host: env.get("QMAILIDHOST").unwrap_or(defaults.id_host),
        list_addresses: env.get("QMAILMFTFILE").map_or(Ok(None), list_addresses)?,
        now_s: now.map_or(0, |since| since.as_secs()),
        pid: std::process::id(),
    })
}

/// The user's mailing lists, a line each; a missing file means none.
fn list_addresses(file: Vec<u8>) -> Result<Option<Vec<Vec<u8>>>, Fatal> {
    let text = control::read::file(Path::new(&PathBuf::from(OsString::from_vec(file)))).map_err(Fatal::Control)?;
    Ok(text.map(|text| control::read::lines_of(&text)))
}

/// Standard input: bytes that were read and not yet used, line ends converted.
struct Input {
    from: File,
    filter: DosToUnix,
    held: Vec<u8>,
    ended: bool,
}

impl Input {
    fn new(from: File) -> Self {
        Self { from, filter: DosToUnix::default(), held: Vec::new(), ended: false }
    }

    fn held(&self) -> &[u8] {
        &self.held
    }

    /// Appends the next chunk to `held`.
    fn fill(&mut self) -> Result<(), Fatal> {
        let mut chunk = vec![0; CHUNK_LEN];
        let len = loop {
            match self.from.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(Fatal::Read)?,
            }
        };
        if len == 0 {
            self.ended = true;
            self.filter.finish(&mut self.held);
        } else {
            self.filter.convert(chunk.get(..len).unwrap_or_default(), &mut self.held);
        }
        Ok(())
    }

    /// The header, rewritten, and what stands between it and the rest of the body.
    fn header(&mut self, options: &Options) -> Result<(Injection, Vec<u8>), Fatal> {
        let mut splitter = Splitter::default();
        loop {
            let mut unused = self.held.as_slice();
            let done = splitter.feed(&mut unused).map_err(Fatal::Message)?;
            self.held = unused.to_vec();
            if done || self.ended {
                break;
            }
            self.fill()?;
        }
        let (fields, between) = splitter.finish();
        Ok((rewrite(options, &fields).map_err(Fatal::Message)?, between))
    }

    /// Reads until [`LOOK_AHEAD_LEN`] bytes of the body are held or it has ended.
    fn look_ahead(&mut self) -> Result<(), Fatal> {
        while !self.ended && self.held.len() < LOOK_AHEAD_LEN {
            self.fill()?;
        }
        Ok(())
    }

    /// The rest of the message; a last line without LF gets one.
    fn body(&mut self, between: Vec<u8>, mut put: impl FnMut(&[u8]) -> Result<(), Fatal>) -> Result<(), Fatal> {
        let mut last = between.last().copied();
        if !between.is_empty() {
            put(&between)?;
        }
        loop {
            if !self.held.is_empty() {
                last = self.held.last().copied();
                put(&self.held)?;
                self.held.clear();
            }
            if self.ended {
                break;
            }
            self.fill()?;
        }
        if last.is_some_and(|byte| byte != b'\n') { put(b"\n") } else { Ok(()) }
    }
}
