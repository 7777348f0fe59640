//! Programs that have a say in a session, as qmail-hook runs them: plugins, recipient checks, programs in the place of qmail-queue; and
//! the greeting that is held back. Whatever such a program does, nothing is lost and nothing is refused for good that it did not refuse.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use system_tests::facts::{self, Process};
use system_tests::line::{Line, Smtp};
use system_tests::s_client::Inside;
use system_tests::{Instance, is_root, wait_for};

const BOB: &str = "bob@example.test";
const LETTER: &str = "Subject: x\n\nbody\n";
/// A client that is nobody in particular.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// In the place of qmail-queue: keeps what it gets and ends as it is told to.
const CAPTURE: &str = "cat >{dir}/message.$$\ncat <&1 >{dir}/envelope.$$\nenv >{dir}/env\nls /proc/self/fd | tr '\\n' ' ' >{dir}/fds\n\
    [ ! -f {dir}/text ] || cat {dir}/text >&6\nexit $(cat {dir}/exit 2>/dev/null || echo 0)";

/// An instance with these programs, in `{dir}`, and control files, which does not run yet.
fn prepared(programs: &[(&str, &str)], control: &[(&str, &str)]) -> Instance {
    let instance = Instance::new().unwrap();
    let dir = instance.dir().join("hooks");
    fs::create_dir(&dir).unwrap();
    // What the programs keep is written as qmaild.
    let work = dir.join("kept");
    fs::create_dir(&work).unwrap();
    fs::set_permissions(&work, fs::Permissions::from_mode(0o1777)).unwrap();
    for (name, script) in programs {
        let script = script.replace("{dir}", work.to_str().unwrap());
        fs::write(dir.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (name, text) in control {
        instance.control(name, &filled(&instance, text)).unwrap();
    }
    instance
}

fn filled(instance: &Instance, text: &str) -> String {
    text.replace("{hooks}", instance.dir().join("hooks").to_str().unwrap())
}

fn started(programs: &[(&str, &str)], control: &[(&str, &str)]) -> Instance {
    let mut instance = prepared(programs, control);
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    instance
}

/// Adds an option to the line of a service.
fn listen_with(instance: &Instance, service: &str, option: &str) {
    let path = instance.root.join("etc/qmail/control/listen");
    let lines = fs::read_to_string(&path).unwrap();
    let option = filled(instance, option);
    let with =
        |line: &str| if line.starts_with(&format!("{service} ")) { format!("{line} {option}\n") } else { format!("{line}\n") };
    fs::write(&path, lines.lines().map(with).collect::<String>()).unwrap();
}

fn kept(instance: &Instance, name: &str) -> String {
    let path = instance.dir().join("hooks/kept").join(name);
    fs::read_to_string(path).unwrap_or_default()
}

fn keep(instance: &Instance, name: &str, text: &str) {
    fs::write(instance.dir().join("hooks/kept").join(name), text).unwrap();
}

/// All files whose names begin so, in one.
fn all_kept(instance: &Instance, beginning: &str) -> Vec<String> {
    let entries = fs::read_dir(instance.dir().join("hooks/kept")).unwrap().flatten();
    let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(beginning)));
    named.map(|entry| fs::read_to_string(entry.path()).unwrap()).collect()
}

fn stranger(instance: &Instance) -> Smtp {
    let mut line = Line::open_from(STRANGER, instance.port(25)).unwrap();
    let greeting = String::from_utf8(line.line().unwrap()).unwrap();
    Smtp(line, greeting)
}

/// What the end of a letter is answered.
fn letter(smtp: &mut Smtp) -> String {
    smtp.must("MAIL FROM:<a@far.test>", "250").unwrap();
    smtp.must(&format!("RCPT TO:<{BOB}>"), "250").unwrap();
    smtp.must("DATA", "354").unwrap();
    smtp.0.raw(format!("{LETTER}.\n").replace('\n', "\r\n").as_bytes()).unwrap();
    smtp.reply().unwrap()
}

fn hooks(instance: &Instance) -> Vec<Process> {
    facts::descendants(instance.pid()).into_iter().filter(|process| process.name == "qmail-hook").collect()
}

