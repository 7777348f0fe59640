//! `--worker`: deliveries for one system user, or with `--base DIR` for one virtual domain, asked for on the socket `work` by
//! qmail-lspawn (ipc::worker).
//!
//! It confines itself before the first request. Requests that have come together are answered together: those that are one
//! Maildir line, nearly all, go as a batch that shares its syncs ([`maildir::deliver_batch`]); whatever may wait for others (a
//! locked mbox, the queue) gets a thread. A file with a program line, or for a virtual user an absolute path, is answered with
//! `NeedsExec` and nothing is delivered; qmail-lspawn judges whether that may be.

use crate::carry_out::{Carrier, bounded, check_loop, dot_qmail, open_maildir, trace};
use crate::failure::Failure;
use crate::forward::Forwarder;
use crate::home::{DotQmail, Home, make_home};
use crate::orders::{Manner, Orders, inherited};
use crate::quota_warning::{Warning, put_if_due};
use crate::vacation::{self, Delivered};
use dotqmail::{Delivery, Instruction, Plan};
use ipc::inheritance::Inheritance;
use ipc::lspawn::{Existence, Room};
use ipc::worker::{Recipient, Report, Request};
use ipc::{DATAGRAM_LEN_MAX, Message, clip};
use maildir::{Body, Bounds, Ledger, Letter, Maildir, Quota};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox::Access;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use sys::inherited::Inherited;
use sys::{Received, Seqpacket};
use wire::Address;

/// Letters delivered together, at most: each holds some 64 KiB and a few descriptors.
const BATCH_MAX: usize = 16;
/// A virtual user's mailbox.
const MAILDIR: &[u8] = b"./Maildir/";
/// Threads for what may wait; beyond that the worker itself waits.
const THREADS_MAX: usize = 4;

/// Runs the face.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    let served = match args {
        [] => start(None),
        [option, base] if option == "--base" => start(Some(PathBuf::from(base))),
        _ => Err(io::Error::other("usage: qmail-local --worker [--base DIR]")),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("qmail-local: {e}");
            ExitCode::from(dotqmail::exit::TEMPORARY)
        }
    }
}

fn start(base: Option<PathBuf>) -> io::Result<()> {
    let work = Inherited::take()?.one("work")?;
    let root = control::Root::from_env().map_err(io::Error::other)?;
    let domain = base.clone().map(Base::open).transpose()?;
    let forwarder = Forwarder::socket(&root);
    let host = maildir::host_name();
    let extra: Vec<_> = base.into_iter().map(|base| (base, Access::ReadWrite)).collect();
    let profile = if domain.is_some() { sandbox::table::LOCAL_VIRTUAL } else { sandbox::table::LOCAL_SYSTEM };
    sandbox::enter(&profile, root.path(), &extra)?;
    let worker = Worker { work: Seqpacket::from_fd(work), base: domain, forwarder, host, threads: AtomicUsize::new(0) };
    Arc::new(worker).serve()
}

/// A virtual domain's directory.
#[derive(Debug)]
pub struct Base {
    path: PathBuf,
    dir: OwnedFd,
}

impl Base {
    /// # Errors
    /// It is not there or may not be read.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let dir = OwnedFd::from(File::open(&path)?);
        Ok(Self { path, dir })
    }

    /// The name of the home `home` in this directory.
    fn user<'a>(&self, home: &'a [u8]) -> Result<&'a [u8], Failure> {
        let below = home.strip_prefix(self.path.as_os_str().as_bytes()).and_then(|rest| rest.strip_prefix(b"/"));
        below.ok_or_else(|| Failure::temporary("the home is not below the directory of its domain. (#4.3.5)"))
    }
}

/// A worker at work.
#[derive(Debug)]
pub struct Worker {
    pub work: Seqpacket,
    /// `None` for a system user.
    pub base: Option<Base>,
    pub forwarder: Forwarder,
    pub host: Vec<u8>,
    pub threads: AtomicUsize,
}

/// A letter for one Maildir and nothing else.
struct Simple {
    number: u64,
    recipient: Recipient,
    manner: Manner,
    maildir: Arc<Maildir>,
    trace: Vec<u8>,
    body: Body,
}

