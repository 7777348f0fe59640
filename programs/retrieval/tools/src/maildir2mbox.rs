//! maildir2mbox(1): moves the messages of the Maildir in MAILDIR into the mbox in MAIL, by way of MAILTMP in the same file system.
//!
//! The new mbox is written whole and synced, takes the place of the old one in one step, and only then do the messages go: a crash
//! may leave a message in both, never in none. elq(1), pinq(1), qail(1) do this and then run elm, pine, Mail.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use dotqmail::FromQuoter;
use maildir::{Entry, Mailbox};
use tool::{End, Name, TEMPORARY, child, input};
use wire::civil::Civil;

const ME: Name = Name("maildir2mbox");
/// As much of a message's first line is looked at for the sender, in bytes.
const FIRST_LINE_LEN_MAX: usize = 4096;

/// The program.
///
/// # Errors
/// The mbox is as it was; temporary.
pub fn main(_: &[OsString]) -> Result<u8, End> {
    move_all()?;
    Ok(0)
}

/// `elq [ARG…]`
///
/// # Errors
/// As [`main`], or elm cannot be run.
pub fn elq(args: &[OsString]) -> Result<u8, End> {
    read_with("elm", args)
}

/// `pinq [ARG…]`
///
/// # Errors
/// As [`main`], or pine cannot be run.
pub fn pinq(args: &[OsString]) -> Result<u8, End> {
    read_with("pine", args)
}

/// `qail [ARG…]`
///
/// # Errors
/// As [`main`], or Mail cannot be run.
pub fn qail(args: &[OsString]) -> Result<u8, End> {
    read_with("Mail", args)
}

fn read_with(reader: &str, args: &[OsString]) -> Result<u8, End> {
    move_all()?;
    Err(child::become_program(ME, TEMPORARY, &reader.into(), args))
}

/// The mbox and what becomes it.
struct Names {
    mbox: Vec<u8>,
    new: Vec<u8>,
}

impl Names {
    fn reading(&self, error: &io::Error) -> End {
        ME.system([b"unable to read ", &self.mbox[..]].concat(), error)
    }

    fn writing(&self, error: &io::Error) -> End {
        ME.system([b"unable to write to ", &self.new[..]].concat(), error)
    }
}

fn move_all() -> Result<(), End> {
    let variable = |name: &str| input::variable(name).ok_or_else(|| ME.temporary(format!("{name} not set")));
    let names = Names { mbox: variable("MAIL")?, new: variable("MAILTMP")? };
    let mailbox = crate::open(ME)?;
    let entries = mailbox.list().map_err(|error| ME.temporary(error.to_string()))?;
    if entries.is_empty() {
        return Ok(());
    }
    let _locked = lock(&names)?;
    write(&names, &mailbox, &entries)?;
    let moving = |error: io::Error| ME.system([b"unable to move ", &names.new[..], b" to ", &names.mbox].concat(), &error);
    std::fs::rename(input::path(&names.new), input::path(&names.mbox)).map_err(moving)?;
    let dir = input::path(&names.mbox).parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(dir.unwrap_or_else(|| std::path::Path::new("."))).and_then(|dir| dir.sync_all()).map_err(moving)?;
    for entry in &entries {
        if let Err(error) = mailbox.delete(entry) {
            let text = [&shown(entry)[..], b" will be delivered twice; unable to unlink: "].concat();
            ME.note("warning", [&text[..], sys::errno::text(&error).as_bytes()].concat());
        }
    }
    Ok(())
}

/// How a message is called in texts.
fn shown(entry: &Entry) -> Vec<u8> {
    let (is_new, name) = entry.place();
    [if is_new { &b"$MAILDIR/new/"[..] } else { b"$MAILDIR/cur/" }, name].concat()
}

/// The mbox, locked: that which stands there now, not one that was replaced while this waited.
fn lock(names: &Names) -> Result<File, End> {
    let failed = |error: io::Error| ME.system([b"unable to lock ", &names.mbox[..]].concat(), &error);
    loop {
        let file = File::options().append(true).create(true).mode(0o600).open(input::path(&names.mbox)).map_err(failed)?;
        let waiting = || rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive);
        rustix::io::retry_on_intr(waiting).map_err(|errno| failed(errno.into()))?;
        let (held, there) = (file.metadata().map_err(failed)?, std::fs::metadata(input::path(&names.mbox)));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
            return Ok(file);
        }
    }
}

