//! What is to be started: the rows of the process table that have work, with the ids, the program and the listeners of each.

use control::replacements::{self, Replacement};
use control::{Ids, Listener, Root};
use sandbox::{Count, Process, Role, Socket, TABLE};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use sys::spawn::Ids as SpawnIds;

/// More workers of one kind than this do not help a mail server.
const WORKERS_MAX: usize = 8;

/// One row of the table, ready to be started.
#[derive(Debug, Clone)]
pub struct Planned {
    pub process: &'static Process,
    pub program: PathBuf,
    pub ids: Option<SpawnIds>,
    pub workers: usize,
    /// (number of the line in control/listen, listener), for the services of this row.
    pub listeners: Vec<(usize, Listener)>,
    /// Variables that only this process gets.
    pub environment: Vec<(&'static str, PathBuf)>,
}

/// Reads etc/qmail/ids and control/listen, finds the programs, and checks that each role can reach what it needs.
///
/// # Errors
/// A text that says what is wrong and what to do.
pub fn read(root: &Root) -> Result<Vec<Planned>, String> {
    let ids = root.ids().map_err(|e| e.to_string())?;
    let listeners: Vec<(usize, Listener)> = root.listen().map_err(|e| e.to_string())?.into_iter().enumerate().collect();
    let programs = program_dir()?;
    let mut planned = Vec::new();
    let replacements = Replacements::read(root)?;
    for process in TABLE.iter().filter(|process| process.count != Count::OnDemand && replacements.has_place_for(process)) {
        let listeners: Vec<_> = listeners.iter().filter(|(_, l)| process.listens.contains(&l.service.name())).cloned().collect();
        if !process.listens.is_empty() && listeners.is_empty() {
            continue;
        }
        if process.serves.contains(&Socket::Authnet) && !control::authsources::wants_authnet(root).map_err(|e| e.to_string())? {
            continue;
        }
        if process.serves == [Socket::Checkpw] && !control::authsources::wants_checkpw(root).map_err(|e| e.to_string())? {
            continue;
        }
        if process.serves == [Socket::Hook] && control::Hooks::read(root).map_err(|e| e.to_string())?.is_empty() {
            continue;
        }
        if process.serves == [Socket::AdminAcme] && !root.control_file(control::acme::FILE).exists() {
            return Err(
                "control/listen has a listener `acme`, and there is no control/acme; write it, or take the line out".to_owned()
            );
        }
        let ids = role_ids(&ids, process.role)?;
        let program = programs.join(process.name);
        crate::reach::check(&program, ids)?;
        let environment = replacements.environment(process, ids)?;
        planned.push(Planned { process, program, ids, workers: workers(process.count), listeners, environment });
    }
    for (_, listener) in &listeners {
        if !planned.iter().any(|p| p.process.listens.contains(&listener.service.name())) {
            return Err(format!("control/listen: no program of this version serves `{}`; take the line out", listener.service));
        }
    }
    Ok(planned)
}

/// The programs that root has in the place of qmail-local and qmail-remote.
struct Replacements {
    local: Option<PathBuf>,
    remote: Option<PathBuf>,
}

impl Replacements {
    fn read(root: &Root) -> Result<Self, String> {
        let read = |replacement: Replacement| replacement.read(root).map_err(|e| e.to_string());
        Ok(Self { local: read(replacements::LOCAL)?, remote: read(replacements::REMOTE)? })
    }

    /// One of qmail-remote and qmail-rspawn runs.
    fn has_place_for(&self, process: &Process) -> bool {
        let replacer = TABLE.iter().find(|other| other.count == Count::InPlaceOf(process.name));
        match process.count {
            Count::InPlaceOf(_) => self.remote.is_some(),
            _ => replacer.is_none() || self.remote.is_none(),
        }
    }

    /// Who runs a replacement is told of it, if it can be run.
    fn environment(&self, process: &Process, ids: Option<SpawnIds>) -> Result<Vec<(&'static str, PathBuf)>, String> {
        let (replacement, program) = match process.serves {
            [Socket::Lspawn] => (replacements::LOCAL, &self.local),
            _ if matches!(process.count, Count::InPlaceOf(_)) => (replacements::REMOTE, &self.remote),
            _ => return Ok(Vec::new()),
        };
        let Some(program) = program else { return Ok(Vec::new()) };
        let Replacement { variable, file } = replacement;
        crate::reach::check(program, ids).map_err(|problem| format!("control/{file} or {variable}: {problem}"))?;
        // qmail-lspawn reads the file itself, and again on SIGHUP.
        let by_variable = std::env::var_os(variable).is_some_and(|value| !value.is_empty());
        let is_told = by_variable || process.serves != [Socket::Lspawn];
        Ok(is_told.then(|| (variable, program.clone())).into_iter().collect())
    }
}

/// The ids of a role; `None` for root's own processes.
///
/// # Errors
/// etc/qmail/ids has no line for it.
pub fn role_ids(ids: &Ids, role: Role) -> Result<Option<SpawnIds>, String> {
    if role == Role::Root {
        return Ok(None);
    }
    let id = ids
        .get(role.name())
        .ok_or_else(|| format!("etc/qmail/ids has no line for {}; `qmail setup --me HOST` adds it", role.name()))?;
    Ok(Some(SpawnIds { uid: id.uid, gid: id.gid }))
}

/// Where the other programs are: beside this one, else /usr/lib/qmail.
fn program_dir() -> Result<PathBuf, String> {
    let me = std::env::current_exe().map_err(|e| format!("where am I? {e}"))?;
    let beside = me.parent().unwrap_or(Path::new("/")).to_owned();
    let installed = PathBuf::from("/usr/lib/qmail");
    [beside.clone(), installed.clone()]
        .into_iter()
        .find(|dir| dir.join("qmail-send").is_file())
        .ok_or_else(|| format!("qmail-send is neither in {} nor in {}", beside.display(), installed.display()))
}

fn workers(count: Count) -> usize {
    match count {
        Count::PerCpu => std::thread::available_parallelism().map_or(1, NonZero::get).min(WORKERS_MAX),
        Count::One | Count::OnDemand | Count::InPlaceOf(_) => 1,
    }
}
