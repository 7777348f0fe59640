//! Replies while somebody is away: who gets one, and what it says (RFC 3834; RFC 5230 §4.4 to §4.8).
//!
//! In doubt nobody gets one: a reply too few is a courtesy missed, a reply too many goes to a list, a machine or around in a circle.
//! Used by qmail-local.

use crate::header::{Field, fields};
use crate::notice::{encoded, put_text, visible};
use wire::civil::Civil;

/// Longest subject of a reply, in bytes before it is encoded.
const SUBJECT_LEN_MAX: usize = 200;
/// Longest line of References that is carried on; of a longer one the last message alone is.
const REFERENCES_LEN_MAX: usize = 900;
/// Local parts of programs (RFC 3834 §2).
const PROGRAMS: [&[u8]; 6] = [b"mailer-daemon", b"listserv", b"majordomo", b"noreply", b"no-reply", b"postmaster"];
/// Fields in which a person is addressed (RFC 5230 §4.5).
const ADDRESSED: [&[u8]; 6] = [b"to", b"cc", b"bcc", b"resent-to", b"resent-cc", b"resent-bcc"];

/// Does the sender of the message get a reply? `own` are the user's addresses.
#[must_use]
pub fn is_due(sender: &[u8], header: &[u8], own: &[&[u8]]) -> bool {
    let is_own = |address: &[u8]| own.iter().any(|own| own.eq_ignore_ascii_case(address));
    if !is_person(sender) || is_own(sender) {
        return false;
    }
    let mut is_addressed = false;
    for field in fields(header) {
        if forbids(&field) {
            return false;
        }
        is_addressed |= ADDRESSED.iter().any(|name| field.is(name)) && own.iter().any(|own| mentions(&field.value(), own));
    }
    is_addressed
}

/// Is it an address that a person reads? Bounces have none, lists and programs have telling ones.
fn is_person(sender: &[u8]) -> bool {
    let Some(at) = sender.iter().rposition(|b| *b == b'@') else { return false };
    let local = sender.get(..at).unwrap_or_default().to_ascii_lowercase();
    let is_list = local.starts_with(b"owner-")
        || [&b"-owner"[..], b"-request", b"-bounces", b"-bounce"].iter().any(|end| local.ends_with(end))
        || contains(&local, b"-return-")
        || contains(&local, b"-bounces+");
    // `#@[]` is the sender of double bounces.
    !local.is_empty() && local != b"#" && !is_list && !PROGRAMS.contains(&&local[..])
}

/// Does this field say that a machine or a list sent the message, or that no reply is wanted?
fn forbids(field: &Field<'_>) -> bool {
    let Some(name) = field.name() else { return false };
    let value = || field.value().trim_ascii().to_ascii_lowercase();
    // RFC 5230 §4.6: any field that begins so (RFC 2369, RFC 2919).
    if name.get(..5).is_some_and(|front| front.eq_ignore_ascii_case(b"list-")) {
        return true;
    }
    if field.is(b"auto-submitted") {
        // RFC 3834 §5: `no`, perhaps with parameters or a comment.
        let value = value();
        return value.split(|b| matches!(b, b';' | b'(' | b' ' | b'\t')).next() != Some(b"no");
    }
    if field.is(b"precedence") {
        return matches!(&value()[..], b"bulk" | b"list" | b"junk");
    }
    if field.is(b"x-auto-response-suppress") {
        let value = value();
        return value.split(|b| *b == b',').any(|word| matches!(word.trim_ascii(), b"all" | b"oof" | b"autoreply"));
    }
    field.is(b"mailing-list") || field.is(b"x-mailing-list")
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Does the address stand in the value, not as a part of a longer one?
fn mentions(value: &[u8], address: &[u8]) -> bool {
    if address.is_empty() {
        return false;
    }
    // RFC 5322 §3.2.3: what an atom is made of.
    let is_atom =
        |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(b) || *b >= 0x80);
    let starts = value.windows(address.len()).enumerate().filter(|(_, window)| window.eq_ignore_ascii_case(address));
    starts.into_iter().any(|(at, _)| {
        let before = at.checked_sub(1).and_then(|before| value.get(before));
        !is_atom(before) && !is_atom(value.get(at.saturating_add(address.len())))
    })
}

