//! When and in which order mail is tried: retry times, the messages at rest, and the fair choice of the next delivery.
//!
//! Guarantees: no I/O, no clock (`now_s` is an argument), no panic on any input. No recipient is forgotten or handed out twice
//! at a time, no limit is passed, and a small message never waits behind a big list. Knows messages as numbers, recipients as
//! places in an envelope and sites as opaque keys; never sees an address, a text or a file. Used by qmail-send.
//!
//! | module | what |
//! |---|---|
//! | [`retry`] | qmail's quadratic schedule, queuelifetime |
//! | [`backlog`] | every message of the queue, at rest or active; fits a million |
//! | [`pace`] | how fast retries start while new mail comes in |
//! | [`site`] | how many transactions a site takes now, and whether it is left alone for a while |
//! | [`fair`] | the recipients that may be tried now, and which of them is next |
#![forbid(unsafe_code)]

pub mod backlog;
pub mod fair;
#[doc(hidden)]
pub mod fuzz;
pub mod pace;
pub mod retry;
pub mod site;

pub use backlog::Backlog;
pub use fair::{Fair, Pick, SiteLimit};
pub use pace::Pace;
pub use retry::Channel;
pub use site::Feedback;

/// What a message is to the scheduler: never tried, or waiting for another attempt. A backlog of retries, however long, leaves
/// new mail its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    Fresh,
    Retry,
}
