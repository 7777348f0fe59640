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

/// A header with an encoded word of these bytes as its name, by either encoding.
fn encoded(charset: &str, bytes: &[u8]) -> [String; 2] {
    let q: String = bytes.iter().map(|b| format!("={b:02X}")).collect();
    let b = String::from_utf8(wire::base64::encode(bytes).into()).unwrap();
    [format!("From: =?{charset}?q?{q}?= <a@x>\n"), format!("From: =?{charset}?B?{b}?= <a@x>\n")]
}

#[test]
fn no_charset_hides_an_address() {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>();
    let ebcdic = b"\x82\x7c\xa8".to_vec();
    for (charset, bytes) in [
        // Charsets that shift: to a reader who does not, or who shifts back otherwise, there is an address.
        ("iso-2022-kr", b"\x1b$)Cb@y".to_vec()),
        ("iso-2022-kr", b"\x1b$)C\x0eb@\x0fy".to_vec()),
        ("iso-2022-cn", b"\x1b$)Ab@y".to_vec()),
        ("iso-2022-jp-2", b"\x1b$(Db@y\x1b(B".to_vec()),
        ("hz-gb-2312", b"~{b@~}y".to_vec()),
        ("ISO-2022-JP", b"\x1b$Bb@yz".to_vec()),
        ("ISO-2022-JP", b"\x1b$Bb@y\x1b(B".to_vec()),
        ("ISO-2022-JP", b"\x1b$)Cb@y\x1b(B".to_vec()),
        ("ISO-2022-JP", b"\x1b(Ib@y\x1b(B".to_vec()),
        ("ISO-2022-JP", b"\x1b$B\x1b(Bb@y z".to_vec()),
        ("ISO-2022-JP", b"b\x0e@y".to_vec()),
        ("ISO-2022-JP", b"b\x1b$B!w\x1b(By".to_vec()),
        ("iso-2022-jp", b"\x82\xa0".to_vec()),
        ("utf-7", b"b+AEA-y".to_vec()),
        ("unicode-1-1-utf-7", b"b+AEA-y".to_vec()),
        // Charsets in which ASCII lies elsewhere, or bytes are not characters.
        ("cp037", ebcdic.clone()),
        ("ibm037", ebcdic.clone()),
        ("ebcdic-us", ebcdic),
        ("utf-16", utf16("b@y")),
        ("utf-16be", utf16("b\u{ff20}y")),
        ("utf-16le", b"b\0@\0y\0".to_vec()),
        ("utf-32", b"\0\0\0b\0\0\0@\0\0\0y".to_vec()),
        ("unknown-8bit", b"bob".to_vec()),
        ("", b"bob".to_vec()),
        // Characters of one byte, broken ones, and ones that nobody has, before the `@`.
        ("shift_jis", b"b\xb1@y".to_vec()),
        ("shift_jis", b"b\x82@y".to_vec()),
        ("shift_jis", b"b\x85@y".to_vec()),
        ("shift_jis", b"b\xfd@y".to_vec()),
        ("shift_jis", b"b\x80@y".to_vec()),
        ("shift_jis", b"b\xa0@y".to_vec()),
        ("shift_jis", b"b\xf0@y".to_vec()),
        ("shift_jis", b"b\x83\x83@y".to_vec()),
        ("shift_jis", b"b\x83\x7fy".to_vec()),
        ("shift_jis", b"b\x83".to_vec()),
        ("shift_jis", b"b\x81\x97y".to_vec()),
        ("big5", b"b\x81@y".to_vec()),
        ("big5", b"b\xa4\xa4@y".to_vec()),
        ("big5", b"b\xa4\x80@y".to_vec()),
        ("big5", b"b\xff@y".to_vec()),
        ("big5", b"b\xa1\x49y".to_vec()),
        ("gbk", b"b\x81@y".to_vec()),
        ("gb2312", b"b\xb0@y".to_vec()),
        ("gb18030", b"b\x81\x30\x81@y".to_vec()),
        ("gb2312", b"b\xa3\xc0y".to_vec()),
        ("euc-kr", b"b\xb0@y".to_vec()),
        ("euc-jp", b"b\xa1\xf7y".to_vec()),
        ("iso-8859-1", b"b\xe9@y".to_vec()),
        // What some readers decode once more, and what is no text.
        ("utf-8", b"=?utf-8?q?b=40y?=".to_vec()),
        ("utf-8", b"b\xef\xbc\xa0y".to_vec()),
        ("utf-8", b"b\xc1\x80y".to_vec()),
        ("utf-8", b"b\xef".to_vec()),
        ("utf-8", b"b\x0ay".to_vec()),
        ("utf-8", b"b\x00y".to_vec()),
        ("utf-8", b"b\x1by".to_vec()),
    ] {
        for header in encoded(charset, &bytes) {
            // A FULLWIDTH COMMERCIAL AT counts as one; it shows an address as well.
            let is_judged = named(&header).map_or(true, |all| all == ["a@x", "b@y"]);
            assert!(is_judged, "{charset} {}: {:?}", bytes.escape_ascii(), named(&header));
        }
    }
}

