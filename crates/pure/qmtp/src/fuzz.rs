//! Fuzz targets: each takes any bytes and panics if a guarantee is broken.
#![allow(clippy::expect_used)] // A target fails by panic.

use std::sync::Arc;

use smtp::client::{Action as ClientAction, Input as ClientInput, Transaction};
use smtp::data::BareLf;
use smtp::server::{Now, RcptHosts, RecipientAnswer};
use wire::Address;

use crate::answer::Answers;
use crate::client::Client;
use crate::exchange::{Action, Config, End, Input, Peer, QueueAnswer};
use crate::netstring::{Fault, Piece, Reader};
use crate::server::HELD_LEN_MAX;
use crate::{qmqp, server};

/// A reader of whole netstrings and this one agree, however the bytes are cut.
pub fn netstrings(data: &[u8]) {
    const LEN_MAX: u64 = 1000;
    let whole = read(&[data], LEN_MAX);
    for at in [1, data.len() / 2, data.len().saturating_sub(1)] {
        let (head, tail) = data.split_at_checked(at).unwrap_or((data, &[]));
        assert_eq!(read(&[head, tail], LEN_MAX), whole);
    }
    let mut rest = data;
    for content in &whole.0 {
        let (expected, behind) = wire::netstring::decode(rest, 1000).expect("both read it");
        assert_eq!(content, expected);
        rest = behind;
    }
    match whole.1 {
        Ok(()) => {
            assert!(rest.is_empty() || wire::netstring::decode(rest, 1000) == Err(wire::netstring::NetstringError::Incomplete))
        }
        Err(_) => assert!(wire::netstring::decode(rest, 1000).is_err()),
    }
}

fn read(chunks: &[&[u8]], len_max: u64) -> (Vec<Vec<u8>>, Result<(), Fault>) {
    let (mut reader, mut all, mut current) = (Reader::new(), Vec::new(), Vec::new());
    for chunk in chunks {
        let mut rest = *chunk;
        loop {
            match reader.next(&mut rest, len_max) {
                Ok(Some(Piece::Start(_))) => {}
                Ok(Some(Piece::Content(bytes))) => current.extend_from_slice(bytes),
                Ok(Some(Piece::End)) => all.push(std::mem::take(&mut current)),
                Ok(None) => break,
                Err(fault) => return (all, Err(fault)),
            }
        }
    }
    (all, Ok(()))
}

/// What a driver saw of a session.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Texts that were handed over, without their Received field.
    pub(crate) texts: Vec<Vec<u8>>,
    pub(crate) envelopes: Vec<(Address, Vec<Address>)>,
    /// Whom the directory was asked about.
    pub(crate) asked: Vec<Address>,
    pub(crate) answers: Vec<u8>,
    pub(crate) end: Option<End>,
}

