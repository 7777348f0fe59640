//! That the manual has what the code reads: control files, options, variables of the environment, programs; and that it reads well.
//!
//! All of it goes by the text of the sources, so it knows the forms in which this project reads such things: `root.int("databytes")`,
//! `Letters { flags: b"rR", … }`, `std::env::var_os("QMAILQUEUE")`. Each complaint says what to write where. Test modules do not count.

use crate::cargo::{output, workspace};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Methods of `control::Root` that read a file by its name; functions of a file that hand a name on to them are found by [`readers`].
const READING: [&str; 9] = ["line", "line_or_me", "int", "lines", "map", "hosts", "networks", "text", "control_file"];
/// Long options that our programs give each other, for nobody else to use.
const INNER_OPTIONS: [&str; 11] = [
    "--accepted",
    "--base",
    "--become-queue-program",
    "--guard",
    "--helper",
    "--once",
    "--once-admin",
    "--queue-program",
    "--queue-programs",
    "--service",
    "--worker",
];
/// Pages of other packages that ours may name.
const PAGES_OF_OTHERS: [&str; 23] = [
    "aliases 5",
    "biff 1",
    "ezmlm 1",
    "flock 2",
    "fsync 2",
    "inetd 8",
    "init 8",
    "journalctl 1",
    "mail 1",
    "nsswitch.conf 5",
    "openssl 1",
    "pam 8",
    "passwd 5",
    "procmail 1",
    "resolv.conf 5",
    "sh 1",
    "shadow 5",
    "su 1",
    "syslog 3",
    "systemd 1",
    "systemctl 1",
    "tcpclient 1",
    "tcpserver 1",
];

/// Pages that are being written. They are not asked for; take out what is there.
const PAGES_TO_COME: [&str; 1] = ["qmail-log 5"];

/// A file of the repository: its path and its text.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

fn sources(patterns: &[&str]) -> Result<Vec<Source>> {
    let mut command = Command::new("git");
    let files = output(command.arg("ls-files").args(patterns).current_dir(workspace()))?;
    let read = |path: &str| -> Result<Source> {
        let text = std::fs::read_to_string(workspace().join(path))?;
        Ok(Source { path: path.to_owned(), text })
    };
    files.lines().map(read).collect()
}

/// The part in front of the tests.
fn code(source: &Source) -> &str {
    source.text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default()
}

/// Code that runs, of programs and what they link.
fn running_code() -> Result<Vec<Source>> {
    let is_test = |path: &str| {
        path.contains("/tests/") || path.ends_with("/tests.rs") || path.contains("/examples/") || path.contains("/fuzz")
    };
    let all = sources(&["programs/*/*/src/*.rs", "crates/*/*/src/*.rs"])?;
    Ok(all.into_iter().filter(|source| !is_test(&source.path)).collect())
}

/// All complaints.
pub(crate) fn check() -> Result<Vec<String>> {
    let code = running_code()?;
    let manual = Manual::read()?;
    let mut wrong = control_files(&code)?;
    wrong.extend(missing_pages(&code, &manual));
    wrong.extend(options(&code, &manual));
    wrong.extend(variables(&code, &manual));
    wrong.extend(manual.references());
    wrong.extend(manual.forms());
    wrong.extend(index(&manual, false)?);
    wrong.extend(lint()?);
    Ok(wrong)
}

/// docs/man and the pages that are made.
pub(crate) struct Manual {
    /// By name and section, as `qmail-send 8`.
    pages: BTreeMap<String, String>,
}

impl Manual {
    pub(crate) fn read() -> Result<Self> {
        let control = std::fs::read_to_string(workspace().join("docs/control.md"))?;
        let made = ("qmail-control 5".to_owned(), crate::manual::control_files(&control));
        let written = sources(&["docs/man/*"])?.into_iter().filter_map(|source| {
            let (name, section) = source.path.rsplit('/').next()?.rsplit_once('.')?;
            Some((format!("{name} {section}"), source.text))
        });
        Ok(Self { pages: written.chain([made]).collect() })
    }

