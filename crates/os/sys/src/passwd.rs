//! NSS: users and groups by name and by number (getpwnam_r(3) and its like).
//!
//! NSS loads modules into the process and may wait for a network; so only qmail-getpw, qmail-auth, the admin command and
//! checkpassword call this, the services from a thread whose answer they wait for with a deadline. Never qmail-lspawn.

use std::ffi::{CStr, CString};
use std::io;

/// A passwd entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: Vec<u8>,
    pub uid: u32,
    pub gid: u32,
    pub home: Vec<u8>,
}

/// An entry larger than this is an error (a group with tens of thousands of members fits).
const ENTRY_LEN_MAX: usize = 4 * 1024 * 1024;

/// The user of this name. A name with a NUL is nobody's.
///
/// # Errors
/// NSS cannot say: temporary.
pub fn user(name: &[u8]) -> io::Result<Option<User>> {
    let Ok(name) = CString::new(name) else { return Ok(None) };
    // SAFETY: the name is NUL-terminated and lives for the call; the rest is what `entry` passes on.
    entry(
        |record, buf, found| unsafe { libc::getpwnam_r(name.as_ptr(), record, buf.as_mut_ptr().cast(), buf.len(), found) },
        to_user,
    )
}

/// A user with this number.
///
/// # Errors
/// NSS cannot say: temporary.
pub fn user_by_uid(uid: u32) -> io::Result<Option<User>> {
    // SAFETY: as in `user`.
    entry(|record, buf, found| unsafe { libc::getpwuid_r(uid, record, buf.as_mut_ptr().cast(), buf.len(), found) }, to_user)
}

/// The number of the group of this name.
///
/// # Errors
/// NSS cannot say: temporary.
pub fn group(name: &[u8]) -> io::Result<Option<u32>> {
    let Ok(name) = CString::new(name) else { return Ok(None) };
    // SAFETY: as in `user`.
    entry(
        |record, buf, found| unsafe { libc::getgrnam_r(name.as_ptr(), record, buf.as_mut_ptr().cast(), buf.len(), found) },
        to_gid,
    )
}

/// Does a group with this number exist?
///
/// # Errors
/// NSS cannot say: temporary.
pub fn group_exists(gid: u32) -> io::Result<bool> {
    // SAFETY: as in `user`.
    let call = |record: *mut libc::group, buf: &mut [u8], found: &mut *mut libc::group| unsafe {
        libc::getgrgid_r(gid, record, buf.as_mut_ptr().cast(), buf.len(), found)
    };
    entry(call, to_gid).map(|gid| gid.is_some())
}

/// Calls a `get…_r` function with a buffer that grows until the entry fits.
fn entry<R, T>(call: impl Fn(*mut R, &mut [u8], &mut *mut R) -> libc::c_int, read: impl Fn(&R) -> T) -> io::Result<Option<T>> {
    let mut buf = vec![0u8; 4096];
    loop {
        let mut record = std::mem::MaybeUninit::<R>::zeroed();
        let mut found = std::ptr::null_mut();
        match call(record.as_mut_ptr(), &mut buf, &mut found) {
            // SAFETY: found is null or points to `record`, which the call has filled; its strings lie in `buf`, which is alive.
            0 => return Ok(unsafe { found.as_ref() }.map(&read)),
            libc::EINTR => {}
            libc::ERANGE if buf.len() < ENTRY_LEN_MAX => buf.resize(buf.len().saturating_mul(4), 0),
            // "The given name was not found" has several numbers besides 0 in getpwnam(3).
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn to_user(record: &libc::passwd) -> User {
    User { name: bytes(record.pw_name), uid: record.pw_uid, gid: record.pw_gid, home: bytes(record.pw_dir) }
}

fn to_gid(record: &libc::group) -> u32 {
    record.gr_gid
}

fn bytes(text: *const libc::c_char) -> Vec<u8> {
    if text.is_null() {
        return Vec::new();
    }
    // SAFETY: a string of an entry that NSS has just filled: NUL-terminated, in the caller's buffer.
    unsafe { CStr::from_ptr(text) }.to_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_there_and_nobody_made_up_is() {
        let root = user(b"root").unwrap().unwrap();
        assert_eq!((root.name.as_slice(), root.uid, root.gid), (&b"root"[..], 0, 0));
        assert_eq!(user_by_uid(0).unwrap().unwrap().uid, 0);
        assert_eq!(group(b"root").unwrap(), Some(0));
        assert!(group_exists(0).unwrap());
        for name in [&b"no-such-user-here"[..], b"", b"ro\0ot", b"a:b", &[b'x'; 5000]] {
            assert_eq!(user(name).unwrap(), None);
            assert_eq!(group(name).unwrap(), None);
        }
        assert_eq!(user_by_uid(4_000_000_123).unwrap(), None);
    }
}
