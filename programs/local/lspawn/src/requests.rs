//! What clients ask: jobs, questions of existence, logins and POP3 sessions; and finding out whom an address belongs to.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use control::Id;
use ipc::field::{Bytes, Verdict};
use ipc::job::Job;
use ipc::lspawn::{Answer, Existence, Request, Room};
use ipc::{Message as _, getpw};
use rustix::fs::FileType;
use sandbox::Socket;
use sys::Seqpacket;
use users::{UserName, VirtualDomain};
use wire::{Address, Domain};

use crate::events::Source;
use crate::peers::{Client, Read, Rights, read};
use crate::service::{Service, log};
use crate::target::{Claim, Refusal, Target};
use crate::task::{Ask, DELIVERY_DEADLINE, Origin, Outcome, QUESTION_DEADLINE, Stage, Task, answer};

/// Work under way; each piece may hold a descriptor. More than concurrencylocal can be, and room for questions.
const TASKS_MAX: usize = 2500;
/// POP3 sessions; each is a process.
const SESSIONS_MAX: usize = 1000;
/// Datagrams read from a client before the others get their turn.
const READS_MAX: usize = 32;

/// Who gets the message of a job.
enum To {
    System,
    Mailbox { domain: Domain, user: Vec<u8>, ext: Vec<u8> },
    Alias { domain: Domain },
}

impl Service {
    pub(crate) fn on_client(&mut self, id: u64) {
        for _ in 0..READS_MAX {
            let Some(client) = self.clients.get(&id) else { return };
            let rights = client.rights;
            match read(&client.socket, &mut self.buf, true) {
                Read::Datagram(datagram, fd) => self.on_request(id, rights, &datagram, fd),
                Read::Empty => return self.flush(id),
                Read::Closed => {
                    // Its work runs to the end, the results are dropped.
                    self.clients.remove(&id);
                    return;
                }
            }
        }
    }

    /// Jobs come with the message beside them, questions without; that tells them apart where one uid may send both.
    fn on_request(&mut self, client: u64, rights: Rights, datagram: &[u8], fd: Option<OwnedFd>) {
        let understood = match fd {
            Some(body) if rights.jobs => Job::decode(datagram).is_ok_and(|job| self.on_job(client, job, body)),
            None if rights.questions => Request::decode(datagram).map(|question| self.on_question(client, question)).is_ok(),
            _ => false,
        };
        if !understood {
            log("warning: a client sent what is no request; its connection is closed");
            self.clients.remove(&client);
        }
    }

    /// False for a job that is not ours.
    fn on_job(&mut self, client: u64, job: Job, body: OwnedFd) -> bool {
        let (number, address, ask, to) = match job {
            Job::System { number, sender, recipient, inherits, .. } => {
                (number, recipient, Ask::Deliver { sender, settings: Bytes::default(), inherits }, To::System)
            }
            Job::Mailbox { number, sender, recipient, domain, user, ext, settings, inherits, .. } => {
                (number, recipient, Ask::Deliver { sender, settings, inherits }, To::Mailbox { domain, user: user.0, ext: ext.0 })
            }
            Job::Alias { number, sender, recipient, domain, targets, inherits, .. } => {
                (number, recipient, Ask::Forward { sender, targets, inherits }, To::Alias { domain })
            }
            Job::Remote { .. } => return false,
        };
        let origin = Origin { client, number };
        if self.stop_at.is_some() || self.tasks.len() >= TASKS_MAX {
            self.answer(origin, &Outcome::deferral("no more deliveries can be started now (#4.3.2)"));
            return true;
        }
        if address.local().is_empty() && matches!(to, To::System) {
            // qmail-lspawn(8): mail for nobody is delivered nowhere.
            self.answer(origin, &Outcome::Done(Verdict::Success, Vec::new()));
            return true;
        }
        let id = self.new_task(origin, ask, address, Some(body), DELIVERY_DEADLINE);
        match to {
            To::System => self.locate(id),
            To::Mailbox { domain, user, ext } => {
                let target = self.mailbox(id, &domain, Some(&user), &ext);
                self.settle(id, target);
            }
            To::Alias { domain } => {
                let target = self.mailbox(id, &domain, None, b"");
                self.settle(id, target);
            }
        }
        self.pump();
        true
    }

