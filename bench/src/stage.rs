//! The place where everything runs: namespaces in which Postfix and Exim look installed though the machine does not have them.
//!
//! `cargo xtask bench` starts this program in a mount and a process namespace of its own. Here Debian's packages are unpacked into
//! the work directory and laid over /usr, and a passwd, group, hosts and resolv.conf of our own over /etc (read-only overlays): the
//! machine's files stay as they are, nothing is installed, nobody is added, no name is asked outside. When this program ends,
//! whatever way, the kernel takes the processes and the mounts with it; the caller removes the work directory.

use crate::generator::user_name;
use crate::syncs::Syncs;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// System users who get mail.
pub(crate) const USERS: usize = 100;
/// Host name of every server; stands in /etc/hosts.
pub(crate) const ME: &str = "mx.bench.test";
/// What is unpacked, with what these need and the machine lacks.
const PACKAGES: [&str; 4] = ["postfix", "exim4-daemon-light", "exim4-base", "exim4-config"];
/// Users and groups of the peers, in this order.
const PEER_NAMES: [&str; 3] = ["postfix", "postdrop", "Debian-exim"];
const MAIL_GROUP: &str = "benchmail";
/// First id given to users of the bench; Exim and qmail refuse low ones.
const FIRST_ID: u32 = 30_001;
/// Seconds for any one command; a download is the slowest.
pub(crate) const COMMAND_S_MAX: &str = "300";

/// The prepared place.
#[derive(Debug)]
pub(crate) struct Stage {
    /// Everything lies below it; every user can reach it.
    pub(crate) work: PathBuf,
    /// Our programs.
    pub(crate) programs: PathBuf,
    pub(crate) syncs: Syncs,
}

impl Stage {
    /// Prepares it all. `cache` keeps downloaded packages for the next time.
    ///
    /// # Errors
    /// Not root, not in namespaces of its own, no packages to be had, no overlays.
    pub(crate) fn prepare(work: &Path, programs: &Path, cache: &Path) -> Result<Self> {
        let mounts = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
        if mounts("self").is_none() || mounts("self") == mounts("1") {
            bail!("start it with `cargo xtask bench`: it needs a mount namespace of its own");
        }
        let outer_proc = work.join("outer-proc");
        std::fs::create_dir_all(&outer_proc)?;
        must(bounded("mount").args(["--bind", "/proc"]).arg(&outer_proc))?;
        must(bounded("mount").args(["-t", "proc", "proc", "/proc"]))?;
        let syncs = Syncs::new(&work.join("tracing"), &outer_proc);
        let packages = work.join("packages");
        unpack(cache, &packages)?;
        let etc = work.join("etc");
        write_etc(&etc, work)?;
        overlay(&[&packages.join("usr")], Path::new("/usr"))?;
        overlay(&[&etc, &packages.join("etc")], Path::new("/etc"))?;
        Ok(Self { work: work.to_owned(), programs: programs.to_owned(), syncs })
    }

    /// Homes of the system users.
    pub(crate) fn homes(&self) -> PathBuf {
        homes(&self.work)
    }
}

fn homes(work: &Path) -> PathBuf {
    named_apart(work, "home")
}

/// A directory of `work` whose name no other run has. The work directory has the T attribute (chattr(1)): ext4 puts each directory
/// in it into a block group that is found from its name, so files that a peer or an earlier run removed lie elsewhere, and what is
/// made here does not pay for them (see [`crate::mailboxes`]).
pub(crate) fn named_apart(work: &Path, name: &str) -> PathBuf {
    let run = work.extension().unwrap_or_default().to_string_lossy();
    work.join(format!("{name}.{run}"))
}

/// A command that is ended when it takes too long.
pub(crate) fn bounded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.arg(COMMAND_S_MAX).arg(program).stdin(Stdio::null());
    command
}

/// Runs a command that must succeed; returns what it printed.
///
/// # Errors
/// It failed; its output is in the error.
pub(crate) fn must(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!("{command:?}: {status}\n{stdout}{}", String::from_utf8_lossy(&stderr));
    }
    Ok(stdout)
}

fn overlay(upper: &[&Path], on: &Path) -> Result<()> {
    let mut layers = String::from("lowerdir=");
    for dir in upper {
        write!(layers, "{}:", dir.display())?;
    }
    write!(layers, "{}", on.display())?;
    must(bounded("mount").args(["-t", "overlay", "overlay", "-o", &layers]).arg(on))?;
    Ok(())
}

/// Debian's packages, downloaded where the cache lacks them, unpacked and not installed.
fn unpack(cache: &Path, packages: &Path) -> Result<()> {
    std::fs::create_dir_all(cache)?;
    std::fs::create_dir_all(packages)?;
    let mut names: BTreeSet<String> = PACKAGES.map(str::to_owned).into();
    for package in PACKAGES {
        let plan = must(bounded("apt-get").args(["install", "--simulate", "--no-install-recommends", package]))
            .context("apt-get does not know the packages; try `apt-get update`")?;
        names.extend(plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next().map(str::to_owned)));
    }
    for name in names {
        let file = match cached(cache, &name)? {
            Some(file) => file,
            None => {
                must(bounded("apt-get").args(["download", &name]).current_dir(cache))
                    .context("cannot download a package; try `apt-get update`")?;
                cached(cache, &name)?.with_context(|| format!("apt-get download {name} left no file"))?
            }
        };
        must(bounded("dpkg").arg("-x").arg(file).arg(packages))?;
    }
    Ok(())
}

