//! The stories of messages, put together line by line in bounded memory.
//!
//! A message lives from its first line to its `end msg`. Classic queues use a message's number again: the same number behind that is
//! another message. Of messages that are not (yet) asked about at most [`LIVE_MAX`] are remembered, and [`ATTEMPTS_MAX`] attempts
//! of all; the oldest are forgotten first, and a story says if its beginning is missing.

use logline::Fields;
use std::collections::{HashMap, VecDeque};

use super::record::Record;

/// Messages under way that are remembered.
const LIVE_MAX: usize = 50_000;
/// Their attempts, all together.
const ATTEMPTS_MAX: usize = 300_000;
/// Attempts of one message that are told.
const TOLD_MAX: usize = 10_000;
/// Stories that have ended and wait for the line of the process that accepted the message, which may come a little later.
const ENDED_MAX: usize = 1_000;

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Message(u64),
    /// Sender or recipient, in small letters, and as the classic log writes it.
    Address(Vec<u8>, Vec<u8>),
}

impl Wanted {
    /// A number is a message; all else an address.
    pub(super) fn parse(text: &str) -> Self {
        text.parse().map_or_else(
            |_| {
                let bare = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or(text);
                let address = bare.as_bytes().to_ascii_lowercase();
                let logged = wire::escape::log_report(&address).into_bytes();
                Self::Address(address, logged)
            },
            Self::Message,
        )
    }

    fn is_address(&self, address: Option<&[u8]>) -> bool {
        let Self::Address(wanted, logged) = self else { return false };
        address.is_some_and(|address| address.eq_ignore_ascii_case(wanted) || address.eq_ignore_ascii_case(logged))
    }
}

/// One delivery that was tried.
#[derive(Debug, Clone, Default)]
pub(super) struct Attempt {
    pub(super) delivery: Option<u64>,
    pub(super) recipient: Vec<u8>,
    pub(super) channel: Vec<u8>,
    pub(super) begun_us: Option<u64>,
    pub(super) done_us: Option<u64>,
    /// `None`: under way.
    pub(super) status: Option<Vec<u8>>,
    pub(super) text: Vec<u8>,
}

/// All that the log says of a message.
#[derive(Debug, Clone, Default)]
pub(super) struct Story {
    pub(super) id: u64,
    /// Its `new msg` was seen.
    pub(super) has_begun: bool,
    pub(super) new_us: Option<u64>,
    pub(super) info: Option<Fields>,
    pub(super) accepted: Option<Record>,
    pub(super) attempts: Vec<Attempt>,
    /// Attempts beyond [`TOLD_MAX`].
    pub(super) left_out: u64,
    pub(super) has_bounced: bool,
    /// Its bounce was thrown away: `double bounce` or `triple bounce`.
    pub(super) discarded: Option<String>,
    pub(super) bounced_as: Option<u64>,
    pub(super) bounce_of: Option<u64>,
    pub(super) ended: bool,
    pub(super) end_us: Option<u64>,
    is_wanted: bool,
}

/// What is told.
#[derive(Debug)]
pub(super) enum Item {
    Story(Box<Story>),
    /// A refusal or a failed login that concerns the address.
    Refusal(Box<Record>),
}

#[derive(Debug)]
pub(super) struct Assembler {
    wanted: Wanted,
    live: HashMap<u64, Story>,
    /// Numbers in the order of their beginning; those that have ended meanwhile are passed over.
    order: VecDeque<u64>,
    attempts: usize,
    ended: VecDeque<Story>,
    /// The last `bounce msg`: its queueing process and the message that bounced.
    bounce: Option<(u64, u64)>,
}

impl Assembler {
    pub(super) fn new(wanted: Wanted) -> Self {
        let (live, order, ended) = (HashMap::new(), VecDeque::new(), VecDeque::new());
        Self { wanted, live, order, attempts: 0, ended, bounce: None }
    }

