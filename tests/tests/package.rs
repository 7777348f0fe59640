//! The Debian package on a Debian that has nothing else: it installs, mail of this host arrives, and what is mail survives all that
//! apt can do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use system_tests::debian::{Debian, INSTALL, package};
use system_tests::tools::{self, must};

/// Says nothing if no package is in a state that needs repair.
const AUDIT: &str = "test -z \"$(dpkg --audit)\" || { dpkg --audit; exit 1; }; \
                     apt-get install -f --simulate | grep '^0 upgraded, 0 newly installed, 0 to remove'";
const PURGE: &str = "DEBIAN_FRONTEND=noninteractive apt-get purge -y -qq qmail-rs";
/// Shell functions for what follows: `start`, `stop`, and `letters N`, which waits until alias has so many.
const FUNCTIONS: &str = r#"
    start() {
        : >/tmp/out; qmail start >/tmp/out 2>>/tmp/log & system=$!
        for i in $(seq 300); do grep -q ready /tmp/out && return; sleep 0.2; done
        echo 'it does not start'; cat /tmp/log; exit 1
    }
    stop() { kill -TERM $system; wait $system || { echo "the system ended with $?"; cat /tmp/log; exit 1; }; }
    letters() {
        for i in $(seq 300); do [ "$(ls /etc/qmail/alias/Maildir/new | wc -l)" -ge "$1" ] && return; sleep 0.2; done
        echo "not $1 letters"; qmail queue list; cat /tmp/log; exit 1
    }
"#;
/// Waits for a host that cannot be found.
const WAITING: &str = "printf 'Subject: waits\\n\\nx\\n' | sendmail someone@elsewhere.example.test";
/// Hands in letters all the time, `n-1`, `n-2` …; those that were taken are named in /tmp/taken.
const SENDER: &str = r#"
    rm -f /tmp/enough; : >/tmp/taken
    (n=0; while [ ! -e /tmp/enough ]; do
        n=$((n+1)); printf 'Subject: n-%s\n\nbody\n' $n | sendmail root 2>>/tmp/refused && echo n-$n >>/tmp/taken; sleep 0.05
    done) & sender=$!
"#;
/// As the tables of /proc/net write addresses.
const LOOPBACK: [&str; 2] = ["0100007F:", "00000000000000000000000001000000:"];
/// Names each program of the package that has no page.
const PAGES: &str = r"
    dpkg -L qmail-rs | grep -E '^/usr/(bin|sbin|lib/qmail)/[^/]+$' | sed 's,.*/,,' | sort -u | while read -r name; do
        man -w $name >/dev/null 2>&1 || man -M /var/qmail/man -w $name >/dev/null 2>&1 || echo $name
    done
";

/// The package of the programs that are built, packed once for all tests here.
fn packed() -> &'static Path {
    static PACKED: OnceLock<PathBuf> = OnceLock::new();
    PACKED.get_or_init(|| package(&tools::folder().unwrap().join("packed"), &[], "deb").unwrap())
}

/// A Debian with our package in /root.
struct Host {
    debian: Debian,
    package: PathBuf,
}

impl Host {
    fn new(test: &str) -> Option<Self> {
        let debian = Debian::new(test).unwrap()?;
        let package = debian.0.join("root/ours.deb");
        std::fs::copy(packed(), &package).unwrap();
        let host = Self { debian, package };
        host.write("etc/mailname", "mail.example.test\n");
        Some(host)
    }

    fn run(&self, script: &str) -> String {
        self.debian.run(&format!("{FUNCTIONS}{script}")).unwrap()
    }

    /// Installs packages; `ours` stands for the one under test.
    fn install(&self, packages: &[&str]) {
        let ours = self.inside(&self.package);
        let names: Vec<&str> = packages.iter().map(|name| if *name == "ours" { ours.as_str() } else { name }).collect();
        self.run(&format!("{INSTALL} {}; {AUDIT}", names.join(" ")));
    }

