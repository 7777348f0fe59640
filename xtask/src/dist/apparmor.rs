//! AppArmor's profiles of the service, written from the process table at each packing, so that they say what it says.
//!
//! They are reached from the unit (`AppArmorProfile=qmail-start`) and from each other by name, never by a path: a classic face that an
//! administrator starts himself is none of the service's processes and stays as it is. Each process confines itself further.
//! A row that is not confined has a profile if [`ROOT`] says what it does, and starts as it would without AppArmor if [`FOREIGN`] names it.
//! What a row starts is in no line of the table: a row that nobody decided about fails the packing ([`covered`]).

use anyhow::{Result, bail};
use sandbox::{Access, Count, Network, Place, Process, Role, Socket, TABLE};
use std::collections::BTreeSet;
use std::fmt::Write as _;

const LIBEXEC: &str = "/usr/lib/qmail";

/// What processes read before they confine themselves or only look at, and what they are handed open, beside the table.
const BESIDE: [(&str, &[&str]); 6] = [
    ("qmail-resolve", RESOLVER),
    ("qmail-remote", &["include <abstractions/ssl_certs>", "# The addresses of this host.", "network netlink raw,", BODIES]),
    ("qmail-authnet", &["include <abstractions/ssl_certs>"]),
    ("qmail-acme", &["include <abstractions/ssl_certs>"]),
    ("qmail-smtpd", &["/etc/qmail/users/{,**} r,"]),
    ("qmail-auth", &["/etc/passwd r,", "/etc/qmail/alias/ r,"]),
];
/// Bodies of messages are opened by qmail-send and handed on.
const BODIES: &str = "/var/spool/qmail/bodies/* r,";
const RESOLVER: &[&str] = &[
    "/etc/{resolv.conf,hosts,host.conf,nsswitch.conf} r,",
    "@{run}/{resolvconf,NetworkManager,systemd/resolve,connman,netconfig}/*resolv.conf r,",
];
/// Rows without a confinement of their own that have a profile all the same.
const ROOT: [(&str, &[&str]); 1] = [(
    "qmail-lspawn",
    &[
        "capability setuid,",
        "capability setgid,",
        "capability kill,",
        "capability dac_override,",
        "capability dac_read_search,",
        "capability sys_resource,",
        "/etc/qmail/{,**} r,",
        "# Is the home there, and whose is it?",
        "/{,**/} r,",
        "/usr/lib/qmail/* r,",
        BODIES,
        "signal (send) peer=qmail-local,",
        "signal (send) peer=qmail-pop3d,",
        "signal (send) peer=unconfined,",
    ],
)];

/// Rows in no profile: they start programs of others, whose needs nobody here can know.
const FOREIGN: [&str; 3] = ["qmail-checkpw", "qmail-rspawn", "qmail-hook"];
/// Other profiles that a profile may name for programs to start in: AppArmor's bound.
const TRANSITIONS_MAX: usize = 12;

/// The file.
///
/// # Errors
/// A row that the profiles do not know how to start.
pub(super) fn profiles() -> Result<String> {
    covered(TABLE)?;
    let mut text = String::from(
        "# AppArmor profiles of the service qmail, made from its process table. What an administrator adds belongs into\n\
         # local/PROFILE: this file is replaced with the next version.\n\n\
         abi <abi/3.0>,\ninclude <tunables/global>\n",
    );
    profile(&mut text, "qmail-start", "starts all others", &start());
    for process in TABLE.iter().filter(|process| has_profile(process) && profile_of(process) == process.name) {
        let mut all: Vec<String> = Vec::new();
        for other in TABLE.iter().filter(|other| profile_of(other) == process.name) {
            let own = format!("{LIBEXEC}/{} mr,", other.name);
            let new: Vec<String> = rules(other).into_iter().chain([own]).filter(|rule| !all.contains(rule)).collect();
            all.extend(new);
        }
        profile(&mut text, process.name, process.role.name(), &all);
    }
    Ok(text)
}

/// Is it known of each row who starts it, and in which profile?
fn covered(table: &[Process]) -> Result<()> {
    for process in table {
        let name = process.name;
        let is_foreign = FOREIGN.contains(&name);
        if process.confinement.is_none() && !is_foreign && !ROOT.iter().any(|(known, _)| *known == name) {
            bail!(
                "{name} is not confined, and the profiles do not know what it starts: give it a line in ROOT or FOREIGN (xtask/src/dist/apparmor.rs)"
            );
        }
        if process.confinement.is_some() && is_foreign {
            bail!("{name} is confined, and the profiles let it run free: take it out of FOREIGN (xtask/src/dist/apparmor.rs)");
        }
        // qmail-lspawn starts the rows of recipients, qmail-start all others.
        if (process.count == Count::OnDemand) != (process.role == Role::Recipient) {
            bail!("{name}: the profiles do not know who starts it (xtask/src/dist/apparmor.rs, `start` and `rules`)");
        }
    }
    let started = table.iter().filter(|process| process.role != Role::Recipient && has_profile(process));
    let profiles: BTreeSet<&str> = started.map(profile_of).collect();
    if profiles.len() > TRANSITIONS_MAX {
        bail!(
            "qmail-start has {} profiles to start programs in, and AppArmor takes {TRANSITIONS_MAX}: {profiles:?}",
            profiles.len()
        );
    }
    Ok(())
}

