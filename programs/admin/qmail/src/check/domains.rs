//! The lists of domains (rcpthosts, morercpthosts, locals, virtualdomains, percenthack) line by line, and against each other.

use std::collections::HashMap;
use std::path::Path;

use control::{Root, VirtualDomains};
use wire::Domain;
use wire::escape::visible;

use super::Findings;

/// A line that counts, with its number.
type Line = (usize, Vec<u8>);

pub(super) fn check(root: &Root, found: &mut Findings) {
    let rcpthosts = read(root, "rcpthosts", found);
    match &rcpthosts {
        None => found.warning(
            &root.control_file("rcpthosts"),
            "is missing: mail for nobody but virtual domains is accepted; write the domains that are yours",
        ),
        Some(lines) => hosts(root, "rcpthosts", lines, found),
    }
    for name in ["morercpthosts", "locals", "percenthack"] {
        if let Some(lines) = read(root, name, found) {
            hosts(root, name, &lines, found);
        }
    }
    database(root, found);
    let virtualdomains = read(root, "virtualdomains", found).unwrap_or_default();
    prefixes(&root.control_file("virtualdomains"), &virtualdomains, found);
    // What is wrong with users/domains is said where it is checked.
    let ours = root.virtual_domains().unwrap_or_default();
    let locals = read(root, "locals", found);
    overlaps(root, &ours, locals.as_deref(), &virtualdomains, found);
    accepted(root, &ours, locals.as_deref(), &virtualdomains, found);
    name_of_this_host(root, &ours, locals.as_deref(), found);
}

fn read(root: &Root, name: &str, found: &mut Findings) -> Option<Vec<Line>> {
    let text = found.take(root.text(name))??;
    Some(users::list_lines(&text).map(|(number, line)| (number, line.to_vec())).collect())
}

/// Each line is a domain, or with a dot before it all names below one.
fn hosts(root: &Root, name: &str, lines: &[Line], found: &mut Findings) {
    let file = root.control_file(name);
    let form = "write a domain, or with a dot before it all names below one";
    let mut seen = HashMap::new();
    for (number, line) in lines {
        let shown = visible(line);
        let below = line.strip_prefix(b".").filter(|_| name.ends_with("rcpthosts"));
        if line.starts_with(b".") && below.is_none() {
            found.error(
                &file,
                format!("line {number}: `{shown}` is no domain, and a dot before one means nothing here; write each domain"),
            );
        } else if Domain::new(below.unwrap_or(line)).is_err() {
            found.error(&file, format!("line {number}: `{shown}` is no domain and does not count; {form}"));
        }
        if let Some(first) = seen.insert(line.to_ascii_lowercase(), number) {
            found.note(&file, format!("line {number}: `{shown}` stands in line {first}, too; take one of them out"));
        }
    }
}

/// `domain:prefix`, `user@domain:prefix`, `.domain:prefix`, `:prefix`; an empty prefix is an exception.
fn prefixes(file: &Path, lines: &[Line], found: &mut Findings) {
    let mut seen = HashMap::new();
    for (number, line) in lines {
        let shown = visible(line);
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            found.error(file, format!("line {number}: `{shown}` has no colon and does not count; write domain:prefix"));
            continue;
        };
        let key = line.get(..colon).unwrap_or_default().to_ascii_lowercase();
        let domain = key.rsplit(|b| *b == b'@').next().unwrap_or_default();
        let domain = domain.strip_prefix(b".").unwrap_or(domain);
        if !key.is_empty() && Domain::new(domain).is_err() {
            let key = visible(&key);
            found.error(
                file,
                format!("line {number}: `{key}` is no domain and no address, and does not count; write domain:prefix"),
            );
        }
        if let Some(first) = seen.insert(key, number) {
            found.warning(file, format!("line {number}: `{shown}` takes the place of line {first}; take one of them out"));
        }
    }
}

