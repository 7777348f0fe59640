//! PAM as a source: the `auth` and `account` modules of a service file decide.
//!
//! The service file is the system's (`/etc/pam.d/SERVICE`); for an instance with a root of its own it is `etc/pam.d/SERVICE` below that.

use std::net::IpAddr;

use control::Root;
use ipc::checkpw::Verdict;
use sys::pam::{Question, code};

/// # Errors
/// PAM cannot say; the text is for the log.
pub fn judge(root: &Root, service: &str, login: &[u8], password: &[u8], remote: Option<IpAddr>) -> Result<Verdict, String> {
    // Without a name a module would ask for one.
    if login.is_empty() {
        return Ok(Verdict::NoSuchUser {});
    }
    let confdir = (!root.is_system()).then(|| root.path().join("etc/pam.d"));
    let remote = remote.map_or_else(String::new, |remote| remote.to_canonical().to_string());
    let question = Question { service, user: login, password, remote: &remote, confdir: confdir.as_deref() };
    let answer = sys::pam::check(&question).map_err(|error| format!("PAM: {error}"))?;
    verdict(answer.code, answer.user).ok_or_else(|| format!("PAM service {service}: error {} of pam(3)", answer.code))
}

/// What a code of pam(3) means; `None`: PAM cannot say.
fn verdict(code: i32, user: Vec<u8>) -> Option<Verdict> {
    match code {
        code::SUCCESS => Some(Verdict::Right { user: user.into() }),
        code::AUTH_ERR | code::PERM_DENIED | code::MAXTRIES => Some(Verdict::Wrong {}),
        // Nobody is there who could choose another password.
        code::ACCT_EXPIRED | code::AUTHTOK_EXPIRED | code::NEW_AUTHTOK_REQD => Some(Verdict::Wrong {}),
        code::USER_UNKNOWN => Some(Verdict::NoSuchUser {}),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        for code in -1..40 {
            let expected = match code {
                0 => Some(Verdict::Right { user: "ann".into() }),
                6 | 7 | 11 | 12 | 13 | 27 => Some(Verdict::Wrong {}),
                10 => Some(Verdict::NoSuchUser {}),
                _ => None,
            };
            assert_eq!(verdict(code, b"ann".to_vec()), expected, "{code}");
        }
    }
}
