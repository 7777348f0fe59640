//! A classic queue as it lies on the disk: which messages there are, in which state, and each of them whole.
//!
//! | files of message N | state | what is done |
//! |---|---|---|
//! | mess and todo | accepted, not preprocessed | imported; info, local, remote are half made and do not count |
//! | mess and info | preprocessed, perhaps half done | imported with what local, remote and bounce say |
//! | mess alone, or with intd | never accepted | a leftover |
//! | todo or info without mess | lost | damaged |
//! | anything else | – | a leftover |

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use classicqueue::{Mark, Marked, Paragraph, layout};
use control::Root;
use ipc::import::Became;
use sha2::{Digest as _, Sha256};
use users::{HostSet, Routed, Routing, VirtualDomains};
use wire::Address;

use crate::{Failure, cli, io_failure};

/// Longest file of an envelope: the recipients that qmail-send takes, with their marks, fit twice.
const ENVELOPE_LEN_MAX: u64 = 32 << 20;
/// Recipients of a file, far more than qmail-send takes: what is short on the disk is long in memory.
const RECORDS_MAX: usize = 1_000_000;
/// What was collected for a bounce: more is not for anybody to read.
const BOUNCE_LEN_MAX: u64 = 32 << 20;
const CHUNK_LEN: usize = 64 * 1024;

/// The directories, in the order of [`Files`].
const DIRS: [&str; 7] = ["mess", "info", "local", "remote", "bounce", "todo", "intd"];
const MESS: usize = 0;
const INFO: usize = 1;
const LOCAL: usize = 2;
const REMOTE: usize = 3;
const BOUNCE: usize = 4;
const TODO: usize = 5;

/// The files of a message.
type Files = [Option<PathBuf>; 7];
/// A file and what is the matter with it.
pub(super) type Problem = (PathBuf, String);

/// Where the recipients of the classic qmail were, and where they are here.
pub(super) struct Places {
    there: Routing,
    here: Routing,
    reroute: bool,
}

impl Places {
    /// # Errors
    /// Control files unreadable.
    pub(super) fn read(root: &Root, options: &cli::ImportQueue, remarks: &mut Vec<String>) -> Result<Self, Failure> {
        let here = root.routing().map_err(|error| Failure::temporary(error.to_string()))?;
        let beside = options.dir.parent().map(|above| above.join("control")).filter(|control| control.is_dir());
        let there = match options.control.as_ref().or(beside.as_ref()) {
            Some(control) => classic_routing(control)?,
            None => {
                remarks.push(
                    "no control directory is beside the queue: the prefixes of virtualdomains are taken to be those of here"
                        .to_owned(),
                );
                here.clone()
            }
        };
        Ok(Self { there, here, reroute: options.reroute })
    }

    /// The prefix that virtualdomains gave there is taken away; of a domain that is one of users/domains here the one that vpopmail gives, too.
    fn without_prefix(&self, address: &Address) -> Address {
        let known = self.there.without_prefix(address);
        let domain = address.domain().unwrap_or_default();
        let of_domain = || {
            let (front, rest) = known.split_at_checked(domain.len())?;
            rest.strip_prefix(b"-")
                .filter(|_| front.eq_ignore_ascii_case(domain) && self.here.virtual_domains.get(domain).is_some())
        };
        let known = if known == address.as_bytes() { of_domain().unwrap_or(known) } else { known };
        Address::new(known).unwrap_or_else(|_| address.clone())
    }

    /// A local recipient as its sender knew it: it gets its prefix here anew.
    fn of_local(&self, address: &Address) -> Result<Address, String> {
        let known = self.without_prefix(address);
        let is_local = self.here.rewrite(&known).is_ok_and(|routed| matches!(routed, Routed::Local(_) | Routed::Virtual(_)));
        if is_local || self.reroute {
            return Ok(known);
        }
        let domain = wire::escape::visible(known.domain().unwrap_or_default());
        Err(format!(
            "its recipient {known} was local there and is not here: add {domain} to locals, virtualdomains or the virtual domains, or give --reroute"
        ))
    }
}

fn classic_routing(control: &Path) -> Result<Routing, Failure> {
    let read = |name: &str| super::super::read_file(&control.join(name));
    let me = read("me")?.unwrap_or_default();
    let me = control::read::line_of(&me).to_vec();
    let locals = match read("locals")? {
        Some(text) => HostSet::parse(&text),
        None => [me.clone()].into_iter().collect(),
    };
    let virtualdomains = read("virtualdomains")?.unwrap_or_default();
    Ok(Routing::new(VirtualDomains::default(), locals, HostSet::default(), me, &virtualdomains))
}

/// See the module.
pub(super) struct Source {
    messages: BTreeMap<u64, Files>,
    problems: Vec<Problem>,
    leftovers: Vec<Problem>,
}

/// A message whole.
pub(super) struct Message {
    pub(super) number: u64,
    /// SHA-256 over number, sender and body, in hexadecimal digits: what no attempt and no control file changes.
    pub(super) key: String,
    pub(super) sender: Address,
    pub(super) arrival_s: u64,
    pub(super) uid: u32,
    pub(super) pid: u32,
    pub(super) recipients: Vec<(Address, Became)>,
    pub(super) body: PathBuf,
    pub(super) body_len: u64,
    pub(super) is_eight_bit: bool,
}

