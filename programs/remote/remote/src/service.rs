//! The process: control files, descriptors, sandbox; then qmail-send's connections and their jobs until the lifeline ends.
//!
//! Retired, it takes no job more: what qmail-send had sent before is carried out and answered, what it sends then is refused by the
//! kernel and goes to the next process.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use control::Root;
use ipc::Message as _;
use ipc::job::Job;
use ipc_async::service::{self, Lifeline, Word};
use ipc_async::{Client, Listener, Packets};
use rustix::process::Signal;
use sandbox::Socket;
use sys::inherited::Inherited;
use sys::signal::Signals;
use tokio::sync::{Notify, Semaphore};
use tokio::task::spawn_local;
use tokio::time::timeout;
use zeroize::Zeroize as _;

use crate::hosts::{Bad, Dice, PORT_QMTP, PORT_SMTP};
use crate::job::{Courier, Remote};
use crate::own::Own;
use crate::pool::Pool;
use crate::report::{self, Judgement};
use crate::session::Dialing;

/// Jobs of one connection under way; qmail-send keeps to its concurrencyremote, this is for one that does not. Each holds two
/// descriptors.
const JOBS_MAX: usize = 5000;
/// For an answer of qmail-resolve.
pub const RESOLVE_DEADLINE: Duration = Duration::from_secs(30);
/// How long opportunistic connections to a server whose TLS failed do not try it again.
const NO_TLS_FOR: Duration = Duration::from_secs(600);
/// How long a mail host that does not take the QMTP it announces is not asked for it again: longer than the last pause between two attempts
/// at a message (nine hours), so that no message meets it each time.
const NO_QMTP_FOR: Duration = Duration::from_secs(12 * 3600);
/// From the end of the lifeline on.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// qmail-remote \[--root DIR\] --service, started by qmail-start; or the classic face.
#[must_use]
pub fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let root = Root::from_args(&mut args);
    if args.first().is_none_or(|face| face != "--service") {
        return crate::classic::run(root, &args);
    }
    match root.map_err(io::Error::other).and_then(|root| start(&root)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot start: {error}");
            ExitCode::from(111)
        }
    }
}

fn start(root: &Root) -> io::Result<()> {
    let control = control::Remote::read(root).map_err(io::Error::other)?;
    let tls = trusting(&control)?;
    let ids = root.ids().map_err(io::Error::other)?;
    let interfaces = sys::interfaces::addresses()?;
    let mut inherited = Inherited::take()?;
    let (lifeline, listener, run) = (inherited.one("lifeline")?, inherited.one("serve:remote")?, inherited.one("run")?);
    let admin = inherited.one("serve:admin-remote")?;
    let tls = tls.with_keys(Arc::new(run.try_clone()?), Socket::Keys.path());
    let signals = Signals::new(&[Signal::TERM])?;
    sandbox::enter_as("qmail-remote", root.path(), &[])?;
    service::run(async move {
        let courier = Rc::new(courier(control, tls, interfaces, run));
        let (listener, admin) = (Listener::new(listener)?, Listener::new(admin)?);
        let jobs = Jobs::default();
        inherited.ready()?;
        let callers = |uid| sandbox::may_call(Socket::Remote, uid, |role| ids.uid_of(role.name()));
        let admins = |uid| sandbox::may_call(Socket::AdminRemote, uid, |role| ids.uid_of(role.name()));
        let lifeline = Lifeline::new(lifeline)?.or_on(&signals)?;
        let word = tokio::select! {
            word = lifeline.word() => word,
            end = serve(&listener, &courier, &jobs, callers) => return end,
            end = crate::unreached::serve(&admin, &courier, admins) => return end,
        };
        if word == Word::Retire {
            drop((listener, admin));
            lifeline.end_or(jobs.retired()).await;
        }
        courier.pool.close();
        // Whoever is not done by then is in flight when the process ends: qmail-send tries those again.
        let _ = timeout(DRAIN_MAX, jobs.finished()).await;
        // The last connections say QUIT.
        tokio::task::yield_now().await;
        Ok(())
    })
}

/// Reads whom this process trusts: after the sandbox is entered there are no files.
///
/// # Errors
/// `tlscafile` names no file of certificates; temporary.
pub fn trusting(control: &control::Remote) -> io::Result<tls::client::Client> {
    let roots = tls::client::roots(control.tlscafile.as_deref())?;
    tls::client::Client::new(roots).map_err(io::Error::other)
}

