//! The loops: who asks, what for, and the signature.
//!
//! Several threads, each with its own connections, so that an RSA signature holds up few. A connection that does not take its answer at
//! once, says what nobody says, or comes from a uid that may not call, is closed.

use crate::acme;
use crate::form::{is_tls_client, is_tls_server};
use crate::log;
use crate::store::{Entries, Store};
use certificates::{Entry, Purpose};
use control::{Ids, Root};
use ipc::keys::{Answer, Request, TLS, TLS_CLIENT};
use ipc::{DATAGRAM_LEN_MAX, Message};
use rustix::event::{PollFd, PollFlags};
use sandbox::{Role, Socket};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use sys::signal::Signals;
use sys::{Received, Seqpacket};

const THREADS_MAX: usize = 4;
/// Connections of a thread; a worker has up to nine.
const CLIENTS_MAX: usize = 256;
/// Questions of one connection before the others get their turn.
const BURST_MAX: usize = 16;
/// Pause when no connection can be accepted for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Signatures of a uid: a second's worth at once, and so many each second. More than any machine does handshakes.
const SIGNATURES_PER_S: u32 = 10_000;
/// What qmail-acme may ask: for all certificates of a large instance within an hour, and then at this pace.
const ACME_QUESTIONS: u32 = 5000;
const ACME_PERIOD: Duration = Duration::from_secs(3600);
/// Longest input of a server; the longest form has 165 bytes. A client of TLS 1.2 signs the whole handshake, with the server's certificates.
const INPUT_LEN_MAX: usize = 512;

/// What the threads share.
#[derive(Debug)]
pub struct Server {
    root: Root,
    store: Mutex<Store>,
    /// What is shown to other servers.
    clients: Mutex<Store>,
    ids: Ids,
    buckets: Mutex<HashMap<u32, Bucket>>,
    acme: Mutex<Bucket>,
}

/// What is left of so many in a period.
#[derive(Debug)]
struct Bucket {
    most: u32,
    period: Duration,
    left: u32,
    filled: Duration,
}

impl Bucket {
    fn new(most: u32, period: Duration, now: Duration) -> Self {
        Self { most, period, left: most, filled: now }
    }

    fn take(&mut self, now: Duration) -> bool {
        let passed_us = now.saturating_sub(self.filled).as_micros();
        let more = passed_us.saturating_mul(u128::from(self.most)) / self.period.as_micros().max(1);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(self.most);
            self.filled = now;
        }
        let has_one = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has_one
    }
}

impl Server {
    #[must_use]
    pub fn new(root: Root, ids: Ids) -> Self {
        let acme = Mutex::new(Bucket::new(ACME_QUESTIONS, ACME_PERIOD, sys::clock::boottime()));
        let clients = Mutex::new(Store::of(root.clone(), Purpose::Client));
        let server = Self { store: Mutex::new(Store::new(root.clone())), clients, root, ids, buckets: Mutex::default(), acme };
        server.entries();
        server.client(|clients, now| drop(clients.entries(now)));
        server
    }

