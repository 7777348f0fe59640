//! The server machine against arbitrary bytes and against the smuggling rule; for stable tests and cargo-fuzz alike.

use super::{
    Action, Actions, Config, Connection, DsnOffer, End, Envelope, HEADER_LEN_MAX, HELD_LEN_MAX, HeaderAnswer, HookAnswer,
    HookQuestion, Input, Limits, LoginAnswer, Logins, Now, PriorityOffer, QueueAnswer, RecipientAnswer, SenderAnswer,
    SendingLimit, Session, Stage, Stages, StartTls, Tls, TlsAnswer, TransferRules, Verdict,
};
use crate::command::{self, Command};
use crate::data::BareLf;
use std::sync::Arc;

pub(super) const NOW: Now = Now { unix_s: 0, boot: std::time::Duration::ZERO };

/// What the world saw of a session.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub replies: Vec<u8>,
    /// Envelopes and texts (without our Received field) that were committed.
    pub messages: Vec<(Envelope, Vec<u8>)>,
    /// Names and passwords that were judged.
    pub logins: Vec<(Vec<u8>, Vec<u8>)>,
    /// Headers that were judged.
    pub headers: Vec<Vec<u8>>,
    pub user: Option<Vec<u8>>,
    pub log: Vec<Vec<u8>>,
    pub end: Option<End>,
}

/// The directory of these tests, by the first letters of the recipient.
#[must_use]
pub fn directory(recipient: &[u8]) -> RecipientAnswer {
    match recipient {
        [b'n', b'o', ..] => RecipientAnswer::NoMailbox,
        [b't', b'e', ..] => RecipientAnswer::Temporary,
        [b'f', b'a', ..] => RecipientAnswer::NotOurs,
        [b'f', b'u', ..] => RecipientAnswer::Full { is_temporary: false },
        [b'f', b'w', ..] => RecipientAnswer::Full { is_temporary: true },
        _ => RecipientAnswer::Exists,
    }
}

/// The judge of these tests, by the first letter of the password.
#[must_use]
pub fn judge(user: &[u8], password: &[u8]) -> LoginAnswer {
    match password.first() {
        Some(b'o') => LoginAnswer::Accepted { user: user.to_ascii_lowercase().into() },
        Some(b't') => LoginAnswer::Temporary,
        _ => LoginAnswer::Refused,
    }
}

/// The judge of relayed exchanges, by the first letter of a message; most go on.
fn relay(message: &[u8]) -> LoginAnswer {
    match message.first() {
        Some(b'o' | b'n' | b't') => judge(b"Relayed", message),
        _ => LoginAnswer::Challenge([b"re ", message].concat().into()),
    }
}

/// Whose senders are, in these tests, by their first letters.
#[must_use]
pub fn check_sender(sender: &[u8]) -> SenderAnswer {
    match sender {
        [b'n', b'o', ..] => SenderAnswer::NotYours,
        [b't', b'e', ..] => SenderAnswer::Temporary,
        [b'l', b'i', ..] => SenderAnswer::Limited(SendingLimit::MessagesPerHour),
        _ => SenderAnswer::Yes,
    }
}

/// The programs of these tests, by the first letters of what they are asked about.
#[must_use]
pub fn say(question: &HookQuestion) -> HookAnswer {
    let words = question.argument.to_vec();
    let address = Some(b"c@d".as_slice().into());
    let verdict = match &words[..] {
        [b'n', b'o', ..] => Verdict::Refuse(words),
        [b'5', ..] => Verdict::Refuse([b"550 ", &words[..]].concat()),
        [b't', b'e', ..] => Verdict::Failed,
        [b'q', ..] => Verdict::Close(Some(words)),
        [b'o', b'k', ..] => Verdict::LetThrough { address: None },
        [b'c', ..] => Verdict::GoOn { address },
        _ => Verdict::GoOn { address: None },
    };
    HookAnswer {
        lines: vec![question.argument.to_vec()],
        relay_client: question.argument.starts_with(b"relay").then(|| Some(Box::default())),
        databytes: question.argument.starts_with(b"small").then_some(Some(10)),
        is_last: question.argument.starts_with(b"last"),
        verdict,
    }
}

/// The judge of headers in these tests, by the first byte.
#[must_use]
pub fn judge_header(header: &[u8]) -> HeaderAnswer {
    match header.first() {
        Some(b'!') => HeaderAnswer::Unclear,
        Some(b'"') => HeaderAnswer::TooLarge,
        Some(b'#') => HeaderAnswer::NotYours,
        Some(b'$') => HeaderAnswer::Temporary,
        Some(b'%') => HeaderAnswer::Limited(SendingLimit::RecipientsPerDay),
        _ => HeaderAnswer::Accepted { header: [b"Judged: yes\n", header].concat() },
    }
}