    /// The page of a program.
    fn of_program(&self, name: &str) -> Option<&str> {
        ["1", "8"].iter().find_map(|section| self.pages.get(&format!("{name} {section}"))).map(String::as_str)
    }

    /// `.Xr` to pages that are not there.
    fn references(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (page, text) in &self.pages {
            for line in text.lines().filter_map(|line| line.strip_prefix(".Xr ")) {
                let mut words = line.split_whitespace();
                let named = format!("{} {}", words.next().unwrap_or_default(), words.next().unwrap_or_default());
                let is_elsewhere = PAGES_OF_OTHERS.contains(&named.as_str()) || PAGES_TO_COME.contains(&named.as_str());
                if !self.pages.contains_key(&named) && !is_elsewhere {
                    wrong.push(format!(
                        "the page {page} refers to {named}: write that page in docs/man, or if it is another package's put it into \
                         PAGES_OF_OTHERS in xtask/src/documented.rs"
                    ));
                }
            }
        }
        wrong
    }

    /// Heads that say something else than the file's name.
    fn forms(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (page, text) in self.pages.iter().filter(|(_, text)| !text.starts_with(".so ")) {
            let (name, section) = page.split_once(' ').unwrap_or_default();
            let head = format!(".Dt {} {section}", name.to_uppercase());
            if !text.lines().any(|line| line == head) {
                wrong.push(format!("the page {page} has no line `{head}`"));
            }
            if !text.lines().any(|line| line == format!(".Nm {name}") || line.starts_with(&format!(".Nm {name} "))) {
                wrong.push(format!("the page {page} has no line `.Nm {name}`"));
            }
        }
        wrong
    }

    /// What each is about, by name and section.
    fn subjects(&self) -> Vec<(&str, &str, String)> {
        let of = |text: &str| {
            let to =
                text.strip_prefix(".so ").and_then(|to| to.trim().rsplit('/').next()).map(|to| to.replacen('.', "(", 1) + ")");
            let said = text.lines().find_map(|line| line.strip_prefix(".Nd "));
            said.map_or_else(|| format!("see {}", to.unwrap_or_default()), str::to_owned)
        };
        let mut all: Vec<_> = self.pages.iter().map(|(page, text)| (page.as_str(), text.as_str())).collect();
        all.sort_by_key(|(page, _)| page.rsplit_once(' ').map(|(name, section)| (section, name)));
        all.into_iter().filter_map(|page| Some((page.0.split_once(' ')?.0, page.0.split_once(' ')?.1, of(page.1)))).collect()
    }
}

/// docs/manual.md: a line for each page. With `writes` it is made; otherwise what is wrong with it is said.
pub(crate) fn index(manual: &Manual, writes: bool) -> Result<Vec<String>> {
    let mut text = "# Manual pages\n\nMade by `cargo xtask docs --write` from the pages in [docs/man](man); `qmail-control` from [control.md](control.md).\n".to_owned();
    let mut last = "";
    for (name, section, subject) in manual.subjects() {
        if section != last {
            let head = match section {
                "1" => "Commands of users and of their `.qmail` files (1)",
                "5" => "Files and formats (5)",
                "7" => "Overviews (7)",
                _ => "The mail system and its administration (8)",
            };
            text += &format!("\n## {head}\n\n| page | about |\n|---|---|\n");
            last = section;
        }
        let file = if name == "qmail-control" { "control.md".to_owned() } else { format!("man/{name}.{section}") };
        text += &format!("| [{name}]({file}) | {} |\n", subject.replace('|', "\\|"));
    }
    let path = workspace().join("docs/manual.md");
    if writes {
        std::fs::write(path, text)?;
        return Ok(Vec::new());
    }
    let is_same = std::fs::read_to_string(path).is_ok_and(|there| there == text);
    Ok(if is_same {
        Vec::new()
    } else {
        vec!["docs/manual.md is not what docs/man has: run `cargo xtask docs --write`".to_owned()]
    })
}

