//! The log of all processes: bounded lines from one pipe each, made safe, and written by one thread that may block.
//!
//! A log that nobody reads must not stop mail: what does not fit in [`HELD_BYTES_MAX`] is dropped and counted, and the count is
//! logged when there is room again. In the classic format qmail-send's lines go out bare, byte-stable for log analysers; every other
//! line starts with `NAME[PID]: `, so no other process can make one that looks like qmail-send's. The other formats
//! ([`control::LogFormat`]) say the name with each line.

use crate::journal::Journal;
use control::LogFormat as Format;
use logline::Linker;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bytes that wait for the writer, at most.
pub const HELD_BYTES_MAX: usize = 1 << 20;
/// Longest line of a process; the rest of a longer one goes on in a new line.
pub const LINE_LEN_MAX: usize = 8 * 1024;
/// What the rest of a line begins with. No event, no name and no host does, so what stands behind it is nobody's line but text.
const CONTINUED: &str = "[continued] ";
/// What a line that waits takes beside its text.
const RECORD_LEN: usize = size_of::<Record>();

/// The queue in front of the writer thread. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    held: Mutex<Held>,
    /// There is something to write.
    filled: Condvar,
    /// All that was there has been written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Held {
    records: Vec<Record>,
    /// Of `records`.
    bytes: usize,
    dropped: u64,
    /// The writer has taken lines and not written them yet.
    writing: bool,
    /// Somebody waits for the end of that.
    flushing: bool,
    format: Format,
}

/// A line that waits.
#[derive(Debug)]
struct Record {
    time_us: u64,
    source: Source,
    /// Printable, without an end.
    text: String,
}

/// Who writes.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    pub name: &'static str,
    pub pid: u32,
}

impl Source {
    /// qmail-start itself.
    fn own() -> Self {
        Self { name: "qmail-start", pid: std::process::id() }
    }
}

impl Log {
    /// Starts the writer thread on `out`; entries for journald go to `journal`, or to `out` where they cannot.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(out: impl Write + Send + 'static, journal: Journal, format: Format) -> std::io::Result<Self> {
        let log = Self::default();
        log.set_format(format);
        let queue = log.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || queue.write_to(out, journal))?;
        Ok(log)
    }

    /// What is written from now on has this format; lines that wait, too.
    pub fn set_format(&self, format: Format) {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner).format = format;
    }

    /// Appends lines of one process, or counts those that find no room as dropped. Never blocks. The writer is woken once for all of
    /// them.
    fn lines(&self, source: Source, lines: Vec<String>) {
        if lines.is_empty() {
            return;
        }
        let time_us = u64::try_from(sys::clock::unix().as_micros()).unwrap_or(u64::MAX);
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        for text in lines {
            held.append(Record { time_us, source, text });
        }
        let writer_sleeps = !held.writing;
        drop(held);
        if writer_sleeps {
            self.0.filled.notify_one();
        }
    }

    /// A line of qmail-start itself.
    pub fn say(&self, text: &str) {
        self.lines(Source::own(), vec![wire::escape::visible(text.as_bytes())]);
    }

    /// Waits until everything is written, but no longer than `deadline`: at the end of the program.
    pub fn flush(&self, deadline: std::time::Duration) {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.flushing = true;
        let _ = self.0.emptied.wait_timeout_while(held, deadline, |held| held.writing || !held.records.is_empty());
    }

    fn write_to(&self, mut out: impl Write, mut journal: Journal) {
        let mut linker = Linker::default();
        let mut text = String::new();
        loop {
            let (records, format) = self.next();
            text.clear();
            for record in &records {
                record.render(format, &mut linker, &mut journal, &mut text);
            }
            // A log that is gone for good is no reason to stop: lines go nowhere from then on.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
    }

    /// What has come since the last call; waits for it.
    fn next(&self) -> (Vec<Record>, Format) {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.writing = false;
        if held.records.is_empty() && held.flushing {
            self.0.emptied.notify_all();
        }
        let mut held = self.0.filled.wait_while(held, |held| held.records.is_empty()).unwrap_or_else(PoisonError::into_inner);
        held.writing = true;
        held.bytes = 0;
        (std::mem::take(&mut held.records), held.format)
    }
}

