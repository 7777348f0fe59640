//! One delivery as its programs and files see it: trace lines and environment (qmail-command(8), qmail-family §1.3, §3.4).
//!
//! Whatever the sender or the address hold, a trace line stays one line: LF and, beyond the classic rule, CR become `_`.

use wire::civil::Civil;
use wire::quote;

/// Every variable that [`Delivery::environment`] may set; those it does not set must not be inherited.
pub const ENVIRONMENT_NAMES: [&str; 18] = [
    "SENDER",
    "NEWSENDER",
    "RECIPIENT",
    "USER",
    "HOME",
    "HOST",
    "HOST2",
    "HOST3",
    "HOST4",
    "LOCAL",
    "EXT",
    "EXT2",
    "EXT3",
    "EXT4",
    "DEFAULT",
    "DTLINE",
    "RPLINE",
    "UFLINE",
];

/// Who gets the message, from whom: qmail-local's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery<'a> {
    pub user: &'a [u8],
    pub home: &'a [u8],
    pub local: &'a [u8],
    pub dash: &'a [u8],
    pub ext: &'a [u8],
    pub host: &'a [u8],
    pub sender: &'a [u8],
}

impl Delivery<'_> {
    /// `local@host`.
    #[must_use]
    pub fn recipient(&self) -> Vec<u8> {
        [self.local, b"@", self.host].concat()
    }

    /// `Delivered-To: local@host`, with its LF.
    #[must_use]
    pub fn delivered_to_line(&self) -> Vec<u8> {
        one_line(&[b"Delivered-To: ", &self.recipient()[..]].concat())
    }

    /// `Return-Path: <sender>`, quoted as RFC 5322 §3.6.7 wants it, with its LF.
    #[must_use]
    pub fn return_path_line(&self) -> Vec<u8> {
        one_line(&[b"Return-Path: <", &quote::address(self.sender)[..], b">"].concat())
    }

    /// The line that starts a message in an mbox: `From sender date`, with its LF.
    #[must_use]
    pub fn from_line(&self, now_s: u64) -> Vec<u8> {
        let dashed: Vec<u8> =
            self.sender.iter().map(|b| if matches!(b, b' ' | b'\t' | b'\n' | b'\r') { b'-' } else { *b }).collect();
        let sender = if dashed.is_empty() { &b"MAILER-DAEMON"[..] } else { &dashed };
        [b"From ", sender, b" ", Civil::from_unix(now_s).mbox().as_bytes(), b"\n"].concat()
    }

    /// What a program line finds in its environment. `default_at` is where `DEFAULT` begins in ext, if it is set.
    #[must_use]
    pub fn environment(&self, now_s: u64, new_sender: &[u8], default_at: Option<usize>) -> Vec<(&'static str, Vec<u8>)> {
        let hosts = before_last_dots(self.host);
        let exts = after_dashes(self.ext);
        let mut list: Vec<(&'static str, Vec<u8>)> = vec![
            ("SENDER", self.sender.to_vec()),
            ("NEWSENDER", new_sender.to_vec()),
            ("RECIPIENT", self.recipient()),
            ("USER", self.user.to_vec()),
            ("HOME", self.home.to_vec()),
            ("HOST", self.host.to_vec()),
            ("LOCAL", self.local.to_vec()),
            ("EXT", self.ext.to_vec()),
            ("DTLINE", self.delivered_to_line()),
            ("RPLINE", self.return_path_line()),
            ("UFLINE", self.from_line(now_s)),
        ];
        list.extend(["HOST2", "HOST3", "HOST4"].into_iter().zip(hosts.map(<[u8]>::to_vec)));
        list.extend(["EXT2", "EXT3", "EXT4"].into_iter().zip(exts.map(<[u8]>::to_vec)));
        if let Some(default) = default_at.and_then(|at| self.ext.get(at..)) {
            list.push(("DEFAULT", default.to_vec()));
        }
        list
    }
}

fn one_line(text: &[u8]) -> Vec<u8> {
    text.iter().map(|b| if matches!(b, b'\n' | b'\r') { b'_' } else { *b }).chain([b'\n']).collect()
}

/// HOST2, HOST3, HOST4: what stands before the last, the second-last, the third-last dot; without a dot all that is left.
fn before_last_dots(host: &[u8]) -> [&[u8]; 3] {
    let cut = |host: &'_ [u8]| memchr::memrchr(b'.', host).unwrap_or(host.len());
    let two = host.get(..cut(host)).unwrap_or_default();
    let three = two.get(..cut(two)).unwrap_or_default();
    [two, three, three.get(..cut(three)).unwrap_or_default()]
}

