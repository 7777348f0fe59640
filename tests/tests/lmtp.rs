//! LMTP with real neighbours: Dovecot keeps mailboxes that we deliver into, and sends through us; Postfix delivers to us.
#![allow(clippy::unwrap_used)]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use system_tests::dovecot::{Dovecot, Imap, PASSWORD, exists};
use system_tests::instance::ME;
use system_tests::line::Line;
use system_tests::postfix::Postfix;
use system_tests::{Instance, Person, Smtp, is_root, skip, tools, wait_for};

const ANN: &str = "ann@example.test";
const LETTER: &str = "From: ann@example.test\nSubject: by LMTP\n\n.stuffed\ntext\n";

/// An authority in `ca.pem`, and what it vouches for in `cert.pem` and `key.pem`.
fn certificates(dir: &Path, name: &str) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL goes by the names.
    params.distinguished_name.push(DnType::CommonName, "An authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, &authority).unwrap();
    for (file, text) in [("ca.pem", authority.pem()), ("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())] {
        std::fs::write(dir.join(file), text).unwrap();
    }
}

/// Dovecot as a mail store: an LMTP socket for everybody, LMTP with STARTTLS on a port, quotas.
fn store(instance: &Instance, port: u16) -> String {
    let (dir, certificates) = (Dovecot::dir(instance), instance.dir().display().to_string());
    format!(
        "protocols = imap lmtp\nssl = yes\nssl_cert = <{certificates}/cert.pem\nssl_key = <{certificates}/key.pem\n\
         mail_plugins = quota\nplugin {{\n  quota = maildir:User quota\n}}\n\
         service lmtp {{\n  unix_listener {}/lmtp {{\n    mode = 0666\n  }}\n\
         inet_listener lmtp {{\n    address = 127.0.0.1\n    port = {port}\n  }}\n}}\n",
        dir.display()
    )
}

/// The whole text of the only message, by IMAP.
fn message(imap: &mut Imap) -> String {
    imap.must("FETCH 1 BODY.PEEK[]").unwrap().join("\n")
}

fn inbox(dovecot: &Dovecot, user: &str) -> usize {
    dovecot.inbox(user).unwrap().1
}

/// A domain whose mailboxes are all Dovecot's, by its socket and by verified TLS: each recipient gets what Dovecot said for him.
#[test]
fn a_domain_is_delivered_into_dovecot_by_socket_and_by_verified_tls() {
    let name = "a_domain_is_delivered_into_dovecot";
    if !is_root() {
        return skip(name, "Dovecot's master must be root");
    }
    let mut instance = Instance::new().unwrap();
    certificates(instance.dir(), "store.test");
    let (socket, port) = (Dovecot::dir(&instance).join("lmtp"), instance.port(240));
    let routes = format!("store.test:unix:{}\ntls.test:127.0.0.1:{port}\nwrong.test:localhost:{port}\n", socket.display());
    instance.control("lmtproutes", &routes).unwrap();
    instance.control("relayclients", "127.0.0.0/8\n").unwrap();
    instance.control("tlspolicy", "127.0.0.1:verify store.test\nlocalhost:verify\n").unwrap();
    instance.control("tlscafile", &format!("{}\n", instance.dir().join("ca.pem").display())).unwrap();
    let users = Dovecot::users_of_its_own(
        &instance,
        &[
            ("ann@store.test", ""),
            ("bob@store.test", ""),
            ("full@store.test", "userdb_quota_rule=*:bytes=10 userdb_quota_full_tempfail=yes"),
            ("over@store.test", "userdb_quota_rule=*:bytes=10"),
            ("ann@tls.test", ""),
            ("ann@wrong.test", ""),
        ],
    )
    .unwrap();
    let dovecot = Dovecot::start_with(&instance, instance.port(143), &users, &store(&instance, port)).unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["ann"]).unwrap();
    let to = ["ann@store.test", "full@store.test", "none@store.test", "over@store.test", "bob@store.test"];
    instance.smtp().unwrap().send(ANN, &to, LETTER).unwrap();
    // One transaction: taken, full for now, full for good, unknown.
    let deferral = instance.wait_log(": deferral: ").unwrap_or_else(|error| panic!("{error}\n{}", dovecot.log()));
    assert!(deferral.contains("452_4.2.2"), "{deferral}");
    let (mut imap, count) = dovecot.inbox("ann@store.test").unwrap();
    assert_eq!((count, inbox(&dovecot, "bob@store.test"), inbox(&dovecot, "full@store.test")), (1, 1, 0));
    let text = message(&mut imap);
    assert!(text.contains("Subject: by LMTP\n\n.stuffed\ntext") && text.contains("Return-Path: <ann@example.test>"), "{text}");
    // Only who was deferred is tried again.
    instance.must(&["queue", "retry", "--all"]).unwrap();
    wait_for("a second deferral", || (instance.log().matches(": deferral: ").count() >= 2).then_some(())).unwrap();
    assert_eq!((inbox(&dovecot, "ann@store.test"), inbox(&dovecot, "bob@store.test")), (1, 1));
    // There is room now, and with that all are done with: who was refused for good comes back.
    dovecot.set_users(&users.replace("bytes=10 userdb_quota_full", "bytes=100000 userdb_quota_full")).unwrap();
    instance.retry_until_empty().unwrap();
    assert_eq!((inbox(&dovecot, "ann@store.test"), inbox(&dovecot, "full@store.test")), (1, 1));
    let bounce = instance.wait_mail(ANN, 1).unwrap();
    assert!(bounce[0].contains("<none@store.test>:\n") && bounce[0].contains("<over@store.test>:\n"), "{}", bounce[0]);
    assert!(bounce[0].contains("550 5.1.1") && bounce[0].contains("552 5.2.2"), "{}", bounce[0]);
    assert!(!bounce[0].contains("<full@store.test>:\n") && !bounce[0].contains("<ann@store.test>:\n"), "{}", bounce[0]);
    // Over TCP, whose certificate is looked at.
    instance.smtp().unwrap().send(ANN, &["ann@tls.test"], LETTER).unwrap();
    let done = instance.wait_log("certificate_verified").unwrap();
    assert!(done.contains(": success: "), "{done}");
    assert_eq!(inbox(&dovecot, "ann@tls.test"), 1);
    instance.smtp().unwrap().send(ANN, &["ann@wrong.test"], LETTER).unwrap();
    let refused =
        wait_for("a refused certificate", || instance.log().lines().find(|l| l.contains("TLS_failed")).map(str::to_owned));
    assert!(refused.unwrap().contains(": deferral: "));
    assert_eq!(inbox(&dovecot, "ann@wrong.test"), 0);
}

