//! `qmail check` on configurations that are broken, each in one way: what it says names the file, the line, the problem and the cure.
#![allow(clippy::unwrap_used)]

use std::fs::{File, FileTimes, Permissions, set_permissions, write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use system_tests::{Instance, dns, is_root, skip};

/// What must be found: file below the root, line, severity, and parts of problem and cure.
type Expected = (&'static str, Option<u64>, &'static str, &'static str, &'static str);

fn control(instance: &Instance, name: &str, text: &str) {
    instance.control(name, text).unwrap();
}

fn etc(instance: &Instance, name: &str) -> std::path::PathBuf {
    instance.root.join("etc/qmail").join(name)
}

fn mode(path: &Path, mode: u32) {
    set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// All that is found; what all findings have in common is looked at here.
fn findings(instance: &Instance) -> Vec<Value> {
    let output = instance.qmail(&["check", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().clone();
    for finding in &findings {
        let is_text = |key: &str| finding[key].as_str().is_some_and(|text| !text.is_empty());
        assert!(["severity", "file", "problem", "cure"].into_iter().all(is_text), "{finding}");
        assert!(finding["line"].is_null() || finding["line"].as_u64().is_some_and(|line| line > 0), "{finding}");
    }
    let errors = findings.iter().filter(|finding| finding["severity"] == "error").count();
    assert_eq!((output.status.code(), &report["ok"]), (Some(i32::from(errors > 0)), &Value::Bool(errors == 0)));
    findings
}

fn is_found(findings: &[Value], instance: &Instance, (file, line, severity, problem, cure): Expected) -> bool {
    let file = instance.root.join(file).display().to_string();
    findings.iter().any(|finding| {
        finding["file"] == file
            && finding["line"].as_u64() == line
            && finding["severity"] == severity
            && finding["problem"].as_str().unwrap().contains(problem)
            && finding["cure"].as_str().unwrap().contains(cure)
    })
}

/// Breaks a new instance, and looks for it in both forms of the output.
fn broken(damage: &dyn Fn(&Instance), expected: &[Expected]) {
    let instance = Instance::new().unwrap();
    let before = findings(&instance);
    damage(&instance);
    let after = findings(&instance);
    let text = String::from_utf8(instance.qmail(&["check"]).output().unwrap().stdout).unwrap();
    for expected in expected {
        assert!(!is_found(&before, &instance, *expected), "found in a good configuration: {expected:?}");
        assert!(is_found(&after, &instance, *expected), "{expected:?} is not in {after:#?}");
        let (file, line, severity, problem, cure) = *expected;
        let is_row = |row: &&str| {
            let said = [file, severity, problem, cure].into_iter().all(|part| row.contains(part));
            said && line.is_none_or(|line| row.contains(&format!("line {line}: ")))
        };
        assert!(text.lines().any(|row| is_row(&row)), "{expected:?} is not in\n{text}");
    }
}

#[test]
fn each_broken_control_file_is_named_with_line_problem_and_cure() {
    let cases: &[(&str, &str, Expected)] = &[
        ("me", "localhost\n", ("me", Some(1), "error", "every host's name for itself", "others know this host by")),
        ("me", "mail\n", ("me", Some(1), "warning", "has no dot", "mail.example.org")),
        ("me", "192.0.2.1\n", ("me", Some(1), "error", "is an address", "the name that DNS has")),
        ("me", "mail example org\n", ("me", Some(1), "error", "`mail example org`", "full name")),
        ("me", "\n", ("me", None, "error", "missing", "qmail setup")),
        ("listen", "# ours\nsmtp 127.0.0.1\n", ("listen", Some(2), "error", "is not ADDRESS:PORT", "write 0.0.0.0:25")),
        ("listen", "smpt 127.0.0.1:2\n", ("listen", Some(1), "error", "unknown service `smpt`", "there are smtp")),
        (
            "listen",
            "smtp 192.0.2.1:2525\n",
            ("listen", Some(1), "warning", "192.0.2.1:2525: is no address of this host", "`ip address` lists"),
        ),
        ("smtproutes", ":[192.0.2.1]\nexample.org\n", ("smtproutes", Some(2), "error", "no colon", "domain:relay")),
        ("smtproutes", "a.test:b.test:smtp\n", ("smtproutes", Some(1), "warning", "port is no number", "write the number")),
        ("relayclients", "127.0.0.1\n10.0.0.0/33\n", ("relayclients", Some(2), "error", "`10.0.0.0/33`", "ADDRESS/BITS")),
        ("relayclients", "0.0.0.0/0\n", ("relayclients", None, "error", "lets every host of the Internet relay", "your own")),
        ("tlspolicy", "\na.test:verfiy\n", ("tlspolicy", Some(2), "error", "`a.test:verfiy`", "write")),
        ("tlspolicy", "a.test\n", ("tlspolicy", Some(1), "error", "no colon", "DESTINATION:POLICY")),
        ("resolvers", "127.0.0.1\ndns.example.org\n", ("resolvers", Some(2), "error", "`dns.example.org`", "192.0.2.53:53")),
        ("outgoingip", "192.0.2.1\n", ("outgoingip", Some(1), "error", "no address of this host", "`ip address` lists")),
        ("databytes", "10M\n", ("databytes", Some(1), "warning", "only the digits", "take the rest away")),
        ("databytes", "25\n", ("databytes", Some(1), "warning", "25 bytes are less than most messages have", "number of bytes")),
        ("queuelifetime", "7\n", ("queuelifetime", Some(1), "warning", "after 7 seconds mail comes back", "604800")),
        ("concurrencyremote", "9000\n", ("concurrencyremote", Some(1), "warning", "counts as 5000", "5000 or less")),
        ("databytes", "ten\n", ("databytes", Some(1), "error", "`ten` is no number", "digits only")),
        ("concurrencyremote", "0\n", ("concurrencyremote", Some(1), "warning", "deliveries are held", "how many")),
        ("barelf", "allow\n", ("barelf", Some(1), "error", "neither", "`normalize`")),
        ("authsources", "accounts\nacounts\n", ("authsources", Some(2), "error", "`acounts`", "write")),
        ("tcp.smtp", "10.:allow\n10.1.:denied\n", ("tcp.smtp", Some(2), "error", "`10.1.:denied` is no rule", "ADDRESS:allow")),
        (
            "rcpthosts",
            "mail.example.test\nexample.org example.net\n",
            ("rcpthosts", Some(2), "error", "no domain", "a dot before it"),
        ),
        (
            "rcpthosts",
            "mail.example.test\n*.example.org\n",
            ("rcpthosts", Some(2), "error", "`*.example.org`", "a dot before it"),
        ),
        (
            "rcpthosts",
            "mail.example.test\n example.org\n",
            ("rcpthosts", Some(2), "warning", "begins with a blank", "take it away"),
        ),
        ("rcpthosts", "\u{feff}mail.example.test\n", ("rcpthosts", Some(1), "error", "byte order mark", "save it without")),
        ("rcpthosts", "mail.example.test\r\n", ("rcpthosts", Some(1), "note", "CR LF", "dos2unix")),
        ("rcpthosts", "mail.example.test\na\0b\n", ("rcpthosts", Some(2), "error", "NUL", "write the line again")),
        (
            "locals",
            "mail.example.test\n.example.org\n",
            ("locals", Some(2), "error", "a dot before one means nothing", "each domain"),
        ),
        ("locals", "mail.example.test\nnew.test\n", ("locals", Some(2), "warning", "not in rcpthosts", "into control/rcpthosts")),
        ("locals", "other.test\n", ("locals", None, "warning", "the name of this host", "write it into the file")),
        ("virtualdomains", "example.org\n", ("virtualdomains", Some(1), "error", "no colon", "domain:prefix")),
        (
            "virtualdomains",
            "# joe's\nmail.example.test:joe\n",
            ("virtualdomains", Some(2), "error", "in line 1 of control/locals", "take it out of one"),
        ),
        (
            "virtualdomains",
            "a.test:x\nA.test:y\n",
            ("virtualdomains", Some(2), "warning", "takes the place of line 1", "take one"),
        ),
        ("morercpthosts", "a.test\n", ("morercpthosts", None, "error", "morercpthosts.cdb", "run qmail-newmrh")),
        ("morercpthosts.cdb", "no database", ("morercpthosts.cdb", None, "error", "is damaged", "run qmail-newmrh")),
        ("rcpthost", "a.test\n", ("rcpthost", None, "warning", "rcpthosts is near", "put what it says into rcpthosts")),
        ("smtproute", ":a.test\n", ("smtproute", None, "warning", "smtproutes is near", "rename it to smtproutes")),
        ("locals~", "x\n", ("locals~", None, "note", "no program of this version reads it", "remove it")),
        ("remarks", "x\n", ("remarks", None, "note", "no program of this version reads it", "remove it")),
    ];
    for (name, text, (file, line, severity, problem, cure)) in cases {
        let file: &'static str = format!("etc/qmail/control/{file}").leak();
        broken(&|instance| control(instance, name, text), &[(file, *line, severity, problem, cure)]);
    }
}

#[test]
fn what_is_wrong_around_the_control_files_is_named() {
    let domains = "etc/qmail/users/domains";
    type Damage = fn(&Instance);
    let cases: &[(Damage, Expected)] = &[
        (
            |i| std::fs::remove_file(etc(i, "control/me")).unwrap(),
            ("etc/qmail/control/me", None, "error", "missing", "qmail setup --me"),
        ),
        (
            |i| std::fs::remove_file(etc(i, "control/rcpthosts")).unwrap(),
            ("etc/qmail/control/rcpthosts", None, "warning", "is missing", "the domains that are yours"),
        ),
        (
            |i| mode(&etc(i, "control/rcpthosts"), 0o666),
            ("etc/qmail/control/rcpthosts", None, "error", "everybody may write it", "chmod o-w"),
        ),
        (
            |i| write(etc(i, "users/domains"), "a.test:5:6\n").unwrap(),
            (domains, Some(1), "error", "no line of this file", "domain:uid:gid:base"),
        ),
        (
            |i| {
                let base = i.root.join("var/mail").display().to_string();
                write(etc(i, "users/domains"), format!("mail.example.test:61000:61000:{base}\n")).unwrap();
            },
            ("etc/qmail/control/locals", Some(1), "error", "in users/domains too", "take it out"),
        ),
        (
            |i| write(etc(i, "users/assign"), "=a:a:1001:1001:/a:::\n").unwrap(),
            ("etc/qmail/users/assign", None, "error", "single dot", "write the single dot"),
        ),
        (
            |i| write(etc(i, "users/assign"), "# no\n=a:a:x:1001:/a:::\n.\n").unwrap(),
            ("etc/qmail/users/assign", Some(2), "error", "waits", "=local:user:uid"),
        ),
        (
            |i| {
                write(etc(i, "users/assign"), ".\n").unwrap();
                write(etc(i, "users/cdb"), "no database").unwrap();
                let old = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(9));
                File::options().write(true).open(etc(i, "users/cdb")).unwrap().set_times(old).unwrap();
            },
            ("etc/qmail/users/assign", None, "warning", "newer than users/cdb", "run qmail-newu"),
        ),
        (
            |i| write(etc(i, "users/cdb"), "no database").unwrap(),
            ("etc/qmail/users/cdb", None, "error", "is damaged", "run qmail-newu"),
        ),
        (
            |i| std::fs::remove_file(etc(i, "alias/.qmail-postmaster")).unwrap(),
            ("etc/qmail/alias/.qmail-postmaster", None, "warning", "is missing", "write where it goes"),
        ),
        (
            |i| write(etc(i, "alias/.qmail-list"), "# a list\n|/no/such/program joe\n").unwrap(),
            ("etc/qmail/alias/.qmail-list", Some(2), "error", "/no/such/program is no program", "install it"),
        ),
        (
            |i| write(etc(i, "alias/.qmail-list"), "joe@a.test\n ./Maildir/\n").unwrap(),
            ("etc/qmail/alias/.qmail-list", Some(2), "error", "begins with a blank", "take the blank away"),
        ),
        (
            |i| {
                write(etc(i, "alias/.qmail-list"), "joe@a.test\n").unwrap();
                mode(&etc(i, "alias/.qmail-list"), 0o646);
            },
            ("etc/qmail/alias/.qmail-list", None, "error", "everybody may write it", "chmod o-w"),
        ),
        (
            |i| symlink("/nonexistent", etc(i, "alias/.qmail-list")).unwrap(),
            ("etc/qmail/alias/.qmail-list", None, "error", "leads nowhere", "remove it"),
        ),
        (
            |i| std::fs::create_dir_all(i.root.join("var/qmail/control")).unwrap(),
            ("var/qmail/control", None, "warning", "is of another qmail", "docs/migration.md"),
        ),
        (
            |i| std::fs::remove_dir_all(i.root.join("var/spool/qmail")).unwrap(),
            ("var/spool/qmail", None, "error", "No such file", "run qmail setup"),
        ),
        (|i| mode(&i.root.join("var/spool/qmail"), 0o777), ("var/spool/qmail", None, "error", "has mode 777", "chmod 700")),
        (
            |i| {
                let future = FileTimes::new().set_modified(SystemTime::now() + Duration::from_secs(10 * 86_400));
                File::options().write(true).open(etc(i, "control/me")).unwrap().set_times(future).unwrap();
            },
            ("etc/qmail/control/me", None, "warning", "days from now", "set the clock"),
        ),
    ];
    for (damage, expected) in cases {
        broken(damage, &[*expected]);
    }
}

#[test]
fn what_only_root_has_is_named() {
    let name = "what_only_root_has_is_named";
    if !is_root() {
        return skip(name, "needs root");
    }
    let ids = |instance: &Instance, from: &str, to: &dyn Fn(&str) -> String| {
        let text = std::fs::read_to_string(etc(instance, "ids")).unwrap();
        let line = |line: &str| if line.starts_with(from) { to(line) } else { format!("{line}\n") };
        write(etc(instance, "ids"), text.lines().map(line).collect::<String>()).unwrap();
    };
    let chown = |path: &Path, uid| std::os::unix::fs::chown(path, Some(uid), None).unwrap();
    type Damage<'a> = &'a dyn Fn(&Instance);
    let cases: &[(Damage<'_>, Expected)] = &[
        (
            &|i| mode(&etc(i, "control/locals"), 0o600),
            ("etc/qmail/control/locals", None, "error", "cannot be read by qmailp", "chmod 644"),
        ),
        (
            &|i| chown(&etc(i, "control/locals"), 61_234),
            ("etc/qmail/control/locals", None, "warning", "belongs to uid 61234", "chown root"),
        ),
        (
            &|i| chown(&i.root.join("var/spool/qmail"), 61_234),
            ("var/spool/qmail", None, "error", "belongs to uid 61234", "chown"),
        ),
        (
            &|i| {
                let qmailq = std::fs::read_to_string(etc(i, "ids")).unwrap();
                let qmailq = qmailq.lines().find_map(|line| line.strip_prefix("qmailq ")?.split(' ').next()?.parse().ok());
                control(i, "qmailremote", "/bin/true\n");
                control(i, "authsenders", "joe@a.test:relay.test|joe|secret\n");
                mode(&etc(i, "control/authsenders"), 0o600);
                chown(&etc(i, "control/authsenders"), qmailq.unwrap());
            },
            ("etc/qmail/control/authsenders", None, "error", "qmail-remote cannot read it as qmailr", "chmod 640"),
        ),
        (&|i| ids(i, "qmailx ", &|_| String::new()), ("etc/qmail/ids", None, "error", "no line for qmailx", "qmail setup")),
        (
            &|i| ids(i, "qmailx ", &|line| format!("qmailx 1 {}\n", line.rsplit(' ').next().unwrap())),
            ("etc/qmail/ids", None, "error", "is the user daemon's in passwd", "a uid of its own"),
        ),
        (
            &|i| ids(i, "qmailx ", &|line| format!("{line} 7\n")),
            ("etc/qmail/ids", Some(6), "error", "no line of this file", "`role uid gid`"),
        ),
        (&|i| std::fs::remove_file(etc(i, "ids")).unwrap(), ("etc/qmail/ids", None, "error", "missing", "run qmail setup")),
    ];
    for (damage, expected) in cases {
        broken(damage, &[*expected]);
    }
}

/// What `qmail check` advises for a program in the place of qmail-remote is no fault to it.
#[test]
fn passwords_of_routes_may_be_read_by_the_qmail_remote_that_a_program_runs() {
    let name = "passwords_of_routes_may_be_read_by_the_qmail_remote_that_a_program_runs";
    if !is_root() {
        return skip(name, "needs root");
    }
    let instance = Instance::new().unwrap();
    let ids = std::fs::read_to_string(etc(&instance, "ids")).unwrap();
    let id = |role: &str, at: usize| -> u32 {
        let line = ids.lines().find(|line| line.starts_with(role)).unwrap();
        line.split(' ').nth(at).unwrap().parse().unwrap()
    };
    control(&instance, "authsenders", "joe@a.test:relay.test|joe|secret\n");
    let file = etc(&instance, "control/authsenders");
    std::os::unix::fs::chown(&file, Some(id("qmailq ", 1)), Some(id("qmailr ", 2))).unwrap();
    mode(&file, 0o640);
    let reached = ("etc/qmail/control/authsenders", None, "error", "others than its owner may reach it", "chmod 600");
    assert!(is_found(&findings(&instance), &instance, reached), "nobody but qmail-send reads it");
    control(&instance, "qmailremote", "/bin/true\n");
    let of_file: Vec<Value> =
        findings(&instance).into_iter().filter(|finding| finding["file"] == file.to_str().unwrap()).collect();
    assert!(of_file.is_empty(), "{of_file:?}");
    mode(&file, 0o644);
    let reached = ("etc/qmail/control/authsenders", None, "error", "others than its owner may reach it", "chmod 640");
    assert!(is_found(&findings(&instance), &instance, reached));
}

#[test]
fn a_port_that_somebody_has_is_named_while_the_system_is_down() {
    let other = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let line = format!("smtp {}\n", other.local_addr().unwrap());
    let expected = (
        "etc/qmail/control/listen",
        Some(2),
        "error",
        "another program listens there, and nothing starts",
        "`ss -ltnp` names it",
    );
    broken(&|instance| control(instance, "listen", &format!("# here\n{line}")), &[expected]);
    // Its own ports are no others'.
    let instance = Instance::started(&[]).unwrap();
    assert!(!findings(&instance).iter().any(|finding| finding["problem"].as_str().unwrap().contains("listens there")));
}

#[test]
fn a_relay_that_is_this_host_is_named() {
    let expected = ("etc/qmail/control/smtproutes", Some(2), "error", "round in circles", "name another relay");
    let port = |instance: &Instance| instance.port(25);
    broken(&|i| control(i, "smtproutes", &format!("a.test:b.test\n:127.0.0.1:{}\n", port(i))), &[expected]);
    broken(&|i| control(i, "smtproutes", &format!("a.test:b.test\n:Mail.example.TEST:{}\n", port(i))), &[expected]);
    broken(&|i| control(i, "smtproutes", &format!("a.test:b.test\n:[127.0.0.1]:{}\n", port(i))), &[expected]);
}

#[test]
fn a_name_server_that_is_dead_is_named() {
    // It hears, and says nothing.
    let silent = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let silent_line = format!("{}\n", silent.local_addr().unwrap());
    let alive = dns::start((Ipv4Addr::LOCALHOST, 0), Vec::new()).unwrap();
    let file = "etc/qmail/control/resolvers";
    broken(
        &|instance| control(instance, "resolvers", &format!("{alive}\n{silent_line}")),
        &[(file, Some(2), "warning", "does not answer", "start it")],
    );
    broken(&|instance| control(instance, "resolvers", &silent_line), &[(file, Some(1), "error", "no mail goes out", "start it")]);
    let instance = Instance::new().unwrap();
    control(&instance, "resolvers", &format!("{alive}\n"));
    assert!(!findings(&instance).iter().any(|finding| finding["file"].as_str().unwrap().ends_with(file)));
}

/// A certificate for `host` in `dir` from so many days ago to so many days from now, with a key that may be another one's.
fn certificate(instance: &Instance, [from, to]: [i64; 2], is_other_key: bool) {
    let dir = etc(instance, "tls").join(system_tests::instance::ME);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new([system_tests::instance::ME.to_owned()]).unwrap();
    let date = |days: i64| {
        let now_s = i64::try_from(sys::clock::unix_s()).unwrap();
        let day = wire::civil::Civil::from_unix(u64::try_from(now_s + days * 86_400).unwrap());
        rcgen::date_time_ymd(i32::try_from(day.year).unwrap(), day.month, day.day)
    };
    (params.not_before, params.not_after) = (date(from), date(to));
    write(dir.join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let key = if is_other_key { rcgen::KeyPair::generate().unwrap() } else { key };
    // Over the old one: its owner and mode stay.
    write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

#[test]
fn certificates_that_clients_will_not_take_are_named() {
    let dir = "etc/qmail/tls/mail.example.test";
    let key: &'static str = "etc/qmail/tls/mail.example.test/key.pem";
    broken(&|i| certificate(i, [-90, -1], false), &[(dir, None, "error", "has expired", "renew it")]);
    broken(&|i| certificate(i, [5, 90], false), &[(dir, None, "error", "not valid yet", "clock")]);
    broken(&|i| certificate(i, [-90, 9], false), &[(dir, None, "warning", "expires in", "renew it")]);
    broken(&|i| certificate(i, [-9, 90], true), &[(dir, None, "error", "key.pem is not the key of cert.pem", "its own key")]);
    broken(&|i| mode(&i.root.join(key), 0o644), &[(dir, None, "error", "key.pem can be read by others", "chmod 600")]);
    broken(
        &|i| std::fs::remove_dir_all(i.root.join(dir)).unwrap(),
        &[("etc/qmail/tls", None, "error", "no certificate that can be used", "qmail cert self-signed")],
    );
}

/// /dev/shm is a tmpfs wherever there is one.
#[test]
fn a_spool_that_forgets_is_named() {
    let name = "a_spool_that_forgets_is_named";
    let forgets = Path::new("/dev/shm");
    if !forgets.is_dir() {
        return skip(name, "there is no /dev/shm");
    }
    let place = forgets.join(format!("qmail-test.{}", system_tests::instance::random_word().unwrap()));
    std::fs::create_dir(&place).unwrap();
    let expected = ("var/spool/qmail", None, "warning", "is a tmpfs", "put it on a disk");
    broken(
        &|instance| {
            let spool = instance.root.join("var/spool/qmail");
            std::fs::remove_dir_all(&spool).unwrap();
            symlink(&place, &spool).unwrap();
        },
        &[expected],
    );
    std::fs::remove_dir_all(place).unwrap();
}
