//! The checkpassword interface, as the caller (<http://cr.yp.to/checkpwd/interface.html>): the program reads `login NUL password NUL
//! timestamp NUL` from descriptor 3, becomes the user and runs the program that its last arguments name; or it exits: 1 not accepted, 2 used
//! wrongly, 111 temporary.
//!
//! What it runs here is `qmail-checkpw --accepted`, which says so, and what USER is, on descriptor 4. Uid and home do not count: qmail-lspawn
//! finds out about the user by itself. USER counts only from a program that has not become somebody else: a process of the user's could be made
//! to name another by any other of his (ptrace(2)). From one that has, it is the name that the client gave, which the program has accepted.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use ipc::Message as _;
use ipc::checkpw::{Accepted, Verdict};
use rustix::pipe::{PipeFlags, pipe_with};
use sys::Seqpacket;
use sys::spawn::Ended;
use zeroize::Zeroizing;

use crate::guard::Guarded;

/// The interface says that 512 bytes are enough for everybody; a program may read no more.
pub const LEN_MAX: usize = 512;
/// Exit codes of the interface.
const MISUSED: i32 = 2;
/// From here on a code speaks of trouble (111 of the interface, 126 and 127 of a shell), below it of a login that is not accepted: some
/// programs have more than one code for that.
const TROUBLE_FROM: i32 = 100;
/// Search path of the program.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where `--accepted` reports.
const REPORT: i32 = 4;

/// What a program is asked.
pub struct Login<'a> {
    pub service: &'a [u8],
    pub login: &'a [u8],
    pub password: &'a [u8],
    pub remote: Option<IpAddr>,
}

/// Starts the program, with the login on descriptor 3. `None`: this cannot be asked in the interface, so the program knows nobody of this
/// name.
///
/// # Errors
/// It cannot be started.
pub fn start(program: &Path, args: &[Vec<u8>], login: &Login<'_>) -> io::Result<Option<(Guarded, Seqpacket)>> {
    let Some(words) = credentials(login) else { return Ok(None) };
    // Far less than a pipe holds: this does not wait for the program.
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
    std::fs::File::from(ours).write_all(&words)?;
    let (report, report_end) = Seqpacket::pair()?;
    report.note_senders()?;
    let os = std::ffi::OsStr::from_bytes;
    let guarded = Guarded::start(program, |mut spawn| {
        spawn = spawn.env("PATH", PATH).env("PROTO", "TCP").env("SERVICE", os(login.service));
        if let Some(remote) = login.remote {
            spawn = spawn.env("TCPREMOTEIP", remote.to_canonical().to_string());
        }
        for arg in args {
            spawn = spawn.arg(os(arg));
        }
        let spawn = spawn.arg(control::program::sibling("qmail-checkpw")).arg("--accepted");
        spawn.fd("credentials", theirs.as_fd()).fd("report", report_end.as_fd())
    })?;
    report.set_nonblocking(true)?;
    Ok(Some((guarded, report)))
}

/// `None` if the interface has no way to say it: a NUL would move the rest into another field.
fn credentials(login: &Login<'_>) -> Option<Zeroizing<Vec<u8>>> {
    let words = Zeroizing::new([login.login, b"\0", login.password, b"\0\0"].concat());
    let is_sayable = !login.login.contains(&0) && !login.password.contains(&0) && words.len() <= LEN_MAX;
    is_sayable.then_some(words)
}

/// What came on descriptor 4.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    pub datagram: &'a [u8],
    /// Sent by a process that is still who qmail-checkpw is.
    pub is_ours: bool,
}

