//! Whose a mailbox is: uid, gid and home by root's own files.

use crate::Failure;
use control::lspawn::Assignments;
use control::{Id, Root};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use sys::spawn::{Ended, Spawn};
use users::UserName;
use wire::Address;

/// Who PROG runs as.
pub(crate) struct Owner {
    /// The name for PROG: the address of a virtual user, the name of a system user.
    user: OsString,
    id: Id,
    home: PathBuf,
    is_virtual: bool,
}

impl Owner {
    /// The owner of an address that qmail-auth has let in.
    ///
    /// # Errors
    /// Refused: root, a service role; temporary: a file that cannot be read, a user who is not there, another than the caller when not root.
    pub(crate) fn find(root: &Root, address: &[u8]) -> Result<Self, Failure> {
        let address = Address::new(address).map_err(|_| Failure::Temporary("qmail-auth named no address".to_owned()))?;
        let temporary = |error: control::ControlError| Failure::Temporary(error.to_string());
        let mut domains = control::watched::domains(root);
        let entry = domains.get().map_err(temporary)?.get(address.domain().unwrap_or_default()).cloned();
        let owner = match entry {
            Some(entry) => {
                let name = UserName::new(address.local()).ok_or_else(|| Failure::Temporary("not a user name".to_owned()))?;
                let user = OsString::from_vec(address.as_bytes().to_vec());
                Self { user, id: entry.id, home: entry.home(&name), is_virtual: true }
            }
            None => Self::system(root, address.local())?,
        };
        owner.check(root).map(|()| owner)
    }

    /// By users/assign, as qmail-lspawn has it, or passwd.
    fn system(root: &Root, name: &[u8]) -> Result<Self, Failure> {
        let user = OsString::from_vec(name.to_vec());
        let home = |home: &[u8]| PathBuf::from(OsStr::from_bytes(home));
        let assigned = Assignments::new(root).lookup(name).map_err(|error| Failure::Temporary(error.to_string()))?;
        if let Some(entry) = assigned {
            return match entry.dash.is_empty() && entry.user.eq_ignore_ascii_case(name) {
                true => Ok(Self { user, id: entry.id, home: home(&entry.home), is_virtual: false }),
                false => Err(Failure::Refused),
            };
        }
        match sys::passwd::user(name)? {
            Some(found) => {
                let id = Id { uid: found.uid, gid: found.gid };
                Ok(Self { user, id, home: home(&found.home), is_virtual: false })
            }
            None => Err(Failure::Temporary("the user is not in passwd".to_owned())),
        }
    }

    /// The last word, whoever let it in.
    fn check(&self, root: &Root) -> Result<(), Failure> {
        let ids = root.ids().map_err(|error| Failure::Temporary(error.to_string()))?;
        let caller = rustix::process::geteuid();
        if !caller.is_root() {
            let own = self.id.uid == caller.as_raw();
            return if own { Ok(()) } else { Err(Failure::Temporary("not running as root".to_owned())) };
        }
        let is_usable = users::ids::is_usable(self.id.uid) && users::ids::is_usable(self.id.gid);
        if is_usable && !ids.is_service(self.id.uid) { Ok(()) } else { Err(Failure::Refused) }
    }

    /// A virtual user's home is made by the first who needs it, as its owner.
    pub(crate) fn prepare_home(&self) -> Result<(), Failure> {
        if !self.is_virtual || self.home.exists() {
            return Ok(());
        }
        let mkdir = Spawn::new(Path::new("/bin/mkdir")).arg("-m").arg("0700").arg("--").arg(&self.home);
        let mkdir = if rustix::process::geteuid().is_root() {
            mkdir.ids(sys::spawn::Ids { uid: self.id.uid, gid: self.id.gid })
        } else {
            mkdir
        };
        let ended = mkdir.dir(Path::new("/")).start()?.wait();
        // Another may have been faster.
        if ended == Ended::Code(0) || self.home.is_dir() {
            return Ok(());
        }
        Err(Failure::Temporary(format!("{} cannot be made", self.home.display())))
    }

    pub(crate) fn user(&self) -> &OsStr {
        &self.user
    }

    pub(crate) fn id(&self) -> Id {
        self.id
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// PROG may run programs by it; nobody logs in to a virtual user's.
    pub(crate) fn shell(&self) -> &'static str {
        if self.is_virtual { "/bin/false" } else { "/bin/sh" }
    }
}
