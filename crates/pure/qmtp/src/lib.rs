//! The protocols of qmail beside SMTP, as machines without I/O: QMTP (cr.yp.to/proto/qmtp.txt), by which hosts send mail to each other,
//! and QMQP (cr.yp.to/proto/qmqp.html), by which a host without a queue hands its mail to one that has one.
//!
//! Both are made of netstrings, read piece by piece ([`netstring`]): a message goes through as it comes, and an address is the longest thing
//! that is kept. What SMTP and these have in common (texts, traces, who may send where) is that of the crate `smtp`.
//! Used by qmail-qmtpd, qmail-qmqpd, qmail-qmqpc and qmail-remote.
#![forbid(unsafe_code)]

pub mod answer;
pub mod client;
pub mod exchange;
#[doc(hidden)]
pub mod fuzz;
pub mod netstring;
pub mod qmqp;
pub mod server;
#[cfg(test)]
mod tests;