/// mandoc(1) has nothing to say of any page.
fn lint() -> Result<Vec<String>> {
    if Command::new("mandoc").arg("-T").arg("lint").arg("/dev/null").output().is_err() {
        println!("mandoc is not installed: how the manual pages are written was not looked at");
        return Ok(Vec::new());
    }
    let made = crate::cargo::target().join("qmail-control.5");
    std::fs::create_dir_all(crate::cargo::target())?;
    std::fs::write(&made, crate::manual::control_files(&std::fs::read_to_string(workspace().join("docs/control.md"))?))?;
    let written = output(Command::new("git").args(["ls-files", "docs/man/*"]).current_dir(workspace()))?;
    let mut wrong = Vec::new();
    for page in written.lines().map(|page| workspace().join(page)).chain([made]) {
        // A page that is another's by `.so` is nothing but that.
        if std::fs::read_to_string(&page)?.starts_with(".so ") {
            continue;
        }
        let said = Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(&page).output()?;
        let said = [said.stdout, said.stderr].concat();
        wrong.extend(String::from_utf8_lossy(&said).lines().map(str::to_owned));
    }
    Ok(wrong)
}

/// The first string of a call, `"name"` or a constant, for each place where `text` has `before`.
fn arguments<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    let rests = text.split(before).skip(1).map(|rest| rest.trim_start_matches(['&', ' ', '\n']));
    rests.map(|rest| rest.split([')', ',', ' ', '\n', '|']).next().unwrap_or_default()).collect()
}

/// A name in a string, or that of a constant of this text.
fn name_of<'a>(argument: &'a str, text: &'a str) -> Option<&'a str> {
    if let Some(literal) = argument.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        return Some(literal);
    }
    let is_constant = !argument.is_empty() && argument.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    let value = text.split(&format!("const {argument}: &str = \"")).nth(1).filter(|_| is_constant)?;
    value.split('"').next()
}

/// Functions and closures of a file of crates/stores/control that take the name of a control file: what their callers name is read.
fn readers(text: &str) -> BTreeSet<String> {
    let closures = text.match_indices(" = |name: &str").filter_map(|(at, _)| text.get(..at)?.rsplit("let ").next());
    let broken = text.match_indices(" =\n            |name: &str").filter_map(|(at, _)| text.get(..at)?.rsplit("let ").next());
    let functions = text.match_indices("(root: &Root, name: &str").filter_map(|(at, _)| text.get(..at)?.rsplit("fn ").next());
    closures.chain(broken).chain(functions).map(|name| name.trim().to_owned()).filter(|name| name != "wrong").collect()
}

