//! Log lines as values: what a line of qmail says, and how it is written as text, as JSON and for journald.
//!
//! Two kinds of lines are understood: the classic ones of qmail-send (qmail-log(5)), and those of the other processes that are
//! `event key=value key="va lue"` ([`Line`] writes them). All others are text. Guarantees: any bytes may come as a line, nothing
//! panics; what is written is printable, one line (or one datagram) for each line, whatever strangers put into it (promise 6); memory
//! is bounded by the line, and by [`LINKED_MAX`] deliveries under way.
//! Used by qmail-start to write, by `qmail log` to read, by the network programs for their lines.
#![forbid(unsafe_code)]

mod entry;
mod fields;
#[doc(hidden)]
pub mod fuzz;
mod line;
mod render;
mod session;
mod stamp;

pub use entry::{Entry, Surroundings};
pub use fields::{Fields, LINKED_MAX, Linker, Value, classic_line};
pub use line::{Line, PAIRS_MAX, VALUE_LEN_MAX, pairs};
pub use render::{journal, json, priority, quoted, shown, text};
pub use session::Session;
pub use stamp::{rfc3339_us, time_us_of};
