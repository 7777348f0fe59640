//! TLS records over a TCP connection, for servers and clients.
//!
//! Guarantees: bytes come out only if TLS protected them; the peer's close_notify, an error or an end without one is final: nothing is read
//! after it, whatever the socket still holds. Bounded: rustls keeps at most [`SEND_LEN_MAX`] bytes that wait to be sent.

use rustls::Connection;
use std::cell::{Cell, Ref, RefCell};
use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Plaintext that waits for the socket, in bytes.
pub const SEND_LEN_MAX: usize = 64 * 1024;

/// A connection with TLS. Besides `AsyncRead` and `AsyncWrite` it has tokio's `try_` interface of a `TcpStream`, which needs no `&mut`, so that
/// reading and writing may be two tasks of a thread.
#[derive(Debug)]
pub struct Stream {
    io: TcpStream,
    tls: RefCell<Box<Connection>>,
    /// How reading ended, once it has.
    end: Cell<Option<End>>,
}

#[derive(Debug, Clone, Copy)]
enum End {
    /// close_notify.
    Clean,
    /// The connection ended without one, so something may be missing (RFC 8446 §6.1).
    Cut,
    Broken,
}

/// The socket as rustls wants it: blocking calls that never block.
struct Nonblocking<'a>(&'a TcpStream);

