//! Rules of tcpserver(1) and their compiled form, a cdb: which client may connect, and what its server finds in the environment
//! (tcprules(1)).
//!
//! A line is `ADDRESS:allow` or `ADDRESS:deny`, then any number of `,NAME=/VALUE/`, where any byte may stand for the slashes. In the
//! database the key is the address; the data is `D` for deny and `+NAME=VALUE` for each variable, each with a NUL behind it.
//! `1.2.3.4-7` stands for four addresses. Lines that begin with `#` and empty ones say nothing. (`getip`, ranges of IPv4 by `/`: not there.)
//!
//! Beyond ucspi-tcp, which knows IPv4 alone: ADDRESS is `2001:db8::1` or `2001:db8::/32`, or either in brackets. The key is the address as
//! RFC 5952 writes it, with the number of bits behind it if there are less than 128. `::ffff:1.2.3.4` is 1.2.3.4, wherever it is written;
//! of its networks those of whole bytes (/104, /112, /120) have a key, `1.2.`, and the others are no rule.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest data that [`find`] takes from a database, in bytes.
pub const DATA_LEN_MAX: usize = 64 * 1024;

/// An address and what counts for it: key and data of the database.
pub type Record = (Vec<u8>, Vec<u8>);

/// Reads one line; the records it stands for, none for a comment.
///
/// # Errors
/// It is no rule: the line without the blanks at its end.
pub fn compile(line: &[u8]) -> Result<Vec<Record>, Vec<u8>> {
    if matches!(line.first(), None | Some(b'#' | b'\n')) {
        return Ok(Vec::new());
    }
    let end = line.iter().rposition(|b| !matches!(b, b'\n' | b' ' | b'\t')).map_or(0, |at| at.saturating_add(1));
    let line = line.get(..end).unwrap_or_default();
    if let Some((address, instructions)) = v6(line) {
        return data(instructions).map(|data| vec![(address, data)]).ok_or_else(|| line.to_vec());
    }
    // A line without a colon says nothing, as ever.
    let Some(colon) = line.iter().position(|b| *b == b':') else { return Ok(Vec::new()) };
    let read = || {
        let (address, instructions) = (line.get(..colon)?, line.get(colon.checked_add(1)?..)?);
        let data = data(instructions)?;
        Some(addresses(address)?.into_iter().map(|address| (address, data.clone())).collect())
    };
    read().ok_or_else(|| line.to_vec())
}

/// The key of a line about IPv6, and what is behind the colon.
fn v6(line: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let text = std::str::from_utf8(line).ok()?;
    let (network, instructions) = match text.strip_prefix('[') {
        Some(inner) => {
            let (address, behind) = inner.split_once(']')?;
            let (bits, instructions) = behind.split_once(':')?;
            (format!("{address}{bits}"), instructions)
        }
        None => {
            let at = [":allow", ":deny"].iter().filter_map(|word| text.find(word)).min()?;
            (text.get(..at)?.to_owned(), text.get(at.checked_add(1)?..)?)
        }
    };
    let (address, bits) = match network.split_once('/') {
        Some((address, bits)) if !bits.starts_with('+') => (address, bits.parse::<u32>().ok().filter(|bits| *bits <= 128)?),
        Some(_) => return None,
        None => (network.as_str(), 128),
    };
    let address = address.parse::<Ipv6Addr>().ok()?;
    let key = match address.to_ipv4_mapped() {
        Some(v4) if bits >= 96 => v4_key(v4, bits.saturating_sub(96))?,
        _ => v6_key(address, bits),
    };
    Some((key, instructions.as_bytes()))
}

/// `1.2.3.4`, or the first bytes and a dot.
fn v4_key(address: Ipv4Addr, bits: u32) -> Option<Vec<u8>> {
    match bits {
        32 => Some(address.to_string().into_bytes()),
        8 | 16 | 24 => {
            let bytes = address.octets().into_iter().take(usize::try_from(bits / 8).ok()?);
            Some(bytes.flat_map(|byte| format!("{byte}.").into_bytes()).collect())
        }
        _ => None,
    }
}

fn v6_key(address: Ipv6Addr, bits: u32) -> Vec<u8> {
    let mask = u128::MAX.checked_shl(128u32.saturating_sub(bits)).unwrap_or(0);
    let network = Ipv6Addr::from_bits(address.to_bits() & mask);
    if bits >= 128 { network.to_string().into_bytes() } else { format!("{network}/{bits}").into_bytes() }
}

