//! Deliveries: a job is started when a slot is free and sent when its body is open and its place known; what becomes of it is in
//! [`super::outcome`]. Each recipient of a job is a delivery of its own in the log.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use ipc::auth::Target;
use ipc::field::Verdict;
use ipc::inheritance::Inheritance;
use ipc::job::{self, Job as JobMessage};
use ipc::options::Options;
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use message::verp;
use schedule::fair::{Slot, Work};
use schedule::{Channel, Feedback, Lane};
use spool::{Log as Spool, ReadFailure};
use wire::{Address, DeliverBy};

use crate::active::{BodyState, How};
use crate::log::Result as LogResult;

use super::outcome::take;
use super::{Engine, Out, Route, Ticket, at};

/// Letters for the mailbox of one that is started, beside it: qmail-local writes them together and syncs their directory once.
const ALIKE_MAX: usize = 7;
/// After a lost connection: the worker is back by then.
pub(super) const LOST_PAUSE_S: u64 = 5;
/// What is left of a datagram for addresses, beside numbers, flags and lengths.
const ADDRESSES_LEN_MAX: usize = DATAGRAM_LEN_MAX - 256;

/// A transaction that holds a slot.
#[derive(Debug)]
pub(super) struct Job {
    /// Also the number of the first recipient's delivery.
    pub(super) number: u64,
    pub(super) channel: Channel,
    pub(super) message: u64,
    pub(super) recipients: Vec<u32>,
    /// Which of them have no outcome yet.
    pub(super) open: Vec<bool>,
    /// Recipients about whom the next server reports, if they are delivered.
    pub(super) passed_on: Vec<u32>,
    /// Recipients whose next server keeps the time to deliver by, if they are delivered.
    pub(super) time_kept: Vec<u32>,
    pub(super) route: Option<Rc<Route>>,
    /// Where qmail-auth says a recipient of a virtual domain goes.
    pub(super) target: Option<Target>,
    pub(super) slot: Option<Slot>,
    pub(super) sent: bool,
    /// The connection that it went out on.
    pub(super) connection: Option<u64>,
    /// Its last answer came; only the writing of the results is missing.
    pub(super) over: bool,
    pub(super) feedback: Feedback,
}

impl Job {
    /// It went out on this connection and has no last answer.
    pub(super) fn runs_on(&self, channel: Channel, connection: u64) -> bool {
        !self.over && self.channel == channel && self.connection == Some(connection)
    }

    /// Has a recipient who was taken left the servers that keep the time to deliver by, or is each of them to be told of?
    pub(super) fn leaves(&self, recipient: u32, by: Option<DeliverBy>) -> bool {
        let is_told = |by: DeliverBy| by.traces || !by.returns && !self.time_kept.contains(&recipient);
        self.channel == Channel::Remote && !self.is_final() && by.is_some_and(is_told)
    }

    /// Is the place that qmail-remote brings it to the mailbox itself? Behind an LMTP server there is no next one (RFC 2033 §5).
    fn is_final(&self) -> bool {
        matches!(self.route.as_deref(), Some(Route::To(job::Route::Lmtp { .. } | job::Route::LmtpSocket { .. })))
    }

    /// How a recipient was delivered, for a sender who wants to know; `None`: the next server tells him. Of what is forwarded by a `.qmail`
    /// file or an alias he hears nothing more but failures and delays (RFC 3461 §5.2.7.4; [`ipc::inheritance`]).
    pub(super) fn how(&self, recipient: u32, text: &[u8]) -> Option<How> {
        match self.channel {
            Channel::Remote if self.passed_on.contains(&recipient) => None,
            Channel::Remote if self.is_final() => Some(How::Delivered),
            Channel::Remote => Some(How::Relayed),
            Channel::Local if matches!(self.target, Some(Target::Forward { .. })) || has_forwarded(text) => Some(How::Expanded),
            Channel::Local => Some(How::Delivered),
        }
    }
}

impl<S: Spool> Engine<S> {
    /// Fills the free slots of the channels whose worker is there.
    pub(super) fn start_deliveries(&mut self) {
        while self.up(Channel::Local)
            && let Some(pick) = if self.starting.may(self.now.boot) { self.local.next() } else { self.local.next_fresh() }
        {
            let alike_max = if pick.route.is_some() { ALIKE_MAX } else { 0 };
            let alike: Vec<_> = std::iter::from_fn(|| self.local.next_alike(&pick)).take(alike_max).collect();
            for pick in std::iter::once(pick).chain(alike) {
                self.note_start(pick.slot.lane());
                self.start(Channel::Local, pick.message, pick.recipients, pick.slot, None);
            }
        }
        while self.up(Channel::Remote)
            && let Some(mut pick) = if self.starting.may(self.now.boot) { self.remote.next() } else { self.remote.next_fresh() }
        {
            self.note_start(pick.slot.lane());
            self.fit(&mut pick);
            self.start(Channel::Remote, pick.message, pick.recipients, pick.slot, Some(pick.route));
        }
    }

