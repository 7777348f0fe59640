//! The process: control files, descriptors, sandbox, then the loop over connections and requests.

use std::io;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use control::Root;
use ipc::Message;
use ipc::resolve::{Answer, Request};
use ipc_async::service::{self, Lifeline};
use ipc_async::{Listener, Packets};
use rustix::process::Signal;
use sandbox::Socket;
use sys::Seqpacket;
use sys::inherited::Inherited;
use sys::signal::Signals;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;

use crate::answer::answer;
use crate::dns::Dns;
use crate::{REQUEST_MAX, REQUESTS_MAX, cannot_start};

/// qmail-resolve [--root DIR] --service, started by qmail-start; or --once, started by a classic qmail-remote.
#[must_use]
pub fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).collect();
    let root = match Root::from_args(&mut args) {
        Ok(root) => root,
        Err(error) => return cannot_start(&error),
    };
    let started = match args.first().map(|face| face.as_encoded_bytes()) {
        Some(b"--service") => start(&root),
        Some(b"--once") => once(&root),
        _ => {
            eprintln!("qmail-resolve: usage: qmail-resolve [--root DIR] --service (it is started by qmail-start)");
            return ExitCode::from(100);
        }
    };
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cannot_start(&error),
    }
}

fn start(root: &Root) -> io::Result<()> {
    let control = control::Resolve::read(root).map_err(other)?;
    let ids = root.ids().map_err(other)?;
    let mut inherited = Inherited::take()?;
    let (lifeline, listener) = (inherited.one("lifeline")?, inherited.one("serve:resolve")?);
    let signals = Signals::new(&[Signal::TERM])?;
    service::run(async {
        // The resolver reads resolv.conf, so it is made before the files are out of reach; it has no thread of its own.
        let dns = Rc::new(Dns::new(&control.resolvers).map_err(other)?);
        sandbox::enter_as("qmail-resolve", root.path(), &[])?;
        let listener = Listener::new(listener)?;
        inherited.ready()?;
        let callers = move |uid| sandbox::may_call(Socket::Resolve, uid, |role| ids.uid_of(role.name()));
        let lifeline = Lifeline::new(lifeline)?.or_on(&signals)?;
        tokio::select! {
            // Retired or at the end is the same here.
            _ = lifeline.word() => Ok(()),
            end = serve(&listener, &dns, callers) => end,
        }
        // Requests under way are dropped: their askers see the end of the connection and ask the next process.
    })
}

/// Serves the one connection `ask` until it ends: for a classic qmail-remote where no qmail-resolve answers.
fn once(root: &Root) -> io::Result<()> {
    let control = control::Resolve::read(root).map_err(other)?;
    let ask = Seqpacket::from_fd(Inherited::take()?.one("ask")?);
    service::run(async {
        let dns = Rc::new(Dns::new(&control.resolvers).map_err(other)?);
        sandbox::enter_as("qmail-resolve", root.path(), &[])?;
        talk(Rc::new(Packets::new(ask)?), dns).await;
        Ok(())
    })
}

/// Serves connections for ever; `callers` says which uids may ask.
///
/// # Errors
/// The listening socket is gone.
pub async fn serve(listener: &Listener, dns: &Rc<Dns>, callers: impl Fn(u32) -> bool) -> io::Result<()> {
    loop {
        let connection = listener.accept().await?;
        if connection.peer().is_ok_and(|peer| callers(peer.uid)) {
            spawn_local(talk(Rc::new(connection), Rc::clone(dns)));
        }
    }
}

/// One connection: requests are answered as their answers come, in any order.
async fn talk(connection: Rc<Packets>, dns: Rc<Dns>) {
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok(Some((datagram, _))) = connection.recv().await else { return };
        let Ok(request) = Request::decode(&datagram) else { return };
        let (connection, dns) = (Rc::clone(&connection), Rc::clone(&dns));
        spawn_local(async move {
            let answer = in_time(&dns, &request).await;
            if let Ok(datagram) = answer.encode_bounded() {
                // An asker who left wants no answer.
                let _ = connection.send(&datagram).await;
            }
            drop(place);
        });
    }
}

async fn in_time(dns: &Dns, request: &Request) -> Answer {
    let late = |_| {
        let (Request::Mx { id, .. } | Request::Addresses { id, .. } | Request::Site { id, .. }) = request;
        Answer::Temporary { id: *id, text: "no answer in time".into() }
    };
    tokio::time::timeout(REQUEST_MAX, answer(dns, request)).await.unwrap_or_else(late)
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(error)
}
