//! Input that nobody should send: nobody exits, nothing is queued, nothing is delivered in part, and the next session works.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use system_tests::facts;
use system_tests::line::{Line, Smtp};
use system_tests::{Instance, PATIENCE, Peer, is_root, wait_for};

const BOB: &str = "bob@example.test";
const LETTER: &str = "Subject: x\n\nbody\n";

fn instance(control: &[(&str, &str)]) -> Instance {
    let instance = Instance::started(control).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    instance
}

/// All processes that qmail-start started; workers on demand come and go.
fn services(instance: &Instance) -> BTreeMap<u32, String> {
    let on_demand = ["qmail-local", "qmail-pop3d"];
    let all = facts::descendants(instance.pid()).into_iter().filter(|process| !on_demand.contains(&process.name.as_str()));
    all.map(|process| (process.pid, process.name)).collect()
}

/// Sends a letter, which must be the only one that bob ever got.
fn works_and_nothing_else_came(instance: &Instance) {
    instance.smtp().unwrap().send("a@b.test", &[BOB], LETTER).unwrap();
    instance.wait_empty().unwrap();
    let letter = instance.wait_mail(BOB, 1).unwrap().remove(0);
    assert!(letter.ends_with(LETTER), "{letter}");
    let mut pop3 = instance.pop3(BOB).unwrap();
    assert_eq!(pop3.count().unwrap(), 1);
}

fn queued(instance: &Instance) -> u64 {
    instance.json(&["queue", "stats"]).unwrap()["messages"].as_u64().unwrap()
}

#[test]
fn command_lines_too_long_and_nul_bytes_are_refused_and_the_session_goes_on() {
    let instance = instance(&[]);
    let before = services(&instance);
    let mut smtp = instance.smtp().unwrap();
    for len in [3_000, 100_000, 10_000_000] {
        for command in ["NOOP ", "MAIL FROM:<", "\0", ""] {
            let line = [command.as_bytes(), &vec![b'x'; len], b"\r\n"].concat();
            smtp.0.raw(&line).unwrap();
            assert_eq!(smtp.reply().unwrap(), "500 5.5.2 command line too long");
            smtp.must("RSET", "250").unwrap();
        }
    }
    let mut smtp = instance.smtp().unwrap();
    for line in ["NO\0OP", "MAIL FROM:<a\0@b.test>", "RCPT TO:<bob@example.test\0>", "\0"] {
        smtp.must(line, "500 5.5.2").unwrap();
    }
    smtp.must("MAIL FROM:<a@b.test>", "250").unwrap();
    for address in [format!("{}@example.test", "x".repeat(1000)), format!("x@{}", "example.".repeat(150))] {
        smtp.must(&format!("RCPT TO:<{address}>"), "55").unwrap();
    }
    let mut pop3 = Line::open(instance.port(110)).unwrap();
    pop3.line().unwrap();
    for line in [vec![b'x'; 10_000_000], b"USER a\0b".to_vec(), b"USER ".iter().copied().chain([b'y'; 5000]).collect()] {
        pop3.raw(&[&line[..], b"\r\n"].concat()).unwrap();
        assert!(pop3.line().unwrap().starts_with(b"-ERR "));
    }
    pop3.raw(b"NOOP\r\n").unwrap();
    assert!(pop3.line().unwrap().starts_with(b"+OK"));
    assert_eq!(services(&instance), before);
    works_and_nothing_else_came(&instance);
}

#[test]
fn nul_bytes_in_a_letter_arrive_as_they_are() {
    let instance = instance(&[]);
    let letter = "Subject: nul \0 here\n\n\0\n.\0\nend\0\n";
    instance.smtp().unwrap().send("a@b.test", &[BOB], letter).unwrap();
    assert!(instance.wait_mail(BOB, 1).unwrap()[0].ends_with(letter));
}

