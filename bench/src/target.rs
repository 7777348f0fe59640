//! The rows of the tables: servers, and what they are compared with that is no server.

mod exim;
mod postfix;
pub(crate) mod qmail;

use crate::group::Group;
use crate::mailboxes::Mailboxes;
use crate::server::{LOCAL, Mode, Server, wait_for_greeting};
use crate::stage::{Stage, USERS};
use anyhow::Result;
use std::net::SocketAddrV4;
use std::process::Child;

/// What is measured in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    Qmail,
    QmailVirtual,
    Postfix,
    PostfixNoFlowDelay,
    Exim,
    /// The generator against a server that does nothing.
    Nothing,
    /// What the disk allows, as files and as a log.
    DiskFiles,
    DiskLog,
}

impl Row {
    pub(crate) const ALL: [Self; 8] = [
        Self::Qmail,
        Self::QmailVirtual,
        Self::Postfix,
        Self::PostfixNoFlowDelay,
        Self::Exim,
        Self::Nothing,
        Self::DiskFiles,
        Self::DiskLog,
    ];

    /// The word that names it on the command line and in the JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Qmail => "qmail-rs",
            Self::QmailVirtual => "qmail-rs-virtual",
            Self::Postfix => "postfix",
            Self::PostfixNoFlowDelay => "postfix-flow0",
            Self::Exim => "exim",
            Self::Nothing => "nothing",
            Self::DiskFiles => "disk-files",
            Self::DiskLog => "disk-log",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Qmail => "qmail-rs",
            Self::QmailVirtual => "qmail-rs, virtual users",
            Self::Postfix => "Postfix",
            Self::PostfixNoFlowDelay => "Postfix, in_flow_delay = 0",
            Self::Exim => "Exim",
            Self::Nothing => "(a server that does nothing)",
            Self::DiskFiles => "(the disk: 4 KiB files)",
            Self::DiskLog => "(the disk: one shared log)",
        }
    }

    fn server(self) -> Option<Box<dyn Server>> {
        match self {
            Self::Qmail | Self::QmailVirtual => Some(Box::new(qmail::Qmail::default())),
            Self::Postfix => Some(Box::new(postfix::Postfix { no_flow_delay: false })),
            Self::PostfixNoFlowDelay => Some(Box::new(postfix::Postfix { no_flow_delay: true })),
            Self::Exim => Some(Box::new(exim::Exim::default())),
            Self::Nothing | Self::DiskFiles | Self::DiskLog => None,
        }
    }
}

/// A server that can be started and stopped, with the group of its processes; stopped when dropped.
pub(crate) struct Target<'a> {
    row: Row,
    stage: &'a Stage,
    pub(crate) group: Group,
    server: Box<dyn Server>,
}

impl<'a> Target<'a> {
    /// None for rows that are no server.
    ///
    /// # Errors
    /// No control group.
    pub(crate) fn new(row: Row, stage: &'a Stage) -> Result<Option<Self>> {
        let Some(server) = row.server() else { return Ok(None) };
        Ok(Some(Self { row, stage, group: Group::new(row.word())?, server }))
    }

    pub(crate) fn version(&self) -> Result<String> {
        self.server.version(self.stage)
    }

    pub(crate) fn address(&self) -> SocketAddrV4 {
        self.server.address()
    }

    /// The domain whose mail it delivers here.
    pub(crate) fn domain(&self) -> &'static str {
        if self.row == Row::QmailVirtual { qmail::VIRTUAL } else { LOCAL }
    }

    /// Where it delivers.
    pub(crate) fn mailboxes(&self) -> Mailboxes {
        let base = match self.row {
            Row::QmailVirtual => qmail::root(self.stage).join("var/mail").join(qmail::VIRTUAL),
            _ => self.stage.homes(),
        };
        Mailboxes::below(&base, USERS)
    }

    /// Starts it with an empty queue and waits until it greets.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(&mut self, mode: Mode) -> Result<()> {
        self.server.start(self.stage, &self.group, mode)?;
        wait_for_greeting(self.address())
    }

    pub(crate) fn stop(&mut self) {
        self.server.stop(self.stage, &self.group);
        self.group.end();
    }

    pub(crate) fn queued(&self) -> Result<usize> {
        self.server.queued(self.stage)
    }

    pub(crate) fn has_pop3(&self) -> bool {
        matches!(self.row, Row::Qmail | Row::QmailVirtual)
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// SIGTERM to a process that we started.
pub(crate) fn ask_to_end(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}
