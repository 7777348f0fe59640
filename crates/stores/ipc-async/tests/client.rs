//! A client against a server that answers out of order, goes away, comes back, and is silent.
#![allow(clippy::unwrap_used)]

use ipc::Message;
use ipc::auth::{Answer, Directory, Request};
use ipc_async::{Client, Gone, Listener, Packets, service};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use wire::Address;

const PATH: &str = "auth.sock";

fn question(local: &str) -> impl FnOnce(u64) -> Request {
    let address = Address::new(local.as_bytes()).unwrap();
    move |id| Request::Recipient { id, address }
}

async fn next_id(packets: &Packets) -> u64 {
    let (datagram, _) = packets.recv().await.unwrap().unwrap();
    let Request::Recipient { id, .. } = Request::decode(&datagram).unwrap() else { panic!("another request") };
    id
}

async fn answer(packets: &Packets, id: u64) {
    packets.send(&Answer::Recipient { id, verdict: Directory::Mailbox {} }.encode()).await.unwrap();
}

#[test]
fn answers_find_their_questions_and_a_lost_server_is_found_again() {
    service::run(async {
        let dir = tempfile::tempdir().unwrap();
        let run = Rc::new(OwnedFd::from(File::open(dir.path()).unwrap()));
        let client = Client::<Answer>::new(Rc::clone(&run), PATH, Duration::from_secs(20));
        assert_eq!(client.ask(question("nobody")).await.unwrap_err(), Gone, "nobody serves it");

        let listener = Listener::new(sys::seqpacket::listen(run.as_fd(), PATH).unwrap()).unwrap();
        let server = async {
            let packets = listener.accept().await.unwrap();
            let (first, second) = (next_id(&packets).await, next_id(&packets).await);
            assert_ne!(first, second);
            answer(&packets, 999).await;
            answer(&packets, second).await;
            answer(&packets, first).await;
            let unanswered = next_id(&packets).await;
            drop(packets);
            let packets = listener.accept().await.unwrap();
            assert_eq!(next_id(&packets).await, unanswered);
            answer(&packets, unanswered).await;
            next_id(&packets).await;
            drop(packets);
            let packets = listener.accept().await.unwrap();
            next_id(&packets).await;
            drop(packets);
            let packets = listener.accept().await.unwrap();
            answer(&packets, next_id(&packets).await).await;
        };
        let asker = async {
            let (a, b) = tokio::join!(client.ask(question("a")), client.ask(question("b")));
            assert!(a.is_ok() && b.is_ok());
            assert!(client.ask(question("c")).await.is_ok(), "the server closed: the next one is asked");
            assert_eq!(client.ask(question("c")).await.unwrap_err(), Gone, "that closed, too");
            assert!(client.ask(question("d")).await.is_ok(), "it is found again");
        };
        tokio::join!(server, asker);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_silent_server_is_gone_after_the_deadline_and_the_question_is_forgotten() {
    service::run(async {
        let dir = tempfile::tempdir().unwrap();
        let run = Rc::new(OwnedFd::from(File::open(dir.path()).unwrap()));
        let listener = Listener::new(sys::seqpacket::listen(run.as_fd(), PATH).unwrap()).unwrap();
        let client = Client::<Answer>::new(Rc::clone(&run), PATH, Duration::from_millis(50));
        assert_eq!(client.ask(question("a")).await.unwrap_err(), Gone);
        let packets = listener.accept().await.unwrap();
        let late = next_id(&packets).await;
        answer(&packets, late).await;
        let server = async {
            let id = next_id(&packets).await;
            assert_ne!(id, late);
            answer(&packets, id).await;
        };
        let (answered, ()) = tokio::join!(client.ask(question("b")), server);
        assert!(matches!(answered.unwrap().0, Answer::Recipient { id, .. } if id != late));
        Ok(())
    })
    .unwrap();
}
