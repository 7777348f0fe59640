//! What qmail-smtpd reads when it starts, both faces.
//!
//! | file | default | meaning |
//! |---|---|---|
//! | `me` | first word of smtpgreeting | the name of this host |
//! | `smtpgreeting` | me | text of the greeting |
//! | `localiphost` | me | the domain of `user@[address the client connected to]` |
//! | `rcpthosts`, `morercpthosts.cdb` | nobody | domains anybody may send to, beside those we deliver for |
//! | `relayclients` | nobody | networks whose clients may send anywhere (RELAYCLIENT set to nothing) |
//! | `tcp.smtp`, `tcp.smtp.cdb` | everybody | clients of the service `smtp` that may not connect, or may relay ([`crate::clientrules`]) |
//! | `authcleartext` | this host | networks whose clients may log in without TLS |
//! | `authmechanisms` | PLAIN, LOGIN, SCRAM | SASL mechanisms that are offered |
//! | `popbeforesmtp` | 0 | not 0: addresses that opened a mailbox by POP3 may relay; qmail-auth knows them |
//! | `xclient` | nobody | networks whose clients may say for whom they stand (XCLIENT) |
//! | `tlsclients`, `clientca.pem` | nobody is asked | certificates of clients that may relay, or log in ([`crate::tlsclients`]) |
//! | `badmailfrom` … `validrcptto` | – | who is refused by name ([`crate::refusals`]) |
//! | `smtpgreetdelay` | 0 | seconds before the greeting, not for relay clients; at most 120 |
//! | `smtpplugins` | – | programs that have a say ([`crate::hooks`]) |
//! | `submission` | see [`crate::submission`] | what holds for who is logged in |
//! | `barelf` | `reject` | what becomes of a bare CR or LF: `reject` or `normalize` |
//! | `dsn` | `all` | to whom DSN (RFC 3461) is offered: `all`, or `relay`: to clients that may send anywhere |
//! | `databytes` | 0 | bytes of a message as stored, 0 for no bound |
//! | `maxrcpt` | 10000 | recipients of a message, 0 for no bound but that of memory; the rest gets 452 and comes in another transaction |
//! | `brtlimit` | 100 | refused recipients before the connection is closed, 0 for no bound |
//! | `timeoutsmtpd` | 1200 | seconds for a command or the next bytes of a text |
//! | `concurrencyincoming` | 10000 | sessions in all; each worker holds its share |
//! | `concurrencyincomingip` | 100 | sessions of one client address in one worker, so at most that many times the number of workers in all. Not for relay clients; for this host itself only if the file is there |

use users::Networks;

use crate::clientrules::ClientRules;
use crate::hooks::Plugins;
use crate::refusals::Refusals;
use crate::submission::Submission;
use crate::tlsclients::TlsClients;
use crate::{ControlError, Inject, Root};

/// Recipients of a message by default (RFC 5321 §4.5.3.1.8 asks for 100 at least): a list of usual size passes in one transaction.
const RECIPIENTS_DEFAULT: u64 = 10_000;
/// Refused recipients by default: more than a stale list has, fewer than a dictionary.
const BAD_RECIPIENTS_DEFAULT: u64 = 100;
/// With all that stands around it a line of at most 512 bytes (RFC 5321 §4.5.3.1.5).
const GREETING_LEN_MAX: usize = 480;
/// As ever; RFC 5321 §4.5.3.2 asks for 300 at least.
const TIMEOUT_DEFAULT_S: u64 = 1200;
/// A longer time is no bound.
const TIMEOUT_MAX_S: u64 = 86_400;
/// RFC 5321 §4.5.3.2.1 has clients wait five minutes for a greeting; few do.
pub const GREET_DELAY_MAX_S: u64 = 120;
const SESSIONS_DEFAULT: u64 = 10_000;
/// One descriptor a session, and as many again for the queue, of the 65,536 that a worker may have.
const SESSIONS_MAX: u64 = 30_000;
const SESSIONS_PER_ADDRESS_DEFAULT: u64 = 100;