#[test]
fn ten_gigabytes_announced_cost_nothing() {
    let instance = instance(&[("databytes", "1000000\n")]);
    let before = services(&instance);
    let open = |chunk: &str| {
        let mut smtp = instance.smtp().unwrap();
        smtp.must("EHLO c", "250").unwrap();
        smtp.must("MAIL FROM:<a@b.test> SIZE=10000000000", "552 5.3.4").unwrap();
        smtp.must("MAIL FROM:<a@b.test>", "250").unwrap();
        smtp.must("RCPT TO:<bob@example.test>", "250").unwrap();
        smtp.0.raw(format!("BDAT {chunk}\r\n").as_bytes()).unwrap();
        smtp
    };
    // More than the bound, and the rest never comes.
    let mut smtp = open("10000000000 LAST");
    smtp.0.raw(&vec![b'x'; 5_000_000]).unwrap();
    drop(smtp);
    for chunk in ["18446744073709551616", "-1", "99999999999999999999999 LAST", "1x", ""] {
        let mut smtp = open(chunk);
        assert!(smtp.reply().unwrap().starts_with("501 5.5.4 "), "BDAT {chunk}");
        assert!(smtp.0.is_closed().unwrap(), "nobody knows where the next command starts");
    }
    assert_eq!(queued(&instance), 0);
    assert_eq!(services(&instance), before);
    works_and_nothing_else_came(&instance);
}

#[test]
fn a_hundred_thousand_recipients_get_an_answer_each() {
    const COUNT: usize = 100_000;
    let instance = instance(&[("maxrcpt", "5000\n")]);
    let before = services(&instance);
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO c", "250").unwrap();
    smtp.must("MAIL FROM:<a@b.test>", "250").unwrap();
    let mut replies = BTreeMap::new();
    for _ in 0..COUNT / 1000 {
        smtp.0.raw("RCPT TO:<bob@example.test>\r\n".repeat(1000).as_bytes()).unwrap();
        for _ in 0..1000 {
            let reply = smtp.reply().unwrap();
            *replies.entry(reply.get(..9).unwrap_or_default().to_owned()).or_insert(0) += 1;
        }
    }
    assert_eq!(replies, [("250 2.1.5".to_owned(), 5000), ("452 4.5.3".to_owned(), COUNT - 5000)].into());
    smtp.must("RSET", "250").unwrap();
    // Guessing names is over soon.
    smtp.must("MAIL FROM:<a@b.test>", "250").unwrap();
    let mut refused = 0;
    loop {
        match smtp.ask(&format!("RCPT TO:<guess{refused}@example.test>")).unwrap() {
            reply if reply.starts_with("550 5.1.1") => refused += 1,
            reply => break assert!(reply.starts_with("421 4.7.0"), "{reply}"),
        }
    }
    assert!(refused <= 100, "{refused}");
    assert_eq!(queued(&instance), 0);
    assert_eq!(services(&instance), before);
    works_and_nothing_else_came(&instance);
}

