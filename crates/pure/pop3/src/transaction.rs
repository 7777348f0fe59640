//! The TRANSACTION and UPDATE states (RFC 1939 §5, §6) over a mailbox that somebody else reads and writes.
//!
//! The machine takes command lines and returns one [`Action`] each; it keeps which messages are marked. Messages are counted from 1 on
//! the wire and from 0 here. Their number and order never change in a session. A message that another session removed
//! ([`Transaction::gone`]) is left out of STAT, LIST and UIDL as if it had been deleted, and RSET does not bring it back.
//! Nothing is deleted before QUIT; without QUIT nothing changes (RFC 1939 §6).
//!
//! Sizes may be unknown until somebody asks: the machine then answers [`Action::Measure`] and is asked again. UIDL needs none, so a
//! login to a large mailbox reads no message. Replies of many lines are made in pieces ([`Report::fill`]), never as one large buffer.
//! Used by qmail-pop3d.

use crate::command::{Command, err, lang, multi_line, number, ok};
use crate::encode::Encoder;

/// Pieces of a [`Report`] are about this long.
pub const REPORT_PIECE_LEN: usize = 32 * 1024;

/// What the machine must know about the mailbox; indices count from 0 and are below [`Maildrop::count`].
pub trait Maildrop {
    /// Messages at login; never changes in a session.
    fn count(&self) -> usize;
    /// The unique-id: 1 to 70 bytes of 0x21 to 0x7E (RFC 1939 §7).
    fn unique_id(&self, index: usize) -> &[u8];
    /// The size in CRLF octets, if it has been found out.
    fn octets(&self, index: usize) -> Option<u64>;
}

/// Some message or all that are not marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    All,
    One(usize),
}

/// What the driver is to do; then it gives the next line.
#[derive(Debug)]
pub enum Action {
    /// Send these whole lines.
    Reply(Vec<u8>),
    /// Find these sizes (or say [`Transaction::gone`]), then give the same line again.
    Measure(Which),
    /// Send what the report fills, piece by piece.
    Report(Report),
    /// Send `+OK`, then the message through the encoder; or [`Transaction::gone`] and [`Transaction::no_such_file`].
    Retrieve { index: usize, encoder: Encoder },
    /// Remove the marked, move new to cur, send [`Transaction::farewell`], close.
    Update,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mark {
    deleted: bool,
    gone: bool,
    retrieved: bool,
}

/// The machine of one session; a few bits for each message.
#[derive(Debug)]
pub struct Transaction {
    marks: Vec<Mark>,
    /// The highest message number that was accessed, for LAST (RFC 1460 §3).
    last: usize,
}

impl Transaction {
    /// For a mailbox with so many messages.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self { marks: vec![Mark::default(); count], last: 0 }
    }

    /// One command line, without its ending.
    pub fn command(&mut self, line: &[u8], maildrop: &dyn Maildrop) -> Action {
        let command = Command::parse(line);
        let answer = match Verb::of(&command) {
            Some(Verb::Stat) => self.stat(maildrop),
            Some(Verb::List) => self.list(&command, maildrop, Listing::Octets),
            Some(Verb::Uidl) => self.list(&command, maildrop, Listing::UniqueIds),
            Some(Verb::Retr) => self.retr(&command),
            Some(Verb::Top) => self.top(&command),
            Some(Verb::Dele) => self.dele(&command),
            Some(Verb::Rset) => Ok(self.rset()),
            Some(Verb::Last) => Ok(Action::Reply(ok(&self.last.to_string()))),
            Some(Verb::Noop) => Ok(Action::Reply(ok(""))),
            Some(Verb::Capa) => Ok(Action::Reply(multi_line("capability list follows", CAPABILITIES))),
            Some(Verb::Lang) => Ok(Action::Reply(lang(&command))),
            // RFC 6856 §2.1: a command of the AUTHORIZATION state alone.
            Some(Verb::Utf8) => Err("UTF8 comes before the login"),
            Some(Verb::Quit) => Ok(Action::Update),
            None => Err("unimplemented"),
        };
        answer.unwrap_or_else(|text| Action::Reply(err(text)))
    }