fn data(instructions: &[u8]) -> Option<Vec<u8>> {
    let (mut data, mut rest) = match instructions.strip_prefix(b"deny") {
        Some(rest) => (b"D\0".to_vec(), rest),
        None => (Vec::new(), instructions.strip_prefix(b"allow")?),
    };
    while !rest.is_empty() {
        rest = rest.strip_prefix(b",")?;
        let equals = rest.iter().position(|b| *b == b'=')?;
        let (name, after) = rest.split_at_checked(equals.checked_add(1)?)?;
        let (mark, after) = after.split_first()?;
        let len = after.iter().position(|b| b == mark)?;
        data.push(b'+');
        data.extend_from_slice(name);
        data.extend_from_slice(after.get(..len)?);
        data.push(0);
        rest = after.get(len.checked_add(1)?..)?;
    }
    Some(data)
}

/// The address, or those of a range in one of its numbers.
fn addresses(address: &[u8]) -> Option<Vec<Vec<u8>>> {
    let dash = address.iter().position(|b| *b == b'-').filter(|_| !address.iter().any(|b| matches!(b, b'=' | b'@')));
    let Some(dash) = dash else { return Some(vec![address.to_vec()]) };
    let (before, after) = (address.get(..dash)?, address.get(dash.checked_add(1)?..)?);
    let left = before.iter().rposition(|b| *b == b'.').map_or(0, |dot| dot.saturating_add(1));
    let (head, first) = before.split_at_checked(left)?;
    let (last, tail) = after.split_at_checked(after.iter().position(|b| *b == b'.').unwrap_or(after.len()))?;
    let range = number(first)?..=number(last)?.min(255);
    Some(range.map(|n| [head, n.to_string().as_bytes(), tail].concat()).collect())
}

/// Digits; none are zero. What is too long for any address is a number beyond all of them.
fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().all(u8::is_ascii_digit).then(|| {
        digits.iter().fold(0u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit.saturating_sub(b'0'))))
    })
}

/// What a rule says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The address of the rule: the key.
    pub address: Vec<u8>,
    pub is_denied: bool,
    /// `NAME=VALUE`, in their order.
    pub variables: Vec<Vec<u8>>,
}

/// The client that a rule is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client<'a> {
    /// TCPREMOTEIP.
    pub ip: &'a [u8],
    /// TCPREMOTEHOST.
    pub host: Option<&'a [u8]>,
    /// TCPREMOTEINFO.
    pub info: Option<&'a [u8]>,
}

/// The first rule for a client in a compiled database, in the order of tcprules(1); `get` answers one key.
///
/// # Errors
/// What `get` says; temporary.
pub fn find<E>(client: Client<'_>, mut get: impl FnMut(&[u8]) -> Result<Option<Vec<u8>>, E>) -> Result<Option<Rule>, E> {
    for address in probes(client) {
        if let Some(data) = get(&address)? {
            return Ok(Some(rule(address, &data)));
        }
    }
    Ok(None)
}

fn probes(client: Client<'_>) -> Vec<Vec<u8>> {
    let Client { ip, host, info } = client;
    let mapped = std::str::from_utf8(ip).ok().and_then(|ip| ip.parse::<Ipv6Addr>().ok()?.to_ipv4_mapped());
    let mapped = mapped.map(|v4| v4.to_string());
    let ip = mapped.as_ref().map_or(ip, |v4| v4.as_bytes());
    let named = host.map(|host| [b"=", host].concat());
    let mut out: Vec<Vec<u8>> = Vec::new();
    if let Some(info) = info {
        out.push([info, b"@", ip].concat());
        out.extend(named.as_ref().map(|named| [info, b"@", named].concat()));
    }
    out.push(ip.to_vec());
    out.extend(named);
    let dots = |text: &[u8]| -> Vec<usize> { text.iter().enumerate().filter(|(_, b)| **b == b'.').map(|(at, _)| at).collect() };
    out.extend(dots(ip).into_iter().rev().filter_map(|dot| ip.get(..=dot)).map(<[u8]>::to_vec));
    if let Some(address) = std::str::from_utf8(ip).ok().and_then(|ip| ip.parse::<Ipv6Addr>().ok()) {
        out.extend((0..128).rev().map(|bits| v6_key(address, bits)));
    }
    if let Some(host) = host {
        out.extend(dots(host).into_iter().filter_map(|dot| host.get(dot..)).map(|suffix| [b"=", suffix].concat()));
        out.push(b"=".to_vec());
    }
    out.push(Vec::new());
    out
}

