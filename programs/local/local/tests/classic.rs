//! The classic face over pipes: the real binary in temporary homes, with a QMAILQUEUE that keeps what it is given.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

const MESSAGE: &str = "Subject: hi\n\nFrom here\nbody\n";
const RETURN_PATH: &str = "Return-Path: <send@er>\n";
const DELIVERED: &str = "Delivered-To: joe@host.example.org\n";

/// One run of qmail-local.
#[derive(Clone)]
struct Case {
    name: String,
    /// Files in the home: name, mode, text. A name ending in `/` is a directory.
    files: Vec<(String, u32, String)>,
    home_mode: u32,
    flags: Vec<&'static str>,
    dash: &'static str,
    ext: &'static str,
    sender: &'static str,
    default: &'static str,
    message: String,
    queue_exit: u8,
    queue_text: &'static str,
    expected_code: i32,
    expected_out: Option<String>,
    expected_err: Option<String>,
    /// Path below the home and its text; a path ending in `/new` has one file of that text.
    expected_files: Vec<(String, String)>,
    expected_absent: Vec<&'static str>,
    /// Envelope with NULs as `|`, and message; `None`: nothing may be queued.
    expected_queue: Option<(String, String)>,
}

/// A case with a `.qmail` file of this text.
fn case(name: &str, qmail: &str) -> Case {
    bare(name).file(".qmail", qmail)
}

/// A case without files.
fn bare(name: &str) -> Case {
    Case {
        name: name.to_owned(),
        files: Vec::new(),
        home_mode: 0o700,
        flags: Vec::new(),
        dash: "",
        ext: "",
        sender: "send@er",
        default: "./Mailbox",
        message: MESSAGE.to_owned(),
        queue_exit: 0,
        queue_text: "",
        expected_code: 0,
        expected_out: None,
        expected_err: Some(String::new()),
        expected_files: Vec::new(),
        expected_absent: Vec::new(),
        expected_queue: None,
    }
}

impl Case {
    fn file(self, name: &str, text: &str) -> Self {
        self.file_mode(name, 0o600, text)
    }

    fn file_mode(mut self, name: &str, mode: u32, text: &str) -> Self {
        self.files.push((name.to_owned(), mode, text.to_owned()));
        self
    }

    fn maildir(self, name: &str) -> Self {
        let sub = |sub: &str| format!("{name}/{sub}/");
        self.file(&sub("tmp"), "").file(&sub("new"), "").file(&sub("cur"), "")
    }

