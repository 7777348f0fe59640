//! `users/assign` and its compiled form `users/cdb`: which local part belongs to which user (qmail-users(5)).
//!
//! Lines `=local:user:uid:gid:home:dash:ext:` for one local part, `+prefix:user:uid:gid:home:dash:pre:` for all that begin
//! with a prefix; a line that begins with `.` ends the file. Exact wins over wildcard, the longest wildcard wins, the first of
//! equal lines wins; case does not count, but what a wildcard appends to `pre` keeps its case.
//! cdb keys: `!local NUL`, `!prefix`, and the empty key for the last bytes of all prefixes, which saves needless probes.

use std::collections::HashMap;

use wire::cdb;

use crate::{Id, LineError, number};

/// Longest value that a reader takes from `users/cdb`.
pub const DATA_LEN_MAX: usize = 16 * 1024;

/// Who a local part belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub user: Vec<u8>,
    pub id: Id,
    pub home: Vec<u8>,
    pub dash: Vec<u8>,
    pub ext: Vec<u8>,
}

impl Entry {
    /// Reads the value of a record, `user NUL uid NUL gid NUL home NUL dash NUL ext`; `None` for any other form.
    #[must_use]
    pub fn from_data(data: &[u8]) -> Option<Self> {
        let mut fields = data.split(|b| *b == 0);
        let user = fields.next()?.to_vec();
        let uid = number(fields.next()?)?;
        let gid = number(fields.next()?)?;
        let mut bytes = || fields.next().map(<[u8]>::to_vec);
        let (home, dash, ext) = (bytes()?, bytes()?, bytes()?);
        fields.next().is_none().then_some(Self { user, id: Id { uid, gid }, home, dash, ext })
    }
}

/// Why a lookup gave no answer; both are temporary.
#[derive(Debug, PartialEq, Eq)]
pub enum LookupError<E> {
    /// The database could not be read.
    Read(E),
    /// A record is not of the form of [`Entry::from_data`].
    Malformed,
}