impl Held {
    fn append(&mut self, record: Record) {
        if self.dropped > 0 && self.bytes < HELD_BYTES_MAX / 2 {
            let text = format!("alert: {} log lines dropped: nobody read the log", self.dropped);
            self.dropped = 0;
            self.push(Record { time_us: record.time_us, source: Source::own(), text });
        }
        if self.dropped > 0 || self.bytes.saturating_add(record.len()) > HELD_BYTES_MAX {
            self.dropped = self.dropped.saturating_add(1);
        } else {
            self.push(record);
        }
    }

    fn push(&mut self, record: Record) {
        self.bytes = self.bytes.saturating_add(record.len());
        self.records.push(record);
    }
}

impl Record {
    /// What it takes in memory.
    fn len(&self) -> usize {
        self.text.len().saturating_add(RECORD_LEN)
    }

    /// Puts the line into `out`, or sends it to journald.
    fn render(&self, format: Format, linker: &mut Linker, journal: &mut Journal, out: &mut String) {
        let Source { name, pid } = self.source;
        match format {
            Format::Classic => self.classic(out),
            Format::Text => out.push_str(&logline::text(self.time_us, name, pid, &self.text)),
            Format::Json => {
                let fields = linker.fields(name, self.text.as_bytes());
                out.push_str(&logline::json(self.time_us, name, pid, &self.text, fields.as_ref()));
            }
            Format::Journal => {
                let fields = linker.fields(name, self.text.as_bytes());
                if !journal.send(&logline::journal(name, pid, &self.text, fields.as_ref())) {
                    self.classic(out);
                }
            }
        }
    }

    fn classic(&self, out: &mut String) {
        let Source { name, pid } = self.source;
        // qmail-send's lines are the classic log; everyone else is named.
        if name == "qmail-send" {
            out.push_str(logline::classic_line(&self.text));
        } else {
            out.push_str(&format!("{name}[{pid}]: "));
            out.push_str(&self.text);
        }
        out.push('\n');
    }
}

/// Cuts what one process writes into safe lines.
#[derive(Debug)]
pub struct Splitter {
    source: Source,
    part: Vec<u8>,
    /// The beginning of the line has been logged already.
    is_continued: bool,
}

