//! Fuzz targets: plain functions that assert what the modules promise; stable tests run them over a small corpus, cargo-fuzz drives them.

use wire::{Address, Domain};

use crate::{aliases, bounce, crlf, forwarding, header, inject, rfc822, submission as submitted, vacation, verp};

/// Any chunking of a header scan gives the same answer.
pub fn scanner(data: &[u8]) {
    let scan = |chunk_len: usize| {
        let mut scanner = header::Scanner::looking_for_delivered_to(b"a@b");
        for chunk in data.chunks(chunk_len.max(1)) {
            scanner.feed(chunk);
        }
        scanner.finish();
        (scanner.hops(), scanner.is_found(), scanner.header_len())
    };
    let whole = scan(data.len());
    assert_eq!(whole, scan(1));
    assert_eq!(whole, scan(7));
    assert!(
        header::message_id(data)
            .is_none_or(|id| id.len() <= header::MESSAGE_ID_LEN_MAX && memchr::memmem::find(data, id).is_some())
    );
    let fields = header::fields(data).map(|f| f.raw().len()).sum::<usize>();
    assert!(u64::try_from(fields).ok() == whole.2);
}

/// Tokens survive being written and read.
pub fn tokens(data: &[u8]) {
    if let Ok(tokens) = rfc822::parse(data) {
        let written = rfc822::unparse(&tokens, 40);
        assert!(written.ends_with(b"\n") && !written.contains(&b'\r'));
        assert_eq!(rfc822::parse(&written).as_ref(), Ok(&tokens));
    }
}

/// A header as a user submits it: what is understood names addresses that stand in it as they are, and completing it twice changes
/// nothing more.
pub fn submission(data: &[u8]) {
    let end = memchr::memmem::find(data, b"\n\n").map_or(data.len(), |at| at.saturating_add(1));
    let mut header = data.get(..end).unwrap_or_default().to_vec();
    if header.last().is_some_and(|b| *b != b'\n') {
        header.push(b'\n');
    }
    let header = &header[..];
    if let Ok(names) = inject::Names::new(b"a.example", b"example", b"b.example") {
        let completed = names.complete(header, 4096);
        assert!(completed.is_none_or(|completed| completed.len() <= 4096));
    }
    let claims = submitted::claims(header);
    if let Ok(all) = &claims {
        assert!(all.len() <= submitted::CLAIMS_MAX && !header.contains(&0));
        for address in all {
            assert!(!wire::quote::is_needed(address.local()) && address.domain().is_some_and(|host| Domain::new(host).is_ok()));
        }
    }
    let author = Address::new(b"bob@example.org").unwrap_or_default();
    let facts = submitted::Facts { now_s: 0, unique: "1.2.3", host: b"mx", author: Some(&author) };
    let once = submitted::complete(header, &facts);
    assert_eq!(submitted::complete(&once, &facts), once);
    for lower in [&b"date"[..], b"message-id", b"from"] {
        assert!(header::fields(&once).any(|field| field.is(lower)));
    }
    for lower in [&b"bcc"[..], b"return-path"] {
        assert!(!header::fields(&once).any(|field| field.is(lower)));
    }
    // Only an author who was missing is new.
    if let (Ok(before), Ok(after)) = (claims, submitted::claims(&once)) {
        assert!(after.iter().all(|address| before.contains(address) || *address == author));
    }
}

/// A whole message through the splitter and the rewriting: the same for any chunking, and the result is a header.
pub fn injection(data: &[u8]) {
    let options = inject::Options {
        user: b"user".to_vec(),
        default_host: b"host".to_vec(),
        default_domain: b"domain.example".to_vec(),
        plus_domain: b"plus.example".to_vec(),
        id_host: b"id.example".to_vec(),
        ..inject::Options::default()
    };
    let split = |chunk_len: usize| {
        let (mut splitter, mut rest) = (inject::Splitter::default(), Vec::new());
        for chunk in data.chunks(chunk_len.max(1)) {
            let mut chunk = chunk;
            let _ = splitter.feed(&mut chunk);
            rest.extend_from_slice(chunk);
        }
        let (fields, body) = splitter.finish();
        (fields, [body, rest].concat())
    };
    let (fields, body) = split(data.len());
    assert_eq!((&fields, &body), (&split(1).0, &split(1).1));
    assert!(body.is_empty() || body.starts_with(b"\n"));
    if let Ok(injection) = inject::rewrite(&options, &fields) {
        assert!(header::fields(&injection.header).all(|field| field.name().is_some()));
        assert_eq!(header::fields(&injection.header).map(|f| f.raw().len()).sum::<usize>(), injection.header.len());
        let again: Vec<Vec<u8>> = header::fields(&injection.header).map(|f| f.raw().to_vec()).collect();
        let is_paired = again.iter().all(|field| brackets_pair(field));
        let again = inject::rewrite(&options, &again).map(|i| i.header);
        // A second run changes nothing in the fields that the first one wrote. (What stands before a `<` that nothing closes is a
        // phrase to the second run, though the first has completed it: as in the classic program.)
        assert!(!is_paired || again == Ok(injection.header));
    }
}

/// Has each `<` its `>` before the next one?
fn brackets_pair(field: &[u8]) -> bool {
    let mut is_open = false;
    rfc822::parse(field).unwrap_or_default().iter().all(|token| match token.kind {
        rfc822::Kind::Left => !std::mem::replace(&mut is_open, true),
        rfc822::Kind::Right => std::mem::replace(&mut is_open, false),
        _ => true,
    }) && !is_open
}