#[test]
fn a_client_may_leave_in_every_state_of_smtp() {
    let instance = instance(&[]);
    let before = services(&instance);
    let envelope = "EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<bob@example.test>\r\n";
    let body = "Subject: x\r\n\r\n".to_owned() + &"in part\r\n".repeat(20_000);
    let states: Vec<String> =
        ["", "EH", "EHLO c\r\n", "EHLO c\r\nMAIL FROM:<a@b.test>\r\n", "EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<bo"]
            .map(str::to_owned)
            .into_iter()
            .chain(
                [
                    "",
                    "DA",
                    "DATA\r\n",
                    "DATA\r\nSubject: x\r\n\r\ntext",
                    "DATA\r\ntext\r\n.",
                    "DATA\r\ntext\r\n.\r",
                    "DATA\r\ntext\n.\n",
                    "BDAT 10\r\n",
                    "BDAT 10\r\n12345",
                    "BDAT 10\r\n1234567890",
                    "BDAT 10\r\n1234567890BDAT 10 LAST\r\n123456789",
                    "BDAT 10\r\n1234567890BDAT 10 LA",
                    "BDAT 10\r\n1234567890RSET\r\n",
                ]
                .map(|more| format!("{envelope}{more}")),
            )
            .chain([format!("{envelope}DATA\r\n{body}"), format!("{envelope}BDAT 1000000 LAST\r\n{body}")])
            .collect();
    for state in &states {
        // Once with all replies read, which ends with FIN, and once with none, which ends with RST.
        for reads in [true, false] {
            let mut stream = TcpStream::connect(("127.0.0.1", instance.port(25))).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(state.as_bytes()).unwrap();
            if reads {
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                stream.read_to_end(&mut Vec::new()).unwrap();
            }
        }
    }
    let sessions = states.len() * 2;
    wait_for("the sessions to end", || {
        (instance.log().matches(": session service=smtp remote=127.0.0.1 ").count() == sessions).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", instance.log()));
    assert_eq!(queued(&instance), 0);
    assert!(!instance.log().contains("new msg"), "{}", instance.log());
    assert_eq!(services(&instance), before);
    works_and_nothing_else_came(&instance);
}

#[test]
fn a_client_may_leave_in_every_state_of_pop3() {
    let instance = instance(&[("concurrencypop3ip", "3\n")]);
    let large = format!("Subject: large\n\n{}", "a line of the letter\n".repeat(100_000));
    instance.smtp().unwrap().send("a@b.test", &[BOB], &large).unwrap();
    instance.wait_mail(BOB, 1).unwrap();
    let before = services(&instance);
    let login = "USER bob@example.test\r\nPASS bob-password\r\n";
    let states: Vec<String> = ["", "US", "USER bob@example.test\r\n", "USER bob@example.test\r\nPASS bob-"]
        .map(str::to_owned)
        .into_iter()
        .chain(
            ["", "RETR 1\r\n", "DELE 1\r\n", "DELE 1\r\nQUI", "DELE 1\r\nTOP 1 50000\r\n"].map(|more| format!("{login}{more}")),
        )
        .collect();
    for state in states {
        for reads in [0, 10, 200] {
            let mut stream = wait_for("a place for a session", || {
                let mut stream = TcpStream::connect(("127.0.0.1", instance.port(110))).ok()?;
                stream.set_read_timeout(Some(PATIENCE)).ok()?;
                let mut first = [0; 3];
                stream.read_exact(&mut first).ok()?;
                (&first == b"+OK").then_some(stream)
            })
            .unwrap();
            stream.write_all(state.as_bytes()).unwrap();
            let mut some = vec![0; reads];
            if state.contains("PASS bob-password") {
                let _ = stream.read(&mut some);
            }
        }
    }
    let mut pop3 = wait_for("a login", || instance.pop3(BOB).ok()).unwrap();
    assert_eq!(pop3.count().unwrap(), 1, "nothing is deleted without QUIT");
    assert!(pop3.message(1).unwrap().ends_with(&large));
    pop3.must("QUIT").unwrap();
    assert_eq!(services(&instance), before);
}

#[test]
fn garbage_on_a_socket_changes_nothing() {
    const SOCKETS: [&str; 9] = [
        "inject.sock",
        "roles/queue.sock",
        "roles/lspawn.sock",
        "roles/remote.sock",
        "roles/auth.sock",
        "roles/getpw.sock",
        "roles/resolve.sock",
        "admin/send.sock",
        "admin/auth.sock",
    ];
    let instance = instance(&[]);
    let before = services(&instance);
    let garbage = instance.dir().join("garbage");
    std::fs::copy(env!("CARGO_BIN_EXE_garbage"), &garbage).unwrap();
    // As whom: this user, and as root each role, and somebody.
    let mut callers = vec![("caller".to_owned(), None)];
    if is_root() {
        let ids = std::fs::read_to_string(instance.root.join("etc/qmail/ids")).unwrap();
        for line in ids.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split(' ').collect();
            callers.push((fields[0].to_owned(), Some((fields[1].parse().unwrap(), fields[2].parse().unwrap()))));
        }
        callers.push(("somebody".to_owned(), Some((65_534, 65_534))));
    }
    for socket in SOCKETS {
        for (name, ids) in &callers {
            let mut command = Command::new(&garbage);
            command.arg(instance.root.join("run/qmail")).args([socket, "150"]);
            if let Some((uid, gid)) = ids {
                command.uid(*uid).gid(*gid);
            }
            let code = command.status().unwrap().code().unwrap();
            let may_connect = match socket.split('/').next().unwrap() {
                "inject.sock" => true,
                "roles" => name != "somebody" && name != "alias" && name != "vmail",
                _ => name == "caller",
            };
            assert_eq!(code, i32::from(!may_connect), "{name} at {socket}");
            assert_eq!(services(&instance), before, "{name} at {socket}\n{}", instance.log());
        }
    }
    assert_eq!(queued(&instance), 0);
    assert!(!instance.log().contains("new msg"), "{}", instance.log());
    works_and_nothing_else_came(&instance);
    assert_eq!(services(&instance), before);
}

#[test]
fn a_log_that_nobody_reads_stops_no_mail() {
    const LOG_MAX: usize = 1 << 20;
    let mut instance = Instance::new().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    instance.start_with_log(writer.into()).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    // Each refusal is a line with the address: more than the pipe and qmail-start hold.
    let long = "x".repeat(800);
    let mut said = 0;
    while said < 2 * LOG_MAX {
        let mut smtp = instance.smtp().unwrap();
        smtp.must("MAIL FROM:<a@b.test>", "250").unwrap();
        for n in 0..90 {
            smtp.must(&format!("RCPT TO:<{long}{n}@example.test>"), "550 5.1.1").unwrap();
            said += long.len();
        }
    }
    for _ in 0..20 {
        instance.smtp().unwrap().send("a@b.test", &[BOB], LETTER).unwrap();
    }
    instance.wait_empty().unwrap();
    instance.wait_mail(BOB, 20).unwrap();
    // It was full indeed: once somebody reads, it says so.
    let drained = std::thread::spawn(move || {
        let mut log = Vec::new();
        let _ = reader.read_to_end(&mut log);
        log
    });
    // Its next lines.
    instance.smtp().unwrap().send("a@b.test", &[BOB], LETTER).unwrap();
    instance.wait_mail(BOB, 21).unwrap();
    instance.stop().unwrap();
    let log = String::from_utf8(drained.join().unwrap()).unwrap();
    assert!(log.contains(" log lines dropped: nobody read the log\n"), "{} bytes of log", log.len());
}

/// Opens so many connections at once; how many got as far as a greeting.
fn greeted(port: u16, count: usize, greeting: &str) -> (usize, Vec<TcpStream>) {
    let streams: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let first = |mut stream: &TcpStream| {
        let mut line = [0; 4];
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut line).is_ok() && line.starts_with(greeting.as_bytes())
    };
    (streams.iter().filter(|stream| first(stream)).count(), streams)
}

