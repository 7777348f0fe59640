//! `.qmail` files of a system user and of alias, from SMTP to what they make happen.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use system_tests::instance::feed;
use system_tests::{Instance, Person, is_root, tools, wait_for};

const LETTER: &str = "Subject: x\n\nFrom here\nbody\n";
const BOB: &str = "bob@example.test";

fn world() -> (Instance, Person) {
    let mut instance = Instance::new().unwrap();
    let person = Person::new(&instance).unwrap();
    person.maildir("Maildir").unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    (instance, person)
}

fn send(instance: &Instance, person: &Person, ext: &str) {
    let to = format!("{}{ext}@mail.example.test", person.name);
    instance.smtp().unwrap().send(BOB, &[&to], LETTER).unwrap();
}

#[test]
fn the_lines_of_a_file_are_done_in_order_with_the_classic_environment() {
    let (instance, person) = world();
    let p = &person.name;
    let file = "# a comment\n./Maildir/\n./mbox  \t\n|cat > message; env > environment; pwd > where\n|cat mbox > mbox-then\n\n\
                &bob@example.test\n|echo last > last\n";
    person.write(".qmail-a-default", file).unwrap();
    send(&instance, &person, "-a-Bc.d-e");
    instance.wait_mail(BOB, 1).unwrap();
    instance.wait_empty().unwrap();
    let to = format!("{p}-a-Bc.d-e@mail.example.test");
    let head = format!("Return-Path: <{BOB}>\nDelivered-To: {to}\nReceived: (qmail ");
    let letter = person.letters("Maildir").remove(0);
    assert!(letter.starts_with(&head) && letter.ends_with(LETTER), "{letter}");
    let mbox = person.read("mbox").unwrap();
    let (from_line, rest) = mbox.split_once('\n').unwrap();
    assert!(from_line.starts_with("From bob@example.test "), "{mbox}");
    assert!(rest.starts_with(&head) && rest.ends_with("Subject: x\n\n>From here\nbody\n\n"), "{mbox}");
    assert_eq!(person.read("mbox-then"), Some(mbox.clone()));
    let message = person.read("message").unwrap();
    assert!(message.starts_with("Received: (qmail ") && message.ends_with(LETTER), "no lines before it: {message}");
    assert_eq!(person.read("where").unwrap().trim_end(), person.home.to_str().unwrap());
    assert_eq!(person.read("last").unwrap(), "last\n");
    let environment = person.read("environment").unwrap();
    let home = person.home.display();
    let stamp = from_line.strip_prefix("From ").unwrap();
    for line in [
        format!("SENDER={BOB}"),
        format!("NEWSENDER={BOB}"),
        format!("RECIPIENT={to}"),
        format!("USER={p}"),
        format!("HOME={home}"),
        "HOST=mail.example.test".into(),
        "HOST2=mail.example".into(),
        "HOST3=mail".into(),
        "HOST4=mail".into(),
        format!("LOCAL={p}-a-Bc.d-e"),
        "EXT=a-Bc.d-e".into(),
        "EXT2=Bc.d-e".into(),
        "EXT3=e".into(),
        "EXT4=".into(),
        "DEFAULT=Bc.d-e".into(),
        format!("DTLINE=Delivered-To: {to}\n"),
        format!("RPLINE=Return-Path: <{BOB}>\n"),
        format!("UFLINE=From {stamp}\n"),
    ] {
        assert!(format!("\n{environment}").contains(&format!("\n{line}\n")), "the environment lacks `{line}`:\n{environment}");
    }
    assert!(!environment.contains("QMAIL_FDS"), "{environment}");
    let forwarded = instance.wait_mail(BOB, 1).unwrap().remove(0);
    let head = format!("Return-Path: <{BOB}>\nDelivered-To: {BOB}\nReceived: (qmail ");
    assert!(forwarded.starts_with(&head) && forwarded.contains(&format!("\nDelivered-To: {to}\n")), "{forwarded}");
}

