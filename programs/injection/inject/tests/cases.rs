//! qmail-inject and sendmail over pipes with a capturing QMAILQUEUE: the table in cases.txt, byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)] // helpers of tests fail by panic, too

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

#[derive(Default, Debug)]
struct Case {
    title: String,
    program: Option<String>,
    args: Vec<Vec<u8>>,
    set: Vec<(String, Vec<u8>)>,
    input: Vec<u8>,
    exit: i32,
    expected: BTreeMap<String, Vec<u8>>,
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next().expect("an escape") {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'0' => 0,
                b'x' => {
                    let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                other => other,
            },
            byte => byte,
        });
    }
    out
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
        match key {
            "program" => case.program = Some(value.to_owned()),
            "arg" => case.args.push(unescape(value)),
            "set" => {
                let (name, value) = value.split_once('=').unwrap();
                case.set.push((name.to_owned(), unescape(value)));
            }
            "in" => case.input = unescape(value),
            "exit" => case.exit = value.parse().unwrap(),
            _ => drop(case.expected.insert(key.to_owned(), unescape(value))),
        }
    }
    out
}

/// Replaces `count` digits behind each `before`, and what `after` eats behind them.
fn mask(text: &[u8], before: &str, mask: &str, matches: impl Fn(&[u8]) -> Option<usize>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let hit = rest.strip_prefix(before.as_bytes()).and_then(|after| matches(after).map(|len| &after[len..]));
        match hit {
            Some(after) => {
                out.extend_from_slice(before.as_bytes());
                out.extend_from_slice(mask.as_bytes());
                rest = after;
            }
            None => {
                out.push(rest[0]);
                rest = &rest[1..];
            }
        }
    }
    out
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|b| b.is_ascii_digit()).count()
}

/// `NUMBER.NUMBER` with `len` digits first.
fn pair(text: &[u8], len: usize) -> Option<usize> {
    let rest = text.get(len..).filter(|rest| digits(text) == len && rest.first() == Some(&b'.'))?;
    let second = digits(&rest[1..]);
    (second > 0).then_some(len + 1 + second)
}

/// What differs from run to run becomes a word.
fn masked(text: &[u8]) -> Vec<u8> {
    let text = mask(text, "Date: ", "DATE", |after| {
        let line = after.split(|b| *b == b'\n').next()?;
        (line.ends_with(b" -0000") && line[0].is_ascii_digit()).then_some(line.len())
    });
    let text = mask(&text, "<", "ID", |after| pair(after, 14).filter(|len| after[*len..].starts_with(b".qmail@")));
    mask(&text, "-", "TIME.PID", |after| pair(after, 10))
}

const CAPTURE: &str = "#!/bin/sh\ncat > \"$CAPTURE.message\"\ncat <&1 > \"$CAPTURE.envelope\"\n";

fn instance(dir: &Path) {
    let control = dir.join("etc/qmail/control");
    fs::create_dir_all(&control).unwrap();
    fs::create_dir_all(dir.join("run/qmail")).unwrap();
    for (name, value) in [
        ("me", "me.example"),
        ("defaultdomain", "dd.example"),
        ("defaulthost", "dh.example"),
        ("plusdomain", "pp.example"),
        ("idhost", "id.example"),
    ] {
        fs::write(control.join(name), format!("{value}\n")).unwrap();
    }
    fs::write(dir.join("mft"), "list@l.example\n#other\n").unwrap();
    fs::write(dir.join("capture"), CAPTURE).unwrap();
    fs::set_permissions(dir.join("capture"), fs::Permissions::from_mode(0o755)).unwrap();
}

fn run(case: &Case, dir: &Path) -> (i32, BTreeMap<String, Vec<u8>>) {
    let captured = ["message", "envelope"].map(|name| (name, dir.join(format!("out.{name}"))));
    for (_, path) in &captured {
        let _ = fs::remove_file(path);
    }
    let program = match case.program.as_deref() {
        None => env!("CARGO_BIN_EXE_qmail-inject"),
        Some("sendmail") => env!("CARGO_BIN_EXE_sendmail"),
        other => panic!("{other:?}"),
    };
    let mut command = Command::new(program);
    command.args(case.args.iter().map(|arg| std::ffi::OsString::from_vec(arg.clone()))).env_clear().env("PATH", "/usr/bin:/bin");
    command.env("QMAIL_ROOT", dir).env("QMAILQUEUE", dir.join("capture")).env("CAPTURE", dir.join("out"));
    for (name, value) in &case.set {
        let value =
            if value == b"{mft}" { dir.join("mft").into_os_string() } else { std::ffi::OsString::from_vec(value.clone()) };
        command.env(name, value);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that stops before it reads is no error here.
    let _ = child.stdin.take().unwrap().write_all(&case.input);
    let output = child.wait_with_output().unwrap();
    let mut got = BTreeMap::new();
    for (name, bytes) in [("stdout", output.stdout), ("stderr", output.stderr)] {
        if !bytes.is_empty() {
            got.insert(name.to_owned(), masked(&bytes));
        }
    }
    for (name, path) in captured {
        if let Ok(bytes) = fs::read(path) {
            got.insert(name.to_owned(), masked(&bytes));
        }
    }
    (output.status.code().unwrap_or(-1), got)
}

#[test]
fn every_case_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    instance(dir.path());
    let cases = cases(include_str!("cases.txt"));
    assert!(cases.len() >= 200);
    let mut failed = Vec::new();
    for case in &cases {
        let (exit, got) = run(case, dir.path());
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
