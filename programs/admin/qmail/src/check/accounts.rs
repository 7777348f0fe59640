//! control/accounts: a database elsewhere, who may read its password, and whether it answers.

use std::os::unix::fs::MetadataExt as _;

use control::accounts::{FILE, PASSWORD_FILE, Postgres, Store};
use control::{Ids, Root};
use ipc::admin::AccountRequest;
use ipc::field::Bytes;

use super::Findings;
use super::authnet::private;
use crate::admin::Admin;

pub(super) fn check(root: &Root, found: &mut Findings) {
    match found.take(Store::read(root)) {
        None => {}
        Some(Store::Sqlite) => {
            let password = root.control_file(PASSWORD_FILE);
            if password.exists() {
                found.warning(&password, format!("is not used: control/{FILE} names no PostgreSQL; remove it"));
            }
        }
        Some(Store::Postgres(postgres)) => {
            readers(root, found);
            password(root, &postgres, found);
            answers(root, found);
        }
    }
}

/// qmail-auth and qmail-authnet read it as their roles.
fn readers(root: &Root, found: &mut Findings) {
    let file = root.control_file(FILE);
    let (Ok(metadata), Some(ids)) = (std::fs::metadata(&file), found.take(root.ids())) else { return };
    let (Ids::Table(_), Some(group)) = (&ids, ids.group()) else { return };
    let by_group = metadata.mode() & 0o040 != 0 && metadata.gid() == group;
    if metadata.mode() & 0o004 == 0 && !by_group {
        found.error(&file, format!("cannot be read by qmail-auth and qmail-authnet; chgrp {group} it, chmod 640"));
    }
}

fn password(root: &Root, postgres: &Postgres, found: &mut Findings) {
    let usual = root.control_file(PASSWORD_FILE);
    match postgres.password_file(root) {
        Some(file) => {
            private(root, &file, found);
            if file != usual && usual.exists() {
                found.warning(&usual, format!("is not used: control/{FILE} names another `passfile`; remove one of them"));
            }
        }
        None if usual.exists() => {
            found.warning(&usual, format!("is not used: control/{FILE} has a password; remove one of them"))
        }
        None => {}
    }
}

/// What the running system says of it: nobody else reaches the server as qmail-authnet does.
fn answers(root: &Root, found: &mut Findings) {
    let file = root.control_file(FILE);
    match Admin::auth(root) {
        Err(_) => found.note(
            &file,
            "the system does not run, and whether the database answers was not tried; start it, and run qmail check again",
        ),
        Ok(admin) => {
            if let Err(failure) = admin.account(&AccountRequest::DomainList { domain: None, after: Bytes::default() }) {
                found.error(&file, failure.text);
            }
        }
    }
}
