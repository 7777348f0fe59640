//! Programs that qmail-smtpd has a say in: `control/smtpplugins`, and what `control/listen` (`queue=`, `rcptcheck=`) and `control/tcp.smtp`
//! (QMAILQUEUE, RCPTCHECK) name. qmail-hook runs these and no others.
//!
//! `smtpplugins` has the sections of qmail-spp: `[connection]`, `[helo]`, `[mail]`, `[rcpt]`, `[data]`, `[auth]`, and below each a program a
//! line, as a path, below var/qmail unless it begins with `/`, or `:COMMAND` for /bin/sh. It is root's file.

use std::collections::BTreeSet;
use std::path::Path;

use crate::{ClientRules, ControlError, Root, read};

/// The file of plugins.
pub const FILE: &str = "smtpplugins";
/// Sections, in the order of a session.
pub const SECTIONS: [&str; 6] = ["connection", "helo", "mail", "rcpt", "data", "auth"];
/// Programs of a section; more would hold up each command for too long.
const PLUGINS_MAX: usize = 32;

/// Plugins by section, by their number in [`SECTIONS`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plugins(pub [Vec<Vec<u8>>; 6]);

impl Plugins {
    /// # Errors
    /// Unreadable, not root's, a section that is none, a program before any section; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        Self::of(&root.control_file(FILE))
    }

    /// As [`Plugins::read`], of another file.
    ///
    /// # Errors
    /// As [`Plugins::read`].
    pub fn of(path: &Path) -> Result<Self, ControlError> {
        let Some(text) = read::owned_file(path)? else { return Ok(Self::default()) };
        let mut plugins = Self::default();
        let mut section = None;
        for line in read::lines_of(&text) {
            let wrong = |why: &str| ControlError::new(path, format!("the line `{}` {why}", wire::escape::visible(&line)));
            if let Some(name) = line.strip_prefix(b"[") {
                let name = name.strip_suffix(b"]").unwrap_or(name);
                let number = SECTIONS.iter().position(|known| known.as_bytes() == name);
                section = Some(
                    number.ok_or_else(|| wrong("is no section; there are [connection] [helo] [mail] [rcpt] [data] [auth]"))?,
                );
                continue;
            }
            let section = section.ok_or_else(|| wrong("stands before any section; write one as `[rcpt]` above it"))?;
            if line.contains(&0) {
                return Err(wrong("holds a NUL"));
            }
            let list = plugins.0.get_mut(section).ok_or_else(|| wrong("is in no section"))?;
            if list.len() >= PLUGINS_MAX {
                return Err(wrong("is one program too many: a section has at most 32"));
            }
            list.push(line);
        }
        Ok(plugins)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }
}

/// Everything that qmail-hook may run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Lines of `smtpplugins`.
    pub plugins: BTreeSet<Vec<u8>>,
    /// Programs in the place of qmail-queue.
    pub queues: BTreeSet<Vec<u8>>,
    /// Programs that judge a recipient.
    pub checks: BTreeSet<Vec<u8>>,
}

impl Hooks {
    /// # Errors
    /// What [`Plugins::read`], [`Root::listen`] and [`ClientRules::read`] say.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let listeners = root.listen()?;
        let rules = ClientRules::read(root)?;
        let named = |option: &str, variable: &str| {
            let of_listeners =
                listeners.iter().filter_map(|listener| listener.option(option)).map(|value| value.as_bytes().to_vec());
            of_listeners.chain(rules.values_of(variable)).filter(|program| !program.is_empty()).collect::<BTreeSet<_>>()
        };
        let plugins = Plugins::read(root)?.0.into_iter().flatten().collect();
        Ok(Self { plugins, queues: named("queue", "QMAILQUEUE"), checks: named("rcptcheck", "RCPTCHECK") })
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.plugins.is_empty() && self.queues.is_empty() && self.checks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        for (name, text) in files {
            std::fs::write(root.control_file(name), text).unwrap();
        }
        (dir, root)
    }

    #[test]
    fn all_that_may_be_run() {
        let set = |all: &[&str]| all.iter().map(|one| one.as_bytes().to_vec()).collect::<BTreeSet<_>>();
        let (_dir, root) = root(&[
            (FILE, "# c\n[connection]\n/a\n[rcpt]\nplugins/b\n:echo E550 no\n"),
            ("listen", "smtp 127.0.0.1:1025 queue=/q1 rcptcheck=/c1\nsmtp 127.0.0.1:1026\n"),
            ("tcp.smtp", "10.:allow,QMAILQUEUE=\"/q2\",RCPTCHECK=\"/c2\"\n:allow,QMAILQUEUE=\"\"\n"),
        ]);
        let hooks = Hooks::read(&root).unwrap();
        assert_eq!(hooks.plugins, set(&["/a", "plugins/b", ":echo E550 no"]));
        assert_eq!((hooks.queues, hooks.checks), (set(&["/q1", "/q2"]), set(&["/c1", "/c2"])));
        assert_eq!(Plugins::read(&root).unwrap().0[3], [b"plugins/b".to_vec(), b":echo E550 no".to_vec()]);
        let (_dir, root) = self::root(&[("listen", "smtp 127.0.0.1:1025\n")]);
        assert!(Hooks::read(&root).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_plugin_is_said() {
        for (text, problem) in [("/a\n", "before any section"), ("[rpct]\n/a\n", "is no section")] {
            let (_dir, root) = root(&[(FILE, text)]);
            let error = Hooks::read(&root).unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
        }
    }
}
