//! The loop: who asks, who is asked, and what the answers lead to.
//!
//! One thread; it never waits for anything but poll(2) and its own database. Every request is answered once, or its connection is closed.

use crate::admin::Listing;
use crate::authnet::Waiter;
use crate::clients::{Client, Heard, Rights};
use crate::elsewhere::{Following, StoreWaiter};
use crate::exchange::{Exchanges, Layer};
use crate::hashing::HashJob;
use crate::limits::{Attempt, Limits};
use crate::login::Login;
use crate::pool::Pool;
use crate::recipients::{Asker, Key, Recipients};
use crate::relays::Relays;
use crate::rename::Renaming;
use crate::requests::{Heards, Said};
use crate::room::{Mailbox, Rooms};
use crate::sources::CHECKPW_DEADLINE;
use crate::submission::Rules;
use crate::upstream::Upstream;
use accounts::{Accounts, Directory, Generation, Quota, UserName};
use control::auth::Places;
use control::authsources;
use control::read::lines_of;
use control::{AuthLimits, Ids, Root, TlsClients, Watched};
use ipc::auth::{Answer, Request};
use ipc::{DATAGRAM_LEN_MAX, Message};
use rustix::event::{PollFd, PollFlags};
use sandbox::Socket;
use sasl::Mechanisms;
use sasl::scram::Channel;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use sys::Seqpacket;
use sys::wake::Wake;
use wire::Domain;
use zeroize::Zeroize;

/// Connections at a time: workers and tools, some dozens on a large machine.
const CLIENTS_MAX: usize = 512;
/// Datagrams taken from one connection before the others get their turn.
const BURST_MAX: usize = 64;
/// Bytes of requests taken before they are answered; the others are taken the next time.
const HEARD_LEN_MAX: usize = 4 << 20;
/// Pause when no connection can be accepted for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How long the same trouble is not logged again.
const TROUBLE_PAUSE: Duration = Duration::from_secs(60);

/// What a server is made of; everything is open.
pub struct Setup {
    pub root: Root,
    pub accounts: Accounts,
    pub ids: Ids,
    /// The directory run/qmail.
    pub run: Arc<OwnedFd>,
}

/// Where requests come from.
#[derive(Default)]
pub struct Listeners {
    pub auth: Option<OwnedFd>,
    pub admin: Option<OwnedFd>,
    /// For administrators of domains.
    pub manage: Option<OwnedFd>,
    /// Connections of the administrator that are there already (`--once-admin`).
    pub connected: Vec<Seqpacket>,
}

/// What an answer of qmail-lspawn is for.
pub(crate) enum LspawnWaiter {
    /// Is there somebody?
    Exists { key: Key },
    /// The session of a login that was right.
    Session { asker: Asker, user: Vec<u8> },
    /// A system user whose password was right.
    SystemUser { login: Box<Login>, name: Vec<u8> },
    /// How much fits into a mailbox?
    Room { number: u64, mailbox: Mailbox, size: u64 },
    /// How much of a quota is used: for an administrator.
    Usage { client: u64, quota: Quota },
    /// A user's home has another name.
    Renamed(Box<Renaming>),
    /// Whoever asked does not mind.
    Nobody,
}

