//! The tricks of "Weak Links in Authentication Chains" (Shen et al., USENIX Security 2021), "Composition Kills" (Chen et al., USENIX
//! Security 2020) and "Splitting the email atom" (Heyes, 2024), as far as a header can hold them, against [`claims`].

use super::*;
use proptest::prelude::*;

fn named(header: &str) -> Result<Vec<String>, Unclear> {
    claims(header.as_bytes()).map(|all| all.iter().map(|a| String::from_utf8(a.as_bytes().to_vec()).unwrap()).collect())
}

const FACTS: Facts<'static> = Facts { now_s: 0, unique: "1.2.ff", host: b"mx.example", author: None };

fn completed(header: &str, author: Option<&str>) -> String {
    let author = author.map(|author| Address::new(author.as_bytes()).unwrap());
    String::from_utf8(complete(header.as_bytes(), &Facts { author: author.as_ref(), ..FACTS })).unwrap()
}

#[test]
fn ordinary_headers_are_understood() {
    for (header, addresses) in [
        ("", &[][..]),
        ("Subject: x\n", &[]),
        ("From: bob@a.example\n", &["bob@a.example"]),
        ("FROM:<bob@a.example>\n", &["bob@a.example"]),
        ("From: bob@a.example (Bob Builder)\n", &["bob@a.example"]),
        ("From: \"Builder, Bob\" <bob@a.example>\n", &["bob@a.example"]),
        ("From: Bob B. O'Builder & Co <bob+x@a.example>\n", &["bob+x@a.example"]),
        ("From: \"Bob \\\"B\\\" Builder\"\n <bob@a.example>\n", &["bob@a.example"]),
        ("From: =?utf-8?Q?J=C3=BCrgen?= <j@a.example>\n", &["j@a.example"]),
        ("From: J\u{fc}rgen <j\u{fc}rgen@a.example>\n", &["j\u{fc}rgen@a.example"]),
        ("From: =?ISO-2022-JP?B?GyRCRnxAbhsoQg==?= <j@a.example>\n", &["j@a.example"]),
        ("From: =?Shift_JIS?B?g0CDQA==?= <j@a.example>\n", &["j@a.example"]),
        ("From: a@x, b <b@y> ,\"c\" <c@z>\nSender: a@x\n", &["a@x", "b@y", "c@z", "a@x"]),
        ("From: \"bob@a.example\" <bob@a.example>\n", &["bob@a.example", "bob@a.example"]),
        ("Resent-From: a@x\nResent-Sender: b@y\nFrom: c@z\nResent-From: d@x\n", &["a@x", "b@y", "c@z", "d@x"]),
    ] {
        let wanted = addresses.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
        assert_eq!(named(header), Ok(wanted), "{header}");
    }
}