    fn on_question(&mut self, client: u64, question: Request) {
        match question {
            Request::Exists { id: number, local } => {
                // With the `@` behind it, a local part that holds one stays whole.
                let address = Address::join(&local, b"").ok().filter(|_| !local.is_empty());
                if let Some(id) = self.new_question(client, number, address) {
                    self.locate(id);
                    self.pump();
                }
            }
            Request::ExistsMailbox { id: number, domain, user, ext } => {
                let address = Address::join(&[&user[..], b"-", &ext[..]].concat(), domain.as_bytes()).ok();
                if let Some(id) = self.new_question(client, number, address) {
                    let target = self.mailbox(id, &domain, Some(&user), &ext);
                    self.settle(id, target);
                    self.pump();
                }
            }
            Request::Room { id: number, domain, user, settings, size } => {
                let (origin, address) = (Origin { client, number }, Address::join(&user, domain.as_bytes()).unwrap_or_default());
                if self.stop_at.is_some() || self.tasks.len() >= TASKS_MAX {
                    return self.answer(origin, &Outcome::Room(Room::CannotTell {}));
                }
                let id = self.new_task(origin, Ask::Room { settings, size }, address, None, QUESTION_DEADLINE);
                let target = self.mailbox(id, &domain, Some(&user), b"");
                self.settle(id, target);
                self.pump();
            }
            Request::Rename { id, domain, user, to } => self.rename(Origin { client, number: id }, &domain, &user, &to),
            Request::Session { id, domain, user } => match self.start_session(&domain, &user) {
                Ok(socket) => self.send(client, Answer::Session { id }.encode(), Some(socket)),
                Err(text) => {
                    log(&format!("warning: no session: {text}"));
                    let text = ipc::clip(text.as_bytes()).into();
                    self.send(client, Answer::NoSession { id, text }.encode(), None);
                }
            },
            Request::SystemUser { id: number, user, session } => {
                let (origin, deadline) = (Origin { client, number }, QUESTION_DEADLINE);
                let address = Address::join(&user, b"").ok().filter(|_| !user.is_empty());
                match address {
                    None => self.answer(origin, &Outcome::NoUser("not a name".to_owned())),
                    Some(_) if self.stop_at.is_some() || self.tasks.len() >= TASKS_MAX => {
                        self.answer(origin, &Outcome::NoSession("too much to do".to_owned()));
                    }
                    Some(address) => {
                        let id = self.new_task(origin, Ask::LogIn { session }, address, None, deadline);
                        self.locate(id);
                    }
                }
            }
        }
    }

    /// Not while mail is on its way into the home: it would be made anew under the old name.
    fn rename(&mut self, origin: Origin, domain: &Domain, user: &[u8], to: &[u8]) {
        let (Some(name), false) = (canonical(to), self.stop_at.is_some() || self.tasks.len() >= TASKS_MAX) else {
            return self.answer(origin, &Outcome::Renamed(Some("the home cannot be renamed now (#4.3.2)".to_owned())));
        };
        let address = Address::join(user, domain.as_bytes()).unwrap_or_default();
        let ask = Ask::Rename { to: name.as_bytes().into() };
        let id = self.new_task(origin, ask, address, None, QUESTION_DEADLINE);
        let target = self.mailbox(id, domain, Some(user), b"");
        let is_home = |home: &Bytes| target.as_ref().is_ok_and(|target| target.recipient.home == *home);
        let is_busy = |task: &Task| {
            matches!(task.ask, Ask::Deliver { .. }) && task.target.as_ref().is_some_and(|target| is_home(&target.recipient.home))
        };
        if self.tasks.values().any(is_busy) {
            return self.finish(id, &Outcome::Renamed(Some("mail for the user is being delivered; try again".to_owned())));
        }
        self.settle(id, target);
        self.pump();
    }

