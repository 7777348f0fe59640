//! Postfix as Debian packages it, with the least configuration that the scenarios need: no chroot, its own log file (there is no
//! syslog here), any local recipient.

use crate::group::Group;
use crate::protected;
use crate::server::{LOCAL, MESSAGE_BYTES_MAX, Mode, RECIPIENTS_MAX, SINK, Server, files_below};
use crate::stage::{COMMAND_S_MAX, ME, Stage, bounded, must};
use anyhow::{Result, bail};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};

const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2501);
/// Where messages wait; the rest of the spool holds logs of deliveries and sockets.
const QUEUES: [&str; 5] = ["incoming", "active", "deferred", "hold", "maildrop"];

#[derive(Debug)]
pub(crate) struct Postfix {
    /// `in_flow_delay = 0`: it does not slow clients down when mail comes faster than it goes.
    pub(crate) no_flow_delay: bool,
}

impl Server for Postfix {
    fn version(&self, _: &Stage) -> Result<String> {
        let version = must(bounded("postconf").args(["-d", "-h", "mail_version"]))?;
        Ok(format!("Postfix {}", version.trim()))
    }

    fn address(&self) -> SocketAddrV4 {
        ADDRESS
    }

    fn start(&mut self, stage: &Stage, group: &Group, mode: Mode) -> Result<()> {
        let dir = stage.work.join("postfix");
        for old in ["spool", "data", "log"] {
            let old = dir.join(old);
            if old.exists() {
                std::fs::remove_dir_all(&old)?;
            }
            std::fs::create_dir(&old)?;
        }
        must(bounded("chown").arg("postfix").arg(dir.join("data")))?;
        self.configure(stage, mode)?;
        // Into a file: a pipe would be held open by what stays running.
        let said = File::create(dir.join("log/start"))?;
        let status = group
            .command(&stage.syncs, "timeout")
            .args([COMMAND_S_MAX, "postfix", "start"])
            .stdout(said.try_clone()?)
            .stderr(said)
            .status()?;
        if !status.success() {
            let read = |name: &str| std::fs::read_to_string(dir.join("log").join(name)).unwrap_or_default();
            bail!("postfix start: {status}\n{}{}", read("start"), read("maillog"));
        }
        Ok(())
    }

    fn stop(&mut self, stage: &Stage, group: &Group) {
        if !group.pids().is_empty() {
            let _ = must(group.command(&stage.syncs, "timeout").args([COMMAND_S_MAX, "postfix", "stop"]));
        }
    }

    fn queued(&self, stage: &Stage) -> Result<usize> {
        let spool = stage.work.join("postfix/spool");
        QUEUES.iter().map(|queue| files_below(&spool.join(queue), &|_| true)).sum()
    }
}

impl Postfix {
    /// Writes main.cf and master.cf into what appears as /etc/postfix.
    fn configure(&self, stage: &Stage, mode: Mode) -> Result<()> {
        let etc = stage.work.join("postfix/etc");
        let packages = stage.work.join("packages");
        let share = packages.join("usr/share/postfix");
        must(bounded("cp").arg("-rT").arg(packages.join("etc/postfix")).arg(&etc))?;
        std::fs::copy(share.join("dynamicmaps.cf"), etc.join("dynamicmaps.cf"))?;
        std::fs::write(etc.join("master.cf"), master(&std::fs::read_to_string(share.join("master.cf.dist"))?))?;
        let dir = stage.work.join("postfix");
        let mut main = format!(
            "compatibility_level = 3.6\nqueue_directory = {dir}/spool\ndata_directory = {dir}/data\n\
             maillog_file = {dir}/log/maillog\nmaillog_file_prefixes = {dir}/log\n\
             myhostname = {ME}\nmydestination = {LOCAL}, localhost\nmynetworks = 127.0.0.0/8\n\
             inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n\
             alias_maps =\nalias_database =\nlocal_recipient_maps =\nhome_mailbox = Maildir/\nbiff = no\n\
             mailbox_size_limit = 0\nmessage_size_limit = {MESSAGE_BYTES_MAX}\nsmtpd_recipient_limit = {RECIPIENTS_MAX}\n\
             smtpd_relay_restrictions = permit_mynetworks, reject\nrelayhost = [{}]:{}\n",
            SINK.ip(),
            SINK.port(),
            dir = dir.display()
        );
        protected::certificate(&dir)?;
        main.push_str(&format!(
            "smtpd_tls_security_level = may\nsmtpd_tls_chain_files = {dir}/key.pem, {dir}/cert.pem\n",
            dir = dir.display()
        ));
        if mode == Mode::Hold {
            main.push_str("smtpd_client_restrictions = static:hold\n");
        }
        if self.no_flow_delay {
            main.push_str("in_flow_delay = 0\n");
        }
        Ok(std::fs::write(etc.join("main.cf"), main)?)
    }
}

/// Debian's master.cf with our port and without chroot (the fifth column).
fn master(packaged: &str) -> String {
    let mut text = String::new();
    for line in packaged.lines() {
        let mut fields: Vec<&str> = line.split_whitespace().collect();
        let is_service = !line.starts_with(['#', ' ', '\t']) && fields.len() >= 8;
        if !is_service {
            text.push_str(line);
        } else {
            if let [name, "inet", ..] = fields.as_mut_slice() {
                *name = "127.0.0.1:2501";
            }
            if let Some(chroot) = fields.get_mut(4) {
                *chroot = "n";
            }
            text.push_str(&fields.join(" "));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn master() {
        let packaged = "# comment\nsmtp      inet  n       -       y       -       -       smtpd\n#smtps inet n - y - - smtpd\n\
            relay     unix  -       -       y       -       -       smtp\n        -o syslog_name=postfix/$service_name\n";
        let ours = "# comment\n127.0.0.1:2501 inet n - n - - smtpd\n#smtps inet n - y - - smtpd\n\
            relay unix - - n - - smtp\n        -o syslog_name=postfix/$service_name\n";
        assert_eq!(super::master(packaged), ours);
    }
}