/// What a reply is made of.
#[derive(Debug, Clone, Copy)]
pub struct Reply<'a> {
    /// The user's address.
    pub from: &'a [u8],
    /// The envelope sender of the message.
    pub to: &'a [u8],
    /// UTF-8; empty: made from the message's.
    pub subject: &'a [u8],
    /// UTF-8, lines ending in LF.
    pub text: &'a [u8],
    /// The header of the message.
    pub header: &'a [u8],
    pub now_s: u64,
    /// Makes the Message-ID one of its own.
    pub unique: u64,
}

impl Reply<'_> {
    /// The reply in LF form, ASCII but for addresses that are not. Its envelope sender must be empty (RFC 3834 §3.3), its recipient [`Reply::to`].
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let date = Civil::from_unix(self.now_s).rfc5322();
        let domain = self.from.rsplit(|b| *b == b'@').next().unwrap_or_default();
        let mut out = Vec::new();
        let mut line = |parts: &[&[u8]]| {
            parts.iter().for_each(|part| out.extend_from_slice(part));
            out.push(b'\n');
        };
        line(&[b"Date: ", date.as_bytes()]);
        line(&[b"Message-ID: <", format!("{}.{:016x}.vacation@", self.now_s, self.unique).as_bytes(), domain, b">"]);
        line(&[b"From: <", &visible(self.from), b">"]);
        line(&[b"To: <", &visible(self.to), b">"]);
        line(&[b"Subject: ", &encoded(&self.subject())]);
        if let Some((id, references)) = self.thread() {
            line(&[b"In-Reply-To: ", &id]);
            line(&[b"References: ", &references]);
        }
        // RFC 3834 §5.
        line(&[b"Auto-Submitted: auto-replied"]);
        put_text(&mut out, self.text);
        out
    }

    /// RFC 5230 §4.4: the configured one, or `Auto: ` and the message's.
    fn subject(&self) -> Vec<u8> {
        if !self.subject.is_empty() {
            return self.subject.to_vec();
        }
        let original = fields(self.header).find(|field| field.is(b"subject")).map(|field| field.value()).unwrap_or_default();
        let original = original.trim_ascii();
        // An encoded word that is cut says nothing.
        let fits = original.len() <= SUBJECT_LEN_MAX;
        [&b"Auto: "[..], if fits { original } else { b"your message" }].concat()
    }

    /// In-Reply-To and References (RFC 5322 §3.6.4): what the message has, where it is well-formed and short.
    fn thread(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let value =
            |name: &[u8]| fields(self.header).find(|field| field.is(name)).map(|field| field.value().trim_ascii().to_vec());
        let is_id = |word: &[u8]| {
            word.len() > 2
                && word.len() <= REFERENCES_LEN_MAX
                && word.starts_with(b"<")
                && word.ends_with(b">")
                && word.iter().all(u8::is_ascii_graphic)
        };
        let id = value(b"message-id").filter(|id| is_id(id))?;
        let before = value(b"references").unwrap_or_default();
        let words: Vec<&[u8]> = before.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
        let is_sound = words.iter().all(|word| is_id(word)) && before.len().saturating_add(id.len()) < REFERENCES_LEN_MAX;
        let all: Vec<&[u8]> = if is_sound { words.into_iter().chain([&id[..]]).collect() } else { vec![&id[..]] };
        let references = all.join(&b"\n "[..]);
        Some((id, references))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [&[u8]; 2] = [b"joe@example.org", b"joe@alias.example"];

    fn due(sender: &str, header: &str) -> bool {
        is_due(sender.as_bytes(), header.as_bytes(), &OWN)
    }

    #[test]
    fn a_person_who_writes_to_the_user_gets_a_reply_and_nobody_else() {
        let to = "To: Joe <JOE@example.org>\n";
        assert!(due("ann@x", to));
        for sender in [
            "",
            "#@[]",
            "ann",
            "@x",
            "MAILER-DAEMON@x",
            "owner-list@x",
            "list-owner@x",
            "list-request@x",
            "list-return-5-joe=example.org@x",
            "list-bounces+joe=example.org@x",
            "joe@Example.org",
            "joe@alias.example",
            "noreply@x",
            "postmaster@x",
        ] {
            assert!(!due(sender, to), "{sender}");
        }
        for header in [
            "List-Id: <x>\n",
            "LIST-anything: x\n",
            "Precedence: Bulk\n",
            "Precedence: junk\n",
            "Precedence:\n list\n",
            "Auto-Submitted: auto-generated\n",
            "Auto-Submitted: auto-replied; owner-email=x\n",
            "Auto-Submitted:\n",
            "X-Auto-Response-Suppress: DR, OOF\n",
            "Mailing-List: contact x\n",
        ] {
            assert!(!due("ann@x", &format!("{header}{to}")), "{header}");
            assert!(!due("ann@x", &format!("{to}{header}")), "{header}");
        }
        for header in ["Auto-Submitted: No\n", "Auto-Submitted: no (by hand)\n", "Precedence: first-class\n", "Listen: x\n"] {
            assert!(due("ann@x", &format!("{header}{to}")), "{header}");
        }
    }

    #[test]
    fn only_who_names_the_user_gets_a_reply() {
        for (header, expected) in [
            ("To: joe@example.org\n", true),
            ("Cc: a@b,\n joe@alias.example\n", true),
            ("Resent-To: <joe@example.org>\n", true),
            ("To: \"joe@example.org\" <x@y>\n", true),
            ("To: list@x\n", false),
            ("To: xjoe@example.org\n", false),
            ("To: joe@example.org.evil\n", false),
            ("To: joe@example.orgx\n", false),
            ("To: a.joe@example.org\n", false),
            ("Subject: joe@example.org\n", false),
            ("X-To: joe@example.org\n", false),
            ("\nTo: joe@example.org\n", false),
            ("", false),
        ] {
            assert_eq!(due("ann@x", header), expected, "{header}");
        }
        assert!(!is_due(b"ann@x", b"To: joe@example.org\n", &[]) && !is_due(b"ann@x", b"To: x\n", &[b""]));
    }

    fn reply<'a>(header: &'a str, subject: &'a str, text: &'a str) -> Reply<'a> {
        Reply {
            from: b"joe@example.org",
            to: b"ann@x",
            subject: subject.as_bytes(),
            text: text.as_bytes(),
            header: header.as_bytes(),
            now_s: 1_000_000_000,
            unique: 0xabc,
        }
    }

    #[test]
    fn a_reply_belongs_to_its_message() {
        let header = "Subject: Lunch?\nMessage-ID: <2@x>\nReferences: <0@x>\n <1@x>\n";
        let expected = "Date: 9 Sep 2001 01:46:40 -0000\n\
            Message-ID: <1000000000.0000000000000abc.vacation@example.org>\n\
            From: <joe@example.org>\n\
            To: <ann@x>\n\
            Subject: Auto: Lunch?\n\
            In-Reply-To: <2@x>\n\
            References: <0@x>\n <1@x>\n <2@x>\n\
            Auto-Submitted: auto-replied\n\
            MIME-Version: 1.0\n\
            Content-Type: text/plain; charset=utf-8\n\
            Content-Transfer-Encoding: 7bit\n\
            \n\
            Back on Monday.\n";
        assert_eq!(String::from_utf8(reply(header, "", "Back on Monday.\n").build()).unwrap(), expected);
        assert!(!is_due(b"joe@example.org", expected.as_bytes(), &[b"ann@x"]), "never a reply to a reply");
    }

    #[test]
    fn whatever_the_message_holds_the_reply_is_sound() {
        let long = "x".repeat(5000);
        for header in [
            format!("Subject: {long}\nMessage-ID: <{long}@x>\nReferences: {long}\n"),
            "Subject: a\x1b[2J\u{e4}\r\nMessage-ID: <a b@x>\n".to_owned(),
            "Message-ID: no\nSubject:\n".to_owned(),
            "Subject: =?utf-8?Q?=C3=A4?=\n =?utf-8?Q?b?=\n".to_owned(),
            String::new(),
        ] {
            for text in ["Gr\u{fc}\u{df}e\n", long.as_str(), "plain\n.\n"] {
                let built = reply(&header, "", text).build();
                let text = String::from_utf8(built).unwrap();
                assert!(text.is_ascii() && text.lines().all(|line| line.len() <= 998), "{text}");
                let head = text.split("\n\n").next().unwrap();
                assert!(head.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)), "{head}");
                assert_eq!(head.matches("Subject: ").count(), 1);
            }
        }
        let subject = String::from_utf8(reply("", &"\u{fc}".repeat(60), "x").build()).unwrap();
        assert!(subject.contains("Subject: =?utf-8?B?") && subject.contains("?=\n =?utf-8?B?"), "{subject}");
        let body = String::from_utf8(reply("", "s", "Gr\u{fc}\u{df}e\n").build()).unwrap();
        let encoded: String = body.split("\n\n").nth(1).unwrap().lines().collect();
        assert_eq!(wire::base64::decode(encoded.as_bytes()).unwrap(), "Gr\u{fc}\u{df}e\r\n".as_bytes());
    }
}
