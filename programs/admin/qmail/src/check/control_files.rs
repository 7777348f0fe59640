//! etc/qmail/control: each file as its program reads it.

use control::{Root, Service};
use wire::Domain;

use super::Findings;

/// Below it `databytes` is meant in another unit.
const SMALLEST_MESSAGE: u64 = 16 * 1024;
/// A host that greylists takes mail after some minutes; one that is being mended, after some hours.
const SHORTEST_LIFE_S: u64 = 6 * 3600;
/// Files that hold a number.
const NUMBERS: [&str; 20] = [
    "bouncemaxbytes",
    "concurrencyincoming",
    "concurrencyincomingip",
    "concurrencylocal",
    "concurrencypop3",
    "concurrencypop3ip",
    "concurrencyremote",
    "databytes",
    "maxrcpt",
    "popbeforesmtp",
    "queuelifetime",
    "rejectnullsenders",
    "rejectrelaytest",
    "smtpgreetdelay",
    "timeoutconnect",
    "timeoutpop3",
    "timeoutremote",
    "timeoutsmtpd",
    "uidmin",
    "brtlimit",
];
/// Other files that a program of this version reads.
const OTHERS: &[&str] = &[
    "accounts",
    "accountspassword",
    "acme",
    "alerts",
    "apppasswordsonly",
    "authcleartext",
    "authlimits",
    "authmechanisms",
    "authsenders",
    "authsources",
    "badhelo",
    "badhelonorelay",
    "badmailfrom",
    "badmailfromnorelay",
    "badmailto",
    "badrcptto",
    "badrcpttonorelay",
    "barelf",
    "bouncefrom",
    "bouncehost",
    "clientca.pem",
    "defaultdelivery",
    "defaultdomain",
    "defaulthost",
    "deliverby",
    "doublebouncehost",
    "doublebounceto",
    "dsn",
    "envnoathost",
    "helohost",
    "idhost",
    "ldap",
    "listen",
    "lmtproutes",
    "localiphost",
    "locals",
    "logformat",
    "me",
    "moreipme",
    "morercpthosts",
    "morercpthosts.cdb",
    "morevalidrcptto.cdb",
    "mtpriority",
    "notipme",
    "oauth",
    "outgoingip",
    "overquota",
    "percenthack",
    "plusdomain",
    "qmaillocal",
    "qmailremote",
    "qmqpclients",
    "qmqpservers",
    "qmtproutes",
    "quotawarning",
    "quotawarningtext",
    "rcpthosts",
    "relayclients",
    "resolvers",
    "sitelimits",
    "smtpgreeting",
    "smtpplugins",
    "smtproutes",
    "submission",
    "submissionlimits",
    "submissionsenders",
    "taps",
    "tcp.smtp",
    "tcp.smtp.cdb",
    "tlscafile",
    "tlsclients",
    "tlspolicy",
    "validrcptto",
    "validrcptto.cdb",
    "virtualdomains",
    "vmailprograms",
    "xclient",
];

pub(super) fn check(root: &Root, found: &mut Findings) {
    host_name(root, found);
    listeners(root, found);
    numbers(root, found);
    networks(root, found);
    client_rules(root, found);
    values(root, found);
    programs(root, found);
    logins(root, found);
    unknown(root, found);
}

fn host_name(root: &Root, found: &mut Findings) {
    let Some(me) = found.take(root.me()) else { return };
    let file = root.control_file("me");
    match Domain::new(&me) {
        Err(error) => {
            found.error(&file, format!("line 1: `{}`: {error}; write the full name of this host", wire::escape::visible(&me)))
        }
        Ok(domain) if is_of_this_machine_alone(domain.as_bytes()) => {
            let shown = wire::escape::visible(&me);
            found.error(
                &file,
                format!("line 1: `{shown}` is every host's name for itself; write the name that others know this host by"),
            );
        }
        Ok(domain) if !domain.as_bytes().contains(&b'.') => {
            let problem = "has no dot, and other hosts refuse mail from a host without a full name (RFC 5321 §2.3.5)";
            found.warning(&file, format!("line 1: {problem}; write the full name, as in mail.example.org"));
        }
        Ok(domain) if std::str::from_utf8(domain.as_bytes()).is_ok_and(|name| name.parse::<std::net::IpAddr>().is_ok()) => {
            found.error(&file, "line 1: is an address, and no name of a host; write the name that DNS has for this host");
        }
        Ok(_) => {}
    }
}

