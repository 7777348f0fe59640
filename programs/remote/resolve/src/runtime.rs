//! hickory's sockets, with one difference: a UDP socket is connected to its name server, and its errors are looked at.
//!
//! So a server that is not there (ICMP port unreachable) is noticed at once and the next one asked, instead of after seconds of
//! silence. The kernel passes over what comes from other addresses.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::net::runtime::{DnsUdpSocket, RuntimeProvider, TokioRuntimeProvider};
use tokio::io::Interest;
use tokio::net::UdpSocket;

type Future<'a, T> = Pin<Box<dyn std::future::Future<Output = io::Result<T>> + Send + 'a>>;

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Runtime(TokioRuntimeProvider);

impl RuntimeProvider for Runtime {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Timer = <TokioRuntimeProvider as RuntimeProvider>::Timer;
    type Udp = Connected;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.0.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        wait_for: Option<Duration>,
    ) -> Future<'static, Self::Tcp> {
        self.0.connect_tcp(server, local, wait_for)
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Future<'static, Connected> {
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            socket.connect(server).await?;
            Ok(Connected { socket, server })
        })
    }
}

/// A UDP socket of one name server.
pub(crate) struct Connected {
    socket: UdpSocket,
    server: SocketAddr,
}

impl Connected {
    async fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            // An error alone does not make a socket readable.
            let ready = self.socket.ready(Interest::READABLE | Interest::ERROR).await?;
            match self.socket.try_recv(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            if ready.is_error() {
                return Err(self.socket.take_error()?.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()));
            }
        }
    }
}

impl DnsUdpSocket for Connected {
    type Time = <TokioRuntimeProvider as RuntimeProvider>::Timer;

    fn poll_recv_from(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<(usize, SocketAddr)>> {
        DnsUdpSocket::poll_recv_from(&self.socket, cx, buf)
    }

    fn recv_from<'s, 'b, 'f>(&'s self, buf: &'b mut [u8]) -> Future<'f, (usize, SocketAddr)>
    where
        's: 'f,
        'b: 'f,
        Self: 'f,
    {
        Box::pin(async move { Ok((self.receive(buf).await?, self.server)) })
    }

    /// Linux allows to name the server of a connected socket again.
    fn poll_send_to(&self, cx: &mut Context<'_>, buf: &[u8], server: SocketAddr) -> Poll<io::Result<usize>> {
        self.socket.poll_send_to(cx, buf, server)
    }
}
