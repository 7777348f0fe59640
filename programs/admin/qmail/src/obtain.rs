//! `qmail cert obtain` and `qmail cert renew`: configuration and directories are made ready here, by root; the rest is asked of the
//! running qmail-acme, whose answers the authority wants to see on its listener.

use std::fs::File;

use control::acme::{ACCOUNT_KEY, FILE, hosts};
use control::{Acme, Ids, Root};
use ipc::admin::{CertAnswer, CertRequest};
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::certificate::{ROLE, day, make_self_signed};
use crate::files::{give_dir, make_dir, make_file, replace_file};
use crate::print::{Printer, line};
use crate::{Failure, io_failure};

/// One certificate for these hosts.
///
/// # Errors
/// No host, no configuration, no system that runs, or what the authority says.
pub fn obtain(root: &Root, words: &[String], agree: bool, force: bool, printer: Printer) -> Result<(), Failure> {
    let hosts = hosts(words.iter().map(String::as_str)).map_err(Failure::usage)?;
    let config = configuration(root)?;
    agreed(&config, agree)?;
    let admin = Admin::acme(root)?;
    let name = hosts.first().map_or("", String::as_str);
    let former = configuration(root)?.hosts(name.as_bytes()).map(<[String]>::to_vec);
    configure(root, name, Some(&hosts), agree)?;
    let had = prepare(root, name).and_then(|()| ask(&admin, name, force, agree, printer));
    let had = had.map_err(|failure| match configure(root, name, former.as_deref(), false) {
        Ok(()) => failure,
        Err(more) => Failure::temporary(format!("{}; and {}", failure.text, more.text)),
    })?;
    if printer.json { printer.value(&had.to_json()) } else { line(&had.to_text()) }
}

/// All certificates of control/acme that are due, or one.
///
/// # Errors
/// As [`obtain`]; of several the others are tried all the same.
pub fn renew(root: &Root, name: Option<&str>, force: bool, printer: Printer) -> Result<(), Failure> {
    let config = configuration(root)?;
    agreed(&config, false)?;
    let all = config.certificates.iter().filter_map(|hosts| hosts.first());
    let names: Vec<&String> = all.filter(|known| name.is_none_or(|name| known.eq_ignore_ascii_case(name))).collect();
    if names.is_empty() {
        let file = root.control_file(FILE).display().to_string();
        return Err(Failure::permanent(match name {
            Some(name) => format!("{file} has no line `certificate {}`; `qmail cert obtain` adds it", name.escape_default()),
            None => format!("{file} has no line `certificate`; `qmail cert obtain HOST` adds it"),
        }));
    }
    let admin = Admin::acme(root)?;
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for name in names {
        match prepare(root, name).and_then(|()| ask(&admin, name, force, false, printer)) {
            Ok(had) if printer.json => rows.push(had.to_json()),
            Ok(had) => line(&had.to_text())?,
            Err(failure) => {
                rows.push(json!({ "name": name, "ok": false, "problem": failure.text }));
                failures.push(failure.text);
            }
        }
    }
    if printer.json {
        printer.value(&Value::Array(rows))?;
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::temporary(failures.join("\nqmail: "))) }
}

fn configuration(root: &Root) -> Result<Acme, Failure> {
    let config = Acme::read(root).map_err(|error| Failure::temporary(error.to_string()))?;
    config.ok_or_else(|| {
        let file = root.control_file(FILE);
        Failure::permanent(format!(
            "{} is missing: write into it where certificates come from, as in `directory https://acme-v02.api.letsencrypt.org/directory`",
            file.display()
        ))
    })
}

fn agreed(config: &Acme, agree: bool) -> Result<(), Failure> {
    if config.is_agreed || agree {
        return Ok(());
    }
    let directory = &config.directory_text;
    Err(Failure::usage(format!("{directory} has terms of service: say that you agree by `qmail cert obtain HOST --agree-tos`")))
}

