//! sendmail: the command line that programs expect, in front of what qmail-inject does; also mailq and newaliases.
//!
//! Exit codes are those of qmail-inject, but 75 (sysexits) where the queue takes nothing now. Beyond the classic wrapper: `-f '<>'` and
//! `-f '<a@b>'` are taken without their brackets, `-r` is `-f`, `-N`, `-R` and `-V` ask for reports ([`crate::asked`]), and the options of newer sendmails
//! that change nothing here are accepted.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process;

use control::{Root, program::sibling};
use message::inject::RecipientsFrom;

use crate::env::Env;
use crate::inject::{Command, Fatal, inject, report};
use crate::{EXIT_PERMANENT, EXIT_TEMPORARY};
use sys::errno;
use tool::options::{self, Opt};

/// sysexits(3): try again later.
const EX_TEMPFAIL: u8 = 75;

const USAGE: &str = "usage: sendmail [ -t ] [ -fsender ] [ -Fname ] [ -bp ] [ -bs ] [ arg ... ]";

/// What sendmail is asked to do.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    Send { from_header: bool },
    Queue,
    Smtp,
    Aliases,
}

/// The command line, understood.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    task: Task,
    sender: Option<Vec<u8>>,
    name: Option<Vec<u8>>,
    /// Which reports are wanted: variables and their values.
    asked: Vec<(&'static str, Vec<u8>)>,
    arguments: Vec<Vec<u8>>,
}

impl Line {
    /// `None`: print the usage.
    fn parse(own: &OsStr, args: &[OsString]) -> Option<Self> {
        let letters = options::Letters { flags: b"vimtxnGU", with_value: b"efpoBFbrNROVLhX", with_glued_value: b"EJ" };
        let (options, arguments) = options::parse(args, letters);
        let (mut sender, mut name, mut from_header, mut task, mut asked) = (None, None, false, None, Vec::new());
        for option in options {
            if task.is_some() {
                break;
            }
            match option {
                Opt::Flag(b't') => from_header = true,
                Opt::Value(b'f' | b'r', given) => sender = Some(without_brackets(given)),
                Opt::Value(b'F', given) => name = Some(given),
                // An option without a value says something all the same, and nothing that makes sense.
                Opt::Value(b'N' | b'R' | b'V', given) if given.is_empty() => return None,
                Opt::Value(b'N', given) => asked.push(("QMAILNOTIFY", given)),
                Opt::Value(b'R', given) => asked.push(("QMAILRET", given)),
                Opt::Value(b'V', given) => asked.push(("QMAILENVID", given)),
                // The first that is no delivery counts, and what stands behind it is for nobody.
                Opt::Value(b'b', given) => match given.first()? {
                    b'm' => {}
                    b'p' => task = Some(Task::Queue),
                    b's' => task = Some(Task::Smtp),
                    b'i' => task = Some(Task::Aliases),
                    _ => return None,
                },
                Opt::Unknown(letter) => {
                    options::complain("sendmail", letter, letters);
                    return None;
                }
                // One error mode, one delivery mode, no dot that ends a message: -e, -o, -i and the like say nothing new.
                Opt::Flag(_) | Opt::Value(..) => {}
            }
        }
        let own = Path::new(own).file_name();
        let task = task.unwrap_or_else(|| match own.and_then(OsStr::to_str) {
            Some("mailq") => Task::Queue,
            Some("newaliases") => Task::Aliases,
            _ => Task::Send { from_header },
        });
        Some(Self { task, sender, name, asked, arguments })
    }
}

fn without_brackets(sender: Vec<u8>) -> Vec<u8> {
    let inner = sender.strip_prefix(b"<").and_then(|rest| rest.strip_suffix(b">")).map(<[u8]>::to_vec);
    inner.unwrap_or(sender)
}

