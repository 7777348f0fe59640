//! This project, as root with separate users, with its defaults but for the limits that the scenarios need.

use crate::backlog;
use crate::generator::user_name;
use crate::group::Group;
use crate::server::{LOCAL, MESSAGE_BYTES_MAX, Mode, RECIPIENTS_MAX, SINK, Server};
use crate::stage::{ME, Stage, USERS, bounded, must, named_apart};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

/// A domain of virtual users.
pub(crate) const VIRTUAL: &str = "virtual.test";
pub(crate) const PASSWORD: &str = "measured-not-secret";
const BASE_PORT: u16 = 2500;
const START_WAIT: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
pub(crate) const SMTP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, BASE_PORT + 25);
pub(crate) const POP3: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, BASE_PORT + 110);

#[derive(Debug, Default)]
pub(crate) struct Qmail {
    system: Option<Child>,
}

impl Server for Qmail {
    fn version(&self, stage: &Stage) -> Result<String> {
        must(bounded(stage.programs.join("qmail")).arg("--version")).map(|text| format!("{}-rs", text.trim()))
    }

    fn address(&self) -> SocketAddrV4 {
        SMTP
    }

    fn start(&mut self, stage: &Stage, group: &Group, mode: Mode) -> Result<()> {
        self.prepare(stage, group)?;
        self.run(stage, group, mode)
    }

    fn stop(&mut self, _: &Stage, group: &Group) {
        if let Some(mut system) = self.system.take() {
            crate::target::ask_to_end(&system);
            group.end();
            let _ = system.wait();
        }
    }

    fn queued(&self, stage: &Stage) -> Result<usize> {
        let text = must(qmail(stage).args(["--json", "queue", "stats"]))?;
        let stats: serde_json::Value = serde_json::from_str(&text)?;
        Ok(usize::try_from(stats["messages"].as_u64().context("queue stats has no number of messages")?)?)
    }
}

pub(crate) fn root(stage: &Stage) -> PathBuf {
    named_apart(&stage.work, "qmail")
}

fn qmail(stage: &Stage) -> Command {
    let mut command = bounded(stage.programs.join("qmail"));
    command.arg("--root").arg(root(stage));
    command
}

/// The directory of the queue.
pub(crate) fn spool(stage: &Stage) -> PathBuf {
    root(stage).join("var/spool/qmail")
}

/// Writes a control file.
///
/// # Errors
/// The disk's.
pub(crate) fn set_control(stage: &Stage, name: &str, text: &str) -> Result<()> {
    Ok(std::fs::write(root(stage).join("etc/qmail/control").join(name), format!("{text}\n"))?)
}

impl Qmail {
    /// Makes the instance, if there is none yet; it does not run afterwards.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn prepare(&mut self, stage: &Stage, group: &Group) -> Result<()> {
        if root(stage).exists() { Ok(()) } else { self.set_up(stage, group) }
    }

    /// Everything in the queue is due now.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn retry_all(&self, stage: &Stage) -> Result<()> {
        must(qmail(stage).args(["queue", "retry", "--all"])).map(drop)
    }

    /// A new instance with its virtual users.
    fn set_up(&mut self, stage: &Stage, group: &Group) -> Result<()> {
        std::fs::create_dir(root(stage))?;
        must(qmail(stage).args(["setup", "--me", ME, "--base-port", &BASE_PORT.to_string()]))?;
        for (name, text) in [
            ("locals", LOCAL.to_owned()),
            ("rcpthosts", LOCAL.to_owned()),
            ("relayclients", "127.0.0.0/8".to_owned()),
            ("defaultdelivery", "./Maildir/".to_owned()),
            ("databytes", MESSAGE_BYTES_MAX.to_string()),
            ("maxrcpt", RECIPIENTS_MAX.to_string()),
            ("smtproutes", format!(":{SINK}")),
        ] {
            set_control(stage, name, &text)?;
        }
        self.run(stage, group, Mode::Deliver)?;
        must(qmail(stage).args(["domain", "add", VIRTUAL]))?;
        for k in 0..USERS {
            add_user(stage, &format!("{}@{VIRTUAL}", user_name(k)))?;
        }
        self.stop(stage, group);
        Ok(())
    }

    fn run(&mut self, stage: &Stage, group: &Group, mode: Mode) -> Result<()> {
        let control = root(stage).join("etc/qmail/control");
        for name in ["concurrencylocal", "concurrencyremote"] {
            let file = control.join(name);
            if file.exists() {
                std::fs::remove_file(&file)?;
            }
            if mode == Mode::Hold {
                std::fs::write(&file, "0\n")?;
            }
        }
        backlog::empty(&spool(stage))?;
        self.start_with_queue(stage, group)
    }

    /// Starts it with the queue that is there; returns when it is ready.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start_with_queue(&mut self, stage: &Stage, group: &Group) -> Result<()> {
        let log = std::fs::File::create(stage.work.join("qmail.log"))?;
        let mut command = group.command(&stage.syncs, stage.programs.join("qmail"));
        command.arg("--root").arg(root(stage)).arg("start");
        let mut system = command.stdout(Stdio::piped()).stderr(log).spawn()?;
        let stdout = system.stdout.take();
        self.system = Some(system);
        if stdout.is_none_or(|stdout| first_line(stdout).is_none_or(|line| line != "ready\n")) {
            bail!("qmail start is not ready:\n{}", std::fs::read_to_string(stage.work.join("qmail.log"))?);
        }
        Ok(())
    }
}

/// What comes first, if anything does within [`START_WAIT`].
fn first_line(stdout: ChildStdout) -> Option<String> {
    let mut fds = [PollFd::new(&stdout, PollFlags::IN)];
    let some = poll(&mut fds, Some(&START_WAIT)).is_ok_and(|ready| ready > 0);
    let mut line = String::new();
    (some && BufReader::new(stdout).read_line(&mut line).is_ok()).then_some(line)
}

fn add_user(stage: &Stage, address: &str) -> Result<()> {
    let mut command = qmail(stage);
    command.args(["user", "add", address, "--password-stdin"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        writeln!(stdin, "{PASSWORD}")?;
    }
    if !child.wait()?.success() {
        bail!("qmail user add {address} failed");
    }
    Ok(())
}