/// Runs a session over `chunks` with helpers that answer at once, and asserts the order of its actions.
pub fn run<'a>(config: &Arc<Config>, peer: &Connection, chunks: impl IntoIterator<Item = &'a [u8]>) -> Seen {
    let mut seen = Seen::default();
    let mut open: Option<(Envelope, Vec<u8>)> = None;
    let mut out = Actions::default();
    let mut session = Session::new(Arc::clone(config), peer.clone(), NOW, &mut out);
    carry_out(&mut session, &mut out, &mut seen, &mut open);
    for chunk in chunks {
        assert!(session.wants_input() || session.end().is_some());
        session.step(NOW, Input::Bytes(chunk), &mut out);
        carry_out(&mut session, &mut out, &mut seen, &mut open);
    }
    session.step(NOW, Input::Closed, &mut out);
    carry_out(&mut session, &mut out, &mut seen, &mut open);
    assert!(open.is_none(), "a message is left open");
    seen.end = session.end();
    seen.user = session.user().map(<[u8]>::to_vec);
    seen
}

fn carry_out(session: &mut Session, out: &mut Actions, seen: &mut Seen, open: &mut Option<(Envelope, Vec<u8>)>) {
    while !out.0.is_empty() {
        let mut answers = Vec::new();
        for action in out.0.drain(..) {
            match action {
                Action::Reply(bytes) => seen.replies.extend(bytes),
                Action::CheckRecipient { question, recipient, .. } => {
                    answers.push(Input::Recipient { question, answer: directory(recipient.as_bytes()) });
                }
                Action::LogIn { user, password } => {
                    assert!(session.peer().logins == Logins::Offered && session.user().is_none() && open.is_none());
                    answers.push(Input::Login(judge(&user, password.expose())));
                    seen.logins.push((user.into(), password.expose().to_vec()));
                }
                Action::SaslStart { mechanism, initial } => {
                    assert!(session.peer().logins == Logins::Offered && session.user().is_none() && open.is_none());
                    assert!(session.peer().tls.is_some() || !mechanism.binds_channel());
                    answers.push(Input::Login(relay(initial.as_ref().map_or(b"", |initial| initial.expose()))));
                }
                Action::SaslStep { response } => {
                    assert!(session.user().is_none() && open.is_none());
                    answers.push(Input::Login(relay(response.expose())));
                }
                Action::CheckSender { sender } => {
                    assert!(session.user().is_some() && open.is_none() && !session.wants_input());
                    answers.push(Input::Sender(check_sender(sender.as_bytes())));
                }
                Action::JudgeHeader { header, recipients } => {
                    let (envelope, text) = open.as_ref().unwrap_or_else(|| unreachable!());
                    assert_eq!(envelope.recipients.len() as u64, recipients);
                    assert!(without_received(text).is_empty() && !session.wants_input());
                    assert!(session.user().is_some() || session.peer().is_submission);
                    assert!(header.len() <= HEADER_LEN_MAX && header.last().is_none_or(|b| *b == b'\n'));
                    assert!(!header.starts_with(b"\n") && memchr::memmem::find(&header, b"\n\n").is_none());
                    answers.push(Input::Header(judge_header(&header)));
                    seen.headers.push(header);
                }
                Action::Admit { address } => {
                    assert!(session.peer().xclient && open.is_none());
                    let relays = address == Some([192, 0, 2, 1].into());
                    answers.push(Input::Admitted { relays, logins: if relays { Logins::Offered } else { Logins::NotInClear } });
                }
                Action::Hook(question) => {
                    assert!(session.peer().hooks.has(question.stage) && open.is_none() && !session.wants_input());
                    answers.push(Input::Hook(say(&question)));
                }
                Action::Begin(envelope) => {
                    assert!(open.is_none() && !envelope.recipients.is_empty());
                    *open = Some((*envelope, Vec::new()));
                }
                Action::Priority(priority) => {
                    let (envelope, text) = open.as_mut().unwrap_or_else(|| unreachable!());
                    assert!(envelope.asked.priority.is_none() && without_received(text).is_empty());
                    assert!(session.user().is_some() || session.peer().is_submission);
                    envelope.asked.priority = Some(priority);
                }
                Action::Body(piece) => open.as_mut().map(|(_, text)| text.extend(piece)).unwrap_or_else(|| unreachable!()),
                Action::Commit => {
                    let (envelope, text) = open.take().unwrap_or_else(|| unreachable!());
                    seen.messages.push((envelope, without_received(&text)));
                    answers.push(Input::Queue(QueueAnswer::Accepted { id: Some(77), qp: 1 }));
                }
                Action::Abandon => assert!(open.take().is_some(), "nothing to abandon"),
                Action::StartTls { go } => {
                    assert!(session.peer().starttls == StartTls::Offered && session.peer().tls.is_none() && open.is_none());
                    seen.replies.extend(go);
                    answers.push(Input::Tls(TlsAnswer::Started(tls())));
                }
                Action::Log(line) => {
                    assert!(line.bytes().all(|b| (32..=126).contains(&b)), "{line}");
                    seen.log.push(line.into_bytes());
                }
                Action::Close => assert!(session.end().is_some()),
            }
        }
        // The last question is answered first: order must not matter.
        for answer in answers.into_iter().rev() {
            session.step(NOW, answer, out);
        }
    }
}

