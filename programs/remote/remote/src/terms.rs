//! On which terms a connection is made: with how much TLS, to whom, as whom. An idle connection serves another job only on equal
//! terms: one that was opened under a weaker policy, for other names or with other credentials never does.
//!
//! The destination that `control/tlspolicy` is asked for is the domain of the recipients, or the relay. Without a line for it TLS is
//! opportunistic; towards a relay that gets our password it is verified, since whoever answers in its place gets the password.

use std::rc::Rc;

use control::{Level, TlsPolicies, TlsPolicy};
use ipc::job::Route;
use smtp::client::Protocol;
use wire::Login;

use crate::hosts::{Candidate, Endpoint};

/// RFC 8314 §3.3: TLS from the first byte on.
const PORT_SUBMISSIONS: u16 = 465;

/// The terms of a connection to one host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Terms {
    pub protocol: Protocol,
    /// QMTP in its place.
    pub is_qmtp: bool,
    pub level: Level,
    /// TLS from the first byte on.
    pub implicit: bool,
    /// For [`Level::Verify`]: the certificate is for one of these.
    pub names: Vec<String>,
    pub login: Option<Rc<Login>>,
    /// Log in without TLS, too.
    pub cleartext: bool,
    /// The certificate that we show, by its name below etc/qmail/tls.
    pub certificate: Option<String>,
}

/// What holds for all hosts that a job may go to.
#[derive(Debug)]
pub struct Wishes {
    policy: TlsPolicy,
    /// A line of control/tlspolicy says so.
    is_explicit: bool,
    destination: String,
    protocol: Protocol,
    login: Option<Rc<Login>>,
}

impl Wishes {
    /// `requiretls`: the message needs it (RFC 8689 §4.2); `relaxed` is asked whether it says `TLS-Required: no` (§5), and only if
    /// that makes a difference: not where a relay knows us by our password or our certificate.
    pub fn new(policies: &TlsPolicies, route: Route, requiretls: bool, relaxed: impl FnOnce() -> bool) -> Self {
        let protocol = match route {
            Route::Mx { .. } | Route::Relay { .. } | Route::Qmtp { .. } => Protocol::Smtp,
            Route::Lmtp { .. } | Route::LmtpSocket { .. } => Protocol::Lmtp,
        };
        let (destination, login) = match route {
            Route::Mx { domain } => (domain.as_bytes().to_vec(), None),
            Route::Relay { host, login, .. } => (host.0, login.map(Rc::new)),
            Route::Lmtp { host, .. } | Route::Qmtp { host, .. } => (host.0, None),
            Route::LmtpSocket { path } => (path.0, None),
        };
        let line = policies.lookup(&destination);
        let is_explicit = line.is_some();
        let default = if login.is_some() { Level::Verify } else { Level::May };
        let mut policy = line.cloned().unwrap_or_else(|| TlsPolicy::of(default));
        let destination = host_text(&destination);
        if requiretls {
            policy.level = Level::Verify;
            if policy.names.is_empty() {
                // RFC 8689 §4.2.1 takes no mail host's name from an unsigned DNS: the certificate has to speak for the domain.
                policy.names = vec![destination.clone(), format!(".{destination}")];
            }
        } else if policy.level > Level::May && login.is_none() && policy.certificate.is_none() && relaxed() {
            (policy.level, policy.names) = (Level::May, Vec::new());
        }
        Self { policy, is_explicit: is_explicit || requiretls, destination, protocol, login }
    }

    /// May a message go by QMTP, which knows neither TLS nor a login?
    #[must_use]
    pub fn allow_qmtp(&self) -> bool {
        self.policy.level <= Level::May && !self.policy.implicit && self.login.is_none()
    }

    /// The terms for one of the hosts.
    #[must_use]
    pub fn terms(&self, candidate: &Candidate) -> Terms {
        let is_here = candidate.endpoint.is_here();
        let cleartext = self.policy.cleartext || is_here;
        let level = match self.policy.level {
            Level::Verify if !self.is_explicit && is_here => Level::May,
            // Without TLS there would be no login.
            Level::May if self.login.is_some() && !cleartext => Level::Encrypt,
            level => level,
        };
        // What goes through a socket of this host's file system is on no wire.
        let port = candidate.endpoint.address().map(|address| address.port());
        let is_qmtp = candidate.via.is_qmtp();
        let level = if port.is_some() && !is_qmtp { level } else { Level::None };
        let is_implicit = self.policy.implicit || (port == Some(PORT_SUBMISSIONS) && self.protocol == Protocol::Smtp);
        Terms {
            protocol: self.protocol,
            is_qmtp,
            level,
            implicit: level != Level::None && is_implicit,
            names: if level == Level::Verify { self.names(&candidate.host) } else { Vec::new() },
            login: self.login.clone(),
            cleartext: self.login.is_some() && cleartext,
            certificate: self.policy.certificate.clone().filter(|_| level >= Level::Encrypt),
        }
    }

