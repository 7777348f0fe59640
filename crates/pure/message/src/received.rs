//! The trace line that qmail-send prepends to every message it takes (qmail-family §1.1, RFC 5321 §4.4):
//! `Received: (qmail PID invoked by uid N); 23 Nov 2026 08:05:09 -0000`.

use wire::civil::Civil;

/// Who handed the message in, as qmail-send learns it from SO_PEERCRED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvokedBy {
    /// The user `alias`: a forward of its `.qmail` files.
    Alias,
    /// A network program (role qmaild).
    Network,
    /// qmail-send itself, with a bounce.
    Bounce,
    /// Any other user.
    Uid(u32),
}

/// The whole line with its LF.
#[must_use]
pub fn line(pid: u32, invoked: InvokedBy, now_s: u64) -> Vec<u8> {
    let date = Civil::from_unix(now_s).rfc5322();
    let how = match invoked {
        InvokedBy::Alias => "by alias".to_owned(),
        InvokedBy::Network => "from network".to_owned(),
        InvokedBy::Bounce => "for bounce".to_owned(),
        InvokedBy::Uid(uid) => format!("by uid {uid}"),
    };
    format!("Received: (qmail {pid} invoked {how}); {date}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_forms() {
        for (invoked, text) in [
            (InvokedBy::Alias, "Received: (qmail 7 invoked by alias); 1 Jan 1970 00:00:01 -0000\n"),
            (InvokedBy::Network, "Received: (qmail 7 invoked from network); 1 Jan 1970 00:00:01 -0000\n"),
            (InvokedBy::Bounce, "Received: (qmail 7 invoked for bounce); 1 Jan 1970 00:00:01 -0000\n"),
            (InvokedBy::Uid(1000), "Received: (qmail 7 invoked by uid 1000); 1 Jan 1970 00:00:01 -0000\n"),
        ] {
            assert_eq!(String::from_utf8(line(7, invoked, 1)).unwrap(), text);
        }
    }
}
