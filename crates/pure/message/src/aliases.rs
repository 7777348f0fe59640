//! Address lists as sendmail's files have them: /etc/aliases, `.forward` and `:include:` files (newaliases(1), dot-forward(1)).
//!
//! An entry is read as an RFC 822 list, from right to left: a word that stands alone is an address, so is what stands in `<…>`, and a
//! comment or the words before a `<` are nobody's. `|…` is a command and `/…` a file if no `@` stands outside of quotes. The colon
//! behind the name of an alias only separates. The order in which targets are found is from right to left, as ever.
//! Never here: files, commands, what a target is good for.

use crate::rfc822::{Kind, Token, parse, unquote};

/// One target of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Unquoted; without a host it ends in `@` where there is none.
    Address(Vec<u8>),
    /// The command behind the bar.
    Program(Vec<u8>),
    /// A file to deliver to, which none of the programs do.
    File(Vec<u8>),
    /// The file of an `:include:`.
    Include(Vec<u8>),
}

/// What is no entry. Permanent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Quotes, comments or brackets without an end, or a NUL.
    Form,
    EmptyAddress,
    EmptyInclude,
}

/// The targets of an entry, from right to left.
///
/// # Errors
/// [`Fault`].
pub fn targets(entry: &[u8]) -> Result<Vec<Target>, Fault> {
    let mut list = List { rest: parse(entry).map_err(|_| Fault::Form)?, address: Vec::new(), found: Vec::new() };
    // May a word join the address to its right?
    let mut word_joins = true;
    while let Some(token) = list.rest.pop() {
        match token.kind {
            Kind::Semi | Kind::Comment => {}
            Kind::Colon => list.include_if_named()?,
            Kind::Right => {
                list.bracketed()?;
                word_joins = false;
            }
            Kind::Atom | Kind::Quote | Kind::Literal => {
                if !word_joins {
                    list.end_address_if_any()?;
                }
                word_joins = false;
                list.address.push(token);
            }
            Kind::Comma => {
                list.end_address_if_any()?;
                word_joins = true;
            }
            Kind::At | Kind::Dot | Kind::Left => {
                word_joins = true;
                list.address.push(token);
            }
        }
    }
    list.end_address_if_any()?;
    Ok(list.found)
}

struct List<'a> {
    rest: Vec<Token<'a>>,
    /// From right to left.
    address: Vec<Token<'a>>,
    found: Vec<Target>,
}

impl List<'_> {
    fn end_address_if_any(&mut self) -> Result<(), Fault> {
        if self.address.is_empty() { Ok(()) } else { self.end_address() }
    }

    fn take_text(&mut self) -> (Vec<u8>, bool) {
        let mut tokens = std::mem::take(&mut self.address);
        tokens.reverse();
        (unquote(&tokens), tokens.iter().any(|token| token.kind == Kind::At))
    }

    fn end_address(&mut self) -> Result<(), Fault> {
        let (mut text, has_host) = self.take_text();
        self.found.push(match text.first() {
            None => return Err(Fault::EmptyAddress),
            Some(b'/') if !has_host => Target::File(text),
            Some(b'|') if !has_host => Target::Program(text.split_off(1)),
            Some(_) => {
                if !has_host {
                    text.push(b'@');
                }
                Target::Address(text)
            }
        });
        Ok(())
    }

    /// `<…>`, and the words before it that are no address.
    fn bracketed(&mut self) -> Result<(), Fault> {
        self.end_address_if_any()?;
        loop {
            let token = self.rest.pop().ok_or(Fault::Form)?;
            if token.kind == Kind::Left {
                break;
            }
            self.address.push(token);
        }
        self.end_address()?;
        let is_phrase =
            |token: &mut Token<'_>| matches!(token.kind, Kind::Comment | Kind::Atom | Kind::Quote | Kind::At | Kind::Dot);
        while self.rest.pop_if(is_phrase).is_some() {}
        Ok(())
    }

    /// Behind a colon: was it `:include:`? Then what follows it is the name of a file.
    fn include_if_named(&mut self) -> Result<(), Fault> {
        let is_include = matches!(self.rest.as_slice(),
            [.., colon, word] if colon.kind == Kind::Colon && word.kind == Kind::Atom && *word.text == *b"include");
        if !is_include {
            return Ok(());
        }
        let rest_len = self.rest.len().saturating_sub(2);
        self.rest.truncate(rest_len);
        let (text, _) = self.take_text();
        if text.is_empty() {
            return Err(Fault::EmptyInclude);
        }
        self.found.push(Target::Include(text));
        Ok(())
    }
}

