//! One job from its route to the last verdict.
//!
//! Every recipient gets exactly one judgement. Each round either settles a recipient or uses up an address, so a job ends.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ipc::job::{FLAG_REQUIRETLS, FLAG_SMTPUTF8, Route};
use ipc::options::Options;
use ipc::resolve::{Answer, Request};
use ipc_async::Client as Asker;
use message::verp;
use smtp::client::{Dsn, Finished, Outcome, Protocol, Transaction};
use smtp::command::RcptParameters;
use smtp::reply::Offers;
use wire::{Address, DeliverBy, Priority};

use crate::body::Body;
use crate::hosts::{self, Bad, Candidate, Dice, Via};
use crate::own::Own;
use crate::pool::Pool;
use crate::report::{self, Judgement};
use crate::session::{Dialing, Refused, Session};
use crate::terms::{Key, Wishes};

/// A job as qmail-send sent it.
#[derive(Debug)]
pub struct Remote {
    pub sender: Address,
    pub recipients: Vec<Address>,
    pub route: Route,
    pub flags: u32,
    pub size: u64,
    /// By the recipients' places.
    pub options: Option<Options>,
    pub body: Option<OwnedFd>,
}

/// What all jobs share.
pub struct Courier {
    pub dialing: Dialing,
    /// 25; another one in tests only.
    pub mx_port: u16,
    /// 209; another one in tests only. For mail hosts that announce QMTP (MXPS).
    pub qmtp_port: u16,
    pub own: Own,
    pub resolve: Asker<Answer>,
    pub pool: Rc<Pool>,
    pub bad: Bad,
    /// Servers whose TLS did not work: for a while opportunistic connections go without.
    pub no_tls: Bad<SocketAddr>,
    /// Mail hosts that announce QMTP and took no connection.
    pub no_qmtp: Bad<SocketAddr>,
    pub dice: RefCell<Dice>,
}

impl Courier {
    /// Carries out a job; one judgement per recipient, in their order.
    pub async fn carry(&self, job: Remote) -> Vec<Judgement> {
        let count = job.recipients.len();
        let all = |judgement: Judgement| vec![judgement; count];
        let body = match job.body {
            Some(fd) => Body::new(fd, job.size).await.ok(),
            None => None,
        };
        let Some(body) = body else { return all(Judgement::deferral(report::UNREADABLE)) };
        let mut candidates = match self.candidates(&job.route).await {
            Ok(candidates) => candidates,
            Err(judgement) => return all(judgement),
        };
        let requiretls = job.flags & FLAG_REQUIRETLS != 0;
        let is_socket = matches!(job.route, Route::LmtpSocket { .. });
        let protocol = if matches!(job.route, Route::Lmtp { .. }) || is_socket { Protocol::Lmtp } else { Protocol::Smtp };
        // Through a socket of this host the message is not sent any further: it is delivered.
        let requiretls = requiretls && !is_socket;
        let is_qmtp = matches!(job.route, Route::Qmtp { .. });
        let wishes = Wishes::new(&self.own.control.tlspolicy, job.route, requiretls, || body.says_tls_required_no());
        if is_qmtp && !requiretls && !wishes.allow_qmtp() {
            return all(Judgement::deferral(report::NO_TLS_BY_QMTP));
        }
        let mut work = Work::new(job.sender, job.recipients, job.flags, &body);
        work.options = job.options;
        work.is_qmtp = is_qmtp;
        // What SMTP alone has words for goes by SMTP where there is a choice.
        let is_plain = wishes.allow_qmtp() && work.options.is_none() && !work.smtputf8;
        hosts::keep(&mut candidates, |candidate| candidate.via != Via::Switched || (is_plain && self.may_switch(candidate)));
        (work.protocol, work.requiretls) = (protocol, requiretls);
        self.visit(&candidates, &wishes, &mut work).await;
        work.judgements()
    }