fn cached(cache: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(cache)? {
        let entry = entry?;
        let file = entry.file_name();
        if file.to_string_lossy().starts_with(&format!("{name}_")) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Our /etc: the machine's users and ours, and no name service but files and a name server that knows nothing.
fn write_etc(etc: &Path, work: &Path) -> Result<()> {
    std::fs::create_dir_all(etc)?;
    let names = Names::new(&std::fs::read_to_string("/etc/passwd")?, &std::fs::read_to_string("/etc/group")?, work);
    std::fs::write(etc.join("passwd"), &names.passwd)?;
    std::fs::write(etc.join("group"), &names.group)?;
    std::fs::write(etc.join("hosts"), format!("127.0.0.1 localhost {ME}\n::1 localhost\n"))?;
    std::fs::write(etc.join("resolv.conf"), format!("nameserver {}\n", crate::dns::ADDRESS.ip()))?;
    std::fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n")?;
    for peer in ["postfix", "exim"] {
        std::fs::create_dir_all(work.join(peer).join("etc"))?;
    }
    symlink(work.join("postfix/etc"), etc.join("postfix"))?;
    symlink(work.join("exim/etc"), etc.join("exim4"))?;
    for (k, uid) in names.users.iter().enumerate() {
        let home = homes(work).join(user_name(k));
        std::fs::create_dir_all(&home)?;
        chown(&home, Some(*uid), Some(names.mail_group))?;
    }
    Ok(())
}

struct Names {
    passwd: String,
    group: String,
    users: Vec<u32>,
    mail_group: u32,
}

impl Names {
    /// The machine's files with ours before them; the same id for a user and his group.
    fn new(passwd: &str, group: &str, work: &Path) -> Self {
        let known: BTreeSet<u32> =
            [passwd, group].into_iter().flat_map(str::lines).filter_map(|line| line.split(':').nth(2)?.parse().ok()).collect();
        let mut free = (FIRST_ID..=u32::from(u16::MAX)).filter(|id| !known.contains(id));
        let mut next = || free.next().unwrap_or(FIRST_ID);
        let mail_group = next();
        let mut names =
            Self { passwd: String::new(), group: format!("{MAIL_GROUP}:x:{mail_group}:\n"), users: Vec::new(), mail_group };
        let line =
            |name: &str, uid: u32, gid: u32, home: &Path| format!("{name}:x:{uid}:{gid}::{}:/usr/sbin/nologin\n", home.display());
        for peer in PEER_NAMES {
            let id = next();
            names.group.push_str(&format!("{peer}:x:{id}:\n"));
            names.passwd.push_str(&line(peer, id, id, work));
        }
        for k in 0..USERS {
            let uid = next();
            names.passwd.push_str(&line(&user_name(k), uid, mail_group, &homes(work).join(user_name(k))));
            names.users.push(uid);
        }
        names.passwd = add_unknown(&names.passwd, passwd);
        names.group = add_unknown(&names.group, group);
        names
    }
}

/// `ours`, and the lines of `theirs` whose name is not in ours.
fn add_unknown(ours: &str, theirs: &str) -> String {
    let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let known: BTreeSet<String> = ours.lines().map(name).collect();
    let rest = theirs.lines().filter(|line| !known.contains(&name(line))).map(|line| format!("{line}\n"));
    rest.fold(ours.to_owned(), |all, line| all + &line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_machine_and_ours() {
        let names = Names::new(
            "root:x:0:0:root:/root:/bin/bash\npostfix:x:101:102::/x:/bin/false\nsomeone:x:30002:30002::/h:/bin/sh\n",
            "root:x:0:\npostdrop:x:103:\nothers:x:30001:\n",
            Path::new("/w.run"),
        );
        let field = |text: &str, name: &str, n: usize| {
            let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("{name}:"))).collect();
            assert_eq!(lines.len(), 1, "{name}");
            lines[0].split(':').nth(n).unwrap().to_owned()
        };
        assert_eq!((names.mail_group, names.users.len()), (30_003, USERS));
        assert_eq!((field(&names.passwd, "postfix", 2), field(&names.group, "postdrop", 2)), ("30004".into(), "30005".into()));
        assert_eq!(
            (field(&names.passwd, "u100", 3), field(&names.passwd, "u001", 5)),
            ("30003".into(), "/w.run/home.run/u001".into())
        );
        assert_eq!((field(&names.passwd, "root", 6), field(&names.passwd, "someone", 2)), ("/bin/bash".into(), "30002".into()));
        assert_eq!(field(&names.group, "others", 2), "30001");
    }
}
