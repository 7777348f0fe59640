//! The stories of messages, put together line by line in bounded memory.
//!
//! A message lives from its first line to its `end msg`. Classic queues use a message's number again: the same number behind that is
//! another message. Of messages that are not (yet) asked about at most [`LIVE_MAX`] are remembered, and [`ATTEMPTS_MAX`] attempts
//! of all; the oldest are forgotten first, and a story says if its beginning is missing. Of those that are asked about [`ASKED_MAX`] are
//! kept under way; the oldest is told then as far as it is known. A line costs about the same however many messages and attempts there are.

use logline::Fields;
use std::collections::{BTreeMap, HashMap, VecDeque};

use super::record::Record;

/// Messages under way that are remembered.
const LIVE_MAX: usize = 50_000;
/// Messages under way that are asked about.
const ASKED_MAX: usize = 100_000;
/// Attempts of those that are not asked about, all together.
const ATTEMPTS_MAX: usize = 300_000;
/// Attempts of one message that are told.
const TOLD_MAX: usize = 10_000;
/// Stories that have ended and wait for the line of the process that accepted the message, which may come a little later.
const ENDED_MAX: usize = 1_000;

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Message(u64),
    /// Sender or recipient, in small letters, and as the classic log writes it; or a Message-ID.
    Address {
        wanted: Vec<u8>,
        logged: Vec<u8>,
        message_id: Vec<u8>,
    },
}

impl Wanted {
    /// A number is a message; all else an address, or what stands in a Message-ID, with or without its angle brackets.
    pub(super) fn parse(text: &str) -> Self {
        text.parse().map_or_else(
            |_| {
                let bare = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or(text);
                let address = bare.as_bytes().to_ascii_lowercase();
                let logged = wire::escape::log_report(&address).into_bytes();
                let message_id = wire::escape::log_report(format!("<{bare}>").as_bytes()).into_bytes();
                Self::Address { wanted: address, logged, message_id }
            },
            Self::Message,
        )
    }

    fn is_address(&self, address: Option<&[u8]>) -> bool {
        let Self::Address { wanted, logged, .. } = self else { return false };
        address.is_some_and(|address| address.eq_ignore_ascii_case(wanted) || address.eq_ignore_ascii_case(logged))
    }