/// The configuration of qmail-smtpd.
#[derive(Debug, Clone)]
pub struct Smtpd {
    pub me: Vec<u8>,
    pub greeting: Vec<u8>,
    pub localiphost: Vec<u8>,
    pub rcpthosts: Vec<Vec<u8>>,
    /// The bytes of the cdb: nothing is opened once strangers talk.
    pub morercpthosts: Option<Vec<u8>>,
    pub relayclients: Networks,
    /// Rules for clients of the service `smtp`.
    pub client_rules: ClientRules,
    /// Networks whose clients may send a password without TLS.
    pub cleartext: Networks,
    /// Names of SASL mechanisms; `None`: the default ones.
    pub mechanisms: Option<Vec<Vec<u8>>>,
    /// Networks whose clients may say for whom they stand.
    pub xclient: Networks,
    /// Is qmail-auth asked whether an address opened a mailbox (`popbeforesmtp`)?
    pub pop_before_smtp: bool,
    /// `None`: clients are not asked for certificates.
    pub tls_clients: Option<TlsClients>,
    /// PEM of the authorities for them.
    pub client_authorities: Vec<u8>,
    pub refusals: Refusals,
    /// Seconds before the greeting.
    pub greet_delay_s: u64,
    pub plugins: Plugins,
    pub submission: Submission,
    /// What completes addresses, where `submission` says that they are.
    pub names: Option<Inject>,
    pub normalizes_bare_lf: bool,
    /// DSN is offered to everybody, not just to clients that may relay.
    pub offers_dsn_to_all: bool,
    /// The least time that BY=…;R may leave (`deliverby`), in seconds; `None`: no DELIVERBY.
    pub deliver_by_min_s: Option<u64>,
    pub priority: PriorityOffer,
    pub databytes: u64,
    pub recipients_max: usize,
    pub bad_recipients_max: u32,
    pub timeout_s: u64,
    /// Sessions in all.
    pub sessions_max: usize,
    /// Sessions of an address, in one worker.
    pub sessions_per_address_max: usize,
    /// Does that hold for this host's own clients? The default is for strangers; a number that somebody wrote means everyone.
    pub bounds_this_host: bool,
}

impl Smtpd {
    /// Reads the control files.
    ///
    /// # Errors
    /// Unreadable or malformed, or neither `me` nor `smtpgreeting`; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let me = Self::me(root)?;
        // A greeting without a name is none (RFC 5321 §4.3.1), and a domain of no bytes is no domain.
        let or_me =
            |name: &str| Ok::<_, ControlError>(root.line(name)?.filter(|line| !line.is_empty()).unwrap_or_else(|| me.clone()));
        let number = |name: &str, default: u64| Ok::<_, ControlError>(root.int(name)?.unwrap_or(default));
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let per_address = root.int("concurrencyincomingip")?;
        let submission = Submission::read(root)?;
        Ok(Self {
            greeting: textstring(or_me("smtpgreeting")?),
            localiphost: or_me("localiphost")?,
            rcpthosts: root.lines("rcpthosts")?.unwrap_or_default(),
            morercpthosts: root.text("morercpthosts.cdb")?,
            relayclients: root.networks("relayclients")?.unwrap_or_default(),
            client_rules: ClientRules::read(root)?,
            cleartext: root.authcleartext()?,
            mechanisms: root.lines("authmechanisms")?,
            xclient: root.networks("xclient")?.unwrap_or_default(),
            pop_before_smtp: number("popbeforesmtp", 0)? > 0,
            tls_clients: TlsClients::read(root)?,
            client_authorities: TlsClients::authorities(root)?,
            refusals: Refusals::read(root)?,
            greet_delay_s: number("smtpgreetdelay", 0)?.min(GREET_DELAY_MAX_S),
            plugins: Plugins::read(root)?,
            names: submission.completes_addresses.then(|| Inject::read(root)).transpose()?,
            submission,
            normalizes_bare_lf: choice(root, "barelf", ["reject", "normalize"])?,
            offers_dsn_to_all: choice(root, "dsn", ["relay", "all"])?,
            deliver_by_min_s: deliver_by_min_s(root)?,
            priority: PriorityOffer::read(root)?,
            databytes: number("databytes", 0)?,
            recipients_max: match number("maxrcpt", RECIPIENTS_DEFAULT)? {
                // As with the patch that the file comes from. None at all would be no mail at all.
                0 => usize::MAX,
                most => count(most),
            },
            bad_recipients_max: u32::try_from(number("brtlimit", BAD_RECIPIENTS_DEFAULT)?).unwrap_or(0),
            timeout_s: number("timeoutsmtpd", TIMEOUT_DEFAULT_S)?.clamp(1, TIMEOUT_MAX_S),
            sessions_max: count(number("concurrencyincoming", SESSIONS_DEFAULT)?.min(SESSIONS_MAX)),
            sessions_per_address_max: count(per_address.unwrap_or(SESSIONS_PER_ADDRESS_DEFAULT)),
            bounds_this_host: per_address.is_some(),
            me,
        })
    }
}