/// TLS of these tests.
#[must_use]
pub fn tls() -> Box<Tls> {
    Box::new(Tls { cipher: "TLS_AES_128_GCM_SHA256".into(), exporter: Some([7; 32]), end_point: None, client: None })
}

fn without_received(text: &[u8]) -> Vec<u8> {
    let mut lines = text.splitn(3, |b| *b == b'\n');
    assert!(lines.next().is_some_and(|line| line.starts_with(b"Received: from ")));
    assert!(lines.next().is_some_and(|line| line.starts_with(b"  by ")));
    let text = lines.next().unwrap_or_default().to_vec();
    assert!(!text.contains(&b'\r') && text.last().is_none_or(|b| *b == b'\n'));
    text
}

/// A session with `data`: its first two bytes choose the configuration and who is connected, the third how the rest is cut.
pub fn session(data: &[u8]) {
    let [choice, small, cut, bytes @ ..] = data else { return };
    let bytes = bytes.get(..HELD_LEN_MAX / 2).unwrap_or(bytes);
    let limits = Limits {
        databytes: u64::from(*small),
        recipients_max: usize::from(choice >> 4) + 1,
        bad_recipients_max: u32::from(choice >> 3) % 8,
        text_line_len_max: u64::from(*small) + 1,
        ..Limits::default()
    };
    let barelf = if choice & 1 == 0 { BareLf::Reject } else { BareLf::Normalize };
    let transfer = TransferRules { priority: PriorityOffer::Everybody, ..TransferRules::default() };
    let config = Arc::new(Config { limits, barelf, dsn: DsnOffer::Everybody, transfer, ..Config::default() });
    let peer = Connection {
        relay_client: (choice & 2 != 0).then(Box::default),
        logins: if choice & 4 != 0 { Logins::Offered } else { Logins::NotInClear },
        is_submission: small & 128 != 0,
        starttls: if small & 64 != 0 { StartTls::Offered } else { StartTls::NotHere },
        xclient: small & 32 != 0,
        hooks: if small & 16 == 0 { Stages::default() } else { Stage::ALL.into_iter().fold(Stages::default(), Stages::with) },
        ..Connection::default()
    };
    let whole = run(&config, &peer, [bytes]);
    // A header need not be judged when the text behind it is refused already.
    let outcome = |seen: Seen| Seen { headers: whole.headers.clone(), ..seen };
    // STARTTLS alone makes a difference of what came in one go.
    if peer.starttls == StartTls::NotHere || !bytes.to_ascii_lowercase().windows(8).any(|word| word == b"starttls") {
        assert_eq!(outcome(run(&config, &peer, bytes.chunks(usize::from(*cut) + 1))), whole);
        assert_eq!(outcome(run(&config, &peer, bytes.chunks(1))), whole);
    }
    assert!(
        (whole.logins.len() <= 4 || peer.xclient)
            && whole
                .logins
                .iter()
                .all(|(user, password)| { [user, password].iter().all(|part| !part.is_empty() && !part.contains(&0)) })
    );
    // Whose messages are judged, and that each of them was.
    let judges_all = peer.is_submission;
    let is_judged = |text: &[u8]| text.starts_with(b"Judged: yes\n");
    assert!(whole.messages.iter().filter(|(_, text)| is_judged(text)).count() <= whole.headers.len());
    assert!(!judges_all || whole.messages.iter().all(|(_, text)| is_judged(text)));
    assert!(
        !peer.is_submission || peer.xclient || peer.relay_client.is_some() || whole.user.is_some() || whole.messages.is_empty()
    );
    for line in whole.replies.split_inclusive(|b| *b == b'\n') {
        let is_code = |line: &[u8]| line.get(..3).is_some_and(|code| code.iter().all(u8::is_ascii_digit));
        assert!(line.ends_with(b"\r\n") && line.len() <= 512 && is_code(line), "{}", line.escape_ascii());
        assert_eq!(line.iter().filter(|b| b.is_ascii_control()).count(), 2);
    }
}