pub(super) enum Loaded {
    Message(Box<Message>),
    /// Nothing of it is left to do.
    Finished,
}

impl Source {
    /// Looks at all names.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub(super) fn scan(dir: &Path) -> Result<Self, Failure> {
        let mut source = Self { messages: BTreeMap::new(), problems: Vec::new(), leftovers: Vec::new() };
        for (kind, name) in DIRS.iter().enumerate() {
            source.directory(kind, &dir.join(name), true)?;
        }
        let pids = list(&dir.join("pid"))?;
        source.leftovers.extend(pids.into_iter().map(|path| (path, "a message that was never whole".to_owned())));
        source.sort_out();
        Ok(source)
    }

    /// A flat or a split directory.
    fn directory(&mut self, kind: usize, dir: &Path, may_be_split: bool) -> Result<(), Failure> {
        for path in list(dir)? {
            let Some(number) = path.file_name().and_then(|name| layout::number(name.as_bytes())) else {
                self.leftovers.push((path, "its name is no message's".to_owned()));
                continue;
            };
            let metadata = std::fs::symlink_metadata(&path).map_err(|error| io_failure(&path, &error))?;
            if metadata.is_dir() && may_be_split {
                self.directory(kind, &path, false)?;
                continue;
            }
            let files = self.messages.entry(number).or_default();
            match files.get_mut(kind) {
                Some(Some(other)) => {
                    let why = format!("the message has the same file twice: {}", other.display());
                    self.problems.push((path, why));
                }
                Some(place) => *place = Some(path),
                None => {}
            }
        }
        Ok(())
    }

    /// Takes out what is no message of the queue.
    fn sort_out(&mut self) {
        let doubled: Vec<u64> =
            self.problems.iter().filter_map(|(path, _)| layout::number(path.file_name()?.as_bytes())).collect();
        let (problems, leftovers) = (&mut self.problems, &mut self.leftovers);
        self.messages.retain(|number, files| {
            let has = |kind: usize| files.get(kind).is_some_and(Option::is_some);
            if has(MESS) && (has(TODO) || has(INFO)) {
                return !doubled.contains(number);
            }
            let is_lost = !has(MESS) && (has(TODO) || has(INFO));
            let (list, why) = match (is_lost, has(MESS)) {
                (true, _) => (&mut *problems, "its message is not there any more"),
                (false, true) => (&mut *leftovers, "it was never accepted"),
                (false, false) => (&mut *leftovers, "it belongs to no message"),
            };
            list.extend(files.iter_mut().filter_map(Option::take).map(|path| (path, why.to_owned())));
            false
        });
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        self.problems.clone()
    }

    pub(super) fn leftovers(&self) -> Vec<Problem> {
        self.leftovers.clone()
    }

    /// The oldest first, as far as their directories tell.
    pub(super) fn messages(&self) -> Vec<u64> {
        let age = |files: &Files| {
            let file = files.get(TODO).and_then(Option::as_ref).or(files.get(INFO).and_then(Option::as_ref));
            file.and_then(|file| std::fs::symlink_metadata(file).ok()).map_or(0, |metadata| metadata.mtime())
        };
        let mut all: Vec<(i64, u64)> = self.messages.iter().map(|(number, files)| (age(files), *number)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, number)| number).collect()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// The file that is damaged, and how.
    pub(super) fn load(&self, number: u64, places: &Places) -> Result<Loaded, Problem> {
        let none = Files::default();
        let files = self.messages.get(&number).unwrap_or(&none);
        let path = |kind: usize| files.get(kind).and_then(Option::as_ref);
        let mut message = match (path(TODO), path(INFO)) {
            (Some(todo), _) => from_todo(number, todo)?,
            (None, Some(info)) => {
                match from_info(number, info, path(LOCAL), path(REMOTE), path(BOUNCE).map(PathBuf::as_path), places)? {
                    Some(message) => message,
                    None => return Ok(Loaded::Finished),
                }
            }
            (None, None) => return Ok(Loaded::Finished),
        };
        if message.recipients.is_empty() {
            return Ok(Loaded::Finished);
        }
        message.body = path(MESS).cloned().unwrap_or_default();
        read_body(&mut message).map_err(|error| (message.body.clone(), error.to_string()))?;
        Ok(Loaded::Message(Box::new(message)))
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| io_failure(dir, &error))?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(|error| io_failure(dir, &error))).collect()
}

/// A whole file, if it is one and not longer than that.
fn read(path: &Path, len_max: u64) -> Result<(Vec<u8>, Metadata), Problem> {
    let problem = |error: io::Error| (path.to_owned(), error.to_string());
    let file = open(path).map_err(problem)?;
    let metadata = file.metadata().map_err(problem)?;
    if metadata.len() > len_max {
        return Err((path.to_owned(), format!("is longer than {len_max} bytes")));
    }
    let mut bytes = Vec::new();
    file.take(len_max).read_to_end(&mut bytes).map_err(problem)?;
    let records = bytes.iter().filter(|byte| **byte == 0).count();
    if records > RECORDS_MAX {
        return Err((path.to_owned(), format!("names more than {RECORDS_MAX} recipients")));
    }
    Ok((bytes, metadata))
}

