//! Small programs that hand in mail: predate, datemail, mailsubj.
//!
//! They only write header fields and leave the rest to sendmail and qmail-inject, whose exit codes are theirs. No shell sees an argument.
#![forbid(unsafe_code)]

pub mod mailsubj;
pub mod predate;
