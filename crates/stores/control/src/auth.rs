//! What qmail-auth must know to tell whose a recipient is, as the files say it now.
//!
//! A look costs one stat(2) for each of the files. Whoever looks after a question has come and before it is answered makes
//! `qmail domain add` count from the moment it returns, and one look serves all questions that have come by then. The files are
//! read only when one of them has changed. [`Places::generation`] then changes, and what was cached before is stale.

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
    /// What the last look found wrong.
    fault: Option<ControlError>,
    generation: u64,
    /// control/overquota.
    defers_over_quota: Watched<bool>,
    /// control/quotawarning and control/quotawarningtext.
    warns_at: Watched<u32>,
    warning_text: Watched<Vec<u8>>,
}

/// It travels with each delivery to an account with a quota.
const WARNING_TEXT_LEN_MAX: usize = 2048;

impl Places {
    /// Reads nothing before the first use.
    #[must_use]
    pub fn new(root: Root) -> Self {
        let readings = Arc::new(AtomicU64::new(0));
        let control = CONTROL_FILES.map(|name| follow(Watched::new, root.control_file(name), &readings));
        let domains = follow(Watched::owned, root.domains_file(), &readings);
        let files = control.into_iter().chain([domains]).collect();
        let users = Stamps::new(vec![root.users().join("assign"), root.users().join("cdb"), root.alias(), PASSWD.into()]);
        let defers_over_quota = Watched::new(root.control_file("overquota"), over_quota);
        let warns_at = Watched::new(root.control_file("quotawarning"), quota_warning);
        let warning_text = Watched::new(root.control_file("quotawarningtext"), warning_text);
        let (routing, fault) = (None, None);
        Self { root, files, users, readings, routing, fault, generation: 0, defers_over_quota, warns_at, warning_text }
    }

    /// Looks at the files; what is said until the next look is as they are now.
    pub fn look(&mut self) {
        self.fault = self.files.iter_mut().find_map(|file| file.get().err());
        let reading = self.readings.load(Ordering::Relaxed);
        if self.fault.is_none() && self.routing.as_ref().is_none_or(|(at, _)| *at != reading) {
            match self.root.routing() {
                Ok(routing) => self.routing = Some((reading, routing)),
                Err(error) => (self.fault, self.routing) = (Some(error), None),
            }
        }
        self.generation = reading.wrapping_add(self.users.changes());
    }

    /// Where a recipient goes. An address that a prefix would make too long is nobody's: `None`.
    ///
    /// # Errors
    /// A file was unreadable or malformed at the last look; temporary.
    pub fn route(&self, recipient: &Address) -> Result<Option<Routed>, ControlError> {
        Ok(self.routing()?.rewrite(recipient).ok())
    }

    /// The routing as the last look found it.
    ///
    /// # Errors
    /// As [`Places::route`].
    pub fn routing(&self) -> Result<&Routing, ControlError> {
        match (&self.fault, &self.routing) {
            (Some(fault), _) => Err(fault.clone()),
            (None, Some((_, routing))) => Ok(routing),
            (None, None) => Err(ControlError::new(&self.root.domains_file(), "not read yet")),
        }
    }

    /// Does a message for a full mailbox wait, instead of going back to its sender? As the file says it now.
    ///
    /// # Errors
    /// `overquota` is unreadable or holds another word; temporary.
    pub fn defers_over_quota(&mut self) -> Result<bool, ControlError> {
        self.defers_over_quota.get().copied()
    }

    /// The percentage of a quota at which the owner is told (0: never), and what he is told (empty: the program's own words). As the
    /// files say it now.
    ///
    /// # Errors
    /// One is unreadable or malformed; temporary.
    pub fn quota_warning(&mut self) -> Result<(u32, Vec<u8>), ControlError> {
        let warns_at = *self.warns_at.get()?;
        Ok((warns_at, if warns_at == 0 { Vec::new() } else { self.warning_text.get()?.clone() }))
    }

