//! Questions to name servers: one record set at a time, bounded, each asked once though many wait for it.
//!
//! Guarantees: a failure that is not the name's own (timeout, SERVFAIL, nonsense, a referral) is [`Failure::Temporary`], never
//! "does not exist"; at most [`RECORDS_MAX`] records of an answer are looked at; a question takes at most [`QUESTION_MAX`]; at
//! most [`QUESTIONS_MAX`] are on their way at once. Truncated answers are asked again by TCP, and CNAME chains are followed to a
//! depth of 8, both by hickory. Nothing hickory caches is used: what is kept here is small and counted.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::Resolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use ipc::resolve::{ADDRESSES_MAX, HOSTS_MAX};
use tokio::sync::Semaphore;

use crate::cache::Cache;
use crate::runtime::Runtime;

/// Records of one answer that are looked at (past-holes R10).
pub const RECORDS_MAX: usize = 100;
/// Questions on their way at once; the rest wait for their turn.
pub const QUESTIONS_MAX: usize = 256;
/// For one question, retries and CNAMEs included; two in a row fit into a request's 30 s.
pub const QUESTION_MAX: Duration = Duration::from_secs(13);
/// One try of one server.
const TRY_MAX: Duration = Duration::from_secs(4);
const TRIES: usize = 3;
/// What an answer may say about its own life: not so short that a domain is asked again within one burst, at most a day.
const TTL_S: std::ops::RangeInclusive<u32> = 30..=86_400;
/// The same for "does not exist" (RFC 2308 §5 allows up to three hours).
const NEGATIVE_TTL_S: std::ops::RangeInclusive<u32> = 30..=10_800;
/// "Not now" is kept for a moment, so that a dead server is not hammered (RFC 9520 §3.2).
const FAILURE_TTL_S: u32 = 5;

/// Why there are no records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// NXDOMAIN.
    NoName,
    /// The name exists, without records of this type.
    NoRecords,
    /// The same, said without an SOA record: enough to look for other records, not to give a name up (a CNAME loop looks so).
    NoRecordsUnproven,
    /// Not now; what went wrong, for people.
    Temporary(String),
}

/// Records, or why there are none, and how long that holds.
#[derive(Debug, Clone)]
pub struct Found<T> {
    pub records: Result<T, Failure>,
    pub ttl_s: u32,
}

/// One MX record; a `None` exchange is the root, `.`.
pub type MailExchange = (u16, Option<String>);

/// The resolver.
pub struct Dns {
    resolver: Resolver<Runtime>,
    turns: Semaphore,
    mx: Cache<Found<Vec<MailExchange>>>,
    v4: Cache<Found<Vec<IpAddr>>>,
    v6: Cache<Found<Vec<IpAddr>>>,
}

impl Dns {
    /// A resolver that asks `servers`; without any, those of resolv.conf(5), read now; without that file, as the C library does,
    /// the one on this host. Must be called inside of a tokio runtime.
    ///
    /// # Errors
    /// The resolver cannot be built; temporary.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, NetError> {
        let (config, mut options) = config(servers);
        options.timeout = TRY_MAX;
        options.attempts = TRIES;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.try_tcp_on_error = true;
        options.preserve_intermediates = false;
        options.max_active_requests = QUESTIONS_MAX;
        let builder = Resolver::builder_with_config(config, Runtime::default()).with_options(options);
        Ok(Self {
            resolver: builder.build()?,
            turns: Semaphore::new(QUESTIONS_MAX),
            mx: Cache::default(),
            v4: Cache::default(),
            v6: Cache::default(),
        })
    }

    /// The MX records of a name in the order of their preference, at most [`HOSTS_MAX`].
    pub async fn mx(&self, name: &str) -> Found<Vec<MailExchange>> {
        let question = async {
            let (found, ttl_s) = keep(self.ask(name, RecordType::MX).await, |data| match data {
                RData::MX(mx) => Some((mx.preference, host_name(&mx.exchange)?)),
                _ => None,
            });
            let records = found.map(|mut records| {
                records.sort();
                records.dedup();
                records.truncate(HOSTS_MAX);
                records
            });
            (Found { records, ttl_s }, ttl_s)
        };
        self.mx.get(name, question).await
    }

    /// The addresses of a name, IPv6 first, at most [`ADDRESSES_MAX`]. If one family could not be asked, the other is enough.
    pub async fn addresses(&self, name: &str) -> Found<Vec<IpAddr>> {
        let (v6, v4) = tokio::join!(self.family(name, RecordType::AAAA), self.family(name, RecordType::A));
        let ttl_s = v6.ttl_s.min(v4.ttl_s);
        let records = match (v6.records, v4.records) {
            (Ok(mut v6), Ok(v4)) => {
                // Half of the room is kept for either family.
                v6.truncate(ADDRESSES_MAX.saturating_sub(v4.len()).max(ADDRESSES_MAX / 2));
                v6.extend(v4);
                v6.truncate(ADDRESSES_MAX);
                Ok(v6)
            }
            (Ok(records), Err(_)) | (Err(_), Ok(records)) => Ok(records),
            (Err(failure @ Failure::Temporary(_)), _) | (_, Err(failure @ Failure::Temporary(_))) => Err(failure),
            (Err(Failure::NoName), Err(Failure::NoName)) => Err(Failure::NoName),
            (Err(Failure::NoRecordsUnproven), Err(_)) | (Err(_), Err(Failure::NoRecordsUnproven)) => {
                Err(Failure::NoRecordsUnproven)
            }
            (Err(_), Err(_)) => Err(Failure::NoRecords),
        };
        Found { records, ttl_s }
    }

    async fn family(&self, name: &str, family: RecordType) -> Found<Vec<IpAddr>> {
        let question = async {
            let (records, ttl_s) = keep(self.ask(name, family).await, |data| match data {
                RData::A(a) => Some(IpAddr::V4(a.0)),
                RData::AAAA(a) => Some(IpAddr::V6(a.0)),
                _ => None,
            });
            let records = records.map(|mut records| {
                records.truncate(ADDRESSES_MAX);
                records
            });
            (Found { records, ttl_s }, ttl_s)
        };
        let cache = if family == RecordType::A { &self.v4 } else { &self.v6 };
        cache.get(name, question).await
    }

    async fn ask(&self, name: &str, record_type: RecordType) -> Result<Lookup, Failed> {
        let Ok(mut name) = Name::from_ascii(name) else {
            // A label over 63 or a name over 255 bytes: nothing can exist there (RFC 1035 §2.3.4).
            return Err((Failure::NoName, *NEGATIVE_TTL_S.end()));
        };
        name.set_fqdn(true);
        let Ok(_turn) = self.turns.acquire().await else {
            return Err((Failure::Temporary("resolver is stopping".to_owned()), FAILURE_TTL_S));
        };
        match tokio::time::timeout(QUESTION_MAX, self.resolver.lookup(name, record_type)).await {
            Ok(Ok(lookup)) => Ok(lookup),
            Ok(Err(error)) => Err(judge(&error)),
            Err(_) => Err((Failure::Temporary("no answer in time".to_owned()), FAILURE_TTL_S)),
        }
    }
}

