//! A recipient's home: is it in a state to be delivered to, and which `.qmail` file in it speaks for an address?
//!
//! A virtual user's home is opened through its domain's directory and everything in it beneath the home's own descriptor.

use crate::failure::Failure;
use dotqmail::search::{self, Candidate};
use maildir::{Bounds, errno_text, open_at};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Mode bits that a home and a `.qmail` file must not have: writable by everybody (qmail's conf-patrn).
const FORBIDDEN_MODE: u32 = 0o002;
/// The sticky bit of a home: its owner is editing, mail waits.
const STICKY: u32 = 0o1000;
/// The owner's x bit of a `.qmail` file: forwards only.
const FORWARD_ONLY: u32 = 0o100;

/// An open home directory.
#[derive(Debug)]
pub struct Home {
    dir: OwnedFd,
    bounds: Bounds,
}

/// The `.qmail` file that speaks for an address.
#[derive(Debug, Default)]
pub struct DotQmail {
    pub text: Vec<u8>,
    pub is_forward_only: bool,
    /// Where `DEFAULT` begins in ext, if the file's name ends with `default`.
    pub default_at: Option<usize>,
}

/// The state of a home that keeps mail waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Writable,
    Sticky,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::temporary(match fault {
            Fault::Writable => "Uh-oh: home directory is writable. (#4.7.0)",
            Fault::Sticky => "Home directory is sticky: user is editing his .qmail file. (#4.2.1)",
        })
    }
}

impl Home {
    /// A system user's home.
    ///
    /// # Errors
    /// Temporary: not there, not to be entered.
    pub fn open(path: &[u8]) -> Result<Self, Failure> {
        let dir = open_at(rustix::fs::CWD, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty(), Bounds::Anywhere);
        let dir = dir.map_err(|e| unable_to_switch(path, &e))?;
        Ok(Self { dir, bounds: Bounds::Anywhere })
    }