fn rule(address: Vec<u8>, data: &[u8]) -> Rule {
    let mut rule = Rule { address, is_denied: false, variables: Vec::new() };
    for part in data.split(|b| *b == 0) {
        match part.split_first() {
            Some((b'D', _)) => rule.is_denied = true,
            Some((b'+', variable)) => rule.variables.push(variable.to_vec()),
            _ => {}
        }
    }
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(line: &str) -> String {
        match compile(line.as_bytes()) {
            Ok(records) => {
                let show = |(key, data): &Record| format!("{}>{}", key.escape_ascii(), data.escape_ascii());
                records.iter().map(show).collect::<Vec<_>>().join(" ")
            }
            Err(line) => format!("bad {}", line.escape_ascii()),
        }
    }

    #[test]
    fn lines() {
        for (line, expected) in [
            ("", ""),
            ("\n", ""),
            ("# x\n", ""),
            ("1.2.3.4:allow\n", "1.2.3.4>"),
            (":deny \t\n", ">D\\x00"),
            ("10.:allow,A=\"b c\",B=//", "10.>+A=b c\\x00+B=\\x00"),
            ("=.x:deny,A=/b/", "=.x>D\\x00+A=b\\x00"),
            ("1.2.3.4-6:deny", "1.2.3.4>D\\x00 1.2.3.5>D\\x00 1.2.3.6>D\\x00"),
            ("10.2-3.:allow", "10.2.> 10.3.>"),
            ("254-999:allow", "254> 255>"),
            ("3-2:allow", ""),
            ("a-b@1.2.3.4:allow", "a-b@1.2.3.4>"),
            ("=a-b.x:allow", "=a-b.x>"),
            ("x:maybe\n", "bad x:maybe"),
            ("x:allowed", "bad x:allowed"),
            ("x:allow,A", "bad x:allow,A"),
            ("x:allow,A=", "bad x:allow,A="),
            ("x:allow,A=/b", "bad x:allow,A=/b"),
            ("1-x.:allow", "bad 1-x.:allow"),
            ("no colon", ""),
            (" ", ""),
        ] {
            assert_eq!(compiled(line), expected, "{line:?}");
        }
    }

    #[test]
    fn the_most_special_rule_counts() {
        let table: &[(&str, &str)] = &[
            ("joe@127.0.0.1", ""),
            ("joe@=a.x", "D\0"),
            ("18.23.0.32", "+A=b\0+C=\0"),
            ("127.", ""),
            ("=.x", ""),
            ("=", ""),
            ("", "D\0"),
        ];
        let get = |key: &[u8]| {
            let found = table.iter().find(|(name, _)| name.as_bytes() == key);
            Ok::<_, ()>(found.map(|(_, data)| data.as_bytes().to_vec()))
        };
        for (ip, host, info, expected, denied) in [
            ("127.0.0.1", None, Some("joe"), "joe@127.0.0.1", false),
            ("127.0.0.1", None, Some("bill"), "127.", false),
            ("10.1.1.1", Some("a.x"), Some("joe"), "joe@=a.x", true),
            ("10.1.1.1", Some("a.x"), None, "=.x", false),
            ("10.1.1.1", Some("a.y"), None, "=", false),
            ("10.1.1.1", None, None, "", true),
            ("18.23.0.32", Some("a.x"), None, "18.23.0.32", false),
        ] {
            let client = Client { ip: ip.as_bytes(), host: host.map(str::as_bytes), info: info.map(str::as_bytes) };
            let rule = find(client, get).unwrap().unwrap();
            assert_eq!((rule.address.as_slice(), rule.is_denied), (expected.as_bytes(), denied));
        }
        let client = Client { ip: b"18.23.0.32", host: None, info: None };
        assert_eq!(find(client, get).unwrap().unwrap().variables, [b"A=b".to_vec(), b"C=".to_vec()]);
    }

    #[test]
    fn addresses_of_version_6_by_their_networks() {
        let lines = "[2001:db8::1]:allow,RELAYCLIENT=\"\"\n2001:DB8:0::/32:deny\n::1:allow,A=/1/\n[2001:db8:5::]/48:allow\n10.:deny\n:allow,B=/2/\n";
        let records: Vec<Record> = lines.split_inclusive('\n').flat_map(|line| compile(line.as_bytes()).unwrap()).collect();
        for (ip, key) in [
            ("2001:db8::1", "2001:db8::1"),
            ("2001:db8::2", "2001:db8::/32"),
            ("2001:db8:5::9", "2001:db8:5::/48"),
            ("2001:db9::1", ""),
            ("::1", "::1"),
            ("10.1.2.3", "10."),
        ] {
            let get = |key: &[u8]| Ok::<_, ()>(records.iter().find(|(known, _)| known == key).map(|(_, data)| data.clone()));
            let found = find(Client { ip: ip.as_bytes(), host: None, info: None }, get).unwrap().unwrap();
            assert_eq!(String::from_utf8(found.address).unwrap(), key, "{ip}");
        }
        for bad in ["[2001:db8::1:allow", "[::1]/129:allow", "[::1]allow", "[::1]/x:deny", "::g:allow", "[::1]:maybe"] {
            assert!(compile(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
