//! The rewriting of one address: source routes, missing hosts, plus signs, missing domains (qmail-header(5)).

use std::borrow::Cow;

use super::{InjectError, Options};
use crate::rfc822::{self, Kind, Token};

/// `@defaulthost`, `.defaultdomain` and `.plusdomain` as text; it owns what [`Qualifier`] borrows.
pub(super) struct Texts {
    host: Vec<u8>,
    domain: Vec<u8>,
    plus: Vec<u8>,
}

impl Texts {
    pub(super) fn of(options: &Options) -> Self {
        Self::new(&options.default_host, &options.default_domain, &options.plus_domain)
    }

    pub(super) fn new(host: &[u8], domain: &[u8], plus: &[u8]) -> Self {
        Self { host: [b"@", host].concat(), domain: [b".", domain].concat(), plus: [b".", plus].concat() }
    }

    pub(super) fn qualifier(&self) -> Result<Qualifier<'_>, InjectError> {
        fn read(text: &[u8]) -> Result<Vec<Token<'_>>, InjectError> {
            rfc822::parse(text).map_err(|_| InjectError::Line(text.to_vec()))
        }
        Ok(Qualifier { host: read(&self.host)?, domain: read(&self.domain)?, plus: read(&self.plus)? })
    }
}

/// Completes addresses. The default adds nothing.
#[derive(Default)]
pub(super) struct Qualifier<'a> {
    host: Vec<Token<'a>>,
    domain: Vec<Token<'a>>,
    plus: Vec<Token<'a>>,
}

impl<'a> Qualifier<'a> {
    /// Rewrites one address in place; `<>` and anything at the empty literal (`foo@[]`) stay.
    pub(super) fn qualify(&self, address: &mut Vec<Token<'a>>) {
        if address.is_empty() || ends_in_empty_literal(address) {
            return;
        }
        strip_source_route(address);
        pop_if(address, Kind::Dot);
        pop_if(address, Kind::At);
        if address.is_empty() {
            return;
        }
        if !address.iter().any(|t| t.kind == Kind::At) {
            address.extend_from_slice(&self.host);
        }
        self.complete_plus(address);
        self.complete_domain(address);
        relax_utf8(address);
    }

    /// `host+` → `host.plusdomain`.
    fn complete_plus(&self, address: &mut Vec<Token<'a>>) {
        let Some(last) = address.last_mut().filter(|t| t.kind == Kind::Atom) else { return };
        if let Some(stripped) = last.text.strip_suffix(b"+") {
            last.text = Cow::Owned(stripped.to_vec());
            address.extend_from_slice(&self.plus);
        }
    }

    /// A host with neither dot nor literal gets the default domain.
    fn complete_domain(&self, address: &mut Vec<Token<'a>>) {
        let mut host = address.iter().rev().take_while(|t| t.kind != Kind::At);
        if !host.any(|t| matches!(t.kind, Kind::Dot | Kind::Literal)) {
            address.extend_from_slice(&self.domain);
        }
    }
}

fn ends_in_empty_literal(address: &[Token<'_>]) -> bool {
    matches!(address, [.., at, literal] if at.kind == Kind::At && literal.kind == Kind::Literal && literal.text.is_empty())
}

/// `@a,@b:user@host` → `user@host` (RFC 5321 §4.1.1.3); with no colon nothing is left.
fn strip_source_route(address: &mut Vec<Token<'_>>) {
    if address.first().is_some_and(|t| t.kind == Kind::At) {
        let colon = address.iter().position(|t| t.kind == Kind::Colon);
        address.drain(..colon.map_or(address.len(), |at| at.saturating_add(1)));
    }
}

fn pop_if(address: &mut Vec<Token<'_>>, kind: Kind) {
    address.pop_if(|t| t.kind == kind);
}

/// Words in valid UTF-8 need no quotes in an address (RFC 6531 §3.3), and a domain may have none.
fn relax_utf8(address: &mut [Token<'_>]) {
    let is_atext = |b: u8| !b.is_ascii() || b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b);
    for token in address.iter_mut().filter(|t| t.kind == Kind::Quote && !t.text.is_ascii()) {
        if std::str::from_utf8(&token.text).is_ok() && token.text.iter().all(|b| is_atext(*b)) {
            token.kind = Kind::Atom;
        }
    }
}