    fn inside(&self, path: &Path) -> String {
        format!("/{}", path.strip_prefix(&self.debian.0).unwrap().display())
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.debian.0.join(path)).unwrap()
    }

    fn write(&self, path: &str, text: &str) {
        std::fs::write(self.debian.0.join(path), text).unwrap();
    }

    fn state(&self, package: &str) -> String {
        self.run(&format!("dpkg-query -W -f '${{db:Status-Abbrev}}' {package} || :")).trim().to_owned()
    }

    /// The letters that alias has, by subject.
    fn letters(&self) -> BTreeMap<String, Vec<String>> {
        let mut letters: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in std::fs::read_dir(self.debian.0.join("etc/qmail/alias/Maildir/new")).unwrap() {
            let text = String::from_utf8_lossy(&std::fs::read(file.unwrap().path()).unwrap()).into_owned();
            let subject = text.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap_or_default().to_owned();
            letters.entry(subject).or_default().push(text);
        }
        letters
    }
}

#[test]
fn the_package_installs_delivers_and_leaves_mail_alone() {
    let Some(host) = Host::new("package") else { return };

    // Over a tree that somebody built by hand nothing is installed, and he hears what to do.
    let by_hand =
        "mkdir -p /var/qmail/control; if dpkg --unpack PACKAGE 2>/tmp/said; then exit 1; fi; cat /tmp/said; rm -r /var/qmail";
    let said = host.run(&format!("{}; {AUDIT}", by_hand.replace("PACKAGE", &host.inside(&host.package))));
    assert!(said.contains("/var/qmail/control is there") && said.contains("docs/migration.md"), "{said}");

    // A host that had nothing. Nobody is asked, nothing starts (policy-rc.d), and all is as it was packed.
    host.write("etc/mailname", "# the name of this host\n  mail.example.test \r\n");
    host.install(&["ours", "bsd-mailx", "s-nail", "man-db"]);
    assert_eq!(host.read("etc/qmail/control/me"), "mail.example.test\n");
    // What some systems have as links has no place in a package.
    assert_eq!(host.run("dpkg -L qmail-rs | grep -E '^/(lib|bin|sbin)(/|$)' || :"), "");
    assert!(!["config", "templates"].iter().any(|file| host.debian.has(&format!("var/lib/dpkg/info/qmail-rs.{file}"))));
    assert_eq!(host.run("dpkg -V qmail-rs"), "");
    assert!(host.debian.has("etc/systemd/system/multi-user.target.wants/qmail.service"));
    assert!(host.debian.has("etc/systemd/system/sockets.target.wants/qmail-inject.socket"));
    assert_eq!(std::fs::read_link(host.debian.0.join("etc/apparmor.d/force-complain/qmail")).unwrap(), Path::new("../qmail"));

    // It sends itself letters, and serves nobody else.
    let letters = "qmail check; start; echo hello | bsd-mailx -s greetings root; echo hello | s-nail -s more root; letters 2";
    let said = host.run(&format!("{letters}; cat /proc/net/tcp /proc/net/tcp6; mailq; stop"));
    let listening: Vec<&str> = said.lines().filter(|line| line.split_whitespace().nth(3) == Some("0A")).collect();
    assert!(!listening.is_empty(), "{said}");
    for row in listening {
        let address = row.split_whitespace().nth(1).unwrap();
        assert!(LOOPBACK.iter().any(|own| address.starts_with(own)), "{row}");
    }
    for subject in ["greetings", "more"] {
        let found = &host.letters()[subject];
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("\nhello\n") && found[0].contains("Delivered-To: "), "{found:?}");
        assert!(found[0].contains("root@mail.example.test"), "{found:?}");
    }

    // What it brought is where it is called, and the classic names work.
    let aliases = "echo 'all: root' >/etc/aliases; sendmail -bi; test -s /etc/aliases.cdb; rm /etc/aliases.cdb; newaliases; \
                   test -s /etc/aliases.cdb; /var/qmail/bin/maildirmake /tmp/M; test -d /tmp/M/new";
    host.run(aliases);
    assert!(!host.debian.has("usr/bin/maildirmake") && !host.debian.has("usr/share/man/man1/fastforward.1.gz"));
    let pages = host.run(PAGES);

    // A removal and a new installation keep what the administrator wrote; a step that fails is not passed over.
    host.write("etc/qmail/control/queuelifetime", "86400\n");
    host.write("etc/apparmor.d/qmail", &(host.read("etc/apparmor.d/qmail") + "# here\n"));
    let kept = [
        "etc/qmail/control/me",
        "etc/qmail/control/listen",
        "etc/qmail/control/queuelifetime",
        "etc/qmail/ids",
        "etc/apparmor.d/qmail",
    ];
    let before = kept.map(|file| host.read(file));
    std::fs::remove_file(host.debian.0.join("etc/apparmor.d/force-complain/qmail")).unwrap();
    host.run(&format!("apt-get remove -y -qq qmail-rs; {AUDIT}; ! command -v sendmail"));
    assert_eq!(kept.map(|file| host.read(file)), before);
    let fail = "mkdir /tmp/fail; ln -s /bin/false /tmp/fail/systemd-tmpfiles; if PATH=/tmp/fail:$PATH dpkg --configure qmail-rs; then exit 1; fi";
    // A service that does not start is said.
    let silent = "rm /tmp/fail/*; ln -s /bin/true /tmp/fail/systemctl; ln -s /bin/false /tmp/fail/deb-systemd-invoke; mkdir -p /run/systemd/system";
    let configure = "PATH=/tmp/fail:$PATH dpkg --configure qmail-rs; rm -r /run/systemd";
    let said = host.run(&format!("dpkg --unpack {}; {fail}; {silent}; {configure}; {AUDIT}", host.inside(&host.package)));
    assert!(said.contains("the mail system does not run"), "{said}");
    assert_eq!(kept.map(|file| host.read(file)), before);
    assert_eq!(host.state("qmail-rs"), "ii");
    assert!(!host.debian.has("etc/apparmor.d/force-complain/qmail"));

    // While a message waits a purge leaves what it is delivered by, and a new installation goes on with both.
    let again = format!("dpkg --purge qmail-rs; {AUDIT}; dpkg --install {}", host.inside(&host.package));
    let said = host.run(&format!("start; {WAITING}; stop; {again}; start; qmail-qread; stop"));
    assert!(said.contains("so /etc/qmail stays") && said.contains("someone@elsewhere.example.test"), "{said}");
    assert_eq!(kept[..4].iter().map(|file| host.read(file)).collect::<Vec<_>>(), before[..4]);

    // A purge takes the configuration, and no mail.
    let remove = "qmail queue remove $(qmail-qread | sed -n 's/.*#\\([0-9]*\\) .*/\\1/p')";
    host.run(&format!("start; {remove}; stop; {PURGE}; {AUDIT}"));
    assert_eq!(host.letters().len(), 2);
    assert!(!host.debian.has("etc/qmail/control") && !host.debian.has("usr/sbin/sendmail") && host.debian.has("var/spool/qmail"));
    assert!(
        !host.debian.has("etc/apparmor.d/qmail")
            && !host.debian.has("etc/apparmor.d/force-complain")
            && !host.debian.has("etc/systemd/system/multi-user.target.wants/qmail.service")
    );
    host.install(&["ours"]);
    assert!(host.debian.has("etc/apparmor.d/force-complain/qmail"));
    host.run("qmail check; start; echo again | sendmail root; letters 3; stop");
    assert!(host.debian.has("etc/systemd/system/multi-user.target.wants/qmail.service"));
    assert_eq!(pages, "", "programs without a page");
}

