//! Answers to the questions of `ipc::resolve`, put together from record sets (RFC 5321 §5.1, RFC 7505).

use std::net::IpAddr;

use ipc::field::Bytes;
use ipc::resolve::{Answer, HOSTS_MAX, Host, Request};
use wire::Domain;

use crate::dns::{Dns, Failure, Found, MailExchange};

/// How long an address literal stays what it is.
const LITERAL_TTL_S: u32 = 86_400;
/// Longest site key; a longer one is replaced by its hash.
const SITE_KEY_LEN_MAX: usize = 255;

/// The answer to a request.
pub async fn answer(dns: &Dns, request: &Request) -> Answer {
    match request {
        Request::Mx { id, domain } => mail_hosts(dns, *id, domain).await,
        Request::Addresses { id, host } => host_addresses(dns, *id, host).await,
        Request::Site { id, domain } => site(dns, *id, domain).await,
    }
}

async fn mail_hosts(dns: &Dns, id: u64, domain: &Domain) -> Answer {
    if let Some(literal) = Literal::of(domain.as_bytes()) {
        return literal.answer(id, domain.as_bytes());
    }
    let Some(name) = ascii(domain.as_bytes()) else { return no_host(id) };
    let Found { records, ttl_s } = dns.mx(&name).await;
    match records {
        Ok(exchanges) => match usable(exchanges) {
            Some(exchanges) => exchanges_with_addresses(dns, id, exchanges, ttl_s).await,
            None => Answer::NullMx { id, ttl_s },
        },
        // RFC 5321 §5.1: no MX records, so the name itself is the host.
        Err(failure @ (Failure::NoRecords | Failure::NoRecordsUnproven)) => match implicit(dns, id, &name, ttl_s).await {
            // There may be MX records after all.
            Answer::NoHost { .. } if failure == Failure::NoRecordsUnproven => failed(id, &failure, ttl_s),
            answer => answer,
        },
        Err(failure) => failed(id, &failure, ttl_s),
    }
}

/// Without the `.` entries, which name no host; `None` if nothing else is there (RFC 7505 §3: a null MX stands alone).
fn usable(exchanges: Vec<MailExchange>) -> Option<Vec<(u16, String)>> {
    let named: Vec<_> = exchanges.into_iter().filter_map(|(preference, name)| Some((preference, name?))).collect();
    (!named.is_empty()).then_some(named)
}

/// All hosts are looked up at once: at most 40 questions.
async fn exchanges_with_addresses(dns: &Dns, id: u64, exchanges: Vec<(u16, String)>, ttl_s: u32) -> Answer {
    let mut hosts = Vec::with_capacity(exchanges.len().min(HOSTS_MAX));
    let mut ttl_s = ttl_s;
    let lookups = exchanges.iter().map(|(_, name)| dns.addresses(name));
    for ((preference, name), found) in exchanges.iter().zip(all(lookups).await) {
        ttl_s = ttl_s.min(found.ttl_s);
        let temporary = matches!(found.records, Err(Failure::Temporary(_) | Failure::NoRecordsUnproven));
        let addresses = found.records.unwrap_or_default();
        hosts.push(Host { preference: *preference, name: name.as_str().into(), addresses, temporary });
    }
    Answer::Hosts { id, hosts, implicit: false, ttl_s }
}

/// Waits for all futures together; the results stand in their order.
async fn all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut open = false;
        for (future, result) in &mut waiting {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *result = Some(value),
                    std::task::Poll::Pending => open = true,
                }
            }
        }
        if open { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    waiting.into_iter().filter_map(|(_, result)| result).collect()
}

async fn implicit(dns: &Dns, id: u64, name: &str, mx_ttl_s: u32) -> Answer {
    let Found { records, ttl_s } = dns.addresses(name).await;
    let ttl_s = ttl_s.min(mx_ttl_s);
    match records {
        Ok(addresses) => {
            let host = Host { preference: 0, name: name.into(), addresses, temporary: false };
            Answer::Hosts { id, hosts: vec![host], implicit: true, ttl_s }
        }
        Err(failure) => failed(id, &failure, ttl_s),
    }
}

async fn host_addresses(dns: &Dns, id: u64, host: &[u8]) -> Answer {
    if let Some(literal) = Literal::of(host) {
        return literal.answer(id, host);
    }
    let name = Domain::new(host).ok().and_then(|domain| ascii(domain.as_bytes()));
    match name {
        Some(name) => implicit(dns, id, &name, u32::MAX).await,
        None => no_host(id),
    }
}

/// The names of the best mail hosts, sorted; without MX records the domain itself. Its addresses do not matter here.
async fn site(dns: &Dns, id: u64, domain: &Domain) -> Answer {
    let own = |ttl_s| Answer::Site { id, key: domain.as_bytes().into(), ttl_s };
    if Literal::of(domain.as_bytes()).is_some() {
        return own(LITERAL_TTL_S);
    }
    let Some(name) = ascii(domain.as_bytes()) else { return no_host(id) };
    let Found { records, ttl_s } = dns.mx(&name).await;
    match records {
        Ok(exchanges) => match usable(exchanges) {
            Some(exchanges) => Answer::Site { id, key: site_key(&exchanges), ttl_s },
            None => Answer::NullMx { id, ttl_s },
        },
        Err(Failure::NoRecords | Failure::NoRecordsUnproven) => own(ttl_s),
        Err(failure) => failed(id, &failure, ttl_s),
    }
}

