//! A real Dovecot beside us: an IMAP server over the Maildirs that qmail-rs delivers into. It must be installed, since its programs
//! look for each other in fixed places; all its files lie in a directory of the test. Needs root.

use crate::facts::signal;
use crate::line::Line;
use crate::tools::must;
use crate::users::User;
use crate::{Instance, instance::random_word, wait_for};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The program of the package dovecot-core, which dovecot-imapd needs.
const PROGRAM: &str = "/usr/sbin/dovecot";

/// Its programs that tests use, by their packages.
const PROGRAMS: [(&str, &str); 5] = [
    ("imap", "dovecot-imapd"),
    ("lmtp", "dovecot-lmtpd"),
    ("submission", "dovecot-submissiond"),
    ("pop3", "dovecot-pop3d"),
    ("modules/auth/libdriver_sqlite.so", "dovecot-sqlite"),
];

/// Whom mailboxes belong to that are Dovecot's own: an id that nobody else has.
const OWN_ID: u32 = 64_990;

/// The password of every user.
pub const PASSWORD: &str = "imap-password";

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Dovecot {
    dir: PathBuf,
    pub port: u16,
    master: Child,
    _owner: User,
}

impl Dovecot {
    /// Starts it on a port of 127.0.0.1 for these users of virtual domains, whose mailboxes must be there.
    ///
    /// # Errors
    /// It is not installed, or does not accept connections.
    pub fn start(instance: &Instance, port: u16, users: &[&str]) -> Result<Self> {
        Self::start_over_ours(instance, port, users, "")
    }

    /// As [`Dovecot::start`], with lines of dovecot.conf.
    ///
    /// # Errors
    /// As [`Dovecot::start`].
    pub fn start_over_ours(instance: &Instance, port: u16, users: &[&str], more: &str) -> Result<Self> {
        let mut passwd = String::new();
        for user in users {
            let home = instance.maildir(user);
            let vmail = std::fs::metadata(&home).with_context(|| home.display().to_string())?;
            let home = home.parent().unwrap_or(Path::new("/")).display();
            passwd += &format!("{user}:{{PLAIN}}{PASSWORD}:{}:{}::{home}::\n", vmail.uid(), vmail.gid());
        }
        Self::start_with(instance, port, &passwd, more)
    }

    /// As [`Dovecot::start`], with its users as passwd-file lines ([`Dovecot::users_of_its_own`]), and with lines of dovecot.conf.
    ///
    /// # Errors
    /// As [`Dovecot::start`].
    pub fn start_with(instance: &Instance, port: u16, passwd: &str, more: &str) -> Result<Self> {
        for (program, package) in PROGRAMS {
            if !Path::new("/usr/lib/dovecot").join(program).is_file() {
                bail!("{program} of Dovecot is not installed; apt-get install --no-install-recommends {package}");
            }
        }
        let dir = Self::dir(instance);
        let owner = User::add(&format!("qt{}", random_word()?.get(..10).unwrap_or_default()), &dir)?;
        std::fs::create_dir_all(dir.join("run"))?;
        std::fs::write(dir.join("users"), passwd)?;
        must(Command::new("chown").arg(format!("{}:", owner.0)).arg(dir.join("users")))?;
        let config = dir.join("dovecot.conf");
        std::fs::write(&config, configuration(&dir, &owner.0, port) + more)?;
        let mut command = Command::new(PROGRAM);
        command
            .arg("-F")
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let dovecot = Self { dir, port, master: command.spawn()?, _owner: owner };
        wait_for("Dovecot to listen", || Line::open(port).ok()).map_err(|e| e.context(dovecot.log()))?;
        Ok(dovecot)
    }

    /// Where its files are, before it is started too.
    #[must_use]
    pub fn dir(instance: &Instance) -> PathBuf {
        instance.dir().join("dovecot")
    }

