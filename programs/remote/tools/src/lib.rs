//! Mail for hosts that dial in: maildirserial hands the messages of a Maildir to a client, serialsmtp or serialqmtp, over one
//! connection that tcpclient makes; maildirsmtp and maildirqmtp put these together.
//!
//! A message is removed only after the other side has taken it, or after its bounce is in the queue. What is sent cannot hold a bare CR
//! or a bare LF (`smtp::encode`), and a message is not taken for another because of what a server says.
#![forbid(unsafe_code)]

mod connection;
pub mod maildirserial;
pub mod message_file;
pub mod serialqmtp;
pub mod serialsmtp;