#[test]
fn exit_codes_stop_bounce_or_defer() {
    let (instance, person) = world();
    for (name, text) in [
        (".qmail-stop", "&bob@example.test\n|echo enough; exit 99\n./Maildir/\n|touch never\n"),
        (".qmail-bounce", "./Maildir/\n&bob@example.test\n|echo 'Not me. (#5.2.1)'; exit 100\n|touch never\n"),
        (".qmail-later", "&bob@example.test\n|echo Try later; test -e now || exit 111\n./Maildir/\n"),
        (".qmail-killed", "|test -e now || kill -9 $$\n./Maildir/\n"),
    ] {
        person.write(name, text).unwrap();
    }
    send(&instance, &person, "-stop");
    instance.wait_mail(BOB, 1).unwrap();
    instance.wait_empty().unwrap();
    assert_eq!(person.letters("Maildir").len(), 0);
    send(&instance, &person, "-bounce");
    let letters = instance.wait_mail(BOB, 2).unwrap();
    let bounce = letters.iter().find(|letter| letter.contains("failure notice")).unwrap();
    let said = format!("<{}-bounce@mail.example.test>:\nNot me. (#5.2.1)\n", person.name);
    assert!(bounce.contains(&said) && bounce.contains("\nStatus: 5.2.1\n"), "{bounce}");
    instance.wait_empty().unwrap();
    assert_eq!((person.letters("Maildir").len(), person.read("never")), (1, None), "what came before is not undone");
    send(&instance, &person, "-later");
    instance.wait_log("deferral: Try_later/").unwrap();
    send(&instance, &person, "-killed");
    instance.wait_log("deferral: Aack,_child_crashed._(#4.3.0)/").unwrap();
    assert_eq!(instance.wait_mail(BOB, 2).unwrap().len(), 2, "a forward is not sent when a line fails");
    person.write("now", "").unwrap();
    instance.retry_until_empty().unwrap();
    instance.wait_mail(BOB, 3).unwrap();
    assert_eq!(person.letters("Maildir").len(), 3);
}

#[test]
fn the_longest_file_name_that_fits_is_taken() {
    let (instance, person) = world();
    for name in ["default", "a-default", "a-b", "a-b-default", "a-b:c"] {
        person.write(&format!(".qmail-{name}"), &format!("|echo $EXT {name} $DEFAULT >> found\n")).unwrap();
    }
    let cases = [
        ("-x", "x default x"),
        ("-a", "a default a"),
        ("-a-x", "a-x a-default x"),
        ("-a-b", "a-b a-b"),
        ("-A-B", "A-B a-b"),
        ("-a-b-x-y", "a-b-x-y a-b-default x-y"),
        ("-a-b.c", "a-b.c a-b:c"),
        ("-a-", "a- a-default"),
    ];
    for (ext, _) in cases {
        send(&instance, &person, ext);
        instance.wait_empty().unwrap();
    }
    let found = person.read("found").unwrap();
    assert_eq!(found.lines().collect::<Vec<_>>(), cases.map(|(_, line)| line));
}

#[test]
fn forwards_of_a_file_with_an_owner_come_from_the_owner() {
    let (instance, person) = world();
    let p = &person.name;
    for name in [".qmail-list", ".qmail-verp"] {
        person.write(name, "&bob@example.test\n").unwrap();
    }
    for name in [".qmail-list-owner", ".qmail-verp-owner", ".qmail-verp-owner-default"] {
        person.write(name, "./Maildir/\n").unwrap();
    }
    send(&instance, &person, "-list");
    let letter = instance.wait_mail(BOB, 1).unwrap().remove(0);
    assert!(letter.starts_with(&format!("Return-Path: <{p}-list-owner@mail.example.test>\n")), "{letter}");
    send(&instance, &person, "-verp");
    let letters = instance.wait_mail(BOB, 2).unwrap();
    let verp = format!("Return-Path: <{p}-verp-owner-bob=example.test@mail.example.test>\n");
    assert!(letters.iter().any(|letter| letter.starts_with(&verp)), "{letters:?}");
    // A bounce of what the list sent comes to the owner.
    person.write(".qmail-list", "&nobody@example.test\n").unwrap();
    send(&instance, &person, "-list");
    let bounce = instance.wait_letters(&person.home.join("Maildir"), 1).unwrap().remove(0);
    assert!(bounce.starts_with(&format!("Return-Path: <>\nDelivered-To: {p}-list-owner@mail.example.test\n")), "{bounce}");
    assert!(bounce.contains("<nobody@example.test>:\n"), "{bounce}");
    instance.wait_empty().unwrap();
}