/// morercpthosts counts by its database alone.
fn database(root: &Root, found: &mut Findings) {
    let (text, cdb) = (root.control_file("morercpthosts"), root.control_file("morercpthosts.cdb"));
    let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    match (changed(&text), changed(&cdb)) {
        (Some(_), None) => found.error(&text, "does not count without morercpthosts.cdb; run qmail-newmrh, which makes it"),
        (Some(text_changed), Some(cdb_changed)) if text_changed > cdb_changed => {
            found.warning(&text, "is newer than morercpthosts.cdb, which is what counts; run qmail-newmrh");
        }
        _ => {}
    }
    if let Some(Some(bytes)) = found.take(root.text("morercpthosts.cdb"))
        && wire::cdb::records(&bytes).is_none()
    {
        found.error(&cdb, "is damaged, and recipients at its domains are deferred; run qmail-newmrh");
    }
}

/// The domain of a line of `virtualdomains`.
fn domain_of(line: &[u8]) -> &[u8] {
    let key = line.split(|b| *b == b':').next().unwrap_or_default();
    key.rsplit(|b| *b == b'@').next().unwrap_or_default()
}

/// What stands in two places counts in one of them: users/domains before locals before virtualdomains.
fn overlaps(root: &Root, ours: &VirtualDomains, locals: Option<&[Line]>, virtualdomains: &[Line], found: &mut Findings) {
    let locals = locals.unwrap_or_default();
    let local_lines = locals.iter().map(|(number, line)| ("locals", *number, line.as_slice()));
    let virtual_lines = virtualdomains.iter().map(|(number, line)| ("virtualdomains", *number, domain_of(line)));
    for (name, number, host) in local_lines.chain(virtual_lines) {
        let shown = visible(host);
        if ours.get(host).is_some() {
            let problem = format!("line {number}: {shown} is in users/domains too, which wins");
            found.error(&root.control_file(name), format!("{problem}; take it out of one of them"));
        } else if name == "virtualdomains"
            && let Some((other, _)) = locals.iter().find(|(_, line)| line.eq_ignore_ascii_case(host))
        {
            let problem = format!("line {number}: {shown} is in line {other} of control/locals, too, which wins");
            found.error(&root.control_file(name), format!("{problem}; take it out of one of them"));
        }
    }
}

/// A domain of ours whose mail nobody from outside may send here.
fn accepted(root: &Root, ours: &VirtualDomains, locals: Option<&[Line]>, virtualdomains: &[Line], found: &mut Findings) {
    let Some(rcpthosts) = found.take(root.hosts("rcpthosts")) else { return };
    let more = root.text("morercpthosts.cdb").ok().flatten().unwrap_or_default();
    let is_in_more = |host: &[u8]| {
        let host = host.to_ascii_lowercase();
        wire::cdb::records(&more).is_some_and(|records| records.iter().any(|(key, _)| *key == host))
    };
    let local_lines = locals.unwrap_or_default().iter().map(|(number, line)| ("locals", *number, line.as_slice()));
    let named = virtualdomains.iter().filter(|(_, line)| !line.ends_with(b":"));
    let virtual_lines = named.map(|(number, line)| ("virtualdomains", *number, domain_of(line)));
    for (name, number, host) in local_lines.chain(virtual_lines) {
        if !host.is_empty() && !rcpthosts.contains(host) && !is_in_more(host) && ours.get(host).is_none() {
            let problem = format!("line {number}: {} is not in rcpthosts: its mail is not accepted from outside", visible(host));
            found.warning(&root.control_file(name), format!("{problem}; write it into control/rcpthosts, too"));
        }
    }
}

/// Bounces of bounces and mail of programs go to addresses at `me`.
fn name_of_this_host(root: &Root, ours: &VirtualDomains, locals: Option<&[Line]>, found: &mut Findings) {
    let (Ok(me), Some(locals)) = (root.me(), locals) else { return };
    if ours.get(&me).is_none() && !locals.iter().any(|(_, line)| line.eq_ignore_ascii_case(&me)) {
        let problem =
            format!("does not have {}, the name of this host, so that mail for postmaster there leaves it", visible(&me));
        found.warning(&root.control_file("locals"), format!("{problem}; write it into the file"));
    }
}
