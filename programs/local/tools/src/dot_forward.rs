//! dot-forward(1): `dot-forward [-nN] FILE…` does what sendmail's `.forward` files say, from a line of `.qmail`.
//!
//! The first FILE that is there and has more than comments counts. Exit code 99: the rest of `.qmail` is not read; 0 if the file names its owner, or
//! if there is no file. Commands run as they are met, with the lines of preline(1) before the message; all addresses together get one copy
//! of it at the end. A command that fails ends it all, and nothing is forwarded.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;

use control::inject::Inject;
use message::aliases::{Fault, Hosts, Target, complete, targets};
use tool::child::{Fed, Rewindable};
use tool::options::{self, Letters, Opt};
use tool::queue::Queue;
use tool::{End, Name, input};

const ME: Name = Name("dot-forward");
/// "Done, read no further" (qmail-command(8)).
const STOP: u8 = 99;
/// Longest file, in bytes.
const FILE_LEN_MAX: u64 = 16 << 20;

/// The program.
///
/// # Errors
/// A file that cannot be read or understood, a command that failed, a copy that is not in the queue.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    let usage = || ME.usage("[ -nN ] file ...");
    let letters = Letters { flags: b"nN", with_value: b"", with_glued_value: b"" };
    let (options, files) = options::known(ME, args, letters).ok_or_else(usage)?;
    let is_dry = matches!(options.last(), Some(Opt::Flag(b'n')));
    for file in &files {
        let Some(text) = read(file)? else { continue };
        let targets = understood(&text)?;
        if !targets.is_empty() {
            return carry_out(targets, is_dry);
        }
        if is_dry {
            print(b"skipping empty file ", file)?;
        }
    }
    Ok(0)
}

/// All targets of a file, each line's from right to left. Nothing is done before all of it is understood.
fn understood(text: &[u8]) -> Result<Vec<Target>, End> {
    let mut all = Vec::new();
    for line in text.split_inclusive(|b| *b == b'\n').filter(|line| line.first() != Some(&b'#')) {
        let whole = line.strip_suffix(b"\n").unwrap_or(line);
        all.extend(targets(line).map_err(|fault| match fault {
            Fault::EmptyAddress => ME.temporary("empty recipient addresses not permitted"),
            Fault::Form | Fault::EmptyInclude => ME.temporary([b"unable to parse this line: ", whole].concat()),
        })?);
    }
    match all.iter().find(|target| matches!(target, Target::File(_) | Target::Include(_))) {
        Some(Target::File(file) | Target::Include(file)) => {
            Err(ME.temporary([b"file delivery ", &file[..], b" not supported"].concat()))
        }
        _ => Ok(all),
    }
}

fn read(file: &[u8]) -> Result<Option<Vec<u8>>, End> {
    let failed = |what: &str, error: &std::io::Error| ME.system([what.as_bytes(), file].concat(), error);
    let opened = match File::open(input::path(file)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| failed("unable to open ", &error))?,
    };
    input::all(&opened, FILE_LEN_MAX).map(Some).map_err(|error| failed("unable to read ", &error))
}

fn carry_out(targets: Vec<Target>, is_dry: bool) -> Result<u8, End> {
    let root = control::Root::from_env().map_err(|error| ME.temporary(error.to_string()))?;
    let names = Inject::read(&root).map_err(|error| ME.temporary(format!("unable to read controls: {error}")))?;
    let hosts =
        Hosts { default_host: &names.default_host, default_domain: &names.default_domain, plus_domain: &names.plus_domain };
    let mut run = Run { own: own_addresses(), hosts, is_dry, message: None, forward: Vec::new(), is_direct: false };
    targets.into_iter().try_for_each(|target| run.target(target))?;
    run.finish()
}

/// USER without a host, and USER@HOST, in lower case: who they name gets his mail himself.
fn own_addresses() -> Vec<Vec<u8>> {
    let Some(user) = input::variable("USER") else { return Vec::new() };
    let host = input::variable("HOST").map(|host| [&user[..], b"@", &host].concat().to_ascii_lowercase());
    [Some([&user[..], b"@"].concat().to_ascii_lowercase()), host].into_iter().flatten().collect()
}

struct Run<'a> {
    own: Vec<Vec<u8>>,
    hosts: Hosts<'a>,
    is_dry: bool,
    /// Standard input, from the first time that it is needed.
    message: Option<Rewindable>,
    forward: Vec<Vec<u8>>,
    is_direct: bool,
}

impl Run<'_> {
    fn target(&mut self, target: Target) -> Result<(), End> {
        match target {
            Target::Address(address) if self.own.contains(&address.to_ascii_lowercase()) => {
                self.is_direct = true;
                if self.is_dry { print(b"direct delivery", b"") } else { Ok(()) }
            }
            Target::Address(address) => {
                let full = complete(&address, self.hosts);
                if self.is_dry {
                    return print(b"forward ", &full);
                }
                self.forward.push(full);
                Ok(())
            }
            Target::Program(command) if self.is_dry => print(b"pipe through ", &command),
            Target::Program(command) => self.program(&command),
            // None is left: see `understood`.
            Target::File(_) | Target::Include(_) => Ok(()),
        }
    }

    fn message(&mut self) -> Result<&mut File, End> {
        if self.message.is_none() {
            self.message = Some(Rewindable::stdin(ME)?);
        }
        self.message.as_mut().ok_or_else(|| ME.temporary("unable to read message"))?.rewound(ME)
    }

    fn program(&mut self, command: &[u8]) -> Result<(), End> {
        let sh = ["/bin/sh".into(), "-c".into(), OsStr::from_bytes(command).to_owned()];
        let mut fed = Fed::start(ME, &sh, tool::TEMPORARY)?;
        for name in ["UFLINE", "RPLINE", "DTLINE"] {
            fed.put(&input::variable(name).unwrap_or_default());
        }
        match crate::verdict(fed.feed(ME, self.message()?)?) {
            0 => Ok(()),
            code => Err(End::silent(code)),
        }
    }

    fn finish(mut self) -> Result<u8, End> {
        let code = if self.is_direct { 0 } else { STOP };
        if self.forward.is_empty() {
            return Ok(code);
        }
        let forward = std::mem::take(&mut self.forward);
        let recipients: Vec<&[u8]> = forward.iter().map(Vec::as_slice).collect();
        let mut queue = Queue::open(ME).map_err(worded)?;
        queue.put(&input::variable("DTLINE").unwrap_or_default());
        queue.copy(self.message()?)?;
        let qp = queue.finish(&input::variable("NEWSENDER").unwrap_or_default(), &recipients).map_err(worded)?;
        // qmail-local reads on from the beginning of the message by itself; a caller that does not finds it there, too.
        let _ = self.message()?.seek(SeekFrom::Start(0));
        Err(End::with(code, format!("dot-forward: info: qp {qp}")))
    }
}

/// What the queue says, in this program's words.
fn worded(end: End) -> End {
    let text = end.text.strip_prefix(b"dot-forward: fatal: ").unwrap_or(&end.text).to_vec();
    ME.fatal(end.code, [b"unable to forward message: ", &text[..]].concat())
}

fn print(what: &[u8], text: &[u8]) -> Result<(), End> {
    let line = [what, text, b"\n"].concat();
    ME.print(&line)
}
