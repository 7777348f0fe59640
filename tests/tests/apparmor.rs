//! The AppArmor profiles of the Debian package, on a kernel that need not have AppArmor: its compiler takes them, and what the processes of
//! a traced system open, make and start is what their profiles grant.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use system_tests::apparmor::Profiles;
use system_tests::strace::Trap;
use system_tests::tools::{self, Tool, must};
use system_tests::{Instance, is_root, skip};

/// Calls that name files or hand them over, and those by which threads and processes come to be.
const TRACED: &str = "-e trace=%file,%process,recvmsg";
/// More than a message that is kept in memory.
const LARGE: usize = 3_000_000;

fn profiles() -> String {
    let exe = std::env::current_exe().unwrap();
    let built = exe.ancestors().find(|dir| dir.join("qmail-send").is_file()).unwrap();
    must(Command::new(built.join("xtask")).arg("apparmor")).unwrap()
}

fn parser(test: &str) -> Option<Tool> {
    tools::get(test, "apparmor", "sbin/apparmor_parser").unwrap()
}

#[test]
fn the_compiler_of_apparmor_takes_the_profiles() {
    let Some(parser) = parser("the_compiler_of_apparmor_takes_the_profiles") else { return };
    let instance = Instance::new().unwrap();
    let file = instance.dir().join("profiles");
    std::fs::write(&file, profiles()).unwrap();
    let mut parse = parser.command();
    parse.arg("--base").arg(parser.prefix.join("etc/apparmor.d")).args(["--skip-kernel-load", "--skip-cache"]);
    // First a compilation, then the names alone.
    must(parse.arg(&file)).unwrap();
    let names = must(parse.arg("--names")).unwrap();
    for row in sandbox::TABLE.iter().filter(|row| row.confinement.is_some() && row.role != sandbox::Role::Network) {
        assert!(names.lines().any(|name| name == row.name), "{names}");
    }
}

#[test]
fn the_profiles_grant_what_the_processes_do() {
    const NAME: &str = "the_profiles_grant_what_the_processes_do";
    if !is_root() {
        skip(NAME, "needs root: confined processes cannot be traced by others");
        return;
    }
    let Some(parser) = parser(NAME) else { return };
    let profiles = Profiles::read(&profiles(), &parser.prefix.join("etc/apparmor.d")).unwrap();
    let mut instance = Instance::new().unwrap();
    let trap = Trap::new(&instance, "qmail-start").unwrap();
    trap.set(TRACED).unwrap();
    instance.start().unwrap();
    work(&instance);
    instance.stop().unwrap();

    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut refused = BTreeSet::new();
    for access in accesses(&trap.shown(), &instance) {
        if profiles.has(&access.program) {
            *seen.entry(access.program.clone()).or_default() += 1;
            if !profiles.grants(&access.program, &access.path, access.wanted) {
                refused.insert(access);
            }
        }
    }
    assert!(refused.is_empty(), "not granted: {refused:#?}");
    for name in [
        "qmail-start",
        "qmail-smtpd",
        "qmail-send",
        "qmail-auth",
        "qmail-keys",
        "qmail-lspawn",
        "qmail-local",
        "qmail-remote",
        "qmail-pop3d",
    ] {
        assert!(seen.get(name).is_some_and(|count| *count > 3), "{name}: {seen:?}");
    }
}

/// Letters of all kinds: to a mailbox, a large one, through a program line, to another host that is not there; and one is fetched.
fn work(instance: &Instance) {
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let alias = instance.root.join("etc/qmail/alias/.qmail-program");
    std::fs::write(&alias, "|cat >/dev/null\n./Maildir/\n").unwrap();
    let letter = "Subject: x\n\nbody\n";
    let send = |to: &str, letter: &str| instance.smtp().unwrap().send("a@example.test", &[to], letter).unwrap();
    send("bob@example.test", letter);
    send("program@mail.example.test", letter);
    send(
        "bob@example.test",
        &format!("Subject: large\n\n{}", "0123456789012345678901234567890123456789012345678901234567890123\n".repeat(LARGE / 65)),
    );
    instance.wait_mail("bob@example.test", 2).unwrap();
    let mut inject = instance.qmail(&["queue", "list"]);
    must(&mut inject).unwrap();
    let mut outgoing = Command::new(instance.program("qmail-inject"));
    outgoing.env("QMAIL_ROOT", &instance.root).arg("x@[127.0.0.1]");
    system_tests::instance::feed(&mut outgoing, letter.as_bytes()).unwrap();
    instance.wait_letters(&instance.root.join("etc/qmail/alias/Maildir"), 1).unwrap();
    assert_eq!(instance.pop3("bob@example.test").unwrap().count().unwrap(), 2);
}

/// Something that a process did to a file, in the words of a rule. The path is that of an installed system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Access {
    program: String,
    path: String,
    wanted: &'static str,
}

