//! `cargo xtask layers`: the rules of the tree, read from `cargo metadata`, so that they cannot be broken unseen.

use crate::cargo::{cargo, output};
use anyhow::{Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Edges that are allowed within a layer: all may use the ones named.
const WITHIN: [(&str, &[&str]); 3] = [
    ("pure", &["wire", "sasl", "logline", "smtp"]),
    ("os", &["sys"]),
    ("stores", &["control", "ipc", "ipc-async", "accounts-sql"]),
];
/// Layers, lowest first.
const LAYERS: [&str; 4] = ["pure", "os", "stores", "programs"];
/// Programs that run as root and may link only these of ours, and few of others'.
const ROOT_PROGRAMS: [&str; 4] = ["qmail-start", "qmail-lspawn", "qmail-checkpw", "checkpassword"];
const ROOT_MAY: [&str; 8] = ["sys", "sandbox", "wire", "logline", "users", "control", "ipc", "qmail-lspawn"];
const ROOT_OUTSIDE_MAX: usize = 14;
/// (package, what it must not be able to name, directly or through others)
const NEVER: [(&str, &[&str]); 17] = [
    ("qmail-start", &["tls", "rustls", "certificates"]),
    ("qmail-lspawn", &["tls", "rustls", "certificates"]),
    ("qmail-getpw", &["tls", "rustls", "certificates"]),
    ("qmail-send", &["smtp", "maildir", "accounts", "tokio", "rustls"]),
    ("qmail-hook", &["spool", "maildir", "accounts", "smtp", "message", "tokio", "tls", "rustls"]),
    ("qmail-smtpd", &["spool", "maildir", "accounts", "certificates"]),
    ("qmail-qmtpd", &["spool", "maildir", "accounts", "certificates", "tls"]),
    ("qmail-popup", &["spool", "maildir", "accounts", "certificates"]),
    ("qmail-remote", &["spool", "maildir", "accounts", "certificates"]),
    ("qmail-rspawn", &["spool", "maildir", "accounts", "smtp", "certificates", "tls", "tokio", "rustls"]),
    ("qmail-resolve", &["spool", "maildir", "accounts", "smtp"]),
    ("qmail-local", &["spool", "accounts", "tokio", "rustls"]),
    ("qmail-keys", &["spool", "maildir", "accounts", "smtp", "pop3", "message", "tokio", "tls"]),
    ("qmail-auth", &["spool", "smtp", "tokio"]),
    ("tool", &["spool", "maildir", "accounts", "smtp", "message", "tokio", "rustls"]),
    ("qmail-authnet", &["spool", "maildir", "accounts", "smtp", "message"]),
    ("qmail-acme", &["certificates", "spool", "maildir", "accounts", "smtp", "message"]),
];
/// Licences that go together with ours.
const LICENCES: [&str; 13] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "0BSD",
    "CC0-1.0",
    "BSL-1.0",
    "MIT-0",
];

struct Package {
    name: String,
    licence: String,
    /// Folder below the workspace, if it is ours: `crates/pure/wire`.
    folder: Option<String>,
    proc_macro: bool,
}

struct Graph {
    packages: HashMap<String, Package>,
    /// Normal dependencies only: what is linked.
    edges: HashMap<String, Vec<String>>,
}

/// Checks all rules; prints what each root program links.
pub(crate) fn check() -> Result<()> {
    let graph = read()?;
    let mut wrong = Vec::new();
    wrong.extend(graph.layer_faults());
    wrong.extend(graph.root_faults());
    wrong.extend(graph.never_faults());
    wrong.extend(graph.licence_faults());
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    println!("layers, root programs and licences of {} packages are in order", graph.packages.len());
    Ok(())
}

fn read() -> Result<Graph> {
    let metadata: Value = serde_json::from_str(&output(&mut cargo(&[
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        "x86_64-unknown-linux-gnu",
    ]))?)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let root = text(&metadata["workspace_root"]);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut graph = Graph { packages: HashMap::new(), edges: HashMap::new() };
    for package in list(&metadata["packages"]) {
        let manifest = text(&package["manifest_path"]);
        let ours = package["source"].is_null();
        let folder = manifest.strip_prefix(&format!("{root}/")).and_then(|m| m.strip_suffix("/Cargo.toml")).filter(|_| ours);
        let proc_macro =
            list(&package["targets"]).iter().any(|target| list(&target["kind"]).iter().any(|kind| kind == "proc-macro"));
        let (name, licence) = (text(&package["name"]), text(&package["license"]));
        graph.packages.insert(text(&package["id"]), Package { name, licence, folder: folder.map(str::to_owned), proc_macro });
    }
    for node in list(&metadata["resolve"]["nodes"]) {
        let normal = |dep: &Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let deps = list(&node["deps"]).iter().filter(|dep| normal(dep)).map(|dep| text(&dep["pkg"])).collect();
        graph.edges.insert(text(&node["id"]), deps);
    }
    Ok(graph)
}

