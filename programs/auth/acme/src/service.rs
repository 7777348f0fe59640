//! The process: configuration, descriptors, sandbox; then the listener, the renewals and the admin's requests.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use control::acme::{Challenge, Note};
use control::{Acme, Networks, Root, secret};
use ipc::Message as _;
use ipc::admin::{CertAnswer, CertRequest};
use ipc_async::service::{self, Lifeline, tcp_listener};
use ipc_async::{Client, Listener, Packets};
use rustix::process::Signal;
use sandbox::Socket;
use sys::clock;
use sys::inherited::Inherited;
use sys::signal::Signals;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::task::spawn_local;
use tokio::time::{interval, sleep, timeout};
use wire::base64;

use crate::challenge::{self, Answers};
use crate::http::Http;
use crate::oracle::{Oracle, State};
use crate::order::Authority;
use crate::{Trouble, log, renewal};

/// For qmail-keys to sign, or to put a file on the disk.
const KEYS_MAX: Duration = Duration::from_secs(30);
/// For qmail-resolve.
const RESOLVE_MAX: Duration = Duration::from_secs(30);
/// For a whole order, of a hundred hosts.
const ORDER_MAX: Duration = Duration::from_secs(20 * 60);
/// Orders within an hour, whoever wants them.
const ORDERS_PER_H: usize = 50;
const HOUR: Duration = Duration::from_secs(3600);
/// The longest pause between two looks at what is due: a clock may step, and files change.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(600);
const LOOK_PAUSE_MIN: Duration = Duration::from_secs(1);
/// The first look: those who started with this process are there then.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// The pause when qmail-keys does not answer, and in seconds when an order could not even begin.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
const NOT_BEGUN_S: u64 = 300;
/// An admin hears something at least this often.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// Admins at a time.
const ADMINS_MAX: usize = 16;
/// For the note of an attempt that is broken off at the end of this process, and for those who wait for it to hear so.
const LAST_NOTE_MAX: Duration = Duration::from_secs(3);
const TOLD_PAUSE: Duration = Duration::from_millis(10);

/// qmail-acme [--root DIR] --service, started by qmail-start.
#[must_use]
pub fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).collect();
    let root = Root::from_args(&mut args);
    if args.first().is_none_or(|face| face != "--service") {
        log("usage: qmail-acme [--root DIR] --service (it is started by qmail-start)");
        return ExitCode::from(100);
    }
    match root.map_err(io::Error::other).and_then(|root| start(&root)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&format!("cannot start: {error}"));
            ExitCode::from(111)
        }
    }
}

fn start(root: &Root) -> io::Result<()> {
    let ids = root.ids().map_err(io::Error::other)?;
    let config = Acme::read(root).map_err(io::Error::other)?.ok_or_else(|| io::Error::other("there is no control/acme"))?;
    let binding = binding(&config)?;
    let mut inherited = Inherited::take()?;
    let (lifeline, admin, run) = (inherited.one("lifeline")?, inherited.one("serve:admin-acme")?, inherited.one("run")?);
    let mut listeners = Vec::new();
    for (line, fd) in inherited.all("listen:acme:") {
        listeners.push((fd, root.proxies(&format!("acme:{line}")).map_err(io::Error::other)?));
    }
    let run = Rc::new(run);
    let resolve = Client::new(Rc::clone(&run), Socket::Resolve.path(), RESOLVE_MAX);
    let http = Http::new(resolve, config.cafile.as_deref())
        .map_err(|error| io::Error::other(format!("control/acme: `cafile`: {error}")))?;
    let oracle = Oracle(Client::new(run, Socket::Keys.path(), KEYS_MAX));
    let signals = Signals::new(&[Signal::TERM])?;
    sandbox::enter_as("qmail-acme", root.path(), &[])?;
    let authority = Authority { config, http, oracle, answers: Arc::default(), binding };
    service::run(async move {
        let service = Rc::new(Service::new(authority));
        let admin = Listener::new(admin)?;
        for (listener, proxies) in listeners {
            let (challenge, answers) = (service.authority.config.challenge, Arc::clone(&service.authority.answers));
            spawn_local(serve(listener, proxies, challenge, answers));
        }
        inherited.ready()?;
        spawn_local(Rc::clone(&service).renew());
        let callers = |uid| sandbox::may_call(Socket::AdminAcme, uid, |role| ids.uid_of(role.name()));
        let lifeline = Lifeline::new(lifeline)?.or_on(&signals)?;
        tokio::select! {
            // Who is replaced loses the listener: what is under way cannot come to a good end.
            _ = lifeline.word() => {}
            end = admins(&admin, &service, callers) => return end,
        }
        service.stop().await;
        Ok(())
    })
}

/// The key that the authority gave its customer: base64url in a file of its own.
fn binding(config: &Acme) -> io::Result<Option<(String, hmac::Key)>> {
    let Some((name, file)) = &config.binding else { return Ok(None) };
    let text = secret::read(file).map_err(io::Error::other)?;
    let digits = String::from_utf8_lossy(text.expose()).trim().trim_end_matches('=').replace('-', "+").replace('_', "/");
    let padded = format!("{digits}{}", "=".repeat((4 - digits.len() % 4) % 4));
    let bytes = base64::decode(padded.as_bytes())
        .map_err(|_| io::Error::other(format!("{}: is no key in base64url, as the authority shows it", file.display())))?;
    Ok(Some((name.clone(), hmac::Key::new(hmac::HMAC_SHA256, &bytes))))
}

