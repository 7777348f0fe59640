//! Envelopes and recipients' changes as bytes in a record.

use wire::Address;

use crate::bytes::{Put, Take, field16, field32};
use crate::types::{Change, Envelope, REPLY_LEN_MAX, RecipientState};

/// A record carries at most about this much of changes; more are cut into several records.
const CHANGES_LEN_MAX: usize = 60 * 1024;
/// When the whole state of a message is written anew, its replies together keep below this: a list whose 100,000 recipients
/// each have a long story must still fit into a segment.
const REPLIES_LEN_MAX: usize = 8 * 1024 * 1024;

const TAG_PENDING: u8 = 0;
const TAG_DONE: u8 = 1;
const TAG_FAILED: u8 = 2;
const TAG_BOUNCED: u8 = 3;
/// From format 2 on.
const TAG_SUCCEEDED: u8 = 4;
/// As [`TAG_PENDING`], and the sender was told of the delay. From format 2 on.
const TAG_WARNED: u8 = 5;

/// All but the arrival and the number of recipients, which are in the note.
pub(crate) fn encode(envelope: &Envelope) -> Vec<u8> {
    let addresses = envelope.recipients.iter().chain([&envelope.sender]);
    let len = 16 + envelope.options.len() + addresses.map(|address| address.as_bytes().len() + 2).sum::<usize>();
    let mut out = Vec::with_capacity(len);
    out.put_u32(envelope.uid);
    out.put_u32(envelope.pid);
    out.put_u32(envelope.flags);
    put_address(&mut out, &envelope.sender);
    for recipient in &envelope.recipients {
        put_address(&mut out, recipient);
    }
    // From format 2 on; without options the bytes are those of format 1.
    if !envelope.options.is_empty() {
        out.put_u32(field32(envelope.options.len()));
        out.extend_from_slice(&envelope.options);
    }
    out
}

fn put_address(out: &mut Vec<u8>, address: &Address) {
    out.put_u16(field16(address.as_bytes().len()));
    out.extend_from_slice(address.as_bytes());
}

/// Undoes [`encode`]; `None` for anything else.
pub(crate) fn decode(bytes: &[u8], arrival_s: u64, recipients: u32) -> Option<Envelope> {
    let mut take = Take(bytes);
    let (uid, pid, flags) = (take.u32()?, take.u32()?, take.u32()?);
    let sender = take_address(&mut take)?;
    // Each takes two bytes at least: a wrong count cannot make us reserve more than the bytes are long.
    let mut list = Vec::with_capacity((recipients as usize).min(bytes.len() / 2));
    for _ in 0..recipients {
        list.push(take_address(&mut take)?);
    }
    let options: Box<[u8]> = match take.0 {
        [] => Box::default(),
        _ => {
            let len = take.u32()? as usize;
            Some(take.bytes(len)?).filter(|options| !options.is_empty())?.into()
        }
    };
    take.0.is_empty().then_some(Envelope { sender, recipients: list, arrival_s, uid, pid, flags, options })
}

fn take_address(take: &mut Take<'_>) -> Option<Address> {
    let len = usize::from(take.u16()?);
    Address::new(take.bytes(len)?).ok()
}

/// Changes as the contents of one or more records, in order.
pub(crate) fn encode_changes(changes: &[Change]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let mut out = Vec::new();
    for change in changes {
        put_change(&mut out, change, REPLY_LEN_MAX);
        if out.len() >= CHANGES_LEN_MAX - REPLY_LEN_MAX - 32 {
            records.push(std::mem::take(&mut out));
        }
    }
    if !out.is_empty() || records.is_empty() {
        records.push(out);
    }
    records
}

/// The whole state of a message, as changes from the fresh state.
pub(crate) fn encode_states(states: &[RecipientState], arrival_s: u64) -> Vec<Vec<u8>> {
    let fresh = RecipientState::Pending { attempts: 0, due_s: arrival_s, last_reply: Vec::new(), warned: false };
    let numbered = (0_u32..).zip(states);
    let mut changes: Vec<Change> = numbered
        .filter(|(_, state)| **state != fresh)
        .map(|(recipient, state)| Change { recipient, state: state.clone() })
        .collect();
    let replies: usize = changes.iter().map(|change| reply_of(&change.state).len()).sum();
    if replies > REPLIES_LEN_MAX {
        let share = REPLIES_LEN_MAX / changes.len().max(1);
        changes.iter_mut().for_each(|change| cut_reply(&mut change.state, share));
    }
    encode_changes(&changes)
}

fn reply_of(state: &RecipientState) -> &[u8] {
    match state {
        RecipientState::Pending { last_reply: reply, .. } | RecipientState::Failed { reply } => reply,
        RecipientState::Done | RecipientState::Bounced | RecipientState::Succeeded { .. } => &[],
    }
}

fn cut_reply(state: &mut RecipientState, len_max: usize) {
    match state {
        RecipientState::Pending { last_reply: reply, .. } | RecipientState::Failed { reply } => reply.truncate(len_max),
        RecipientState::Done | RecipientState::Bounced | RecipientState::Succeeded { .. } => {}
    }
}

fn put_change(out: &mut Vec<u8>, change: &Change, reply_len_max: usize) {
    out.put_u32(change.recipient);
    match &change.state {
        RecipientState::Pending { attempts, due_s, warned, .. } => {
            out.put_u8(if *warned { TAG_WARNED } else { TAG_PENDING });
            out.put_u32(*attempts);
            out.put_u64(*due_s);
        }
        RecipientState::Done => return out.put_u8(TAG_DONE),
        RecipientState::Succeeded { how } => {
            out.put_u8(TAG_SUCCEEDED);
            return out.put_u8(*how);
        }
        RecipientState::Failed { .. } => out.put_u8(TAG_FAILED),
        RecipientState::Bounced => return out.put_u8(TAG_BOUNCED),
    }
    let reply = reply_of(&change.state);
    let reply = reply.get(..reply_len_max).unwrap_or(reply);
    out.put_u16(field16(reply.len()));
    out.extend_from_slice(reply);
}

