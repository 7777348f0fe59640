//! SCRAM-SHA-1 and SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side, with channel bindings `tls-exporter` (RFC 9266) and
//! `tls-server-end-point` (RFC 5929).
//!
//! The client proves that it knows the password without sending it, and the server that it has [`Keys`] made of it. Who has the keys can
//! act as the server and try passwords at the cost of one hash each, but cannot log in with them.
//!
//! An account may have several passwords: their keys have the same salt and iterations, and the proof is tried against each.
//! For an account that does not exist [`Login::answer`] is given no keys and a salt that the caller makes up, always the same for the
//! same name: the exchange takes the same steps and ends like one with a wrong password.
//!
//! Names are taken as sent (RFC 5802 §5.1 wants SASLprep of clients, which leaves the addresses of accounts as they are). Passwords are
//! prepared by SASLprep (RFC 4013) when keys are made of them; what it refuses, and what is not UTF-8, counts as the bytes it is.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::fmt;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Longest nonce of a client that is taken; they send 20 to 50 bytes.
pub const CLIENT_NONCE_LEN_MAX: usize = 256;
/// Fewest iterations (RFC 5802 §5.1, RFC 7677 §4).
pub const ITERATIONS_MIN: u32 = 4096;

/// The hash function of a mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hash {
    Sha1,
    Sha256,
}

impl Hash {
    pub const ALL: [Self; 2] = [Self::Sha1, Self::Sha256];

    /// The mechanism without channel binding.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SCRAM-SHA-1",
            Self::Sha256 => "SCRAM-SHA-256",
        }
    }

    const fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => Sha1::digest(bytes).to_vec(),
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
        }
    }

    /// HMAC takes keys of any length, so there is always a result.
    fn hmac(self, key: &[u8], message: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => Hmac::<Sha1>::new_from_slice(key).map(|mac| mac.chain_update(message).finalize().into_bytes().to_vec()),
            Self::Sha256 => {
                Hmac::<Sha256>::new_from_slice(key).map(|mac| mac.chain_update(message).finalize().into_bytes().to_vec())
            }
        }
        .unwrap_or_default()
    }

    /// `Hi` (RFC 5802 §2.2), which is PBKDF2.
    fn salted(self, password: &[u8], salt: &[u8], iterations: u32) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(vec![0; self.len()]);
        match self {
            Self::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(password, salt, iterations, &mut out),
            Self::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, iterations, &mut out),
        }
        out
    }
}

/// Salt and iterations: what the client must know to compute its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Salt {
    pub salt: Vec<u8>,
    pub iterations: u32,
}

/// What is kept of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    pub salt: Salt,
    stored: Vec<u8>,
    server: Vec<u8>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("salt", &self.salt).finish_non_exhaustive()
    }
}

impl Keys {
    /// Makes the keys; takes as long as the iterations say.
    #[must_use]
    pub fn derive(hash: Hash, password: &[u8], salt: Salt) -> Self {
        let prepared = std::str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok());
        let prepared = prepared.map(|text| Zeroizing::new(text.into_owned()));
        let password = prepared.as_ref().map_or(password, |text| text.as_bytes());
        let salted = hash.salted(password, &salt.salt, salt.iterations);
        let client = Zeroizing::new(hash.hmac(&salted, b"Client Key"));
        Self { stored: hash.digest(&client), server: hash.hmac(&salted, b"Server Key"), salt }
    }

    /// Keys that no password has.
    fn nobodys(hash: Hash) -> Self {
        let zeros = vec![0; hash.len()];
        Self { salt: Salt { salt: Vec::new(), iterations: 0 }, stored: zeros.clone(), server: zeros }
    }

    /// As RFC 5803 §3 writes it: `SCRAM-SHA-1$iterations:salt$stored:server`.
    #[must_use]
    pub fn to_text(&self, hash: Hash) -> String {
        let [salt, stored, server] = [&self.salt.salt, &self.stored, &self.server].map(|bytes| wire::base64::encode(bytes));
        format!("{}${}:{salt}${stored}:{server}", hash.name(), self.salt.iterations)
    }

    /// Reads [`Keys::to_text`]; `None` for anything else.
    #[must_use]
    pub fn parse(hash: Hash, text: &str) -> Option<Self> {
        let (salt, keys) = text.strip_prefix(hash.name())?.strip_prefix('$')?.split_once('$')?;
        let ((iterations, salt), (stored, server)) = (salt.split_once(':')?, keys.split_once(':')?);
        let decode = |text: &str| wire::base64::decode(text.as_bytes()).ok();
        let salt = Salt { salt: decode(salt)?, iterations: iterations.parse().ok()? };
        let keys = Self { salt, stored: decode(stored)?, server: decode(server)? };
        let fits = keys.stored.len() == hash.len() && keys.server.len() == hash.len() && !keys.salt.salt.is_empty();
        Some(keys).filter(|keys| fits && keys.salt.iterations >= ITERATIONS_MIN)
    }
}

