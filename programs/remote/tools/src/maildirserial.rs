//! maildirserial: `maildirserial [-b] [-t LIFETIME] DIR PREFIX CLIENT [ARG…]` has CLIENT send the messages of a Maildir whose recipient
//! begins with PREFIX; maildirsmtp and maildirqmtp run it with serialsmtp and serialqmtp behind tcpclient.
//!
//! CLIENT reads file names, each with a NUL behind it, and answers `NAME NUL LETTER TEXT LF` for those it knows something of: K (it is
//! removed), Z (it stays), D (it stays, or with -b goes back to its sender and is removed). With -t, what is older than LIFETIME seconds
//! goes back instead of staying. CLIENT runs again until nothing is left to try, or until it has said nothing three times.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

use control::Root;
use maildir::{Bounds, Mailbox};
use tool::options::{self, Letters, Opt};
use tool::queue::Queue;
use tool::{End, Name, PERMANENT, TEMPORARY, child, input};
use wire::civil::Civil;
use wire::quote;

use crate::message_file::MessageFile;

const ME: Name = Name("maildirserial");
/// Runs of the client without a word from it, after which it is given up.
const SILENT_RUNS_MAX: u32 = 3;
/// Longest answer, in bytes.
const ANSWER_LEN_MAX: u64 = 8192;
/// What maildirsmtp and maildirqmtp give a message: two weeks.
const LIFETIME_S: &str = "1209600";

/// `maildirsmtp DIR PREFIX HOST HELOHOST`
///
/// # Errors
/// As [`main`], or maildirserial cannot be run.
pub fn smtp(args: &[OsString]) -> Result<u8, End> {
    let me = Name("maildirsmtp");
    let [dir, prefix, host, helo, ..] = args else { return Err(me.usage("dir prefix host helohost")) };
    become_serial(me, [dir, prefix, host], "25", ("serialsmtp", &[prefix, helo]))
}

/// `maildirqmtp DIR PREFIX HOST`
///
/// # Errors
/// As [`main`], or maildirserial cannot be run.
pub fn qmtp(args: &[OsString]) -> Result<u8, End> {
    let me = Name("maildirqmtp");
    let [dir, prefix, host, ..] = args else { return Err(me.usage("dir prefix host")) };
    become_serial(me, [dir, prefix, host], "209", ("serialqmtp", &[prefix]))
}

fn become_serial(
    me: Name,
    [dir, prefix, host]: [&OsString; 3],
    port: &str,
    (client, client_args): (&str, &[&OsString]),
) -> Result<u8, End> {
    let mut args: Vec<OsString> = ["-b", "-t", LIFETIME_S, "--"].map(OsString::from).to_vec();
    args.extend([dir.clone(), prefix.clone()]);
    args.extend(["tcpclient", "-RHl0", "--"].map(OsString::from));
    args.extend([host.clone(), port.into(), child::of_release(client)]);
    args.extend(client_args.iter().map(|arg| (*arg).clone()));
    Err(child::become_program(me, TEMPORARY, &child::of_release("maildirserial"), &args))
}

struct Serial {
    mailbox: Mailbox,
    prefix: Vec<u8>,
    client: Vec<OsString>,
    bounces: bool,
    lifetime_s: Option<u64>,
    from: Bouncer,
    /// Files that are not tried again by this run.
    done: BTreeSet<Vec<u8>>,
}

/// The program: 0 if nothing is left, 111 if something is.
///
/// # Errors
/// The Maildir cannot be read, or the client failed.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    let usage = || ME.usage("[ -b ] [ -t lifetime ] dir prefix client [ arg ... ]");
    let letters = Letters { flags: b"b", with_value: b"t", with_glued_value: b"" };
    let (options, rest) = options::known(ME, args, letters).ok_or_else(usage)?;
    let [dir, prefix, client @ ..] = rest.as_slice() else { return Err(usage()) };
    if client.is_empty() {
        return Err(usage());
    }
    let from = Bouncer::read()?;
    std::env::set_current_dir(input::path(dir))
        .map_err(|error| ME.system([b"unable to chdir to ", &dir[..]].concat(), &error))?;
    let here = File::open(".").map_err(|error| ME.system("unable to open current directory", &error))?;
    let mailbox = Mailbox::open(here.as_fd(), b".", Bounds::Anywhere).map_err(|error| unscannable(&error))?;
    let lifetime_s =
        options.iter().rev().find_map(|option| if let Opt::Value(b't', value) = option { Some(seconds(value)) } else { None });
    let mut serial = Serial {
        mailbox,
        prefix: prefix.clone(),
        client: client.iter().cloned().map(OsString::from_vec).collect(),
        bounces: options.contains(&Opt::Flag(b'b')),
        lifetime_s,
        from,
        done: BTreeSet::new(),
    };
    let mut silent_runs = 0u32;
    loop {
        match serial.round()? {
            None => return Ok(if serial.done.is_empty() { 0 } else { TEMPORARY }),
            Some(0) => silent_runs = silent_runs.saturating_add(1),
            Some(_) => silent_runs = 0,
        }
        if silent_runs >= SILENT_RUNS_MAX {
            return Err(ME.temporary("making no progress, giving up"));
        }
    }
}

