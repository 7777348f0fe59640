//! The classic face over pipes: the real program with shell scripts in the place of checkpassword.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// Runs `qmail-popup host.example sh -c SCRIPT` with `input` on 0; what it wrote and its exit code.
fn run(script: &str, input: &[u8]) -> (String, i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qmail-popup"));
    command.args(["host.example", "sh", "-c", script]).env("PROOF", "kept").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input);
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    (out, child.wait().unwrap().code().unwrap())
}

/// The banner's timestamp and the rest.
fn split(out: &str) -> (String, String) {
    let (banner, rest) = out.split_once("\r\n").unwrap();
    (banner.strip_prefix("+OK ").unwrap().to_owned(), rest.to_owned())
}

#[test]
fn the_helper_gets_name_secret_and_timestamp_on_3_and_the_client_on_0_and_1() {
    let (out, code) = run("tr '\\0' '|' <&3; echo; echo $PROOF; cat", b"USER joe\r\nPASS p w\r\nSTAT\r\nQUIT\r\n");
    let (stamp, rest) = split(&out);
    assert!(stamp.starts_with('<') && stamp.ends_with("@host.example>"), "{stamp}");
    assert_eq!(rest, format!("+OK \r\njoe|p w|{stamp}|\nkept\nSTAT\r\nQUIT\r\n"));
    assert_eq!(code, 1);
    let (out, _) = run("tr '\\0' '|' <&3", b"APOP joe c4c9334bac560ecc979e58001b3e22fb\r\n");
    let (stamp, rest) = split(&out);
    assert_eq!(rest, format!("joe|c4c9334bac560ecc979e58001b3e22fb|{stamp}|"));
}

#[test]
fn how_the_helper_ends_is_said() {
    for (script, reply) in [
        ("exit 1", "-ERR authorization failed\r\n"),
        ("exit 2", "-ERR authorization failed\r\n"),
        ("exit 111", "-ERR authorization failed\r\n"),
        ("kill -9 $$", "-ERR aack, child crashed\r\n"),
        ("exit 0", ""),
    ] {
        let (out, code) = run(script, b"USER joe\r\nPASS x\r\nNOOP\r\n");
        assert_eq!((split(&out).1, code), (format!("+OK \r\n{reply}"), 1), "{script}");
    }
}

#[test]
fn before_a_login() {
    let (out, code) = run("echo never", b"NOOP\r\nSTAT\r\nPASS x\r\nuser \r\nQUIT\r\nUSER x\r\nPASS y\r\n");
    let replies = "+OK \r\n-ERR authorization first\r\n-ERR USER first\r\n-ERR USER needs a name\r\n+OK \r\n";
    assert_eq!((split(&out).1.as_str(), code), (replies, 1));
    let (out, code) = run("echo never", b"USER joe\r\nPASS x");
    assert_eq!((split(&out).1.as_str(), code), ("+OK \r\n", 1), "a line that does not end is no command");
}

#[test]
fn without_a_helper_the_client_is_told_that_the_program_is_misused() {
    for args in [&[][..], &["host"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_qmail-popup")).args(args).output().unwrap();
        assert_eq!(output.stdout, b"-ERR usage: qmail-popup HOST SUBPROG [ARGS]\r\n");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn a_helper_that_is_not_there_is_temporary() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qmail-popup"));
    command.args(["host", "/nonexistent/checkpassword"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"USER joe\r\nPASS x\r\n").unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).ends_with("-ERR cannot check this login now, try again later\r\n"));
}
