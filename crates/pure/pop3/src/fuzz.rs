//! Invariants as plain functions for cargo-fuzz and for the stable tests below.

use crate::authorization::{Action, Authorization, Offer, Verdict};
use crate::command::COMMAND_LEN_MAX;
use crate::encode::{Encoder, Octets};
use crate::transaction::{self, Maildrop, Transaction};

/// The first byte chooses verdicts and chunk length, the rest is what a client sends; cut or whole, the same comes out.
pub fn authorization(data: &[u8]) {
    let (seed, input) = data.split_first().unwrap_or((&0, &[]));
    let whole = judge(*seed, input, usize::MAX);
    // STLS alone makes a difference of what came in one go.
    if seed & 16 == 0 || !input.to_ascii_lowercase().windows(4).any(|word| word == b"stls") {
        assert_eq!(judge(*seed, input, 1), whole);
        assert_eq!(judge(*seed, input, usize::from(*seed).max(2)), whole);
    }
}

fn judge(seed: u8, input: &[u8], chunk_len: usize) -> (Vec<u8>, usize) {
    let offer = Offer {
        cleartext: seed & 1 == 0,
        stls: seed & 16 != 0,
        apop_timestamp: (seed & 2 == 0).then(|| "<1.2@h>".to_owned()),
        response_codes: seed & 4 == 0,
        failures_max: u32::from(seed >> 6),
    };
    let cleartext = offer.cleartext;
    let mut machine = Authorization::new(offer)
        .with_sasl(sasl::Mechanisms::default(), sasl::Protection { channel: seed & 16 == 0, certificate: seed & 32 == 0 });
    let (mut said, mut unread) = (machine.greeting(), 0usize);
    for chunk in input.chunks(chunk_len.max(1)) {
        let mut rest = chunk;
        while machine.is_reading() && !rest.is_empty() {
            let mut actions = Vec::new();
            machine.receive(&mut rest, &mut actions);
            let mut asked = false;
            for action in &actions {
                assert!(!asked, "nothing follows a question");
                asked = matches!(action, Action::Judge { .. } | Action::SaslStart { .. } | Action::SaslStep { .. });
                record(action, cleartext, &mut said);
            }
            if asked {
                assert!(!machine.is_reading());
                let relays = !matches!(actions.last(), Some(Action::Judge { .. }));
                let mut actions = Vec::new();
                if relays && seed & 32 == 0 {
                    machine.challenge(b"c", &mut actions);
                }
                machine.verdict(if seed & 8 == 0 { Verdict::Refused } else { Verdict::Accepted }, &mut actions);
                actions.iter().for_each(|action| record(action, cleartext, &mut said));
            }
        }
        unread = unread.saturating_add(rest.len());
    }
    (said, unread)
}

fn record(action: &Action, cleartext: bool, said: &mut Vec<u8>) {
    match action {
        Action::Reply(reply) => {
            assert!(reply.ends_with(b"\r\n") && [&b"+OK "[..], b"+ ", b"-ERR "].iter().any(|start| reply.starts_with(start)));
            said.extend_from_slice(reply);
        }
        Action::Judge { user, proof } => {
            assert!(!user.is_empty() && user.len() <= COMMAND_LEN_MAX && !user.contains(&0));
            if let crate::authorization::Proof::Password(secret) = proof {
                assert!(cleartext && !secret.expose().contains(&0), "promise 4");
            }
            said.extend_from_slice(b"[judge]");
        }
        Action::StartTls { go } => said.extend_from_slice(go),
        Action::SaslStart { .. } | Action::SaslStep { .. } => {
            assert!(cleartext, "promise 4");
            said.extend_from_slice(b"[relay]");
        }
        Action::HandOver => said.extend_from_slice(b"[in]"),
        Action::Close => said.extend_from_slice(b"[close]"),
    }
}

