//! The mechanisms and `control/authmechanisms`: which of them are offered.

/// A mechanism that can be offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// RFC 5802, RFC 7677 with channel binding.
    ScramSha256Plus,
    ScramSha1Plus,
    ScramSha256,
    ScramSha1,
    /// RFC 2195; needs the password itself.
    CramMd5,
    /// RFC 4616.
    Plain,
    /// RFC 7628: an OAuth token. Judged by its issuer (`control/oauth`).
    Oauthbearer,
    /// Its older form, which some clients have alone.
    Xoauth2,
    /// What everybody does and no RFC describes (draft-murchison-sasl-login).
    Login,
    /// RFC 4422 App. A: TLS has shown already who it is, by the client's certificate.
    External,
}

/// What a connection's TLS gives to a login.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Protection {
    /// There is a channel that an exchange can be bound to.
    pub channel: bool,
    /// The client has shown a certificate that stands for an account.
    pub certificate: bool,
}

impl Mechanism {
    /// As they are listed: what shows less of the password comes first.
    pub const ALL: [Self; 10] = [
        Self::External,
        Self::ScramSha256Plus,
        Self::ScramSha1Plus,
        Self::ScramSha256,
        Self::ScramSha1,
        Self::CramMd5,
        Self::Oauthbearer,
        Self::Xoauth2,
        Self::Plain,
        Self::Login,
    ];

    /// The registered name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Self::ScramSha1Plus => "SCRAM-SHA-1-PLUS",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha1 => "SCRAM-SHA-1",
            Self::CramMd5 => "CRAM-MD5",
            Self::Oauthbearer => "OAUTHBEARER",
            Self::Xoauth2 => "XOAUTH2",
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
            Self::External => "EXTERNAL",
        }
    }

    /// The mechanism of this name, in any case of letters (RFC 4954 §4, RFC 5034 §4).
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name().as_bytes().eq_ignore_ascii_case(name))
    }

    /// Does it carry a token, in place of anything that accounts hold?
    #[must_use]
    pub const fn is_oauth(self) -> bool {
        matches!(self, Self::Oauthbearer | Self::Xoauth2)
    }

    /// Does it need a channel binding?
    #[must_use]
    pub const fn binds_channel(self) -> bool {
        matches!(self, Self::ScramSha256Plus | Self::ScramSha1Plus)
    }

    /// What has to be named for it to be offered: the -PLUS mechanisms come with the others.
    const fn base(self) -> Self {
        match self {
            Self::ScramSha256Plus => Self::ScramSha256,
            Self::ScramSha1Plus => Self::ScramSha1,
            other => other,
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// POP3's own way to log in without sending the password (RFC 1939 §7): named with the mechanisms, though it is none.
const APOP: &str = "APOP";
const APOP_BIT: u16 = 1 << 15;

/// A set of mechanisms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mechanisms(u16);

impl Default for Mechanisms {
    /// PLAIN, LOGIN, SCRAM and EXTERNAL: what works without a password in clear on the disk.
    fn default() -> Self {
        let all = [Mechanism::Plain, Mechanism::Login, Mechanism::ScramSha1, Mechanism::ScramSha256, Mechanism::External];
        Self(all.into_iter().fold(0, |set, mechanism| set | mechanism.bit()))
    }
}

impl Mechanisms {
    /// The mechanisms of `control/authmechanisms`, a name a line; the -PLUS ones come with those without. `None` for the default.
    ///
    /// # Errors
    /// The first name that is none.
    pub fn parse(lines: Option<&[Vec<u8>]>) -> Result<Self, Vec<u8>> {
        let Some(lines) = lines else { return Ok(Self::default()) };
        lines.iter().try_fold(Self(0), |set, line| {
            let name = line.trim_ascii();
            let bit = match Mechanism::named(name) {
                Some(mechanism) => mechanism.base().bit(),
                None if name.eq_ignore_ascii_case(APOP.as_bytes()) => APOP_BIT,
                None => return Err(name.to_vec()),
            };
            Ok(Self(set.0 | bit))
        })
    }

    /// Is it offered on some connection?
    #[must_use]
    pub fn contains(self, mechanism: Mechanism) -> bool {
        self.0 & mechanism.base().bit() != 0
    }

    /// Is POP3's APOP offered?
    #[must_use]
    pub fn has_apop(self) -> bool {
        self.0 & APOP_BIT != 0
    }

    /// What a connection is offered.
    pub fn offered(self, by: Protection) -> impl Iterator<Item = Mechanism> {
        Mechanism::ALL.into_iter().filter(move |mechanism| {
            let works = match mechanism {
                Mechanism::External => by.certificate,
                other => by.channel || !other.binds_channel(),
            };
            works && self.contains(*mechanism)
        })
    }

    /// Their names in one line, as EHLO and CAPA have them; `None` if there are none.
    #[must_use]
    pub fn list(self, by: Protection) -> Option<String> {
        let names: Vec<_> = self.offered(by).map(Mechanism::name).collect();
        (!names.is_empty()).then(|| names.join(" "))
    }

    /// The mechanism that a client named, if it is offered.
    #[must_use]
    pub fn find(self, name: &[u8], by: Protection) -> Option<Mechanism> {
        Mechanism::named(name).filter(|found| self.offered(by).any(|offered| offered == *found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered() {
        let default = Mechanisms::default();
        let [clear, bound] = [false, true].map(|channel| Protection { channel, certificate: false });
        let shown = Protection { channel: false, certificate: true };
        assert_eq!(default.list(clear).unwrap(), "SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN");
        assert_eq!(default.list(bound).unwrap(), "SCRAM-SHA-256-PLUS SCRAM-SHA-1-PLUS SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN");
        assert!(!default.has_apop() && !default.contains(Mechanism::CramMd5) && !default.contains(Mechanism::Oauthbearer));
        assert_eq!(default.find(b"scram-sha-1-plus", bound), Some(Mechanism::ScramSha1Plus));
        assert_eq!(default.list(shown).unwrap(), "EXTERNAL SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN");
        assert_eq!(default.find(b"external", shown), Some(Mechanism::External));
        for (name, by) in [
            (&b"SCRAM-SHA-1-PLUS"[..], clear),
            (b"EXTERNAL", bound),
            (b"CRAM-MD5", bound),
            (b"", bound),
            (b"PLAIN ", bound),
            (b"X", bound),
        ] {
            assert_eq!(default.find(name, by), None, "{}", name.escape_ascii());
        }
        let lines = |text: &str| text.lines().map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>();
        let some = Mechanisms::parse(Some(&lines("cram-md5\nAPOP\nxoauth2\nPLAIN "))).unwrap();
        assert_eq!((some.list(bound).unwrap().as_str(), some.has_apop()), ("CRAM-MD5 XOAUTH2 PLAIN", true));
        assert_eq!(Mechanisms::parse(Some(&[])).unwrap().list(shown), None);
        assert_eq!(Mechanisms::parse(None), Ok(default));
        assert_eq!(Mechanisms::parse(Some(&lines("PLAIN\nGSSAPI"))), Err(b"GSSAPI".to_vec()));
    }
}
