//! Where the log comes from: journald, files, or standard input, line by line.

use control::Root;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
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
    /// The file that is read: its inode, and bytes read of it.
    inode: u64,
    offset: u64,
    /// Another file has its name by now; what was written to this one before is read first.
    is_rotated: bool,
    line: Vec<u8>,
}

impl Source {
    /// # Errors
    /// There is no journalctl.
    pub(super) fn open(root: &Root, options: &Log, since_s: Option<u64>) -> Result<Self, Failure> {
        let (files, follows) = (options.file.iter().rev().cloned().collect::<Vec<_>>(), options.follow);
        let (input, journalctl, name) = (None, None, PathBuf::from("journalctl"));
        let mut source =
            Self { input, name, files, journalctl, follows, inode: 0, offset: 0, is_rotated: false, line: Vec::new() };
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
            command.arg(format!("--unit={UNIT}"));
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
        (self.inode, self.offset) = (0, 0);
        self.input = Some(if name == Path::new("-") {
            Box::new(BufReader::new(sys::standard::input().map_err(|error| io_failure(&name, &error))?))
        } else {
            let file = File::open(&name).map_err(|error| io_failure(&name, &error))?;
            self.inode = file.metadata().map_or(0, |metadata| metadata.ino());
            Box::new(BufReader::with_capacity(256 * 1024, file))
        });
        self.name = name;
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
            if self.follows && self.files.is_empty() && self.inode != 0 {
                self.wait_for_more();
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

    /// A file that was renamed or emptied by whoever rotates logs is opened anew.
    fn wait_for_more(&mut self) {
        if std::mem::take(&mut self.is_rotated) {
            self.line.clear();
            // If it is gone again by now there is a next time.
            let _ = self.open_file(self.name.clone());
            return;
        }
        std::thread::sleep(PAUSE);
        let Ok(metadata) = std::fs::metadata(&self.name) else { return };
        self.is_rotated = metadata.ino() != self.inode || metadata.len() < self.offset;
    }

    /// The end of journalctl.
    ///
    /// # Errors
    /// It says that it could not do it.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        let Some(child) = self.journalctl.as_mut() else { return Ok(()) };
        match child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failure::temporary(format!("journalctl: {status}; name the log with --file"))),
            Err(error) => Err(Failure::temporary(format!("journalctl: {error}"))),
        }
    }
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

    #[test]
    fn a_file_that_is_rotated_is_followed_without_losing_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let (log, old) = (dir.path().join("log"), dir.path().join("log.1"));
        std::fs::write(&log, "one\n").unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let (root, file) = (Root::new(dir.path()).unwrap(), log.clone());
        std::thread::spawn(move || {
            let options = Log { wanted: None, since: None, file: vec![file], follow: true, stats: false };
            let mut source = Source::open(&root, &options, None).unwrap();
            while source.next().unwrap() && sender.send(source.line().to_vec()).is_ok() {}
        });
        let next = || lines.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(next(), b"one");
        std::fs::rename(&log, &old).unwrap();
        std::fs::write(&old, "one\ntwo\n").unwrap();
        std::fs::write(&log, "three\n").unwrap();
        assert_eq!((next(), next()), (b"two".to_vec(), b"three".to_vec()));
    }
}
