//! What every tokio service does with the descriptors that qmail-start handed over.

use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::{AsFd, OwnedFd};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};

/// Resolves when the lifeline ends: qmail-start is gone or wants this process to drain.
///
/// # Errors
/// The runtime cannot watch it.
pub async fn lifeline(fd: OwnedFd) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    let fd = crate::packets::watch(fd)?;
    loop {
        let mut ready = fd.readable().await?;
        let read = ready.try_io(|fd| Ok(rustix::io::read(fd.as_fd(), &mut [0u8; 16][..])?));
        if matches!(read, Ok(Ok(0) | Err(_))) {
            return Ok(());
        }
    }
}

/// Resolves when the lifeline ends or one of `signals` comes (SIGTERM, which systemd sends to every process of a service).
///
/// # Errors
/// The runtime cannot watch them.
pub async fn end(fd: OwnedFd, signals: &sys::signal::Signals) -> io::Result<()> {
    let came = crate::packets::watch(signals.as_fd().try_clone_to_owned()?)?;
    tokio::select! {
        end = lifeline(fd) => end,
        came = came.readable() => came.map(drop),
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
