//! Where the log comes from: journald, files, or standard input, line by line.
//!
//! A file that is followed is followed by its name, as whoever rotates logs wants it: what is written to the old file before another has
//! its name is read first, one that is emptied is read from its beginning, one that is gone is waited for. What happens is said on standard
//! error. What is followed ends only with an error, or with standard input.

use control::Root;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cli::Log;
use crate::{Failure, io_failure};

/// Longest line that is looked at; the rest of a longer one is passed over.
const LINE_LEN_MAX: usize = 64 * 1024;
/// The service of the package.
const UNIT: &str = "qmail.service";
/// How often a file is looked at that is followed.
const PAUSE: Duration = Duration::from_millis(250);

/// Lines, whatever they come from.
pub(super) struct Source {
    input: Option<Box<dyn BufRead>>,
    /// What is read now.
    name: PathBuf,
    /// What comes behind it, the next last.
    files: Vec<PathBuf>,
    journalctl: Option<Child>,
    follows: bool,
    /// The file that is read; `None` for standard input.
    file: Option<Place>,
    /// Bytes read of it.
    offset: u64,
    /// Another file has its name by now, or it is empty again; what was written to it before is read first.
    moved: Option<Moved>,
    /// Its name is nobody's; said already.
    is_missing: bool,
    line: Vec<u8>,
}

/// Device and inode.
type Place = (u64, u64);

/// Why a file is opened anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moved {
    Replaced,
    Emptied,
}

impl Source {
    /// # Errors
    /// There is no journalctl.
    pub(super) fn open(root: &Root, options: &Log, since_s: Option<u64>) -> Result<Self, Failure> {
        let (files, follows) = (options.file.iter().rev().cloned().collect::<Vec<_>>(), options.follow);
        let (input, journalctl, name) = (None, None, PathBuf::from("journalctl"));
        let (file, moved, line) = (None, None, Vec::new());
        let mut source = Self { input, name, files, journalctl, follows, file, offset: 0, moved, is_missing: false, line };
        if source.files.is_empty() {
            source.start_journalctl(root, since_s)?;
        }
        Ok(source)
    }

    /// What people call it.
    pub(super) fn name(&self) -> String {
        if self.journalctl.is_some() { "the journal".to_owned() } else { format!("the log ({})", self.name.display()) }
    }

    fn start_journalctl(&mut self, root: &Root, since_s: Option<u64>) -> Result<(), Failure> {
        let mut command = Command::new("journalctl");
        command.args(["--output=json", "--all", "--no-pager", "--quiet"]);
        if root.is_system() {
            // Entries of qmail-start: programs of users run in the same unit, and may say what they like to journald.
            command.args([&format!("--unit={UNIT}"), "_UID=0"]);
        } else {
            command.arg("--directory").arg(root.path().join("var/log/journal"));
        }
        command.args(since_s.map(|since_s| format!("--since=@{since_s}")));
        if self.follows {
            command.args(["--follow", "--lines=all"]);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|error| {
            Failure::temporary(format!("journalctl: {error}; name the log with --file, or - for standard input"))
        })?;
        self.input = child.stdout.take().map(|out| Box::new(BufReader::new(out)) as Box<dyn BufRead>);
        self.journalctl = Some(child);
        Ok(())
    }

    fn open_file(&mut self, name: PathBuf) -> Result<(), Failure> {
        if name == Path::new("-") {
            self.input = Some(Box::new(io::stdin().lock()));
            self.file = None;
        } else {
            self.open_at(&name).map_err(|error| io_failure(&name, &error))?;
        }
        self.name = name;
        Ok(())
    }

    /// Nothing has changed if it cannot be opened.
    fn open_at(&mut self, name: &Path) -> io::Result<()> {
        let file = File::open(name)?;
        let metadata = file.metadata()?;
        self.file = Some(place(&metadata));
        self.offset = 0;
        self.input = Some(Box::new(BufReader::with_capacity(256 * 1024, file)));
        Ok(())
    }

