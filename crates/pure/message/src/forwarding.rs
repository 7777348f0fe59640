//! The forwarding database of fastforward(1): what stands in it (setforward(1), printforward(1)) and how a recipient is expanded.
//!
//! Keys: `:TARGET` with a list of commands, each with a NUL behind it, and `?TARGET` with the address that bounces of the target go to.
//! Targets are in lower case: `user@host`, `@host` for all of a host, `user@` for one name at all hosts. Commands: `&address`, `.file` or
//! `/file` (a mailing list in binary form, [`list_commands`]), `|program`, `!program` (with the lines of preline(1) before the message).
//! Every expansion ends: no address and no list is looked at twice, and [`EXPANDED_MAX`] bounds them all.

use std::collections::HashSet;

/// Longest recipient address in a table, in bytes.
pub const ADDRESS_LEN_MAX: usize = 800;
/// Longest command that an expansion follows, with its letter.
const COMMAND_LEN_MAX: usize = 900;
/// Most addresses and lists of one expansion.
pub const EXPANDED_MAX: usize = 1_000_000;
/// Longest value that is taken from a database, in bytes.
pub const DATA_LEN_MAX: usize = 64 << 20;

/// What is wrong with a table; the text is the classic one. Permanent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    MissingSemicolon,
    ExtraColon,
    ExtraComma,
    Nul,
    LongAddress,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::MissingSemicolon => "final instruction must end with semicolon",
            Self::ExtraColon => "double colons are not permitted",
            Self::ExtraComma => "commas are not permitted before colons",
            Self::Nul => "NUL bytes are not permitted",
            Self::LongAddress => "addresses over 800 bytes are not permitted",
        })
    }
}

/// A key and its data.
pub type Record = (Vec<u8>, Vec<u8>);

/// Reads the table of setforward(1): `TARGET: COMMAND, …;`. Blanks, line ends and comments from `#` on do not count, but behind a `\`.
///
/// # Errors
/// [`Fault`].
pub fn compile(text: &[u8]) -> Result<Vec<Record>, Fault> {
    let mut table = Table::default();
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'#' => {
                if !bytes.by_ref().any(|b| b == b'\n') {
                    break;
                }
            }
            b' ' | b'\n' | b'\t' => {}
            b':' if table.has_target => return Err(Fault::ExtraColon),
            b':' => table.has_target = true,
            b',' => table.end_command()?,
            b';' => {
                table.end_command()?;
                table.end_instruction();
            }
            b'\\' => {
                let Some(escaped) = bytes.next() else { break };
                table.push(escaped)?;
            }
            byte => table.push(byte)?,
        }
    }
    if table.has_target || !table.target.is_empty() { Err(Fault::MissingSemicolon) } else { Ok(table.records) }
}

#[derive(Default)]
struct Table {
    target: Vec<u8>,
    has_target: bool,
    command: Vec<u8>,
    commands: Vec<u8>,
    records: Vec<Record>,
}

impl Table {
    fn push(&mut self, byte: u8) -> Result<(), Fault> {
        if byte == 0 {
            return Err(Fault::Nul);
        }
        if self.has_target {
            self.command.push(byte)
        } else {
            self.target.push(byte)
        }
        Ok(())
    }

    fn record(&mut self, kind: u8, data: Vec<u8>) {
        self.records.push(([&[kind], &self.target[..]].concat().to_ascii_lowercase(), data));
    }

    fn end_command(&mut self) -> Result<(), Fault> {
        if !self.has_target {
            return Err(Fault::ExtraComma);
        }
        let command = std::mem::take(&mut self.command);
        match command.first() {
            None => {}
            Some(b'?') => self.record(b'?', command.get(1..).unwrap_or_default().to_vec()),
            Some(b'|' | b'!' | b'.' | b'/') => self.add(b"", &command),
            Some(_) => {
                let address = command.strip_prefix(b"&").unwrap_or(&command);
                if address.len() > ADDRESS_LEN_MAX {
                    return Err(Fault::LongAddress);
                }
                self.add(b"&", address);
            }
        }
        Ok(())
    }