/// AppArmor lets a profile name twelve others that programs start in, no more: what talks to clients has one user and shares one profile.
fn profile_of(process: &Process) -> &'static str {
    if process.role == Role::Network { "qmail-smtpd" } else { process.name }
}

fn has_profile(process: &Process) -> bool {
    process.confinement.is_some() || ROOT.iter().any(|(name, _)| *name == process.name)
}

/// A body that was removed while its delivery goes on is still the file that it was (`mediate_deleted`), and the unit has mounts of its
/// own (`attach_disconnected`).
fn profile(text: &mut String, name: &str, who: &str, rules: &[String]) {
    let _ = writeln!(text, "\n# {who}\nprofile {name} flags=(attach_disconnected,mediate_deleted) {{");
    for rule in common(name).iter().chain(rules) {
        let _ = writeln!(text, "  {rule}");
    }
    let _ = writeln!(text, "\n  include if exists <local/{name}>\n}}");
}

/// What all need: libraries, their own program, the configuration, each other.
fn common(name: &str) -> Vec<String> {
    let lines = [
        "include <abstractions/base>",
        "network unix,",
        "unix,",
        "/{,etc/,var/,var/lib/,var/spool/} r,",
        "/etc/qmail/ r,",
        "/etc/qmail/ids r,",
        "/etc/qmail/control/{,**} r,",
        "@{run}/qmail/ r,",
        "@{run}/qmail/inject.sock rw,",
        "owner @{PROC}/@{pid}/{fd/,cgroup,statm,mountinfo} r,",
        "@{sys}/fs/cgroup/{,**} r,",
        "signal (receive) peer=qmail-start,",
    ];
    [format!("{LIBEXEC}/{name} mr,")].into_iter().chain(lines.map(str::to_owned)).collect()
}

/// qmail-start: it makes the sockets and starts each process in its profile.
fn start() -> Vec<String> {
    let capabilities =
        ["setuid", "setgid", "chown", "fowner", "dac_override", "dac_read_search", "kill", "net_bind_service", "sys_resource"];
    let mut rules = capabilities.map(|name| format!("capability {name},")).to_vec();
    rules.extend(internet(&["stream"]));
    let files = [
        "/etc/qmail/{,**} r,",
        "/var/{spool,lib}/qmail/ r,",
        "/usr/{,lib/} r,",
        "@{run}/qmail/{,**} rwk,",
        "@{run}/systemd/notify w,",
        "signal (send),",
    ];
    rules.extend(files.map(str::to_owned));
    rules.push(format!("{LIBEXEC}/ r,"));
    rules.push(format!("{LIBEXEC}/* r,"));
    rules.extend(TABLE.iter().filter(|process| process.role != Role::Recipient).map(transition));
    rules
}

/// How a process is started: in its profile; without one, as any program of root's.
fn transition(process: &Process) -> String {
    let name = process.name;
    if has_profile(process) {
        format!("{LIBEXEC}/{name} px -> {},", profile_of(process))
    } else {
        format!("{LIBEXEC}/{name} Ux,")
    }
}

fn internet(kinds: &[&str]) -> Vec<String> {
    let families = ["inet", "inet6"];
    families.iter().flat_map(|family| kinds.iter().map(move |kind| format!("network {family} {kind},"))).collect()
}

/// What the row of a process says.
fn rules(process: &Process) -> Vec<String> {
    let mut rules = Vec::new();
    let sockets = process.serves.iter().chain(process.calls).filter(|socket| **socket != Socket::Inject);
    rules.extend(sockets.map(|socket| format!("@{{run}}/qmail/{} rw,", socket.path())));
    match process.confinement {
        Some(confinement) if confinement.network == Network::Internet => rules.extend(internet(&["stream", "dgram"])),
        // It accepts on sockets that it could not make.
        _ if !process.listens.is_empty() => rules.extend(internet(&["stream"])),
        _ => {}
    }
    let named = |list: &[(&str, &[&str])]| -> Vec<String> {
        list.iter()
            .filter(|(name, _)| *name == process.name)
            .flat_map(|(_, rules)| rules.iter().map(|rule| (*rule).to_owned()))
            .collect()
    };
    rules.extend(named(&BESIDE));
    rules.extend(named(&ROOT));
    if let Some(confinement) = process.confinement {
        rules.extend(confinement.files.into_iter().flatten().flat_map(|(place, access)| files(*place, *access)));
        if confinement.exec {
            rules.push("/** Ux,".to_owned());
        }
    }
    if process.role == Role::Recipient {
        rules.extend(recipient());
    }
    if process.name == "qmail-lspawn" {
        rules.extend(TABLE.iter().filter(|process| process.role == Role::Recipient).map(transition));
    }
    rules
}

