//! `control/authlimits`: what failed logins cost. Read by qmail-auth, and again whenever it changes.
//!
//! Lines of `name=value`; what is not there has its default:
//!
//! | name | default | meaning |
//! |---|---|---|
//! | `failures` | 20 | failed logins of a client address (IPv6: of its /64) after which it is refused; 0: never |
//! | `account` | 100 | failed logins for an account, from all addresses together, after which those that do not know it are refused; 0: never |
//! | `window` | 600 | seconds in which they are counted |
//! | `block` | 900 | seconds for which it is refused |
//! | `pause` | 8 | longest time in seconds before a refusal is said; it begins with one and doubles with each failure |
//! | `exempt` | – | a network (CIDR) whose addresses are never refused, though slowed: a webmail server; may stand more than once |

use std::net::IpAddr;
use std::time::Duration;

use users::Cidr;

use crate::{Root, Watched, read};

/// A longer time is a mistake: nobody would wait it out.
const SECONDS_MAX: u64 = 86_400;
/// A session waits so long at most; clients give up after a minute.
const PAUSE_MAX_S: u64 = 30;

/// The limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthLimits {
    /// Of an address, in the window; `None`: no limit.
    pub failures: Option<u32>,
    /// Of an account, in the window; `None`: no limit.
    pub account: Option<u32>,
    pub window: Duration,
    pub block: Duration,
    pub pause_max: Duration,
    exempt: Vec<Cidr>,
}

impl Default for AuthLimits {
    fn default() -> Self {
        Self {
            failures: Some(20),
            account: Some(100),
            window: Duration::from_secs(600),
            block: Duration::from_secs(900),
            pause_max: Duration::from_secs(8),
            exempt: Vec::new(),
        }
    }
}

impl AuthLimits {
    /// # Errors
    /// The line that is none.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let mut limits = Self::default();
        for line in read::lines_of(text) {
            let wrong = || format!("`{}`: write name=value, as `failures=20`", wire::escape::visible(&line));
            let at = line.iter().position(|b| *b == b'=').ok_or_else(wrong)?;
            let (name, value) = line.split_at_checked(at).ok_or_else(wrong)?;
            let value = value.get(1..).unwrap_or_default().trim_ascii();
            let number = || std::str::from_utf8(value).ok().and_then(|digits| digits.parse::<u32>().ok()).ok_or_else(wrong);
            let seconds = |max: u64| number().map(|count| Duration::from_secs(u64::from(count).min(max)));
            match name.trim_ascii() {
                b"failures" => limits.failures = Some(number()?).filter(|count| *count != 0),
                b"account" => limits.account = Some(number()?).filter(|count| *count != 0),
                b"window" => limits.window = seconds(SECONDS_MAX)?,
                b"block" => limits.block = seconds(SECONDS_MAX)?,
                b"pause" => limits.pause_max = seconds(PAUSE_MAX_S)?,
                b"exempt" => limits.exempt.push(Cidr::parse(value).ok_or_else(wrong)?),
                _ => return Err(wrong()),
            }
        }
        Ok(limits)
    }

    /// The limits of this instance, followed.
    #[must_use]
    pub fn watched(root: &Root) -> Watched<Self> {
        Watched::new(root.control_file("authlimits"), |text| text.map_or_else(|| Ok(Self::default()), Self::parse))
    }

    /// Is this address never refused?
    #[must_use]
    pub fn exempts(&self, address: IpAddr) -> bool {
        self.exempt.iter().any(|network| network.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_mistakes() {
        assert_eq!(AuthLimits::parse(b""), Ok(AuthLimits::default()));
        let text =
            b"# webmail\nexempt=192.0.2.7\nfailures = 3\naccount=0\nwindow=60\nblock=99999999\npause=99\nexempt=2001:db8::/32\n";
        let limits = AuthLimits::parse(text).unwrap();
        assert_eq!((limits.failures, limits.account), (Some(3), None));
        assert_eq!([limits.window, limits.block, limits.pause_max].map(|time| time.as_secs()), [60, 86_400, 30]);
        for (address, exempt) in [("192.0.2.7", true), ("192.0.2.8", false), ("2001:db8::1", true)] {
            assert_eq!(limits.exempts(address.parse().unwrap()), exempt, "{address}");
        }
        for bad in ["failures", "failures=", "failures=-1", "failures=x", "exempt=all", "limit=3", "=", "failures=99999999999"] {
            assert!(AuthLimits::parse(bad.as_bytes()).unwrap_err().contains("name=value"), "{bad}");
        }
    }

    #[test]
    fn a_change_counts_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        let mut limits = AuthLimits::watched(&root);
        assert_eq!(limits.get().unwrap(), &AuthLimits::default());
        for count in [3, 4] {
            std::fs::write(root.control_file("authlimits"), format!("failures={count}\n")).unwrap();
            assert_eq!(limits.get().unwrap().failures, Some(count));
        }
        std::fs::write(root.control_file("authlimits"), "nonsense\n").unwrap();
        assert!(limits.get().unwrap_err().is_temporary());
    }
}
