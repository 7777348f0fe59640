//! Fuzz targets of the client's side: each takes any bytes and panics if a guarantee is broken.

use wire::{Address, Login, Secret};

use crate::client::{Action, Client, Input, Outcome, Protocol, REPORT_LEN_MAX, Security, Tls, Transaction};
use crate::encode::{Encoder, Survey};
use crate::reply::{Offers, Replies, TEXT_LEN_MAX};

/// Whatever the body and wherever it is cut: only whole lines, one lone dot line, at the end; the survey knows the size.
pub fn encode(data: &[u8]) {
    let (cut, body) = data.split_first().map_or((0, data), |(first, rest)| (usize::from(*first), rest));
    let (head, tail) = body.split_at_checked(cut).unwrap_or((body, &[]));
    let (mut encoder, mut survey, mut wire) = (Encoder::new(), Survey::new(), Vec::new());
    for chunk in [head, tail] {
        encoder.push(chunk, &mut wire);
        survey.push(chunk);
    }
    encoder.finish(&mut wire);
    let mut size = 0;
    let mut lines = wire.split_inclusive(|b| *b == b'\n').peekable();
    while let Some(line) = lines.next() {
        let text = line.strip_suffix(b"\r\n").unwrap_or(b"\n");
        assert!(memchr::memchr2(b'\r', b'\n', text).is_none(), "bare CR or LF");
        assert_eq!(text == b".", lines.peek().is_none(), "one lone dot, the last line");
        size += line.len() - usize::from(text.starts_with(b"."));
    }
    assert_eq!(survey.finish().size, (size - 2) as u64);
    // Without dots: so many bytes as the survey says, and the same lines.
    let (mut encoder, mut counted) = (Encoder::counted(), Vec::new());
    for chunk in [head, tail] {
        encoder.push(chunk, &mut counted);
    }
    encoder.finish(&mut counted);
    assert_eq!(survey.finish().size, counted.len() as u64);
    for (line, stuffed) in counted.split_inclusive(|b| *b == b'\n').zip(wire.split_inclusive(|b| *b == b'\n')) {
        assert_eq!(line, stuffed.strip_prefix(b".").unwrap_or(stuffed));
    }
}

/// Replies are bounded and without control characters, and the EHLO reader takes each of them.
pub fn reply(data: &[u8]) {
    let (mut replies, mut rest) = (Replies::new(), data);
    while let Some(Ok(reply)) = replies.next(&mut rest) {
        assert!((200..600).contains(&reply.code()));
        assert!(reply.text().len() <= TEXT_LEN_MAX && is_report(reply.text()));
        let _ = Offers::parse(&reply);
    }
}

/// Sessions against any bytes, with and without TLS and login: bytes over 247 are events, what stands between them comes from the
/// server.
pub fn client(data: &[u8]) {
    let login = Login { user: b"joe".to_vec(), password: Secret::new(b"xyzzy".to_vec()) };
    for (tls, login, cleartext) in [
        (Tls::No, None, false),
        (Tls::May, None, false),
        (Tls::Must, Some(login.clone()), false),
        (Tls::May, Some(login.clone()), true),
        (Tls::Started, Some(login), false),
    ] {
        secured(data, Security { tls, login, cleartext, ..Security::default() });
    }
}

/// The same by LMTP, where the replies behind the dot are many.
pub fn lmtp(data: &[u8]) {
    for tls in [Tls::No, Tls::May] {
        secured(data, Security { protocol: Protocol::Lmtp, tls, ..Security::default() });
    }
}

fn secured(data: &[u8], security: Security) {
    let mut session = Session {
        encrypted: security.tls == Tls::Started,
        cleartext: security.cleartext,
        may: security.tls == Tls::May,
        ..Session::default()
    };
    let (mut client, mut actions) = Client::new("me.example", "192.0.2.1", security);
    let mut rest = data;
    loop {
        actions.into_iter().for_each(|action| session.take(action));
        let at = rest.iter().position(|b| *b > 247).unwrap_or(rest.len());
        let (bytes, more) = rest.split_at_checked(at).unwrap_or((rest, &[]));
        let (event, more) = match more.split_first() {
            _ if !bytes.is_empty() => (Input::Bytes(bytes), more),
            Some((248, more)) => (session.body_or_begin(&client), more),
            Some((249, more)) => (session.tls_started(), more),
            Some((250, more)) => (Input::TlsFailed("why"), more),
            Some((251, more)) => (Input::BodyUnreadable, more),
            Some((252, more)) => (Input::Timeout, more),
            Some((253, more)) => (Input::Quit, more),
            Some((_, more)) => (Input::Closed, more),
            None => break,
        };
        rest = more;
        actions = client.handle(event);
    }
    client.handle(Input::Closed).into_iter().for_each(|action| session.take(action));
    assert_eq!(session.begun, session.finished, "each transaction ends once");
    assert!(client.handle(Input::Bytes(data)).is_empty(), "nothing happens after the end");
}

#[derive(Default)]
struct Session {
    body: bool,
    begun: u32,
    finished: u32,
    /// The machine waits for a handshake; it was done; credentials may go without; TLS may fail.
    handshake: bool,
    encrypted: bool,
    cleartext: bool,
    may: bool,
}

impl Session {
    fn body_or_begin(&mut self, client: &Client) -> Input<'static> {
        if std::mem::take(&mut self.body) || !client.is_ready() {
            return Input::BodySent;
        }
        self.begun += 1;
        let address = |text: &[u8]| Address::new(text).unwrap_or_default();
        Input::Begin(Transaction {
            sender: address(b"s@a.example"),
            recipients: vec![address(b"r1@b.example"), address(b"r2@b.example> x"), address(b"r3@b.example")],
            size: 100,
            eight_bit: true,
            smtputf8: self.begun == 3,
            xverp: None,
            requiretls: self.begun == 2,
            by: None,
            priority: None,
            dsn: None,
        })
    }

    fn tls_started(&mut self) -> Input<'static> {
        self.encrypted |= std::mem::take(&mut self.handshake);
        Input::TlsStarted
    }

    fn take(&mut self, action: Action) {
        match action {
            Action::SendBody => self.body = true,
            Action::Send(bytes) => assert!(bytes.ends_with(b"\r\n") && !self.handshake),
            Action::SendSecret(bytes) => {
                assert!(bytes.expose().ends_with(b"\r\n") && (self.encrypted || self.cleartext));
            }
            Action::StartTls => {
                assert!(!self.encrypted && !self.handshake);
                self.handshake = true;
            }
            Action::NoTls(text) => assert!(self.begun == 0 && self.may && !self.encrypted && is_report(&text)),
            Action::Unusable(text) => assert!(self.begun == 0 && is_report(&text)),
            Action::Finished(finished) => {
                self.finished += 1;
                self.body = false;
                assert_eq!(finished.outcomes.len(), 3);
                assert!(!matches!(finished.outcomes.get(1), Some(Outcome::Delivered(_))), "was never said");
                assert!(finished.outcomes.iter().all(|outcome| is_report(outcome.text())));
            }
            Action::Deadline(_) | Action::Ready | Action::Close => {}
        }
    }
}

fn is_report(text: &str) -> bool {
    text.len() <= REPORT_LEN_MAX && text.chars().all(|c| matches!(c, '\n' | '\t') || !c.is_control())
}
