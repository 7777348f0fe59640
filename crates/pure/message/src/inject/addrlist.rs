//! A field of addresses taken apart, each address rewritten, and put together again.
//!
//! RFC 822 address lists are easy to read from right to left: the tokens that come before an `@` or inside `<…>` are known to be an
//! address when their end is seen. So the order in which addresses are found is from right to left, as in the classic program.

use super::qualify::Qualifier;
use crate::header::field_name;
use crate::rfc822::{Kind, Token, Unparsable, parse, unparse, unquote};

/// Fields are refolded to this (qmail-header(5)); RFC 5322 §2.1.1 recommends 78 and the classic algorithm stays two below.
pub const LINE_LEN_MAX: usize = 80;

/// Unquoted addresses in the order in which they were found.
pub(super) type Found = Vec<Vec<u8>>;

/// A field that cannot be read as a list of addresses.
pub(super) struct Unreadable {
    pub reason: Unparsable,
    /// The addresses found before the field stopped making sense.
    pub found: Found,
}

/// The rewritten field and the addresses in it.
pub(super) fn rewrite_field<'a>(raw: &'a [u8], qualifier: &Qualifier<'a>) -> Result<(Vec<u8>, Found), Unreadable> {
    let unreadable = |reason, found| Unreadable { reason, found };
    // The name is no text to be read: a form feed behind it would become part of a quoted string.
    let (name, body) = split_name(raw).ok_or_else(|| unreadable(Unparsable::Form, Vec::new()))?;
    let rest = parse(body).map_err(|reason| unreadable(reason, Vec::new()))?;
    let mut list =
        List { rest, out: Vec::new(), address: Vec::new(), qualifier: Some(qualifier), found: Vec::new(), in_group: false };
    if list.read().is_none() {
        return Err(unreadable(Unparsable::Form, list.found));
    }
    list.out.extend([Token::special(Kind::Colon), Token::text(Kind::Atom, name)]);
    list.out.reverse();
    Ok((unparse(&list.out, LINE_LEN_MAX), list.found))
}

/// The addresses of a field, unquoted and with nothing added, from right to left; `None` if it cannot be read as a list of addresses.
#[must_use]
pub fn addresses(value: &[u8]) -> Option<Vec<Vec<u8>>> {
    let rest = parse(value).ok()?;
    let mut list = List { rest, out: Vec::new(), address: Vec::new(), qualifier: None, found: Vec::new(), in_group: false };
    list.read()?;
    Some(list.found)
}

/// The name of a field, without blanks behind it, and what follows its colon.
fn split_name(raw: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = memchr::memchr(b':', raw)?;
    Some((field_name(raw)?, raw.get(colon.checked_add(1)?..)?))
}

/// The list under work. `out` and `address` grow from right to left.
struct List<'q, 'a> {
    rest: Vec<Token<'a>>,
    out: Vec<Token<'a>>,
    address: Vec<Token<'a>>,
    /// Completes the addresses.
    qualifier: Option<&'q Qualifier<'a>>,
    found: Vec<Vec<u8>>,
    in_group: bool,
}

impl<'a> List<'_, 'a> {
    /// Reads all; `None` if group marks or brackets do not pair.
    fn read(&mut self) -> Option<()> {
        // May a word join the address to its right? After a word or a bracket it may not: then a comma is missing.
        let mut word_joins = true;
        while let Some(token) = self.rest.pop() {
            match token.kind {
                Kind::Semi => {
                    self.end_address_with_comma();
                    if std::mem::replace(&mut self.in_group, true) {
                        return None;
                    }
                    self.out.push(token);
                    word_joins = true;
                }
                Kind::Colon => {
                    self.end_address_if_any();
                    if !std::mem::replace(&mut self.in_group, false) {
                        return None;
                    }
                    self.group_name(token);
                    word_joins = true;
                }
                Kind::Right => {
                    self.end_address_with_comma();
                    self.bracketed(token)?;
                    word_joins = false;
                }
                Kind::Atom | Kind::Quote | Kind::Literal => {
                    if !word_joins {
                        self.end_address_with_comma();
                    }
                    self.address.push(token);
                    word_joins = false;
                }
                // A comment is lexically a blank.
                Kind::Comment => self.out.push(token),
                Kind::Comma => {
                    self.end_address_if_any();
                    self.out.push(token);
                    word_joins = true;
                }
                Kind::Left | Kind::At | Kind::Dot => {
                    self.address.push(token);
                    word_joins = true;
                }
            }
        }
        self.end_address_if_any();
        Some(())
    }

    /// The colon, the words before it and the comma that ends what stands before the group.
    fn group_name(&mut self, colon: Token<'a>) {
        self.out.push(colon);
        while let Some(token) = self.rest.pop() {
            let is_comma = token.kind == Kind::Comma;
            self.out.push(token);
            if is_comma {
                break;
            }
        }
    }

    /// `phrase <address>` from its right end on.
    fn bracketed(&mut self, right: Token<'a>) -> Option<()> {
        self.out.push(right);
        let left = loop {
            match self.rest.pop() {
                Some(token) if token.kind == Kind::Left => break Some(token),
                Some(token) => self.address.push(token),
                None => break None,
            }
        };
        // Even an empty address counts here: <>.
        self.end_address();
        self.out.push(left?);
        while let Some(token) =
            self.rest.pop_if(|t| matches!(t.kind, Kind::Comment | Kind::Atom | Kind::Quote | Kind::At | Kind::Dot))
        {
            self.out.push(token);
        }
        Some(())
    }

    fn end_address_if_any(&mut self) {
        if !self.address.is_empty() {
            self.end_address();
        }
    }

    fn end_address_with_comma(&mut self) {
        if !self.address.is_empty() {
            self.end_address();
            self.out.push(Token::special(Kind::Comma));
        }
    }

    fn end_address(&mut self) {
        self.address.reverse();
        if let Some(qualifier) = self.qualifier {
            qualifier.qualify(&mut self.address);
        }
        self.found.push(unquote(&self.address));
        self.out.extend(self.address.drain(..).rev());
    }
}
