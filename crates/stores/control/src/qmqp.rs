//! What qmail-qmqpc reads: `control/qmqpservers`, the hosts that keep this one's queue, and `control/outgoingip`.
//!
//! A line is an IP address, as ever, or `ADDRESS:PORT`; an IPv6 address with a port stands in brackets. They are tried in order.

use std::net::{IpAddr, SocketAddr};

use users::Service;

use crate::{ControlError, Root};

/// Most servers: each may take ten seconds to not answer.
pub const SERVERS_MAX: usize = 64;

/// The configuration of qmail-qmqpc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qmqpc {
    /// At least one.
    pub servers: Vec<SocketAddr>,
    pub outgoing_v4: Option<IpAddr>,
    pub outgoing_v6: Option<IpAddr>,
}

impl Qmqpc {
    /// Reads the files.
    ///
    /// # Errors
    /// Unreadable, a line that is no address, more than [`SERVERS_MAX`], or none; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let file = root.control_file("qmqpservers");
        let mut servers = Vec::new();
        for line in root.lines("qmqpservers")?.unwrap_or_default() {
            let wrong = || {
                let shown = wire::escape::visible(&line);
                ControlError::new(&file, format!("`{shown}` is no IP address; write one, or ADDRESS:PORT"))
            };
            servers.push(server(&line).ok_or_else(wrong)?);
        }
        if servers.is_empty() {
            return Err(ControlError::new(&file, "names no server; write the IP address of a host that runs qmail-qmqpd"));
        }
        if servers.len() > SERVERS_MAX {
            return Err(ControlError::new(&file, format!("has more than {SERVERS_MAX} servers")));
        }
        let (outgoing_v4, outgoing_v6) = crate::remote::outgoing(root)?;
        Ok(Self { servers, outgoing_v4, outgoing_v6 })
    }
}

fn server(line: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(line).ok()?.trim();
    let address = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let plain = address.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, Service::Qmqp.port()));
    plain.ok().or_else(|| text.parse().ok()).filter(|server| server.port() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_by_address_and_port() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        assert!(Qmqpc::read(&root).unwrap_err().to_string().contains("names no server"));
        let read = |text: &str| {
            std::fs::write(root.control_file("qmqpservers"), text).unwrap();
            Qmqpc::read(&root)
        };
        let servers = read("# ours\n192.0.2.1\n192.0.2.2:6280\n2001:db8::1\n[2001:db8::2]\n[2001:db8::3]:9\n").unwrap().servers;
        let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:628", "192.0.2.2:6280", "[2001:db8::1]:628", "[2001:db8::2]:628", "[2001:db8::3]:9"]);
        for bad in ["mail.example\n", "192.0.2.1:0\n", "192.0.2.1:x\n", "192.0.2\n", "\n", "#\n", &"192.0.2.1\n".repeat(65)] {
            assert!(read(bad).unwrap_err().to_string().contains("control/qmqpservers"), "{bad}");
        }
    }
}
