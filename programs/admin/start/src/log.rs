//! The log of all processes: bounded lines from one pipe each, made safe, prefixed, and written by one thread that may block.
//!
//! A log that nobody reads must not stop mail: what does not fit in [`HELD_BYTES_MAX`] is dropped and counted, and the count is
//! logged when there is room again. qmail-send's lines go out bare, byte-stable for log analysers; every other line starts with
//! `NAME[PID]: `, so no other process can make one that looks like qmail-send's.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bytes that wait for the writer, at most.
pub const HELD_BYTES_MAX: usize = 1 << 20;
/// Longest line of a process; the rest of a longer one goes on in a new line.
pub const LINE_LEN_MAX: usize = 8 * 1024;

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
    bytes: Vec<u8>,
    dropped: u64,
    /// The writer has taken bytes and not written them yet.
    writing: bool,
    /// Somebody waits for the end of that.
    flushing: bool,
}

impl Log {
    /// Starts the writer thread on `out`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let log = Self::default();
        let queue = log.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || queue.write_to(out))?;
        Ok(log)
    }

    /// Appends a finished line, or counts it as dropped. Never blocks.
    pub fn line(&self, line: &[u8]) {
        self.lines(&[line, b"\n"].concat());
    }

    /// Appends finished lines, each with its LF, or counts those that find no room as dropped. Never blocks. The writer is woken once
    /// for all of them.
    fn lines(&self, lines: &[u8]) {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        for line in lines.split_inclusive(|b| *b == b'\n') {
            held.append(line);
        }
        let writer_sleeps = !held.writing;
        drop(held);
        if writer_sleeps {
            self.0.filled.notify_one();
        }
    }

    /// A line of qmail-start itself.
    pub fn say(&self, text: &str) {
        self.line(format!("qmail-start[{}]: {text}", std::process::id()).as_bytes());
    }

    /// Waits until everything is written, but no longer than `deadline`: at the end of the program.
    pub fn flush(&self, deadline: std::time::Duration) {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.flushing = true;
        let _ = self.0.emptied.wait_timeout_while(held, deadline, |held| held.writing || !held.bytes.is_empty());
    }

    fn write_to(&self, mut out: impl Write) {
        loop {
            let bytes = self.next();
            // A log that is gone for good is no reason to stop: lines go nowhere from then on.
            let _ = out.write_all(&bytes).and_then(|()| out.flush());
        }
    }

    /// What has come since the last call; waits for it.
    fn next(&self) -> Vec<u8> {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.writing = false;
        if held.bytes.is_empty() && held.flushing {
            self.0.emptied.notify_all();
        }
        let mut held = self.0.filled.wait_while(held, |held| held.bytes.is_empty()).unwrap_or_else(PoisonError::into_inner);
        held.writing = true;
        std::mem::take(&mut held.bytes)
    }
}

impl Held {
    fn append(&mut self, line: &[u8]) {
        if self.dropped > 0 && self.bytes.len() < HELD_BYTES_MAX / 2 {
            let note =
                format!("qmail-start[{}]: alert: {} log lines dropped: nobody read the log\n", std::process::id(), self.dropped);
            self.bytes.extend_from_slice(note.as_bytes());
            self.dropped = 0;
        }
        if self.dropped > 0 || self.bytes.len() + line.len() > HELD_BYTES_MAX {
            self.dropped += 1;
        } else {
            self.bytes.extend_from_slice(line);
        }
    }
}

/// Cuts what one process writes into safe, prefixed lines.
#[derive(Debug)]
pub struct Splitter {
    prefix: String,
    part: Vec<u8>,
}

impl Splitter {
    /// `prefix` is `NAME[PID]: `, or empty for qmail-send.
    #[must_use]
    pub fn new(prefix: String) -> Self {
        Self { prefix, part: Vec::new() }
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
            }
        }
        log.lines(&lines);
    }

    /// Logs an unfinished last line.
    pub fn end(&mut self, log: &Log) {
        let mut lines = Vec::new();
        self.finish(&mut lines);
        log.lines(&lines);
    }

    fn finish(&mut self, lines: &mut Vec<u8>) {
        if !self.part.is_empty() {
            lines.extend_from_slice(self.prefix.as_bytes());
            lines.extend_from_slice(wire::escape::visible(&self.part).as_bytes());
            lines.push(b'\n');
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

    #[test]
    fn lines_are_whole_safe_and_prefixed_however_they_were_cut() {
        let text = b"one\ntwo \x1b[31m\xff\n\nthree";
        for cut in 0..text.len() {
            let (sender, written) = channel();
            let (go, wait) = channel();
            let log = Log::start(Slow(sender, wait)).unwrap();
            let mut splitter = Splitter::new("qmail-x[7]: ".to_owned());
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
        let log = Log::start(Slow(sender, wait)).unwrap();
        let line = [b'x'; 1023];
        for _ in 0..10_000 {
            log.line(&line);
        }
        assert!(log.0.held.lock().unwrap().bytes.len() <= HELD_BYTES_MAX);
        for _ in 0..100 {
            let _ = go.send(());
        }
        log.flush(Duration::from_secs(10));
        log.line(b"after");
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
        let log = Log::start(Slow(sender, wait)).unwrap();
        let mut splitter = Splitter::new(String::new());
        splitter.push(&[b'a'; LINE_LEN_MAX * 2 + 5], &log);
        assert_eq!(splitter.part.len(), 5);
        for _ in 0..5 {
            let _ = go.send(());
        }
        log.flush(Duration::from_secs(10));
        assert_eq!(written.try_iter().flatten().count(), 2 * (LINE_LEN_MAX + 1));
    }
}