#[test]
fn names_in_the_charsets_of_the_world_are_taken() {
    for (charset, bytes) in [
        ("utf-8", "J\u{fc}rgen \u{65e5}\u{672c}".as_bytes()),
        ("iso-8859-15", b"J\xfcrgen"),
        ("ISO-8859-1*de", b"J\xfcrgen"),
        ("windows-1251", b"\xc8\xe2\xe0\xed"),
        ("koi8-r", b"\xe9\xd7\xc1\xce"),
        ("ISO-2022-JP", b"\x1b$BF|K\\\x1b(B (jp)"),
        ("ISO-2022-JP", b"\x1b$B@n\x1b(J"),
        ("Shift_JIS", b"\x83t\x83@\x83~\xb1 x"),
        ("euc-jp", b"\xc6\xfc\xcb\xdc"),
        ("gb2312", b"\xd6\xd0\xce\xc4"),
        ("gb18030", b"\xd6\xd0\x816\x817"),
        ("big5", b"\xa4\x40\xa4\xa4"),
        ("euc-kr", b"\xb1\xe8"),
        ("ks_c_5601-1987", b"\xb1\xe8\x81A"),
    ] {
        for header in encoded(charset, bytes) {
            assert_eq!(named(&header), Ok(vec!["a@x".to_owned()]), "{charset} {}", bytes.escape_ascii());
        }
        // A whole address in it is a claim all the same.
        for header in encoded(charset, b"b@y") {
            assert_eq!(named(&header), Ok(vec!["a@x".to_owned(), "b@y".to_owned()]), "{header}");
        }
    }
}

#[test]
fn what_is_nearly_an_encoded_word_is_unclear() {
    for name in [
        "=?utf-8?q?b=40y",
        "=?utf-8?q?b=40y?",
        "=?utf-8?q??=40y?=",
        "=?utf-8?q?a?b=40y?=",
        "=?utf-8?q?b=4?=",
        "=?utf-8?q?b=4Gy?=",
        "=?utf-8?b?YkB5",
        "=?utf-8?b?Yk B5?=",
        "=?utf-8?q?b y?=",
        "b=?utf-8?q?=40y?=",
        "=?utf-8?q?b=40?=y",
        "=?utf-8?q?b?==?utf-8?q?=40y?=",
        "=?utf-8?q?b?= =?utf-8?q?=40y?=",
        "=?utf-8?q?b=40y?= =?utf-8?q?.z?=",
        "=?utf-8?q?b=EF=BC?= =?utf-8?q?=A0y?=",
        "=?utf-8?q?=3D?= =?",
        "=?utf-8?q?=3D=3F?=",
        "a =?",
    ] {
        for header in [format!("From: {name} <a@x>\n"), format!("From: \"{name}\" <a@x>\n"), format!("From: a@x ({name})\n")] {
            assert_eq!(named(&header), Err(Unclear), "{header}");
        }
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
