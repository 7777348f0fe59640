//! etc/shadow as a source (shadow(5)): the hash by the system's crypt(3), and the days after which an account or a password counts no more.
//!
//! The file lies below the root. Nobody of this name, a locked account and an expired one take the same work as a wrong password.

use control::{ControlError, Root, read};
use ipc::checkpw::Verdict;
use sys::crypt::Crypt;

/// The setting that nobody's password is computed with where there is no other to go by: Debian's default method and cost.
const NOBODYS: &[u8] = b"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$";
const DAY_S: u64 = 86_400;

/// What shadow(5) says of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry<'a> {
    hash: &'a [u8],
    /// Day of the last change of the password; 0: it must be changed.
    changed: Option<u64>,
    /// Days that a password counts.
    lifetime: Option<u64>,
    /// Day on which the account ends.
    expires: Option<u64>,
}

/// Reads the file, computes and judges. The file is root's alone (or the caller's).
///
/// # Errors
/// The file cannot be read, or the user's line cannot be understood; the text is for the log.
pub fn judge(root: &Root, login: &[u8], password: &[u8]) -> Result<Verdict, String> {
    let path = root.path().join("etc/shadow");
    let text = read::owned_file(&path).map_err(|error| error.to_string())?;
    let text = text.ok_or_else(|| ControlError::new(&path, "does not exist; control/authsources names it").to_string())?;
    let crypt = Crypt::load().map_err(|error| format!("libcrypt: {error}"))?;
    sandbox::enter(&sandbox::table::TOOL, root.path(), &[]).map_err(|error| format!("cannot confine itself: {error}"))?;
    let today = sys::clock::unix_s() / DAY_S;
    judge_by(&text, login, today, |setting| crypt.hash(password, setting))
}

/// `hash` is crypt(3) of the password.
fn judge_by(text: &[u8], login: &[u8], today: u64, hash: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Result<Verdict, String> {
    let Some(entry) = find(text, login)? else {
        // With the method of others here, so that the time does not say that there is nobody.
        let mut others = text.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b':').nth(1));
        let setting = others.rfind(|field| field.starts_with(b"$")).unwrap_or(NOBODYS);
        let _ = hash(setting);
        return Ok(Verdict::NoSuchUser {});
    };
    let is_locked = matches!(entry.hash.first(), None | Some(b'!' | b'*'));
    let setting =
        if is_locked { entry.hash.strip_prefix(b"!").filter(|hash| !hash.is_empty()).unwrap_or(NOBODYS) } else { entry.hash };
    let computed = hash(setting);
    if is_locked || is_over(&entry, today) {
        return Ok(Verdict::Wrong {});
    }
    let computed = computed.ok_or("this system's crypt(3) does not know the method of a user's hash")?;
    let is_right = is_equal(&computed, entry.hash);
    Ok(if is_right { Verdict::Right { user: login.into() } } else { Verdict::Wrong {} })
}

/// Has the account ended, or must the password be changed? As pam_unix(8) reads shadow(5).
fn is_over(entry: &Entry<'_>, today: u64) -> bool {
    let password_is_over = match (entry.changed, entry.lifetime) {
        (Some(0), _) => true,
        (Some(changed), Some(lifetime)) => today.saturating_sub(changed) > lifetime,
        _ => false,
    };
    password_is_over || entry.expires.is_some_and(|expires| today >= expires)
}

/// The first line of a user.
fn find<'a>(text: &'a [u8], login: &[u8]) -> Result<Option<Entry<'a>>, String> {
    if login.is_empty() || login.contains(&b':') || login.contains(&b'\n') {
        return Ok(None);
    }
    let mut lines = text.split(|b| *b == b'\n').map(|line| line.split(|b| *b == b':').collect::<Vec<_>>());
    let Some(fields) = lines.find(|fields| fields.first() == Some(&login)) else { return Ok(None) };
    let [_, hash, changed, _, lifetime, _, _, expires, ..] = fields.as_slice() else {
        return Err("etc/shadow: the user's line has too few fields".to_owned());
    };
    Ok(Some(Entry { hash, changed: day(changed)?, lifetime: day(lifetime)?, expires: day(expires)? }))
}

