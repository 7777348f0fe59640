//! What a session did; its line in the log is written when this is dropped, however the session came to its end.

use crate::relay::Relayed;
use crate::start::log;
use std::net::IpAddr;
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Report {
    service: &'static str,
    remote: IpAddr,
    started: Duration,
    /// Until it is known better the end is that of the program.
    pub(crate) end: &'static str,
    pub(crate) taken: u64,
    pub(crate) sent: u64,
    pub(crate) cipher: Option<String>,
    pub(crate) user: Option<Vec<u8>>,
    /// Logins that were refused.
    pub(crate) failures: u64,
}

impl Report {
    pub(crate) fn new(service: &'static str, remote: IpAddr) -> Self {
        let started = sys::clock::boottime();
        Self { service, remote, started, end: "shutdown", taken: 0, sent: 0, cipher: None, user: None, failures: 0 }
    }

    pub(crate) fn relayed(&mut self, relayed: Relayed) {
        self.end = relayed.end;
        self.taken = self.taken.saturating_add(relayed.taken);
        self.sent = self.sent.saturating_add(relayed.sent);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let remote = self.remote.to_string();
        let session = logline::Session {
            service: self.service,
            remote: remote.as_bytes(),
            end: self.end,
            seconds: sys::clock::boottime().saturating_sub(self.started).as_secs(),
            taken: self.taken,
            sent: self.sent,
            cipher: self.cipher.as_deref(),
            user: self.user.as_deref(),
            helo: None,
        };
        log(session.line().put("failures", self.failures));
    }
}