    /// A task for a question of existence, or the answer at once if none is needed (no such address) or possible (too much work).
    fn new_question(&mut self, client: u64, number: u64, address: Option<Address>) -> Option<u64> {
        let origin = Origin { client, number };
        let Some(address) = address else {
            self.answer(origin, &Outcome::Exists(Existence::No {}));
            return None;
        };
        if self.stop_at.is_some() || self.tasks.len() >= TASKS_MAX {
            self.answer(origin, &Outcome::Exists(Existence::Down {}));
            return None;
        }
        Some(self.new_task(origin, Ask::Exists, address, None, QUESTION_DEADLINE))
    }

    fn start_session(&mut self, domain: &Domain, user: &[u8]) -> Result<OwnedFd, String> {
        let name = canonical(user).ok_or("not a user name")?;
        let entry = self.virtual_domain(domain).map_err(|refusal| refusal.0)?;
        let nobody = Address::null();
        self.rules.mailbox(domain, &entry, Some(&name), b"", &nobody, false).map_err(|refusal| refusal.0)?;
        let login = [user, b"@", domain.as_bytes()].concat();
        self.start_pop3d(entry.id, Path::new("/"), &entry.home(&name).join("Maildir"), &login)
    }

    fn start_pop3d(&mut self, id: Id, dir: &Path, maildir: &Path, user: &[u8]) -> Result<OwnedFd, String> {
        if self.stop_at.is_some() || self.sessions.len() >= SESSIONS_MAX {
            return Err("too many sessions, or qmail is stopping".to_owned());
        }
        let started = self.programs.start_session(id, dir, maildir, user);
        let (child, socket) = started.map_err(|error| format!("cannot start qmail-pop3d: {error}"))?;
        let id = self.next_number();
        self.events.add(&child.pidfd, Source::SessionEnd(id)).map_err(|error| error.to_string())?;
        self.sessions.insert(id, child);
        Ok(socket)
    }

    /// Whose address the name is has been found out. Only a user whose own name it is may log in by it: neither who gets the mail of a name
    /// that is nobody's (alias), or of a system account, nor who was given the mail of another by users/assign.
    fn log_in(&mut self, id: u64, target: &Target, session: bool) {
        let Some(task) = self.tasks.get(&id) else { return };
        let (origin, recipient) = (task.origin, &target.recipient);
        let is_own_name = recipient.dash.is_empty() && recipient.user.eq_ignore_ascii_case(task.address.local());
        if target.base.is_some() || !is_own_name {
            return self.finish(id, &Outcome::NoUser("no user of this name may log in".to_owned()));
        }
        if !session {
            return self.finish(id, &Outcome::MayLogIn);
        }
        let home = Path::new(OsStr::from_bytes(&recipient.home));
        // As a relative path, since a system user's Maildir may be a link to wherever he may go.
        let maildir = self.values.maildir();
        match self.start_pop3d(target.id, home, &maildir, &recipient.user) {
            Ok(socket) => {
                self.tasks.remove(&id);
                self.send(origin.client, Answer::Session { id: origin.number }.encode(), Some(socket));
            }
            Err(text) => {
                log(&format!("warning: no session: {text}"));
                self.finish(id, &Outcome::NoSession(text));
            }
        }
    }

    fn new_task(&mut self, origin: Origin, ask: Ask, address: Address, body: Option<OwnedFd>, wait_max: Duration) -> u64 {
        let id = self.next_number();
        let deadline = sys::clock::boottime().saturating_add(wait_max);
        self.tasks.insert(id, Task { origin, ask, address, body, stage: Stage::Queued, deadline, target: None, retried: false });
        id
    }

