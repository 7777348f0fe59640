//! A real PostgreSQL server with a cluster of the test's own, on a port of 127.0.0.1 and a Unix socket; nothing of the system's is touched.

use crate::slapd::{Certificate, free_port, on_free_ports};
use crate::tools::{self, Tool, must};
use crate::{facts, is_root, wait_for};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where Debian has the programs.
const BIN: &str = "usr/lib/postgresql/15/bin";
/// `nobody`: the server refuses to be root, and looks its user up.
const OWNER: u32 = 65_534;
/// The owner of the test's database, whose name it is, too.
pub const ROLE: &str = "qmail";
pub const PASSWORD: &str = "postgres-secret";
const ROOT_PASSWORD: &str = "root-secret";

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Postgres {
    tool: Tool,
    dir: PathBuf,
    pub port: u16,
    has_tls: bool,
    server: Option<Child>,
}

impl Postgres {
    /// Starts one below `dir`, which everybody can reach, with a database [`ROLE`] of a role of that name. `None`, noted as skipped, where there is
    /// no PostgreSQL and this run is not root's.
    ///
    /// # Errors
    /// It cannot be got, or does not start.
    pub fn start(test: &str, dir: &Path, certificate: Option<&Certificate>) -> Result<Option<Self>> {
        let Some(tool) = tools::get(test, "postgresql-15", &format!("{BIN}/postgres"))? else { return Ok(None) };
        let dir = dir.join("postgres");
        std::fs::create_dir_all(&dir)?;
        let mut postgres = Self { tool, dir, port: 0, has_tls: certificate.is_some(), server: None };
        let password_file = postgres.dir.join("password");
        std::fs::write(&password_file, ROOT_PASSWORD)?;
        for (file, name) in certificate.into_iter().flat_map(|c| [(&c.chain, "chain.pem"), (&c.key, "key.pem")]) {
            std::fs::copy(file, postgres.dir.join(name))?;
            std::fs::set_permissions(postgres.dir.join(name), std::fs::Permissions::from_mode(0o600))?;
            postgres.give(&postgres.dir.join(name))?;
        }
        postgres.give(&password_file)?;
        postgres.give(&postgres.dir)?;
        let mut initdb = postgres.command("initdb");
        initdb.args(["-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]);
        must(initdb.arg(postgres.data()).arg(format!("--pwfile={}", password_file.display())))?;
        on_free_ports(|| {
            postgres.port = free_port()?;
            postgres.run()
        })?;
        postgres.admin(&format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'"))?;
        postgres.admin(&format!("CREATE DATABASE {ROLE} OWNER {ROLE}"))?;
        Ok(Some(postgres))
    }

    /// Starts the server, with the cluster that is there.
    ///
    /// # Errors
    /// It does not answer.
    pub fn run(&mut self) -> Result<()> {
        let log = std::fs::File::create(self.dir.join("log"))?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(&self.dir);
        for setting in ["listen_addresses=127.0.0.1,127.0.0.2", "fsync=off", "jit=off", "max_connections=40"] {
            command.args(["-c", setting]);
        }
        command.arg("-c").arg(format!("port={}", self.port));
        if self.has_tls {
            let file = |name: &str| self.dir.join(name).display().to_string();
            command.args(["-c", "ssl=on", "-c", &format!("ssl_cert_file={}", file("chain.pem"))]);
            command.arg("-c").arg(format!("ssl_key_file={}", file("key.pem")));
        }
        self.server = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?);
        wait_for("PostgreSQL to answer", || self.psql("postgres", ROOT_PASSWORD, "postgres", "SELECT 1").ok())
            .with_context(|| std::fs::read_to_string(self.dir.join("log")).unwrap_or_default())?;
        let log = std::fs::read_to_string(self.dir.join("log"))?;
        // It goes on without an address that it cannot have.
        if log.contains("could not bind") {
            self.kill();
            bail!("PostgreSQL has no port: {log}");
        }
        Ok(())
    }

    /// Ends it at once, as a crash does; [`Postgres::run`] starts it again.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            facts::signal(server.id(), Signal::QUIT);
            let _ = server.wait();
        }
    }

    /// Stops it in place with all its processes, or lets it go on: it accepts connections (the kernel does) and answers nothing.
    pub fn freeze(&self, frozen: bool) {
        let Some(server) = &self.server else { return };
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        facts::signal(server.id(), signal);
        for process in facts::descendants(server.id()) {
            facts::signal(process.pid, signal);
        }
    }

    /// What a statement says, in the test's database as its owner: a row a line, `|` between columns.
    ///
    /// # Errors
    /// It fails.
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.psql(ROLE, PASSWORD, ROLE, sql)
    }

    /// As [`Postgres::sql`], as the superuser in the database `postgres`.
    ///
    /// # Errors
    /// It fails.
    pub fn admin(&self, sql: &str) -> Result<String> {
        self.psql("postgres", ROOT_PASSWORD, "postgres", sql)
    }

    fn psql(&self, user: &str, password: &str, database: &str, sql: &str) -> Result<String> {
        let mut psql = Command::new(self.tool.prefix.join(BIN).join("psql"));
        if !self.tool.libraries.is_empty() {
            psql.env("LD_LIBRARY_PATH", self.tool.library_path());
        }
        psql.arg("-h").arg(&self.dir).args(["-p", &self.port.to_string(), "-U", user, "-d", database, "-XqAt"]);
        must(psql.args(["-v", "ON_ERROR_STOP=1", "-c", sql]).env("PGPASSWORD", password))
    }

    /// The directory of its Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> String {
        self.dir.display().to_string()
    }

    /// For control/accounts: by the Unix socket, without a password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://{ROLE}@/{ROLE}?host={}&port={}\n", self.socket_dir(), self.port)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn give(&self, path: &Path) -> Result<()> {
        if is_root() {
            chown(path, Some(OWNER), Some(OWNER))?;
        }
        Ok(())
    }

    /// A program of the package, as its own user.
    fn command(&self, program: &str) -> Command {
        let program = self.tool.prefix.join(BIN).join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args([&format!("--reuid={OWNER}"), &format!("--regid={OWNER}"), "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        if !self.tool.libraries.is_empty() {
            command.env("LD_LIBRARY_PATH", self.tool.library_path());
        }
        command.current_dir(&self.dir);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("PostgreSQL: {}", std::fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
        self.freeze(false);
        self.kill();
    }
}
