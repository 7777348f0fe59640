//! setforward(1), printforward(1), setmaillist(1), printmaillist(1): fastforward's tables, from text and back.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use message::forwarding::{self, Record};
use tool::replace::{self, Readers};
use tool::{End, Name, input};
use wire::cdb;

/// `setforward CDB TMP`: the table on standard input becomes CDB.
///
/// # Errors
/// The table is none (permanent), or it cannot be read or written.
pub fn setforward(args: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("setforward");
    let [path, tmp, ..] = args else { return Err(ME.usage("data.cdb data.tmp")) };
    let text = read(ME)?;
    let records = forwarding::compile(&text).map_err(|fault| ME.permanent(fault.to_string()))?;
    let file = compiled(ME, records)?;
    write(ME, &file, (tmp, path), Readers::ByUmask)
}

/// The bytes of a database.
pub(crate) fn compiled(me: Name, records: impl IntoIterator<Item = Record>) -> Result<Vec<u8>, End> {
    let mut writer = cdb::Writer::new();
    records.into_iter().for_each(|(key, data)| writer.add(&key, &data));
    writer.finish().ok_or_else(|| me.permanent("a database holds at most 4 GiB"))
}

fn read(me: Name) -> Result<Vec<u8>, End> {
    input::table().map_err(|error| me.system("unable to read input", &error))
}

fn write(me: Name, text: &[u8], (tmp, path): (&OsString, &OsString), readers: Readers) -> Result<u8, End> {
    let names = (tmp.as_bytes(), path.as_bytes());
    replace::file(me, text, (Path::new(tmp), Path::new(path)), names, readers)?;
    Ok(0)
}

fn print(me: Name, text: &[u8]) -> Result<u8, End> {
    me.print(text).map(|()| 0)
}

/// `printforward`: the database on standard input as a table that setforward reads.
///
/// # Errors
/// It is no such database (permanent), or it cannot be read.
pub fn printforward(_: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("printforward");
    let text = read(ME)?;
    let bad = || ME.permanent("bad database format");
    let records = cdb::records(&text).ok_or_else(bad)?;
    let tables: Option<Vec<Vec<u8>>> = records.into_iter().map(|(key, data)| forwarding::print(key, data)).collect();
    print(ME, &tables.ok_or_else(bad)?.concat())
}

/// `setmaillist BIN TMP`: the list on standard input becomes BIN.
///
/// # Errors
/// It is no list, or it cannot be read or written.
pub fn setmaillist(args: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("setmaillist");
    let [path, tmp, ..] = args else { return Err(ME.usage("list.bin list.tmp")) };
    let list = forwarding::compile_list(&read(ME)?).map_err(|fault| ME.temporary(fault))?;
    write(ME, &list, (tmp, path), Readers::Everybody)
}

/// `printmaillist`: the binary list on standard input as lines.
///
/// # Errors
/// It is no such list (permanent), or it cannot be read.
pub fn printmaillist(_: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("printmaillist");
    let text = read(ME)?;
    let is_list = |part: &[u8]| matches!(part.first(), Some(b'&' | b'.' | b'/'));
    let commands = match text.split_last() {
        None => return Ok(0),
        Some((0, commands)) if commands.split(|b| *b == 0).all(is_list) && !commands.contains(&b'\n') => commands,
        Some(_) => return Err(ME.permanent("bad mailing list format")),
    };
    let lines: Vec<u8> = commands.iter().map(|b| if *b == 0 { b'\n' } else { *b }).chain([b'\n']).collect();
    print(ME, &lines)
}
