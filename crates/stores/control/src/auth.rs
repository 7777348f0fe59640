//! What qmail-auth must know to tell whose a recipient is, as the files say it now.
//!
//! Looking costs one stat(2) for each of the files; they are read only when one of them has changed. Questions that were all asked before
//! [`Places::look_again`] may share one look, so that `qmail domain add` counts from the moment it returns. [`Places::generation`] then changes, and what was cached before is stale.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use users::{Routed, Routing};
use wire::Address;

use crate::watched::Stamps;
use crate::{ControlError, Root, Watched};

/// The control files that decide where a recipient goes.
const CONTROL_FILES: [&str; 5] = ["me", "locals", "virtualdomains", "percenthack", "envnoathost"];
/// The users that this host has by itself.
const PASSWD: &str = "/etc/passwd";

/// The routing of this instance, followed.
pub struct Places {
    root: Root,
    files: Vec<Watched<()>>,
    /// What decides whether a user of the system is there; others read it.
    users: Stamps,
    /// Counts readings of any of the files.
    readings: Arc<AtomicU64>,
    routing: Option<(u64, Routing)>,
    /// What `users` and the files counted at the last look, while it still counts.
    looked: Option<u64>,
}

impl Places {
    /// Reads nothing before the first use.
    #[must_use]
    pub fn new(root: Root) -> Self {
        let readings = Arc::new(AtomicU64::new(0));
        let control = CONTROL_FILES.map(|name| follow(Watched::new, root.control_file(name), &readings));
        let domains = follow(Watched::owned, root.domains_file(), &readings);
        let files = control.into_iter().chain([domains]).collect();
        let users = Stamps::new(vec![root.users().join("assign"), root.users().join("cdb"), root.alias(), PASSWD.into()]);
        Self { root, files, users, readings, routing: None, looked: None }
    }

    /// Where a recipient goes. An address that a prefix would make too long is nobody's: `None`.
    ///
    /// # Errors
    /// A file is unreadable or malformed now; temporary.
    pub fn route(&mut self, recipient: &Address) -> Result<Option<Routed>, ControlError> {
        Ok(self.routing()?.rewrite(recipient).ok())
    }

    /// The present routing.
    ///
    /// # Errors
    /// As [`Places::route`].
    pub fn routing(&mut self) -> Result<&Routing, ControlError> {
        self.look()?;
        let reading = self.readings.load(Ordering::Relaxed);
        let current = self.routing.take().filter(|(at, _)| *at == reading);
        let routing = match current {
            Some((_, routing)) => routing,
            None => self.root.routing()?,
        };
        Ok(&self.routing.insert((reading, routing)).1)
    }

    /// Changes with every reading of a file, and with users/assign, the alias directory and passwd.
    ///
    /// # Errors
    /// As [`Places::route`].
    pub fn generation(&mut self) -> Result<u64, ControlError> {
        self.look()
    }

    /// What is asked from now on was not asked before the last look.
    pub fn look_again(&mut self) {
        self.looked = None;
    }

    /// Looks at all files, unless that was done already; a look that failed does not count.
    fn look(&mut self) -> Result<u64, ControlError> {
        if let Some(looked) = self.looked {
            return Ok(looked);
        }
        for file in &mut self.files {
            file.get()?;
        }
        let generation = self.readings.load(Ordering::Relaxed).wrapping_add(self.users.changes());
        self.looked = Some(generation);
        Ok(generation)
    }
}

type Parse = Box<dyn Fn(Option<&[u8]>) -> Result<(), String> + Send>;

/// Follows a file and counts its readings.
fn follow(
    make: impl FnOnce(std::path::PathBuf, Parse) -> Watched<()>,
    path: std::path::PathBuf,
    readings: &Arc<AtomicU64>,
) -> Watched<()> {
    let readings = Arc::clone(readings);
    let count = move |_: Option<&[u8]>| {
        readings.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    make(path, Box::new(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looking(places: &mut Places) -> &mut Places {
        places.look_again();
        places
    }

    #[test]
    fn follows_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        std::fs::create_dir_all(root.users()).unwrap();
        let address = Address::new(b"joe@new.example").unwrap();
        let mut places = Places::new(root.clone());
        assert!(looking(&mut places).route(&address).is_err(), "without me nothing is known");
        std::fs::write(root.control_file("me"), "host.example\n").unwrap();
        assert!(matches!(looking(&mut places).route(&address).unwrap().unwrap(), Routed::Remote(_)));
        let before = places.generation().unwrap();
        std::fs::write(root.domains_file(), "new.example:64107:64107:/var/mail/new.example\n").unwrap();
        assert!(matches!(looking(&mut places).route(&address).unwrap().unwrap(), Routed::Virtual(_)));
        assert_ne!(places.generation().unwrap(), before);
        std::fs::remove_file(root.domains_file()).unwrap();
        std::fs::write(root.control_file("locals"), "new.example\n").unwrap();
        assert!(matches!(looking(&mut places).route(&address).unwrap().unwrap(), Routed::Local(_)));
        std::fs::write(root.domains_file(), "nonsense\n").unwrap();
        assert!(looking(&mut places).route(&address).unwrap_err().is_temporary());
        std::thread::sleep(std::time::Duration::from_millis(60));
        std::fs::remove_file(root.domains_file()).unwrap();
        looking(&mut places).route(&address).unwrap();
        let before = places.generation().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60));
        looking(&mut places).route(&address).unwrap();
        let settled = places.generation().unwrap();
        looking(&mut places).route(&address).unwrap();
        assert_eq!(places.generation().unwrap(), settled, "nothing is read when nothing changed");
        assert!(settled >= before);
        // One look for all that was asked before it.
        std::fs::write(root.control_file("locals"), "").unwrap();
        assert!(matches!(places.route(&address).unwrap().unwrap(), Routed::Local(_)));
        assert_eq!(places.generation().unwrap(), settled);
        places.look_again();
        assert!(matches!(places.route(&address).unwrap().unwrap(), Routed::Remote(_)));
    }

    #[test]
    fn takes_note_of_users_that_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        for made in [root.control(), root.users(), root.alias()] {
            std::fs::create_dir_all(made).unwrap();
        }
        let mut places = Places::new(root.clone());
        let mut last = places.generation().unwrap();
        let mut is_another = || {
            let now = looking(&mut places).generation().unwrap();
            std::mem::replace(&mut last, now) != now
        };
        std::thread::sleep(std::time::Duration::from_millis(60));
        is_another();
        assert!(!is_another());
        let assign = root.users().join("assign");
        for text in ["=a:a:1:1:/a:::\n.\n", "=b:b:1:1:/b:::\n.\n"] {
            std::fs::write(&assign, text).unwrap();
            assert!(is_another(), "{text}");
        }
        std::fs::remove_file(assign).unwrap();
        assert!(is_another());
        std::fs::write(root.alias().join(".qmail-x"), "&y@z\n").unwrap();
        assert!(is_another());
    }
}
