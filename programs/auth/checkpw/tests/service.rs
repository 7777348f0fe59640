//! The real qmail-checkpw with real programs, a shadow file and PAM service files of the test's own. As root it serves the uid of qmail-auth
//! alone; not as root everything is the caller.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipc::checkpw::{Answer, Request, Verdict};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use qmail_checkpw::service::{CHECK_DEADLINE, HELPERS_MAX, WAITING_MAX};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sys::spawn::{Child, Ended, Spawn};
use sys::{Received, Seqpacket};
use wire::Secret;

const QMAILA: u32 = 61_101;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A running qmail-checkpw; it ends with this value.
struct System {
    dir: tempfile::TempDir,
    child: Child,
    lifeline: Option<OwnedFd>,
}

impl System {
    /// `DIR` in the files is this system's own directory.
    fn start(sources: &str, files: &[(&str, &str, u32)]) -> Self {
        // Every uid must reach it.
        let dir = tempfile::Builder::new().prefix("checkpw").tempdir_in("/var/tmp").unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in ["bin", "etc/qmail/control", "etc/pam.d", "run/qmail/roles", "running"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_qmail-checkpw"), at("bin/qmail-checkpw")).unwrap();
        if is_root() {
            fs::write(at("etc/qmail/ids"), format!("qmaila {QMAILA} 61100\nqmailq 61103 61100\n")).unwrap();
        }
        let own = |text: &str| text.replace("DIR", &dir.path().display().to_string());
        for (name, text, mode) in files {
            fs::write(at(name), own(text)).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(*mode)).unwrap();
        }
        fs::write(at("etc/qmail/control/authsources"), own(sources)).unwrap();
        let run = fs::File::open(at("run/qmail")).unwrap();
        let listener = sys::seqpacket::listen(run.as_fd(), "roles/checkpw.sock").unwrap();
        fs::set_permissions(at("run/qmail/roles/checkpw.sock"), fs::Permissions::from_mode(0o666)).unwrap();
        let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (said_ready, ready) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let stderr = std::io::stderr();
        let spawn = Spawn::new(&at("bin/qmail-checkpw")).arg("--service").env("QMAIL_ROOT", dir.path()).env("SECRET", "x");
        let spawn = spawn.fd("lifeline", theirs.as_fd()).fd("ready", ready.as_fd()).fd("run", run.as_fd());
        let child = spawn.stderr(stderr.as_fd()).fd("serve:checkpw", listener.as_fd()).start().unwrap();
        drop(ready);
        fs::File::from(said_ready).read_exact(&mut [0; 1]).unwrap();
        Self { dir, child, lifeline: Some(ours) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The line of control/authsources that this file's programs stand in.
    fn line(&self, line: &str) -> String {
        line.replace("DIR", &self.dir.path().display().to_string())
    }

    fn connect_as(&self, uid: u32) -> Seqpacket {
        let address = SocketAddrUnix::new(self.path("run/qmail/roles/checkpw.sock")).unwrap();
        let connect = move || {
            if is_root() {
                // Of this thread alone.
                rustix::thread::set_thread_res_uid(
                    rustix::process::Uid::from_raw(uid),
                    rustix::process::Uid::from_raw(uid),
                    rustix::process::Uid::from_raw(uid),
                )
                .unwrap();
            }
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
            rustix::net::connect(&socket, &address).unwrap();
            Seqpacket::from_fd(socket)
        };
        let socket = std::thread::spawn(connect).join().unwrap();
        socket.set_deadline(Duration::from_secs(60)).unwrap();
        socket
    }

    fn connect(&self) -> Seqpacket {
        self.connect_as(QMAILA)
    }

    fn check(&self, source: &str, login: &str, password: &str) -> Verdict {
        let socket = self.connect();
        ask(&socket, 7, &self.line(source), login, password);
        let (7, verdict) = answer(&socket) else { panic!("another id") };
        verdict
    }
}

impl Drop for System {
    fn drop(&mut self) {
        self.child.signal(rustix::process::Signal::KILL);
    }
}

fn ask(socket: &Seqpacket, id: u64, source: &str, login: &str, password: &str) {
    let (login, password) = (login.into(), Secret::new(password.into()));
    let remote = Some("192.0.2.7".parse().unwrap());
    let request = Request::Check { id, source: source.into(), service: "pop3".into(), login, password, remote };
    socket.send(&request.encode()).unwrap();
}

fn answer(socket: &Seqpacket) -> (u64, Verdict) {
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    let Received::Datagram(len, _) = socket.recv(&mut buf).unwrap() else { panic!("closed") };
    let Answer::Judged { id, verdict } = Answer::decode(&buf[..len]).unwrap();
    (id, verdict)
}

fn right(user: &str) -> Verdict {
    Verdict::Right { user: user.into() }
}

fn is_unavailable(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Unavailable { .. })
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What the login says is what it does; the password of everybody is `se cret`.
const PROGRAM: &str = r#"#!/bin/sh
tr '\0' '\n' <&3 >DIR/running/$$.credentials
{ read -r login; read -r password; } <DIR/running/$$.credentials
printf '%s\n' "$@" >DIR/args
shift 2
case $login in
  hang) sleep 1000 & echo $! >DIR/hanging; wait; exit 1;;
  escape) setsid sh -c 'echo $$ >DIR/session; { sleep 1000 & echo $! >DIR/escaped; } ; wait' & \
    while [ ! -s DIR/escaped ]; do sleep 0.05; done; exit 1;;
  crash) kill -SEGV $$; sleep 10;;
  garbage) printf 'yes, yes' >&4; exit 0;;
  lie) exit 0;;
  late) "$@"; exit 1;;
  chatter) yes | head -c 1000000; exit 1;;
  hold*) while [ ! -e DIR/go ]; do sleep 0.05; done;;
  exit*) exit ${login#exit};;
  env) env | sort >DIR/env; ls -l /proc/self/fd >DIR/fds;;
  mapped) USER=somebody; export USER;;
  liar) USER=somebody; export USER; exec setpriv --reuid 61001 --regid 61001 --clear-groups "$@";;
  user) exec setpriv --reuid 61001 --regid 61001 --clear-groups "$@";;