    /// Whose is a system address? users/assign knows, or qmail-getpw is asked.
    fn locate(&mut self, id: u64) {
        let Some(task) = self.tasks.get(&id) else { return };
        match self.assignments.lookup(task.address.local()) {
            Ok(Some(entry)) => {
                let target = self.rules.assigned(entry, &task.address);
                self.settle(id, target);
            }
            Ok(None) => match self.claims.get(task.address.local(), sys::clock::boottime()) {
                Some(claim) => {
                    // Home and group were found right when the claim was kept.
                    let owner = claim.id;
                    let target = self.rules.claimed(claim, &task.address, |_| Some(owner));
                    self.settle(id, target);
                }
                None => self.ask_getpw(id),
            },
            Err(error) => {
                log(&format!("warning: {error}"));
                self.down(id, "the user database cannot be read now (#4.3.0)");
            }
        }
    }

    fn virtual_domain(&mut self, domain: &Domain) -> Result<VirtualDomain, Refusal> {
        let found = self.domains.get().map(|domains| domains.get(domain.as_bytes()).cloned());
        let found = found.map_err(|error| {
            log(&format!("warning: {error}"));
            Refusal("users/domains cannot be used now (#4.3.0)".to_owned())
        })?;
        found.ok_or_else(|| Refusal("the domain is not in users/domains any more (#4.3.0)".to_owned()))
    }

    fn mailbox(&mut self, id: u64, domain: &Domain, user: Option<&[u8]>, ext: &[u8]) -> Result<Target, Refusal> {
        let entry = self.virtual_domain(domain)?;
        let name = match user.map(canonical) {
            Some(None) => return Err(Refusal("not the name of a virtual user (#4.3.0)".to_owned())),
            Some(name) => name,
            None => None,
        };
        let address = self.tasks.get(&id).map(|task| task.address.clone()).unwrap_or_default();
        let may_exec = self.values.program_domains.contains_exact(domain.as_bytes());
        self.rules.mailbox(domain, &entry, name.as_ref(), ext, &address, may_exec)
    }

    /// The target is known, or it is known that there is none: the task waits for a worker or is done.
    fn settle(&mut self, id: u64, target: Result<Target, Refusal>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        match target {
            Err(refusal) => {
                let outcome = task.failed(&refusal.0);
                self.finish(id, &outcome);
            }
            // A user without extension always has somewhere: a `.qmail` file or defaultdelivery.
            Ok(target) if task.ask == Ask::Exists && target.recipient.dash.is_empty() => {
                self.finish(id, &Outcome::Exists(Existence::Yes {}));
            }
            Ok(target) if matches!(task.ask, Ask::LogIn { .. }) => {
                let session = task.ask == Ask::LogIn { session: true };
                self.log_in(id, &target, session);
            }
            Ok(target) => {
                task.target = Some(target);
                task.stage = Stage::Queued;
                self.queue.push_back(id);
            }
        }
    }

    fn ask_getpw(&mut self, id: u64) {
        if self.getpw.is_none() {
            self.getpw = self.connect_getpw();
        }
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.stage = Stage::Asked;
        task.deadline = sys::clock::boottime().saturating_add(QUESTION_DEADLINE);
        let question = getpw::Request::Who { id, local: task.address.local().into() }.encode();
        let sent = self.getpw.as_mut().is_some_and(|getpw| getpw.send(question, None, &self.events, Source::Getpw).is_ok());
        if !sent {
            self.getpw = None;
            self.down(id, "qmail-getpw does not answer (#4.3.0)");
        }
    }

    fn connect_getpw(&self) -> Option<Client> {
        use std::os::fd::AsFd as _;
        let socket = Seqpacket::connect_nonblocking(self.run_dir.as_fd(), Socket::Getpw.path()).ok()?;
        self.events.add(&socket, Source::Getpw).ok()?;
        Some(Client::new(socket, Rights { jobs: false, questions: false }))
    }