    async fn candidates(&self, route: &Route) -> Result<Vec<Candidate>, Judgement> {
        if let Some(candidate) = hosts::literal_relay(route) {
            return Ok(vec![candidate]);
        }
        let question = |id| match route {
            Route::Mx { domain } => Request::Mx { id, domain: domain.clone() },
            Route::Relay { host, .. }
            | Route::Lmtp { host, .. }
            | Route::Qmtp { host, .. }
            | Route::LmtpSocket { path: host } => Request::Addresses { id, host: host.clone() },
        };
        let Ok((answer, _)) = self.resolve.ask(question).await else {
            return Err(Judgement::deferral(report::DNS_TEMPORARY));
        };
        let ports = (self.mx_port, self.qmtp_port);
        hosts::candidates(route, answer, ports, &self.own, &self.bad, &mut self.dice.borrow_mut())
    }

    /// Has the mail host kept, as far as is known, to the QMTP that it announces?
    fn may_switch(&self, candidate: &Candidate) -> bool {
        candidate.endpoint.address().is_none_or(|address| !self.no_qmtp.is(address))
    }

    /// Goes from address to address until nothing is open. An address stays current as long as its sessions settle something.
    async fn visit(&self, candidates: &[Candidate], wishes: &Wishes, work: &mut Work<'_>) {
        let mut rest = candidates.iter();
        let mut current = None;
        let mut idle = self.idle_session(candidates, wishes);
        while !work.is_settled() {
            let (session, is_fresh) = match idle.take() {
                Some(session) => (session, false),
                None => {
                    let Some(candidate) = current.take().or_else(|| rest.next()) else { break };
                    // By SMTP, which comes next.
                    if candidate.via == Via::Switched && !self.may_switch(candidate) {
                        continue;
                    }
                    current = Some(candidate);
                    match self.open(candidate, wishes).await {
                        Ok(session) => (session, true),
                        Err(refused) => {
                            current = None;
                            work.refused(refused);
                            continue;
                        }
                    }
                }
            };
            let progress = self.converse(session, work).await;
            if is_fresh && !progress {
                current = None;
            }
        }
    }

    /// A session that is open already, to one of the addresses that would be tried first.
    fn idle_session(&self, candidates: &[Candidate], wishes: &Wishes) -> Option<Session> {
        let best = candidates.first()?.rank;
        candidates.iter().take_while(|candidate| candidate.rank == best).find_map(|candidate| {
            self.pool.take(&Key { endpoint: candidate.endpoint.clone(), terms: Rc::new(wishes.terms(candidate)) })
        })
    }

    /// Opens a session. Where TLS fails though it is not demanded, once more without, and for a while at once so.
    async fn open(&self, candidate: &Candidate, wishes: &Wishes) -> Result<Session, Refused> {
        let (address, terms) = (candidate.endpoint.address(), Rc::new(wishes.terms(candidate)));
        let skip_tls = address.is_some_and(|address| self.no_tls.is(address));
        let mut opened = Session::open(candidate, Rc::clone(&terms), &self.dialing, skip_tls).await;
        if let Err(Refused::NoTls(_)) = opened {
            address.iter().for_each(|address| self.no_tls.failed(*address));
            opened = Session::open(candidate, terms, &self.dialing, true).await;
        }
        let Some(address) = address else { return opened };
        match &opened {
            // By SMTP it may do very well.
            Err(Refused::Connect) if candidate.via == Via::Switched => self.no_qmtp.failed(address),
            Ok(_) => self.bad.succeeded(address.ip()),
            Err(Refused::Connect) => self.bad.failed(address.ip()),
            Err(Refused::Greeting(_) | Refused::NoTls(_)) => {}
        }
        opened
    }

    /// Transactions over one session until all is settled or the session is used up. True if it settled a recipient.
    async fn converse(&self, mut session: Session, work: &mut Work<'_>) -> bool {
        let mut progress = false;
        if let Some(why) = work.unfit(&session) {
            // RFC 8689 §4.2.1, RFC 2852 §4.1.3: another host may know it.
            work.unfit = Some(why);
            self.pool.give_back(session);
            return progress;
        }
        while !work.is_settled() && session.is_ready() {
            let Some(batch) = work.batch(session.offers()) else {
                work.unfit = Some(report::TOO_LATE.to_owned());
                work.give_up();
                break;
            };
            let finished = session.deliver(batch.transaction, work.body, batch.front).await;
            if session.broke_qmtp() {
                session.key().endpoint.address().into_iter().for_each(|address| self.no_qmtp.failed(address));
            }
            // Who says by his preference that he takes QMTP, and has not said a word of it, may be anything. What he got counts for no
            // more than a connection that died, behind which the next attempt would send again, too: SMTP has its turn at once.
            let is_stranger = !work.is_qmtp && !session.has_answered();
            if finished.untouched || is_stranger {
                work.last_refusal = finished.outcomes.first().map(|outcome| outcome.text().to_owned());
                break;
            }
            progress |= work.settle(&batch.indices, finished, session.offers());
        }
        self.pool.give_back(session);
        progress
    }
}

