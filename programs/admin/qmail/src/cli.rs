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
    /// Act as an account that administers a domain; for users who are not root. Its password is the first line of standard input.
    #[arg(long = "as", global = true, value_name = "USER@DOMAIN")]
    pub administrator: Option<String>,
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
    /// Take over domains, users and aliases from elsewhere. What is there already stays as it is. Exit code 1 if something was left out.
    #[command(subcommand)]
    Import(Import),
    /// Write domains, users and aliases as a table, or with --json as an object a line
    Export(Export),
    /// The accounts' own database
    #[command(subcommand)]
    Accounts(Accounts),
    /// Look at and act on the queue while it runs
    #[command(subcommand)]
    Queue(Queue),
    /// Tell from the log what became of a message, or of all messages of an address. Exit code 1 if there is nothing about it.
    Log(Log),
    /// Certificates for TLS
    #[command(subcommand)]
    Cert(Cert),
    /// Look for mistakes in the configuration and say what to do about them. Exit code 1 if there are errors.
    Check,
    /// Print what completes this command in a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub struct Setup {
    /// The full name of this host; can be left out where control/me has it
    #[arg(long, value_name = "HOST")]
    pub me: Option<String>,
    /// Listen on 127.0.0.1 at N plus the well-known port of each service
    #[arg(long, value_name = "N")]
    pub base_port: Option<u16>,
    /// Listen on the loopback addresses only, for mail of this host's own programs
    #[arg(long, conflicts_with = "base_port")]
    pub local: bool,
    /// Give numeric ids from FIRST on to roles that passwd does not know
    #[arg(long, value_name = "FIRST")]
    pub ids: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum Domain {
    /// Make a domain virtual: its users are those of `qmail user`, not the system's
    Add {
        domain: String,
        /// Everybody in it is who has the same name in OTHER
        #[arg(long, value_name = "OTHER")]
        alias_of: Option<String>,
    },
    /// Forget a domain and its users. Their mail stays on the disk.
    Remove { domain: String },
    /// List the virtual domains
    List,
    /// Show all that is set of a domain
    Show { domain: String },
    /// Set defaults and bounds of a domain
    Set(DomainSet),
    /// Accounts that administer a domain
    #[command(subcommand)]
    Admin(DomainAdmin),
}

/// What is not named stays as it is.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub struct DomainSet {
    pub domain: String,
    /// Quota of new users: bytes, or with a K, M or G behind the number; `none` for no limit
    #[arg(long, value_name = "SIZE", group = "what")]
    pub default_quota: Option<String>,
    /// What the quotas of all users may come to; `none` for no limit
    #[arg(long, value_name = "SIZE", group = "what")]
    pub quota: Option<String>,
    /// Most users; `none` for no limit
    #[arg(long, value_name = "N", group = "what")]
    pub users_max: Option<String>,
    /// Who gets mail for addresses that nobody has; `none`: it is refused
    #[arg(long, value_name = "ADDRESS", group = "what")]
    pub catch_all: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum DomainAdmin {
    /// Let an account administer a domain
    Add {
        domain: String,
        /// user@domain
        address: String,
    },
    /// Do not let it any more
    Remove {
        domain: String,
        /// user@domain
        address: String,
    },
    /// List the administrators of a domain
    List { domain: String },
}

#[derive(Debug, Subcommand)]
pub enum User {
    /// Add a user
    Add {
        /// user@domain
        address: String,
        #[command(flatten)]
        password: NewPassword,
        #[command(flatten)]
        clear: KeepClear,
    },
    /// Show all that is set of a user
    Show {
        /// user@domain
        address: String,
    },
    /// Remove a user. The mail stays on the disk.
    Remove {
        /// user@domain
        address: String,
    },
    /// Give a user another name in the same domain. The mail stays in the mailbox.
    Rename {
        /// user@domain
        address: String,
        /// newname@domain
        to: String,
        /// The old name becomes an alias of the new one
        #[arg(long)]
        keep_alias: bool,
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
        /// Most messages
        #[arg(long, value_name = "N", default_value = "none")]
        messages: String,
    },
    /// Allow no more logins. Mail goes on arriving, but is neither forwarded nor replied to.
    Suspend {
        /// user@domain
        address: String,
        /// Refuse the mail, too
        #[arg(long)]
        refuse_mail: bool,
    },
    /// Undo a suspension
    Resume {
        /// user@domain
        address: String,
    },
    /// Forward a user's mail
    #[command(group = clap::ArgGroup::new("where").required(true).multiple(true))]
    Forward {
        /// user@domain
        address: String,
        /// Where the mail goes
        #[arg(value_name = "TARGET", group = "where")]
        targets: Vec<String>,
        /// The mailbox gets it, too
        #[arg(long, requires = "targets")]
        keep_copy: bool,
        /// To the mailbox alone
        #[arg(long, group = "where", conflicts_with = "targets")]
        off: bool,
    },
    /// Reply to those who write while a user is away
    #[command(group = clap::ArgGroup::new("which").required(true).args(["text_stdin", "off"]))]
    Vacation {
        /// user@domain
        address: String,
        /// Read the text of the reply from standard input
        #[arg(long)]
        text_stdin: bool,
        /// No replies
        #[arg(long)]
        off: bool,
        /// Subject of the reply; made from the message's if left out
        #[arg(long, default_value = "")]
        subject: String,
        /// The first day, YYYY-MM-DD
        #[arg(long, value_name = "DAY")]
        from: Option<String>,
        /// The day of return, YYYY-MM-DD
        #[arg(long, value_name = "DAY")]
        until: Option<String>,
        /// Days between two replies to the same sender
        #[arg(long, value_name = "N", default_value_t = 7)]
        days: u32,
    },
    /// Limit what a user may send
    #[command(group = clap::ArgGroup::new("limit").required(true).multiple(true))]
    Limits {
        /// user@domain
        address: String,
        /// Messages in an hour; `none`: as everybody
        #[arg(long, value_name = "N", group = "limit")]
        per_hour: Option<String>,
        /// Messages in a day; `none`: as everybody
        #[arg(long, value_name = "N", group = "limit")]
        per_day: Option<String>,
    },
}

