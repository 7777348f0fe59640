//! A few threads that compute password hashes, so that a login costs nobody else the 20 milliseconds it takes.

use accounts::Error;
use accounts::password::Hasher;
use sasl::scram::{Hash, Keys, Salt};
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;
use sys::wake::Wake;
use zeroize::Zeroizing;

/// Threads at most: a flood of logins must leave processors for mail.
const THREADS_MAX: usize = 4;
/// Jobs that wait; at 20 ms each on two threads the last of them still makes its caller's deadline.
pub(crate) const QUEUE_MAX: usize = 256;
/// A thread keeps the memory of a hash for the next one; one that had nothing to do for so long gives it back.
const REST: Duration = Duration::from_secs(5);
/// argon2 has its memory on the heap; what else a thread needs is little.
const STACK_LEN: usize = 256 * 1024;

/// What to compute.
pub(crate) enum Work {
    /// `None`: nobody's password; the work is done all the same.
    Verify { stored: Option<Zeroizing<String>>, password: Zeroizing<Vec<u8>> },
    /// For a new password: its hash, if it is to have one, and SCRAM's keys with these salts.
    Make { password: Zeroizing<Vec<u8>>, salts: Vec<(Hash, Salt)>, with_hash: bool },
}

/// What was made of a password.
pub(crate) struct Made {
    /// Empty where none was asked for.
    pub(crate) hash: Zeroizing<String>,
    /// SCRAM's keys, as RFC 5803 writes them.
    pub(crate) keys: Vec<(Hash, Zeroizing<String>)>,
}

/// What came of it.
pub(crate) enum Outcome {
    Verified(Result<bool, Error>),
    Made(Result<Made, Error>),
}

/// Jobs in, outcomes out; `T` comes back with the outcome.
pub(crate) struct Pool<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    work: Condvar,
    wake: Wake,
}

struct State<T> {
    jobs: VecDeque<(T, Work)>,
    done: VecDeque<(T, Outcome)>,
    closed: bool,
}

impl<T> Shared<T> {
    /// A thread that panicked holding the lock left whole entries: the queues are only pushed and popped.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<T: Send + 'static> Pool<T> {
    /// Starts the threads; `wake` is woken for every outcome.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(wake: Wake) -> io::Result<Self> {
        let state = State { jobs: VecDeque::new(), done: VecDeque::new(), closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), wake });
        let count = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, THREADS_MAX);
        let spawn = |_| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("hash".to_owned()).stack_size(STACK_LEN).spawn(move || sys::vital(|| run(&shared)))
        };
        let threads = (0..count).map(spawn).collect::<io::Result<_>>()?;
        Ok(Self { shared, threads })
    }

    /// # Errors
    /// The queue is full: the token back.
    pub(crate) fn submit(&self, token: T, work: Work) -> Result<(), T> {
        let mut state = self.shared.lock();
        if state.jobs.len() >= QUEUE_MAX {
            return Err(token);
        }
        state.jobs.push_back((token, work));
        self.shared.work.notify_one();
        Ok(())
    }

    /// The next outcome, if there is one.
    pub(crate) fn take(&self) -> Option<(T, Outcome)> {
        self.shared.lock().done.pop_front()
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn run<T>(shared: &Shared<T>) {
    let mut hasher = Hasher::default();
    while let Some((token, work)) = next(shared, &mut hasher) {
        let outcome = compute(&mut hasher, work);
        shared.lock().done.push_back((token, outcome));
        shared.wake.wake();
    }
}

/// The next job, as soon as there is one; `None` at the end. A hasher that has to wait for long is replaced by one without memory.
fn next<T>(shared: &Shared<T>, hasher: &mut Hasher) -> Option<(T, Work)> {
    let is_idle = |state: &mut State<T>| !state.closed && state.jobs.is_empty();
    let (mut state, rest) =
        shared.work.wait_timeout_while(shared.lock(), REST, is_idle).unwrap_or_else(std::sync::PoisonError::into_inner);
    if rest.timed_out() {
        drop(state);
        *hasher = Hasher::default();
        state = shared.work.wait_while(shared.lock(), is_idle).unwrap_or_else(std::sync::PoisonError::into_inner);
    }
    if state.closed {
        return None;
    }
    state.jobs.pop_front()
}

fn compute(hasher: &mut Hasher, work: Work) -> Outcome {
    // The hashes of other systems are read by code of many hands: what none of it should do must not cost a thread.
    match work {
        Work::Verify { stored, password } => {
            let verify = || hasher.verify(stored.as_ref().map(|s| s.as_str()), &password);
            let verdict = catch_unwind(AssertUnwindSafe(verify));
            Outcome::Verified(verdict.unwrap_or(Err(Error::Damaged("a password hash cannot be computed"))))
        }
        Work::Make { password, salts, with_hash } => Outcome::Made(make(hasher, &password, salts, with_hash)),
    }
}

fn make(hasher: &mut Hasher, password: &[u8], salts: Vec<(Hash, Salt)>, with_hash: bool) -> Result<Made, Error> {
    let hash = if with_hash { hasher.hash(password)?.into() } else { Zeroizing::default() };
    let keys = salts.into_iter().map(|(hash, salt)| (hash, Keys::derive(hash, password, salt).to_text(hash).into()));
    Ok(Made { hash, keys: keys.collect() })
}
