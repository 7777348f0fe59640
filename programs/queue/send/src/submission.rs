//! One connection on queue.sock or inject.sock: the items of a message gathered within bounds (DESIGN §2).
//!
//! A machine without I/O: datagrams in, at most one message or refusal out. Whatever bytes come, the worst that happens is that the
//! connection is to be closed. A small body is in memory once, with its `Received:` line before it; a long one, or any while
//! [`Budget`] is used up, goes to a side file at once.

use ipc::Malformed;
use ipc::field::Bytes;
use ipc::import::{Became, Earlier, Import};
use ipc::options::{Options, RecipientOptions};
use ipc::queue::{Answer, FLAGS_KNOWN, Item};
use message::header;
use message::received::{self, InvokedBy};
use spool::{BODY_INLINE_MAX, Body, SideBody};
use wire::Address;

/// Most recipients of a message.
pub const RECIPIENTS_MAX: usize = 100_000;
/// Most bytes of all recipients' addresses of a message: [`RECIPIENTS_MAX`] of usual length.
pub const ENVELOPE_LEN_MAX: usize = 8 << 20;
/// Most bytes that all bodies (and all long envelopes) under way may take in memory.
pub const BUDGET_MAX: usize = 64 << 20;

const TOO_MANY_RECIPIENTS: &str = "5.5.3 too many recipients for one message";

/// What all connections share.
#[derive(Debug, Default)]
pub struct Budget {
    used: usize,
}

impl Budget {
    fn take(&mut self, len: usize) -> bool {
        let fits = self.used.saturating_add(len) <= BUDGET_MAX;
        if fits {
            self.used = self.used.saturating_add(len);
        }
        fits
    }

    /// Gives back what a message held ([`Submitted::held`]).
    pub fn give_back(&mut self, len: usize) {
        self.used = self.used.saturating_sub(len);
    }

    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitter {
    pub uid: u32,
    pub pid: u32,
    pub invoked: InvokedBy,
}

/// A message that is whole.
#[derive(Debug)]
pub struct Submitted {
    pub sender: Address,
    pub recipients: Vec<Address>,
    pub flags: u32,
    pub options: Options,
    /// It comes from another queue.
    pub import: Option<Import>,
    /// Of the header, for the log.
    pub message_id: Option<Box<[u8]>>,
    pub body: Body,
    pub bytes: u64,
    /// Of the budget; give it back when the spool has answered.
    pub held: usize,
}

/// What a datagram led to.
#[derive(Debug)]
pub enum Step {
    /// Go on reading.
    More,
    /// Hand this to the spool and say what it says.
    Commit(Box<Submitted>),
    /// Say this; the rest of the message is swallowed.
    Refuse(Answer),
}

#[derive(Debug)]
enum Held {
    Memory(Vec<u8>),
    Side(SideBody),
}

#[derive(Debug)]
struct Gathering {
    sender: Address,
    flags: u32,
    /// By [`Item::From`].
    is_named: bool,
    options: Options,
    import: Option<Import>,
    recipients: Vec<Address>,
    envelope_len: usize,
    /// Found when the body went to a side file; looked for at the end of one that is in memory.
    message_id: Option<Box<[u8]>>,
    body: Held,
    bytes: u64,
    held: usize,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Gathering(Box<Gathering>),
    /// Refused half-way: swallows up to the commit.
    Swallowing,
    /// Committed; the client has to wait for its answer.
    Waiting,
}

/// See the module.
#[derive(Debug)]
pub struct Submission {
    who: Submitter,
    state: State,
    /// The key of a message that is taken over from another queue: it has its trace lines, and recipients have a past.
    import: Option<Bytes>,
}

/// What a submission needs of its surroundings.
pub trait Surroundings {
    fn budget(&mut self) -> &mut Budget;
    fn side_file(&mut self) -> SideBody;
    fn now_s(&self) -> u64;
}

impl Submission {
    #[must_use]
    pub fn new(who: Submitter) -> Self {
        Self { who, state: State::Idle, import: None }
    }

    /// For a message of another queue, which has this key there.
    #[must_use]
    pub fn importing(who: Submitter, key: Bytes) -> Self {
        Self { who, state: State::Idle, import: Some(key) }
    }

