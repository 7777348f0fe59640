//! The rule of qmail-getpw(8) over any directory of users.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use control::{Id, Ids, Root};
use sys::passwd::{self, User};

/// User names from here on are not looked up (the reference's buffer of 32 bytes with the NUL).
const USER_LEN_MAX: usize = 31;

/// Whose mail it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub user: Vec<u8>,
    pub uid: u32,
    pub gid: u32,
    pub home: Vec<u8>,
    /// "" or "-".
    pub dash: Vec<u8>,
    pub ext: Vec<u8>,
}

/// The user who has what nobody has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    pub id: Id,
    pub home: Vec<u8>,
}

impl Alias {
    /// As the instance names it, if it has one.
    #[must_use]
    pub fn of(root: &Root, ids: &Ids) -> Option<Self> {
        Some(Self { id: ids.get("alias")?, home: root.alias().into_os_string().into_vec() })
    }
}

/// Where users are looked up.
pub trait Directory {
    /// # Errors
    /// It cannot say now.
    fn user(&self, name: &[u8]) -> io::Result<Option<User>>;
    /// The owner of a directory; `None` if there is none by this name.
    ///
    /// # Errors
    /// It cannot say now.
    fn owner(&self, home: &[u8]) -> io::Result<Option<u32>>;
}

/// The system's own.
#[derive(Debug, Clone, Copy)]
pub struct Nss;

impl Directory for Nss {
    fn user(&self, name: &[u8]) -> io::Result<Option<User>> {
        passwd::user(name)
    }

    fn owner(&self, home: &[u8]) -> io::Result<Option<u32>> {
        use std::os::unix::fs::MetadataExt as _;
        match std::fs::metadata(Path::new(OsStr::from_bytes(home))) {
            Ok(metadata) => Ok(metadata.is_dir().then(|| metadata.uid())),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied => Ok(None),
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => Ok(None),
                _ => Err(error),
            },
        }
    }
}

/// The longest prefix of `local`, whole or up to a dash, that is a user other than root whose home exists and is his; else
/// alias with all of it. `None` if there is no alias.
///
/// # Errors
/// The directory cannot say now: temporary. A shorter prefix is not tried then, since the longer one may be a user.
pub fn who(local: &[u8], directory: &impl Directory, alias: Option<&Alias>) -> io::Result<Option<Found>> {
    let reach = local.len().min(USER_LEN_MAX);
    for end in (1..=reach).rev().filter(|end| matches!(local.get(*end), None | Some(b'-'))) {
        let (name, rest) = local.split_at_checked(end).unwrap_or_default();
        let Some(user) = directory.user(&name.to_ascii_lowercase())?.filter(|user| user.uid != 0) else { continue };
        if directory.owner(&user.home)? != Some(user.uid) {
            continue;
        }
        let (dash, ext) = rest.split_at_checked(1).unwrap_or_default();
        let User { name: user, uid, gid, home } = user;
        return Ok(Some(Found { user, uid, gid, home, dash: dash.to_vec(), ext: ext.to_vec() }));
    }
    let (user, dash, ext) = (b"alias".to_vec(), b"-".to_vec(), local.to_vec());
    Ok(alias.map(|alias| Found { user, uid: alias.id.uid, gid: alias.id.gid, home: alias.home.clone(), dash, ext }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    struct Table(RefCell<Vec<Vec<u8>>>);

    impl Directory for Table {
        fn user(&self, name: &[u8]) -> io::Result<Option<User>> {
            self.0.borrow_mut().push(name.to_vec());
            let user = |uid: u32, home: &str| Ok(Some(User { name: name.to_vec(), uid, gid: 100, home: home.into() }));
            match name {
                b"joe" => user(1001, "/home/joe"),
                b"joe-list" => user(1002, "/home/list"),
                b"root" => user(0, "/root"),
                b"thief" => user(1003, "/home/joe"),
                b"homeless" => user(1004, "/missing"),
                b"nfs" => user(1005, "/nfs"),
                b"slow" => Err(io::ErrorKind::TimedOut.into()),
                _ => Ok(None),
            }
        }

        fn owner(&self, home: &[u8]) -> io::Result<Option<u32>> {
            match home {
                b"/home/joe" => Ok(Some(1001)),
                b"/home/list" => Ok(Some(1002)),
                b"/root" => Ok(Some(0)),
                b"/nfs" => Err(io::Error::from_raw_os_error(5)),
                _ => Ok(None),
            }
        }
    }

    fn found(local: &str) -> String {
        let alias = Alias { id: Id { uid: 90, gid: 91 }, home: b"/alias".to_vec() };
        match who(local.as_bytes(), &Table(RefCell::default()), Some(&alias)) {
            Ok(Some(found)) => {
                let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
                format!("{} {} '{}' '{}'", text(found.user), found.uid, text(found.dash), text(found.ext))
            }
            Ok(None) => "none".to_owned(),
            Err(_) => "temporary".to_owned(),
        }
    }

    #[test]
    fn the_longest_prefix_that_is_a_user_with_a_home() {
        let long = "joe-".to_owned() + &"x".repeat(300);
        let table = [
            ("joe", "joe 1001 '' ''"),
            ("JOE", "joe 1001 '' ''"),
            ("joe-X-y", "joe 1001 '-' 'X-y'"),
            ("joe-", "joe 1001 '-' ''"),
            ("joe-list", "joe-list 1002 '' ''"),
            ("joe-List-Request", "joe-list 1002 '-' 'Request'"),
            ("joe-lists", "joe 1001 '-' 'lists'"),
            ("root", "alias 90 '-' 'root'"),
            ("thief", "alias 90 '-' 'thief'"),
            ("homeless-x", "alias 90 '-' 'homeless-x'"),
            ("", "alias 90 '-' ''"),
            ("-joe", "alias 90 '-' '-joe'"),
            ("joe+x", "alias 90 '-' 'joe+x'"),
            ("nfs", "temporary"),
            ("slow-x", "temporary"),
            ("joe-slow", "joe 1001 '-' 'slow'"),
        ];
        for (local, expected) in table {
            assert_eq!(found(local), expected, "{local}");
        }
        assert_eq!(found(&long), format!("joe 1001 '-' '{}'", &long[4..]));
        assert_eq!(who(b"nobody", &Table(RefCell::default()), None).unwrap(), None);
    }

    #[test]
    fn no_name_of_32_bytes_or_more_is_looked_up() {
        let table = Table(RefCell::default());
        let local = ["a".repeat(31), "b".repeat(5)].join("-");
        who(local.as_bytes(), &table, None).unwrap();
        who(&[b'a'; 32], &table, None).unwrap();
        assert_eq!(table.0.into_inner(), [vec![b'a'; 31]]);
    }
}