/// What strace has shown of qmail-start and all that it started, as far as it succeeded.
fn accesses(shown: &str, instance: &Instance) -> Vec<Access> {
    let mut programs: HashMap<String, String> = HashMap::new();
    let mut begun: HashMap<String, String> = HashMap::new();
    let mut accesses = Vec::new();
    for line in shown.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let call = if let Some(front) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread.to_owned(), front.to_owned());
            // What a child does before its parent hears of it.
            continue;
        } else if let Some((_, back)) = rest.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>")) {
            let Some(front) = begun.remove(thread) else { continue };
            format!("{front}{back}")
        } else {
            rest.to_owned()
        };
        let Some((name, arguments)) = call.split_once('(') else { continue };
        let Some((arguments, result)) = arguments.rsplit_once(" = ").filter(|(_, result)| !result.starts_with('-')) else {
            continue;
        };
        let program = programs.get(thread).cloned().unwrap_or_default();
        if matches!(name, "clone" | "clone3" | "fork" | "vfork") {
            programs.entry(result.trim().to_owned()).or_insert(program);
            continue;
        }
        for (path, wanted) in files(name, arguments, result) {
            if let Some(path) = installed(&path, instance) {
                accesses.push(Access { program: program.clone(), path, wanted });
            }
        }
        if name == "execve" {
            let file = quoted(arguments).next().unwrap_or_default();
            let started = Path::new(&file).file_name().unwrap().to_string_lossy().replace(".real", "");
            // What talks to clients shares a profile.
            let shares = sandbox::process(&started).is_some_and(|row| row.role == sandbox::Role::Network);
            programs.insert(thread.to_owned(), if shares { "qmail-smtpd".to_owned() } else { started });
        }
    }
    accesses
}

/// Which files a call names, and what is wanted of them.
fn files(name: &str, arguments: &str, result: &str) -> Vec<(String, &'static str)> {
    let names: Vec<String> = named(arguments);
    let directory = |path: &str, is_one: bool| if is_one { format!("{}/", path.trim_end_matches('/')) } else { path.to_owned() };
    match name {
        "open" | "openat" | "openat2" if !arguments.contains("O_PATH") => {
            let Some(path) = inside(result).next() else { return Vec::new() };
            let wanted = match () {
                () if arguments.contains("O_RDWR") => "rw",
                () if arguments.contains("O_WRONLY") => "w",
                () => "r",
            };
            vec![(directory(&path, arguments.contains("O_DIRECTORY") || Path::new(&path).is_dir()), wanted)]
        }
        "newfstatat" | "stat" | "lstat" | "statx" if !names.is_empty() => {
            names.iter().take(1).map(|path| (directory(path, arguments.contains("S_IFDIR")), "r")).collect()
        }
        "mkdir" | "mkdirat" => names.iter().take(1).map(|path| (directory(path, true), "w")).collect(),
        "unlink" | "unlinkat" | "rename" | "renameat" | "renameat2" => names.into_iter().map(|path| (path, "w")).collect(),
        "execve" => names.into_iter().take(1).map(|path| (path, "x")).collect(),
        // Descriptors that somebody hands over.
        "recvmsg" if arguments.contains("SCM_RIGHTS") => {
            let handed = arguments.split("cmsg_data=[").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or_default();
            inside(handed).map(|path| (path, "r")).collect()
        }
        _ => Vec::new(),
    }
}

/// The paths in quotes, each below the directory in front of it if it is relative. Empty ones (the descriptor itself) are left out.
fn named(arguments: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = arguments;
    while let Some((front, after)) = rest.split_once('"') {
        let Some((path, after)) = after.split_once('"') else { break };
        if path.starts_with('/') {
            names.push(path.to_owned());
        } else if let Some(base) = inside(front).last().filter(|_| !path.is_empty()) {
            names.push(format!("{base}/{path}"));
        }
        rest = after;
    }
    names
}

fn quoted(arguments: &str) -> impl Iterator<Item = String> {
    arguments.split('"').skip(1).step_by(2).map(str::to_owned)
}

/// What descriptors stand for, as strace shows them: `3</path>`.
fn inside(text: &str) -> impl DoubleEndedIterator<Item = String> {
    text.split('<')
        .skip(1)
        .filter_map(|rest| rest.split_once('>'))
        .map(|(path, _)| path.to_owned())
        .collect::<Vec<_>>()
        .into_iter()
}

/// Where a file of the instance is on a system of its own. `None` for what is no file or lies around the instance.
fn installed(path: &str, instance: &Instance) -> Option<String> {
    let path = PathBuf::from(path.replace("/./", "/").trim_end_matches("/."));
    let programs = instance.program("qmail");
    let text = |path: &Path| path.to_str().map(str::to_owned);
    let is_directory = text(&path)?.ends_with('/') || path.as_os_str().as_encoded_bytes().ends_with(b"/");
    let end = if is_directory { "/" } else { "" };
    if let Ok(below) = path.strip_prefix(programs.parent()?) {
        return (below != Path::new("")).then(|| format!("/usr/lib/qmail/{}{end}", below.display()).replace(".real", ""));
    }
    if let Ok(below) = path.strip_prefix(&instance.root) {
        return (below != Path::new("")).then(|| format!("/{}{end}", below.display()));
    }
    // Where cargo has the loader look.
    let searched = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    if searched.split(':').any(|dir| Path::new(dir) == path) {
        return None;
    }
    let around = instance.dir().ancestors().any(|dir| dir == path && dir != Path::new("/"));
    (path.is_absolute() && !around && !path.starts_with("/memfd:message")).then(|| text(&path))?
}