/// The control files that this code reads.
fn names_read(text: &str, is_of_control: bool) -> BTreeSet<String> {
    let mut before: Vec<String> = READING.iter().map(|method| format!(".{method}(")).collect();
    if is_of_control {
        for reader in readers(text) {
            before.extend([format!(" {reader}("), format!("({reader}("), format!(" {reader}(root, ")]);
        }
    }
    let called = before.iter().flat_map(|before| arguments(text, before)).filter_map(|argument| name_of(argument, text));
    let mut names: BTreeSet<String> = called.map(str::to_owned).collect();
    // `Keyed::read(root, FILE)` and its like.
    let named = text.split("pub const FILE: &str = \"").skip(1).filter(|_| is_of_control);
    names.extend(named.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    names.retain(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.'));
    names
}

/// The files of docs/control.md: what stands in the first cells of its first table.
fn rows(markdown: &str) -> BTreeSet<String> {
    let table =
        markdown.lines().skip_while(|line| !line.starts_with("| file |")).skip(2).take_while(|line| line.starts_with('|'));
    let cells = table.filter_map(|row| row.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// The code, docs/control.md and `qmail check` know the same control files.
fn control_files(code_files: &[Source]) -> Result<Vec<String>> {
    let documented = rows(&std::fs::read_to_string(workspace().join("docs/control.md"))?);
    let check = "programs/admin/qmail/src/check/control_files.rs";
    let known = lists(&std::fs::read_to_string(workspace().join(check))?, &["NUMBERS", "OTHERS"]);
    let mut wrong = Vec::new();
    let mut literals = BTreeSet::new();
    for source in code_files {
        // What only looks at files that others read, or takes them over from elsewhere.
        let looks_on =
            ["/check/", "/import/", "/import.rs", "/showctl.rs", "/export/"].iter().any(|part| source.path.contains(part));
        if looks_on {
            continue;
        }
        let text = code(source);
        literals.extend(text.split('"').skip(1).map(str::to_owned));
        for name in names_read(text, source.path.starts_with("crates/stores/control/")) {
            if !documented.contains(&name) {
                wrong.push(format!(
                    "{} reads control/{name}: write a row `{name}` in the first table of docs/control.md",
                    source.path
                ));
            }
            if !known.contains(&name) {
                wrong.push(format!("{} reads control/{name}: put it into NUMBERS or OTHERS of {check}", source.path));
            }
        }
    }
    for name in &documented {
        if !literals.contains(name) {
            wrong.push(format!("docs/control.md has a row `{name}`, which no code reads: take it out, or read the file"));
        }
    }
    for name in known.difference(&documented) {
        wrong.push(format!(
            "{check} knows control/{name}: write a row `{name}` in the first table of docs/control.md, or take it out"
        ));
    }
    Ok(wrong)
}

/// The strings of these constant lists.
fn lists(text: &str, names: &[&str]) -> BTreeSet<String> {
    let list = |name: &&str| text.split(&format!("const {name}: ")).nth(1)?.split("= ").nth(1)?.split("];").next();
    let strings = names.iter().filter_map(list).flat_map(|list| list.split('"').skip(1).step_by(2));
    strings.map(str::to_owned).collect()
}

/// `programs/local/tools/src/bin/except.rs` and the like, by the program's name.
fn programs(code_files: &[Source]) -> Vec<(&str, &Source)> {
    let bins = code_files.iter().filter(|source| source.path.starts_with("programs/") && source.path.contains("/src/bin/"));
    bins.filter_map(|source| Some((Path::new(&source.path).file_stem()?.to_str()?, source))).collect()
}

fn missing_pages(code_files: &[Source], manual: &Manual) -> Vec<String> {
    let is_to_come = |name: &str| PAGES_TO_COME.contains(&format!("{name} 8").as_str());
    let missing = programs(code_files).into_iter().filter(|(name, _)| manual.of_program(name).is_none() && !is_to_come(name));
    missing.map(|(name, _)| format!("{name} has no page: write docs/man/{name}.1 (for users) or .8")).collect()
}

/// The file in which a program's command line is read: that of the module which its main names, or the one with the program's name.
fn source_of<'a>(bin: &Source, name: &str, package: &[&'a Source]) -> Vec<&'a Source> {
    let called = bin
        .text
        .split(['(', ')', ' ', '\n'])
        .find(|word| word.contains("::") && !word.starts_with("std") && !word.starts_with("tool"));
    let words: Vec<&str> = called.unwrap_or_default().split("::").collect();
    let module = if words.len() > 2 { words.get(1).copied() } else { None };
    let stem = |source: &Source| {
        Path::new(&source.path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().replace('_', "-")
    };
    let is_it = |source: &&&Source| match module {
        Some(module) => stem(source) == module.replace('_', "-"),
        None => name.ends_with(&stem(source)),
    };
    package.iter().filter(is_it).copied().collect()
}

/// Words behind `Fl` in a page.
fn flags(page: &str) -> (BTreeSet<char>, BTreeSet<String>) {
    let (mut letters, mut long) = (BTreeSet::new(), BTreeSet::new());
    for line in page.lines().filter(|line| line.starts_with('.')) {
        let mut is_flag = false;
        for word in line.split_whitespace() {
            let word = word.trim_start_matches('.');
            let is_macro = word.len() == 2
                && word.starts_with(|c: char| c.is_ascii_uppercase())
                && word.ends_with(|c: char| c.is_ascii_lowercase());
            match word {
                "Fl" => is_flag = true,
                "," | "|" => {}
                _ if is_macro => is_flag = false,
                _ if is_flag => match word.strip_prefix('-') {
                    Some(name) => drop(long.insert(format!("--{name}"))),
                    None => letters.extend(word.replace("\\&", "").chars()),
                },
                _ => {}
            }
        }
    }
    (letters, long)
}

/// Options that a program takes and its page lacks.
fn options(code_files: &[Source], manual: &Manual) -> Vec<String> {
    [letters(code_files, manual), words(code_files, manual)].concat()
}

/// The files of a program's package, but for the mains.
fn package_of<'a>(bin: &Source, code_files: &'a [Source]) -> Vec<&'a Source> {
    let package = bin.path.split("bin/").next().unwrap_or_default();
    code_files.iter().filter(|source| source.path.starts_with(package) && !source.path.contains("/bin/")).collect()
}