    #[must_use]
    pub fn who(&self) -> Submitter {
        self.who
    }

    /// Between two messages?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Waiting for the spool?
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    /// The answer was given: another message may come.
    pub fn answered(&mut self) {
        self.state = State::Idle;
    }

    /// The side file that is being written, if its writer is behind: read no more before it has caught up.
    #[must_use]
    pub fn behind(&self) -> Option<u64> {
        let State::Gathering(gathering) = &self.state else { return None };
        match &gathering.body {
            Held::Side(side) if side.backlog() > spool::SIDE_BACKLOG_MAX => Some(side.number()),
            Held::Side(_) | Held::Memory(_) => None,
        }
    }

    /// The connection is gone: what was gathered is abandoned.
    pub fn abandon(self, budget: &mut Budget) {
        if let State::Gathering(gathering) = self.state {
            budget.give_back(gathering.held);
        }
    }

    /// Takes a datagram.
    ///
    /// # Errors
    /// It is malformed or out of order: close the connection. Nothing was queued of what had not been committed before.
    pub fn datagram(&mut self, datagram: &[u8], around: &mut impl Surroundings) -> Result<Step, Malformed> {
        let mut step = Ok(Step::More);
        let parsed = ipc::queue::items(datagram, |item| {
            step = match std::mem::replace(&mut step, Err(Malformed)) {
                Ok(Step::More) => self.item(item, around),
                // The rest of a datagram in which the message was refused: swallowed up to the commit.
                Ok(Step::Refuse(answer)) => self.item(item, around).map(|_| Step::Refuse(answer)),
                // Nothing may follow a commit before its answer. The message stays committed.
                other => other,
            };
        });
        match (parsed, step) {
            // From the commit on the message is ours, whatever came behind it.
            (Err(Malformed), Ok(Step::Commit(submitted))) => Ok(Step::Commit(submitted)),
            (parsed, step) => parsed.and(step),
        }
    }

    fn item(&mut self, item: Item<'_>, around: &mut impl Surroundings) -> Result<Step, Malformed> {
        match (&mut self.state, item) {
            (State::Idle, Item::Begin { sender, flags }) => Ok(self.begin(sender, flags, around)),
            (State::Swallowing, Item::Commit) => {
                self.state = State::Idle;
                Ok(Step::More)
            }
            (State::Swallowing, Item::Begin { .. }) => Err(Malformed),
            (State::Swallowing, _) => Ok(Step::More),
            (State::Gathering(gathering), Item::Recipient(address)) => match gathering.recipient(address, around.budget()) {
                Ok(()) => Ok(Step::More),
                Err(answer) => Ok(self.refuse(answer, around)),
            },
            (State::Gathering(gathering), Item::Data(data)) => {
                gathering.data(data, around);
                Ok(Step::More)
            }
            (State::Gathering(gathering), Item::From { sender, flags }) if !gathering.is_named => {
                (gathering.sender, gathering.flags, gathering.is_named) = (sender, flags, true);
                Ok(self.known(flags, around))
            }
            (State::Gathering(_), Item::Commit) => Ok(self.commit()),
            (State::Gathering(gathering), item) => match gathering.option(item, around.budget())? {
                Ok(()) => Ok(Step::More),
                Err(answer) => Ok(self.refuse(answer, around)),
            },
            _ => Err(Malformed),
        }
    }

    fn begin(&mut self, sender: Address, flags: u32, around: &mut impl Surroundings) -> Step {
        let mut gathering = Gathering {
            sender,
            flags,
            is_named: false,
            options: Options::none(),
            import: self.import.clone().map(|key| Import { key, recipients: Vec::new() }),
            recipients: Vec::new(),
            envelope_len: 0,
            message_id: None,
            body: Held::Memory(Vec::new()),
            bytes: 0,
            held: 0,
        };
        if self.import.is_none() {
            gathering.data(&received::line(self.who.pid, self.who.invoked, around.now_s()), around);
        }
        self.state = State::Gathering(Box::new(gathering));
        self.known(flags, around)
    }

