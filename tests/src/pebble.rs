//! A real certificate authority that speaks ACME: Debian's pebble, on ports of 127.0.0.1, with a name server of the test's own.

use crate::slapd::{Certificate, free_port};
use crate::tools::{self, Tool};
use crate::{facts, wait_for};
use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The name of the authority; the test's name server must know it.
pub const HOST: &str = "ca.example.test";

/// What is asked of it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it looks for answers to both kinds of challenges.
    pub challenge_port: u16,
    pub dns: SocketAddr,
    /// Good nonces that it calls bad, in percent.
    pub bad_nonces: u32,
    /// How long its certificates last.
    pub validity_s: u32,
    /// Keys of its customers (name, base64url); with any, no one else gets an account.
    pub customers: Vec<(&'static str, &'static str)>,
}

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Pebble {
    tool: Tool,
    dir: PathBuf,
    options: Options,
    pub port: u16,
    management_port: u16,
    server: Option<Child>,
}

impl Pebble {
    /// Starts one below `dir`, with this certificate for [`HOST`]. `None`, noted as skipped, where there is no pebble and this run is not
    /// root's.
    ///
    /// # Errors
    /// It cannot be got, or does not start.
    pub fn start(test: &str, dir: &Path, certificate: &Certificate, options: Options) -> Result<Option<Self>> {
        let Some(tool) = tools::get(test, "pebble", "usr/bin/pebble")? else { return Ok(None) };
        let dir = dir.join("pebble");
        std::fs::create_dir_all(&dir)?;
        let (port, management_port) = (free_port()?, free_port()?);
        let mut pebble = Self { tool, dir, options, port, management_port, server: None };
        std::fs::write(pebble.dir.join("config.json"), pebble.config(certificate).to_string())?;
        pebble.run()?;
        Ok(Some(pebble))
    }

    /// Starts the server. It forgets all it knew, its own keys, too.
    ///
    /// # Errors
    /// It does not listen.
    pub fn run(&mut self) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log"))?;
        let mut command = self.tool.command();
        command.arg("-config").arg(self.dir.join("config.json")).args(["-dnsserver", &self.options.dns.to_string()]);
        command.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", self.options.bad_nonces.to_string());
        self.server = Some(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
        wait_for("pebble to listen", || TcpStream::connect(("127.0.0.1", self.port)).ok())
            .with_context(|| std::fs::read_to_string(self.dir.join("log")).unwrap_or_default())?;
        Ok(())
    }

    /// Kills it; [`Pebble::run`] starts it again.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            facts::signal(server.id(), Signal::KILL);
            let _ = server.wait();
        }
    }

    /// Stops it in place, or lets it go on: it accepts connections (the kernel does) and answers nothing.
    pub fn freeze(&self, frozen: bool) {
        if let Some(server) = &self.server {
            facts::signal(server.id(), if frozen { Signal::STOP } else { Signal::CONT });
        }
    }

    /// The URL for control/acme.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("https://{HOST}:{}/dir", self.port)
    }

    /// The certificate of the authority itself, a PEM file.
    ///
    /// # Errors
    /// It does not give it.
    pub fn root(&self) -> Result<PathBuf> {
        let file = self.dir.join("root.pem");
        let mut client = Command::new("openssl");
        client.args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{}", self.management_port)]).stderr(Stdio::null());
        let answer = crate::instance::feed(
            &mut client,
            format!("GET /roots/0 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let answer = String::from_utf8(answer.stdout)?;
        let at = answer.find("-----BEGIN").with_context(|| answer.clone())?;
        std::fs::write(&file, answer.get(at..).unwrap_or_default())?;
        Ok(file)
    }

    fn config(&self, certificate: &Certificate) -> Value {
        let options = &self.options;
        let customers: serde_json::Map<String, Value> =
            options.customers.iter().map(|(name, key)| ((*name).to_owned(), (*key).into())).collect();
        json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{}", self.management_port),
            "certificate": certificate.chain,
            "privateKey": certificate.key,
            "httpPort": options.challenge_port,
            "tlsPort": options.challenge_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": !customers.is_empty(),
            "externalAccountMACKeys": customers,
            "domainBlocklist": ["blocked.example.test"],
            "retryAfter": { "authz": 1, "order": 1 },
            "certificateValidityPeriod": options.validity_s,
        } })
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("pebble: {}", std::fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
        self.kill();
    }
}
