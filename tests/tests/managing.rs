//! Administrators of domains: users of this host who are not root and look after a domain with `qmail --as`.
#![allow(clippy::unwrap_used)]

use std::os::unix::process::CommandExt as _;
use system_tests::instance::feed;
use system_tests::{Instance, is_root, wait_for};

/// Nobody that this host knows.
const UID: u32 = 54_321;

/// Two domains; ann administers a.test, dora as well.
fn instance(control: &[(&str, &str)]) -> Instance {
    let control: Vec<_> = [("authcleartext", "127.0.0.1/32\n")].into_iter().chain(control.iter().copied()).collect();
    let instance = Instance::started(&control).unwrap();
    instance.virtual_domain("a.test", &["ann", "bob", "dora"]).unwrap();
    instance.virtual_domain("b.test", &["carl"]).unwrap();
    for administrator in ["ann@a.test", "dora@a.test"] {
        instance.must(&["domain", "admin", "add", "a.test", administrator]).unwrap();
    }
    instance
}

/// Exit code and all that was said to `qmail ARGS` of a user who is not root.
fn run(instance: &Instance, args: &[&str], input: &str) -> (Option<i32>, String) {
    let mut command = instance.qmail(args);
    if is_root() {
        command.uid(UID).gid(UID);
    }
    let output = feed(&mut command, input.as_bytes()).unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

fn by_ann(instance: &Instance, args: &[&str], input: &str) -> (Option<i32>, String) {
    let args: Vec<&str> = ["--as", "ann@a.test"].into_iter().chain(args.iter().copied()).collect();
    run(instance, &args, &format!("ann-password\n{input}"))
}

#[test]
fn an_administrator_manages_the_users_of_the_domain() {
    let instance = instance(&[]);
    for (args, input) in [
        (&["user", "add", "eve@a.test", "--password-stdin"][..], "eve-password\n"),
        (&["user", "passwd", "bob@a.test", "--password-stdin"], "bob-new\n"),
        (&["user", "quota", "bob@a.test", "10M"], ""),
        (&["user", "forward", "bob@a.test", "x@elsewhere.test", "--keep-copy"], ""),
        (&["user", "vacation", "bob@a.test", "--text-stdin"], "Away.\n"),
        (&["user", "suspend", "bob@a.test"], ""),
        (&["user", "resume", "bob@a.test"], ""),
        (&["user", "app-password", "add", "bob@a.test", "--name", "phone"], ""),
        (&["user", "app-password", "list", "bob@a.test"], ""),
        (&["alias", "add", "info@a.test", "bob@a.test"], ""),
        (&["domain", "set", "a.test", "--default-quota", "5M", "--catch-all", "bob@a.test"], ""),
        (&["domain", "show", "a.test"], ""),
        (&["user", "show", "bob@a.test"], ""),
        (&["user", "list", "a.test"], ""),
        (&["alias", "list", "a.test"], ""),
        (&["user", "passwd", "ann@a.test", "--password-stdin"], "ann-password\n"),
    ] {
        let (code, said) = by_ann(&instance, args, input);
        assert_eq!(code, Some(0), "{args:?}: {said}");
    }
    instance.pop3("eve@a.test").unwrap();
    let shown = instance.json(&["user", "show", "eve@a.test"]).unwrap();
    assert_eq!(shown["quota"], 5 << 20, "the domain's default");
    let (code, listed) = by_ann(&instance, &["user", "list", "a.test", "--json"], "");
    assert!(code == Some(0) && listed.contains("eve@a.test") && !listed.contains("b.test"), "{listed}");
    assert_eq!(by_ann(&instance, &["user", "remove", "eve@a.test"], "").0, Some(0));
    assert!(instance.log().contains("administration allowed: user-remove uid="), "{}", instance.log());
}

#[test]
fn what_is_not_the_administrators_is_refused() {
    let instance = instance(&[]);
    for user in ["ann", "bob", "dora"] {
        instance.must(&["user", "quota", &format!("{user}@a.test"), "10M"]).unwrap();
    }
    instance.must(&["domain", "set", "a.test", "--users-max", "4", "--quota", "100M", "--default-quota", "10M"]).unwrap();
    let before = instance.must(&["export", "--with-secrets"]).unwrap();
    for (args, input, why) in [
        (&["user", "add", "x@b.test", "--password-stdin"][..], "x\n", "does not administer b.test"),
        (&["user", "passwd", "carl@b.test", "--password-stdin"], "x\n", "does not administer b.test"),
        (&["user", "remove", "carl@b.test"], "", "does not administer b.test"),
        (&["alias", "add", "x@b.test", "ann@a.test"], "", "does not administer b.test"),
        (&["user", "list", "b.test"], "", "does not administer b.test"),
        (&["user", "list"], "", "only root"),
        (&["alias", "list"], "", "only root"),
        (&["user", "show", "carl@b.test"], "", "does not administer b.test"),
        (&["user", "passwd", "dora@a.test", "--password-stdin"], "x\n", "administers a.test, too"),
        (&["user", "forward", "dora@a.test", "ann@a.test"], "", "administers a.test, too"),
        (&["user", "app-password", "add", "dora@a.test", "--name", "x"], "", "administers a.test, too"),
        (&["user", "remove", "dora@a.test"], "", "only root"),
        (&["user", "suspend", "ann@a.test"], "", "only root"),
        (&["user", "limits", "bob@a.test", "--per-hour", "none"], "", "only root"),
        (&["user", "add", "h@a.test", "--password-hash-stdin"], "$1$x$y\n", "only root"),
        (&["domain", "set", "a.test", "--quota", "none"], "", "only root"),
        (&["domain", "set", "a.test", "--users-max", "none"], "", "only root"),
        (&["domain", "set", "a.test", "--default-quota", "1M", "--users-max", "9"], "", "only root"),
        (&["domain", "set", "b.test", "--default-quota", "1M"], "", "does not administer b.test"),
        (&["user", "quota", "bob@a.test", "90M"], "", "more than the domain's quota"),
        (&["user", "quota", "bob@a.test", "none"], "", "each of its users must have one"),
        (&["domain", "add", "c.test"], "", "--as is for"),
        (&["domain", "admin", "add", "a.test", "bob@a.test"], "", "--as is for"),
        (&["export"], "", "--as is for"),
        (&["queue", "list"], "", "--as is for"),
    ] {
        let (code, said) = by_ann(&instance, args, input);
        assert!(code == Some(100) && said.contains(why), "{args:?}: {code:?} {said}");
    }
    assert_eq!(instance.must(&["export", "--with-secrets"]).unwrap(), before, "nothing changed");
    assert_eq!(by_ann(&instance, &["user", "add", "four@a.test", "--password-stdin"], "x\n").0, Some(0));
    let (code, said) = by_ann(&instance, &["user", "add", "five@a.test", "--password-stdin"], "x\n");
    assert!(code == Some(100) && said.contains("all the users it may have"), "{said}");
}

#[test]
fn who_is_not_or_no_more_an_administrator_does_nothing() {
    let instance = instance(&[("authlimits", "pause=0\naccount=4\n")]);
    let add = ["user", "add", "x@a.test", "--password-stdin"];
    let as_whom = |address: &str, password: &str| {
        let args: Vec<&str> = ["--as", address].into_iter().chain(add).collect();
        run(&instance, &args, &format!("{password}\nx\n"))
    };
    let (code, said) = as_whom("bob@a.test", "bob-password");
    assert!(code == Some(100) && said.contains("does not administer a.test"), "{said}");
    let app = instance.must(&["user", "app-password", "add", "ann@a.test", "--name", "phone"]).unwrap();
    let app = app.split_whitespace().find(|word| word.matches('-').count() == 5).unwrap().to_owned();
    for (address, password) in
        [("ann@a.test", "wrong"), ("nobody@a.test", "x"), ("ann@a.test' --", "ann-password"), ("ann@a.test", &app)]
    {
        let (code, said) = as_whom(address, password);
        assert!(code == Some(100) && said.contains("wrong name or password"), "{address} {password}: {said}");
    }
    // Without being anybody, not even root's words count there.
    if is_root() {
        let (code, said) = run(&instance, &add, "x\n");
        assert!(code == Some(100) && said.contains("only root"), "{said}");
    }
    for _ in 0..3 {
        as_whom("dora@a.test", "wrong");
    }
    assert_eq!(as_whom("dora@a.test", "dora-password").0, Some(0), "three are not too many");
    instance.must(&["user", "remove", "x@a.test"]).unwrap();
    instance.must(&["domain", "admin", "remove", "a.test", "dora@a.test"]).unwrap();
    assert!(as_whom("dora@a.test", "dora-password").1.contains("does not administer a.test"));
    // Too many, from one user of this host: whatever is said then is refused, and others of the account's clients are not.
    for _ in 0..6 {
        as_whom("ann@a.test", "wrong");
    }
    let (code, said) = as_whom("ann@a.test", "ann-password");
    assert!(code == Some(100) && said.contains("too many"), "{said}");
    wait_for("a word in the log", || instance.log().contains("too many failed logins").then_some(())).unwrap();
}

#[test]
fn a_suspended_administrator_and_a_stopped_system() {
    let mut instance = instance(&[]);
    instance.must(&["user", "suspend", "ann@a.test"]).unwrap();
    let list = ["user", "list", "a.test"];
    assert!(by_ann(&instance, &list, "").1.contains("wrong name or password"));
    instance.must(&["user", "resume", "ann@a.test"]).unwrap();
    assert_eq!(by_ann(&instance, &list, "").0, Some(0));
    instance.stop().unwrap();
    let (code, said) = by_ann(&instance, &list, "");
    assert!(code == Some(111) && said.contains("not running"), "{said}");
}
