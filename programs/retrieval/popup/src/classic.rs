//! The classic face: the client on descriptors 0 and 1, SUBPROG as the judge and the session (qmail-family §1.2).
//!
//! Input is read byte by byte up to the end of a line, so that what a client pipelines behind its PASS is still there for SUBPROG. Whoever
//! runs this decides whether the connection may carry a password.

use pop3::authorization::{Action, Proof};
use pop3::{Authorization, Offer, Verdict};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use sys::spawn::{Ended, Spawn};

/// The dialogue up to the login, both ways, may take so long: a byte a minute is no dialogue.
const DIALOGUE_MAX: Duration = Duration::from_secs(1200);
/// Written at a time: what poll(2) calls writable takes at least a page's fraction, so that no write waits.
const PIECE_LEN: usize = 512;

/// What the program was started with.
#[derive(Debug, Clone)]
pub struct Classic {
    /// For the timestamp of the banner.
    pub host: String,
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

/// Serves the client on 0 and 1.
///
/// # Errors
/// The client is gone or silent.
pub(crate) fn on_standard_descriptors(classic: &Classic) -> io::Result<()> {
    serve(classic, io::stdin().as_fd(), io::stdout().as_fd())
}

/// Serves one client until SUBPROG has ended or the client leaves.
///
/// # Errors
/// The client is gone or silent.
pub fn serve(classic: &Classic, input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> io::Result<()> {
    let timestamp = format!("<{}.{}@{}>", std::process::id(), sys::clock::unix_s(), classic.host);
    let offer =
        Offer { cleartext: true, stls: false, apop_timestamp: Some(timestamp.clone()), response_codes: false, failures_max: 1 };
    let mut machine = Authorization::new(offer);
    let (input, output) = (File::from(input.try_clone_to_owned()?), File::from(output.try_clone_to_owned()?));
    let mut client = Client { input, output, until: Instant::now() + DIALOGUE_MAX };
    client.write(&machine.greeting())?;
    while let Some(byte) = client.byte()? {
        let mut actions = Vec::new();
        machine.receive(&mut &[byte][..], &mut actions);
        for action in actions {
            match action {
                Action::Reply(reply) => client.write(&reply)?,
                Action::Judge { user, proof } => {
                    let Some(verdict) = judge(classic, &client, &user, &proof, &timestamp) else { return Ok(()) };
                    let mut more = Vec::new();
                    machine.verdict(verdict, &mut more);
                    for action in more {
                        if let Action::Reply(reply) = action {
                            client.write(&reply)?;
                        }
                    }
                }
                // Not offered, so they do not come.
                Action::SaslStart { .. } | Action::SaslStep { .. } | Action::StartTls { .. } => {}
                Action::HandOver | Action::Close => {}
            }
        }
        if machine.is_done() {
            return Ok(());
        }
    }
    Ok(())
}

/// Runs SUBPROG to its end; `None` when it served the client.
fn judge(classic: &Classic, client: &Client, user: &[u8], proof: &Proof, timestamp: &str) -> Option<Verdict> {
    let (Proof::Password(secret) | Proof::ApopDigest(secret)) = proof;
    let message = [user, b"\0", secret.expose(), b"\0", timestamp.as_bytes(), b"\0"].concat();
    Some(match run(classic, client, &message) {
        Err(_) => Verdict::Temporary,
        Ok(Ended::Code(0)) => return None,
        Ok(Ended::Code(_)) => Verdict::Refused,
        Ok(Ended::Signal(_) | Ended::Unknown) => Verdict::Crashed,
    })
}

fn run(classic: &Classic, client: &Client, message: &[u8]) -> io::Result<Ended> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // It fits: a pipe holds at least 4096 bytes, a name and a secret have 1024 each at most.
    File::from(write).write_all(message)?;
    let stderr = io::stderr();
    let mut spawn = Spawn::new(&classic.program).next_fd(read.as_fd());
    spawn = spawn.stdin(client.input.as_fd()).stdout(client.output.as_fd()).stderr(stderr.as_fd());
    for arg in &classic.args {
        spawn = spawn.arg(arg);
    }
    for (name, value) in std::env::vars_os() {
        spawn = spawn.env(name, value);
    }
    Ok(spawn.start()?.wait())
}

struct Client {
    input: File,
    output: File,
    until: Instant,
}

impl Client {
    /// The next byte; `None` at the end.
    fn byte(&mut self) -> io::Result<Option<u8>> {
        self.wait(&self.input, PollFlags::IN)?;
        let mut byte = [0];
        Ok((self.input.read(&mut byte)? == 1).then_some(byte[0]))
    }

    /// Never waits in write(2), where no clock would end it: a client that reads nothing is cut off like a silent one.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.wait(&self.output, PollFlags::OUT)?;
            let piece = rest.get(..PIECE_LEN).unwrap_or(rest);
            let written = match rustix::net::send(&self.output, piece, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Err(Errno::NOTSOCK) => rustix::io::write(&self.output, piece)?,
                Err(Errno::AGAIN | Errno::INTR) => 0,
                sent => sent?,
            };
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    fn wait(&self, fd: &File, flags: PollFlags) -> io::Result<()> {
        let left = Timespec::try_from(self.until.saturating_duration_since(Instant::now())).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(fd, flags)], Some(&left)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_client_that_reads_nothing_is_not_waited_for_without_end() {
        let (near, _far) = UnixStream::pair().unwrap();
        let (_read, write) = rustix::pipe::pipe().unwrap();
        for output in [OwnedFd::from(near), write] {
            let (input, output) = (File::open("/dev/null").unwrap(), File::from(output));
            let mut client = Client { input, output, until: Instant::now() + Duration::from_millis(200) };
            assert_eq!(client.write(&vec![b'x'; 10_000_000]).unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
    }
}