esac
[ "$password" = "se cret" ] || exit 1
exec "$@"
"#;
const SOURCE: &str = "checkpassword DIR/check one two";

fn program() -> System {
    System::start(&format!("accounts\n{SOURCE}\n"), &[("check", PROGRAM, 0o755)])
}

#[test]
fn a_checkpassword_program_judges() {
    let system = program();
    let check = |login, password| system.check(SOURCE, login, password);
    assert_eq!(check("ann", "se cret"), right("ann"));
    assert_eq!(check("ann", "secret"), Verdict::NoSuchUser {}, "it cannot say whether it knows ann");
    assert_eq!(check("mapped", "se cret"), right("somebody"));
    if is_root() {
        assert_eq!(check("user", "se cret"), right("user"));
        assert_eq!(check("liar", "se cret"), right("liar"), "a user's own process names nobody else");
    }
    for (login, refused) in
        [("exit1", true), ("exit3", true), ("exit2", false), ("exit100", false), ("exit111", false), ("exit127", false)]
    {
        let verdict = check(login, "se cret");
        assert_eq!(verdict == Verdict::NoSuchUser {}, refused, "{login}");
        assert_eq!(is_unavailable(&verdict), !refused, "{login}");
    }
    for login in ["crash", "garbage", "lie"] {
        let verdict = check(login, "se cret");
        assert!(is_unavailable(&verdict), "{login}: {verdict:?}");
    }
    assert_eq!(check("late", "se cret"), Verdict::NoSuchUser {}, "its exit code is its last word");
    assert_eq!(check("chatter", "se cret"), Verdict::NoSuchUser {});
}

#[test]
fn a_program_gets_a_clean_environment_and_no_descriptors_of_ours() {
    let system = program();
    assert_eq!(system.check(SOURCE, "env", "se cret"), right("env"));
    let env = fs::read_to_string(system.path("env")).unwrap();
    let mut names: Vec<&str> = env.lines().map(|line| line.split('=').next().unwrap()).collect();
    names.retain(|name| !["_", "OLDPWD", "PWD", "SHLVL"].contains(name));
    assert_eq!(names, ["PATH", "PROTO", "QMAIL_FDS", "SERVICE", "TCPREMOTEIP"], "{env}");
    assert!(env.contains("SERVICE=pop3\n") && env.contains("TCPREMOTEIP=192.0.2.7\n"));
    let fds = fs::read_to_string(system.path("fds")).unwrap();
    let numbers: Vec<&str> = fds.lines().filter_map(|line| line.split(" -> ").next()?.split(' ').next_back()).collect();
    assert_eq!(numbers.iter().filter(|n| n.parse::<u32>().is_ok_and(|n| n > 4)).count(), 1, "ls has one of its own: {fds}");
    let args = fs::read_to_string(system.path("args")).unwrap();
    let own = system.path("bin/qmail-checkpw").display().to_string();
    assert_eq!(args.lines().collect::<Vec<_>>(), ["one", "two", &own, "--accepted"]);
}

