//! What a sender asks for of delivery status notifications (RFC 3461): RET, ENVID, NOTIFY, ORCPT, and xtext.
//!
//! A value that exists is well formed: its bytes are those of the command line, printable ASCII without blanks, so that it can go into
//! another command line as it is; decoded it is printable ASCII (RFC 3461 §4.2, §4.4), so that it cannot break out of a line of a
//! header or a log. What decodes to anything else is no value. Used by qmail-smtpd, qmail-send and qmail-remote.

/// Longest ENVID in its encoded form (RFC 3461 §4.4).
pub const ENVID_LEN_MAX: usize = 100;
/// Longest ORCPT in its encoded form (RFC 3461 §4.2).
pub const ORCPT_LEN_MAX: usize = 500;

/// How much of a message that failed comes back (RFC 3461 §4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ret {
    Full,
    Headers,
}

impl Ret {
    /// `FULL` or `HDRS`, in any case.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        match () {
            () if value.eq_ignore_ascii_case(b"FULL") => Some(Self::Full),
            () if value.eq_ignore_ascii_case(b"HDRS") => Some(Self::Headers),
            () => None,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Headers => "HDRS",
        }
    }
}

/// Which reports about a recipient are wanted (RFC 3461 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Notify(u8);

impl Notify {
    pub const NEVER: Self = Self(0);
    const SUCCESS: u8 = 1;
    const FAILURE: u8 = 2;
    const DELAY: u8 = 4;

    /// `NEVER`, or a list of `SUCCESS`, `FAILURE` and `DELAY`; in any case.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        if value.eq_ignore_ascii_case(b"NEVER") {
            return Some(Self::NEVER);
        }
        let bit = |word: &[u8]| match () {
            () if word.eq_ignore_ascii_case(b"SUCCESS") => Some(Self::SUCCESS),
            () if word.eq_ignore_ascii_case(b"FAILURE") => Some(Self::FAILURE),
            () if word.eq_ignore_ascii_case(b"DELAY") => Some(Self::DELAY),
            () => None,
        };
        value.split(|b| *b == b',').try_fold(0, |bits, word| Some(bits | bit(word)?)).map(Self)
    }

    /// As a number; back by [`Notify::from_bits`].
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        (bits & !(Self::SUCCESS | Self::FAILURE | Self::DELAY) == 0).then_some(Self(bits))
    }

    #[must_use]
    pub fn of_success(self) -> bool {
        self.0 & Self::SUCCESS != 0
    }

    #[must_use]
    pub fn of_failure(self) -> bool {
        self.0 & Self::FAILURE != 0
    }

    #[must_use]
    pub fn of_delay(self) -> bool {
        self.0 & Self::DELAY != 0
    }

    /// The same without reports of success; nothing else wanted is [`Notify::NEVER`].
    #[must_use]
    pub fn without_success(self) -> Self {
        Self(self.0 & !Self::SUCCESS)
    }

    /// As a command writes it.
    #[must_use]
    pub fn text(self) -> String {
        let words = [(self.of_success(), "SUCCESS"), (self.of_failure(), "FAILURE"), (self.of_delay(), "DELAY")];
        let words: Vec<&str> = words.into_iter().filter_map(|(is_wanted, word)| is_wanted.then_some(word)).collect();
        if words.is_empty() { "NEVER".to_owned() } else { words.join(",") }
    }
}

/// The sender's own name for a message, in xtext.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Envid(Box<[u8]>);

impl Envid {
    /// `None`: too long, no xtext, nothing, or not printable when decoded.
    #[must_use]
    pub fn new(xtext: &[u8]) -> Option<Self> {
        (xtext.len() <= ENVID_LEN_MAX && decode(xtext).is_some_and(|text| !text.is_empty())).then(|| Self(xtext.into()))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a report shows it.
    #[must_use]
    pub fn decoded(&self) -> Vec<u8> {
        decode(&self.0).unwrap_or_default()
    }
}

/// The recipient as the first sender named him: `type;xtext`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Orcpt(Box<[u8]>);

impl Orcpt {
    /// `None`: too long, no type (letters, digits and dashes), no xtext behind it, nothing, or not printable when decoded.
    #[must_use]
    pub fn new(value: &[u8]) -> Option<Self> {
        let semicolon = value.iter().position(|b| *b == b';').filter(|at| *at > 0)?;
        let (kind, xtext) = (value.get(..semicolon)?, value.get(semicolon.checked_add(1)?..)?);
        let is_kind = kind.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
        let is_filled = decode(xtext).is_some_and(|text| !text.is_empty());
        (value.len() <= ORCPT_LEN_MAX && is_kind && is_filled).then(|| Self(value.into()))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// `type;address`, as a report shows it.
    #[must_use]
    pub fn decoded(&self) -> Vec<u8> {
        let semicolon = self.0.iter().position(|b| *b == b';').unwrap_or(self.0.len());
        let (kind, rest) = self.0.split_at_checked(semicolon).unwrap_or_default();
        let address = decode(rest.get(1..).unwrap_or_default()).unwrap_or_default();
        [kind, b";", &address].concat()
    }
}

/// Printable text in xtext (RFC 3461 §4): what may not stand in a value as it is becomes `+XX`.
#[must_use]
pub fn encode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &b in text {
        match b {
            b'+' | b'=' => out.extend_from_slice(format!("+{b:02X}").as_bytes()),
            b'!'..=b'~' => out.push(b),
            _ => out.extend_from_slice(format!("+{b:02X}").as_bytes()),
        }
    }
    out
}

/// Undoes [`encode`]; `None` for what is no xtext, or holds anything but printable ASCII.
#[must_use]
pub fn decode(xtext: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::with_capacity(xtext.len()), xtext);
    while let Some((&b, behind)) = rest.split_first() {
        let (byte, after) = match (b, behind) {
            (b'+', [high @ (b'0'..=b'9' | b'A'..=b'F'), low @ (b'0'..=b'9' | b'A'..=b'F'), after @ ..]) => {
                (digit(*high) << 4 | digit(*low), after)
            }
            (b'+' | b'=', _) => return None,
            (b'!'..=b'~', _) => (b, behind),
            _ => return None,
        };
        out.push(Some(byte).filter(|byte| matches!(byte, b' '..=b'~'))?);
        rest = after;
    }
    Some(out)
}