    /// The names that the certificate of `host` may have.
    fn names(&self, host: &str) -> Vec<String> {
        if self.policy.names.is_empty() {
            let mut names = vec![host.to_owned(), self.destination.clone()];
            names.dedup();
            return names;
        }
        let name = |name: &String| match name.strip_prefix('.') {
            Some(_) => host.ends_with(name.as_str()).then(|| host.to_owned()),
            None => Some(name.clone()),
        };
        let mut names: Vec<String> = self.policy.names.iter().filter_map(name).collect();
        names.dedup();
        names
    }
}

impl Terms {
    /// In the clear, without a login: for a connection that TLS has failed on.
    #[must_use]
    pub fn security(&self, skip_tls: bool) -> smtp::client::Security {
        use smtp::client::Tls;
        let tls = match self.level {
            _ if self.implicit => Tls::Started,
            Level::None => Tls::No,
            Level::May if skip_tls => Tls::No,
            Level::May => Tls::May,
            Level::Encrypt | Level::Verify => Tls::Must,
        };
        smtp::client::Security { protocol: self.protocol, tls, login: self.login.as_deref().cloned(), cleartext: self.cleartext }
    }

    /// Whom the certificate must be for; `None`: nobody looks.
    #[must_use]
    pub fn names(&self) -> Option<&[String]> {
        (self.level == Level::Verify).then_some(self.names.as_slice())
    }
}

/// A host's name as certificates have it: lower case, without a dot at the end, an address without brackets.
#[must_use]
pub fn host_text(host: &[u8]) -> String {
    let host = String::from_utf8_lossy(host).to_ascii_lowercase();
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
    inner.strip_suffix('.').unwrap_or(inner).to_owned()
}

