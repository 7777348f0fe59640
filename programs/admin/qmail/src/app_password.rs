//! `qmail user app-password`: passwords of single programs and devices.

use control::Root;
use ipc::admin::{AccountAnswer, AccountRequest};
use serde_json::{Value, json};

use crate::account::parse;
use crate::admin::Admin;
use crate::print::{Printer, line, text};
use crate::{Failure, cli};

/// Runs `qmail user app-password`.
///
/// # Errors
/// What qmail-auth says.
pub fn app_password(root: &Root, command: &cli::AppPassword, printer: Printer) -> Result<(), Failure> {
    match command {
        cli::AppPassword::Add { address, name, service } => {
            let (name, service) = (name.as_str().into(), service.as_str().into());
            let request = AccountRequest::AppPasswordAdd { address: parse(address)?, name, service };
            add(root, &request, printer)
        }
        cli::AppPassword::List { address } => list(root, &AccountRequest::AppPasswordList { address: parse(address)? }, printer),
        cli::AppPassword::Remove { address, name } => {
            Admin::auth(root)?
                .account(&AccountRequest::AppPasswordRemove { address: parse(address)?, name: name.as_str().into() })?;
            printer.done(&format!("{address}: {} is no password any more", wire::escape::visible(name.as_bytes())))
        }
    }
}

/// The password alone on its line, for whoever copies it or pipes it on.
fn add(root: &Root, request: &AccountRequest, printer: Printer) -> Result<(), Failure> {
    for answer in Admin::auth(root)?.account(request)? {
        let AccountAnswer::AppPassword { password } = answer else { continue };
        let password = wire::escape::visible(&password);
        return if printer.json { printer.value(&json!({ "password": password })) } else { line(&password) };
    }
    Err(Failure::temporary("qmail-auth: gave no password".to_owned()))
}

fn list(root: &Root, request: &AccountRequest, printer: Printer) -> Result<(), Failure> {
    let mut rows: Vec<Vec<Value>> = Vec::new();
    for answer in Admin::auth(root)?.account(request)? {
        let AccountAnswer::AppPasswords { rows: apps } = answer else { continue };
        let time = |seconds: u64| if seconds == 0 { Value::Null } else { seconds.into() };
        rows.extend(apps.iter().map(|app| vec![text(&app.name), text(&app.service), time(app.created_s), time(app.used_s)]));
    }
    let columns = [("NAME", "name"), ("SERVICE", "service"), ("CREATED", "created"), ("LAST USED", "used")];
    printer.rows(&columns, &rows, "no app passwords; make one with: qmail user app-password add USER@DOMAIN --name NAME")
}
