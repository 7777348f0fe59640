//! Addresses without a host or domain, completed in a header that otherwise stays as it is: what ofmipd does for mail programs that leave it
//! to their server.

use super::InjectError;
use super::addrlist::rewrite_field;
use super::fields::Known;
use super::qualify::{Qualifier, Texts};
use crate::header::fields;

/// The names that complete an address (qmail-header(5)).
pub struct Names {
    texts: Texts,
}

impl Names {
    /// `control/defaulthost`, `defaultdomain` and `plusdomain`.
    ///
    /// # Errors
    /// [`InjectError::Line`]: one of them cannot stand in an address.
    pub fn new(host: &[u8], domain: &[u8], plus: &[u8]) -> Result<Self, InjectError> {
        let texts = Texts::new(host, domain, plus);
        texts.qualifier()?;
        Ok(Self { texts })
    }

    /// The header, each field of addresses that lacks something written anew and all others as they are: so is what cannot be read.
    /// `None`: it would be longer than `len_max`, since two bytes can become a whole address.
    #[must_use]
    pub fn complete(&self, header: &[u8], len_max: usize) -> Option<Vec<u8>> {
        let qualifier = self.texts.qualifier().ok()?;
        let nothing = Qualifier::default();
        let mut out = Vec::with_capacity(header.len());
        for field in fields(header) {
            let raw = field.raw();
            let has_addresses = Known::of(raw).is_some_and(Known::has_addresses);
            match has_addresses.then(|| rewrite_field(raw, &qualifier)) {
                Some(Ok((text, found))) if !rewrite_field(raw, &nothing).is_ok_and(|(_, before)| before == found) => {
                    out.extend(text)
                }
                _ => out.extend_from_slice(raw),
            }
            if out.len() > len_max {
                return None;
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(header: &str) -> String {
        let names = Names::new(b"mail.example", b"example.net", b"plus.example").unwrap();
        let once = names.complete(header.as_bytes(), 1000).unwrap();
        assert_eq!(names.complete(&once, once.len()).unwrap(), once, "nothing is left to do");
        assert_eq!(names.complete(&once, once.len().saturating_sub(1)).is_none(), !once.is_empty());
        String::from_utf8(once).unwrap()
    }

    #[test]
    fn what_lacks_something_is_completed() {
        for (before, after) in [
            ("From: joe\n", "From: joe@mail.example\n"),
            ("to: Joe <joe>\n", "to: Joe <joe@mail.example>\n"),
            ("Cc: ann@host, bob@a.example,\n\tcy@far+\n", "Cc: ann@host.example.net, bob@a.example, cy@far.plus.example\n"),
            ("Reply-To: friends: ann, bob@x;\n", "Reply-To: friends: ann@mail.example, bob@x.example.net;\n"),
            ("Sender: joe (Joe)\nResent-To: a\n", "Sender: joe@mail.example (Joe)\nResent-To: a@mail.example\n"),
        ] {
            assert_eq!(completed(before), after);
        }
    }

    #[test]
    fn everything_else_stays_to_the_byte() {
        for header in [
            "",
            "From:   Joe   <joe@a.example>\nTo: a@[192.0.2.1],b@x.example ,\n c@y.example\n",
            "Subject: joe\nX-To: joe\nMessage-ID: <joe>\n",
            "From: <>\nTo: undisclosed-recipients:;\n",
            "To: \"no end\n",
            "no field\nFrom: joe@a.example\n",
        ] {
            assert_eq!(completed(header), header);
        }
    }

    #[test]
    fn a_name_that_is_none_is_an_error() {
        assert!(Names::new(b"a\"b", b"x", b"x").is_err() && Names::new(b"x", b"(", b"x").is_err());
    }
}
