//! qmail: the admin command. Sets an instance up, starts it, manages its domains, users, aliases and queue, and checks it.
//!
//! It writes configuration only; accounts and the spool are their daemons', which it asks on their admin sockets. With the system
//! down `qmail user` and `qmail alias` start one qmail-auth under its own role (unless the accounts are in PostgreSQL: then they say that the
//! system must run), and `qmail queue` says "not running". Nothing is
//! ever overwritten by `setup`; every change of a file is durable and in one step. Exit codes: 0 done, 1 `check` found errors,
//! 100 the caller's mistake, 111 try again later.
#![forbid(unsafe_code)]

pub mod account;
pub mod admin;
pub mod app_password;
pub mod certificate;
pub mod check;
pub mod classic;
pub mod cli;
pub mod domain;
pub mod domain_settings;
pub mod export;
pub mod files;
pub mod import;
pub mod log;
pub mod obtain;
pub mod print;
pub mod queue;
pub mod roles;
pub mod setup;
pub mod value;

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use control::Root;

use crate::cli::{Cli, Command};
use crate::print::Printer;

/// Why a command did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub text: String,
    /// Worth trying again?
    temporary: bool,
}

impl Failure {
    /// The command line makes no sense.
    #[must_use]
    pub fn usage(text: String) -> Self {
        Self { text, temporary: false }
    }

    /// It cannot be, however often one asks.
    #[must_use]
    pub fn permanent(text: String) -> Self {
        Self { text, temporary: false }
    }

    /// It may be later, or when something is repaired.
    #[must_use]
    pub fn temporary(text: String) -> Self {
        Self { text, temporary: true }
    }

    #[must_use]
    pub fn is_temporary(&self) -> bool {
        self.temporary
    }

    fn code(&self) -> u8 {
        if self.temporary { 111 } else { 100 }
    }
}

pub(crate) fn io_failure(path: &Path, error: &std::io::Error) -> Failure {
    Failure::temporary(format!("{}: {}", path.display(), sys::errno::text(error)))
}

/// The program.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 100 } else { 0 });
        }
    };
    match command(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "qmail: {}", failure.text);
            ExitCode::from(failure.code())
        }
    }
}

/// False: done, and what it found is bad.
fn command(cli: &Cli) -> Result<bool, Failure> {
    let root = Root::new(&cli.root).map_err(|error| Failure::temporary(error.to_string()))?;
    let printer = Printer { json: cli.json };
    if let Some(address) = &cli.administrator {
        act_as(address, &cli.command)?;
    }
    match &cli.command {
        Command::Setup(options) => setup::run(&root, options, printer)?,
        Command::Start => return Err(start(&root)),
        Command::Domain(command) => domain::run(&root, command, printer)?,
        Command::User(command) => account::user(&root, command, printer)?,
        Command::Alias(command) => account::alias(&root, command, printer)?,
        Command::Import(command) => return import::run(&root, command, printer),
        Command::Export(cli::Export { what: Some(cli::ExportWhat::Queue(options)), .. }) => {
            return export::queue::run(&root, options, printer);
        }
        Command::Export(options) => export::run(&root, options, printer)?,
        Command::Accounts(cli::Accounts::Schema) => print::line(&accounts_sql::schema::postgres_script())?,
        Command::Queue(command) => queue::run(&root, command, printer)?,
        Command::Cert(command) => certificate::run(&root, command, printer)?,
        Command::Log(options) => return log::run(&root, options, printer),
        Command::Check => return check::run(&root, printer),
        Command::Completions { shell } => print::line(&completions(*shell))?,
    }
    Ok(true)
}

/// A script for `shell`.
fn completions(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "qmail", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// What an administrator of a domain may ask for is said to qmail-auth as him; all else is root's.
fn act_as(address: &str, command: &Command) -> Result<(), Failure> {
    let is_managing = match command {
        Command::User(_) | Command::Alias(_) => true,
        Command::Domain(command) => matches!(command, cli::Domain::Show { .. } | cli::Domain::Set(_)),
        _ => false,
    };
    if !is_managing {
        return Err(Failure::usage("--as is for user, alias, domain show and domain set".to_owned()));
    }
    admin::act_as(&account::parse(address)?)
}

/// Becomes qmail-start, which keeps standard output for the line `ready`; comes back only when that cannot be.
fn start(root: &Root) -> Failure {
    let program = control::program::sibling("qmail-start");
    let error = std::process::Command::new(&program).arg("--root").arg(root.path()).exec();
    io_failure(&program, &error)
}