    /// Message-IDs are the same byte for byte (RFC 5322 §3.6.4).
    fn is_message_id(&self, id: Option<&[u8]>) -> bool {
        matches!(self, Self::Address { message_id, .. } if id == Some(&message_id[..]))
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
    /// Attempts under way: their deliveries, and where they are in `attempts`; `None` beyond [`TOLD_MAX`].
    open: HashMap<u64, Option<usize>>,
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
    /// It is in [`Assembler::asked`] and forgotten no more.
    is_kept: bool,
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
    /// Numbers of what may be forgotten, in the order of their beginning; those that have ended meanwhile are passed over.
    order: VecDeque<u64>,
    /// Numbers of what is kept, in the same way, and how many are under way.
    asked: VecDeque<u64>,
    kept: usize,
    /// Of what may be forgotten.
    attempts: usize,
    ended: Ended,
    /// The last `bounce msg`: its queueing process and the message that bounced.
    bounce: Option<(u64, u64)>,
}

impl Assembler {
    pub(super) fn new(wanted: Wanted) -> Self {
        let (live, order, asked) = (HashMap::new(), VecDeque::new(), VecDeque::new());
        Self { wanted, live, order, asked, kept: 0, attempts: 0, ended: Ended::default(), bounce: None }
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
            "info" | "start" | "delivery" | "bounce" | "double bounce" | "triple bounce" => self.go_on(id, record, items),
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
        if let Some(story) = self.live.get_mut(&of).or_else(|| self.ended.get_mut(of)) {
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
        let is_wanted = story.is_wanted;
        self.forget(items);
        is_wanted
    }

    fn accepted(&mut self, id: u64, record: &Record, items: &mut Vec<Item>) -> bool {
        // It has been delivered since.
        if let Some(story) = self.ended.get_mut(id).filter(|story| story.accepted.is_none()) {
            story.accepted = Some(record.clone());
            if !story.has_bounced {
                self.ended.take(id).into_iter().for_each(|story| self.tell(story, items));
            }
            return true;
        }
        let by_sender = self.wanted.is_address(record.fields.t("sender"));
        let story = self.story(id);
        story.is_wanted |= by_sender;
        story.accepted = Some(record.clone());
        let is_wanted = story.is_wanted;
        self.forget(items);
        is_wanted
    }

    fn go_on(&mut self, id: u64, record: &Record, items: &mut Vec<Item>) -> bool {
        let fields = &record.fields;
        let is_wanted = ["sender", "recipient"].iter().any(|key| self.wanted.is_address(fields.t(key)))
            || self.wanted.is_message_id(fields.t("header_id"));
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
        let (is_wanted, is_kept) = (story.is_wanted, story.is_kept);
        match (fields.event.as_str(), bounce) {
            ("info", Some((qp, of))) if is_bounce(fields, qp) => {
                story.bounce_of = Some(of);
                self.link(of, id);
            }
            ("bounce", _) => self.bounce = fields.n("qp").map(|qp| (qp, id)),
            _ => {}
        }
        if !is_kept {
            self.attempts = self.attempts.saturating_add(added);
        }
        self.forget(items);
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
        self.ended.push(story).into_iter().for_each(|story| self.tell(story, items));
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
        if story.is_kept {
            self.kept = self.kept.saturating_sub(1);
        } else {
            self.attempts = self.attempts.saturating_sub(story.attempts.len());
        }
        Some(story)
    }

    #[allow(clippy::unused_self)]
    fn tell(&self, story: Story, items: &mut Vec<Item>) {
        if story.is_wanted {
            items.push(Item::Story(Box::new(story)));
        }
    }

    /// Forgets the oldest that nobody asked about while there is too much. What is asked about is set apart when it comes to that, once, so
    /// that nothing is looked at again and again.
    fn forget(&mut self, items: &mut Vec<Item>) {
        for order in [&mut self.order, &mut self.asked] {
            if order.len() > LIVE_MAX.saturating_mul(2).max(self.live.len().saturating_mul(2)) {
                let live = &self.live;
                order.retain(|id| live.contains_key(id));
            }
        }
        while self.live.len().saturating_sub(self.kept) > LIVE_MAX || self.attempts > ATTEMPTS_MAX {
            let Some(id) = self.order.pop_front() else { break };
            match self.live.get_mut(&id) {
                Some(story) if story.is_kept => {}
                Some(story) if story.is_wanted => {
                    story.is_kept = true;
                    self.kept = self.kept.saturating_add(1);
                    self.attempts = self.attempts.saturating_sub(story.attempts.len());
                    self.asked.push_back(id);
                }
                Some(_) => drop(self.take(id)),
                None => {}
            }
        }
        while self.kept > ASKED_MAX {
            let Some(id) = self.asked.pop_front() else { return };
            if self.live.get(&id).is_some_and(|story| story.is_kept) {
                self.take(id).into_iter().for_each(|story| self.tell(story, items));
            }
        }
    }

    /// What is left at the end of the log: messages still in the queue.
    pub(super) fn finish(mut self) -> Vec<Item> {
        let ended = std::mem::take(&mut self.ended).all();
        let mut left: Vec<Story> = std::mem::take(&mut self.live).into_values().collect();
        left.sort_by_key(|story| (story.new_us, story.id));
        let all = ended.into_iter().chain(left).filter(|story| story.is_wanted);
        all.map(|story| Item::Story(Box::new(story))).collect()
    }
}

/// Stories that have ended, in that order. A number may be there more than once; the latest is meant then.
#[derive(Debug, Default)]
struct Ended {
    /// By their places, which count up.
    stories: BTreeMap<u64, Story>,
    places: HashMap<u64, u64>,
    next: u64,
}

impl Ended {
    fn get_mut(&mut self, id: u64) -> Option<&mut Story> {
        self.stories.get_mut(self.places.get(&id)?)
    }

    fn take(&mut self, id: u64) -> Option<Story> {
        self.stories.remove(&self.places.remove(&id)?)
    }

    /// Gives back the oldest if there are more than [`ENDED_MAX`].
    fn push(&mut self, story: Story) -> Option<Story> {
        self.places.insert(story.id, self.next);
        self.stories.insert(self.next, story);
        self.next = self.next.saturating_add(1);
        if self.stories.len() <= ENDED_MAX {
            return None;
        }
        let (place, oldest) = self.stories.pop_first()?;
        if self.places.get(&oldest.id) == Some(&place) {
            self.places.remove(&oldest.id);
        }
        Some(oldest)
    }

    fn all(self) -> impl Iterator<Item = Story> {
        self.stories.into_values()
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
        let number = fields.n("delivery");
        let added = self.push(Attempt {
            delivery: number,
            recipient: text("recipient"),
            channel: text("channel"),
            begun_us: record.time_us,
            ..Attempt::default()
        });
        if let Some(number) = number {
            self.open.insert(number, added.then(|| self.attempts.len().saturating_sub(1)));
        }
        usize::from(added)
    }

