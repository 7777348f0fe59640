//! The service face: start-up, the loops over the listening sockets, and the end.
//!
//! Start-up in the one order: control files, descriptors, runtime, sandbox, `ready`, the first connection. Retired, the process accepts
//! no further connection and ends with its last session, which hears nothing of it. On the end of the lifeline or SIGTERM sessions end
//! behind their message, and after [`DRAIN_MAX`] the process does.

use crate::config::{config, names};
use crate::session::{Worker, serve, serve_tls};
use crate::terms::{Programs, listed, stages, terms};
use crate::trust::Trust;
use control::tlsclients::AUTHORITIES;
use control::{ClientRule, Networks, Root};
use ipc_async::Client;
use ipc_async::proxy::Arrival;
use ipc_async::service::{self, Lifeline, Word, left_over, share};
use logline::Line;
use reception::admission::Admission;
use reception::log_line;
use rustix::process::Signal;
use sandbox::Socket;
use smtp::server::{Connection, DsnOffer, Logins, Stages, StartTls, TOO_MANY_CONNECTIONS};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use sys::inherited::Inherited;
use sys::signal::Signals;
use tls::{Acceptor, ClientCertificates, Transport};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

/// The name in the process table.
const NAME: &str = "qmail-smtpd";
/// For the directory's answer about a recipient.
const DIRECTORY_DEADLINE: Duration = Duration::from_secs(5);
/// For messages under way at the end.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// To whom a rule of control/tcp.smtp denies the service (RFC 5321 §3.1).
const DENIED: &str = "554 5.7.1 Sorry, this server takes no mail from your address.";
/// After an error of accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the end.
///
/// # Errors
/// The configuration is wrong, or what start-up needs is missing.
pub(crate) fn start(root: &Root) -> io::Result<()> {
    let mut control = control::Smtpd::read(root).map_err(io::Error::other)?;
    let mut inherited = Inherited::take()?;
    let (lifeline, run) = (inherited.one("lifeline")?, inherited.one("run")?);
    let listeners = inherited.all("listen:");
    let signals = Signals::new(&[Signal::TERM])?;
    let sessions_max = share(control.sessions_max, &std::env::var("QMAIL_WORKER").unwrap_or_default());
    service::run(async {
        let listeners = listeners
            .into_iter()
            .map(|(name, fd)| {
                let proxies = root.proxies(&name).map_err(io::Error::other)?.map(Rc::new);
                let option = |key: &str| root.listener_option(&name, key).map_err(io::Error::other);
                let listener = Listener { door: Door::of(&name), proxies, queue: option("queue")?, check: option("rcptcheck")? };
                Ok((Rc::new(listener), service::tcp_listener(fd)?))
            })
            .collect::<io::Result<Vec<_>>>()?;
        sandbox::enter_as(NAME, root.path(), &[])?;
        let keys = Arc::new(run.try_clone()?);
        let run = Rc::new(run);
        let trust = Trust::new(&control);
        let clients = ClientCertificates::of(control.tls_clients.is_some(), &control.client_authorities)
            .map_err(|error| io::Error::other(format!("control/{AUTHORITIES}: {error}")))?;
        let names = control.names.as_ref().map(names).transpose()?;
        let (sessions_per_address_max, bounds_this_host) = (control.sessions_per_address_max, control.bounds_this_host);
        let (plugins, greet_delay_s) = (std::mem::take(&mut control.plugins), control.greet_delay_s);
        let has_programs =
            listeners.iter().any(|(l, _)| l.queue.is_some()) || !control.client_rules.values_of("QMAILQUEUE").is_empty();
        // The interface of qmail-queue has no place for what is asked for; nor has a session in which a plugin may name such a program.
        let for_programs = |config| smtp::server::Config { dsn: DsnOffer::Nobody, ..config };
        let elsewhere = has_programs.then(|| config(control.clone(), Vec::new()).map(for_programs)).transpose()?;
        let stages = stages(&plugins);
        let worker = Worker::new(
            (config(control, Vec::new())?, elsewhere),
            plugins,
            trust,
            Rc::clone(&run),
            Client::new(run, Socket::Auth.path(), DIRECTORY_DEADLINE),
            Acceptor::start_asking(keys, Socket::Keys.path(), clients)?,
        );
        let gate = Gate {
            admission: Rc::new(Admission::new(sessions_max, sessions_per_address_max)),
            bounds_this_host,
            stages,
            greet_delay_s,
            worker: Rc::new(worker.completing(names)),
        };
        let lifeline = Lifeline::new(lifeline)?.or_on(&signals)?;
        inherited.ready()?;
        serve_until(Rc::new(gate), listeners, &lifeline).await;
        Ok(())
    })
}

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Smtp,
    Submission,
    /// Submission that begins with TLS (RFC 8314 §3.3).
    Submissions,
    /// For this system's recipients only (RFC 2033).
    Lmtp,
}

