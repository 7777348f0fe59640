//! tcp-env(1): `tcp-env [-rR] [-t SECONDS] PROGRAM [ARG…]` makes tcp-environ(5) for a program that inetd(8) runs.
//!
//! With PROTO=TCP in the environment all is there already. Names come by /etc/nsswitch.conf, TCPREMOTEINFO from the client's ident
//! server (RFC 1413) within SECONDS (30), not with -R. All errors end silently with 111, as ever: nobody listens but the network.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use tool::options::{self, Letters, Opt};
use tool::{End, Name, TEMPORARY, input};

const TIMEOUT_S: u64 = 30;
const IDENT_PORT: u16 = 113;
/// Longest answer of an ident server, in bytes (RFC 1413 §4).
const IDENT_LEN_MAX: usize = 1000;
const ME: Name = Name("tcp-env");

/// The program.
///
/// # Errors
/// 111 without a word.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    let letters = Letters { flags: b"rR", with_value: b"t", with_glued_value: b"" };
    let (options, rest) = options::known(ME, args, letters).ok_or(End::silent(TEMPORARY))?;
    let (mut asks_ident, mut timeout_s) = (true, TIMEOUT_S);
    for option in options {
        match option {
            Opt::Flag(letter) => asks_ident = letter == b'r',
            Opt::Value(_, value) => timeout_s = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok()).unwrap_or(0),
            Opt::Unknown(_) => {}
        }
    }
    let mut command = rest.into_iter().map(OsString::from_vec);
    let mut program = Command::new(command.next().ok_or(End::silent(TEMPORARY))?);
    program.args(command);
    if input::variable("PROTO").as_deref() != Some(b"TCP") {
        let wait = asks_ident.then(|| Duration::from_secs(timeout_s));
        describe(&mut program, wait).ok_or(End::silent(TEMPORARY))?;
    }
    let _ = program.exec();
    Err(End::silent(TEMPORARY))
}

/// Puts both ends of the connection on descriptor 0 into the environment; `None` if it is none.
fn describe(program: &mut Command, ident_wait: Option<Duration>) -> Option<()> {
    let stdin = std::io::stdin();
    let local = address(rustix::net::getsockname(&stdin).ok()?)?;
    let remote = address(rustix::net::getpeername(&stdin).ok()??)?;
    program.env("PROTO", "TCP");
    for (side, address) in [("LOCAL", local), ("REMOTE", remote)] {
        program.env(format!("TCP{side}IP"), address.ip().to_string()).env(format!("TCP{side}PORT"), address.port().to_string());
        match sys::names::of_address(address.ip()) {
            Ok(Some(name)) => program.env(format!("TCP{side}HOST"), OsString::from_vec(name.to_ascii_lowercase())),
            Ok(None) => program.env_remove(format!("TCP{side}HOST")),
            Err(_) => program.env(format!("TCP{side}HOST"), "softdnserror"),
        };
    }
    program.env_remove("TCPREMOTEINFO");
    if let Some(info) = ident_wait.and_then(|wait| ident(local, remote, wait)) {
        program.env("TCPREMOTEINFO", OsString::from_vec(info));
    }
    Some(())
}

/// An IPv4 address within an IPv6 one is an IPv4 address.
fn address(any: rustix::net::SocketAddrAny) -> Option<SocketAddr> {
    let address = SocketAddr::try_from(any).ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Asks the client's ident server, from our end's address.
fn ident(local: SocketAddr, remote: SocketAddr, wait: Duration) -> Option<Vec<u8>> {
    let deadline = Instant::now().checked_add(wait)?;
    let left = || Some(deadline.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero());
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(remote.ip(), IDENT_PORT), left()?).ok()?;
    stream.set_write_timeout(left()).ok()?;
    stream.write_all(format!("{} , {}\r\n", remote.port(), local.port()).as_bytes()).ok()?;
    let mut answer = Vec::new();
    while answer.len() < IDENT_LEN_MAX && !answer.contains(&b'\n') {
        stream.set_read_timeout(Some(left()?)).ok()?;
        let mut piece = [0; 256];
        match stream.read(&mut piece).ok()? {
            0 => break,
            len => answer.extend_from_slice(piece.get(..len).unwrap_or_default()),
        }
    }
    user_of(&answer)
}

/// What stands behind `PORTS : USERID : SYSTEM :` (RFC 1413 §6), without blanks, line ends and NULs.
fn user_of(answer: &[u8]) -> Option<Vec<u8>> {
    let line = answer.split(|b| matches!(b, b'\r' | b'\n')).next()?;
    let mut parts = line.splitn(4, |b| *b == b':');
    let (_, kind, _, user) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if !kind.trim_ascii().eq_ignore_ascii_case(b"USERID") {
        return None;
    }
    let user: Vec<u8> = user.iter().copied().filter(|b| !matches!(b, b' ' | b'\t' | 0)).collect();
    (!user.is_empty()).then_some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_ident_servers() {
        for (answer, user) in [
            ("1234 , 25 : USERID : UNIX : joe\r\n", Some("joe")),
            ("1234,25:userid:OTHER:a:b", Some("a:b")),
            ("1234 , 25 : ERROR : NO-USER\r\n", None),
            ("1234 , 25 : USERID : UNIX : \r\n", None),
            ("junk", None),
            ("", None),
        ] {
            assert_eq!(user_of(answer.as_bytes()), user.map(|user| user.as_bytes().to_vec()), "{answer}");
        }
    }
}