/// No message of SCRAM, or one that asks for what is not there: to be refused like a wrong password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// What binds the exchange to its TLS connection; nothing without TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Channel {
    /// `tls-exporter` (RFC 9266).
    pub exporter: Option<Vec<u8>>,
    /// `tls-server-end-point` (RFC 5929 §4).
    pub end_point: Option<Vec<u8>>,
}

impl Channel {
    /// Can a client bind to it?
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.exporter.is_some() || self.end_point.is_some()
    }

    /// The data for a client's flag (RFC 5802 §7, `gs2-cbind-flag`); `plus`: a -PLUS mechanism.
    fn data(&self, plus: bool, flag: &[u8]) -> Result<&[u8], Malformed> {
        match (plus, flag) {
            (false, b"n") => Ok(&[]),
            // The client believes that there is no -PLUS here. If there is, somebody took it out of the list (RFC 5802 §6).
            (false, b"y") if !self.is_bound() => Ok(&[]),
            (true, b"p=tls-exporter") => self.exporter.as_deref().ok_or(Malformed),
            (true, b"p=tls-server-end-point") => self.end_point.as_deref().ok_or(Malformed),
            _ => Err(Malformed),
        }
    }
}

/// A client's first message, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    hash: Hash,
    user: Vec<u8>,
    /// Somebody else than `user` is to be acted for.
    other_identity: bool,
    client_nonce: Vec<u8>,
    /// `client-first-message-bare`.
    bare: Vec<u8>,
    /// What `c=` of the last message has to hold.
    binding: Vec<u8>,
}

impl Login {
    /// Reads `client-first-message` (RFC 5802 §7).
    ///
    /// # Errors
    /// [`Malformed`]; also for a channel binding that is not the connection's.
    pub fn parse(hash: Hash, plus: bool, channel: &Channel, message: &[u8]) -> Result<Self, Malformed> {
        let mut parts = message.splitn(3, |b| *b == b',');
        let (flag, identity, bare) =
            (parts.next().ok_or(Malformed)?, parts.next().ok_or(Malformed)?, parts.next().ok_or(Malformed)?);
        let header = message.get(..message.len().saturating_sub(bare.len())).unwrap_or_default();
        let binding = [header, channel.data(plus, flag)?].concat();
        let identity = match identity {
            b"" => None,
            named => Some(name(named.strip_prefix(b"a=").ok_or(Malformed)?)?),
        };
        // `m=` in front would be an extension that must be understood; none is.
        let mut parts = bare.split(|b| *b == b',');
        let user = name(parts.next().and_then(|part| part.strip_prefix(b"n=")).ok_or(Malformed)?)?;
        let nonce = parts.next().and_then(|part| part.strip_prefix(b"r=")).ok_or(Malformed)?;
        if nonce.is_empty() || nonce.len() > CLIENT_NONCE_LEN_MAX || !nonce.iter().all(u8::is_ascii_graphic) {
            return Err(Malformed);
        }
        let other_identity = identity.is_some_and(|identity| identity != user);
        Ok(Self { hash, user, other_identity, client_nonce: nonce.to_vec(), bare: bare.to_vec(), binding })
    }

    /// Whose login it is. Nobody's where the client wants to act for another, which nobody may.
    #[must_use]
    pub fn user(&self) -> Option<&[u8]> {
        (!self.other_identity).then_some(&self.user[..])
    }

    /// The name that was given.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.user
    }

    /// `server-first-message`, and what waits for the client's proof. `keys`: one for each password, all with this salt; others are left
    /// out. `nonce`: fresh random bytes, 16 at least.
    #[must_use]
    pub fn answer(self, salt: &Salt, mut keys: Vec<Keys>, nonce: &[u8]) -> (Vec<u8>, Proof) {
        keys.retain(|keys| keys.salt == *salt);
        let nonce = [&self.client_nonce[..], wire::base64::encode(nonce).as_bytes()].concat();
        let salt_text = wire::base64::encode(&salt.salt);
        let first = [b"r=", &nonce[..], format!(",s={salt_text},i={}", salt.iterations).as_bytes()].concat();
        let signed = [&self.bare[..], b",", &first, b","].concat();
        (first, Proof { hash: self.hash, binding: self.binding, nonce, signed, keys })
    }
}

