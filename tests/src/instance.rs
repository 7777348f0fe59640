//! One instance of the system.

use crate::facts;
use crate::line::{Pop3, Smtp};
use crate::loop_disk::{Format, LoopDisk};
use crate::users::letters;
use crate::{is_root, wait_for};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The host name of every instance.
pub const ME: &str = "mail.example.test";

/// An instance below a temporary directory; stopped and removed when dropped.
#[derive(Debug)]
pub struct Instance {
    dir: PathBuf,
    pub root: PathBuf,
    pub base_port: u16,
    /// Keeps other instances from the ports.
    _base: TcpListener,
    system: Option<Child>,
    disks: Vec<LoopDisk>,
}

impl Instance {
    /// Sets up an instance that does not run yet.
    ///
    /// # Errors
    /// The programs are not built (`cargo build --workspace --bins`), or setup fails.
    pub fn new() -> Result<Self> {
        Self::on_disks(&[])
    }

    /// As [`Instance::new`], with disks of its own mounted at these places below the root; the place "" is the root itself.
    /// Needs root.
    ///
    /// # Errors
    /// As [`Instance::new`] and [`LoopDisk::new`].
    pub fn on_disks(disks: &[(&str, Format)]) -> Result<Self> {
        let dir = PathBuf::from(format!("/var/tmp/qmail-test.{}.{}", std::process::id(), random_word()?));
        let root = dir.join("root");
        std::fs::create_dir_all(&root)?;
        for open in [&dir, &root] {
            std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o755))?;
        }
        link_programs(&dir.join("programs"))?;
        let (base_port, base) = free_base_port()?;
        let mut instance = Self { dir, root, base_port, _base: base, system: None, disks: Vec::new() };
        let (whole, parts): (Vec<_>, Vec<_>) = disks.iter().partition(|(place, _)| place.is_empty());
        instance.mount(&whole)?;
        instance.must(&["setup", "--me", ME, "--base-port", &instance.base_port.to_string()])?;
        // Over directories that setup made, whose owners they take on.
        instance.mount(&parts)?;
        Ok(instance)
    }

    fn mount(&mut self, disks: &[(&str, Format)]) -> Result<()> {
        for (place, format) in disks {
            let image = self.dir.join(format!("image.{}", self.disks.len()));
            self.disks.push(LoopDisk::new(image, self.root.join(place), *format)?);
        }
        Ok(())
    }

    /// The disk that was given as the `number`-th; the root's comes first.
    ///
    /// # Panics
    /// There are fewer.
    #[must_use]
    #[allow(clippy::indexing_slicing)]
    pub fn disk(&self, number: usize) -> &LoopDisk {
        &self.disks[number]
    }

    /// An instance that runs, with control files written before the start.
    ///
    /// # Errors
    /// As [`Instance::new`], or it does not start.
    pub fn started(control: &[(&str, &str)]) -> Result<Self> {
        let mut instance = Self::new()?;
        for (name, text) in control {
            instance.control(name, text)?;
        }
        instance.start()?;
        Ok(instance)
    }

    /// A program of the build.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join("programs").join(name)
    }

    /// A directory for the test's own files, reachable by everyone.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    #[must_use]
    pub fn port(&self, well_known: u16) -> u16 {
        self.base_port + well_known
    }

    /// Writes a control file.
    ///
    /// # Errors
    /// The disk's.
    pub fn control(&self, name: &str, text: &str) -> Result<()> {
        Ok(std::fs::write(self.root.join("etc/qmail/control").join(name), text)?)
    }

    /// `qmail --root ROOT ARGS`, not run yet.
    pub fn qmail<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(self.program("qmail"));
        command.arg("--root").arg(&self.root).args(args);
        command
    }

    /// Runs an admin command that must succeed; its stdout.
    ///
    /// # Errors
    /// It fails.
    pub fn must(&self, args: &[&str]) -> Result<String> {
        self.with_input(args, "")
    }

    /// As [`Instance::must`], with input.
    ///
    /// # Errors
    /// It fails.
    pub fn with_input(&self, args: &[&str], input: &str) -> Result<String> {
        let output = feed(&mut self.qmail(args), input.as_bytes())?;
        if !output.status.success() {
            bail!("qmail {args:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `qmail ARGS --json`, parsed.
    ///
    /// # Errors
    /// It fails or prints something else.
    pub fn json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        Ok(serde_json::from_str(&self.must(&args)?)?)
    }

    /// Adds a virtual domain and users; each one's password is its name and `-password`.
    ///
    /// # Errors
    /// An admin command fails.
    pub fn virtual_domain(&self, domain: &str, users: &[&str]) -> Result<()> {
        self.must(&["domain", "add", domain])?;
        for user in users {
            self.with_input(&["user", "add", &format!("{user}@{domain}"), "--password-stdin"], &format!("{user}-password\n"))?;
        }
        Ok(())
    }

    /// Starts the system and waits for `ready`.
    ///
    /// # Errors
    /// It does not get ready; the log is in the error.
    pub fn start(&mut self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file())?;
        self.start_with_log(log.into())
    }

    /// As [`Instance::start`], with this in its environment.
    ///
    /// # Errors
    /// As [`Instance::start`].
    pub fn start_in(&mut self, environment: &[(&str, &Path)]) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file())?;
        self.start_as(environment, log.into())
    }

    /// As [`Instance::start`], with a log of the test's own, which none of the functions here can read.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start_with_log(&mut self, log: Stdio) -> Result<()> {
        self.start_as(&[], log)
    }

    fn start_as(&mut self, environment: &[(&str, &Path)], log: Stdio) -> Result<()> {
        let mut start = self.qmail(&["start"]);
        start.envs(environment.iter().copied());
        let mut child = start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        if line != "ready\n" {
            let _ = child.kill();
            let _ = child.wait();
            bail!("not ready; the log:\n{}", self.log());
        }
        self.system = Some(child);
        Ok(())
    }

    /// The process id of qmail-start.
    ///
    /// # Panics
    /// The system does not run.
    #[must_use]
    #[allow(clippy::expect_used)]
    pub fn pid(&self) -> u32 {
        self.system.as_ref().expect("the system runs").id()
    }

    /// SIGTERM, and waits for the end of all processes.
    ///
    /// # Errors
    /// It exits with something else than 0.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.system.take() else { return Ok(()) };
        facts::signal(child.id(), rustix::process::Signal::TERM);
        let status = child.wait()?;
        if !status.success() {
            bail!("qmail-start ended with {status}; the log:\n{}", self.log());
        }
        Ok(())
    }

    /// SIGKILL for qmail-start alone; returns when every process of the system has ended.
    ///
    /// # Errors
    /// Some go on.
    pub fn kill_start(&mut self) -> Result<()> {
        let Some(mut child) = self.system.take() else { return Ok(()) };
        let processes = facts::descendants(child.id());
        child.kill()?;
        child.wait()?;
        wait_for("the processes of a killed qmail-start to end", || {
            processes.iter().all(|p| !facts::is_alive(p.pid)).then_some(())
        })
    }

    /// The power goes on all disks of its own: nothing more reaches them, every process is killed, and they come back as they are
    /// then. The system is to be started again.
    ///
    /// # Errors
    /// A process or a mount stays.
    pub fn cut_power(&mut self) -> Result<()> {
        self.disks.iter().try_for_each(LoopDisk::cut)?;
        self.kill_all()?;
        for disk in &mut self.disks {
            disk.unmount()?;
            disk.mount()?;
        }
        Ok(())
    }

    /// Empties the spool of a system that does not run and has no message, so that the next start makes every segment anew.
    ///
    /// # Errors
    /// The disk's.
    pub fn wipe_spool(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.root.join("var/spool/qmail"))? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
        Ok(())
    }

    /// SIGKILL for every process; returns when all have ended.
    ///
    /// # Errors
    /// Some go on.
    pub fn kill_all(&mut self) -> Result<()> {
        let Some(mut child) = self.system.take() else { return Ok(()) };
        let mut processes = facts::descendants(child.id());
        child.kill()?;
        child.wait()?;
        wait_for("the end of killed processes", || {
            // One may have started another before its own end came.
            let more: Vec<_> = processes.iter().flat_map(|p| facts::descendants(p.pid)).collect();
            processes.extend(more);
            processes.retain(|p| facts::is_alive(p.pid));
            processes.iter().for_each(|p| facts::signal(p.pid, rustix::process::Signal::KILL));
            processes.is_empty().then_some(())
        })
    }

    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// All that was logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(self.log_file()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// Waits for a log line that contains `part`; the line.
    ///
    /// # Errors
    /// None comes; the log is in the error.
    pub fn wait_log(&self, part: &str) -> Result<String> {
        let line = || self.log().lines().find(|line| line.contains(part)).map(str::to_owned);
        wait_for(&format!("the log line `{part}`"), line).with_context(|| self.log())
    }

    /// Waits until the queue is empty.
    ///
    /// # Errors
    /// It does not get empty; the log is in the error.
    pub fn wait_empty(&self) -> Result<()> {
        let empty = || self.json(&["queue", "stats"]).ok().filter(|stats| stats["messages"] == 0).map(drop);
        wait_for("an empty queue", empty).with_context(|| self.log())
    }

    /// Tries everything now, again and again, until the queue is empty.
    ///
    /// # Errors
    /// It does not get empty; the log is in the error.
    pub fn retry_until_empty(&self) -> Result<()> {
        let empty = || {
            self.must(&["queue", "retry", "--all"]).ok()?;
            (self.json(&["queue", "stats"]).ok()?["messages"] == 0).then_some(())
        };
        wait_for("an empty queue", empty).with_context(|| self.log())
    }

    /// The Maildir of a virtual user.
    #[must_use]
    pub fn maildir(&self, address: &str) -> PathBuf {
        let (user, domain) = address.split_once('@').unwrap_or_default();
        self.root.join("var/mail").join(domain).join(user).join("Maildir")
    }

    /// Waits until new/ of a Maildir holds exactly so many letters; the letters.
    ///
    /// # Errors
    /// It does not; the log is in the error.
    pub fn wait_letters(&self, maildir: &Path, count: usize) -> Result<Vec<String>> {
        let all = || Some(letters(maildir)).filter(|all| all.len() == count);
        let what = format!("{count} letters in {}, which has {}", maildir.display(), letters(maildir).len());
        wait_for(&what, all).with_context(|| self.log())
    }

    /// As [`Instance::wait_letters`], of a virtual user.
    ///
    /// # Errors
    /// It does not; the log is in the error.
    pub fn wait_mail(&self, address: &str, count: usize) -> Result<Vec<String>> {
        self.wait_letters(&self.maildir(address), count)
    }

    /// An SMTP session after its greeting.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn smtp(&self) -> Result<Smtp> {
        Smtp::open(self.port(25))
    }

    /// A POP3 session after PASS.
    ///
    /// # Errors
    /// Nobody answers, or the login is refused.
    pub fn pop3(&self, address: &str) -> Result<Pop3> {
        let user = address.split('@').next().unwrap_or_default();
        Pop3::login(self.port(110), address, &format!("{user}-password"))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(child) = &mut self.system {
            let processes = facts::descendants(child.id());
            facts::signal(child.id(), rustix::process::Signal::TERM);
            let _ = child.wait();
            for process in processes.iter().filter(|p| facts::is_alive(p.pid)) {
                facts::signal(process.pid, rustix::process::Signal::KILL);
            }
        }
        if std::thread::panicking() {
            eprintln!("the log of {}:\n{}", self.dir.display(), self.log());
        }
        self.disks.clear();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Runs a command with input and gives its output.
///
/// # Errors
/// It cannot be run.
pub fn feed(command: &mut Command, input: &[u8]) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command may end without reading everything.
        let _ = stdin.write_all(input);
    }
    Ok(child.wait_with_output()?)
}

