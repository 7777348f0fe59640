//! A server that failed several times in a row is left alone for a while; then one request tries it for all.

use crate::{REQUEST_MAX, Trouble, log};
use std::cell::Cell;
use std::time::Duration;
use tokio::time::Instant;

/// Failures in a row after which it is left alone.
const FAILURES_MAX: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What is known of one server.
#[derive(Debug)]
pub struct Breaker {
    server: String,
    failures: Cell<u32>,
    until: Cell<Option<Instant>>,
}

impl Breaker {
    /// `server` is its name in the log.
    #[must_use]
    pub fn new(server: String) -> Self {
        Self { server, failures: Cell::new(0), until: Cell::new(None) }
    }

    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// May it be asked now? Whoever is the first to be told yes after a pause tries it for all the others.
    pub fn may_try(&self) -> bool {
        let now = Instant::now();
        match self.until.get() {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                self.until.set(Some(now + REQUEST_MAX));
                true
            }
        }
    }

    pub fn failed(&self, trouble: &Trouble) {
        let failures = self.failures.get().saturating_add(1);
        self.failures.set(failures);
        let Some(more) = failures.checked_sub(FAILURES_MAX) else { return };
        let pause = PAUSE_MIN.saturating_mul(1 << more.min(5)).min(PAUSE_MAX);
        self.until.set(Some(Instant::now() + pause));
        log(&format!("{} is not asked for {} s: {}", self.server, pause.as_secs(), trouble.0));
    }

    pub fn succeeded(&self) {
        if self.until.take().is_some() {
            log(&format!("{} answers again", self.server));
        }
        self.failures.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_failures_one_tries_for_all() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let breaker = Breaker::new("x".to_owned());
            let fail = || breaker.failed(&"down".into());
            (0..FAILURES_MAX).for_each(|_| {
                assert!(breaker.may_try());
                fail();
            });
            for pause in [1, 2, 4, 8, 16, 30, 30] {
                assert!(!breaker.may_try());
                tokio::time::advance(Duration::from_secs(pause)).await;
                assert_eq!([breaker.may_try(), breaker.may_try()], [true, false], "{pause}");
                fail();
            }
            // Whoever tried and never came back leaves the place to another.
            tokio::time::advance(PAUSE_MAX).await;
            assert!(breaker.may_try());
            tokio::time::advance(REQUEST_MAX).await;
            assert!(breaker.may_try());
            breaker.succeeded();
            assert_eq!([breaker.may_try(), breaker.may_try()], [true, true]);
            fail();
            assert!(breaker.may_try(), "one failure is none");
        });
    }
}