#[test]
fn a_listener_has_its_own_queue_program_and_its_codes_become_replies() {
    let mut instance = prepared(&[("queue", CAPTURE)], &[]);
    listen_with(&instance, "smtp", "queue={hooks}/queue");
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let [hook] = &hooks(&instance)[..] else { panic!("qmail-hook does not run once") };
    let confined = ["NoNewPrivs", "Seccomp"].map(|field| facts::status(hook.pid, field).unwrap());
    assert_eq!(confined, ["0", "0"], "what it starts would inherit it");
    if is_root() {
        let uid = facts::status(hook.pid, "Uid").unwrap();
        assert!(!uid.starts_with('0'), "{uid}");
    }
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO client.test", "250").unwrap();
    assert!(letter(&mut smtp).starts_with("250 2.0.0 ok "));
    assert_eq!(all_kept(&instance, "envelope."), ["Fa@far.test\0Tbob@example.test\0\0"]);
    let message = all_kept(&instance, "message.").remove(0);
    assert!(message.starts_with("Received: from ") && message.ends_with(&format!("\n{LETTER}")), "{message}");
    let environment = kept(&instance, "env");
    assert!(environment.contains("TCPREMOTEIP=127.0.0.1\n") && !environment.contains("QMAIL_WORKER"), "{environment}");
    assert_eq!(
        kept(&instance, "fds").trim(),
        "0 1 2 3 4 5 6 7",
        "its interface, with null on 3 and 5, nothing of ours, and the directory that ls reads"
    );
    for (exit, text, reply) in [
        ("31", "", "554 5.3.0 mail server permanently rejected message"),
        ("71", "", "451 4.3.0 mail server temporarily rejected message"),
        ("53", "", "451 4.3.0 qq write error or disk full"),
        ("82", "Dspam is not wanted (#5.7.1)", "554 5.7.1 spam is not wanted"),
        ("88", "Zlater (#4.7.1)", "451 4.7.1 later"),
        ("120", "", "451 4.3.0"),
        ("99", "", "451 4.3.0"),
    ] {
        keep(&instance, "exit", exit);
        keep(&instance, "text", text);
        let said = letter(&mut smtp);
        assert!(said.starts_with(reply), "{exit}: {said}");
    }
    // Other listeners queue as ever.
    let mut lmtp = Line::open(instance.port(24)).unwrap();
    lmtp.line().unwrap();
    let mut lmtp = Smtp(lmtp, String::new());
    lmtp.must("LHLO x", "250").unwrap();
    assert!(letter(&mut lmtp).starts_with("250 "));
    instance.wait_mail(BOB, 1).unwrap();
}

#[test]
fn a_rule_has_its_own_queue_program_and_variables() {
    let rules = "127.0.0.9:allow,QMAILQUEUE=\"{hooks}/queue\",SPAM=\"on\"\n:allow\n";
    let instance = started(&[("queue", CAPTURE)], &[("tcp.smtp", rules)]);
    assert!(letter(&mut stranger(&instance)).starts_with("250 2.0.0 ok "));
    assert_eq!(all_kept(&instance, "envelope.").len(), 1);
    assert!(kept(&instance, "env").contains("SPAM=on\n"));
    assert!(letter(&mut instance.smtp().unwrap()).starts_with("250 2.0.0 ok "));
    instance.wait_mail(BOB, 1).unwrap();
    assert_eq!(all_kept(&instance, "envelope.").len(), 1, "who has no such rule goes to the queue");
}

#[test]
fn a_queue_program_that_crashes_or_does_not_read_is_temporary() {
    let instance = started(
        &[("crash", "cat >/dev/null\nkill -9 $$"), ("deaf", "exit 0"), ("open", "cat >/dev/null; exit 0")],
        &[(
            "tcp.smtp",
            "127.0.0.9:allow,QMAILQUEUE=\"{hooks}/crash\"\n127.0.0.10:allow,QMAILQUEUE=\"{hooks}/deaf\"\n:allow,QMAILQUEUE=\"{hooks}/open\"\n",
        )],
    );
    let said = letter(&mut stranger(&instance));
    assert!(said.starts_with("451 4.3.0"), "{said}");
    // It says 0, but did not take the message.
    let line = Line::open_from(Ipv4Addr::new(127, 0, 0, 10), instance.port(25)).unwrap();
    let mut smtp = Smtp(line, String::new());
    smtp.reply().unwrap();
    smtp.must("MAIL FROM:<>", "250").unwrap();
    smtp.must(&format!("RCPT TO:<{BOB}>"), "250").unwrap();
    smtp.must("DATA", "354").unwrap();
    smtp.0.raw(&[&b"x: "[..], &[b'y'; 900], b"\r\n"].concat().repeat(1000)).unwrap();
    smtp.0.raw(b"\r\n.\r\n").unwrap();
    let said = smtp.reply().unwrap();
    assert!(said.starts_with("451 4.3.0"), "{said}");
    // A program that others can change is none of ours.
    let open = instance.dir().join("hooks/open");
    let mut smtp = instance.smtp().unwrap();
    assert!(letter(&mut smtp).starts_with("250 "));
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(letter(&mut smtp).starts_with("451 "));
    instance.wait_log("could be changed by others").unwrap();
}