/// `localhost` and its kind (RFC 6761 §6.3): mail to such a sender goes back to whoever has it.
fn is_of_this_machine_alone(domain: &[u8]) -> bool {
    let label = domain.rsplit(|b| *b == b'.').next().unwrap_or_default();
    matches!(label, b"localhost" | b"localdomain")
}

fn listeners(root: &Root, found: &mut Findings) {
    let Some(listeners) = found.take(root.listen()) else { return };
    let file = root.control_file("listen");
    if listeners.is_empty() {
        found.warning(&file, "nothing listens; write lines like `smtp 0.0.0.0:25`");
    }
    for listener in listeners {
        let served = sandbox::TABLE.iter().any(|process| process.listens.contains(&listener.service.name()));
        if !served {
            found.error(&file, format!("no program of this version serves {}; take the line out", listener.service));
        }
        let everybody = ["198.51.100.1", "2001:db8::1"].map(str::parse);
        if let Ok(Some(proxies)) = listener.proxies()
            && everybody.iter().flatten().any(|address| proxies.contains(*address))
        {
            found.error(
                &file,
                format!("{listener}: every host of the Internet may say that it is another; name your proxies only in `proxy=`"),
            );
        }
        if matches!(listener.service, Service::Pop3 | Service::Submission) && !listener.address.ip().is_loopback() {
            found.warning(
                &file,
                format!("{listener}: passwords without TLS are taken from control/authcleartext only; listen on 127.0.0.1"),
            );
        }
    }
}

fn logins(root: &Root, found: &mut Findings) {
    if let Some(Some(text)) = found.take(root.text("authlimits"))
        && let Err(problem) = control::AuthLimits::parse(&text)
    {
        found.error(&root.control_file("authlimits"), problem);
    }
    let Some(Some(lines)) = found.take(root.lines("authmechanisms")) else { return };
    let file = root.control_file("authmechanisms");
    match sasl::Mechanisms::parse(Some(&lines)) {
        Err(name) => {
            found.error(&file, format!("`{}` is no mechanism of this version; take it out", wire::escape::visible(&name)))
        }
        Ok(mechanisms) if mechanisms.has_apop() || mechanisms.contains(sasl::Mechanism::CramMd5) => {
            found.warning(&file, "CRAM-MD5 and APOP work for passwords alone that are kept in clear; set those by `qmail user passwd --keep-clear`, or take them out");
        }
        Ok(_) => {}
    }
}

fn numbers(root: &Root, found: &mut Findings) {
    for name in NUMBERS {
        let Some(Some(line)) = found.take(root.line(name)) else { continue };
        let file = root.control_file(name);
        let digits = line.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            found.error(
                &file,
                format!(
                    "line 1: `{}` is no number and counts as if the file were missing; write digits only",
                    wire::escape::visible(&line)
                ),
            );
        } else if digits < line.len() {
            found.warning(&file, "line 1: only the digits at its front count; take the rest away");
        }
    }
    sizes(root, found);
    for name in ["concurrencylocal", "concurrencyremote"] {
        if let Some(Some(0)) = found.take(root.int(name)) {
            found.warning(&root.control_file(name), "line 1: is 0: deliveries are held; write how many there may be at a time");
        }
    }
    for (line, host) in found.take(control::SiteLimits::read(root)).iter().flat_map(control::SiteLimits::held) {
        let host = if host.is_empty() { "all other hosts".to_owned() } else { wire::escape::visible(host) };
        let problem = format!("line {line}: 0 connections: mail for {host} is held; write how many there may be at a time");
        found.warning(&root.control_file("sitelimits"), problem);
    }
}

/// Numbers that are meant in another unit, or more than there is.
fn sizes(root: &Root, found: &mut Findings) {
    let number = |name: &str| root.int(name).ok().flatten();
    if let Some(bytes @ 1..SMALLEST_MESSAGE) = number("databytes") {
        let problem = format!("line 1: {bytes} bytes are less than most messages have, and those are refused");
        found.warning(&root.control_file("databytes"), format!("{problem}; write the number of bytes, or 0 for no bound"));
    }
    if let Some(seconds) = number("queuelifetime").filter(|seconds| *seconds < SHORTEST_LIFE_S) {
        let problem = format!("line 1: after {seconds} seconds mail comes back that another host only asked to wait with");
        found.warning(&root.control_file("queuelifetime"), format!("{problem}; write seconds, 604800 for a week"));
    }
    let most =
        [("concurrencylocal", control::send::CONCURRENCYLOCAL_MAX), ("concurrencyremote", control::send::CONCURRENCYREMOTE_MAX)];
    for (name, most) in most {
        if number(name).is_some_and(|at_a_time| at_a_time > most.into()) {
            found.warning(&root.control_file(name), format!("line 1: counts as {most}, which is the most; write {most} or less"));
        }
    }
}

