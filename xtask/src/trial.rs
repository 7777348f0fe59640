//! `cargo xtask try`: the main job on an instance of its own, from nothing to a letter read back.

use crate::cargo::{cargo, must, output, target};
use crate::letter;
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DOMAIN: &str = "example.test";
const HOST: &str = "mail.example.test";
/// How long the start and the letter may take; a slow machine has room.
const PATIENCE: Duration = Duration::from_secs(60);

struct Options {
    once: bool,
    dir: Option<PathBuf>,
    programs: Option<PathBuf>,
    base_port: Option<u16>,
}

/// The command.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = parse(args)?;
    let root_user = rustix::process::geteuid().is_root();
    let trial = Trial::prepare(&options, root_user)?;
    let result = trial.play(options.once);
    if result.is_err() {
        eprintln!(
            "the log of the system is {}:\n{}",
            trial.log.display(),
            std::fs::read_to_string(&trial.log).unwrap_or_default()
        );
    } else if options.once && trial.fresh {
        std::fs::remove_dir_all(&trial.dir)?;
    }
    result
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options { once: false, dir: None, programs: None, base_port: None };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--once" => options.once = true,
            "--dir" => options.dir = Some(value()?.into()),
            "--programs" => options.programs = Some(value()?.into()),
            "--base-port" => options.base_port = Some(value()?.parse()?),
            other => bail!("unknown option {other}"),
        }
    }
    Ok(options)
}

struct Trial {
    /// What is removed at the end, if it was made here.
    dir: PathBuf,
    fresh: bool,
    root: PathBuf,
    programs: PathBuf,
    base_port: u16,
    log: PathBuf,
}

impl Trial {
    /// Builds, and sets up an instance. As root both the programs and the instance go below /var/tmp, where every role can
    /// reach them; otherwise below target/.
    fn prepare(options: &Options, root_user: bool) -> Result<Self> {
        let (dir, fresh) = match &options.dir {
            Some(dir) => (dir.clone(), false),
            None if root_user => {
                (PathBuf::from(output(Command::new("mktemp").args(["-d", "/var/tmp/qmail-try.XXXXXX"]))?.trim()), true)
            }
            None => (target().join("try"), true),
        };
        let programs = match &options.programs {
            Some(programs) => programs.clone(),
            None => build(&dir, root_user)?,
        };
        let root = dir.join("root");
        if root.exists() {
            std::fs::remove_dir_all(&root).with_context(|| format!("{} is in the way", root.display()))?;
        }
        std::fs::create_dir_all(&root)?;
        if root_user {
            must(Command::new("chmod").arg("755").arg(&dir).arg(&root))?;
        }
        let base_port = options.base_port.map_or_else(free_base_port, Ok)?;
        let trial = Self { log: dir.join("log"), dir, fresh, root, programs, base_port };
        println!("setting up {} (smtp on port {}, pop3 on port {})", trial.root.display(), trial.port(25), trial.port(110));
        must(trial.qmail(["setup", "--me", HOST, "--base-port", &base_port.to_string()]).stdout(Stdio::null()))?;
        Ok(trial)
    }

    fn port(&self, well_known: u16) -> u16 {
        self.base_port.saturating_add(well_known)
    }