    fn result(&mut self, record: &Record) -> usize {
        let fields = &record.fields;
        let text = |key: &str| fields.t(key).unwrap_or_default().to_vec();
        let number = fields.n("delivery");
        match number.and_then(|number| self.open.remove(&number)) {
            Some(Some(at)) => {
                if let Some(attempt) = self.attempts.get_mut(at) {
                    (attempt.status, attempt.done_us, attempt.text) = (Some(text("status")), record.time_us, text("text"));
                }
                return 0;
            }
            // Its start has been counted.
            Some(None) => return 0,
            None => {}
        }
        let added = self.push(Attempt {
            delivery: number,
            recipient: text("recipient"),
            channel: text("channel"),
            begun_us: None,
            done_us: record.time_us,
            status: Some(text("status")),
            text: text("text"),
        });
        usize::from(added)
    }

    /// False beyond [`TOLD_MAX`]: then it is counted.
    fn push(&mut self, attempt: Attempt) -> bool {
        let has_room = self.attempts.len() < TOLD_MAX;
        if has_room {
            self.attempts.push(attempt);
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
        has_room
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
            add(match id % 3 {
                0 => format!("info msg {id}: bytes 1 from <you@x> qp 1 uid 1"),
                1 => format!("new msg {id}"),
                _ => format!("qmail-smtpd[1]: accepted msg={id} from=<you@x>"),
            });
        }
        assert_eq!(assembler.finish().len(), 1);
    }

    /// Messages that are all asked about and never end are told in the end, each once, and are no more than a bound at a time.
    #[test]
    fn what_is_asked_about_is_bounded_too_and_each_is_told_once() {
        let mut reader = Reader::new(Surroundings::default(), None);
        let mut assembler = Assembler::new(Wanted::parse("me@x"));
        let (mut items, count) = (Vec::new(), (LIVE_MAX + ASKED_MAX + 1000) as u64);
        for id in 0..count {
            let line = format!("info msg {id}: bytes 1 from <me@x> qp 1 uid 1");
            assert!(assembler.add(&reader.record(line.as_bytes()).unwrap(), &mut items));
            assert!(assembler.live.len() <= LIVE_MAX + ASKED_MAX + 1);
        }
        assert_eq!(items.len(), 1000);
        items.extend(assembler.finish());
        let ids: std::collections::HashSet<u64> = items
            .iter()
            .map(|item| match item {
                Item::Story(story) => story.id,
                Item::Refusal(_) => panic!(),
            })
            .collect();
        assert_eq!((items.len() as u64, ids.len() as u64), (count, count));
    }

    #[test]
    fn attempts_beyond_the_bound_are_counted_once() {
        let mut log = String::from("new msg 1\ninfo msg 1: bytes 9 from <a@x> qp 5 uid 0\n");
        let more = 500;
        let numbers: Vec<usize> = (0..TOLD_MAX + more).collect();
        for numbers in numbers.chunks(1000) {
            log.extend(numbers.iter().map(|number| format!("starting delivery {number}: msg 1 to local b@x\n")));
            log.extend(numbers.iter().map(|number| format!("delivery {number}: success: x/\n")));
        }
        let items = items("1", &log);
        let [Item::Story(story)] = &items[..] else { panic!("{}", items.len()) };
        assert_eq!((story.attempts.len(), story.left_out), (TOLD_MAX, more as u64));
        assert!(story.attempts.iter().all(|attempt| attempt.status.is_some()));
    }

    #[test]
    fn a_message_is_found_by_its_message_id() {
        let log = "new msg 1\ninfo msg 1: bytes 9 from <a@x> qp 5 uid 0 message-id <5_Q@x>\nstarting delivery 1: msg 1 to local b@x\n\
            new msg 2\ninfo msg 2: bytes 9 from <a@x> qp 6 uid 0 message-id <5_q@x>\nnew msg 3\ninfo msg 3: bytes 9 from <a@x> qp 6 uid 0\n\
            qmail-smtpd[7]: accepted remote=::1 msg=1 from=<a@x> recipients=1 bytes=9 qp=5\ndelivery 1: success: x/\nend msg 1\n";
        for wanted in ["<5%Q@x>", "5%Q@x", "<5_Q@x>"] {
            assert_eq!(told(wanted, log), ["1 accepted true [b@x:success] ended true"], "{wanted}");
        }
        assert!(items("<5@x>", log).is_empty());
    }
}
