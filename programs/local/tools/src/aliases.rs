//! newaliases(1) and newinclude(1): /etc/aliases and `:include:` files in sendmail's form become what fastforward(1) reads.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use control::Root;
use control::inject::Inject;
use message::aliases::{Fault, Hosts, Target, complete, entries, targets};
use message::forwarding::{ADDRESS_LEN_MAX, Record};
use tool::replace::{self, Readers};
use tool::{End, Name, input};

use crate::tables::compiled;

fn names(me: Name, root: &Root) -> Result<Inject, End> {
    Inject::read(root).map_err(|error| me.temporary(format!("unable to read controls: {error}")))
}

fn hosts(names: &Inject) -> Hosts<'_> {
    Hosts { default_host: &names.default_host, default_domain: &names.default_domain, plus_domain: &names.plus_domain }
}

fn root(me: Name) -> Result<Root, End> {
    Root::from_env().map_err(|error| me.temporary(error.to_string()))
}

/// The targets of a line, from right to left.
fn parse(me: Name, line: &[u8]) -> Result<Vec<Target>, End> {
    targets(line).map_err(|fault| match fault {
        Fault::EmptyAddress => me.temporary("empty recipient addresses not permitted"),
        Fault::EmptyInclude => me.temporary("empty :include: filenames not permitted"),
        Fault::Form => unparsable(me, line),
    })
}

fn unparsable(me: Name, line: &[u8]) -> End {
    me.temporary([b"unable to parse this line: ", line].concat())
}

/// `./` before a name that would not be seen as one, and `.bin` behind it: the form that newinclude makes.
fn list_name(name: &[u8]) -> Vec<u8> {
    let before: &[u8] = if matches!(name.first(), Some(b'.' | b'/')) { b"" } else { b"./" };
    [before, name, b".bin"].concat()
}

fn unsupported(me: Name, kind: &[u8], what: &[u8]) -> End {
    me.temporary([kind, b" delivery ", what, b" not supported"].concat())
}

/// `newaliases`: `etc/aliases` below the root (QMAIL_ROOT) becomes `etc/aliases.cdb`, by way of `etc/aliases.tmp`.
///
/// # Errors
/// A line that is no alias, or a file that cannot be read or written; the database is as it was.
pub fn newaliases(_: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("newaliases");
    let root = root(ME)?;
    let names = names(ME, &root)?;
    let [path, tmp, cdb] = ["etc/aliases", "etc/aliases.tmp", "etc/aliases.cdb"].map(|name| root.path().join(name));
    let text = input::file(&path).map_err(|error| ME.system("unable to read /etc/aliases", &error))?;
    if text.contains(&0) {
        return Err(ME.permanent("NUL bytes are not permitted"));
    }
    let mut records = Vec::new();
    for entry in entries(&text) {
        alias(ME, &entry, hosts(&names), &mut records)?;
    }
    let file = compiled(ME, records)?;
    replace::file(ME, &file, (&tmp, &cdb), (b"/etc/aliases.tmp", b"/etc/aliases.cdb"), Readers::Everybody)?;
    Ok(0)
}

/// The records of one alias. Its name is the last of the targets, which come from right to left; so an address is put down when the
/// next one shows that it was not the name.
fn alias(me: Name, entry: &[u8], hosts: Hosts<'_>, records: &mut Vec<Record>) -> Result<(), End> {
    let found = parse(me, entry)?;
    if found.is_empty() {
        return Ok(());
    }
    let mut commands = Vec::new();
    let mut put = |before: &[u8], text: &[u8]| commands.extend([before, text, b"\0"].concat());
    let mut name: Option<Vec<u8>> = None;
    for target in found {
        match target {
            Target::Address(address) => {
                if let Some(other) = name.replace(address) {
                    put(b"&", &full(me, &other, hosts)?);
                }
            }
            Target::Program(program) => put(b"!", &program),
            Target::Include(file) => put(b"", &list_name(&file)),
            Target::File(file) => return Err(unsupported(me, b"file", &file)),
        }
    }
    let Some(name) = name.filter(|_| !commands.is_empty()) else { return Err(unparsable(me, entry)) };
    let full_name = full(me, &name, hosts)?;
    if let Some(list) = name.strip_prefix(b"owner-") {
        records.push(([b"?", list].concat().to_ascii_lowercase(), full_name));
    }
    records.push(([b":", &name[..]].concat().to_ascii_lowercase(), commands));
    Ok(())
}

fn full(me: Name, address: &[u8], hosts: Hosts<'_>) -> Result<Vec<u8>, End> {
    let full = complete(address, hosts);
    if full.len() > ADDRESS_LEN_MAX {
        return Err(me.permanent("addresses over 800 bytes are not permitted"));
    }
    Ok(full)
}

/// `newinclude LIST`: LIST becomes LIST.bin, by way of LIST.tmp.
///
/// # Errors
/// A line that is none, or a file that cannot be read or written; LIST.bin is as it was.
pub fn newinclude(args: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("newinclude");
    let list = args.first().ok_or_else(|| ME.usage("list"))?.as_bytes();
    let names = names(ME, &root(ME)?)?;
    let text = input::file(input::path(list)).map_err(|error| ME.system([b"unable to read ", list].concat(), &error))?;
    let mut out = Vec::new();
    for line in text.split_inclusive(|b| *b == b'\n').filter(|line| line.first() != Some(&b'#')) {
        for target in parse(ME, line)? {
            out.extend(member(ME, target, hosts(&names))?);
            out.push(0);
        }
    }
    let [tmp, bin] = [[list, b".tmp"].concat(), [list, b".bin"].concat()];
    replace::file(ME, &out, (input::path(&tmp), input::path(&bin)), (&tmp, &bin), Readers::Everybody)?;
    Ok(0)
}

fn member(me: Name, target: Target, hosts: Hosts<'_>) -> Result<Vec<u8>, End> {
    let command = match target {
        Target::Address(address) => [b"&", &complete(&address, hosts)[..]].concat(),
        Target::Include(file) => list_name(&file),
        Target::Program(program) => return Err(unsupported(me, b"program", &[b"|", &program[..]].concat())),
        Target::File(file) => return Err(unsupported(me, b"file", &file)),
    };
    let refused = |text: &str| Err(me.temporary(text));
    if command.len() > ADDRESS_LEN_MAX {
        return refused("addresses must be under 800 bytes");
    }
    match (command.contains(&b'\n'), command.last()) {
        (true, _) => refused("newlines not permitted in recipient addresses"),
        (_, Some(b' ' | b'\t')) => refused("spaces and tabs not permitted at ends of addresses"),
        _ => Ok(command),
    }
}
