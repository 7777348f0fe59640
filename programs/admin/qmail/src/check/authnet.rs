//! What the sources of qmail-authnet need: control/ldap, control/oauth and the secrets that they name.

use std::path::{Path, PathBuf};

use control::authsources::Source;
use control::ldap::Server;
use control::oauth::Issuer;
use control::{ControlError, Root, secret};

use sasl::Mechanism;

use super::Findings;

pub(super) fn check(root: &Root, sources: &[Source], found: &mut Findings) {
    let wants = |source: Source| sources.contains(&source);
    if wants(Source::Ldap) {
        ldap(root, found);
    }
    if wants(Source::Oauth) {
        oauth(root, found);
    }
    tokens(root, wants(Source::Oauth), found);
    for (name, source) in [(control::ldap::FILE, Source::Ldap), (control::oauth::FILE, Source::Oauth)] {
        if root.control_file(name).exists() && !wants(source) {
            found.warning(
                &root.control_file(name),
                format!("is not used: control/authsources has no line `{name}`; write it there, or remove this"),
            );
        }
    }
}

/// Mechanisms for tokens are of use with a judge of tokens, and he with them.
fn tokens(root: &Root, judged: bool, found: &mut Findings) {
    let lines = root.lines("authmechanisms").unwrap_or_default();
    // What is wrong with the file is said where it is checked.
    let Ok(mechanisms) = sasl::Mechanisms::parse(lines.as_deref()) else { return };
    let offered = [Mechanism::Oauthbearer, Mechanism::Xoauth2].into_iter().any(|mechanism| mechanisms.contains(mechanism));
    let file = root.control_file("authmechanisms");
    match (offered, judged) {
        (true, false) => found.error(
            &file,
            "offers OAUTHBEARER or XOAUTH2, and control/authsources has no line `oauth`; write one, or take them out",
        ),
        (false, true) => {
            found.warning(&file, "offers neither OAUTHBEARER nor XOAUTH2, so control/oauth is of no use; write one of them")
        }
        _ => {}
    }
}

fn ldap(root: &Root, found: &mut Findings) {
    let Some(config) = found.take(control::Ldap::read(root)) else { return };
    let file = root.control_file(control::ldap::FILE);
    match ldap::Filter::parse(config.filter.as_bytes()) {
        Err(problem) => found.error(&file, format!("`filter`: {problem}; write it as RFC 4515 says")),
        Ok(filter) if !filter.depends_on_login() => {
            found.error(&file, "`filter` has none of %n, %u, %d: so that it would find the same entry for everybody; write (mail=%n), or another one with them");
        }
        Ok(_) => {}
    }
    for server in &config.servers {
        if let Server::Clear(endpoint) = server
            && !endpoint.is_loopback()
        {
            found.warning(&file, format!("passwords go to {endpoint} without TLS; take `starttls no` out"));
        }
    }
    if let Some((_, password)) = &config.bind {
        private(root, password, found);
    }
}

fn oauth(root: &Root, found: &mut Findings) {
    let Some(config) = found.take(control::Oauth::read(root)) else { return };
    let file = root.control_file(control::oauth::FILE);
    match &config.issuer {
        Issuer::Introspection { client: Some((_, secret)), .. } => private(root, secret, found),
        Issuer::Introspection { client: None, .. } => {}
        Issuer::UserInfo { .. } => found.warning(
            &file,
            "`userinfo` takes any token of this issuer, also one that was given to another service; use `introspection` with `audience`",
        ),
    }
}

/// The files with secrets that are named.
pub(super) fn secrets(root: &Root) -> Vec<PathBuf> {
    let bind = control::Ldap::read(root).ok().and_then(|config| config.bind);
    let client = control::Oauth::read(root).ok().and_then(|config| match config.issuer {
        Issuer::Introspection { client, .. } => client,
        Issuer::UserInfo { .. } => None,
    });
    let database = match control::accounts::Store::read(root) {
        Ok(control::accounts::Store::Postgres(postgres)) => postgres.password_file(root),
        _ => None,
    };
    [bind, client].into_iter().flatten().map(|(_, file)| file).chain(database).collect()
}

/// A secret is qmail-authnet's alone.
pub(super) fn private(root: &Root, path: &Path, found: &mut Findings) {
    let reader = |root: &Root| -> Result<u32, ControlError> {
        let ids = root.ids()?;
        ids.uid_of(sandbox::Role::Authnet.name())
            .ok_or_else(|| ControlError::new(&root.ids_file(), "has no line for qmailn; write `qmailn UID GID`"))
    };
    let Some(reader) = found.take(reader(root)) else { return };
    found.take(secret::check_file(path, reader));
}