#[test]
fn names_and_passwords_reach_the_program_as_they_are_or_not_at_all() {
    let system = program();
    for login in ["$(touch DIR/x)", "a;b|c&d>e<f", "'\"`\\", "*", "-n", "--accepted", "ann@v.example", "\u{e9}\u{20ac}", "%s%n"] {
        assert_eq!(system.check(SOURCE, login, "se cret"), right(login), "{login}");
    }
    assert!(!system.path("x").exists());
    let started = fs::read_dir(system.path("running")).unwrap().count();
    let long = "a".repeat(600);
    for (login, password) in
        [("ann\0se cret", "x"), ("ann", "se cret\0x"), ("\0", ""), (long.as_str(), "se cret"), ("ann", long.as_str())]
    {
        assert_eq!(system.check(SOURCE, login, password), Verdict::NoSuchUser {});
    }
    assert_eq!(fs::read_dir(system.path("running")).unwrap().count(), started, "nothing was started for them");
}

#[test]
fn what_hangs_is_ended_with_all_it_started() {
    let system = program();
    let begun = Instant::now();
    let verdict = system.check(SOURCE, "hang", "se cret");
    assert!(is_unavailable(&verdict), "{verdict:?}");
    assert!(begun.elapsed() >= CHECK_DEADLINE);
    let pid = fs::read_to_string(system.path("hanging")).unwrap();
    let stat = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
    let is_alive = || fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
    wait_until("the end of the grandchild", || !is_alive());
    assert_eq!(system.check(SOURCE, "ann", "se cret"), right("ann"), "the service goes on");
}

/// A session of its own is no way out, neither when the program has ended nor when it was ended.
#[test]
fn what_a_program_left_in_another_session_ends_with_it() {
    let system = program();
    assert_eq!(system.check(SOURCE, "escape", "se cret"), Verdict::NoSuchUser {});
    for name in ["session", "escaped"] {
        let pid = fs::read_to_string(system.path(name)).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        assert!(stat.is_err(), "{name} is left: {stat:?}");
    }
    assert_eq!(system.check(SOURCE, "ann", "se cret"), right("ann"));
}

/// The system ends in the middle of a check: so does the check.
#[test]
fn a_check_ends_with_a_service_that_is_killed() {
    let system = program();
    let socket = system.connect();
    ask(&socket, 1, &system.line(SOURCE), "hang", "se cret");
    wait_until("the grandchild", || fs::read_to_string(system.path("hanging")).is_ok_and(|text| text.ends_with('\n')));
    let pid = fs::read_to_string(system.path("hanging")).unwrap();
    system.child.signal(rustix::process::Signal::KILL);
    let stat = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
    let is_alive = || fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
    wait_until("the end of the grandchild", || !is_alive());
}

#[test]
fn so_many_run_so_many_wait_and_the_rest_hears_so_at_once() {
    let system = program();
    let socket = system.connect();
    let source = system.line(SOURCE);
    let most = u64::try_from(HELPERS_MAX + WAITING_MAX).unwrap();
    for id in 0..most + 5 {
        ask(&socket, id, &source, &format!("hold{id}"), "se cret");
    }
    for _ in 0..5 {
        let (id, verdict) = answer(&socket);
        assert!(id >= most && is_unavailable(&verdict), "{id} {verdict:?}");
    }
    let running = || fs::read_dir(system.path("running")).unwrap().count();
    wait_until("the helpers", || running() >= HELPERS_MAX);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(running(), HELPERS_MAX);
    fs::write(system.path("go"), "").unwrap();
    let mut answered: Vec<u64> = (0..most)
        .map(|_| {
            let (id, verdict) = answer(&socket);
            // On a slow machine the last of them may come too late; none is refused.
            assert!(verdict == right(&format!("hold{id}")) || is_unavailable(&verdict), "{id}: {verdict:?}");
            id
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..most).collect::<Vec<_>>());
}