impl io::Read for Nonblocking<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl io::Write for Nonblocking<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    /// All records at once: one that is left behind may be the alert that says why.
    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    /// The handshake may be over or not.
    #[must_use]
    pub fn new(io: TcpStream, tls: impl Into<Connection>) -> Self {
        let mut tls = Box::new(tls.into());
        tls.set_buffer_limit(Some(SEND_LEN_MAX));
        Self { io, tls: RefCell::new(tls), end: Cell::new(None) }
    }

    /// Runs the handshake to its end. For clients: a server's signature would block its runtime here.
    ///
    /// # Errors
    /// The peer is gone, speaks no TLS, or is not who it should be (`InvalidData`, with rustls' error inside). The alert has been sent if
    /// the socket took it.
    pub async fn handshake(&mut self) -> io::Result<()> {
        while self.tls.get_mut().is_handshaking() {
            self.flush().await?;
            if self.tls.get_mut().is_handshaking() {
                self.io.readable().await?;
                match self.receive() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    received => received?,
                }
                if self.end.get().is_some() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        self.flush().await
    }

    /// What was negotiated. Not to be kept.
    pub fn tls(&self) -> Ref<'_, Connection> {
        Ref::map(self.tls.borrow(), |tls| &**tls)
    }

    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.io
    }

    /// Is the connection open, with nothing from the peer that was not read? Takes in what is no data, as session tickets.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        matches!(self.try_read(&mut [0; 1]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Reads what there is; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock`, or the connection is over: broken, or ended without the peer's word that it is whole (`UnexpectedEof`).
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.tls.borrow_mut().reader().read(buf);
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            match self.end.get() {
                None => {}
                Some(End::Clean) => return Ok(0),
                Some(End::Cut) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(End::Broken) => return Err(io::ErrorKind::InvalidData.into()),
            }
            self.receive()?;
        }
    }

    /// Takes what there is room for. [`Stream::flush`] sends what the socket did not take at once.
    ///
    /// # Errors
    /// `WouldBlock`, or the connection is broken.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let taken = self.tls.borrow_mut().writer().write(bytes)?;
            match taken {
                0 if !bytes.is_empty() => {}
                taken => {
                    return match self.send() {
                        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                        _ => Ok(taken),
                    };
                }
            }
            self.send()?;
        }
    }

    /// Waits until [`Stream::try_read`] may find something.
    ///
    /// # Errors
    /// As of the socket.
    pub async fn readable(&self) -> io::Result<()> {
        let has_more = |state: rustls::IoState| state.plaintext_bytes_to_read() > 0 || state.peer_has_closed();
        // A failed process_new_packets fails again: that is for try_read to tell.
        let is_ready = self.end.get().is_some() || self.tls.borrow_mut().process_new_packets().map_or(true, has_more);
        if is_ready {
            return Ok(());
        }
        self.io.readable().await
    }

    /// Waits until [`Stream::try_write`] may take something.
    ///
    /// # Errors
    /// As of the socket.
    pub async fn writable(&self) -> io::Result<()> {
        self.io.writable().await
    }

    /// Sends all that was written.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn flush(&self) -> io::Result<()> {
        loop {
            match self.send() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.io.writable().await?,
                sent => return sent,
            }
        }
    }

    /// Tells the peer that nothing follows, as far as the socket takes it now. Reading may go on.
    ///
    /// # Errors
    /// As of the socket.
    pub fn try_close(&self) -> io::Result<()> {
        // Said once: rustls ignores it the second time.
        self.tls.borrow_mut().send_close_notify();
        self.send()
    }

    /// One read from the socket, and what it means.
    fn receive(&self) -> io::Result<()> {
        let mut tls = self.tls.borrow_mut();
        match tls.read_tls(&mut Nonblocking(&self.io)) {
            Ok(0) => self.end.set(Some(End::Cut)),
            Ok(_) => {
                let state = tls.process_new_packets().map_err(|error| {
                    self.end.set(Some(End::Broken));
                    // The alert that says why; a socket that takes it not now never gets it.
                    let _ = tls.write_tls(&mut Nonblocking(&self.io));
                    io::Error::new(io::ErrorKind::InvalidData, error)
                })?;
                if state.peer_has_closed() {
                    self.end.set(Some(End::Clean));
                }
                // An answer that TLS itself gives, as to a key update; a socket that does not take it now gets it with the next data.
                if tls.wants_write() && !tls.is_handshaking() {
                    let _ = tls.write_tls(&mut Nonblocking(&self.io));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(error) => {
                self.end.set(Some(End::Cut));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sends what waits, as far as the socket takes it.
    fn send(&self) -> io::Result<()> {
        let mut tls = self.tls.borrow_mut();
        while tls.wants_write() {
            if tls.write_tls(&mut Nonblocking(&self.io))? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// Repeats `attempt` until it does not block, waiting by `ready`.
fn poll_with<T>(
    mut attempt: impl FnMut() -> io::Result<T>,
    mut ready: impl FnMut() -> Poll<io::Result<()>>,
) -> Poll<io::Result<T>> {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(ready())?,
            done => return Poll::Ready(done),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let len = ready!(poll_with(|| self.try_read(buf.initialize_unfilled()), || self.io.poll_read_ready(context)))?;
        buf.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        poll_with(|| self.try_write(buf), || self.io.poll_write_ready(context))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_with(|| self.send(), || self.io.poll_write_ready(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(poll_with(|| self.try_close(), || self.io.poll_write_ready(context)))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// Both ends of a connection, before the handshake.
    async fn pair() -> (Stream, Stream) {
        let made = rcgen::generate_simple_self_signed(["mx.example.org".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(crate::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(crate::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let name = ServerName::try_from("mx.example.org").unwrap();
        (
            Stream::new(near.unwrap(), ClientConnection::new(Arc::new(client), name).unwrap()),
            Stream::new(far.unwrap().0, ServerConnection::new(Arc::new(server)).unwrap()),
        )
    }

    async fn open() -> (Stream, Stream) {
        let (mut client, mut server) = pair().await;
        let (near, far) = tokio::join!(client.handshake(), server.handshake());
        near.and(far).unwrap();
        (client, server)
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn megabytes_go_both_ways_at_once() {
        run(async {
            let (client, server) = open().await;
            let data: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
            let talk = |stream: Stream| {
                let data = &data;
                async move {
                    let (mut reading, mut writing) = tokio::io::split(stream);
                    let mut got = Vec::new();
                    let send = async {
                        writing.write_all(data).await.unwrap();
                        writing.shutdown().await.unwrap();
                    };
                    tokio::join!(reading.read_to_end(&mut got), send).0.unwrap();
                    assert!(got == *data, "{} bytes came", got.len());
                }
            };
            tokio::join!(talk(client), talk(server));
        });
    }

    #[test]
    fn nothing_is_read_after_close_notify() {
        run(async {
            let (mut client, mut server) = open().await;
            client.write_all(b"last words").await.unwrap();
            client.try_close().unwrap();
            client.io.write_all(b"MAIL FROM:<>\r\n").await.unwrap();
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"last words");
            for _ in 0..3 {
                assert_eq!(server.read(&mut [0; 64]).await.unwrap(), 0, "close_notify is final");
            }
        });
    }

    #[test]
    fn an_end_without_close_notify_and_bytes_that_are_no_tls_are_errors_for_good() {
        run(async {
            let (client, mut server) = open().await;
            drop(client);
            for _ in 0..2 {
                let kind = server.read(&mut [0; 64]).await.unwrap_err().kind();
                // A reset where the client had left session tickets unread.
                assert!(matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset), "{kind:?}");
            }
            let (mut client, mut server) = open().await;
            client.io.write_all(b"QUIT\r\nQUIT\r\n").await.unwrap();
            for _ in 0..2 {
                assert_eq!(server.read(&mut [0; 64]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
            }
        });
    }

    #[test]
    fn a_quiet_connection_is_told_from_one_that_said_something_or_is_gone() {
        run(async {
            let (client, mut server) = open().await;
            // The session tickets that a server sends after the handshake are nothing said.
            server.flush().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            assert!(client.is_quiet());
            server.write_all(b"421 bye\r\n").await.unwrap();
            client.io.readable().await.unwrap();
            assert!(!client.is_quiet());
            let (client, mut server) = open().await;
            server.shutdown().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            client.io.readable().await.unwrap();
            assert!(!client.is_quiet());
        });
    }
}