    fn qmail<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(self.programs.join("qmail"));
        command.arg("--root").arg(&self.root).args(args);
        command
    }

    fn play(&self, once: bool) -> Result<()> {
        let mut system = self.start()?;
        let result = self.letter(once);
        if result.is_ok() && !once {
            println!("\nRunning until Ctrl-C. The log is {}.", self.log.display());
            let _ = system.0.wait();
        }
        system.stop()?;
        result
    }

    fn start(&self) -> Result<System> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut child =
            self.qmail(["start"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().context("qmail start")?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line != "ready\n" {
            let _ = child.wait();
            bail!("qmail start did not get ready");
        }
        println!("qmail start says: ready");
        Ok(System(child))
    }

    fn letter(&self, once: bool) -> Result<()> {
        let passwords = [("alice", random_word()?), ("bob", random_word()?)];
        must(self.qmail(["domain", "add", DOMAIN]).stdout(Stdio::null()))?;
        for (user, password) in &passwords {
            self.add_user(&format!("{user}@{DOMAIN}"), password)?;
        }
        let [_, (_, bob)] = &passwords;
        let (token, to) = (random_word()?, format!("bob@{DOMAIN}"));
        let from = format!("alice@{DOMAIN}");
        let letter = format!(
            "From: Alice <{from}>\nTo: Bob <{to}>\nSubject: A letter\n\nThe token is {token}.\n.A line that starts with a dot.\n"
        );
        println!("sending a letter with the token {token} by SMTP: {}", letter::send(self.port(25), &from, &to, &letter)?);
        let fetched = self.wait_for_letter(&to, bob)?;
        println!("\nits way, as the log tells it:");
        print!("{}", self.story()?);
        println!("\nas POP3 returned it:\n");
        std::io::stdout().write_all(&fetched)?;
        let text = String::from_utf8_lossy(&fetched);
        for needed in
            [format!("Return-Path: <{from}>\n"), format!("Delivered-To: {to}\n"), format!("The token is {token}.\n.A line")]
        {
            if !text.contains(&needed) {
                bail!("the letter lacks `{}`", needed.escape_debug());
            }
        }
        if !once {
            self.explain(&passwords);
        }
        Ok(())
    }

    fn add_user(&self, address: &str, password: &str) -> Result<()> {
        let mut child =
            self.qmail(["user", "add", address, "--password-stdin"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            writeln!(stdin, "{password}")?;
        }
        if !child.wait()?.success() {
            bail!("qmail user add {address} failed");
        }
        Ok(())
    }

    fn wait_for_letter(&self, user: &str, password: &str) -> Result<Vec<u8>> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(letter) = letter::fetch(self.port(110), user, password)? {
                return Ok(letter);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("the letter did not arrive within {} s", PATIENCE.as_secs());
    }

    /// The log lines since the start that speak of messages.
    fn story(&self) -> Result<String> {
        // The last result may be on its way through the log still.
        let until = Instant::now() + PATIENCE;
        loop {
            let log = std::fs::read_to_string(&self.log)?;
            if log.contains("\nend msg ") || Instant::now() > until {
                return Ok(log.lines().map(|line| format!("  {line}\n")).collect());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn explain(&self, passwords: &[(&str, String)]) {
        println!(
            "\nTry it yourself:\n  SMTP 127.0.0.1 port {}, submission (log in to send anywhere) port {}, POP3 port {}",
            self.port(25),
            self.port(587),
            self.port(110)
        );
        for (user, password) in passwords {
            println!("  {user}@{DOMAIN}  password {password}");
        }
        let (qmail, root) = (self.programs.join("qmail"), self.root.display());
        println!("  {} --root {root} queue stats\n  {} --root {root} user list", qmail.display(), qmail.display());
    }
}

/// The running system; ended when dropped, whatever happened.
struct System(Child);

impl System {
    fn stop(&mut self) -> Result<()> {
        self.end();
        let status = self.0.wait()?;
        if !status.success() {
            bail!("qmail start ended with {status}");
        }
        println!("\nstopped");
        Ok(())
    }

    fn end(&self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.end();
            let _ = self.0.wait();
        }
    }
}

fn build(dir: &Path, root_user: bool) -> Result<PathBuf> {
    println!("building the programs");
    must(&mut cargo(&["build", "--workspace", "--bins"]))?;
    let built = target().join("debug");
    if !root_user {
        return Ok(built);
    }
    let programs = dir.join("programs");
    copy_programs(&built, &programs)?;
    Ok(programs)
}

/// Copies every program to a folder that anyone can reach.
pub(crate) fn copy_programs(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_program = entry.file_type()?.is_file() && !name.to_string_lossy().contains('.') && name != "xtask";
        if is_program {
            std::fs::copy(entry.path(), to.join(&name))?;
        }
    }
    must(Command::new("chmod").args(["-R", "a+rX"]).arg(to))
}

/// A base so that the ports of SMTP, submission and POP3 are free.
fn free_base_port() -> Result<u16> {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut wanted = (2000..60_000u16).step_by(1000).map(|step| 8000 + (step % 50_000));
    wanted.find(|base| [25u16, 110, 465, 587, 995].iter().all(|port| is_free(base + port))).context("no free ports")
}

fn random_word() -> Result<String> {
    let mut bytes = [0; 9];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