/// The state of qmail-auth.
pub struct Server {
    pub(crate) accounts: Accounts,
    pub(crate) places: Places,
    pub(crate) pool: Pool<HashJob>,
    pub(crate) lspawn: Upstream<LspawnWaiter>,
    pub(crate) checkpw: Upstream<Box<Login>>,
    pub(crate) authnet: Upstream<Waiter>,
    /// Questions to a database of accounts elsewhere.
    pub(crate) store: Upstream<StoreWaiter>,
    pub(crate) following: Following,
    pub(crate) follow_after: Duration,
    pub(crate) auth_sources: Watched<Vec<authsources::Source>>,
    pub(crate) listings: BTreeMap<u64, Listing>,
    pub(crate) limits: Limits,
    pub(crate) exchanges: Exchanges,
    /// Accounts whose hash is being made anew.
    pub(crate) renewals: BTreeSet<(Domain, UserName)>,
    auth_limits: Watched<AuthLimits>,
    mechanisms: Watched<Mechanisms>,
    /// For which certificates clients are which accounts.
    pub(crate) tls_clients: Watched<TlsClients>,
    /// Domains whose accounts do not log in with their main password once they have app passwords.
    app_passwords_only: Watched<BTreeSet<Vec<u8>>>,
    pub(crate) rules: Rules,
    pub(crate) recipients: Recipients,
    pub(crate) rooms: Rooms,
    /// Users who are being renamed: their mail waits.
    pub(crate) renaming: BTreeSet<(Domain, UserName)>,
    relays: Relays,
    seen: (Generation, u64),
    pub(crate) clients: BTreeMap<u64, Client>,
    next_client: u64,
    listeners: Listeners,
    ids: Ids,
    wake: Wake,
    once: bool,
    /// What was logged last as wrong, and until when it is not logged again.
    troubled: (String, Duration),
}

/// What poll(2) found.
#[derive(Clone, Copy)]
enum Source {
    Lifeline,
    Listener(Socket),
    Wake,
    Lspawn,
    Authnet,
    Store,
    Checkpw,
    Client(u64),
}

impl Server {
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn new(setup: Setup, mut listeners: Listeners) -> io::Result<Self> {
        let wake = Wake::new()?;
        let mut server = Self {
            accounts: setup.accounts,
            limits: Limits::new(),
            exchanges: Exchanges::default(),
            renewals: BTreeSet::new(),
            auth_limits: AuthLimits::watched(&setup.root),
            auth_sources: authsources::watched(&setup.root),
            mechanisms: Watched::new(setup.root.control_file("authmechanisms"), mechanisms),
            tls_clients: TlsClients::watch(&setup.root),
            app_passwords_only: Watched::new(setup.root.control_file("apppasswordsonly"), |text| {
                Ok(lines_of(text.unwrap_or_default()).into_iter().map(|line| line.to_ascii_lowercase()).collect())
            }),
            rules: Rules::new(&setup.root, Arc::clone(&setup.run)),
            relays: Relays::new(&setup.root),
            places: Places::new(setup.root),
            pool: Pool::start(wake.clone())?,
            checkpw: Upstream::new(Arc::clone(&setup.run), Socket::Checkpw.path()).with_deadline(CHECKPW_DEADLINE),
            authnet: Upstream::new(Arc::clone(&setup.run), Socket::Authnet.path()),
            store: Upstream::new(Arc::clone(&setup.run), Socket::Accounts.path()),
            following: Following::default(),
            follow_after: Duration::ZERO,
            lspawn: Upstream::new(setup.run, Socket::Lspawn.path()),
            listings: BTreeMap::new(),
            recipients: Recipients::default(),
            rooms: Rooms::default(),
            renaming: BTreeSet::new(),
            seen: (Generation::default(), 0),
            clients: BTreeMap::new(),
            next_client: 0,
            once: !listeners.connected.is_empty(),
            listeners: Listeners::default(),
            ids: setup.ids,
            wake,
            troubled: (String::new(), Duration::ZERO),
        };
        for socket in std::mem::take(&mut listeners.connected) {
            socket.set_nonblocking(true)?;
            // Whoever started this process holds the other end of the pair.
            server.add_client(socket, Rights { network: false, queue: false, admin: true, manage: false }, 0);
        }
        server.listeners = listeners;
        Ok(server)
    }

    /// Serves until `lifeline` ends; with `connected` connections alone, until they end.
    ///
    /// # Errors
    /// poll(2) failed.
    pub fn run(&mut self, lifeline: Option<&OwnedFd>) -> io::Result<()> {
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        while !(self.once && self.clients.is_empty()) {
            let mut heard = Heards::default();
            for source in self.wait(lifeline)? {
                match source {
                    Source::Lifeline => return Ok(()),
                    Source::Listener(socket) => self.accept(socket),
                    Source::Wake => self.wake.clear(),
                    Source::Lspawn => self.lspawn_ready(&mut buf),
                    Source::Authnet => self.authnet_ready(&mut buf),
                    Source::Store => self.store_ready(&mut buf),
                    Source::Checkpw => self.checkpw_ready(&mut buf),
                    Source::Client(client) => self.client_ready(client, &mut buf, &mut heard),
                }
            }
            self.answer_all(heard.requests);
            while let Some((job, outcome)) = self.pool.take() {
                self.hashed(job, outcome);
            }
            self.advance();
        }
        Ok(())
    }

