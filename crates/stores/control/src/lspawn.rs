//! The values of qmail-lspawn, and who it finds in users/assign.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use users::HostSet;
use users::assign::{self, Assign, Entry, LookupError};

use crate::{ControlError, Root, Watched, read, replacements};

/// Below this uid a user is the system's, not a person's (Debian Policy §9.2.2).
pub const UID_MIN_DEFAULT: u32 = 1000;
/// qmail-start(8).
pub const DEFAULT_DELIVERY: &[u8] = b"./Mailbox";
/// The instructions travel in a datagram with the rest of the request.
const DEFAULT_DELIVERY_LEN_MAX: usize = 4096;

/// Read at the start and on SIGHUP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lspawn {
    /// `uidmin`
    pub uid_min: u32,
    /// `defaultdelivery`: all its lines.
    pub default_delivery: Vec<u8>,
    /// `vmailprograms`: virtual domains whose users may run programs.
    pub program_domains: HostSet,
    /// The program in the place of qmail-local, for system users: [`replacements::LOCAL`].
    pub replacement: Option<PathBuf>,
}

impl Lspawn {
    /// # Errors
    /// A file is unreadable or `defaultdelivery` too long; temporary.
    pub fn load(root: &Root) -> Result<Self, ControlError> {
        let uid_min = root.int("uidmin")?.map_or(UID_MIN_DEFAULT, |uid| u32::try_from(uid).unwrap_or(u32::MAX));
        let text = root.text("defaultdelivery")?.map(|text| users::trim_end(&text).to_vec()).filter(|text| !text.is_empty());
        let default_delivery = text.unwrap_or_else(|| DEFAULT_DELIVERY.to_vec());
        if default_delivery.len() > DEFAULT_DELIVERY_LEN_MAX {
            let problem = format!("longer than {DEFAULT_DELIVERY_LEN_MAX} bytes");
            return Err(ControlError::new(&root.control_file("defaultdelivery"), problem));
        }
        let (program_domains, replacement) = (root.hosts("vmailprograms")?, replacements::LOCAL.read(root)?);
        Ok(Self { uid_min, default_delivery, program_domains, replacement })
    }
}

impl Lspawn {
    /// The Maildir that system users read by POP3, below their home: the first one that `defaultdelivery` names, else `Maildir`. What a
    /// user's own `.qmail` says is not known here.
    #[must_use]
    pub fn maildir(&self) -> PathBuf {
        let lines = self.default_delivery.split(|b| *b == b'\n');
        let mut names = lines.filter_map(|line| line.strip_prefix(b"./")?.strip_suffix(b"/"));
        let is_below = |name: &&[u8]| name.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b".."));
        Path::new(OsStr::from_bytes(names.find(is_below).unwrap_or(b"Maildir"))).to_owned()
    }
}

/// users/cdb, and users/assign where there is no cdb; both followed as they change.
pub struct Assignments {
    cdb: std::path::PathBuf,
    text: Watched<Assign>,
}

impl Assignments {
    #[must_use]
    pub fn new(root: &Root) -> Self {
        let parse = |text: Option<&[u8]>| match text {
            Some(text) => Assign::parse(text).map_err(|error| error.to_string()),
            None => Ok(Assign::default()),
        };
        Self { cdb: root.users().join("cdb"), text: Watched::owned(root.users().join("assign"), parse) }
    }

    /// Whose is this local part? `None`: the files do not say.
    ///
    /// # Errors
    /// Unreadable, or malformed where it speaks of this local part; temporary.
    pub fn lookup(&mut self, local: &[u8]) -> Result<Option<Entry>, ControlError> {
        match read::open(&self.cdb)? {
            Some((file, metadata)) => {
                read::check_owner(&self.cdb, &metadata)?;
                let found = assign::lookup(local, |key| wire::cdb::find(&file, key, assign::DATA_LEN_MAX));
                found.map_err(|error| self.damaged(&error))
            }
            None => {
                let found = self.text.get()?.lookup(local);
                found.map_err(|fault| ControlError::new(self.text.path(), fault.to_string()))
            }
        }
    }

    fn damaged(&self, error: &LookupError<std::io::Error>) -> ControlError {
        const ADVICE: &str = "run qmail-newu to build it again from users/assign";
        match error {
            LookupError::Read(error) => ControlError::new(&self.cdb, format!("cannot read it: {error}; {ADVICE}")),
            LookupError::Malformed => ControlError::new(&self.cdb, format!("holds a malformed record; {ADVICE}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["control", "users"] {
            std::fs::create_dir_all(dir.path().join("etc/qmail").join(sub)).unwrap();
        }
        let root = Root::new(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn values_and_defaults() {
        let (_dir, root) = instance();
        let values = Lspawn::load(&root).unwrap();
        assert_eq!((values.uid_min, values.default_delivery.as_slice()), (1000, &b"./Mailbox"[..]));
        std::fs::write(root.control_file("uidmin"), "500\n").unwrap();
        std::fs::write(root.control_file("defaultdelivery"), "./Maildir/\n|x\n\n").unwrap();
        std::fs::write(root.control_file("vmailprograms"), "A.example\n").unwrap();
        let values = Lspawn::load(&root).unwrap();
        assert_eq!((values.uid_min, values.default_delivery.as_slice()), (500, &b"./Maildir/\n|x"[..]));
        assert!(values.program_domains.contains_exact(b"a.example"));
    }

    #[test]
    fn the_maildir_that_pop3_shows_is_where_mail_goes() {
        for (text, expected) in [
            ("./Maildir/", "Maildir"),
            ("./Mailbox", "Maildir"),
            ("|dot-forward .forward\n./Mail/in/\n./Maildir/", "Mail/in"),
            ("/var/mail/x/\n./a/../../b/\n.//\n././", "Maildir"),
        ] {
            let (_dir, root) = instance();
            std::fs::write(root.control_file("defaultdelivery"), text).unwrap();
            assert_eq!(Lspawn::load(&root).unwrap().maildir(), Path::new(expected), "{text}");
        }
    }

    #[test]
    fn the_cdb_wins_over_the_text_and_a_broken_one_is_temporary() {
        let (_dir, root) = instance();
        let mut assignments = Assignments::new(&root);
        assert_eq!(assignments.lookup(b"joe").unwrap(), None);
        std::fs::write(root.users().join("assign"), "=joe:text:1001:1001:/home/joe:::\n.\n").unwrap();
        assert_eq!(assignments.lookup(b"JOE").unwrap().unwrap().user, b"text");
        let cdb = Assign::parse(b"=joe:cdb:1001:1001:/home/joe:::\n.\n").unwrap().to_cdb().unwrap();
        std::fs::write(root.users().join("cdb"), cdb).unwrap();
        assert_eq!(assignments.lookup(b"joe").unwrap().unwrap().user, b"cdb");
        assert_eq!(assignments.lookup(b"ann").unwrap(), None);
        std::fs::write(root.users().join("cdb"), "short").unwrap();
        assert!(assignments.lookup(b"joe").unwrap_err().problem.contains("qmail-newu"));
        std::fs::remove_file(root.users().join("cdb")).unwrap();
        std::fs::write(root.users().join("assign"), "=joe:text:1001\n.\n").unwrap();
        assert!(assignments.lookup(b"joe").unwrap_err().problem.contains("line 1"));
        assert_eq!(assignments.lookup(b"ann").unwrap(), None, "another's line");
    }
}
