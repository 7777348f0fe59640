//! Finds the end of the header in a message that arrives in chunks, as qmail-inject sees it.
//!
//! A line that begins with `From ` is kept as an `MBOX-Line` field; a line that is no field ends the header, and an empty line is put
//! before it. The body is never held: what has arrived of it is given back with the fields.

use super::InjectError;
use crate::header::field_name;

/// Longest header (qmail itself has no bound; 16 MiB hold 500,000 recipients).
pub const HEADER_LEN_MAX: usize = 16 << 20;
/// A longer name is no field name (RFC 5322 §2.1.1: no line is longer than this).
const NAME_LEN_MAX: usize = 998;

/// Collects the fields of a header.
#[derive(Debug, Default)]
pub struct Splitter {
    fields: Vec<Vec<u8>>,
    line: Vec<u8>,
    held: usize,
    body: Option<Vec<u8>>,
}

impl Splitter {
    /// Takes bytes from the front of `input`; `true` once the header has ended: the rest of `input` is then body.
    ///
    /// # Errors
    /// [`InjectError::HeaderTooLong`].
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<bool, InjectError> {
        while self.body.is_none() && !input.is_empty() {
            let lf = memchr::memchr(b'\n', input);
            let (piece, rest) = input.split_at_checked(lf.map_or(input.len(), |at| at.saturating_add(1))).unwrap_or_default();
            *input = rest;
            self.held = self.held.saturating_add(piece.len());
            if self.held > HEADER_LEN_MAX {
                return Err(InjectError::HeaderTooLong);
            }
            self.line.extend_from_slice(piece);
            if lf.is_some() || !self.may_be_header_line() {
                self.end_line(lf.is_some());
            }
        }
        Ok(self.body.is_some())
    }

    /// The fields, each with its folds and LF, and the bytes to send between them and the rest of the body: the empty line that
    /// ends the header, and a first body line that was looked at. At the end of input a last line without LF gets one.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Vec<u8>>, Vec<u8>) {
        if self.body.is_none() && !self.line.is_empty() {
            self.line.push(b'\n');
            self.end_line(true);
        }
        (self.fields, self.body.unwrap_or_default())
    }

    fn is_continuation(&self) -> bool {
        !self.fields.is_empty() && matches!(self.line.first(), Some(b' ' | b'\t'))
    }

    /// May the unfinished line still become part of the header? Decided early so that a body of one long line is never collected.
    fn may_be_header_line(&self) -> bool {
        let mut name = self.line.iter().take(NAME_LEN_MAX.saturating_add(1)).take_while(|b| **b != b':');
        self.is_continuation()
            || self.line.starts_with(b"From ")
            || is_field(&self.line)
            || (self.line.len() <= NAME_LEN_MAX
                && !self.line.contains(&b':')
                && name.all(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\x0c' | 33..=126)))
    }

    fn end_line(&mut self, is_whole: bool) {
        let line = std::mem::take(&mut self.line);
        if line == b"\n" {
            self.body = Some(line);
        } else if !self.fields.is_empty() && matches!(line.first(), Some(b' ' | b'\t')) {
            if let Some(field) = self.fields.last_mut() {
                field.extend_from_slice(&line);
            }
        } else if line.starts_with(b"From ") && is_whole {
            self.fields.push([b"MBOX-Line: ", line.as_slice()].concat());
        } else if is_whole && is_field(&line) {
            self.fields.push(line);
        } else {
            self.body = Some([b"\n", line.as_slice()].concat());
        }
    }
}

fn is_field(line: &[u8]) -> bool {
    field_name(line).is_some_and(|name| name.len() <= NAME_LEN_MAX)
}