/// EXT2, EXT3, EXT4: what stands after the first, second, third hyphen; empty without one.
fn after_dashes(ext: &[u8]) -> [&[u8]; 3] {
    let after = |ext: &'_ [u8]| memchr::memchr(b'-', ext).map_or(ext.len(), |at| at.saturating_add(1));
    let two = ext.get(after(ext)..).unwrap_or_default();
    let three = two.get(after(two)..).unwrap_or_default();
    [two, three, three.get(after(three)..).unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW_S: u64 = 951_782_399;

    fn delivery() -> Delivery<'static> {
        Delivery {
            user: b"joe",
            home: b"/home/joe",
            local: b"joe-List-Sub-x-y",
            dash: b"-",
            ext: b"List-Sub-x-y",
            host: b"a.b.example.org",
            sender: b"al ice@s",
        }
    }

    #[test]
    fn the_environment_is_that_of_qmail_command_8() {
        let list = delivery().environment(NOW_S, b"new@s", Some(5));
        for (name, value) in [
            ("SENDER", "al ice@s"),
            ("NEWSENDER", "new@s"),
            ("RECIPIENT", "joe-List-Sub-x-y@a.b.example.org"),
            ("USER", "joe"),
            ("HOME", "/home/joe"),
            ("HOST", "a.b.example.org"),
            ("HOST2", "a.b.example"),
            ("HOST3", "a.b"),
            ("HOST4", "a"),
            ("LOCAL", "joe-List-Sub-x-y"),
            ("EXT", "List-Sub-x-y"),
            ("EXT2", "Sub-x-y"),
            ("EXT3", "x-y"),
            ("EXT4", "y"),
            ("DEFAULT", "Sub-x-y"),
            ("DTLINE", "Delivered-To: joe-List-Sub-x-y@a.b.example.org\n"),
            ("RPLINE", "Return-Path: <\"al ice\"@s>\n"),
            ("UFLINE", "From al-ice@s Mon Feb 28 23:59:59 2000\n"),
        ] {
            let found: Vec<_> = list.iter().filter(|(n, _)| *n == name).map(|(_, v)| v.clone()).collect();
            assert_eq!(found, [value.as_bytes().to_vec()], "{name}");
        }
        assert_eq!(list.len(), 18);
        assert!(list.iter().all(|(name, _)| ENVIRONMENT_NAMES.contains(name)));
        assert!(!delivery().environment(NOW_S, b"", None).iter().any(|(name, _)| *name == "DEFAULT"));
    }

    #[test]
    fn short_hosts_and_extensions() {
        assert_eq!(before_last_dots(b"a"), [&b"a"[..], b"a", b"a"]);
        assert_eq!(before_last_dots(b"a.b"), [&b"a"[..], b"a", b"a"]);
        assert_eq!(before_last_dots(b".b"), [&b""[..], b"", b""]);
        assert_eq!(after_dashes(b""), [&b""[..], b"", b""]);
        assert_eq!(after_dashes(b"a"), [&b""[..], b"", b""]);
        assert_eq!(after_dashes(b"a-b"), [&b"b"[..], b"", b""]);
        assert_eq!(after_dashes(b"--"), [&b"-"[..], b"", b""]);
    }

    #[test]
    fn the_null_sender() {
        let bounce = Delivery { sender: b"", ..delivery() };
        assert_eq!(bounce.return_path_line(), b"Return-Path: <>\n");
        assert_eq!(bounce.from_line(0), b"From MAILER-DAEMON Thu Jan 01 00:00:00 1970\n");
    }

    proptest! {
        #[test]
        fn a_trace_line_is_one_line(sender in prop::collection::vec(any::<u8>(), 0..30), local in prop::collection::vec(any::<u8>(), 0..30)) {
            let delivery = Delivery { sender: &sender, local: &local, ..delivery() };
            for line in [delivery.delivered_to_line(), delivery.return_path_line(), delivery.from_line(0)] {
                prop_assert_eq!(line.iter().filter(|b| matches!(b, b'\n' | b'\r')).count(), 1);
                prop_assert_eq!(line.last(), Some(&b'\n'));
            }
        }
    }
}
