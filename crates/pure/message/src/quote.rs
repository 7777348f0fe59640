//! Addresses written out: envelopes hold the local part unquoted; headers and SMTP want it quoted where it needs it.
//!
//! RFC 5321 §4.1.2 and RFC 5322 §3.4.1 (quoted-string), RFC 6531 §3.3 (UTF-8 needs no quotes). Guarantees that the result holds
//! no CR, LF or NUL. Deviation from the classic quote2: a local part in valid UTF-8 is not quoted, since a Dot-string may hold it.

/// The bytes of an atom in both RFC 5321 and RFC 5322 (atext), and the dot between atoms.
fn is_dot_atom_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&b) || !b.is_ascii()
}

/// Must this local part stand in quotes: is it empty, holds it a byte that no atom has, or an empty atom?
#[must_use]
pub fn needs_quotes(local: &[u8]) -> bool {
    local.split(|b| *b == b'.').any(<[u8]>::is_empty)
        || !local.iter().all(|b| is_dot_atom_byte(*b))
        || std::str::from_utf8(local).is_err()
}

/// Appends a local part, in quotes if it needs them. A CR, LF or NUL (no [`wire::Address`] has one) becomes `_`.
pub fn push_local(local: &[u8], out: &mut Vec<u8>) {
    if !needs_quotes(local) {
        out.extend_from_slice(local);
        return;
    }
    out.push(b'"');
    for &b in local {
        match b {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', b]),
            b'\r' | b'\n' | 0 => out.push(b'_'),
            b => out.push(b),
        }
    }
    out.push(b'"');
}

/// `local@domain` with the local part (all before the last `@`) quoted if it must be; the null address stays empty.
#[must_use]
pub fn address(unquoted: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(unquoted.len().saturating_add(2));
    if unquoted.is_empty() {
        return out;
    }
    let at = memchr::memrchr(b'@', unquoted).unwrap_or(unquoted.len());
    let (local, domain) = unquoted.split_at(at);
    push_local(local, &mut out);
    out.extend(domain.iter().map(|b| if matches!(b, b'\r' | b'\n' | 0) { b'_' } else { *b }));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_only_what_needs_it() {
        for (plain, quoted) in [
            (&b""[..], &b""[..]),
            (b"a@b", b"a@b"),
            (b"a", b"a"),
            (b"a.b+c-d=e@x", b"a.b+c-d=e@x"),
            (b"@b", b"\"\"@b"),
            (b".a@b", b"\".a\"@b"),
            (b"a.@b", b"\"a.\"@b"),
            (b"a..b@c", b"\"a..b\"@c"),
            (b"a b@c", b"\"a b\"@c"),
            (b"a@b@c", b"\"a@b\"@c"),
            (b"a\"b\\c@d", b"\"a\\\"b\\\\c\"@d"),
            (b"<x>@d", b"\"<x>\"@d"),
            (b"a(b)@d", b"\"a(b)\"@d"),
            (b"x-@h-@[]", b"\"x-@h-\"@[]"),
            (b"#@[]", b"#@[]"),
            ("jörg@x".as_bytes(), "jörg@x".as_bytes()),
            (b"j\xffg@x", b"\"j\xffg\"@x"),
            (b"a\nb\0@x\n", b"\"a_b_\"@x_"),
            (b"tab\there@x", b"\"tab\there\"@x"),
        ] {
            assert_eq!(address(plain).escape_ascii().to_string(), quoted.escape_ascii().to_string());
        }
    }

    #[test]
    fn every_byte_stays_inside_its_quotes() {
        for b in 0..=255u8 {
            let text = address(&[b'a', b, b'@', b'h']);
            assert!(!text.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
            if text.first() == Some(&b'"') {
                assert!(text.ends_with(b"\"@h"));
            }
        }
    }
}
