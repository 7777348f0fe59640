//! The start: from what is on the disk to the index, whatever stopped the last run.
//!
//! First everything is looked at (a newer format is refused with nothing changed), then `incoming/` is emptied, segments are
//! replayed in their order, voids are heeded, what is damaged is set aside in `quarantine/`, side files without a message go.
//! What the disk does not give at all stops the start, which names it: there may be ends of messages in it, which would be delivered
//! once more, and voids, without which messages would be that were answered 451. What cannot be removed or set aside does not.
//! It never writes into a segment of an earlier start.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::Path;

use sys::fs::{Access, Disk, DiskFile};

use crate::bytes::low32;
use crate::reader::side_path;
use crate::record::{Head, Located, Note};
use crate::segment::{self, DIR, Damage, Header, HeaderFault, RECORDS_AT, SPARE_NAME};
use crate::shared::Ready;
use crate::state::{Phase, Segment, State};
use crate::table::Table;
use crate::types::{Living, MessageId, SpoolError};

/// Directories of a spool.
pub(crate) const DIRS: [&str; 4] = [DIR, "incoming", "bodies", "quarantine"];

/// What the start found.
pub(crate) struct Recovered {
    pub(crate) state: State,
    pub(crate) living: Vec<Living>,
    pub(crate) ready: Ready,
    pub(crate) alerts: Vec<String>,
    pub(crate) damaged: u64,
    /// Segments whose header could not be read. None is left by a power cut.
    #[cfg_attr(not(test), expect(dead_code, reason = "the power-cut suite looks at it"))]
    pub(crate) headers_damaged: u64,
}

/// What [`Living`] shows of a message, but for its id.
#[derive(Clone, Copy)]
struct Glance {
    arrival_s: u64,
    due_s: u64,
    bytes: u64,
    recipients: u32,
    pending: u32,
    held: bool,
    sender_is_null: bool,
}

struct Names {
    /// Their files are opened one at a time: a long backlog has more of them than a process may have descriptors.
    segments: Vec<Header>,
    damaged: Vec<String>,
    free: Vec<String>,
    unfinished: Vec<String>,
    has_spare: bool,
    number: u64,
}

fn io(doing: &'static str) -> impl Fn(io::Error) -> SpoolError {
    move |error| SpoolError::Io { doing, error }
}

/// See the module.
///
/// # Errors
/// A newer format; a disk that cannot be read at all. A damaged spool is no error.
pub(crate) fn recover(disk: &dyn Disk) -> Result<Recovered, SpoolError> {
    let names = look(disk)?;
    make_dirs(disk)?;
    let mut replay = Replay::new(names.number, names.has_spare, names.free);
    for name in list(disk, "incoming")? {
        replay.remove(disk, format!("incoming/{name}").as_ref());
    }
    for name in &names.unfinished {
        replay.remove(disk, &segment::path(name));
    }
    for name in names.damaged {
        replay.damaged_header(disk, &name);
    }
    for header in &names.segments {
        let void = open_segment(disk, header).and_then(|file| replay.read_void(header, file.as_ref()));
        void.map_err(|error| unreadable(&segment::name(header.number), &error))?;
    }
    for header in &names.segments {
        let replayed = open_segment(disk, header).and_then(|file| replay.segment(disk, header, file.as_ref()));
        replayed.map_err(|error| unreadable(&segment::name(header.number), &error))?;
    }
    replay.free_the_empty(disk)?;
    replay.remove_orphans(disk)?;
    Ok(replay.finish())
}

