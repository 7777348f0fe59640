//! Programs that have a say in a session, on hook.sock: qmail-smtpd asks, qmail-hook runs them. A connection is one run; closing it before the
//! answer ends the program.

use crate::field::Bytes;

/// Programs that qmail-hook runs at once. Each is two processes.
pub const PROCESSES_MAX: usize = 200;

messages! {
    /// What is to be run. `program` is as the configuration has it, `environment` is `NAME=VALUE`.
    pub enum Request {
        /// A plugin (qmail-spp): what it writes is the answer's output.
        1 => Plugin { program: Bytes, environment: Vec<Bytes> },
        /// A program that judges a recipient (RCPTCHECK): its words on descriptor 4 are the output.
        2 => Check { program: Bytes, environment: Vec<Bytes> },
        /// A program in the place of qmail-queue; beside the datagram comes the descriptor of the text, beside the next one that of the envelope.
        3 => Queue { program: Bytes, environment: Vec<Bytes> },
        /// The envelope's descriptor.
        4 => Envelope {},
    }
}

messages! {
    /// What became of it.
    pub enum Answer {
        /// It ended so; `pid` was its number.
        1 => Ended { code: u32, pid: u32, output: Bytes },
        /// It crashed, took too long, wrote too much, or could not be started: temporary, the reason for the log.
        2 => Failed { text: Bytes },
    }
}

impl Answer {
    /// For the log.
    #[must_use]
    pub fn failed(text: impl std::fmt::Display) -> Self {
        Self::Failed { text: crate::clip(text.to_string().as_bytes()).into() }
    }
}