    fn ext(mut self, ext: &'static str) -> Self {
        (self.dash, self.ext) = ("-", ext);
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn out(mut self, text: &str) -> Self {
        self.expected_out = Some(text.to_owned());
        self
    }

    fn fails(mut self, code: i32, text: &str) -> Self {
        self.expected_code = code;
        self.expected_err = Some(if text.is_empty() { String::new() } else { format!("{text}\n") });
        self.expected_out = Some(String::new());
        self
    }

    fn has(mut self, path: &str, text: &str) -> Self {
        self.expected_files.push((path.to_owned(), text.to_owned()));
        self
    }

    fn lacks(mut self, path: &'static str) -> Self {
        self.expected_absent.push(path);
        self
    }

    fn queues(mut self, envelope: &str, message: &str) -> Self {
        self.expected_queue = Some((envelope.to_owned(), message.to_owned()));
        self
    }

    fn local(&self) -> String {
        format!("joe{}{}", self.dash, self.ext)
    }
}

struct Run {
    dir: tempfile::TempDir,
    home: PathBuf,
}

fn prepare(case: &Case) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    for (name, mode, text) in &case.files {
        let path = home.join(name);
        if name.ends_with('/') {
            std::fs::create_dir_all(&path).unwrap();
        } else {
            std::fs::write(&path, text).unwrap();
            set_mode(&path, *mode);
        }
    }
    set_mode(&home, case.home_mode);
    let mut script = format!("#!/bin/sh\ncd '{}'\ncat >message\ncat <&1 >envelope\n", dir.path().display());
    if !case.queue_text.is_empty() {
        let _ = writeln!(script, "printf '{}' >&6", case.queue_text);
    }
    let _ = writeln!(script, "exit {}", case.queue_exit);
    std::fs::write(dir.path().join("queue"), script).unwrap();
    set_mode(&dir.path().join("queue"), 0o755);
    std::fs::write(dir.path().join("letter"), &case.message).unwrap();
    Run { dir, home }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn command(case: &Case, run: &Run) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qmail-local"));
    command.args(&case.flags);
    if !case.flags.iter().any(|flag| flag.starts_with("--")) {
        command.arg("--");
    }
    command.arg("joe").arg(&run.home).arg(case.local()).arg(case.dash).arg(case.ext);
    command.args(["host.example.org", case.sender, case.default]);
    command.env("QMAILQUEUE", run.dir.path().join("queue")).env("QMAIL_ROOT", run.dir.path()).env("DEFAULT", "stale");
    command.stdin(File::open(run.dir.path().join("letter")).unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `<date>` for a date of an mbox line, `<qp>` for a number after qp, `<home>` for the home.
fn stable(text: &[u8], home: &Path) -> String {
    let text = String::from_utf8_lossy(text).replace(home.to_str().unwrap(), "<home>");
    let line = |line: &str| {
        let words: Vec<&str> = line.trim_end().split(' ').collect();
        match words[..] {
            ["qp", number] if number.bytes().all(|b| b.is_ascii_digit()) => "qp <qp>\n".to_owned(),
            ["From", sender, _, month, _, time, year] if month.len() == 3 && time.len() == 8 && year.len() == 4 => {
                format!("From {sender} <date>\n")
            }
            _ => line.to_owned(),
        }
    };
    text.split_inclusive('\n').map(line).collect()
}

fn text_of(path: &Path, home: &Path) -> Option<String> {
    if path.ends_with("new") {
        let files: Vec<_> = std::fs::read_dir(path).ok()?.map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() < 2, "{files:?}");
        return files.first().map(|file| stable(&std::fs::read(file).unwrap(), home));
    }
    std::fs::read(path).ok().map(|text| stable(&text, home))
}

fn check(case: &Case) {
    check_as(case, command);
}

/// As it is started by who ignores its children's ends, which every exec passes on.
fn under_ignored_signals(case: &Case, run: &Run) -> Command {
    let direct = command(case, run);
    let mut command = Command::new("/usr/bin/env");
    command.args(["--ignore-signal=CHLD", "--ignore-signal=PIPE"]).arg(direct.get_program()).args(direct.get_args());
    command.envs(direct.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(File::open(run.dir.path().join("letter")).unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn check_as(case: &Case, command: impl FnOnce(&Case, &Run) -> Command) {
    let run = prepare(case);
    let output = command(case, &run).output().unwrap();
    set_mode(&run.home, 0o700);
    let (out, err) = (stable(&output.stdout, &run.home), stable(&output.stderr, &run.home));
    assert_eq!(output.status.code(), Some(case.expected_code), "{}: {out:?} {err:?}", case.name);
    if let Some(expected) = &case.expected_out {
        assert_eq!(&out, expected, "{}: stdout", case.name);
    }
    if let Some(expected) = &case.expected_err {
        assert_eq!(&err, expected, "{}: stderr", case.name);
    }
    for (path, expected) in &case.expected_files {
        assert_eq!(text_of(&run.home.join(path), &run.home).as_ref(), Some(expected), "{}: {path}", case.name);
    }
    for path in &case.expected_absent {
        assert_eq!(text_of(&run.home.join(path), &run.home), None, "{}: {path}", case.name);
    }
    let queued = std::fs::read(run.dir.path().join("envelope")).ok().map(|envelope| {
        let envelope = String::from_utf8(envelope).unwrap().replace('\0', "|");
        (envelope, std::fs::read_to_string(run.dir.path().join("message")).unwrap())
    });
    assert_eq!(queued, case.expected_queue, "{}: queue", case.name);
}

/// Runs the cases on a few threads: most of the time is spent waiting for the disk.
fn check_all(cases: &[Case]) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(case);
                }
            });
        }
    });
}

fn copy() -> String {
    format!("{DELIVERED}{MESSAGE}")
}

fn in_maildir() -> String {
    format!("{RETURN_PATH}{DELIVERED}{MESSAGE}")
}

fn in_mbox() -> String {
    format!("From send@er <date>\n{RETURN_PATH}{DELIVERED}Subject: hi\n\n>From here\nbody\n\n")
}

