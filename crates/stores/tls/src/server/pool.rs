//! The threads on which handshakes compute.

use rustls::server::ServerConnection;
use rustls::{ConnectionCommon, SideData};
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// So that one thread that waits for a signature leaves another.
const THREADS_MIN: usize = 2;
const THREADS_MAX: usize = 8;
/// Steps that wait; more are refused. At 1 ms for a step and with two threads the last of them still makes its deadline.
const QUEUE_MAX: usize = 1024;
const STACK_LEN: usize = 256 * 1024;

/// A connection behind a step, and whether rustls liked the input.
pub(super) type Stepped = (Box<ServerConnection>, Result<(), rustls::Error>);

struct Job {
    tls: Box<ServerConnection>,
    input: Vec<u8>,
    done: oneshot::Sender<Stepped>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

impl Shared {
    /// A thread that panicked left the queue whole: it is only pushed and popped.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if queue.is_closed {
                return None;
            }
            match queue.jobs.pop_front() {
                Some(job) => return Some(job),
                None => queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Threads and what they have to do.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Pool {
    /// # Errors
    /// No thread can be started.
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let count = std::thread::available_parallelism().map_or(THREADS_MIN, usize::from).clamp(THREADS_MIN, THREADS_MAX);
        let spawn = |_| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("handshake".to_owned()).stack_size(STACK_LEN).spawn(move || run(&shared))
        };
        let threads = (0..count).map(spawn).collect::<io::Result<_>>()?;
        Ok(Self { shared, threads })
    }

    /// Gives rustls `input` and lets it compute. `None`: too much is waiting, or the step could not be done.
    pub(super) async fn process(&self, tls: Box<ServerConnection>, input: Vec<u8>) -> Option<Stepped> {
        let (done, stepped) = oneshot::channel();
        {
            let mut queue = self.shared.lock();
            if queue.jobs.len() >= QUEUE_MAX {
                return None;
            }
            queue.jobs.push_back(Job { tls, input, done });
        }
        self.shared.work.notify_one();
        stepped.await.ok()
    }
}

impl Drop for Pool {
    /// Threads that wait for a signature end behind it; nobody waits for them.
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.work.notify_all();
    }
}

fn run(shared: &Shared) {
    while let Some(Job { mut tls, input, done }) = shared.next() {
        // Whoever gave up waiting needs no signature.
        if done.is_closed() {
            continue;
        }
        // A step that panics costs its own session, not the thread that all the others need.
        let step = AssertUnwindSafe(move || {
            let processed = process(&mut tls, &input);
            (tls, processed)
        });
        if let Ok(stepped) = catch_unwind(step) {
            // The receiver may be gone meanwhile.
            let _ = done.send(stepped);
        }
    }
}

/// Gives rustls all of `input`, and lets it compute.
pub(crate) fn process<S: SideData>(tls: &mut ConnectionCommon<S>, mut input: &[u8]) -> Result<(), rustls::Error> {
    while !input.is_empty() {
        match tls.read_tls(&mut input) {
            Ok(0) => break,
            Ok(_) => {
                tls.process_new_packets()?;
            }
            Err(_) => return Err(rustls::Error::General("more than a handshake has".to_owned())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use std::future::Future as _;
    use std::task::{Context, Poll, Waker};

    /// Has no certificate for anybody, or panics when it is asked.
    #[derive(Debug)]
    struct Nobody {
        panics: bool,
    }

    impl ResolvesServerCert for Nobody {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            assert!(!self.panics, "struck");
            None
        }
    }

    fn connection(panics: bool) -> Box<ServerConnection> {
        let config =
            rustls::ServerConfig::builder_with_provider(crate::provider()).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_cert_resolver(Arc::new(Nobody { panics }));
        Box::new(ServerConnection::new(Arc::new(config)).unwrap())
    }

    #[test]
    fn so_many_steps_wait_and_one_more_is_refused_at_once() {
        let pool = Pool { shared: Arc::default(), threads: Vec::new() };
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting: Vec<_> = (0..QUEUE_MAX).map(|_| Box::pin(pool.process(connection(false), Vec::new()))).collect();
        for step in &mut waiting {
            assert!(step.as_mut().poll(&mut context).is_pending());
        }
        let mut late = Box::pin(pool.process(connection(false), Vec::new()));
        assert!(matches!(late.as_mut().poll(&mut context), Poll::Ready(None)));
        drop(late);
        // Who gave up waiting is passed over by the first thread that is free.
        drop(waiting);
        let shared = Arc::clone(&pool.shared);
        let thread = std::thread::spawn(move || run(&shared));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let begun = loop {
            let stepped = runtime.block_on(pool.process(connection(false), Vec::new()));
            if stepped.is_some() {
                break stepped;
            }
            std::thread::yield_now();
        };
        assert!(begun.is_some_and(|(_, processed)| processed.is_ok()));
        drop(pool);
        thread.join().unwrap();
    }

    #[test]
    fn a_step_that_panics_costs_its_own_session_alone() {
        let pool = Pool { shared: Arc::default(), threads: Vec::new() };
        let shared = Arc::clone(&pool.shared);
        let thread = std::thread::spawn(move || run(&shared));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let builder =
            rustls::ClientConfig::builder_with_provider(crate::provider()).with_safe_default_protocol_versions().unwrap();
        let config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let mut client = rustls::ClientConnection::new(Arc::new(config), "host.example".try_into().unwrap()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        assert!(runtime.block_on(pool.process(connection(true), hello.clone())).is_none());
        let refused = runtime.block_on(pool.process(connection(false), hello));
        assert!(refused.is_some_and(|(_, processed)| processed.is_err()), "nobody has a certificate");
        drop(pool);
        thread.join().unwrap();
    }
}
