//! Local parts in quoted form, as they stand in header fields and SMTP commands (qmail-family §3.12).
//!
//! Inside the system an address is unquoted ([`crate::Address`]). Where it is written for others, the local part becomes an
//! RFC 5321 §4.1.2 `Quoted-string` when it is no `Dot-string`; the domain is left alone. As little as possible is quoted.
//! Guarantees that the result holds no CR, LF or NUL: each becomes `_`, since no quoted pair may hold one (no address has one either).
//! Deviation from the classic quote2: a local part in valid UTF-8 is not quoted, since a Dot-string may hold it (RFC 6531 §3.3).

/// atext (RFC 5322 §3.2.3) with UTF-8 (RFC 6531 §3.3), by bytes: whether these are UTF-8 is another question.
#[must_use]
pub fn is_atext(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b) || !b.is_ascii()
}

/// Does `local` need quotes: empty, a byte outside of `atext` (RFC 5322 §3.2.3; UTF-8 is `atext`, RFC 6531 §3.3; classic: is not)
/// and the dot, or a dot where none may stand?
#[must_use]
pub fn is_needed(local: &[u8]) -> bool {
    local.split(|b| *b == b'.').any(|atom| atom.is_empty() || !atom.iter().all(|b| is_atext(*b)))
        || std::str::from_utf8(local).is_err()
}

/// `local`, in quotes if it needs them, with `"` and `\` as quoted pairs.
#[must_use]
pub fn local_part(local: &[u8]) -> Vec<u8> {
    if !is_needed(local) {
        return local.to_vec();
    }
    let mut out = Vec::with_capacity(local.len().saturating_add(2));
    out.push(b'"');
    for &b in local {
        if matches!(b, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(in_line(b));
    }
    out.push(b'"');
    out
}

/// A whole address: the part before the last `@` by [`local_part`], the rest as it is. The null address stays empty.
#[must_use]
pub fn address(address: &[u8]) -> Vec<u8> {
    if address.is_empty() {
        return Vec::new();
    }
    let at = memchr::memrchr(b'@', address).unwrap_or(address.len());
    let (local, rest) = address.split_at_checked(at).unwrap_or((address, &[]));
    let mut out = local_part(local);
    out.extend(rest.iter().copied().map(in_line));
    out
}

fn in_line(b: u8) -> u8 {
    if matches!(b, b'\r' | b'\n' | 0) { b'_' } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_just_what_needs_it() {
        for (plain, quoted) in [
            (&b""[..], &b""[..]),
            (b"a@b.c", b"a@b.c"),
            (b"root", b"root"),
            (b"a.b-c+d=e@x", b"a.b-c+d=e@x"),
            (b"@x", b"\"\"@x"),
            (b"a b@x", b"\"a b\"@x"),
            (b".a@x", b"\".a\"@x"),
            (b"a.@x", b"\"a.\"@x"),
            (b"a..b@x", b"\"a..b\"@x"),
            (b"a@b@x", b"\"a@b\"@x"),
            (b"a\"\\@x", b"\"a\\\"\\\\\"@x"),
            (b"\xc3\xa4@x", b"\xc3\xa4@x"),
            (b"\xc3@x", b"\"\xc3\"@x"),
            (b"#@[]", b"#@[]"),
            (b"l-@h-@[]", b"\"l-@h-\"@[]"),
            (b"<x>@d", b"\"<x>\"@d"),
            (b"a(b)@d", b"\"a(b)\"@d"),
            (b"a\nb\0@x\n", b"\"a_b_\"@x_"),
            (b"tab\there@x", b"\"tab\there\"@x"),
        ] {
            assert_eq!(address(plain), quoted, "{}", plain.escape_ascii());
        }
    }

    #[test]
    fn exactly_the_atoms_of_rfc5322_are_bare() {
        for b in 0..=255u8 {
            let bare = b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b);
            assert_eq!(is_needed(&[b]), !bare, "{b}");
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
