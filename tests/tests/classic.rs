//! The small classic programs over pipes: the table in classic/cases.txt, byte for byte, and tables beside those of others' programs.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests fail by panic, too

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use system_tests::escaped::unescape;
use system_tests::tools::{self, must};
use system_tests::{Instance, PATIENCE};

/// What the program in QMAILQUEUE does: keep what it is given, say what it is told to.
const CAPTURE: &str = "#!/bin/sh\ncat > \"$CAPTURE.message\"\ncat <&1 > \"$CAPTURE.envelope\"\n\
    [ -z \"$QTEXT\" ] || printf %s \"$QTEXT\" >&6\nexit \"${QEXIT:-0}\"\n";

/// Where the built programs are.
fn built(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let dir = exe.ancestors().find(|dir| dir.join("qmail-send").is_file());
    dir.expect("the programs are not built: cargo build --workspace --bins (cargo xtask test does it)").join(name)
}

/// A directory that goes with its case.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("classic.{}.{number}", std::process::id()));
        let control = dir.join("root/etc/qmail/control");
        fs::create_dir_all(&control).unwrap();
        for (name, value) in
            [("me", "me.example"), ("defaultdomain", "dd.example"), ("defaulthost", "dh.example"), ("plusdomain", "pd.example")]
        {
            fs::write(control.join(name), format!("{value}\n")).unwrap();
        }
        fs::write(dir.join("queue"), CAPTURE).unwrap();
        fs::set_permissions(dir.join("queue"), fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(built(program));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("TZ", "UTC").current_dir(&self.0);
        command.env("QMAIL_ROOT", self.0.join("root")).env("QMAILQUEUE", self.0.join("queue")).env("CAPTURE", self.0.join("out"));
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn fed(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that stops before it reads is no error here.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[derive(Default, Debug)]
struct Case {
    title: String,
    program: String,
    args: Vec<Vec<u8>>,
    set: Vec<(String, Vec<u8>)>,
    unset: Vec<String>,
    /// Name and text; a name that ends in `/` is a directory, one with `@MODE` behind it has that mode.
    files: Vec<(String, Vec<u8>)>,
    input: Vec<u8>,
    /// Standard input is a file, not a pipe.
    seekable: bool,
    closed: bool,
    /// What the shell does with descriptors; an empty file `fd6` is there.
    redirect: Option<String>,
    /// What descriptor 6 gives; what goes to 7 is the file `fd7`.
    fd6: Option<Vec<u8>>,
    exit: i32,
    expected: BTreeMap<String, Vec<u8>>,
    /// Databases by their records: `in NAME` is there before, `file NAME` after, `stdin` is read.
    databases: BTreeMap<String, Vec<Record>>,
}

/// A key and its data.
type Record = (Vec<u8>, Vec<u8>);

/// `KEY>DATA`, or nothing.
fn record(records: &mut Vec<Record>, text: &str) {
    if let Some((key, data)) = text.split_once('>') {
        records.push((unescape(key), unescape(data)));
    }
}

/// What these records are as a file; that it is right is the affair of `databases_are_those_of_tinycdb_and_freecdb`.
fn database(records: &[Record]) -> Vec<u8> {
    let mut writer = wire::cdb::Writer::new();
    records.iter().for_each(|(key, data)| writer.add(key, data));
    writer.finish().unwrap()
}

impl Case {
    /// With the databases in their places.
    fn whole(mut self) -> Self {
        for (place, records) in std::mem::take(&mut self.databases) {
            let file = database(&records);
            match place.split_once(' ') {
                Some(("in", name)) => self.files.push((name.to_owned(), file)),
                Some(_) => drop(self.expected.insert(place, file)),
                None => self.input = file,
            }
        }
        self
    }
}

fn cases(text: &str) -> Vec<Case> {
    let mut out: Vec<Case> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        if key == "==" {
            out.push(Case { title: value.to_owned(), ..Case::default() });
            continue;
        }
        let case = out.last_mut().expect("a title");
        let pair = || value.split_once(' ').unwrap_or((value, ""));
        match key {
            "program" => case.program = value.to_owned(),
            "arg" => case.args.push(unescape(value)),
            "set" => {
                let (name, value) = value.split_once('=').unwrap();
                case.set.push((name.to_owned(), unescape(value)));
            }
            "unset" => case.unset.push(value.to_owned()),
            "file" => case.files.push((pair().0.to_owned(), unescape(pair().1))),
            "filecdb" => record(case.databases.entry(format!("in {}", pair().0)).or_default(), pair().1),
            "hascdb" => record(case.databases.entry(format!("file {}", pair().0)).or_default(), pair().1),
            "incdb" => record(case.databases.entry("stdin".to_owned()).or_default(), value),
            "in" => case.input = unescape(value),
            "stdin" => (case.seekable, case.input) = (true, unescape(value)),
            "closed" => case.closed = true,
            "redirect" => case.redirect = Some(value.to_owned()),
            "fd6" => case.fd6 = Some(unescape(value)),
            "exit" => case.exit = value.parse().unwrap(),
            "has" => drop(case.expected.insert(format!("file {}", pair().0), unescape(pair().1))),
            "lacks" => drop(case.expected.insert(format!("file {value}"), b"(not there)".to_vec())),
            "stdout" | "stderr" | "message" | "envelope" => drop(case.expected.insert(key.to_owned(), unescape(value))),
            _ => panic!("{}: {line}", case.title),
        }
    }
    out.into_iter().map(Case::whole).collect()
}

fn filled(bytes: &[u8], dir: &Path) -> Vec<u8> {
    replaced(bytes, b"{dir}", dir.as_os_str().as_bytes())
}

fn replaced(bytes: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(what.len()).position(|part| part == what) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(by);
        rest = &rest[at + what.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Numbers behind these words differ from run to run.
fn masked(text: &[u8], dir: &Path) -> Vec<u8> {
    let mut out = replaced(text, dir.as_os_str().as_bytes(), b"{dir}");
    let words = [
        ("qp ", "PID"),
        (" qp=", "PID"),
        ("Message-ID: <", "ID"),
        ("qmail-smtpd[", "PID"),
        ("250 2.0.0 ok ", "TIME"),
        (" seconds=", "N"),
        // As long as the numbers above.
        (" out=", "N"),
    ];
    for (before, word) in words {
        let parts: Vec<Vec<u8>> = split(&out, before.as_bytes());
        let mask = |part: &Vec<u8>| {
            let digits = part.iter().take_while(|b| b.is_ascii_digit() || **b == b'.').count();
            if digits == 0 {
                part.clone()
            } else {
                [word.as_bytes(), &part[digits - usize::from(part[digits - 1] == b'.')..]].concat()
            }
        };
        out = parts
            .iter()
            .enumerate()
            .map(|(at, part)| if at == 0 { part.clone() } else { mask(part) })
            .collect::<Vec<_>>()
            .join(before.as_bytes());
    }
    let lines: Vec<Vec<u8>> = out.split(|b| *b == b'\n').map(masked_date).collect();
    lines.join(&b'\n')
}

fn masked_date(line: &[u8]) -> Vec<u8> {
    if line.starts_with(b"  by ") && line.ends_with(b" -0000") {
        let until = line.iter().position(|b| *b == b';').unwrap_or(line.len());
        return [&line[..until], b"; DATE"].concat();
    }
    let is_date = line.starts_with(b"Date: ") && (line.ends_with(b" -0000") || line.ends_with(b" +0000"));
    if is_date { [b"Date: DATE", &line[line.len() - 6..]].concat() } else { line.to_vec() }
}

fn split(text: &[u8], by: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(by.len()).position(|part| part == by) {
        parts.push(rest[..at].to_vec());
        rest = &rest[at + by.len()..];
    }
    parts.push(rest.to_vec());
    parts
}

fn prepare(case: &Case, dir: &Path) {
    for (name, text) in &case.files {
        let (name, mode) = name.split_once('@').map_or((name.as_str(), None), |(name, mode)| (name, Some(mode)));
        let path = dir.join(name);
        if name.ends_with('/') {
            fs::create_dir_all(&path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, filled(text, dir)).unwrap();
        }
        if let Some(mode) = mode {
            fs::set_permissions(&path, fs::Permissions::from_mode(u32::from_str_radix(mode, 8).unwrap())).unwrap();
        }
    }
}

/// Who starts the program.
#[derive(Clone, Copy, PartialEq)]
enum Starter {
    Ordinary,
    /// Ignores SIGCHLD and SIGPIPE, and every exec passes that on.
    Ignoring,
}

fn run(case: &Case, starter: Starter) -> (i32, BTreeMap<String, Vec<u8>>) {
    let place = Place::new();
    let dir = &place.0;
    prepare(case, dir);
    let mut command = place.command(&case.program);
    if starter == Starter::Ignoring {
        let direct = std::mem::replace(&mut command, Command::new("/usr/bin/env"));
        command.args(["--ignore-signal=CHLD", "--ignore-signal=PIPE"]).arg(direct.get_program()).current_dir(dir).env_clear();
        command.envs(direct.get_envs().filter_map(|(name, value)| Some((name, value?))));
    }
    // Descriptors that std has no words for are the shell's affair.
    let redirection = case.redirect.as_deref().unwrap_or(if case.closed { "<&-" } else { "6<fd6 7>fd7" });
    if case.redirect.is_some() || case.fd6.is_some() {
        fs::write(dir.join("fd6"), case.fd6.as_deref().unwrap_or_default()).unwrap();
    }
    if case.closed || case.redirect.is_some() || case.fd6.is_some() {
        let by_shell = Command::new("/bin/sh");
        let direct = std::mem::replace(&mut command, by_shell);
        command.args(["-c", &format!("exec \"$0\" \"$@\" {redirection}")]).arg(direct.get_program()).current_dir(dir).env_clear();
        command.envs(direct.get_envs().filter_map(|(name, value)| Some((name, value?))));
    }
    command.args(case.args.iter().map(|arg| OsString::from_vec(filled(arg, dir))));
    for (name, value) in &case.set {
        command.env(name, OsString::from_vec(filled(value, dir)));
    }
    for name in &case.unset {
        command.env_remove(name);
    }
    let output = if case.seekable {
        fs::write(dir.join("stdin"), filled(&case.input, dir)).unwrap();
        command.stdin(fs::File::open(dir.join("stdin")).unwrap()).output().unwrap()
    } else {
        fed(&mut command, &filled(&case.input, dir))
    };
    let mut got = BTreeMap::new();
    for (name, bytes) in [("stdout", output.stdout), ("stderr", output.stderr)] {
        if !bytes.is_empty() {
            got.insert(name.to_owned(), masked(&bytes, dir));
        }
    }
    for name in ["message", "envelope"] {
        if let Ok(bytes) = fs::read(dir.join(format!("out.{name}"))) {
            got.insert(name.to_owned(), masked(&bytes, dir));
        }
    }
    for name in case.expected.keys().filter_map(|key| key.strip_prefix("file ")) {
        let text = fs::read(dir.join(name)).map_or_else(|_| b"(not there)".to_vec(), |bytes| masked(&bytes, dir));
        got.insert(format!("file {name}"), text);
    }
    (output.status.code().unwrap_or(-1), got)
}

#[test]
fn every_case_byte_for_byte() {
    let cases = cases(include_str!("classic/cases.txt"));
    assert!(cases.len() >= 300, "{}", cases.len());
    all_right(&cases, Starter::Ordinary);
}

/// Those that take a program's exit code for an answer.
#[test]
fn exit_codes_count_whoever_ignores_the_ends_of_children() {
    let programs = ["autorespond", "bouncesaying", "condredirect", "except", "fastforward", "forward", "maildirserial"];
    let mut cases = cases(include_str!("classic/cases.txt"));
    cases.retain(|case| {
        programs.contains(&case.program.as_str()) && !case.closed && case.redirect.is_none() && case.fd6.is_none()
    });
    let missing = programs.iter().find(|name| !cases.iter().any(|case| case.program == **name));
    assert_eq!(missing, None);
    all_right(&cases, Starter::Ignoring);
}

fn all_right(cases: &[Case], starter: Starter) {
    let mut failed = Vec::new();
    for case in cases {
        let (exit, got) = run(case, starter);
        if (exit, &got) != (case.exit, &case.expected) {
            let show = |map: &BTreeMap<String, Vec<u8>>| {
                map.iter().map(|(k, v)| format!("\n    {k} {}", v.escape_ascii())).collect::<String>()
            };
            failed.push(format!(
                "{}: exit {exit} not {}{}\n  expected{}",
                case.title,
                case.exit,
                show(&got),
                show(&case.expected)
            ));
        }
    }
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// The records of a database as the programs of others print them, `+klen,dlen:key->data`, for making it anew.
fn dump(file: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, data) in wire::cdb::records(file).unwrap() {
        out.extend([format!("+{},{}:", key.len(), data.len()).as_bytes(), key, b"->", data, b"\n"].concat());
    }
    out.push(b'\n');
    out
}

const ASSIGN: &[u8] = b"=joe:joe:1001:100:/home/joe:::\n+joe-:joe:1001:100:/home/joe:-::\n=Ann.Lee:ann:1002:100:/home/ann:::\n\
    +:alias:90:90:/var/qmail/alias:-::\n+list-x:l:1003:100:/home/l:-:x:\n.\n";

#[test]
fn databases_are_those_of_tinycdb_and_freecdb() {
    let test = "databases_are_those_of_tinycdb_and_freecdb";
    let (Some(tiny), Some(free)) =
        (tools::get(test, "tinycdb", "usr/bin/cdb").unwrap(), tools::get(test, "freecdb", "usr/bin/cdbmake").unwrap())
    else {
        return;
    };
    let place = Place::new();
    let etc = place.0.join("root/etc/qmail");
    fs::create_dir_all(etc.join("users")).unwrap();
    fs::write(etc.join("users/assign"), ASSIGN).unwrap();
    let hosts: String = (0..3000).map(|n| format!("Host{n}.example\n.sub{n}.example \n# {n}\n")).collect();
    fs::write(etc.join("control/morercpthosts"), hosts).unwrap();
    assert!(fed(&mut place.command("qmail-newu"), b"").status.success());
    assert!(fed(&mut place.command("qmail-newmrh"), b"").status.success());
    assert!(fed(place.command("tcprules").args(["rules", "tmp"]), RULES).status.success());
    assert!(fed(place.command("setforward").args(["forward", "tmp"]), FORWARD).status.success());
    for (name, records) in
        [("root/etc/qmail/users/cdb", 6), ("root/etc/qmail/control/morercpthosts.cdb", 6000), ("rules", 262), ("forward", 7)]
    {
        let ours = fs::read(place.0.join(name)).unwrap();
        assert_eq!(wire::cdb::records(&ours).unwrap().len(), records, "{name}");
        let dumped = dump(&ours);
        let mut command = tiny.command();
        command.args(["-c", "-t", "t.tmp", "tiny.cdb"]).current_dir(&place.0);
        assert!(fed(&mut command, &dumped).status.success());
        let mut command = free.command();
        command.args(["free.cdb", "f.tmp"]).current_dir(&place.0);
        assert!(fed(&mut command, &dumped).status.success());
        // freecdb writes what cr.yp.to/cdb does; tinycdb fills headers of empty tables otherwise, which no reader looks at.
        assert!(ours == fs::read(place.0.join("free.cdb")).unwrap(), "{name} is not as freecdb makes it");
        let theirs = fs::read(place.0.join("tiny.cdb")).unwrap();
        assert_eq!(dump(&theirs), dumped, "{name}");
        let mut command = tiny.command();
        let listed = must(command.arg("-d").arg(place.0.join(name))).unwrap();
        assert_eq!(listed.as_bytes(), String::from_utf8_lossy(&dumped).as_bytes(), "tinycdb reads {name} otherwise");
    }
    assert!(!etc.join("users/cdb.tmp").exists() && !etc.join("control/morercpthosts.tmp").exists());
}

const RULES: &[u8] =
    b"# comment\n127.:allow,RELAYCLIENT=\"\"\n10.1.2.3:deny\n192.168.0-255.:allow,A=/b c/,D=xyx\n=.example.org:allow\n\
    joe@=h.example:deny,X=\"1\"\n1.2.3.4:allow   \nno rule here\n\n:deny\n";

#[test]
fn rules_compile_and_count_as_with_ucspi_tcp() {
    let test = "rules_compile_and_count_as_with_ucspi_tcp";
    let (Some(rules), Some(check)) = (
        tools::get(test, "ucspi-tcp", "usr/bin/tcprules").unwrap(),
        tools::get(test, "ucspi-tcp", "usr/bin/tcprulescheck").unwrap(),
    ) else {
        return;
    };
    let place = Place::new();
    let bad = ["x:maybe", "x:allow,A", "x:allow,A=", "x:allow,A=/b", "a-b:allow", "1-x.:deny", "x:allowed", "x:deny,"];
    let odd = ["", "250-260:deny", "3-2:allow", " 1:allow", "x:allow,A==b=,B=\"\"", ":allow,=xx", "#", "a@b-c:deny"];
    for text in [std::str::from_utf8(RULES).unwrap()].iter().chain(&bad).chain(&odd) {
        let mut theirs = rules.command();
        theirs.args(["theirs", "tmp"]).current_dir(&place.0);
        let theirs = fed(&mut theirs, text.as_bytes());
        let ours = fed(place.command("tcprules").args(["ours", "tmp2"]), text.as_bytes());
        assert_eq!((ours.status.code(), &ours.stderr), (theirs.status.code(), &theirs.stderr), "{text}");
        assert_eq!(ours.status.success(), !bad.contains(text), "{text}");
        if ours.status.success() {
            assert!(fs::read(place.0.join("ours")).unwrap() == fs::read(place.0.join("theirs")).unwrap(), "{text}");
        }
    }
    assert!(fed(place.command("tcprules").args(["ours", "tmp2"]), RULES).status.success());
    for client in [
        &[("TCPREMOTEIP", "127.0.0.1")][..],
        &[("TCPREMOTEIP", "10.1.2.3")],
        &[("TCPREMOTEIP", "192.168.77.1")],
        &[("TCPREMOTEIP", "9.9.9.9")],
        &[("TCPREMOTEIP", "9.9.9.9"), ("TCPREMOTEHOST", "a.b.example.org")],
        &[("TCPREMOTEIP", "9.9.9.9"), ("TCPREMOTEHOST", "h.example"), ("TCPREMOTEINFO", "joe")],
        &[],
    ] {
        let mut theirs = check.command();
        theirs.arg("ours").current_dir(&place.0).env_remove("TCPREMOTEIP").envs(client.iter().copied());
        let theirs = theirs.output().unwrap();
        let ours = place.command("tcprulescheck").arg("ours").envs(client.iter().copied()).output().unwrap();
        assert!(theirs.stdout.starts_with(b"rule "), "{theirs:?}");
        assert_eq!((ours.status.code(), &ours.stdout), (theirs.status.code(), &theirs.stdout), "{client:?}");
    }
}

const FORWARD: &[u8] = b"a@b: c@d, x@y; @b: &def@q; bob@: |echo\\ hi, /lists/l.bin; ls@x: m1@x, m2@x, ?own@x; # comment ;\n\
    ls2@x: ls@x,\n m1@x; Own2@X: ?a;";

#[test]
fn forwarding_tables_are_those_of_fastforward() {
    let test = "forwarding_tables_are_those_of_fastforward";
    let get = |name: &str| tools::get(test, "fastforward", &format!("usr/bin/{name}")).unwrap();
    let (Some(setforward), Some(fastforward), Some(setmaillist)) = (get("setforward"), get("fastforward"), get("setmaillist"))
    else {
        return;
    };
    let place = Place::new();
    let bad = ["a:b", "a", "a,b;", ";", "a:b:c;", "a:b\0;"];
    for text in [std::str::from_utf8(FORWARD).unwrap(), "", "a:;", ":x;", "a\\ b:c\\;d,\\ ;", "a:?;", "#x"].iter().chain(&bad) {
        let mut theirs = setforward.command();
        theirs.args(["theirs", "tmp"]).current_dir(&place.0);
        let theirs = fed(&mut theirs, text.as_bytes());
        let ours = fed(place.command("setforward").args(["ours", "tmp2"]), text.as_bytes());
        assert_eq!((ours.status.code(), &ours.stderr), (theirs.status.code(), &theirs.stderr), "{text}");
        if ours.status.success() {
            assert!(fs::read(place.0.join("ours")).unwrap() == fs::read(place.0.join("theirs")).unwrap(), "{text}");
        }
        assert_eq!(ours.status.success(), !bad.contains(text), "{text}");
    }
    assert!(fed(place.command("setforward").args(["ours", "tmp2"]), FORWARD).status.success());
    for recipient in ["a@b", "A@B", "zz@b", "ls@x", "ls2@x", "nobody@zz", "own2@x", "", "x"] {
        let with = |command: &mut Command| {
            let command = command.args(["-n", "ours"]).current_dir(&place.0).env("SENDER", "s@s").env("RECIPIENT", recipient);
            let output = command.output().unwrap();
            (output.status.code(), output.stderr)
        };
        assert_eq!(with(&mut place.command("fastforward")), with(&mut fastforward.command()), "{recipient}");
    }
    let list = b"z@q \n.foo.bin\n# x\n@odd@e\n&amp@x\t\n\n/l";
    let mut theirs = setmaillist.command();
    theirs.args(["theirs", "tmp"]).current_dir(&place.0);
    assert!(
        fed(&mut theirs, list).status.success()
            && fed(place.command("setmaillist").args(["ours", "tmp2"]), list).status.success()
    );
    assert_eq!(fs::read(place.0.join("ours")).unwrap(), fs::read(place.0.join("theirs")).unwrap());
}

#[test]
fn qmail_qread_and_qmail_qstat_show_the_queue() {
    let mut instance = Instance::new().unwrap();
    let ask = |instance: &Instance, name: &str| {
        let output = Command::new(instance.program(name)).env("QMAIL_ROOT", &instance.root).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(ask(&instance, "qmail-qstat"), (Some(111), String::new(), "qmail-qstat: fatal: not running\n".to_owned()));
    fs::write(instance.root.join("etc/qmail/control/concurrencyremote"), "0\n").unwrap();
    instance.start().unwrap();
    let empty = "messages in queue: 0\nmessages in queue but not yet preprocessed: 0\n";
    assert_eq!(ask(&instance, "qmail-qstat"), (Some(0), empty.to_owned(), String::new()));
    assert_eq!(ask(&instance, "qmail-qread"), (Some(0), String::new(), String::new()));
    let mut inject = Command::new(instance.program("qmail-inject"));
    inject.env("QMAIL_ROOT", &instance.root).args(["-fme@mail.example.test", "far@elsewhere.example", "off@elsewhere.example"]);
    assert!(fed(&mut inject, b"Subject: x\n\nhi\n").status.success());
    let (code, shown, _) = ask(&instance, "qmail-qread");
    let lines: Vec<&str> = shown.lines().collect();
    assert!(code == Some(0) && lines.len() == 3, "{shown}");
    assert!(lines[0].contains(" GMT  #") && lines[0].ends_with("  <me@mail.example.test> "), "{shown}");
    let mut recipients = lines[1..].to_vec();
    recipients.sort_unstable();
    assert_eq!(recipients, ["\tremote\tfar@elsewhere.example", "\tremote\toff@elsewhere.example"]);
    assert!(ask(&instance, "qmail-qstat").1.starts_with("messages in queue: 1\n"));
    assert_eq!(ask(&instance, "qmail-tcpto"), (Some(0), String::new(), String::new()));
}

#[test]
fn maildir2mbox_moves_each_letter_behind_what_was_there() {
    let place = Place::new();
    assert!(place.command("maildirmake").arg("m").status().unwrap().success());
    let modes = ["m", "m/tmp", "m/new", "m/cur"].map(|dir| fs::metadata(place.0.join(dir)).unwrap().permissions().mode() & 0o777);
    assert_eq!(modes, [0o700; 4]);
    fs::write(place.0.join("mbox"), "From old Thu Jan 01 00:00:00 1970\nold\n\n").unwrap();
    for (name, text, time_s) in [
        ("new/30.c", "Return-Path: <>\nSubject: c\n\nFrom me\n>From you\nno end", 30),
        ("cur/10.a:2,S", "Return-Path: <\"a b\"@x>\nSubject: a\n", 951_782_399),
        ("new/20.b", "one line without an end", 20),
        ("new/.hidden", "x", 1),
    ] {
        let path = place.0.join("m").join(name);
        fs::write(&path, text).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(time_s);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    }
    let mut command = place.command("maildir2mbox");
    let output = command.envs([("MAILDIR", "m"), ("MAIL", "mbox"), ("MAILTMP", "mbox.tmp")]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let expected = "From old Thu Jan 01 00:00:00 1970\nold\n\n\
        From \"a-b\"@x Mon Feb 28 23:59:59 2000\nReturn-Path: <\"a b\"@x>\nSubject: a\n\n\
        From XXX Thu Jan 01 00:00:20 1970\none line without an end\n\n\
        From MAILER-DAEMON Thu Jan 01 00:00:30 1970\nReturn-Path: <>\nSubject: c\n\n>From me\n>>From you\nno end\n\n";
    assert_eq!(fs::read_to_string(place.0.join("mbox")).unwrap(), expected);
    let left = |dir: &str| fs::read_dir(place.0.join(dir)).unwrap().count();
    assert_eq!((left("m/new"), left("m/cur")), (1, 0), "only the hidden file stays");
    assert!(!place.0.join("mbox.tmp").exists());
    let mode = fs::metadata(place.0.join("mbox")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn maildir2mbox_ends_a_line_that_was_cut_off() {
    let place = Place::new();
    assert!(place.command("maildirmake").arg("m").status().unwrap().success());
    fs::write(place.0.join("mbox"), "From old Thu Jan 01 00:00:00 1970\nold").unwrap();
    fs::write(place.0.join("m/new/20.b"), "Subject: b\n\nb\n").unwrap();
    let mut command = place.command("maildir2mbox");
    assert!(command.envs([("MAILDIR", "m"), ("MAIL", "mbox"), ("MAILTMP", "mbox.tmp")]).status().unwrap().success());
    let mbox = fs::read_to_string(place.0.join("mbox")).unwrap();
    assert!(
        mbox.starts_with("From old Thu Jan 01 00:00:00 1970\nold\nFrom XXX ") && mbox.ends_with("\nSubject: b\n\nb\n\n"),
        "{mbox}"
    );
}

#[test]
fn splogger_writes_each_line_to_syslog() {
    let place = Place::new();
    fs::create_dir_all(place.0.join("root/dev")).unwrap();
    let syslog = UnixDatagram::bind(place.0.join("root/dev/log")).unwrap();
    syslog.set_read_timeout(Some(PATIENCE)).unwrap();
    let output = fed(place.command("splogger").args(["qmail", "16"]), b"status: local 0/10\nalert: oh no\nno end");
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty());
    for (priority, text) in [(134, "status: local 0/10"), (129, "alert: oh no")] {
        let mut datagram = [0; 2048];
        let len = syslog.recv(&mut datagram).unwrap();
        let got = String::from_utf8_lossy(&datagram[..len]).into_owned();
        assert!(
            got.starts_with(&format!("<{priority}>")) && got.contains(" qmail: ") && got.ends_with(&format!(" {text}")),
            "{got}"
        );
    }
}

#[test]
fn maildirwatch_shows_what_is_new() {
    let place = Place::new();
    assert!(place.command("maildirmake").arg("m").status().unwrap().success());
    fs::write(place.0.join("m/new/1.x"), "Return-Path: <s@x>\nDelivered-To: joe@h\nSubject: hi\x1b\n\nbody\n").unwrap();
    let mut child = place.command("maildirwatch").env("MAILDIR", "m").stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while !text.ends_with(b"\n\n") {
        let len = out.read(&mut piece).unwrap();
        assert!(len > 0, "it ended: {}", text.escape_ascii());
        text.extend_from_slice(&piece[..len]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(
        text.escape_ascii().to_string(),
        b"\x1b[;H\x1b[;JFROM <s@x> TO <joe@h>\nhi///body/\n\n".escape_ascii().to_string()
    );
}