    /// Changes with every reading of a file, and with users/assign, the alias directory and passwd.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// The file `overquota`.
fn over_quota(text: Option<&[u8]>) -> Result<bool, String> {
    match text.and_then(|text| text.split(|b| *b == b'\n').next()).unwrap_or_default().trim_ascii() {
        b"" | b"bounce" => Ok(false),
        b"defer" => Ok(true),
        _ => Err("must be `bounce` or `defer`".to_owned()),
    }
}

/// The file `quotawarning`: a percentage, perhaps with its sign.
fn quota_warning(text: Option<&[u8]>) -> Result<u32, String> {
    let line = text.and_then(|text| text.split(|b| *b == b'\n').next()).unwrap_or_default().trim_ascii();
    let line = line.strip_suffix(b"%").unwrap_or(line).trim_ascii();
    if line.is_empty() {
        return Ok(0);
    }
    let percent = std::str::from_utf8(line).ok().and_then(|line| line.parse().ok()).filter(|percent| *percent <= 100);
    percent.ok_or_else(|| "must be a percentage, 0 to 100".to_owned())
}

/// The file `quotawarningtext`.
fn warning_text(text: Option<&[u8]>) -> Result<Vec<u8>, String> {
    let text = text.unwrap_or_default();
    if text.len() > WARNING_TEXT_LEN_MAX || std::str::from_utf8(text).is_err() {
        return Err(format!("must be UTF-8 of at most {WARNING_TEXT_LEN_MAX} bytes"));
    }
    Ok(text.iter().filter(|b| **b != b'\r').copied().collect())
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

    #[test]
    fn follows_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        std::fs::create_dir_all(root.users()).unwrap();
        let address = Address::new(b"joe@new.example").unwrap();
        let mut places = Places::new(root.clone());
        assert!(places.route(&address).unwrap_err().is_temporary(), "nobody has looked");
        places.look();
        assert!(places.route(&address).is_err(), "without me nothing is known");
        std::fs::write(root.control_file("me"), "host.example\n").unwrap();
        assert!(places.route(&address).is_err(), "as it was at the last look");
        let mut route = || {
            places.look();
            (places.route(&address), places.generation())
        };
        let found = |(routed, _): (Result<Option<Routed>, ControlError>, u64)| routed.unwrap().unwrap();
        assert!(matches!(found(route()), Routed::Remote(_)));
        let (_, before) = route();
        std::fs::write(root.domains_file(), "new.example:64107:64107:/var/mail/new.example\n").unwrap();
        let now = route();
        assert_ne!(now.1, before);
        assert!(matches!(found(now), Routed::Virtual(_)));
        std::fs::remove_file(root.domains_file()).unwrap();
        std::fs::write(root.control_file("locals"), "new.example\n").unwrap();
        assert!(matches!(found(route()), Routed::Local(_)));
        std::fs::write(root.domains_file(), "nonsense\n").unwrap();
        assert!(route().0.unwrap_err().is_temporary());
        std::thread::sleep(std::time::Duration::from_millis(60));
        std::fs::remove_file(root.domains_file()).unwrap();
        let (_, before) = route();
        std::thread::sleep(std::time::Duration::from_millis(60));
        let (_, settled) = route();
        assert_eq!(route().1, settled, "nothing is read when nothing changed");
        assert!(settled >= before);
    }

    #[test]
    fn mail_for_a_full_mailbox_goes_back_unless_the_file_says_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        let mut places = Places::new(root.clone());
        assert_eq!(places.quota_warning().unwrap(), (0, Vec::new()));
        std::fs::write(root.control_file("quotawarningtext"), "Full\r\n").unwrap();
        for (text, expected) in [("90\n", Some(90)), (" 80 %\n", Some(80)), ("101\n", None), ("x\n", None), ("\n", Some(0))] {
            std::fs::write(root.control_file("quotawarning"), text).unwrap();
            assert_eq!(places.quota_warning().ok().map(|(percent, _)| percent), expected, "{text}");
        }
        std::fs::write(root.control_file("quotawarning"), "70\n").unwrap();
        assert_eq!(places.quota_warning().unwrap(), (70, b"Full\n".to_vec()));
        assert!(!places.defers_over_quota().unwrap());
        for (text, expected) in [("defer\n", Some(true)), ("bounce\n", Some(false)), ("\n", Some(false)), ("later\n", None)] {
            std::fs::write(root.control_file("overquota"), text).unwrap();
            assert_eq!(places.defers_over_quota().ok(), expected, "{text}");
        }
    }

    #[test]
    fn takes_note_of_users_that_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        for made in [root.control(), root.users(), root.alias()] {
            std::fs::create_dir_all(made).unwrap();
        }
        let mut places = Places::new(root.clone());
        let mut last = places.generation();
        let mut is_another = || {
            places.look();
            let now = places.generation();
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
