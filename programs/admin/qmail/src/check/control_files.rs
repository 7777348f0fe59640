//! etc/qmail/control: each file as its program reads it.

use control::{Root, Service};
use wire::Domain;

use super::Findings;

/// Files that hold a number.
const NUMBERS: [&str; 17] = [
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
    "timeoutconnect",
    "timeoutpop3",
    "timeoutremote",
    "timeoutsmtpd",
    "uidmin",
    "brtlimit",
];
/// Other files that a program of this version reads.
const OTHERS: [&str; 60] = [
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
    "badmailfrom",
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
    "mtpriority",
    "notipme",
    "oauth",
    "outgoingip",
    "overquota",
    "percenthack",
    "plusdomain",
    "quotawarning",
    "quotawarningtext",
    "rcpthosts",
    "relayclients",
    "resolvers",
    "smtpgreeting",
    "smtproutes",
    "submission",
    "submissionlimits",
    "submissionsenders",
    "tcp.smtp",
    "tcp.smtp.cdb",
    "tlscafile",
    "tlsclients",
    "tlspolicy",
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
    hosts(root, found);
    values(root, found);
    programs(root, found);
    logins(root, found);
    unknown(root, found);
}

fn host_name(root: &Root, found: &mut Findings) {
    let Some(me) = found.take(root.me()) else { return };
    let file = root.control_file("me");
    match Domain::new(&me) {
        Err(error) => found.error(&file, format!("`{}`: {error}; write the full name of this host", wire::escape::visible(&me))),
        Ok(domain) if !domain.as_bytes().contains(&b'.') => {
            found.warning(&file, "has no dot; other hosts refuse mail from a host without a full name (RFC 5321 §2.3.5)");
        }
        Ok(_) => {}
    }
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
                format!("{listener}: every host of the Internet may say that it is another; name your proxies only"),
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
        Err(name) => found.error(&file, format!("`{}` is no mechanism of this version", wire::escape::visible(&name))),
        Ok(mechanisms) if mechanisms.has_apop() || mechanisms.contains(sasl::Mechanism::CramMd5) => {
            found.warning(&file, "CRAM-MD5 and APOP work for passwords that are kept in clear (qmail user passwd --keep-clear)");
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
                    "`{}` is no number and counts as if the file were missing; write digits only",
                    wire::escape::visible(&line)
                ),
            );
        } else if digits < line.len() {
            found.warning(&file, "only the digits at its front count; take the rest away");
        }
    }
    for name in ["concurrencylocal", "concurrencyremote"] {
        if let Some(Some(0)) = found.take(root.int(name)) {
            found.warning(&root.control_file(name), "is 0: deliveries are held");
        }
    }
}

fn networks(root: &Root, found: &mut Findings) {
    let everybody = ["198.51.100.1", "2001:db8::1"].map(str::parse);
    for (name, danger) in [
        ("relayclients", "lets every host of the Internet relay; name your own networks only"),
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
        found.warning(&file, format!("{shown} says nothing here: RELAYCLIENT and DATABYTES do; take it away"));
    }
    if name == TEXT && root.control_file(DATABASE).exists() {
        found.warning(&root.control_file(DATABASE), "does not count beside tcp.smtp; remove one of them");
    }
}

fn hosts(root: &Root, found: &mut Findings) {
    let file = root.control_file("rcpthosts");
    match found.take(root.lines("rcpthosts")) {
        Some(None) => {
            found.warning(&file, "is missing: mail for nobody but virtual domains is accepted; write the domains that are yours")
        }
        Some(Some(lines)) if lines.iter().any(|line| line == b"." || line == b"*") => {
            found.error(&file, "`.` or `*` is no domain; a line is a domain or, with a dot before it, all names below one");
        }
        _ => {}
    }
    let Some(rcpthosts) = found.take(root.hosts("rcpthosts")) else { return };
    let virtual_domains = root.virtual_domains().unwrap_or_default();
    for name in ["locals", "virtualdomains"] {
        let Some(Some(lines)) = found.take(root.lines(name)) else { continue };
        for line in lines {
            let host = line.split(|b| *b == b':').next().unwrap_or_default();
            let host = host.rsplit(|b| *b == b'@').next().unwrap_or_default();
            let is_exception = name == "virtualdomains" && line.ends_with(b":");
            if !host.is_empty() && !is_exception && !rcpthosts.contains(host) && virtual_domains.get(host).is_none() {
                let shown = wire::escape::visible(host);
                found.warning(
                    &root.control_file(name),
                    format!("{shown} is not in rcpthosts: its mail is not accepted from outside"),
                );
            }
        }
    }
}

fn values(root: &Root, found: &mut Findings) {
    if let Some(Some(value)) = found.take(root.line("barelf"))
        && !matches!(value.as_slice(), b"reject" | b"normalize")
    {
        found.error(&root.control_file("barelf"), "must be `reject` or `normalize`");
    }
    let Some(lspawn) = found.take(control::lspawn::Lspawn::load(root)) else { return };
    if !lspawn.default_delivery.contains(&b'/') {
        found.warning(&root.control_file("defaultdelivery"), "names no mailbox; usual is `./Maildir/`");
    }
    let Some(Some(lines)) = found.take(root.lines("virtualdomains")) else { return };
    for line in lines.iter().filter(|line| !line.contains(&b':')) {
        let shown = wire::escape::visible(line);
        found.error(
            &root.control_file("virtualdomains"),
            format!("`{shown}` has no colon and does not count; write domain:prefix"),
        );
    }
}

/// What keeps a program from starting.
fn programs(root: &Root, found: &mut Findings) {
    found.take(control::Smtpd::read(root));
    found.take(control::LogFormat::read(root));
    found.take(control::submission::SubmissionSenders::watch(root).get().map(drop));
    found.take(control::submission::SubmissionLimits::watch(root).get().map(drop));
    found.take(control::popup::Popup::read(root));
    found.take(control::send::Send::read(root));
    found.take(control::Remote::read(root));
    found.take(control::Resolve::read(root));
    found.take(control::Inject::read(root));
}

/// A name with a slip in it is a file that nobody reads.
fn unknown(root: &Root, found: &mut Findings) {
    let Ok(entries) = std::fs::read_dir(root.control()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| is_known(root, name)) {
            found.note(&entry.path(), "no program of this version reads it");
        }
    }
}

/// Does a program of this version read `control/NAME`?
pub(crate) fn is_known(root: &Root, name: &str) -> bool {
    let path = root.control_file(name);
    NUMBERS.contains(&name)
        || OTHERS.contains(&name)
        || super::authnet::secrets(root).contains(&path)
        || super::acme::files(root).contains(&path)
}