/// Waits for `client-final-message`.
#[derive(Clone, PartialEq, Eq)]
pub struct Proof {
    hash: Hash,
    binding: Vec<u8>,
    /// The client's and ours.
    nonce: Vec<u8>,
    /// `AuthMessage` without its last part.
    signed: Vec<u8>,
    keys: Vec<Keys>,
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").field("hash", &self.hash).finish_non_exhaustive()
    }
}

impl Proof {
    /// Judges the message: `server-final-message` and which of the keys it proves, counted in the order they came. `None`: none.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn judge(&self, message: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Malformed> {
        let at = memchr::memmem::rfind(message, b",p=").ok_or(Malformed)?;
        let (unproved, proof) = message.split_at_checked(at).ok_or(Malformed)?;
        let proof = proof.get(3..).and_then(|text| wire::base64::decode(text).ok()).ok_or(Malformed)?;
        let mut parts = unproved.split(|b| *b == b',');
        let binding = parts.next().and_then(|part| part.strip_prefix(b"c=")).ok_or(Malformed)?;
        let binding = wire::base64::decode(binding).map_err(|_| Malformed)?;
        let nonce = parts.next().and_then(|part| part.strip_prefix(b"r=")).ok_or(Malformed)?;
        if binding != self.binding || nonce != self.nonce || proof.len() != self.hash.len() {
            return Err(Malformed);
        }
        let signed = [&self.signed[..], unproved].concat();
        if self.keys.is_empty() {
            // The work is done for nobody, too.
            self.proves(&Keys::nobodys(self.hash), &signed, &proof);
        }
        Ok(self.keys.iter().position(|keys| self.proves(keys, &signed, &proof)).and_then(|at| {
            let signature = self.hash.hmac(&self.keys.get(at)?.server, &signed);
            Some((format!("v={}", wire::base64::encode(&signature)).into_bytes(), at))
        }))
    }

    /// `H(ClientProof XOR HMAC(StoredKey, AuthMessage)) = StoredKey` (RFC 5802 §3).
    fn proves(&self, keys: &Keys, signed: &[u8], proof: &[u8]) -> bool {
        let signature = self.hash.hmac(&keys.stored, signed);
        let client = Zeroizing::new(signature.iter().zip(proof).map(|(a, b)| a ^ b).collect::<Vec<u8>>());
        self.hash.digest(&client).ct_eq(&keys.stored).into()
    }
}

/// `saslname` (RFC 5802 §5.1): a comma is `=2C`, an equals sign `=3D`.
fn name(text: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut parts = text.split(|b| *b == b'=');
    let mut name = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        let (byte, rest) = match part {
            [b'2', b'C' | b'c', rest @ ..] => (b',', rest),
            [b'3', b'D' | b'd', rest @ ..] => (b'=', rest),
            _ => return Err(Malformed),
        };
        name.push(byte);
        name.extend_from_slice(rest);
    }
    if name.is_empty() || name.contains(&0) { Err(Malformed) } else { Ok(name) }
}

/// The client's side; for tests, here and of the programs.
#[doc(hidden)]
pub mod client {
    use super::{Hash, Zeroizing};