/// LMTP: whoever the client is, only this system's recipients get anything, and each of them one reply behind the text.
pub fn lmtp(data: &[u8]) {
    let [small, cut, bytes @ ..] = data else { return };
    let bytes = bytes.get(..HELD_LEN_MAX / 2).unwrap_or(bytes);
    let limits = Limits { databytes: u64::from(*small), recipients_max: usize::from(small >> 4) + 1, ..Limits::default() };
    let config = Arc::new(Config { limits, ..Config::default() });
    let peer = Connection { is_lmtp: true, ..Connection::default() };
    let whole = run(&config, &peer, [bytes]);
    assert_eq!(run(&config, &peer, bytes.chunks(usize::from(*cut) + 1)), whole);
    assert_eq!(run(&config, &peer, bytes.chunks(1)), whole);
    assert!(whole.logins.is_empty() && whole.user.is_none());
    let recipients: Vec<_> = whole.messages.iter().flat_map(|(envelope, _)| &envelope.recipients).collect();
    let is_bare_postmaster = |recipient: &[u8]| recipient.eq_ignore_ascii_case(b"postmaster");
    let is_ours = |recipient: &[u8]| is_bare_postmaster(recipient) || directory(recipient) == RecipientAnswer::Exists;
    assert!(recipients.iter().all(|recipient| is_ours(recipient.as_bytes()) || recipient.domain().is_none()));
    let queued = whole.replies.split(|b| *b == b'\n').filter(|line| line.starts_with(b"250 2.0.0 ok 0 qp 1")).count();
    assert_eq!(queued, recipients.len());
}

/// The smuggling rule: where the text that starts `stream` ends, what it is in LF form, and whether a CR or LF stands alone in it.
#[must_use]
pub fn rule(stream: &[u8]) -> Option<(usize, Vec<u8>, bool)> {
    let wire = [b"\r\n", stream].concat();
    let end = memchr::memmem::find(&wire, b"\r\n.\r\n")?;
    let text = String::from_utf8_lossy(wire.get(2..end + 2)?).replace("\r\n", "\u{1}");
    let lines = text.replace(['\r', '\n'], "\u{1}");
    let unstuffed = lines.split_inclusive('\u{1}').map(|line| line.strip_prefix('.').unwrap_or(line)).collect::<String>();
    Some((end + 3, unstuffed.replace('\u{1}', "\n").into_bytes(), text.contains(['\r', '\n'])))
}

/// Texts that a server which follows [`rule`] accepts from `stream`; commands are read as the machine reads them.
fn expected(stream: &[u8], barelf: BareLf) -> Vec<Vec<u8>> {
    let (mut texts, mut rest) = (Vec::new(), stream);
    let (mut has_sender, mut has_recipient) = (false, false);
    while let Some(lf) = memchr::memchr(b'\n', rest) {
        let (line, behind) = rest.split_at(lf);
        rest = behind.get(1..).unwrap_or_default();
        match Command::parse(line.strip_suffix(b"\r").unwrap_or(line)) {
            Command::Mail(argument) => {
                has_sender = command::path(argument, "FROM").is_ok_and(|(_, parameters)| parameters.is_empty());
                has_recipient = false;
            }
            Command::Rcpt(argument) if has_sender => {
                has_recipient |=
                    command::path(argument, "TO").is_ok_and(|(to, parameters)| !to.is_null() && parameters.is_empty());
            }
            Command::Data(b"") if has_recipient => {
                (has_sender, has_recipient) = (false, false);
                let Some((taken, text, bare)) = rule(rest) else { return texts };
                rest = rest.get(taken..).unwrap_or_default();
                if !bare || barelf == BareLf::Normalize {
                    texts.push(text);
                }
            }
            _ => {}
        }
    }
    texts
}

/// Two pipelined messages, as short as they can be.
const TWO_MESSAGES: &[u8] = b"MAIL FROM:<>\r\nRCPT TO:<p>\r\nDATA\r\nx\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<p>\r\nDATA\r\n.\r\n";