    pub(crate) fn on_getpw(&mut self) {
        for _ in 0..READS_MAX {
            let Some(getpw) = &mut self.getpw else { return };
            match read(&getpw.socket, &mut self.buf, false) {
                Read::Empty => {
                    if getpw.flush(&self.events, Source::Getpw).is_err() {
                        self.lose_getpw();
                    }
                    return;
                }
                Read::Datagram(datagram, _) => match getpw::Answer::decode(&datagram) {
                    Ok(answer) => self.on_getpw_answer(answer),
                    Err(_) => return self.lose_getpw(),
                },
                Read::Closed => return self.lose_getpw(),
            }
        }
    }

    pub(crate) fn on_getpw_answer(&mut self, answer: getpw::Answer) {
        let (id, claim) = match answer {
            getpw::Answer::User { id, user, uid, gid, home, dash, ext } => {
                (id, Ok(Claim { user, id: Id { uid, gid }, home, dash, ext }))
            }
            getpw::Answer::NoUser { id } => (id, Err("there is no alias user (#4.3.5)")),
            getpw::Answer::Temporary { id, .. } => (id, Err("the user cannot be looked up now (#4.3.0)")),
        };
        let Some(task) = self.tasks.get(&id).filter(|task| task.stage == Stage::Asked) else { return };
        match claim {
            Ok(claim) => {
                let local = task.address.local().to_vec();
                let target = self.rules.claimed(claim.clone(), &task.address, owner);
                if target.as_ref().is_ok_and(|target| target.id == claim.id) && !self.rules.is_alias(&claim) {
                    self.claims.insert(local, claim, sys::clock::boottime());
                }
                self.settle(id, target);
                self.pump();
            }
            Err(text) => self.down(id, text),
        }
    }

    fn lose_getpw(&mut self) {
        self.getpw = None;
        let asked: Vec<u64> = self.tasks.iter().filter(|(_, task)| task.stage == Stage::Asked).map(|(id, _)| *id).collect();
        for id in asked {
            self.down(id, "qmail-getpw went away (#4.3.0)");
        }
    }

    /// Not even the user can be looked up.
    pub(crate) fn down(&mut self, id: u64, text: &str) {
        let Some(task) = self.tasks.get(&id) else { return };
        let outcome = if task.ask == Ask::Exists { Outcome::Exists(Existence::Down {}) } else { task.failed(text) };
        self.finish(id, &outcome);
    }

    /// Ends a task and tells who asked, if it is still there.
    pub(crate) fn finish(&mut self, id: u64, outcome: &Outcome) {
        if let Some(task) = self.tasks.remove(&id) {
            self.answer(task.origin, outcome);
        }
    }

    fn answer(&mut self, origin: Origin, outcome: &Outcome) {
        self.send(origin.client, answer(origin.number, outcome), None);
    }

    fn send(&mut self, client: u64, datagram: Vec<u8>, fd: Option<OwnedFd>) {
        let Some(to) = self.clients.get_mut(&client) else { return };
        if to.send(datagram, fd, &self.events, Source::Client(client)).is_err() {
            self.clients.remove(&client);
        }
    }

    pub(crate) fn flush(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.flush(&self.events, Source::Client(id)).is_err() {
            self.clients.remove(&id);
        }
    }
}

/// A user name exactly as it is spelt on the disk.
fn canonical(user: &[u8]) -> Option<UserName> {
    UserName::new(user).filter(|name| name.as_bytes() == user)
}

/// To whom, and to which group, a directory belongs. qmail-getpw has looked at it a moment ago, so a file server that hangs has held up that
/// process and not this one.
fn owner(home: &Path) -> Option<Id> {
    let stat = rustix::fs::stat(home).ok()?;
    FileType::from_raw_mode(stat.st_mode).is_dir().then_some(Id { uid: stat.st_uid, gid: stat.st_gid })
}