impl Smtpd {
    /// Here `me` is but a default: who greets has a name (qmail-family §2.1).
    fn me(root: &Root) -> Result<Vec<u8>, ControlError> {
        let greeting = || root.line("smtpgreeting").map(|line| line.unwrap_or_default());
        match root.line("me")?.filter(|me| !me.is_empty()) {
            Some(me) => Ok(me),
            None => match greeting()?.split(u8::is_ascii_whitespace).find(|word| !word.is_empty()) {
                Some(name) => Ok(name.to_vec()),
                None => root.me(),
            },
        }
    }
}

/// What a reply line may hold (RFC 5321 §4.2): tabs and printable ASCII; `?` for the rest.
fn textstring(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(GREETING_LEN_MAX);
    text.iter_mut().filter(|b| !matches!(b, b'\t' | b' '..=b'~')).for_each(|b| *b = b'?');
    text
}

/// To whom MT-PRIORITY (RFC 6710) is offered: `control/mtpriority`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PriorityOffer {
    Nobody,
    Relaying,
    Everybody,
}

impl PriorityOffer {
    fn read(root: &Root) -> Result<Self, ControlError> {
        match root.line("mtpriority")?.as_deref() {
            None | Some(b"" | b"relay") => Ok(Self::Relaying),
            Some(b"off") => Ok(Self::Nobody),
            Some(b"all") => Ok(Self::Everybody),
            Some(other) => {
                let problem = format!("`{}` is none of relay, all, off; write one of these", wire::escape::visible(other));
                Err(ControlError::new(&root.control_file("mtpriority"), problem))
            }
        }
    }
}