fn list(disk: &dyn Disk, dir: &str) -> Result<Vec<String>, SpoolError> {
    let names = match disk.list(dir.as_ref()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        result => result.map_err(io("list a directory of the spool"))?,
    };
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

/// Reads names and headers; changes nothing.
fn look(disk: &dyn Disk) -> Result<Names, SpoolError> {
    let mut names = Names {
        segments: Vec::new(),
        damaged: Vec::new(),
        free: Vec::new(),
        unfinished: Vec::new(),
        has_spare: false,
        number: 0,
    };
    let mut stock = Vec::new();
    for name in list(disk, DIR)? {
        let number = segment::number_of(name.get(..16).unwrap_or_default());
        names.number = names.number.max(number.unwrap_or(0));
        match number {
            Some(number) if name.len() == 16 => look_at_segment(disk, &mut names, number, name)?,
            Some(_) if name.ends_with(".free") => stock.push(name),
            _ if name.ends_with(".new") => names.unfinished.push(name),
            _ if name == SPARE_NAME => stock.push(name),
            _ => {}
        }
    }
    // One that was set aside keeps its number: with it, ids would be given again.
    for name in list(disk, "quarantine")? {
        let number = name.strip_prefix("segment-").and_then(|rest| segment::number_of(rest.get(..16)?));
        names.number = names.number.max(number.unwrap_or(0));
    }
    sort_stock(disk, &mut names, stock)?;
    Ok(names)
}

/// No standard promises that a power cut leaves a rename whole: of a file with two names only one may be used, and never over a
/// segment. The nonce in its header tells.
fn sort_stock(disk: &dyn Disk, names: &mut Names, stock: Vec<String>) -> Result<(), SpoolError> {
    let mut known: BTreeSet<[u8; 16]> = names.segments.iter().map(|header| header.nonce.0).collect();
    for name in stock {
        let file = match disk.open(&segment::path(&name), Access::Read) {
            Ok(file) => file,
            // It holds nothing; what else the name's file may be has its other name.
            Err(error) if segment::is_damage(&error) => {
                names.unfinished.push(name);
                continue;
            }
            Err(error) => return Err(io("open a free segment")(error)),
        };
        let is_second_name = segment::read_header(file.as_ref()).is_ok_and(|header| !known.insert(header.nonce.0));
        if is_second_name {
            names.unfinished.push(name);
        } else if name == SPARE_NAME {
            names.has_spare = true;
        } else {
            names.free.push(name);
        }
    }
    Ok(())
}

fn look_at_segment(disk: &dyn Disk, names: &mut Names, number: u64, name: String) -> Result<(), SpoolError> {
    let opened = disk.open(&segment::path(&name), Access::Read);
    match opened.map_err(HeaderFault::Io).and_then(|file| segment::read_header(file.as_ref())) {
        Ok(header) if header.number == number => names.segments.push(header),
        Err(HeaderFault::Newer(found)) => {
            return Err(SpoolError::NewerFormat { file: format!("{DIR}/{name}"), found, supported: segment::FORMAT });
        }
        Err(HeaderFault::Io(error)) => return Err(unreadable(&name, &error)),
        Ok(_) | Err(HeaderFault::Damaged) => names.damaged.push(name),
    }
    Ok(())
}

fn unreadable(name: &str, error: &io::Error) -> SpoolError {
    let text =
        format!("{DIR}/{name}: {error}; nothing starts without it unless it is moved away, and then its messages are lost");
    SpoolError::Io { doing: "read a segment", error: io::Error::new(error.kind(), text) }
}

fn open_segment(disk: &dyn Disk, header: &Header) -> io::Result<Box<dyn DiskFile>> {
    disk.open(&segment::path(&segment::name(header.number)), Access::ReadWrite)
}

fn make_dirs(disk: &dyn Disk) -> Result<(), SpoolError> {
    for dir in DIRS {
        match disk.make_dir(dir.as_ref(), 0o700) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io("make a directory of the spool")(error)),
            _ => {}
        }
    }
    disk.sync_dir("".as_ref(), "directories").map_err(io("sync the spool directory"))
}

