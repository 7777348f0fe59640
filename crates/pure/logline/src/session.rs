//! The line that each session with a client ends with, the same for all protocols.

use crate::Line;

/// What every session has; what only one protocol has is put behind it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Session<'a> {
    /// As in control/listen: `smtp`, `pop3`, …
    pub service: &'a str,
    /// The client's address.
    pub remote: &'a [u8],
    /// How it ended: `quit`, `gone`, `timeout`, `tls`, `limit`, `shutdown` …
    pub end: &'a str,
    pub seconds: u64,
    /// Bytes from the client, and to it; inside of TLS.
    pub taken: u64,
    pub sent: u64,
    /// The cipher suite by its IANA name.
    pub cipher: Option<&'a str>,
    /// Who logged in, by the account's own name.
    pub user: Option<&'a [u8]>,
    /// The client's name for itself.
    pub helo: Option<&'a [u8]>,
}

impl Session<'_> {
    /// `session service=… remote=… end=… seconds=… in=… out=…`, and what there is of `tls`, `cipher`, `user` and `helo`.
    #[must_use]
    pub fn line(&self) -> Line {
        let line = Line::new("session").put("service", self.service).bytes("remote", self.remote).put("end", self.end);
        let line = line.put("seconds", self.seconds).put("in", self.taken).put("out", self.sent);
        let line = match self.cipher {
            Some(cipher) => line.put("tls", version(cipher)).put("cipher", cipher),
            None => line,
        };
        line.optional("user", self.user).optional("helo", self.helo)
    }
}

/// Suites of TLS 1.3 name no key exchange (RFC 8446 §B.4); older versions than 1.2 are not spoken here.
fn version(cipher: &str) -> &'static str {
    if cipher.contains("_WITH_") { "TLSv1.2" } else { "TLSv1.3" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_known_and_nothing_that_is_not() {
        let session = Session { service: "smtp", remote: b"::1", end: "gone", ..Session::default() };
        assert_eq!(session.line().finish(), "session service=smtp remote=::1 end=gone seconds=0 in=0 out=0");
        let cipher = Some("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
        let session = Session { cipher, user: Some(b"a b"), helo: Some(b"x"), ..session };
        assert!(
            session
                .line()
                .finish()
                .ends_with(" out=0 tls=TLSv1.2 cipher=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 user=\"a b\" helo=x")
        );
    }
}
