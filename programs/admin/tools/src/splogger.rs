//! splogger(8): `splogger [TAG [FACILITY]]` sends the lines of its standard input to syslog, each behind the time it came.
//!
//! `alert:` and `warning:` at the beginning of a line make its priority; all others are information. Long lines go in pieces whose
//! time has a `+` behind it. Bytes that are not printable are `?`. The socket is `dev/log` below the root.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use tool::{End, Name, TEMPORARY, input};
use wire::civil::Civil;

const ME: Name = Name("splogger");
/// Longest piece of a line, in bytes.
const PIECE_LEN_MAX: usize = 799;
/// LOG_MAIL.
const MAIL: u64 = 2;
const ALERT: u64 = 1;
const WARNING: u64 = 4;
const INFO: u64 = 6;

/// The program; it ends with its input.
///
/// # Errors
/// It cannot be read; temporary.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    let tag = args.first().map_or(&b"splogger"[..], |tag| tag.as_bytes()).to_vec();
    let facility = args.get(1).map_or(MAIL, |text| number(text.as_bytes())) & 0x7f;
    let socket = crate::root(ME)?.path().join("dev/log");
    let mut log = Log { tag, facility, socket, connection: None, line: Line::default() };
    let mut stdin = input::stdin().map_err(|_| End::silent(TEMPORARY))?;
    let mut piece = vec![0; 32 * 1024];
    loop {
        match stdin.read(&mut piece) {
            Ok(0) => return Ok(0),
            Ok(len) => piece.get(..len).unwrap_or_default().iter().for_each(|byte| log.take(*byte)),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return Err(End::silent(TEMPORARY)),
        }
    }
}

fn number(text: &[u8]) -> u64 {
    let digits = text.iter().take_while(|b| b.is_ascii_digit());
    digits.fold(0, |sum: u64, digit| sum.saturating_mul(10).saturating_add(u64::from(digit.saturating_sub(b'0'))))
}

/// The line so far.
#[derive(Default)]
struct Line {
    text: Vec<u8>,
    /// Time and priority of a line whose first piece has gone.
    begun: Option<(String, u64)>,
}

struct Log {
    tag: Vec<u8>,
    facility: u64,
    socket: PathBuf,
    connection: Option<UnixDatagram>,
    line: Line,
}

impl Log {
    fn take(&mut self, byte: u8) {
        if byte == b'\n' {
            self.flush();
            self.line = Line::default();
            return;
        }
        if self.line.text.len() >= PIECE_LEN_MAX {
            self.flush();
        }
        self.line.text.push(if (32..=126).contains(&byte) { byte } else { b'?' });
    }

    fn flush(&mut self) {
        if self.line.text.is_empty() {
            return;
        }
        let text = std::mem::take(&mut self.line.text);
        let now = sys::clock::unix();
        let is_more = self.line.begun.is_some();
        let begin = || (format!("{}.{:06}", now.as_secs(), now.subsec_micros()), priority(&text));
        let (stamp, priority) = self.line.begun.get_or_insert_with(begin).clone();
        let datagram = self.datagram(now.as_secs(), priority, &[stamp.as_bytes(), if is_more { b"+" } else { b" " }, &text]);
        self.send(&datagram);
    }

    /// `<PRIORITY>Mmm dd hh:mm:ss TAG: TEXT` in local time, as syslog(3) has it (RFC 3164 §4.1).
    fn datagram(&self, now_s: u64, priority: u64, text: &[&[u8]]) -> Vec<u8> {
        let Civil { day, hour, minute, second, .. } = local(now_s);
        let month = local(now_s).month_name();
        let head = format!("<{}>{month} {day:>2} {hour:02}:{minute:02}:{second:02} ", self.facility * 8 + priority);
        [head.as_bytes(), &self.tag, b": ", &text.concat()].concat()
    }

    /// Once more over a new connection if syslog was started anew; what it does not take is lost, as with syslog(3).
    fn send(&mut self, datagram: &[u8]) {
        for _ in 0..2 {
            if self.connection.is_none() {
                self.connection = UnixDatagram::unbound().and_then(|new| new.connect(&self.socket).map(|()| new)).ok();
            }
            if self.connection.as_ref().is_some_and(|connection| connection.send(datagram).is_ok()) {
                return;
            }
            self.connection = None;
        }
    }
}

fn local(now_s: u64) -> Civil {
    Civil::from_unix(now_s.saturating_add_signed(sys::clock::utc_offset_s(now_s)))
}

fn priority(text: &[u8]) -> u64 {
    if text.starts_with(b"alert:") {
        ALERT
    } else if text.starts_with(b"warning:") {
        WARNING
    } else {
        INFO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_datagrams() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("log");
        let syslog = UnixDatagram::bind(&socket).unwrap();
        syslog.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let mut log = Log { tag: b"t".to_vec(), facility: 2, socket, connection: None, line: Line::default() };
        let text = [&b"status: ok\x1b\n\nwarning: w\nalert: a\n"[..], &[b'x'; 1000], b"\n"].concat();
        text.iter().for_each(|byte| log.take(*byte));
        let mut got = Vec::new();
        for _ in 0..5 {
            let mut datagram = vec![0; 4096];
            let len = syslog.recv(&mut datagram).unwrap();
            let text = String::from_utf8(datagram[..len].to_vec()).unwrap();
            let (head, rest) = text.split_once("t: ").unwrap();
            let (stamp, rest) = rest.split_at(rest.find(['+', ' ']).unwrap());
            assert!(stamp.split_once('.').unwrap().1.len() == 6, "{text}");
            got.push(format!("{} {} {}", head.split('>').next().unwrap(), rest.len(), rest.split_at(rest.len().min(12)).0));
        }
        assert_eq!(
            got,
            ["<22 12  status: ok?", "<20 11  warning: w", "<17 9  alert: a", "<22 800  xxxxxxxxxxx", "<22 202 +xxxxxxxxxxx"]
        );
    }
}
