//! Plugins and RCPTCHECK in the classic face: the session's process confines itself before it reads a stranger's byte and can start nothing
//! then, so it starts a helper first: this executable again, which runs what it is sent as a request of `ipc::hook` and keeps its bounds
//! (`ipc::hook_program`). It reads the list of plugins itself and runs no other line. It ends when the session does.

use control::Root;
use ipc::hook::{Answer, Request};
use ipc::hook_program::{ANSWER_DEADLINE, Place};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use reception::log_line;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use sys::inherited::Inherited;
use sys::spawn::Spawn;
use sys::{Received, Seqpacket};

/// First argument of the helper; then the root.
const HELPER: &str = "--hook-programs";

/// The helper, seen from the session.
#[derive(Debug)]
pub(crate) struct Helper {
    socket: Seqpacket,
    /// A late answer would be taken for that to another question.
    is_lost: Cell<bool>,
}

impl Helper {
    /// # Errors
    /// Out of processes or descriptors; temporary.
    pub(crate) fn start(root: &Path) -> io::Result<Self> {
        let (ours, theirs) = Seqpacket::pair()?;
        let mut spawn = Spawn::new(Path::new("/proc/self/exe")).arg(HELPER).arg(root);
        for (name, value) in std::env::vars_os() {
            spawn = spawn.env(name, value);
        }
        spawn.stderr(rustix::stdio::stderr()).fd("session", theirs.as_fd()).start()?;
        Ok(Self { socket: ours, is_lost: Cell::new(false) })
    }

    /// Has a program run; `None`: it did not answer.
    pub(crate) fn ask(&self, request: &Request) -> Option<Answer> {
        if self.is_lost.get() {
            return None;
        }
        let answer = self.exchange(request);
        self.is_lost.set(answer.is_err());
        answer.ok()
    }

    fn exchange(&self, request: &Request) -> io::Result<Answer> {
        let datagram = request.encode_bounded()?;
        self.socket.send(&datagram)?;
        // A little longer than the program may take.
        let deadline = ANSWER_DEADLINE.saturating_add(Duration::from_secs(10));
        let timeout = Timespec::try_from(deadline).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        let Received::Datagram(len, _) = self.socket.recv(&mut buf)? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        Ok(Answer::decode(buf.get(..len).unwrap_or_default())?)
    }
}

/// The helper's side: `None` if these are no arguments of it, else its exit code.
pub(crate) fn helper(args: &[OsString]) -> Option<ExitCode> {
    let [face, root] = args else { return None };
    (face == HELPER).then(|| {
        Root::new(Path::new(root))
            .map_err(io::Error::other)
            .and_then(|root| serve(&root))
            .map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
    })
}

fn serve(root: &Root) -> io::Result<()> {
    let plugins = crate::classic::plugins(root)?.unwrap_or_default();
    let session = Seqpacket::from_fd(Inherited::take()?.one("session")?);
    let environment: Vec<_> = std::env::vars_os().filter(|(name, _)| name != sys::inherited::VARIABLE).collect();
    let place = Place { root: root.path(), client: session.as_fd(), environment: &environment };
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    loop {
        let Received::Datagram(len, _) = session.recv(&mut buf)? else { return Ok(()) };
        let (program, answer) = match Request::decode(buf.get(..len).unwrap_or_default())? {
            Request::Plugin { program, .. } if !plugins.0.iter().flatten().any(|line| *line == *program) => {
                (program, Answer::failed("the configuration does not hold this program"))
            }
            Request::Plugin { program, environment } => {
                let answer = place.plugin(&program, &environment);
                (program, answer)
            }
            Request::Check { program, environment } => {
                let answer = place.check(&program, &environment);
                (program, answer)
            }
            Request::Queue { .. } | Request::Envelope {} => return Err(io::ErrorKind::InvalidData.into()),
        };
        if let Answer::Failed { text } = &answer {
            log_line(format_args!("qmail-smtpd: {}: {}", wire::escape::visible(&program), wire::escape::visible(text)));
        }
        session.send(&answer.encode_bounded()?)?;
    }
}