#[test]
fn an_extension_that_nobody_has_is_refused_or_bounces() {
    let (instance, person) = world();
    let to = format!("{}-nothing@mail.example.test", person.name);
    let mut smtp = instance.smtp().unwrap();
    smtp.must("MAIL FROM:<a@b.test>", "250").unwrap();
    smtp.must(&format!("RCPT TO:<{to}>"), "550 5.1.1").unwrap();
    let mut inject = Command::new(instance.program("qmail-inject"));
    inject.env("QMAIL_ROOT", &instance.root).args(["-f", BOB, &to]);
    assert!(feed(&mut inject, LETTER.as_bytes()).unwrap().status.success());
    let bounce = instance.wait_mail(BOB, 1).unwrap().remove(0);
    assert!(bounce.contains(&format!("<{to}>:\nSorry, no mailbox here by that name. (#5.1.1)\n")), "{bounce}");
}

#[test]
fn what_is_not_safe_waits() {
    let (instance, person) = world();
    let retry = |address: &str| {
        instance.smtp().unwrap().send(BOB, &[address], LETTER).unwrap();
    };
    let to = format!("{}@mail.example.test", person.name);
    let mode = |name: &str, mode: u32| {
        std::fs::set_permissions(person.home.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for (name, bad, good, said) in [
        ("", 0o777, 0o755, "Uh-oh:_home_directory_is_writable._(#4.7.0)"),
        ("", 0o1755, 0o755, "Home_directory_is_sticky:_user_is_editing_his_.qmail_file._(#4.2.1)"),
        (".qmail", 0o666, 0o644, "Uh-oh:_.qmail_file_is_writable._(#4.7.0)"),
    ] {
        person.write(".qmail", "./Maildir/\n").unwrap();
        mode(name, bad);
        let before = person.letters("Maildir").len();
        retry(&to);
        instance.wait_log(&format!("deferral: {said}/")).unwrap();
        assert_eq!(person.letters("Maildir").len(), before);
        mode(name, good);
        instance.must(&["queue", "retry", "--all"]).unwrap();
        instance.wait_letters(&person.home.join("Maildir"), before + 1).unwrap();
        instance.wait_empty().unwrap();
    }
    person.write(".qmail", "\n./Maildir/\n").unwrap();
    retry(&to);
    instance.wait_log("deferral: Uh-oh:_first_line_of_.qmail_file_is_blank._(#4.2.1)/").unwrap();
}

#[test]
fn a_letter_that_was_here_before_bounces() {
    let (instance, person) = world();
    let to = format!("{}@mail.example.test", person.name);
    let letter = format!("Delivered-To: {to}\n{LETTER}");
    instance.smtp().unwrap().send(BOB, &[&to], &letter).unwrap();
    let bounce = instance.wait_mail(BOB, 1).unwrap().remove(0);
    assert!(bounce.contains("This message is looping: it already has my Delivered-To line. (#5.4.6)\n"), "{bounce}");
    assert_eq!(person.letters("Maildir").len(), 0);
}

#[test]
fn alias_has_the_names_that_nobody_else_has() {
    let (instance, _person) = world();
    let alias = |name: &str, text: &str| {
        std::fs::write(instance.root.join("etc/qmail/alias").join(name), text).unwrap();
    };
    alias(".qmail-news", "&bob@example.test\n");
    alias(".qmail-list-default", "&bob@example.test\n");
    let mut smtp = instance.smtp().unwrap();
    smtp.must("MAIL FROM:<a@b.test>", "250").unwrap();
    for (to, code) in [("news", "250"), ("NEWS", "250"), ("list-of-things", "250"), ("list", "550 5.1.1"), ("new", "550 5.1.1")] {
        smtp.must(&format!("RCPT TO:<{to}@mail.example.test>"), code).unwrap();
    }
    for to in ["news@mail.example.test", "list-of-things@mail.example.test"] {
        instance.smtp().unwrap().send("a@b.test", &[to], LETTER).unwrap();
    }
    for letter in instance.wait_mail(BOB, 2).unwrap() {
        let here = letter.contains("\nDelivered-To: news@mail") || letter.contains("\nDelivered-To: list-of-things@mail");
        assert!(here, "{letter}");
    }
    alias(".qmail-default", "&bob@example.test\n");
    instance.smtp().unwrap().send("a@b.test", &["anything@mail.example.test"], LETTER).unwrap();
    instance.wait_mail(BOB, 3).unwrap();
}

/// Gives a file to the owner of another one.
fn give(path: &Path, like: &Path) {
    if is_root() {
        tools::must(Command::new("chown").args(["--no-dereference", "--reference"]).arg(like).arg(path)).unwrap();
    }
}

#[test]
fn a_virtual_user_reaches_nothing_but_his_own_home() {
    let mut instance = Instance::new().unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob", "carol"]).unwrap();
    for to in [BOB, "carol@example.test"] {
        instance.smtp().unwrap().send("a@b.test", &[to], LETTER).unwrap();
        instance.wait_mail(to, 1).unwrap();
    }
    instance.wait_empty().unwrap();
    let home = instance.maildir(BOB).parent().unwrap().to_owned();
    let carol = instance.maildir("carol@example.test");
    let count = |what: &str| instance.log().matches(what).count();
    let deferred = |what: &str| {
        let (deferrals, successes) = (count(": deferral: "), count(": success: "));
        instance.smtp().unwrap().send("a@b.test", &[BOB], LETTER).unwrap();
        wait_for("a deferral", || (count(": deferral: ") > deferrals).then_some(())).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(count(": success: "), successes, "{what}");
        assert_eq!(instance.wait_mail("carol@example.test", 1).unwrap().len(), 1, "{what}");
    };
    let file = home.join(".qmail");
    for line in ["./../carol/Maildir/", "./link/", "./../carol/mbox", "./inside/../../carol/Maildir/", "./mboxlink"] {
        std::fs::write(&file, format!("{line}\n")).unwrap();
        give(&file, &home);
        if !home.join("link").exists() {
            symlink(&carol, home.join("link")).unwrap();
            symlink(carol.join("stolen"), home.join("mboxlink")).unwrap();
            std::fs::create_dir(home.join("inside")).unwrap();
            ["link", "mboxlink", "inside"].iter().for_each(|name| give(&home.join(name), &home));
        }
        deferred(line);
    }
    for name in ["stolen", "../mbox"] {
        assert!(!carol.join(name).exists(), "{name}");
    }
    // Neither by a Maildir that is a link, nor a .qmail that is one.
    std::fs::remove_file(&file).unwrap();
    std::fs::rename(home.join("Maildir"), home.join("Maildir.away")).unwrap();
    symlink(&carol, home.join("Maildir")).unwrap();
    give(&home.join("Maildir"), &home);
    deferred("a Maildir that is a link");
    std::fs::remove_file(home.join("Maildir")).unwrap();
    std::fs::rename(home.join("Maildir.away"), home.join("Maildir")).unwrap();
    instance.retry_until_empty().unwrap();
    assert!(instance.wait_mail(BOB, 7).unwrap().iter().all(|letter| letter.ends_with(LETTER)));
}

#[test]
fn a_list_file_may_forward_only() {
    let (instance, person) = world();
    let forwards =
        [("-plus", "+list\n&bob@example.test\n|touch never\n", 0o644), ("-xbit", "&bob@example.test\n./Maildir/\n", 0o744)];
    for (number, (ext, text, mode)) in forwards.into_iter().enumerate() {
        let name = format!(".qmail{ext}");
        person.write(&name, text).unwrap();
        std::fs::set_permissions(person.home.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        send(&instance, &person, ext);
        let deferred = |line: &str| line.contains(": deferral: ") && line.contains("(#4.7.0)");
        wait_for("a deferral", || (instance.log().lines().filter(|line| deferred(line)).count() > number).then_some(())).unwrap();
        assert_eq!(instance.wait_mail(BOB, number).unwrap().len(), number, "nothing of the file is done");
        person.write(&format!(".qmail{ext}"), "+list\n&bob@example.test\n").unwrap();
        instance.retry_until_empty().unwrap();
    }
    instance.wait_mail(BOB, 2).unwrap();
    assert_eq!((person.read("never"), person.letters("Maildir").len()), (None, 0));
}
