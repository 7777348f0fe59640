//! URLs of servers that control files name: no user, no fragment, nothing that has to be guessed.

use std::fmt;
use std::net::IpAddr;

/// Longest name of a host (RFC 1035 §2.3.4).
const HOST_LEN_MAX: usize = 253;

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name in ASCII, or an address without brackets.
    pub host: String,
    pub port: u16,
}

impl Endpoint {
    /// `HOST[:PORT]`, an IPv6 address in brackets.
    #[must_use]
    pub fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (host, rest) = match text.strip_prefix('[') {
            Some(inner) => {
                let (host, rest) = inner.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, rest)
            }
            None => text.split_at_checked(text.find(':').unwrap_or(text.len()))?,
        };
        let port = match rest.strip_prefix(':') {
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => port.parse().ok().filter(|port| *port != 0)?,
            None if rest.is_empty() => default_port,
            _ => return None,
        };
        let endpoint = Self { host: host.to_owned(), port };
        (endpoint.address().is_some() || is_name(host)).then_some(endpoint)
    }

    /// The address, if it is one and not a name.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Does nothing that is sent there leave this host? Only an address can tell.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.address().is_some_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address() {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

fn is_name(host: &str) -> bool {
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    // A last label of digits would be an address that is written wrongly.
    let last_is_number = host.rsplit('.').next().is_none_or(|last| last.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= HOST_LEN_MAX && host.split('.').all(is_label) && !last_is_number
}

/// An `https:` URL, or an `http:` one of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebUrl {
    pub is_tls: bool,
    pub endpoint: Endpoint,
    /// Path and query; begins with a slash.
    pub target: String,
}

impl WebUrl {
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (is_tls, rest, port) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest, 443),
            (None, Some(rest)) => (false, rest, 80),
            _ => return Err("must begin with https://".to_owned()),
        };
        let (authority, target) = rest.split_at_checked(rest.find(['/', '?']).unwrap_or(rest.len())).unwrap_or((rest, ""));
        let endpoint = Endpoint::parse(authority, port).ok_or("has no host, or one that is none (HOST or HOST:PORT)")?;
        if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return Err("has characters that no URL has, or a fragment".to_owned());
        }
        if !is_tls && !endpoint.is_loopback() {
            return Err("must begin with https://; http:// is for 127.0.0.0/8 and [::1] alone".to_owned());
        }
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self { is_tls, endpoint, target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (text, expected) in [
            ("ldap.example.org", Some("ldap.example.org:389")),
            ("ldap:636", Some("ldap:636")),
            ("127.0.0.1", Some("127.0.0.1:389")),
            ("[::1]:7", Some("[::1]:7")),
            ("[2001:db8::1]", Some("[2001:db8::1]:389")),
            ("", None),
            (":389", None),
            ("a:", None),
            ("a:0", None),
            ("a:65536", None),
            ("a:+1", None),
            ("a b", None),
            ("a..b", None),
            ("user@a", None),
            ("127.0.0", None),
            ("1.2.3.4.5", None),
            ("::1", None),
            ("[127.0.0.1]", None),
            ("[::1]x", None),
            ("exämple.org", None),
        ] {
            assert_eq!(Endpoint::parse(text, 389).map(|endpoint| endpoint.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn web_urls() {
        let url = WebUrl::parse("https://id.example.org/realms/x/introspect?a=b").unwrap();
        assert_eq!((url.is_tls, url.endpoint.port, url.target.as_str()), (true, 443, "/realms/x/introspect?a=b"));
        assert_eq!(WebUrl::parse("http://127.9.9.9:8080").unwrap().target, "/");
        assert_eq!(WebUrl::parse("https://a?b").unwrap().target, "/?b");
        assert!(WebUrl::parse("http://[::1]/x").is_ok());
        for (text, part) in [
            ("id.example.org", "begin with https"),
            ("HTTPS://a", "begin with https"),
            ("http://id.example.org/", "for 127.0.0.0/8"),
            ("http://localhost/", "for 127.0.0.0/8"),
            ("https:///x", "no host"),
            ("https://a@b/", "no host"),
            ("https://a/ b", "characters"),
            ("https://a/#b", "fragment"),
        ] {
            assert!(WebUrl::parse(text).unwrap_err().contains(part), "{text}");
        }
    }
}
