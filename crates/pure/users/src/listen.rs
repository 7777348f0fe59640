//! `control/listen`: a line per listener, `SERVICE ADDRESS:PORT [key=value…]`. IPv6 addresses stand in brackets.
//!
//! qmail-start binds them, the network workers take the options. An option is a word without blanks; which ones exist the
//! service decides. `proxy=NETWORK[,NETWORK…]` is for all: connections come from these networks alone, each with the header of the
//! PROXY protocol (wire::proxy).

use std::fmt;
use std::net::SocketAddr;

use crate::{LineError, Networks, list_lines};

/// More listeners than any machine needs; each costs a descriptor in every worker.
pub const LISTENERS_MAX: usize = 64;

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    Smtp,
    Submission,
    Submissions,
    Lmtp,
    Qmtp,
    Qmqp,
    Pop3,
    Pop3s,
    /// The challenges of a certificate authority (RFC 8555 §8.3, RFC 8737).
    Acme,
}

impl Service {
    pub const ALL: [Self; 9] = [
        Self::Smtp,
        Self::Submission,
        Self::Submissions,
        Self::Lmtp,
        Self::Qmtp,
        Self::Qmqp,
        Self::Pop3,
        Self::Pop3s,
        Self::Acme,
    ];

    /// As `control/listen` writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Smtp => "smtp",
            Self::Submission => "submission",
            Self::Submissions => "submissions",
            Self::Lmtp => "lmtp",
            Self::Qmtp => "qmtp",
            Self::Qmqp => "qmqp",
            Self::Pop3 => "pop3",
            Self::Pop3s => "pop3s",
            Self::Acme => "acme",
        }
    }

    /// The well-known port (LMTP has none; 24 is private mail systems'; ACME's is that of `http-01`, `tls-alpn-01` has 443).
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Smtp => 25,
            Self::Submission => 587,
            Self::Submissions => 465,
            Self::Lmtp => 24,
            Self::Qmtp => 209,
            Self::Qmqp => 628,
            Self::Pop3 => 110,
            Self::Pop3s => 995,
            Self::Acme => 80,
        }
    }

    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.name().as_bytes() == name)
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One line of `control/listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub service: Service,
    pub address: SocketAddr,
    pub options: Vec<(String, String)>,
}

impl Listener {
    /// The value of the last option with this key.
    #[must_use]
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The networks of the proxies that connect here; `None` if clients do.
    ///
    /// # Errors
    /// What is wrong with the option; [`parse`] lets none of these pass.
    pub fn proxies(&self) -> Result<Option<Networks>, String> {
        let Some(networks) = self.option("proxy") else { return Ok(None) };
        let networks =
            Networks::parse(networks.replace(',', "\n").as_bytes()).map_err(|error| format!("proxy: {}", error.problem))?;
        if networks.is_empty() {
            return Err("proxy= names no network; write ADDRESS or ADDRESS/BITS, with commas between several".to_owned());
        }
        Ok(Some(networks))
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.service, self.address)?;
        self.options.iter().try_for_each(|(key, value)| write!(f, " {key}={value}"))
    }
}

/// Reads the file.
///
/// # Errors
/// The first line that is no listener, an address that stands twice, more than [`LISTENERS_MAX`]; temporary.
pub fn parse(text: &[u8]) -> Result<Vec<Listener>, LineError> {
    let mut listeners: Vec<Listener> = Vec::new();
    for (number, line) in list_lines(text) {
        let listener = parse_line(line).map_err(|problem| LineError::new(number, problem))?;
        // Port 0 asks for any free port, so two such lines do not clash.
        if listener.address.port() != 0 && listeners.iter().any(|known| known.address == listener.address) {
            return Err(LineError::new(
                number,
                format!("{} is listened on by an earlier line; take one of them out", listener.address),
            ));
        }
        if listeners.len() >= LISTENERS_MAX {
            return Err(LineError::new(number, format!("more than {LISTENERS_MAX} listeners; take some out")));
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

fn parse_line(line: &[u8]) -> Result<Listener, String> {
    let line = std::str::from_utf8(line).map_err(|_| "not ASCII".to_owned())?;
    let mut words = line.split_ascii_whitespace();
    let name = words.next().unwrap_or_default();
    let service = Service::from_name(name.as_bytes()).ok_or_else(|| {
        let known: Vec<_> = Service::ALL.iter().map(|service| service.name()).collect();
        format!("unknown service `{}`; there are {}", name.escape_default(), known.join(", "))
    })?;
    let address = words.next().unwrap_or_default();
    let address: SocketAddr = address.parse().map_err(|_| {
        format!(
            "`{}` is not ADDRESS:PORT; write 0.0.0.0:{port}, 127.0.0.1:{port} or [::]:{port}",
            address.escape_default(),
            port = service.port()
        )
    })?;
    if service == Service::Lmtp && address.port() == Service::Smtp.port() {
        return Err("lmtp may not be on port 25, which is SMTP's (RFC 2033 §5); take another, such as 24".to_owned());
    }
    let option = |word: &str| match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("option `{}` has no value; write key=value", word.escape_default())),
    };
    let options = words.map(option).collect::<Result<_, _>>()?;
    let listener = Listener { service, address, options };
    listener.proxies()?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_listeners() {
        let listeners = parse(b"# all\nsmtp 0.0.0.0:25\nsmtp [::]:25  tls=none x=\n\npop3 127.0.0.1:1110 a=1 a=2\n").unwrap();
        let expected = ["smtp 0.0.0.0:25", "smtp [::]:25 tls=none x=", "pop3 127.0.0.1:1110 a=1 a=2"];
        assert_eq!(listeners.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        assert_eq!(listeners[2].option("a"), Some("2"));
        assert_eq!(listeners[2].option("b"), None);
        let proxied = parse(b"smtp 0.0.0.0:25 proxy=10.0.0.1,2001:db8::/32\n").unwrap()[0].proxies().unwrap().unwrap();
        for (proxy, trusted) in [("10.0.0.1", true), ("10.0.0.2", false), ("2001:db8::7", true), ("127.0.0.1", false)] {
            assert_eq!(proxied.contains(proxy.parse().unwrap()), trusted, "{proxy}");
        }
        assert_eq!(listeners[0].proxies(), Ok(None));
    }

    #[test]
    fn names_the_line_that_is_wrong() {
        for bad in [
            "smtp",
            "smtp 25",
            "SMTP 1.2.3.4:25",
            "smtp ::1:25",
            "smtp 1.2.3.4:65536",
            "smtp 1.2.3.4:25 x",
            "smtp 1.2.3.4:25 =x",
            "smtp 1.2.3.4:25 proxy=",
            "smtp 1.2.3.4:25 proxy=10.0.0.1,host",
            "smtp 1.2.3.4:25 proxy=10.0.0.0/33",
            "qmtp h:1",
            "lmtp 127.0.0.1:25",
        ] {
            let error = parse(format!("smtp 127.0.0.1:25\n{bad}\n").as_bytes()).unwrap_err();
            assert_eq!(error.line, 2, "{bad}");
        }
        assert_eq!(parse(b"smtp 1.2.3.4:25\npop3 1.2.3.4:25\n").unwrap_err().line, 2);
        assert!(parse(b"smtp 127.0.0.1:0\nsmtp 127.0.0.1:0\n").is_ok());
    }

    #[test]
    fn every_service_has_its_name_and_port() {
        for service in Service::ALL {
            assert_eq!(Service::from_name(service.name().as_bytes()), Some(service));
        }
        assert_eq!(Service::ALL.map(Service::port), [25, 587, 465, 24, 209, 628, 110, 995, 80]);
    }
}