/// The names that complete an address, as qmail-inject has them.
#[derive(Debug, Clone, Copy)]
pub struct Hosts<'a> {
    pub default_host: &'a [u8],
    pub default_domain: &'a [u8],
    pub plus_domain: &'a [u8],
}

/// `user@` → `user@defaulthost`, `host+` → `host.plusdomain`, a host without a dot gets the default domain.
#[must_use]
pub fn complete(address: &[u8], hosts: Hosts<'_>) -> Vec<u8> {
    let mut full = address.to_vec();
    if full.ends_with(b"@") {
        full.extend_from_slice(hosts.default_host);
    }
    if full.pop_if(|last| *last == b'+').is_some() {
        full.push(b'.');
        full.extend_from_slice(hosts.plus_domain);
    }
    let at = memchr::memrchr(b'@', &full).unwrap_or(0);
    if !full.get(at..).unwrap_or_default().contains(&b'.') {
        full.push(b'.');
        full.extend_from_slice(hosts.default_domain);
    }
    full
}

/// Entries of a table whose lines may go on: a line that begins with a blank, or is empty, belongs to the one before it. Comments, lines
/// that begin with `#`, go on in the same way and are left out. A last line without its end counts.
#[must_use]
pub fn entries(text: &[u8]) -> Vec<Vec<u8>> {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for line in text.split_inclusive(|b| *b == b'\n') {
        match (line.first(), entries.last_mut()) {
            (Some(b'\n'), _) => {}
            (Some(b' ' | b'\t'), Some(entry)) => entry.extend_from_slice(line),
            _ => entries.push(line.to_vec()),
        }
    }
    entries.retain(|entry| entry.first() != Some(&b'#'));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entry: &str) -> String {
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        match targets(entry.as_bytes()) {
            Ok(list) => {
                let show = |target: &Target| match target {
                    Target::Address(a) => format!("&{}", text(a)),
                    Target::Program(p) => format!("|{}", text(p)),
                    Target::File(f) => format!("file {}", text(f)),
                    Target::Include(i) => format!("include {}", text(i)),
                };
                list.iter().map(show).collect::<Vec<_>>().join(" ")
            }
            Err(fault) => format!("{fault:?}"),
        }
    }

    #[test]
    fn entries_of_all_kinds() {
        for (entry, expected) in [
            ("", ""),
            ("user: a, b@c\n", "&b@c &a@ &user@"),
            ("user a b", "&b@ &a@ &user@"),
            ("x: Joe Shmoe <shmoe@h>\n", "&shmoe@h &x@"),
            ("x: bob (Bob, the postmaster) @h.x", "&bob@h.x &x@"),
            ("x: \"a b\"@c, \"|cmd x\"", "|cmd x &a b@c &x@"),
            ("x: |cmd", "|cmd &x@"),
            ("x: \"|a@b\"", "|a@b &x@"),
            ("x: |a@b", "&|a@b &x@"),
            ("x: /var/mail/y", "file /var/mail/y &x@"),
            ("x: :include:/etc/list.x", "include /etc/list.x &x@"),
            ("x: : include : \"a b\"", "include a b &x@"),
            ("@x.y: z", "&z@ &@x.y"),
            ("x: <>", "EmptyAddress"),
            ("x: :include:", "EmptyInclude"),
            ("x: a>", "Form"),
            ("x: \"a", "Form"),
            ("\\joe", "&joe@"),
            ("z Fred Foo <q@r+>", "&q@r+"),
        ] {
            assert_eq!(read(entry), expected, "{entry}");
        }
    }

    #[test]
    fn names_are_completed() {
        let hosts = Hosts { default_host: b"dh.x", default_domain: b"dd.x", plus_domain: b"pd.x" };
        for (address, full) in
            [("a@", "a@dh.x"), ("a@b", "a@b.dd.x"), ("a@b+", "a@b.pd.x"), ("a@b.c", "a@b.c"), ("a.b@c", "a.b@c.dd.x")]
        {
            assert_eq!(complete(address.as_bytes(), hosts), full.as_bytes());
        }
        let bare = Hosts { default_host: b"dh", ..hosts };
        assert_eq!(complete(b"a@", bare), b"a@dh.dd.x");
    }

    #[test]
    fn lines_go_on() {
        let text = b"# c\n more\na: b,\n\n  c\nd: e\n#x\nf";
        assert_eq!(entries(text), [b"a: b,\n  c\n".to_vec(), b"d: e\n".to_vec(), b"f".to_vec()]);
        assert!(entries(b"").is_empty());
    }
}