/// Undoes one record of [`encode_changes`]; `None` for anything else.
pub(crate) fn decode_changes(bytes: &[u8]) -> Option<Vec<Change>> {
    let mut take = Take(bytes);
    let mut changes = Vec::new();
    while !take.0.is_empty() {
        let recipient = take.u32()?;
        let state = match take.u8()? {
            tag @ (TAG_PENDING | TAG_WARNED) => {
                let (attempts, due_s) = (take.u32()?, take.u64()?);
                RecipientState::Pending { attempts, due_s, last_reply: take_reply(&mut take)?, warned: tag == TAG_WARNED }
            }
            TAG_SUCCEEDED => RecipientState::Succeeded { how: take.u8()? },
            TAG_DONE => RecipientState::Done,
            TAG_FAILED => RecipientState::Failed { reply: take_reply(&mut take)? },
            TAG_BOUNCED => RecipientState::Bounced,
            _ => return None,
        };
        changes.push(Change { recipient, state });
    }
    Some(changes)
}

fn take_reply(take: &mut Take<'_>) -> Option<Vec<u8>> {
    let len = usize::from(take.u16()?);
    take.bytes(len).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> impl Strategy<Value = RecipientState> {
        let reply = || proptest::collection::vec(any::<u8>(), 0..50);
        prop_oneof![
            (any::<u32>(), any::<u64>(), reply(), any::<bool>()).prop_map(|(attempts, due_s, last_reply, warned)| {
                RecipientState::Pending { attempts, due_s, last_reply, warned }
            }),
            any::<u8>().prop_map(|how| RecipientState::Succeeded { how }),
            Just(RecipientState::Done),
            reply().prop_map(|reply| RecipientState::Failed { reply }),
            Just(RecipientState::Bounced),
        ]
    }

    proptest! {
        #[test]
        fn changes_come_back(states in proptest::collection::vec((any::<u32>(), state()), 0..30)) {
            let changes: Vec<_> = states.into_iter().map(|(recipient, state)| Change { recipient, state }).collect();
            let records = encode_changes(&changes);
            let back: Vec<_> = records.iter().flat_map(|record| decode_changes(record).unwrap()).collect();
            prop_assert_eq!(back, changes);
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), count in any::<u32>()) {
            let _ = decode_changes(&bytes);
            let _ = decode(&bytes, 0, count);
        }
    }

    #[test]
    fn envelopes_come_back_and_no_cut_one_does() {
        let address = |text: &str| Address::new(text.as_bytes()).unwrap();
        let recipients = vec![address("a@example.org"), address(""), address("b")];
        let options = Box::default();
        let envelope = Envelope { sender: Address::null(), recipients, arrival_s: 5, uid: 1, pid: 2, flags: 3, options };
        let plain = encode(&envelope);
        // Format 1, as it was written before there were options.
        let was = b"\x01\0\0\0\x02\0\0\0\x03\0\0\0\0\0\x0d\0a@example.org\0\0\x01\0b";
        assert_eq!(plain, was);
        for options in [&b""[..], b"x", &[7; 3000]] {
            let envelope = Envelope { options: options.into(), ..envelope.clone() };
            let bytes = encode(&envelope);
            assert_eq!(decode(&bytes, 5, 3), Some(envelope));
            for cut in 0..bytes.len() {
                // Without the last recipient's byte and what follows nothing is left; exactly without the options it is format 1.
                assert!(decode(&bytes[..cut], 5, 3).is_none() || cut == plain.len());
            }
            assert_eq!(decode(&[&bytes[..], b"x"].concat(), 5, 3), None);
            assert_eq!(decode(&bytes, 5, 2), None);
        }
        assert_eq!(decode(&[&plain[..], &[0; 4]].concat(), 5, 3), None, "options of no bytes are not written");
    }

    #[test]
    fn states_of_format_1_are_read_and_still_written() {
        let was = b"\x07\0\0\0\0\x02\0\0\0\x09\0\0\0\0\0\0\0\x01\0r\x08\0\0\0\x01\x09\0\0\0\x02\x02\0no\x0a\0\0\0\x03";
        let pending = RecipientState::Pending { attempts: 2, due_s: 9, last_reply: b"r".to_vec(), warned: false };
        let states = [pending, RecipientState::Done, RecipientState::Failed { reply: b"no".to_vec() }, RecipientState::Bounced];
        let changes: Vec<Change> = (7..).zip(states).map(|(recipient, state)| Change { recipient, state }).collect();
        assert_eq!(decode_changes(was), Some(changes.clone()));
        assert_eq!(encode_changes(&changes), [was.to_vec()]);
    }

    #[test]
    fn many_changes_fall_into_records_of_bounded_length() {
        let state = RecipientState::Failed { reply: vec![b'x'; REPLY_LEN_MAX + 9] };
        let changes: Vec<_> = (0..5000).map(|recipient| Change { recipient, state: state.clone() }).collect();
        let records = encode_changes(&changes);
        assert!(records.iter().all(|record| record.len() <= CHANGES_LEN_MAX));
        assert_eq!(records.iter().map(|record| decode_changes(record).unwrap().len()).sum::<usize>(), 5000);
        let whole: usize = encode_states(&vec![state; 5000], 0).iter().map(Vec::len).sum();
        assert!(whole < REPLIES_LEN_MAX + 5000 * 8);
    }
}
