//! Just enough SMTP and POP3 to send a letter and to fetch it, over plain sockets.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A session of a line protocol.
struct Session {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Session {
    fn open(port: u16) -> Result<Self> {
        let writer = TcpStream::connect(("127.0.0.1", port)).with_context(|| format!("port {port}"))?;
        writer.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { reader: BufReader::new(writer.try_clone()?), writer })
    }

    fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(line.to_vec()),
            None => bail!("the connection ended"),
        }
    }

    fn say(&mut self, text: &str) -> Result<()> {
        Ok(self.writer.write_all(text.as_bytes())?)
    }

    /// The last line of an SMTP reply, which must start with `code`.
    fn reply(&mut self, code: &str) -> Result<String> {
        loop {
            let line = String::from_utf8_lossy(&self.line()?).into_owned();
            if !line.starts_with(code) {
                bail!("expected {code}, got {line}");
            }
            if line.get(3..4) != Some("-") {
                return Ok(line);
            }
        }
    }

    fn pop3_ok(&mut self, command: &str) -> Result<String> {
        self.say(&format!("{command}\r\n"))?;
        let line = String::from_utf8_lossy(&self.line()?).into_owned();
        if line.starts_with("+OK") { Ok(line) } else { bail!("{}: {line}", command.split(' ').next().unwrap_or_default()) }
    }
}

/// Sends a letter; returns the server's last word.
pub(crate) fn send(port: u16, from: &str, to: &str, letter: &str) -> Result<String> {
    let mut smtp = Session::open(port)?;
    smtp.reply("220")?;
    for (command, code) in [
        ("EHLO client.example.test".to_owned(), "250"),
        (format!("MAIL FROM:<{from}>"), "250"),
        (format!("RCPT TO:<{to}>"), "250"),
        ("DATA".to_owned(), "354"),
    ] {
        smtp.say(&format!("{command}\r\n"))?;
        smtp.reply(code).with_context(|| command)?;
    }
    let stuffed: String =
        letter.lines().map(|line| if line.starts_with('.') { format!(".{line}\r\n") } else { format!("{line}\r\n") }).collect();
    smtp.say(&format!("{stuffed}.\r\n"))?;
    let accepted = smtp.reply("250")?;
    smtp.say("QUIT\r\n")?;
    smtp.reply("221")?;
    Ok(accepted)
}

/// The bytes of the newest message in a mailbox, or `None` while it is empty. Leaves it there.
pub(crate) fn fetch(port: u16, user: &str, password: &str) -> Result<Option<Vec<u8>>> {
    let mut pop3 = Session::open(port)?;
    pop3.line()?;
    pop3.pop3_ok(&format!("USER {user}"))?;
    pop3.pop3_ok(&format!("PASS {password}"))?;
    let stat = pop3.pop3_ok("STAT")?;
    let count: u32 = stat.split(' ').nth(1).and_then(|n| n.parse().ok()).context("STAT")?;
    let mut letter = None;
    if count > 0 {
        pop3.pop3_ok(&format!("RETR {count}"))?;
        let mut bytes = Vec::new();
        loop {
            let line = pop3.line()?;
            if line == b"." {
                break;
            }
            bytes.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
            bytes.push(b'\n');
        }
        letter = Some(bytes);
    }
    pop3.pop3_ok("QUIT")?;
    Ok(letter)
}