#[test]
fn an_upgrade_under_traffic_loses_no_letter() {
    let Some(host) = Host::new("package") else { return };
    // What is no name is passed over for the kernel's.
    host.write("etc/mailname", "mail..example\n");
    host.install(&["ours"]);
    let me = host.read("etc/qmail/control/me");
    assert!(!me.contains("..") && me.contains('.'), "{me}");
    host.write("etc/qmail/control/queuelifetime", "86400\n");
    // The same in a later version.
    let (tree, newer) = (host.debian.0.join("root/tree"), host.debian.0.join("root/newer.deb"));
    must(Command::new("dpkg-deb").arg("-R").arg(&host.package).arg(&tree)).unwrap();
    let control = std::fs::read_to_string(tree.join("DEBIAN/control")).unwrap();
    let version = control.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap();
    let later = format!("{version}+later");
    std::fs::write(
        tree.join("DEBIAN/control"),
        control.replace(&format!("Version: {version}\n"), &format!("Version: {later}\n")),
    )
    .unwrap();
    must(Command::new("dpkg-deb").args(["-Zgzip", "-z1", "-b"]).arg(&tree).arg(&newer)).unwrap();

    // One letter waits for a host that cannot be found; others come all the time: while the files are replaced under the running system,
    // and while it starts anew, as the service does behind an upgrade.
    let upgrade = format!("{INSTALL} {}; {AUDIT}", host.inside(&newer));
    let said = host.run(&format!(
        "start; {WAITING}; {SENDER} letters 3; {upgrade}; count=$(ls /etc/qmail/alias/Maildir/new | wc -l); letters $((count+3)); \
         stop; start; letters $((count+9)); touch /tmp/enough; wait $sender; letters $(wc -l </tmp/taken); qmail-qread; stop"
    ));
    assert_eq!(host.run("dpkg-query -W -f '${Version}' qmail-rs"), later);
    assert!(said.contains("someone@elsewhere.example.test"), "{said}");
    let letters = host.letters();
    let taken = host.read("tmp/taken");
    assert!(taken.lines().count() > 9, "{taken}");
    for subject in taken.lines() {
        assert_eq!(letters.get(subject).map(Vec::len), Some(1), "{subject}");
    }
    assert_eq!(host.read("etc/qmail/control/queuelifetime"), "86400\n");
}