/// Options of one letter. Where several programs share a file, the page of one of them will do.
fn letters(code_files: &[Source], manual: &Manual) -> Vec<String> {
    let mut wrong = Vec::new();
    let all = programs(code_files);
    for source in code_files.iter().filter(|source| source.path.starts_with("programs/")) {
        let read = letters_read(code(source));
        let reads = |(name, bin): &&(&str, &Source)| {
            source_of(bin, name, &package_of(bin, code_files)).iter().any(|one| one.path == source.path)
        };
        let of: Vec<&str> = all.iter().filter(|_| !read.is_empty()).filter(reads).map(|(name, _)| *name).collect();
        if of.is_empty() && !read.is_empty() {
            wrong.push(format!(
                "{} reads options, and whose they are is not clear: give the file the name of its program, or of the module that its \
                 program's main names",
                source.path
            ));
        }
        let pages: Vec<&str> = of.iter().filter_map(|name| manual.of_program(name)).collect();
        let documented: BTreeSet<char> = pages.iter().flat_map(|page| flags(page).0).collect();
        // Programs without any page are named elsewhere.
        for letter in read.into_iter().filter(|letter| !pages.is_empty() && !documented.contains(letter)) {
            let of = of.join(", ");
            wrong.push(format!("{} takes -{letter}, which the page of {of} lacks: write `.It Fl {letter}`", source.path));
        }
    }
    wrong
}

/// Long options of programs that are alone in their package. Those of `qmail` are compared one by one where its command line is (cli.rs).
fn words(code_files: &[Source], manual: &Manual) -> Vec<String> {
    let mut wrong = Vec::new();
    let all = programs(code_files);
    for (name, bin) in all.iter().filter(|(name, _)| *name != "qmail") {
        let package = bin.path.split("bin/").next().unwrap_or_default();
        let is_alone = all.iter().filter(|(_, other)| other.path.starts_with(package)).count() == 1;
        let Some(page) = manual.of_program(name).filter(|_| is_alone) else { continue };
        let documented = flags(page).1;
        for source in package_of(bin, code_files) {
            let is_missing = |option: &String| !documented.contains(option) && !INNER_OPTIONS.contains(&option.as_str());
            for option in long_options(code(source)).into_iter().filter(is_missing) {
                let written = option.strip_prefix('-').unwrap_or_default();
                wrong.push(format!(
                    "{} takes {option}, which the page of {name} lacks: write `.It Fl {written}`, or if only our programs give it to \
                     each other put it into INNER_OPTIONS in xtask/src/documented.rs",
                    source.path
                ));
            }
        }
    }
    wrong
}

/// `Letters { flags: b"…", with_value: b"…", with_glued_value: b"…" }`.
fn letters_read(text: &str) -> BTreeSet<char> {
    let tables =
        text.split("Letters {").skip(1).filter_map(|rest| rest.split('}').next()).filter(|table| table.contains("flags:"));
    tables.flat_map(|table| table.split('"').skip(1).step_by(2)).flat_map(str::chars).collect()
}

/// Strings that are nothing but a long option, where they are not handed to another program.
fn long_options(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| !line.contains(".arg(") && !line.trim_start().starts_with("//")) {
        for word in line.split('"').skip(1).step_by(2) {
            let is_option = word.strip_prefix("--").is_some_and(|name| {
                name.len() > 1 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') && !name.starts_with('-')
            });
            if is_option {
                found.insert(word.to_owned());
            }
        }
    }
    found
}

