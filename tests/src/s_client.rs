//! `openssl s_client` as the client.

use crate::Instance;
use crate::instance::ME;
use anyhow::{Context as _, Result};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// `openssl s_client` to a listener, in the clear before `starttls` if that names a protocol.
#[must_use]
pub fn s_client(instance: &Instance, port: u16, starttls: Option<&str>) -> Command {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &format!("127.0.0.1:{}", instance.port(port)), "-servername", ME]);
    command.args(starttls.into_iter().flat_map(|protocol| ["-starttls", protocol]));
    command
}

/// A session inside TLS; the client is ended with it.
#[derive(Debug)]
pub struct Inside {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Inside {
    /// # Errors
    /// There is no openssl.
    pub fn open(instance: &Instance, port: u16, starttls: Option<&str>, args: &[&str]) -> Result<Self> {
        let mut command = s_client(instance, port, starttls);
        command.arg("-quiet").args(args);
        Self::of(command)
    }

    /// As [`Inside::open`], by a command that may tell of the connection, too.
    ///
    /// # Errors
    /// There is no openssl.
    pub fn of(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let (stdin, stdout) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        Ok(Self { child, stdin, stdout: BufReader::new(stdout) })
    }

    /// # Errors
    /// The client has ended.
    pub fn say(&mut self, text: &str) -> Result<()> {
        self.stdin.write_all(text.as_bytes())?;
        Ok(self.stdin.flush()?)
    }

    /// The next line with its end; empty where the server has closed.
    ///
    /// # Errors
    /// What comes is no text.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line)
    }

    /// A command and its reply of SMTP, all lines of it.
    ///
    /// # Errors
    /// As [`Inside::say`] and [`Inside::line`], or the server has closed.
    pub fn smtp(&mut self, command: &str) -> Result<String> {
        self.say(&format!("{command}\r\n"))?;
        let mut reply = String::new();
        loop {
            let line = self.line()?;
            anyhow::ensure!(!line.is_empty(), "closed behind {command}: {reply}");
            reply += &line;
            if line.as_bytes().get(3) == Some(&b' ') {
                return Ok(reply);
            }
        }
    }

    /// All that comes until the server closes.
    ///
    /// # Errors
    /// What comes is no text.
    pub fn rest(mut self) -> Result<String> {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest)?;
        Ok(rest)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
