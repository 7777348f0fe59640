//! What a session did, for its line in the log: `maildrop user=… end=… seconds=… messages=… retrieved=… bytes=… deleted=…`.

use logline::Line;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

/// Counted while the session lasts.
#[derive(Debug, Default)]
pub struct Report {
    /// `quit`, `gone` (the client), `timeout` or `broken` (a message that could not be read to its end).
    pub end: &'static str,
    /// Messages that were listed.
    pub messages: u64,
    /// Of these, how many were sent whole.
    pub retrieved: u64,
    /// Octets of messages, whole or not.
    pub bytes: u64,
    /// Messages that were removed.
    pub deleted: u64,
}

impl Report {
    /// `user`: whoever logged in.
    #[must_use]
    pub fn line(&self, user: &[u8], seconds: u64) -> Line {
        let line = Line::new("maildrop").bytes("user", user).put("end", self.end).put("seconds", seconds);
        let line = line.put("messages", self.messages).put("retrieved", self.retrieved);
        line.put("bytes", self.bytes).put("deleted", self.deleted)
    }

    /// Writes the line, if the caller said by USER who logged in, as qmail-lspawn and checkpassword do, and standard error is not the client
    /// (inetd). That nobody reads it is no reason to fail.
    pub(crate) fn log(&self, started: Duration) {
        let file = |stat: rustix::io::Result<rustix::fs::Stat>| stat.ok().map(|stat| (stat.st_dev, stat.st_ino));
        let (stdin, stderr) = (std::io::stdin(), std::io::stderr());
        if file(rustix::fs::fstat(stdin.as_fd())) == file(rustix::fs::fstat(stderr.as_fd())) {
            return;
        }
        let Some(user) = std::env::var_os("USER") else { return };
        let seconds = sys::clock::boottime().saturating_sub(started).as_secs();
        let _ = (&stderr).write_all(format!("{}\n", self.line(&user.into_vec(), seconds)).as_bytes());
    }
}
