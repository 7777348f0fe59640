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
pub struct Log(Arc<(Mutex<Held>, Condvar)>);

#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    dropped: u64,
    /// The writer has taken bytes and not written them yet.
    writing: bool,
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
        let (held, wake) = &*self.0;
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.dropped > 0 && held.bytes.len() < HELD_BYTES_MAX / 2 {
            let note =
                format!("qmail-start[{}]: alert: {} log lines dropped: nobody read the log\n", std::process::id(), held.dropped);
            held.bytes.extend_from_slice(note.as_bytes());
            held.dropped = 0;
        }
        if held.dropped > 0 || held.bytes.len() + line.len() + 1 > HELD_BYTES_MAX {
            held.dropped += 1;
            return;
        }
        held.bytes.extend_from_slice(line);
        held.bytes.push(b'\n');
        wake.notify_all();
    }

    /// A line of qmail-start itself.
    pub fn say(&self, text: &str) {
        self.line(format!("qmail-start[{}]: {text}", std::process::id()).as_bytes());
    }

    /// Waits until everything is written, but no longer than `deadline`: at the end of the program.
    pub fn flush(&self, deadline: std::time::Duration) {
        let (held, wake) = &*self.0;
        let guard = held.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = wake.wait_timeout_while(guard, deadline, |held| held.writing || !held.bytes.is_empty());
    }

    fn write_to(&self, mut out: impl Write) {
        let (held, wake) = &*self.0;
        loop {
            let bytes = {
                let mut guard = held.lock().unwrap_or_else(PoisonError::into_inner);
                guard.writing = false;
                wake.notify_all();
                let mut guard = wake.wait_while(guard, |held| held.bytes.is_empty()).unwrap_or_else(PoisonError::into_inner);
                guard.writing = true;
                std::mem::take(&mut guard.bytes)
            };
            // A log that is gone for good is no reason to stop: lines go nowhere from then on.
            let _ = out.write_all(&bytes).and_then(|()| out.flush());
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
        while !bytes.is_empty() {
            let end = bytes.iter().position(|b| *b == b'\n');
            let room = LINE_LEN_MAX.saturating_sub(self.part.len());
            let take = end.unwrap_or(bytes.len()).min(room);
            self.part.extend_from_slice(bytes.get(..take).unwrap_or_default());
            let ended = end == Some(take);
            bytes = bytes.get(take + usize::from(ended)..).unwrap_or_default();
            if ended || self.part.len() >= LINE_LEN_MAX {
                self.end(log);
            }
        }
    }

    /// Logs an unfinished last line.
    pub fn end(&mut self, log: &Log) {
        if !self.part.is_empty() {
            let line = format!("{}{}", self.prefix, wire::escape::visible(&self.part));
            self.part.clear();
            log.line(line.as_bytes());
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
        assert!(log.0.0.lock().unwrap().bytes.len() <= HELD_BYTES_MAX);
        for _ in 0..100 {
            let _ = go.send(());
        }
        log.flush(Duration::from_secs(10));
        log.line(b"after");
        log.flush(Duration::from_secs(10));
        let all: Vec<u8> = written.try_iter().flatten().collect();
        let text = String::from_utf8(all).unwrap();
        let kept = text.lines().filter(|line| line.starts_with('x')).count();
        let dropped: usize = text.split("alert: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
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
