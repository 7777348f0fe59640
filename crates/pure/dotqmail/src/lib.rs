//! The language of `.qmail` files: which file speaks for an address, what it says, and what a program line is told.
//!
//! This is dot-qmail(5) and qmail-local(8) without a file, a clock or a process: [`search`] names the files in the order they are
//! tried, [`Plan`] is what one of them says, [`Delivery`] makes the trace lines and the environment, [`exit`] reads a program's
//! exit code, [`FromQuoter`] goes over a message in chunks. All of it agrees with the classic qmail-local to the
//! byte; where it does not, the item says so.
//!
//! Guarantees: no panic on any bytes; nothing of a message or an address is ever read as an instruction.
//! Used by qmail-local (both faces), which does what the plan says, and by nobody else.
#![forbid(unsafe_code)]

mod delivery;
pub mod exit;
mod from_line;
#[doc(hidden)]
pub mod fuzz;
mod plan;
pub mod search;

pub use delivery::{Delivery, ENVIRONMENT_NAMES};
pub use from_line::FromQuoter;
pub use plan::{Instruction, Plan, Refusal};

/// Longest `.qmail` file, in bytes: room for some 50,000 forwards; a worker's memory stays bounded (classic: no bound).
pub const DOTQMAIL_LEN_MAX: usize = 2 << 20;
