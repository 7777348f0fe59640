//! The disks below the spool, the accounts and the mailboxes: is there room, and do they keep what they are given?

use std::path::{Path, PathBuf};

use control::Root;

use super::Findings;

/// What the spool writes at a time (a segment), and as much for what comes meanwhile.
const ROOM_NEEDED: u64 = 128 << 20;
/// Less than this part is left: one in so many.
const NEARLY_FULL: u64 = 20;
/// File systems that forget everything with the power (statfs(2)).
const FORGETFUL: [(u64, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];
/// File systems of other hosts: locks and syncs are not what a spool needs.
const FAR: [(u64, &str); 5] =
    [(0x6969, "NFS"), (0xff53_4d42, "CIFS"), (0xfe53_4d42, "SMB"), (0x517b, "SMB"), (0x0102_1997, "9P")];

pub(super) fn check(root: &Root, found: &mut Findings) {
    let places = [(root.spool(), true), (root.lib(), true), (root.mail_base(), false)];
    for (path, is_ours_alone) in places {
        // What is missing was said already.
        if path.is_dir() {
            room(&path, found);
            kind(&path, is_ours_alone, found);
        }
    }
}

fn room(path: &Path, found: &mut Findings) {
    let Ok(disk) = rustix::fs::statvfs(path) else { return };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let mib = free >> 20;
    if free < ROOM_NEEDED {
        found.error(
            path,
            format!(
                "has {mib} MiB of room left, of which the spool takes 64 at a time, and mail is refused when it cannot; make room"
            ),
        );
    } else if disk.f_bavail < disk.f_blocks / NEARLY_FULL {
        found.warning(path, format!("is nearly full, {mib} MiB are left; make room"));
    }
    // Some file systems do not count them.
    if disk.f_files > 0 && disk.f_favail < disk.f_files / NEARLY_FULL {
        found.warning(
            path,
            format!("is nearly out of inodes, {} are left; remove files, or make the file system anew with more", disk.f_favail),
        );
    }
}

fn kind(path: &PathBuf, is_ours_alone: bool, found: &mut Findings) {
    let Ok(disk) = rustix::fs::statfs(path) else { return };
    // Its type differs by processor.
    let magic = u64::try_from(disk.f_type).unwrap_or_default() & 0xffff_ffff;
    let named = |list: &[(u64, &'static str)]| list.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name);
    if let Some(name) = named(&FORGETFUL) {
        found.warning(path, format!("is a {name}: what is accepted is lost with the power; put it on a disk"));
    }
    if let Some(name) = named(&FAR).filter(|_| is_ours_alone) {
        let problem = format!("is on {name}: syncs and locks of another host's disk do not keep what was promised");
        found.error(path, format!("{problem}; put it on a disk of this host"));
    }
}