/// Runs the program called `own`; gives its exit code.
pub fn run(own: &OsStr, args: &mut Vec<OsString>, mut env: Env) -> u8 {
    let root = match Root::from_args(args) {
        Ok(root) => root,
        Err(error) => return report("sendmail", Err(Fatal::Control(error)), EX_TEMPFAIL),
    };
    let Some(Line { task, sender, name, asked, arguments }) = Line::parse(own, args) else {
        return say(USAGE, EXIT_PERMANENT);
    };
    set_author(&mut env, sender.as_deref(), name.as_deref());
    asked.iter().for_each(|(variable, value)| env.set(variable, value));
    let from_header = match task {
        Task::Send { from_header } => from_header,
        Task::Queue => return list_queue(&root),
        Task::Smtp => return serve_smtp(env),
        Task::Aliases => return make_aliases(&root),
    };
    let recipients_from = if from_header { RecipientsFrom::Both } else { RecipientsFrom::Arguments };
    let command = Command { recipients_from, sender, print: false, arguments };
    report("sendmail", inject(&root, command, &env), EX_TEMPFAIL)
}

/// `-F` and `-f` as variables. `-f` also forgets the name: it is another author's.
fn set_author(env: &mut Env, sender: Option<&[u8]>, name: Option<&[u8]>) {
    if let Some(name) = name {
        env.set("MAILNAME", name);
    }
    let Some(sender) = sender else { return };
    for name in ["QMAILNAME", "MAILNAME", "NAME", "QMAILHOST", "MAILHOST"] {
        env.remove(name);
    }
    let at = sender.iter().rposition(|b| *b == b'@');
    let (user, host) = sender.split_at(at.unwrap_or(sender.len()));
    if let Some(host) = host.strip_prefix(b"@") {
        env.set("QMAILHOST", host);
    }
    env.set("QMAILUSER", user);
}

/// `-bp`: qmail-qread if it is installed, else the admin command.
fn list_queue(root: &Root) -> u8 {
    let qread = sibling("qmail-qread");
    let error = if qread.is_file() {
        process::Command::new(qread).env(control::root::ROOT_VARIABLE, root.path()).exec()
    } else {
        let beside = sibling("qmail");
        let admin = if beside.is_file() { beside } else { Path::new("/usr/bin/qmail").to_owned() };
        process::Command::new(admin).arg("--root").arg(root.path()).args(["queue", "list"]).exec()
    };
    say(&format!("fatal: unable to list the queue: {}", errno::text(&error)), EXIT_TEMPORARY)
}

/// `-bi`: newaliases(1) makes the database of aliases. Where that name leads back here, nobody would ever make it.
fn make_aliases(root: &Root) -> u8 {
    let program = sibling("newaliases");
    let file = |path: &Path| std::fs::metadata(path).map(|about| (about.dev(), about.ino()));
    let (there, here) = (file(&program), file(Path::new("/proc/self/exe")));
    if there.is_err() || there.ok() == here.ok() {
        return say("fatal: the program newaliases is not installed", EXIT_PERMANENT);
    }
    let error = process::Command::new(program).env(control::root::ROOT_VARIABLE, root.path()).exec();
    say(&format!("fatal: unable to run newaliases: {}", errno::text(&error)), EX_TEMPFAIL)
}

/// `-bs`: the classic face of qmail-smtpd on standard input and output, as a client on this host that may relay.
fn serve_smtp(mut env: Env) -> u8 {
    if env.get("PROTO").is_none() {
        for (name, value) in [
            ("RELAYCLIENT", ""),
            ("DATABYTES", "0"),
            ("PROTO", "TCP"),
            ("TCPLOCALIP", "127.0.0.1"),
            ("TCPLOCALHOST", "localhost"),
            ("TCPREMOTEIP", "127.0.0.1"),
            ("TCPREMOTEHOST", "localhost"),
            ("TCPREMOTEINFO", "sendmail-bs"),
        ] {
            env.set(name, value.as_bytes());
        }
    }
    let error = process::Command::new(sibling("qmail-smtpd")).env_clear().envs(env.iter()).exec();
    say(&format!("fatal: unable to run qmail-smtpd: {}", errno::text(&error)), EX_TEMPFAIL)
}