    /// The message's file has vanished; another session removed it.
    pub fn gone(&mut self, index: usize) {
        if let Some(mark) = self.marks.get_mut(index) {
            mark.gone = true;
        }
    }

    /// Is the message neither marked as deleted nor gone?
    #[must_use]
    pub fn is_present(&self, index: usize) -> bool {
        self.marks.get(index).is_some_and(|mark| !mark.deleted && !mark.gone)
    }

    /// Is the message to be removed at QUIT?
    #[must_use]
    pub fn is_deleted(&self, index: usize) -> bool {
        self.marks.get(index).is_some_and(|mark| mark.deleted && !mark.gone)
    }

    /// Was it sent whole in this session (RETR)? For those who mark messages as seen.
    #[must_use]
    pub fn is_retrieved(&self, index: usize) -> bool {
        self.marks.get(index).is_some_and(|mark| mark.retrieved)
    }

    /// The reply to RETR and TOP when the file cannot be opened.
    #[must_use]
    pub fn no_such_file() -> Vec<u8> {
        err("unable to open that message")
    }

    /// The reply to QUIT (RFC 1939 §6).
    #[must_use]
    pub fn farewell(all_removed: bool) -> Vec<u8> {
        if all_removed { ok("") } else { err("some deleted messages were not removed") }
    }

