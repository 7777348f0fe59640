//! The rpm, in a tree with no other mail system: what rpm(8) says of it, that mail of this host arrives, and that mail stays. The tree is a
//! Debian's; Debian's update-alternatives takes the arguments of alternatives(8).
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use system_tests::debian::{Debian, INSTALL, package};
use system_tests::skip;
use system_tests::tools::must;

const NAME: &str = "rpm";
/// Nothing is known to rpm there, not even the C library.
const RPM: &str = "rpm --force-debian --nodeps --root \"$1\" --dbpath /var/lib/rpm";

fn list(args: &[&str], rpm: &Path) -> Vec<String> {
    let said = must(Command::new("rpm").args(args).arg(rpm)).unwrap();
    said.lines().map(str::to_owned).collect()
}

#[test]
fn the_rpm_installs_delivers_and_leaves_mail_alone() {
    if !Path::new("/usr/bin/rpmbuild").is_file() {
        skip(NAME, "rpmbuild is not installed (Debian's package rpm)");
        return;
    }
    let Some(debian) = Debian::new(NAME).unwrap() else { return };
    let rpm = package(&debian.0.join("root/packages"), &["--rpm"], "rpm").unwrap();

    let files = list(&["-qlp"], &rpm);
    for path in [
        "/usr/lib/qmail/qmail-send",
        "/usr/bin/qmail",
        "/usr/lib/systemd/system/qmail.service",
        "/usr/sbin/sendmail",
        "/var/qmail/bin",
    ] {
        assert!(files.iter().any(|file| file == path), "{path}: {files:?}");
    }
    assert!(!files.iter().any(|file| file.starts_with("/lib/") || file.starts_with("/etc/")), "{files:?}");
    must(Command::new("rpm").args(["-K", "--nosignature"]).arg(&rpm)).unwrap();
    let needs = list(&["-qp", "--requires"], &rpm);
    assert!(needs.iter().any(|need| need.starts_with("libc.so.6(GLIBC_")), "{needs:?}");
    assert!(list(&["-qp", "--provides"], &rpm).iter().any(|name| name == "MTA"));

    debian
        .run(&format!(
            "{INSTALL} systemd; ln -s ../bin/update-alternatives /usr/sbin/alternatives; echo mail.example.test >/etc/mailname"
        ))
        .unwrap();
    let package = rpm.display();
    debian.run_beside(&format!("{RPM} -i {package}; {RPM} -V qmail-rs")).unwrap();
    let letter = "readlink -f /usr/sbin/sendmail /usr/lib/sendmail /usr/bin/mailq /usr/bin/newaliases; qmail check; qmail start >/tmp/out 2>/tmp/log & \
                  for i in $(seq 300); do grep -q ready /tmp/out && break; sleep 0.2; done; \
                  printf 'Subject: x\\n\\nhello\\n' | sendmail root; mailq >/tmp/mailq; \
                  for i in $(seq 300); do grep -l hello /etc/qmail/alias/Maildir/new/* && break; sleep 0.2; done; kill -TERM $!; wait $! || cat /tmp/log";
    let said = debian.run(letter).unwrap();
    assert!(said.starts_with(&format!("{0}{0}{0}/usr/lib/qmail/newaliases\n", "/usr/lib/qmail/sendmail\n")), "{said}");
    let new = debian.0.join("etc/qmail/alias/Maildir/new");
    assert_eq!(std::fs::read_dir(&new).unwrap().count(), 1, "{said}");

    // Again over itself, as an upgrade goes; then away.
    debian.run_beside(&format!("{RPM} -U --replacepkgs {package}")).unwrap();
    assert_eq!(debian.run("readlink -f /usr/sbin/sendmail; qmail check >/dev/null").unwrap(), "/usr/lib/qmail/sendmail\n");
    debian.run_beside(&format!("{RPM} -e qmail-rs")).unwrap();
    assert_eq!(std::fs::read_dir(&new).unwrap().count(), 1);
    for path in ["usr/sbin/sendmail", "usr/bin/mailq", "usr/lib/qmail", "var/qmail", "usr/share/man/man8/sendmail.8.gz"] {
        assert!(!debian.has(path), "{path}");
    }
    assert!(debian.has("etc/qmail/control/me") && debian.has("var/spool/qmail"));
}