/// Names of variables that are read: `var("X")`, `var_os("X")`, and what this project calls its readers of one.
fn variables_read(text: &str) -> BTreeSet<String> {
    let before = ["var(", "var_os(", "variable(", "fact(", "ip(", "number(", "env.get(", "env = "];
    let mut found: Vec<&str> =
        before.iter().flat_map(|before| arguments(text, before)).filter_map(|argument| name_of(argument, text)).collect();
    let lists = text.split("env.first(&[").skip(1).filter_map(|rest| rest.split(']').next());
    found.extend(lists.flat_map(|list| list.split('"').skip(1).step_by(2)));
    let is_name = |name: &&str| {
        name.len() > 2
            && name.starts_with(|c: char| c.is_ascii_uppercase())
            && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    found.into_iter().filter(is_name).map(str::to_owned).collect()
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).any(|known| known == word)
}

/// Variables that are read, and that no page of the programs names which read them: those whose module the file is, else all of its
/// package, else (a library) any.
fn variables(code_files: &[Source], manual: &Manual) -> Vec<String> {
    let all = programs(code_files);
    let mut wrong = Vec::new();
    for source in code_files {
        let read = variables_read(code(source));
        if read.is_empty() {
            continue;
        }
        let package = source.path.split("/src/").next().unwrap_or_default();
        let of_package: Vec<_> = all.iter().filter(|(_, bin)| bin.path.starts_with(&format!("{package}/"))).collect();
        let is_its = |(name, bin): &&&(&str, &Source)| {
            source_of(bin, name, &package_of(bin, code_files)).iter().any(|one| one.path == source.path)
        };
        let mut of: Vec<&str> = of_package.iter().filter(is_its).map(|(name, _)| *name).collect();
        if of.is_empty() {
            of = of_package.iter().map(|(name, _)| *name).collect();
        }
        let pages: Vec<&str> = match of_package.is_empty() {
            true => manual.pages.values().map(String::as_str).collect(),
            false => of.iter().filter_map(|name| manual.of_program(name)).collect(),
        };
        // Programs without any page are named elsewhere.
        for name in read.into_iter().filter(|name| !pages.is_empty() && !pages.iter().any(|page| has_word(page, name))) {
            let of = if of.is_empty() { "any program".to_owned() } else { of.join(", ") };
            wrong.push(format!("{} reads the variable {name}: write it under ENVIRONMENT in the page of {of}", source.path));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    fn manual(pages: &[(&str, &str)]) -> Manual {
        Manual { pages: pages.iter().map(|(page, text)| ((*page).to_owned(), (*text).to_owned())).collect() }
    }

    #[test]
    fn control_files_are_found_in_every_form() {
        let text = r#"
            const TEXT: &str = "tcp.smtp"; pub const FILE: &str = "ldap"; const OTHER: &str = "no";
            root.int("databytes"); found.take(root.lines("locals")); read(root.control_file(TEXT));
            let number = |name: &str, default: u64| root.int(name); Self { a: number("timeoutsmtpd", 5) }
            let or_me =
            |name: &str| root.line(name); x(or_me("smtpgreeting")?)
            fn choice(root: &Root, name: &str, w: [&str; 2]) -> bool { choice(root, "barelf", ["reject", "normalize"]) }
        "#;
        let found: Vec<String> = names_read(text, true).into_iter().collect();
        assert_eq!(found, ["barelf", "databytes", "ldap", "locals", "smtpgreeting", "tcp.smtp", "timeoutsmtpd"]);
    }

    #[test]
    fn rows_are_those_of_the_first_table() {
        let text = "# x\n| a | b |\n|---|---|\n| `no` | |\n\n| file | read by |\n|---|---|\n| `a`, `b` | `c` |\n| `d` | x |\n\n| `e` | y |\n";
        assert_eq!(rows(text).into_iter().collect::<Vec<_>>(), ["a", "b", "d"]);
        let code =
            "const NUMBERS: [&str; 1] = [\n    \"a\",\n];\nconst OTHERS: [&str; 2] = [\"b\", \"d\"];\nconst X: &str = \"z\";\n";
        assert_eq!(lists(code, &["NUMBERS", "OTHERS"]), rows(text));
    }

    #[test]
    fn options_and_variables_that_no_page_has_are_named() {
        let files = [
            source("programs/a/tools/src/bin/one-two.rs", "fn main() { tool::run(a_tools::one_two::main) }"),
            source("programs/a/tools/src/bin/three.rs", "fn main() { tool::run(a_tools::three::main) }"),
            source(
                "programs/a/tools/src/one_two.rs",
                "Letters { flags: b\"rR\", with_value: b\"t\" }; variable(\"SENDER\");\n#[cfg(test)]\nmod tests { Letters { flags: b\"Z\" } }",
            ),
            source("programs/a/alone/src/bin/alone.rs", "fn main() { alone::main() }"),
            source(
                "programs/a/alone/src/lib.rs",
                "if arg == \"--dovecot\" { } \nspawn.arg(\"--other\");\n// \"--no\"\nface == \"--service\"; var_os(\"EXTRA\")",
            ),
        ];
        let bad =
            manual(&[("one-two 1", ".Op Fl r\n.It Fl t Ar seconds\n"), ("alone 8", ".It Fl -root Ar dir\n"), ("three 1", "")]);
        let wrong = options(&files, &bad);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].contains("takes -R, which the page of one-two lacks"), "{wrong:?}");
        assert!(wrong[1].contains("takes --dovecot, which the page of alone lacks: write `.It Fl -dovecot`"), "{wrong:?}");
        let wrong = variables(&files, &bad);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].contains("reads the variable SENDER") && wrong[0].contains("page of one-two"), "{wrong:?}");
        let good = manual(&[
            ("one-two 1", ".Op Fl rR\n.Op Fl t Ar seconds\n.Ev SENDER\n"),
            ("alone 8", ".It Fl -dovecot\n.Ev EXTRA\n"),
            ("three 1", ""),
        ]);
        assert_eq!([options(&files, &good), variables(&files, &good)].concat(), Vec::<String>::new());
        assert_eq!(missing_pages(&files, &manual(&[("alone 8", ""), ("three 1", "")])).len(), 1);
    }

    #[test]
    fn references_to_nowhere_and_wrong_heads_are_named() {
        let text = ".Dt A 8\n.Nm a\n.Nd x\n.Xr b 5 ,\n.Xr passwd 5\n";
        let wrong = manual(&[("a 8", text)]).references();
        assert!(wrong.len() == 1 && wrong[0].contains("a 8 refers to b 5"), "{wrong:?}");
        assert_eq!(manual(&[("a 8", text), ("b 5", ".Dt B 5\n.Nm b\n")]).references(), Vec::<String>::new());
        assert_eq!(manual(&[("a 8", text)]).forms(), Vec::<String>::new());
        assert_eq!(manual(&[("c 8", text)]).forms().len(), 2);
    }

    /// The files as they are: each list has something, so that a form which is not found any more does not pass for good order.
    #[test]
    fn the_sources_are_understood() {
        let files = running_code().unwrap();
        let control = files.iter().filter(|source| source.path.starts_with("crates/stores/control/"));
        let names: BTreeSet<String> = control.flat_map(|source| names_read(code(source), true)).collect();
        assert!(
            names.len() > 60
                && ["me", "barelf", "timeoutpop3", "smtpgreeting", "tcp.smtp"].iter().all(|name| names.contains(*name)),
            "{names:?}"
        );
        let letters = files.iter().filter(|source| !letters_read(code(source)).is_empty()).count();
        let read: BTreeSet<String> = files.iter().flat_map(|source| variables_read(code(source))).collect();
        assert!(letters >= 8 && read.len() > 30 && read.contains("QMAIL_ROOT"), "{letters} {read:?}");
    }

    #[test]
    fn the_manual_is_in_order() {
        let wrong = check().unwrap();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