/// The recipients of a job and what is known of them.
struct Work<'a> {
    sender: Address,
    recipients: Vec<Address>,
    protocol: Protocol,
    /// As control/qmtproutes says.
    is_qmtp: bool,
    smtputf8: bool,
    requiretls: bool,
    options: Option<Options>,
    body: &'a Body,
    settled: Vec<Option<Judgement>>,
    open: VecDeque<usize>,
    /// What the last server said that would not serve us.
    last_refusal: Option<String>,
    /// Why the message can go nowhere, unless a host was out of reach that may think otherwise.
    unfit: Option<String>,
    is_unreached: bool,
}

/// One transaction and the recipients it is for.
struct Batch {
    transaction: Transaction,
    indices: Vec<usize>,
    /// Goes before the message.
    front: Vec<u8>,
}

impl<'a> Work<'a> {
    fn new(sender: Address, recipients: Vec<Address>, flags: u32, body: &'a Body) -> Self {
        let (settled, open) = (vec![None; recipients.len()], (0..recipients.len()).collect());
        let smtputf8 = flags & FLAG_SMTPUTF8 != 0 && body.survey().eight_bit_header;
        let requiretls = flags & FLAG_REQUIRETLS != 0;
        let (last_refusal, unfit, is_unreached) = (None, None, false);
        let protocol = Protocol::Smtp;
        Self {
            sender,
            recipients,
            protocol,
            is_qmtp: false,
            smtputf8,
            requiretls,
            options: None,
            body,
            settled,
            open,
            last_refusal,
            unfit,
            is_unreached,
        }
    }

    fn refused(&mut self, refused: Refused) {
        self.is_unreached = true;
        if let Refused::Greeting(text) | Refused::NoTls(text) = refused {
            self.last_refusal = Some(text);
        }
    }

    /// Why a server that is well may not have the message.
    fn unfit(&self, session: &Session) -> Option<String> {
        let host = session.key().endpoint.to_string();
        // Who delivers at once needs no time (RFC 2852 §4.2 speaks of relays).
        let returning = self.deliver_by().filter(|by| by.returns && self.protocol == Protocol::Smtp);
        let least_s = session.offers().deliver_by_min_s;
        match (returning, least_s) {
            _ if self.requiretls && !session.offers().requiretls => Some(report::no_requiretls(&host)),
            (Some(_), None) => Some(report::no_deliverby(&host)),
            (Some(by), Some(least_s)) if by.at_s.saturating_sub(sys::clock::unix_s()) < least_s => {
                Some(report::too_little_time(&host))
            }
            _ => None,
        }
    }

    fn deliver_by(&self) -> Option<DeliverBy> {
        self.options.as_ref()?.deliver_by
    }

