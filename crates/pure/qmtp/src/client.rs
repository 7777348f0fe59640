//! The client's side of QMTP, as a machine that the driver of `smtp::client` can run: the same inputs and actions, no greeting, no
//! negotiation, one round trip.
//!
//! Guarantees: as those of `smtp::client`: every transaction ends in exactly one [`Action::Finished`] with one outcome per recipient, in
//! their order; a recipient is `Delivered` only by a `K`, has `Failed` only by a `D`; everything strange is temporary and ends the
//! connection. The text goes out with CRLF (first byte CR), as [`smtp::encode::Encoder::counted`] writes it, so no CR or LF in it stands alone.
//! Memory: the envelope and 4 KiB of text per recipient. Used by qmail-remote.

use smtp::client::{Action, Finished, Input, Outcome, REPORT_LEN_MAX, Stage, Transaction};
use smtp::reply::Offers;
use wire::Address;
use wire::netstring::encode;

use crate::answer::{Answer, Answers, Letter};

/// One connection.
#[derive(Debug)]
pub struct Client {
    /// The server's address as reports name it.
    peer: String,
    /// Nothing is offered by QMTP.
    offers: Offers,
    answers: Answers,
    state: State,
    /// It has said what only a server of QMTP says.
    has_answered: bool,
    is_faulty: bool,
}

#[derive(Debug)]
enum State {
    Ready,
    /// The text is under way.
    Text(Transaction),
    /// All is sent; how many recipients there are, and what is known of them.
    Answers(usize, Vec<Outcome>),
    Closed,
}

impl Client {
    /// A connection that was just established to `peer`, and the actions to start with.
    #[must_use]
    pub fn new(peer: &str) -> (Self, Vec<Action>) {
        let client = Self {
            peer: peer.to_owned(),
            offers: Offers::default(),
            answers: Answers::default(),
            state: State::Ready,
            has_answered: false,
            is_faulty: false,
        };
        (client, vec![Action::Ready])
    }

    /// May a transaction begin?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    #[must_use]
    pub fn offers(&self) -> &Offers {
        &self.offers
    }

    /// Has the other side begun an answer, ever? Who has not may speak something else.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// Did the other side not keep to QMTP: it said something else, or not enough? To leave between two messages is no fault of who has
    /// answered before.
    #[must_use]
    pub fn is_faulty(&self) -> bool {
        self.is_faulty
    }

    /// One step. After [`Action::Close`] every input is passed over.
    pub fn handle(&mut self, input: Input<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Begin(transaction) if self.is_ready() => {
                actions.push(Action::Deadline(Stage::DataBlock));
                // The first byte of the text counts, too: CR, its lines end in CRLF.
                actions.push(Action::Send(format!("{}:\r", transaction.size.saturating_add(1)).into_bytes()));
                actions.push(Action::SendBody);
                self.state = State::Text(transaction);
            }
            Input::BodySent => self.body_sent(&mut actions),
            Input::Bytes(bytes) => self.bytes(bytes, &mut actions),
            Input::BodyUnreadable => self.died("Unable to read message. (#4.3.0)\n".to_owned(), &mut actions),
            Input::Closed if self.has_answered && !matches!(self.state, State::Answers(..)) => {
                self.died(self.connection_died(), &mut actions);
            }
            Input::Timeout | Input::Closed => self.broke(&mut actions),
            Input::Quit | Input::Begin(_) | Input::TlsStarted | Input::TlsFailed(_) => {
                self.died(self.connection_died(), &mut actions);
            }
        }
        actions
    }

    fn body_sent(&mut self, actions: &mut Vec<Action>) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Text(transaction) => {
                actions.push(Action::Send(envelope(&transaction)));
                actions.push(Action::Deadline(Stage::DataTermination));
                self.state = State::Answers(transaction.recipients.len(), Vec::new());
            }
            other => self.state = other,
        }
    }

    fn bytes(&mut self, mut bytes: &[u8], actions: &mut Vec<Action>) {
        while let State::Answers(count, outcomes) = &mut self.state {
            match self.answers.next(&mut bytes) {
                Ok(Some(answer)) => {
                    self.has_answered = true;
                    outcomes.push(outcome(&self.peer, &answer));
                }
                Ok(None) => return self.has_answered |= self.answers.letter().is_some(),
                Err(_) => return self.broke(actions),
            }
            if outcomes.len() >= *count {
                let outcomes = std::mem::take(outcomes);
                self.state = State::Ready;
                actions.push(Action::Finished(Finished { outcomes, untouched: false }));
            }
        }
        // Nobody asked for more.
        if !bytes.is_empty() {
            self.broke(actions);
        }
    }

    /// The other side did not keep to the protocol.
    fn broke(&mut self, actions: &mut Vec<Action>) {
        self.is_faulty |= !matches!(self.state, State::Closed);
        self.died(self.connection_died(), actions);
    }

    fn connection_died(&self) -> String {
        let duplicate = if matches!(self.state, State::Answers(..)) { "Possible duplicate! " } else { "" };
        format!("Connected to {} but connection died. {duplicate}(#4.4.2)\n", self.peer)
    }

    /// Whoever has no outcome yet is deferred.
    fn died(&mut self, text: String, actions: &mut Vec<Action>) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Closed => return,
            State::Ready => {}
            // The server has no sender and no recipient yet: nobody is served, whatever it does with the text.
            State::Text(transaction) => {
                let outcomes = vec![Outcome::Deferred(text); transaction.recipients.len()];
                actions.push(Action::Finished(Finished { outcomes, untouched: true }));
            }
            State::Answers(count, mut outcomes) => {
                outcomes.resize(count, Outcome::Deferred(text));
                actions.push(Action::Finished(Finished { outcomes, untouched: false }));
            }
        }
        actions.push(Action::Close);
    }
}

