//! Starting what judges one login, and the process of ours that does so for etc/shadow and PAM.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;

use control::Root;
use control::authsources::{Source, check_program};
use ipc::checkpw::{Request, Verdict};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use sys::inherited::Inherited;
use sys::spawn::Ended;
use sys::{Received, Seqpacket};
use zeroize::Zeroizing;

use crate::checkpassword::{self, Login, Report};
use crate::guard::Guarded;
use crate::{pam, shadow};

/// Longer names are nobody's (useradd(8) has 32, an address 900 bytes at most).
const LOGIN_LEN_MAX: usize = 1002;
/// Longer passwords are nobody's: the bound of crypt(3) and PAM.
const PASSWORD_LEN_MAX: usize = 512;

/// A process that judges one login.
#[derive(Debug)]
pub struct Helper {
    pub guarded: Guarded,
    report: Seqpacket,
    /// For a foreign program: the name as the client gave it. `None`: our own, which speaks of more than yes.
    login: Option<Vec<u8>>,
}

/// What starting came to.
#[derive(Debug)]
pub enum Started {
    Helper(Helper),
    /// No process is needed to know.
    Known(Verdict),
}

/// Starts a helper for a login against a source.
///
/// # Errors
/// It cannot be started: the source is unavailable, and why.
pub fn start(root: &Root, source: &Source, request: &Request) -> Result<Started, String> {
    let Request::Check { service, login, password, remote, .. } = request;
    if login.len() > LOGIN_LEN_MAX
        || password.expose().len() > PASSWORD_LEN_MAX
        || login.contains(&0)
        || password.expose().contains(&0)
    {
        return Ok(Started::Known(Verdict::NoSuchUser {}));
    }
    match source {
        Source::Checkpassword { program, args } => {
            check_program(program).map_err(|error| error.to_string())?;
            let asked = Login { service, login, password: password.expose(), remote: *remote };
            let started = checkpassword::start(program, args, &asked);
            let started = started.map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
            Ok(match started {
                Some((guarded, report)) => Started::Helper(Helper { guarded, report, login: Some(login.to_vec()) }),
                None => Started::Known(Verdict::NoSuchUser {}),
            })
        }
        Source::Shadow | Source::Pam { .. } => {
            let started = start_own(root, source, request).map_err(|error| format!("the helper cannot be started: {error}"))?;
            Ok(Started::Helper(started))
        }
        Source::Accounts | Source::Ldap | Source::Oauth => Err(format!("`{source}` is not qmail-checkpw's to ask")),
    }
}

fn start_own(root: &Root, source: &Source, request: &Request) -> io::Result<Helper> {
    let (ours, theirs) = Seqpacket::pair()?;
    let line = source.line();
    let guarded = Guarded::start(&control::program::sibling("qmail-checkpw"), |spawn| {
        let spawn = spawn.arg("--root").arg(root.path()).arg("--helper").arg(OsStr::from_bytes(&line));
        spawn.fd("work", theirs.as_fd())
    })?;
    ours.set_nonblocking(true)?;
    let sent = ours.send(&Zeroizing::new(request.encode_bounded()?));
    if let Err(error) = sent {
        let _ = guarded.give_up().wait();
        return Err(error);
    }
    Ok(Helper { guarded, report: ours, login: None })
}

impl Helper {
    /// Its verdict, if it has ended, and all that it has started.
    #[must_use]
    pub fn ended(&self) -> Option<Verdict> {
        let ended = self.guarded.child.try_wait()?;
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        let (report, sender) = match self.report.recv_with_sender(&mut buf) {
            Ok((Received::Datagram(len, _), sender)) => (buf.get(..len), sender),
            Ok((Received::End, _)) | Err(_) => (None, None),
        };
        let is_ours = sender == Some(rustix::process::getuid().as_raw());
        Some(match &self.login {
            Some(login) => checkpassword::verdict(ended, report.map(|datagram| Report { datagram, is_ours }), login),
            None => own_verdict(ended, report),
        })
    }
}

fn own_verdict(ended: Ended, report: Option<&[u8]>) -> Verdict {
    match (ended, report.map(Verdict::decode)) {
        (Ended::Code(0), Some(Ok(verdict))) => verdict,
        _ => Verdict::Unavailable { text: format!("the helper said nothing ({ended:?})").as_str().into() },
    }
}

/// `--helper`: one login, one verdict.
///
/// # Errors
/// Nothing can be asked or answered: then the source is unavailable.
pub fn run(root: &Root, line: &[u8]) -> io::Result<()> {
    let work = Seqpacket::from_fd(Inherited::take()?.one("work")?);
    sys::confine::not_dumpable()?;
    let source = Source::parse(line).map_err(io::Error::other)?;
    let mut buf = Zeroizing::new(vec![0; DATAGRAM_LEN_MAX]);
    let Received::Datagram(len, _) = work.recv(&mut buf)? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
    let Request::Check { login, password, remote, .. } = Request::decode(buf.get(..len).unwrap_or_default())?;
    let judged = match &source {
        Source::Shadow => shadow::judge(root, &login, password.expose()),
        Source::Pam { service } => pam::judge(root, service, &login, password.expose(), remote),
        Source::Accounts | Source::Checkpassword { .. } | Source::Ldap | Source::Oauth => {
            Err("not a source of the helper's".to_owned())
        }
    };
    drop(password);
    let verdict = judged.unwrap_or_else(|text| Verdict::Unavailable { text: ipc::clip(text.as_bytes()).into() });
    work.send(&verdict.encode_bounded()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_of_ours_is_believed_only_when_it_ends_well() {
        let right = Verdict::Right { user: "ann".into() }.encode();
        assert_eq!(own_verdict(Ended::Code(0), Some(&right)), Verdict::Right { user: "ann".into() });
        for (ended, report) in [
            (Ended::Code(111), Some(&right[..])),
            (Ended::Signal(11), Some(&right)),
            (Ended::Code(0), None),
            (Ended::Code(0), Some(b"x")),
        ] {
            assert!(matches!(own_verdict(ended, report), Verdict::Unavailable { .. }), "{ended:?}");
        }
    }
}
