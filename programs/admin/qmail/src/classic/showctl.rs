//! qmail-showctl(8): what each control file says, in words.
//!
//! Files of the classic program come first, in its order and its words; then those that only this system has; then those that no program
//! reads. What differs here (a missing rcpthosts means nobody) is said as it is here.

use control::Root;

use crate::check::control_files::is_known;
use crate::{Failure, io_failure};

/// How a file is told of.
enum Kind {
    /// A number: its default, and the words around it.
    Int(&'static str, &'static str, &'static str),
    /// A line: its default (`me` if the flag says so), and the words before it.
    Str(bool, &'static str, &'static str),
    /// Lines: what no file means, and the words around each.
    List(&'static str, &'static str, &'static str),
}

use Kind::{Int, List, Str};

const FIRST: [(&str, Kind); 20] = [
    ("badmailfrom", List("Any MAIL FROM is allowed.", "", " not accepted in MAIL FROM.")),
    ("bouncefrom", Str(false, "MAILER-DAEMON", "Bounce user name is ")),
    ("bouncehost", Str(true, "bouncehost", "Bounce host name is ")),
    ("concurrencylocal", Int("10", "Local concurrency is ", "")),
    ("concurrencyremote", Int("20", "Remote concurrency is ", "")),
    ("databytes", Int("0", "SMTP DATA limit is ", " bytes")),
    ("defaultdomain", Str(true, "defaultdomain", "Default domain name is ")),
    ("defaulthost", Str(true, "defaulthost", "Default host name is ")),
    ("doublebouncehost", Str(true, "doublebouncehost", "2B recipient host: ")),
    ("doublebounceto", Str(false, "postmaster", "2B recipient user: ")),
    ("envnoathost", Str(true, "envnoathost", "Presumed domain name is ")),
    ("helohost", Str(true, "helohost", "SMTP client HELO host name is ")),
    ("idhost", Str(true, "idhost", "Message-ID host name is ")),
    ("localiphost", Str(true, "localiphost", "Local IP address becomes ")),
    ("locals", List("Messages for me are delivered locally.", "Messages for ", " are delivered locally.")),
    ("me", Str(false, "undefined! Uh-oh", "My name is ")),
    ("percenthack", List("The percent hack is not allowed.", "The percent hack is allowed for user%host@", ".")),
    ("plusdomain", Str(true, "plusdomain", "Plus domain name is ")),
    ("qmqpservers", List("No QMQP servers.", "QMQP server: ", ".")),
    ("queuelifetime", Int("604800", "Message lifetime in the queue is ", " seconds")),
];

const LAST: [(&str, Kind); 6] = [
    ("smtpgreeting", Str(true, "smtpgreeting", "SMTP greeting: 220 ")),
    ("smtproutes", List("No artificial SMTP routes.", "SMTP route: ", "")),
    ("timeoutconnect", Int("60", "SMTP client connection timeout is ", " seconds")),
    ("timeoutremote", Int("1200", "SMTP client data timeout is ", " seconds")),
    ("timeoutsmtpd", Int("1200", "SMTP server data timeout is ", " seconds")),
    ("virtualdomains", List("No virtual domains.", "Virtual domain: ", "")),
];

/// Told of where it is there: the classic program leaves it to whoever starts qmail.
const DEFAULT_DELIVERY: (&str, Kind) = ("defaultdelivery", List("", "Default delivery: ", ""));

const RCPTHOSTS: [&str; 3] = ["rcpthosts", "morercpthosts", "morercpthosts.cdb"];
const RECIPIENTS: &str = "SMTP clients may send messages to recipients at ";

/// The program's output.
///
/// # Errors
/// The directory cannot be read; temporary. A file that cannot be read is told of and is no error.
pub fn showctl(root: &Root) -> Result<Vec<u8>, Failure> {
    let dir = root.control();
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(|error| io_failure(&dir, &error))? {
        names.push(entry.map_err(|error| io_failure(&dir, &error))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let me = root.line("me").ok().flatten();
    let mut out = head(root).into_bytes();
    let mut tell = |name: &str, kind: &Kind| out.extend(file(root, name, kind, me.as_deref()));
    FIRST.iter().for_each(|(name, kind)| tell(name, kind));
    tell("rcpthosts", &List("SMTP clients may send messages to virtual domains only.", RECIPIENTS, "."));
    tell("morercpthosts", &List("No effect.", RECIPIENTS, "."));
    out.extend(morercpthosts_cdb(root).as_bytes());
    let mut tell = |name: &str, kind: &Kind| out.extend(file(root, name, kind, me.as_deref()));
    LAST.iter().for_each(|(name, kind)| tell(name, kind));
    let told = |name: &str| {
        FIRST.iter().chain(&LAST).any(|(known, _)| *known == name) || RCPTHOSTS.contains(&name) || name == DEFAULT_DELIVERY.0
    };
    let others: Vec<&String> = names.iter().filter(|name| !told(name)).collect();
    if names.iter().any(|name| name == DEFAULT_DELIVERY.0) {
        tell(DEFAULT_DELIVERY.0, &DEFAULT_DELIVERY.1);
    }
    for (name, words) in others.iter().filter(|name| is_known(root, name)).map(|name| (name, "see qmail-control(5).")) {
        out.extend(format!("\n{}: {words}\n", safe(name.as_bytes())).bytes());
    }
    for name in others.iter().filter(|name| !is_known(root, name)) {
        out.extend(format!("\n{}: I have no idea what this file does.\n", safe(name.as_bytes())).bytes());
    }
    Ok(out)
}

fn head(root: &Root) -> String {
    let mut ids = Vec::new();
    if let Ok(text) = std::fs::read_to_string(root.ids_file()) {
        ids.extend(
            text.lines().map(str::split_whitespace).filter_map(|mut words| Some(format!("{} {}", words.next()?, words.next()?))),
        );
    }
    format!(
        "qmail home directory: {}.\nuser-ext delimiter: -.\npaternalism (in decimal): 2.\nsilent concurrency limit: 2000.\nuser ids: {}.\n",
        root.path().join("var/qmail").display(),
        ids.join(", ")
    )
}

fn file(root: &Root, name: &str, kind: &Kind, me: Option<&[u8]>) -> Vec<u8> {
    let told = match kind {
        Int(default, before, after) => root.int(name).map(|value| match value {
            Some(value) => format!("{before}{value}{after}.\n"),
            None => format!("(Default.) {before}{default}{after}.\n"),
        }),
        Str(by_me, default, before) => root.line(name).map(|value| match value {
            Some(value) => format!("{before}{}.\n", safe(&value)),
            None => format!("(Default.) {before}{}.\n", safe(me.filter(|_| *by_me).unwrap_or(default.as_bytes()))),
        }),
        List(none, before, after) => root.lines(name).map(|lines| match lines {
            Some(lines) => lines.iter().fold("\n".to_owned(), |all, line| all + before + &safe(line) + after + "\n"),
            None => format!("(Default.) {none}\n"),
        }),
    };
    let told = told.unwrap_or_else(|_| "Oops! Trouble reading this file.\n".to_owned());
    format!("\n{name}: {told}").into_bytes()
}

fn morercpthosts_cdb(root: &Root) -> String {
    let modified = |name: &str| std::fs::metadata(root.control_file(name)).and_then(|held| held.modified()).ok();
    let told = match (modified("morercpthosts"), modified("morercpthosts.cdb")) {
        (None, None) => "(Default.) No effect.",
        (None, Some(_)) => "Oops! morercpthosts.cdb exists but morercpthosts doesn't.",
        (Some(_), None) => "Oops! morercpthosts exists but morercpthosts.cdb doesn't.",
        (Some(text), Some(cdb)) if text > cdb => "Oops! morercpthosts.cdb is older than morercpthosts.",
        (Some(_), Some(_)) => "Modified recently enough; hopefully up to date.",
    };
    format!("\nmorercpthosts.cdb: {told}\n")
}

/// Bytes that are not printable are `?`.
fn safe(text: &[u8]) -> String {
    text.iter().map(|b| if (32..=126).contains(b) { char::from(*b) } else { '?' }).collect()
}
