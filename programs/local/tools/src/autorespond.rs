//! autorespond: `autorespond TIME COUNT MESSAGE DIR [FLAG [FROM]]` answers a message with the text in MESSAGE, and each sender at most
//! COUNT times in TIME seconds; DIR remembers whom, a file for each answer (`A<pid>.<time>`, as the old program has it).
//!
//! MESSAGE goes behind `Subject: Re: …` in the header of the answer, so it begins with fields or an empty line. FLAG 0 appends
//! nothing, 1 (the default) the text of what came. FROM `$` (the default) is EXT@HOST, `+` the null sender.
//! Never answered (RFC 3834 §2): bounces, mailing lists, bulk mail, other programs' answers; its own answers that come back bounce (100).

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use message::header::fields;
use tool::queue::Queue;
use tool::{End, Name, TEMPORARY, input};
use wire::civil::Civil;

const ME: Name = Name("autorespond");
/// Longest MESSAGE, in bytes.
const MESSAGE_LEN_MAX: u64 = 1 << 20;
/// As much of a message is quoted, in bytes.
const QUOTED_LEN_MAX: u64 = 256 << 10;
/// Entries of DIR that are looked at; beyond that nobody is answered.
const ENTRIES_MAX: usize = 100_000;

const USAGE: &str = "autorespond: usage: autorespond time count message dir [ flag from ]";

/// The command line and the environment.
struct Order {
    window_s: u64,
    count_max: u64,
    text: Vec<u8>,
    dir: OsString,
    quotes: bool,
    from: Vec<u8>,
    sender: Vec<u8>,
}

/// The program: 0 with and without an answer.
///
/// # Errors
/// 111 for what may work later, wrong arguments too; 100 for an own answer that came back.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    let order = order(args)?;
    let mut stdin = input::stdin().map_err(|error| failed(format!("unable to read message: {}", sys::errno::text(&error))))?;
    let mut head =
        input::head(&mut stdin).map_err(|error| failed(format!("unable to read message: {}", sys::errno::text(&error))))?;
    if let Some(end) = unanswered(&order.sender, &head) {
        return Err(end);
    }
    let now_s = sys::clock::unix_s();
    let entry = Entry::make(&order, now_s)?;
    if entry.count(&order, now_s) > order.count_max {
        return Err(said(0, &[b"too many received from [", &order.sender[..], b"]"].concat()));
    }
    if order.quotes {
        // What cannot be read is not quoted.
        let _ = (&stdin).take(QUOTED_LEN_MAX).read_to_end(&mut head);
    }
    let answer = answer(&order, &head, now_s);
    let sent = Queue::open(ME).map_err(|end| (end, true)).and_then(|mut queue| {
        queue.put(&answer);
        queue.close(&order.from, &[&order.sender]).map_err(|(_, refusal)| (failed(refusal.text), !refusal.is_permanent))
    });
    match sent {
        Ok(()) => Ok(0),
        // An answer that nobody takes is no reason to bounce what it answers.
        Err((end, false)) => Err(End { code: 0, ..end }),
        Err((end, true)) => {
            entry.forget(&order);
            Err(end)
        }
    }
}

fn said(code: u8, text: &[u8]) -> End {
    End::with(code, [b"AUTORESPOND: ", text].concat())
}

fn failed(text: impl AsRef<[u8]>) -> End {
    said(TEMPORARY, text.as_ref())
}

fn order(args: &[OsString]) -> Result<Order, End> {
    let ([time, count, message, dir], more) = args.split_first_chunk().ok_or_else(usage)?;
    if more.len() > 2 {
        return Err(usage());
    }
    let text = File::open(message).and_then(|file| input::all(&file, MESSAGE_LEN_MAX));
    let text = text.map_err(|_| failed("Failed to open message file."))?;
    let variable = |name: &str| input::variable(name).unwrap_or_default();
    let from = match more.get(1).map_or(&b"$"[..], |from| from.as_bytes()) {
        [b'+', ..] => Vec::new(),
        [b'$', ..] => [&variable("EXT")[..], b"@", &variable("HOST")].concat(),
        from => from.to_vec(),
    };
    let quotes = more.first().is_none_or(|flag| number(flag) == 1);
    let order = Order {
        window_s: number(time),
        count_max: number(count),
        text,
        dir: dir.clone(),
        quotes,
        from,
        sender: variable("SENDER"),
    };
    Ok(order)
}