/// A machine of either protocol.
pub(crate) trait Machine {
    fn step(&mut self, input: Input<'_>, out: &mut Vec<Action>);
    fn end(&self) -> Option<End>;
}

const NOW: Now = Now { unix_s: 7, boot: std::time::Duration::ZERO };

impl Machine for server::Session {
    fn step(&mut self, input: Input<'_>, out: &mut Vec<Action>) {
        Self::step(self, NOW, input, out);
    }
    fn end(&self) -> Option<End> {
        self.connection().end()
    }
}

impl Machine for qmqp::Session {
    fn step(&mut self, input: Input<'_>, out: &mut Vec<Action>) {
        Self::step(self, NOW, input, out);
    }
    fn end(&self) -> Option<End> {
        self.connection().end()
    }
}

/// Runs a session as a driver does, and checks that the actions come in an order that can be carried out.
pub(crate) fn drive(session: &mut impl Machine, chunks: &[&[u8]]) -> Seen {
    let (mut seen, mut open, mut recipients) = (Seen::default(), None::<Vec<u8>>, Vec::new());
    let inputs = chunks.iter().map(|chunk| Input::Bytes(chunk)).chain([Input::Closed]);
    for input in inputs {
        let mut out = Vec::new();
        session.step(input, &mut out);
        while !out.is_empty() {
            for action in std::mem::take(&mut out) {
                match action {
                    Action::Begin => assert!(open.replace(Vec::new()).is_none(), "two messages at once"),
                    Action::Text(text) => open.as_mut().expect("a text has a message").extend(text),
                    Action::Abandon => {
                        assert!(open.take().is_some(), "nothing to give up");
                        recipients.clear();
                    }
                    Action::Recipient(recipient) => recipients.push(recipient),
                    Action::CheckRecipient { question, recipient, .. } => {
                        seen.asked.push(recipient.clone());
                        let answer = match recipient.as_bytes().first() {
                            Some(b'n') => RecipientAnswer::NoMailbox,
                            Some(b't') => RecipientAnswer::Temporary,
                            Some(b'f') => RecipientAnswer::Full { is_temporary: false },
                            Some(b'e') => RecipientAnswer::Exists,
                            Some(b'o') => RecipientAnswer::OverLimit { reply: None },
                            _ => RecipientAnswer::NotOurs,
                        };
                        session.step(Input::Recipient { question, answer }, &mut out);
                    }
                    Action::Commit(commit) => {
                        let text = open.take().expect("a commit has a message");
                        let trace = text.split_inclusive(|b| *b == b'\n').take(2).map(<[u8]>::len).sum::<usize>();
                        assert!(text.starts_with(b"Received: from "));
                        seen.texts.push(text[trace..].to_vec());
                        seen.envelopes.push((commit.sender, std::mem::take(&mut recipients)));
                        session.step(Input::Queue(QueueAnswer::Accepted { id: Some(8), qp: 9 }), &mut out);
                    }
                    Action::Answer(bytes) => seen.answers.extend(bytes),
                    Action::Log(_) => {}
                    Action::Close => assert!(session.end().is_some()),
                }
            }
        }
    }
    assert!(open.is_none(), "a message was left open");
    seen.end = session.end();
    assert!(seen.end.is_some(), "the connection is closed");
    seen
}

pub(crate) fn config(barelf: BareLf) -> Arc<Config> {
    Arc::new(Config {
        me: b"mx.test".to_vec(),
        barelf,
        recipients_max: 2,
        timeout_s: 1200,
        rcpthosts: RcptHosts::new(["b"], None),
        ..Config::default()
    })
}

/// QMTP: any cut gives the same; each recipient one answer; no CR in what is handed over, and no `K` for what is not.
pub fn session(data: &[u8]) {
    for barelf in [BareLf::Reject, BareLf::Normalize] {
        for relay_client in [None, Some(b"@b".as_slice().into())] {
            let peer = Peer { relay_client, ..Peer::default() };
            let run = |chunks: &[&[u8]]| drive(&mut server::Session::new(config(barelf), peer.clone(), NOW), chunks);
            let whole = run(&[data]);
            if data.len() < HELD_LEN_MAX {
                assert_eq!(run(&data.chunks(1).collect::<Vec<_>>()), whole);
            }
            let (head, tail) = data.split_at_checked(data.len() / 2).unwrap_or((data, &[]));
            assert_eq!(run(&[head, tail]), whole);
            assert!(whole.texts.iter().all(|text| !text.contains(&b'\r') && (text.is_empty() || text.ends_with(b"\n"))));
            assert!(whole.envelopes.iter().all(|(_, recipients)| !recipients.is_empty()));
            let recipients: usize = whole.envelopes.iter().map(|(_, recipients)| recipients.len()).sum();
            let answers = read(&[&whole.answers], 10_000);
            assert_eq!(answers.1, Ok(()));
            assert_eq!(answers.0.iter().filter(|answer| answer.starts_with(b"K")).count(), recipients);
        }
    }
}

/// QMQP: any cut gives the same; at most one message and one answer; the text is what came.
pub fn qmqp(data: &[u8]) {
    let run = |chunks: &[&[u8]]| drive(&mut qmqp::Session::new(config(BareLf::Reject), Peer::default(), NOW), chunks);
    let whole = run(&[data]);
    assert_eq!(run(&data.chunks(1).collect::<Vec<_>>()), whole);
    assert!(whole.texts.len() <= 1);
    let answers = read(&[&whole.answers], 10_000).0;
    assert!(answers.len() <= 1 && whole.texts.is_empty() != answers.iter().any(|answer| answer.starts_with(b"K")));
    if let Some(text) = whole.texts.first() {
        let inner = wire::netstring::decode(data, data.len()).expect("it was taken").0;
        assert_eq!(wire::netstring::decode(inner, inner.len()).expect("it was taken").0, text);
    }
}

/// The client against any server: one outcome for each recipient, at most once each.
pub fn client(data: &[u8]) {
    let address = |text: &str| Address::new(text.as_bytes()).unwrap_or_default();
    let recipients = vec![address("a@b"), address("c@d")];
    for sent in [false, true] {
        let (mut client, _) = Client::new("192.0.2.1");
        let transaction = Transaction {
            sender: address("s@x"),
            recipients: recipients.clone(),
            size: 4,
            eight_bit: false,
            smtputf8: false,
            xverp: None,
            requiretls: false,
            dsn: None,
            by: None,
            priority: None,
        };
        client.handle(ClientInput::Begin(transaction));
        if sent {
            client.handle(ClientInput::BodySent);
        }
        let mut finished = 0;
        let inputs = data.chunks(3).map(ClientInput::Bytes).chain([ClientInput::Closed, ClientInput::Bytes(data)]);
        for action in inputs.flat_map(|input| client.handle(input)).collect::<Vec<_>>() {
            if let ClientAction::Finished(end) = action {
                finished += 1;
                assert_eq!(end.outcomes.len(), recipients.len());
                assert!(sent || end.outcomes.iter().all(|outcome| outcome.letter() == b'Z'));
            }
        }
        assert_eq!(finished, 1);
    }
    let (mut answers, mut rest) = (Answers::default(), data);
    while let Ok(Some(_)) = answers.next(&mut rest) {}
}
