//! The process: control files and secrets, descriptors, sandbox, then connections and requests.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use control::authsources::{self, Source};
use control::{ControlError, Root};
use ipc::Message as _;
use ipc::authnet::{Answer, Request};
use ipc_async::service::{self, Lifeline};
use ipc_async::{Client, Listener, Packets};
use rustix::process::Signal;
use sandbox::Socket;
use sys::inherited::Inherited;
use sys::signal::Signals;
use tokio::sync::{Notify, Semaphore};
use tokio::task::spawn_local;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::dial::Dialer;
use crate::postgres::Postgres;
use crate::{Directory, REQUEST_MAX, Tokens, Verdict, log};

/// Requests of one connection under way; further ones wait in the socket.
const REQUESTS_MAX: usize = 256;

/// qmail-authnet [--root DIR] --service, started by qmail-start.
#[must_use]
pub fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).collect();
    let root = Root::from_args(&mut args);
    if args.first().is_none_or(|face| face != "--service") {
        log("usage: qmail-authnet [--root DIR] --service (it is started by qmail-start)");
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
    let mut inherited = Inherited::take()?;
    let (lifeline, listener, run) = (inherited.one("lifeline")?, inherited.one("serve:authnet")?, inherited.one("run")?);
    let accounts = inherited.one("serve:accounts")?;
    let judges = Judges::read(root, run.try_clone()?).map_err(io::Error::other)?;
    let postgres = postgres(root, run).map_err(io::Error::other)?.map(Rc::new);
    let signals = Signals::new(&[Signal::TERM])?;
    sandbox::enter_as("qmail-authnet", root.path(), &[])?;
    service::run(async move {
        let (judges, listener, accounts) = (Rc::new(judges), Listener::new(listener)?, Listener::new(accounts)?);
        inherited.ready()?;
        let ids = &ids;
        let callers = |socket| move |uid| sandbox::may_call(socket, uid, |role| ids.uid_of(role.name()));
        let lifeline = Lifeline::new(lifeline)?.or_on(&signals)?;
        tokio::select! {
            // Retired or at the end is the same here: what is asked already is answered.
            _ = lifeline.word() => {}
            end = serve(&listener, &judges, callers(Socket::Authnet)) => return end,
            end = serve_accounts(&accounts, postgres.as_ref(), callers(Socket::Accounts)) => return end,
        }
        drop(listener);
        let _ = timeout(REQUEST_MAX, judges.finished()).await;
        Ok(())
    })
}

/// The database that control/accounts names, if it is one elsewhere.
///
/// # Errors
/// A file is malformed or not as secret as it must be; temporary.
pub fn postgres(root: &Root, run: OwnedFd) -> Result<Option<Postgres>, ControlError> {
    let control::accounts::Store::Postgres(config) = control::accounts::Store::read(root)? else { return Ok(None) };
    let resolve = Client::new(Rc::new(run), Socket::Resolve.path(), REQUEST_MAX);
    Postgres::read(root, *config, |cafile| Dialer::new(resolve, cafile)).map(Some)
}

/// Without a database nobody is served: whoever asks has read another control/accounts, and hears that there is no answer.
async fn serve_accounts(listener: &Listener, postgres: Option<&Rc<Postgres>>, callers: impl Fn(u32) -> bool) -> io::Result<()> {
    match postgres {
        Some(postgres) => tokio::select! {
            end = postgres.serve(listener, callers) => end,
            () = postgres.watch() => Ok(()),
        },
        None => loop {
            drop(listener.accept().await?);
        },
    }
}

/// Those who can be asked.
#[derive(Default)]
pub struct Judges {
    ldap: Option<Directory>,
    oauth: Option<Tokens>,
    under_way: Cell<usize>,
    ended: Notify,
}

impl Judges {
    /// Reads what control/authsources asks for. `run` is the directory of the sockets.
    ///
    /// # Errors
    /// A file is missing, malformed or not as secret as it must be; temporary.
    pub fn read(root: &Root, run: OwnedFd) -> Result<Self, ControlError> {
        let resolve = Client::new(Rc::new(run), Socket::Resolve.path(), REQUEST_MAX);
        let dialer = |cafile: Option<&std::path::Path>| Dialer::new(resolve.clone(), cafile);
        let sources = authsources::load(root)?;
        Ok(Self {
            ldap: sources.contains(&Source::Ldap).then(|| Directory::read(root, dialer)).transpose()?,
            oauth: sources.contains(&Source::Oauth).then(|| Tokens::read(root, dialer)).transpose()?,
            ..Self::default()
        })
    }

    /// Waits until no request is under way.
    async fn finished(&self) {
        while self.under_way.get() > 0 {
            self.ended.notified().await;
        }
    }

    async fn answer(&self, request: Request) -> Answer {
        self.under_way.set(self.under_way.get().saturating_add(1));
        let (id, verdict) = self.judge(request).await;
        self.under_way.set(self.under_way.get().saturating_sub(1));
        self.ended.notify_waiters();
        match verdict {
            Verdict::Right(user) => Answer::Right { id, user: user.into() },
            Verdict::Wrong => Answer::Wrong { id },
            Verdict::NoSuchUser => Answer::NoSuchUser { id },
            Verdict::Unavailable(text) => Answer::Unavailable { id, text: ipc::clip(text.as_bytes()).into() },
        }
    }

    async fn judge(&self, request: Request) -> (u64, Verdict) {
        match request {
            Request::Check { id, source, login, password, .. } => {
                let verdict = match (&*source, &self.ldap) {
                    (b"ldap", Some(directory)) => directory.check(&login, password.expose()).await,
                    _ => not_configured(&source),
                };
                (id, verdict)
            }
            Request::Token { id, user, token, .. } => {
                let verdict = match &self.oauth {
                    Some(tokens) => tokens.check(&user, token.expose()).await,
                    None => not_configured(b"oauth"),
                };
                (id, verdict)
            }
        }
    }
}

/// control/authsources names it since this process was started.
fn not_configured(source: &[u8]) -> Verdict {
    let source = wire::escape::visible(source);
    Verdict::Unavailable(format!("qmail-authnet was started without the source `{source}`; send SIGHUP to qmail-start"))
}

/// Serves connections for ever; `callers` says which uids may ask.
///
/// # Errors
/// The listening socket is gone.
pub async fn serve(listener: &Listener, judges: &Rc<Judges>, callers: impl Fn(u32) -> bool) -> io::Result<()> {
    loop {
        let connection = listener.accept().await?;
        if connection.peer().is_ok_and(|peer| callers(peer.uid)) {
            spawn_local(talk(Rc::new(connection), Rc::clone(judges)));
        }
    }
}

/// One connection: requests are answered as their answers come, in any order.
async fn talk(connection: Rc<Packets>, judges: Rc<Judges>) {
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok(Some((datagram, _))) = connection.recv().await else { return };
        let Ok(request) = Request::decode(&Zeroizing::new(datagram)) else { return };
        let (connection, judges) = (Rc::clone(&connection), Rc::clone(&judges));
        spawn_local(async move {
            if let Ok(datagram) = judges.answer(request).await.encode_bounded() {
                // An asker who left wants no answer.
                let _ = connection.send(&datagram).await;
            }
            drop(place);
        });
    }
}