/// A delivery that may wait for others.
struct Waiting {
    number: u64,
    sender: Address,
    recipient: Recipient,
    body: Body,
    what: What,
}

enum What {
    Plan { home: Home, found: DotQmail, orders: Box<Orders> },
    Targets(Vec<Address>, Inheritance),
}

/// What a request turned out to be.
enum Step {
    Answer(Report),
    Simple(Simple),
    Waiting(Waiting),
}

impl Worker {
    /// Answers requests until qmail-lspawn closes; what is under way then is finished.
    ///
    /// # Errors
    /// The socket broke, or a datagram that is no request came.
    pub fn serve(self: &Arc<Self>) -> io::Result<()> {
        let mut datagram = vec![0; DATAGRAM_LEN_MAX];
        let mut batch = Vec::new();
        let result = loop {
            match self.receive(&mut datagram) {
                Ok(Some((request, message))) => match self.begin(request, message, batch.last()) {
                    Step::Answer(report) => self.answer(&report),
                    Step::Simple(simple) => batch.push(simple),
                    Step::Waiting(waiting) => {
                        if self.threads.load(Ordering::Acquire) >= THREADS_MAX {
                            self.deliver(std::mem::take(&mut batch));
                        }
                        self.wait_for(waiting);
                    }
                },
                Ok(None) => break Ok(()),
                Err(e) => break Err(e),
            }
            if batch.len() >= BATCH_MAX || !self.has_more() {
                self.deliver(std::mem::take(&mut batch));
            }
        };
        self.deliver(batch);
        while self.threads.load(Ordering::Acquire) > 0 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        result
    }

