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
    if let Some([delimiter, equals]) = transaction.xverp
        && offers.xverp
        && delimiter.is_ascii_graphic()
        && equals.is_ascii_graphic()
    {
        out.extend_from_slice(&[b' ', b'X', b'V', b'E', b'R', b'P', b'=', delimiter, equals]);
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// `RCPT TO:<…>`.
pub(super) fn rcpt(recipient: &Address, out: &mut Vec<u8>) -> Result<(), PathError> {
    let path = path(recipient)?;
    out.extend_from_slice(b"RCPT TO:");
    out.extend_from_slice(&path);
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
            let result = rcpt(&Address::new(address).unwrap(), &mut out);
            assert_eq!(result.map(|()| String::from_utf8(out).unwrap()), expected.map(str::to_owned));
        }
    }

    #[test]
    fn a_host_name_adds_no_line() {
        let mut out = Vec::new();
        hello("EHLO", "mx.example\r\nMAIL FROM:<>", &mut out);
        assert_eq!(out, b"EHLO mx.exampleMAILFROM:<>\r\n");
    }
}
