//! As much POP3 as the idle measurement needs: somebody logs in, looks and leaves.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

/// USER, PASS, STAT, QUIT.
///
/// # Errors
/// The server refuses.
pub(crate) fn visit(address: SocketAddrV4, user: &str, password: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address).context("POP3")?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    for command in ["", &format!("USER {user}\r\n"), &format!("PASS {password}\r\n"), "STAT\r\n", "QUIT\r\n"] {
        stream.write_all(command.as_bytes())?;
        let mut line = String::new();
        answers.read_line(&mut line)?;
        if !line.starts_with("+OK") {
            bail!("POP3 answers {:?} to {}", line, command.split(' ').next().unwrap_or_default().trim_end());
        }
    }
    Ok(())
}
