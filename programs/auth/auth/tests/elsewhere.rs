//! qmail-auth with its accounts elsewhere: over its real sockets, with a qmail-authnet that says what the test wants.
#![allow(clippy::unwrap_used)]

use accounts::Accounts;
use accounts::remote::Remote;
use accounts_sql::Statement;
use control::{Id, Ids, Root};
use ipc::Message;
use ipc::accounts::{Answer as Rows, Call, Request as Question, Value};
use ipc::auth::{Answer, Directory, Request};
use qmail_auth::{Listeners, Server, Setup};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use sys::{Received, Seqpacket};
use wire::Address;

const SOCKET: &str = "roles/accounts.sock";

/// What the database says, and what it was asked.
#[derive(Default)]
struct Database {
    /// Asked since the start: datagrams with statements.
    reads: AtomicUsize,
    hangs: AtomicBool,
    refuses: AtomicBool,
    /// Everybody refuses mail.
    closed: AtomicBool,
    follower: Mutex<Option<Arc<Seqpacket>>>,
    /// The answers that wait until the test lets them go.
    holds: AtomicBool,
    held: Mutex<Vec<(Arc<Seqpacket>, Vec<u8>)>>,
}

impl Database {
    fn rows(&self, call: &Call) -> Vec<Vec<Value>> {
        let statement = Statement::numbered(call.statement).unwrap();
        let is_joe = call.values.get(1) == Some(&Value::Bytes(b"joe".to_vec().into()));
        match statement {
            Statement::TakesMail if is_joe => vec![vec![Value::Int(self.closed.load(Ordering::SeqCst).into())]],
            Statement::Account if is_joe => {
                let (zero, none) = (Value::Int(0), Value::Null);
                let mut row =
                    vec![zero.clone(), zero.clone(), zero.clone(), zero.clone(), Value::Bytes(Vec::new().into()), zero.clone()];
                row.extend(vec![none; 7]);
                row.push(zero);
                vec![row]
            }
            _ => Vec::new(),
        }
    }

    fn serve(self: Arc<Self>, connection: Seqpacket) {
        connection.set_nonblocking(false).unwrap();
        let connection = Arc::new(connection);
        let mut buf = vec![0; 40_000];
        while let Ok(Received::Datagram(len, _)) = connection.recv(&mut buf) {
            let answer = match Question::decode(&buf[..len]).unwrap() {
                Question::Follow { id } => {
                    *self.follower.lock().unwrap() = Some(Arc::clone(&connection));
                    Rows::Done { id, rows: Vec::new(), changed: 0 }
                }
                Question::Read { id, calls } => {
                    self.reads.fetch_add(1, Ordering::SeqCst);
                    if self.hangs.load(Ordering::SeqCst) {
                        continue;
                    }
                    match self.refuses.load(Ordering::SeqCst) {
                        true => Rows::Unavailable { id, text: "away".into() },
                        false => Rows::Rows { id, results: calls.iter().map(|call| self.rows(call)).collect() },
                    }
                }
                other => panic!("{other:?}"),
            };
            if self.holds.load(Ordering::SeqCst) {
                self.held.lock().unwrap().push((Arc::clone(&connection), answer.encode()));
            } else {
                connection.send(&answer.encode()).unwrap();
            }
        }
    }

    fn release(&self) {
        self.holds.store(false, Ordering::SeqCst);
        for (connection, answer) in self.held.lock().unwrap().drain(..) {
            connection.send(&answer).unwrap();
        }
    }

    /// Says that something changed.
    fn changed(&self) {
        self.follower.lock().unwrap().as_ref().unwrap().send(&Rows::Changed {}.encode()).unwrap();
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }
}

struct System {
    _dir: tempfile::TempDir,
    run: Arc<OwnedFd>,
    database: Arc<Database>,
    _lifeline: OwnedFd,
}

fn system() -> System {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path()).unwrap();
    for sub in [root.control(), root.users(), root.lib(), root.run().join("roles"), root.run().join("admin")] {
        std::fs::create_dir_all(sub).unwrap();
    }
    std::fs::write(root.control_file("me"), "host.example\n").unwrap();
    std::fs::write(root.domains_file(), "v.example:1000:1000:/var/mail/v.example\n").unwrap();
    let run: Arc<OwnedFd> = Arc::new(std::fs::File::open(root.run()).unwrap().into());
    let database = Arc::new(Database::default());
    let listener = sys::seqpacket::listen(run.as_fd(), SOCKET).unwrap();
    rustix::io::ioctl_fionbio(&listener, false).unwrap();
    let served = Arc::clone(&database);
    std::thread::spawn(move || {
        while let Ok(connection) = sys::seqpacket::accept(listener.as_fd()) {
            let database = Arc::clone(&served);
            std::thread::spawn(move || database.serve(connection));
        }
    });
    let auth = sys::seqpacket::listen(run.as_fd(), "roles/auth.sock").unwrap();
    let listeners = Listeners { auth: Some(auth), ..Listeners::default() };
    let id = Id { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let accounts = Accounts::elsewhere(Remote::new(Arc::clone(&run), SOCKET));
    let setup = Setup { root, accounts, ids: Ids::Caller(id), run: Arc::clone(&run) };
    let (far, lifeline) = rustix::pipe::pipe().unwrap();
    std::thread::spawn(move || Server::new(setup, listeners).unwrap().run(Some(&far)).unwrap());
    let system = System { _dir: dir, run, database, _lifeline: lifeline };
    // From here on answers are remembered.
    let until = Instant::now() + Duration::from_secs(20);
    while system.database.follower.lock().unwrap().is_none() {
        assert!(Instant::now() < until, "it does not follow");
        std::thread::sleep(Duration::from_millis(5));
    }
    system
}

