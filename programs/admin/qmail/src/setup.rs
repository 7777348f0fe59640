//! `qmail setup`: a complete instance, nothing overwritten.
//!
//! Who owns what follows from who must reach it: the spool is qmail-send's alone, the accounts are qmail-auth's alone, mail is
//! its owner's alone; the configuration is root's and everyone reads it.

mod aliases;

use std::path::{Path, PathBuf};

use control::{Id, Ids, Listener, Root, Service};
use serde_json::json;
use wire::Domain;

use crate::certificate;
use crate::cli;
use crate::files::{claim, make_dir, make_file, replace_file};
use crate::print::{Printer, line};
use crate::roles::{FIRST_DEFAULT, Nss, choose, missing};
use crate::{Failure, io_failure};

/// The services that this version offers.
const SERVICES: [Service; 5] = [Service::Smtp, Service::Submission, Service::Submissions, Service::Pop3, Service::Pop3s];

/// What was made and what was there.
#[derive(Debug, Default)]
struct Report {
    made: Vec<PathBuf>,
    kept: Vec<PathBuf>,
}

impl Report {
    fn add(&mut self, path: &Path, made: std::io::Result<bool>) -> Result<(), Failure> {
        match made {
            Ok(true) => self.made.push(path.to_owned()),
            Ok(false) => self.kept.push(path.to_owned()),
            Err(error) => return Err(io_failure(path, &error)),
        }
        Ok(())
    }
}

/// Runs the command.
///
/// # Errors
/// A name or port that cannot be, ids that are missing, or a disk that does not want.
pub fn run(root: &Root, options: &cli::Setup, printer: Printer) -> Result<(), Failure> {
    let me = me(root, options.me.as_deref())?;
    let listeners = if options.local { local_listeners()? } else { listeners(options.base_port)? };
    let ids = ids(root, options.ids)?;
    let mut report = Report::default();
    std::fs::create_dir_all(root.path()).map_err(|error| io_failure(root.path(), &error))?;
    directories(root, &ids, &mut report)?;
    report.add(&root.ids_file(), make_file(&root.ids_file(), ids.to_text().as_bytes(), 0o644, None))?;
    control_files(root, &me, &listeners, &mut report)?;
    aliases::make(root, &ids, &mut report)?;
    first_certificate(root, &ids, &mut report)?;
    say(root, &report, printer)
}

/// The name that is given, else that of an instance which is there.
fn me(root: &Root, given: Option<&str>) -> Result<Vec<u8>, Failure> {
    let Some(me) = given else { return root.me().map_err(|error| Failure::usage(error.to_string())) };
    let domain = Domain::new(me.as_bytes()).map_err(|error| Failure::usage(format!("--me {me}: {error}")))?;
    Ok(domain.as_bytes().to_vec())
}

/// The ids of the instance if it has them, else new ones.
fn ids(root: &Root, first: Option<u32>) -> Result<Ids, Failure> {
    let is_root = rustix::process::geteuid().is_root();
    if root.ids_file().exists() || !is_root {
        let ids = root.ids().map_err(|error| Failure::temporary(error.to_string()))?;
        return complete(root, ids, first.or_else(|| (!root.is_system()).then_some(FIRST_DEFAULT)));
    }
    let first = first.or_else(|| (!root.is_system()).then_some(FIRST_DEFAULT));
    choose(&Nss, first).map_err(Failure::temporary)
}

/// An instance of an earlier version lacks roles: their lines are added behind the others.
fn complete(root: &Root, ids: Ids, first: Option<u32>) -> Result<Ids, Failure> {
    let missing = missing(&Nss, &ids, first).map_err(Failure::temporary)?;
    if missing.is_empty() {
        return Ok(ids);
    }
    let path = root.ids_file();
    let mut text = std::fs::read_to_string(&path).map_err(|error| io_failure(&path, &error))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&Ids::Table(missing).to_text());
    replace_file(&path, text.as_bytes(), 0o644).map_err(|error| io_failure(&path, &error))?;
    root.ids().map_err(|error| Failure::temporary(error.to_string()))
}

fn directories(root: &Root, ids: &Ids, report: &mut Report) -> Result<(), Failure> {
    let id = |role: &str| ids.get(role).ok_or_else(|| Failure::temporary(format!("etc/qmail/ids has no line for {role}")));
    let parents = ["etc", "etc/qmail", "var", "var/spool", "var/lib", "var/mail", "run", "run/qmail"];
    let parents = parents.map(|path| (root.path().join(path), 0o755, None));
    let own: [(PathBuf, u32, Option<Id>); 5] = [
        (root.control(), 0o755, None),
        (root.users(), 0o755, None),
        // Each key in it is qmail-keys' alone.
        (root.tls(), 0o755, None),
        (root.spool(), 0o700, Some(id("qmailq")?)),
        (root.lib(), 0o700, Some(id("qmaila")?)),
    ];
    for (path, mode, owner) in parents.into_iter().chain(own) {
        report.add(&path, make_dir(&path, mode, owner))?;
        if let Some(owner) = owner {
            claim(&path, mode, owner).map_err(|error| io_failure(&path, &error))?;
        }
    }
    Ok(())
}