/// The old mbox and the messages, synced.
fn write(names: &Names, mailbox: &Mailbox, entries: &[Entry]) -> Result<(), End> {
    let mut old = File::open(input::path(&names.mbox)).map_err(|error| names.reading(&error))?;
    let new = File::options().write(true).create(true).truncate(true).mode(0o600).open(input::path(&names.new));
    let new = new.map_err(|error| ME.system([b"unable to create ", &names.new[..]].concat(), &error))?;
    let mut out = BufWriter::with_capacity(64 * 1024, new);
    let mut last = b'\n';
    let copied = input::copy(&mut old, |piece| {
        last = piece.last().copied().unwrap_or(last);
        out.write_all(piece)
    });
    copied.map_err(|error| match error {
        Ok(error) => names.reading(&error),
        Err(error) => names.writing(&error),
    })?;
    // A line that was cut off would swallow the `From ` line of the next letter.
    if last != b'\n' {
        out.write_all(b"\n").map_err(|error| names.writing(&error))?;
    }
    entries.iter().try_for_each(|entry| append(names, mailbox, entry, &mut out))?;
    let new = out.into_inner().map_err(|error| names.writing(error.error()))?;
    new.sync_all().map_err(|error| names.writing(&error))
}

fn append(names: &Names, mailbox: &Mailbox, entry: &Entry, out: &mut impl io::Write) -> Result<(), End> {
    let failed = |error: &io::Error| ME.system([b"unable to read ", &shown(entry)[..]].concat(), error);
    let mut message = mailbox.open_message(entry).map_err(|error| failed(&error))?;
    let arrived_s = message.metadata().map(|held| u64::try_from(held.mtime()).unwrap_or(0)).map_err(|error| failed(&error))?;
    let mut quoter = FromQuoter::default();
    let mut quoted = Vec::new();
    let mut has_begun = false;
    let copied = input::copy(&mut message, |piece| {
        if !std::mem::replace(&mut has_begun, true) {
            quoted.extend(from_line(piece, arrived_s));
        }
        quoter.push(piece, &mut quoted);
        out.write_all(&quoted)?;
        quoted.clear();
        Ok(())
    });
    copied.map_err(|error| match error {
        Ok(error) => failed(&error),
        Err(error) => names.writing(&error),
    })?;
    if !has_begun {
        quoted.extend(from_line(b"", arrived_s));
    }
    quoter.finish(&mut quoted);
    out.write_all(&quoted).map_err(|error| names.writing(&error))
}

/// `From SENDER DATE` with its LF, by the Return-Path line that qmail-local put first.
fn from_line(message: &[u8], arrived_s: u64) -> Vec<u8> {
    let first = message.split(|b| *b == b'\n').next().unwrap_or_default();
    let sender = first.get(..first.len().min(FIRST_LINE_LEN_MAX)).and_then(|line| line.strip_prefix(b"Return-Path: <"));
    let sender = match sender.map(|rest| rest.strip_suffix(b">").unwrap_or(rest)) {
        None => b"XXX".to_vec(),
        Some(b"") => b"MAILER-DAEMON".to_vec(),
        Some(sender) => sender.iter().map(|b| if matches!(b, b' ' | b'\t' | b'\r') { b'-' } else { *b }).collect(),
    };
    [b"From ", &sender[..], b" ", Civil::from_unix(arrived_s).mbox().as_bytes(), b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_comes_from_the_first_line() {
        for (message, sender) in [
            ("Return-Path: <a@b>\nx", "a@b"),
            ("Return-Path: <>\nx", "MAILER-DAEMON"),
            ("Return-Path: <\"a b\"@c>\nx", "\"a-b\"@c"),
            ("Subject: x\n", "XXX"),
            ("", "XXX"),
        ] {
            assert_eq!(from_line(message.as_bytes(), 0), format!("From {sender} Thu Jan 01 00:00:00 1970\n").as_bytes());
        }
    }
}