/// DOS text: no chunking matters.
pub fn dos_text(data: &[u8]) {
    let run = |chunk_len: usize| {
        let (mut filter, mut out) = (crlf::DosToUnix::default(), Vec::new());
        for chunk in data.chunks(chunk_len.max(1)) {
            filter.convert(chunk, &mut out);
        }
        filter.finish(&mut out);
        out
    };
    assert_eq!(run(data.len()), run(1));
}

/// A reply to any header is one message that nobody replies to.
pub fn vacation(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let subject: String = text.chars().filter(|c| !c.is_control()).take(50).collect();
    let (from, to) = (&b"joe@example.org"[..], &b"ann@example.com"[..]);
    let _ = vacation::is_due(to, data, &[from]);
    let reply =
        vacation::Reply { from, to, subject: subject.as_bytes(), text: text.as_bytes(), header: data, now_s: 1, unique: 2 };
    for reply in [reply, vacation::Reply { subject: b"", ..reply }] {
        let built = reply.build();
        assert!(built.is_ascii() && !built.split(|b| *b == b'\n').any(|line| line.len() > 998));
        let count = |name: &[u8]| header::fields(&built).filter(|field| field.is(name)).count();
        assert_eq!((count(b"subject"), count(b"auto-submitted"), count(b"to")), (1, 1, 1));
        assert!(!vacation::is_due(from, &built, &[to]), "a reply to a reply");
    }
}

/// A bounce of any report to any address stays one well-formed bounce.
pub fn bounces(data: &[u8]) {
    let (address, report) = data.split_at(data.len().min(usize::from(data.first().copied().unwrap_or(0))));
    let (Ok(recipient), Ok(host)) = (Address::new(address), Domain::new(b"mx.example")) else { return };
    let sender = Address::new(b"a@b").unwrap_or_default();
    let _ = verp::expand(&recipient, &sender);
    let original = bounce::Original {
        sender: &sender,
        arrival_s: 0,
        len: 1,
        header_len: 1,
        is_smtputf8: false,
        envelope_id: Some(report),
        headers_only: false,
        retry_until_s: Some(9),
    };
    let from = bounce::Sender { bounce_from: b"MAILER-DAEMON", bounce_host: &host, copy_len_max: None };
    let failure = bounce::Failure {
        action: bounce::Action::Failed,
        recipient: &recipient,
        original_recipient: Some(report),
        report,
        remote_mta: Some(report),
    };
    let decision = bounce::Decision::of(&sender, None);
    let Some(built) = bounce::build(&decision, from, original, &[failure], 0, 7) else { return };
    assert_eq!(memchr::memmem::find_iter(&built.prologue, b"\n--qmail-").count(), 3);
    assert!(std::str::from_utf8(&built.prologue).is_ok() && !built.prologue.contains(&b'\r'));
}

/// Forwarding tables read back as they were printed; alias files and mailing lists give no target that is empty.
pub fn forwarding(data: &[u8]) {
    if let Ok(records) = forwarding::compile(data) {
        let printed: Option<Vec<Vec<u8>>> = records.iter().map(|(key, data)| forwarding::print(key, data)).collect();
        assert_eq!(forwarding::compile(&printed.unwrap_or_default().concat()).as_ref(), Ok(&records));
    }
    if let Ok(list) = forwarding::compile_list(data) {
        assert!(forwarding::list_commands(&list).all(|command| !command.is_empty()));
    }
    for entry in aliases::entries(data) {
        for target in aliases::targets(&entry).unwrap_or_default() {
            assert!(!matches!(target, aliases::Target::Address(text) | aliases::Target::Include(text) if text.is_empty()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    type Target = fn(&[u8]);
    const TARGETS: [Target; 6] =
        [super::scanner, super::tokens, super::injection, super::dos_text, super::bounces, super::vacation];

    #[test]
    fn the_corpus() {
        let corpus: [&[u8]; 14] = [
            b"",
            b"\n",
            b"To: a\nFrom: b <c@d>\n\nbody\n",
            b"From x\nTo: (a(b)\n",
            b"To: a:b,c;\nCc: <@x:y@z+>\nBcc: \"q\\\"\"@[1]\n\n",
            b"Received: a\r\n\r\nb",
            b"Resent-To: a\nReturn-Path: <>\n folded\n\nx",
            b"x",
            b"From: <a\nTo: a\\\n",
            b"\x08--qmail-\n\n--- \r\n<x>:\n\n\n",
            b"To: \"\xc3\xb6\"@\xc3\xb6\n",
            b"To: a@b (c) d <e> (f)\n",
            b"From\r: A < <a@b>\nSubject: s\n\nbody\n",
            b"From\x0c\r:  a b\n",
        ];
        for text in corpus {
            for target in TARGETS {
                target(text);
            }
        }
    }

    proptest! {
        #[test]
        fn mail_like_bytes(text in proptest::collection::vec(prop_oneof![
            Just(b"To: ".to_vec()), Just(b"From: ".to_vec()), Just(b"Bcc:".to_vec()), Just(b"Return-Path:".to_vec()), Just(b"\n".to_vec()),
            Just(b"\r\n".to_vec()), Just(b" ".to_vec()), Just(b"a@b".to_vec()), Just(b"<".to_vec()), Just(b">".to_vec()), Just(b",".to_vec()),
            Just(b":".to_vec()), Just(b";".to_vec()), Just(b"(".to_vec()), Just(b")".to_vec()), Just(b"\"".to_vec()), Just(b"\\".to_vec()),
            Just(b"[".to_vec()), Just(b"]".to_vec()), Just(b"+".to_vec()), Just(b".".to_vec()), Just(b"@".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..4)], 0..30)) {
            let text = text.concat();
            for target in TARGETS {
                target(&text);
            }
        }
    }
}