/// Empty or negative: no such bound.
fn day(field: &[u8]) -> Result<Option<u64>, String> {
    let text = std::str::from_utf8(field).ok().map(str::trim);
    match text.map(|text| (text, text.parse::<i64>())) {
        Some(("", _)) => Ok(None),
        Some((_, Ok(day))) => Ok(u64::try_from(day).ok()),
        _ => Err("etc/shadow: a day in the user's line is no number".to_owned()),
    }
}

/// Takes the same time wherever the first difference is.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const TODAY: u64 = 20_000;

    /// Judges with a crypt(3) that puts the password behind the first three bytes; and the settings it was called with.
    fn judged(line: &str, login: &str, password: &str) -> (Result<Verdict, String>, Vec<String>) {
        let settings = RefCell::new(Vec::new());
        let hash = |setting: &[u8]| {
            settings.borrow_mut().push(String::from_utf8(setting.to_vec()).unwrap());
            (setting != b"$9$").then(|| [setting.get(..3).unwrap_or_default(), password.as_bytes()].concat())
        };
        let verdict = judge_by(line.as_bytes(), login.as_bytes(), TODAY, hash);
        (verdict, settings.into_inner())
    }

    #[test]
    fn passwords_locks_and_days() {
        let right = || Verdict::Right { user: "ann".into() };
        let wrong = || Verdict::Wrong {};
        for (line, password, expected) in [
            ("ann:$1$pw:19000:0:99999:7:::", "pw", right()),
            ("ann:$1$pw:19000:0:99999:7:::", "pW", wrong()),
            ("ann:$1$pw:19000:0:99999:7:::", "", wrong()),
            ("ann:$1$pw:::::::", "pw", right()),
            ("ann:$1$pw:19000:0:999:7:::", "pw", wrong()),
            ("ann:$1$pw:19000:0:1000:7:::", "pw", right()),
            ("ann:$1$pw:0:0:99999:7:::", "pw", wrong()),
            ("ann:$1$pw:20001:0:5:7:::", "pw", right()),
            ("ann:$1$pw:19000:0:99999:7::20000:", "pw", wrong()),
            ("ann:$1$pw:19000:0:99999:7::20001:", "pw", right()),
            ("ann:$1$pw:19000:0:99999:7::0:", "pw", wrong()),
            ("ann:$1$pw:19000:0:99999:7::-1:", "pw", right()),
            ("ann:!$1$pw:19000:0:99999:7:::", "pw", wrong()),
            ("ann:*:19000:0:99999:7:::", "pw", wrong()),
            ("ann:!:19000:0:99999:7:::", "", wrong()),
            ("ann::19000:0:99999:7:::", "", wrong()),
            ("ann::19000:0:99999:7:::", "pw", wrong()),
            ("ann:$1$no:1:::::: \nann:$1$pw:1:::::::", "pw", wrong()),
        ] {
            let (verdict, settings) = judged(line, "ann", password);
            assert_eq!(verdict, Ok(expected), "{line} {password}");
            assert_eq!(settings.len(), 1, "the same work for everybody: {line}");
        }
    }

    #[test]
    fn nobody_costs_what_somebody_costs() {
        let text = "root:*:1:0:99999:7:::\nann:$1$pw:1:0:99999:7:::\nbob:!:1:0:99999:7:::\n";
        for login in ["joe", "ANN", "an", "", "ann:$1$pw", "ann\n", "$1$pw", "*"] {
            assert_eq!(judged(text, login, "pw"), (Ok(Verdict::NoSuchUser {}), vec!["$1$pw".to_owned()]), "{login:?}");
        }
        assert_eq!(judged("", "joe", "pw").1, [String::from_utf8(NOBODYS.to_vec()).unwrap()]);
    }

    #[test]
    fn what_cannot_be_understood_is_temporary() {
        for line in ["ann:$9$:1:0:99999:7:::", "ann:$1$pw", "ann:$1$pw:x:0:99999:7:::", "ann:$1$pw:1:0:99999:7::tomorrow:"] {
            assert!(judged(line, "ann", "pw").0.is_err(), "{line}");
        }
    }
}