type Failed = (Failure, u32);

fn config(servers: &[SocketAddr]) -> (ResolverConfig, ResolverOpts) {
    if servers.is_empty() {
        let system = hickory_resolver::system_conf::read_system_conf().ok();
        return system
            .filter(|(config, _)| !config.name_servers.is_empty())
            .unwrap_or_else(|| config(&[SocketAddr::from(([127, 0, 0, 1], 53))]));
    }
    let server = |address: &SocketAddr| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = address.port();
            connection
        });
        NameServerConfig::new(address.ip(), true, connections.to_vec())
    };
    (ResolverConfig::from_name_servers(servers.iter().map(server).collect()), ResolverOpts::default())
}

/// The records that `pick` wants, and the shortest life among the answer's records.
fn keep<T>(answer: Result<Lookup, Failed>, pick: impl Fn(&RData) -> Option<T>) -> (Result<Vec<T>, Failure>, u32) {
    let lookup = match answer {
        Ok(lookup) => lookup,
        Err((failure, ttl_s)) => return (Err(failure), ttl_s),
    };
    let front = || lookup.answers().iter().take(RECORDS_MAX);
    let records: Vec<T> = front().filter_map(|record| pick(&record.data)).collect();
    let ttl_s = front().map(|record| record.ttl).min().unwrap_or(0).clamp(*TTL_S.start(), *TTL_S.end());
    if records.is_empty() {
        // An answer without what was asked for: the end of a CNAME chain that has no such records, or nonsense.
        return (Err(Failure::Temporary("answer without usable records".to_owned())), FAILURE_TTL_S);
    }
    (Ok(records), ttl_s)
}

/// Only an answer that says so makes a name missing; all else is temporary (promise 8).
fn judge(error: &NetError) -> Failed {
    if let NetError::Dns(DnsError::NoRecordsFound(none)) = error {
        let ttl_s = none.negative_ttl.unwrap_or(0).clamp(*NEGATIVE_TTL_S.start(), *NEGATIVE_TTL_S.end());
        // A referral is no answer: the server does not know and names others (RFC 2308 §2.2 "referral response").
        let referral = none.ns.is_some() && none.soa.is_none();
        match none.response_code {
            ResponseCode::NXDomain => return (Failure::NoName, ttl_s),
            ResponseCode::NoError if none.soa.is_some() => return (Failure::NoRecords, ttl_s),
            ResponseCode::NoError if !referral => return (Failure::NoRecordsUnproven, FAILURE_TTL_S),
            _ => {}
        }
    }
    let text: String = wire::escape::visible(error.to_string().as_bytes()).chars().take(200).collect();
    (Failure::Temporary(text), FAILURE_TTL_S)
}

/// A host name as an MX may name it, lower case, without the final dot; `Some(None)` is the root, `None` no host name at all.
fn host_name(name: &Name) -> Option<Option<String>> {
    if name.is_root() {
        return Some(None);
    }
    let text = name.to_ascii();
    let domain = wire::Domain::new(text.as_bytes()).ok().filter(|domain| !domain.as_bytes().starts_with(b"["))?;
    Some(Some(String::from_utf8_lossy(domain.as_bytes()).into_owned()))
}