    fn entries(&self) -> Arc<Entries> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).entries(sys::clock::boottime())
    }

    fn by_key(&self, name: &[u8]) -> Option<Arc<Entry>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).by_key(name, sys::clock::boottime())
    }

    fn client<T>(&self, look: impl FnOnce(&mut Store, Duration) -> T) -> T {
        look(&mut self.clients.lock().unwrap_or_else(PoisonError::into_inner), sys::clock::boottime())
    }

    /// Everything is read again.
    fn reread(&self) {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).forget();
        self.entries();
        self.client(|clients, now| {
            clients.forget();
            clients.entries(now);
        });
    }

    fn may_sign(&self, uid: u32) -> bool {
        let now = sys::clock::boottime();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.entry(uid).or_insert_with(|| Bucket::new(SIGNATURES_PER_S, Duration::from_secs(1), now)).take(now)
    }

    /// The certificate of a directory.
    pub(crate) fn by_directory(&self, name: &str) -> Option<Arc<Entry>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).by_directory(name, sys::clock::boottime())
    }

    /// A file was changed: it is read at the next use.
    pub(crate) fn forget(&self) {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).forget();
    }

    /// What qmail-acme asks.
    fn acme(&self, request: Request) -> Option<Answer> {
        let now = sys::clock::boottime();
        if !self.acme.lock().unwrap_or_else(PoisonError::into_inner).take(now) {
            log("alert: qmail-acme asks too much");
            return None;
        }
        acme::answer(self, &self.root, request)
    }

    /// Does this uid belong to the role? Without root all do.
    fn is(&self, role: Role, uid: u32) -> bool {
        self.ids.uid_of(role.name()) == Some(uid)
    }

    /// The answer to what `uid` sent; `None` for what nobody says, or not this one.
    fn answer(&self, uid: u32, datagram: &[u8]) -> Option<Answer> {
        let request = Request::decode(datagram).ok()?;
        // Who is a server is no client, and the other way round: each can have signed what its own handshakes need.
        let role = match &request {
            Request::ClientCertificate { .. } | Request::Sign { purpose: TLS_CLIENT, .. } => Role::Remote,
            Request::Certificate { .. } | Request::Sign { .. } => Role::Network,
            _ => Role::Acme,
        };
        if !self.is(role, uid) {
            return None;
        }
        Some(match request {
            Request::Certificate { id, number } => certificate(&self.entries(), id, number),
            Request::ClientCertificate { id, name } => {
                let entry = std::str::from_utf8(&name).ok().and_then(|name| self.client(|all, now| all.by_directory(name, now)));
                entry.map_or(Answer::NoCertificate { id, generation: 0, count: 0 }, |entry| client_certificate(&entry, id))
            }
            Request::Sign { id, key, purpose, scheme, input } => self.signature(uid, id, &key, purpose, scheme, &input),
            other => return self.acme(other),
        })
    }

    fn signature(&self, uid: u32, id: u64, key: &[u8], purpose: u8, scheme: u16, input: &[u8]) -> Answer {
        let refused = |text: &str| Answer::Refused { id, text: text.into() };
        let (has_form, entry) = match purpose {
            TLS => (input.len() <= INPUT_LEN_MAX && is_tls_server(input), self.by_key(key)),
            TLS_CLIENT => (is_tls_client(input), self.client(|clients, now| clients.by_key(key, now))),
            _ => (false, None),
        };
        match entry {
            _ if !has_form => refused("not an input of this purpose"),
            None => Answer::UnknownKey { id },
            Some(_) if !self.may_sign(uid) => refused("too many signatures at once"),
            Some(entry) => match sign(&entry, scheme, input) {
                Some(signature) => Answer::Signature { id, signature: signature.into() },
                None => refused("not a scheme of this key"),
            },
        }
    }
}

fn client_certificate(entry: &Entry, id: u64) -> Answer {
    Answer::Certificate {
        id,
        generation: 0,
        count: 1,
        key: entry.certificate.key_name.as_slice().into(),
        schemes: entry.schemes.iter().map(|scheme| u16::from(*scheme)).collect(),
        names: Vec::new(),
        is_default: false,
        end_point: Vec::new().into(),
        chain: entry.certificate.chain.iter().map(|der| der.as_slice().into()).collect(),
    }
}

fn certificate(entries: &Entries, id: u64, number: u32) -> Answer {
    let generation = entries.generation;
    let count = u32::try_from(entries.all.len()).unwrap_or(u32::MAX);
    let entry = usize::try_from(number).ok().and_then(|number| entries.all.get(number));
    let Some(entry) = entry else { return Answer::NoCertificate { id, generation, count } };
    let bytes = |all: &[Vec<u8>]| all.iter().map(|one| one.as_slice().into()).collect();
    Answer::Certificate {
        id,
        generation,
        count,
        key: entry.certificate.key_name.as_slice().into(),
        schemes: entry.schemes.iter().map(|scheme| u16::from(*scheme)).collect(),
        names: bytes(&entry.certificate.hosts),
        is_default: entries.defaults.iter().any(|default| usize::try_from(number) == Ok(*default)),
        end_point: entry.certificate.end_point.as_slice().into(),
        chain: bytes(&entry.certificate.chain),
    }
}