fn networks(root: &Root, found: &mut Findings) {
    let everybody = ["198.51.100.1", "2001:db8::1"].map(str::parse);
    for (name, danger) in [
        ("relayclients", "lets every host of the Internet relay; name your own networks only"),
        ("qmqpclients", "every host of the Internet may send anything to anybody; name your own hosts only"),
        ("xclient", "every host of the Internet may say that it is another; name your proxies and tests only"),
        ("authcleartext", "lets passwords travel without TLS over the Internet; name networks that nobody listens on"),
    ] {
        let Some(Some(networks)) = found.take(root.networks(name)) else { continue };
        if everybody.iter().flatten().any(|address| networks.contains(*address)) {
            found.error(&root.control_file(name), danger);
        }
    }
}

/// control/tcp.smtp: a faulty line, an open relay, and what is written in vain.
fn client_rules(root: &Root, found: &mut Findings) {
    use control::clientrules::{DATABASE, TEXT};
    let Some(rules) = found.take(control::ClientRules::read(root)) else { return };
    let name = if root.control_file(TEXT).exists() { TEXT } else { DATABASE };
    let file = root.control_file(name);
    if rules.of(std::net::IpAddr::from([198, 51, 100, 1])).relay_client.is_some() {
        found.error(&file, "lets every host of the Internet relay; set RELAYCLIENT for your own networks only");
    }
    for variable in rules.without_effect() {
        let shown = wire::escape::visible(&variable);
        found.note(&file, format!("{shown} says nothing to qmail-smtpd; only programs that qmail-hook runs find it"));
    }
    if name == TEXT && root.control_file(DATABASE).exists() {
        found.warning(&root.control_file(DATABASE), "does not count beside tcp.smtp; remove one of them");
    }
}

fn values(root: &Root, found: &mut Findings) {
    if let Some(Some(value)) = found.take(root.line("barelf"))
        && !matches!(value.as_slice(), b"reject" | b"normalize")
    {
        found.error(&root.control_file("barelf"), "line 1: is neither; write `reject` or `normalize`");
    }
    let Some(lspawn) = found.take(control::lspawn::Lspawn::load(root)) else { return };
    if !lspawn.default_delivery.contains(&b'/') {
        found.warning(&root.control_file("defaultdelivery"), "names no mailbox; write `./Maildir/`, as is usual");
    }
}

/// What keeps a program from starting.
fn programs(root: &Root, found: &mut Findings) {
    found.take(control::Smtpd::read(root));
    hooks(root, found);
    found.take(control::LogFormat::read(root));
    found.take(control::submission::SubmissionSenders::watch(root).get().map(drop));
    found.take(control::submission::SubmissionLimits::watch(root).get().map(drop));
    found.take(control::popup::Popup::read(root));
    found.take(control::send::Send::read(root));
    found.take(control::Taps::read(root));
    found.take(control::Remote::read(root));
    found.take(control::Resolve::read(root));
    found.take(control::Inject::read(root));
    if root.control_file("qmqpservers").exists() {
        found.take(control::Qmqpc::read(root));
    }
}