    /// Takes a record; adds what is complete by it to `items`. True if the record is about what is asked.
    pub(super) fn add(&mut self, record: &Record, items: &mut Vec<Item>) -> bool {
        let fields = &record.fields;
        if matches!(fields.event.as_str(), "refused" | "login failed") {
            let concerned = ["sender", "recipient", "user"].iter().any(|key| self.wanted.is_address(fields.t(key)));
            if concerned {
                items.push(Item::Refusal(Box::new(record.clone())));
            }
            return concerned;
        }
        let Some(id) = fields.n("message") else { return false };
        if matches!(self.wanted, Wanted::Message(wanted) if wanted != id) && !self.is_bounce_of_wanted(fields) {
            return false;
        }
        match fields.event.as_str() {
            "accepted" => self.accepted(id, record, items),
            "new" => self.begin(id, record, items),
            "end" => self.end(id, record, items),
            "info" | "start" | "delivery" | "bounce" | "double bounce" | "triple bounce" => self.go_on(id, record),
            _ => false,
        }
    }

    /// For a message: the bounce that the wanted one led to belongs to its story only by its number.
    fn is_bounce_of_wanted(&mut self, fields: &Fields) -> bool {
        let (Some((qp, of)), "info", Some(id)) = (self.bounce, fields.event.as_str(), fields.n("message")) else { return false };
        if self.wanted == Wanted::Message(of) && is_bounce(fields, qp) {
            self.link(of, id);
        }
        false
    }

    fn link(&mut self, of: u64, bounce: u64) {
        self.bounce = None;
        let ended = self.ended.iter_mut().rev().find(|story| story.id == of);
        if let Some(story) = self.live.get_mut(&of).or(ended) {
            story.bounced_as = Some(bounce);
        }
    }

    fn begin(&mut self, id: u64, record: &Record, items: &mut Vec<Item>) -> bool {
        if self.live.get(&id).is_some_and(|story| story.has_begun) {
            // Another message with the number of one whose end is not in the log.
            self.take(id).into_iter().for_each(|story| self.tell(story, items));
        }
        let story = self.story(id);
        (story.has_begun, story.new_us) = (true, record.time_us);
        story.is_wanted
    }

    fn accepted(&mut self, id: u64, record: &Record, items: &mut Vec<Item>) -> bool {
        if let Some(at) = self.ended.iter().position(|story| story.id == id && story.accepted.is_none()) {
            // It has been delivered since.
            if let Some(mut story) = self.ended.remove(at) {
                story.accepted = Some(record.clone());
                if story.has_bounced {
                    self.ended.push_back(story);
                } else {
                    self.tell(story, items);
                }
            }
            return true;
        }
        let by_sender = self.wanted.is_address(record.fields.t("sender"));
        let story = self.story(id);
        story.is_wanted |= by_sender;
        story.accepted = Some(record.clone());
        story.is_wanted
    }

    fn go_on(&mut self, id: u64, record: &Record) -> bool {
        let fields = &record.fields;
        let is_wanted = ["sender", "recipient"].iter().any(|key| self.wanted.is_address(fields.t(key)));
        let bounce = self.bounce;
        let mut added = 0;
        let story = self.story(id);
        story.is_wanted |= is_wanted;
        match fields.event.as_str() {
            "info" => story.info = Some(fields.clone()),
            "start" => added = story.start(record),
            "delivery" => added = story.result(record),
            "bounce" => story.has_bounced = true,
            discarded => story.discarded = Some(discarded.to_owned()),
        }
        let is_wanted = story.is_wanted;
        match (fields.event.as_str(), bounce) {
            ("info", Some((qp, of))) if is_bounce(fields, qp) => {
                story.bounce_of = Some(of);
                self.link(of, id);
            }
            ("bounce", _) => self.bounce = fields.n("qp").map(|qp| (qp, id)),
            _ => {}
        }
        self.attempts = self.attempts.saturating_add(added);
        self.forget();
        is_wanted
    }

    fn end(&mut self, id: u64, record: &Record, items: &mut Vec<Item>) -> bool {
        // A line without a beginning is the end of a message that was not looked at.
        let Some(mut story) = self.take(id) else { return false };
        (story.ended, story.end_us) = (true, record.time_us);
        if !story.is_wanted {
            return false;
        }
        if story.accepted.is_some() && !story.has_bounced {
            self.tell(story, items);
            return true;
        }
        self.ended.push_back(story);
        if self.ended.len() > ENDED_MAX {
            self.ended.pop_front().into_iter().for_each(|story| self.tell(story, items));
        }
        true
    }

