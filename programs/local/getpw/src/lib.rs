//! qmail-getpw: which system user a local part belongs to (qmail-getpw(8)).
//!
//! The longest prefix of the local part that is a user with a home of his own; if there is none, alias. NSS modules live in this
//! process and nowhere else near root: they may hang (then the answer is "temporary" after a deadline) or crash (then qmail-start
//! starts this process again). Whoever asks checks uid and home again; nothing here is trusted.
//!
//! Two faces: `qmail-getpw --service` answers on getpw.sock; `qmail-getpw LOCAL` prints one answer and exits.
#![forbid(unsafe_code)]

pub mod lookup;
pub mod service;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use control::Root;

use crate::lookup::{Alias, Found, Nss};

/// Wrong arguments.
const USAGE: u8 = 100;
/// Try again later.
const TEMPORARY: u8 = 111;
/// There is no alias user (QLX_NOALIAS of qmail-lspawn(8), which counts it as temporary).
const NO_ALIAS: u8 = 116;

/// The program.
#[must_use]
pub fn run() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let is_service = args.first().is_some_and(|first| first == "--service");
    let root = match Root::from_args(&mut args) {
        Ok(root) => root,
        Err(error) => return fail(&error.to_string(), TEMPORARY),
    };
    if is_service {
        return match service::serve(&root) {
            Ok(()) => ExitCode::SUCCESS,
            Err(text) => fail(&text, TEMPORARY),
        };
    }
    match args.as_slice() {
        [local] => classic(&root, local.as_bytes()),
        _ => fail("usage: qmail-getpw LOCAL", USAGE),
    }
}

/// Prints `user NUL uid NUL gid NUL home NUL dash NUL ext NUL`.
fn classic(root: &Root, local: &[u8]) -> ExitCode {
    let alias = root.ids().map(|ids| Alias::of(root, &ids)).map_err(|error| error.to_string());
    let found = alias.and_then(|alias| lookup::who(local, &Nss, alias.as_ref()).map_err(|error| error.to_string()));
    match found {
        Err(text) => fail(&text, TEMPORARY),
        Ok(None) => fail("there is no alias user; run qmail setup", NO_ALIAS),
        Ok(Some(found)) => match sys::standard::output().and_then(|mut out| out.write_all(&print(&found))) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string(), TEMPORARY),
        },
    }
}

fn print(found: &Found) -> Vec<u8> {
    let (uid, gid) = (found.uid.to_string(), found.gid.to_string());
    let fields = [&found.user[..], uid.as_bytes(), gid.as_bytes(), &found.home, &found.dash, &found.ext];
    fields.iter().flat_map(|field| field.iter().copied().chain([0])).collect()
}

fn fail(text: &str, code: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "qmail-getpw: fatal: {text}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_six_fields_each_with_its_nul() {
        let found = Found {
            user: b"joe".to_vec(),
            uid: 1001,
            gid: 100,
            home: b"/home/joe".to_vec(),
            dash: b"-".to_vec(),
            ext: b"X".to_vec(),
        };
        assert_eq!(print(&found), b"joe\x001001\x00100\0/home/joe\0-\0X\0");
    }
}