fn site_key(exchanges: &[(u16, String)]) -> Bytes {
    let best = exchanges.first().map(|(preference, _)| *preference);
    let mut names: Vec<&str> =
        exchanges.iter().filter(|(preference, _)| Some(*preference) == best).map(|(_, name)| name.as_str()).collect();
    names.sort_unstable();
    let key = names.join(",");
    if key.len() <= SITE_KEY_LEN_MAX {
        return key.as_str().into();
    }
    // Two sites with one hash would share a back-off; at 64 bits nobody meets that by chance.
    let mut hasher = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(&key, &mut hasher);
    format!("#{:016x}", std::hash::Hasher::finish(&hasher)).as_str().into()
}

fn failed(id: u64, failure: &Failure, ttl_s: u32) -> Answer {
    match failure {
        Failure::NoName => Answer::NoHost { id, name_exists: false, ttl_s },
        Failure::NoRecords => Answer::NoHost { id, name_exists: true, ttl_s },
        Failure::NoRecordsUnproven => Answer::Temporary { id, text: "empty answer without SOA".into() },
        Failure::Temporary(text) => Answer::Temporary { id, text: text.as_str().into() },
    }
}

/// What can be no name has no host.
fn no_host(id: u64) -> Answer {
    Answer::NoHost { id, name_exists: false, ttl_s: LITERAL_TTL_S }
}

/// The A-label form of a domain (RFC 5891 §5); `None` if it has none.
fn ascii(domain: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(domain).ok()?;
    if domain.starts_with(b"[") {
        return None;
    }
    if text.is_ascii() {
        return Some(text.to_owned());
    }
    idna::domain_to_ascii(text).ok().filter(|name| !name.is_empty())
}

/// An address written in place of a name.
struct Literal(IpAddr);

impl Literal {
    /// `[192.0.2.1]`, `[IPv6:2001:db8::1]` (RFC 5321 §4.1.3), the same without the tag, and, as qmail-remote has it, bare
    /// addresses.
    fn of(text: &[u8]) -> Option<Self> {
        let inner = text.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")).unwrap_or(text);
        let text = std::str::from_utf8(inner).ok()?;
        let untagged = match text.get(..5) {
            Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => text.get(5..)?,
            _ => text,
        };
        untagged.parse().ok().map(Self)
    }

    fn answer(self, id: u64, name: &[u8]) -> Answer {
        let host = Host { preference: 0, name: name.into(), addresses: vec![self.0], temporary: false };
        Answer::Hosts { id, hosts: vec![host], implicit: true, ttl_s: LITERAL_TTL_S }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_names() {
        for (text, address, name) in [
            ("[192.0.2.1]", Some("192.0.2.1"), None),
            ("192.0.2.1", Some("192.0.2.1"), Some("192.0.2.1")),
            ("[ipv6:2001:db8::1]", Some("2001:db8::1"), None),
            ("[2001:db8::1]", Some("2001:db8::1"), None),
            ("[example]", None, None),
            ("[192.0.2.300]", None, None),
            ("example.org", None, Some("example.org")),
            ("bücher.example", None, Some("xn--bcher-kva.example")),
            ("_x.example", None, Some("_x.example")),
            ("\u{200d}.example", None, None),
        ] {
            assert_eq!(Literal::of(text.as_bytes()).map(|l| l.0.to_string()).as_deref(), address, "{text}");
            assert_eq!(ascii(text.as_bytes()).as_deref(), name, "{text}");
        }
        assert_eq!(ascii(b"\xff\xfe.example"), None);
    }

    #[test]
    fn a_site_is_the_set_of_best_hosts() {
        let hosts = |list: &[(u16, &str)]| list.iter().map(|(p, n)| (*p, (*n).to_owned())).collect::<Vec<_>>();
        let key = |list: &[(u16, &str)]| String::from_utf8(site_key(&hosts(list)).0).unwrap();
        assert_eq!(key(&[(5, "b"), (5, "a"), (10, "c")]), "a,b");
        assert_eq!(key(&[(1, "a"), (5, "b")]), key(&[(7, "a"), (9, "x")]));
        let long: Vec<String> = (0..20).map(|n| format!("host-with-a-long-name-{n}.example")).collect();
        let long: Vec<(u16, &str)> = long.iter().map(|name| (1, name.as_str())).collect();
        assert_eq!(key(&long).len(), 17);
        assert_ne!(key(&long), key(long.get(1..).unwrap()));
    }

    #[test]
    fn a_null_mx_stands_alone() {
        assert_eq!(usable(vec![(0, None)]), None);
        assert_eq!(usable(vec![(0, None), (5, Some("a".to_owned()))]), Some(vec![(5, "a".to_owned())]));
    }
}