/// The `n`-th string over {CR, LF, `.`, `x`}, shorter ones first.
#[must_use]
pub fn smuggling_string(n: usize) -> Vec<u8> {
    let (mut n, mut len, mut count) = (n, 0, 1usize);
    while n >= count {
        n -= count;
        len += 1;
        count *= 4;
    }
    (0..len).map(|place| *b"\r\n.x".get(n >> (2 * place) & 3).unwrap_or(&b'x')).collect()
}

/// How many such strings are at most `len` long.
#[must_use]
pub fn smuggling_count(len: u32) -> usize {
    (4usize.pow(len + 1) - 1) / 3
}

/// `string` at every place of two pipelined messages, whole, cut at every place that is at most `near` bytes from it, and, if
/// `near` is over 1, byte by byte. Gives the number of sessions.
pub fn smuggling_inserted(string: &[u8], near: Option<usize>) -> usize {
    let mut sessions = 0;
    for barelf in [BareLf::Reject, BareLf::Normalize] {
        let config = Arc::new(Config { barelf, limits: Limits { errors_max: 0, ..Limits::default() }, ..Config::default() });
        let peer = Connection::default();
        for at in 0..=TWO_MESSAGES.len() {
            let (before, behind) = TWO_MESSAGES.split_at(at);
            let stream = [before, string, behind].concat();
            let texts = |seen: Seen| seen.messages.into_iter().map(|(_, text)| text).collect::<Vec<_>>();
            let wanted = expected(&stream, barelf);
            let mut check = |seen: Seen| {
                sessions += 1;
                assert_eq!(texts(seen), wanted, "{}", stream.escape_ascii());
            };
            check(run(&config, &peer, [&stream[..]]));
            let Some(near) = near else { continue };
            if near > 1 {
                check(run(&config, &peer, stream.chunks(1)));
            }
            for cut in at.saturating_sub(near)..stream.len().min(near.saturating_add(at + string.len())) {
                let (a, b) = stream.split_at(cut);
                check(run(&config, &peer, [a, b]));
            }
        }
    }
    sessions
}

/// `string` as a body, by DATA and by BDAT, in one piece and cut at every place; by BDAT in two chunks, too.
/// Gives the number of sessions.
pub fn smuggling_body(string: &[u8]) -> usize {
    let mut sessions = 0;
    const START: &[u8] = b"MAIL FROM:<>\r\nRCPT TO:<p>\r\n";
    for barelf in [BareLf::Reject, BareLf::Normalize] {
        let config = Arc::new(Config { barelf, ..Config::default() });
        let peer = Connection::default();
        let bdat = format!("BDAT {} LAST\r\n", string.len());
        let by_data = [START, b"DATA\r\n", string, b"\r\n.\r\nNOOP\r\n"].concat();
        let by_bdat = [START, bdat.as_bytes(), string, b"NOOP\r\n"].concat();
        // The same rule without dots: a chunk ends by its size, and gets a last line end if it has none.
        let lines = String::from_utf8_lossy(string).replace("\r\n", "\u{1}");
        let bare = lines.contains(['\r', '\n']);
        let mut text = lines.replace(['\r', '\n', '\u{1}'], "\n").into_bytes();
        if text.last().is_some_and(|b| *b != b'\n') {
            text.push(b'\n');
        }
        let chunked: Vec<Vec<u8>> = if bare && barelf == BareLf::Reject { Vec::new() } else { vec![text] };
        for (stream, wanted) in [(&by_data, expected(&by_data, barelf)), (&by_bdat, chunked.clone())] {
            for cut in stream.len() - string.len() - 12..=stream.len() {
                let (a, b) = stream.split_at(cut);
                sessions += 1;
                let seen = run(&config, &peer, [a, b].into_iter().filter(|piece| !piece.is_empty()));
                assert_eq!(
                    seen.messages.into_iter().map(|(_, text)| text).collect::<Vec<_>>(),
                    wanted,
                    "{}",
                    stream.escape_ascii()
                );
            }
        }
        for cut in 0..=string.len() {
            let (a, b) = string.split_at(cut);
            let (first, last) = (format!("BDAT {}\r\n", a.len()), format!("BDAT {} LAST\r\n", b.len()));
            let stream = [START, first.as_bytes(), a, last.as_bytes(), b, b"NOOP\r\n"].concat();
            sessions += 1;
            let seen = run(&config, &peer, [&stream[..]]);
            assert_eq!(seen.messages.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), chunked, "{}", stream.escape_ascii());
            assert!(seen.replies.ends_with(b"250 2.0.0 ok\r\n"), "the NOOP behind the last chunk is read");
        }
    }
    sessions
}