fn say(text: &str, code: u8) -> u8 {
    // A caller without standard error still gets the exit code.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("sendmail: {text}\n").as_bytes());
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(own: &str, args: &[&str]) -> Option<Line> {
        Line::parse(OsStr::new(own), &args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn command_lines() {
        let send = |from_header, sender: Option<&str>, name: Option<&str>, arguments: &[&str]| {
            let bytes = |text: &str| text.as_bytes().to_vec();
            Some(Line {
                task: Task::Send { from_header },
                sender: sender.map(bytes),
                name: name.map(bytes),
                asked: Vec::new(),
                arguments: arguments.iter().map(|a| bytes(a)).collect(),
            })
        };
        for (args, expected) in [
            (&["a@b"][..], send(false, None, None, &["a@b"])),
            (&["-t"], send(true, None, None, &[])),
            (&["-t", "-i", "a"], send(true, None, None, &["a"])),
            (&["-oi", "-oem", "-f", "x@y", "--", "-a"], send(false, Some("x@y"), None, &["-a"])),
            (&["-fx@y", "-FJoe Doe", "a"], send(false, Some("x@y"), Some("Joe Doe"), &["a"])),
            (&["-f", "<>", "a"], send(false, Some(""), None, &["a"])),
            (&["-f<x@y>", "a"], send(false, Some("x@y"), None, &["a"])),
            (&["-r", "x", "a"], send(false, Some("x"), None, &["a"])),
            (&["-bm", "-v", "-m", "-x", "-em", "-Btype", "-pESMTP:h", "a"], send(false, None, None, &["a"])),
            (&["-E", "-Ex", "-J", "-Jx", "a"], send(false, None, None, &["a"])),
            (
                &["-N", "never", "-R", "hdrs", "-O", "a=b", "-V", "id", "-L", "tag", "-G", "-n", "-U", "a"],
                send(false, None, None, &["a"]).map(|line| Line {
                    asked: vec![
                        ("QMAILNOTIFY", b"never".to_vec()),
                        ("QMAILRET", b"hdrs".to_vec()),
                        ("QMAILENVID", b"id".to_vec()),
                    ],
                    ..line
                }),
            ),
            (&["-N", "", "a"], None),
            (&["-bt"], None),
            (&["-bd"], None),
            (&["-bd", "-bm", "a"], None),
            (&["-bt", "-bp"], None),
            (&["-bz", "-bm"], None),
            (&["-t", "--x", "a"], send(true, None, None, &["a"])),
            (&["-b", ""], None),
            (&["-z"], None),
            (&["-f"], None),
        ] {
            assert_eq!(line("/usr/sbin/sendmail", args), expected, "{args:?}");
        }
        let task = |own, args: &[&str]| line(own, args).unwrap().task;
        assert_eq!(task("mailq", &[]), Task::Queue);
        assert_eq!(task("/usr/bin/newaliases", &[]), Task::Aliases);
        assert_eq!(task("sendmail", &["-bp"]), Task::Queue);
        assert_eq!(task("sendmail", &["-bs"]), Task::Smtp);
        assert_eq!(task("sendmail", &["-bi"]), Task::Aliases);
        assert_eq!(task("sendmail", &["-bp", "-bm", "-bd"]), Task::Queue);
    }

    #[test]
    fn the_author_is_who_f_says() {
        let mut env = Env::default();
        env.set("NAME", b"n");
        env.set("MAILHOST", b"h");
        set_author(&mut env, None, Some(b"Joe"));
        assert_eq!((env.get("MAILNAME"), env.get("MAILHOST")), (Some(b"Joe".to_vec()), Some(b"h".to_vec())));
        set_author(&mut env, Some(b"a@b@c"), Some(b"Joe"));
        assert_eq!((env.get("QMAILUSER"), env.get("QMAILHOST")), (Some(b"a@b".to_vec()), Some(b"c".to_vec())));
        assert!(["NAME", "MAILNAME", "MAILHOST"].iter().all(|name| env.get(name).is_none()));
        set_author(&mut env, Some(b"joe"), None);
        assert_eq!((env.get("QMAILUSER"), env.get("QMAILHOST")), (Some(b"joe".to_vec()), None));
    }
}
