//! Giving work to workers, hearing from them, and ending them.

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use ipc::lspawn::Existence;
use ipc::worker::Report;
use ipc::{Message as _, clip};

use crate::events::Source;
use crate::peers::{Read, read};
use crate::pool::Choice;
use crate::service::{Service, Worker, kill, log};
use crate::target::Target;
use crate::task::{Ask, Outcome, PROGRAM_DEADLINE, Stage};

/// Reports read from a worker before the others get their turn.
const READS_MAX: usize = 16;
/// An idle worker whose connection was closed, or a one-shot that has reported, has this long to exit.
const EXIT_MAX: Duration = Duration::from_secs(5);
const CRASHED: &str = "qmail-local crashed (#4.3.0)";

impl Service {
    /// Places what waits, in order, as far as there is room.
    pub(crate) fn pump(&mut self) {
        for id in std::mem::take(&mut self.queue) {
            if self.tasks.contains_key(&id) && !self.place(id) {
                self.queue.push_back(id);
            }
        }
    }

    /// True when the task has a worker (or has failed), false when it must wait.
    fn place(&mut self, id: u64) -> bool {
        let Some(target) = self.tasks.get(&id).and_then(|task| task.target.clone()) else { return true };
        if self.is_theirs_to_know(id, &target) {
            self.finish(id, &Outcome::Exists(Existence::CannotTell {}));
            return true;
        }
        if self.is_replaced(id, &target) {
            self.start_alone(id, &target, self.values.replacement.clone());
            return true;
        }
        let worker = match self.pool.choose(&target.key) {
            Choice::Wait => return false,
            Choice::Use(worker) => worker,
            choice => {
                if let Choice::Replace(idle) = choice {
                    self.retire(idle, sys::clock::boottime());
                }
                let started = self.programs.start_worker(&target);
                let Some(worker) = self.keep(id, started, false) else { return true };
                self.pool.started(worker, target.key, sys::clock::boottime());
                worker
            }
        };
        self.give(id, worker)
    }

    /// Watches a worker that was just started; without one the task fails.
    fn keep(&mut self, task: u64, started: std::io::Result<(sys::spawn::Child, sys::Seqpacket)>, once: bool) -> Option<u64> {
        let worker = self.next_number();
        let watched = started.and_then(|(child, socket)| {
            self.events.add(&socket, Source::Worker(worker))?;
            self.events.add(&child.pidfd, Source::WorkerEnd(worker))?;
            Ok(Worker { child, socket: Some(socket), once, tasks: Vec::new(), kill_at: None })
        });
        match watched {
            Ok(started) => {
                self.workers.insert(worker, started);
                Some(worker)
            }
            Err(error) => {
                log(&format!("warning: cannot start {}: {error}", self.programs.local.display()));
                self.fail(task, "cannot start qmail-local (#4.3.0)");
                None
            }
        }
    }