/// What stands behind the text: its comma, the sender, the recipients.
fn envelope(transaction: &Transaction) -> Vec<u8> {
    let mut list = Vec::new();
    transaction.recipients.iter().map(Address::as_bytes).for_each(|recipient| encode(recipient, &mut list));
    let mut out = b",".to_vec();
    encode(transaction.sender.as_bytes(), &mut out);
    encode(&list, &mut out);
    out
}

/// The report on one recipient, in the words of qmail-remote.
fn outcome(peer: &str, answer: &Answer) -> Outcome {
    let said = |statement: &str, after: &str| {
        let mut text = format!("{peer} {statement}\nRemote host said: ");
        let room = REPORT_LEN_MAX.saturating_sub(text.len()).saturating_sub(after.len()).saturating_sub(1);
        text.extend(answer.text.iter().take(room).map(|b| if matches!(b, b' '..=b'~' | b'\n') { char::from(*b) } else { '?' }));
        text.push('\n');
        text.push_str(after);
        text
    };
    match answer.letter {
        Letter::Accepted => Outcome::Delivered(said("accepted message.", "")),
        Letter::Temporary => Outcome::Deferred(said("does not like recipient.", &format!("Giving up on {peer}.\n"))),
        Letter::Permanent => Outcome::Failed(said("does not like recipient.", &format!("Giving up on {peer}.\n"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(recipients: &[&str]) -> Transaction {
        let address = |text: &str| Address::new(text.as_bytes()).unwrap();
        Transaction {
            sender: address("s@x"),
            recipients: recipients.iter().map(|recipient| address(recipient)).collect(),
            size: 4,
            eight_bit: false,
            smtputf8: false,
            xverp: None,
            requiretls: false,
            dsn: None,
            by: None,
            priority: None,
        }
    }

    fn begun(recipients: &[&str]) -> Client {
        let (mut client, actions) = Client::new("192.0.2.1");
        assert_eq!(actions, [Action::Ready]);
        let actions = client.handle(Input::Begin(transaction(recipients)));
        assert_eq!(actions, [Action::Deadline(Stage::DataBlock), Action::Send(b"5:\r".to_vec()), Action::SendBody]);
        client
    }

    #[test]
    fn each_recipient_gets_what_the_server_says_of_him() {
        let mut client = begun(&["a@b", "c@d", "e@f"]);
        let actions = client.handle(Input::BodySent);
        assert_eq!(actions[0], Action::Send(b",3:s@x,18:3:a@b,3:c@d,3:e@f,,".to_vec()));
        assert_eq!(client.handle(Input::Bytes(b"9:Kok 1 qp ")), [Action::Close].get(1..).unwrap_or_default());
        let actions = client.handle(Input::Bytes(b",5:Dno\r!,4:Zyet,"));
        let Some(Action::Finished(finished)) = actions.first() else { panic!("{actions:?}") };
        let texts: Vec<_> = finished.outcomes.iter().map(|o| format!("{}{}", char::from(o.letter()), o.text())).collect();
        assert_eq!(
            texts,
            [
                "K192.0.2.1 accepted message.\nRemote host said: ok 1 qp \n",
                "D192.0.2.1 does not like recipient.\nRemote host said: no?!\nGiving up on 192.0.2.1.\n",
                "Z192.0.2.1 does not like recipient.\nRemote host said: yet\nGiving up on 192.0.2.1.\n",
            ]
        );
        assert!(client.is_ready() && !finished.untouched);
        let long = Answer { letter: Letter::Permanent, text: vec![b'x'; 9000] };
        let text = outcome("192.0.2.1", &long).text().to_owned();
        assert!(text.len() == REPORT_LEN_MAX && text.ends_with("x\nGiving up on 192.0.2.1.\n"));
    }

    #[test]
    fn what_is_strange_is_temporary_and_the_end() {
        let died = "Connected to 192.0.2.1 but connection died. (#4.4.2)\n";
        let perhaps = "Connected to 192.0.2.1 but connection died. Possible duplicate! (#4.4.2)\n";
        type Then = fn() -> Vec<Input<'static>>;
        let table: [(Then, &str, bool, usize); 6] = [
            (|| vec![Input::Closed], died, true, 0),
            (|| vec![Input::BodyUnreadable], "Unable to read message. (#4.3.0)\n", true, 0),
            (|| vec![Input::Bytes(b"3:Kok,3:Kok,")], died, true, 0),
            (|| vec![Input::BodySent, Input::Bytes(b"3:Kok,"), Input::Timeout], perhaps, false, 1),
            (|| vec![Input::BodySent, Input::Bytes(b"250 hi\r\n")], perhaps, false, 0),
            (|| vec![Input::BodySent, Input::Bytes(b"3:xok,")], perhaps, false, 0),
        ];
        for (inputs, text, untouched, delivered) in table {
            let mut client = begun(&["a@b", "c@d"]);
            let actions: Vec<_> = inputs().into_iter().flat_map(|input| client.handle(input)).collect();
            let finished = actions.iter().find_map(|a| if let Action::Finished(f) = a { Some(f) } else { None }).unwrap();
            assert_eq!((finished.untouched, finished.outcomes.len()), (untouched, 2));
            assert_eq!(finished.outcomes.iter().filter(|o| o.letter() == b'K').count(), delivered);
            assert_eq!(finished.outcomes[1], Outcome::Deferred(text.to_owned()));
            assert!(actions.last() == Some(&Action::Close) && client.handle(Input::Closed).is_empty());
        }
    }
}
