//! A Debian of its own: a tree of debootstrap's, kept packed beside the build with the packages of others that tests install, so that
//! further runs fetch nothing. What runs in it has namespaces of its own (mounts, processes, network), which end with it, however it ends.

use crate::tools::{folder, must};
use crate::{is_root, skip};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIRROR: &str = "http://deb.debian.org/debian";
/// Told apart from the trees of earlier versions of this file.
const VERSION: u32 = 2;
/// What tests install, in groups that go together.
const OTHERS: [&str; 2] = ["bsd-mailx s-nail man-db postfix systemd libpam0g", "exim4-daemon-light"];
/// Without questions, and of what is there.
pub const INSTALL: &str = "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends";
/// Longer than anything takes on a busy machine.
const DEADLINE: &str = "400";

/// A tree with a Debian in it, removed in the end. Nothing is mounted there but in namespaces that have ended by then.
#[derive(Debug)]
pub struct Debian(pub PathBuf);

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whose network, and whose files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    /// The tree's files, no network but loopback.
    Inside,
    /// This machine's files, with the tree as `$1`; no network but loopback.
    Beside,
    /// The tree's files and this machine's network.
    Online,
}

impl Debian {
    /// A fresh one. `None`, noted as skipped, if this run cannot have it.
    ///
    /// # Errors
    /// debootstrap's, the registry's or the disk's.
    pub fn new(test: &str) -> Result<Option<Self>> {
        if !is_root() {
            skip(test, "needs root, for debootstrap and chroot");
            return Ok(None);
        }
        let Some(suite) = suite() else {
            skip(test, "this machine is no Debian");
            return Ok(None);
        };
        let debian = Self::empty()?;
        must(Command::new("tar").arg("-xpf").arg(base(&suite)?).arg("-C").arg(&debian.0))?;
        Ok(Some(debian))
    }

    fn empty() -> Result<Self> {
        let dir = must(Command::new("mktemp").args(["-d", "/var/tmp/qmail-test.package.XXXXXX"]))?;
        let tree = Self(dir.trim().into());
        must(Command::new("chmod").arg("755").arg(&tree.0))?;
        Ok(tree)
    }

    /// Runs a script in the tree; what it prints. It has no network but loopback.
    ///
    /// # Errors
    /// It fails, or takes too long; what it said is in the error.
    pub fn run(&self, script: &str) -> Result<String> {
        self.enter(View::Inside, script)
    }

    /// Runs a script of this machine beside the tree, whose path is `$1`.
    ///
    /// # Errors
    /// As [`Debian::run`].
    pub fn run_beside(&self, script: &str) -> Result<String> {
        self.enter(View::Beside, script)
    }

    fn enter(&self, view: View, script: &str) -> Result<String> {
        const ENTER: &str = "[ \"$2\" = online ] || ip link set lo up; mount -t proc proc \"$1/proc\" && mount --rbind /dev \"$1/dev\" && \
             if [ \"$2\" = beside ]; then exec sh -ec \"$3\" sh \"$1\" 2>&1; else \
             exec chroot \"$1\" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root sh -ec \"$3\" 2>&1; fi";
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", DEADLINE, "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]);
        if view != View::Online {
            command.arg("--net");
        }
        let name = match view {
            View::Inside => "inside",
            View::Beside => "beside",
            View::Online => "online",
        };
        must(command.args(["sh", "-c", ENTER, "sh"]).arg(&self.0).arg(name).arg(script))
    }

    /// Is there something of this name, a link that leads nowhere too?
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.0.join(path).symlink_metadata().is_ok()
    }
}

/// The name of this machine's Debian: what is built here runs on it.
fn suite() -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
    value("VERSION_CODENAME").filter(|_| value("ID").as_deref() == Some("debian"))
}

/// The packed tree, made if it is not there. Whole or not at all.
fn base(suite: &str) -> Result<PathBuf> {
    let folder = folder()?;
    std::fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    let packed = folder.join(format!("debian-{suite}-{VERSION}.tar"));
    if packed.is_file() {
        return Ok(packed);
    }
    let tree = Debian::empty()?;
    must(Command::new("debootstrap").args(["--variant=minbase", "--include=ca-certificates", suite]).arg(&tree.0).arg(MIRROR))?;
    // Nothing starts by being installed, and nothing here has to survive a power cut.
    std::fs::write(tree.0.join("usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n")?;
    must(Command::new("chmod").arg("755").arg(tree.0.join("usr/sbin/policy-rc.d")))?;
    std::fs::write(tree.0.join("etc/dpkg/dpkg.cfg.d/test"), "force-unsafe-io\n")?;
    let fetch = OTHERS.map(|group| format!("{INSTALL} --download-only {group}; ")).concat();
    // An index of all pages is of no use here.
    let quiet = "echo 'man-db man-db/auto-update boolean false' | debconf-set-selections";
    tree.enter(View::Online, &format!("apt-get update -qq; {fetch} {quiet}"))?;
    let new = packed.with_extension("new");
    must(Command::new("tar").arg("-cf").arg(&new).arg("-C").arg(&tree.0).arg("."))?;
    std::fs::rename(&new, &packed)?;
    Ok(packed)
}

/// Packs the programs that are built into `out`, with further options of `cargo xtask dist`; the package whose name ends in `kind`.
/// It fails if lintian has anything to say.
///
/// # Errors
/// The programs are not built, or a tool for packing is not there.
pub fn package(out: &Path, options: &[&str], kind: &str) -> Result<PathBuf> {
    let tools = folder()?;
    let exe = std::env::current_exe()?;
    let built = exe.ancestors().find(|dir| dir.join("qmail-send").is_file()).context("the programs are not built")?;
    ensure!(tools.parent() == built.parent(), "{} is not beside the tools", built.display());
    let mut dist = Command::new(built.join("xtask"));
    dist.args(["dist", "--quick", "--programs"]).arg(built).arg("--out").arg(out).args(options);
    let said = must(&mut dist)?;
    ensure!(!said.contains("is not installed"), "{said}");
    let files = std::fs::read_dir(out)?.flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|end| end == kind)).last().with_context(|| format!("no package: {said}"))
}