async fn serve(listener: OwnedFd, proxies: Option<Networks>, challenge: Challenge, answers: Arc<Answers>) {
    let served = match tcp_listener(listener) {
        Ok(listener) => challenge::serve(listener, proxies, challenge, answers).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        log(&format!("alert: challenges are not answered: {error}"));
    }
}

/// All that the tasks share.
struct Service {
    authority: Authority,
    agreed: Cell<bool>,
    /// One order at a time.
    turn: Mutex<()>,
    /// When orders began, in the last hour.
    orders: RefCell<VecDeque<Duration>>,
    /// A certificate or its configuration changed: what is due is looked at again.
    changed: Notify,
    /// This process ends.
    is_ending: Cell<bool>,
    ending: Notify,
    /// What was last logged of each certificate that cannot be renewed.
    said: RefCell<BTreeMap<String, String>>,
    admins: Cell<usize>,
}

/// What came of a request.
enum Outcome {
    Obtained(State),
    NotDue(State),
}

impl Service {
    fn new(authority: Authority) -> Self {
        Self {
            agreed: Cell::new(authority.config.is_agreed),
            authority,
            turn: Mutex::new(()),
            orders: RefCell::default(),
            changed: Notify::new(),
            is_ending: Cell::new(false),
            ending: Notify::new(),
            said: RefCell::default(),
            admins: Cell::new(0),
        }
    }

    /// Breaks an order off, and waits until that is noted and told.
    async fn stop(&self) {
        self.is_ending.set(true);
        self.ending.notify_waiters();
        let told = async {
            drop(self.turn.lock().await);
            while self.admins.get() > 0 {
                sleep(TOLD_PAUSE).await;
            }
        };
        let _ = timeout(LAST_NOTE_MAX, told).await;
    }

    /// Renews what is due, for ever.
    async fn renew(self: Rc<Self>) {
        sleep(FIRST_LOOK).await;
        loop {
            let pause = self.renew_due().await;
            let _ = timeout(pause, self.changed.notified()).await;
        }
    }

    /// Renews what is due now; how long until something may be.
    async fn renew_due(&self) -> Duration {
        let names = match self.authority.oracle.names().await {
            Ok(names) => names,
            Err(trouble) => {
                self.say("", &trouble.text);
                return RETRY_PAUSE;
            }
        };
        if !self.agreed.get() {
            self.say("", "control/acme has no line `agree yes`: no certificate is renewed");
            return LOOK_PAUSE_MAX;
        }
        let mut next_s = u64::MAX;
        for name in names {
            let state = match self.authority.oracle.state(&name).await {
                Ok(state) => state,
                Err(trouble) => {
                    self.say(&name, &format!("alert: {name} is not renewed: {}", trouble.text));
                    continue;
                }
            };
            let due_s = renewal::due_s(&state, &self.authority.config, true);
            if due_s > clock::unix_s() {
                next_s = next_s.min(due_s);
                continue;
            }
            // What came of it is logged and noted, and the next look sees it.
            let pause_s = if self.obtain(&name, false, &|_| {}).await.is_ok() { 0 } else { NOT_BEGUN_S };
            next_s = next_s.min(clock::unix_s().saturating_add(pause_s));
        }
        Duration::from_secs(next_s.saturating_sub(clock::unix_s())).clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX)
    }

    /// Once for each new text.
    fn say(&self, name: &str, text: &str) {
        if self.said.borrow_mut().insert(name.to_owned(), text.to_owned()).as_deref() != Some(text) {
            log(text);
        }
    }

    /// Has a certificate, when it is this one's turn: if it is due without regard to earlier failures, or in any case with `force`.
    async fn obtain(&self, name: &str, force: bool, progress: &dyn Fn(&str)) -> Result<Outcome, Trouble> {
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                progress("waits for another certificate that is being obtained");
                self.turn.lock().await
            }
        };
        let (oracle, config) = (&self.authority.oracle, &self.authority.config);
        let state = oracle.state(name).await?;
        if !force && renewal::due_s(&state, config, false) > clock::unix_s() {
            return Ok(Outcome::NotDue(state));
        }
        let begun = renewal::begun(&state, config, clock::unix_s(), random());
        // Without the note the next process might begin at once again: no order without it.
        let noted = match self.take_order() {
            Ok(()) => oracle.note(name, &begun).await,
            refused => refused,
        };
        noted.inspect_err(|trouble| self.say(name, &format!("alert: {name}: no certificate is ordered: {}", trouble.text)))?;
        let order = self.authority.obtain(name, &state.hosts, self.agreed.get(), progress);
        let had = tokio::select! {
            had = timeout(ORDER_MAX, order) => had.unwrap_or_else(|_| Err("the authority does not come to an end".into())),
            () = self.end() => {
                // As if it had not been tried: who comes next tries.
                let _ = oracle.note(name, &state.note).await;
                return Err("qmail-acme ends; try again when the system runs".into());
            }
        };
        let had = match had {
            Ok(()) => oracle.state(name).await,
            Err(trouble) => Err(trouble),
        };
        match had {
            Ok(state) => {
                let note = renewal::obtained(begun, &state, config, clock::unix_s(), random());
                let left_s = state.not_after_s.saturating_sub(clock::unix_s());
                log(&format!("{name}: a certificate from {}, for {} days", config.directory.endpoint, left_s / 86_400));
                self.note(name, &note).await;
                self.said.borrow_mut().remove(name);
                Ok(Outcome::Obtained(State { note, ..state }))
            }
            Err(trouble) => {
                let note = renewal::failed(begun, &trouble, clock::unix_s());
                let pause_s = note.next_s.saturating_sub(clock::unix_s());
                log(&format!(
                    "alert: {name}: no certificate: {}; it is tried again in {} minutes{}",
                    trouble.text,
                    pause_s.div_ceil(60),
                    if state.is_issued { ", and the former one stays in use" } else { "" }
                ));
                self.note(name, &note).await;
                Err(trouble)
            }
        }
    }

    async fn note(&self, name: &str, note: &Note) {
        if let Err(trouble) = self.authority.oracle.note(name, note).await {
            log(&format!("alert: {name}: {}", trouble.text));
        }
    }

    /// One more order within the hour.
    fn take_order(&self) -> Result<(), Trouble> {
        let now = clock::boottime();
        let mut orders = self.orders.borrow_mut();
        orders.retain(|began| now.saturating_sub(*began) < HOUR);
        if orders.len() >= ORDERS_PER_H {
            return Err(Trouble::new("too many orders", &format_args!("{ORDERS_PER_H} in an hour are the bound")));
        }
        orders.push_back(now);
        Ok(())
    }

    async fn end(&self) {
        if !self.is_ending.get() {
            self.ending.notified().await;
        }
    }
}

