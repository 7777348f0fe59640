//! serialqmtp: `serialqmtp PREFIX` sends messages over the QMTP connection on descriptors 6 and 7 (cr.yp.to/proto/qmtp.txt).
//!
//! File names come on standard input, results go to standard output. PREFIX is taken off the recipients, and messages without it are
//! passed over. Names are sent ahead of the answers; a writer of its own keeps both sides from waiting for each other.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::mpsc;

use tool::{End, Name, input};

use crate::connection::{Connection, next_name, report};
use crate::message_file::MessageFile;

const ME: Name = Name("serialqmtp");
/// Longest answer, in bytes.
const ANSWER_LEN_MAX: u64 = 200_000_000;

/// The program.
///
/// # Errors
/// The connection or a file failed; results so far hold. Temporary.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    let fds = (sys::numbered::held(6), sys::numbered::held(7));
    let prefix = args.first().ok_or_else(|| ME.usage("prefix"))?.as_bytes().to_vec();
    let server = input::variable("TCPREMOTEIP");
    let to = fds.1.ok_or_else(|| ME.temporary("unable to write to network"))?;
    let spare = to.try_clone().map_err(|error| ME.system("unable to write to network", &error))?;
    let (sent, names) = mpsc::sync_channel(1);
    let writer = std::thread::spawn(move || send_all(&prefix, File::from(to), &sent));
    // An answer is read only for a message that was sent, so a connection that cannot be read does no harm before.
    let mut connection = None;
    let mut fds = Some((fds.0, Some(spare)));
    for name in names {
        if let Some(fds) = fds.take() {
            connection = Some(Connection::new(ME, fds, 3600)?);
        }
        let Some(connection) = &mut connection else { break };
        let (letter, text) = answer(connection)?;
        report(ME, &name, letter, server.as_deref(), &text)?;
    }
    writer.join().unwrap_or_else(|_| Err(ME.temporary("child crashed")))?;
    Ok(0)
}

fn send_all(prefix: &[u8], to: File, sent: &mpsc::SyncSender<Vec<u8>>) -> Result<(), End> {
    let unreadable = |error: &io::Error| ME.system("unable to read file", error);
    let mut names = io::BufReader::new(input::stdin().map_err(|error| ME.system("unable to read input", &error))?);
    let mut out = io::BufWriter::with_capacity(32 * 1024, to);
    while let Some(name) = next_name(ME, &mut names)? {
        let file = File::open(input::path(&name)).map_err(|error| ME.system("unable to open file", &error))?;
        let len = file.metadata().map_err(|error| unreadable(&error))?.len();
        let Some(mut message) = MessageFile::read(file).map_err(|error| unreadable(&error))? else { continue };
        let Some(recipient) = message.recipient.strip_prefix(prefix) else { continue };
        let Some(len) = len.checked_sub(message.head_len) else { continue };
        // Said before it is sent: then nobody waits for an answer whose name is not known.
        if sent.send(name).is_err() {
            return Ok(());
        }
        let envelope = [netstring(&message.sender), netstring(&netstring(recipient))].concat();
        let unwritable = |_: io::Error| ME.temporary("unable to write to network");
        writeln!(out, "{}:", len.saturating_add(1)).map_err(unwritable)?;
        let copied = io::copy(&mut message.rest.by_ref().take(len), &mut out).map_err(unwritable)?;
        if copied != len {
            return Err(ME.temporary("unable to read file"));
        }
        out.write_all(b",").and_then(|()| out.write_all(&envelope)).and_then(|()| out.flush()).map_err(unwritable)?;
    }
    Ok(())
}

fn netstring(bytes: &[u8]) -> Vec<u8> {
    [bytes.len().to_string().as_bytes(), b":", bytes, b","].concat()
}

/// One answer: its letter, and its text as far as it is told on.
fn answer(connection: &mut Connection) -> Result<(u8, Vec<u8>), End> {
    let violation = || ME.temporary("remote protocol violation");
    let mut len = 0u64;
    loop {
        match connection.byte()? {
            b':' => break,
            digit @ b'0'..=b'9' if len <= ANSWER_LEN_MAX => {
                len = len.saturating_mul(10).saturating_add(u64::from(digit.saturating_sub(b'0')));
            }
            _ => return Err(violation()),
        }
    }
    let text_len = len.checked_sub(1).ok_or_else(violation)?;
    let letter = connection.byte()?;
    if !matches!(letter, b'K' | b'Z' | b'D') {
        return Err(violation());
    }
    let mut text = Vec::new();
    for _ in 0..text_len {
        let byte = connection.byte()?;
        if text.len() < 2000 {
            text.push(byte);
        }
    }
    if connection.byte()? == b',' { Ok((letter, text)) } else { Err(violation()) }
}