    /// Lines for users whose mailboxes are Dovecot's own; `(address, extra fields)`, which may be empty.
    ///
    /// # Errors
    /// The disk's.
    pub fn users_of_its_own(instance: &Instance, users: &[(&str, &str)]) -> Result<String> {
        let mail = Self::dir(instance).join("mail");
        std::fs::create_dir_all(&mail)?;
        must(Command::new("chown").arg(format!("{OWN_ID}:{OWN_ID}")).arg(&mail))?;
        let line = |(user, extra): &(&str, &str)| {
            format!("{user}:{{PLAIN}}{PASSWORD}:{OWN_ID}:{OWN_ID}::{}::{extra}\n", mail.join(user).display())
        };
        Ok(users.iter().map(line).collect())
    }

    /// Other users, or the same with other fields; they count at once.
    ///
    /// # Errors
    /// The disk's.
    pub fn set_users(&self, passwd: &str) -> Result<()> {
        Ok(std::fs::write(self.dir.join("users"), passwd)?)
    }

    /// An IMAP session of a user with the INBOX selected, and how many messages are there.
    ///
    /// # Errors
    /// The login fails.
    pub fn inbox(&self, user: &str) -> Result<(Imap, usize)> {
        let mut imap = self.log_in(user, PASSWORD).with_context(|| self.log())?;
        let count = exists(&imap.must("SELECT INBOX").with_context(|| self.log())?).context("no EXISTS")?;
        Ok((imap, count))
    }

    /// An IMAP session of a user.
    ///
    /// # Errors
    /// The login fails.
    pub fn log_in(&self, user: &str, password: &str) -> Result<Imap> {
        let mut imap = Imap(Line::open(self.port)?);
        imap.0.line()?;
        imap.must(&format!("LOGIN \"{user}\" \"{password}\""))?;
        Ok(imap)
    }

    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of Dovecot:\n{}", self.log());
        }
        signal(self.master.id(), Signal::TERM);
        let _ = self.master.wait();
    }
}

/// The number of the last EXISTS.
#[must_use]
pub fn exists(lines: &[String]) -> Option<usize> {
    lines.iter().rev().find_map(|line| line.strip_prefix("* ")?.strip_suffix(" EXISTS")?.parse().ok())
}

/// An IMAP session, as much of it as a test needs: no literals are sent, those that come are lines.
#[derive(Debug)]
pub struct Imap(Line);

impl Imap {
    /// A command that must succeed; the lines before its OK.
    ///
    /// # Errors
    /// NO, BAD, or the end of the connection.
    pub fn must(&mut self, command: &str) -> Result<Vec<String>> {
        self.0.raw(format!("a {command}\r\n").as_bytes())?;
        let mut lines = Vec::new();
        loop {
            let line = String::from_utf8(self.0.line()?)?;
            if line.starts_with("a OK") {
                return Ok(lines);
            }
            if line.starts_with("a ") {
                bail!("{command}: {line}");
            }
            lines.push(line);
        }
    }
}

fn configuration(dir: &Path, owner: &str, port: u16) -> String {
    let dir = dir.display();
    let chroots: String =
        ["imap-login", "anvil", "stats"].map(|service| format!("service {service} {{\n  chroot =\n}}\n")).concat();
    format!(
        "base_dir = {dir}/run\nstate_dir = {dir}/run\nlog_path = {dir}/log\nprotocols = imap\nlisten = 127.0.0.1\n\
         ssl = no\ndisable_plaintext_auth = no\nauth_mechanisms = plain\n\
         default_internal_user = {owner}\ndefault_internal_group = {owner}\ndefault_login_user = {owner}\nfirst_valid_uid = 1\n\
         passdb {{\n  driver = passwd-file\n  args = {dir}/users\n}}\nuserdb {{\n  driver = passwd-file\n  args = {dir}/users\n}}\n\
         mail_location = maildir:~/Maildir\n{chroots}\
         service imap-login {{\n  inet_listener imap {{\n    port = {port}\n  }}\n  inet_listener imaps {{\n    port = 0\n  }}\n}}\n"
    )
}
