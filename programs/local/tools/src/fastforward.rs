//! fastforward(1): `fastforward [-nNpPdD] CDB` forwards the message as a database made by setforward(1) or newaliases(1) says.
//!
//! -n says what would be done. -p: a recipient that is no target is somebody else's (0), one that is ends `.qmail` here (99).
//! -d: the recipient is DEFAULT@HOST, or EXT@HOST, instead of RECIPIENT. How targets expand: `message::forwarding`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use message::forwarding::{self, DATA_LEN_MAX, EXPANDED_MAX, Expansion, Source};
use tool::child::{self, Rewindable};
use tool::options::{self, Letters, Opt};
use tool::queue::Queue;
use tool::{End, Name, PERMANENT, end, input};

const ME: Name = Name("fastforward");
const STOP: u8 = 99;
/// Longest mailing list, in bytes.
const LIST_LEN_MAX: u64 = 256 << 20;

/// The program.
///
/// # Errors
/// No such target, a table or list that cannot be read, a program that failed, a copy that is not in the queue.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    let usage = || ME.usage("[ -nNpP ] data.cdb");
    let letters = Letters { flags: b"nNpPdD", with_value: b"", with_glued_value: b"" };
    let (options, rest) = options::known(ME, args, letters).ok_or_else(usage)?;
    let is_set = |letter: u8| {
        let of_letter = |option: &&Opt| matches!(option, Opt::Flag(flag) if flag.eq_ignore_ascii_case(&letter));
        options.iter().rev().find(of_letter).is_some_and(|option| *option == Opt::Flag(letter))
    };
    let name = rest.first().ok_or_else(usage)?;
    let cdb = File::open(input::path(name)).map_err(|error| unreadable(name, &error))?;
    let recipient = recipient(is_set(b'd'))?;
    let sender = input::variable("SENDER").unwrap_or_else(|| b"original envelope sender".to_vec());
    let mut table = Table { name: name.clone(), cdb, is_dry: is_set(b'n'), message: None };
    let is_passed_on = is_set(b'p');
    match forwarding::expand(&mut table, &recipient, &sender)? {
        None if is_passed_on => Ok(0),
        None => Err(End::with(PERMANENT, "Sorry, no mailbox here by that name. (#5.1.1)")),
        Some(expansion) => table.forward(&expansion, if is_passed_on { STOP } else { 0 }),
    }
}

fn recipient(by_default: bool) -> Result<Vec<u8>, End> {
    if !by_default {
        return input::variable("RECIPIENT").ok_or_else(|| ME.permanent("$RECIPIENT must be set"));
    }
    let local = input::variable("DEFAULT").or_else(|| input::variable("EXT"));
    let local = local.ok_or_else(|| ME.permanent("$DEFAULT or $EXT must be set"))?;
    let host = input::variable("HOST").ok_or_else(|| ME.permanent("$HOST must be set"))?;
    Ok([&local[..], b"@", &host].concat())
}

fn unreadable(name: &[u8], error: &std::io::Error) -> End {
    ME.system([b"unable to read ", name].concat(), error)
}

struct Table {
    name: Vec<u8>,
    cdb: File,
    is_dry: bool,
    /// Standard input, from the first time that it is needed.
    message: Option<Rewindable>,
}

impl Source for Table {
    type Error = End;

    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, End> {
        wire::cdb::find(&self.cdb, key, DATA_LEN_MAX).map_err(|error| unreadable(&self.name, &error))
    }

    fn list(&mut self, file: &[u8]) -> Result<Vec<u8>, End> {
        let failed = |error: std::io::Error| unreadable(file, &error);
        let list = File::open(input::path(file)).map_err(failed)?;
        // Whoever owns the list could otherwise have this program tell what only it may read.
        if list.metadata().map_err(failed)?.mode() & 0o444 != 0o444 {
            return Err(ME.temporary([file, b" is not world-readable"].concat()));
        }
        input::all(&list, LIST_LEN_MAX).map_err(failed)
    }

    fn program(&mut self, command: &[u8]) -> Result<(), End> {
        if self.is_dry {
            end::say(&[b"run ", command].concat());
            return Ok(());
        }
        let line = OsStr::from_bytes(command.get(1..).unwrap_or_default());
        let mut program = if command.starts_with(b"!") {
            let mut preline = Command::new(child::of_release("preline"));
            preline.arg("/bin/sh");
            preline
        } else {
            Command::new("/bin/sh")
        };
        let message = self.message()?;
        message.rewound(ME)?;
        program.arg("-c").arg(line).stdin(message.as_it_stands(ME)?);
        let status = program.status().map_err(|error| ME.system([b"unable to run ", command].concat(), &error))?;
        let code = child::code(ME, status).map_err(|_| ME.temporary([b"child crashed in ", command].concat()))?;
        match crate::verdict(code) {
            0 => Ok(()),
            code => Err(End::silent(code)),
        }
    }

    fn too_many(&mut self) -> End {
        ME.temporary(format!("more than {EXPANDED_MAX} addresses"))
    }
}

impl Table {
    fn message(&mut self) -> Result<&mut Rewindable, End> {
        if self.message.is_none() {
            self.message = Some(Rewindable::stdin(ME)?);
        }
        self.message.as_mut().ok_or_else(|| ME.temporary("unable to read message"))
    }

    fn forward(mut self, expansion: &Expansion, code: u8) -> Result<u8, End> {
        let recipients: Vec<&[u8]> = expansion.recipients.iter().map(Vec::as_slice).collect();
        if self.is_dry {
            tell(&expansion.sender, &recipients);
            return Ok(code);
        }
        if recipients.is_empty() {
            return Ok(code);
        }
        let mut queue = Queue::open(ME)?;
        queue.put(&input::variable("DTLINE").unwrap_or_default());
        queue.copy(self.message()?.rewound(ME)?)?;
        let qp = queue.finish(&expansion.sender, &recipients)?;
        Err(End::with(code, format!("fastforward: qp {qp}")))
    }
}

fn tell(sender: &[u8], recipients: &[&[u8]]) {
    if recipients.is_empty() {
        return end::say(b"no forwarding");
    }
    end::say(&[b"from <", sender, b">"].concat());
    recipients.iter().for_each(|to| end::say(&[b"to <", *to, b">"].concat()));
}
