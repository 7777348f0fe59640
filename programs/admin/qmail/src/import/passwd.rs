//! Users from a file in the form of passwd(5), shadow(5), or Dovecot's passwd-file: `name:hash:…`, a line each.
//!
//! A name may be a whole address; otherwise `--domain` says the rest. `x` as the hash means that it is in `--shadow`. Dovecot's
//! `{SCHEME}` before a hash is taken off where the hash tells its scheme itself.

use std::collections::HashMap;
use std::path::Path;

use wire::Address;

use super::{Importer, blank, read_file};
use crate::Failure;

/// Schemes whose hashes begin with `$`.
const SELF_TOLD: [&[u8]; 8] =
    [b"CRYPT", b"MD5-CRYPT", b"SHA256-CRYPT", b"SHA512-CRYPT", b"BLF-CRYPT", b"ARGON2ID", b"ARGON2I", b"YESCRYPT"];
const CLEAR: [&[u8]; 3] = [b"PLAIN", b"CLEARTEXT", b"CLEAR"];

pub(crate) fn import(
    importer: &mut Importer<'_>,
    file: &Path,
    domain: Option<&str>,
    shadow: Option<&Path>,
) -> Result<(), Failure> {
    let missing = |path: &Path| Failure::permanent(format!("{}: there is no such file", path.display()));
    let text = read_file(file)?.ok_or_else(|| missing(file))?;
    let hashes = match shadow {
        Some(path) => read_file(path)?.ok_or_else(|| missing(path))?,
        None => Vec::new(),
    };
    let hashes: HashMap<&[u8], &[u8]> = lines(&hashes).filter_map(|(_, line)| two(line)).collect();
    for (number, line) in lines(&text) {
        let Some((name, hash)) = two(line) else {
            importer.problem(format!("line {number}: must be name:hash:…"));
            continue;
        };
        let hash = if hash == b"x" { hashes.get(name).copied().unwrap_or_default() } else { hash };
        let address = match domain {
            Some(domain) if !name.contains(&b'@') => Address::join(name, domain.as_bytes()),
            _ => Address::new(name),
        };
        let address = match address {
            Ok(address) if address.domain().is_some() => address,
            Ok(_) => {
                importer.problem(format!("line {number}: the name has no domain; say --domain DOMAIN"));
                continue;
            }
            Err(error) => {
                importer.problem(format!("line {number}: {error}"));
                continue;
            }
        };
        match understand(hash) {
            Secret::Hash { hash, is_locked } => {
                let row = ipc::admin::AccountRow { hash: Some(hash.into()), suspended: is_locked, ..blank(address) };
                importer.user(row, None)?;
            }
            Secret::Clear(password) => importer.user(blank(address), Some(password.into()))?,
            Secret::None => importer.problem(format!("line {number}: {address}: no password, or of a kind that is not known")),
        }
    }
    Ok(())
}

/// Lines with their numbers, without comments and blank ones.
fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end).enumerate();
    lines.map(|(at, line)| (at.saturating_add(1), line)).filter(|(_, line)| !line.is_empty() && line.first() != Some(&b'#'))
}

fn two(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut fields = line.split(|b| *b == b':');
    Some((fields.next().filter(|name| !name.is_empty())?, fields.next()?))
}

#[derive(Debug, PartialEq, Eq)]
enum Secret<'a> {
    Hash { hash: &'a [u8], is_locked: bool },
    Clear(&'a [u8]),
    None,
}

/// `!` before a hash locks it (usermod -L).
fn understand(field: &[u8]) -> Secret<'_> {
    let (field, is_locked) = match field.strip_prefix(b"!") {
        Some(rest) => (rest.strip_prefix(b"!").unwrap_or(rest), true),
        None => (field, false),
    };
    let scheme = field.strip_prefix(b"{").and_then(|rest| {
        let end = rest.iter().position(|b| *b == b'}')?;
        Some((rest.get(..end)?, rest.get(end.saturating_add(1)..)?))
    });
    let (scheme, hash) = scheme.unwrap_or((b"CRYPT", field));
    let is = |names: &[&[u8]]| names.iter().any(|name| scheme.eq_ignore_ascii_case(name));
    if is(&CLEAR) && !hash.is_empty() {
        return Secret::Clear(hash);
    }
    // The traditional crypt has 13 characters; `*` and the like are no hashes.
    let is_hash = hash.first() == Some(&b'$')
        || (hash.len() == 13 && hash.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/')));
    if is(&SELF_TOLD) && is_hash { Secret::Hash { hash, is_locked } } else { Secret::None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_all_kinds() {
        let hash = |hash: &'static [u8]| Secret::Hash { hash, is_locked: false };
        for (field, expected) in [
            (&b"$6$a$b"[..], hash(b"$6$a$b")),
            (b"{SHA512-CRYPT}$6$a$b", hash(b"$6$a$b")),
            (b"{crypt}abJnggxhB/yWI", hash(b"abJnggxhB/yWI")),
            (b"!$6$a$b", Secret::Hash { hash: b"$6$a$b", is_locked: true }),
            (b"{PLAIN}secret", Secret::Clear(b"secret")),
            (b"", Secret::None),
            (b"*", Secret::None),
            (b"!", Secret::None),
            (b"{SSHA}abc=", Secret::None),
            (b"{PLAIN}", Secret::None),
            (b"secret", Secret::None),
        ] {
            assert_eq!(understand(field), expected, "{}", field.escape_ascii());
        }
    }
}
