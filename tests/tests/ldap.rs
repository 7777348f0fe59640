//! Logins by a directory, through the whole system: qmail-smtpd and qmail-popup, qmail-auth, qmail-authnet and a real slapd.
#![allow(clippy::unwrap_used)]

use system_tests::slapd::{BASE, SEARCHER, Slapd, person};
use system_tests::{Instance, Pop3, facts, wait_for};

fn login(instance: &Instance, user: &str, password: &str) -> String {
    let mut smtp = system_tests::Smtp::open(instance.port(587)).unwrap();
    smtp.ask("EHLO client.test").unwrap();
    let message = wire::base64::encode(format!("\0{user}\0{password}").as_bytes());
    smtp.ask(&format!("AUTH PLAIN {message}")).unwrap()
}

#[test]
fn a_login_is_the_directorys_word_and_the_accounts() {
    let mut instance = Instance::new().unwrap();
    let people = ["ann", "sue", "gone"].map(|uid| person(uid, &format!("{uid}@example.test"), &format!("{uid}-in-ldap"), ""));
    let test = "a_login_is_the_directorys_word_and_the_accounts";
    let Some(mut slapd) = Slapd::start(test, instance.dir(), &people.concat(), None).unwrap() else { return };
    let (name, password) = SEARCHER;
    let secret = instance.root.join("etc/qmail/control/ldap.secret");
    std::fs::write(&secret, format!("{password}\n")).unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let url = format!("url ldap://127.0.0.1:{}\nstarttls no", slapd.port);
    instance.control("ldap", &format!("{url}\nbase {BASE}\nbinddn {name}\nbindpwfile ldap.secret\n")).unwrap();
    instance.control("authsources", "ldap\naccounts\n").unwrap();
    let ids = std::fs::read_to_string(instance.root.join("etc/qmail/ids")).unwrap_or_default();
    let uid = ids.lines().find_map(|line| line.strip_prefix("qmailn ")?.split(' ').next()?.parse::<u32>().ok());
    if let Some(uid) = uid {
        let report = instance.qmail(&["check"]).output().unwrap();
        let report = String::from_utf8_lossy(&report.stdout).into_owned();
        assert!(report.contains("ldap.secret") && report.contains("chown"), "{report}");
        std::os::unix::fs::chown(&secret, Some(uid), None).unwrap();
    }
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["ann", "sue", "bob"]).unwrap();
    for (user, password, reply) in [
        ("ann@example.test", "ann-in-ldap", "235"),
        // The directory knows her, and its word is the last; it does not know bob.
        ("ann@example.test", "ann-password", "535"),
        ("bob@example.test", "bob-password", "235"),
        ("bob@example.test", "ann-in-ldap", "535"),
        ("ann@example.test", "sue-in-ldap", "535"),
        ("*@example.test", "ann-in-ldap", "535"),
        ("ann@example.test)(uid=*", "ann-in-ldap", "535"),
        // The directory knows him, this host does not.
        ("gone@example.test", "gone-in-ldap", "535"),
    ] {
        let said = login(&instance, user, password);
        assert!(said.starts_with(reply), "{user} {password}: {said}");
    }
    let mut pop3 = Pop3::login(instance.port(110), "ann@example.test", "ann-in-ldap").unwrap();
    assert_eq!(pop3.count().unwrap(), 0);
    // Without the directory everybody is told to come back, never on to a weaker source and never that it is wrong.
    slapd.kill();
    for (user, password) in [("sue@example.test", "sue-in-ldap"), ("sue@example.test", "x"), ("bob@example.test", "bob-password")]
    {
        let said = login(&instance, user, password);
        assert!(said.starts_with("454"), "{user} {password}: {said}");
    }
    // Those whom an earlier source lets in do not wait for it.
    instance.control("authsources", "accounts\nldap\n").unwrap();
    assert!(login(&instance, "bob@example.test", "bob-password").starts_with("235"));
    instance.control("authsources", "ldap\naccounts\n").unwrap();
    slapd.run().unwrap();
    wait_for("the directory to be asked again", || {
        login(&instance, "sue@example.test", "sue-in-ldap").starts_with("235").then_some(())
    })
    .unwrap();
    // qmail-authnet may die like any other, and holds nothing of this host's.
    let authnet = |instance: &Instance| facts::descendants(instance.pid()).into_iter().find(|p| p.name == "qmail-authnet");
    let first = authnet(&instance).unwrap();
    let seen = ["NoNewPrivs", "Seccomp"].map(|field| facts::status(first.pid, field).unwrap());
    assert_eq!(seen, ["1", "2"]);
    if let Some(uid) = uid {
        assert!(facts::status(first.pid, "Uid").unwrap().starts_with(&uid.to_string()));
    }
    let files = facts::descriptors(first.pid);
    assert!(
        files.iter().all(|file| !file.starts_with(instance.root.join("etc")) && !file.starts_with(instance.root.join("var")))
    );
    facts::signal(first.pid, rustix::process::Signal::KILL);
    wait_for("another qmail-authnet", || authnet(&instance).filter(|p| p.pid != first.pid)).unwrap();
    wait_for("a login", || login(&instance, "sue@example.test", "sue-in-ldap").starts_with("235").then_some(())).unwrap();
    assert!(!instance.log().contains("in-ldap") && !instance.log().contains(password), "no password is logged");
}

#[test]
fn where_no_source_needs_it_qmail_authnet_does_not_run() {
    let instance = Instance::started(&[]).unwrap();
    let runs = || facts::descendants(instance.pid()).iter().any(|p| p.name == "qmail-authnet");
    assert!(!runs());
    instance.control("ldap", &format!("url ldap://127.0.0.1:1\nstarttls no\nbase {BASE}\n")).unwrap();
    instance.control("authsources", "accounts\nldap\n").unwrap();
    facts::signal(instance.pid(), rustix::process::Signal::HUP);
    wait_for("qmail-authnet after SIGHUP", || runs().then_some(())).unwrap();
}