impl Splitter {
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self { source, part: Vec::new(), is_continued: false }
    }

    /// Takes the next bytes and logs the lines that they end.
    pub fn push(&mut self, mut bytes: &[u8], log: &Log) {
        let mut lines = Vec::new();
        while !bytes.is_empty() {
            let end = bytes.iter().position(|b| *b == b'\n');
            let room = LINE_LEN_MAX.saturating_sub(self.part.len());
            let take = end.unwrap_or(bytes.len()).min(room);
            self.part.extend_from_slice(bytes.get(..take).unwrap_or_default());
            let ended = end == Some(take);
            bytes = bytes.get(take + usize::from(ended)..).unwrap_or_default();
            if ended || self.part.len() >= LINE_LEN_MAX {
                self.finish(&mut lines);
                self.is_continued = !ended;
            }
        }
        log.lines(self.source, lines);
    }

    /// Logs an unfinished last line.
    pub fn end(&mut self, log: &Log) {
        let mut lines = Vec::new();
        self.finish(&mut lines);
        log.lines(self.source, lines);
    }

    fn finish(&mut self, lines: &mut Vec<String>) {
        if !self.part.is_empty() {
            let mark = if self.is_continued { CONTINUED } else { "" };
            lines.push([mark, &wire::escape::visible(&self.part)].concat());
            self.part.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    /// A log that is read only when the test says so.
    struct Slow(Sender<Vec<u8>>, Receiver<()>);

    impl Write for Slow {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.1.recv().map_err(std::io::Error::other)?;
            self.0.send(buf.to_vec()).map_err(std::io::Error::other)?;
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    const SEND: Source = Source { name: "qmail-send", pid: 5 };

    fn start(out: impl Write + Send + 'static, format: Format) -> std::io::Result<Log> {
        Log::start(out, Journal::new("/nonexistent".into()), format)
    }

    #[test]
    fn lines_are_whole_safe_and_prefixed_however_they_were_cut() {
        let text = b"one\ntwo \x1b[31m\xff\n\nthree";
        for cut in 0..text.len() {
            let (sender, written) = channel();
            let (go, wait) = channel();
            let log = start(Slow(sender, wait), Format::Classic).unwrap();
            let mut splitter = Splitter::new(Source { name: "qmail-x", pid: 7 });
            splitter.push(&text[..cut], &log);
            splitter.push(&text[cut..], &log);
            splitter.end(&log);
            for _ in 0..3 {
                let _ = go.send(());
            }
            log.flush(Duration::from_secs(10));
            let all: Vec<u8> = written.try_iter().flatten().collect();
            let expected = "qmail-x[7]: one\nqmail-x[7]: two \\x1b[31m\\xff\nqmail-x[7]: three\n";
            assert_eq!(String::from_utf8(all).unwrap(), expected);
        }
    }

    #[test]
    fn a_log_nobody_reads_drops_lines_with_a_count_and_stays_bounded() {
        let (sender, written) = channel();
        let (go, wait) = channel();
        let log = start(Slow(sender, wait), Format::Classic).unwrap();
        let line = "x".repeat(1023);
        for _ in 0..10_000 {
            log.lines(SEND, vec![line.clone()]);
        }
        assert!(log.0.held.lock().unwrap().bytes <= HELD_BYTES_MAX);
        for _ in 0..100 {
            let _ = go.send(());
        }
        log.flush(Duration::from_secs(10));
        log.lines(SEND, vec!["after".to_owned()]);
        log.flush(Duration::from_secs(10));
        let all: Vec<u8> = written.try_iter().flatten().collect();
        let text = String::from_utf8(all).unwrap();
        let kept = text.lines().filter(|line| line.starts_with('x')).count();
        // The writer may have taken what was held while lines were still coming: then there are two notes.
        let notes: Vec<usize> =
            text.split("alert: ").skip(1).map(|note| note.split(' ').next().unwrap().parse().unwrap()).collect();
        let dropped: usize = notes.iter().sum();
        assert!(matches!(notes.len(), 1..=2), "{notes:?}");
        assert_eq!(kept + dropped, 10_000);
        assert!(text.ends_with("after\n"));
    }

    #[test]
    fn an_endless_line_is_cut() {
        let (sender, written) = channel();
        let (go, wait) = channel();
        let log = start(Slow(sender, wait), Format::Classic).unwrap();
        let mut splitter = Splitter::new(SEND);
        splitter.push(&[b'a'; LINE_LEN_MAX * 2 + 5], &log);
        assert_eq!(splitter.part.len(), 5);
        for _ in 0..5 {
            let _ = go.send(());
        }
        log.flush(Duration::from_secs(10));
        assert_eq!(written.try_iter().flatten().count(), 2 * (LINE_LEN_MAX + 1) + CONTINUED.len());
    }

    /// Whoever makes a process write long lines chooses what the next one begins with.
    #[test]
    fn the_rest_of_a_line_is_no_line() {
        let forged = "delivery 7: success: forged\n";
        for (format, source) in [
            (Format::Classic, SEND),
            (Format::Classic, Source { name: "qmail-x", pid: 7 }),
            (Format::Text, SEND),
            (Format::Json, SEND),
        ] {
            for forged in
                [forged, "alert: forged\n", "qmail-send[5]: end msg 5\n", "accepted msg=5\n", "mx qmail-send[5]: end msg 5\n"]
            {
                let (sender, written) = channel();
                let (go, wait) = channel();
                let log = start(Slow(sender, wait), format).unwrap();
                let mut splitter = Splitter::new(source);
                splitter.push(&[b'a'; LINE_LEN_MAX], &log);
                splitter.push(forged.as_bytes(), &log);
                splitter.push(b"end msg 9\n", &log);
                for _ in 0..5 {
                    let _ = go.send(());
                }
                log.flush(Duration::from_secs(10));
                let text = String::from_utf8(written.try_iter().flatten().collect()).unwrap();
                let lines: Vec<&str> = text.lines().collect();
                assert_eq!(lines.len(), 3, "{text}");
                assert!(lines[1].contains("[continued] ") && !lines[2].contains("[continued] "), "{text}");
                if format == Format::Json {
                    assert!(lines[1].contains("\"event\":\"line\"") && lines[2].contains("\"event\":\"end\""), "{text}");
                    continue;
                }
                let entry = logline::Entry::parse(lines[1].as_bytes(), logline::Surroundings::default());
                assert_eq!(entry.process, source.name);
                assert_eq!(Linker::default().fields(entry.process, entry.text), None, "{text}");
            }
        }
    }

    #[test]
    fn the_message_id_is_in_all_formats_but_the_classic() {
        let line = "info msg 7: bytes 9 from <a@b> qp 4 uid 0";
        for (format, has_it) in [(Format::Classic, false), (Format::Text, true), (Format::Json, true)] {
            let (sender, written) = channel();
            let (go, wait) = channel();
            let log = start(Slow(sender, wait), format).unwrap();
            Splitter::new(SEND).push(format!("{line} message-id <5@x>\n").as_bytes(), &log);
            let _ = go.send(());
            log.flush(Duration::from_secs(10));
            let text = String::from_utf8(written.try_iter().flatten().collect()).unwrap();
            assert_eq!(text.contains("<5@x>"), has_it, "{text}");
            assert!(format != Format::Classic || text == format!("{line}\n"), "{text}");
        }
    }

    /// What is logged in a format, with a journal at `socket`.
    fn logged(format: Format, socket: &std::path::Path) -> String {
        let (sender, written) = channel();
        let (go, wait) = channel();
        let log = Log::start(Slow(sender, wait), Journal::new(socket.to_owned()), format).unwrap();
        Splitter::new(SEND).push(b"starting delivery 1: msg 7 to local a@b\ndelivery 1: success: did_1+0+0/\n", &log);
        Splitter::new(Source { name: "qmail-smtpd", pid: 9 }).push(b"refused from=<a@b> reply=\"550 no\x1b\"\n", &log);
        for _ in 0..4 {
            let _ = go.send(());
        }
        log.flush(Duration::from_secs(10));
        String::from_utf8(written.try_iter().flatten().collect()).unwrap()
    }

    #[test]
    fn json_links_a_result_to_its_message() {
        let text = logged(Format::Json, "/nonexistent".as_ref());
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3, "{text}");
        let result = &lines[1];
        assert_eq!((&result["message"], &result["recipient"], &result["status"]), (&7.into(), &"a@b".into(), &"success".into()));
        assert_eq!(
            (&lines[2]["process"], &lines[2]["pid"], &lines[2]["reply"]),
            (&"qmail-smtpd".into(), &9.into(), &"550 no\\x1b".into())
        );
    }

    #[test]
    fn journald_gets_entries_and_standard_error_what_it_does_not_take() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let classic = "starting delivery 1: msg 7 to local a@b\ndelivery 1: success: did_1+0+0/\n\
            qmail-smtpd[9]: refused from=<a@b> reply=\"550 no\\x1b\"\n";
        assert_eq!(logged(Format::Journal, &socket), classic, "there is none");
        let journald = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
        journald.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(logged(Format::Journal, &socket), "");
        let entries: Vec<String> = (0..3)
            .map(|_| {
                let mut entry = vec![0; 8192];
                let len = journald.recv(&mut entry).unwrap();
                String::from_utf8(entry[..len].to_vec()).unwrap()
            })
            .collect();
        assert!(
            entries[1].contains("SYSLOG_IDENTIFIER=qmail-send\n") && entries[1].contains("QMAIL_MESSAGE_ID=7\n"),
            "{entries:?}"
        );
        assert!(entries[1].contains("QMAIL_RECIPIENT=a@b\n") && entries[1].contains("QMAIL_STATUS=success\n"), "{entries:?}");
        assert!(entries[2].contains("SYSLOG_IDENTIFIER=qmail-smtpd\nSYSLOG_PID=9\n"), "{entries:?}");
    }
}
