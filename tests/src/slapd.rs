//! A real slapd with a directory of the test's own, on ports of 127.0.0.1 and a Unix socket; nothing of the system's is touched.

use crate::tools::{self, Tool};
use crate::{facts, wait_for};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// Where everything is.
pub const BASE: &str = "dc=example,dc=test";
/// The name that may search, and its password.
pub const SEARCHER: (&str, &str) = ("cn=mail,dc=example,dc=test", "search-secret");

/// A certificate and its key, PEM files.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Slapd {
    tool: Tool,
    dir: PathBuf,
    pub port: u16,
    /// For `ldaps`, if it has a certificate.
    pub tls_port: u16,
    has_tls: bool,
    server: Option<Child>,
}

impl Slapd {
    /// Starts one below `dir` with these people (LDIF). `None`, noted as skipped, where there is no slapd and this run is not root's.
    ///
    /// # Errors
    /// It cannot be got, or does not start.
    pub fn start(test: &str, dir: &Path, people: &str, certificate: Option<&Certificate>) -> Result<Option<Self>> {
        let Some(tool) = tools::get(test, "slapd", "usr/sbin/slapd")? else { return Ok(None) };
        let dir = dir.join("slapd");
        std::fs::create_dir_all(dir.join("db"))?;
        let mut slapd = Self { tool, dir, port: 0, tls_port: 0, has_tls: certificate.is_some(), server: None };
        std::fs::write(slapd.dir.join("slapd.conf"), slapd.config(certificate)?)?;
        std::fs::write(slapd.dir.join("people.ldif"), entries(people))?;
        let mut load = slapd.tool.command();
        load.args(["-T", "add", "-f"]).arg(slapd.dir.join("slapd.conf")).arg("-l").arg(slapd.dir.join("people.ldif"));
        tools::must(&mut load)?;
        on_free_ports(|| {
            (slapd.port, slapd.tls_port) = (free_port()?, free_port()?);
            slapd.run()
        })?;
        Ok(Some(slapd))
    }

    /// Starts the server, with the directory that is there.
    ///
    /// # Errors
    /// It does not listen.
    pub fn run(&mut self) -> Result<()> {
        let mut urls = vec![format!("ldap://127.0.0.1:{}/", self.port)];
        if self.has_tls {
            urls.push(format!("ldaps://127.0.0.1:{}/", self.tls_port));
        }
        // The last of its listeners: who reaches it knows that the ports are its own.
        urls.push(format!("ldapi://{}", self.socket().replace('/', "%2F")));
        let log = std::fs::File::create(self.dir.join("log"))?;
        // With a debug level, if only 0, it stays in the foreground.
        let mut command = self.tool.command();
        command.arg("-f").arg(self.dir.join("slapd.conf")).args(["-d", "0", "-h", &urls.join(" ")]);
        let mut server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        let socket = self.socket();
        let listens = || match server.try_wait() {
            Ok(None) => UnixStream::connect(&socket).ok().map(|_| true),
            _ => Some(false),
        };
        let listens = wait_for("slapd to listen", listens);
        self.server = Some(server);
        let log = || std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        if listens.with_context(log)? { Ok(()) } else { bail!("slapd ended: {}", log()) }
    }

    /// Kills it; [`Slapd::run`] starts it again.
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

    /// The path of its Unix socket.
    #[must_use]
    pub fn socket(&self) -> String {
        self.dir.join("ldapi").display().to_string()
    }

    fn config(&self, certificate: Option<&Certificate>) -> Result<String> {
        let below = |path: &str| self.tool.prefix.join(path).display().to_string();
        let dir = self.dir.to_str().context("a path")?;
        let mut text = String::new();
        for schema in ["core", "cosine", "nis", "inetorgperson"] {
            text.push_str(&format!("include {}/{schema}.schema\n", below("etc/ldap/schema")));
        }
        text.push_str(&format!(
            "modulepath {}\nmoduleload back_mdb\npidfile {dir}/pid\nargsfile {dir}/args\n",
            below("usr/lib/ldap")
        ));
        if let Some(Certificate { chain, key }) = certificate {
            let (chain, key) = (chain.display(), key.display());
            text.push_str(&format!("TLSCertificateFile {chain}\nTLSCertificateKeyFile {key}\nTLSVerifyClient never\n"));
        }
        text.push_str(&format!(
            "database mdb\nmaxsize 16777216\nsuffix \"{BASE}\"\nrootdn \"cn=root,{BASE}\"\ndirectory {dir}/db\n"
        ));
        text.push_str(&format!(
            "access to attrs=userPassword by anonymous auth by * none\naccess to * by dn.exact=\"{}\" read by * none\n",
            SEARCHER.0
        ));
        Ok(text)
    }
}

impl Drop for Slapd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("slapd: {}", std::fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
        self.kill();
    }
}

fn entries(people: &str) -> String {
    let (name, password) = SEARCHER;
    format!(
        "dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: example\n\n\
         dn: {name}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: mail\nuserPassword: {password}\n\n\
         dn: ou=people,{BASE}\nobjectClass: organizationalUnit\nou: people\n\n{people}"
    )
}

/// The LDIF of a person with `mail`, and more lines. `uid` is also the name.
#[must_use]
pub fn person(uid: &str, mail: &str, password: &str, more: &str) -> String {
    format!(
        "dn: uid={uid},ou=people,{BASE}\nobjectClass: inetOrgPerson\nobjectClass: shadowAccount\nuid: {uid}\ncn: {uid}\nsn: {uid}\n\
         mail: {mail}\nuserPassword: {password}\n{more}\n"
    )
}

/// Starts a server on ports that are free now; on others if somebody was faster.
///
/// # Errors
/// As the last of some attempts.
pub fn on_free_ports(mut start: impl FnMut() -> Result<()>) -> Result<()> {
    (1..5).find_map(|_| start().ok()).map_or_else(start, Ok)
}

/// A port of 127.0.0.1 that is free now.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    if port == 0 { bail!("no port") } else { Ok(port) }
}