/// Our accounts and our system users, whose mailboxes Dovecot keeps: qmail goes on to know who they are and what they want.
#[test]
fn our_own_users_have_their_mailboxes_in_dovecot() {
    let name = "our_own_users_have_their_mailboxes_in_dovecot";
    if !is_root() {
        return skip(name, "Dovecot's master must be root");
    }
    let mut instance = Instance::new().unwrap();
    certificates(instance.dir(), "store.test");
    let socket = Dovecot::dir(&instance).join("lmtp");
    let routes = format!("example.test:unix:{0}\nmail.example.test:unix:{0}\nhost.test:127.0.0.1:2400\n", socket.display());
    instance.control("lmtproutes", &routes).unwrap();
    instance.control("defaultdelivery", "./Maildir/\n").unwrap();
    let person = Person::new(&instance).unwrap();
    person.maildir("Maildir").unwrap();
    let system = format!("{}@mail.example.test", person.name);
    let users = [(ANN, ""), ("bob@example.test", ""), ("carl@example.test", "userdb_quota_rule=*:bytes=10"), (&system, "")];
    let users = Dovecot::users_of_its_own(&instance, &users).unwrap();
    let dovecot = Dovecot::start_with(&instance, instance.port(143), &users, &store(&instance, instance.port(240))).unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["ann", "bob", "carl", "dora"]).unwrap();
    instance.virtual_domain("host.test", &["eve"]).unwrap();
    instance.must(&["domain", "add", "alias.test", "--alias-of", "example.test"]).unwrap();
    instance.must(&["alias", "add", "info@example.test", ANN]).unwrap();
    // Who does not exist is refused at RCPT, as ever.
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO c.test", "250").unwrap();
    smtp.must("MAIL FROM:<x@elsewhere.test>", "250").unwrap();
    smtp.must("RCPT TO:<nobody@example.test>", "550 5.1.1").unwrap();
    let send = |to: &[&str]| instance.smtp().unwrap().send(ANN, to, LETTER).unwrap();
    send(&["info@example.test", "ann@alias.test", &system]);
    instance.wait_empty().unwrap_or_else(|error| panic!("{error}\n{}", dovecot.log()));
    assert_eq!((inbox(&dovecot, ANN), inbox(&dovecot, &system)), (2, 1), "{}", instance.log());
    assert!(person.letters("Maildir").is_empty() && !instance.maildir(ANN).join("new").exists(), "nothing is kept twice");
    let text = message(&mut dovecot.inbox(&system).unwrap().0);
    assert!(text.contains(&format!("Delivered-To: {system}\n")) && text.contains("\n\n.stuffed\ntext"), "{text}");
    assert_eq!(text.matches("Return-Path:").count(), 1, "{text}");
    // What has been there already does not go there again.
    instance.smtp().unwrap().send(ANN, &["bob@example.test"], &format!("Delivered-To: bob@example.test\n{LETTER}")).unwrap();
    instance.wait_log("This_message_is_looping").unwrap();
    instance.wait_empty().unwrap();
    // The bounce of it came to ann.
    assert_eq!((inbox(&dovecot, ANN), inbox(&dovecot, "bob@example.test")), (3, 0));
    // Forwards and replies are the account's.
    instance.must(&["user", "forward", "bob@example.test", ANN, "--keep-copy"]).unwrap();
    send(&["bob@example.test"]);
    instance.wait_empty().unwrap();
    assert_eq!((inbox(&dovecot, ANN), inbox(&dovecot, "bob@example.test")), (4, 1));
    instance.must(&["user", "forward", "bob@example.test", "--off"]).unwrap();
    instance.with_input(&["user", "vacation", "bob@example.test", "--text-stdin"], "away\n").unwrap();
    instance.smtp().unwrap().send(ANN, &["bob@example.test"], &format!("To: bob@example.test\n{LETTER}")).unwrap();
    instance.wait_empty().unwrap();
    assert_eq!((inbox(&dovecot, ANN), inbox(&dovecot, "bob@example.test")), (5, 2));
    // The server's word counts: full, and unknown there though known here.
    send(&["carl@example.test", "dora@example.test"]);
    instance.wait_empty().unwrap();
    let log = instance.log();
    assert!(log.contains(": failure: ") && log.contains("552_5.2.2") && log.contains("550_5.1.1"), "{log}");
    // A file of the user's own still says everything.
    person.write(".qmail", "./Maildir/\n").unwrap();
    send(&[&system]);
    instance.wait_empty().unwrap();
    assert_eq!((person.letters("Maildir").len(), inbox(&dovecot, &system)), (1, 1));
    // A host is no place for mailboxes of ours: that waits, and `qmail check` says why.
    send(&["eve@host.test"]);
    instance.wait_log("control/lmtproutes_sends_a_domain_of_this_system").unwrap();
    let check = instance.qmail(&["check"]).output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(said.contains("host.test") && said.contains("lmtproutes"), "{said}");
    // Without its server the mail waits, and goes when it is back.
    drop(dovecot);
    send(&[ANN]);
    instance.wait_log("Unable_to_reach_the_LMTP_server").unwrap();
}