fn unscannable(error: &maildir::Error) -> End {
    match error.io() {
        Some(io) => ME.system("unable to scan $MAILDIR/new", io),
        None => ME.temporary(error.to_string()),
    }
}

/// Leading digits.
fn seconds(text: &[u8]) -> u64 {
    let digits = text.iter().take_while(|b| b.is_ascii_digit());
    digits.fold(0, |sum: u64, digit| sum.saturating_mul(10).saturating_add(u64::from(digit.saturating_sub(b'0'))))
}

impl Serial {
    /// One run of the client: how many messages it told of; `None` if there was nothing to try.
    fn round(&mut self) -> Result<Option<u32>, End> {
        self.mailbox.sweep(sys::clock::unix_s());
        let files = self.files()?;
        let Some((program, args)) = self.client.split_first().filter(|_| !files.is_empty()) else { return Ok(None) };
        let started = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut client = started.map_err(|error| ME.system([b"unable to run ", program.as_bytes()].concat(), &error))?;
        let (stdin, stdout) = (client.stdin.take(), client.stdout.take());
        let known: BTreeSet<Vec<u8>> = files.iter().cloned().collect();
        // A thread of its own: the client may answer before it has read all names. That it reads no more is its own affair.
        let writer = std::thread::spawn(move || {
            let names: Vec<u8> = files.iter().flat_map(|name| name.iter().copied().chain([0])).collect();
            let _ = stdin.map(|mut stdin| stdin.write_all(&names));
        });
        let mut answers = 0u32;
        if let Some(stdout) = stdout {
            let mut stdout = io::BufReader::new(stdout);
            while let Some(Answer { name, letter, text }) = answer(&mut stdout)? {
                // A file that it was not given is none of its business.
                if known.contains(&name) && !self.done.contains(&name) {
                    answers = answers.saturating_add(1);
                    self.take(&name, letter, &text)?;
                }
            }
        }
        let status = client.wait().map_err(|error| ME.system("unable to get client status", &error))?;
        let _ = writer.join();
        match child::code(ME, status).map_err(|_| ME.temporary("client crashed"))? {
            PERMANENT => Err(End::silent(PERMANENT)),
            _ => Ok(Some(answers)),
        }
    }

    fn files(&self) -> Result<Vec<Vec<u8>>, End> {
        let entries = self.mailbox.list().map_err(|error| unscannable(&error))?;
        let names = entries.iter().map(|entry| {
            let (is_new, name) = entry.place();
            [if is_new { &b"new/"[..] } else { b"cur/" }, name].concat()
        });
        Ok(names.filter(|name| !self.done.contains(name) && self.is_wanted(name)).collect())
    }

    fn is_wanted(&self, name: &[u8]) -> bool {
        if self.prefix.is_empty() {
            return true;
        }
        match File::open(input::path(name)).and_then(MessageFile::read) {
            Ok(message) => message.is_some_and(|message| message.recipient.starts_with(&self.prefix)),
            Err(error) => {
                warn(&[b"unable to read ", name, b": ", sys::errno::text(&error).as_bytes()]);
                false
            }
        }
    }

    fn take(&mut self, name: &[u8], letter: u8, text: &[u8]) -> Result<(), End> {
        if letter == b'K' {
            info(&[name, b" succeeded: ", text]);
            self.remove(name, b"message will be delivered twice! unable to unlink ");
            return Ok(());
        }
        let is_too_old = letter != b'D' && self.is_too_old(name);
        if self.bounces && (letter == b'D' || is_too_old) {
            info(&[name, b" bounced: ", text]);
            if self.bounce(name, text, is_too_old) {
                self.remove(name, b"message has been bounced but not removed! unable to unlink ");
            } else {
                self.done.insert(name.to_vec());
            }
            return Ok(());
        }
        info(&[name, if letter == b'D' { b" failed: " } else { b" failed temporarily: " }, text]);
        self.done.insert(name.to_vec());
        Ok(())
    }

    fn remove(&mut self, name: &[u8], otherwise: &[u8]) {
        if let Err(error) = std::fs::remove_file(input::path(name)) {
            warn(&[otherwise, name, b": ", sys::errno::text(&error).as_bytes()]);
            self.done.insert(name.to_vec());
        }
    }

    fn is_too_old(&self, name: &[u8]) -> bool {
        let Some(lifetime_s) = self.lifetime_s else { return false };
        let Ok(held) = std::fs::metadata(input::path(name)) else { return false };
        let arrived_s = u64::try_from(held.mtime()).unwrap_or(u64::MAX);
        sys::clock::unix_s() > arrived_s.saturating_add(lifetime_s)
    }