    /// Goes to the next line; false behind the last.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn next(&mut self) -> Result<bool, Failure> {
        self.line.clear();
        loop {
            if self.input.is_none() {
                let Some(next) = self.files.pop() else { return Ok(false) };
                self.open_file(next)?;
            }
            let Some(input) = self.input.as_mut() else { return Ok(false) };
            let (bytes, has_ended) = read_line(input, &mut self.line).map_err(|error| io_failure(&self.name, &error))?;
            self.offset = self.offset.saturating_add(bytes);
            if has_ended {
                return Ok(true);
            }
            if self.follows && self.files.is_empty() && self.file.is_some() {
                if self.wait_for_more() {
                    // The last line of the old file, which had no end.
                    return Ok(true);
                }
                continue;
            }
            self.input = None;
            if !self.line.is_empty() {
                return Ok(true);
            }
        }
    }

    /// The line without its end.
    pub(super) fn line(&self) -> &[u8] {
        &self.line
    }

    /// Waits a moment, and looks what has become of the file. True if it is another one from now on and a line is left of the old.
    fn wait_for_more(&mut self) -> bool {
        let Some(moved) = self.moved.take() else {
            std::thread::sleep(PAUSE);
            self.look();
            return false;
        };
        let name = self.name.clone();
        match self.open_at(&name) {
            Ok(()) => {
                self.say(if moved == Moved::Emptied {
                    "was emptied; it is read from its beginning"
                } else {
                    "is another file now"
                });
                !self.line.is_empty()
            }
            // Gone again: there is a next time.
            Err(_) => false,
        }
    }

    fn look(&mut self) {
        match std::fs::metadata(&self.name) {
            Ok(metadata) => {
                let is_other = self.file != Some(place(&metadata));
                let is_shorter = metadata.is_file() && metadata.len() < self.offset;
                self.moved = match () {
                    () if is_other => Some(Moved::Replaced),
                    () if is_shorter => Some(Moved::Emptied),
                    () => None,
                };
                self.is_missing = false;
            }
            Err(error) if !self.is_missing => {
                self.is_missing = true;
                self.say(&format!("{error}; waiting for it"));
            }
            Err(_) => {}
        }
    }

    fn say(&self, what: &str) {
        let name = wire::escape::visible(self.name.as_os_str().as_bytes());
        let _ = writeln!(io::stderr(), "qmail: {name}: {what}");
    }

    /// The end of journalctl, which has none while it follows.
    ///
    /// # Errors
    /// It says that it could not do it, or does not follow any more; temporary.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        let Some(child) = self.journalctl.as_mut() else {
            if self.follows {
                self.say("ended");
            }
            return Ok(());
        };
        match child.wait() {
            Ok(status) if status.success() && self.follows => {
                Err(Failure::temporary("journalctl has ended: the log is not followed any more".to_owned()))
            }
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failure::temporary(format!("journalctl: {status}; name the log with --file"))),
            Err(error) => Err(Failure::temporary(format!("journalctl: {error}"))),
        }
    }
}

fn place(metadata: &std::fs::Metadata) -> Place {
    (metadata.dev(), metadata.ino())
}

/// Appends up to the end of a line, which is taken, too; how many bytes that were, and whether the line has ended.
fn read_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<(u64, bool)> {
    let mut bytes = 0_u64;
    loop {
        let buf = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            buf => buf?,
        };
        let end = buf.iter().position(|b| *b == b'\n');
        let taken = end.map_or(buf.len(), |end| end.saturating_add(1));
        let text = buf.get(..end.unwrap_or(buf.len())).unwrap_or_default();
        let room = LINE_LEN_MAX.saturating_sub(line.len());
        line.extend_from_slice(text.get(..room).unwrap_or(text));
        input.consume(taken);
        bytes = bytes.saturating_add(taken as u64);
        if end.is_some() || taken == 0 {
            return Ok((bytes, end.is_some()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_ends_and_bounds() {
        let text = [&b"one\n\n"[..], &vec![b'x'; LINE_LEN_MAX + 9], b"\nlast"].concat();
        let mut input = BufReader::with_capacity(7, &text[..]);
        let mut lens = Vec::new();
        loop {
            let mut line = Vec::new();
            let (bytes, has_ended) = read_line(&mut input, &mut line).unwrap();
            if bytes == 0 {
                break;
            }
            lens.push((line.len(), has_ended));
        }
        assert_eq!(lens, [(3, true), (0, true), (LINE_LEN_MAX, true), (4, false)]);
    }

    /// A file that is followed, and its lines.
    fn follow(dir: &Path, log: &Path) -> impl Fn() -> String + use<> {
        let (sender, lines) = std::sync::mpsc::channel();
        let (root, file) = (Root::new(dir).unwrap(), log.to_owned());
        std::thread::spawn(move || {
            let options = Log { wanted: None, since: None, file: vec![file], follow: true, stats: false };
            let mut source = Source::open(&root, &options, None).unwrap();
            while source.next().unwrap() && sender.send(source.line().to_vec()).is_ok() {}
        });
        move || String::from_utf8(lines.recv_timeout(Duration::from_secs(60)).expect("a line, or it has ended")).unwrap()
    }

    #[test]
    fn a_file_that_is_rotated_is_followed_without_losing_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let (log, old) = (dir.path().join("log"), dir.path().join("log.1"));
        std::fs::write(&log, "one\n").unwrap();
        let next = follow(dir.path(), &log);
        assert_eq!(next(), "one");
        std::fs::rename(&log, &old).unwrap();
        std::fs::write(&old, "one\ntwo\nbroken off").unwrap();
        std::fs::write(&log, "three\n").unwrap();
        assert_eq!((next(), next(), next()), ("two".to_owned(), "broken off".to_owned(), "three".to_owned()));
    }

    /// Between its two names, and longer.
    #[test]
    fn a_file_that_is_gone_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "one\n").unwrap();
        let next = follow(dir.path(), &log);
        assert_eq!(next(), "one");
        for line in ["two", "three"] {
            // A link to nowhere is another file that cannot be opened; then it is nothing at all.
            std::fs::remove_file(&log).unwrap();
            std::os::unix::fs::symlink("nowhere", &log).unwrap();
            std::thread::sleep(PAUSE * 4);
            std::fs::remove_file(&log).unwrap();
            std::thread::sleep(PAUSE * 4);
            std::fs::write(&log, format!("{line}\n")).unwrap();
            assert_eq!(next(), line);
        }
    }

    #[test]
    fn a_file_that_is_emptied_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "a long line, longer than the next\n").unwrap();
        let next = follow(dir.path(), &log);
        next();
        std::fs::write(&log, "two\n").unwrap();
        assert_eq!(next(), "two");
        let mut file = File::options().append(true).open(&log).unwrap();
        file.write_all(b"three\n").unwrap();
        assert_eq!(next(), "three");
    }
}
