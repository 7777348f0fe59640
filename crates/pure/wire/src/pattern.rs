//! Lists of addresses and names that are refused (`control/badmailfrom`, `badrcptto`, `badhelo` …), a pattern a line.
//!
//! - `user@domain` and `@domain`, of letters, digits and `. - _ + = /` alone, are that address and everybody there, exactly;
//! - a line that begins with `*` stands for the whole, `*` for any bytes and `?` for one;
//! - every other line is an extended regular expression ([`crate::ere`]), which may be anywhere in the text;
//! - `!` before any of these: whatever the rest does not fit.
//!
//! Case never counts in what is looked at; an expression itself is read as it is written, since `[:ALPHA:]` is no class. All expressions of
//! a list together have at most [`EXPRESSIONS_MAX`]. (qmail-family §2.1 badmailfrom, §2.2 and §5.1 qregex.)

use std::collections::BTreeSet;

use crate::ere::Ere;

/// What a list holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patterns {
    plain: BTreeSet<Box<[u8]>>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    is_negated: bool,
    form: Form,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Plain(Box<[u8]>),
    Wildcard(Box<[u8]>),
    Expression(Ere),
}

/// Memory of all expressions of a list, in bytes.
pub const EXPRESSIONS_MAX: usize = 32 * 1024 * 1024;

/// A line that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatternError {
    pub line: Vec<u8>,
    /// What is wrong with it, as in `the line …`.
    pub problem: &'static str,
}

impl Patterns {
    /// Reads lines, comments taken out.
    ///
    /// # Errors
    /// The first line that is no pattern; permanent.
    pub fn parse<L: AsRef<[u8]>>(lines: impl IntoIterator<Item = L>) -> Result<Self, PatternError> {
        let mut patterns = Self::default();
        let mut bytes = 0usize;
        for line in lines {
            let line = line.as_ref();
            let wrong = |problem| PatternError { line: line.to_vec(), problem };
            let (is_negated, text) = line.strip_prefix(b"!").map_or((false, line), |rest| (true, rest));
            if text.is_empty() {
                return Err(wrong("is empty: it would fit everything"));
            }
            let form = match () {
                () if is_plain(text) => Form::Plain(text.to_ascii_lowercase().into()),
                () if text.starts_with(b"*") => Form::Wildcard(text.to_ascii_lowercase().into()),
                () => Form::Expression(Ere::new(text).map_err(wrong)?),
            };
            if let Form::Expression(expression) = &form {
                bytes = bytes.saturating_add(expression.bytes());
                if bytes > EXPRESSIONS_MAX {
                    return Err(wrong("is too much together with the expressions above it"));
                }
            }
            match form {
                Form::Plain(text) if !is_negated => drop(patterns.plain.insert(text)),
                form => patterns.rules.push(Rule { is_negated, form }),
            }
        }
        Ok(patterns)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.rules.is_empty()
    }

    /// Does a line fit?
    #[must_use]
    pub fn fit(&self, text: &[u8]) -> bool {
        if self.is_empty() {
            return false;
        }
        let text = text.to_ascii_lowercase();
        let is_plain = |plain: &[u8]| plain == text || at_domain(&text).is_some_and(|domain| plain == domain);
        self.plain.contains(&text[..])
            || at_domain(&text).is_some_and(|domain| self.plain.contains(domain))
            || self.rules.iter().any(|rule| {
                let fits = match &rule.form {
                    Form::Plain(plain) => is_plain(plain),
                    Form::Wildcard(wildcard) => is_like(wildcard, &text),
                    Form::Expression(expression) => expression.is_in(&text),
                };
                fits != rule.is_negated
            })
    }
}

/// `@domain` of an address.
fn at_domain(address: &[u8]) -> Option<&[u8]> {
    address.iter().rposition(|b| *b == b'@').and_then(|at| address.get(at..))
}

fn is_plain(text: &[u8]) -> bool {
    let is_ordinary = |part: &[u8]| part.iter().all(|b| b.is_ascii_alphanumeric() || b"._+=/-".contains(b) || *b >= 0x80);
    at_domain(text).is_some_and(|domain| {
        let local = text.get(..text.len().saturating_sub(domain.len())).unwrap_or_default();
        domain.len() > 1 && is_ordinary(local) && is_ordinary(domain.get(1..).unwrap_or_default())
    })
}

/// `*` for any bytes, `?` for one. Only the last `*` is ever gone back to, so the time is bounded by the product of the lengths.
fn is_like(wildcard: &[u8], text: &[u8]) -> bool {
    let (mut w, mut t) = (0usize, 0usize);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match wildcard.get(w) {
            Some(b'*') => {
                star = Some((w, t));
                w = w.saturating_add(1);
            }
            Some(b) if *b == b'?' || Some(b) == text.get(t) => {
                w = w.saturating_add(1);
                t = t.saturating_add(1);
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from.saturating_add(1)));
                w = at.saturating_add(1);
                t = from.saturating_add(1);
            }
        }
    }
    wildcard.get(w..).is_none_or(|rest| rest.iter().all(|b| *b == b'*'))
}