/// What idle connections are found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub endpoint: Endpoint,
    pub terms: Rc<Terms>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::Via;
    use smtp::client::Tls;
    use wire::{Domain, Secret};

    fn endpoint(address: &str) -> Endpoint {
        Endpoint::Internet(address.parse().unwrap())
    }

    fn mx() -> Route {
        Route::Mx { domain: Domain::new(b"b.example").unwrap() }
    }

    fn relay(login: bool) -> Route {
        let login = login.then(|| Login { user: b"joe".to_vec(), password: Secret::new(b"pw".to_vec()) });
        Route::Relay { host: "Relay.example.".into(), port: 587, login }
    }

    fn terms(policies: &str, route: Route, address: &str, host: &str) -> Terms {
        let policies = TlsPolicies::parse(policies.as_bytes()).unwrap();
        let candidate =
            Candidate { endpoint: endpoint(address), rank: 0, host: host_text(host.as_bytes()).into(), via: Via::Smtp };
        Wishes::new(&policies, route, false, || false).terms(&candidate)
    }

    /// A password goes by TLS, and without a line to the relay that its certificate names; at this host, anyhow.
    #[test]
    fn terms_of_a_login() {
        let verified = (Level::Verify, Tls::Must, false);
        for (policies, address, expected) in [
            ("", "192.0.2.1:587", verified),
            ("", "[2001:db8::1]:587", verified),
            ("", "127.0.0.1:587", (Level::May, Tls::May, true)),
            ("", "[::1]:587", (Level::May, Tls::May, true)),
            ("", "[::ffff:127.0.0.1]:587", (Level::May, Tls::May, true)),
            (":may\n", "192.0.2.1:587", (Level::Encrypt, Tls::Must, false)),
            (":none\n", "192.0.2.1:587", (Level::None, Tls::No, false)),
            ("relay.example:may cleartext\n", "192.0.2.1:587", (Level::May, Tls::May, true)),
            ("relay.example:none cleartext\n", "192.0.2.1:587", (Level::None, Tls::No, true)),
            ("relay.example:verify\n", "127.0.0.1:587", (Level::Verify, Tls::Must, true)),
            ("", "192.0.2.1:465", (Level::Verify, Tls::Started, false)),
        ] {
            let found = terms(policies, relay(true), address, "Relay.example.");
            let security = found.security(false);
            assert_eq!((found.level, security.tls, security.cleartext), expected, "{policies} {address}");
            assert!(security.login.is_some());
            assert_eq!(found.names(), (expected.0 == Level::Verify).then_some(&["relay.example".to_owned()][..]));
        }
        assert_eq!(terms("", relay(false), "192.0.2.1:587", "relay.example").level, Level::May);
        assert_eq!(terms("", relay(false), "192.0.2.1:465", "relay.example").security(true).tls, Tls::Started);
        assert!(!terms(":none\n", relay(false), "192.0.2.1:465", "relay.example").implicit);
    }

    /// A socket of this host has no TLS, whatever the policy says of all others; an LMTP server by its address is as any other relay.
    #[test]
    fn terms_of_lmtp() {
        let policies = TlsPolicies::parse(b":encrypt\nstore.example:verify\n").unwrap();
        let socket = Route::LmtpSocket { path: "/run/lmtp".into() };
        let candidate = crate::hosts::literal_relay(&socket).unwrap();
        let terms = Wishes::new(&policies, socket, false, || false).terms(&candidate);
        assert_eq!((terms.level, terms.protocol, terms.security(false).tls), (Level::None, Protocol::Lmtp, Tls::No));
        let host = Route::Lmtp { host: "Store.example".into(), port: 465 };
        let candidate = Candidate { endpoint: endpoint("192.0.2.1:465"), rank: 0, host: "store.example".into(), via: Via::Smtp };
        let terms = Wishes::new(&policies, host, false, || false).terms(&candidate);
        assert_eq!((terms.level, terms.security(false).tls, terms.implicit), (Level::Verify, Tls::Must, false));
        assert_eq!(terms.names(), Some(&["store.example".to_owned()][..]));
    }

    #[test]
    fn names_of_certificates() {
        for (policy, host, expected) in [
            ("verify", "MX.b.example.", &["mx.b.example", "b.example"][..]),
            ("verify", "b.example", &["b.example"]),
            ("verify x.example .b.example", "mx.b.example", &["x.example", "mx.b.example"]),
            ("verify .b.example", "mx.c.example", &[]),
            ("verify .b.example", "notb.example", &[]),
            ("encrypt", "mx.b.example", &[]),
        ] {
            assert_eq!(terms(&format!("b.example:{policy}\n"), mx(), "192.0.2.1:25", host).names, expected, "{policy} {host}");
        }
    }

    #[test]
    fn what_the_message_says() {
        let policies = TlsPolicies::parse(b"b.example:encrypt\nrelay.example.:verify\n").unwrap();
        let candidate = Candidate { endpoint: endpoint("192.0.2.1:25"), rank: 0, host: "mx.b.example".into(), via: Via::Smtp };
        let of = |route, requiretls, relaxed| Wishes::new(&policies, route, requiretls, move || relaxed).terms(&candidate);
        assert_eq!(of(mx(), false, true).level, Level::May);
        assert_eq!(of(mx(), true, true).level, Level::Verify);
        assert_eq!(of(mx(), true, false).names, ["b.example", "mx.b.example"]);
        // What the sender of a message says is nothing to our password.
        assert_eq!(of(relay(true), false, true).level, Level::Verify);
        assert_eq!(of(relay(false), false, true).level, Level::May);
    }

    #[test]
    fn a_certificate_is_shown_where_the_line_says_so() {
        let policies = "relay.example:encrypt clientcert=mx\n";
        let found = terms(policies, relay(false), "127.0.0.1:25", "relay.example");
        assert_eq!((found.certificate.as_deref(), found.level), (Some("mx"), Level::Encrypt));
        assert_eq!(terms(policies, mx(), "192.0.2.1:25", "relay.example").certificate, None);
        // Who sends cannot have it go without.
        let candidate = Candidate {
            endpoint: "192.0.2.1:25".parse::<std::net::SocketAddr>().unwrap().into(),
            rank: 0,
            host: "relay.example".into(),
            via: Via::Smtp,
        };
        let policies = TlsPolicies::parse(policies.as_bytes()).unwrap();
        let relaxed = Wishes::new(&policies, relay(false), false, || true).terms(&candidate);
        assert_eq!((relaxed.certificate.as_deref(), relaxed.level), (Some("mx"), Level::Encrypt));
        // One that was opened without it serves nobody who has to show it.
        assert_ne!(relaxed, Terms { certificate: None, ..relaxed.clone() });
    }

    #[test]
    fn only_the_opportunistic_may_go_without() {
        for (policy, tls) in [("may", Tls::No), ("none", Tls::No), ("encrypt", Tls::Must), ("verify", Tls::Must)] {
            assert_eq!(terms(&format!(":{policy}\n"), mx(), "192.0.2.1:25", "h").security(true).tls, tls);
        }
        assert_eq!(terms(":may implicit\n", mx(), "192.0.2.1:25", "h").security(true).tls, Tls::Started);
    }
}