    /// The message of that number that is under way; a new one if there is none.
    fn story(&mut self, id: u64) -> &mut Story {
        let is_wanted = self.wanted == Wanted::Message(id);
        let order = &mut self.order;
        self.live.entry(id).or_insert_with(|| {
            order.push_back(id);
            Story { id, is_wanted, ..Story::default() }
        })
    }

    fn take(&mut self, id: u64) -> Option<Story> {
        let story = self.live.remove(&id)?;
        self.attempts = self.attempts.saturating_sub(story.attempts.len());
        Some(story)
    }

    #[allow(clippy::unused_self)]
    fn tell(&self, story: Story, items: &mut Vec<Item>) {
        if story.is_wanted {
            items.push(Item::Story(Box::new(story)));
        }
    }

    /// Forgets the oldest that nobody asked about while there is too much.
    fn forget(&mut self) {
        if self.order.len() > LIVE_MAX.saturating_mul(2) {
            let live = &self.live;
            self.order.retain(|id| live.contains_key(id));
        }
        let mut looked_at = 0;
        while (self.live.len() > LIVE_MAX || self.attempts > ATTEMPTS_MAX) && looked_at < self.order.len() {
            let Some(id) = self.order.pop_front() else { return };
            match self.live.get(&id) {
                Some(story) if story.is_wanted => {
                    self.order.push_back(id);
                    looked_at = looked_at.saturating_add(1);
                }
                Some(_) => drop(self.take(id)),
                None => {}
            }
        }
    }

    /// What is left at the end of the log: messages still in the queue.
    pub(super) fn finish(mut self) -> Vec<Item> {
        let ended = std::mem::take(&mut self.ended);
        let mut left: Vec<Story> = std::mem::take(&mut self.live).into_values().collect();
        left.sort_by_key(|story| (story.new_us, story.id));
        let all = ended.into_iter().chain(left).filter(|story| story.is_wanted);
        all.map(|story| Item::Story(Box::new(story))).collect()
    }
}

/// Is it the `info msg` of a bounce that this process queued?
fn is_bounce(fields: &Fields, qp: u64) -> bool {
    fields.n("qp") == Some(qp) && matches!(fields.t("sender"), Some(b"" | b"#@[]"))
}

impl Story {
    /// Attempts that this adds.
    fn start(&mut self, record: &Record) -> usize {
        let fields = &record.fields;
        let text = |key: &str| fields.t(key).unwrap_or_default().to_vec();
        self.push(Attempt {
            delivery: fields.n("delivery"),
            recipient: text("recipient"),
            channel: text("channel"),
            begun_us: record.time_us,
            ..Attempt::default()
        })
    }

    fn result(&mut self, record: &Record) -> usize {
        let fields = &record.fields;
        let text = |key: &str| fields.t(key).unwrap_or_default().to_vec();
        let number = fields.n("delivery");
        let known = self.attempts.iter_mut().rev().find(|attempt| attempt.delivery == number && attempt.status.is_none());
        if let Some(attempt) = known {
            (attempt.status, attempt.done_us, attempt.text) = (Some(text("status")), record.time_us, text("text"));
            return 0;
        }
        self.push(Attempt {
            delivery: number,
            recipient: text("recipient"),
            channel: text("channel"),
            begun_us: None,
            done_us: record.time_us,
            status: Some(text("status")),
            text: text("text"),
        })
    }