/// Looks a local part up in a database with the keys of `users/cdb`; `get` answers one key.
///
/// # Errors
/// What `get` says, or a record that means nothing; temporary.
pub fn lookup<E>(
    local: &[u8],
    mut get: impl FnMut(&[u8]) -> Result<Option<Vec<u8>>, E>,
) -> Result<Option<Entry>, LookupError<E>> {
    let key = [b"!", local, b"\0"].concat().to_ascii_lowercase();
    if let Some(found) = record(&mut get, &key)? {
        return Ok(Some(found));
    }
    let last_bytes = get(b"").map_err(LookupError::Read)?.unwrap_or_default();
    for prefix_len in (0..=local.len()).rev() {
        let prefix = key.get(..prefix_len.saturating_add(1)).unwrap_or_default();
        let probe = prefix_len == 0 || prefix.last().is_some_and(|last| last_bytes.contains(last));
        if !probe {
            continue;
        }
        if let Some(mut found) = record(&mut get, prefix)? {
            found.ext.extend_from_slice(local.get(prefix_len..).unwrap_or_default());
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn record<E>(mut get: impl FnMut(&[u8]) -> Result<Option<Vec<u8>>, E>, key: &[u8]) -> Result<Option<Entry>, LookupError<E>> {
    let data = get(key).map_err(LookupError::Read)?;
    data.map(|data| Entry::from_data(&data).ok_or(LookupError::Malformed)).transpose()
}

/// A parsed `users/assign`.
///
/// A line that cannot be read speaks for the local parts that it names all the same: whose they are is not known until it is
/// repaired, and whose the others are is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assign {
    /// In the order of the file, duplicates too. What a faulty line names has no value.
    records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    index: HashMap<Vec<u8>, usize>,
    /// Each with the place of its record.
    faults: Vec<(usize, LineError)>,
}

impl Assign {
    /// Reads the text, checking what qmail-newu checks and that uid and gid are numbers; [`Assign::faults`] has what it finds.
    ///
    /// # Errors
    /// No final `.` line (the file may have been cut short); temporary.
    pub fn parse(text: &[u8]) -> Result<Self, LineError> {
        let mut assign = Self::default();
        let mut last_bytes = Vec::new();
        for (line, number) in text.split_inclusive(|b| *b == b'\n').zip(1..) {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            if line.first() == Some(&b'.') {
                assign.add(Vec::new(), Some(last_bytes));
                return Ok(assign);
            }
            let key = key(line);
            if let Some(last) = key.last().filter(|last| key.len() > 1 && **last != 0 && !last_bytes.contains(*last)) {
                last_bytes.push(*last);
            }
            let data = data(line).map_err(|problem| assign.faults.push((assign.records.len(), LineError::new(number, problem))));
            assign.add(key, data.ok());
        }
        Err(LineError::new(0, "the last line must be a single dot; is the file whole?"))
    }

    fn add(&mut self, key: Vec<u8>, data: Option<Vec<u8>>) {
        self.index.entry(key.clone()).or_insert(self.records.len());
        self.records.push((key, data));
    }

    /// Whose is this local part?
    ///
    /// # Errors
    /// The line that would say so cannot be read; temporary.
    pub fn lookup(&self, local: &[u8]) -> Result<Option<Entry>, LineError> {
        let get = |key: &[u8]| {
            let Some((at, (_, data))) = self.index.get(key).and_then(|at| Some((*at, self.records.get(*at)?))) else {
                return Ok(None);
            };
            let fault = || self.faults.iter().find(|(of, _)| *of == at).map(|(_, fault)| fault.clone());
            data.clone().map(Some).ok_or_else(|| fault().unwrap_or_else(|| LineError::new(0, FORM)))
        };
        lookup(local, get).map_err(|error| match error {
            LookupError::Read(fault) => fault,
            // `parse` has read each value.
            LookupError::Malformed => LineError::new(0, FORM),
        })
    }

    /// The lines that cannot be read, in their order.
    pub fn faults(&self) -> impl Iterator<Item = &LineError> {
        self.faults.iter().map(|(_, fault)| fault)
    }

    /// Whom the lines name, in their order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.records.iter().filter(|(key, _)| !key.is_empty()).filter_map(|(_, data)| Entry::from_data(data.as_ref()?))
    }

    /// The bytes of `users/cdb`; `None` if a line is faulty or it would pass 4 GiB.
    #[must_use]
    pub fn to_cdb(&self) -> Option<Vec<u8>> {
        let mut writer = cdb::Writer::new();
        for (key, data) in &self.records {
            writer.add(key, data.as_ref()?);
        }
        writer.finish()
    }
}

const FORM: &str = "must be =local:user:uid:gid:home:dash:ext: or +prefix:user:uid:gid:home:dash:pre:";

/// The cdb key of a line, also of one that has no more than this in order.
fn key(line: &[u8]) -> Vec<u8> {
    let (kind, rest) = line.split_first().unwrap_or((&b'=', b""));
    let local = rest.split(|b| *b == b':').next().unwrap_or_default();
    let mut key = [b"!", local].concat().to_ascii_lowercase();
    // As in the reference, every first byte but `+` means an exact line.
    if *kind != b'+' {
        key.push(0);
    }
    key
}

/// The value of a line.
fn data(line: &[u8]) -> Result<Vec<u8>, &'static str> {
    if line.contains(&0) {
        return Err("holds a NUL");
    }
    let mut fields = line.splitn(8, |b| *b == b':');
    if fields.next().unwrap_or_default().is_empty() {
        return Err(FORM);
    }
    let values: Vec<_> = fields.by_ref().take(6).collect();
    // The seventh colon ends `ext`; what stands behind it does not count.
    if values.len() < 6 || fields.next().is_none() {
        return Err(FORM);
    }
    let data = values.join(&0);
    Entry::from_data(&data).ok_or("uid and gid must be numbers")?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &[u8] = b"=joe.shmoe:joe:503:78:/home/joe:::\n\
        +joe-:joe:503:78:/home/joe:-::\n\
        +jo:jo:504:78:/home/jo:-:pre-:\n\
        =joe-X:x:505:79:/home/x:-:e:junk:more\n\
        =joe-x:second:506:79:/:::\n\
        +:alias:7790:2108:/var/qmail/alias:-::\n\
        .\n\
        what follows the dot is not read";

    fn found(entry: Option<Entry>) -> (String, u32, String, String) {
        let entry = entry.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(entry.user), entry.id.uid, text(entry.dash), text(entry.ext))
    }

    #[test]
    fn lookup_table_in_text_and_cdb() {
        let assign = Assign::parse(FILE).unwrap();
        let cdb_file = assign.to_cdb().unwrap();
        let table = [
            ("joe.shmoe", "joe", 503, "", ""),
            ("JOE.Shmoe", "joe", 503, "", ""),
            ("joe-Bar", "joe", 503, "-", "Bar"),
            ("joe-", "joe", 503, "-", ""),
            ("joe-x", "x", 505, "-", "e"),
            ("joe-xy", "joe", 503, "-", "xy"),
            ("jo", "jo", 504, "-", "pre-"),
            ("joe", "jo", 504, "-", "pre-e"),
            ("Other", "alias", 7790, "-", "Other"),
            ("", "alias", 7790, "-", ""),
        ];
        for (local, user, uid, dash, ext) in table {
            let expected = (user.to_owned(), uid, dash.to_owned(), ext.to_owned());
            assert_eq!(found(assign.lookup(local.as_bytes()).unwrap()), expected, "{local}");
            let by_cdb = lookup(local.as_bytes(), |key| cdb::find(&cdb_file[..], key, DATA_LEN_MAX)).unwrap();
            assert_eq!(found(by_cdb), expected, "{local} in cdb");
        }
    }

    #[test]
    fn keys_and_data_are_as_qmail_users_says() {
        let cdb_file = Assign::parse(FILE).unwrap().to_cdb().unwrap();
        let get = |key: &[u8]| cdb::find(&cdb_file[..], key, DATA_LEN_MAX).unwrap();
        assert_eq!(get(b"!joe.shmoe\0").unwrap(), b"joe\x00503\x0078\0/home/joe\0\0");
        assert_eq!(get(b"!joe-").unwrap(), b"joe\x00503\x0078\0/home/joe\0-\0");
        assert_eq!(get(b"").unwrap(), b"-o");
        assert_eq!(get(b"!").unwrap(), b"alias\x007790\x002108\0/var/qmail/alias\0-\0");
    }

    #[test]
    fn names_what_is_wrong() {
        let good = "=a:a:1:2:/a:::\n";
        let faults = |text: &[u8]| match Assign::parse(text) {
            Ok(assign) => assign.faults().map(|fault| fault.line).collect(),
            Err(error) => vec![error.line],
        };
        for (bad, line) in [
            ("=a:a:1:2:/a::\n.\n", 2),
            ("=a:a:x:2:/a:::\n.\n", 2),
            ("=a:a:1::/a:::\n.\n", 2),
            (":a:1:2:/a:::\n.\n", 2),
            ("\n.\n", 2),
            ("=a\0:a:1:2:/a:::\n.\n", 2),
            ("=b:b:1:2:/b:::", 0),
            ("", 0),
            ("\n", 0),
        ] {
            assert_eq!(faults(format!("{good}{bad}").as_bytes()), [line], "{bad:?}");
        }
        assert_eq!(Assign::parse(b".").unwrap().lookup(b"x"), Ok(None));
    }

    #[test]
    fn a_faulty_line_is_in_the_way_of_those_that_it_names_and_of_nobody_else() {
        let text = b"=ann:ann:1001:1:/ann:::\n=bob:bob:l002:1:/bob:::\n+bob-:bob:1002:1\n\n=Cut\n\
            =ann:again:x:1:/:::\n+bob-ok:fine:1003:1:/fine:::\n+:alias:1:1:/alias:-::\n.\n";
        let assign = Assign::parse(text).unwrap();
        assert_eq!(assign.faults().map(|fault| fault.line).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        for (local, expected) in [
            ("ann", Ok("ann")),
            ("bob", Err(2)),
            ("BOB", Err(2)),
            ("bob-x", Err(3)),
            ("bob-okay", Ok("fine")),
            ("cut", Err(5)),
            ("dave", Ok("alias")),
        ] {
            let got = assign.lookup(local.as_bytes()).map(|entry| String::from_utf8(entry.unwrap().user).unwrap());
            assert_eq!(got.map_err(|fault| fault.line), expected.map(str::to_owned), "{local}");
        }
        assert_eq!(assign.to_cdb(), None, "what is compiled is whole");
        assert_eq!(assign.entries().count(), 3);
    }

    #[test]
    fn a_malformed_record_is_an_error_not_a_user() {
        for data in [&b""[..], b"a\x001\x002\0/\0", b"a\x001\x002\0/\0\0\0", b"a\0-1\x002\0/\0\0"] {
            let got = lookup(b"a", |key| Ok::<_, ()>((key == b"!a\0").then(|| data.to_vec())));
            assert_eq!(got, Err(LookupError::Malformed), "{}", data.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn cdb_and_text_agree(lines in proptest::collection::vec(("[=+]", "[aAb-]{0,4}", 1u32..9), 0..12), local in "[aAbB-]{0,6}") {
            let text: String = lines.iter().map(|(kind, name, uid)| format!("{kind}{name}:u:{uid}:1:/:-:p:\n")).collect();
            let assign = Assign::parse(format!("{text}.\n").as_bytes()).unwrap();
            let cdb_file = assign.to_cdb().unwrap();
            let by_cdb = lookup(local.as_bytes(), |key| cdb::find(&cdb_file[..], key, DATA_LEN_MAX)).unwrap();
            prop_assert_eq!(&by_cdb, &assign.lookup(local.as_bytes()).unwrap());
            // The rule said another way: exact first, else the longest prefix, each time the first line.
            let low = local.to_lowercase();
            let exact = lines.iter().find(|(kind, name, _)| kind == "=" && name.to_lowercase() == low);
            let wild = (0..=low.len()).rev().find_map(|n| lines.iter().find(|(kind, name, _)| kind == "+" && name.to_lowercase() == low[..n]));
            prop_assert_eq!(by_cdb.map(|entry| entry.id.uid), exact.or(wild).map(|line| line.2));
        }
    }
}