impl Door {
    /// By the service in the name of the inherited descriptor.
    fn of(name: &str) -> Self {
        match name.split(':').next() {
            Some("submission") => Self::Submission,
            Some("submissions") => Self::Submissions,
            Some("lmtp") => Self::Lmtp,
            _ => Self::Smtp,
        }
    }
}

/// What a line of control/listen says.
struct Listener {
    door: Door,
    proxies: Proxies,
    /// `queue=`: a program in the place of qmail-queue.
    queue: Option<Vec<u8>>,
    /// `rcptcheck=`: a program that judges recipients.
    check: Option<Vec<u8>>,
}

/// For a listener behind proxies: whose header is believed.
type Proxies = Option<Rc<Networks>>;

/// Who comes in, and what serves him.
struct Gate {
    admission: Rc<Admission>,
    /// The bound of an address holds for this host, too.
    bounds_this_host: bool,
    /// At which there are plugins.
    stages: Stages,
    greet_delay_s: u64,
    worker: Rc<Worker>,
}

/// Accepts on `listeners` until the lifeline says otherwise, then lets the sessions end, or drains.
async fn serve_until(gate: Rc<Gate>, listeners: Vec<(Rc<Listener>, TcpListener)>, lifeline: &Lifeline) {
    let start = |(door, socket)| spawn_local(accept(Rc::clone(&gate), socket, door));
    let loops: Vec<_> = listeners.into_iter().map(start).collect();
    let word = lifeline.word().await;
    loops.iter().for_each(tokio::task::JoinHandle::abort);
    if word == Word::Retire {
        lifeline.end_or(gate.admission.left_by_all()).await;
    }
    gate.worker.begin_to_drain();
    let _ = timeout(DRAIN_MAX, gate.admission.left_by_all()).await;
}

