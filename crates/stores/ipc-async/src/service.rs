//! What every tokio service does with the descriptors that qmail-start handed over.

use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::{AsFd, OwnedFd};
use sys::signal::Signals;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};

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
