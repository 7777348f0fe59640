//! The accounts database, on accounts.sock: qmail-auth asks, qmail-authnet runs the statements that `accounts-sql` numbers.
//!
//! No text of a statement travels: its number does, and the values that are bound to it. An answer is one datagram; who may get more rows
//! than fit asks for fewer.

use crate::Malformed;
use crate::field::{Field, put_bytes, take_bytes};
use std::fmt;
use zeroize::{Zeroize as _, Zeroizing};

/// A value of a row, or bound to a statement. It may be a password's hash: it is not printed, and wiped after use.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    Null,
    Int(i64),
    Text(Zeroizing<String>),
    Bytes(Zeroizing<Vec<u8>>),
}

impl Value {
    /// Bytes that it takes in a datagram.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match self {
            Self::Null => 1,
            Self::Int(_) => 9,
            Self::Text(text) => text.len().saturating_add(5),
            Self::Bytes(bytes) => bytes.len().saturating_add(5),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "Null",
            Self::Int(_) => "Int",
            Self::Text(_) => "Text",
            Self::Bytes(_) => "Bytes",
        })
    }
}

impl Field for Value {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => 0u8.put(out),
            Self::Int(number) => {
                1u8.put(out);
                number.cast_unsigned().put(out);
            }
            Self::Text(text) => {
                2u8.put(out);
                put_bytes(text.as_bytes(), out);
            }
            Self::Bytes(bytes) => {
                3u8.put(out);
                put_bytes(bytes, out);
            }
        }
    }

    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::take(input)? {
            0 => Ok(Self::Null),
            1 => Ok(Self::Int(u64::take(input)?.cast_signed())),
            2 => match String::from_utf8(take_bytes(input)?.to_vec()) {
                Ok(text) => Ok(Self::Text(text.into())),
                Err(error) => {
                    error.into_bytes().zeroize();
                    Err(Malformed)
                }
            },
            3 => Ok(Self::Bytes(take_bytes(input)?.to_vec().into())),
            _ => Err(Malformed),
        }
    }
}

/// The values of one row.
pub type Row = Vec<Value>;

record! {
    /// A statement and the values that are bound to it.
    pub struct Call { statement: u16, values: Vec<Value> }
}

/// Statements of one [`Request::Read`].
pub const CALLS_MAX: usize = 80;

messages! {
    /// `id` comes back in the answer. A connection has one transaction at a time, and asks nothing of it before the last answer is there.
    pub enum Request {
        /// What are the rows of these statements, which change nothing?
        1 => Read { id: u64, calls: Vec<Call> },
        /// Begins a transaction. Those of all hosts come one after the other.
        2 => Begin { id: u64 },
        /// A statement in it.
        3 => Run { id: u64, call: Call },
        /// Its end; without `commit` nothing was changed.
        4 => End { id: u64, commit: bool },
        /// From now on say when anything changed; the answer is `Done`.
        5 => Follow { id: u64 },
    }
}

messages! {
    pub enum Answer {
        /// The rows of each statement of `Read`.
        1 => Rows { id: u64, results: Vec<Vec<Row>> },
        /// What was asked was done; `changed` rows.
        2 => Done { id: u64, rows: Vec<Row>, changed: u64 },
        /// The rows are more than fit: ask for each statement alone.
        3 => TooLong { id: u64 },
        /// Not now: the text says why, and what to do. A transaction has ended without a change.
        4 => Unavailable { id: u64, text: crate::field::Bytes },
        /// Whatever was read before may be otherwise now.
        5 => Changed {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Message as _;

    #[test]
    fn values_come_back_as_they_were_and_are_not_printed() {
        let row = vec![
            Value::Null,
            Value::Int(-1),
            Value::Int(i64::MIN),
            Value::Text("$6$\u{e4}".to_owned().into()),
            Value::Bytes(vec![0, 255].into()),
        ];
        let answer = Answer::Rows { id: 7, results: vec![vec![row.clone(), Vec::new()], Vec::new()] };
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer.clone()));
        assert!(!format!("{answer:?}").contains('$'));
        let request = Request::Run { id: 1, call: Call { statement: 3, values: row } };
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
}