/// Recipients that there are (`control/validrcptto`, `morevalidrcptto.cdb`): whoever is not listed is refused.
#[derive(Debug, Clone, Default)]
pub struct ValidRecipients {
    names: BTreeSet<Box<[u8]>>,
    databases: Vec<Box<[u8]>>,
}

/// A database's data for a name is not looked at; nothing longer is read.
const DATA_LEN_MAX: usize = 64;

impl ValidRecipients {
    /// `names`: `user@domain`, `@domain`, and with a `-` before them who is not; `databases`: the same as keys, in lower case.
    pub fn new<N: AsRef<[u8]>>(names: impl IntoIterator<Item = N>, databases: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let names = names.into_iter().map(|name| name.as_ref().to_ascii_lowercase().into()).collect();
        Self { names, databases: databases.into_iter().map(Vec::into_boxed_slice).collect() }
    }

    /// Is the recipient listed? An address without a domain is not what such lists are about: yes.
    ///
    /// # Errors
    /// Temporary: a database is damaged.
    pub fn contains(&self, recipient: &[u8]) -> std::io::Result<bool> {
        let address = recipient.to_ascii_lowercase();
        let Some(domain) = at_domain(&address) else { return Ok(true) };
        // The address before its domain, yes before no.
        for (name, is_valid) in [(&address[..], true), (&address, false), (domain, true), (domain, false)] {
            let key = if is_valid { name.to_vec() } else { [b"-", name].concat() };
            if self.has(&key)? {
                return Ok(is_valid);
            }
        }
        Ok(false)
    }

    fn has(&self, key: &[u8]) -> std::io::Result<bool> {
        if self.names.contains(key) {
            return Ok(true);
        }
        for database in &self.databases {
            if crate::cdb::find(&database[..], key, DATA_LEN_MAX)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_line() {
        for (line, text, fits) in [
            ("Joe@Example.org", "joe@example.ORG", true),
            ("joe@example.org", "jo@example.org", false),
            ("joe@example.org", "xjoe@example.org", false),
            ("joe+x@example.org", "joe+x@example.org", true),
            ("@spam.example", "x@spam.example", true),
            ("@spam.example", "x@a.spam.example", false),
            ("@spam.example", "x@spam.example.org", false),
            ("*@spam.example", "x@spam.example", true),
            ("*.spam.example", "x@a.spam.example", true),
            ("*.spam.example", "x@a.spam.example.org", false),
            ("*@?.example", "x@ab.example", false),
            ("*a*b", "a@xab", true),
            ("*a*b", "a@xac", false),
            ("bad.domain.com", "x@bad.domain.com", true),
            ("bad.domain.com", "x@badXdomain.com.example", true),
            (".*%.*", "a%b@c", true),
            ("^..?@", "ab@c", true),
            ("!@", "joe", true),
            ("!@", "joe@x", false),
            ("!\\.", "localhost", true),
            ("!\\.", "a.b", false),
            ("!@ours.example", "joe@ours.example", false),
            ("!@ours.example", "joe@other.example", true),
            ("!*.ours.example", "joe@a.ours.example", false),
            ("[!%]", "a!b@c", true),
            ("\\.(xyz|top)$", "a@b.TOP", true),
            ("\\.(XYZ|TOP)$", "a@b.Top", true),
            ("^[[:upper:]]+@X$", "abc@x", true),
            ("^[A-z]@", "_@x", true),
            ("^[a-z]@", "_@x", false),
            ("^[Z-a]@", "_@x", true),
            ("^[^A]@", "a@x", false),
        ] {
            assert_eq!(Patterns::parse([line]).unwrap().fit(text.as_bytes()), fits, "{line} {text}");
        }
        assert!(!Patterns::default().fit(b"x@y"));
        let error = Patterns::parse(["a@b", "x(y"]).unwrap_err();
        assert_eq!((&error.line[..], error.problem), (&b"x(y"[..], "has a `(` without `)`"));
        assert!(Patterns::parse(["!"]).is_err());
        for bad in ["[[:ALPHA:]]", "x\\S", "((a{255}){255}){255}"] {
            assert!(Patterns::parse([bad]).is_err(), "{bad}");
        }
        let large = "(x{255}){16}";
        assert!(Patterns::parse(vec![large; 100]).is_ok());
        let error = Patterns::parse(vec![large; 300]).unwrap_err();
        assert!(error.problem.contains("together"), "{}", error.problem);
    }

    #[test]
    fn valid_recipients_by_address_and_domain() {
        let mut writer = crate::cdb::Writer::new();
        writer.add(b"more@a.example", b"");
        writer.add(b"-no@all.example", b"");
        let valid = ValidRecipients::new(["Joe@a.example", "@all.example", "-@never.example"], writer.finish());
        for (recipient, is_valid) in [
            ("joe@A.example", true),
            ("more@a.example", true),
            ("other@a.example", false),
            ("x@all.example", true),
            ("no@all.example", false),
            ("x@never.example", false),
            ("postmaster", true),
        ] {
            assert_eq!(valid.contains(recipient.as_bytes()).unwrap(), is_valid, "{recipient}");
        }
        assert!(ValidRecipients::new([""; 0], [b"no cdb".to_vec()]).contains(b"a@b").is_err());
    }
}
