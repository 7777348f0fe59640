//! qmail-send over its sockets: a message's way, the log's exact lines, what strangers may not do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use harness::{Instance, submit};
use ipc::field::Verdict;
use ipc::job::Job;
use sandbox::Socket;

const BODY: &[u8] = b"Subject: hello\n\ntext\n";

#[test]
fn a_local_letter_and_its_log() {
    let instance = Instance::new(&[]);
    let local = instance.deliverer(Socket::Lspawn, |_| (Verdict::Success, "did 1+0+0\n"));
    let send = instance.start();
    let client = instance.connect(Socket::Inject);
    let id = submit(&client, "s@x.example", &["joe@here.example"], BODY);
    send.wait_for(&format!("end msg {id}\n"));
    let log = send.stop();
    let (pid, uid) = (std::process::id(), rustix::process::geteuid().as_raw());
    let bytes = local.seen.lock().unwrap()[0].1.len();
    let expected = format!(
        "status: local 0/10 remote 0/20\nnew msg {id}\ninfo msg {id}: bytes {bytes} from <s@x.example> qp {pid} uid {uid}\n\
         starting delivery 1: msg {id} to local joe@here.example\nstatus: local 1/10 remote 0/20\n\
         delivery 1: success: did_1+0+0/\nstatus: local 0/10 remote 0/20\nend msg {id}\n\
         status: local 0/10 remote 0/20 exitasap\nstatus: exiting\n"
    );
    assert_eq!(log, expected);
    let seen = local.seen.lock().unwrap();
    let (Job::System { sender, recipient, message, .. }, body) = &seen[0] else { panic!() };
    assert_eq!((sender.to_string(), recipient.to_string(), *message), ("s@x.example".into(), "joe@here.example".into(), id));
    let text = String::from_utf8(body.clone()).unwrap();
    assert!(text.starts_with(&format!("Received: (qmail {pid} invoked by uid {uid}); ")), "{text}");
    assert!(text.ends_with("-0000\nSubject: hello\n\ntext\n"), "{text}");
}