/// Of an upper-case hexadecimal digit.
fn digit(b: u8) -> u8 {
    if b.is_ascii_digit() { b.wrapping_sub(b'0') } else { b.wrapping_sub(b'A').wrapping_add(10) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values() {
        assert_eq!((Ret::parse(b"full"), Ret::parse(b"HDRS"), Ret::parse(b"x")), (Some(Ret::Full), Some(Ret::Headers), None));
        for (text, written) in [
            ("never", Some("NEVER")),
            ("Success", Some("SUCCESS")),
            ("DELAY,failure,SUCCESS,DELAY", Some("SUCCESS,FAILURE,DELAY")),
            ("NEVER,SUCCESS", None),
            ("SUCCESS,", None),
            ("", None),
            ("SUCCESS;DELAY", None),
        ] {
            assert_eq!(Notify::parse(text.as_bytes()).map(Notify::text).as_deref(), written, "{text}");
        }
        for (text, decoded) in [
            ("QQ314159", Some("QQ314159")),
            ("a+2Bb+3D+20", Some("a+b= ")),
            ("", None),
            ("a+2bb", None),
            ("a=b", None),
            ("a+", None),
            ("a+4", None),
            ("+0A", None),
            ("+0D+0ABcc: x", None),
            ("+00", None),
            ("+7F", None),
            ("+C3+A9", None),
        ] {
            assert_eq!(Envid::new(text.as_bytes()).map(|id| id.decoded()), decoded.map(|d| d.as_bytes().to_vec()), "{text}");
        }
        assert!(Envid::new(&[b'x'; 100]).is_some() && Envid::new(&[b'x'; 101]).is_none() && Envid::new(b"\xc3\xa9").is_none());
        for (text, decoded) in [
            ("rfc822;Bob@x", Some("rfc822;Bob@x")),
            ("RFC822;\"a+20b\"@x;y", Some("RFC822;\"a b\"@x;y")),
            ("x-y9;z", Some("x-y9;z")),
            (";a", None),
            ("rfc822", None),
            ("rfc822;", None),
            ("rfc 822;a", None),
            ("rfc822;a+0Ab", None),
            ("r\u{e9};a", None),
        ] {
            assert_eq!(Orcpt::new(text.as_bytes()).map(|to| to.decoded()), decoded.map(|d| d.as_bytes().to_vec()), "{text}");
        }
        assert!(
            Orcpt::new(&[b"a;", &[b'x'; 498][..]].concat()).is_some()
                && Orcpt::new(&[b"a;", &[b'x'; 499][..]].concat()).is_none()
        );
    }

    proptest! {
        #[test]
        fn printable_text_comes_back_and_nothing_else_is_a_value(text in proptest::collection::vec(any::<u8>(), 0..40)) {
            let is_printable = text.iter().all(|b| matches!(b, b' '..=b'~'));
            let xtext = encode(&text);
            prop_assert!(xtext.iter().all(u8::is_ascii_graphic));
            prop_assert_eq!(decode(&xtext), is_printable.then(|| text.clone()));
            let envid = Envid::new(&xtext);
            prop_assert_eq!(envid.is_some(), is_printable && !text.is_empty() && xtext.len() <= ENVID_LEN_MAX);
            let orcpt = Orcpt::new(&[b"rfc822;", &xtext[..]].concat());
            prop_assert_eq!(orcpt.map(|to| to.decoded()), (is_printable && !text.is_empty()).then(|| [b"rfc822;", &text[..]].concat()));
        }

        #[test]
        fn what_is_a_value_never_breaks_a_line(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            for raw in [&bytes[..], &[b"x;", &bytes[..]].concat()] {
                let values = [Envid::new(raw).map(|v| (v.as_bytes().to_vec(), v.decoded())), Orcpt::new(raw).map(|v| (v.as_bytes().to_vec(), v.decoded()))];
                for (encoded, decoded) in values.into_iter().flatten() {
                    prop_assert!(encoded == raw && encoded.iter().all(u8::is_ascii_graphic) && !encoded.contains(&b'='));
                    prop_assert!(decoded.iter().all(|b| matches!(b, b' '..=b'~')));
                }
            }
            if let Some(text) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&text)), Some(text));
            }
        }
    }
}
