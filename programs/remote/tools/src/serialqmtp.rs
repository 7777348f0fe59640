//! serialqmtp: `serialqmtp PREFIX` sends messages over the QMTP connection on descriptors 6 and 7 (cr.yp.to/proto/qmtp.txt).
//!
//! File names come on standard input, results go to standard output. PREFIX is taken off the recipients, and messages without it are
//! passed over. Names are sent ahead of the answers; a writer of its own keeps both sides from waiting for each other.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::mpsc;

use qmtp::answer::{Answer, Answers, Letter};
use tool::{End, Name, input};
use wire::netstring::encode;

use crate::connection::{Connection, next_name, report};
use crate::message_file::MessageFile;

const ME: Name = Name("serialqmtp");

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
        let Answer { letter, text } = answer(connection)?;
        let letter = match letter {
            Letter::Accepted => b'K',
            Letter::Temporary => b'Z',
            Letter::Permanent => b'D',
        };
        report(ME, &name, letter, server.as_deref(), &text)?;
    }
    writer.join().unwrap_or_else(|_| Err(ME.temporary("child crashed")))?;
    Ok(0)
}

fn send_all(prefix: &[u8], to: File, sent: &mpsc::SyncSender<Vec<u8>>) -> Result<(), End> {
    let unreadable = |error: &io::Error| ME.system("unable to read file", error);
    let mut names = io::stdin().lock();
    let mut out = io::BufWriter::with_capacity(32 * 1024, to);
    while let Some(name) = next_name(ME, &mut names)? {
        let file = File::open(input::path(&name)).map_err(|error| ME.system("unable to open file", &error))?;
        let len = file.metadata().map_err(|error| unreadable(&error))?.len();
        let Some(mut message) = MessageFile::read(file).map_err(|error| unreadable(&error))? else { continue };
        let Some(recipient) = message.recipient.strip_prefix(prefix).map(<[u8]>::to_vec) else { continue };
        let Some(len) = len.checked_sub(message.head_len) else { continue };
        // Said before it is sent: then nobody waits for an answer whose name is not known.
        if sent.send(name).is_err() {
            return Ok(());
        }
        send(&mut message, &recipient, len, &mut out)?;
    }
    Ok(())
}

/// One message, the `len` bytes behind its first two lines.
fn send(message: &mut MessageFile, recipient: &[u8], len: u64, out: &mut impl io::Write) -> Result<(), End> {
    let unwritable = |_: io::Error| ME.temporary("unable to write to network");
    let (mut list, mut envelope) = (Vec::new(), b",".to_vec());
    encode(recipient, &mut list);
    encode(&message.sender, &mut envelope);
    encode(&list, &mut envelope);
    // Its lines end in LF, which the first byte of the text says.
    out.write_all(format!("{}:\n", len.saturating_add(1)).as_bytes()).map_err(unwritable)?;
    let copied = io::copy(&mut message.rest.by_ref().take(len), out).map_err(unwritable)?;
    if copied != len {
        return Err(ME.temporary("unable to read file"));
    }
    out.write_all(&envelope).and_then(|()| out.flush()).map_err(unwritable)
}

/// One answer; not a byte behind it is taken.
fn answer(connection: &mut Connection) -> Result<Answer, End> {
    let mut answers = Answers::default();
    loop {
        let byte = connection.byte()?;
        match answers.next(&mut &[byte][..]) {
            Ok(None) => {}
            Ok(Some(answer)) => return Ok(answer),
            Err(_) => return Err(ME.temporary("remote protocol violation")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn answers_are_netstrings_and_nothing_else() {
        for (wire, expected) in [
            (&b"3:Kok,4:Dno!,"[..], Some((Letter::Accepted, &b"ok"[..]))),
            (b"1:Z,", Some((Letter::Temporary, b""))),
            (b"4:Dno!,", Some((Letter::Permanent, b"no!"))),
            (b"03:Kok,", None),
            (b":Kok,", None),
            (b"3:kok,", None),
            (b"3:Kokx", None),
            (b"0:,", None),
            (b"99999999999999999999:K", None),
            (b"220 hello\r\n", None),
            (b"3:Ko", None),
        ] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(wire).unwrap();
            drop(theirs);
            let to = File::options().write(true).open("/dev/null").unwrap();
            let mut connection = Connection::new(ME, (Some(ours.into()), Some(to.into())), 10).unwrap();
            let found = answer(&mut connection).ok().map(|answer| (answer.letter, answer.text));
            assert_eq!(found, expected.map(|(letter, text)| (letter, text.to_vec())), "{}", wire.escape_ascii());
        }
    }

    #[test]
    fn a_message_goes_out_as_it_lies_in_the_maildir() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("message");
        std::fs::write(&file, "Return-Path: <s@x>\nDelivered-To: pre-a@b\nSubject: x\n\ntext\n").unwrap();
        let mut message = MessageFile::read(File::open(&file).unwrap()).unwrap().unwrap();
        let len = std::fs::metadata(&file).unwrap().len() - message.head_len;
        let mut out = Vec::new();
        send(&mut message, b"a@b", len, &mut out).unwrap();
        assert_eq!(out, b"18:\nSubject: x\n\ntext\n,3:s@x,6:3:a@b,,");
    }
}