fn control_files(root: &Root, host: &[u8], listeners: &[Listener], report: &mut Report) -> Result<(), Failure> {
    let (domain, plus) = (without_first_label(host), without_first_label(without_first_label(host)));
    let listen: String = listeners.iter().map(|listener| format!("{listener}\n")).collect();
    let line = |text: &[u8]| [text, b"\n"].concat();
    let files = [
        ("me", line(host)),
        ("defaultdomain", line(domain)),
        ("plusdomain", line(plus)),
        // Programs of this host write to root@localhost.
        ("locals", [line(host), line(b"localhost")].concat()),
        ("rcpthosts", [line(host), line(b"localhost")].concat()),
        ("defaultdelivery", line(b"./Maildir/")),
        ("listen", listen.into_bytes()),
    ];
    for (name, text) in files {
        let path = root.control_file(name);
        report.add(&path, make_file(&path, &text, 0o644, None))?;
    }
    Ok(())
}

/// An instance begins with TLS; a host whose name no certificate can have goes without.
fn first_certificate(root: &Root, ids: &Ids, report: &mut Report) -> Result<(), Failure> {
    if !certificate::all(root)?.is_empty() {
        return Ok(());
    }
    let made = root.me().map(|me| certificate::make_self_signed(root, &me, ids));
    let files = made.into_iter().flatten().flatten();
    files.into_iter().try_for_each(|(path, is_new)| report.add(&path, Ok(is_new)))
}

/// `a.b.c` → `b.c`; a name of two labels or one stays.
fn without_first_label(host: &[u8]) -> &[u8] {
    let rest = host.iter().position(|b| *b == b'.').and_then(|dot| host.get(dot.checked_add(1)?..));
    rest.filter(|rest| rest.contains(&b'.')).unwrap_or(host)
}

fn listener(service: Service, address: &str, port: u16) -> Result<Listener, Failure> {
    let address = format!("{address}:{port}").parse().map_err(|_| Failure::temporary("an address of setup".to_owned()))?;
    Ok(Listener { service, address, options: Vec::new() })
}

/// With `--local`: what programs of this host look for, and nobody else reaches.
fn local_listeners() -> Result<Vec<Listener>, Failure> {
    let addresses = ["127.0.0.1", "[::1]"].into_iter().take(if has_ipv6() { 2 } else { 1 });
    addresses.map(|address| listener(Service::Smtp, address, Service::Smtp.port())).collect()
}

fn has_ipv6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok()
}

/// With `--base-port` on the loopback address; else all for everybody: no password is taken without TLS but from this host.
fn listeners(base_port: Option<u16>) -> Result<Vec<Listener>, Failure> {
    if let Some(base) = base_port {
        let shifted = |service: Service| match base.checked_add(service.port()) {
            Some(port) => listener(service, "127.0.0.1", port),
            None => Err(Failure::usage(format!("--base-port {base}: {service} would be above port 65535"))),
        };
        // LMTP is for programs of this host, QMTP and QMQP for those who want them, so they are not opened to everybody below.
        return SERVICES.into_iter().chain([Service::Lmtp, Service::Qmtp, Service::Qmqp]).map(shifted).collect();
    }
    let addresses = ["0.0.0.0", "[::]"].into_iter().take(if has_ipv6() { 2 } else { 1 });
    let on = |address: &'static str| SERVICES.into_iter().map(move |service| listener(service, address, service.port()));
    addresses.flat_map(on).collect()
}

fn say(root: &Root, report: &Report, printer: Printer) -> Result<(), Failure> {
    let paths = |list: &[PathBuf]| list.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    if printer.json {
        return printer.value(&json!({ "made": paths(&report.made), "kept": paths(&report.kept) }));
    }
    for path in paths(&report.made) {
        line(&format!("made {path}"))?;
    }
    if !report.kept.is_empty() {
        line(&format!("{} files and directories were there already and stay as they are", report.kept.len()))?;
    }
    let root = if root.is_system() { String::new() } else { format!(" --root {}", root.path().display()) };
    line(&format!("Look at it with: qmail{root} check\nRun it with:     qmail{root} start"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_from_the_host_name() {
        for (host, expected) in
            [("mail.a.example", "a.example"), ("a.example", "a.example"), ("host", "host"), ("w.x.y.z", "x.y.z")]
        {
            assert_eq!(without_first_label(host.as_bytes()), expected.as_bytes(), "{host}");
        }
    }

    #[test]
    fn ports_are_shifted() {
        let all: Vec<String> = listeners(Some(10_000)).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(
            all,
            [
                "smtp 127.0.0.1:10025",
                "submission 127.0.0.1:10587",
                "submissions 127.0.0.1:10465",
                "pop3 127.0.0.1:10110",
                "pop3s 127.0.0.1:10995",
                "lmtp 127.0.0.1:10024",
                "qmtp 127.0.0.1:10209",
                "qmqp 127.0.0.1:10628"
            ]
        );
        assert!(listeners(Some(65_500)).is_err());
        let local = local_listeners().unwrap();
        assert_eq!(local[0].to_string(), "smtp 127.0.0.1:25");
        assert!(local.iter().all(|listener| listener.address.ip().is_loopback()));
        let own = listeners(None).unwrap();
        assert_eq!(own[0].to_string(), "smtp 0.0.0.0:25");
        assert!(
            own.len().is_multiple_of(SERVICES.len())
                && own.iter().all(|listener| listener.address.port() == listener.service.port())
        );
    }
}
