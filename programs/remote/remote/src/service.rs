//! The process: control files, descriptors, sandbox; then qmail-send's connections and their jobs until the lifeline ends.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use control::Root;
use ipc::Message as _;
use ipc::job::Job;
use ipc_async::{Client, Listener, Packets, service};
use rustix::process::Signal;
use sandbox::Socket;
use sys::inherited::Inherited;
use sys::signal::Signals;
use tokio::sync::{Notify, Semaphore};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::hosts::{Bad, Dice, PORT_SMTP};
use crate::job::{Courier, Remote};
use crate::own::Own;
use crate::pool::Pool;
use crate::report::{self, Judgement};
use crate::session::Dialing;

/// Jobs of one connection under way; qmail-send keeps to its concurrencyremote, this is for one that does not. Each holds two
/// descriptors.
const JOBS_MAX: usize = 5000;
/// For an answer of qmail-resolve.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(30);
/// From the end of the lifeline on.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// qmail-remote \[--root DIR\] --service, started by qmail-start.
#[must_use]
pub fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).collect();
    let root = Root::from_args(&mut args);
    if args.first().is_none_or(|face| face != "--service") {
        eprintln!("qmail-remote: usage: qmail-remote [--root DIR] --service (it is started by qmail-start)");
        return ExitCode::from(100);
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
    let ids = root.ids().map_err(io::Error::other)?;
    let interfaces = sys::interfaces::addresses()?;
    let mut inherited = Inherited::take()?;
    let (lifeline, listener, run) = (inherited.one("lifeline")?, inherited.one("serve:remote")?, inherited.one("run")?);
    let signals = Signals::new(&[Signal::TERM])?;
    sandbox::enter_as("qmail-remote", root.path(), &[])?;
    service::run(async move {
        let courier = Rc::new(courier(control, interfaces, run));
        let listener = Listener::new(listener)?;
        let jobs = Jobs::default();
        inherited.ready()?;
        let callers = |uid| sandbox::may_call(Socket::Remote, uid, |role| ids.uid_of(role.name()));
        tokio::select! {
            end = service::end(lifeline, &signals) => end?,
            end = serve(&listener, &courier, &jobs, callers) => end?,
        }
        courier.pool.close();
        // Whoever is not done by then is in flight when the process ends: qmail-send tries those again.
        let _ = timeout(DRAIN_MAX, jobs.finished()).await;
        // The last connections say QUIT.
        tokio::task::yield_now().await;
        Ok(())
    })
}

/// What the jobs share, made from the configuration. `run` is the directory of the sockets.
#[must_use]
pub fn courier(control: control::Remote, interfaces: Vec<std::net::IpAddr>, run: OwnedFd) -> Courier {
    Courier {
        dialing: Dialing::from(&control),
        mx_port: PORT_SMTP,
        own: Own { interfaces, control },
        resolve: Client::new(Rc::new(run), Socket::Resolve.path(), RESOLVE_DEADLINE),
        pool: Rc::new(Pool::default()),
        bad: Bad::default(),
        dice: RefCell::new(Dice::new()),
    }
}

/// Jobs under way, of all connections.
#[derive(Debug, Clone, Default)]
pub struct Jobs(Rc<(Cell<usize>, Notify)>);

impl Jobs {
    fn begun(&self) {
        self.0.0.set(self.0.0.get().saturating_add(1));
    }

    fn ended(&self) {
        self.0.0.set(self.0.0.get().saturating_sub(1));
        self.0.1.notify_waiters();
    }

    /// Waits until none is under way.
    pub async fn finished(&self) {
        while self.0.0.get() > 0 {
            self.0.1.notified().await;
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
            spawn_local(receive(Rc::new(connection), Rc::clone(courier), jobs.clone()));
        }
    }
}

/// Takes jobs off one connection. When it ends, jobs under way go on; nobody hears of their results.
async fn receive(connection: Rc<Packets>, courier: Rc<Courier>, jobs: Jobs) {
    let places = Arc::new(Semaphore::new(JOBS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok(Some((datagram, body))) = connection.recv().await else { return };
        let Ok(job) = Job::decode(&datagram) else { return };
        jobs.begun();
        let (connection, courier, jobs) = (Rc::clone(&connection), Rc::clone(&courier), jobs.clone());
        spawn_local(async move {
            for datagram in carry(&courier, job, body).await {
                if connection.send(&datagram).await.is_err() {
                    break;
                }
            }
            jobs.ended();
            drop(place);
        });
    }
}

async fn carry(courier: &Courier, job: Job, body: Option<OwnedFd>) -> Vec<Vec<u8>> {
    match job {
        Job::Remote { number, message: _, sender, recipients, route, flags, size } => {
            let job = Remote { sender, recipients, route, flags, size, body };
            report::answers(number, courier.carry(job).await)
        }
        Job::System { number, .. } | Job::Mailbox { number, .. } | Job::Alias { number, .. } => {
            report::answers(number, vec![Judgement::deferral("This is a local job; qmail-remote takes remote ones. (#4.3.5)\n")])
        }
    }
}
