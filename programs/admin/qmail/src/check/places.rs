//! Directories, ids and programs: is everything there, whose is it, and can each role reach what it needs?

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use control::{Id, Ids, Root};
use sandbox::{Count, Role, TABLE};
use users::ids::{SERVICE_ROLES, TARGET_ROLES};

use super::Findings;

pub(super) fn check(root: &Root, found: &mut Findings) {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        found.note(
            root.path(),
            "not running as root: every process is the caller, and mail is delivered to the caller and virtual users only; run qmail check as whoever runs the system",
        );
    }
    programs(found);
    classic(root, found);
    let Some(ids) = found.take(root.ids()) else { return };
    roles(root, &ids, found);
    directories(root, &ids, found);
    reach(root, &ids, found);
}

/// The package has links in var/qmail. What was there before an installation by other means than the package is still what scripts find.
fn classic(root: &Root, found: &mut Findings) {
    for name in ["bin", "control", "alias", "users", "queue"] {
        let path = root.path().join("var/qmail").join(name);
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            let problem = "is of another qmail, and whatever asks for the classic path finds that one, not this";
            found.warning(
                &path,
                format!("{problem}; move the old tree away as docs/migration.md says, or run `qmail import` on it"),
            );
        }
    }
}

fn programs(found: &mut Findings) {
    let own = [("qmail-start", ()), ("sendmail", ()), ("qmail-inject", ())].map(|(name, ())| name);
    for name in TABLE.iter().map(|process| process.name).chain(own) {
        let path = control::program::sibling(name);
        if !path.is_file() && name != "sendmail" {
            found.error(&path, "is missing; install it, or put it beside this program");
        }
    }
}

fn roles(root: &Root, ids: &Ids, found: &mut Findings) {
    let Ids::Table(table) = ids else { return };
    let file = root.ids_file();
    for role in SERVICE_ROLES.iter().chain(&TARGET_ROLES) {
        if ids.get(role).is_none() {
            found.error(
                &file,
                format!("has no line for {role}; write `{role} UID GID`, or run qmail setup --me HOST, which adds it"),
            );
        }
    }
    for (at, (role, id)) in table.iter().enumerate() {
        if let Some((other, _)) = table.iter().take(at).find(|(_, known)| known.uid == id.uid) {
            found.error(&file, format!("{other} and {role} have the same uid {}; give each role its own", id.uid));
        }
        passwd(&file, role, *id, found);
        let is_service = SERVICE_ROLES.contains(&role.as_str());
        let is_target = TARGET_ROLES.contains(&role.as_str());
        if is_service && ids.group() != Some(id.gid) {
            found.error(&file, format!("{role} has another gid than qmailq; all service roles share one"));
        }
        if is_target && ids.group() == Some(id.gid) {
            found.error(
                &file,
                format!("{role} has the gid of the service roles, which reaches their sockets; give it one of its own"),
            );
        }
    }
}

/// passwd may say something else of a role, or of its uid: what is meant to be apart would then be one.
fn passwd(file: &Path, role: &str, id: Id, found: &mut Findings) {
    // Users that cannot be looked up are no fault of this file.
    let by_name = sys::passwd::user(role.as_bytes()).ok().flatten();
    if let Some(user) = by_name.filter(|user| user.uid != id.uid) {
        let problem = format!("{role} is uid {}, and uid {} in passwd", id.uid, user.uid);
        return found.warning(file, format!("{problem}; write passwd's, and chown what belongs to {role}"));
    }
    let owner = sys::passwd::user_by_uid(id.uid).ok().flatten().map(|user| String::from_utf8_lossy(&user.name).into_owned());
    if let Some(owner) = owner.filter(|owner| owner != role) {
        let problem = format!(
            "uid {} of {role} is the user {}'s in passwd, who could act as it",
            id.uid,
            wire::escape::visible(owner.as_bytes())
        );
        found.error(file, format!("{problem}; give {role} a uid of its own"));
    }
}

fn directories(root: &Root, ids: &Ids, found: &mut Findings) {
    let owner = |role: &str| ids.get(role).map(|id| id.uid);
    // Path, whose it must be, mode bits that must not be set.
    let expected: [(PathBuf, Option<u32>, u32); 6] = [
        (root.control(), None, 0o022),
        (root.users(), None, 0o022),
        (root.alias(), owner("alias"), 0o022),
        (root.spool(), owner("qmailq"), 0o077),
        (root.lib(), owner("qmaila"), 0o077),
        (root.mail_base(), None, 0o002),
    ];
    for (path, owner, forbidden) in expected {
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => metadata,
            Ok(_) => {
                found.error(&path, "is no directory; move it away and run qmail setup");
                continue;
            }
            Err(error) => {
                found.error(&path, format!("{error}; run qmail setup"));
                continue;
            }
        };
        if let Some(owner) = owner.filter(|owner| *owner != metadata.uid()) {
            found.error(&path, format!("belongs to uid {}, and must be uid {owner}'s; chown {owner} it", metadata.uid()));
        }
        if metadata.mode() & forbidden & 0o777 != 0 && !(path == root.mail_base() && metadata.mode() & 0o1000 != 0) {
            found.error(
                &path,
                format!(
                    "has mode {:o}, and others must not have {:o} of it; chmod {:o} it",
                    metadata.mode() & 0o7777,
                    metadata.mode() & forbidden,
                    metadata.mode() & 0o7777 & !forbidden
                ),
            );
        }
    }
}

/// The first directory that stops a role is named, since the error that its process would give names nothing.
fn reach(root: &Root, ids: &Ids, found: &mut Findings) {
    if matches!(ids, Ids::Caller(_)) {
        return;
    }
    for process in TABLE.iter().filter(|process| process.count != Count::OnDemand && process.role != Role::Root) {
        let Some(id) = ids.get(process.role.name()) else { continue };
        let mut needed = vec![control::program::sibling(process.name), root.run()];
        match process.role {
            Role::Queue => needed.extend([root.spool(), root.control()]),
            Role::Auth => needed.extend([root.lib(), root.control()]),
            _ => needed.push(root.control()),
        }
        stops(&needed, id, process.name, found);
    }
    for role in TARGET_ROLES {
        let Some(id) = ids.get(role) else { continue };
        let own = if role == "alias" { root.alias() } else { root.mail_base() };
        stops(&[control::program::sibling("qmail-local"), own], id, role, found);
    }
}

fn stops(needed: &[PathBuf], id: Id, who: &str, found: &mut Findings) {
    for path in needed {
        // What is missing was said already.
        let Ok(resolved) = path.canonicalize() else { continue };
        if let Some(step) = resolved.ancestors().collect::<Vec<_>>().into_iter().rev().find(|step| !may_search(step, id)) {
            found.error(
                step,
                format!("keeps {who} (uid {}) from {}; chmod a+x it, or put things elsewhere", id.uid, path.display()),
            );
        }
    }
}

fn may_search(step: &Path, id: Id) -> bool {
    let Ok(metadata) = std::fs::metadata(step) else { return false };
    let bit = match (metadata.uid() == id.uid, metadata.gid() == id.gid) {
        (true, _) => 0o100,
        (false, true) => 0o010,
        (false, false) => 0o001,
    };
    metadata.mode() & bit != 0
}
