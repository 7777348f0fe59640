//! A name server that knows what the test tells it (RFC 1035); everything else does not exist.

use anyhow::Result;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    A([u8; 4]),
    /// Preference and host; the host `` is the null MX of RFC 7505.
    Mx(u16, &'static str),
}

/// A name and a record of it.
pub type Zone = Vec<(&'static str, Record)>;

const TYPE_A: u16 = 1;
const TYPE_SOA: u16 = 6;
const TYPE_MX: u16 = 15;
const HEADER_LEN: usize = 12;
/// Answers refer to the name in the question.
const NAME_OF_QUESTION: [u8; 2] = [0xc0, 12];

/// Answers on a thread of its own until the test ends; the address is for `control/resolvers`.
///
/// # Errors
/// The address cannot be used.
pub fn start(address: (Ipv4Addr, u16), zone: Zone) -> Result<SocketAddr> {
    let socket = UdpSocket::bind(address)?;
    let address = socket.local_addr()?;
    std::thread::spawn(move || {
        let mut packet = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut packet) {
            if let Some(reply) = packet.get(..len).and_then(|query| answer(query, &zone)) {
                let _ = socket.send_to(&reply, from);
            }
        }
    });
    Ok(address)
}

fn answer(query: &[u8], zone: &[(&str, Record)]) -> Option<Vec<u8>> {
    let (name, end) = name_of(query)?;
    let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
    let of_name = || zone.iter().filter(|(owner, _)| owner.eq_ignore_ascii_case(&name));
    let answers: Vec<Vec<u8>> =
        of_name().filter(|(_, record)| kind_of(*record) == kind).map(|(_, record)| put(*record)).collect();
    let code = if of_name().next().is_some() { 0 } else { 3 };
    let mut reply = query.get(..2)?.to_vec();
    let count = u16::try_from(answers.len()).ok()?;
    for field in [0x8180 | code, 1, count, u16::from(count == 0), 0] {
        reply.extend_from_slice(&field.to_be_bytes());
    }
    reply.extend_from_slice(query.get(HEADER_LEN..end + 4)?);
    for answer in &answers {
        put_record(kind, answer, &mut reply);
    }
    if count == 0 {
        // Says for how long the answer holds (RFC 2308).
        put_record(TYPE_SOA, &[&[0, 0][..], &[0; 16], &60u32.to_be_bytes()].concat(), &mut reply);
    }
    Some(reply)
}

/// The name asked for, and where it ends.
fn name_of(query: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), HEADER_LEN);
    loop {
        let len = usize::from(*query.get(at)?);
        at += 1;
        if len == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + len)?).into_owned());
        at += len;
    }
}

fn kind_of(record: Record) -> u16 {
    match record {
        Record::A(_) => TYPE_A,
        Record::Mx(..) => TYPE_MX,
    }
}

fn put(record: Record) -> Vec<u8> {
    match record {
        Record::A(address) => address.to_vec(),
        Record::Mx(preference, host) => {
            let mut out = preference.to_be_bytes().to_vec();
            for label in host.split('.').filter(|label| !label.is_empty()) {
                out.extend(u8::try_from(label.len()));
                out.extend_from_slice(label.as_bytes());
            }
            out.push(0);
            out
        }
    }
}

fn put_record(kind: u16, data: &[u8], reply: &mut Vec<u8>) {
    reply.extend_from_slice(&NAME_OF_QUESTION);
    reply.extend_from_slice(&kind.to_be_bytes());
    reply.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
    reply.extend(u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
    reply.extend_from_slice(data);
}