struct Client(Seqpacket);

impl System {
    fn client(&self) -> Client {
        let socket = Seqpacket::connect(self.run.as_fd(), "roles/auth.sock").unwrap();
        socket.set_deadline(Duration::from_secs(20)).unwrap();
        Client(socket)
    }
}

impl Client {
    fn ask(&self, id: u64, address: &str) {
        let address = Address::new(address.as_bytes()).unwrap();
        self.0.send(&Request::Recipient { id, address }.encode()).unwrap();
    }

    fn hear(&self) -> (u64, Directory) {
        let mut buf = vec![0; 40_000];
        let Received::Datagram(len, _) = self.0.recv(&mut buf).unwrap() else { panic!("closed") };
        match Answer::decode(&buf[..len]).unwrap() {
            Answer::Recipient { id, verdict } => (id, verdict),
            other => panic!("{other:?}"),
        }
    }

    fn recipient(&self, address: &str) -> Directory {
        self.ask(7, address);
        self.hear().1
    }
}

#[test]
fn what_was_found_is_remembered_until_a_change_is_heard_of() {
    let system = system();
    let (client, database) = (system.client(), &system.database);
    // The answer to the wish to follow may come after this one.
    while {
        let before = database.reads();
        assert_eq!(client.recipient("joe@v.example"), Directory::Mailbox {});
        database.reads() != before
    } {}
    let before = database.reads();
    for _ in 0..50 {
        assert_eq!(client.recipient("joe@v.example"), Directory::Mailbox {});
    }
    assert_eq!(database.reads(), before, "remembered");
    assert_eq!(client.recipient("nobody@v.example"), Directory::NoMailbox {});
    assert_eq!(database.reads(), before + 1, "all at once");
    database.closed.store(true, Ordering::SeqCst);
    database.changed();
    // Bounded by the deadline of an answer; what was remembered would count for a minute.
    let until = Instant::now() + Duration::from_secs(20);
    while client.recipient("joe@v.example") != (Directory::NoMailbox {}) {
        assert!(Instant::now() < until, "the change does not count");
    }
}

#[test]
fn an_answer_from_before_a_change_is_not_remembered() {
    let system = system();
    let (client, database) = (system.client(), &system.database);
    while {
        let before = database.reads();
        client.recipient("joe@v.example");
        database.reads() != before
    } {}
    database.changed();
    database.holds.store(true, Ordering::SeqCst);
    // Whichever question comes after the change waits for its answer.
    let asked = database.reads();
    client.ask(1, "joe@v.example");
    while database.reads() == asked {
        client.ask(2, "joe@v.example");
        std::thread::sleep(Duration::from_millis(5));
    }
    database.closed.store(true, Ordering::SeqCst);
    database.changed();
    // The order of datagrams is kept: the change comes before the old answer.
    database.release();
    let second = system.client();
    let until = Instant::now() + Duration::from_secs(20);
    while second.recipient("joe@v.example") != (Directory::NoMailbox {}) {
        assert!(Instant::now() < until, "an old answer is remembered");
    }
}

#[test]
fn a_database_that_hangs_holds_up_nobody_else() {
    let system = system();
    let (client, database) = (system.client(), &system.database);
    database.hangs.store(true, Ordering::SeqCst);
    client.ask(1, "ann@v.example");
    client.ask(2, "ann@elsewhere.example");
    assert_eq!(client.hear(), (2, Directory::NotMine {}));
    // In the end there is an answer for whom nobody can tell of.
    assert_eq!(client.hear(), (1, Directory::Temporary {}));
    database.hangs.store(false, Ordering::SeqCst);
    database.refuses.store(true, Ordering::SeqCst);
    assert_eq!(client.recipient("bob@v.example"), Directory::Temporary {});
    assert_eq!(client.recipient("bob-list@v.example"), Directory::Temporary {});
    database.refuses.store(false, Ordering::SeqCst);
    assert_eq!(client.recipient("bob@v.example"), Directory::NoMailbox {});
    assert_eq!(client.recipient("joe@v.example"), Directory::Mailbox {});
}