#[test]
fn what_programs_say_counts_whoever_ignores_their_ends() {
    let mut cases: Vec<Case> = Vec::new();
    for (code, expected) in [(1, 111), (64, 100), (100, 100), (111, 111)] {
        cases.push(case("a program fails", &format!("|exit {code}\n./Mailbox\n")).fails(expected, "").lacks("Mailbox"));
    }
    cases.push(case("a program does it", "|true\n./Mailbox\n").out("did 1+0+1\n").has("Mailbox", &in_mbox()));
    cases.push(case("a program ends it", "|exit 99\n./Mailbox\n").out("did 0+0+1\n").lacks("Mailbox"));
    cases.push(case("a program dies", "|kill -9 $$\n").fails(111, "Aack, child crashed. (#4.3.0)"));
    for case in &cases {
        check_as(case, under_ignored_signals);
    }
    let forwards = case("the queue refuses", "&joe@elsewhere.example\n").with(|c| c.queue_exit = 31);
    let run = prepare(&forwards);
    let output = under_ignored_signals(&forwards, &run).output().unwrap();
    assert_eq!(output.status.code(), Some(100), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn files() {
    check_all(&[
        bare("no .qmail is the default delivery").out("did 1+0+0\n").has("Mailbox", &in_mbox()),
        case("an empty .qmail is the default delivery", "").out("did 1+0+0\n").has("Mailbox", &in_mbox()),
        bare("the default may have several lines")
            .with(|c| c.default = "./a\n./b")
            .out("did 2+0+0\n")
            .has("a", &in_mbox())
            .has("b", &in_mbox()),
        bare("an empty default is a blank first line")
            .with(|c| c.default = "")
            .fails(111, "Uh-oh: first line of .qmail file is blank. (#4.2.1)"),
        case("comments only is nothing to do", "# none\n").out("did 0+0+0\n").lacks("Mailbox"),
        case("maildir", "./Maildir/\n")
            .maildir("Maildir")
            .out("did 1+0+0\n")
            .has("Maildir/new", &in_maildir())
            .lacks("Maildir/tmp/new"),
        case("a maildir without its dot", "Maildir/\n")
            .maildir("Maildir")
            .out("did 0+1+0\nqp <qp>\n")
            .lacks("Maildir/new")
            .queues("Fsend@er|TMaildir/||", &copy()),
        case("a missing maildir is not made for a system user", "./Maildir/\n")
            .fails(111, "Unable to chdir to maildir. (#4.2.1)")
            .lacks("Maildir"),
        case("a maildir without tmp", "./Maildir/\n")
            .file("Maildir/new/", "")
            .fails(111, "Temporary error on maildir delivery. (#4.3.0)"),
        case("an mbox where a directory is", "./dir\n")
            .file("dir/", "")
            .fails(111, "Unable to open ./dir: is a directory. (#4.2.1)"),
        case("an mbox in a missing directory", "./no/m\n").fails(111, "Unable to open ./no/m: file does not exist. (#4.2.1)"),
        case("mbox appends", "./m\n").file("m", "From x y\nold\n\n").has("m", &format!("From x y\nold\n\n{}", in_mbox())),
        case("the same mbox twice", "./m\n./m\n").out("did 2+0+0\n").has("m", &in_mbox().repeat(2)),
        case("mbox of a message without a last newline", "./m\n")
            .with(|c| c.message = "A: b\n\nend".to_owned())
            .has("m", &format!("From send@er <date>\n{RETURN_PATH}{DELIVERED}A: b\n\nend\n\n")),
        case("mbox of an empty message", "./m\n")
            .with(|c| c.message.clear())
            .has("m", &format!("From send@er <date>\n{RETURN_PATH}{DELIVERED}\n")),
        case("maildir of an empty message", "./M/\n")
            .maildir("M")
            .with(|c| c.message.clear())
            .has("M/new", &format!("{RETURN_PATH}{DELIVERED}")),
        case("a maildir letter is not quoted", "./M/\n")
            .maildir("M")
            .with(|c| c.message = "\nFrom a\n.\n\r\nx".to_owned())
            .has("M/new", &format!("{RETURN_PATH}{DELIVERED}\nFrom a\n.\n\r\nx")),
        case("several, in order", "./M/\n./m\n# c\n\n./n\n")
            .maildir("M")
            .out("did 3+0+0\n")
            .has("M/new", &in_maildir())
            .has("n", &in_mbox()),
        case("blanks at the end of lines", "./m \t\n./n\t").out("did 2+0+0\n").has("m", &in_mbox()).has("n", &in_mbox()),
        case("a failing line stops, what was done stays", "./m\n./no/x\n./n\n")
            .fails(111, "Unable to open ./no/x: file does not exist. (#4.2.1)")
            .has("m", &in_mbox())
            .lacks("n"),
        case("a bounce", "./m\n")
            .with(|c| c.sender = "")
            .has("m", &format!("From MAILER-DAEMON <date>\nReturn-Path: <>\n{DELIVERED}Subject: hi\n\n>From here\nbody\n\n")),
        case("a sender with blanks", "./m\n").with(|c| c.sender = "a b\tc@d").has(
            "m",
            &format!("From a-b-c@d <date>\nReturn-Path: <\"a b\tc\"@d>\n{DELIVERED}Subject: hi\n\n>From here\nbody\n\n"),
        ),
        case("a sender with a newline stays on its line", "./M/\n")
            .maildir("M")
            .with(|c| c.sender = "a\nX: y@d")
            .has("M/new", &format!("Return-Path: <\"a_X: y\"@d>\n{DELIVERED}{MESSAGE}")),
    ]);
}

#[test]
fn forwards() {
    let to = |recipients: &str| format!("Fsend@er|{recipients}|");
    check_all(&[
        case("one", "&a@b\n").out("did 0+1+0\nqp <qp>\n").queues(&to("Ta@b|"), &copy()),
        case("without the mark", "a@b\n").out("did 0+1+0\nqp <qp>\n").queues(&to("Ta@b|"), &copy()),
        case("all in one submission, in order", "&a@b\nc@d\n\n#x\n&e@f\n")
            .out("did 0+3+0\nqp <qp>\n")
            .queues(&to("Ta@b|Tc@d|Te@f|"), &copy()),
        case("after files and programs wherever they stand", "&a@b\n./m\n|test ! -f ../envelope\n")
            .out("did 1+1+1\nqp <qp>\n")
            .has("m", &in_mbox())
            .queues(&to("Ta@b|"), &copy()),
        case("not when a later line fails", "&a@b\n|exit 100\n").fails(100, ""),
        case("not when a later file fails", "&a@b\n./no/x\n").fails(111, "Unable to open ./no/x: file does not exist. (#4.2.1)"),
        case("nor when the file is refused", "&a@b\n+list\n./m\n")
            .fails(111, "Uh-oh: .qmail has file delivery but has x bit set. (#4.7.0)"),
        case("no rewriting", "&joe\n&\"a b\"@c\n").out("did 0+2+0\nqp <qp>\n").queues(&to("Tjoe|T\"a b\"@c|"), &copy()),
        case("to nobody", "&\n").out("did 0+1+0\nqp <qp>\n").queues(&to("T|"), &copy()),
        case("a bounce keeps its sender", "&a@b\n").with(|c| c.sender = "").queues("F|Ta@b||", &copy()),
        case("a double bounce too", "&a@b\n").with(|c| c.sender = "#@[]").queues("F#@[]|Ta@b||", &copy()),
        case("an owner file makes the owner the sender", "&a@b\n")
            .file(".qmail-owner", "")
            .queues("Fjoe-owner@host.example.org|Ta@b||", &copy()),
        case("and with owner-default a VERP sender", "&a@b\n")
            .file(".qmail-owner", "")
            .file(".qmail-owner-default", "")
            .queues("Fjoe-owner-@host.example.org-@[]|Ta@b||", &copy()),
        case("owner-default alone does nothing", "&a@b\n").file(".qmail-owner-default", "").queues(&to("Ta@b|"), &copy()),
        case("a bounce has no owner", "&a@b\n").file(".qmail-owner", "").with(|c| c.sender = "").queues("F|Ta@b||", &copy()),
        case("a double bounce has none", "&a@b\n")
            .file(".qmail-owner", "")
            .with(|c| c.sender = "#@[]")
            .queues("F#@[]|Ta@b||", &copy()),
        bare("the owner is the extension's")
            .ext("L.x")
            .file(".qmail-l:x", "&a@b\n")
            .file(".qmail-l:x-owner", "")
            .queues("Fjoe-L.x-owner@host.example.org|Ta@b||", &copy().replace("joe@", "joe-L.x@")),
        bare("not the default's")
            .ext("l")
            .file(".qmail-default", "&a@b\n")
            .file(".qmail-default-owner", "")
            .queues(&to("Ta@b|"), &copy().replace("joe@", "joe-l@")),
        case("a message without a last newline goes as it is", "&a@b\n")
            .with(|c| c.message = "x".to_owned())
            .queues(&to("Ta@b|"), &format!("{DELIVERED}x")),
        case("a long message", "&a@b\n")
            .with(|c| c.message = format!("\n{}\n", "y".repeat(200_000)))
            .queues(&to("Ta@b|"), &format!("{DELIVERED}\n{}\n", "y".repeat(200_000))),
    ]);
    let refused = |name: &str, code: u8, exit: i32, text: &str| {
        let text = format!("Unable to forward message: {text}.");
        case(name, "&a@b\n").with(|c| c.queue_exit = code).fails(exit, &text).queues(&to("Ta@b|"), &copy())
    };
    check_all(&[
        refused("queue 31", 31, 100, "mail server permanently rejected message (#5.3.0)"),
        refused("queue 11", 11, 100, "envelope address too long for qq (#5.1.3)"),
        refused("queue 40", 40, 100, "qq permanent problem (#5.3.0)"),
        refused("queue 53", 53, 111, "qq write error or disk full (#4.3.0)"),
        refused("queue 71", 71, 111, "mail server temporarily rejected message (#4.3.0)"),
        refused("queue 91", 91, 111, "qq internal bug (#4.3.0)"),
        refused("queue 99", 99, 111, "qq temporary problem (#4.3.0)"),
        refused("queue text", 82, 100, "not today (#5.7.1)").with(|c| c.queue_text = "Dnot today (#5.7.1)"),
        refused("queue text later", 88, 111, "later").with(|c| c.queue_text = "Zlater"),
        case("queue refuses, files stay", "./m\n&a@b\n")
            .with(|c| c.queue_exit = 31)
            .fails(100, "Unable to forward message: mail server permanently rejected message (#5.3.0).")
            .has("m", &in_mbox())
            .queues(&to("Ta@b|"), &copy()),
        case("an address of 1003 bytes", &format!("&{}\n", "a".repeat(1003)))
            .fails(100, "Unable to forward message: envelope address too long for qq (#5.1.3)."),
        case("a file with CRLF line ends", "&a@b\r\n")
            .fails(111, "Uh-oh: .qmail has a forward address that holds a control byte. (#4.7.0)"),
    ]);
}

#[test]
fn programs() {
    check_all(&[
        case("stdin is the message, without trace lines", "|cat >got\n").out("did 0+0+1\n").has("got", MESSAGE),
        case("rewound for each", "|head -1 >a\n|cat >b\n./m\n").out("did 1+0+2\n").has("b", MESSAGE).has("m", &in_mbox()),
        case("in the home", "|pwd >got\n").has("got", "<home>\n"),
        case("output is the report", "|echo said\n").out("said\ndid 0+0+1\n"),
        case("errors too", "|echo no >&2; exit 100\n").fails(100, "no"),
        case("umask", "|umask >got\n").has("got", "0077\n"),
        case("blanks at the end are cut, others not", "| echo 'a  b'  >got \n").has("got", "a  b\n"),
        case("an empty command", "|\n").out("did 0+0+1\n"),
        case("99 stops, forwards above are sent", "&a@b\n|exit 99\n./m\n&c@d\n")
            .out("did 0+1+1\nqp <qp>\n")
            .lacks("m")
            .queues("Fsend@er|Ta@b||", &copy()),
        case("99 hides a refusal below", "|exit 99\n+list\n|x\n").out("did 0+0+1\n"),
        case("a signal is temporary", "|kill -9 $$\n").fails(111, "Aack, child crashed. (#4.3.0)"),
        case("a missing command is temporary", "|/no/such/program 2>/dev/null\n").fails(111, ""),
        case("a failing program stops", "|exit 111\n./m\n").fails(111, "").lacks("m"),
        case("a stop after a file", "./m\n|exit 100\n").fails(100, "").has("m", &in_mbox()),
    ]);
    let codes: Vec<Case> = [
        (0, 0),
        (1, 111),
        (2, 111),
        (31, 111),
        (63, 111),
        (64, 100),
        (65, 100),
        (66, 111),
        (69, 111),
        (70, 100),
        (71, 111),
        (74, 111),
        (75, 111),
        (76, 100),
        (77, 100),
        (78, 100),
        (79, 111),
        (98, 111),
        (100, 100),
        (101, 111),
        (111, 111),
        (112, 100),
        (113, 111),
        (255, 111),
    ]
    .map(|(code, expected)| {
        let case = case(&format!("exit {code}"), &format!("|exit {code}\n"));
        if expected == 0 { case.out("did 0+0+1\n") } else { case.fails(expected, "") }
    })
    .to_vec();
    check_all(&codes);
}

#[test]
fn environment() {
    let show = |name: &str, variable: &str, expected: &str| {
        let line = format!("|printf '%s' \"${{{variable}-unset}}\" >got\n");
        bare(&format!("{variable}: {name}")).file(".qmail-default", &line).ext("a.B-c-D-e").has("got", expected)
    };
    check_all(&[
        show("sender", "SENDER", "send@er"),
        show("new sender", "NEWSENDER", "send@er"),
        show("owner", "NEWSENDER", "joe-a.B-c-D-e-owner@host.example.org").file(".qmail-a:b-c-d-e-owner", ""),
        show("recipient", "RECIPIENT", "joe-a.B-c-D-e@host.example.org"),
        show("user", "USER", "joe"),
        show("home", "HOME", "<home>"),
        show("host", "HOST", "host.example.org"),
        show("host", "HOST2", "host.example"),
        show("host", "HOST3", "host"),
        show("host", "HOST4", "host"),
        show("local", "LOCAL", "joe-a.B-c-D-e"),
        show("ext", "EXT", "a.B-c-D-e"),
        show("ext", "EXT2", "c-D-e"),
        show("ext", "EXT3", "D-e"),
        show("ext", "EXT4", "e"),
        show("default", "DEFAULT", "a.B-c-D-e"),
        show("delivered-to", "DTLINE", "Delivered-To: joe-a.B-c-D-e@host.example.org\n"),
        show("return-path", "RPLINE", "Return-Path: <send@er>\n"),
        show("from", "UFLINE", "From send@er <date>\n"),
        case("no stale DEFAULT", "|printf '%s' \"${DEFAULT-unset}\" >got\n").has("got", "unset"),
        bare("the rest after a longer default")
            .ext("L-sub-X=y")
            .file(".qmail-l-default", "|printf '%s' \"$DEFAULT\" >got\n")
            .has("got", "sub-X=y"),
        bare("an exact name that ends in default")
            .ext("l-Default")
            .file(".qmail-l-default", "|printf '%s' \"$DEFAULT\" >got\n")
            .has("got", "Default"),
        bare("an exact name has no DEFAULT")
            .ext("l")
            .file(".qmail-l", "|printf '%s' \"${DEFAULT-unset}\" >got\n")
            .has("got", "unset"),
        // Past hole R11: an address never reaches a shell but as the value of a variable.
        case("a sender that looks like a command", "|printf '%s' \"$SENDER\" >got\n")
            .with(|c| c.sender = "`touch pwned`;$(touch pwned)|touch pwned&@x")
            .has("got", "`touch pwned`;$(touch pwned)|touch pwned&@x")
            .lacks("pwned"),
    ]);
}

#[test]
fn which_file() {
    let box_of = |name: &str| in_mbox().replace("joe@", &format!("joe-{name}@"));
    let none = "Sorry, no mailbox here by that name. (#5.1.1)";
    check_all(&[
        bare("no file for an extension").ext("a").fails(100, none),
        bare("the user's file is not the extension's").ext("a").file(".qmail", "./m\n").fails(100, none).lacks("m"),
        bare("nor the other way").file(".qmail-a", "./m\n").out("did 1+0+0\n").has("Mailbox", &in_mbox()),
        bare("exact").ext("a").file(".qmail-a", "./m\n").file(".qmail-default", "./n\n").has("m", &box_of("a")).lacks("n"),
        bare("default").ext("a").file(".qmail-default", "./m\n").has("m", &box_of("a")),
        bare("the longest default")
            .ext("a-b-c")
            .file(".qmail-a-b-default", "./m\n")
            .file(".qmail-a-default", "./n\n")
            .has("m", &box_of("a-b-c")),
        bare("the next")
            .ext("a-b-c")
            .file(".qmail-a-default", "./m\n")
            .file(".qmail-default", "./n\n")
            .has("m", &box_of("a-b-c")),
        bare("not a prefix of a word").ext("ab-c").file(".qmail-a-default", "./m\n").fails(100, none),
        bare("case and dots").ext("A.B").file(".qmail-a:b", "./m\n").has("m", &box_of("A.B")),
        bare("upper-case names are not found").ext("A").file(".qmail-A", "./m\n").fails(100, none),
        bare("dots in names are not found").ext("a.b").file(".qmail-a.b", "./m\n").fails(100, none),
        bare("an empty extension").ext("").file(".qmail-", "./m\n").has("m", &box_of("")),
        bare("an empty extension has defaults too").ext("").file(".qmail-default", "./m\n").has("m", &box_of("")),
        bare("dots do not climb")
            .ext("x/../../y")
            .file(".qmail-x/", "")
            .file("y", "|touch pwned\n")
            .fails(100, none)
            .lacks("pwned"),
        bare("a directory is passed over").ext("a").file(".qmail-a/", "").file(".qmail-default", "./m\n").has("m", &box_of("a")),
        bare("an empty file for an extension").ext("a").file(".qmail-a", "").has("Mailbox", &box_of("a")),
        bare("a dash with a directory")
            .with(|c| (c.dash, c.ext) = ("-/", "a"))
            .file(".qmail-/", "")
            .file(".qmail-/a", "./m\n")
            .has("m", &in_mbox().replace("joe@", "joe-/a@")),
        bare("an extension longer than a name").ext(&*"x".repeat(300).leak()).file(".qmail-default", "./m\n").out("did 1+0+0\n"),
    ]);
}

#[test]
fn refusals() {
    let writable = "Uh-oh: .qmail file is writable. (#4.7.0)";
    let file_x = "Uh-oh: .qmail has file delivery but has x bit set. (#4.7.0)";
    let program_x = "Uh-oh: .qmail has prog delivery but has x bit set. (#4.7.0)";
    check_all(&[
        case("a home for everybody", "./m\n")
            .with(|c| c.home_mode = 0o702)
            .fails(111, "Uh-oh: home directory is writable. (#4.7.0)")
            .lacks("m"),
        case("a group's home is fine", "./m\n").with(|c| c.home_mode = 0o770).has("m", &in_mbox()),
        case("a sticky home", "./m\n")
            .with(|c| c.home_mode = 0o1700)
            .fails(111, "Home directory is sticky: user is editing his .qmail file. (#4.2.1)")
            .lacks("m"),
        bare("a file for everybody").file_mode(".qmail", 0o602, "./m\n").fails(111, writable).lacks("m"),
        bare("even an empty one").file_mode(".qmail", 0o666, "").fails(111, writable).lacks("Mailbox"),
        bare("a group's file is fine").file_mode(".qmail", 0o660, "./m\n").has("m", &in_mbox()),
        case("a blank first line", "\n./m\n").fails(111, "Uh-oh: first line of .qmail file is blank. (#4.2.1)").lacks("m"),
        case("blanks are blank", " \t\n./m\n").fails(111, "Uh-oh: first line of .qmail file is blank. (#4.2.1)").lacks("m"),
        bare("x: no file").file_mode(".qmail", 0o700, "./m\n").fails(111, file_x).lacks("m"),
        bare("x: no maildir").file_mode(".qmail", 0o700, "./m/\n").fails(111, file_x),
        bare("x: no program").file_mode(".qmail", 0o700, "|touch m\n").fails(111, program_x).lacks("m"),
        bare("x: forwards").file_mode(".qmail", 0o700, "&a@b\n").queues("Fsend@er|Ta@b||", &copy()),
        bare("x and empty").file_mode(".qmail", 0o700, "").has("Mailbox", &in_mbox()),
        bare("others' x bits do not count").file_mode(".qmail", 0o611, "./m\n").has("m", &in_mbox()),
        case("+list: no program", "+list\n|touch m\n").fails(111, program_x).lacks("m"),
        case("+list in the middle", "./m\n+list\n./n\n").fails(111, file_x).has("m", &in_mbox()).lacks("n"),
        case("other words after + mean nothing", "+lists\n./m\n").has("m", &in_mbox()),
        case("a NUL", "./m\0x\n").fails(111, "Uh-oh: .qmail file holds a NUL. (#4.7.0)").lacks("m"),
    ]);
}

#[test]
fn loops() {
    let looping = "This message is looping: it already has my Delivered-To line. (#5.4.6)";
    let with = |name: &str, message: &str| case(name, "./m\n").with(|c| c.message = message.to_owned());
    check_all(&[
        with("been here", &format!("A: b\n{DELIVERED}\nbody\n")).fails(100, looping).lacks("m"),
        with("been here, the first line", DELIVERED).fails(100, looping),
        with("in the body", &format!("A: b\n\n{DELIVERED}")).out("did 1+0+0\n"),
        with("another recipient", "Delivered-To: joe@host.example.orgx\n\n").out("did 1+0+0\n"),
        with("another case", "Delivered-To: Joe@host.example.org\n\n").out("did 1+0+0\n"),
        with("a last line without newline", DELIVERED.trim_end()).out("did 1+0+0\n"),
        with("an extension is another recipient", &format!("{DELIVERED}\n"))
            .ext("a")
            .file(".qmail-a", "./m\n")
            .out("did 1+0+0\n"),
        with("deep in a long header", &format!("{}{DELIVERED}\n", "X: y\n".repeat(50_000))).fails(100, looping),
        with("an endless line", &format!("X: {}\n{DELIVERED}\n", "y".repeat(1 << 20))).fails(100, looping),
        with("before the file is looked for", &format!("{DELIVERED}\n"))
            .ext("a")
            .with(|c| c.message = "Delivered-To: joe-a@host.example.org\n".into())
            .fails(100, looping),
    ]);
}

#[test]
fn dry_runs() {
    let dry = |name: &str, qmail: &str| case(name, qmail).with(|c| c.flags = vec!["-n"]);
    check_all(&[
        dry("says each line", "./m\n./M/\n|prog x \n&a@b\nc@d\n# no\n")
            .out("mbox ./m\nmaildir ./M/\nprogram prog x\nforward a@b\nforward c@d\ndid 2+2+1\n")
            .lacks("m"),
        dry("does not look for loops", "./m\n").with(|c| c.message = DELIVERED.to_owned()).out("mbox ./m\ndid 1+0+0\n"),
        dry("says where it would stop", "&a@b\n+list\n./m\n").with(|c| {
            c.expected_code = 111;
            c.expected_out = Some("forward a@b\n".to_owned());
            c.expected_err = Some("Uh-oh: .qmail has file delivery but has x bit set. (#4.7.0)\n".to_owned());
        }),
        dry("a sticky home is a warning", "./m\n").with(|c| c.home_mode = 0o1700).out("mbox ./m\ndid 1+0+0\n").with(|c| {
            c.expected_err = Some("Warning: home directory is sticky.\n".to_owned());
        }),
        dry("a writable home is not", "./m\n")
            .with(|c| c.home_mode = 0o702)
            .fails(111, "Uh-oh: home directory is writable. (#4.7.0)"),
        dry("nobody", "./m\n").ext("a").fails(100, "Sorry, no mailbox here by that name. (#5.1.1)"),
        dry("the default", "").out("mbox ./Mailbox\ndid 1+0+0\n"),
        case("-N is the rule", "./m\n").with(|c| c.flags = vec!["-n", "-N"]).has("m", &in_mbox()),
        case("letters together", "./m\n").with(|c| c.flags = vec!["-Nn"]).out("mbox ./m\ndid 1+0+0\n").lacks("m"),
    ]);
}

#[test]
fn links_are_a_system_users_right() {
    let case = case("link", "./link\n./M/\n").maildir("real");
    let run = prepare(&case);
    std::os::unix::fs::symlink("../elsewhere", run.home.join("link")).unwrap();
    std::os::unix::fs::symlink("real", run.home.join("M")).unwrap();
    assert!(command(&case, &run).status().unwrap().success());
    assert_eq!(text_of(&run.dir.path().join("elsewhere"), &run.home), Some(in_mbox()));
    assert_eq!(text_of(&run.home.join("real/new"), &run.home), Some(in_maildir()));
}

#[test]
fn usage() {
    let usage = "qmail-local: usage: qmail-local [ -nN ] user homedir local dash ext domain sender aliasempty\n";
    let full = ["joe", "/", "joe", "", "", "h", "s", "./m"];
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_qmail-local")).args(args).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for count in 0..full.len() {
        assert_eq!(run(&full[..count]), (Some(100), usage.to_owned()));
    }
    for args in [vec!["-n", "-"], [&full[..], &["more"]].concat(), ["joe", "rel", "joe", "", "", "h", "s", "./m"].to_vec()] {
        assert_eq!(run(&args), (Some(100), usage.to_owned()), "{args:?}");
    }
    assert_eq!(run(&["-nx"]), (Some(100), format!("qmail-local: illegal option -- x\n{usage}")));
    let (code, text) = run(&["joe", "/no/such/home", "joe", "", "", "h", "s", "./m"]);
    assert_eq!((code, text.as_str()), (Some(111), "Unable to switch to /no/such/home: file does not exist. (#4.3.0)\n"));
}

/// Another try would deliver a second time.
#[test]
fn what_is_done_is_done_though_nobody_can_be_told() {
    for (line, made) in [("./M/\n", "M/new"), ("./m\n", "m"), ("|cat >p\n", "p")] {
        let case = case("full", line).maildir("M");
        let run = prepare(&case);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = command(&case, &run).stdout(full).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{line}");
        assert!(text_of(&run.home.join(made), &run.home).is_some_and(|text| !text.is_empty()), "{line}");
    }
    let dry = case("dry", "./m\n").with(|c| c.flags = vec!["-n"]);
    let run = prepare(&dry);
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(command(&dry, &run).stdout(full).status().unwrap().code(), Some(111), "its output is all that -n is for");
}

#[test]
fn whatever_begins_with_two_dashes_ends_the_options() {
    check_all(&[case("--x", "./m\n").with(|c| c.flags = vec!["--x"]).has("m", &in_mbox())]);
}

#[test]
fn a_message_that_cannot_be_rewound_waits() {
    let case = case("pipe", "./m\n");
    let run = prepare(&case);
    let mut child = command(&case, &run).stdin(Stdio::piped()).spawn().unwrap();
    // It may be gone already: it needs no byte to see that this is a pipe.
    let _ = child.stdin.take().unwrap().write_all(MESSAGE.as_bytes());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(111));
    assert_eq!(output.stderr, b"Unable to rewind message. (#4.3.0)\n");
}

#[test]
fn a_closed_descriptor_is_not_an_empty_message() {
    let run = prepare(&case("closed", "./m\n"));
    let line = "exec \"$0\" joe \"$HOME\" joe '' '' h s ./m 0<&-";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line, env!("CARGO_BIN_EXE_qmail-local")]).env("HOME", &run.home);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(111));
    assert_eq!(output.stderr, b"Unable to rewind message. (#4.3.0)\n");
    assert!(!run.home.join("m").exists());
}

#[test]
fn a_queue_that_cannot_be_run_or_reached_is_temporary() {
    let case = case("no queue", "&a@b\n");
    let run = prepare(&case);
    let text = |command: &mut Command| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(111));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = text(command(&case, &run).env("QMAILQUEUE", "/no/such/queue"));
    assert_eq!(error, "Unable to forward message: unable to exec qq (#4.3.0).\n");
    let error = text(command(&case, &run).env_remove("QMAILQUEUE"));
    assert_eq!(error, "Unable to forward message: qq trouble making network connection (#4.3.0).\n");
}
