//! One answer of a server of QMTP or QMQP: a letter and a text.

use crate::netstring::{Fault, Piece, Reader};

/// Longest answer that is waited for, in bytes; serialqmtp has the same.
pub const ANSWER_LEN_MAX: u64 = 200_000_000;
/// Bytes of its text that are kept.
pub const TEXT_KEPT_MAX: usize = 4096;

/// What the server says of a recipient, or of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Letter {
    /// `K`: it has taken responsibility.
    Accepted,
    /// `Z`: not now.
    Temporary,
    /// `D`: never.
    Permanent,
}

/// An answer that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub letter: Letter,
    /// At most [`TEXT_KEPT_MAX`] bytes, as they came.
    pub text: Vec<u8>,
}

/// Reads one answer after the other, from any chunks.
#[derive(Debug, Default)]
pub struct Answers {
    reader: Reader,
    letter: Option<Letter>,
    text: Vec<u8>,
}

impl Answers {
    /// Between two answers?
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.reader.is_between()
    }

    /// The letter of an answer that has begun and is not whole yet.
    #[must_use]
    pub fn letter(&self) -> Option<Letter> {
        self.letter
    }

    /// Takes the next answer off `input`; `None`: it needs more.
    ///
    /// # Errors
    /// This is no answer; the stream cannot go on.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Answer>, Fault> {
        while let Some(piece) = self.reader.next(input, ANSWER_LEN_MAX)? {
            match piece {
                Piece::Start(_) => {}
                Piece::Content(bytes) => self.content(bytes)?,
                Piece::End => {
                    let letter = self.letter.take().ok_or(Fault::Malformed)?;
                    return Ok(Some(Answer { letter, text: std::mem::take(&mut self.text) }));
                }
            }
        }
        Ok(None)
    }

    fn content(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        if self.letter.is_none() {
            self.letter = Some(match bytes.first() {
                Some(b'K') => Letter::Accepted,
                Some(b'Z') => Letter::Temporary,
                Some(b'D') => Letter::Permanent,
                _ => return Err(Fault::Malformed),
            });
            bytes = bytes.get(1..).unwrap_or_default();
        }
        let room = TEXT_KEPT_MAX.saturating_sub(self.text.len());
        self.text.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_whole_for_every_cut() {
        let wire = b"12:Kok 1 qp 234,1:Z,4:Dno!,";
        let expected = [(Letter::Accepted, &b"ok 1 qp 234"[..]), (Letter::Temporary, b""), (Letter::Permanent, b"no!")];
        for cut in 0..=wire.len() {
            let (mut answers, mut got) = (Answers::default(), Vec::new());
            for mut part in [&wire[..cut], &wire[cut..]] {
                while let Some(answer) = answers.next(&mut part).unwrap() {
                    got.push((answer.letter, answer.text));
                }
            }
            assert!(answers.is_between());
            assert_eq!(got, expected.map(|(letter, text)| (letter, text.to_vec())));
        }
        let long = [&b"5001:K"[..], &[b'x'; 5000], b","].concat();
        assert_eq!(Answers::default().next(&mut &long[..]).unwrap().unwrap().text.len(), TEXT_KEPT_MAX);
        for bad in [&b"0:,"[..], b"1:X,", b"2:k", b"a", b"200000001"] {
            assert!(Answers::default().next(&mut &bad[..]).is_err(), "{}", bad.escape_ascii());
        }
    }
}
