//! Can a role reach a path? The directory that stops it is named before anything starts, since the error that a process would
//! give later ("permission denied") names nothing.

use rustix::fs::{Mode, Stat, stat};
use std::path::Path;
use sys::spawn::Ids;

/// Checks that `ids` (`None`: root or the caller itself) may search every directory above `path` and execute or enter `path`.
/// Permission bits count; access lists are not looked at.
///
/// # Errors
/// A text with the path that stops it and what to do.
pub fn check(path: &Path, ids: Option<Ids>) -> Result<(), String> {
    let resolved = path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?;
    let Some(ids) = ids else { return Ok(()) };
    for step in resolved.ancestors().collect::<Vec<_>>().into_iter().rev() {
        let stat = stat(step).map_err(|e| format!("{}: {e}", step.display()))?;
        if !may_search(&stat, ids) {
            return Err(format!(
                "{} cannot be reached by uid {} gid {}: {}, which belongs to uid {}, does not let it through; chmod o+x it, or put the instance elsewhere",
                path.display(),
                ids.uid,
                ids.gid,
                step.display(),
                stat.st_uid
            ));
        }
    }
    Ok(())
}

/// Checks that a directory belongs to who alone works in it; `None` is root or the caller itself.
///
/// # Errors
/// A text with the owner that it has, and what to do.
pub fn is_owner(path: &Path, ids: Option<Ids>) -> Result<(), String> {
    let stat = stat(path).map_err(|e| format!("{}: {e}", path.display()))?;
    match ids {
        Some(Ids { uid, gid }) if stat.st_uid != uid => Err(format!(
            "{} belongs to uid {}, and must be uid {uid}'s: `chown {uid}:{gid} {}` (an installation that was cut short leaves it so)",
            path.display(),
            stat.st_uid,
            path.display()
        )),
        _ => Ok(()),
    }
}

fn may_search(stat: &Stat, ids: Ids) -> bool {
    let mode = Mode::from_raw_mode(stat.st_mode);
    if ids.uid == 0 {
        return true;
    }
    let bit = match (stat.st_uid == ids.uid, stat.st_gid == ids.gid) {
        (true, _) => Mode::XUSR,
        (false, true) => Mode::XGRP,
        (false, false) => Mode::XOTH,
    };
    mode.contains(bit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, create_dir, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn names_the_owner_that_a_directory_has() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        is_owner(dir.path(), Some(Ids { uid: own, gid: 1 })).unwrap();
        is_owner(dir.path(), None).unwrap();
        let problem = is_owner(dir.path(), Some(Ids { uid: 61_234, gid: 61_235 })).unwrap_err();
        assert!(problem.contains(&format!("uid {own},")) && problem.contains("chown 61234:61235 "), "{problem}");
    }

    #[test]
    fn names_the_directory_that_stops_a_role() {
        let dir = tempfile::tempdir().unwrap();
        let (closed, open) = (dir.path().join("closed"), dir.path().join("closed/open"));
        create_dir(&closed).unwrap();
        create_dir(&open).unwrap();
        let stranger = Some(Ids { uid: 61_234, gid: 61_234 });
        let set = |path: &Path, mode| set_permissions(path, Permissions::from_mode(mode)).unwrap();
        set(dir.path(), 0o755);
        set(&closed, 0o755);
        check(&open, stranger).unwrap();
        set(&closed, 0o700);
        let problem = check(&open, stranger).unwrap_err();
        assert!(problem.contains(&format!("{}, which belongs to uid ", closed.canonicalize().unwrap().display())), "{problem}");
        check(&open, None).unwrap();
        assert!(check(&dir.path().join("missing"), None).is_err());
    }
}