    fn note_start(&mut self, lane: Lane) {
        if lane == Lane::Retry {
            self.starting.take(self.now.boot);
        }
    }

    fn up(&self, channel: Channel) -> bool {
        self.up.get(at(channel)).copied().unwrap_or(false)
    }

    /// Shortens a transaction to what a datagram holds; the rest goes into the next one.
    fn fit(&mut self, pick: &mut schedule::Pick<Rc<Route>>) {
        let Some(active) = self.active.get(&pick.message) else { return };
        let mut room = ADDRESSES_LEN_MAX.saturating_sub(active.envelope.sender.as_bytes().len()).saturating_sub(1024);
        let fits = pick.recipients.iter().take_while(|recipient| {
            let asked = active.options.as_ref().and_then(|options| options.of(**recipient));
            let asked =
                asked.map_or(0, |asked| asked.orcpt.as_ref().map_or(0, |orcpt| orcpt.as_bytes().len()).saturating_add(16));
            let len =
                active.target(**recipient).map_or(0, |address| address.as_bytes().len()).saturating_add(asked).saturating_add(4);
            let fits = len <= room;
            room = room.saturating_sub(len);
            fits
        });
        let count = fits.count().max(1);
        if count < pick.recipients.len() {
            let rest = pick.recipients.split_off(count).into();
            if let Some(site) = self.remote.key(&pick.slot).cloned() {
                let work = Work {
                    message: pick.message,
                    route: Rc::clone(&pick.route),
                    recipients: rest,
                    batch_max: job::RECIPIENTS_MAX,
                    rank: active.priority().rank(),
                };
                self.remote.push_front(active.lane, site, work);
            }
        }
    }

    fn start(&mut self, channel: Channel, message: u64, recipients: Vec<u32>, slot: Slot, route: Option<Rc<Route>>) {
        let number = self.next_delivery;
        let count = recipients.len();
        self.next_delivery = number.saturating_add(count as u64);
        if let Some(active) = self.active.get_mut(&message) {
            active.queued = active.queued.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
            active.jobs = active.jobs.saturating_add(1);
        }
        for (recipient, delivery) in recipients.iter().zip(number..) {
            let address = self.active.get(&message).and_then(|active| active.target(*recipient)).cloned().unwrap_or_default();
            self.log_start(delivery, message, channel, address.as_bytes());
        }
        let open = vec![true; count];
        let (target, sent, connection, over, feedback) = (None, false, None, false, Feedback::Nothing);
        let slot = Some(slot);
        let (passed_on, time_kept) = (Vec::new(), Vec::new());
        let job = Job {
            number,
            channel,
            message,
            recipients,
            open,
            passed_on,
            time_kept,
            route,
            target,
            slot,
            sent,
            connection,
            over,
            feedback,
        };
        self.jobs.insert(number, job);
        self.advance(number);
    }

    /// Takes the next step towards sending a job.
    fn advance(&mut self, number: u64) {
        let Some(job) = self.jobs.get_mut(&number).filter(|job| !job.sent) else { return };
        if let Some(Route::Nowhere(text)) = job.route.as_deref() {
            let text: &'static str = text;
            return self.answer_self(number, Verdict::Failure, text.as_bytes());
        }
        let Some(active) = self.active.get_mut(&job.message) else { return };
        let first = job.recipients.first().copied().unwrap_or(0);
        let is_virtual = active.recipients.get(first as usize).is_some_and(|recipient| recipient.is_virtual);
        if job.channel == Channel::Local && is_virtual && job.target.is_none() {
            let Some(address) = active.target(first) else { return };
            match self.routes.get(address, self.now.boot) {
                Some(target) => job.target = Some(target.clone()),
                None => {
                    if let Some(id) = self.routes.ask(address, number, self.now.boot) {
                        self.out.push(Out::Route { id, address: address.clone() });
                    }
                    return;
                }
            }
        }
        if let BodyState::Kept(kept) = &active.body {
            // Without a descriptor for it now, it is read like any other body.
            active.body = sys::memfd::sealed(kept.bytes()).map_or(BodyState::Closed, |fd| BodyState::Open(Arc::new(fd)));
        }
        match &mut active.body {
            BodyState::Open(body) => {
                let body = Arc::clone(body);
                self.send(number, body);
            }
            BodyState::Asked(waiting) => waiting.push(number),
            BodyState::Closed | BodyState::Kept(_) => {
                active.body = BodyState::Asked(vec![number]);
                let id = job.message;
                self.open_body(id);
            }
        }
    }

