//! What every tokio service does with the descriptors that qmail-start handed over.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use sys::signal::Signals;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::time::{sleep, timeout};

/// How often a worker without room looks whether a connection is waiting.
const FULL_PAUSE: Duration = Duration::from_millis(50);
/// A connection that waits for so long is one that no worker has room for.
const LEFT_OVER: Duration = Duration::from_millis(30);

/// What qmail-start wants of a process that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Another generation serves from now on: take nothing new, end when what is under way is done.
    Retire,
    /// Drain and exit.
    End,
}

/// The pipe from qmail-start: a byte in it is [`Word::Retire`], its end [`Word::End`]. The end wins when both are there.
#[derive(Debug)]
pub struct Lifeline {
    pipe: AsyncFd<OwnedFd>,
    signals: Option<AsyncFd<OwnedFd>>,
}

impl Lifeline {
    /// # Errors
    /// The runtime cannot watch it.
    pub fn new(pipe: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self { pipe: crate::packets::watch(pipe)?, signals: None })
    }

    /// One of `signals` (SIGTERM, which systemd sends to every process of a service) means the end, too.
    ///
    /// # Errors
    /// The runtime cannot watch them.
    pub fn or_on(mut self, signals: &Signals) -> io::Result<Self> {
        self.signals = Some(crate::packets::watch(signals.as_fd().try_clone_to_owned()?)?);
        Ok(self)
    }

    /// Waits for the next word. A lifeline that cannot be watched any more is as good as ended.
    pub async fn word(&self) -> Word {
        tokio::select! {
            biased;
            () = self.signal() => Word::End,
            word = self.read() => word,
        }
    }

    /// Waits for the end, whatever else is said.
    pub async fn end(&self) {
        while self.word().await != Word::End {}
    }

    /// Waits until what is under way is `done`, or the end comes before that.
    pub async fn end_or(&self, done: impl Future<Output = ()>) {
        tokio::select! {
            () = self.end() => {}
            () = done => {}
        }
    }

    async fn signal(&self) {
        match &self.signals {
            // It stays readable: nobody takes the signal away.
            Some(signals) => drop(signals.readable().await),
            None => std::future::pending().await,
        }
    }

    async fn read(&self) -> Word {
        let mut retire = false;
        loop {
            let Ok(mut ready) = self.pipe.readable().await else { return Word::End };
            // After a byte the end is looked for before the byte counts.
            match ready.try_io(|pipe| Ok(rustix::io::read(pipe.as_fd(), &mut [0u8; 16][..])?)) {
                Ok(Ok(1..)) => retire = true,
                Ok(Ok(0) | Err(_)) => return Word::End,
                Err(_) if retire => return Word::Retire,
                Err(_) => {}
            }
        }
    }
}

/// A listening TCP socket that was handed over.
///
/// # Errors
/// It is no such socket.
pub fn tcp_listener(fd: OwnedFd) -> io::Result<TcpListener> {
    let listener = StdListener::from(fd);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// For a worker without room: a connection that the others leave waiting, too, if there is one. All workers wake for each
/// connection, so whoever took one at once would refuse what another has room for.
pub async fn left_over(listener: &TcpListener) -> Option<io::Result<(TcpStream, SocketAddr)>> {
    if !is_waiting(listener) {
        sleep(FULL_PAUSE).await;
        return None;
    }
    sleep(LEFT_OVER).await;
    if !is_waiting(listener) {
        return None;
    }
    // Another worker may still be faster.
    timeout(LEFT_OVER, listener.accept()).await.ok()
}

/// Is there a connection to be accepted?
fn is_waiting(listener: &TcpListener) -> bool {
    poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// This worker's part of the sessions there may be in all: `worker` is `NUMBER/COUNT`, `QMAIL_WORKER` from qmail-start; alone without it.
#[must_use]
pub fn share(sessions_max: usize, worker: &str) -> usize {
    let numbers = worker.split_once('/').map(|(number, count)| (number.parse::<usize>(), count.parse::<NonZero<usize>>()));
    let Some((Ok(number), Ok(count))) = numbers else { return sessions_max };
    sessions_max / count + usize::from(number < sessions_max % count)
}

/// Runs a service on the current thread: a runtime with I/O and time whose tasks stay here. (A `LocalSet` in an ordinary runtime
/// would do as well, but each time one task woke another it would also wake the runtime, by a write to itself.)
///
/// # Errors
/// The runtime cannot be made, or what `service` says.
pub fn run<F: Future<Output = io::Result<()>>>(service: F) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default())?;
    runtime.block_on(service)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::pipe;

    fn words(test: impl AsyncFnOnce(Lifeline, OwnedFd)) {
        run(async {
            let (far, near) = pipe()?;
            test(Lifeline::new(far)?, near).await;
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn the_shares_of_all_workers_are_the_whole() {
        for (sessions_max, count) in [(10, 1), (10, 2), (5, 2), (1, 2), (0, 3), (30_000, 7)] {
            assert_eq!((0..count).map(|number| share(sessions_max, &format!("{number}/{count}"))).sum::<usize>(), sessions_max);
        }
        assert_eq!((share(5, "0/2"), share(5, "1/2")), (3, 2));
        for alone in ["", "1", "1/0", "x/2", "0/-1"] {
            assert_eq!(share(5, alone), 5, "{alone}");
        }
    }

    #[test]
    fn a_byte_retires_and_the_end_ends() {
        words(async |lifeline, start| {
            rustix::io::write(&start, b"r").unwrap();
            assert_eq!(lifeline.word().await, Word::Retire);
            rustix::io::write(&start, b"r").unwrap();
            drop(start);
            lifeline.end().await;
            assert_eq!(lifeline.word().await, Word::End);
        });
    }

    #[test]
    fn the_end_wins_over_an_earlier_byte() {
        words(async |lifeline, start| {
            rustix::io::write(&start, b"r").unwrap();
            drop(start);
            assert_eq!(lifeline.word().await, Word::End);
        });
    }

    #[test]
    fn the_end_is_not_waited_for_when_all_is_done() {
        words(async |lifeline, start| {
            lifeline.end_or(async {}).await;
            drop(start);
            lifeline.end_or(std::future::pending()).await;
        });
    }
}