    /// Sends it back; `false`, and a line on standard error, if it must stay.
    fn bounce(&self, name: &[u8], why: &[u8], is_too_old: bool) -> bool {
        let failed = |what: &[u8]| {
            warn(&[b"unable to bounce ", name, b": ", what]);
            false
        };
        let message = match File::open(input::path(name)).and_then(MessageFile::read) {
            Err(error) => return failed(sys::errno::text(&error).as_bytes()),
            Ok(None) => return failed(b"bad file format"),
            Ok(Some(message)) => message,
        };
        if message.sender == b"#@[]" {
            info(&[b"discarding ", name, b": triple bounce"]);
            return true;
        }
        match self.from.send(message, &self.prefix, why, is_too_old) {
            Ok(qp) => {
                info(&[b"returned ", name, b": qp ", qp.to_string().as_bytes()]);
                true
            }
            Err(end) => failed(&[b"qq failed: ", end.text.strip_prefix(b"maildirserial: fatal: ").unwrap_or(&end.text)].concat()),
        }
    }
}

fn info(parts: &[&[u8]]) {
    ME.note("info", parts.concat());
}

fn warn(parts: &[&[u8]]) {
    ME.note("warning", parts.concat());
}

/// What a client says of a file.
struct Answer {
    name: Vec<u8>,
    letter: u8,
    text: Vec<u8>,
}

/// `NAME NUL LETTER TEXT LF`; `None` at the end, or where an answer is cut short.
fn answer(from: &mut impl io::BufRead) -> Result<Option<Answer>, End> {
    let failed = |error: &io::Error| ME.system("unable to read from client", error);
    let (mut name, mut text) = (Vec::new(), Vec::new());
    from.by_ref().take(ANSWER_LEN_MAX).read_until(0, &mut name).map_err(|error| failed(&error))?;
    from.by_ref().take(ANSWER_LEN_MAX).read_until(b'\n', &mut text).map_err(|error| failed(&error))?;
    let is_whole = name.pop_if(|last| *last == 0).is_some() && text.pop_if(|last| *last == b'\n').is_some();
    let answer = text.split_first().map(|(letter, text)| Answer { name, letter: *letter, text: text.to_vec() });
    Ok(answer.filter(|_| is_whole))
}

/// Whom bounces come from, and whom bounces of bounces go to.
struct Bouncer {
    from: Vec<u8>,
    host: Vec<u8>,
    double_to: Vec<u8>,
}

impl Bouncer {
    fn read() -> Result<Self, End> {
        let failed = |error: control::ControlError| ME.temporary(format!("unable to read controls: {error}"));
        let root = Root::from_env().map_err(failed)?;
        let me = root.line("me").map_err(failed)?.unwrap_or_else(|| b"me".to_vec());
        let value = |name: &str, default: &[u8]| root.line(name).map_err(failed).map(|value| value.unwrap_or(default.to_vec()));
        let (to, to_host) = (value("doublebounceto", b"postmaster")?, value("doublebouncehost", &me)?);
        Ok(Self {
            from: value("bouncefrom", b"MAILER-DAEMON")?,
            host: value("bouncehost", &me)?,
            double_to: [&to[..], b"@", &to_host].concat(),
        })
    }

    /// A bounce in QSBMF (cr.yp.to/proto/qsbmf.txt).
    fn send(&self, mut message: MessageFile, prefix: &[u8], why: &[u8], is_too_old: bool) -> Result<u32, End> {
        let is_double = message.sender.is_empty();
        let to = if is_double { &self.double_to } else { &message.sender };
        let recipient = message.recipient.strip_prefix(prefix).unwrap_or(&message.recipient);
        let (told, break_line): (&[u8], &[u8]) = if is_double {
            (DOUBLE, b"--- Below this line is the original bounce.\n\n")
        } else {
            (SINGLE, b"--- Below this line is a copy of the message.\n\n")
        };
        let too_old: &[u8] = if is_too_old { b"\nThis message is too old. Giving up.\n\n" } else { b"\n\n" };
        let mut queue = Queue::open(ME)?;
        for part in [
            &b"Date: "[..],
            Civil::from_unix(sys::clock::unix_s()).rfc5322().as_bytes(),
            b"\nFrom: ",
            &quote::local_part(&self.from),
            b"@",
            &self.host,
            b"\nTo: ",
            &quote::address(to),
            b"\nSubject: failure notice\n\nHi. This is the maildirbounce program at ",
            &self.host,
            told,
            b"<",
            recipient,
            b">:\n",
            why,
            too_old,
            break_line,
            b"Return-Path: <",
            &quote::address(&message.sender),
            b">\n",
        ] {
            queue.put(part);
        }
        let mut piece = vec![0; 32 * 1024];
        loop {
            match message.rest.read(&mut piece).map_err(|error| ME.system("unable to read message", &error))? {
                0 => break,
                len => queue.put(piece.get(..len).unwrap_or_default()),
            }
        }
        queue.finish(if is_double { b"#@[]" } else { b"" }, &[to])
    }
}

const SINGLE: &[u8] = b".
I'm afraid I wasn't able to deliver your message to the following address.
This is a permanent error; I've given up. Sorry it didn't work out.

";
const DOUBLE: &[u8] = b".
I tried to deliver a bounce message to this address, but the bounce bounced!

";
