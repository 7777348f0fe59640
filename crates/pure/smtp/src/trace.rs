//! The Received field of a network server (qmail-family §3.4; RFC 5321 §4.4).
//!
//! ```text
//! Received: from RHOST (HELO helo) (info@RIP)
//!   by LOCAL with ESMTP; 23 Nov 2026 08:05:09 -0000
//! ```
//! The HELO part stands there only when it differs from RHOST, `info@` only when ident told one. Guarantees: two lines, whatever
//! strangers said; a byte that no host name, address or literal has becomes `?`, names are cut at [`NAME_LEN_MAX`].
//! Used by [`crate::server`].

use wire::Priority;
use wire::civil::Civil;

/// Longest name written into the field: a domain (RFC 1035 §2.3.4).
pub const NAME_LEN_MAX: usize = 255;

/// What the field tells.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// Nothing is told of who the client is: `from unknown (hidden)`.
    pub hides_client: bool,
    /// TCPREMOTEHOST; `unknown` if nobody looked.
    pub remote_host: &'a [u8],
    pub remote_ip: &'a [u8],
    /// TCPREMOTEINFO, from ident.
    pub remote_info: Option<&'a [u8]>,
    pub helo: Option<&'a [u8]>,
    pub local_host: &'a [u8],
    /// `SMTP`, `ESMTP`, `UTF8SMTP`, `LMTP`; with an `S` behind it over TLS and an `A` after a login (RFC 5321 §4.4, RFC 3848, RFC 6531 §4.3).
    pub protocol: &'a str,
    /// The cipher suite by its IANA name (RFC 8314 §4.3).
    pub tls: Option<&'a str>,
    /// What MAIL gave as MT-PRIORITY, as this server takes it (RFC 6710 §3.3).
    pub priority: Option<Priority>,
    /// By what the client's certificate is known here; a comment behind `tls`.
    pub certificate: Option<&'a str>,
    pub unix_s: u64,
}

impl Received<'_> {
    /// The field with its final LF.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        let mut line = Vec::with_capacity(160);
        line.extend_from_slice(b"Received: from ");
        if self.hides_client {
            line.extend_from_slice(b"unknown (hidden");
        } else {
            self.push_client(&mut line);
        }
        line.extend_from_slice(b")\n  by ");
        push_safe(&mut line, self.local_host);
        line.extend_from_slice(b" with ");
        line.extend_from_slice(self.protocol.as_bytes());
        if let Some(cipher) = self.tls {
            line.extend_from_slice(b" tls ");
            line.extend(cipher.bytes().filter(|b| b.is_ascii_alphanumeric() || *b == b'_'));
            if let Some(certificate) = self.certificate {
                line.extend_from_slice(b" (client certificate ");
                push_safe(&mut line, certificate.as_bytes());
                line.push(b')');
            }
        }
        if let Some(priority) = self.priority {
            line.extend_from_slice(format!(" PRIORITY {priority}").as_bytes());
        }
        line.extend_from_slice(b"; ");
        line.extend_from_slice(Civil::from_unix(self.unix_s).rfc5322().as_bytes());
        line.push(b'\n');
        line
    }

    fn push_client(&self, line: &mut Vec<u8>) {
        push_safe(line, self.remote_host);
        if let Some(helo) = self.helo.filter(|helo| !helo.eq_ignore_ascii_case(self.remote_host)) {
            line.extend_from_slice(b" (HELO ");
            push_safe(line, helo);
            line.push(b')');
        }
        line.extend_from_slice(b" (");
        if let Some(info) = self.remote_info {
            push_safe(line, info);
            line.push(b'@');
        }
        push_safe(line, self.remote_ip);
    }
}

fn push_safe(line: &mut Vec<u8>, name: &[u8]) {
    let is_safe = |b: u8| b.is_ascii_alphanumeric() || b".@%+/=:-[]".contains(&b);
    line.extend(name.iter().take(NAME_LEN_MAX).map(|&b| if is_safe(b) { b } else { b'?' }));
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Received<'static> = Received {
        hides_client: false,
        remote_host: b"unknown",
        remote_ip: b"192.0.2.1",
        remote_info: None,
        helo: None,
        local_host: b"mx.example.org",
        protocol: "ESMTP",
        tls: None,
        priority: None,
        certificate: None,
        unix_s: 0,
    };

    #[test]
    fn is_byte_for_byte_the_classic_line() {
        let text = |received: Received<'_>| String::from_utf8(received.line()).unwrap();
        assert_eq!(
            text(PLAIN),
            "Received: from unknown (192.0.2.1)\n  by mx.example.org with ESMTP; 1 Jan 1970 00:00:00 -0000\n"
        );
        let tls = Received { protocol: "ESMTPS", tls: Some("TLS_AES_256_GCM_SHA384"), ..PLAIN };
        assert!(text(tls).contains("\n  by mx.example.org with ESMTPS tls TLS_AES_256_GCM_SHA384; 1 Jan"));
        let shown = Received { certificate: Some("joe@a.b"), ..tls };
        assert!(text(shown).contains("ESMTPS tls TLS_AES_256_GCM_SHA384 (client certificate joe@a.b); 1 Jan"));
        let odd = Received { certificate: Some("a (b)\r\nc\u{e4}"), ..tls };
        assert!(text(odd).contains("(client certificate a??b???c??); 1 Jan"));
        let all = Received { remote_host: b"a.b", helo: Some(b"c.d"), remote_info: Some(b"joe"), ..PLAIN };
        assert_eq!(
            text(all),
            "Received: from a.b (HELO c.d) (joe@192.0.2.1)\n  by mx.example.org with ESMTP; 1 Jan 1970 00:00:00 -0000\n"
        );
        let same = Received { remote_host: b"a.b", helo: Some(b"A.B"), ..PLAIN };
        assert!(text(same).starts_with("Received: from a.b (192.0.2.1)\n"));
    }

    #[test]
    fn a_client_can_be_hidden() {
        let all = Received { remote_host: b"a.b", helo: Some(b"c.d"), remote_info: Some(b"joe"), hides_client: true, ..PLAIN };
        assert_eq!(
            String::from_utf8(all.line()).unwrap(),
            "Received: from unknown (hidden)\n  by mx.example.org with ESMTP; 1 Jan 1970 00:00:00 -0000\n"
        );
    }

    #[test]
    fn strangers_cannot_break_the_line() {
        let every: Vec<u8> = (0..=255).collect();
        let line = Received { helo: Some(&every), remote_info: Some(&every), ..PLAIN }.line();
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 2);
        assert!(line.iter().all(|b| *b == b'\n' || (32..127).contains(b)));
        let helo = [b'x'; 5000];
        assert!(Received { helo: Some(&helo), ..PLAIN }.line().len() < 500);
    }
}
