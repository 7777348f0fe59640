//! The Debian package on a Debian that has nothing else: it installs, mail of this host arrives, and what is mail survives a purge.
//!
//! The system is a tree of debootstrap's, kept packed beside the build with the packages of others that are needed, so that further
//! runs fetch nothing. What runs in it has namespaces of its own (mounts, processes, network), which end with it, however it ends.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use system_tests::tools::{folder, must};
use system_tests::{is_root, skip};

const NAME: &str = "package";
const MIRROR: &str = "http://deb.debian.org/debian";
/// Beside what the package itself needs.
const OTHERS: &str = "bsd-mailx postfix systemd libpam0g";
const INSTALL: &str = "export DEBIAN_FRONTEND=noninteractive; apt-get install -y -qq --no-install-recommends";
/// Says nothing if no package is in a state that needs repair.
const AUDIT: &str = "test -z \"$(dpkg --audit)\" || { dpkg --audit; exit 1; }";
/// Starts the system, sends a letter as people do, and waits until alias has COUNT.
const LETTER: &str = r#"
    qmail check
    qmail start >/tmp/out 2>/tmp/log & system=$!
    for i in $(seq 300); do grep -q ready /tmp/out && break; sleep 0.2; done
    echo hello | mail -s greetings root
    for i in $(seq 300); do [ "$(ls /etc/qmail/alias/Maildir/new | wc -l)" = COUNT ] && break; sleep 0.2; done
    mailq
    kill -TERM $system; wait $system || { echo "the system ended with $?"; cat /tmp/log; exit 1; }
    cat /tmp/log
    for letter in /etc/qmail/alias/Maildir/new/*; do echo "letter:"; cat "$letter"; done
"#;

/// A tree with a Debian in it, removed in the end. Nothing is mounted there but in namespaces that have ended by then.
struct Debian(PathBuf);

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Debian {
    fn new() -> Result<Self> {
        let dir = must(Command::new("mktemp").args(["-d", "/var/tmp/qmail-test.package.XXXXXX"]))?;
        let tree = Self(dir.trim().into());
        must(Command::new("chmod").arg("755").arg(&tree.0))?;
        Ok(tree)
    }

    /// Runs a script in the tree, for at most four minutes; what it prints. Without a network of the host but loopback if `is_alone`.
    fn run(&self, is_alone: bool, script: &str) -> Result<String> {
        let enter = "[ \"$2\" = host ] || ip link set lo up; mount -t proc proc \"$1/proc\" && mount --rbind /dev \"$1/dev\" && \
                     exec chroot \"$1\" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root sh -ec \"$3\" 2>&1";
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", "240", "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]);
        if is_alone {
            command.arg("--net");
        }
        command.args(["sh", "-c", enter, "sh"]).arg(&self.0).arg(if is_alone { "alone" } else { "host" }).arg(script);
        must(&mut command)
    }

    fn has(&self, path: &str) -> bool {
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
    let packed = folder.join(format!("debian-{suite}.tar"));
    if packed.is_file() {
        return Ok(packed);
    }
    let tree = Debian::new()?;
    must(Command::new("debootstrap").args(["--variant=minbase", "--include=ca-certificates", suite]).arg(&tree.0).arg(MIRROR))?;
    // Nothing starts by being installed, and nothing here has to survive a power cut.
    std::fs::write(tree.0.join("usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n")?;
    must(Command::new("chmod").arg("755").arg(tree.0.join("usr/sbin/policy-rc.d")))?;
    std::fs::write(tree.0.join("etc/dpkg/dpkg.cfg.d/test"), "force-unsafe-io\n")?;
    tree.run(false, &format!("apt-get update -qq; {INSTALL} --download-only {OTHERS}"))?;
    let new = packed.with_extension("new");
    must(Command::new("tar").arg("-cf").arg(&new).arg("-C").arg(&tree.0).arg("."))?;
    std::fs::rename(&new, &packed)?;
    Ok(packed)
}

/// Builds the package of the programs that are built; dist fails if lintian has anything to say.
fn package(out: &Path) -> Result<PathBuf> {
    let tools = folder()?;
    let exe = std::env::current_exe()?;
    let built = exe.ancestors().find(|dir| dir.join("qmail-send").is_file()).context("the programs are not built")?;
    ensure!(tools.parent() == built.parent(), "{} is not beside the tools", built.display());
    let said = must(Command::new(built.join("xtask")).args(["dist", "--quick", "--programs"]).arg(built).arg("--out").arg(out))?;
    ensure!(!said.contains("lintian is not installed"), "{said}");
    let files = std::fs::read_dir(out)?.flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|end| end == "deb")).last().with_context(|| format!("no package: {said}"))
}

fn installed(debian: &Debian, package: &str) -> String {
    debian.run(true, &format!("dpkg-query -W -f '${{db:Status-Abbrev}}' {package} || :")).unwrap().trim().to_owned()
}

#[test]
fn the_package_installs_delivers_and_leaves_mail_alone() {
    if !is_root() {
        skip(NAME, "needs root, for debootstrap and chroot");
        return;
    }
    let Some(suite) = suite() else {
        skip(NAME, "this machine is no Debian");
        return;
    };
    let debian = Debian::new().unwrap();
    must(Command::new("tar").arg("-xpf").arg(base(&suite).unwrap()).arg("-C").arg(&debian.0)).unwrap();
    let packages = debian.0.join("root/packages");
    let package = package(&packages).unwrap();
    let ours = format!("{INSTALL} /root/packages/{}", package.file_name().unwrap().to_str().unwrap());
    std::fs::write(debian.0.join("etc/mailname"), "mail.example.test\n").unwrap();
    let letter = |count: u32| debian.run(true, &LETTER.replace("COUNT", &count.to_string())).unwrap();

    // A host that had nothing sends itself a letter.
    debian.run(false, &format!("{ours} bsd-mailx; {AUDIT}")).unwrap();
    let said = letter(1);
    assert_eq!(said.matches("letter:\n").count(), 1, "{said}");
    assert!(said.contains("\nSubject: greetings\n") && said.contains("\nhello\n"), "{said}");
    assert!(said.contains("Delivered-To: ") && said.contains("root@mail.example.test"), "{said}");

    // What it brought is where it is called, and the classic names work.
    let aliases = "echo 'all: root' >/etc/aliases; sendmail -bi; test -s /etc/aliases.cdb; rm /etc/aliases.cdb; newaliases; \
                   test -s /etc/aliases.cdb; /var/qmail/bin/maildirmake /tmp/M; test -d /tmp/M/new";
    debian.run(true, aliases).unwrap();
    assert!(!debian.has("usr/bin/maildirmake") && !debian.has("usr/share/man/man1/fastforward.1.gz"));

    // A purge takes the configuration, and no mail.
    debian.run(false, &format!("export DEBIAN_FRONTEND=noninteractive; apt-get purge -y -qq qmail-rs; {AUDIT}")).unwrap();
    let alias = debian.0.join("etc/qmail/alias/Maildir/new");
    assert_eq!(std::fs::read_dir(&alias).unwrap().count(), 1);
    assert!(!debian.has("etc/qmail/control") && !debian.has("usr/sbin/sendmail") && debian.has("var/spool/qmail"));

    // Once more, then another mail system in its place, and back.
    debian.run(false, &format!("{ours} bsd-mailx; {AUDIT}; qmail check")).unwrap();
    assert_eq!(std::fs::read_dir(&alias).unwrap().count(), 1);
    debian.run(false, &format!("{INSTALL} postfix; {AUDIT}; dpkg -S /usr/sbin/sendmail | grep -q '^postfix:'")).unwrap();
    assert_eq!((installed(&debian, "postfix").as_str(), installed(&debian, "qmail-rs").as_str()), ("ii", "rc"));
    debian.run(false, &format!("{ours}; {AUDIT}; dpkg -S /usr/sbin/sendmail | grep -q '^qmail-rs:'")).unwrap();
    assert_eq!((installed(&debian, "postfix").as_str(), installed(&debian, "qmail-rs").as_str()), ("rc", "ii"));
    let said = letter(2);
    assert_eq!(said.matches("letter:\n").count(), 2, "{said}");
}
