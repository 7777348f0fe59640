//! forward(1): `forward ADDRESS…` sends a copy of the message, with the Delivered-To line before it, from NEWSENDER.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use tool::queue::Queue;
use tool::{End, Name, input};

/// The program.
///
/// # Errors
/// The copy is not in the queue. (Success has a line on standard error, too: `forward: qp NUMBER`.)
pub fn main(args: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("forward");
    let variable = |name: &str| input::variable(name).ok_or_else(|| ME.permanent(format!("{name} not set")));
    let (sender, delivered_to) = (variable("NEWSENDER")?, variable("DTLINE")?);
    let mut message = input::stdin().map_err(|error| ME.system("unable to read message", &error))?;
    let mut queue = Queue::open(ME)?;
    queue.put(&delivered_to);
    queue.copy(&mut message)?;
    let recipients: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
    let qp = queue.finish(&sender, &recipients)?;
    Err(End::with(0, format!("forward: qp {qp}")))
}
