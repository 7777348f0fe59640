//! control/resolvers: does each name server answer? Without DNS no mail leaves.

use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::Duration;

use control::{Resolve, Root};

use super::Findings;

/// A server that answers at all answers one of two questions in this time.
const PATIENCE: Duration = Duration::from_millis(1500);
const TRIES: usize = 2;
/// RFC 1035 §4.2.1.
const ANSWER_LEN_MAX: usize = 512;
/// Who asks; it only has to come back.
const ID: [u8; 2] = *b"qm";

pub(super) fn check(root: &Root, found: &mut Findings) {
    // What is wrong with the lines is said elsewhere.
    let Ok(Resolve { resolvers }) = Resolve::read(root) else { return };
    let (sender, receiver) = mpsc::channel();
    for (at, server) in resolvers.iter().copied().enumerate() {
        let sender = sender.clone();
        // If none can be started, nothing is known.
        let _ = std::thread::Builder::new().spawn(move || sender.send((at, answers(server))));
    }
    drop(sender);
    let mut dead: Vec<usize> = receiver.iter().filter(|(_, answers)| !answers).map(|(at, _)| at).collect();
    dead.sort_unstable();
    let file = root.control_file("resolvers");
    let text = root.text("resolvers").ok().flatten().unwrap_or_default();
    let numbers: Vec<usize> = users::list_lines(&text).map(|(number, _)| number).collect();
    let is_all = dead.len() == resolvers.len();
    for at in dead {
        let (Some(server), Some(number)) = (resolvers.get(at), numbers.get(at)) else { continue };
        let cure = "start it, name another one, or remove the file to use /etc/resolv.conf";
        if is_all {
            found.error(
                &file,
                format!("line {number}: {server} does not answer, nor does another one, and no mail goes out; {cure}"),
            );
        } else {
            found.warning(&file, format!("line {number}: {server} does not answer; {cure}"));
        }
    }
}

/// Asks for the root's name servers, which everyone who answers at all has a word on.
fn answers(server: SocketAddr) -> bool {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let Ok(socket) = UdpSocket::bind(any).and_then(|socket| socket.connect(server).map(|()| socket)) else { return false };
    if socket.set_read_timeout(Some(PATIENCE)).is_err() {
        return false;
    }
    // Recursion desired, one question: `.`, NS, IN (RFC 1035 §4.1).
    let question = [&ID[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &[0, 0, 2, 0, 1]].concat();
    (0..TRIES).any(|_| {
        let mut answer = [0; ANSWER_LEN_MAX];
        let len = socket.send(&question).and_then(|_| socket.recv(&mut answer));
        len.is_ok_and(|len| len >= 12 && answer.starts_with(&ID) && answer.get(2).is_some_and(|flags| flags & 0x80 != 0))
    })
}
