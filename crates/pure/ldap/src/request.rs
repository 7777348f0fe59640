//! Messages to the server (RFC 4511 §4). Each is a whole LDAPMessage; `id` must be above 0 and not be under way already.

use crate::ber::{BOOLEAN, ENUMERATED, INTEGER, OCTET_STRING, SEQUENCE, put, put_number};

const BIND: u8 = 0x60;
const UNBIND: u8 = 0x42;
const SEARCH: u8 = 0x63;
const EXTENDED: u8 = 0x77;
/// RFC 4511 §4.14.1.
const START_TLS: &[u8] = b"1.3.6.1.4.1.1466.20037";
/// Headers around a name and a password.
const BIND_EXTRA: usize = 64;

/// How far below its base a search looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Base,
    One,
    Sub,
}

/// What is searched for.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    pub base: &'a [u8],
    pub scope: Scope,
    /// From [`crate::Filter::encode`].
    pub filter: &'a [u8],
    pub attributes: &'a [&'a [u8]],
    /// Most entries that come.
    pub size_limit: u32,
    /// Seconds that the server may search.
    pub time_limit_s: u32,
}

fn message(id: u32, operation: u8, content: &[u8]) -> Vec<u8> {
    let mut inner = Vec::with_capacity(content.len().saturating_add(BIND_EXTRA));
    put_number(INTEGER, id, &mut inner);
    put(operation, content, &mut inner);
    let mut out = Vec::with_capacity(inner.len().saturating_add(8));
    put(SEQUENCE, &inner, &mut out);
    out
}

/// A simple bind (§4.2). `None` for a name with an empty password: a server takes that for nobody in particular and says yes (RFC 4513
/// §5.1.2), which would let in everybody whose name is known. An empty name with an empty password is the anonymous bind.
#[must_use]
pub fn bind(id: u32, name: &[u8], password: &[u8]) -> Option<Vec<u8>> {
    if password.is_empty() && !name.is_empty() {
        return None;
    }
    // Once, so that no copy of a password stays behind in memory that was too small.
    let mut content = Vec::with_capacity(name.len().saturating_add(password.len()).saturating_add(BIND_EXTRA));
    put_number(INTEGER, 3, &mut content);
    put(OCTET_STRING, name, &mut content);
    put(0x80, password, &mut content);
    Some(message(id, BIND, &content))
}

/// A search (§4.5) that follows no aliases.
#[must_use]
pub fn search(id: u32, search: &Search<'_>) -> Vec<u8> {
    let scope = match search.scope {
        Scope::Base => 0,
        Scope::One => 1,
        Scope::Sub => 2,
    };
    let mut content = Vec::new();
    put(OCTET_STRING, search.base, &mut content);
    put_number(ENUMERATED, scope, &mut content);
    put_number(ENUMERATED, 0, &mut content);
    put_number(INTEGER, search.size_limit, &mut content);
    put_number(INTEGER, search.time_limit_s, &mut content);
    put(BOOLEAN, &[0], &mut content);
    content.extend_from_slice(search.filter);
    let mut attributes = Vec::new();
    search.attributes.iter().for_each(|attribute| put(OCTET_STRING, attribute, &mut attributes));
    put(SEQUENCE, &attributes, &mut content);
    message(id, SEARCH, &content)
}

/// §4.14: the server's success means that a TLS handshake follows.
#[must_use]
pub fn start_tls(id: u32) -> Vec<u8> {
    let mut content = Vec::new();
    put(0x80, START_TLS, &mut content);
    message(id, EXTENDED, &content)
}

/// §4.3: no answer comes, the server closes.
#[must_use]
pub fn unbind(id: u32) -> Vec<u8> {
    message(id, UNBIND, &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Filter, Login};

    #[test]
    fn bytes_on_the_wire() {
        assert_eq!(bind(1, b"cn=a", b"pw").unwrap(), b"\x30\x12\x02\x01\x01\x60\x0d\x02\x01\x03\x04\x04cn=a\x80\x02pw");
        assert_eq!(bind(2, b"", b"").unwrap(), b"\x30\x0c\x02\x01\x02\x60\x07\x02\x01\x03\x04\x00\x80\x00");
        assert_eq!(bind(3, b"cn=a", b""), None, "an empty password proves nothing");
        assert_eq!(unbind(7), b"\x30\x05\x02\x01\x07\x42\x00");
        assert_eq!(start_tls(1), b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037");
        let filter = Filter::parse(b"(mail=%n)").unwrap().encode(Login::new(b"j", 0)).unwrap();
        let wanted =
            Search { base: b"o=x", scope: Scope::Sub, filter: &filter, attributes: &[b"mail"], size_limit: 2, time_limit_s: 4 };
        let expected = b"\x30\x2c\x02\x01\x05\x63\x27\x04\x03o=x\x0a\x01\x02\x0a\x01\x00\x02\x01\x02\x02\x01\x04\x01\x01\x00\
            \xa3\x09\x04\x04mail\x04\x01j\x30\x06\x04\x04mail";
        assert_eq!(search(5, &wanted).escape_ascii().to_string(), expected.escape_ascii().to_string());
    }
}
