//! control/authsources: who judges a login, a source a line, asked one after the other.

use crate::{ControlError, Root};

/// The file's name.
pub const FILE: &str = "authsources";

/// Who can judge a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The accounts of this host.
    Accounts,
    /// control/ldap, by qmail-authnet.
    Ldap,
}

/// The sources of passwords, in their order, and whether tokens are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    pub passwords: Vec<Source>,
    /// control/oauth, by qmail-authnet.
    pub oauth: bool,
}

impl Sources {
    /// Do the accounts judge anything? Without that line what they hold opens nothing.
    #[must_use]
    pub fn has_accounts(&self) -> bool {
        self.passwords.contains(&Source::Accounts)
    }

    /// Reads the bytes of the file; a missing one means the accounts alone.
    ///
    /// # Errors
    /// A line that names no source; temporary.
    pub fn parse(text: Option<&[u8]>) -> Result<Self, String> {
        let Some(text) = text else { return Ok(Self { passwords: vec![Source::Accounts], oauth: false }) };
        let mut sources = Self { passwords: Vec::new(), oauth: false };
        for line in crate::read::lines_of(text) {
            match line.trim_ascii() {
                b"accounts" => sources.passwords.push(Source::Accounts),
                b"ldap" => sources.passwords.push(Source::Ldap),
                b"oauth" => sources.oauth = true,
                other => return Err(format!("`{}` is no source; there are accounts, ldap, oauth", wire::escape::visible(other))),
            }
        }
        Ok(sources)
    }
}

/// Is there a source that qmail-authnet serves? Without one it is not started.
///
/// # Errors
/// Unreadable; temporary.
pub fn is_wanted(root: &Root) -> Result<bool, ControlError> {
    Ok(wants(root, "ldap")? || wants(root, "oauth")?)
}

/// Does a line begin with this word?
///
/// # Errors
/// Unreadable; temporary.
pub fn wants(root: &Root, source: &str) -> Result<bool, ControlError> {
    let lines = root.lines(FILE)?.unwrap_or_default();
    let first = |line: &[u8]| line.trim_ascii_start().split(u8::is_ascii_whitespace).next() == Some(source.as_bytes());
    Ok(lines.iter().any(|line| first(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_in_their_order() {
        let parse = |text: &str| Sources::parse(Some(text.as_bytes()));
        assert_eq!(Sources::parse(None).unwrap().passwords, [Source::Accounts]);
        assert_eq!(
            parse("ldap\n# no\noauth \naccounts\n").unwrap(),
            Sources { passwords: vec![Source::Ldap, Source::Accounts], oauth: true }
        );
        assert_eq!(parse("").unwrap().passwords, []);
        assert!(parse("ldaps\n").unwrap_err().contains("`ldaps` is no source"));
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        assert_eq!(is_wanted(&root), Ok(false));
        for (text, wanted) in [("accounts\n", false), ("#ldap\nldapx\n", false), ("accounts\nldap\n", true), (" oauth x\n", true)]
        {
            std::fs::write(root.control_file(FILE), text).unwrap();
            assert_eq!(is_wanted(&root), Ok(wanted), "{text}");
        }
    }
}