#[test]
fn only_what_root_wrote_is_a_source() {
    let system = program();
    for source in ["checkpassword /bin/true", "checkpassword DIR/check", "shadow", "pam", "accounts", "", "nonsense"] {
        let verdict = system.check(source, "ann", "se cret");
        assert!(is_unavailable(&verdict), "{source}: {verdict:?}");
    }
    // A program or a file that others may write could be anybody's.
    let mode = |name: &str, mode| fs::set_permissions(system.path(name), fs::Permissions::from_mode(mode)).unwrap();
    for name in ["check", "etc/qmail/control/authsources"] {
        mode(name, 0o777);
        assert!(is_unavailable(&system.check(SOURCE, "ann", "se cret")), "{name}");
        mode(name, 0o755);
        assert_eq!(system.check(SOURCE, "ann", "se cret"), right("ann"));
    }
    fs::write(system.path("etc/qmail/control/authsources"), "accounts\nnonsense\n").unwrap();
    assert!(is_unavailable(&system.check(SOURCE, "ann", "se cret")));
    fs::write(system.path("etc/qmail/control/authsources"), system.line(&format!("{SOURCE}\n"))).unwrap();
    assert_eq!(system.check(SOURCE, "ann", "se cret"), right("ann"), "the file is followed");
    fs::remove_file(system.path("check")).unwrap();
    assert!(is_unavailable(&system.check(SOURCE, "ann", "se cret")));
}

#[test]
fn any_bytes_end_just_their_connection_and_strangers_have_none() {
    let system = program();
    for bytes in [&b"x"[..], &[1, 1], &[0; 100], &[255; DATAGRAM_LEN_MAX], b"\x01\x01shadow"] {
        let socket = system.connect();
        socket.send(bytes).unwrap();
        assert!(matches!(socket.recv(&mut [0; 64]), Ok(Received::End) | Err(_)));
    }
    if is_root() {
        for stranger in [0, 61_103, 1000] {
            let socket = system.connect_as(stranger);
            let sent = socket.send(b"x");
            assert!(sent.is_err() || matches!(socket.recv(&mut [0; 64]), Ok(Received::End) | Err(_)), "{stranger}");
        }
    }
    assert_eq!(system.check(SOURCE, "ann", "se cret"), right("ann"));
    assert!(system.child.try_wait().is_none());
}

#[test]
fn retired_it_answers_what_is_under_way_and_ends() {
    let mut system = program();
    let socket = system.connect();
    ask(&socket, 1, &system.line(SOURCE), "hold", "se cret");
    wait_until("the helper", || fs::read_dir(system.path("running")).unwrap().count() == 1);
    rustix::io::write(system.lifeline.as_ref().unwrap(), b"r").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    fs::write(system.path("go"), "").unwrap();
    assert_eq!(answer(&socket), (1, right("hold")));
    assert_eq!(system.child.wait(), Ended::Code(0));
    system = program();
    let socket = system.connect();
    ask(&socket, 1, &system.line(SOURCE), "hang", "se cret");
    wait_until("the program", || system.path("hanging").exists());
    drop(system.lifeline.take());
    assert_eq!(system.child.wait(), Ended::Code(0), "without qmail-start it does not go on");
}

/// A shadow file with the password `pw` in every format of the system, written by crypt(3) itself.
fn shadow() -> String {
    let crypt = sys::crypt::Crypt::load().unwrap();
    let hash = |setting: &str| String::from_utf8(crypt.hash(b"pw", setting.as_bytes()).unwrap()).unwrap();
    let today = sys::clock::unix_s() / 86_400;
    let users = [
        ("yescrypt", hash("$y$j9T$F5Jx5fExrKuPp53xLKQ..1$")),
        ("sha512", hash("$6$saltstring")),
        ("sha256", hash("$5$saltstring")),
        ("bcrypt", hash("$2b$05$CCCCCCCCCCCCCCCCCCCCC.")),
        ("gost", hash("$gy$j9T$F5Jx5fExrKuPp53xLKQ..1$")),
        ("md5", hash("$1$salt")),
        ("locked", format!("!{}", hash("$6$saltstring"))),
        ("star", "*".to_owned()),
        ("empty", String::new()),
        ("odd", "$77$salt$hash".to_owned()),
    ];
    let line = |(name, hash): (&str, String)| format!("{name}:{hash}:{today}:0:99999:7:::\n");
    let fine: String = users.into_iter().map(line).collect();
    let sha = hash("$6$saltstring");
    fine + &format!(
        "ended:{sha}:{today}:0:99999:7::{today}:\nold:{sha}:{}:0:30:7:::\nmust:{sha}:0:0:99999:7:::\nbroken:{sha}:x:0:99999:7:::\n",
        today - 31
    )
}