    pub(super) fn open_body(&mut self, id: u64) {
        let ticket = self.ticket(Ticket::Body);
        self.spool.open_body(Self::id(id), ticket);
    }

    pub(super) fn body_open(&mut self, id: u64, fd: OwnedFd) {
        let Some(active) = self.active.get_mut(&id) else { return };
        let waiting = std::mem::replace(&mut active.body, BodyState::Open(Arc::new(fd)));
        if active.closing {
            return self.write_bounce(id);
        }
        if let BodyState::Asked(jobs) = waiting {
            jobs.into_iter().for_each(|number| self.advance(number));
        }
    }

    /// Never a reason to bounce: the recipients are deferred.
    pub(super) fn body_failed(&mut self, id: u64, why: ReadFailure) {
        let Some(active) = self.active.get_mut(&id) else { return };
        let waiting = std::mem::replace(&mut active.body, BodyState::Closed);
        if active.closing {
            return self.write_bounce(id);
        }
        active.dying = false;
        if why == ReadFailure::Damaged {
            self.log.alert(&format!("msg {id} is damaged on the disk and cannot be delivered"));
        }
        if let BodyState::Asked(jobs) = waiting {
            for number in jobs {
                self.answer_self(number, Verdict::Deferral, b"The message cannot be read from the spool. (#4.3.0)\n");
            }
        }
    }

    /// qmail-auth says where a recipient goes.
    pub fn routed(&mut self, id: u64, target: &Target) {
        for number in self.routes.answer(id, target, self.now.boot) {
            match target {
                Target::Mailbox { .. } | Target::Forward { .. } => {
                    if let Some(job) = self.jobs.get_mut(&number) {
                        job.target = Some(target.clone());
                    }
                    self.advance(number);
                }
                Target::NoMailbox {} => {
                    self.answer_self(number, Verdict::Failure, b"Sorry, no mailbox here by that name. (#5.1.1)\n");
                }
                Target::Temporary { text } => self.answer_self(number, Verdict::Deferral, ipc::clip(text)),
            }
        }
    }

    /// Users or aliases changed, or may have: what is known of routes counts no more.
    pub fn routes_changed(&mut self) {
        self.routes.forget();
    }

    /// Questions to qmail-auth that were not answered in time.
    pub fn give_up_questions(&mut self) {
        for number in self.routes.overdue(self.now.boot) {
            self.answer_self(number, Verdict::Deferral, b"The directory of mailboxes does not answer. (#4.3.0)\n");
        }
    }

    /// Questions still open, for a new connection.
    pub fn open_questions(&self) -> Vec<(u64, Address)> {
        self.routes.open_questions().map(|(id, address)| (id, address.clone())).collect()
    }

    /// qmail-resolve names the site of a domain, or does not.
    pub fn sited(&mut self, id: u64, answer: Option<(&[u8], u32)>) {
        match answer {
            Some((key, ttl_s)) => self.sites.answer(id, key, ttl_s, self.now.s),
            None => self.sites.no_answer(id),
        }
    }

    /// The connection to qmail-resolve is gone.
    pub fn resolve_lost(&mut self) {
        self.sites.forget_questions();
    }

    fn send(&mut self, number: u64, body: Arc<OwnedFd>) {
        let message = self.job_message(number).and_then(|message| message.encode_bounded().ok());
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let channel = job.channel;
        let Some(datagram) = message else {
            return self.answer_self(number, Verdict::Deferral, b"This alias has too many targets. (#4.3.5)\n");
        };
        job.sent = true;
        self.out.push(Out::Job { channel, number, datagram, body });
    }

    /// A job went out on this connection: if that ends before the last answer, the job is lost.
    pub fn sent(&mut self, number: u64, connection: u64) {
        if let Some(job) = self.jobs.get_mut(&number) {
            job.connection = Some(connection);
        }
    }