#[test]
fn three_hundred_connections_at_the_limit() {
    let workers = std::thread::available_parallelism().unwrap().get().min(8);
    let instance = instance(&[("concurrencyincoming", "40\n"), ("concurrencypop3ip", "10\n")]);
    let before = services(&instance);
    let (smtp, smtp_streams) = greeted(instance.port(25), 300, "220 ");
    assert_eq!(smtp, 40, "SMTP sessions");
    let (pop3, pop3_streams) = greeted(instance.port(110), 300, "+OK ");
    assert!((1..=10 * workers).contains(&pop3), "{pop3} POP3 sessions");
    assert_eq!(services(&instance), before);
    drop((smtp_streams, pop3_streams));
    wait_for("a session", || Smtp::open(instance.port(25)).ok().map(drop)).unwrap();
    wait_for("a login", || instance.pop3(BOB).ok().map(drop)).unwrap();
    wait_for("room for the next letter", || instance.smtp().and_then(|smtp| smtp.send("a@b.test", &[BOB], LETTER)).ok()).unwrap();
    instance.wait_mail(BOB, 1).unwrap();
}

#[test]
fn the_last_place_is_given_away_whichever_worker_has_it() {
    let instance = Instance::started(&[("concurrencyincoming", "5\n")]).unwrap();
    for (round, pause_ms) in [0, 0, 70, 70].into_iter().enumerate() {
        // A worker that looks for connections nobody has room for must not find one that somebody has.
        let next = |_| {
            std::thread::sleep(std::time::Duration::from_millis(pause_ms));
            greeted(instance.port(25), 1, "220 ")
        };
        let all: Vec<(usize, Vec<TcpStream>)> = (0..7).map(next).collect();
        assert_eq!(all.iter().map(|(greeted, _)| *greeted).collect::<Vec<_>>(), [1, 1, 1, 1, 1, 0, 0], "{pause_ms} ms");
        drop(all);
        let ended = || instance.log().matches(": session service=smtp remote=127.0.0.1 ").count();
        wait_for("all places", || (ended() == (round + 1) * 5).then_some(())).unwrap();
    }
}

/// What somebody might take for the end of the text: all short strings, and longer ones that were once a hole somewhere.
fn endings() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = vec![Vec::new()];
    for _ in 0..3 {
        let longer = all.iter().flat_map(|front| b"\r\n.x".map(|byte| [&front[..], &[byte]].concat()));
        all = all.iter().cloned().chain(longer).collect();
        all.sort();
        all.dedup();
    }
    let known: [&[u8]; 8] =
        [b"\n.\r\n", b"\r\n.\n", b"\r.\r\n", b"\r\n.\r", b"\r\r\n.\r\r\n", b"\n\n.\n\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n"];
    all.extend(known.map(<[u8]>::to_vec));
    all
}