/// What the encoder sends, decoded as RFC 1939 §3 says, is the message with each line ended by CRLF; its length is what [`Octets`] counts;
/// any cut gives the same.
pub fn encoder(data: &[u8]) {
    let (seed, message) = data.split_first().unwrap_or((&0, &[]));
    let wire = encode(Encoder::whole(), message, usize::MAX);
    assert_eq!(encode(Encoder::whole(), message, usize::from(*seed).max(1)), wire);
    let decoded = decode(&wire);
    let mut expected = Vec::new();
    for &byte in message {
        if byte == b'\n' && expected.last() != Some(&b'\r') {
            expected.push(b'\r');
        }
        expected.push(byte);
    }
    if message.last().is_some_and(|last| *last != b'\n') {
        expected.extend_from_slice(b"\r\n");
    }
    assert_eq!(decoded, expected);
    let mut octets = Octets::new();
    message.chunks(usize::from(*seed).max(1)).for_each(|chunk| octets.feed(chunk));
    assert_eq!(octets.finish(), expected.len() as u64);
    let top = encode(Encoder::top(u64::from(*seed)), message, usize::MAX);
    assert_eq!(encode(Encoder::top(u64::from(*seed)), message, 1), top);
    assert!(expected.starts_with(&decode(&top)), "TOP is the beginning of the message");
}

fn encode(mut encoder: Encoder, message: &[u8], chunk_len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    message.chunks(chunk_len.max(1)).for_each(|chunk| encoder.feed(chunk, &mut out));
    encoder.finish(&mut out);
    out
}

/// A client: lines up to the single dot, the first dot of a line dropped. Lines end with LF here, so that a dot after a stray LF counts.
fn decode(wire: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut lines = wire.split_inclusive(|b| *b == b'\n');
    for line in &mut lines {
        if line == b".\r\n" {
            break;
        }
        out.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
    assert!(lines.next().is_none(), "nothing follows the dot");
    out
}

struct Numbers(Vec<u8>);

impl Maildrop for Numbers {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn unique_id(&self, index: usize) -> &[u8] {
        self.0.get(index..=index).unwrap_or_default()
    }
    fn octets(&self, index: usize) -> Option<u64> {
        self.0.get(index).map(|b| u64::from(*b))
    }
}

/// Commands in any order: each gives exactly one well-formed reply, STAT agrees with LIST, nothing outside the mailbox is named.
pub fn transaction(data: &[u8]) {
    let maildrop = Numbers(b"!0Az~".to_vec());
    let mut machine = Transaction::new(maildrop.count());
    for line in data.split(|b| *b == b'\n') {
        match machine.command(line, &maildrop) {
            transaction::Action::Reply(reply) => assert!(reply.ends_with(b"\r\n")),
            transaction::Action::Retrieve { index, .. } => assert!(machine.is_present(index)),
            transaction::Action::Measure(_) => panic!("all sizes are known"),
            transaction::Action::Report(mut report) => {
                let mut out = Vec::new();
                assert!(!report.fill(&machine, &maildrop, &mut out));
                let present = (0..maildrop.count()).filter(|index| machine.is_present(*index)).count();
                assert_eq!(out.iter().filter(|b| **b == b'\n').count(), present.saturating_add(2));
            }
            transaction::Action::Update => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CORPUS: [&[u8]; 6] = [
        b"\x40USER a\r\nPASS b\r\nQUIT\r\n",
        b"\x41USER a\r\nPASS b\r\nCAPA\r\nNOOP\n",
        b"\x88USER a\r\nPASS b\r\nSTAT\r\nRETR 1\r\n",
        b"\xc0APOP a b c\nUSER x\nPASS \0\nPASS  \n",
        b"DELE 1\nSTAT\nLIST\nRSET\nUIDL 2\nTOP 3 0\nRETR 5\nQUIT\n",
        b"\x03.\r\n..\n\r\r\n.\r",
    ];

    #[test]
    fn corpus() {
        for data in CORPUS {
            authorization(data);
            encoder(data);
            transaction(data);
        }
    }

    proptest! {
        #[test]
        fn random_messages(data in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'.'), any::<u8>()], 0..300)) {
            encoder(&data);
        }

        #[test]
        fn random_dialogues(seed in any::<u8>(), lines in proptest::collection::vec(
            prop_oneof!["USER [a-z ]{0,5}", "PASS .{0,5}", "APOP [a-z ]{0,6}", "NOOP|CAPA|QUIT|STLS", ".{0,20}"], 0..12))
        {
            authorization(&[&[seed][..], lines.join("\r\n").as_bytes(), b"\n"].concat());
        }

        #[test]
        fn random_commands(lines in proptest::collection::vec("(STAT|LIST|UIDL|RETR|DELE|TOP|RSET|LAST|[A-Z]{0,5})( [0-9]{1,2}){0,3}", 0..30)) {
            transaction(lines.join("\n").as_bytes());
        }
    }
}
