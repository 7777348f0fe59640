//! What qmail-resolve reads.

use std::net::{IpAddr, SocketAddr};

use crate::{ControlError, Root};

/// Most lines of control/resolvers; more would only be asked when all before them are dead.
pub const RESOLVERS_MAX: usize = 8;
const PORT_DNS: u16 = 53;

/// The configuration of qmail-resolve.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolve {
    /// `control/resolvers`, in its order; empty: the system's resolv.conf(5).
    pub resolvers: Vec<SocketAddr>,
}

impl Resolve {
    /// Reads `control/resolvers`: a line `ADDRESS:PORT` or `ADDRESS` for each server, an IPv6 address with a port in brackets.
    ///
    /// # Errors
    /// Unreadable, malformed, too many lines, or a file without any; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let Some(lines) = root.lines("resolvers")? else { return Ok(Self::default()) };
        let file = root.control_file("resolvers");
        let mut resolvers = Vec::new();
        for line in &lines {
            let server = server(line).ok_or_else(|| {
                let line = wire::escape::visible(line);
                ControlError::new(&file, format!("`{line}` is no name server; write ADDRESS:PORT, as in 192.0.2.53:53"))
            })?;
            resolvers.push(server);
        }
        if resolvers.is_empty() || resolvers.len() > RESOLVERS_MAX {
            let problem = format!("must have 1 to {RESOLVERS_MAX} lines; remove it to use /etc/resolv.conf");
            return Err(ControlError::new(&file, problem));
        }
        Ok(Self { resolvers })
    }
}

fn server(line: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(line).ok()?;
    let bare = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, PORT_DNS));
    text.parse::<SocketAddr>().ok().filter(|server| server.port() != 0).or_else(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (text, expected) in [
            (None, Ok(vec![])),
            (
                Some("127.0.0.1:5353\n# no\n\n[::1]:54\n192.0.2.1 \n2001:db8::1\n"),
                Ok(vec!["127.0.0.1:5353", "[::1]:54", "192.0.2.1:53", "[2001:db8::1]:53"]),
            ),
            (Some(""), Err("must have 1 to 8")),
            (Some("dns.example:53\n"), Err("`dns.example:53` is no name server")),
            (Some("127.0.0.1:0\n"), Err("is no name server")),
            (Some("127.0.0.1:65536\n"), Err("is no name server")),
            (Some("1.1.1.1\n1.1.1.1\n1.1.1.1\n1.1.1.1\n1.1.1.1\n1.1.1.1\n1.1.1.1\n1.1.1.1\n1.1.1.1\n"), Err("must have 1 to 8")),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::new(dir.path()).unwrap();
            std::fs::create_dir_all(root.control()).unwrap();
            if let Some(text) = text {
                std::fs::write(root.control_file("resolvers"), text).unwrap();
            }
            match (Resolve::read(&root), expected) {
                (Ok(read), Ok(list)) => {
                    assert_eq!(read.resolvers.iter().map(ToString::to_string).collect::<Vec<_>>(), list);
                }
                (Err(error), Err(part)) => assert!(error.problem.contains(part), "{error}"),
                (read, expected) => panic!("{read:?} {expected:?}"),
            }
        }
    }
}