/// The second way of docs/dovecot.md as it stands there: the socket is vmail's alone, logins are ours, nobody keeps a list of users.
#[test]
fn the_walk_through_works() {
    let name = "the_walk_through_works";
    if !is_root() {
        return skip(name, "Dovecot's master must be root");
    }
    let instance = Instance::started(&[("authcleartext", "127.0.0.1/32\n")]).unwrap();
    instance.virtual_domain("example.test", &["ann", "bob"]).unwrap();
    let ids = std::fs::read_to_string(instance.root.join("etc/qmail/ids")).unwrap();
    let vmail = ids.lines().find_map(|line| line.strip_prefix("vmail ")).unwrap();
    let (uid, gid) = vmail.split_once(' ').unwrap();
    let socket = Dovecot::dir(&instance).join("lmtp");
    let more = format!(
        "protocols = imap lmtp\nservice auth {{\n  user = root\n}}\n\
         service lmtp {{\n  unix_listener {socket} {{\n    mode = 0600\n  }}\n}}\n\
         passdb {{\n  driver = checkpassword\n  args = {program} --root {root} --dovecot\n}}\n\
         userdb {{\n  driver = prefetch\n}}\n\
         userdb {{\n  driver = static\n  args = uid={uid} gid={gid} home={root}/var/mail/%d/%n allow_all_users=yes\n}}\n",
        socket = socket.display(),
        program = instance.program("checkpassword").display(),
        root = instance.root.display(),
    );
    let dovecot = Dovecot::start_with(&instance, instance.port(143), "", &more).unwrap();
    // Dovecot takes names only, which an instance of a test has not for its ids.
    std::os::unix::fs::chown(&socket, Some(uid.parse().unwrap()), Some(gid.parse().unwrap())).unwrap();
    instance.control("lmtproutes", &format!("example.test:unix:{}\n", socket.display())).unwrap();
    instance.must(&["check"]).unwrap();
    instance.smtp().unwrap().send("x@elsewhere.test", &[ANN, "bob-list@example.test"], LETTER).unwrap_err();
    instance.smtp().unwrap().send("x@elsewhere.test", &[ANN, "Bob@EXAMPLE.test"], LETTER).unwrap();
    instance.wait_empty().unwrap_or_else(|error| panic!("{error}\n{}", dovecot.log()));
    for user in ["ann", "bob"] {
        let mut imap = dovecot.log_in(&format!("{user}@example.test"), &format!("{user}-password")).unwrap();
        let count = exists(&imap.must("SELECT INBOX").unwrap());
        assert_eq!(count, Some(1), "{user}\n{}\n{}", instance.log(), dovecot.log());
    }
    assert!(dovecot.log().contains(&format!("lmtp({ANN})")), "{}", dovecot.log());
}