    /// Nobody gets it any more.
    fn give_up(&mut self) {
        for index in self.open.drain(..) {
            if let (Some(slot), Some(why)) = (self.settled.get_mut(index), &self.unfit) {
                *slot = Some(Judgement::failure(why.clone()));
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    /// All open recipients; of a VERP sender that the server will not expand, one (its sender is its own). `None`: the time to deliver the
    /// message by is over.
    fn batch(&self, offers: &Offers) -> Option<Batch> {
        let by = match self.deliver_by() {
            Some(by) => Some(by.left(sys::clock::unix_s(), false)?),
            None => None,
        };
        let priority = self.options.as_ref().and_then(|options| options.priority);
        // RFC 6758 §4: through servers that do not know it, the priority goes in a field.
        let tunnelled = priority.filter(|priority| !offers.priority && *priority != Priority::NORMAL);
        let front = tunnelled.map_or_else(String::new, |priority| format!("MT-Priority: {priority}\n")).into_bytes();
        // CRLF takes one more.
        let front_size = if front.is_empty() { 0 } else { front.len().saturating_add(1) as u64 };
        let by_server = if offers.xverp { xverp_sender(&self.sender) } else { None };
        let one_by_one = by_server.is_none() && verp::is_verp(&self.sender);
        let take = if one_by_one { 1 } else { self.open.len() };
        let indices: Vec<usize> = self.open.iter().copied().take(take).collect();
        let recipients: Vec<Address> = indices.iter().filter_map(|index| self.recipients.get(*index).cloned()).collect();
        let (sender, xverp) = match (by_server, recipients.first()) {
            (Some((sender, delimiters)), _) => (sender, Some(delimiters)),
            (None, Some(recipient)) => (verp::expand(&self.sender, recipient), None),
            (None, None) => (self.sender.clone(), None),
        };
        let survey = self.body.survey();
        let dsn = self.dsn(&indices);
        let transaction = Transaction {
            sender,
            recipients,
            size: survey.size.saturating_add(front_size),
            eight_bit: survey.eight_bit,
            smtputf8: self.smtputf8,
            xverp,
            requiretls: self.requiretls,
            dsn,
            by,
            priority,
        };
        Some(Batch { transaction, indices, front })
    }

    /// What a server that offers DSN is asked for about these recipients.
    fn dsn(&self, indices: &[usize]) -> Option<Box<Dsn>> {
        let options = self.options.as_ref()?;
        let of = |index: &usize| {
            let asked = u32::try_from(*index).ok().and_then(|index| options.of(index));
            asked.map(|asked| RcptParameters { notify: asked.notify, orcpt: asked.orcpt.clone() }).unwrap_or_default()
        };
        Some(Box::new(Dsn { ret: options.ret, envid: options.envid.clone(), recipients: indices.iter().map(of).collect() }))
    }

    /// Notes what became of a batch; recipients for the next transaction stay open. True if one was settled.
    fn settle(&mut self, indices: &[usize], finished: Finished, offers: &Offers) -> bool {
        let before = self.open.len();
        for (index, outcome) in indices.iter().zip(&finished.outcomes) {
            if *outcome == Outcome::Next {
                continue;
            }
            if let Some(slot) = self.settled.get_mut(*index) {
                let is_asked = self.options.is_some() && matches!(outcome, Outcome::Delivered(_));
                let (passed_on, keeps_time) = (is_asked && offers.dsn, is_asked && offers.deliver_by_min_s.is_some());
                *slot = Some(Judgement { passed_on, keeps_time, ..Judgement::from(outcome) });
            }
            self.open.retain(|open| open != index);
        }
        self.open.len() < before
    }

    /// Whoever is open still could not be tried anywhere.
    fn judgements(self) -> Vec<Judgement> {
        let unreached = if self.is_qmtp { report::NO_QMTP_CONNECTION } else { report::no_connection(self.protocol) };
        let judgement = match self.unfit {
            Some(text) if !self.is_unreached && self.last_refusal.is_none() => Judgement::failure(text),
            _ => Judgement::deferral(self.last_refusal.unwrap_or_else(|| unreached.to_owned())),
        };
        self.settled.into_iter().map(|settled| settled.unwrap_or_else(|| judgement.clone())).collect()
    }
}

/// The sender and delimiters with which XVERP makes what [`verp::expand`] makes: `list-@host-@[]` → `list@host` and `-=`.
fn xverp_sender(sender: &Address) -> Option<(Address, [u8; 2])> {
    if !verp::is_verp(sender) {
        return None;
    }
    let base = verp::base(sender);
    let (delimiter, local) = base.local().split_last()?;
    let usable = matches!(delimiter, b'-' | b'+' | b'=') && !local.is_empty();
    let address = Address::join(local, base.domain()?).ok()?;
    usable.then_some((address, [*delimiter, b'=']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xverp_senders() {
        for (sender, expected) in [
            ("list-@h.example-@[]", Some(("list@h.example", *b"-="))),
            ("list+@h.example-@[]", Some(("list@h.example", *b"+="))),
            ("list@h.example-@[]", None),
            ("-@h.example-@[]", None),
            ("list-@h.example", None),
            ("#@[]", None),
            ("", None),
        ] {
            let found = xverp_sender(&Address::new(sender.as_bytes()).unwrap());
            let expected = expected.map(|(a, d)| (Address::new(a.as_bytes()).unwrap(), d));
            assert_eq!(found, expected, "{sender}");
        }
    }
}