/// What the end of a program means.
#[must_use]
pub fn verdict(ended: Ended, report: Option<Report<'_>>, login: &[u8]) -> Verdict {
    let unavailable = |text: &str| Verdict::Unavailable { text: text.into() };
    match (ended, report.map(|report| (Accepted::decode(report.datagram), report.is_ours))) {
        (Ended::Code(0), Some((Ok(Accepted::Accepted { user }), is_ours))) => {
            let user = user.filter(|user| is_ours && !user.is_empty()).unwrap_or_else(|| login.into());
            if user.len() > LEN_MAX { unavailable("the program names nobody who can be") } else { Verdict::Right { user } }
        }
        (Ended::Code(0), _) => unavailable("the program ended well without running what it was given"),
        (Ended::Code(MISUSED), _) => unavailable("the program says that it is not used rightly"),
        // Whoever has this name may be somebody of the next source.
        (Ended::Code(code), _) if (1..TROUBLE_FROM).contains(&code) => Verdict::NoSuchUser {},
        (Ended::Code(code), _) => unavailable(&format!("the program exited {code}")),
        (Ended::Signal(signal), _) => unavailable(&format!("the program was ended by signal {signal}")),
        (Ended::Unknown, _) => unavailable("how the program ended is not known"),
    }
}

/// `--accepted`: as whoever the program has become.
///
/// # Errors
/// Nobody is there to hear it.
pub fn accepted() -> io::Result<()> {
    let report = sys::numbered::writable_pipe(REPORT).ok_or_else(|| io::Error::other("descriptor 4 is not qmail-checkpw's"))?;
    let user = std::env::var_os("USER").map(|user| user.into_vec().into());
    let datagram = Accepted::Accepted { user }.encode_bounded()?;
    Seqpacket::from_fd(report).send(&datagram)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login<'a>(login: &'a [u8], password: &'a [u8]) -> Login<'a> {
        Login { service: b"pop3", login, password, remote: None }
    }

    #[test]
    fn what_the_interface_cannot_say_is_not_said() {
        assert_eq!(credentials(&login(b"ann", b"a b")).unwrap()[..], b"ann\0a b\0\0"[..]);
        assert!(credentials(&login(b"ann\0x", b"y")).is_none() && credentials(&login(b"ann", b"x\0root")).is_none());
        assert!(credentials(&login(&[b'a'; 300], &[b'b'; 209])).is_some());
        assert!(credentials(&login(&[b'a'; 300], &[b'b'; 210])).is_none());
    }

    #[test]
    fn exits_and_reports() {
        let accepted = |user: Option<&str>| Accepted::Accepted { user: user.map(Into::into) }.encode();
        let right = |user: &str| Verdict::Right { user: user.into() };
        let (nobody, joe) = (accepted(None), accepted(Some("joe")));
        let verdict = |ended, datagram: Option<&[u8]>, is_ours| {
            super::verdict(ended, datagram.map(|datagram| Report { datagram, is_ours }), b"ann")
        };
        assert_eq!(verdict(Ended::Code(0), Some(&joe), true), right("joe"));
        assert_eq!(verdict(Ended::Code(0), Some(&joe), false), right("ann"), "whoever ann is could have made it say joe");
        for datagram in [&nobody, &accepted(Some(""))] {
            assert_eq!(verdict(Ended::Code(0), Some(datagram), true), right("ann"));
        }
        for code in [1, 3, 99] {
            assert_eq!(verdict(Ended::Code(code), None, true), Verdict::NoSuchUser {});
            assert_eq!(verdict(Ended::Code(code), Some(&nobody), true), Verdict::NoSuchUser {}, "it is its last word");
        }
        let bad = [nobody.as_slice(), &[0]].concat();
        let long = accepted(Some(&"a".repeat(LEN_MAX + 1)));
        for (ended, datagram) in [
            (Ended::Code(0), None),
            (Ended::Code(0), Some(&b"yes"[..])),
            (Ended::Code(0), Some(&bad)),
            (Ended::Code(0), Some(&long)),
            (Ended::Code(2), None),
            (Ended::Code(100), None),
            (Ended::Code(111), None),
            (Ended::Code(127), None),
            (Ended::Signal(9), None),
            (Ended::Unknown, Some(&joe)),
            (Ended::Signal(11), Some(&nobody)),
        ] {
            let verdict = verdict(ended, datagram, true);
            assert!(matches!(verdict, Verdict::Unavailable { .. }), "{ended:?} {datagram:?}");
        }
    }
}