/// A server that answers some recipients and is gone: those stay answered.
#[test]
fn what_was_answered_before_the_connection_broke_is_not_delivered_again() {
    let instance = Instance::new().unwrap();
    let socket = instance.dir().join("lmtp");
    let listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let said = std::sync::Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
    let heard = std::sync::Arc::clone(&said);
    std::thread::spawn(move || {
        for (at, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            stream.write_all(b"220 x LMTP\r\n").unwrap();
            let (mut text, mut buf) = (String::new(), [0; 4096]);
            // Every line is answered by its kind, the text by as many replies as this round gives.
            let mut answered = 0;
            while let Ok(len @ 1..) = stream.read(&mut buf) {
                text.push_str(&String::from_utf8_lossy(&buf[..len]));
                while let Some(end) = text[answered..].find("\r\n").map(|at| answered + at + 2) {
                    let line = text[answered..end].to_owned();
                    answered = end;
                    let reply: &[u8] = match line.get(..4).unwrap_or(&line) {
                        "LHLO" => b"250-x\r\n250 PIPELINING\r\n",
                        "MAIL" | "RCPT" => b"250 ok\r\n",
                        "DATA" => b"354 go\r\n",
                        "QUIT" => b"221 bye\r\n",
                        _ if line == ".\r\n" && at == 0 => b"250 first\r\n550 5.7.1 second\r\n",
                        _ if line == ".\r\n" => b"250 third\r\n",
                        _ => b"",
                    };
                    let _ = stream.write_all(reply);
                    if line == ".\r\n" && at == 0 {
                        let _ = stream.shutdown(std::net::Shutdown::Both);
                    }
                }
            }
            heard.lock().unwrap().push(text);
        }
    });
    let mut instance = instance;
    instance.control("lmtproutes", &format!("store.test:unix:{}\n", socket.display())).unwrap();
    instance.control("relayclients", "127.0.0.0/8\n").unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["ann"]).unwrap();
    instance.smtp().unwrap().send(ANN, &["a@store.test", "b@store.test", "c@store.test"], LETTER).unwrap();
    let deferral = instance.wait_log(": deferral: ").unwrap();
    assert!(deferral.contains("Possible_duplicate"), "{deferral}");
    instance.retry_until_empty().unwrap();
    let sessions = || Some(said.lock().unwrap().clone()).filter(|sessions| sessions.len() >= 2);
    let sessions = wait_for("the second session to end", sessions).unwrap();
    assert!(sessions[0].contains("<a@store.test>") && sessions[0].contains("<c@store.test>"), "{sessions:?}");
    let again: String = sessions[1..].concat();
    assert!(again.matches("RCPT TO:").count() == 1 && again.contains("RCPT TO:<c@store.test>"), "{again}");
    assert!(instance.wait_mail(ANN, 1).unwrap()[0].contains("<b@store.test>:\n"));
}

/// An LMTP server that takes everything; what it heard in each session.
fn willing(listener: UnixListener) -> std::sync::Arc<std::sync::Mutex<String>> {
    let heard = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let said = std::sync::Arc::clone(&heard);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"220 x LMTP\r\n");
            let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stream.try_clone().unwrap()));
            let mut is_text = false;
            while let Some(Ok(line)) = lines.next() {
                said.lock().unwrap().push_str(&format!("{line}\n"));
                let reply: &[u8] = match (is_text, line.get(..4).unwrap_or(&line)) {
                    (true, ".") => b"250 ok\r\n",
                    (true, _) => b"",
                    (false, "LHLO") => b"250 x\r\n",
                    (false, "DATA") => b"354 go\r\n",
                    (false, _) => b"250 ok\r\n",
                };
                is_text = reply.starts_with(b"354") || is_text && reply.is_empty();
                let _ = stream.write_all(reply);
            }
        }
    });
    heard
}