#[test]
fn shadow_knows_every_format_and_heeds_what_has_ended() {
    let system = System::start("shadow\n", &[("etc/shadow", &shadow(), 0o640)]);
    let check = |login, password| system.check("shadow", login, password);
    for login in ["yescrypt", "sha512", "sha256", "bcrypt", "gost", "md5"] {
        assert_eq!(check(login, "pw"), right(login), "{login}");
        assert_eq!(check(login, "PW"), Verdict::Wrong {}, "{login}");
        assert_eq!(check(login, ""), Verdict::Wrong {}, "{login}");
    }
    for login in ["locked", "star", "empty", "ended", "old", "must"] {
        for password in ["pw", "", "!", "*"] {
            assert_eq!(check(login, password), Verdict::Wrong {}, "{login}");
        }
    }
    for login in ["nobody", "", "SHA512", "sha512:", "sha512\n", "*", "root"] {
        assert_eq!(check(login, "pw"), Verdict::NoSuchUser {}, "{login}");
    }
    for login in ["odd", "broken"] {
        assert!(is_unavailable(&check(login, "pw")), "{login}");
    }
    assert_eq!(system.check("shadow", "sha512", &"p".repeat(513)), Verdict::NoSuchUser {});
    let mode = |mode| fs::set_permissions(system.path("etc/shadow"), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o666);
    assert!(is_unavailable(&check("sha512", "pw")), "anybody's file");
    mode(0o600);
    assert_eq!(check("sha512", "pw"), right("sha512"));
    fs::remove_file(system.path("etc/shadow")).unwrap();
    assert!(is_unavailable(&check("sha512", "pw")));
}

#[test]
fn pam_decides_by_its_service_files() {
    let exec = "#!/bin/sh\n[ \"$PAM_USER\" = slow ] && sleep 1000\n[ \"$PAM_USER\" = crash ] && kill -9 $PPID\n\
        [ \"$(tr -d '\\0')\" = 'se cret' ] && [ \"$PAM_RHOST\" = 192.0.2.7 ]\n";
    let stack = |auth: &str, account: &str| format!("auth required {auth}\naccount required {account}\n");
    let files = [
        ("etc/pam.d/permit", stack("pam_permit.so", "pam_permit.so"), 0o644),
        ("etc/pam.d/deny", stack("pam_deny.so", "pam_permit.so"), 0o644),
        ("etc/pam.d/ended", stack("pam_permit.so", "pam_deny.so"), 0o644),
        ("etc/pam.d/unknown", stack("pam_unix.so", "pam_unix.so"), 0o644),
        ("etc/pam.d/exec", stack("pam_exec.so expose_authtok quiet DIR/program", "pam_permit.so"), 0o644),
        ("etc/pam.d/broken", stack("pam_no_such_module.so", "pam_permit.so"), 0o644),
        ("program", exec.to_owned(), 0o755),
    ];
    let files: Vec<(&str, &str, u32)> = files.iter().map(|(name, text, mode)| (*name, text.as_str(), *mode)).collect();
    let sources = "pam permit\npam deny\npam ended\npam unknown\npam exec\npam broken\npam missing\n";
    let system = System::start(sources, &files);
    assert_eq!(system.check("pam permit", "ann", "x"), right("ann"));
    assert_eq!(system.check("pam permit", "", "x"), Verdict::NoSuchUser {});
    assert_eq!(system.check("pam deny", "ann", "x"), Verdict::Wrong {});
    let verdict = system.check("pam ended", "ann", "x");
    assert_ne!(verdict, right("ann"), "the account modules have a say");
    assert_eq!(system.check("pam exec", "ann", "se cret"), right("ann"));
    assert_eq!(system.check("pam exec", "$(true) '\"", "se cret"), right("$(true) '\""));
    for password in ["secret", "", "se cret "] {
        assert_ne!(system.check("pam exec", "ann", password), right("ann"), "{password}");
    }
    assert_eq!(system.check("pam unknown", "no-such-user-here", "x"), Verdict::NoSuchUser {});
    assert!(is_unavailable(&system.check("pam missing", "ann", "x")));
    assert!(is_unavailable(&system.check("pam broken", "ann", "x")));
    assert!(is_unavailable(&system.check("pam exec", "crash", "se cret")), "a module that ends the helper");
    assert!(is_unavailable(&system.check("pam exec", "slow", "se cret")), "a module that hangs");
    assert!(Path::new("/etc/pam.d").is_dir(), "PAM is this machine's");
}
