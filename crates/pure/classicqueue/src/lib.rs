//! The files of a classic qmail queue, read and written: info, local and remote, todo and intd, bounce.
//!
//! Pure: bytes in, values out, and back. Everything read is foreign: a file is what it should be, whole, or a [`Damage`] that says in
//! words what is wrong; nothing is guessed and nothing left out. What is written reads back the same. Sources: the queue's layout and
//! the records as the classic qmail-queue and qmail-send write them. Used by `qmail import queue` and `qmail export queue`.
#![forbid(unsafe_code)]

pub mod bounce;
pub mod envelope;
#[doc(hidden)]
pub mod fuzz;
pub mod layout;

pub use bounce::{Paragraph, bounce_text, paragraphs};
pub use envelope::{Damage, Mark, Marked, Todo, info, info_bytes, marked, marked_bytes, todo, todo_bytes};