    /// Flags without a meaning are refused.
    fn known(&mut self, flags: u32, around: &mut impl Surroundings) -> Step {
        if flags & !FLAGS_KNOWN != 0 {
            return self.refuse(permanent("5.5.4 unknown message flags"), around);
        }
        Step::More
    }

    fn refuse(&mut self, answer: Answer, around: &mut impl Surroundings) -> Step {
        if let State::Gathering(gathering) = std::mem::replace(&mut self.state, State::Swallowing) {
            around.budget().give_back(gathering.held);
        }
        Step::Refuse(answer)
    }

    fn commit(&mut self) -> Step {
        let State::Gathering(gathering) = std::mem::replace(&mut self.state, State::Waiting) else { return Step::More };
        let Gathering { sender, flags, options, import, recipients, message_id, body, bytes, held, .. } = *gathering;
        let (message_id, body) = match body {
            Held::Memory(bytes) => (header::message_id(&bytes).map(Into::into), Body::Inline(bytes)),
            Held::Side(side) => (message_id, Body::Side(side)),
        };
        Step::Commit(Box::new(Submitted { sender, recipients, flags, options, import, message_id, body, bytes, held }))
    }
}

impl Gathering {
    fn recipient(&mut self, address: Address, budget: &mut Budget) -> Result<(), Answer> {
        // What an address costs in memory beside its bytes.
        const OVERHEAD: usize = 32;
        self.hold(address.as_bytes().len().saturating_add(OVERHEAD), budget)?;
        if self.recipients.len() >= RECIPIENTS_MAX {
            return Err(permanent(TOO_MANY_RECIPIENTS));
        }
        self.recipients.push(address);
        Ok(())
    }

    /// What is asked for of the message, once, or of the last recipient, once.
    fn option(&mut self, item: Item<'_>, budget: &mut Budget) -> Result<Result<(), Answer>, Malformed> {
        let options = &mut self.options;
        let fresh = match item {
            Item::Ret(ret) => options.ret.replace(ret).is_none(),
            Item::Envid(envid) => options.envid.replace(envid).is_none(),
            Item::HoldUntil(unix_s) => options.hold_until_s.replace(unix_s).is_none(),
            Item::DeliverBy(by) => options.deliver_by.replace(by).is_none(),
            Item::Priority(priority) => options.priority.replace(priority).is_none(),
            Item::Notify(notify) => self.last_recipient()?.notify.replace(notify).is_none(),
            Item::Orcpt(orcpt) => {
                let len = orcpt.as_bytes().len();
                let fresh = self.last_recipient()?.orcpt.replace(orcpt).is_none();
                if let Err(answer) = self.hold(len, budget) {
                    return Ok(Err(answer));
                }
                fresh
            }
            Item::Became(became) => {
                if let Err(answer) = self.became(became, budget)? {
                    return Ok(Err(answer));
                }
                true
            }
            Item::Begin { .. } | Item::From { .. } | Item::Recipient(_) | Item::Data(_) | Item::Commit => false,
        };
        if fresh { Ok(Ok(())) } else { Err(Malformed) }
    }

    /// The past of the last recipient, once.
    fn became(&mut self, became: Became, budget: &mut Budget) -> Result<Result<(), Answer>, Malformed> {
        let recipient = self.last()?;
        let import = self.import.as_mut().ok_or(Malformed)?;
        if import.recipients.last().is_some_and(|earlier| earlier.recipient == recipient) {
            return Err(Malformed);
        }
        let len = if let Became::Failed { text } = &became { text.len() } else { 0 };
        import.recipients.push(Earlier { recipient, became });
        Ok(self.hold(len, budget))
    }

    /// The number of the last recipient.
    fn last(&self) -> Result<u32, Malformed> {
        self.recipients.len().checked_sub(1).and_then(|last| u32::try_from(last).ok()).ok_or(Malformed)
    }

    fn last_recipient(&mut self) -> Result<&mut RecipientOptions, Malformed> {
        let last = self.last()?;
        let known = &mut self.options.recipients;
        if known.last().is_none_or(|options| options.recipient != last) {
            known.push(RecipientOptions { recipient: last, notify: None, orcpt: None });
        }
        known.last_mut().ok_or(Malformed)
    }

