//! The threads on which handshakes compute.

use rustls::server::ServerConnection;
use rustls::{ConnectionCommon, SideData};
use std::collections::VecDeque;
use std::io;
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
        let processed = process(&mut tls, &input);
        // The receiver may be gone meanwhile.
        let _ = done.send((tls, processed));
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