/// Programs that qmail-hook would not run.
fn hooks(root: &Root, found: &mut Findings) {
    let Some(hooks) = found.take(control::Hooks::read(root)) else { return };
    let plugins = hooks.plugins.iter().filter(|line| !line.starts_with(b":"));
    for program in plugins.chain(&hooks.queues).chain(&hooks.checks) {
        let (path, _) = ipc::queue_program::place(std::os::unix::ffi::OsStrExt::from_bytes(&program[..]), root.path());
        if let Err(problem) = ipc::hook_program::trusted(&path, root.path()) {
            found.error(&path, format!("{problem}; mail gets 451 until it is repaired"));
        }
    }
    let listens = |service| root.listen().is_ok_and(|all| all.iter().any(|listener| listener.service == service));
    let is_there = |services: &[Service]| services.iter().any(|service| listens(*service));
    if !hooks.plugins.is_empty() && is_there(&[Service::Qmtp]) {
        let problem =
            "takes mail by `qmtp`, where no plugin of control/smtpplugins is asked; take that line out if they have to be";
        found.warning(&root.control_file("listen"), problem);
    }
    if (!hooks.checks.is_empty() && is_there(&[Service::Qmtp]))
        || (!hooks.queues.is_empty() && is_there(&[Service::Qmtp, Service::Qmqp]))
    {
        let problem = "takes mail by `qmtp` or `qmqp`, and defers it for clients whose mail a program of QMAILQUEUE or RCPTCHECK has to see; \
            take those lines out, or let such clients send by SMTP";
        found.warning(&root.control_file("listen"), problem);
    }
    if root.int("rejectnullsenders").ok().flatten().unwrap_or(0) > 0 {
        found.warning(
            &root.control_file("rejectnullsenders"),
            "keeps bounces and receipts of other hosts away; take it out when the flood is over",
        );
    }
}

/// A name with a slip in it is a file that nobody reads.
fn unknown(root: &Root, found: &mut Findings) {
    let Ok(entries) = std::fs::read_dir(root.control()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| is_known(root, name)) {
            continue;
        }
        let problem = "no program of this version reads it";
        match name.to_str().filter(|name| !is_copy(name)).and_then(nearest) {
            Some(meant) if root.control_file(meant).exists() => found
                .warning(&entry.path(), format!("{problem}, and {meant} is near; put what it says into {meant}, and remove it")),
            Some(meant) => {
                found.warning(&entry.path(), format!("{problem}, and {meant} is near; rename it to {meant} if that is meant"));
            }
            None => found.note(&entry.path(), format!("{problem}; remove it, or look for its name in qmail-control(5)")),
        }
    }
}

/// What editors and package managers leave beside a file.
fn is_copy(name: &str) -> bool {
    let ends = ["~", ".bak", ".old", ".orig", ".save", ".swp", ".tmp"];
    ends.iter().any(|end| name.ends_with(end)) || [".dpkg-", ".rpm", ".ucf-"].iter().any(|part| name.contains(part))
}

/// The known name that is one slip away, or two where names are long.
fn nearest(name: &str) -> Option<&'static str> {
    let allowed = if name.len() < 6 { 1 } else { 2 };
    let known = NUMBERS.iter().chain(OTHERS).map(|known| (slips(name.as_bytes(), known.as_bytes()), *known));
    known.filter(|(slips, _)| (1..=allowed).contains(slips)).min().map(|(_, known)| known)
}

/// How many bytes have to be put in, taken out, replaced, or swapped with the next one (the distance of Damerau and Levenshtein, each
/// place touched once).
fn slips(a: &[u8], b: &[u8]) -> usize {
    let mut before_last = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut row = vec![i.saturating_add(1)];
        for (j, right) in b.iter().enumerate() {
            let at = |list: &[usize], place: usize| list.get(place).copied().unwrap_or(usize::MAX / 2);
            let replaced = at(&last, j).saturating_add(usize::from(left != right));
            let removed = at(&last, j.saturating_add(1)).saturating_add(1);
            let added = at(&row, j).saturating_add(1);
            let is_swap = i > 0 && j > 0 && a.get(i.saturating_sub(1)) == Some(right) && b.get(j.saturating_sub(1)) == Some(left);
            let swapped = if is_swap { at(&before_last, j.saturating_sub(1)).saturating_add(1) } else { usize::MAX };
            row.push(replaced.min(removed).min(added).min(swapped));
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

/// Does a program of this version read `control/NAME`?
pub(crate) fn is_known(root: &Root, name: &str) -> bool {
    let path = root.control_file(name);
    NUMBERS.contains(&name)
        || OTHERS.contains(&name)
        || super::authnet::secrets(root).contains(&path)
        || super::acme::files(root).contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_near_its_name() {
        for (name, meant) in [
            ("rcpthost", Some("rcpthosts")),
            ("recpthosts", Some("rcpthosts")),
            ("smtproute", Some("smtproutes")),
            ("locasl", Some("locals")),
            ("Me", Some("me")),
            ("virtualdomain", Some("virtualdomains")),
            ("concurencyremote", Some("concurrencyremote")),
            ("notes", None),
            ("conf-home", None),
            ("x", None),
        ] {
            assert_eq!(nearest(name), meant, "{name}");
        }
    }
}