    /// Sends a task to a worker; false when the worker's socket is full, so that the task must wait.
    fn give(&mut self, id: u64, worker: u64) -> bool {
        let lmtp = match self.lmtp(id) {
            Ok(lmtp) => lmtp,
            Err(why) => {
                self.fail(id, why);
                return true;
            }
        };
        let Some(task) = self.tasks.get_mut(&id) else { return true };
        let request = task.request(id, &self.values.default_delivery, lmtp).and_then(|request| request.encode_bounded().ok());
        let Some(request) = request else {
            self.fail(id, "the recipient has too many targets for one delivery (#4.3.0)");
            return true;
        };
        let Some(to) = self.workers.get_mut(&worker) else { return true };
        let sent = match (&to.socket, &task.body) {
            (Some(socket), Some(body)) => socket.send_with_fd(&request, body.as_fd()),
            (Some(socket), None) => socket.send(&request),
            (None, _) => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        match sent {
            Ok(()) => {
                let time = if to.once { PROGRAM_DEADLINE } else { task.time_allowed() };
                task.deadline = sys::clock::boottime().saturating_add(time);
                task.stage = Stage::Running { process: worker };
                to.tasks.push(id);
                self.pool.assigned(worker);
                true
            }
            // A full socket with requests in it: an answer comes and with it another turn.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !to.tasks.is_empty() => false,
            // It has gone without taking this, so another one may have it; but a program that always goes must not be
            // started for ever. Its end, which is on its way, gives the task another turn.
            Err(_) => {
                let again = !to.once && !std::mem::replace(&mut task.retried, true);
                self.worker_failed(worker, "cannot be written to");
                if !again {
                    self.fail(id, CRASHED);
                }
                !again
            }
        }
    }

    pub(crate) fn on_worker(&mut self, id: u64) {
        for _ in 0..READS_MAX {
            let Some(socket) = self.workers.get(&id).and_then(|worker| worker.socket.as_ref()) else { return };
            match read(socket, &mut self.buf, false) {
                Read::Empty => return,
                Read::Closed => return self.on_closed(id),
                Read::Datagram(datagram, _) => {
                    let understood = Report::decode(&datagram).is_ok_and(|report| self.on_report(id, report));
                    if !understood {
                        return self.worker_failed(id, "sent what is no report");
                    }
                    // It has nothing more to say; should it close now, the loop hears of it.
                    if self.workers.get(&id).is_none_or(|worker| worker.tasks.is_empty()) {
                        return;
                    }
                }
            }
        }
    }

    fn on_closed(&mut self, id: u64) {
        match self.workers.get_mut(&id) {
            // It has reported and ends. What its programs left running is theirs to leave.
            Some(worker) if worker.once && worker.tasks.is_empty() => worker.socket = None,
            _ => self.worker_failed(id, "closed its connection"),
        }
    }

    /// False for a report on something that this worker was not asked for.
    fn on_report(&mut self, worker: u64, report: Report) -> bool {
        let number = match report {
            Report::Done { number, .. } | Report::NeedsExec { number } => number,
            Report::Exists { number, .. } | Report::Room { number, .. } | Report::Renamed { number, .. } => number,
        };
        let Some(from) = self.workers.get_mut(&worker) else { return false };
        let Some(at) = from.tasks.iter().position(|task| *task == number) else { return false };
        let Some(task) = self.tasks.get(&number) else { return false };
        match &report {
            Report::Exists { .. } if task.ask == Ask::Exists => {}
            Report::Room { .. } if matches!(task.ask, Ask::Room { .. }) => {}
            Report::Renamed { .. } if matches!(task.ask, Ask::Rename { .. }) => {}
            Report::Done { .. } if !task.is_question() => {}
            Report::NeedsExec { .. } if !task.is_question() && !from.once => {}
            _ => return false,
        }
        from.tasks.swap_remove(at);
        let now = sys::clock::boottime();
        if from.once {
            from.kill_at = Some(now.saturating_add(EXIT_MAX));
        }
        self.pool.finished(worker, now);
        match report {
            Report::Done { verdict, text, .. } => self.finish(number, &Outcome::Done(verdict, clip(&text).to_vec())),
            Report::Exists { answer, .. } => self.finish(number, &Outcome::Exists(answer)),
            Report::Room { room, .. } => self.finish(number, &Outcome::Room(room)),
            Report::Renamed { failure, .. } => {
                let failure = failure.map(|text| String::from_utf8_lossy(&text).into_owned());
                self.finish(number, &Outcome::Renamed(failure));
            }
            Report::NeedsExec { .. } => self.run_programs(number),
        }
        self.pump();
        true
    }

    /// The `.qmail` file holds what a confined worker may not do (programs; for a virtual user absolute paths too), and nothing was
    /// delivered yet: a worker that may do it does all of it.
    fn run_programs(&mut self, id: u64) {
        let Some(target) = self.tasks.get(&id).and_then(|task| task.target.clone()) else { return };
        if !target.may_exec {
            return self.fail(
                id,
                "programs and absolute paths are not for this domain; control/vmailprograms does not name it (#4.3.5)",
            );
        }
        self.start_alone(id, &target, None);
    }

    /// Does a program of root's choice deliver this? For system users alone: the classic interface has no words for what the account of a
    /// virtual user says, and in such a program's place is qmail's own classic qmail-local, which no domain confines.
    fn is_replaced(&self, id: u64, target: &Target) -> bool {
        let is_delivery = self.tasks.get(&id).is_some_and(|task| matches!(task.ask, Ask::Deliver { .. }));
        self.values.replacement.is_some() && is_delivery && target.base.is_none()
    }

    /// Is the question whether an address exists that such a program gets? It may deliver to any: no `.qmail` file tells.
    fn is_theirs_to_know(&self, id: u64, target: &Target) -> bool {
        let is_question = self.tasks.get(&id).is_some_and(|task| task.ask == Ask::Exists);
        self.values.replacement.is_some() && is_question && target.base.is_none()
    }

    /// A process for this delivery alone, not confined.
    fn start_alone(&mut self, id: u64, target: &Target, replacement: Option<PathBuf>) {
        if self.stop_at.is_some() {
            return self.fail(id, "qmail is stopping (#4.3.2)");
        }
        let started = self.programs.start_once(target, replacement.as_deref());
        if let Some(worker) = self.keep(id, started, true) {
            self.give(id, worker);
        }
    }

    pub(crate) fn fail(&mut self, id: u64, text: &str) {
        if let Some(outcome) = self.tasks.get(&id).map(|task| task.failed(text)) {
            self.finish(id, &outcome);
        }
    }

    /// The worker is of no use any more: it is killed, its work fails, its end is awaited.
    fn worker_failed(&mut self, id: u64, why: &str) {
        if let Some(worker) = self.workers.get(&id) {
            kill(&worker.child);
        }
        self.abandon(id, why);
    }

    /// The work of a worker that is gone or will be is deferred, and it gets no more.
    fn abandon(&mut self, id: u64, why: &str) {
        self.pool.ended(id);
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.socket = None;
        let tasks = std::mem::take(&mut worker.tasks);
        if !tasks.is_empty() {
            log(&format!("warning: qmail-local {} {why}; {} deferred", worker.child.pid.as_raw_nonzero(), tasks.len()));
        }
        for task in tasks {
            self.fail(task, CRASHED);
        }
        self.pump();
    }

    pub(crate) fn on_worker_end(&mut self, id: u64) {
        // What it said before it ended counts.
        self.on_worker(id);
        let Some(ended) = self.workers.get(&id).and_then(|worker| worker.child.try_wait()) else { return };
        // Its number may be another process's from here on, so nothing is sent to it.
        self.abandon(id, &format!("ended ({ended:?})"));
        self.workers.remove(&id);
    }

    /// An idle worker is told to go by the end of its connection.
    fn retire(&mut self, id: u64, now: Duration) {
        self.pool.ended(id);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.socket = None;
            worker.kill_at = Some(now.saturating_add(EXIT_MAX));
        }
    }