/// As [`Password`], or its hash.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct NewPassword {
    /// Read the password from standard input, one line
    #[arg(long)]
    pub password_stdin: bool,
    /// Read the hash of the password from standard input, one line
    #[arg(long)]
    pub password_hash_stdin: bool,
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
pub enum Import {
    /// A table as `qmail export` writes it; the first line names the columns
    Csv {
        /// `-` for standard input
        file: PathBuf,
        /// Make domains virtual that are not
        #[arg(long)]
        create_domains: bool,
        #[command(flatten)]
        options: ImportOptions,
    },
    /// Lines of name:hash:…, as in passwd(5), shadow(5) or Dovecot's passwd-file
    Passwd {
        file: PathBuf,
        /// The domain of names that are no whole addresses
        #[arg(long)]
        domain: Option<String>,
        /// Where the hashes are, if the file says `x`
        #[arg(long, value_name = "FILE")]
        shadow: Option<PathBuf>,
        #[command(flatten)]
        options: ImportOptions,
    },
    /// A vpopmail tree, with its Maildirs where they lie
    Vpopmail {
        /// The directory that holds `domains`
        dir: PathBuf,
        /// A users/assign that names alias domains
        #[arg(long, value_name = "FILE")]
        assign: Option<PathBuf>,
        /// Rename homes that lie deeper than DOMAIN/USER
        #[arg(long)]
        move_homes: bool,
        #[command(flatten)]
        options: ImportOptions,
    },
    /// Messages from the queue of a classic qmail that does not run, into the queue of this system, which does
    Queue(ImportQueue),
    /// Control files, users/assign and aliases of a classic qmail. Says what each will mean here.
    Control(ImportControl),
}

#[derive(Debug, Args)]
pub struct ImportQueue {
    /// The queue's directory, as /var/qmail/queue
    pub dir: PathBuf,
    /// The control directory of the classic qmail; otherwise the one beside the queue, if it is there
    #[arg(long, value_name = "DIR")]
    pub control: Option<PathBuf>,
    /// Where to note what was taken over; otherwise `imported` in the queue's directory
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// Take messages, too, whose local recipients are not local here
    #[arg(long)]
    pub reroute: bool,
    #[command(flatten)]
    pub options: ImportOptions,
}

#[derive(Debug, Args)]
pub struct ImportControl {
    /// The directory of the classic qmail, as /var/qmail, or its control directory
    pub dir: PathBuf,
    /// Rules of tcprules for the SMTP service, as text
    #[arg(long, value_name = "FILE")]
    pub tcp_smtp: Option<PathBuf>,
    /// Replace files that are there already and differ
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub options: ImportOptions,
}