/// Copies bytes into `quarantine/`; `false` if they are there already.
pub(crate) fn set_aside(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<bool> {
    match disk.create(format!("quarantine/{name}").as_ref(), 0o600) {
        Ok(file) => {
            file.write_at(&[IoSlice::new(bytes)], 0)?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

struct Replay {
    state: State,
    glances: Table<Glance>,
    ready: Ready,
    alerts: Vec<String>,
    /// Voided segments, and from where on.
    voids: BTreeMap<u64, u64>,
    /// They stay for whoever looks into the damage, as long as they hold anything else that is needed.
    damaged_segments: BTreeSet<u64>,
    damaged: u64,
    headers_damaged: u64,
}

impl Replay {
    fn new(number: u64, has_spare: bool, free: Vec<String>) -> Self {
        let ready = Ready { number, has_spare, free, ..Ready::default() };
        let (state, glances, voids) = (State::default(), Table::default(), BTreeMap::new());
        Self {
            state,
            glances,
            ready,
            alerts: Vec::new(),
            voids,
            damaged_segments: BTreeSet::new(),
            damaged: 0,
            headers_damaged: 0,
        }
    }

    /// What cannot be removed now goes at a later start.
    fn remove(&mut self, disk: &dyn Disk, path: &Path) {
        if let Err(error) = disk.unlink(path) {
            self.alerts.push(format!("{} cannot be removed: {error}", path.display()));
        }
    }

    fn damaged_header(&mut self, disk: &dyn Disk, name: &str) {
        self.damaged += 1;
        self.headers_damaged += 1;
        self.alerts.push(format!("segment {name} has a damaged header; it is set aside in quarantine/"));
        let to = format!("quarantine/segment-{name}");
        if let Err(error) = disk.rename(&segment::path(name), to.as_ref()) {
            self.alerts.push(format!("segment {name} cannot be set aside: {error}"));
        }
    }

    /// A void is the first record of its segment and speaks of an earlier one. One that is not heeded would have messages delivered that
    /// were answered 451.
    fn read_void(&mut self, header: &Header, file: &dyn DiskFile) -> io::Result<()> {
        let mut bytes = [0; 128];
        file.read_at(&mut bytes, RECORDS_AT)?;
        let first = Head::decode(&bytes, header.nonce, RECORDS_AT).and_then(|head| head.open(&bytes, header.nonce, RECORDS_AT));
        if let Some(Note::Void { segment, from }) = first.map(|(located, _)| located.summary.note) {
            self.voids.insert(segment, u64::from(from));
        }
        Ok(())
    }

    fn segment(&mut self, disk: &dyn Disk, header: &Header, file: &dyn DiskFile) -> io::Result<()> {
        let void_from = self.voids.get(&header.number).copied();
        let found = match segment::read_index(file, header) {
            Some(found) => found,
            None => {
                if void_from.is_none() {
                    self.settle(header.number, file);
                }
                segment::scan(file, header)?
            }
        };
        let phase = if void_from.is_some() { Phase::Failed } else { Phase::Sealed };
        self.state.segments.insert(header.number, Segment::new(header.nonce, header.bytes, phase));
        if !found.damage.is_empty() {
            self.damaged_segments.insert(header.number);
        }
        for damage in found.damage.iter().filter(|damage| void_from.is_none_or(|from| damage.offset < from)) {
            self.damage(disk, header.number, damage);
        }
        for record in found.records.iter().filter(|record| void_from.is_none_or(|from| record.offset < from)) {
            self.glance(record);
            self.state.apply(header.number, record);
        }
        Ok(())
    }

    /// What a killed process wrote is perhaps not yet on the disk, but from now on we act on it: nobody may lose it any more.
    fn settle(&mut self, number: u64, file: &dyn DiskFile) {
        if let Err(error) = file.sync_data("records found at start") {
            self.alerts.push(format!("segment {number:016x}: {error}; its last records may be lost at a power cut"));
        }
    }

    fn damage(&mut self, disk: &dyn Disk, number: u64, damage: &Damage) {
        let name = format!("segment-{number:016x}-{}", damage.offset);
        let said = if damage.at_end { "probably a write that was never acknowledged" } else { "records are lost" };
        match set_aside(disk, &name, &damage.bytes) {
            Ok(false) => {}
            Ok(true) => {
                self.damaged += 1;
                self.alerts.push(format!(
                    "damaged bytes in segment {number:016x} at {} ({said}); copied to quarantine/{name}",
                    damage.offset
                ));
            }
            Err(error) => {
                self.alerts.push(format!("damaged bytes in segment {number:016x} at {} ({said}): {error}", damage.offset))
            }
        }
    }

    fn glance(&mut self, record: &Located) {
        let id = record.summary.id;
        match record.summary.note {
            Note::Accept(note) => {
                if note.ended != 0 {
                    self.glances.remove(note.ended);
                }
                if note.moved && self.glances.get(id).is_some() {
                    return;
                }
                let (arrival_s, recipients) = (note.arrival_s, note.recipients);
                let (bytes, sender_is_null) = (note.bytes, note.sender_is_null);
                let glance =
                    Glance { arrival_s, due_s: arrival_s, bytes, recipients, pending: recipients, held: false, sender_is_null };
                self.glances.insert(id, glance);
            }
            Note::Progress { outlook, .. } => {
                if let Some(glance) = self.glances.get_mut(id) {
                    (glance.pending, glance.due_s, glance.held) = (outlook.pending, outlook.due_s, outlook.held);
                }
            }
            Note::End { .. } => {
                self.glances.remove(id);
            }
            Note::Void { .. } => {}
        }
    }

    /// Segments that were prepared and never written to serve the first needs of this start.
    fn free_the_empty(&mut self, disk: &dyn Disk) -> Result<(), SpoolError> {
        let empty =
            self.state.segments.iter().filter(|(_, segment)| segment.used == RECORDS_AT && segment.phase == Phase::Sealed);
        let empty: Vec<u64> = empty.map(|(number, _)| *number).filter(|number| !self.damaged_segments.contains(number)).collect();
        for number in &empty {
            let name = segment::name(*number);
            let free = format!("{name}.free");
            if disk.rename(&segment::path(&name), &segment::path(&free)).is_err() {
                continue;
            }
            self.state.forget_segment(*number);
            self.ready.free.push(free);
        }
        // Always: a killed process may have freed a segment too, and that name must not come back when its extents are used again.
        disk.sync_dir(DIR.as_ref(), "segment freed").map_err(io("sync the segments' directory"))
    }

    /// Side files that belong to no message go. When this start found damage they may be all that is left of a message whose record
    /// it was: then they are put beside it.
    fn remove_orphans(&mut self, disk: &dyn Disk) -> Result<(), SpoolError> {
        let wanted: BTreeSet<u64> = self.state.side_numbers().collect();
        let mut kept: u64 = 0;
        for name in list(disk, "bodies")? {
            let Some(number) = segment::number_of(&name).filter(|number| !wanted.contains(number)) else { continue };
            if self.damaged == 0 {
                self.remove(disk, &side_path(number));
            } else {
                let to = format!("quarantine/body-{name}");
                match disk.rename(&side_path(number), to.as_ref()) {
                    Ok(()) => kept += 1,
                    Err(error) => self.alerts.push(format!("bodies/{name} cannot be set aside: {error}")),
                }
            }
        }
        if kept > 0 {
            self.alerts.push(format!("{kept} files of messages that are not known (any more) are kept as quarantine/body-*"));
        }
        Ok(())
    }

    fn finish(self) -> Recovered {
        let living = self.glances.iter().map(|(id, glance)| Living {
            id: MessageId(id),
            arrival_s: glance.arrival_s,
            due_s: glance.due_s,
            bytes: glance.bytes,
            recipients: glance.recipients,
            pending: glance.pending,
            held: glance.held,
            sender_is_null: glance.sender_is_null,
        });
        let mut sorted = Vec::with_capacity(low32(self.glances.len() as u64) as usize);
        sorted.extend(living);
        let Self { state, ready, alerts, damaged, headers_damaged, .. } = self;
        Recovered { state, living: sorted, ready, alerts, damaged, headers_damaged }
    }
}