    /// Room for `len` bytes more of the envelope.
    fn hold(&mut self, len: usize, budget: &mut Budget) -> Result<(), Answer> {
        self.envelope_len = self.envelope_len.saturating_add(len);
        if self.envelope_len > ENVELOPE_LEN_MAX {
            return Err(permanent(TOO_MANY_RECIPIENTS));
        }
        if !budget.take(len) {
            return Err(temporary("4.3.2 too many messages with too many recipients at the moment"));
        }
        self.held = self.held.saturating_add(len);
        Ok(())
    }

    fn data(&mut self, data: &[u8], around: &mut impl Surroundings) {
        self.bytes = self.bytes.saturating_add(data.len() as u64);
        match &mut self.body {
            Held::Side(side) => side.write(data.to_vec()),
            Held::Memory(memory) => {
                if memory.len().saturating_add(data.len()) <= BODY_INLINE_MAX && around.budget().take(data.len()) {
                    self.held = self.held.saturating_add(data.len());
                    // One allocation for the usual message: the trace line, then everything in one piece.
                    memory.reserve(data.len());
                    memory.extend_from_slice(data);
                    return;
                }
                // What is in memory is mostly a header and more; what comes later is not looked through.
                self.message_id = header::message_id(memory).map(Into::into);
                let mut side = around.side_file();
                around.budget().give_back(memory.len());
                self.held = self.held.saturating_sub(memory.len());
                side.write(std::mem::take(memory));
                side.write(data.to_vec());
                self.body = Held::Side(side);
            }
        }
    }
}

/// An answer that means "not now".
#[must_use]
pub fn temporary(text: &str) -> Answer {
    Answer::Temporary { text: text.into() }
}

/// An answer that means "never".
#[must_use]
pub fn permanent(text: &str) -> Answer {
    Answer::Permanent { text: text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::queue::Packer;
    use spool::{Log as _, model::Model};
    use wire::dsn::{Envid, Notify, Orcpt, Ret};
    use wire::{DeliverBy, Priority};

    struct Around {
        budget: Budget,
        model: Model,
    }

    impl Surroundings for Around {
        fn budget(&mut self) -> &mut Budget {
            &mut self.budget
        }
        fn side_file(&mut self) -> SideBody {
            self.model.side_file()
        }
        fn now_s(&self) -> u64 {
            1
        }
    }

    fn around() -> Around {
        Around { budget: Budget::default(), model: Model::new().unwrap() }
    }

    fn submission() -> Submission {
        Submission::new(Submitter { uid: 7, pid: 8, invoked: InvokedBy::Uid(7) })
    }

    fn a(text: &str) -> Address {
        Address::new(text.as_bytes()).unwrap()
    }

    fn datagrams(recipients: usize, body: &[u8]) -> Vec<Vec<u8>> {
        let mut packer = Packer::new();
        let mut out = Vec::new();
        out.extend(packer.push(&Item::Begin { sender: a("s@x"), flags: 1 }));
        for n in 0..recipients {
            out.extend(packer.push(&Item::Recipient(a(&format!("r{n}@y")))));
        }
        let mut rest = body;
        while !rest.is_empty() {
            out.extend(packer.push_data(&mut rest));
        }
        out.extend(packer.push(&Item::Commit));
        out.extend(packer.take());
        out
    }

    fn run(recipients: usize, body: &[u8], around: &mut Around) -> Box<Submitted> {
        let mut submission = submission();
        for datagram in datagrams(recipients, body) {
            match submission.datagram(&datagram, around).unwrap() {
                Step::Commit(submitted) => {
                    assert!(submission.is_waiting());
                    return submitted;
                }
                step => assert!(matches!(step, Step::More)),
            }
        }
        panic!("never committed");
    }

    const TRACE: &[u8] = b"Received: (qmail 8 invoked by uid 7); 1 Jan 1970 00:00:01 -0000\n";

    #[test]
    fn a_small_message_stays_in_memory_and_a_long_one_spills() {
        for (len, inline) in [
            (0, true),
            (4096, true),
            (BODY_INLINE_MAX - TRACE.len(), true),
            (BODY_INLINE_MAX - TRACE.len() + 1, false),
            (300_000, false),
        ] {
            let mut around = around();
            let body = vec![b'x'; len];
            let submitted = run(3, &body, &mut around);
            assert_eq!(submitted.bytes, (len + TRACE.len()) as u64);
            assert_eq!((submitted.recipients.len(), submitted.flags), (3, 1));
            match &submitted.body {
                Body::Inline(bytes) => assert_eq!((bytes, inline), (&[TRACE, &body].concat(), true)),
                Body::Side(side) => assert_eq!((side.len(), inline), ((len + TRACE.len()) as u64, false)),
            }
            assert_eq!(around.budget.used(), submitted.held);
            around.budget.give_back(submitted.held);
            assert_eq!(around.budget.used(), 0);
        }
    }

    #[test]
    fn without_budget_bodies_spill_and_envelopes_wait() {
        let mut around = around();
        assert!(around.budget.take(BUDGET_MAX - 110));
        let mut submission = submission();
        assert!(
            matches!(submission.datagram(&datagrams(1, b"body")[0], &mut around), Ok(Step::Commit(s)) if matches!(s.body, Body::Inline(_)))
        );
        let mut submission = self::submission();
        let step = submission.datagram(&datagrams(1, b"body")[0], &mut around).unwrap();
        assert!(matches!(step, Step::Refuse(Answer::Temporary { .. })));
        assert!(submission.is_idle(), "the rest was swallowed with its commit");
    }

    #[test]
    fn too_many_recipients_are_refused_once() {
        let mut around = around();
        let mut submission = submission();
        let mut refusals = 0;
        for datagram in datagrams(RECIPIENTS_MAX + 1, b"x") {
            match submission.datagram(&datagram, &mut around).unwrap() {
                Step::Refuse(Answer::Permanent { .. }) => refusals += 1,
                step => assert!(matches!(step, Step::More)),
            }
        }
        assert_eq!((refusals, submission.is_idle(), around.budget.used()), (1, true, 0));
    }

    #[test]
    fn every_item_in_every_state() {
        let items = [
            Item::Begin { sender: a("s@x"), flags: 0 },
            Item::Recipient(a("r@x")),
            Item::Data(b"data"),
            Item::Commit,
            Item::Begin { sender: a("s@x"), flags: 1 << 31 },
        ];
        // State names: Idle, Gathering, Swallowing, Waiting; M(ore), C(ommit), R(efuse), E(rror).
        let table = [("Idle", "MEEER"), ("Gathering", "EMMCE"), ("Swallowing", "EMMME"), ("Waiting", "EEEEE")];
        for (state, expected) in table {
            for (item, expected) in items.iter().zip(expected.chars()) {
                let mut around = around();
                let mut submission = submission();
                let lead: &[usize] = match state {
                    "Gathering" => &[0],
                    "Swallowing" => &[4],
                    "Waiting" => &[0, 3],
                    _ => &[],
                };
                for at in lead {
                    submission.item(items[*at].clone(), &mut around).unwrap();
                }
                let got = match submission.item(item.clone(), &mut around) {
                    Ok(Step::More) => 'M',
                    Ok(Step::Commit(_)) => 'C',
                    Ok(Step::Refuse(_)) => 'R',
                    Err(Malformed) => 'E',
                };
                assert_eq!(got, expected, "{state} {item:?}");
            }
        }
    }

    #[test]
    fn an_envelope_may_come_behind_the_text_once() {
        let from = |flags| Item::From { sender: a("real@x"), flags };
        let begin = || Item::Begin { sender: Address::null(), flags: 0 };
        let (mut around, mut submission) = (around(), submission());
        for item in [begin(), Item::Data(b"text\n"), Item::Recipient(a("r@x")), from(1)] {
            assert!(matches!(submission.item(item, &mut around), Ok(Step::More)));
        }
        let Ok(Step::Commit(submitted)) = submission.item(Item::Commit, &mut around) else { panic!() };
        assert_eq!((submitted.sender.as_bytes(), submitted.flags, submitted.recipients.len()), (&b"real@x"[..], 1, 1));
        let mut twice = self::submission();
        let steps: Vec<_> = [begin(), from(0), from(0)].into_iter().map(|item| twice.item(item, &mut around).is_ok()).collect();
        assert_eq!(steps, [true, true, false]);
        let mut unknown = self::submission();
        unknown.item(begin(), &mut around).unwrap();
        let held = around.budget.used();
        assert!(matches!(unknown.item(from(1 << 31), &mut around), Ok(Step::Refuse(Answer::Permanent { .. }))));
        assert!(around.budget.used() < held, "what was gathered is given up");
        assert!(self::submission().item(from(0), &mut around).is_err());
    }

    #[test]
    fn what_is_asked_for_belongs_to_the_message_or_to_the_recipient_before() {
        let notify = |text: &str| Item::Notify(Notify::parse(text.as_bytes()).unwrap());
        let orcpt = |text: &str| Item::Orcpt(Orcpt::new(text.as_bytes()).unwrap());
        let (begin, to) = (Item::Begin { sender: a("s@x"), flags: 0 }, || Item::Recipient(a("r@x")));
        let (ret, envid, hold) = (Item::Ret(Ret::Headers), Item::Envid(Envid::new(b"x").unwrap()), Item::HoldUntil(7));
        let by = Item::DeliverBy(DeliverBy::from_bits(9, 1).unwrap());
        let urgent = Item::Priority(Priority::new(2).unwrap());
        let mut around = around();
        let mut submission = submission();
        let all = [
            begin.clone(),
            ret.clone(),
            to(),
            notify("NEVER"),
            to(),
            hold.clone(),
            to(),
            orcpt("a;b"),
            notify("DELAY"),
            envid.clone(),
            by.clone(),
            urgent.clone(),
        ];
        for item in all {
            assert!(matches!(submission.item(item, &mut around), Ok(Step::More)));
        }
        let Ok(Step::Commit(submitted)) = submission.item(Item::Commit, &mut around) else { panic!() };
        let of = |recipient, notify: &str, orcpt: Option<&str>| RecipientOptions {
            recipient,
            notify: Notify::parse(notify.as_bytes()),
            orcpt: orcpt.and_then(|orcpt| Orcpt::new(orcpt.as_bytes())),
        };
        let recipients = vec![of(0, "NEVER", None), of(2, "DELAY", Some("a;b"))];
        let (deliver_by, priority) = (DeliverBy::from_bits(9, 1), Priority::new(2));
        let options =
            Options { ret: Some(Ret::Headers), envid: Envid::new(b"x"), hold_until_s: Some(7), deliver_by, priority, recipients };
        assert_eq!(submitted.options, options);
        assert_eq!(around.budget.used(), submitted.held, "an ORCPT is counted, too");
        for wrong in [
            vec![begin.clone(), notify("NEVER")],
            vec![begin.clone(), orcpt("a;b")],
            vec![begin.clone(), ret.clone(), ret.clone()],
            vec![begin.clone(), envid.clone(), envid],
            vec![begin.clone(), hold.clone(), hold],
            vec![begin.clone(), by.clone(), by],
            vec![begin.clone(), urgent.clone(), urgent],
            vec![begin.clone(), to(), notify("NEVER"), notify("NEVER")],
            vec![begin.clone(), to(), orcpt("a;b"), orcpt("a;b")],
            vec![ret.clone()],
            vec![begin, to(), Item::Commit, ret],
        ] {
            let mut submission = self::submission();
            let steps: Vec<_> = wrong.into_iter().map(|item| submission.item(item, &mut around).is_ok()).collect();
            let (last, before) = steps.split_last().unwrap();
            assert!(!last && before.iter().all(|ok| *ok));
        }
    }

    #[test]
    fn any_bytes_close_or_go_on() {
        let mut around = around();
        let mut seed = 1u64;
        for _ in 0..20_000 {
            let mut submission = submission();
            for _ in 0..4 {
                let bytes: Vec<u8> = (0..seed % 40)
                    .map(|_| {
                        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        u8::try_from(seed >> 60).unwrap()
                    })
                    .collect();
                seed = seed.wrapping_add(12345);
                let _ = submission.datagram(&[&[ipc::VERSION][..], &bytes].concat(), &mut around);
            }
            submission.abandon(&mut around.budget);
        }
    }
}