impl Graph {
    fn ours(&self) -> impl Iterator<Item = (&String, &Package, &str)> {
        self.packages.iter().filter_map(|(id, package)| package.folder.as_deref().map(|folder| (id, package, folder)))
    }

    fn direct(&self, id: &str) -> impl Iterator<Item = &Package> {
        self.edges.get(id).into_iter().flatten().filter_map(|dep| self.packages.get(dep))
    }

    /// Everything that is linked into a program: normal dependencies of dependencies, without procedural macros.
    fn linked(&self, id: &str) -> Vec<&Package> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![id.to_owned()];
        while let Some(id) = todo.pop() {
            for dep in self.edges.get(&id).into_iter().flatten() {
                if self.packages.get(dep).is_some_and(|package| !package.proc_macro) && seen.insert(dep.clone()) {
                    todo.push(dep.clone());
                }
            }
        }
        seen.iter().filter_map(|id| self.packages.get(id)).collect()
    }

    fn layer_faults(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (id, package, folder) in self.ours() {
            let Some(mine) = layer(folder) else { continue };
            for dep in self.direct(id) {
                let Some(theirs) = dep.folder.as_deref().and_then(layer) else { continue };
                let within = || WITHIN.iter().any(|(layer, may)| *layer == LAYERS[mine] && may.contains(&dep.name.as_str()));
                if theirs > mine || (theirs == mine && !within()) {
                    wrong.push(format!(
                        "{} ({}) uses {} ({}): not a layer below it",
                        package.name, LAYERS[mine], dep.name, LAYERS[theirs]
                    ));
                }
            }
        }
        wrong
    }

    fn root_faults(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (id, package, _) in self.ours().filter(|(_, package, _)| ROOT_PROGRAMS.contains(&package.name.as_str())) {
            let linked = self.linked(id);
            let (ours, outside): (Vec<&Package>, Vec<&Package>) =
                linked.into_iter().partition(|package| package.folder.is_some());
            wrong.extend(
                ours.iter()
                    .filter(|p| !ROOT_MAY.contains(&p.name.as_str()))
                    .map(|p| format!("{} must not link {}", package.name, p.name)),
            );
            let names: BTreeSet<&str> = outside.iter().map(|p| p.name.as_str()).collect();
            println!(
                "{} links {} outside packages: {}",
                package.name,
                names.len(),
                names.iter().copied().collect::<Vec<_>>().join(" ")
            );
            if names.len() > ROOT_OUTSIDE_MAX {
                wrong.push(format!("{} links more than {ROOT_OUTSIDE_MAX} outside packages", package.name));
            }
        }
        wrong
    }

    fn never_faults(&self) -> Vec<String> {
        let never: BTreeMap<&str, &[&str]> = NEVER.into_iter().collect();
        let mut wrong = Vec::new();
        for (id, package, _) in self.ours() {
            let Some(never) = never.get(package.name.as_str()) else { continue };
            let linked = self.linked(id);
            wrong.extend(
                linked
                    .iter()
                    .filter(|p| never.contains(&p.name.as_str()))
                    .map(|p| format!("{} must not link {}", package.name, p.name)),
            );
        }
        wrong
    }

    fn licence_faults(&self) -> Vec<String> {
        let bad = |package: &&Package| package.folder.is_none() && !is_allowed(&package.licence);
        self.packages.values().filter(bad).map(|package| format!("{}: licence `{}`", package.name, package.licence)).collect()
    }
}

fn layer(folder: &str) -> Option<usize> {
    let name = folder.strip_prefix("crates/").unwrap_or(folder).split('/').next()?;
    LAYERS.iter().position(|layer| *layer == name)
}

/// Is an SPDX expression of `AND`, `OR` (also the old `/`) and parentheses satisfied by our list?
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let mut depth = 0;
    let mut split = |separator: &str| -> Vec<String> {
        let (mut parts, mut part) = (Vec::new(), Vec::new());
        let spaced = expression.replace('(', " ( ").replace(')', " ) ");
        for word in spaced.split_whitespace() {
            depth += i32::from(word == "(") - i32::from(word == ")");
            if depth == 0 && word == separator {
                parts.push(std::mem::take(&mut part).join(" "));
            } else {
                part.push(word.to_owned());
            }
        }
        parts.push(part.join(" "));
        parts
    };
    let either = split("OR");
    if either.len() > 1 {
        return either.iter().any(|part| is_allowed(part));
    }
    let both = split("AND");
    if both.len() > 1 {
        return both.iter().all(|part| is_allowed(part));
    }
    let single = expression.trim();
    match single.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => is_allowed(inner),
        None => LICENCES.contains(&single.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn licence_expressions() {
        for yes in [
            "MIT",
            "MIT OR GPL-3.0",
            "MIT/Apache-2.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR MIT",
        ] {
            assert!(is_allowed(yes), "{yes}");
        }
        for no in ["", "GPL-3.0", "MIT AND GPL-3.0", "(GPL-2.0 OR AGPL-3.0) AND MIT", "MPL-2.0"] {
            assert!(!is_allowed(no), "{no}");
        }
    }
}