    pub(crate) fn check_deadlines(&mut self, now: Duration) {
        let late: Vec<(u64, Stage)> =
            self.tasks.iter().filter(|(_, task)| now >= task.deadline).map(|(id, task)| (*id, task.stage)).collect();
        for (id, stage) in late {
            match stage {
                Stage::Asked => self.down(id, "the user could not be looked up in time (#4.3.0)"),
                Stage::Queued => self.fail(id, "no worker was free in time (#4.3.0)"),
                Stage::Running { process } => self.overdue(id, process),
            }
        }
        for id in self.pool.stale(now) {
            self.retire(id, now);
        }
        for worker in self.workers.values_mut().filter(|worker| worker.kill_at.is_some_and(|at| now >= at)) {
            worker.kill_at = None;
            kill(&worker.child);
        }
    }

    /// The task took too long; the worker is killed, and what else it had is deferred too.
    fn overdue(&mut self, id: u64, worker: u64) {
        if let Some(running) = self.workers.get_mut(&worker) {
            running.tasks.retain(|task| *task != id);
        }
        self.fail(id, "the delivery took too long and was stopped (#4.3.0)");
        self.worker_failed(worker, "took too long");
    }

    /// Everything that no worker has yet is deferred.
    pub(crate) fn defer_waiting(&mut self, text: &str) {
        self.queue.clear();
        let waiting = self.tasks.iter().filter(|(_, task)| !matches!(task.stage, Stage::Running { .. }));
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.down(id, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{Client, Rights};
    use crate::task::{DELIVERY_DEADLINE, Origin, Task};
    use ipc::DATAGRAM_LEN_MAX;
    use ipc::job::Answer;
    use std::os::fd::OwnedFd;
    use sys::{Received, Seqpacket};
    use wire::{Address, Domain};

    /// A service with one client, whose workers are the stand-in of the tests.
    fn service() -> (tempfile::TempDir, Service, Seqpacket) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = control::Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.users()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        if rustix::process::geteuid().is_root() {
            std::fs::write(root.ids_file(), "qmailq 61103 61100\n").unwrap();
        }
        let run_dir = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let mut service = Service::new(root, run_dir).unwrap();
        let built = std::env::current_exe().unwrap();
        service.programs.local = built.parent().unwrap().parent().unwrap().join("examples/fake-local");
        let (ours, theirs) = Seqpacket::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        service.clients.insert(7, Client::new(theirs, Rights { jobs: true, questions: true }));
        ours.set_nonblocking(true).unwrap();
        (dir, service, ours)
    }

    /// A delivery to a virtual domain that waits for a worker.
    fn queue(service: &mut Service, number: u64, order: &str) -> u64 {
        let id = service.next_number();
        let address = Address::new(b"joe@v.example").unwrap();
        let own = control::Id { uid: 61_200, gid: 61_200 };
        let entry = control::VirtualDomain::new(own, std::path::Path::new("/m")).unwrap();
        let mut rules = service.rules.clone();
        rules.uid = own.uid;
        let domain = Domain::new(b"v.example").unwrap();
        let target = rules.mailbox(&domain, &entry, None, b"", &address, false).unwrap();
        let deadline = sys::clock::boottime() + DELIVERY_DEADLINE;
        let ask = Ask::Deliver { sender: Address::new(order.as_bytes()).unwrap(), settings: "".into(), inherits: "".into() };
        let body = Some(sys::memfd::sealed(b"x").unwrap());
        let origin = Origin { client: 7, number };
        let task = Task { origin, ask, address, body, stage: Stage::Queued, deadline, target: Some(target), retried: false };
        service.tasks.insert(id, task);
        service.queue.push_back(id);
        id
    }

    /// Killed at its deadline, a one-shot must not leave its programs behind: the message will be given to them again.
    #[test]
    fn a_one_shot_and_the_programs_it_started_end_together() {
        let (_dir, mut service, _client) = service();
        service.programs.run_as_caller();
        let id = queue(&mut service, 1, "ok");
        let target = service.tasks[&id].target.clone().unwrap();
        let (child, _socket) = service.programs.start_once(&target, None).unwrap();
        assert_eq!(rustix::process::getpgid(Some(child.pid)).unwrap(), child.pid, "it leads the group that is killed");
        kill(&child);
        assert_eq!(child.wait(), sys::spawn::Ended::Signal(9));
    }

    /// What was nobody's may be a new user's the next moment: its mail must not go on to alias, which may refuse it for good.
    #[test]
    fn that_nobody_is_behind_a_name_is_not_remembered() {
        use ipc::getpw::Answer;
        let (_dir, mut service, _client) = service();
        let own = control::Id { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        let alias = if own.uid == 0 { control::Id { uid: 61_106, gid: 61_106 } } else { own };
        if own.uid == 0 {
            service.rules.ids = control::Ids::parse(b"qmailq 61103 61100\nalias 61106 61106\n").unwrap();
        }
        let id = service.next_number();
        let ask = Ask::Deliver { sender: Address::null(), settings: "".into(), inherits: "".into() };
        let deadline = sys::clock::boottime() + DELIVERY_DEADLINE;
        let (origin, address) = (Origin { client: 7, number: 1 }, Address::new(b"newcomer@h").unwrap());
        let task = Task { origin, ask, address, body: None, stage: Stage::Asked, deadline, target: None, retried: false };
        service.tasks.insert(id, task);
        service.programs.local = "/nonexistent/qmail-local".into();
        let (user, ext) = ("alias".into(), "newcomer".into());
        let home = service.rules.alias_home.to_str().unwrap().into();
        service.on_getpw_answer(Answer::User { id, user, uid: alias.uid, gid: alias.gid, home, dash: "-".into(), ext });
        assert!(!service.tasks.contains_key(&id), "it went to alias, whose worker cannot be started here");
        assert!(service.claims.get(b"newcomer", sys::clock::boottime()).is_none());
    }

    fn answers(client: &Seqpacket) -> Vec<(u64, String)> {
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        let mut all = Vec::new();
        while let Ok(Received::Datagram(len, _)) = client.recv(&mut buf) {
            let Answer::Done { number, outcomes, .. } = Answer::decode(&buf[..len]).unwrap() else { panic!() };
            all.push((number, String::from_utf8(outcomes[0].text.to_vec()).unwrap()));
        }
        all
    }

    #[test]
    fn a_worker_past_its_deadline_is_killed_and_all_its_work_deferred() {
        let (_dir, mut service, client) = service();
        service.programs.run_as_caller();
        for number in 1..=5 {
            queue(&mut service, number, "hang");
        }
        service.pump();
        assert_eq!(service.workers.len(), 4, "the fifth shares a worker");
        let now = sys::clock::boottime();
        service.check_deadlines(now + DELIVERY_DEADLINE - Duration::from_secs(5));
        assert!(answers(&client).is_empty());
        service.check_deadlines(now + DELIVERY_DEADLINE + Duration::from_secs(5));
        let mut told = answers(&client);
        told.sort();
        assert_eq!(told.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(told.iter().any(|(_, text)| text.contains("took too long")), "{told:?}");
        assert!(service.tasks.is_empty() && service.pool.is_empty());
        for worker in service.workers.values() {
            assert_eq!(worker.child.wait(), sys::spawn::Ended::Signal(9));
        }
    }

    #[test]
    fn what_waits_too_long_for_a_worker_is_deferred() {
        let (_dir, mut service, client) = service();
        queue(&mut service, 1, "ok");
        service.check_deadlines(sys::clock::boottime() + DELIVERY_DEADLINE);
        assert_eq!(answers(&client), [(1, "no worker was free in time (#4.3.0)".to_owned())]);
    }

    /// What a program in the place of qmail-local delivers to, no `.qmail` file tells; of virtual domains it gets nothing.
    #[test]
    fn whether_an_address_of_a_program_exists_cannot_be_told() {
        let (_dir, mut service, client) = service();
        service.values.replacement = Some("/bin/true".into());
        service.programs.local = "/nonexistent/qmail-local".into();
        let own = control::Id { uid: 61_200, gid: 61_200 };
        let mut rules = service.rules.clone();
        rules.uid = own.uid;
        let address = Address::new(b"joe-anything@h").unwrap();
        let entry = users::Entry {
            user: b"joe".to_vec(),
            id: own,
            home: b"/home/joe".to_vec(),
            dash: b"-".to_vec(),
            ext: b"anything".to_vec(),
        };
        let system = rules.assigned(entry, &address).unwrap();
        let (id, number) = (service.next_number(), 5);
        let deadline = sys::clock::boottime() + DELIVERY_DEADLINE;
        let origin = Origin { client: 7, number };
        let task = Task {
            origin,
            ask: Ask::Exists,
            address,
            body: None,
            stage: Stage::Queued,
            deadline,
            target: Some(system),
            retried: false,
        };
        service.tasks.insert(id, task);
        service.queue.push_back(id);
        service.pump();
        assert!(service.tasks.is_empty() && service.workers.is_empty());
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        let Received::Datagram(len, _) = client.recv(&mut buf).unwrap() else { panic!() };
        let answer = ipc::lspawn::Answer::decode(&buf[..len]).unwrap();
        assert_eq!(answer, ipc::lspawn::Answer::Exists { id: number, answer: Existence::CannotTell {} });
    }

    #[test]
    fn a_worker_that_cannot_be_started_is_a_deferral() {
        let (_dir, mut service, client) = service();
        service.programs.local = "/nonexistent/qmail-local".into();
        queue(&mut service, 1, "ok");
        service.pump();
        assert_eq!(answers(&client), [(1, "cannot start qmail-local (#4.3.0)".to_owned())]);
    }

    #[test]
    fn an_idle_worker_is_told_to_go_and_killed_if_it_does_not() {
        let (_dir, mut service, client) = service();
        service.programs.run_as_caller();
        queue(&mut service, 1, "ok");
        service.pump();
        let id = *service.workers.keys().next().unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while !service.tasks.is_empty() && std::time::Instant::now() < until {
            service.on_worker(id);
        }
        assert_eq!(answers(&client).len(), 1);
        let later = sys::clock::boottime() + crate::pool::IDLE_MAX;
        service.check_deadlines(later);
        assert!(service.pool.is_empty() && service.workers[&id].socket.is_none());
        assert_eq!(service.workers[&id].child.wait(), sys::spawn::Ended::Code(0), "the end of its connection is enough");
    }
}