#[test]
fn what_readers_take_for_different_authors_is_unclear() {
    for header in [
        // Several fields, or one that some readers do not take for the field.
        "From: a@x\nFrom: b@y\n",
        "From: a@x\nfrom: a@x\n",
        "From : a@x\n",
        "From\t: a@x\n",
        "Sender: a@x\nSender: b@y\nFrom: a@x\n",
        "Sender: a@x, b@y\nFrom: a@x\n",
        " From: b@y\nFrom: a@x\n",
        "From: a@x\nno field\nX: y\n",
        "From b@y Thu Jan  1 00:00:00 1970\nFrom: a@x\n",
        "From: a@x\n \nX: y\n",
        "From: a@x\n\t\n <b@y>\n",
        "X:\n \nFrom: a@x\n",
        "From\0: b@y\nFrom: a@x\n",
        "Fr\u{f6}m: b@y\nFrom: a@x\n",
        ": b@y\nFrom: a@x\n",
        // Nothing, groups, lists with holes.
        "From:\n",
        "From: ;\n",
        "From: <>\n",
        "From: Bob\n",
        "From: group: a@x;\n",
        "From: group: a@x, b@y;, c@z\n",
        "From: undisclosed-recipients:;\n",
        "From: a@x,\n",
        "From: ,a@x\n",
        "From: a@x,,b@y\n",
        "From: a@x; b@y\n",
        "From: a@x b@y\n",
        "From: 'a@x' via b\n",
        // Several addresses in one mailbox.
        "From: a@x <b@y>\n",
        "From: <a@x> <b@y>\n",
        "From: <a@x>b@y\n",
        "From: <a@x>, b\n",
        "From: <a@x, b@y>\n",
        "From: <a@x><b@y>\n",
        "From: <<a@x>>\n",
        "From: <a@x\n",
        "From: a@x>\n",
        "From: a <a@x>>\n",
        "From: <a@x>\\, <b@y>\n",
        "From: \\\"a\\\" <a@x>\n",
        // Source routes.
        "From: <@y:a@x>\n",
        "From: <@y,@z:a@x>\n",
        "From: @y:a@x\n",
        // Comments where they may hide something.
        "From: (b@y) a@x\n",
        "From: a(b)@x\n",
        "From: a@(b)x\n",
        "From: <a@x(b)>\n",
        "From: a@x (b (c) d)\n",
        "From: a@x (<b@y>)\n",
        "From: a@x (b@y, c)\n",
        "From: a@x (b\\) <b@y>\n",
        "From: a@x (b) (c)\n",
        "From: a@x (b\n",
        "From: a@x)\n",
        "From: (a@x)\n",
        // Quoted local parts and literals, blanks within addresses.
        "From: \"a\"@x\n",
        "From: <\"a@y\"@x>\n",
        "From: \"b@y>\"@x\n",
        "From: <a@[192.0.2.1]>\n",
        "From: a @x\n",
        "From: a@ x\n",
        "From: a . b@x\n",
        "From: < a@x>\n",
        "From: <a@x >\n",
        "From: <a\n @x>\n",
        "From: a..b@x\n",
        "From: .a@x\n",
        "From: a@x..y\n",
        "From: a@x.\n",
        "From: a@b@x\n",
        "From: <a@>\n",
        "From: <@x>\n",
        "From: <a>\n",
        // Encoded words within addresses, or addresses within encoded words.
        "From: =?utf-8?q?b=40y?=@x\n",
        "From: <=?utf-8?q?b=40y=3E?=@x>\n",
        "From: <=?x?q?=41=42?=collab=40y=3E?=@x>\n",
        "From: =?utf-8?b?PGJAeT4=?= <a@x>\n",
        "From: =?utf-8?q?Bob_=3Cb=40y=3E?= <a@x>\n",
        "From: \"=?utf-8?q?Bob_=3Cb=40y=3E?=\" <a@x>\n",
        "From: =?utf-7?q?b&AEA-y?= <a@x>\n",
        "From: =?unicode-1-1-utf-7?q?b+AEA-y?= <a@x>\n",
        "From: =?utf-8?x?aaaa?= <a@x>\n",
        "From: =?utf-8?b?#?= <a@x>\n",
        "From: a@x (=?utf-8?q?b=40y_=3C?=)\n",
        // Names that show more than one address, or one that is none.
        "From: \"b@y, c@z\" <a@x>\n",
        "From: \"b@y \\\" <\" <a@x>\n",
        "From: \"Bob b@y\" <a@x>\n",
        "From: \"b\u{ff20}y\" <a@x>\n",
        "From: \"b\u{fe6b}y\" <a@x>\n",
        // Control bytes.
        "From: a@x\x0b\n",
        "From: a\x7f@x\n",
        "From: \"b\x08\" <a@x>\n",
        "From: a@x\0\n",
    ] {
        assert_eq!(named(header), Err(Unclear), "{header:?}");
    }
    for latin in [&b"From: \"b\xc0\x80y\" <a@x>\n"[..], b"From: J\xfcrgen <a@x>\n"] {
        assert_eq!(claims(latin), Err(Unclear), "{}", latin.escape_ascii());
    }
}

