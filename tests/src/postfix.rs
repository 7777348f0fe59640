//! A real Postfix as a neighbour: one domain of its own, everything else to a relay. Its programs come from the unpacked package,
//! all its files lie in a directory of the test; needs root.

use crate::facts::signal;
use crate::tools::{Tool, must};
use crate::users::User;
use crate::{instance::random_word, wait_for};
use anyhow::Result;
use rustix::process::Signal;
use std::fs::{OpenOptions, create_dir_all};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The only mailbox.
pub const MAILBOX: &str = "box@postfix.test";

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Postfix {
    dir: PathBuf,
    pub port: u16,
    master: Child,
    _owner: User,
}

impl Postfix {
    /// Starts it: listens on `port` of 127.0.0.1, relays to `relay_port`. `tool` is any program of the package.
    ///
    /// # Errors
    /// It does not accept connections.
    pub fn start(tool: &Tool, dir: &Path, port: u16, relay_port: u16) -> Result<Self> {
        Self::start_with(tool, dir, port, relay_port, "")
    }

    /// As [`Postfix::start`], with lines of main.cf.
    ///
    /// # Errors
    /// As [`Postfix::start`].
    pub fn start_with(tool: &Tool, dir: &Path, port: u16, relay_port: u16, main: &str) -> Result<Self> {
        let dir = dir.join("postfix");
        let owner = User::add(&format!("qt{}", random_word()?.get(..10).unwrap_or_default()), &dir)?;
        write_config(tool, &dir, &owner, port, relay_port)?;
        OpenOptions::new().append(true).open(dir.join("etc/main.cf"))?.write_all(main.as_bytes())?;
        let mut command = Command::new(tool.prefix.join("usr/lib/postfix/sbin/master"));
        command.arg("-c").arg(dir.join("etc")).arg("-d").env("LD_LIBRARY_PATH", tool.library_path());
        // It ends its children by their process group.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let postfix = Self { dir, port, master: command.spawn()?, _owner: owner };
        wait_for("Postfix to listen", || TcpStream::connect(("127.0.0.1", port)).ok()).map_err(|e| e.context(postfix.log()))?;
        Ok(postfix)
    }

    /// The Maildir of [`MAILBOX`].
    #[must_use]
    pub fn maildir(&self) -> PathBuf {
        self.dir.join("mail/box")
    }

    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log/maillog")).unwrap_or_default()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of Postfix:\n{}", self.log());
        }
        signal(self.master.id(), Signal::TERM);
        let _ = self.master.wait();
    }
}

fn write_config(tool: &Tool, dir: &Path, owner: &User, port: u16, relay_port: u16) -> Result<()> {
    let queues = [
        "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace", "maildrop",
        "public",
    ];
    for owned in queues.iter().map(|queue| format!("queue/{queue}")).chain(["data", "mail"].map(str::to_owned)) {
        create_dir_all(dir.join(&owned))?;
        must(Command::new("chown").arg(format!("{}:", owner.0)).arg(dir.join(owned)))?;
    }
    for ours in ["queue/pid", "etc", "log"] {
        create_dir_all(dir.join(ours))?;
    }
    let sbin = tool.prefix.join("usr/lib/postfix/sbin");
    let (libraries, dir_name, name) = (tool.library_path(), dir.display(), &owner.0);
    let main = format!(
        "compatibility_level = 3.6\nqueue_directory = {dir_name}/queue\ndata_directory = {dir_name}/data\n\
         daemon_directory = {sbin}\ncommand_directory = {sbin}\nmeta_directory = {dir_name}/etc\nshlib_directory = no\n\
         import_environment = MAIL_CONFIG LD_LIBRARY_PATH={libraries}\nmail_owner = {name}\nsetgid_group = mail\n\
         maillog_file = {dir_name}/log/maillog\nmaillog_file_prefixes = {dir_name}/log\n\
         myhostname = mx.postfix.test\nmydestination =\nmynetworks = 127.0.0.0/8\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n\
         alias_maps =\nalias_database =\nlocal_recipient_maps =\nrelayhost = [127.0.0.1]:{relay_port}\n\
         virtual_mailbox_domains = postfix.test\nvirtual_mailbox_base = {dir_name}/mail\n\
         virtual_mailbox_maps = inline:{{ {MAILBOX}=box/ }}\nvirtual_uid_maps = static:{uid}\nvirtual_gid_maps = static:{uid}\n\
         smtputf8_enable = no\nsmtpd_relay_restrictions = permit_mynetworks, reject\n",
        sbin = sbin.display(),
        uid = must(Command::new("id").args(["-u", name]))?.trim(),
    );
    std::fs::write(dir.join("etc/main.cf"), main)?;
    Ok(std::fs::write(dir.join("etc/master.cf"), master(port))?)
}

/// Just the services that take part.
fn master(port: u16) -> String {
    let mut text = format!("127.0.0.1:{port} inet n - n - - smtpd\npostlog unix-dgram n - n - 1 postlogd\n");
    for (name, private, limit, program) in [
        ("cleanup", "n", "0", "cleanup"),
        ("qmgr", "n", "1", "qmgr"),
        ("rewrite", "-", "-", "trivial-rewrite"),
        ("bounce", "-", "0", "bounce"),
        ("defer", "-", "0", "bounce"),
        ("trace", "-", "0", "bounce"),
        ("error", "-", "-", "error"),
        ("retry", "-", "-", "error"),
        ("smtp", "-", "-", "smtp"),
        ("lmtp", "-", "-", "lmtp"),
        ("relay", "-", "-", "smtp"),
        ("virtual", "-", "-", "virtual"),
        ("anvil", "-", "1", "anvil"),
        ("scache", "-", "1", "scache"),
        ("tlsmgr", "-", "1", "tlsmgr"),
    ] {
        let (unprivileged, wakeup) = (if program == "virtual" { "n" } else { "-" }, if program == "qmgr" { "300" } else { "-" });
        text.push_str(&format!("{name} unix {private} {unprivileged} n {wakeup} {limit} {program}\n"));
    }
    text
}
