//! Comma-separated values (RFC 4180): quoted fields may hold commas, quotes (doubled) and line ends.

use std::io::{self, BufRead};

/// Longest record, in bytes.
const RECORD_LEN_MAX: usize = 128 * 1024;

/// Reads records one by one.
pub(crate) struct Reader<R> {
    input: R,
    line: u64,
}

/// One record and the line it begins at.
pub(crate) struct Record {
    pub(crate) line: u64,
    pub(crate) fields: Vec<Vec<u8>>,
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, line: 0 }
    }

    /// The next record that is not empty.
    ///
    /// # Errors
    /// Unreadable, longer than 128 KiB, or a quote that does not end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            let line = self.line.saturating_add(1);
            let Some(bytes) = self.record()? else { return Ok(None) };
            let fields = split(&bytes).ok_or_else(|| wrong(line, "a quote stands in the middle of a field"))?;
            if fields != [b""] {
                return Ok(Some(Record { line, fields }));
            }
        }
    }

    fn record(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut record = Vec::new();
        let first = self.line.saturating_add(1);
        loop {
            let room = RECORD_LEN_MAX.saturating_sub(record.len()) as u64;
            let read = io::Read::take(&mut self.input, room.saturating_add(1)).read_until(b'\n', &mut record)?;
            self.line = self.line.saturating_add(1);
            if record.len() > RECORD_LEN_MAX {
                return Err(wrong(first, "the record is longer than 128 KiB"));
            }
            let is_open = record.iter().filter(|b| **b == b'"').count() % 2 == 1;
            match (read, is_open) {
                (0, true) => return Err(wrong(first, "a quote does not end")),
                (0, false) if record.is_empty() => return Ok(None),
                (_, true) => {}
                (_, false) => break,
            }
        }
        if record.last() == Some(&b'\n') {
            record.pop();
        }
        if record.last() == Some(&b'\r') {
            record.pop();
        }
        Ok(Some(record))
    }
}

fn wrong(line: u64, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("line {line}: {what}"))
}

/// `None`: not well-formed.
fn split(record: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (mut fields, mut rest) = (Vec::new(), record);
    loop {
        let (field, after) = match rest.split_first() {
            Some((b'"', quoted)) => unquote(quoted)?,
            _ => {
                let end = rest.iter().position(|b| *b == b',').unwrap_or(rest.len());
                let (field, after) = rest.split_at_checked(end)?;
                if field.contains(&b'"') {
                    return None;
                }
                (field.to_vec(), after)
            }
        };
        fields.push(field);
        match after.split_first() {
            None => return Some(fields),
            Some((b',', next)) => rest = next,
            Some(_) => return None,
        }
    }
}

/// A field up to its closing quote, and what follows.
fn unquote(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut field = Vec::new();
    loop {
        let end = rest.iter().position(|b| *b == b'"')?;
        let (text, after) = rest.split_at_checked(end)?;
        field.extend_from_slice(text);
        rest = after.get(1..)?;
        match rest.split_first() {
            Some((b'"', more)) => {
                field.push(b'"');
                rest = more;
            }
            _ => return Some((field, rest)),
        }
    }
}

/// A record as a line; [`Reader`] gives the same fields back.
pub(crate) fn line(fields: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, field) in fields.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        let is_plain = !field.iter().any(|b| matches!(b, b',' | b'"' | b'\r' | b'\n'));
        if is_plain {
            out.extend_from_slice(field);
            continue;
        }
        out.push(b'"');
        for &b in field {
            out.extend_from_slice(if b == b'"' { b"\"\"" } else { std::slice::from_ref(&b) });
        }
        out.push(b'"');
    }
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> io::Result<Vec<(u64, Vec<String>)>> {
        let (mut reader, mut out) = (Reader::new(text), Vec::new());
        while let Some(record) = reader.next()? {
            let fields = record.fields.into_iter().map(|field| String::from_utf8(field).unwrap()).collect();
            out.push((record.line, fields));
        }
        Ok(out)
    }

    #[test]
    fn records_of_all_kinds() {
        let text = b"a,b,\r\n\n\"x,\"\"y\"\"\nz\",2\n,\nlast";
        let expected = [(1, vec!["a", "b", ""]), (3, vec!["x,\"y\"\nz", "2"]), (5, vec!["", ""]), (6, vec!["last"])];
        let got = read(text).unwrap();
        assert_eq!(got, expected.map(|(line, fields)| (line, fields.into_iter().map(str::to_owned).collect::<Vec<_>>())));
    }

    #[test]
    fn what_is_not_well_formed_names_its_line() {
        for (text, line) in [(&b"a\n\"b"[..], "line 2"), (b"a\"b\"\n", "line 1"), (b"\"a\"b,c\n", "line 1")] {
            assert!(read(text).unwrap_err().to_string().contains(line), "{}", text.escape_ascii());
        }
        assert!(read(&vec![b'x'; RECORD_LEN_MAX + 1]).is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let fields: Vec<Vec<u8>> = [&b""[..], b"a", b"a,b", b"\"", b"\r\n", b"\xff", b" "].map(<[u8]>::to_vec).to_vec();
        let mut reader = Reader::new(&line(&fields)[..]).next().unwrap().unwrap();
        assert_eq!(std::mem::take(&mut reader.fields), fields);
    }
}
