//! qmail-qread(8) and qmail-qstat(8).

use control::Root;
use ipc::admin::{QueueAnswer, QueueRequest, RecipientRow, Row};
use wire::civil::Civil;

use crate::Failure;
use crate::admin::Admin;

/// Messages asked for at a time.
const PAGE: u32 = 1000;

/// A line for each message, and one for each of its recipients.
///
/// # Errors
/// Not running, or what qmail-send says.
pub fn qread(root: &Root) -> Result<Vec<u8>, Failure> {
    let send = Admin::send(root)?;
    let mut out = Vec::new();
    let mut after = 0;
    loop {
        let mut found = Vec::new();
        for answer in send.queue(&QueueRequest::List { after, count: PAGE })? {
            if let QueueAnswer::Rows { rows, .. } = answer {
                found.extend(rows);
            }
        }
        let Some(last) = found.iter().map(|row| row.id).max().filter(|id| *id > after) else { return Ok(out) };
        for row in &found {
            message(&send, row, &mut out);
        }
        after = last;
    }
}

/// Nothing for a message that has ended meanwhile; of one that cannot be read there is a head alone.
fn message(send: &Admin, row: &Row, out: &mut Vec<u8>) {
    let Ok(answers) = send.queue(&QueueRequest::Show { id: row.id }) else {
        if row.unreadable {
            out.extend(head(row));
        }
        return;
    };
    let mut has_head = false;
    for answer in answers {
        let QueueAnswer::Message { row, recipients, .. } = answer else { continue };
        if !std::mem::replace(&mut has_head, true) {
            out.extend(head(&row));
        }
        recipients.iter().for_each(|to| out.extend(recipient(to)));
    }
}

/// `DATE GMT  #ID  BYTES  <SENDER> `
fn head(row: &Row) -> Vec<u8> {
    let date = Civil::from_unix(row.arrival_s).rfc5322();
    let date = date.strip_suffix(" -0000").unwrap_or(&date);
    let before = format!("{date} GMT  #{}  {}  <", row.id, row.bytes);
    [before.as_bytes(), &safe(row.sender.as_bytes()), b"> \n"].concat()
}

/// `[  done]<tab>local|remote<tab>ADDRESS`
fn recipient(to: &RecipientRow) -> Vec<u8> {
    let done: &[u8] = if to.done.is_some() { b"  done" } else { b"" };
    [done, if to.local { b"\tlocal\t" } else { b"\tremote\t" }, &safe(to.address.as_bytes()), b"\n"].concat()
}

fn safe(text: &[u8]) -> Vec<u8> {
    text.iter().map(|b| if (32..=126).contains(b) { *b } else { b'_' }).collect()
}

/// The number of messages. None waits to be preprocessed: qmail-send knows each as soon as it has it.
///
/// # Errors
/// As [`qread`].
pub fn qstat(root: &Root) -> Result<Vec<u8>, Failure> {
    let send = Admin::send(root)?;
    let answers = send.queue(&QueueRequest::Stats {})?;
    let counters =
        answers.into_iter().find_map(|answer| if let QueueAnswer::Stats { counters } = answer { Some(counters) } else { None });
    let messages =
        counters.into_iter().flatten().find(|counter| counter.name[..] == b"messages"[..]).map_or(0, |counter| counter.value);
    Ok(format!("messages in queue: {messages}\nmessages in queue but not yet preprocessed: 0\n").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Address;

    #[test]
    fn lines_have_the_classic_form() {
        let address = |text: &[u8]| Address::new(text).unwrap();
        let row = Row { arrival_s: 951_782_399, bytes: 123, sender: address(b"a\x1b@b"), ..Row::new(77) };
        assert_eq!(head(&row), b"28 Feb 2000 23:59:59 GMT  #77  123  <a_@b> \n");
        let to = |done, local| RecipientRow {
            address: address(b"x@y"),
            local,
            done,
            attempts: 0,
            due_s: 0,
            last_reply: b""[..].into(),
        };
        assert_eq!(recipient(&to(None, true)), b"\tlocal\tx@y\n");
        assert_eq!(recipient(&to(Some(ipc::field::Verdict::Success), false)), b"  done\tremote\tx@y\n");
    }
}