/// For spreads; without random bytes there is none.
fn random() -> u64 {
    sys::random::bytes16().map_or(0, |bytes| u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])))
}

/// Serves admins for ever.
async fn admins(listener: &Listener, service: &Rc<Service>, callers: impl Fn(u32) -> bool) -> io::Result<()> {
    loop {
        let connection = listener.accept().await?;
        if connection.peer().is_ok_and(|peer| callers(peer.uid)) && service.admins.get() < ADMINS_MAX {
            service.admins.set(service.admins.get().saturating_add(1));
            let service = Rc::clone(service);
            spawn_local(async move {
                talk(&connection, &service).await;
                service.admins.set(service.admins.get().saturating_sub(1));
            });
        }
    }
}

async fn talk(connection: &Packets, service: &Service) {
    while let Ok(Some((datagram, _))) = connection.recv().await {
        let Ok(CertRequest::Obtain { name, force, agree }) = CertRequest::decode(&datagram) else { return };
        if agree {
            service.agreed.set(true);
        }
        let name = String::from_utf8_lossy(&name).into_owned();
        // That somebody is here.
        if send(connection, &CertAnswer::Progress { text: "begins".into() }).await.is_err() {
            return;
        }
        let answer = match tell(connection, service, &name, force).await {
            Ok(Outcome::Obtained(state)) => done(true, &state, service),
            Ok(Outcome::NotDue(state)) => done(false, &state, service),
            Err(trouble) => CertAnswer::Failed { text: ipc::clip(trouble.text.as_bytes()).into() },
        };
        service.changed.notify_one();
        if send(connection, &answer).await.is_err() {
            return;
        }
    }
}

fn done(obtained: bool, state: &State, service: &Service) -> CertAnswer {
    let renew_s = renewal::renew_s(state, &service.authority.config);
    CertAnswer::Done { obtained, not_after_s: state.not_after_s, renew_s }
}

/// Has a certificate and tells an admin of it. Whether he goes on listening or not, what was begun is ended.
async fn tell(connection: &Packets, service: &Service, name: &str, force: bool) -> Result<Outcome, Trouble> {
    let (told, mut texts) = mpsc::unbounded_channel::<String>();
    let progress = |text: &str| drop(told.send(text.to_owned()));
    let obtaining = service.obtain(name, force, &progress);
    tokio::pin!(obtaining);
    let mut alive = interval(SIGN_OF_LIFE);
    alive.tick().await;
    loop {
        let text = tokio::select! {
            biased;
            Some(text) = texts.recv() => text,
            outcome = &mut obtaining => return outcome,
            _ = alive.tick() => "waits for the authority".to_owned(),
        };
        let _ = send(connection, &CertAnswer::Progress { text: ipc::clip(text.as_bytes()).into() }).await;
    }
}

async fn send(connection: &Packets, answer: &CertAnswer) -> io::Result<()> {
    let datagram = answer.encode_bounded().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // An admin who does not read holds up nobody for long.
    timeout(SIGN_OF_LIFE, connection.send(&datagram)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