#[test]
fn mail_systems_take_each_others_place() {
    let Some(host) = Host::new("package") else { return };
    host.install(&["postfix", "bsd-mailx"]);
    let owner = |package: &str, others: &[&str]| {
        host.run(&format!("dpkg -S /usr/sbin/sendmail | grep '^{package}:'; test -x /usr/sbin/sendmail"));
        assert_eq!(host.state(package), "ii");
        for other in others {
            assert_eq!(host.state(other), "rc", "{other}");
        }
    };
    owner("postfix", &[]);
    // Aliases go on (Debian Policy §11.6).
    host.run("echo 'webmaster: someone' >>/etc/aliases; useradd -m someone");
    host.install(&["ours"]);
    owner("qmail-rs", &["postfix"]);
    let alias = "su someone -s /bin/sh -c '/var/qmail/bin/maildirmake ~/Maildir'; echo hello | mail -s alias webmaster; \
                 for i in $(seq 300); do grep -l hello /home/someone/Maildir/new/* 2>/dev/null && break; sleep 0.2; done";
    let said = host.run(&format!("qmail check; start; echo first | mail -s first root; letters 1; {alias}; stop"));
    assert!(said.contains("/home/someone/Maildir/new/"), "{said}");
    host.install(&["exim4-daemon-light"]);
    owner("exim4-daemon-light", &["qmail-rs"]);
    host.install(&["ours"]);
    owner("qmail-rs", &["exim4-daemon-light"]);
    host.install(&["postfix"]);
    owner("postfix", &["qmail-rs", "exim4-daemon-light"]);
    host.install(&["ours"]);
    owner("qmail-rs", &["postfix"]);
    // What was its own is where it was.
    host.run("qmail check; start; echo second | mail -s second root; letters 2; stop");
    assert_eq!(host.letters().keys().collect::<Vec<_>>(), ["first", "second"]);
}
