//! Who is refused by name: the lists of qmail-smtpd (qmail-family §2.1, §2.2).
//!
//! | file | who |
//! |---|---|
//! | `badmailfrom`, `badmailfromnorelay` | envelope senders; the second: of clients that may not relay |
//! | `badrcptto` and `badmailto`, `badrcpttonorelay` | recipients; likewise |
//! | `badhelo`, `badhelonorelay` | names in HELO; likewise |
//! | `validrcptto`, `validrcptto.cdb`, `morevalidrcptto.cdb` | recipients that there are: all others are refused to clients that may not relay |
//! | `rejectnullsenders` | not 0: mail from `<>` gets 450 |
//! | `rejectrelaytest` | not 0: recipients with `%`, `!` or `@` in the local part are refused to clients that may not relay |
//!
//! A line that is no pattern ([`wire::pattern`]) is an error with its file: never a refusal less.

use wire::{Patterns, ValidRecipients};

use crate::{ControlError, Root};

/// The lists.
#[derive(Debug, Clone, Default)]
pub struct Refusals {
    pub bad_senders: Patterns,
    pub bad_senders_of_strangers: Patterns,
    pub bad_recipients: Patterns,
    pub bad_recipients_of_strangers: Patterns,
    pub bad_helos: Patterns,
    pub bad_helos_of_strangers: Patterns,
    /// `None`: they are not listed.
    pub valid_recipients: Option<ValidRecipients>,
    pub null_senders: bool,
    pub relay_tests: bool,
}

impl Refusals {
    /// # Errors
    /// Unreadable, or a line that is no pattern; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let is_set = |name: &str| Ok::<_, ControlError>(root.int(name)?.unwrap_or(0) > 0);
        Ok(Self {
            bad_senders: patterns(root, &["badmailfrom"])?,
            bad_senders_of_strangers: patterns(root, &["badmailfromnorelay"])?,
            bad_recipients: patterns(root, &["badrcptto", "badmailto"])?,
            bad_recipients_of_strangers: patterns(root, &["badrcpttonorelay"])?,
            bad_helos: patterns(root, &["badhelo"])?,
            bad_helos_of_strangers: patterns(root, &["badhelonorelay"])?,
            valid_recipients: valid_recipients(root)?,
            null_senders: is_set("rejectnullsenders")?,
            relay_tests: is_set("rejectrelaytest")?,
        })
    }
}

fn patterns(root: &Root, names: &[&str]) -> Result<Patterns, ControlError> {
    let mut lines = Vec::new();
    for name in names {
        let of_file = root.lines(name)?.unwrap_or_default();
        Patterns::parse(&of_file).map_err(|error| {
            let problem = format!("the line `{}` {}; see qmail-control(5)", wire::escape::visible(&error.line), error.problem);
            ControlError::new(&root.control_file(name), problem)
        })?;
        lines.extend(of_file);
    }
    Ok(Patterns::parse(lines).unwrap_or_default())
}

fn valid_recipients(root: &Root) -> Result<Option<ValidRecipients>, ControlError> {
    let names = root.lines("validrcptto")?;
    let mut databases = Vec::new();
    for name in ["validrcptto.cdb", "morevalidrcptto.cdb"] {
        let Some(database) = root.text(name)? else { continue };
        if wire::cdb::find(&database[..], b"", 1).is_err() {
            return Err(ControlError::new(&root.control_file(name), "is no cdb; make it again"));
        }
        databases.push(database);
    }
    let is_listed = names.is_some() || !databases.is_empty();
    Ok(is_listed.then(|| ValidRecipients::new(names.unwrap_or_default(), databases)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        for (name, text) in files {
            std::fs::write(root.control_file(name), text).unwrap();
        }
        (dir, root)
    }

    #[test]
    fn every_file_counts() {
        let mut writer = wire::cdb::Writer::new();
        writer.add(b"b@x.example", b"");
        let database = writer.finish().unwrap();
        let (_dir, root) = root(&[
            ("badmailfrom", b"# c\n@bad.example\n"),
            ("badmailto", b"a@x\n"),
            ("badrcptto", b"^b@\n"),
            ("validrcptto", b"a@x.example\n"),
            ("morevalidrcptto.cdb", &database),
            ("rejectnullsenders", b"1\n"),
        ]);
        let refusals = Refusals::read(&root).unwrap();
        assert!(refusals.bad_senders.fit(b"x@bad.example") && refusals.bad_senders_of_strangers.is_empty());
        assert!(
            refusals.bad_recipients.fit(b"a@x") && refusals.bad_recipients.fit(b"b@y") && !refusals.bad_recipients.fit(b"c@y")
        );
        let valid = refusals.valid_recipients.unwrap();
        let found = ["a@x.example", "b@x.example", "c@x.example"].map(|name| valid.contains(name.as_bytes()).unwrap());
        assert_eq!(found, [true, true, false]);
        assert!(refusals.null_senders && !refusals.relay_tests);
        let none = Refusals::read(&self::root(&[]).1).unwrap();
        assert!(none.valid_recipients.is_none() && none.bad_helos.is_empty());
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        for (file, text, problem) in [
            ("badhelo", &b"a(b\n"[..], "control/badhelo: the line `a(b` has a `(` without `)`"),
            ("badmailfromnorelay", b"ok@x\n!\n", "control/badmailfromnorelay: the line `!` is empty"),
            ("validrcptto.cdb", b"text", "is no cdb"),
        ] {
            let (_dir, root) = root(&[(file, text)]);
            let error = Refusals::read(&root).unwrap_err();
            assert!(error.is_temporary() && error.to_string().contains(problem), "{error}");
        }
    }
}