fn usage() -> End {
    End::with(TEMPORARY, USAGE)
}

/// Leading digits; nothing is 0.
fn number(text: &OsString) -> u64 {
    let digits = text.as_bytes().iter().take_while(|b| b.is_ascii_digit());
    digits.fold(0, |sum: u64, digit| sum.saturating_mul(10).saturating_add(u64::from(digit.saturating_sub(b'0'))))
}

/// Why this message gets no answer.
fn unanswered(sender: &[u8], head: &[u8]) -> Option<End> {
    let is_daemon = sender.get(..13).is_some_and(|start| start.eq_ignore_ascii_case(b"mailer-daemon"));
    if sender.is_empty() || is_daemon || !sender.contains(&b'@') || sender == b"#@[]" {
        return Some(said(0, &[b" Stopping on mail from [", sender, b"]."].concat()));
    }
    let has = |name: &[u8], words: &[&[u8]]| {
        fields(head).filter(|field| field.is(name)).any(|field| {
            let value = field.value().to_ascii_lowercase();
            words.is_empty() || words.iter().any(|word| value.windows(word.len()).any(|part| part == *word))
        })
    };
    if has(b"mailing-list", &[]) || has(b"list-id", &[]) || has(b"list-unsubscribe", &[]) {
        return Some(said(0, b"This looks like it's from a mailing list, I will ignore it."));
    }
    if has(b"delivered-to", &[b"autoresponder"]) {
        return Some(said(tool::PERMANENT, b"This message is looping...it has my Delivered-To header."));
    }
    let is_automatic =
        fields(head).any(|field| field.is(b"auto-submitted") && !field.value().to_ascii_lowercase().starts_with(b"no"));
    (is_automatic || has(b"precedence", &[b"junk", b"bulk", b"list"])).then(|| said(0, b"Junk mail received."))
}

/// A file in DIR: one answer to one sender.
struct Entry(String);

impl Entry {
    fn make(order: &Order, now_s: u64) -> Result<Self, End> {
        let dir = Path::new(&order.dir);
        if !dir.is_dir() {
            return Err(failed("Failed to change into directory."));
        }
        let name = format!("A{}.{now_s}", std::process::id());
        let written = File::options().write(true).create(true).truncate(true).open(dir.join(&name));
        let written = written.and_then(|mut file| file.write_all(&order.sender));
        match written {
            Ok(()) => Ok(Self(name)),
            Err(_) => Err(failed([b"Unable to create file for [", &order.sender[..], b"]."].concat())),
        }
    }

    fn forget(&self, order: &Order) {
        let _ = std::fs::remove_file(Path::new(&order.dir).join(&self.0));
    }

    /// How many answers within the window, this one counted, went to this sender. Older entries are removed.
    fn count(&self, order: &Order, now_s: u64) -> u64 {
        let mut count = 0u64;
        let entries = std::fs::read_dir(Path::new(&order.dir)).into_iter().flatten().flatten();
        for (at, entry) in entries.enumerate() {
            if at >= ENTRIES_MAX {
                return u64::MAX;
            }
            let name = entry.file_name();
            let Some(time) = time_of(name.as_bytes()) else { continue };
            if time < now_s.saturating_sub(order.window_s) {
                let _ = std::fs::remove_file(entry.path());
            } else if holds(&entry.path(), &order.sender) {
                count = count.saturating_add(1);
            }
        }
        count
    }
}

/// The time in `A<pid>.<time>`.
fn time_of(name: &[u8]) -> Option<u64> {
    let rest = name.strip_prefix(b"A")?;
    let dot = rest.iter().position(|b| *b == b'.')?;
    std::str::from_utf8(rest.get(dot.checked_add(1)?..)?).ok()?.parse().ok()
}

fn holds(path: &Path, sender: &[u8]) -> bool {
    let text = File::open(path).and_then(|file| input::all(&file, 2000));
    text.is_ok_and(|text| text.eq_ignore_ascii_case(sender))
}