/// Puts the built programs into `dir`, by hard links where that is possible.
fn link_programs(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let exe = std::env::current_exe()?;
    let built = exe.ancestors().find(|dir| dir.join("qmail-send").is_file());
    let built = built.context("the programs are not built: cargo build --workspace --bins (cargo xtask test does it)")?;
    for entry in std::fs::read_dir(built)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file()
            && (name.starts_with("qmail") || name == "sendmail" || name == "checkpassword")
            && !name.contains('.')
        {
            let to = dir.join(&name);
            std::fs::hard_link(entry.path(), &to).or_else(|_| std::fs::copy(entry.path(), &to).map(drop))?;
        }
    }
    let mode = if is_root() { 0o755 } else { 0o700 };
    Ok(std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))?)
}

/// Ports between two bases: every well-known port that is used fits, so instances that run at the same time have none in common.
const PORTS: u16 = 1000;
/// Bases, below the ports that the kernel gives to clients.
const BASES: u16 = 22;

/// A base that is nobody else's as long as the listener lives.
fn free_base_port() -> Result<(u16, TcpListener)> {
    let bind = |port: u16| TcpListener::bind(("127.0.0.1", port)).ok();
    wait_for("a base port that is free", || {
        let mut bytes = [0; 2];
        File::open("/dev/urandom").ok()?.read_exact(&mut bytes).ok()?;
        let base = 10_000 + u16::from_ne_bytes(bytes) % BASES * PORTS;
        // No service has port 1.
        let taken = bind(base + 1)?;
        [25u16, 110, 465, 587, 995].iter().all(|port| bind(base + port).is_some()).then_some((base, taken))
    })
}

/// Sixteen hexadecimal digits that nobody had before.
///
/// # Errors
/// No random bytes.
pub fn random_word() -> Result<String> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}
