//! bouncesaying(1), except(1), condredirect(1): a program judges the message, and its exit code says what becomes of it.
//!
//! 0 is yes, 111 means later, anything else is no; a program that cannot be run says no.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use tool::child::{self, Rewindable};
use tool::queue::Queue;
use tool::{End, Name, PERMANENT, end, input};

/// Condredirect's "forwarded, read no further" (qmail-command(8)).
const STOP: u8 = 99;

/// `bouncesaying ERROR [PROGRAM [ARG…]]`: bounces with ERROR, if there is no PROGRAM or it says yes.
///
/// # Errors
/// The bounce itself, and what [`child::says_yes`] cannot tell.
pub fn bouncesaying(args: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("bouncesaying");
    let Some((text, program)) = args.split_first() else { return Err(ME.usage("error [ program [ arg ... ] ]")) };
    if !program.is_empty() && !child::says_yes(ME, program)? {
        return Ok(0);
    }
    // An empty text is an empty line.
    end::say(text.as_bytes());
    Ok(PERMANENT)
}

/// `except PROGRAM [ARG…]`: 100 if it says yes, 0 if it says no.
///
/// # Errors
/// What [`child::says_yes`] cannot tell.
pub fn except(args: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("except");
    if args.is_empty() {
        return Err(ME.usage("program [ arg ... ]"));
    }
    Ok(if child::says_yes(ME, args)? { PERMANENT } else { 0 })
}

/// `condredirect NEWADDRESS PROGRAM [ARG…]`: forwards the message and ends with 99 if PROGRAM says yes.
///
/// # Errors
/// No answer, or the message cannot be forwarded.
pub fn condredirect(args: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("condredirect");
    let [to, program, rest @ ..] = args else { return Err(ME.usage("newaddress program [ arg ... ]")) };
    let message = Rewindable::stdin(ME);
    let mut command = Command::new(program);
    command.args(rest);
    if let Ok(message) = &message {
        command.stdin(message.as_it_stands(ME)?);
    }
    if !child::yes(ME, child::run(ME, &mut command)?)? {
        return Ok(0);
    }
    let mut message = message?;
    let variable = |name: &str| input::variable(name).ok_or_else(|| ME.permanent(format!("{name} not set")));
    let (sender, delivered_to) = (variable("SENDER")?, variable("DTLINE")?);
    let mut queue = Queue::open(ME)?;
    queue.put(&delivered_to);
    queue.copy(message.rewound(ME)?)?;
    let qp = queue.finish(&sender, &[to.as_bytes()])?;
    Err(End::with(STOP, format!("condredirect: qp {qp}")))
}
