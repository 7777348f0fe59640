//! The program in QMAILQUEUE, which takes a message the way qmail-queue(8) does: text on descriptor 0, envelope on 1, an exit
//! code, and perhaps a text of its own on 4 or 6.

use crate::failure::Failure;
use crate::forward::{Copy, Envelope};
use maildir::Stopped;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::spawn::{Child, Ended, Spawn};
use wire::Address;

/// Longest text of its own that such a program may give, in bytes (qmail-queue(8)).
const TEXT_LEN_MAX: u64 = 255;
/// Where a relative QMAILQUEUE starts from.
const CLASSIC_HOME: &str = "/var/qmail";

/// A program that queues.
#[derive(Debug)]
pub struct QueueProgram {
    path: PathBuf,
}

impl QueueProgram {
    /// The one that QMAILQUEUE names.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        std::env::var_os("QMAILQUEUE").filter(|path| !path.is_empty()).map(|path| Self { path: path.into() })
    }

    pub(crate) fn submit(&self, copy: &Copy<'_>, envelope: &Envelope) -> Result<u32, Failure> {
        let broken = |_: io::Error| Failure::temporary("qq temporary problem (#4.3.0)");
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| broken(e.into()));
        let (message, envelopes, errors) = (pipe()?, pipe()?, pipe()?);
        let child = self.start(&message.0, &envelopes.0, &errors.1).map_err(|_| by_code(120, b""))?;
        drop((message.0, envelopes.0, errors.1));
        let wrote = write_message(message.1, copy).and_then(|()| write_envelope(envelopes.1, envelope));
        let mut text = Vec::new();
        // A text that cannot be read is no text; the exit code says enough.
        let _ = File::from(errors.0).take(TEXT_LEN_MAX).read_to_end(&mut text);
        match (child.wait(), wrote) {
            (Ended::Code(0), Ok(())) => Ok(u32::try_from(child.pid.as_raw_nonzero().get()).unwrap_or(0)),
            (Ended::Code(0), Err(_)) => Err(by_code(54, b"")),
            (Ended::Code(code), _) => Err(by_code(code, &text)),
            (Ended::Signal(_), _) => Err(Failure::temporary("qq crashed (#4.3.0)")),
        }
    }

    fn start(&self, message: &OwnedFd, envelope: &OwnedFd, errors: &OwnedFd) -> io::Result<Child> {
        let classic_home = Path::new(CLASSIC_HOME);
        let dir = if classic_home.is_dir() { classic_home } else { Path::new("/") };
        let (stderr, null) = (io::stderr(), File::open("/dev/null")?);
        let mut spawn = Spawn::new(&self.path).dir(dir);
        for (name, value) in std::env::vars_os() {
            spawn = spawn.env(name, value);
        }
        spawn = spawn.stdin(message.as_fd()).stdout(envelope.as_fd()).stderr(stderr.as_fd());
        // Numbers run from 3: the text may come on 4 (netqmail's patches) or on 6 (notqmail).
        spawn = spawn.fd("null", null.as_fd()).fd("text", errors.as_fd());
        spawn.fd("null", null.as_fd()).fd("text", errors.as_fd()).start()
    }
}

fn write_message(pipe: OwnedFd, copy: &Copy<'_>) -> io::Result<()> {
    let mut pipe = File::from(pipe);
    pipe.write_all(copy.delivered_to)?;
    copy.body.each_chunk(|chunk| pipe.write_all(chunk).map(|()| true)).map_err(|stopped| match stopped {
        Stopped::Read(e) | Stopped::Take(e) => e,
    })
}

fn write_envelope(pipe: OwnedFd, envelope: &Envelope) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut put = |letter: u8, address: &Address| {
        bytes.push(letter);
        bytes.extend_from_slice(address.as_bytes());
        bytes.push(0);
    };
    put(b'F', &envelope.sender);
    envelope.recipients.iter().for_each(|recipient| put(b'T', recipient));
    bytes.push(0);
    File::from(pipe).write_all(&bytes)
}

/// What an exit code of the qmail-queue interface means (qmail-family §1.1).
fn by_code(code: i32, text: &[u8]) -> Failure {
    if let (82 | 88, [letter @ (b'D' | b'Z'), rest @ ..]) = (code, text)
        && rest.len() > 1
    {
        return Failure { is_permanent: *letter == b'D', text: rest.trim_ascii_end().to_vec() };
    }
    let temporary = match code {
        11 | 115 => return Failure::permanent("envelope address too long for qq (#5.1.3)"),
        31 => return Failure::permanent("mail server permanently rejected message (#5.3.0)"),
        12..=40 => return Failure::permanent("qq permanent problem (#5.3.0)"),
        51 => "qq out of memory (#4.3.0)",
        52 => "qq timeout (#4.3.0)",
        53 => "qq write error or disk full (#4.3.0)",
        54 => "qq read error (#4.3.0)",
        55 => "qq unable to read configuration (#4.3.0)",
        56 => "qq trouble making network connection (#4.3.0)",
        61 => "qq trouble in home directory (#4.3.0)",
        62..=66 => "qq trouble creating files in queue (#4.3.0)",
        71 => "mail server temporarily rejected message (#4.3.0)",
        72 => "connection to mail server timed out (#4.4.1)",
        73 => "connection to mail server rejected (#4.4.1)",
        74 => "communication with mail server failed (#4.4.2)",
        81 | 91 => "qq internal bug (#4.3.0)",
        120 => "unable to exec qq (#4.3.0)",
        _ => "qq temporary problem (#4.3.0)",
    };
    Failure::temporary(temporary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_permanent_or_temporary_as_the_interface_says() {
        for code in 1..=255 {
            assert_eq!(by_code(code, b"").is_permanent, (11..=40).contains(&code) || code == 115, "{code}");
        }
    }

    #[test]
    fn a_text_of_its_own_counts_with_82_and_88_only() {
        for (code, text, permanent, expected) in [
            (82, "Dno thanks (#5.7.1)\n", true, "no thanks (#5.7.1)"),
            (88, "Zlater", false, "later"),
            (82, "Xwhat", false, "qq temporary problem (#4.3.0)"),
            (82, "D", false, "qq temporary problem (#4.3.0)"),
            (82, "Dx", false, "qq temporary problem (#4.3.0)"),
            (31, "Dmine", true, "mail server permanently rejected message (#5.3.0)"),
        ] {
            assert_eq!(by_code(code, text.as_bytes()), Failure { is_permanent: permanent, text: expected.into() });
        }
    }
}