    fn add(&mut self, before: &[u8], command: &[u8]) {
        self.commands.extend_from_slice(before);
        self.commands.extend_from_slice(command);
        self.commands.push(0);
    }

    fn end_instruction(&mut self) {
        let commands = std::mem::take(&mut self.commands);
        if !commands.is_empty() {
            self.record(b':', commands);
        }
        self.target.clear();
        self.has_target = false;
    }
}

/// A record as the table of setforward(1) has it; `None` for one that is none of this database.
#[must_use]
pub fn print(key: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let (kind, target) = key.split_first()?;
    let mut out = escaped(target);
    match kind {
        b'?' => {
            out.extend_from_slice(b": ?");
            out.extend(escaped(data));
        }
        b':' => {
            out.extend_from_slice(b":\n");
            for command in data.strip_suffix(b"\0").unwrap_or(data).split(|b| *b == 0) {
                out.extend_from_slice(b", ");
                out.extend(escaped(command));
                out.push(b'\n');
            }
        }
        _ => return None,
    }
    out.extend_from_slice(b";\n");
    Some(out)
}

/// With a `\` before all that would be read as something else.
fn escaped(text: &[u8]) -> Vec<u8> {
    let needs = |b: u8| matches!(b, b' ' | b'\t' | b'\n' | b'#' | b':' | b',' | b';' | b'\\');
    text.iter().flat_map(|b| if needs(*b) { vec![b'\\', *b] } else { vec![*b] }).collect()
}

/// The commands of a mailing list in binary form: `&address` and `.file` or `/file`, each with a NUL behind it. Others do not count.
pub fn list_commands(data: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let end = memchr::memrchr(0, data).unwrap_or(0);
    let parts = data.get(..end).unwrap_or_default().split(|b| *b == 0);
    parts.filter(|part| match part.first() {
        Some(b'.' | b'/') => true,
        Some(b'&') => part.len() < COMMAND_LEN_MAX,
        _ => false,
    })
}

/// Lines of setmaillist(1) in binary form: `&address`, an address that begins otherwise, or a file that begins with a dot or slash.
///
/// # Errors
/// The text for the error: a NUL, or an address that is too long. Permanent.
pub fn compile_list(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        if line.contains(&0) {
            return Err("NUL in input");
        }
        let end = line.iter().rposition(|b| !matches!(b, b' ' | b'\t')).map_or(0, |at| at.saturating_add(1));
        let line = line.get(..end).unwrap_or_default();
        match line.first() {
            None | Some(b'#') => continue,
            Some(b'.' | b'/') => {}
            Some(_) if line.len() >= ADDRESS_LEN_MAX => return Err("addresses must be under 800 bytes"),
            Some(b'&') => {}
            Some(_) => out.push(b'&'),
        }
        out.extend_from_slice(line);
        out.push(0);
    }
    Ok(out)
}

/// Where an expansion looks.
pub trait Source {
    type Error;
    /// The data of a key of the database.
    ///
    /// # Errors
    /// It cannot be read; temporary.
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error>;
    /// The bytes of a mailing list.
    ///
    /// # Errors
    /// It cannot be read; temporary.
    fn list(&mut self, file: &[u8]) -> Result<Vec<u8>, Self::Error>;
    /// Runs a command line, with its `|` or `!` in front.
    ///
    /// # Errors
    /// It failed.
    fn program(&mut self, command: &[u8]) -> Result<(), Self::Error>;
    /// There are more than [`EXPANDED_MAX`].
    fn too_many(&mut self) -> Self::Error;
}

/// What a recipient stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expansion {
    /// The new sender.
    pub sender: Vec<u8>,
    /// In the order of an envelope.
    pub recipients: Vec<Vec<u8>>,
}