    fn receive(&self, datagram: &mut [u8]) -> io::Result<Option<(Request, Option<OwnedFd>)>> {
        match self.work.recv_with_fd(datagram) {
            Ok(Received::Datagram(len, fd)) => Ok(Some((Request::decode(datagram.get(..len).unwrap_or_default())?, fd))),
            Ok(Received::End) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Has another request come already?
    fn has_more(&self) -> bool {
        let mut fds = [PollFd::new(&self.work, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    fn answer(&self, report: &Report) {
        // qmail-lspawn is gone: nobody wants to know any more, and the next receive ends the worker.
        let _ = self.work.send(&report.encode());
    }

    /// `before`: the letter that came just before and is not delivered yet.
    fn begin(&self, request: Request, message: Option<OwnedFd>, before: Option<&Simple>) -> Step {
        let (number, step) = match request {
            Request::Exists { number, recipient, default_delivery: _ } => {
                return Step::Answer(Report::Exists { number, answer: self.exists(&recipient) });
            }
            Request::Room { number, recipient, settings, size } => {
                let room = self.room(&recipient, &settings, size).unwrap_or(Room::CannotTell {});
                return Step::Answer(Report::Room { number, room });
            }
            Request::Rename { number, recipient, to } => {
                let failure = self.rename(&recipient, &to).err().map(|failure| failure.text.into());
                return Step::Answer(Report::Renamed { number, failure });
            }
            Request::Deliver { number, sender, recipient, default_delivery, settings, inherits, lmtp } => {
                let manner = Manner { default_delivery: default_delivery.0, settings: settings.0, inherits: inherits.0, lmtp };
                let step = body(message).and_then(|body| {
                    let alike = before.filter(|b| b.recipient == recipient && b.manner == manner);
                    match alike.map(|before| Arc::clone(&before.maildir)) {
                        // It came in the same moment, so what was found then holds.
                        Some(maildir) => {
                            check_loop(&delivery(&sender, &recipient), &body)?;
                            Ok(simple(number, &sender, recipient, manner, maildir, body))
                        }
                        None => self.plan(number, sender, recipient, manner, body),
                    }
                });
                (number, step)
            }
            Request::Forward { number, sender, recipient, targets, inherits } => {
                let step = body(message).and_then(|body| {
                    check_loop(&delivery(&sender, &recipient), &body)?;
                    let what = What::Targets(targets, inherited(&inherits)?);
                    Ok(Step::Waiting(Waiting { number, sender, recipient, body, what }))
                });
                (number, step)
            }
        };
        step.unwrap_or_else(|failure| Step::Answer(report(number, b"", Err(failure))))
    }

    fn plan(&self, number: u64, sender: Address, recipient: Recipient, manner: Manner, body: Body) -> Result<Step, Failure> {
        let mut orders = Orders::read(&manner)?;
        let home = self.home(&recipient)?;
        if let Some(fault) = home.fault()? {
            return Err(fault.into());
        }
        check_loop(&delivery(&sender, &recipient), &body)?;
        let found = dot_qmail(&home, &recipient.dash, &recipient.ext)?;
        let now_s = sys::clock::unix_s();
        // A file that says something says everything.
        orders.vacation = orders.vacation.filter(|vacation| found.text.is_empty() && vacation::counts_at(vacation, now_s));
        orders.lmtp = orders.lmtp.filter(|_| found.text.is_empty());
        let plan = Plan::new(&found.text, found.is_forward_only, &orders.default_delivery);
        if plan.has_program() || (self.base.is_some() && plan.has_absolute_path()) {
            self.make_maildirs(&home, &recipient, &plan);
            return Ok(Step::Answer(Report::NeedsExec { number }));
        }
        if let (&[Instruction::Maildir(path)], None, None, None) =
            (&plan.instructions[..], plan.refusal, &orders.vacation, &orders.lmtp)
        {
            let maildir = self.maildir(&home, &recipient, path, orders.quota)?;
            return Ok(simple(number, &sender, recipient, manner, Arc::new(maildir), body));
        }
        let what = What::Plan { home, found, orders: Box::new(orders) };
        Ok(Step::Waiting(Waiting { number, sender, recipient, body, what }))
    }

    fn home(&self, recipient: &Recipient) -> Result<Home, Failure> {
        match &self.base {
            None => Home::open(&recipient.home),
            Some(base) => Home::open_or_make_virtual(base.dir.as_fd(), base.user(&recipient.home)?),
        }
    }

    fn maildir(&self, home: &Home, recipient: &Recipient, path: &[u8], quota: Quota) -> Result<Maildir, Failure> {
        let Some(base) = &self.base else { return open_maildir(home, path, quota) };
        if let Ok(maildir) = Maildir::open(home.dir(), path, Bounds::Beneath) {
            return bounded(maildir, home, path, quota);
        }
        // Another worker may have made the home and been killed before it was durable.
        make_home(base.dir.as_fd(), base.user(&recipient.home)?)?;
        open_maildir(home, path, quota)
    }

    /// A one-shot worker does not know virtual users and makes no Maildirs: those that its plan names are made here.
    fn make_maildirs(&self, home: &Home, recipient: &Recipient, plan: &Plan<'_>) {
        for instruction in &plan.instructions {
            if let (Some(_), Instruction::Maildir(path)) = (&self.base, instruction)
                && !path.starts_with(b"/")
            {
                // If it fails, the delivery will say so.
                let _ = self.maildir(home, recipient, path, Quota::default());
            }
        }
    }

    fn exists(&self, recipient: &Recipient) -> Existence {
        let home = match &self.base {
            None => Home::open(&recipient.home).map(Some),
            Some(base) => base.user(&recipient.home).and_then(|user| Home::open_virtual(base.dir.as_fd(), user)),
        };
        let found = match home {
            Ok(Some(home)) => home.find(&recipient.dash, &recipient.ext).map(|found| found.is_some()),
            Ok(None) => Ok(false),
            Err(failure) => Err(failure),
        };
        match found {
            Ok(true) => Existence::Yes {},
            Ok(false) if recipient.dash.is_empty() => Existence::Yes {},
            Ok(false) => Existence::No {},
            Err(_) => Existence::CannotTell {},
        }
    }

    /// How much fits into the user's Maildir, where that is where mail goes. Without a quota there is nothing to count it by any more.
    fn room(&self, recipient: &Recipient, settings: &[u8], size: u64) -> Result<Room, Failure> {
        let Some(base) = &self.base else { return Ok(Room::CannotTell {}) };
        let quota = Orders::quota(settings)?;
        let bound = |bound| if bound == 0 { u64::MAX } else { bound };
        let unused = Room::Free { bytes: bound(quota.bytes), messages: bound(quota.messages) };
        let Some(home) = Home::open_virtual(base.dir.as_fd(), base.user(&recipient.home)?)? else { return Ok(unused) };
        let ledger = match Ledger::open(home.dir(), MAILDIR, home.bounds(), quota) {
            Err(maildir::Error::NoMaildir(e)) if e.kind() == io::ErrorKind::NotFound => return Ok(unused),
            ledger => ledger?,
        };
        if quota.is_none() {
            ledger.remove().map_err(|e| Failure::system("Unable to remove maildirsize", &e))?;
            return Ok(unused);
        }
        if !dot_qmail(&home, b"", b"")?.text.is_empty() {
            return Ok(Room::CannotTell {});
        }
        let (bytes, messages) = ledger.left_for(size)?;
        Ok(Room::Free { bytes, messages })
    }

    /// Gives a home another name, durably. What is there already of that name, perhaps another's mail, is left alone, and so is the home.
    fn rename(&self, recipient: &Recipient, to: &[u8]) -> Result<(), Failure> {
        let base = self.base.as_ref().ok_or_else(|| Failure::temporary("only virtual users have homes that can be renamed"))?;
        let (from, failed) = (base.user(&recipient.home)?, |e: &io::Error| Failure::system("Unable to rename the home", e));
        if !dotqmail::search::is_one_component(from) || !dotqmail::search::is_one_component(to) {
            return Err(Failure::temporary("not the name of a home"));
        }
        let there = |name: &[u8]| match rustix::fs::statat(&base.dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(errno) => Err(failed(&errno.into())),
        };
        if there(to)? {
            let to = wire::escape::visible(to);
            return Err(Failure::permanent(format!(
                "there is a directory {to} already, perhaps of a user who was removed; move it away first"
            )));
        }
        if !there(from)? {
            return Ok(());
        }
        let renamed = rustix::fs::renameat_with(&base.dir, from, &base.dir, to, rustix::fs::RenameFlags::NOREPLACE);
        renamed.and_then(|()| rustix::fs::fsync(&base.dir)).map_err(|errno| failed(&errno.into()))
    }

    fn deliver(&self, batch: Vec<Simple>) {
        let deliveries: Vec<_> = batch
            .iter()
            .map(|simple| maildir::Delivery {
                maildir: &simple.maildir,
                letter: Letter { trace: &simple.trace, body: &simple.body },
            })
            .collect();
        let results = maildir::deliver_batch(&self.host, &deliveries);
        for (simple, result) in batch.iter().zip(results) {
            let is_delivered = result.is_ok();
            let result = result.map(|()| "did 1+0+0\n".to_owned()).map_err(Failure::from);
            self.answer(&report(simple.number, b"", result));
            if is_delivered {
                self.warn(simple);
            }
        }
    }

    fn warn(&self, simple: &Simple) {
        let Ok(orders) = Orders::read(&simple.manner) else { return };
        let Recipient { local, domain, .. } = &simple.recipient;
        let recipient = [&local[..], b"@", domain].concat();
        let warning = Warning { recipient: &recipient, domain, text: &orders.warning, percent: orders.quota.warns_at };
        put_if_due(&simple.maildir, &self.host, warning);
    }

    /// Gives a delivery a thread of its own, or with too many of them does it here.
    fn wait_for(self: &Arc<Self>, waiting: Waiting) {
        if self.threads.load(Ordering::Acquire) >= THREADS_MAX {
            return self.answer(&self.finish(waiting));
        }
        self.threads.fetch_add(1, Ordering::AcqRel);
        let number = waiting.number;
        let worker = Arc::clone(self);
        let started = std::thread::Builder::new().name("waiting".to_owned()).spawn(move || {
            let mut thread = Thread { worker: &worker, report: no_thread(number) };
            thread.report = worker.finish(waiting);
        });
        if started.is_err() {
            self.threads.fetch_sub(1, Ordering::AcqRel);
            self.answer(&no_thread(number));
        }
    }

    fn finish(&self, waiting: Waiting) -> Report {
        let Waiting { number, sender, recipient, body, what } = waiting;
        let delivery = delivery(&sender, &recipient);
        let result = match what {
            What::Plan { home, found, orders } => {
                let plan = Plan::new(&found.text, found.is_forward_only, &orders.default_delivery);
                let now_s = sys::clock::unix_s();
                let carrier = Carrier {
                    home: &home,
                    delivery,
                    default_at: found.default_at,
                    body: &body,
                    host: &self.host,
                    now_s,
                    shell: None,
                    forwarder: &self.forwarder,
                    quota: orders.quota,
                    inherits: &orders.inherits,
                    warning: &orders.warning,
                    lmtp: orders.lmtp.as_ref(),
                };
                let done = carrier.carry_out(&plan).map(|done| done.text());
                if let (Ok(_), Some(vacation)) = (&done, &orders.vacation) {
                    let recipient = delivery.recipient();
                    let delivered = Delivered {
                        sender: delivery.sender,
                        recipient: &recipient,
                        body: &body,
                        now_s,
                        inherits: orders.inherits.for_reply(),
                    };
                    vacation::reply(vacation, &home, delivered, &self.forwarder);
                }
                done
            }
            What::Targets(targets, inherits) => self.forward(&delivery, &targets, &body, inherits),
        };
        report(number, b"", result)
    }

    fn forward(
        &self,
        delivery: &Delivery<'_>,
        targets: &[Address],
        body: &Body,
        inherits: Inheritance,
    ) -> Result<String, Failure> {
        let recipients: Vec<&[u8]> = targets.iter().map(Address::as_bytes).collect();
        let delivered_to = delivery.delivered_to_line();
        let sender = delivery.sender;
        let copy = crate::forward::Copy { sender, recipients: &recipients, delivered_to: &delivered_to, body, inherits };
        let qp = self.forwarder.submit(&copy)?;
        Ok(format!("did 0+{}+0\nqp {qp}\n", recipients.len()))
    }
}

/// Sees to it that a thread answers and is counted out, also when it panics.
struct Thread<'a> {
    worker: &'a Worker,
    report: Report,
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        self.worker.answer(&self.report);
        self.worker.threads.fetch_sub(1, Ordering::AcqRel);
    }
}

fn simple(number: u64, sender: &Address, recipient: Recipient, manner: Manner, maildir: Arc<Maildir>, body: Body) -> Step {
    let trace = trace(&delivery(sender, &recipient));
    Step::Simple(Simple { number, recipient, manner, maildir, trace, body })
}

fn no_thread(number: u64) -> Report {
    report(number, b"", Err(Failure::temporary("Aack, child crashed. (#4.3.0)")))
}

fn body(message: Option<OwnedFd>) -> Result<Body, Failure> {
    let message = message.ok_or_else(|| Failure::temporary("Unable to read message: it did not come. (#4.3.0)"))?;
    Body::new(File::from(message)).map_err(|e| Failure::system("Unable to read message", &e))
}

pub(crate) fn delivery<'a>(sender: &'a Address, recipient: &'a Recipient) -> Delivery<'a> {
    Delivery {
        user: &recipient.user,
        home: &recipient.home,
        local: &recipient.local,
        dash: &recipient.dash,
        ext: &recipient.ext,
        host: &recipient.domain,
        sender: sender.as_bytes(),
    }
}

/// The answer to a delivery: what programs printed, then the line about the result, as a classic qmail-local leaves it.
pub(crate) fn report(number: u64, output: &[u8], result: Result<String, Failure>) -> Report {
    let (verdict, line) = match result {
        Ok(text) => (ipc::field::Verdict::Success, text.into_bytes()),
        Err(failure) => (failure.verdict(), failure.line()),
    };
    let text = [output, &line].concat();
    Report::Done { number, verdict, text: clip(&text).into() }
}