#[test]
fn a_name_that_is_an_address_is_a_claim() {
    for (header, shown) in [
        ("From: \"b@y\" <a@x>\n", "b@y"),
        ("From: \"'b@y'\" <a@x>\n", "b@y"),
        ("From: =?utf-8?q?b=40y?= <a@x>\n", "b@y"),
        ("From: =?utf-8?b?YkA=?= <a@x>\n", ""),
        ("From: =?utf-8*en?B?YkB5?= <a@x>\n", "b@y"),
        ("From: a@x (b@y)\n", "b@y"),
        ("From: \"b\\@y\" <a@x>\n", "b@y"),
    ] {
        let wanted = if shown.is_empty() { Err(Unclear) } else { Ok(vec!["a@x".to_owned(), shown.to_owned()]) };
        assert_eq!(named(header), wanted, "{header}");
    }
}

#[test]
fn many_authors_are_too_many() {
    let header = |count: usize| format!("From: {}\n", vec!["a@x"; count].join(", "));
    assert_eq!(named(&header(CLAIMS_MAX)).map(|all| all.len()), Ok(CLAIMS_MAX));
    assert_eq!(named(&header(CLAIMS_MAX + 1)), Err(Unclear));
    let resent = |count: usize| "Resent-From: a@x\n".repeat(count);
    assert_eq!(named(&resent(CLAIMS_MAX)).map(|all| all.len()), Ok(CLAIMS_MAX));
    assert_eq!(named(&resent(CLAIMS_MAX + 1)), Err(Unclear));
}

#[test]
fn what_is_missing_is_added_and_what_is_there_stays() {
    const DATE: &str = "Date: 1 Jan 1970 00:00:00 -0000\n";
    const ID: &str = "Message-ID: <19700101000000.1.2.ff@mx.example>\n";
    assert_eq!(completed("", Some("bob@x")), format!("{DATE}{ID}From: <bob@x>\n"));
    assert_eq!(completed("", None), format!("{DATE}{ID}"));
    assert_eq!(completed("Subject: x\n", Some("a b@x")), format!("{DATE}{ID}From: <\"a b\"@x>\nSubject: x\n"));
    let whole = "DATE : odd\nMessage-Id:\n <a@b>\nfrom:a@x\nDKIM-Signature: v=1;\n\tb=x\nX-Date: y\n";
    assert_eq!(completed(whole, Some("bob@x")), whole);
    assert_eq!(completed("From: a@x\nDate: d\n", None), format!("{ID}From: a@x\nDate: d\n"));
    // What would become a fold of the last field that was added keeps its place at the front.
    assert_eq!(completed(" <b@y>\nDate: d\n", Some("bob@x")), format!(" <b@y>\nDate: d\n{ID}From: <bob@x>\n"));
}

#[test]
fn what_nobody_may_see_is_taken_out_with_its_folds() {
    let header = "Date: d\nBcc: secret@x,\n\tmore@y\nReturn-Path: <z@z>\nMessage-ID: <m>\nbcc :\nResent-Bcc: r@x\nContent-Length: 7\n\
        X-Bcc: stays\nFrom: a@x\nTo: Bcc: b\n";
    assert_eq!(completed(header, None), "Date: d\nMessage-ID: <m>\nX-Bcc: stays\nFrom: a@x\nTo: Bcc: b\n");
}

/// Bytes that matter to a reader of addresses.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let bytes = b"ab.@<>,;:()\"\\[] \t\n=?qQbB_4=\x00\xc3\xa9\x1b$%!";
    proptest::collection::vec(proptest::sample::select(&bytes[..]), 0..60)
}

proptest! {
    #[test]
    fn any_bytes_are_judged_and_completed(text in hostile(), field in prop_oneof![Just("From:"), Just("Sender:"), Just("")]) {
        super::super::fuzz::submission(&[field.as_bytes(), &text, b"\n"].concat());
    }
}