async fn accept(gate: Rc<Gate>, socket: TcpListener, listener: Rc<Listener>) {
    loop {
        let accepted = if gate.admission.is_full() { left_over(&socket).await } else { Some(socket.accept().await) };
        match accepted {
            None => {}
            Some(Ok((stream, peer))) => match &listener.proxies {
                None => gate.admit(Arrival::direct(&stream, peer.ip()), stream, &listener),
                Some(proxies) => {
                    gate.admit_behind(Rc::clone(proxies), stream, peer.ip().to_canonical(), Rc::clone(&listener));
                }
            },
            Some(Err(_)) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

impl Gate {
    /// The proxy's header comes first; until then the connection has a place among all, none of an address.
    fn admit_behind(self: &Rc<Self>, proxies: Rc<Networks>, stream: TcpStream, proxy: IpAddr, listener: Rc<Listener>) {
        let Some(place) = self.admission.admit(proxy, true) else { return refuse(&stream, TOO_MANY_CONNECTIONS) };
        let gate = Rc::clone(self);
        spawn_local(async move {
            match Arrival::behind(&stream, proxy, &proxies).await {
                Ok(arrival) => {
                    drop(place);
                    gate.admit(arrival, stream, &listener);
                }
                Err(problem) => log_line(format_args!("{}", closed(proxy, problem))),
            }
        });
    }

    fn admit(&self, arrival: Arrival, stream: TcpStream, listener: &Listener) {
        let door = listener.door;
        let (origin, client) = (arrival.origin, arrival.origin.client);
        let trust = &self.worker.trust;
        let rule = if door == Door::Smtp { trust.rules.of(client) } else { ClientRule::default() };
        if rule.is_denied {
            log_refused(client, DENIED);
            return refuse(&stream, DENIED);
        }
        let relay_client = rule.relay_client.clone().filter(|_| origin.is_this_host() || !client.is_loopback()).map(Into::into);
        let relay_client = relay_client.or_else(|| origin.is_in(&trust.relayclients).then(Box::default));
        let is_relay = relay_client.is_some();
        let is_trusted = is_relay || (origin.is_this_host() && !self.bounds_this_host);
        let Some(place) = self.admission.admit(client, is_trusted) else {
            log_refused(client, TOO_MANY_CONNECTIONS);
            return refuse(&stream, TOO_MANY_CONNECTIONS);
        };
        // Replies are collected before they are sent; holding them back further only costs time.
        let _ = stream.set_nodelay(true);
        // Whoever it is, LMTP is for this system's recipients, and only as itself.
        let is_lmtp = door == Door::Lmtp;
        let peer = Connection {
            remote_ip: client.to_string().into_bytes().into(),
            local_ip: arrival.local,
            is_lmtp,
            relay_client: relay_client.filter(|_| !is_lmtp),
            databytes: rule.databytes,
            logins: if is_lmtp { Logins::NotHere } else { trust.logins(origin) },
            xclient: !is_lmtp && origin.is_in(&trust.xclient),
            starttls: if self.worker.tls.is_available() { StartTls::Offered } else { StartTls::NotHere },
            is_submission: matches!(door, Door::Submission | Door::Submissions),
            listed: listed(rule.value("RBLSMTPD")).filter(|_| !is_lmtp),
            terms: terms(|name| rule.value(name), if is_lmtp { 0 } else { self.greet_delay_s }),
            hooks: if is_lmtp || rule.value("DISABLE_SPP").is_some() { Stages::default() } else { self.stages },
            ..Connection::default()
        };
        let named = |variable: &str, of_listener: &Option<Vec<u8>>| {
            let program = rule.value(variable).map(<[u8]>::to_vec).or_else(|| of_listener.clone());
            program.filter(|program| !program.is_empty())
        };
        let programs = Programs {
            queue: named("QMAILQUEUE", &listener.queue),
            check: named("RCPTCHECK", &listener.check),
            checks_relay_clients: rule.value("RCPTCHECKRELAYCLIENT").and_then(control::read::int_of).unwrap_or(0) > 0,
            ports: arrival.ports(&stream),
            // What counts of this one is the session's to say.
            environment: rule.variables.into_iter().filter(|(name, _)| name != b"RELAYCLIENT").collect(),
        };
        let worker = Rc::clone(&self.worker);
        if door == Door::Submissions {
            spawn_local(serve_tls(worker, stream, origin, peer, programs, place));
        } else {
            spawn_local(serve(worker, Transport::Clear(stream), origin, peer, programs, place));
        }
    }
}

/// A connection that gets no session.
fn log_refused(client: IpAddr, reply: &str) {
    log_line(format_args!("{}", Line::new("refused").put("remote", client).bytes("reply", reply.as_bytes())));
}

/// A proxy whose header was none.
fn closed(proxy: IpAddr, problem: &str) -> Line {
    Line::new("closed").put("remote", proxy).bytes("reason", problem.as_bytes())
}

/// One line, if the client takes it at once.
fn refuse(stream: &TcpStream, line: &str) {
    let _ = stream.try_write(format!("{line}\r\n").as_bytes());
}
