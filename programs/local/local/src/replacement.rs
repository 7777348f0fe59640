//! A program of root's choice in the place of qmail-local: QMAILLOCAL of whoever started the system, or `control/qmaillocal`.
//!
//! It gets the arguments of the classic qmail-local, the message on descriptor 0 with an offset of its own, and is the recipient by uid. What
//! it prints on descriptors 1 and 2 is the report, its exit code the verdict, as qmail-lspawn(8) reads them. qmail-lspawn starts this for
//! deliveries to system users; nothing of a message is looked at here.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ipc::clip;
use ipc::field::{Bytes, Verdict};
use ipc::worker::{Recipient, Report};
use sys::spawn::{Ended, Spawn};
use wire::Address;

use crate::failure::Failure;
use crate::shell::{Shell, inherited_environment};

/// The program, where qmail-lspawn names one.
pub(crate) fn program() -> Option<PathBuf> {
    std::env::var_os(control::replacements::LOCAL.variable).filter(|program| !program.is_empty()).map(PathBuf::from)
}

/// What it said and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done {
    verdict: Verdict,
    text: Vec<u8>,
}

impl Done {
    pub(crate) fn report(&self, number: u64) -> Report {
        Report::Done { number, verdict: self.verdict, text: clip(&self.text).into() }
    }
}

/// Runs it to its end; qmail-lspawn ends what takes too long.
pub(crate) fn run(
    program: &Path,
    shell: &Shell,
    sender: &Address,
    recipient: &Recipient,
    default_delivery: &Bytes,
    message: OwnedFd,
) -> Done {
    let failed = |failure: Failure| Done { verdict: failure.verdict(), text: failure.line() };
    let message = match sys::memfd::own_description(message) {
        Ok(message) => message,
        Err(error) => return failed(Failure::system("Unable to read message", &error)),
    };
    let Recipient { user, home, local, dash, ext, domain } = recipient;
    let mut spawn = Spawn::new(program).arg("--").dir(Path::new("/")).stdin(message.as_fd());
    for argument in [user, home, local, dash, ext, domain] {
        spawn = spawn.arg(OsStr::from_bytes(argument));
    }
    spawn = spawn.arg(OsStr::from_bytes(sender.as_bytes())).arg(OsStr::from_bytes(default_delivery));
    for (name, value) in inherited_environment().filter(|(name, _)| name != control::replacements::LOCAL.variable) {
        spawn = spawn.env(name, value);
    }
    match shell.wait_for(spawn) {
        Ok(ended) => judge(ended, shell.take_output()),
        Err(error) => failed(Failure::system("Unable to run the program in the place of qmail-local", &error)),
    }
}

/// What the exit codes of qmail-local mean (qmail-lspawn(8)), where a program means them: 100 and, as for the programs of qmail-command(8), 64,
/// 65, 70, 76, 77, 78 and 112 are for good. Any other is temporary: a shell says 1, 2, 126 and 127 of its own troubles, and these bounce nothing.
fn judge(ended: Ended, text: Vec<u8>) -> Done {
    let verdict = match ended {
        Ended::Signal(_) | Ended::Unknown => {
            return Done { verdict: Verdict::Deferral, text: b"qmail-local crashed.\n".to_vec() };
        }
        Ended::Code(0) => Verdict::Success,
        Ended::Code(64 | 65 | 70 | 76 | 77 | 78 | 100 | 112) => Verdict::Failure,
        Ended::Code(_) => Verdict::Deferral,
    };
    Done { verdict, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_qmail_lspawn() {
        for (ended, verdict) in [
            (Ended::Code(0), Verdict::Success),
            (Ended::Code(111), Verdict::Deferral),
            (Ended::Code(71), Verdict::Deferral),
            (Ended::Code(74), Verdict::Deferral),
            (Ended::Code(75), Verdict::Deferral),
            (Ended::Code(127), Verdict::Deferral),
            (Ended::Code(1), Verdict::Deferral),
            (Ended::Code(2), Verdict::Deferral),
            (Ended::Code(99), Verdict::Deferral),
            (Ended::Code(255), Verdict::Deferral),
            (Ended::Code(64), Verdict::Failure),
            (Ended::Code(78), Verdict::Failure),
            (Ended::Code(100), Verdict::Failure),
            (Ended::Code(112), Verdict::Failure),
        ] {
            assert_eq!(judge(ended, b"said\n".to_vec()), Done { verdict, text: b"said\n".to_vec() }, "{ended:?}");
        }
        for ended in [Ended::Signal(9), Ended::Unknown] {
            let crashed = judge(ended, b"half".to_vec());
            assert_eq!(crashed, Done { verdict: Verdict::Deferral, text: b"qmail-local crashed.\n".to_vec() });
        }
    }
}