pub(super) fn open(path: &Path) -> io::Result<File> {
    super::super::open_foreign(path)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn seconds(metadata: &Metadata) -> u64 {
    u64::try_from(metadata.mtime()).unwrap_or(0)
}

fn blank(number: u64, sender: Address, arrival_s: u64) -> Message {
    Message {
        number,
        key: String::new(),
        sender,
        arrival_s,
        uid: 0,
        pid: 0,
        recipients: Vec::new(),
        body: PathBuf::new(),
        body_len: 0,
        is_eight_bit: false,
    }
}

fn from_todo(number: u64, path: &Path) -> Result<Message, Problem> {
    let (bytes, metadata) = read(path, ENVELOPE_LEN_MAX)?;
    let todo = classicqueue::todo(&bytes).map_err(|damage| (path.to_owned(), damage.to_string()))?;
    let recipients = todo.recipients.into_iter().map(|to| (to, Became::Waits { due_s: 0 })).collect();
    Ok(Message { uid: todo.uid, pid: todo.pid, recipients, ..blank(number, todo.sender, seconds(&metadata)) })
}

/// `None`: all is done, and there is nothing to be bounced.
fn from_info(
    number: u64,
    info: &Path,
    local: Option<&PathBuf>,
    remote: Option<&PathBuf>,
    bounce: Option<&Path>,
    places: &Places,
) -> Result<Option<Message>, Problem> {
    let (bytes, metadata) = read(info, ENVELOPE_LEN_MAX)?;
    let sender = classicqueue::info(&bytes).map_err(|damage| (info.to_owned(), damage.to_string()))?;
    let mut message = blank(number, sender, seconds(&metadata));
    for (path, is_local) in [(local, true), (remote, false)] {
        let Some(path) = path else { continue };
        let (bytes, metadata) = read(path, ENVELOPE_LEN_MAX)?;
        let marked = classicqueue::marked(&bytes).map_err(|damage| (path.clone(), damage.to_string()))?;
        // Its next attempt; a file that was just made has none.
        let due_s = if seconds(&metadata) > message.arrival_s { seconds(&metadata) } else { 0 };
        for Marked { mark, address } in marked {
            let address = match (is_local, mark) {
                (true, Mark::Todo) => places.of_local(&address).map_err(|why| (path.clone(), why))?,
                (true, Mark::Done) => places.of_local(&address).unwrap_or(address),
                (false, _) => address,
            };
            let became = if mark == Mark::Done { Became::Done {} } else { Became::Waits { due_s } };
            message.recipients.push((address, became));
        }
    }
    if let Some(bounce) = bounce {
        let (text, _) = read(bounce, BOUNCE_LEN_MAX)?;
        let room = RECORDS_MAX.saturating_sub(message.recipients.len());
        if !fail(&mut message.recipients, classicqueue::paragraphs(&text), room) {
            return Err((bounce.to_owned(), format!("names more than {RECORDS_MAX} recipients")));
        }
    }
    let is_finished = message.recipients.iter().all(|(_, became)| *became == Became::Done {});
    Ok(if is_finished { None } else { Some(message) })
}

/// A recipient that is done and stands in the bounce has failed after all; another one there is one that the envelope has under another
/// name. False: they are more than there is room for.
fn fail(recipients: &mut Vec<(Address, Became)>, paragraphs: Vec<Paragraph>, room: usize) -> bool {
    let mut done: HashMap<Address, Vec<usize>> = HashMap::new();
    for (at, (address, became)) in recipients.iter().enumerate().rev() {
        if *became == (Became::Done {}) {
            done.entry(address.clone()).or_default().push(at);
        }
    }
    if paragraphs.len() > room {
        return false;
    }
    for paragraph in paragraphs {
        let address = paragraph.address.unwrap_or_default();
        let text = paragraph.report.get(..ipc::TEXT_LEN_MAX.min(paragraph.report.len())).unwrap_or_default().into();
        match done.get_mut(&address).and_then(Vec::pop).and_then(|at| recipients.get_mut(at)) {
            Some((_, became)) => *became = Became::Failed { text },
            None => recipients.push((address, Became::Failed { text })),
        }
    }
    true
}

/// Reads the body once: its length, whether it is in ASCII, and the key.
fn read_body(message: &mut Message) -> io::Result<()> {
    let file = open(&message.body)?;
    // One that grows is not followed without end.
    let len = file.metadata()?.len();
    let mut file = file.take(len);
    let mut hash = Sha256::new();
    hash.update(message.number.to_string());
    hash.update([0]);
    hash.update(message.sender.as_bytes());
    hash.update([0]);
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        let len = match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let bytes = chunk.get(..len).unwrap_or_default();
        hash.update(bytes);
        message.is_eight_bit = message.is_eight_bit || !bytes.is_ascii();
        message.body_len = message.body_len.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
    }
    message.key = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(())
}