    fn stat(&self, maildrop: &dyn Maildrop) -> Result<Action, &'static str> {
        let (mut count, mut sum) = (0usize, 0u64);
        for index in self.present() {
            let Some(octets) = maildrop.octets(index) else { return Ok(Action::Measure(Which::All)) };
            count = count.saturating_add(1);
            sum = sum.saturating_add(octets);
        }
        Ok(Action::Reply(ok(&format!("{count} {sum}"))))
    }

    fn list(&self, command: &Command<'_>, maildrop: &dyn Maildrop, listing: Listing) -> Result<Action, &'static str> {
        let mut arguments = command.arguments();
        let Some(word) = arguments.next() else { return Ok(self.list_all(maildrop, listing)) };
        let index = self.index(word)?;
        if arguments.next().is_some() {
            return Err(SYNTAX);
        }
        if listing == Listing::Octets && maildrop.octets(index).is_none() {
            return Ok(Action::Measure(Which::One(index)));
        }
        let mut reply = b"+OK ".to_vec();
        listing.line(index, maildrop, &mut reply);
        Ok(Action::Reply(reply))
    }

    fn list_all(&self, maildrop: &dyn Maildrop, listing: Listing) -> Action {
        if listing == Listing::Octets && self.present().any(|index| maildrop.octets(index).is_none()) {
            return Action::Measure(Which::All);
        }
        Action::Report(Report { listing, progress: Progress::First })
    }

    /// As in the reference, `RETR n k` is TOP: some clients were written for it.
    fn retr(&mut self, command: &Command<'_>) -> Result<Action, &'static str> {
        if command.arguments().count() == 2 {
            return self.top(command);
        }
        let index = self.only_index(command)?;
        if let Some(mark) = self.marks.get_mut(index) {
            mark.retrieved = true;
        }
        self.accessed(index);
        Ok(Action::Retrieve { index, encoder: Encoder::whole() })
    }

    fn top(&mut self, command: &Command<'_>) -> Result<Action, &'static str> {
        let mut arguments = command.arguments();
        let (Some(message), Some(lines), None) = (arguments.next(), arguments.next(), arguments.next()) else {
            return Err(SYNTAX);
        };
        let index = self.index(message)?;
        let body_lines = number(lines).ok_or(SYNTAX)?;
        self.accessed(index);
        Ok(Action::Retrieve { index, encoder: Encoder::top(body_lines) })
    }

    fn dele(&mut self, command: &Command<'_>) -> Result<Action, &'static str> {
        let index = self.only_index(command)?;
        if let Some(mark) = self.marks.get_mut(index) {
            mark.deleted = true;
        }
        self.accessed(index);
        Ok(Action::Reply(ok("")))
    }

    fn rset(&mut self) -> Action {
        self.marks.iter_mut().for_each(|mark| mark.deleted = false);
        self.last = 0;
        Action::Reply(ok(""))
    }

    fn accessed(&mut self, index: usize) {
        self.last = self.last.max(index.saturating_add(1));
    }

    fn only_index(&self, command: &Command<'_>) -> Result<usize, &'static str> {
        let mut arguments = command.arguments();
        match (arguments.next(), arguments.next()) {
            (Some(word), None) => self.index(word),
            _ => Err(SYNTAX),
        }
    }

    /// The index of a present message from its number (RFC 1939 §5).
    fn index(&self, word: &[u8]) -> Result<usize, &'static str> {
        let number = number(word).ok_or(SYNTAX)?;
        let index = number.checked_sub(1).ok_or("messages are counted from 1")?;
        let index = usize::try_from(index).map_err(|_| NOT_THAT_MANY)?;
        let mark = self.marks.get(index).ok_or(NOT_THAT_MANY)?;
        match mark {
            Mark { gone: true, .. } => Err("another session has removed that message"),
            Mark { deleted: true, .. } => Err("already deleted"),
            _ => Ok(index),
        }
    }

    fn present(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.marks.len()).filter(|index| self.is_present(*index))
    }
}

const SYNTAX: &str = "syntax error";
const NOT_THAT_MANY: &str = "not that many messages";
/// RFC 2449 §5: those of the AUTHORIZATION state that still hold, and who we are.
const CAPABILITIES: &[&str] =
    &["TOP", "UIDL", "PIPELINING", "EXPIRE NEVER", "RESP-CODES", "AUTH-RESP-CODE", "UTF8", "LANG", "IMPLEMENTATION qmail-rs"];

#[derive(Debug, Clone, Copy)]
enum Verb {
    Stat,
    List,
    Uidl,
    Retr,
    Top,
    Dele,
    Rset,
    Last,
    Noop,
    Capa,
    Lang,
    Utf8,
    Quit,
}

impl Verb {
    fn of(command: &Command<'_>) -> Option<Self> {
        const VERBS: [(&str, Verb); 13] = [
            ("STAT", Verb::Stat),
            ("LIST", Verb::List),
            ("UIDL", Verb::Uidl),
            ("RETR", Verb::Retr),
            ("TOP", Verb::Top),
            ("DELE", Verb::Dele),
            ("RSET", Verb::Rset),
            ("LAST", Verb::Last),
            ("NOOP", Verb::Noop),
            ("CAPA", Verb::Capa),
            ("LANG", Verb::Lang),
            ("UTF8", Verb::Utf8),
            ("QUIT", Verb::Quit),
        ];
        VERBS.iter().find(|(keyword, _)| command.is(keyword)).map(|(_, verb)| *verb)
    }
}

/// What a listing says about each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listing {
    Octets,
    UniqueIds,
}

impl Listing {
    /// `NUMBER WHAT`, a whole line.
    fn line(self, index: usize, maildrop: &dyn Maildrop, out: &mut Vec<u8>) {
        out.extend_from_slice(index.saturating_add(1).to_string().as_bytes());
        out.push(b' ');
        match self {
            Self::Octets => out.extend_from_slice(maildrop.octets(index).unwrap_or(0).to_string().as_bytes()),
            Self::UniqueIds => out.extend_from_slice(maildrop.unique_id(index)),
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// A reply of one line for each present message, made in pieces.
#[derive(Debug)]
pub struct Report {
    listing: Listing,
    progress: Progress,
}

#[derive(Debug, Clone, Copy)]
enum Progress {
    First,
    At(usize),
    Done,
}

impl Report {
    /// Appends about [`REPORT_PIECE_LEN`] bytes to `out`; `false` when that was the end.
    #[must_use]
    pub fn fill(&mut self, transaction: &Transaction, maildrop: &dyn Maildrop, out: &mut Vec<u8>) -> bool {
        let mut index = match self.progress {
            Progress::First => {
                out.extend_from_slice(&ok(""));
                0
            }
            Progress::At(index) => index,
            Progress::Done => return false,
        };
        while index < maildrop.count() {
            if out.len() >= REPORT_PIECE_LEN {
                self.progress = Progress::At(index);
                return true;
            }
            if transaction.is_present(index) {
                self.listing.line(index, maildrop, out);
            }
            index = index.saturating_add(1);
        }
        out.extend_from_slice(b".\r\n");
        self.progress = Progress::Done;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Vec<(&'static str, Option<u64>)>);

    impl Maildrop for Fixed {
        fn count(&self) -> usize {
            self.0.len()
        }
        fn unique_id(&self, index: usize) -> &[u8] {
            self.0[index].0.as_bytes()
        }
        fn octets(&self, index: usize) -> Option<u64> {
            self.0[index].1
        }
    }

    fn three() -> Fixed {
        Fixed(vec![("id.a", Some(100)), ("id.b", Some(20)), ("id.c", Some(3))])
    }

    /// One line per action.
    fn say(transaction: &mut Transaction, maildrop: &Fixed, line: &str) -> String {
        match transaction.command(line.as_bytes(), maildrop) {
            Action::Reply(reply) => String::from_utf8(reply).unwrap(),
            Action::Measure(which) => format!("[measure {which:?}]"),
            Action::Retrieve { index, encoder } => {
                let (mut out, mut encoder) = (Vec::new(), encoder);
                encoder.feed(b"H: v\n\n1\n2\n", &mut out);
                format!("[retrieve {index} {} octets]", out.len())
            }
            Action::Update => "[update]".to_owned(),
            Action::Report(mut report) => {
                let mut out = Vec::new();
                while report.fill(transaction, maildrop, &mut out) {}
                String::from_utf8(out).unwrap()
            }
        }
    }

    fn script(lines: &[(&str, &str)]) {
        let (maildrop, mut transaction) = (three(), Transaction::new(3));
        for (line, reply) in lines {
            assert_eq!(say(&mut transaction, &maildrop, line), *reply, "{line}");
        }
    }

    #[test]
    fn a_session() {
        script(&[
            ("STAT", "+OK 3 123\r\n"),
            ("LIST", "+OK \r\n1 100\r\n2 20\r\n3 3\r\n.\r\n"),
            ("LIST 2", "+OK 2 20\r\n"),
            ("UIDL", "+OK \r\n1 id.a\r\n2 id.b\r\n3 id.c\r\n.\r\n"),
            ("uidl 3", "+OK 3 id.c\r\n"),
            ("LAST", "+OK 0\r\n"),
            ("RETR 1", "[retrieve 0 14 octets]"),
            ("TOP 2 1", "[retrieve 1 11 octets]"),
            ("RETR 2 0", "[retrieve 1 8 octets]"),
            ("LAST", "+OK 2\r\n"),
            ("DELE 2", "+OK \r\n"),
            ("STAT", "+OK 2 103\r\n"),
            ("LIST", "+OK \r\n1 100\r\n3 3\r\n.\r\n"),
            ("UIDL", "+OK \r\n1 id.a\r\n3 id.c\r\n.\r\n"),
            ("RETR 2", "-ERR already deleted\r\n"),
            ("DELE 2", "-ERR already deleted\r\n"),
            ("LIST 2", "-ERR already deleted\r\n"),
            ("RSET", "+OK \r\n"),
            ("LAST", "+OK 0\r\n"),
            ("STAT", "+OK 3 123\r\n"),
            ("NOOP", "+OK \r\n"),
            (
                "CAPA",
                "+OK capability list follows\r\nTOP\r\nUIDL\r\nPIPELINING\r\nEXPIRE NEVER\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nUTF8\r\nLANG\r\nIMPLEMENTATION qmail-rs\r\n.\r\n",
            ),
            ("UTF8", "-ERR UTF8 comes before the login\r\n"),
            ("LANG *", "+OK en replies are in English\r\n"),
            ("QUIT", "[update]"),
        ]);
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for (line, reply) in [
            ("", "-ERR unimplemented\r\n"),
            ("USER joe", "-ERR unimplemented\r\n"),
            ("XYZZY", "-ERR unimplemented\r\n"),
            ("RETR", "-ERR syntax error\r\n"),
            ("RETR 0", "-ERR messages are counted from 1\r\n"),
            ("RETR 4", "-ERR not that many messages\r\n"),
            ("RETR 18446744073709551615", "-ERR not that many messages\r\n"),
            ("RETR 99999999999999999999999", "-ERR syntax error\r\n"),
            ("RETR -1", "-ERR syntax error\r\n"),
            ("RETR 1x", "-ERR syntax error\r\n"),
            ("RETR 1 2 3", "-ERR syntax error\r\n"),
            ("TOP 1", "-ERR syntax error\r\n"),
            ("TOP 1 x", "-ERR syntax error\r\n"),
            ("TOP 1 2 3", "-ERR syntax error\r\n"),
            ("DELE", "-ERR syntax error\r\n"),
            ("DELE 1 2", "-ERR syntax error\r\n"),
            ("LIST 1 2", "-ERR syntax error\r\n"),
            ("LIST x", "-ERR syntax error\r\n"),
            ("UIDL 9", "-ERR not that many messages\r\n"),
        ] {
            script(&[(line, reply), ("STAT", "+OK 3 123\r\n")]);
        }
    }

    #[test]
    fn sizes_are_asked_for_only_when_needed() {
        let maildrop = Fixed(vec![("a", Some(1)), ("b", None)]);
        let mut transaction = Transaction::new(2);
        for (line, reply) in [
            ("UIDL", "+OK \r\n1 a\r\n2 b\r\n.\r\n"),
            ("LIST 1", "+OK 1 1\r\n"),
            ("LIST 2", "[measure One(1)]"),
            ("STAT", "[measure All]"),
            ("LIST", "[measure All]"),
            ("DELE 2", "+OK \r\n"),
            ("STAT", "+OK 1 1\r\n"),
            ("LIST", "+OK \r\n1 1\r\n.\r\n"),
        ] {
            assert_eq!(say(&mut transaction, &maildrop, line), reply, "{line}");
        }
    }

    #[test]
    fn a_vanished_message_stays_away() {
        let (maildrop, mut transaction) = (three(), Transaction::new(3));
        transaction.gone(1);
        transaction.gone(99);
        for (line, reply) in [
            ("STAT", "+OK 2 103\r\n"),
            ("RETR 2", "-ERR another session has removed that message\r\n"),
            ("DELE 2", "-ERR another session has removed that message\r\n"),
            ("RSET", "+OK \r\n"),
            ("LIST", "+OK \r\n1 100\r\n3 3\r\n.\r\n"),
            ("RETR 3", "[retrieve 2 14 octets]"),
        ] {
            assert_eq!(say(&mut transaction, &maildrop, line), reply, "{line}");
        }
        assert!(!transaction.is_deleted(1) && transaction.is_retrieved(2) && !transaction.is_retrieved(0));
    }

    #[test]
    fn a_large_report_comes_in_small_pieces() {
        let maildrop = Fixed(vec![("0123456789012345678901234567890123456789", Some(7)); 10_000]);
        let mut transaction = Transaction::new(10_000);
        let Action::Report(mut report) = transaction.command(b"UIDL", &maildrop) else { panic!() };
        let (mut all, mut more) = (Vec::new(), true);
        while more {
            let mut piece = Vec::new();
            more = report.fill(&transaction, &maildrop, &mut piece);
            assert!(piece.len() < REPORT_PIECE_LEN + 100);
            all.append(&mut piece);
        }
        assert_eq!(all.iter().filter(|b| **b == b'\n').count(), 10_002);
        assert!(all.ends_with(b"10000 0123456789012345678901234567890123456789\r\n.\r\n"));
        assert!(!report.fill(&transaction, &maildrop, &mut all));
    }
}