fn sign(entry: &Entry, scheme: u16, input: &[u8]) -> Option<Vec<u8>> {
    let scheme = entry.schemes.iter().find(|known| u16::from(**known) == scheme)?;
    entry.key.choose_scheme(&[*scheme])?.sign(input).ok()
}

/// Serves on several threads until `lifeline` ends; rereads on a signal.
///
/// # Errors
/// poll(2) failed, or there is no thread to be had.
pub fn run(server: &Arc<Server>, listener: &impl AsFd, lifeline: &impl AsFd, signals: &Signals) -> io::Result<()> {
    let count = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, THREADS_MAX);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..count)
            .map(|_| {
                let (listener, lifeline) = (listener.as_fd(), lifeline.as_fd());
                std::thread::Builder::new()
                    .name("keys".to_owned())
                    .spawn_scoped(scope, move || sys::vital(|| serve(server, listener, lifeline, None)))
            })
            .collect::<io::Result<_>>()?;
        let served = serve(server, listener.as_fd(), lifeline.as_fd(), Some(signals));
        for other in others {
            let _ = other.join();
        }
        served
    })
}

struct Client {
    socket: Seqpacket,
    uid: u32,
}

fn serve(server: &Server, listener: BorrowedFd<'_>, lifeline: BorrowedFd<'_>, signals: Option<&Signals>) -> io::Result<()> {
    let mut clients: Vec<Client> = Vec::new();
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    loop {
        let accepts = if clients.len() < CLIENTS_MAX { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = vec![PollFd::from_borrowed_fd(lifeline, PollFlags::IN), PollFd::from_borrowed_fd(listener, accepts)];
        // The lifeline again where there are no signals to be heard.
        fds.push(PollFd::from_borrowed_fd(signals.map_or(lifeline, Signals::as_fd), PollFlags::IN));
        fds.extend(clients.iter().map(|client| PollFd::new(&client.socket, PollFlags::IN)));
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let (Some(&ended), Some(&called)) = (ready.first(), ready.get(1)) else { return Ok(()) };
        if ended {
            return Ok(());
        }
        while signals.is_some_and(|signals| signals.next().is_some()) {
            server.reread();
        }
        let mut asks = ready.into_iter().skip(3);
        clients.retain(|client| !asks.next().unwrap_or_default() || serve_client(server, client, &mut buf));
        if called {
            clients.extend(accept(server, listener));
        }
    }
}

/// All threads wake for a connection; one gets it.
fn accept(server: &Server, listener: BorrowedFd<'_>) -> Option<Client> {
    match sys::seqpacket::accept(listener) {
        Ok(socket) => {
            let uid = socket.peer().ok()?.uid;
            sandbox::may_call(Socket::Keys, uid, |role| server.ids.uid_of(role.name())).then_some(Client { socket, uid })
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => {
            log(&format!("accept: {error}"));
            std::thread::sleep(ACCEPT_PAUSE);
            None
        }
    }
}

/// False if the connection is over.
fn serve_client(server: &Server, client: &Client, buf: &mut [u8]) -> bool {
    for _ in 0..BURST_MAX {
        let len = match client.socket.recv(buf) {
            Ok(Received::Datagram(len, _)) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Ok(Received::End) | Err(_) => return false,
        };
        let Some(answer) = server.answer(client.uid, buf.get(..len).unwrap_or_default()) else { return false };
        let Ok(datagram) = answer.encode_bounded() else { return false };
        if client.socket.send(&datagram).is_err() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_gets_a_seconds_worth_at_once_and_then_its_pace() {
        let mut bucket = Bucket::new(SIGNATURES_PER_S, Duration::from_secs(1), Duration::ZERO);
        let at = Duration::ZERO;
        assert!((0..SIGNATURES_PER_S).all(|_| bucket.take(at)) && !bucket.take(at));
        let at = Duration::from_millis(1);
        assert!((0..SIGNATURES_PER_S / 1000).all(|_| bucket.take(at)) && !bucket.take(at));
        let at = Duration::from_secs(1000);
        assert_eq!((0..).take_while(|_| bucket.take(at)).count(), SIGNATURES_PER_S as usize, "no more is saved up");
    }
}