    fn job_message(&self, number: u64) -> Option<JobMessage> {
        let job = self.jobs.get(&number)?;
        let active = self.active.get(&job.message)?;
        let message = job.message;
        let first = *job.recipients.first()?;
        // Who goes on with it must not tell the sender again that the time is over.
        let told = job.recipients.iter().all(|recipient| active.is_warned(*recipient));
        let deliver_by = active.deliver_by().map(|by| DeliverBy { told: by.told || told, ..by });
        let of_recipients = |options: &Options| options.for_recipients(&job.recipients);
        let options = active.options.as_deref().map(of_recipients);
        let options = options.map(|options| Options { hold_until_s: None, deliver_by, ..options });
        if let Some(Route::To(route)) = job.route.as_deref() {
            let recipients = job.recipients.iter().filter_map(|recipient| active.target(*recipient).cloned()).collect();
            let (route, flags, size) = (route.clone(), active.envelope.flags, active.bytes);
            // A VERP sender goes as it is: qmail-remote expands it for each recipient, or has a relay with XVERP do it.
            let sender = active.envelope.sender.clone();
            let options = options.filter(|options| !options.is_none());
            return Some(JobMessage::Remote { number, message, sender, recipients, route, flags, size, options });
        }
        let recipient = active.target(first)?.clone();
        let sender = self.sender_for(job.message, first)?;
        let inherits = Inheritance::of(active.envelope.flags, options.as_ref(), 0).to_bytes();
        Some(match &job.target {
            None => JobMessage::System { number, message, sender, recipient, inherits },
            Some(Target::Mailbox { domain, user, ext, settings }) => {
                let (domain, user, ext, settings) = (domain.clone(), user.clone(), ext.clone(), settings.clone());
                JobMessage::Mailbox { number, message, sender, recipient, domain, user, ext, settings, inherits }
            }
            Some(Target::Forward { domain, targets }) => {
                let (domain, targets) = (domain.clone(), targets.clone());
                JobMessage::Alias { number, message, sender, recipient, domain, targets, inherits }
            }
            Some(_) => return None,
        })
    }

    /// The sender as this local recipient's delivery shows it: a VERP sender names the recipient as its own sender knew it, without the
    /// prefix of a virtual domain (qmail-family §3.6).
    fn sender_for(&self, message: u64, recipient: u32) -> Option<Address> {
        let active = self.active.get(&message)?;
        let sender = &active.envelope.sender;
        if !verp::is_verp(sender) {
            return Some(sender.clone());
        }
        let known_as = self.settings.routing().without_prefix(active.target(recipient)?);
        Some(verp::expand(sender, &Address::new(known_as).ok()?))
    }

    /// A worker's connection is there.
    pub fn connected(&mut self, channel: Channel) {
        if let Some(up) = self.up.get_mut(at(channel)) {
            *up = true;
        }
    }

    /// There is no connection that takes jobs: none is started until there is one again. Those handed out wait for it.
    pub fn disconnected(&mut self, channel: Channel) {
        if let Some(up) = self.up.get_mut(at(channel)) {
            *up = false;
        }
    }

    /// A connection has ended: what it had is deferred, for a short while and without a mark against anybody.
    pub fn connection_lost(&mut self, channel: Channel, connection: u64) {
        let ran = |job: &&Job| job.runs_on(channel, connection);
        let numbers: Vec<u64> = self.jobs.values().filter(ran).map(|job| job.number).collect();
        numbers.into_iter().for_each(|number| self.lost(number));
    }

    fn lost(&mut self, number: u64) {
        let Some(mut job) = self.jobs.remove(&number) else { return };
        let due_s = self.now.s.saturating_add(LOST_PAUSE_S);
        let text: &[u8] = match job.channel {
            Channel::Local => b"Connection to qmail-lspawn lost. (#4.3.0)\n",
            Channel::Remote => b"Connection to qmail-remote lost. (#4.3.0)\n",
        };
        for index in 0..u32::try_from(job.recipients.len()).unwrap_or(u32::MAX) {
            if let Some(recipient) = take(&mut job, index) {
                self.log_end(number.saturating_add(index.into()), job.channel, Some((LogResult::Deferral, text)));
                if let Some(active) = self.active.get_mut(&job.message) {
                    active.put_off(recipient, due_s, self.now.s);
                }
            }
        }
        (job.over, job.feedback) = (true, Feedback::Nothing);
        self.jobs.insert(number, job);
        self.result_written(number, true, false);
    }
}

/// Does a report of qmail-local, `did FILES+FORWARDS+PROGRAMS`, tell of a forward?
fn has_forwarded(text: &[u8]) -> bool {
    let counts = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"did "));
    let forwards = counts.and_then(|counts| counts.split(|b| *b == b'+').nth(1));
    forwards.is_some_and(|count| !count.is_empty() && count != b"0")
}
