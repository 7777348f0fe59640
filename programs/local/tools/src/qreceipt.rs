//! qreceipt(1): `qreceipt ADDRESS` tells the sender that his message has come, if a field Notice-Requested-Upon-Delivery-To names ADDRESS.
//!
//! The notice has the null sender, and none goes to a bounce.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use message::header::{Field, fields};
use message::inject::addresses;
use tool::queue::Queue;
use tool::{End, Name, PERMANENT, TEMPORARY, input};
use wire::quote;

const ME: Name = Name("qreceipt");
const REQUEST: &[u8] = b"notice-requested-upon-delivery-to";

/// The program: 0 with and without a notice.
///
/// # Errors
/// The message cannot be read or its request not understood, or the notice is not in the queue.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    let usage = || ME.usage("deliveryaddress");
    let target = args.first().ok_or_else(usage)?.as_bytes();
    let sender = input::variable("SENDER").ok_or_else(usage)?;
    let unreadable = |_: std::io::Error| ME.temporary("read error");
    let head = input::stdin().and_then(|mut message| input::head(&mut message)).map_err(unreadable)?;
    let mut is_requested = false;
    let mut message_id = None;
    for field in fields(&head).take_while(|field| field.name().is_some()) {
        if field.is(REQUEST) {
            is_requested |= names(&field, target)?;
        } else if field.is(b"message-id") {
            message_id = Some(field.raw());
        }
    }
    if !is_requested || sender.is_empty() || sender == b"#@[]" {
        return Ok(0);
    }
    notify(&sender, target, message_id)
}

fn names(field: &Field<'_>, target: &[u8]) -> Result<bool, End> {
    let found = addresses(&field.value()).ok_or_else(|| {
        let raw = field.raw().strip_suffix(b"\n").unwrap_or(field.raw());
        ME.permanent([b"unable to parse this: ", raw].concat())
    })?;
    Ok(found.iter().any(|address| address == target))
}

fn notify(sender: &[u8], target: &[u8], message_id: Option<&[u8]>) -> Result<u8, End> {
    let quoted = quote::address(sender);
    let one_line: Vec<u8> = target.iter().map(|b| if matches!(b, b'\n' | b'\r') { b'_' } else { *b }).collect();
    let mut queue = Queue::open(ME).map_err(|_| ME.temporary("unable to fork"))?;
    for part in [
        b"From: DELIVERY NOTICE SYSTEM <",
        &quoted[..],
        b">\nTo: <",
        &quoted,
        b">\nSubject: success notice\n\nHi! This is the qreceipt program. Your message was delivered to the\nfollowing address: ",
        &one_line,
        b". Thanks for asking.\n",
    ] {
        queue.put(part);
    }
    if let Some(id) = message_id {
        queue.put(b"Your ");
        queue.put(id);
        queue.put(if id.ends_with(b"\n") { b"" } else { b"\n" });
    }
    queue.close(b"", &[sender]).map(|()| 0).map_err(|(me, refusal)| match refusal.is_permanent {
        true => me.fatal(PERMANENT, "permanent qmail-queue error"),
        false => me.fatal(TEMPORARY, "temporary qmail-queue error"),
    })
}