#[derive(Debug, Args)]
pub struct ImportOptions {
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Export {
    #[command(subcommand)]
    pub what: Option<ExportWhat>,
    pub domain: Option<String>,
    /// With the hashes of the passwords
    #[arg(long)]
    pub with_secrets: bool,
    /// As SQL tables for the lookups of other programs, such as Dovecot's
    #[arg(long, requires = "with_secrets")]
    pub sql: bool,
}

#[derive(Debug, Subcommand)]
pub enum ExportWhat {
    /// Move the messages into the queue of a classic qmail that does not run
    Queue(ExportQueue),
}

#[derive(Debug, Args)]
pub struct ExportQueue {
    /// The queue's directory; made if it is not there
    pub dir: PathBuf,
    /// Number of directories that messages are spread over: conf-split of the classic qmail
    #[arg(long, value_name = "N", default_value_t = 23, value_parser = clap::value_parser!(u64).range(1..=9973))]
    pub split: u64,
    /// Move messages, too, that ask for what a classic queue cannot keep: TLS alone, or a time before or by which to be delivered
    #[arg(long)]
    pub lossy: bool,
    #[command(flatten)]
    pub options: ImportOptions,
}

#[derive(Debug, Subcommand)]
pub enum Accounts {
    /// Print the SQL that makes the tables in PostgreSQL, for an owner who does not let qmail-authnet make them
    Schema,
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

#[derive(Debug, Args)]
pub struct Log {
    /// Number of a message, an address that sent or got it, or its Message-ID (`<id@host>`)
    #[arg(value_name = "MESSAGE|ADDRESS", required_unless_present = "stats", conflicts_with = "stats")]
    pub wanted: Option<String>,
    /// From this time on: YYYY-MM-DD, YYYY-MM-DDTHH:MM:SS (UTC), or so long ago: 30m, 12h, 7d
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Read these files, oldest first, instead of the journal; `-` is standard input
    #[arg(long, value_name = "FILE", num_args = 1)]
    pub file: Vec<PathBuf>,
    /// Print the lines about it one by one, and go on with what is logged from now on
    #[arg(long, conflicts_with = "stats")]
    pub follow: bool,
    /// Count messages, deliveries, sessions and refusals instead
    #[arg(long)]
    pub stats: bool,
}

#[derive(Debug, Subcommand)]
pub enum Cert {
    /// List the certificates, whom they are for and how long they last
    List,
    /// Make a certificate that only its own key vouches for, for a host that has none
    SelfSigned { host: String },
    /// Get one certificate for these hosts from the authority of control/acme, and have it renewed from then on
    Obtain {
        /// The first is the certificate's name
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
        /// Agree to the authority's terms of service
        #[arg(long)]
        agree_tos: bool,
        /// Also if the present one is good for long
        #[arg(long)]
        force: bool,
    },
    /// Renew the certificates of control/acme that are due, or one
    Renew {
        /// The certificate's name
        name: Option<String>,
        /// Also what is not due
        #[arg(long)]
        force: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    /// All commands below `command` with their arguments, as `user add`.
    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        for below in command.get_subcommands() {
            let path = format!("{path} {}", below.get_name()).trim_start().to_owned();
            if below.has_subcommands() {
                leaves(below, &path, found);
            } else {
                found.push((path, below.clone()));
            }
        }
    }

    /// `.It Cm PATH` begins a command in docs/man/qmail.8, and all its options stand before the next one.
    #[test]
    fn the_manual_page_has_every_command_and_option() {
        let page = include_str!("../../../../docs/man/qmail.8");
        let mut found = Vec::new();
        leaves(&Cli::command(), "", &mut found);
        assert!(found.len() > 30, "{}", found.len());
        for (path, command) in found {
            let entry = page.split(".It Cm ").find(|entry| {
                entry.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with(['\n', ' ']))
                    && !entry.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with(" Cm"))
            });
            let entry = entry.unwrap_or_else(|| panic!("no `.It Cm {path}`"));
            for option in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(
                    entry.contains(&format!("Fl -{option}\n")) || entry.contains(&format!("Fl -{option} ")),
                    "{path} --{option}"
                );
            }
        }
    }

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
            "qmail user add a@b --password-hash-stdin",
            "qmail user forward a@b c@d e@f --keep-copy",
            "qmail user forward a@b --off",
            "qmail user rename a@b c@b --keep-alias",
            "qmail user vacation a@b --off",
            "qmail user vacation a@b --text-stdin --until 2026-12-24 --days 3",
            "qmail user limits a@b --per-hour 5",
            "qmail domain set a --catch-all none --quota 5G",
            "qmail domain add a --alias-of b",
            "qmail domain admin add a b@c",
            "qmail --as a@b user add c@b --password-stdin",
            "qmail user list b --as a@b",
            "qmail cert obtain a.b c.d --agree-tos",
            "qmail cert renew --force --json",
            "qmail cert renew a.b",
            "qmail completions zsh",
            "qmail import queue /var/qmail/queue --dry-run --json",
            "qmail import control /var/qmail --tcp-smtp /etc/tcp.smtp --force",
            "qmail export queue /var/qmail/queue --split 1 --lossy",
            "qmail export example.org --with-secrets --sql",
        ] {
            assert!(Cli::try_parse_from(good.split(' ')).is_ok(), "{good}");
        }
        for bad in [
            "qmail",
            "qmail queue retry",
            "qmail queue retry 5 --all",
            "qmail user add a@b",
            "qmail user app-password add a@b",
            "qmail user app-password add a@b --name x --service imap",
            "qmail user add a@b --password-stdin --password-hash-stdin",
            "qmail user forward a@b",
            "qmail user forward a@b --off c@d",
            "qmail user forward a@b --keep-copy",
            "qmail user vacation a@b",
            "qmail user vacation a@b --off --text-stdin",
            "qmail user limits a@b",
            "qmail domain set a",
            "qmail alias add a@b",
            "qmail cert obtain",
            "qmail cert renew a b",
            "qmail completions",
            "qmail completions csh",
            "qmail import queue",
            "qmail export queue",
            "qmail export queue /q --split 0",
        ] {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