    fn push(&mut self, attempt: Attempt) -> usize {
        if self.attempts.len() >= TOLD_MAX {
            self.left_out = self.left_out.saturating_add(1);
            return 0;
        }
        self.attempts.push(attempt);
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::record::Reader;
    use logline::Surroundings;

    fn items(wanted: &str, log: &str) -> Vec<Item> {
        let mut reader = Reader::new(Surroundings::default(), None);
        let mut assembler = Assembler::new(Wanted::parse(wanted));
        let mut items = Vec::new();
        for record in log.lines().filter_map(|line| reader.record(line.as_bytes())) {
            assembler.add(&record, &mut items);
        }
        items.extend(assembler.finish());
        items
    }

    fn told(wanted: &str, log: &str) -> Vec<String> {
        items(wanted, log)
            .into_iter()
            .map(|item| match item {
                Item::Refusal(record) => format!("refused {}", String::from_utf8_lossy(record.fields.t("reply").unwrap())),
                Item::Story(story) => {
                    let attempts = story.attempts.iter().map(|attempt| {
                        let status = attempt.status.as_ref().map_or("?".into(), |status| String::from_utf8_lossy(status));
                        format!("{}:{status}", String::from_utf8_lossy(&attempt.recipient))
                    });
                    let attempts = attempts.collect::<Vec<_>>().join(" ");
                    let bounced = story.bounced_as.map(|id| format!(" bounced as {id}")).unwrap_or_default();
                    let of = story.bounce_of.map(|id| format!(" bounce of {id}")).unwrap_or_default();
                    let (by, ended) = (story.accepted.is_some(), story.ended);
                    format!("{} accepted {by} [{attempts}]{bounced}{of} ended {ended}", story.id)
                }
            })
            .collect()
    }

    const LOG: &str = "\
        status: local 0/10 remote 0/20\n\
        new msg 1\ninfo msg 1: bytes 9 from <a@x> qp 5 uid 0\n\
        starting delivery 1: msg 1 to local b@x\n\
        starting delivery 2: msg 1 to remote c@y\n\
        broken \u{1} line\n\
        new msg 2\ninfo msg 2: bytes 9 from <z@x> qp 6 uid 0\n\
        starting delivery 3: msg 2 to local b@x\n\
        delivery 2: failure: no/\n\
        delivery 3: success: did_1+0+0/\n\
        end msg 2\n\
        qmail-smtpd[7]: accepted remote=::1 msg=1 from=<a@x> recipients=2 bytes=9 qp=5\n\
        delivery 1: success: did_1+0+0/\n\
        bounce msg 1 qp 3\nend msg 1\n\
        new msg 4\ninfo msg 4: bytes 9 from <> qp 3 uid 7\n\
        starting delivery 4: msg 4 to local A@x\n\
        qmail-smtpd[7]: refused remote=::1 from=<q@q> to=<b@x> reply=no\n\
        new msg 1\ninfo msg 1: bytes 9 from <q@q> qp 8 uid 0\n";

    #[test]
    fn a_message_and_another_with_its_number() {
        let told = told("1", LOG);
        assert_eq!(
            told,
            ["1 accepted true [b@x:success c@y:failure] bounced as 4 ended true", "1 accepted false [] ended false"]
        );
        assert!(items("99", LOG).is_empty());
    }

    #[test]
    fn all_messages_of_an_address() {
        let mut told_of_b = told("B@x", LOG);
        told_of_b.sort();
        assert_eq!(
            told_of_b,
            [
                "1 accepted true [b@x:success c@y:failure] bounced as 4 ended true",
                "2 accepted false [b@x:success] ended true",
                "refused no",
            ]
        );
        assert!(told("a@x", LOG).contains(&"4 accepted false [A@x:?] bounce of 1 ended false".to_owned()));
    }

    #[test]
    fn memory_is_bounded_and_what_was_asked_about_stays() {
        let mut reader = Reader::new(Surroundings::default(), None);
        let mut assembler = Assembler::new(Wanted::parse("me@x"));
        let mut add = |line: String| {
            let record = reader.record(line.as_bytes()).unwrap();
            assembler.add(&record, &mut Vec::new());
            assert!(assembler.live.len() <= LIVE_MAX + 1 && assembler.order.len() <= LIVE_MAX * 2 + 1);
        };
        add("new msg 0".to_owned());
        add("info msg 0: bytes 1 from <me@x> qp 1 uid 1".to_owned());
        for id in 1..LIVE_MAX as u64 * 2 {
            add(format!("info msg {id}: bytes 1 from <you@x> qp 1 uid 1"));
        }
        assert_eq!(assembler.finish().len(), 1);
    }
}