/// What the jobs share, made from the configuration. `run` is the directory of the sockets.
#[must_use]
pub fn courier(control: control::Remote, tls: tls::client::Client, interfaces: Vec<std::net::IpAddr>, run: OwnedFd) -> Courier {
    let resolve = Client::new(Rc::new(run), Socket::Resolve.path(), RESOLVE_DEADLINE);
    courier_asking(control, tls, interfaces, resolve)
}

/// As [`courier`], with the one who is asked for hosts.
#[must_use]
pub fn courier_asking(
    control: control::Remote,
    tls: tls::client::Client,
    interfaces: Vec<std::net::IpAddr>,
    resolve: Client<ipc::resolve::Answer>,
) -> Courier {
    Courier {
        dialing: Dialing::new(&control, tls),
        mx_port: PORT_SMTP,
        qmtp_port: PORT_QMTP,
        own: Own { interfaces, control },
        resolve,
        pool: Rc::new(Pool::default()),
        bad: Bad::default(),
        no_tls: Bad::lasting(NO_TLS_FOR),
        no_qmtp: Bad::lasting(NO_QMTP_FOR),
        dice: RefCell::new(Dice::new()),
    }
}

/// What is under way: the connections and the jobs of all of them.
#[derive(Debug, Clone, Default)]
pub struct Jobs(Rc<UnderWay>);

#[derive(Debug, Default)]
struct UnderWay {
    jobs: Cell<usize>,
    /// A connection lives until its end was received and its last job is answered.
    connections: RefCell<Vec<Weak<Packets>>>,
    /// A job or a connection has ended.
    ended: Notify,
}

impl Jobs {
    fn begun(&self) {
        self.0.jobs.set(self.0.jobs.get().saturating_add(1));
    }

    fn ended(&self) {
        self.0.jobs.set(self.0.jobs.get().saturating_sub(1));
        self.0.ended.notify_waiters();
    }

    fn connected(&self, connection: &Rc<Packets>) {
        let mut connections = self.0.connections.borrow_mut();
        connections.retain(|known| known.strong_count() > 0);
        connections.push(Rc::downgrade(connection));
    }

    /// Waits until no job is under way.
    pub async fn finished(&self) {
        while self.0.jobs.get() > 0 {
            self.0.ended.notified().await;
        }
    }

    /// Takes no further job of any connection, and waits until all that were sent before are carried out and answered.
    pub async fn retired(&self) {
        for connection in self.0.connections.borrow().iter().filter_map(Weak::upgrade) {
            // One that cannot be shut down is gone.
            let _ = connection.shutdown_receiving();
        }
        while self.0.connections.borrow().iter().any(|connection| connection.strong_count() > 0) {
            self.0.ended.notified().await;
        }
    }
}

/// Serves connections for ever; `callers` says which uids may send jobs.
///
/// # Errors
/// The listening socket is gone.
pub async fn serve(listener: &Listener, courier: &Rc<Courier>, jobs: &Jobs, callers: impl Fn(u32) -> bool) -> io::Result<()> {
    loop {
        let connection = listener.accept().await?;
        if connection.peer().is_ok_and(|peer| callers(peer.uid)) {
            let connection = Rc::new(connection);
            jobs.connected(&connection);
            let (courier, jobs) = (Rc::clone(courier), jobs.clone());
            spawn_local(async move {
                receive(connection, courier, &jobs).await;
                jobs.0.ended.notify_waiters();
            });
        }
    }
}

/// Takes jobs off one connection. When it ends, jobs under way go on; nobody hears of their results.
async fn receive(connection: Rc<Packets>, courier: Rc<Courier>, jobs: &Jobs) {
    let places = Arc::new(Semaphore::new(JOBS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok(Some((mut datagram, body))) = connection.recv().await else { return };
        let job = Job::decode(&datagram);
        // There may be a password in it.
        datagram.zeroize();
        let Ok(job) = job else { return };
        jobs.begun();
        let (connection, courier, jobs) = (Rc::clone(&connection), Rc::clone(&courier), jobs.clone());
        spawn_local(async move {
            for datagram in carry(&courier, job, body).await {
                if connection.send(&datagram).await.is_err() {
                    break;
                }
            }
            drop((connection, place));
            jobs.ended();
        });
    }
}

async fn carry(courier: &Courier, job: Job, body: Option<OwnedFd>) -> Vec<Vec<u8>> {
    match job {
        Job::Remote { number, message: _, sender, recipients, route, flags, size, options } => {
            let job = Remote { sender, recipients, route, flags, size, options, body };
            report::answers(number, courier.carry(job).await)
        }
        Job::System { number, .. } | Job::Mailbox { number, .. } | Job::Alias { number, .. } => {
            report::answers(number, vec![Judgement::deferral("This is a local job; qmail-remote takes remote ones. (#4.3.5)\n")])
        }
    }
}