    fn wait(&self, lifeline: Option<&OwnedFd>) -> io::Result<Vec<Source>> {
        let (mut sources, mut fds) = (vec![Source::Wake], vec![PollFd::new(&self.wake, PollFlags::IN)]);
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        if let Some(fd) = lifeline {
            add(Source::Lifeline, fd.as_fd(), PollFlags::IN);
        }
        if self.clients.len() < CLIENTS_MAX {
            for (socket, fd) in [
                (Socket::Auth, &self.listeners.auth),
                (Socket::AdminAuth, &self.listeners.admin),
                (Socket::Manage, &self.listeners.manage),
            ] {
                fd.iter().for_each(|fd| add(Source::Listener(socket), fd.as_fd(), PollFlags::IN));
            }
        }
        self.lspawn.interest().into_iter().for_each(|(fd, flags)| add(Source::Lspawn, fd, flags));
        self.authnet.interest().into_iter().for_each(|(fd, flags)| add(Source::Authnet, fd, flags));
        self.store.interest().into_iter().for_each(|(fd, flags)| add(Source::Store, fd, flags));
        self.checkpw.interest().into_iter().for_each(|(fd, flags)| add(Source::Checkpw, fd, flags));
        for (number, client) in &self.clients {
            let (fd, flags) = client.interest(self.listings.contains_key(number));
            add(Source::Client(*number), fd, flags);
        }
        let due =
            [self.lspawn.due(), self.authnet.due(), self.checkpw.due(), self.store_due(), self.rooms.due(), self.managers_due()]
                .into_iter()
                .flatten()
                .min();
        let timeout = due.map(|due| due.saturating_sub(sys::clock::boottime()).saturating_add(Duration::from_millis(1)));
        let timeout = timeout.and_then(|timeout| rustix::event::Timespec::try_from(timeout).ok());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(sources.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(source, _)| source).collect())
    }

    /// Sends what waits, ends what is due.
    fn advance(&mut self) {
        let now = sys::clock::boottime();
        self.exchanges.expire(now);
        self.expire_rooms(now);
        self.expire_managers(now);
        for waiter in self.lspawn.expired(now).into_iter().chain(self.lspawn.advance(now)).collect::<Vec<_>>() {
            self.lspawn_gone(waiter);
        }
        self.authnet_advance(now);
        self.store_advance(now);
        for login in self.checkpw.expired(now).into_iter().chain(self.checkpw.advance(now)).collect::<Vec<_>>() {
            self.checkpw_gone(login);
        }
    }

    fn accept(&mut self, socket: Socket) {
        let listener = match socket {
            Socket::Auth => &self.listeners.auth,
            Socket::Manage => &self.listeners.manage,
            _ => &self.listeners.admin,
        };
        let Some(listener) = listener else { return };
        match sys::seqpacket::accept(listener.as_fd()) {
            Ok(connection) => {
                let uid = connection.peer().map(|peer| peer.uid);
                let rights = |uid| Some((Rights::of(socket, uid, |role| self.ids.uid_of(role.name()))?, uid));
                if let Some((rights, uid)) = uid.ok().and_then(rights)
                    && (!rights.manage || self.may_manage_from(uid))
                {
                    self.add_client(connection, rights, uid);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => std::thread::sleep(ACCEPT_PAUSE),
        }
    }

    fn add_client(&mut self, socket: Seqpacket, rights: Rights, uid: u32) {
        self.clients.insert(self.next_client, Client::new(socket, rights, uid));
        self.next_client = self.next_client.wrapping_add(1);
    }

    fn client_ready(&mut self, number: u64, buf: &mut [u8], heard: &mut Heards) {
        for _ in 0..BURST_MAX {
            let Some(client) = self.clients.get_mut(&number) else { return };
            if !client.flush() {
                return self.close(number);
            }
            if client.has_room() && self.listings.contains_key(&number) {
                self.continue_listing(number);
                continue;
            }
            if !client.is_reading() || heard.len >= HEARD_LEN_MAX {
                return;
            }
            match client.receive(buf) {
                Heard::Nothing => return,
                Heard::End => return self.close(number),
                Heard::Datagram(len) => {
                    client.begin();
                    let datagram = buf.get_mut(..len).unwrap_or_default();
                    let said = Said::understand(client.rights, client.manager.is_some(), datagram);
                    // It may have held a password.
                    datagram.zeroize();
                    let Some(said) = said else { return self.close(number) };
                    heard.len = heard.len.saturating_add(len);
                    heard.requests.push((number, said));
                }
            }
        }
    }

    /// Answers what has come. The files are looked at once for all of it: after the last question was sent, so that whatever was
    /// changed before a question counts for its answer.
    fn answer_all(&mut self, requests: Vec<(u64, Said)>) {
        if !requests.is_empty() {
            self.look();
        }
        for (number, said) in requests {
            match said {
                Said::Admin(request) => {
                    self.ask_freshly(true);
                    self.admin_request(number, request);
                    self.ask_freshly(false);
                }
                Said::Ask(request) => self.request_when_known(number, request),
            }
        }
    }

    /// Takes note of changes.
    pub(crate) fn look(&mut self) {
        self.places.look();
        let generation = match self.accounts.generation() {
            Ok(generation) => generation,
            // Whatever the answer to a question is made of says so, too.
            Err(error) => {
                self.trouble(&error.to_string());
                return self.recipients.forget();
            }
        };
        let seen = (generation, self.places.generation());
        if seen != self.seen {
            self.seen = seen;
            self.recipients.forget();
        }
    }

    pub(crate) fn request(&mut self, number: u64, request: Request) {
        match request {
            Request::Recipient { id, address } => self.recipient(Asker { client: number, id }, &address, 0),
            Request::Fits { id, address, size } => self.recipient(Asker { client: number, id }, &address, size),
            Request::Login { id, service, login, password, remote } => {
                let remote = self.manager_address(number).or(remote);
                self.login(Asker { client: number, id }, &service, &login, password, remote);
            }
            Request::Apop { id, login, timestamp, digest, remote } => {
                self.apop(Asker { client: number, id }, &login, &timestamp, digest.expose(), remote);
            }
            Request::SaslStart { id, service, mechanism, initial, remote, exporter, end_point, certificate } => {
                let channel = Channel { exporter: exporter.map(|bytes| bytes.0), end_point: end_point.map(|bytes| bytes.0) };
                let layer = Layer { channel, certificate: certificate.map(|bytes| bytes.0) };
                let initial = initial.map(wire::Secret::into_bytes);
                self.sasl_start(Asker { client: number, id }, &service, &mechanism, initial, remote, layer);
            }
            Request::SaslStep { id, exchange, response } => {
                self.sasl_step(Asker { client: number, id }, exchange, &response.into_bytes());
            }
            Request::MaySend { id, login, address } => self.may_send(Asker { client: number, id }, &login, &address),
            Request::MaySubmit { id, login, recipients } => self.may_submit(Asker { client: number, id }, &login, recipients),
            Request::Arrived { id, address } => {
                if let Err(error) = self.relays.note(address, sys::clock::boottime()) {
                    self.trouble(&error.to_string());
                }
                self.answer(number, &Answer::Noted { id }, None);
            }
            Request::MayRelay { id, address } => {
                let allowed = self.relays.allows(address, sys::clock::boottime());
                if let Err(error) = &allowed {
                    self.trouble(&error.to_string());
                }
                self.answer(number, &Answer::Relay { id, allowed: allowed.unwrap_or(false) }, None);
            }
            Request::Route { id, address } => {
                if let Some(client) = self.clients.get_mut(&number) {
                    client.keeps_routes = true;
                }
                let target = self.route(&address);
                self.answer(number, &Answer::Route { id, target }, None);
            }
        }
    }

    /// Logs what is wrong here; the same again not before [`TROUBLE_PAUSE`] is over, since every question would say it.
    pub(crate) fn trouble(&mut self, text: &str) -> String {
        let now = sys::clock::boottime();
        let (last, until) = &self.troubled;
        if last != text || now >= *until {
            log(text);
            self.troubled = (text.to_owned(), now.saturating_add(TROUBLE_PAUSE));
        }
        text.to_owned()
    }

    /// Answers a request, if its connection is still there.
    pub(crate) fn answer(&mut self, number: u64, message: &impl Message, fd: Option<OwnedFd>) {
        if self.clients.get_mut(&number).is_some_and(|client| !client.answer(message, fd)) {
            self.close(number);
        }
    }

    /// Sends a part of an answer; false if the connection is gone.
    pub(crate) fn push(&mut self, number: u64, message: &impl Message) -> bool {
        let kept = self.clients.get_mut(&number).is_some_and(|client| client.push(message, None));
        if !kept {
            self.close(number);
        }
        kept
    }

    /// Accounts changed: whoever keeps routes hears of it before the change is answered, so that it counts at once.
    pub(crate) fn announce_change(&mut self) {
        self.recipients.forget();
        self.rooms.forget();
        let keepers: Vec<u64> =
            self.clients.iter().filter(|(_, client)| client.keeps_routes).map(|(number, _)| *number).collect();
        for number in keepers {
            self.push(number, &Answer::Changed {});
        }
    }

    /// `control/authlimits` as it is now; while it cannot be read as it was, or the default.
    pub(crate) fn auth_limits(&mut self) -> AuthLimits {
        let (limits, error) = current(&mut self.auth_limits);
        error.into_iter().for_each(|error| drop(self.trouble(&error)));
        limits
    }

    /// `control/authmechanisms`, likewise.
    pub(crate) fn mechanisms(&mut self) -> Mechanisms {
        let (mechanisms, error) = current(&mut self.mechanisms);
        error.into_iter().for_each(|error| drop(self.trouble(&error)));
        mechanisms
    }

    /// Is the domain in `control/apppasswordsonly`? While it cannot be read, as it was.
    pub(crate) fn wants_app_passwords(&mut self, domain: &Domain) -> bool {
        if let Err(error) = self.app_passwords_only.get().map(drop) {
            self.trouble(&error.to_string());
        }
        self.app_passwords_only.last().is_some_and(|domains| domains.contains(domain.as_bytes()))
    }

    pub(crate) fn is_refused(&mut self, attempt: &Attempt) -> bool {
        let limits = self.auth_limits();
        self.limits.is_refused(attempt, &limits, sys::clock::boottime())
    }

    /// Has this connection taken all that was sent?
    pub(crate) fn has_room(&self, number: u64) -> bool {
        self.clients.get(&number).is_some_and(Client::has_room)
    }

    pub(crate) fn close(&mut self, number: u64) {
        self.clients.remove(&number);
        self.listings.remove(&number);
        self.exchanges.forget(number);
    }
}

/// The value of a file, or its last or default one with what is wrong.
fn current<T: Clone + Default>(file: &mut Watched<T>) -> (T, Option<String>) {
    let error = file.get().err().map(|error| error.to_string());
    (file.last().cloned().unwrap_or_default(), error)
}

fn mechanisms(text: Option<&[u8]>) -> Result<Mechanisms, String> {
    let lines = text.map(lines_of);
    Mechanisms::parse(lines.as_deref()).map_err(|name| format!("`{}` is no mechanism", wire::escape::visible(&name)))
}

/// A line for the log, one whatever it holds; nobody reading it is no reason to stop.
pub(crate) fn log(text: impl std::fmt::Display) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{}", wire::escape::visible(text.to_string().as_bytes()));
}
