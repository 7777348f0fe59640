//! A message as qmail-local put it into a Maildir: its first two lines are `Return-Path: <SENDER>` and `Delivered-To: RECIPIENT`.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};

/// Longest of the two lines, in bytes.
const LINE_LEN_MAX: u64 = 4096;

/// An open message; what is left to read begins behind the two lines.
#[derive(Debug)]
pub struct MessageFile {
    pub sender: Vec<u8>,
    pub recipient: Vec<u8>,
    pub rest: BufReader<File>,
    /// Length of the two lines in bytes.
    pub head_len: u64,
}

impl MessageFile {
    /// Reads the two lines; `None` if these are not what stands there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(file: File) -> io::Result<Option<Self>> {
        let mut rest = BufReader::with_capacity(32 * 1024, file);
        let mut head_len = 0u64;
        let mut next = |rest: &mut BufReader<File>| -> io::Result<Vec<u8>> {
            let mut line = Vec::new();
            io::Read::take(rest, LINE_LEN_MAX).read_until(b'\n', &mut line)?;
            head_len = head_len.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
            Ok(line)
        };
        let (first, second) = (next(&mut rest)?, next(&mut rest)?);
        let sender = first.strip_prefix(b"Return-Path: <").and_then(|line| line.strip_suffix(b">\n"));
        let recipient = second.strip_prefix(b"Delivered-To: ").and_then(|line| line.strip_suffix(b"\n"));
        let (Some(sender), Some(recipient)) = (sender, recipient) else { return Ok(None) };
        Ok(Some(Self { sender: sender.to_vec(), recipient: recipient.to_vec(), rest, head_len }))
    }
}