    /// `client-final-message` for a server's first one; `header`: the GS2 header with the binding data behind it.
    #[must_use]
    pub fn prove(hash: Hash, password: &[u8], bare: &str, server_first: &[u8], header: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let first = std::str::from_utf8(server_first).ok()?;
        let mut parts = first.split(',');
        let nonce = parts.next()?.strip_prefix("r=")?;
        let salt = wire::base64::decode(parts.next()?.strip_prefix("s=")?.as_bytes()).ok()?;
        let iterations = parts.next()?.strip_prefix("i=")?.parse().ok()?;
        let salted = hash.salted(password, &salt, iterations);
        let key = Zeroizing::new(hash.hmac(&salted, b"Client Key"));
        let unproved = format!("c={},r={nonce}", wire::base64::encode(header));
        let signed = format!("{bare},{first},{unproved}");
        let signature = hash.hmac(&hash.digest(&key), signed.as_bytes());
        let proof: Vec<u8> = signature.iter().zip(key.iter()).map(|(a, b)| a ^ b).collect();
        let server = hash.hmac(&hash.hmac(&salted, b"Server Key"), signed.as_bytes());
        let message = format!("{unproved},p={}", wire::base64::encode(&proof)).into_bytes();
        Some((message, format!("v={}", wire::base64::encode(&server)).into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn salt(base64: &str, iterations: u32) -> Salt {
        Salt { salt: wire::base64::decode(base64.as_bytes()).unwrap(), iterations }
    }

    fn login(hash: Hash, message: &str) -> Login {
        Login::parse(hash, false, &Channel::default(), message.as_bytes()).unwrap()
    }

    /// (hash, client-first-bare, server's part of the nonce, server-first, client-final, server-final): RFC 5802 §5, RFC 7677 §3.
    const EXAMPLES: [(Hash, &str, &str, &str, &str, &str); 2] = [
        (
            Hash::Sha1,
            "n=user,r=fyko+d2lbbFgONRv9qkxdawL",
            "3rfcNHYJY1ZVvWVs7j",
            "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        ),
        (
            Hash::Sha256,
            "n=user,r=rOprNGfwEbeRWgbNEkqO",
            "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ),
    ];

    /// The server with the RFC's nonce, which is not base64 there.
    fn proof(hash: Hash, bare: &str, nonce: &str, first: &str) -> Proof {
        let given = salt(first.split(",s=").nth(1).unwrap().split(',').next().unwrap(), 4096);
        let keys = Keys::derive(hash, b"pencil", given.clone());
        let login = login(hash, &format!("n,,{bare}"));
        assert_eq!(login.user(), Some(&b"user"[..]));
        let client_nonce = String::from_utf8(login.client_nonce.clone()).unwrap();
        let (_, mut proof) = login.answer(&given, vec![keys], b"x");
        proof.nonce = format!("{client_nonce}{nonce}").into_bytes();
        proof.signed = format!("{bare},{first},").into_bytes();
        proof
    }

    #[test]
    fn the_examples_of_the_rfcs_as_server_and_as_client() {
        for (hash, bare, nonce, first, last, signature) in EXAMPLES {
            let proof = proof(hash, bare, nonce, first);
            assert_eq!(proof.judge(last.as_bytes()), Ok(Some((signature.as_bytes().to_vec(), 0))), "{hash:?}");
            let client = client::prove(hash, b"pencil", bare, first.as_bytes(), b"n,,").unwrap();
            assert_eq!(client, (last.as_bytes().to_vec(), signature.as_bytes().to_vec()));
            let wrong = client::prove(hash, b"pencil2", bare, first.as_bytes(), b"n,,").unwrap();
            assert_eq!(proof.judge(&wrong.0), Ok(None));
        }
    }

    /// A whole exchange over the given channel; the index of the key that was proved.
    fn exchange(
        plus: bool,
        channel: &Channel,
        header: &str,
        binding: &[u8],
        passwords: &[&str],
    ) -> Result<Option<usize>, Malformed> {
        let (bare, given) = ("n=joe,r=abc", salt("c2FsdHNhbHQ=", 4096));
        let keys = passwords.iter().map(|password| Keys::derive(Hash::Sha1, password.as_bytes(), given.clone())).collect();
        let login = Login::parse(Hash::Sha1, plus, channel, format!("{header}{bare}").as_bytes())?;
        let (first, proof) = login.answer(&given, keys, &[7; 16]);
        let sent = [header.as_bytes(), binding].concat();
        let (last, signature) = client::prove(Hash::Sha1, b"secret", bare, &first, &sent).unwrap();
        Ok(proof.judge(&last)?.map(|(said, at)| {
            assert_eq!(said, signature);
            at
        }))
    }

    #[test]
    fn channel_bindings() {
        let clear = Channel::default();
        let tls = Channel { exporter: Some(b"E".to_vec()), end_point: Some(b"P".to_vec()) };
        for (plus, channel, header, data, expected) in [
            (false, &clear, "n,,", &b""[..], Ok(Some(0))),
            (false, &clear, "y,,", b"", Ok(Some(0))),
            (false, &tls, "n,,", b"", Ok(Some(0))),
            (true, &tls, "p=tls-exporter,,", b"E", Ok(Some(0))),
            (true, &tls, "p=tls-server-end-point,,", b"P", Ok(Some(0))),
            (true, &tls, "p=tls-exporter,a=joe,", b"E", Ok(Some(0))),
            // A man in the middle took -PLUS out of the list.
            (false, &tls, "y,,", b"", Err(Malformed)),
            // Another channel than this.
            (true, &tls, "p=tls-exporter,,", b"X", Err(Malformed)),
            (true, &tls, "p=tls-server-end-point,,", b"E", Err(Malformed)),
            (true, &tls, "p=tls-unique,,", b"E", Err(Malformed)),
            (true, &clear, "p=tls-exporter,,", b"E", Err(Malformed)),
            (true, &tls, "n,,", b"", Err(Malformed)),
            (true, &tls, "y,,", b"", Err(Malformed)),
            (false, &tls, "p=tls-exporter,,", b"E", Err(Malformed)),
        ] {
            assert_eq!(exchange(plus, channel, header, data, &["secret"]), expected, "{plus} {header}");
        }
    }

    #[test]
    fn any_of_several_passwords_is_right_and_none_of_nobodys() {
        let clear = Channel::default();
        assert_eq!(exchange(false, &clear, "n,,", b"", &["a", "secret", "b"]), Ok(Some(1)));
        assert_eq!(exchange(false, &clear, "n,,", b"", &["a"]), Ok(None));
        assert_eq!(exchange(false, &clear, "n,,", b"", &[]), Ok(None));
        let other = Keys::derive(Hash::Sha1, b"x", salt("b3RoZXI=", 4096));
        let (_, proof) = login(Hash::Sha1, "n,,n=joe,r=abc").answer(&salt("c2FsdHNhbHQ=", 4096), vec![other], &[7; 16]);
        assert!(proof.keys.is_empty(), "keys with another salt cannot be proved");
    }

    #[test]
    fn names_and_messages_that_are_none() {
        assert_eq!(login(Hash::Sha1, "n,,n=a=2Cb=3Dc,r=x").user, b"a,b=c");
        assert_eq!(login(Hash::Sha1, "n,a=joe,n=joe,r=x").user(), Some(&b"joe"[..]));
        assert_eq!(login(Hash::Sha1, "n,a=root,n=joe,r=x").user(), None, "nobody acts for another");
        for bad in [
            "",
            "n",
            "n,",
            "n,,",
            "n,,n=joe",
            "n,,n=,r=x",
            "n,,n=joe,r=",
            "n,,m=x,n=joe,r=x",
            "n,,n=a=2,r=x",
            "n,,n=a=,r=x",
            "n,,n=a\0,r=x",
            "n,root,n=joe,r=x",
            "x,,n=joe,r=x",
            "n,,r=x,n=joe",
            "n,,n=joe,r=a b",
            "n,,n=joe,r=a\u{e9}",
        ] {
            let parsed = Login::parse(Hash::Sha1, false, &Channel::default(), bad.as_bytes());
            assert_eq!(parsed, Err(Malformed), "{bad:?}");
        }
        let long = format!("n,,n=joe,r={}", "x".repeat(CLIENT_NONCE_LEN_MAX + 1));
        assert!(Login::parse(Hash::Sha1, false, &Channel::default(), long.as_bytes()).is_err());
        let (hash, bare, nonce, first, last, _) = EXAMPLES[0];
        let proof = proof(hash, bare, nonce, first);
        for bad in [
            String::new(),
            last.replace("c=biws", "c=eSws"),
            last.replace("c=biws", "c=biws!"),
            last.replace("VvWVs7j", "VvWVs7k"),
            last.replace(",p=", ",q="),
            last.replace("4Ts=", "4Ts"),
            last.replace("v0X8", ""),
            format!("r=x,{last}"),
        ] {
            assert_eq!(proof.judge(bad.as_bytes()), Err(Malformed), "{bad}");
        }
    }

    #[test]
    fn keys_as_text() {
        let keys = Keys::derive(Hash::Sha256, b"pencil", salt("W22ZaJ0SNY7soEsUEjb6gQ==", 4096));
        let text = keys.to_text(Hash::Sha256);
        // The form and the numbers of RFC 5803 §3 over RFC 7677 §3; what PostgreSQL keeps for this password looks the same.
        assert_eq!(
            text,
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
        assert_eq!(Keys::parse(Hash::Sha256, &text), Some(keys.clone()));
        assert!(!format!("{keys:?}").contains("stored"));
        for bad in [
            "".to_owned(),
            text.replace("SHA-256", "SHA-1"),
            text.replace("4096", "1"),
            text.replace("4096", "99999999999"),
            text.replace("WG5d", ""),
            text.replace("wfPL", "!"),
            text.replace(":wf", "wf"),
        ] {
            assert_eq!(Keys::parse(Hash::Sha256, &bad), None, "{bad}");
        }
    }

    #[test]
    fn passwords_are_prepared() {
        let given = salt("c2FsdHNhbHQ=", 4096);
        let derive = |password: &[u8]| Keys::derive(Hash::Sha1, password, given.clone());
        // RFC 4013 §3: a soft hyphen is nothing, a compatibility form its letters.
        assert_eq!(derive("I\u{ad}X".as_bytes()), derive(b"IX"));
        assert_eq!(derive("\u{2168}".as_bytes()), derive(b"IX"));
        assert_ne!(derive(b"ix"), derive(b"IX"));
        // What it refuses is taken as it is.
        assert_ne!(derive(b"\x07"), derive(b""));
        assert_ne!(derive(b"\xff"), derive(b"\xfe"));
    }
}