/// Expands a recipient; programs are run as they are met. `None`: it is no target.
///
/// # Errors
/// What the source says.
pub fn expand<S: Source>(source: &mut S, recipient: &[u8], sender: &[u8]) -> Result<Option<Expansion>, S::Error> {
    let mut sender = sender.to_vec();
    if !sender.is_empty()
        && sender != b"#@[]"
        && let Some(owner) = find(source, b"?", recipient)?
    {
        sender = owner;
    }
    let Some(data) = find(source, b":", recipient)? else { return Ok(None) };
    let mut done: HashSet<Vec<u8>> = HashSet::from([recipient.to_vec()]);
    let mut forward: Vec<Vec<u8>> = Vec::new();
    let mut todo: Vec<Vec<u8>> = Vec::new();
    follow(source, &data, &mut todo)?;
    while let Some(command) = todo.pop() {
        if !done.insert(command.clone()) {
            continue;
        }
        if done.len() > EXPANDED_MAX || todo.len() > EXPANDED_MAX {
            return Err(source.too_many());
        }
        match command.split_first() {
            Some((b'.' | b'/', _)) => {
                let list = source.list(&command)?;
                todo.extend(list_commands(&list).map(<[u8]>::to_vec));
            }
            Some((_, address)) => match inner(source, address)? {
                Some(data) => follow(source, &data, &mut todo)?,
                None => forward.push(address.to_vec()),
            },
            None => {}
        }
    }
    forward.reverse();
    Ok(Some(Expansion { sender, recipients: forward }))
}

/// The commands of an address that stands within another target: as that address stands there, and only if it has no owner of its own
/// (then it is mailed to, so that its list gets its own sender).
fn inner<S: Source>(source: &mut S, address: &[u8]) -> Result<Option<Vec<u8>>, S::Error> {
    let key = |kind: &[u8]| [kind, address].concat().to_ascii_lowercase();
    if source.get(&key(b"?"))?.is_some() {
        return Ok(None);
    }
    source.get(&key(b":"))
}

/// Runs the programs of a target and notes the rest.
fn follow<S: Source>(source: &mut S, data: &[u8], todo: &mut Vec<Vec<u8>>) -> Result<(), S::Error> {
    let end = memchr::memrchr(0, data).unwrap_or(0);
    for command in data.get(..end).unwrap_or_default().split(|b| *b == 0) {
        match command.first() {
            Some(b'|' | b'!') => source.program(command)?,
            Some(b'.' | b'/') => todo.push(command.to_vec()),
            Some(b'&') if command.len() < COMMAND_LEN_MAX => todo.push(command.to_vec()),
            _ => {}
        }
    }
    Ok(())
}