#[test]
fn when_qmail_hook_is_killed_nothing_is_accepted_that_is_not_queued() {
    let instance = started(
        &[("queue", "cat >/dev/null; cat <&1 >/dev/null\necho $$ >{dir}/pid\n[ -f {dir}/go ] || sleep 1000\nexit 0")],
        &[("tcp.smtp", ":allow,QMAILQUEUE=\"{hooks}/queue\"\n")],
    );
    let mut smtp = instance.smtp().unwrap();
    smtp.must("MAIL FROM:<a@far.test>", "250").unwrap();
    smtp.must(&format!("RCPT TO:<{BOB}>"), "250").unwrap();
    smtp.must("DATA", "354").unwrap();
    smtp.0.raw(b"\r\nx\r\n.\r\n").unwrap();
    let pid = || kept(&instance, "pid").trim().parse::<u32>().ok();
    let pid = wait_for("the program", pid).unwrap();
    let before = hooks(&instance);
    before.iter().for_each(|hook| facts::signal(hook.pid, Signal::KILL));
    let said = smtp.reply().unwrap();
    assert!(said.starts_with("451 "), "{said}");
    wait_for("the end of the program", || (!facts::is_alive(pid)).then_some(())).unwrap();
    // It is started again, and the session goes on.
    keep(&instance, "go", "");
    wait_for("another qmail-hook", || {
        hooks(&instance).iter().any(|hook| before.iter().all(|old| old.pid != hook.pid)).then_some(())
    })
    .unwrap();
    assert!(letter(&mut smtp).starts_with("250 "));
    // A client that leaves takes its program along.
    fs::remove_file(instance.dir().join("hooks/kept/go")).unwrap();
    fs::remove_file(instance.dir().join("hooks/kept/pid")).unwrap();
    let mut leaving = instance.smtp().unwrap();
    leaving.must("MAIL FROM:<a@far.test>", "250").unwrap();
    leaving.must(&format!("RCPT TO:<{BOB}>"), "250").unwrap();
    leaving.must("DATA", "354").unwrap();
    leaving.0.raw(&b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n".repeat(4000)).unwrap();
    drop(leaving);
    assert!(letter(&mut smtp_with(&instance, "go")).starts_with("250 "));
}

/// A session for which the program goes on.
fn smtp_with(instance: &Instance, mark: &str) -> Smtp {
    keep(instance, mark, "");
    instance.smtp().unwrap()
}

#[test]
fn what_plugins_granted_is_forgotten_with_starttls_and_xclient() {
    let sections = "[connection]\n{hooks}/connection\n[helo]\n:test \"$SMTPHELOHOST\" = inside.test || echo SRELAYCLIENT=\n\
        [helo]\n:test \"$SMTPHELOHOST\" = inside.test || echo SFOO=helo\n[rcpt]\n{hooks}/recipient\n";
    let instance = started(
        &[
            (
                "connection",
                "echo \"connection $TCPREMOTEIP\" >>{dir}/seen\necho SBAR=$TCPREMOTEIP\n\
                case $TCPREMOTEIP in 192.0.2.66) echo E554 not you;; esac",
            ),
            ("recipient", "echo \"rcpt ${FOO-unset} ${BAR-unset} ${RELAYCLIENT-unset}\" >>{dir}/seen"),
        ],
        &[("smtpplugins", sections), ("xclient", "127.0.0.9\n")],
    );
    let seen = || kept(&instance, "seen");
    let far = "RCPT TO:<far@elsewhere.test>";
    // s_client says EHLO before STARTTLS, by another name.
    let mut inside = Inside::open(&instance, 25, Some("smtp"), &[]).unwrap();
    inside.say("EHLO inside.test\r\nVRFY x\r\n").unwrap();
    // It may show the server's last line before TLS, too.
    while !inside.line().unwrap().starts_with("252 ") {}
    assert!(inside.smtp("MAIL FROM:<a@far.test>").unwrap().starts_with("250 "));
    let said = inside.smtp(far).unwrap();
    assert!(said.starts_with("553 5.7.1 "), "{said}");
    assert_eq!(seen(), "connection 127.0.0.1\nrcpt unset 127.0.0.1 unset\n");
    let mut smtp = stranger(&instance);
    smtp.must("EHLO outside.test", "250").unwrap();
    smtp.must("MAIL FROM:<a@far.test>", "250").unwrap();
    smtp.must(far, "250").unwrap();
    smtp.must("RSET", "250").unwrap();
    smtp.must("XCLIENT ADDR=192.0.2.7", "220").unwrap();
    smtp.must("EHLO inside.test", "250").unwrap();
    smtp.must("MAIL FROM:<a@far.test>", "250").unwrap();
    smtp.must(far, "553 5.7.1 ").unwrap();
    assert!(
        seen().ends_with("connection 127.0.0.9\nrcpt helo 127.0.0.9 \nconnection 192.0.2.7\nrcpt unset 192.0.2.7 unset\n"),
        "{}",
        seen()
    );
    smtp.must("RSET", "250").unwrap();
    smtp.must("XCLIENT ADDR=192.0.2.66", "554 not you").unwrap();
    assert!(smtp.0.is_closed().unwrap());
}

#[test]
fn what_a_queue_program_cannot_be_told_is_not_asked_of_who_has_plugins() {
    let rules = "127.0.0.9:allow,RELAYCLIENT=\"\"\n127.0.0.10:allow,RELAYCLIENT=\"\",DISABLE_SPP=\"\"\n:allow,QMAILQUEUE=\"{hooks}/queue\"\n";
    let plugin = "[mail]\n:echo SQMAILQUEUE={hooks}/queue\n";
    let instance = started(&[("queue", CAPTURE)], &[("tcp.smtp", rules), ("smtpplugins", plugin)]);
    let mut smtp = stranger(&instance);
    let said = smtp.must("EHLO x", "250").unwrap();
    assert!(!said.contains("250-DSN"), "{said}");
    smtp.must("MAIL FROM:<a@far.test> RET=HDRS", "555 ").unwrap();
    assert!(letter(&mut smtp).starts_with("250 "));
    assert_eq!(all_kept(&instance, "envelope."), ["Fa@far.test\0Tbob@example.test\0\0"]);
    let line = Line::open_from(Ipv4Addr::new(127, 0, 0, 10), instance.port(25)).unwrap();
    let mut smtp = Smtp(line, String::new());
    smtp.reply().unwrap();
    let said = smtp.must("EHLO x", "250").unwrap();
    assert!(said.contains("250-DSN"), "{said}");
}

#[test]
fn a_link_on_the_way_to_a_program_is_as_safe_as_its_directory() {
    let instance = prepared(&[("queue", CAPTURE)], &[]);
    let (dir, open) = (instance.dir().join("hooks"), instance.dir().join("hooks/open"));
    fs::create_dir(&open).unwrap();
    std::os::unix::fs::symlink(dir.join("queue"), open.join("link")).unwrap();
    let rules = filled(&instance, ":allow,QMAILQUEUE=\"{hooks}/open/link\"\n");
    instance.control("tcp.smtp", &rules).unwrap();
    let mut instance = instance;
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    assert!(letter(&mut instance.smtp().unwrap()).starts_with("250 "));
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let said = letter(&mut instance.smtp().unwrap());
    assert!(said.starts_with("451 "), "{said}");
    instance.wait_log("hooks/open could be changed by others").unwrap();
}

const PLUGIN: &str = "env | grep -E '^(SMTP|TCP|RELAYCLIENT|FOO)' | sort >>{dir}/seen\n\
    case \"$SMTPRCPTTO\" in no@*) echo 'E550 5.7.1 a plugin says no';; crash@*) kill -9 $$;; flood@*) yes;; \
    odd@*) echo 'E250 fine';; new@*) echo Cbob@example.test;; far@*) echo O;; esac";

#[test]
fn plugins_are_asked_at_their_stages() {
    let sections = "[connection]\n{hooks}/hello\n[helo]\n:test \"$SMTPHELOHOST\" != bad.test || echo 'E550 not that name'\n\
        [mail]\n{hooks}/sender\n[rcpt]\n{hooks}/recipient\n:echo N\n{hooks}/never\n[data]\n:test \"$SMTPRCPTCOUNT\" != 2 || echo 'E554 two are too many'\n";
    let instance = started(
        &[
            ("hello", "echo SFOO=bar"),
            (
                "sender",
                "echo 'HX-Plugin: yes'\ncase \"$SMTPMAILFROM\" in drop@*) echo 'R421 go away';; later@*) echo 'LR450 later';; esac",
            ),
            ("recipient", PLUGIN),
            ("never", "touch {dir}/never"),
        ],
        &[("smtpplugins", sections)],
    );
    let mut smtp = stranger(&instance);
    assert!(smtp.1.starts_with("220 "), "{}", smtp.1);
    smtp.must("HELO bad.test", "550 not that name").unwrap();
    smtp.must("HELO good.test", "250").unwrap();
    smtp.must("MAIL FROM:<later@far.test>", "250").unwrap();
    smtp.must(&format!("RCPT TO:<{BOB}>"), "450 later").unwrap();
    smtp.must("MAIL FROM:<a@far.test>", "250").unwrap();
    for (recipient, reply) in [
        ("no@example.test", "550 5.7.1 a plugin says no"),
        ("crash@example.test", "451 4.3.0"),
        ("flood@example.test", "451 4.3.0"),
        ("odd@example.test", "451 4.3.0 250 fine"),
        ("nobody@example.test", "550 5.1.1"),
        ("x@elsewhere.test", "553 5.7.1"),
        ("new@example.test", "250"),
    ] {
        smtp.must(&format!("RCPT TO:<{recipient}>"), reply).unwrap();
    }
    let seen = kept(&instance, "seen");
    for variable in [
        "FOO=bar",
        "SMTPHELOHOST=good.test",
        "SMTPMAILFROM=a@far.test",
        "SMTPRCPTTO=no@example.test",
        "SMTPRCPTHOSTSOK=1",
        "SMTPRCPTCOUNT=0",
        "SMTPRCPTCOUNTALL=1",
        "TCPREMOTEIP=127.0.0.9",
    ] {
        assert!(seen.lines().any(|line| line == variable), "{variable} in {seen}");
    }
    assert!(!seen.contains("RELAYCLIENT"), "{seen}");
    assert!(seen.lines().any(|line| line == format!("TCPLOCALPORT={}", instance.port(25))), "{seen}");
    assert!(seen.lines().any(|line| line.starts_with("TCPREMOTEPORT=")), "{seen}");
    // Pipelined, with a second recipient that may go anywhere: their order is kept.
    smtp.0.raw(b"RCPT TO:<far@elsewhere.test>\r\nRCPT TO:<no@example.test>\r\nDATA\r\nRSET\r\n").unwrap();
    for reply in ["250 ", "550 5.7.1 a plugin says no", "554 two are too many", "250 "] {
        let said = smtp.reply().unwrap();
        assert!(said.starts_with(reply), "{said}");
    }
    assert!(letter(&mut smtp).starts_with("250 "));
    let got = instance.wait_mail(BOB, 1).unwrap().remove(0);
    assert!(got.contains("\nX-Plugin: yes\n") && got.ends_with(LETTER), "{got}");
    assert!(kept(&instance, "never").is_empty() && !instance.dir().join("hooks/kept/never").exists(), "N ends the section");
    smtp.must("MAIL FROM:<drop@far.test>", "421 go away").unwrap();
    assert!(smtp.0.is_closed().unwrap());
    instance.wait_log(" from=<a@far.test> to=<no@example.test> reply=\"550 5.7.1 a plugin says no\"").unwrap();
}

#[test]
fn a_plugin_that_hangs_is_451_and_holds_up_nobody_else() {
    let instance = started(
        &[("hang", "echo $$ >{dir}/pid; sleep 1000")],
        &[("smtpplugins", "[helo]\n:test \"$SMTPHELOHOST\" != hang.test || exec {hooks}/hang\n")],
    );
    let mut hanging = instance.smtp().unwrap();
    hanging.0.raw(b"HELO hang.test\r\n").unwrap();
    let pid = wait_for("the plugin", || kept(&instance, "pid").trim().parse::<u32>().ok()).unwrap();
    // The workers have other sessions.
    for _ in 0..8 {
        let mut smtp = instance.smtp().unwrap();
        smtp.must("HELO good.test", "250").unwrap();
        assert!(letter(&mut smtp).starts_with("250 "));
    }
    assert!(facts::is_alive(pid));
    let said = hanging.reply().unwrap();
    assert!(said.starts_with("451 4.3.0"), "{said}");
    wait_for("the end of the plugin", || (!facts::is_alive(pid)).then_some(())).unwrap();
    hanging.must("HELO good.test", "250").unwrap();
    instance.wait_log("no end within").unwrap();
}

#[test]
fn a_program_judges_recipients() {
    let script = "echo \"$SENDER $RECIPIENT $HELO ${RCPTFOUND-unset} ${RCPTHOSTS-unset} ${QMAIL_FDS-unset}\" >>{dir}/asked\necho chatter\n\
        case \"$RECIPIENT\" in bob@*) exit 0;; gone@*) echo '550 5.1.6 has moved' >&4; exit 100;; no@*) exit 100;; \
        later@*) exit 111;; crash@*) kill -9 $$;; lost@*) exit 127;; listed@*) exit 112;; much@*) exit 113;; esac";
    let instance = started(
        &[("check", script)],
        &[("rcpthosts", "listed.test\n"), ("tcp.smtp", "127.0.0.9:allow,RCPTCHECK=\"{hooks}/check\"\n:allow\n")],
    );
    let mut smtp = stranger(&instance);
    smtp.must("HELO h.test", "250").unwrap();
    smtp.must("MAIL FROM:<a@far.test>", "250").unwrap();
    for (recipient, reply) in [
        (BOB, "250"),
        ("gone@listed.test", "550 5.1.6 has moved"),
        ("no@listed.test", "550 5.1.1"),
        ("later@listed.test", "451 4.3.0"),
        ("crash@listed.test", "451 4.3.0"),
        ("lost@listed.test", "451 4.3.0"),
        ("listed@listed.test", "250"),
        ("x@elsewhere.test", "553 5.7.1"),
        ("much@listed.test", "421 4.7.0"),
    ] {
        smtp.must(&format!("RCPT TO:<{recipient}>"), reply).unwrap();
    }
    assert!(smtp.0.is_closed().unwrap(), "421 is the last word");
    let asked = kept(&instance, "asked");
    assert!(
        asked.starts_with("a@far.test bob@example.test h.test 1 1 unset\na@far.test gone@listed.test h.test unset 1 unset\n"),
        "{asked}"
    );
    assert!(!asked.contains("elsewhere"), "who is refused anyway is not asked about: {asked}");
    // Others are not asked about at all.
    let mut smtp = instance.smtp().unwrap();
    smtp.must("MAIL FROM:<a@far.test>", "250").unwrap();
    smtp.must("RCPT TO:<no@listed.test>", "250").unwrap();
}

#[test]
fn programs_that_come_with_sighup_are_run_and_without_any_there_is_no_qmail_hook() {
    let instance = started(&[("queue", CAPTURE)], &[]);
    assert!(hooks(&instance).is_empty());
    let rules = filled(&instance, ":allow,QMAILQUEUE=\"{hooks}/queue\"\n");
    instance.control("tcp.smtp", &rules).unwrap();
    facts::signal(instance.pid(), Signal::HUP);
    wait_for("qmail-hook", || (!hooks(&instance).is_empty()).then_some(())).unwrap();
    let queued = || {
        let said = letter(&mut instance.smtp().ok()?);
        assert!(said.starts_with("250 "), "{said}");
        (!all_kept(&instance, "envelope.").is_empty()).then_some(())
    };
    wait_for("the new rules to count", queued).unwrap();
}

#[test]
fn who_speaks_before_the_greeting_is_refused_and_who_waits_is_served() {
    let rules = "127.0.0.9:allow,GREETDELAY=\"120\"\n127.0.0.10:allow\n:allow,GREETDELAY=\"0\"\n";
    let instance = started(&[], &[("smtpgreetdelay", "1\n"), ("tcp.smtp", rules)]);
    // One that waits for two minutes holds up nobody: the others are served, which is what comes before its refusal.
    let mut early = Line::open_from(STRANGER, instance.port(25)).unwrap();
    for _ in 0..4 {
        assert!(letter(&mut instance.smtp().unwrap()).starts_with("250 "));
    }
    early.raw(b"EHLO early.test\r\nMAIL FROM:<>\r\n").unwrap();
    let said = String::from_utf8(early.line().unwrap()).unwrap();
    assert!(said.starts_with("554 5.5.1 "), "{said}");
    assert!(early.is_closed().unwrap(), "and nothing else");
    instance.wait_log("refused remote=127.0.0.9 reply=\"554 5.5.1 ").unwrap();
    let mut patient = Line::open_from(Ipv4Addr::new(127, 0, 0, 10), instance.port(25)).unwrap();
    let greeting = String::from_utf8(patient.line().unwrap()).unwrap();
    assert!(greeting.starts_with("220 "), "{greeting}");
    let mut smtp = Smtp(patient, greeting);
    assert!(letter(&mut smtp).starts_with("250 "));
}