/// Seconds, at most what RFC 2852 §4 has digits for, or `off`.
fn deliver_by_min_s(root: &Root) -> Result<Option<u64>, ControlError> {
    match root.line("deliverby")?.as_deref() {
        None | Some(b"") => Ok(Some(0)),
        Some(b"off") => Ok(None),
        Some(digits) if (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit) => {
            Ok(Some(digits.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0'))))
        }
        Some(other) => {
            let problem = format!(
                "`{}` is neither off nor a number of seconds of at most nine digits; write one of these",
                wire::escape::visible(other)
            );
            Err(ControlError::new(&root.control_file("deliverby"), problem))
        }
    }
}

/// One of two words; true for the second, false for the first or no file.
fn choice(root: &Root, name: &str, [first, second]: [&str; 2]) -> Result<bool, ControlError> {
    match root.line(name)?.as_deref() {
        None | Some(b"") => Ok(false),
        Some(word) if word == first.as_bytes() => Ok(false),
        Some(word) if word == second.as_bytes() => Ok(true),
        Some(other) => {
            let problem = format!("`{}` is neither {first} nor {second}; write one of these", wire::escape::visible(other));
            Err(ControlError::new(&root.control_file(name), problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        for (name, text) in files {
            std::fs::write(root.control_file(name), text).unwrap();
        }
        (dir, root)
    }

    #[test]
    fn defaults_are_safe() {
        let (_dir, root) = root(&[("me", "mx.example\n")]);
        let smtpd = Smtpd::read(&root).unwrap();
        assert_eq!((&smtpd.greeting[..], &smtpd.localiphost[..]), (&b"mx.example"[..], &b"mx.example"[..]));
        assert!(smtpd.rcpthosts.is_empty() && smtpd.morercpthosts.is_none() && smtpd.relayclients.is_empty());
        assert_eq!((smtpd.offers_dsn_to_all, smtpd.deliver_by_min_s, smtpd.priority), (false, Some(0), PriorityOffer::Relaying));
        assert!(!smtpd.normalizes_bare_lf && smtpd.xclient.is_empty() && !smtpd.pop_before_smtp);
        for (address, allowed) in [("127.0.0.2", true), ("::1", true), ("192.0.2.1", false)] {
            assert_eq!(smtpd.cleartext.contains(address.parse().unwrap()), allowed, "{address}");
        }
        assert_eq!((smtpd.databytes, smtpd.recipients_max, smtpd.bad_recipients_max, smtpd.timeout_s), (0, 10_000, 100, 1200));
        assert_eq!((smtpd.sessions_max, smtpd.sessions_per_address_max, smtpd.bounds_this_host), (10_000, 100, false));
    }

    #[test]
    fn odd_files_are_read_as_they_were_meant() {
        for (file, text, greeting) in [
            ("me", "mx.example\r\n", "mx.example"),
            ("me", "mx.example", "mx.example"),
            ("smtpgreeting", "", "mx.example"),
            ("smtpgreeting", "  \nhello\n", "mx.example"),
            ("smtpgreeting", "hello \t there\t \r\n", "hello \t there"),
            ("smtpgreeting", "a\r250 b\0\x1b[2J\u{e9}\n", "a?250 b??[2J??"),
        ] {
            let (_dir, root) = root(&[("me", "mx.example\n"), ("localiphost", "\n"), (file, text)]);
            let smtpd = Smtpd::read(&root).unwrap();
            assert_eq!(smtpd.greeting, greeting.as_bytes(), "{file} {text:?}");
            assert_eq!(smtpd.localiphost, b"mx.example");
        }
        let (_dir, long) = root(&[("me", "mx.example\n"), ("smtpgreeting", &"x".repeat(5000))]);
        assert_eq!(Smtpd::read(&long).unwrap().greeting.len(), GREETING_LEN_MAX);
        let (_dir, root) =
            root(&[("me", "x\n"), ("rcpthosts", "a.example\r\n\r\n# c\r\nb.example"), ("barelf", "normalize\r\n")]);
        let smtpd = Smtpd::read(&root).unwrap();
        assert_eq!(smtpd.rcpthosts, [&b"a.example"[..], b"b.example"]);
        assert!(smtpd.normalizes_bare_lf);
    }

    #[test]
    fn what_is_offered_of_the_transfer() {
        for (deliverby, mtpriority, found) in [
            ("off\n", "off\n", Some((None, PriorityOffer::Nobody))),
            ("90\n", "all\n", Some((Some(90), PriorityOffer::Everybody))),
            ("999999999\n", "relay\n", Some((Some(999_999_999), PriorityOffer::Relaying))),
            ("1000000000\n", "relay\n", None),
            ("-1\n", "relay\n", None),
            ("on\n", "relay\n", None),
            ("0\n", "9\n", None),
        ] {
            let (_dir, root) = root(&[("me", "mx.example\n"), ("deliverby", deliverby), ("mtpriority", mtpriority)]);
            let read = Smtpd::read(&root).ok().map(|smtpd| (smtpd.deliver_by_min_s, smtpd.priority));
            assert_eq!(read, found, "{deliverby} {mtpriority}");
        }
    }

    #[test]
    fn values_and_their_bounds() {
        let (_dir, root) = root(&[
            ("me", "mx.example\n"),
            ("smtpgreeting", "hello there  \n"),
            ("rcpthosts", "# ours\na.example\n.b.example\n"),
            ("relayclients", "192.0.2.0/24\n"),
            ("authcleartext", "192.0.2.0/24\n"),
            ("xclient", "192.0.2.7\n"),
            ("popbeforesmtp", "30\n"),
            ("barelf", "normalize\n"),
            ("databytes", "1000\n"),
            ("maxrcpt", "0\n"),
            ("brtlimit", "0\n"),
            ("timeoutsmtpd", "0\n"),
            ("concurrencyincoming", "99999999999999999999\n"),
            ("concurrencyincomingip", "3\n"),
        ]);
        let smtpd = Smtpd::read(&root).unwrap();
        assert_eq!(smtpd.greeting, b"hello there");
        assert_eq!(smtpd.rcpthosts, [&b"a.example"[..], b".b.example"]);
        assert!(smtpd.relayclients.contains("192.0.2.9".parse().unwrap()) && smtpd.normalizes_bare_lf);
        assert!(smtpd.xclient.contains("192.0.2.7".parse().unwrap()) && smtpd.pop_before_smtp);
        let cleartext = ["192.0.2.9", "127.0.0.1"].map(|address| smtpd.cleartext.contains(address.parse().unwrap()));
        assert_eq!(cleartext, [true, false]);
        assert_eq!((smtpd.databytes, smtpd.recipients_max, smtpd.bad_recipients_max, smtpd.timeout_s), (1000, usize::MAX, 0, 1));
        assert_eq!((smtpd.sessions_max, smtpd.sessions_per_address_max, smtpd.bounds_this_host), (30_000, 3, true));
        std::fs::write(root.control_file("barelf"), "yes\n").unwrap();
        assert!(
            Smtpd::read(&root)
                .unwrap_err()
                .to_string()
                .ends_with("control/barelf: `yes` is neither reject nor normalize; write one of these")
        );
        std::fs::remove_file(root.control_file("me")).unwrap();
        assert!(Smtpd::read(&root).unwrap_err().is_temporary());
    }
}