/// The data of a recipient's own target, of its host's, or of its name's.
fn find<S: Source>(source: &mut S, kind: &[u8], address: &[u8]) -> Result<Option<Vec<u8>>, S::Error> {
    let mut probes = vec![address];
    if let Some(at) = memchr::memrchr(b'@', address) {
        probes.extend([address.get(at..), address.get(..=at)].into_iter().flatten());
    }
    for probe in probes {
        if let Some(data) = source.get(&[kind, probe].concat().to_ascii_lowercase())? {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    struct Map {
        records: BTreeMap<Vec<u8>, Vec<u8>>,
        run: Vec<Vec<u8>>,
    }

    impl Source for Map {
        type Error = String;

        fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
            Ok(self.records.get(key).cloned())
        }

        fn list(&mut self, file: &[u8]) -> Result<Vec<u8>, String> {
            if file == b"/l" { Ok(b"&z@q\0&a@b\0junk\0/l\0".to_vec()) } else { Err("no list".to_owned()) }
        }

        fn program(&mut self, command: &[u8]) -> Result<(), String> {
            self.run.push(command.to_vec());
            Ok(())
        }

        fn too_many(&mut self) -> String {
            "too many".to_owned()
        }
    }

    fn map(text: &str) -> Map {
        let mut records = BTreeMap::new();
        for (key, data) in compile(text.as_bytes()).unwrap() {
            records.entry(key).or_insert(data);
        }
        Map { records, run: Vec::new() }
    }

    const TABLE: &str = "a@b: c@d, x@y; @b: &def@q; bob@: |run\\ me, /l; ls@x: m1@x, m2@x, ?own@x;
        ls2@x: ls@x, m1@x; own2@x: ?a; loop@x: loop2@x; loop2@x: loop@x, a@b; # comment ;";

    #[test]
    fn expansions() {
        for (recipient, expected) in [
            ("a@b", "s@s c@d x@y"),
            ("A@B", "s@s c@d x@y"),
            ("zz@b", "s@s def@q"),
            ("bob@zz", "s@s z@q c@d x@y |run me"),
            ("ls@x", "own@x m1@x m2@x"),
            ("ls2@x", "s@s ls@x m1@x"),
            ("loop@x", "s@s c@d x@y"),
            ("nobody@zz", "none"),
            ("own2@x", "none"),
            ("", "none"),
        ] {
            let mut map = map(TABLE);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let got = match expand(&mut map, recipient.as_bytes(), b"s@s").unwrap() {
                None => "none".to_owned(),
                Some(expansion) => {
                    let parts = [vec![expansion.sender], expansion.recipients, map.run].concat();
                    parts.iter().map(|part| text(part)).collect::<Vec<_>>().join(" ")
                }
            };
            assert_eq!(got, expected, "{recipient}");
        }
    }

    #[test]
    fn bounces_keep_their_sender() {
        for sender in ["", "#@[]"] {
            assert_eq!(expand(&mut map(TABLE), b"ls@x", sender.as_bytes()).unwrap().unwrap().sender, sender.as_bytes());
        }
    }

    #[test]
    fn tables_that_are_none() {
        for (text, fault) in [
            ("a:b", Fault::MissingSemicolon),
            ("a", Fault::MissingSemicolon),
            ("a:b; c\\", Fault::MissingSemicolon),
            ("a,b;", Fault::ExtraComma),
            (";", Fault::ExtraComma),
            ("a:b:c;", Fault::ExtraColon),
            ("a:b\0;", Fault::Nul),
            ("a:\\\0;", Fault::Nul),
            (&format!("a:{};", "x".repeat(801)), Fault::LongAddress),
        ] {
            assert_eq!(compile(text.as_bytes()), Err(fault), "{text}");
        }
        assert_eq!(compile(b"a:;# x").unwrap(), []);
        assert!(compile(format!("a:{};", "x".repeat(800)).as_bytes()).is_ok());
    }

    #[test]
    fn what_is_printed_reads_back() {
        let text = "a\\ b: c\\;d, |x\\:y, ?own\\,er; @h: /l;";
        let records = compile(text.as_bytes()).unwrap();
        let printed: Vec<u8> = records.iter().flat_map(|(key, data)| print(key, data).unwrap()).collect();
        assert_eq!(String::from_utf8_lossy(&printed), "a\\ b: ?own\\,er;\na\\ b:\n, &c\\;d\n, |x\\:y\n;\n@h:\n, /l\n;\n");
        assert_eq!(compile(&printed).unwrap(), records);
        assert_eq!(print(b"x", b""), None);
    }

    #[test]
    fn mailing_lists() {
        let list = compile_list(b"z@q \n.foo.bin\n# x\n@odd@e\n&amp@x\n\n/l").unwrap();
        assert_eq!(list, b"&z@q\0.foo.bin\0&@odd@e\0&amp@x\0/l\0");
        assert_eq!(list_commands(&list).count(), 5);
        assert_eq!(list_commands(b"&a\0&b").count(), 1);
        assert!(compile_list(b"a\0b").is_err() && compile_list(&[b'x'; 800]).is_err());
    }
}
