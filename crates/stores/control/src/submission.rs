//! What holds for users who log in to send.
//!
//! | file | read by | a line | default |
//! |---|---|---|---|
//! | `submission` | qmail-smtpd | `sender-binding=on` or `off`, `hide-address=on` or `off`, `complete-addresses=on` or `off` | `on`, `off`, `off` |
//! | `submissionsenders` | qmail-auth, at once | `login:address`, `login:@domain`: may send as that, beside his own | nobody |
//! | `submissionlimits` | qmail-auth, at once | `messages-per-hour=`, `recipients-per-hour=`, `messages-per-day=`, `recipients-per-day=`; 0: no limit | 1000, 2000, 5000, 10000 |

use std::collections::BTreeSet;

use crate::{ControlError, Root, Watched, read};

/// `control/submission`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submission {
    /// A login sends with its own addresses only.
    pub binds_senders: bool,
    /// The Received field does not tell where the client is.
    pub hides_client: bool,
    /// Addresses without a host or a domain get one, as with qmail-inject.
    pub completes_addresses: bool,
}

impl Submission {
    /// Reads the file.
    ///
    /// # Errors
    /// Unreadable or malformed; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let lines = root.lines("submission")?.unwrap_or_default();
        Self::parse(&lines).map_err(|problem| ControlError::new(&root.control_file("submission"), problem))
    }

    fn parse(lines: &[Vec<u8>]) -> Result<Self, String> {
        let mut all = Self { binds_senders: true, hides_client: false, completes_addresses: false };
        for line in lines {
            let (key, value) = setting(line)?;
            let is_on = match value {
                b"on" => true,
                b"off" => false,
                _ => return Err(format!("`{}` is neither on nor off; write one of these", wire::escape::visible(line))),
            };
            match key {
                b"sender-binding" => all.binds_senders = is_on,
                b"hide-address" => all.hides_client = is_on,
                b"complete-addresses" => all.completes_addresses = is_on,
                _ => {
                    return Err(format!(
                        "`{}`: sender-binding, hide-address or complete-addresses, please",
                        wire::escape::visible(line)
                    ));
                }
            }
        }
        Ok(all)
    }
}

/// `control/submissionsenders`: what logins may send as, beside their own addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubmissionSenders(BTreeSet<(Vec<u8>, Vec<u8>)>);

impl SubmissionSenders {
    /// The file as it is now, while it is root's alone: it gives away rights.
    #[must_use]
    pub fn watch(root: &Root) -> Watched<Self> {
        Watched::owned(root.control_file("submissionsenders"), |text| Self::parse(text.unwrap_or_default()))
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let lines = read::lines_of(text).into_iter().map(|line| {
            let colon = line.iter().position(|b| *b == b':').filter(|at| *at > 0);
            let parts = colon.and_then(|at| Some((line.get(..at)?, line.get(at.checked_add(1)?..)?)));
            let parts = parts.filter(|(_, address)| address.contains(&b'@') && !address.ends_with(b"@"));
            let (login, address) = parts.ok_or_else(|| {
                format!("`{}` is neither login:address nor login:@domain; write one of these", wire::escape::visible(&line))
            })?;
            Ok((login.to_ascii_lowercase(), address.to_ascii_lowercase()))
        });
        lines.collect::<Result<_, String>>().map(Self)
    }

    /// May `login` send as `local@domain`, by a line of the file? In any case of letters.
    #[must_use]
    pub fn permits(&self, login: &[u8], local: &[u8], domain: &[u8]) -> bool {
        let login = login.to_ascii_lowercase();
        let has = |local: &[u8]| {
            let address = [local, b"@", domain].concat().to_ascii_lowercase();
            self.0.contains(&(login.clone(), address))
        };
        has(local) || has(b"")
    }
}

/// `control/submissionlimits`: what one login may send, 0 for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubmissionLimits {
    pub messages_per_hour: u32,
    pub recipients_per_hour: u32,
    pub messages_per_day: u32,
    pub recipients_per_day: u32,
}

impl Default for SubmissionLimits {
    /// More than a person or an office sends, and little for whoever stole a password.
    fn default() -> Self {
        Self { messages_per_hour: 1000, recipients_per_hour: 2000, messages_per_day: 5000, recipients_per_day: 10_000 }
    }
}

impl SubmissionLimits {
    /// The file as it is now.
    #[must_use]
    pub fn watch(root: &Root) -> Watched<Self> {
        Watched::new(root.control_file("submissionlimits"), |text| Self::parse(text.unwrap_or_default()))
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let mut all = Self::default();
        for line in read::lines_of(text) {
            let (key, value) = setting(&line)?;
            let place = match key {
                b"messages-per-hour" => &mut all.messages_per_hour,
                b"recipients-per-hour" => &mut all.recipients_per_hour,
                b"messages-per-day" => &mut all.messages_per_day,
                b"recipients-per-day" => &mut all.recipients_per_day,
                _ => return Err(format!("`{}`: no limit has that name", wire::escape::visible(&line))),
            };
            let number = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            *place = number.ok_or_else(|| format!("`{}`: a number, please", wire::escape::visible(&line)))?;
        }
        Ok(all)
    }
}

/// `key=value`.
fn setting(line: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let parts = line.iter().position(|b| *b == b'=').and_then(|at| Some((line.get(..at)?, line.get(at.checked_add(1)?..)?)));
    parts.ok_or_else(|| format!("`{}` is no key=value", wire::escape::visible(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings() {
        let parse = |text: &str| Submission::parse(&read::lines_of(text.as_bytes()));
        assert_eq!(parse(""), Ok(Submission { binds_senders: true, hides_client: false, completes_addresses: false }));
        let off = Submission { binds_senders: false, hides_client: true, completes_addresses: true };
        assert_eq!(parse("# free\nsender-binding=off\nhide-address=on\ncomplete-addresses=on\n"), Ok(off));
        for bad in ["sender-binding", "sender-binding=no", "sender-bindin=on", "=on"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn senders_are_addresses_or_whole_domains() {
        let senders = SubmissionSenders::parse(b"Bob@x:Sales@X\nann@x:@News.example\nroot:a@b\n").unwrap();
        for (login, local, domain, may) in [
            ("bob@X", "SALES", "x", true),
            ("bob@x", "sales2", "x", false),
            ("ann@x", "sales", "x", false),
            ("ann@x", "any", "news.example", true),
            ("ann@x", "any", "a.news.example", false),
            ("root", "a", "b", true),
        ] {
            assert_eq!(senders.permits(login.as_bytes(), local.as_bytes(), domain.as_bytes()), may, "{login} {local}@{domain}");
        }
        for bad in ["bob@x", ":a@b", "bob:", "bob:x", "bob:x@"] {
            assert!(SubmissionSenders::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits() {
        assert_eq!(SubmissionLimits::parse(b""), Ok(SubmissionLimits::default()));
        let some = SubmissionLimits::parse(b"messages-per-hour=5\nrecipients-per-day=0\n").unwrap();
        let wanted = SubmissionLimits { messages_per_hour: 5, recipients_per_day: 0, ..SubmissionLimits::default() };
        assert_eq!(some, wanted);
        for bad in ["messages-per-hour", "messages=5", "messages-per-day=-1", "messages-per-day=x", "messages-per-day="] {
            assert!(SubmissionLimits::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
