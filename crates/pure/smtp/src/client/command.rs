//! Command lines of the client (RFC 5321 §4.1.1), written so that no address can add a parameter or a second command.
//!
//! An address is put between `<` and `>` only if its domain is a [`Domain`]; the local part is quoted where it must be. Whatever
//! the envelope holds, a line has one CRLF, at its end.

use wire::{Address, Domain, quote};

use crate::client::Transaction;
use crate::reply::Offers;

/// Why an address cannot be put into a command; permanent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathError {
    /// The domain is none (RFC 3463 x.1.2, x.1.7).
    Domain,
}

/// `EHLO host` or `HELO host`; bytes that no host name or literal has are left out.
pub(super) fn hello(verb: &str, helo: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(verb.as_bytes());
    out.push(b' ');
    out.extend(helo.bytes().filter(|b| b.is_ascii_graphic()));
    out.extend_from_slice(b"\r\n");
}

/// `MAIL FROM:<…>` with the parameters both sides know.
pub(super) fn mail(transaction: &Transaction, offers: &Offers, out: &mut Vec<u8>) -> Result<(), PathError> {
    let path = path(&transaction.sender)?;
    out.extend_from_slice(b"MAIL FROM:");
    out.extend_from_slice(&path);
    if offers.size_max.is_some() {
        // RFC 1870 §5.
        out.extend_from_slice(format!(" SIZE={}", transaction.size).as_bytes());
    }
    if offers.eight_bit_mime && transaction.eight_bit {
        // RFC 6152 §3. To a peer without it the body goes as it is, as qmail does.
        out.extend_from_slice(b" BODY=8BITMIME");
    }
    if offers.smtputf8 && transaction.needs_smtputf8() {
        // RFC 6531 §3.4.
        out.extend_from_slice(b" SMTPUTF8");
    }
    if transaction.requiretls {
        // RFC 8689 §3; `inexpressible` has looked whether it may be said.
        out.extend_from_slice(b" REQUIRETLS");
    }
    if let Some(by) = transaction.by.filter(|_| offers.deliver_by_min_s.is_some()) {
        out.extend_from_slice(format!(" BY={}", by.text()).as_bytes());
    }
    if let Some(priority) = transaction.priority.filter(|_| offers.priority) {
        out.extend_from_slice(format!(" MT-PRIORITY={priority}").as_bytes());
    }
    if let Some([delimiter, equals]) = transaction.xverp
        && offers.xverp
        && delimiter.is_ascii_graphic()
        && equals.is_ascii_graphic()
    {
        out.extend_from_slice(&[b' ', b'X', b'V', b'E', b'R', b'P', b'=', delimiter, equals]);
    }
    if let Some(dsn) = transaction.dsn.as_deref().filter(|_| offers.dsn) {
        if let Some(ret) = dsn.ret {
            out.extend_from_slice(&[b" RET=", ret.as_str().as_bytes()].concat());
        }
        if let Some(envid) = &dsn.envid {
            out.extend_from_slice(&[b" ENVID=", envid.as_bytes()].concat());
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// `RCPT TO:<…>` of a recipient, with what a server that offers DSN is asked for.
pub(super) fn rcpt(transaction: &Transaction, index: usize, offers: &Offers, out: &mut Vec<u8>) -> Result<(), PathError> {
    let Some(recipient) = transaction.recipients.get(index) else { return Ok(()) };
    let path = path(recipient)?;
    out.extend_from_slice(b"RCPT TO:");
    out.extend_from_slice(&path);
    if let Some(asked) = transaction.dsn.as_ref().filter(|_| offers.dsn).and_then(|dsn| dsn.recipients.get(index)) {
        if let Some(notify) = asked.notify {
            out.extend_from_slice(&[b" NOTIFY=", notify.text().as_bytes()].concat());
        }
        if let Some(orcpt) = &asked.orcpt {
            out.extend_from_slice(&[b" ORCPT=", orcpt.as_bytes()].concat());
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// A reverse-path or forward-path with its brackets (RFC 5321 §4.1.2).
fn path(address: &Address) -> Result<Vec<u8>, PathError> {
    let mut out = vec![b'<'];
    if !address.is_null() {
        out.extend_from_slice(&local_part(address.local()));
        if let Some(domain) = address.domain() {
            // `#@[]`, the double bounce sender, has a domain that is none; it travels as it is.
            if domain != b"[]" && Domain::new(domain).is_err() {
                return Err(PathError::Domain);
            }
            out.push(b'@');
            out.extend_from_slice(domain);
        }
    }
    out.push(b'>');
    Ok(out)
}

/// RFC 6531 §3.3 lets bytes over 127 stand in an atom: they alone are no reason for quotes.
fn local_part(local: &[u8]) -> Vec<u8> {
    let ascii: Vec<u8> = local.iter().map(|b| if b.is_ascii() { *b } else { b'x' }).collect();
    if quote::is_needed(&ascii) { quote::local_part(local) } else { local.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(sender: &[u8]) -> Transaction {
        Transaction {
            sender: Address::new(sender).unwrap(),
            recipients: vec![Address::new(b"b@x.example").unwrap()],
            size: 1234,
            eight_bit: true,
            smtputf8: false,
            xverp: Some(*b"-="),
            requiretls: false,
            dsn: None,
            by: None,
            priority: None,
        }
    }

    #[test]
    fn parameters_are_the_ones_both_know() {
        let everything = Offers { size_max: Some(0), eight_bit_mime: true, smtputf8: true, xverp: true, ..Offers::default() };
        for (sender, offers, line) in [
            (&b"a@b.example"[..], Offers::default(), "MAIL FROM:<a@b.example>\r\n"),
            (b"", Offers::default(), "MAIL FROM:<>\r\n"),
            (b"#@[]", Offers::default(), "MAIL FROM:<#@[]>\r\n"),
            (b"a@b.example", everything.clone(), "MAIL FROM:<a@b.example> SIZE=1234 BODY=8BITMIME XVERP=-=\r\n"),
            ("ä@b.example".as_bytes(), everything, "MAIL FROM:<ä@b.example> SIZE=1234 BODY=8BITMIME SMTPUTF8 XVERP=-=\r\n"),
        ] {
            let mut out = Vec::new();
            mail(&transaction(sender), &offers, &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), line);
        }
    }

    #[test]
    fn paths_are_quoted_or_refused() {
        for (address, expected) in [
            (&b"b@x.example"[..], Ok("RCPT TO:<b@x.example>\r\n")),
            (b"b b@x.example", Ok("RCPT TO:<\"b b\"@x.example>\r\n")),
            (b"b>@c@x.example", Ok("RCPT TO:<\"b>@c\"@x.example>\r\n")),
            (b"postmaster", Ok("RCPT TO:<postmaster>\r\n")),
            (b"b@[192.0.2.1]", Ok("RCPT TO:<b@[192.0.2.1]>\r\n")),
            (b"b@x.example> NOTIFY=NEVER", Err(PathError::Domain)),
            (b"b@x.example\tX", Err(PathError::Domain)),
            (b"b@", Err(PathError::Domain)),
        ] {
            let mut out = Vec::new();
            let to = Transaction { recipients: vec![Address::new(address).unwrap()], ..transaction(b"") };
            let result = rcpt(&to, 0, &Offers::default(), &mut out);
            assert_eq!(result.map(|()| String::from_utf8(out).unwrap()), expected.map(str::to_owned));
        }
    }

    #[test]
    fn what_is_asked_for_of_reports_is_said_to_who_offers_them() {
        use crate::client::Dsn;
        use crate::command::{Offered, RcptParameters};
        use wire::dsn::{Envid, Ret};
        let asked = |text: &[u8]| RcptParameters::parse(text, Offered { dsn: true, ..Offered::default() }).unwrap();
        let recipients = vec![asked(b"NOTIFY=DELAY,SUCCESS ORCPT=rfc822;a+2Bb@x"), asked(b""), asked(b"NOTIFY=NEVER")];
        let dsn = Dsn { ret: Some(Ret::Headers), envid: Envid::new(b"x+20y"), recipients };
        let address = |text: &[u8]| Address::new(text).unwrap();
        let recipients = vec![address(b"a@x"), address(b"b@x"), address(b"c@x")];
        let all = Transaction { xverp: None, recipients, dsn: Some(Box::new(dsn)), ..transaction(b"s@x") };
        for (offers, lines) in [
            (Offers::default(), "MAIL FROM:<s@x>\r\nRCPT TO:<a@x>\r\nRCPT TO:<b@x>\r\nRCPT TO:<c@x>\r\n"),
            (
                Offers { dsn: true, ..Offers::default() },
                "MAIL FROM:<s@x> RET=HDRS ENVID=x+20y\r\nRCPT TO:<a@x> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@x\r\n\
                 RCPT TO:<b@x>\r\nRCPT TO:<c@x> NOTIFY=NEVER\r\n",
            ),
        ] {
            let mut out = Vec::new();
            mail(&all, &offers, &mut out).unwrap();
            (0..4).for_each(|index| rcpt(&all, index, &offers, &mut out).unwrap());
            assert_eq!(String::from_utf8(out).unwrap(), lines);
        }
    }

    #[test]
    fn what_is_asked_for_of_the_transfer_is_said_to_who_offers_it() {
        use wire::{By, Priority};
        let (by, priority) = (By::parse(b"-7;NT"), Priority::new(-3));
        let asked = Transaction { xverp: None, by, priority, ..transaction(b"s@x") };
        for (deliver_by_min_s, priority, line) in [
            (None, false, "MAIL FROM:<s@x>\r\n"),
            (Some(0), false, "MAIL FROM:<s@x> BY=-7;NT\r\n"),
            (None, true, "MAIL FROM:<s@x> MT-PRIORITY=-3\r\n"),
        ] {
            let mut out = Vec::new();
            mail(&asked, &Offers { deliver_by_min_s, priority, ..Offers::default() }, &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), line);
        }
    }

    #[test]
    fn a_host_name_adds_no_line() {
        let mut out = Vec::new();
        hello("EHLO", "mx.example\r\nMAIL FROM:<>", &mut out);
        assert_eq!(out, b"EHLO mx.exampleMAILFROM:<>\r\n");
    }
}
