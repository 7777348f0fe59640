//! Exim as Debian packages it (daemon-light), with a plain configuration instead of Debian's: no access lists but "yes", no TLS,
//! no names looked up, limits raised to what the scenarios need.

use crate::group::Group;
use crate::server::{LOCAL, MESSAGE_BYTES_MAX, Mode, SINK, Server, files_below};
use crate::stage::{ME, Stage, bounded, must};
use anyhow::{Context, Result};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2502);
/// More connections at once than any scenario opens.
const CONNECTIONS_MAX: usize = 120;

#[derive(Debug, Default)]
pub(crate) struct Exim {
    daemon: Option<Child>,
}

impl Server for Exim {
    fn version(&self, stage: &Stage) -> Result<String> {
        let text = must(bounded(program(stage)).args(["-C", "/dev/null", "-bV"]))?;
        let version = text.split_whitespace().nth(2).context("Exim did not say its version")?;
        Ok(format!("Exim {version}"))
    }

    fn address(&self) -> SocketAddrV4 {
        ADDRESS
    }

    fn start(&mut self, stage: &Stage, group: &Group, mode: Mode) -> Result<()> {
        let dir = stage.work.join("exim");
        for old in ["spool", "log"] {
            let old = dir.join(old);
            if old.exists() {
                std::fs::remove_dir_all(&old)?;
            }
            std::fs::create_dir(&old)?;
            must(bounded("chown").arg("Debian-exim:Debian-exim").arg(&old))?;
        }
        // A delivery runs as the recipient: Exim is setuid root wherever it is installed; here nobody else may start it.
        let program = program(stage);
        must(bounded("chown").arg("root:Debian-exim").arg(&program))?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4750))?;
        std::fs::write(dir.join("etc/exim4.conf"), configuration(stage, mode))?;
        let mut command = group.command(&stage.syncs, &program);
        command.arg("-bdf");
        if mode == Mode::Deliver {
            command.arg("-q1m");
        }
        self.daemon = Some(command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?);
        Ok(())
    }

    fn stop(&mut self, _: &Stage, group: &Group) {
        if let Some(mut daemon) = self.daemon.take() {
            crate::target::ask_to_end(&daemon);
            group.end();
            let _ = daemon.wait();
        }
    }

    fn queued(&self, stage: &Stage) -> Result<usize> {
        files_below(&stage.work.join("exim/spool/input"), &|name| name.ends_with("-D"))
    }
}

fn program(stage: &Stage) -> std::path::PathBuf {
    stage.work.join("packages/usr/sbin/exim4")
}

fn configuration(stage: &Stage, mode: Mode) -> String {
    let dir = stage.work.join("exim");
    let hold = if mode == Mode::Hold { "queue_only = true\n" } else { "" };
    format!(
        "exim_path = {program}\nprimary_hostname = {ME}\nspool_directory = {dir}/spool\nlog_file_path = {dir}/log/%slog\n\
         daemon_smtp_ports = {port}\nlocal_interfaces = 127.0.0.1\ndomainlist local_domains = {LOCAL}\n\
         acl_smtp_rcpt = accept\nacl_smtp_data = accept\nhost_lookup =\nrfc1413_query_timeout = 0s\nnever_users =\n\
         smtp_accept_max = {CONNECTIONS_MAX}\nsmtp_connect_backlog = 128\nsmtp_accept_queue_per_connection = 0\n\
         message_size_limit = {MESSAGE_BYTES_MAX}\nrecipients_max = 0\nsplit_spool_directory = true\nkeep_environment =\n\
         chunking_advertise_hosts =\npipelining_advertise_hosts = *\ntls_advertise_hosts =\n{hold}\
         begin routers\n\
         here:\n  driver = accept\n  domains = +local_domains\n  check_local_user\n  transport = maildir\n\
         elsewhere:\n  driver = manualroute\n  route_list = * {sink_ip}\n  self = send\n  transport = relay\n\
         begin transports\n\
         maildir:\n  driver = appendfile\n  directory = $home/Maildir\n  maildir_format\n  delivery_date_add\n  envelope_to_add\n  return_path_add\n\
         relay:\n  driver = smtp\n  port = {sink_port}\n  allow_localhost\n  hosts_try_fastopen =\n\
         begin retry\n* * F,2h,1m\n",
        program = program(stage).display(),
        dir = dir.display(),
        port = ADDRESS.port(),
        sink_ip = SINK.ip(),
        sink_port = SINK.port(),
    )
}