/// RFC 2852, RFC 3461: an LMTP server is the mailbox. BY=…;R reaches it though it knows nothing of that, and the report says delivered.
#[test]
fn by_lmtp_a_letter_is_delivered_in_time_and_not_relayed() {
    let mut instance = Instance::new().unwrap();
    let socket = instance.dir().join("lmtp");
    let heard = willing(UnixListener::bind(&socket).unwrap());
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    instance.control("lmtproutes", &format!("store.test:unix:{}\n", socket.display())).unwrap();
    instance.control("relayclients", "127.0.0.0/8\n").unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["ann"]).unwrap();
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO c", "250").unwrap();
    smtp.must(&format!("MAIL FROM:<{ANN}> BY=1000;R"), "250").unwrap();
    smtp.must("RCPT TO:<a@store.test> NOTIFY=SUCCESS,FAILURE", "250").unwrap();
    smtp.must("DATA", "354").unwrap();
    smtp.0.raw(b"Subject: x\r\n\r\ntext\r\n.\r\n").unwrap();
    assert!(smtp.reply().unwrap().starts_with("250 "));
    let report = instance.wait_mail(ANN, 1).unwrap().remove(0);
    assert!(report.contains("\nFinal-Recipient: rfc822; a@store.test\nAction: delivered\n"), "{report}");
    let heard = heard.lock().unwrap().clone();
    assert!(heard.contains("RCPT TO:<a@store.test>") && !heard.contains("BY="), "{heard}");
}

/// Our own listener: LHLO, a reply for each, nothing for anybody else, STARTTLS, and not on SMTP's port.
#[test]
fn our_listener_speaks_lmtp_for_our_recipients() {
    let instance = Instance::started(&[("relayclients", "127.0.0.0/8\n")]).unwrap();
    instance.virtual_domain("example.test", &["ann", "bob"]).unwrap();
    let mut lmtp = Smtp::open(instance.port(24)).unwrap();
    assert!(lmtp.greeting().ends_with(" LMTP"), "{}", lmtp.greeting());
    lmtp.must("EHLO c.test", "500 ").unwrap();
    let offers = lmtp.must("LHLO c.test", "250").unwrap();
    assert!(offers.contains("250-CHUNKING") && offers.contains("250-STARTTLS") && !offers.contains("AUTH"), "{offers}");
    lmtp.must("MAIL FROM:<x@elsewhere.test>", "250").unwrap();
    lmtp.must("RCPT TO:<x@elsewhere.test>", "550 5.1.2").unwrap();
    lmtp.must("RCPT TO:<nobody@example.test>", "550 5.1.1").unwrap();
    lmtp.must("DATA", "503 ").unwrap();
    for to in [ANN, "bob@example.test", ANN] {
        lmtp.must(&format!("RCPT TO:<{to}>"), "250 ").unwrap();
    }
    lmtp.must("DATA", "354 ").unwrap();
    lmtp.0.raw(b"Subject: x\r\n\r\ntext\r\n.\r\n").unwrap();
    for _ in 0..3 {
        assert!(lmtp.reply().unwrap().starts_with("250 2.0.0 ok "));
    }
    lmtp.must("NOOP", "250 2.0.0 ok").unwrap();
    instance.wait_mail(ANN, 2).unwrap();
    let letter = instance.wait_mail("bob@example.test", 1).unwrap().remove(0);
    assert!(letter.contains(" with LMTP; "), "{letter}");
}

