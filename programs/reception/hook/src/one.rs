//! `--one`: one request on descriptor `client`, one program, one answer.
//!
//! Guarantees: only what the list on descriptor `allowed` holds is run. The answer is sent once, when nothing of the program is left.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use control::{Hooks, Root};
use ipc::hook::{Answer, Request};
use ipc::hook_program::Place;
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use sys::inherited::Inherited;
use sys::{Received, Seqpacket};

use crate::log;

/// For the request, which is sent with the connection.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// What a program finds in its environment beside what the request holds.
const KEPT: [&str; 2] = ["PATH", "QMAIL_ROOT"];

/// What may be run, as the service hands it on: a letter and a program, each with a NUL behind it.
#[must_use]
pub fn allowed(hooks: &Hooks) -> Vec<u8> {
    let all = [(b"p", &hooks.plugins), (b"c", &hooks.checks), (b"q", &hooks.queues)];
    let each =
        all.into_iter().flat_map(|(letter, programs)| programs.iter().map(move |program| [letter, &program[..], b"\0"].concat()));
    each.flatten().collect()
}

fn is_allowed(list: &[u8], letter: u8, program: &[u8]) -> bool {
    !program.contains(&0) && list.split(|b| *b == 0).any(|line| line.split_first() == Some((&letter, program)))
}

/// Serves the connection.
///
/// # Errors
/// The caller says what is no request, or is gone.
pub fn serve(root: &Root) -> io::Result<()> {
    sys::confine::not_dumpable()?;
    let mut inherited = Inherited::take()?;
    let client = Seqpacket::from_fd(inherited.one("client")?);
    let mut list = Vec::new();
    // The service hands the same file to everyone, so its offset says nothing.
    let file = File::from(inherited.one("allowed")?);
    let len = file.metadata()?.len();
    list.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut list, 0)?;
    client.set_nonblocking(false)?;
    client.set_deadline(REQUEST_DEADLINE)?;
    let Some((request, text)) = receive(&client)? else { return Ok(()) };
    let kept: Vec<(OsString, OsString)> =
        KEPT.iter().filter_map(|name| Some(((*name).into(), std::env::var_os(name)?))).collect();
    let place = Place { root: root.path(), client: client.as_fd(), environment: &kept };
    let (program, answer) = match request {
        Request::Plugin { program, environment } if is_allowed(&list, b'p', &program) => {
            let answer = place.plugin(&program, &environment);
            (program, answer)
        }
        Request::Check { program, environment } if is_allowed(&list, b'c', &program) => {
            let answer = place.check(&program, &environment);
            (program, answer)
        }
        Request::Queue { program, environment } if is_allowed(&list, b'q', &program) => {
            let (Some(text), Some((Request::Envelope {}, Some(envelope)))) = (text, receive(&client)?) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let answer = place.queue(&program, &environment, text, envelope);
            (program, answer)
        }
        Request::Plugin { program, .. } | Request::Check { program, .. } | Request::Queue { program, .. } => {
            (program, Answer::failed("the configuration does not hold this program"))
        }
        Request::Envelope {} => return Err(io::ErrorKind::InvalidData.into()),
    };
    if let Answer::Failed { text } = &answer {
        log(&format!("warning: {}: {}", wire::escape::visible(&program), wire::escape::visible(text)));
    }
    match client.send(&answer.encode_bounded()?) {
        // Who asked is gone, and the line above says so if the program was ended for it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        sent => sent,
    }
}

/// A request, and the descriptor beside it.
fn receive(client: &Seqpacket) -> io::Result<Option<(Request, Option<OwnedFd>)>> {
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    match client.recv_with_fd(&mut buf)? {
        Received::Datagram(len, fd) => Ok(Some((Request::decode(buf.get(..len).unwrap_or_default())?, fd))),
        Received::End => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_may_be_run_and_only_as_what_it_is_listed() {
        let set = |one: &str| std::iter::once(one.as_bytes().to_vec()).collect();
        let list = allowed(&Hooks { plugins: set(":p x"), queues: set("/q"), checks: set("/c") });
        for (letter, program, may) in [
            (b'p', ":p x", true),
            (b'q', "/q", true),
            (b'c', "/c", true),
            (b'c', "/q", false),
            (b'p', "", false),
            (b'p', ":p x\0c/c", false),
        ] {
            assert_eq!(is_allowed(&list, letter, program.as_bytes()), may, "{program}");
        }
    }
}
