//! A connection that may get TLS on the way: the interface of a `TcpStream`, with TLS or without.

use crate::Stream;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// How bytes get to the peer.
#[derive(Debug)]
pub enum Transport {
    Clear(TcpStream),
    Tls(Stream),
    /// A Unix socket, which never leaves this host and never gets TLS.
    Unix(UnixStream),
    /// The connection was given to a handshake that failed, or is in one: reading finds the end, writing an error.
    Gone,
}

impl Transport {
    /// Takes the connection for a handshake; `None` if it has TLS already.
    pub fn take_clear(&mut self) -> Option<TcpStream> {
        match std::mem::replace(self, Self::Gone) {
            Self::Clear(stream) => Some(stream),
            other => {
                *self = other;
                None
            }
        }
    }

    /// The socket, if there is one.
    #[must_use]
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Clear(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.tcp()),
            Self::Unix(_) | Self::Gone => None,
        }
    }

    /// Waits for bytes and takes what there is, once; 0 is the end.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        poll_fn(|context| {
            let mut buf = ReadBuf::new(buf);
            self.poll_read(context, &mut buf).map_ok(|()| buf.filled().len())
        })
        .await
    }

    /// As [`tokio::io::AsyncRead::poll_read`].
    ///
    /// # Errors
    /// The connection is over.
    pub fn poll_read(&mut self, context: &mut std::task::Context<'_>, buf: &mut ReadBuf<'_>) -> std::task::Poll<io::Result<()>> {
        match self {
            Self::Clear(stream) => Pin::new(stream).poll_read(context, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buf),
            Self::Gone => std::task::Poll::Ready(Ok(())),
        }
    }

    /// # Errors
    /// `WouldBlock`, or the connection is over.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Clear(stream) => stream.try_read(buf),
            Self::Tls(stream) => stream.try_read(buf),
            Self::Unix(stream) => stream.try_read(buf),
            Self::Gone => Ok(0),
        }
    }

    /// Takes what there is room for; [`Transport::flush`] sends what TLS holds back.
    ///
    /// # Errors
    /// `WouldBlock`, or the connection is over.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(stream) => stream.try_write(bytes),
            Self::Tls(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
            Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// # Errors
    /// As of the socket.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Clear(stream) => stream.readable().await,
            Self::Tls(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
            Self::Gone => Ok(()),
        }
    }

    /// # Errors
    /// As of the socket.
    pub async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Clear(stream) => stream.writable().await,
            Self::Tls(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
            Self::Gone => Ok(()),
        }
    }

    /// Sends all that was written.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn flush(&self) -> io::Result<()> {
        match self {
            Self::Tls(stream) => stream.flush().await,
            Self::Clear(_) | Self::Unix(_) | Self::Gone => Ok(()),
        }
    }

    /// Writes all of it and sends it.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        self.flush().await
    }

    /// Tells the peer that nothing follows: by close_notify, and by TCP's end. Reading may go on.
    pub fn end_output(&self) {
        if let Self::Tls(stream) = self {
            // A socket that is full gets none: the peer will see the connection cut, as it would anyway.
            let _ = stream.try_close();
        }
        if let Self::Unix(stream) = self {
            let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Write);
        }
        if let Some(tcp) = self.tcp() {
            let _ = rustix::net::shutdown(tcp, rustix::net::Shutdown::Write);
        }
    }
}
