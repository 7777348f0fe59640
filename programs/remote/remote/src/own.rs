//! Which addresses are this host's own: mail whose best mail host we are would come back for ever (RFC 5321 §5.1).

use std::net::IpAddr;

/// The addresses of the interfaces and what the control files add and take away.
#[derive(Debug, Clone)]
pub struct Own {
    pub interfaces: Vec<IpAddr>,
    pub control: control::Remote,
}

impl Own {
    /// Would a connection to this address and port end at this host? `notipme` takes addresses out. A listener on an unspecified
    /// address takes what comes for any loopback address.
    #[must_use]
    pub fn is(&self, address: IpAddr, port: u16) -> bool {
        let address = address.to_canonical();
        if self.control.notipme.contains(address) {
            return false;
        }
        let listens = self.control.listeners.iter().any(|listener| {
            let wildcard = listener.ip().is_unspecified() && address.is_loopback();
            listener.port() == port && (wildcard || listener.ip().to_canonical() == address)
        });
        // A connection to 0.0.0.0 or :: ends at loopback.
        listens || address.is_unspecified() || self.interfaces.contains(&address) || self.control.moreipme.contains(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::{Networks, Root};

    #[test]
    fn table() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        std::fs::write(root.control_file("me"), "mx.example\n").unwrap();
        let networks = |text: &str| Networks::parse(text.as_bytes()).unwrap();
        let mut control = control::Remote::read(&root).unwrap();
        control.moreipme = networks("203.0.113.0/24\n");
        control.notipme = networks("192.0.2.2\n");
        control.listeners = vec!["127.0.0.9:2525".parse().unwrap(), "[::]:25".parse().unwrap()];
        let interfaces = ["127.0.0.1", "192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|a| a.parse().unwrap()).to_vec();
        let own = Own { interfaces, control };
        for (address, port, expected) in [
            ("192.0.2.1", 25, true),
            ("192.0.2.1", 26, true),
            ("::ffff:192.0.2.1", 25, true),
            ("192.0.2.2", 25, false),
            ("192.0.2.3", 25, false),
            ("203.0.113.77", 25, true),
            ("2001:db8::1", 25, true),
            ("2001:db8::2", 25, false),
            ("127.0.0.1", 25, true),
            ("127.0.0.2", 25, true),
            ("127.0.0.2", 26, false),
            ("127.0.0.9", 2525, true),
            ("0.0.0.0", 25, true),
            ("::", 25, true),
        ] {
            assert_eq!(own.is(address.parse().unwrap(), port), expected, "{address} {port}");
        }
    }
}
