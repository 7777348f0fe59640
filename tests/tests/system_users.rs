//! Logins of the system's users, and programs of others that log in ours.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use system_tests::instance::ME;
use system_tests::{Instance, Person, Pop3, facts, is_root, skip, tools, wait_for};

/// etc/shadow below the instance's root: lines `name:hash:…` for the password `open sesame`; more fields by `days`.
fn shadow(instance: &Instance, users: &[(&str, &str)]) {
    let crypt = sys::crypt::Crypt::load().unwrap();
    let hash = crypt.hash(b"open sesame", b"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$").unwrap();
    let hash = String::from_utf8(hash).unwrap();
    let lines: String = users.iter().map(|(name, days)| format!("{name}:{hash}:{days}\n")).collect();
    let path = instance.root.join("etc/shadow");
    std::fs::write(&path, lines).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn is_running(instance: &Instance, name: &str) -> bool {
    facts::descendants(instance.pid()).iter().any(|process| process.name == name)
}

fn reload(instance: &Instance, count: usize) {
    facts::signal(instance.pid(), Signal::HUP);
    let done = || (instance.log().matches("the new configuration is in use").count() >= count).then_some(());
    wait_for("the reload", done).unwrap();
}

/// AUTH PLAIN of `\0user\0open sesame`; the code of the reply.
fn auth(instance: &Instance, user: &str) -> String {
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO client.example.test", "250").unwrap();
    let words = wire::base64::encode(format!("\0{user}\0open sesame").as_bytes());
    let reply = smtp.ask(&format!("AUTH PLAIN {words}")).unwrap();
    reply.get(..3).unwrap().to_owned()
}

#[test]
fn a_system_user_logs_in_by_shadow_and_reads_what_was_delivered() {
    let mut instance = Instance::new().unwrap();
    instance.control("authlimits", "failures=0\naccount=0\npause=0\n").unwrap();
    instance.start().unwrap();
    let person = Person::new(&instance).unwrap();
    person.maildir("Maildir").unwrap();
    let name = person.name.as_str();
    let today = sys::clock::unix_s() / 86_400;
    let fine = format!("{today}:0:99999:7:::");
    shadow(&instance, &[(name, &fine), ("root", &fine), ("nobodyhere", &fine)]);
    let letter = "Subject: for a system user\n\nThe text.\n";
    instance.smtp().unwrap().send("a@elsewhere.test", &[&format!("{name}@{ME}")], letter).unwrap();
    instance.wait_letters(&person.home.join("Maildir"), 1).unwrap();

    let port = instance.port(110);
    let login = |user: &str, password: &str| Pop3::login(port, user, password);
    assert!(!is_running(&instance, "qmail-checkpw"), "nothing needs it");
    assert!(login(name, "open sesame").is_err(), "without control/authsources system users do not log in");
    instance.control("authsources", "accounts\nshadow\n").unwrap();
    reload(&instance, 1);
    assert!(is_running(&instance, "qmail-checkpw"));
    for user in [name.to_owned(), format!("{name}@{ME}"), name.to_uppercase()] {
        let mut pop3 = login(&user, "open sesame").unwrap();
        assert_eq!(pop3.count().unwrap(), 1, "{user}");
        assert!(pop3.message(1).unwrap().contains("Subject: for a system user\n"));
    }
    for (user, password) in
        [(name, "Open sesame"), ("root", "open sesame"), ("nobodyhere", "open sesame"), ("no-line-in-shadow", "open sesame")]
    {
        let error = login(user, password).unwrap_err().to_string();
        assert!(error.contains("-ERR [AUTH]"), "{user}: {error}");
    }
    // Who may read may send.
    assert_eq!(auth(&instance, name), "235");
    assert_eq!(auth(&instance, "root"), "535");
    assert_eq!(auth(&instance, "nobodyhere"), "535");
    // As shadow(5) has it: ended yesterday; must be changed.
    for days in [format!("{today}:0:99999:7::{}:", today - 1), "0:0:99999:7:::".to_owned(), format!("{}:0:30:7:::", today - 40)] {
        shadow(&instance, &[(name, &days)]);
        assert!(login(name, "open sesame").is_err(), "{days}");
        assert_eq!(auth(&instance, name), "535", "{days}");
    }
    // No file, no verdict.
    std::fs::remove_file(instance.root.join("etc/shadow")).unwrap();
    assert_eq!(auth(&instance, name), "454");
    shadow(&instance, &[(name, &fine)]);
    assert_eq!(auth(&instance, name), "235");

    std::fs::remove_file(instance.root.join("etc/qmail/control/authsources")).unwrap();
    reload(&instance, 2);
    wait_for("the end of qmail-checkpw", || (!is_running(&instance, "qmail-checkpw")).then_some(())).unwrap();
    assert!(login(name, "open sesame").is_err());
}

/// Our own checkpassword in a shell, with this on descriptor 3.
fn checkpassword(instance: &Instance, credentials: &str, program: &str) -> Output {
    let command = format!(
        "printf '{credentials}' | {} --root {} {program} 3<&0 </dev/null",
        instance.program("checkpassword").display(),
        instance.root.display()
    );
    Command::new("sh").arg("-c").arg(command).env("TCPREMOTEIP", "192.0.2.9").output().unwrap()
}

#[test]
fn checkpassword_runs_a_program_as_the_owner_of_the_mailbox() {
    let mut instance = Instance::started(&[("authlimits", "failures=0\naccount=0\npause=0\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob", "eve"]).unwrap();
    let show = "sh -c 'echo \"$USER $HOME $SHELL $(id -u):$(id -g):$(id -G) $(pwd)\"; [ ! -e /proc/$$/fd/3 ]'";
    let output = checkpassword(&instance, "bob@example.test\\0bob-password\\0time\\0", show);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let home = instance.root.join("var/mail/example.test/bob").display().to_string();
    let ids = std::fs::read_to_string(instance.root.join("etc/qmail/ids")).unwrap_or_default();
    let vmail = ids.lines().find_map(|line| line.strip_prefix("vmail ")).map(|ids| ids.replace(' ', ":"));
    let own = || format!("{}:{}", rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let said = String::from_utf8(output.stdout).unwrap();
    if is_root() {
        let vmail = vmail.unwrap();
        let gid = vmail.split(':').nth(1).unwrap();
        assert_eq!(said, format!("bob@example.test {home} /bin/false {vmail}:{gid} {home}\n"));
    } else {
        assert!(said.starts_with(&format!("bob@example.test {home} /bin/false {}", own())), "{said}");
    }
    let touch = "touch ran";
    instance.must(&["user", "suspend", "eve@example.test"]).unwrap();
    for (credentials, code) in [
        ("bob@example.test\\0wrong\\0\\0", 1),
        ("bob@example.test\\0\\0\\0", 1),
        ("eve@example.test\\0eve-password\\0\\0", 1),
        ("nobody@example.test\\0bob-password\\0\\0", 1),
        ("root\\0bob-password\\0\\0", 1),
        ("bob@example.test", 2),
        ("bob@example.test\\0bob-password", 2),
        ("", 2),
    ] {
        let output = checkpassword(&instance, credentials, touch);
        assert_eq!(output.status.code(), Some(code), "{credentials}");
    }
    assert!(!Path::new(&home).join("ran").exists() && !Path::new("ran").exists(), "nothing was run");
    assert_eq!(checkpassword(&instance, "bob@example.test\\0bob-password\\0\\0", "").status.code(), Some(2));
    assert_eq!(checkpassword(&instance, "bob@example.test\\0bob-password\\0\\0", "/no/such/program").status.code(), Some(111));
    instance.wait_log("login: service=checkpassword remote=192.0.2.9 user=bob@example.test").unwrap();
    instance.stop().unwrap();
    assert_eq!(checkpassword(&instance, "bob@example.test\\0bob-password\\0\\0", touch).status.code(), Some(111), "down");
}

/// A system user by a checkpassword program that is our own: what qmail-checkpw asks may be any program with the interface.
#[test]
fn a_checkpassword_program_that_becomes_the_user_logs_him_in() {
    let name = "a_checkpassword_program_that_becomes_the_user_logs_him_in";
    if !is_root() {
        return skip(name, "a program that becomes another user needs root");
    }
    let instance = Instance::started(&[("authsources", "accounts\n")]).unwrap();
    let person = Person::new(&instance).unwrap();
    person.maildir("Maildir").unwrap();
    let program = instance.dir().join("classic");
    let text = format!(
        "#!/bin/sh\ncredentials=$(tr '\\0' '\\n' <&3)\nexec 3<&-\n[ \"$credentials\" = '{0}\nopen sesame' ] || exit 1\n\
         export USER={0} HOME=/ SHELL=/bin/sh\nexec setpriv --reuid {0} --regid {0} --clear-groups \"$@\"\n",
        person.name
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    instance.control("authsources", &format!("accounts\ncheckpassword {}\n", program.display())).unwrap();
    reload(&instance, 1);
    let mut pop3 = Pop3::login(instance.port(110), &person.name, "open sesame").unwrap();
    assert_eq!(pop3.count().unwrap(), 0);
    assert!(Pop3::login(instance.port(110), &person.name, "open sesamE").is_err());
    assert!(Pop3::login(instance.port(110), "root", "open sesame").is_err());
}

#[test]
fn dovecot_logs_in_our_users_and_shows_their_mail_by_imap() {
    let name = "dovecot_logs_in_our_users_and_shows_their_mail_by_imap";
    if !is_root() {
        return skip(name, "Dovecot's processes become other users");
    }
    let Some(dovecot) = tools::get(name, "dovecot-imapd", "usr/sbin/dovecot").unwrap() else { return };
    let Some(curl) = tools::get(name, "curl", "usr/bin/curl").unwrap() else { return };
    let instance = Instance::started(&[("authlimits", "failures=0\naccount=0\npause=0\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob", "carol"]).unwrap();
    let letter = "Subject: for IMAP\n\nThe text.\n";
    instance.smtp().unwrap().send("a@elsewhere.test", &["bob@example.test"], letter).unwrap();
    instance.wait_mail("bob@example.test", 1).unwrap();
    let mut server = Dovecot::start(&instance, &dovecot);
    let imap = |login: &str, more: &[&str]| {
        let mut command = curl.command();
        command.args(["--silent", "--show-error", "--max-time", "60", "--user", login]).args(more);
        command.output().unwrap()
    };
    let inbox = format!("imap://127.0.0.1:{}/INBOX", server.port);
    let got = imap("bob@example.test:bob-password", &[&format!("{inbox};MAILINDEX=1")]);
    let text = String::from_utf8_lossy(&got.stdout).into_owned();
    assert!(got.status.success(), "{}\n{}", String::from_utf8_lossy(&got.stderr), server.log());
    assert!(
        text.contains("Delivered-To: bob@example.test\r\n") && text.contains("Subject: for IMAP\r\n\r\nThe text.\r\n"),
        "{text}"
    );
    // Somebody without mail and without a home yet.
    let empty = imap("carol@example.test:carol-password", &[&inbox, "--request", "STATUS INBOX (MESSAGES)"]);
    assert!(String::from_utf8_lossy(&empty.stdout).contains("MESSAGES 0"), "{}", server.log());
    for login in ["bob@example.test:wrong", "nobody@example.test:bob-password", "bob:bob-password"] {
        // 67: the login was refused.
        assert_eq!(imap(login, &[&inbox]).status.code(), Some(67), "{login}");
    }
    // What Dovecot writes is ours to read: bob's letter has been seen, POP3 still shows it.
    let mut pop3 = instance.pop3("bob@example.test").unwrap();
    assert_eq!(pop3.count().unwrap(), 1);
    server.stop();
}

/// A Dovecot of the test's own.
struct Dovecot {
    child: std::process::Child,
    port: u16,
    dir: std::path::PathBuf,
}

impl Dovecot {
    fn start(instance: &Instance, dovecot: &tools::Tool) -> Self {
        let dir = instance.dir().join("dovecot");
        std::fs::create_dir(&dir).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let libexec = dovecot.prefix.join("usr/lib/dovecot");
        let config = format!(
            "base_dir = {dir}/run\nstate_dir = {dir}/state\nlog_path = {dir}/log\nssl = no\nprotocols = imap\nlisten = 127.0.0.1\n\
             libexec_dir = {libexec}\ndisable_plaintext_auth = no\nauth_mechanisms = plain login\nauth_verbose = yes\n\
             first_valid_uid = 1\nmail_location = maildir:~/Maildir\n\
             service imap-login {{\n chroot =\n inet_listener imap {{\n port = {port}\n }}\n inet_listener imaps {{\n port = 0\n }}\n}}\n\
             service auth {{\n user = root\n}}\nservice anvil {{\n chroot =\n}}\nservice stats {{\n chroot =\n}}\n\
             passdb {{\n driver = checkpassword\n args = {program} --root {root} --dovecot\n}}\nuserdb {{\n driver = prefetch\n}}\n",
            dir = dir.display(),
            libexec = libexec.display(),
            program = instance.program("checkpassword").display(),
            root = instance.root.display(),
        );
        std::fs::write(dir.join("dovecot.conf"), config).unwrap();
        let mut command = dovecot.command();
        let child = command.arg("-F").arg("-c").arg(dir.join("dovecot.conf")).spawn().unwrap();
        let server = Self { child, port, dir };
        let greets = || system_tests::line::Line::open(port).ok()?.line().ok().filter(|line| line.starts_with(b"* OK"));
        wait_for("Dovecot", greets).unwrap_or_else(|error| panic!("{error}: {}", server.log()));
        server
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn stop(&mut self) {
        facts::signal(self.child.id(), Signal::TERM);
        self.child.wait().unwrap();
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.stop();
        }
    }
}