    /// The home of `user` below a virtual domain's directory. `None` if it does not exist yet: nobody has written to it.
    ///
    /// # Errors
    /// Temporary: no plain name, a link in its place, not to be entered.
    pub fn open_virtual(base: BorrowedFd<'_>, user: &[u8]) -> Result<Option<Self>, Failure> {
        if !search::is_one_component(user) {
            return Err(Failure::temporary("the home is not below the directory of its domain. (#4.3.5)"));
        }
        match open_at(base, user, OFlags::PATH | OFlags::DIRECTORY, Mode::empty(), Bounds::Beneath) {
            Ok(dir) => Ok(Some(Self { dir, bounds: Bounds::Beneath })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(unable_to_switch(user, &e)),
        }
    }

    /// As [`Home::open_virtual`], and makes a home that is missing, durably.
    ///
    /// # Errors
    /// As [`Home::open_virtual`], or it cannot be made.
    pub fn open_or_make_virtual(base: BorrowedFd<'_>, user: &[u8]) -> Result<Self, Failure> {
        if let Some(home) = Self::open_virtual(base, user)? {
            return Ok(home);
        }
        make_home(base, user)?;
        Self::open_virtual(base, user)?.ok_or_else(|| Failure::temporary("the home vanished. (#4.3.0)"))
    }

    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Looks at the home's mode. `Some`: mail must wait.
    ///
    /// # Errors
    /// Temporary: it cannot be looked at.
    pub fn fault(&self) -> Result<Option<Fault>, Failure> {
        let stat = rustix::fs::fstat(&self.dir).map_err(|e| Failure::system("Unable to stat home directory", &e.into()))?;
        Ok(match stat.st_mode {
            mode if mode & FORBIDDEN_MODE != 0 => Some(Fault::Writable),
            mode if mode & STICKY != 0 => Some(Fault::Sticky),
            _ => None,
        })
    }

    /// The file that speaks for `dash` and `ext`, if there is one.
    ///
    /// # Errors
    /// Temporary: a file that may be the right one cannot be read, or everybody may write it.
    pub fn find(&self, dash: &[u8], ext: &[u8]) -> Result<Option<DotQmail>, Failure> {
        for candidate in search::candidates(dash, ext) {
            if self.may_hold(&candidate.name)
                && let Some(found) = self.read(&candidate)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Which of `…-owner` and `…-owner-default` are there.
    ///
    /// # Errors
    /// Temporary: cannot be looked at.
    pub fn owners(&self, dash: &[u8], ext: &[u8]) -> Result<[bool; 2], Failure> {
        let [owner, default] = search::owner_names(dash, ext);
        Ok(if self.exists(&owner)? { [true, self.exists(&default)?] } else { [false, false] })
    }

    /// A virtual user's files lie in the home itself; a system user's dash may name a directory (dot-qmail(5)).
    fn may_hold(&self, name: &[u8]) -> bool {
        self.bounds == Bounds::Anywhere || search::is_one_component(name)
    }

    fn read(&self, candidate: &Candidate) -> Result<Option<DotQmail>, Failure> {
        let failed = |e: io::Error| unable_to_open(&candidate.name, &e);
        // NONBLOCK: a FIFO must not hold up the mail.
        let file = match open_at(self.dir(), &candidate.name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty(), self.bounds) {
            Ok(fd) => File::from(fd),
            Err(e) if is_absent(&e) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|e| failed(e.into()))?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(None);
        }
        if stat.st_mode & FORBIDDEN_MODE != 0 {
            return Err(Failure::temporary("Uh-oh: .qmail file is writable. (#4.7.0)"));
        }
        let mut text = Vec::new();
        let len_max = u64::try_from(dotqmail::DOTQMAIL_LEN_MAX).unwrap_or(u64::MAX);
        file.take(len_max.saturating_add(1)).read_to_end(&mut text).map_err(failed)?;
        if text.len() > dotqmail::DOTQMAIL_LEN_MAX {
            return Err(Failure::temporary("Uh-oh: .qmail file is too long. (#4.3.0)"));
        }
        Ok(Some(DotQmail { text, is_forward_only: stat.st_mode & FORWARD_ONLY != 0, default_at: candidate.default_at }))
    }

    fn exists(&self, name: &[u8]) -> Result<bool, Failure> {
        let flags = if self.bounds == Bounds::Beneath { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
        if !self.may_hold(name) {
            return Ok(false);
        }
        match rustix::fs::statat(&self.dir, name, flags).map_err(io::Error::from) {
            Ok(_) => Ok(true),
            Err(e) if is_absent(&e) => Ok(false),
            Err(e) => Err(unable_to_open(name, &e)),
        }
    }
}

/// Makes the home of `user` below a virtual domain's directory durable, whether it is there or not.
///
/// # Errors
/// Temporary: it cannot be made.
pub(crate) fn make_home(base: BorrowedFd<'_>, user: &[u8]) -> Result<(), Failure> {
    maildir::make_home(base, user).map_err(|e| Failure::system("Unable to make home directory", &e))
}

/// Errors that mean "no file of this name" rather than "cannot tell now".
fn is_absent(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::NXIO))
}

fn unable_to_switch(path: &[u8], error: &io::Error) -> Failure {
    Failure::temporary(format!("Unable to switch to {}: {}. (#4.3.0)", wire::escape::visible(path), errno_text(error)))
}

fn unable_to_open(name: &[u8], error: &io::Error) -> Failure {
    Failure::temporary(format!("Unable to open {}: {}. (#4.3.0)", wire::escape::visible(name), errno_text(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        set_mode(dir.path(), 0o700);
        let home = Home::open(std::os::unix::ffi::OsStrExt::as_bytes(dir.path().as_os_str())).unwrap();
        (dir, home)
    }

    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
        set_mode(path, 0o600);
    }

    #[test]
    fn a_home_that_others_may_write_or_that_is_being_edited_waits() {
        let (dir, home) = home();
        for (mode, fault) in [
            (0o700, None),
            (0o770, None),
            (0o702, Some(Fault::Writable)),
            (0o1700, Some(Fault::Sticky)),
            (0o1777, Some(Fault::Writable)),
        ] {
            set_mode(dir.path(), mode);
            assert_eq!(home.fault().unwrap(), fault, "{mode:o}");
        }
    }

    #[test]
    fn files_are_searched_in_order_and_what_is_no_file_is_passed_over() {
        let (dir, home) = home();
        assert!(home.find(b"-", b"a").unwrap().is_none());
        write(&dir.path().join(".qmail-default"), "default");
        let found = home.find(b"-", b"A.b-C").unwrap().unwrap();
        assert_eq!((&found.text[..], found.default_at), (&b"default"[..], Some(0)));
        std::fs::create_dir(dir.path().join(".qmail-a:b-c")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join(".qmail-a:b-default"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(home.find(b"-", b"a.b-c").unwrap().unwrap().text, b"default");
        std::fs::remove_dir(dir.path().join(".qmail-a:b-c")).unwrap();
        write(&dir.path().join(".qmail-a:b-c"), "exact");
        set_mode(&dir.path().join(".qmail-a:b-c"), 0o700);
        let found = home.find(b"-", b"a.b-c").unwrap().unwrap();
        assert_eq!((&found.text[..], found.default_at, found.is_forward_only), (&b"exact"[..], None, true));
        assert!(home.find(b"-", &[b'x'; 300]).unwrap().is_some(), "a name too long for a file falls through");
    }

    #[test]
    fn a_file_that_everybody_may_write_or_nobody_read_is_a_temporary_failure() {
        let (dir, home) = home();
        write(&dir.path().join(".qmail"), "x");
        set_mode(&dir.path().join(".qmail"), 0o622);
        assert_eq!(home.find(b"", b"").unwrap_err(), Failure::temporary("Uh-oh: .qmail file is writable. (#4.7.0)"));
        std::fs::remove_file(dir.path().join(".qmail")).unwrap();
        symlink(".qmail", dir.path().join(".qmail")).unwrap();
        assert!(!home.find(b"", b"").unwrap_err().is_permanent);
        std::fs::remove_file(dir.path().join(".qmail")).unwrap();
        let long = File::create(dir.path().join(".qmail")).unwrap();
        long.set_len(dotqmail::DOTQMAIL_LEN_MAX as u64 + 1).unwrap();
        set_mode(&dir.path().join(".qmail"), 0o600);
        assert!(home.find(b"", b"").unwrap_err().text.ends_with(b"too long. (#4.3.0)"));
    }

    #[test]
    fn owner_files() {
        let (dir, home) = home();
        write(&dir.path().join(".qmail-l-owner-default"), "");
        assert_eq!(home.owners(b"-", b"L").unwrap(), [false, false]);
        write(&dir.path().join(".qmail-l-owner"), "");
        assert_eq!(home.owners(b"-", b"L").unwrap(), [true, true]);
    }

    #[test]
    fn a_virtual_home_is_one_directory_below_its_base_and_links_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let fd: OwnedFd = File::open(base.path()).unwrap().into();
        for bad in [&b"../x"[..], b"a/b", b"", b".", b".."] {
            assert!(Home::open_virtual(fd.as_fd(), bad).is_err());
            assert!(Home::open_or_make_virtual(fd.as_fd(), bad).is_err());
        }
        assert!(Home::open_virtual(fd.as_fd(), b"joe").unwrap().is_none());
        let home = Home::open_or_make_virtual(fd.as_fd(), b"joe").unwrap();
        assert_eq!(home.fault().unwrap(), None);
        symlink("joe", base.path().join("link")).unwrap();
        assert!(Home::open_virtual(fd.as_fd(), b"link").is_err());
        write(&base.path().join("secret"), "x");
        symlink("../secret", base.path().join("joe/.qmail")).unwrap();
        assert!(home.find(b"", b"").is_err());
        std::fs::create_dir(base.path().join("joe/.qmail-a")).unwrap();
        write(&base.path().join("joe/.qmail-a/b"), "x");
        assert!(home.find(b"-", b"a/b").unwrap().is_none());
    }
}
