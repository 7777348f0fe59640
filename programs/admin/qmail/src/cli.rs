//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Run and look after the qmail mail system.
#[derive(Debug, Parser)]
#[command(name = "qmail", version, disable_help_subcommand = false, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// The instance: all its files lie below this directory
    #[arg(long, global = true, value_name = "DIR", env = control::root::ROOT_VARIABLE, default_value = "/")]
    pub root: PathBuf,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a complete instance: directories, control files, ids. Never overwrites.
    Setup(Setup),
    /// Run the system in the foreground; prints `ready` when every listener accepts. SIGTERM stops, SIGHUP reloads.
    Start,
    /// Virtual domains
    #[command(subcommand)]
    Domain(Domain),
    /// Users of virtual domains
    #[command(subcommand)]
    User(User),
    /// Aliases of virtual domains
    #[command(subcommand)]
    Alias(Alias),
    /// Look at and act on the queue while it runs
    #[command(subcommand)]
    Queue(Queue),
    /// Certificates for TLS
    #[command(subcommand)]
    Cert(Cert),
    /// Look for mistakes in the configuration and say what to do about them. Exit code 1 if there are errors.
    Check,
}

#[derive(Debug, Args)]
pub struct Setup {
    /// The full name of this host
    #[arg(long, value_name = "HOST")]
    pub me: String,
    /// Listen on 127.0.0.1 at N plus the well-known port of each service
    #[arg(long, value_name = "N")]
    pub base_port: Option<u16>,
    /// Give numeric ids from FIRST on to roles that passwd does not know
    #[arg(long, value_name = "FIRST")]
    pub ids: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum Domain {
    /// Make a domain virtual: its users are those of `qmail user`, not the system's
    Add { domain: String },
    /// Forget a domain and its users. Their mail stays on the disk.
    Remove { domain: String },
    /// List the virtual domains
    List,
}

#[derive(Debug, Subcommand)]
pub enum User {
    /// Add a user
    Add {
        /// user@domain
        address: String,
        #[command(flatten)]
        password: Password,
        #[command(flatten)]
        clear: KeepClear,
    },
    /// Remove a user. The mail stays on the disk.
    Remove {
        /// user@domain
        address: String,
    },
    /// List the users of a domain, or all
    List { domain: Option<String> },
    /// Set a new password
    Passwd {
        /// user@domain
        address: String,
        #[command(flatten)]
        password: Password,
        #[command(flatten)]
        clear: KeepClear,
    },
    /// Passwords of single programs and devices, beside the user's own
    #[command(subcommand)]
    AppPassword(AppPassword),
    /// Limit the size of a mailbox
    Quota {
        /// user@domain
        address: String,
        /// Bytes, or with a K, M or G behind the number; `none` for no limit
        size: String,
    },
}

/// There is no password option: the arguments of a process are for all to see.
#[derive(Debug, Args)]
pub struct Password {
    /// Read the password from standard input, one line
    #[arg(long, required = true)]
    pub password_stdin: bool,
}

/// CRAM-MD5 and APOP need it; whoever reads the disk then knows the password.
#[derive(Debug, Args)]
pub struct KeepClear {
    /// Keep the password itself, too, for CRAM-MD5 and APOP
    #[arg(long)]
    pub keep_clear: bool,
}

#[derive(Debug, Subcommand)]
pub enum AppPassword {
    /// Make an app password. It is printed this once.
    Add {
        /// user@domain
        address: String,
        /// What it is for, as `phone`
        #[arg(long)]
        name: String,
        /// Where it may be used
        #[arg(long, default_value = "all", value_parser = ["all", "smtp", "pop3"])]
        service: String,
    },
    /// List a user's app passwords
    List {
        /// user@domain
        address: String,
    },
    /// Revoke an app password
    Remove {
        /// user@domain
        address: String,
        /// What it was made for
        #[arg(long)]
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Alias {
    /// Forward mail for an address to others; `@domain` stands for every address that nobody has
    Add {
        /// alias@domain
        address: String,
        /// Where the mail goes
        #[arg(required = true, value_name = "TARGET")]
        targets: Vec<String>,
    },
    /// Remove an alias
    Remove {
        /// alias@domain
        address: String,
    },
    /// List the aliases of a domain, or all
    List { domain: Option<String> },
}

#[derive(Debug, Subcommand)]
pub enum Queue {
    /// List the messages
    List,
    /// Show a message and what became of its recipients
    Show { id: u64 },
    /// Try a message, or with --all everything, now
    #[command(group = clap::ArgGroup::new("which").required(true).args(["id", "all"]))]
    Retry {
        id: Option<u64>,
        #[arg(long)]
        all: bool,
    },
    /// Throw a message away; nobody is told
    Remove { id: u64 },
    /// Keep a message from being tried
    Hold { id: u64 },
    /// Let a held message be tried again
    Release { id: u64 },
    /// Counters
    Stats,
}

#[derive(Debug, Subcommand)]
pub enum Cert {
    /// List the certificates, whom they are for and how long they last
    List,
    /// Make a certificate that only its own key vouches for, for a host that has none
    SelfSigned { host: String },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        for good in [
            "qmail setup --me a.b --base-port 1 --ids 5",
            "qmail --root /x queue stats --json",
            "qmail queue retry --all",
            "qmail queue retry 5",
            "qmail alias add a@b c@d e@f --json",
            "qmail user add a@b --password-stdin",
            "qmail user passwd a@b --password-stdin --keep-clear",
            "qmail user app-password add a@b --name phone --service pop3",
            "qmail user app-password list a@b --json",
            "qmail user app-password remove a@b --name phone",
        ] {
            assert!(Cli::try_parse_from(good.split(' ')).is_ok(), "{good}");
        }
        for bad in [
            "qmail",
            "qmail setup",
            "qmail queue retry",
            "qmail queue retry 5 --all",
            "qmail user add a@b",
            "qmail user app-password add a@b",
            "qmail user app-password add a@b --name x --service imap",
            "qmail alias add a@b",
        ] {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