#[test]
fn a_real_postfix_delivers_to_us_by_lmtp() {
    let name = "a_real_postfix_delivers_to_us_by_lmtp";
    if !is_root() {
        return skip(name, "Postfix starts as root only");
    }
    let Some(tool) = tools::get(name, "postfix", "usr/lib/postfix/sbin/master").unwrap() else { return };
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["ann", "bob"]).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let main = format!("transport_maps = inline:{{ example.test=lmtp:[127.0.0.1]:{} }}\n", instance.port(24));
    let postfix = Postfix::start_with(&tool, instance.dir(), port, 1, &main).unwrap();
    let to = [ANN, "nobody@example.test", "bob@example.test"];
    Smtp::open(port).unwrap().send("box@postfix.test", &to, LETTER).unwrap();
    for to in [ANN, "bob@example.test"] {
        let letter = instance.wait_mail(to, 1).unwrap_or_else(|error| panic!("{error}\n{}", postfix.log())).remove(0);
        assert!(letter.contains(" with LMTP") && letter.contains("\n\n.stuffed\ntext\n"), "{letter}");
    }
    let bounced = || postfix.log().lines().find(|line| line.contains("to=<nobody@example.test>")).map(str::to_owned);
    let bounced = wait_for("the bounce", bounced).unwrap();
    assert!(
        bounced.contains("relay=127.0.0.1") && bounced.contains("status=bounced") && bounced.contains("550 5.1.1"),
        "{bounced}"
    );
    let sent = postfix.log().lines().filter(|line| line.contains("status=sent (250 2.0.0 ok")).count();
    assert_eq!(sent, 2, "{}", postfix.log());
}

/// Dovecot's submission service takes mail from a user of its own and sends it through us, whose certificate it verifies.
#[test]
fn dovecot_submits_through_us_over_verified_tls() {
    let name = "dovecot_submits_through_us_over_verified_tls";
    if !is_root() {
        return skip(name, "Dovecot's master must be root");
    }
    let mut instance = Instance::new().unwrap();
    certificates(instance.dir(), "localhost");
    let tls = instance.root.join("etc/qmail/tls").join("localhost");
    std::fs::create_dir_all(&tls).unwrap();
    for (file, mode) in [("cert.pem", 0o644), ("key.pem", 0o600)] {
        std::fs::copy(instance.dir().join(file), tls.join(file)).unwrap();
        std::fs::set_permissions(tls.join(file), std::fs::Permissions::from_mode(mode)).unwrap();
        let owner = std::fs::metadata(instance.root.join("etc/qmail/tls").join(ME).join(file)).unwrap();
        std::os::unix::fs::chown(tls.join(file), Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["ann", "bob"]).unwrap();
    let users = Dovecot::users_of_its_own(&instance, &[(ANN, "")]).unwrap();
    let submission = instance.port(588);
    let relay = |ca: &str| {
        format!(
            "protocols = imap submission\nssl = yes\nssl_cert = <{dir}/cert.pem\nssl_key = <{dir}/key.pem\nssl_client_ca_file = {dir}/{ca}\n\
             submission_relay_host = localhost\nsubmission_relay_port = {port}\nsubmission_relay_ssl = starttls\n\
             submission_relay_ssl_verify = yes\nsubmission_relay_user = {ANN}\nsubmission_relay_password = ann-password\n\
             hostname = dovecot.test\n\
             service submission-login {{\n  chroot =\n  inet_listener submission {{\n    port = {submission}\n  }}\n}}\n",
            dir = instance.dir().display(),
            port = instance.port(587),
        )
    };
    let submit = |dovecot: &Dovecot| -> anyhow::Result<String> {
        let mut smtp = Smtp(Line::open(submission)?, String::new());
        smtp.reply()?;
        smtp.must("EHLO client.test", "250")?;
        let plain = wire::base64::encode(format!("\0{ANN}\0{PASSWORD}").as_bytes());
        smtp.must(&format!("AUTH PLAIN {plain}"), "235")?;
        smtp.transaction(ANN, &["bob@example.test"], LETTER).map_err(|error| error.context(dovecot.log()))
    };
    let dovecot = Dovecot::start_with(&instance, instance.port(143), &users, &relay("ca.pem")).unwrap();
    let reply = submit(&dovecot).unwrap();
    assert!(reply.starts_with("250 2.0.0 "), "{reply}\n{}", dovecot.log());
    let letter = instance.wait_mail("bob@example.test", 1).unwrap().remove(0);
    assert!(letter.contains(" with ESMTPSA tls ") && letter.contains("Subject: by LMTP\n"), "{letter}");
    drop(dovecot);
    // With another authority it sends nothing.
    let other = instance.dir().join("other");
    std::fs::create_dir(&other).unwrap();
    certificates(&other, "localhost");
    let dovecot = Dovecot::start_with(&instance, instance.port(143), &users, &relay("other/ca.pem")).unwrap();
    let refused = submit(&dovecot);
    assert!(refused.as_ref().map_or(true, |reply| !reply.starts_with("250")), "{refused:?}");
    assert_eq!(instance.wait_mail("bob@example.test", 1).unwrap().len(), 1);
}