/// Files as far as the uid reaches; and what a `.qmail` file starts is its owner's, as from a login.
fn recipient() -> Vec<String> {
    let rules = [
        "/{,**} rwlk,",
        "# Program lines, by a worker that is started for them alone.",
        "/{usr/,}bin/* Ux,",
        "signal (receive) peer=qmail-lspawn,",
        "signal (send) peer=unconfined,",
    ];
    rules.map(str::to_owned).to_vec()
}

fn files(place: Place, access: Access) -> Vec<String> {
    let may = match access {
        Access::Read => "r",
        Access::ReadWrite => "rwlk",
    };
    let below = |path: &str| vec![format!("{path}/{{,**}} {may},")];
    match place {
        Place::Control => below("/etc/qmail/control"),
        Place::Users => below("/etc/qmail/users"),
        Place::Spool => below("/var/spool/qmail"),
        Place::Lib => below("/var/lib/qmail"),
        Place::Tls => below("/etc/qmail/tls"),
        Place::NameService => vec![
            format!("/{{etc,lib*,usr,run,var/lib/sss,var/db}}/{{,**}} {may},"),
            format!("@{{PROC}}/{{,**}} {may},"),
            "/{usr/,}lib{,32,64}/**.so* m,".to_owned(),
            "# Daemons that answer for name services.".to_owned(),
            "/var/lib/sss/pipes/* rw,".to_owned(),
            "@{run}/{.nscd_socket,nscd/socket,nslcd/socket,systemd/userdb/*,dbus/system_bus_socket} rw,".to_owned(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> String {
        let text = profiles().unwrap();
        let from = text.find(&format!("profile {name} ")).unwrap_or_else(|| panic!("{name} has no profile"));
        text[from..].split_inclusive("\n}\n").next().unwrap().to_owned()
    }

    #[test]
    fn every_row_that_is_confined_has_a_profile_and_is_started_in_it() {
        for process in TABLE.iter().filter(|process| process.confinement.is_some()) {
            let starter = if process.role == Role::Recipient { "qmail-lspawn" } else { "qmail-start" };
            let profile = profile_of(process);
            assert!(of(starter).contains(&format!("/{} px -> {profile},\n", process.name)), "{}", process.name);
            assert!(!of(profile).contains("capability"), "{}", process.name);
        }
    }

    #[test]
    fn a_profile_grants_what_the_table_does_and_no_more() {
        for process in TABLE {
            let Some(confinement) = process.confinement else { continue };
            let text = of(profile_of(process));
            let outside = confinement.network == Network::Internet || !process.listens.is_empty();
            assert_eq!(text.contains("network inet"), outside, "{}", process.name);
            let writes = text.lines().filter(|line| line.contains(" rwlk,")).count();
            let granted = confinement.files.unwrap_or_default().iter().filter(|(_, access)| *access == Access::ReadWrite).count();
            assert_eq!(writes, granted + usize::from(process.role == Role::Recipient), "{}", process.name);
            for socket in process.serves.iter().chain(process.calls) {
                assert!(text.contains(&format!("/qmail/{} rw,", socket.path())), "{} {socket:?}", process.name);
            }
            assert_eq!(text.contains("Ux,"), confinement.exec || process.role == Role::Recipient, "{}", process.name);
        }
    }

    #[test]
    fn every_name_with_rules_of_its_own_is_a_row() {
        for name in BESIDE.iter().chain(&ROOT).map(|(name, _)| name).chain(&FOREIGN) {
            assert!(TABLE.iter().any(|process| process.name == *name), "{name}");
        }
    }

    /// What a row starts is not in the table, so a new one must not be passed over.
    #[test]
    fn a_row_that_nobody_decided_about_fails_the_packing() {
        let confined = *TABLE.iter().find(|process| process.confinement.is_some()).unwrap();
        let with = |process: Process| covered(&[TABLE, &[process]].concat()).map_err(|problem| problem.to_string());
        with(Process { name: "qmail-new", ..confined }).unwrap();
        for (process, said) in [
            (Process { name: "qmail-new", confinement: None, ..confined }, "what it starts"),
            (Process { name: "qmail-new", count: Count::OnDemand, ..confined }, "who starts it"),
            (Process { name: "qmail-new", role: Role::Recipient, ..confined }, "who starts it"),
            (Process { name: "qmail-hook", ..confined }, "take it out"),
        ] {
            let problem = with(process).unwrap_err();
            assert!(problem.contains(said) && problem.contains(process.name), "{problem}");
        }
        let names = ["a", "b", "c", "d", "e", "f", "g"].map(|name| Process { name, role: Role::Remote, ..confined });
        assert!(covered(&[TABLE, &names].concat()).unwrap_err().to_string().contains("AppArmor takes 12"));
    }
}