fn answer(order: &Order, head: &[u8], now_s: u64) -> Vec<u8> {
    let local = input::variable("LOCAL").unwrap_or_default();
    let one_line = |text: &[u8]| -> Vec<u8> { text.iter().filter(|b| !matches!(b, b'\n' | b'\r')).copied().collect() };
    let subject = fields(head).find(|field| field.is(b"subject")).map(|field| field.value()).unwrap_or_default();
    let date = Civil::from_unix(now_s).rfc5322();
    let id = format!("{now_s}.{}.autorespond@", std::process::id());
    let mut out = [&b"Date: "[..], date.as_bytes(), b"\nMessage-ID: <", id.as_bytes(), &one_line(&local), b">\n"].concat();
    out.extend_from_slice(b"Delivered-To: Autoresponder\nAuto-Submitted: auto-replied\nTo: ");
    for part in [&one_line(&order.sender)[..], b"\nFrom: ", &one_line(&order.from), b"\nSubject: Re: ", &subject, b"\n"] {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(&order.text);
    out.push(b'\n');
    if order.quotes {
        out.extend_from_slice(b"-------- Original Message --------\n\n");
        for line in quoted_part(head).split_inclusive(|b| *b == b'\n') {
            out.extend_from_slice(b"> ");
            out.extend_from_slice(line);
        }
    }
    out.extend_from_slice(b"\n\n");
    out
}

/// What is quoted of a message whose beginning is `head`: its text, of a multipart one the first part that is text/plain.
fn quoted_part(head: &[u8]) -> &[u8] {
    let body = after_header(head);
    let boundary = fields(head).find(|field| field.is(b"content-type")).and_then(|field| boundary(&field.value()));
    let Some(boundary) = boundary else { return body };
    let mark = [b"--", &boundary[..]].concat();
    let mut rest = body;
    while let Some(at) = find(rest, &mark) {
        let part = rest.get(at..).unwrap_or_default();
        let part = part.iter().position(|b| *b == b'\n').and_then(|lf| part.get(lf.checked_add(1)?..)).unwrap_or_default();
        let end = find(part, &mark).unwrap_or(part.len());
        let one = part.get(..end).unwrap_or_default();
        let is_text = |value: Vec<u8>| value.to_ascii_lowercase().starts_with(b"text/plain");
        if fields(one).any(|field| field.is(b"content-type") && is_text(field.value())) {
            return after_header(one);
        }
        rest = part;
    }
    &[]
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len().max(1)).position(|part| part == wanted)
}

fn after_header(text: &[u8]) -> &[u8] {
    let len = fields(text).fold(0usize, |len, field| len.saturating_add(field.raw().len()));
    let rest = text.get(len..).unwrap_or_default();
    rest.strip_prefix(b"\n").unwrap_or(rest)
}

/// The boundary of a multipart type, without its quotes.
fn boundary(value: &[u8]) -> Option<Vec<u8>> {
    let at = find(&value.to_ascii_lowercase(), b"boundary=")?;
    let rest = value.get(at.checked_add(9)?..)?;
    let boundary = match rest.strip_prefix(b"\"") {
        Some(quoted) => quoted.split(|b| *b == b'"').next()?,
        None => rest.split(|b| matches!(b, b';' | b' ' | b'\t')).next()?,
    };
    (!boundary.is_empty()).then(|| boundary.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_part_is_quoted() {
        let head = b"Content-Type: multipart/alternative; boundary=\"b\"\n\npre\n--b\nContent-Type: text/html\n\n<p>\n--b\nContent-Type: Text/Plain\n\nhi\n--b--\n";
        assert_eq!(quoted_part(head), b"hi\n");
        assert_eq!(quoted_part(b"A: b\n\nall\n"), b"all\n");
        assert_eq!(quoted_part(b"Content-Type: x; boundary=b\n\nnone\n"), b"");
        assert_eq!(boundary(b"multipart/mixed; boundary=abc; x=y"), Some(b"abc".to_vec()));
        assert_eq!(boundary(b"multipart/mixed; boundary="), None);
    }

    #[test]
    fn entries_have_a_time() {
        assert_eq!(time_of(b"A12.345"), Some(345));
        for name in [&b"tmp12.345"[..], b"A12", b"A12.", b"A1.x", b""] {
            assert_eq!(time_of(name), None);
        }
    }
}