/// Writes into control/acme which hosts the certificate with this name is for, if it is to be, so that it is renewed from then on. What
/// could not be had is taken back: a name that was mistyped must not stop the renewal of the others.
fn configure(root: &Root, name: &str, hosts: Option<&[String]>, agree: bool) -> Result<(), Failure> {
    let path = root.control_file(FILE);
    let failed = |error: std::io::Error| io_failure(&path, &error);
    // One who changes the file at a time.
    let lock = File::open(root.control()).map_err(failed)?;
    lock.lock().map_err(failed)?;
    let config = configuration(root)?;
    let is_there = config.hosts(name.as_bytes()) == hosts;
    let agrees = agree && !config.is_agreed;
    if is_there && !agrees {
        return Ok(());
    }
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let stays = |line: &&str| {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("certificate") => is_there || !words.next().is_some_and(|first| first.eq_ignore_ascii_case(name)),
            Some("agree") => !agrees,
            _ => true,
        }
    };
    let mut lines: Vec<String> = text.lines().filter(stays).map(str::to_owned).collect();
    if agrees {
        lines.push("agree yes".to_owned());
    }
    if let Some(hosts) = hosts.filter(|_| !is_there) {
        lines.push(format!("certificate {}", hosts.join(" ")));
    }
    lines.push(String::new());
    replace_file(&path, lines.join("\n").as_bytes(), 0o644).map_err(failed)
}

/// The directory of a certificate with a key in it, and the account's key: all qmail-keys' own. What is there stays.
fn prepare(root: &Root, name: &str) -> Result<(), Failure> {
    let ids: Ids = root.ids().map_err(|error| Failure::temporary(error.to_string()))?;
    let owner = ids.get(ROLE);
    make_self_signed(root, name.as_bytes(), &ids)?;
    let dir = root.tls().join(name);
    give_dir(&dir, 0o755, owner).map_err(|error| io_failure(&dir, &error))?;
    let key = root.tls().join(ACCOUNT_KEY);
    if key.exists() {
        return Ok(());
    }
    let dir = key.parent().unwrap_or(&key);
    make_dir(dir, 0o700, owner).map_err(|error| io_failure(dir, &error))?;
    let secret = KeyPair::generate().map_err(|error| Failure::temporary(format!("{}: {error}", key.display())))?;
    make_file(&key, secret.serialize_pem().as_bytes(), 0o600, owner).map(drop).map_err(|error| io_failure(&key, &error))
}

/// A certificate that is there.
struct Had {
    name: String,
    obtained: bool,
    not_after_s: u64,
    renew_s: u64,
}

impl Had {
    fn to_json(&self) -> Value {
        let Self { name, obtained, not_after_s, renew_s } = self;
        json!({ "name": name, "ok": true, "obtained": obtained, "not_after_s": not_after_s, "renew_s": renew_s })
    }

    fn to_text(&self) -> String {
        let (until, renewed) = (day(self.not_after_s), day(self.renew_s));
        let what = if self.obtained { "a new certificate" } else { "the certificate is not due (--force gets a new one): good" };
        format!("{}: {what} until {until}, renewed on {renewed}", self.name)
    }
}

fn ask(admin: &Admin, name: &str, force: bool, agree: bool, printer: Printer) -> Result<Had, Failure> {
    let progress = |text: &str| {
        if !printer.json {
            // Whoever closed it sees the end by the exit code.
            let _ = line(&format!("{name}: {text}"));
        }
    };
    match admin.certificate(&CertRequest::Obtain { name: name.into(), force, agree }, progress)? {
        CertAnswer::Done { obtained, not_after_s, renew_s } => Ok(Had { name: name.to_owned(), obtained, not_after_s, renew_s }),
        CertAnswer::Failed { text } => {
            Err(Failure::temporary(format!("{name}: no certificate: {}", wire::escape::visible(&text))))
        }
        CertAnswer::Progress { .. } => Err(Failure::temporary("qmail-acme: no answer".to_owned())),
    }
}