/// A text that holds a second session behind `ending`, as it goes over the wire by DATA.
fn smuggling(number: usize, ending: &[u8]) -> Vec<u8> {
    let front = format!("Subject: s\r\nX-Number: {number}\r\n\r\nbefore");
    let second = b"\r\nMAIL FROM:<evil@b.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n";
    [front.as_bytes(), ending, second].concat()
}

/// What is stored of a text: a CR, an LF or both end a line. By DATA a dot goes from the front of each line.
fn stored(wire: &[u8], by_data: bool) -> String {
    let text = String::from_utf8(wire.to_vec()).unwrap().replace("\r\n", "\n").replace('\r', "\n");
    text.lines()
        .map(|line| if by_data { line.strip_prefix('.').unwrap_or(line) } else { line })
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Sends it; the reply to the message. Whatever is smuggled would be answered before QUIT is.
fn smuggle(instance: &Instance, wire: &[u8], by_data: bool) -> String {
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO c", "250").unwrap();
    smtp.must("MAIL FROM:<a@b.test>", "250").unwrap();
    smtp.must("RCPT TO:<bob@example.test>", "250").unwrap();
    smtp.must("RCPT TO:<x@elsewhere.test>", "250").unwrap();
    if by_data {
        smtp.must("DATA", "354").unwrap();
        smtp.0.raw(&[wire, b".\r\nQUIT\r\n"].concat()).unwrap();
    } else {
        let command = format!("BDAT {} LAST\r\n", wire.len());
        smtp.0.raw(&[command.as_bytes(), wire, b"QUIT\r\n"].concat()).unwrap();
    }
    let reply = smtp.reply().unwrap();
    let next = smtp.reply().unwrap();
    assert!(next.starts_with("221 "), "{} (by DATA: {by_data}): {reply} and then {next}", wire.escape_ascii());
    reply
}

#[test]
fn nothing_is_smuggled_into_or_out_of_the_system() {
    let peer = Peer::willing().unwrap();
    let route = peer.route("elsewhere.test");
    let control = [("relayclients", "127.0.0.0/8\n"), ("smtproutes", &route[..])];
    let rejecting = instance(&control);
    let normalizing = instance(&[control[0], control[1], ("barelf", "normalize\n")]);
    let (mut clean, mut expected) = (0, Vec::new());
    for (number, ending) in endings().into_iter().enumerate() {
        for by_data in [true, false] {
            let number = number * 2 + usize::from(by_data);
            let wire = smuggling(number, &ending);
            if by_data && wire.windows(5).any(|five| five == b"\r\n.\r\n") {
                continue; // It is the end.
            }
            let bare = String::from_utf8(wire.clone()).unwrap().replace("\r\n", "").contains(['\r', '\n']);
            let reply = smuggle(&rejecting, &wire, by_data);
            assert!(reply.starts_with(if bare { "550 5.6.11 " } else { "250 " }), "{}: {reply}", wire.escape_ascii());
            clean += usize::from(!bare);
            let reply = smuggle(&normalizing, &wire, by_data);
            assert!(reply.starts_with("250 "), "{}: {reply}", wire.escape_ascii());
            expected.push(stored(&wire, by_data));
        }
    }
    rejecting.wait_empty().unwrap();
    rejecting.wait_mail(BOB, clean).unwrap();
    normalizing.wait_empty().unwrap();
    let here = normalizing.wait_mail(BOB, expected.len()).unwrap();
    let unstuffed =
        |body: &str| body.split("\r\n").map(|line| line.strip_prefix('.').unwrap_or(line)).collect::<Vec<_>>().join("\n");
    let there = peer.letters();
    assert_eq!(there.len(), clean + expected.len());
    let there: Vec<String> = there.iter().map(|letter| unstuffed(std::str::from_utf8(&letter.body).unwrap())).collect();
    assert!(there.iter().all(|letter| !letter.contains('\r')), "a bare CR went out");
    for text in expected {
        for letters in [&here, &there] {
            assert!(letters.iter().any(|letter| letter.ends_with(&format!("\n{text}"))), "not delivered as it is: {text:?}");
        }
    }
}
