//! `cargo xtask dist`: packages for those who do not build: Debian's, an rpm, a tarball. One tree of files, as it is installed, is the source of all of them.
//!
//! All programs lie in usr/lib/qmail, where they find each other; what people call has a link in usr/bin or usr/sbin. `var/qmail/bin`
//! leads there too, for what was written for the classic paths. A name that another package of Debian has, too, has no link and its
//! page lies apart, so that both can be installed. What Debian's tools know (archives, which libraries a program needs,
//! policy) is left to them: dpkg-deb, dpkg-shlibdeps, lintian.

mod apparmor;
mod rpm;

use crate::cargo::{cargo, must, output, target, workspace};
use anyhow::{Context, Result, bail};
use std::fs::{Permissions, create_dir_all, read_to_string, set_permissions, write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use users::ids::{GROUP, SERVICE_ROLES};

const PACKAGE: &str = "qmail-rs";
const LIBEXEC: &str = "usr/lib/qmail";
/// What people and programs call by another name, or at a classic place; a path below usr/ and the program it is.
const LINKS: [(&str, &str); 3] = [("bin/mailq", "sendmail"), ("sbin/sendmail", "sendmail"), ("lib/sendmail", "sendmail")];
/// Commands of people and of their `.qmail` files: usr/bin.
const COMMANDS: [&str; 24] = [
    "qmail",
    "autorespond",
    "bouncesaying",
    "condredirect",
    "datemail",
    "elq",
    "except",
    "forward",
    "maildir2mbox",
    "maildirqmtp",
    "maildirserial",
    "maildirsmtp",
    "maildirwatch",
    "mailsubj",
    "newaliases",
    "pinq",
    "predate",
    "preline",
    "qail",
    "qbiff",
    "qreceipt",
    "serialqmtp",
    "serialsmtp",
    "tcp-env",
];
/// Commands of administrators: usr/sbin.
const ADMIN_COMMANDS: [&str; 12] = [
    "qmail-inject",
    "qmail-newmrh",
    "qmail-newu",
    "qmail-pw2u",
    "qmail-qmqpc",
    "qmail-qread",
    "qmail-qstat",
    "qmail-queue",
    "qmail-showctl",
    "qmail-tcpok",
    "qmail-tcpto",
    "splogger",
];
/// Names that packages of Debian have which may be installed beside this one: dot-forward, fastforward, ucspi-tcp; and courier-base and
/// maildrop, which share theirs by update-alternatives.
const OF_OTHERS: [&str; 10] = [
    "dot-forward",
    "fastforward",
    "maildirmake",
    "newinclude",
    "printforward",
    "printmaillist",
    "setforward",
    "setmaillist",
    "tcprules",
    "tcprulescheck",
];
/// Where the pages of those are; `man -M /var/qmail/man` reads them.
const MAN_APART: &str = "usr/share/qmail/man";
/// Formats that other packages of Debian have a page of, too (mutt, maildrop, ucspi-tcp): ours lie beside them, in a section of their own.
const FORMATS_OF_OTHERS: [&str; 3] = ["maildir", "mbox", "tcp-environ"];
/// What shells read to complete `qmail`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/qmail"),
    ("zsh", "usr/share/zsh/vendor-completions/_qmail"),
    ("fish", "usr/share/fish/vendor_completions.d/qmail.fish"),
];
/// The classic places of things (qmail's conf-qmail), and where they are now.
const CLASSIC: [(&str, &str); 6] = [
    ("bin", "/usr/lib/qmail"),
    ("man", "/usr/share/qmail/man"),
    ("control", "/etc/qmail/control"),
    ("alias", "/etc/qmail/alias"),
    ("users", "/etc/qmail/users"),
    ("queue", "../spool/qmail"),
];
/// What compiles C for musl: Debian's musl-tools.
const MUSL_COMPILER: &str = "musl-gcc";
/// The profiles of the service.
const APPARMOR: &str = "etc/apparmor.d/qmail";
/// Documents for /usr/share/doc, beside docs/.
const DOCUMENTS: [&str; 4] = ["README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"];

struct Options {
    /// Programs that are built already.
    programs: Option<PathBuf>,
    profile: String,
    /// Where the packages go, instead of target/packages. Emptied before.
    out: Option<PathBuf>,
    /// Packed fast, and Debian's alone unless `rpm` says otherwise.
    quick: bool,
    /// The rpm alone.
    rpm: bool,
    /// A tarball of programs that need no library, alone.
    linked_whole: bool,
}

/// The command.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = parse(args)?;
    let programs = match &options.programs {
        Some(programs) => programs.clone(),
        None => build(&options.profile, options.linked_whole)?,
    };
    let out = options.out.clone().unwrap_or_else(|| target().join("packages"));
    let _ = std::fs::remove_dir_all(&out);
    let tree = out.join("tree");
    lay_out(&programs, &tree)?;
    let packages = pack(&options, &tree, &out)?;
    std::fs::remove_dir_all(&tree)?;
    for package in &packages {
        println!("{} ({} MiB)", package.display(), std::fs::metadata(package)?.len() >> 20);
    }
    packages.iter().filter(|package| package.extension().is_some_and(|end| end == "deb")).try_for_each(|deb| lint(deb))
}

/// The packages that are asked for.
fn pack(options: &Options, tree: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let version = version()?;
    if options.linked_whole {
        whole(tree)?;
        return Ok(vec![tarball(tree, out, &version, "linux-static")?]);
    }
    if options.rpm {
        return Ok(vec![rpm::build(tree, out, &version, if options.quick { "w1.gzdio" } else { "w19.zstdio" })?]);
    }
    if options.quick {
        return Ok(vec![debian(tree, out, &version, &["-Zgzip", "-z1"])?]);
    }
    let mut packages = vec![debian(tree, out, &version, &["-Zxz"])?, tarball(tree, out, &version, "linux")?];
    if rpm::is_possible() {
        packages.push(rpm::build(tree, out, &version, "w19.zstdio")?);
    } else {
        println!("rpmbuild is not installed: no rpm was made");
    }
    Ok(packages)
}

/// AppArmor's profiles alone, for systems that the packages are not for.
pub(crate) fn print_profiles() -> Result<()> {
    Ok(std::io::Write::write_all(&mut std::io::stdout(), apparmor::profiles().as_bytes())?)
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options =
        Options { programs: None, profile: "dist".to_owned(), out: None, quick: false, rpm: false, linked_whole: false };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--profile" => value()?.clone_into(&mut options.profile),
            "--programs" => options.programs = Some(value()?.into()),
            "--out" => options.out = Some(value()?.into()),
            "--quick" => options.quick = true,
            "--rpm" => options.rpm = true,
            "--static" => options.linked_whole = true,
            other => bail!("unknown option {other}"),
        }
    }
    Ok(options)
}

/// Builds the programs; where they are then. `linked_whole`: with the C library in them, in a folder of their own (a target that is named
/// has one, and what runs while building is not linked so).
fn build(profile: &str, linked_whole: bool) -> Result<PathBuf> {
    println!("building the programs ({profile})");
    let mut build = cargo(&["build", "--locked", "--workspace", "--bins", "--profile", profile]);
    // Whose programs are not installed.
    build.args(["xtask", "system-tests", "bench"].map(|package| format!("--exclude={package}")));
    let mut folder = target();
    if linked_whole {
        let triple = whole_target()?;
        println!("for {triple}");
        let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
        build.args(["--target", &triple]).env("RUSTFLAGS", format!("{flags} -C target-feature=+crt-static"));
        if triple.ends_with("musl") {
            // SQLite and AWS-LC are C.
            build.env(format!("CC_{}", triple.replace('-', "_")), MUSL_COMPILER);
        }
        folder.push(triple);
    }
    must(&mut build)?;
    Ok(folder.join(if profile == "dev" { "debug" } else { profile }))
}

/// The target whose C library goes into the programs: with musl if Rust's libraries for it and a C compiler are there, else this machine's.
fn whole_target() -> Result<String> {
    let said = output(Command::new("rustc").arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    let musl = host.replace("-gnu", "-musl");
    let libraries = output(Command::new("rustc").args(["--print", "target-libdir", "--target", &musl]))?;
    let has_compiler = Command::new(MUSL_COMPILER).arg("--version").output().is_ok_and(|said| said.status.success());
    if Path::new(libraries.trim()).is_dir() && has_compiler {
        return Ok(musl);
    }
    println!(
        "no musl here: `rustup target add {musl}` and Debian's musl-tools make a build that is the same everywhere; glibc it is"
    );
    Ok(host.to_owned())
}

/// Fails if a program asks for a dynamic linker.
fn whole(tree: &Path) -> Result<()> {
    for name in program_names()? {
        let headers = output(Command::new("readelf").args(["--wide", "--program-headers"]).arg(tree.join(LIBEXEC).join(&name)))?;
        if headers.contains("INTERP") {
            bail!("{name} needs libraries: it was not built by --static");
        }
    }
    Ok(())
}

fn version() -> Result<String> {
    let manifest = read_to_string(workspace().join("Cargo.toml"))?;
    let line = manifest.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    Ok(line.context("no version in Cargo.toml")?.to_owned())
}

/// The names of the programs: the files in src/bin of everything below programs/.
fn program_names() -> Result<Vec<String>> {
    let files = output(Command::new("git").args(["ls-files", "programs/*/*/src/bin/*.rs"]).current_dir(workspace()))?;
    let names = files.lines().filter_map(|file| Path::new(file).file_stem()?.to_str().map(str::to_owned));
    Ok(names.collect())
}

/// All links below usr/, and to which program each leads.
fn links() -> Vec<(String, &'static str)> {
    let renamed = LINKS.into_iter().map(|(path, program)| (path.to_owned(), program));
    let commands = COMMANDS.into_iter().map(|name| (format!("bin/{name}"), name));
    let admin_commands = ADMIN_COMMANDS.into_iter().map(|name| (format!("sbin/{name}"), name));
    renamed.chain(commands).chain(admin_commands).collect()
}

/// All files as they are installed, below `tree`.
fn lay_out(programs: &Path, tree: &Path) -> Result<()> {
    let names = program_names()?;
    for name in &names {
        let built = programs.join(name);
        let placed =
            place(tree, &format!("{LIBEXEC}/{name}"), &std::fs::read(&built).with_context(|| built.display().to_string())?)?;
        set_permissions(&placed, Permissions::from_mode(0o755))?;
        // The tables of a debug build are many times the program.
        must(
            Command::new("strip").args(["--strip-unneeded", "--remove-section=.comment", "--remove-section=.note"]).arg(&placed),
        )?;
    }
    for (path, program) in links() {
        let up = if path.starts_with("lib/") { "qmail" } else { "../lib/qmail" };
        link(tree, &format!("usr/{path}"), &format!("{up}/{program}"))?;
    }
    for (shell, path) in COMPLETIONS {
        let script = output(Command::new(programs.join("qmail")).args(["completions", shell]))?;
        place(tree, path, script.as_bytes())?;
    }
    for (path, now) in CLASSIC {
        link(tree, &format!("var/qmail/{path}"), now)?;
    }
    let packaging = workspace().join("packaging");
    for (file, to) in [
        ("systemd/qmail.service", "lib/systemd/system/qmail.service"),
        ("systemd/qmail-inject.socket", "lib/systemd/system/qmail-inject.socket"),
        ("qmail.tmpfiles", "usr/lib/tmpfiles.d/qmail.conf"),
    ] {
        place(tree, to, &std::fs::read(packaging.join(file))?)?;
    }
    place(tree, "usr/lib/sysusers.d/qmail.conf", sysusers().as_bytes())?;
    documents(tree)?;
    manuals(tree)
}

fn place(tree: &Path, path: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = tree.join(path);
    create_dir_all(path.parent().unwrap_or(tree))?;
    write(&path, bytes).with_context(|| path.display().to_string())?;
    set_permissions(&path, Permissions::from_mode(0o644))?;
    Ok(path)
}

fn link(tree: &Path, path: &str, to: &str) -> Result<()> {
    let path = tree.join(path);
    create_dir_all(path.parent().unwrap_or(tree))?;
    symlink(to, &path).with_context(|| path.display().to_string())
}

/// sysusers.d(5): the roles share a group; alias and vmail, whom mail belongs to, have one each.
fn sysusers() -> String {
    let roles = SERVICE_ROLES.map(|role| format!("u {role} -:{GROUP} \"qmail\" /\n")).concat();
    format!(
        "# A user for each kind of process, so that none can reach into another.\ng {GROUP} -\n{roles}\
         # Whose deliveries are: addresses without an owner, and virtual domains.\n\
         g alias -\nu alias -:alias \"qmail aliases\" /etc/qmail/alias\n\
         g vmail -\nu vmail -:vmail \"virtual mailboxes\" /var/mail\n"
    )
}

fn documents(tree: &Path) -> Result<()> {
    let home = format!("usr/share/doc/{PACKAGE}");
    let docs = output(Command::new("git").args(["ls-files", "docs/*.md", "docs/adr/*.md"]).current_dir(workspace()))?;
    for file in DOCUMENTS.into_iter().chain(docs.lines()) {
        place(tree, &format!("{home}/{file}"), &std::fs::read(workspace().join(file))?)?;
    }
    Ok(())
}

/// docs/man/NAME.SECTION and qmail-control(5), packed as man(1) reads them.
fn manuals(tree: &Path) -> Result<()> {
    let control = read_to_string(workspace().join("docs/control.md"))?;
    page(tree, "qmail-control.5", crate::manual::control_files(&control).as_bytes())?;
    let pages = output(Command::new("git").args(["ls-files", "docs/man/*"]).current_dir(workspace()))?;
    for file in pages.lines() {
        page(tree, file.rsplit('/').next().unwrap_or_default(), &std::fs::read(workspace().join(file))?)?;
    }
    Ok(())
}

fn page(tree: &Path, file: &str, text: &[u8]) -> Result<()> {
    let (name, section) = file.rsplit_once('.').with_context(|| format!("{file} has no section"))?;
    let man = if OF_OTHERS.contains(&name) { MAN_APART } else { "usr/share/man" };
    let apart = if FORMATS_OF_OTHERS.contains(&name) { "qmail" } else { "" };
    let placed = place(tree, &format!("{man}/man{section}/{file}{apart}"), text)?;
    must(Command::new("gzip").arg("-9n").arg(placed))
}

/// The Debian package of the tree.
fn debian(tree: &Path, out: &Path, version: &str, packing: &[&str]) -> Result<PathBuf> {
    let root = out.join("debian");
    must(Command::new("cp").arg("-a").arg(tree).arg(&root))?;
    let packaging = workspace().join("packaging/debian");
    let home = format!("usr/share/doc/{PACKAGE}");
    let copyright = read_to_string(packaging.join("copyright"))?.replace("@MIT@", &mit()?);
    place(&root, &format!("{home}/copyright"), copyright.as_bytes())?;
    place(&root, &format!("{home}/README.Debian"), &std::fs::read(packaging.join("README.Debian"))?)?;
    let changes = place(&root, &format!("{home}/changelog.Debian"), changelog(version)?.as_bytes())?;
    // Policy wants this name for it.
    let changelog = root.join(&home).join("changelog");
    std::fs::rename(root.join(&home).join("CHANGELOG.md"), &changelog)?;
    must(Command::new("gzip").arg("-9n").arg(changes).arg(changelog))?;
    if packaging.join("lintian-overrides").is_file() {
        place(&root, &format!("usr/share/lintian/overrides/{PACKAGE}"), &std::fs::read(packaging.join("lintian-overrides"))?)?;
    }
    // Debian's AppArmor reads it from there; whether it refuses or only notes is said beside it.
    place(&root, APPARMOR, apparmor::profiles().as_bytes())?;
    place(&root, "DEBIAN/conffiles", format!("/{APPARMOR}\n").as_bytes())?;
    let size = output(Command::new("du").args(["-sk", "--apparent-size"]).arg(&root))?;
    let size = size.split_whitespace().next().unwrap_or("0").to_owned();
    let sums = "find . -type f ! -path './DEBIAN/*' -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 md5sum";
    let sums = output(Command::new("sh").args(["-c", sums]).current_dir(&root))?;
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let values = [
        ("@VERSION@", format!("{version}-1")),
        ("@ARCHITECTURE@", architecture.trim().to_owned()),
        ("@SIZE@", size),
        ("@LIBRARIES@", libraries(&root)?),
    ];
    let template = read_to_string(packaging.join("control"))?;
    let control = values.iter().fold(template, |text, (name, value)| text.replace(name, value));
    place(&root, "DEBIAN/control", control.as_bytes())?;
    place(&root, "DEBIAN/md5sums", sums.as_bytes())?;
    let setup = read_to_string(workspace().join("packaging/setup.sh"))?;
    for script in ["preinst", "postinst", "prerm", "postrm"] {
        let text = read_to_string(packaging.join(script))?.replace("@SETUP@", setup.trim_end());
        let placed = place(&root, &format!("DEBIAN/{script}"), text.as_bytes())?;
        set_permissions(placed, Permissions::from_mode(0o755))?;
    }
    let deb = out.join(format!("{PACKAGE}_{version}-1_{}.deb", architecture.trim()));
    must(Command::new("chmod").args(["-R", "u=rwX,go=rX"]).arg(&root))?;
    must(Command::new("dpkg-deb").arg("--root-owner-group").args(packing).arg("--build").arg(&root).arg(&deb))?;
    std::fs::remove_dir_all(&root)?;
    Ok(deb)
}

/// The licence as a paragraph of debian/copyright: lines set in, empty ones as a dot.
fn mit() -> Result<String> {
    let text = read_to_string(workspace().join("LICENSE-MIT"))?;
    let lines = text.trim_end().lines().map(|line| if line.trim().is_empty() { " .".to_owned() } else { format!(" {line}") });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// debian/changelog has one entry, for the version that is built; CHANGELOG.md says what changed.
fn changelog(version: &str) -> Result<String> {
    let day = output(Command::new("git").args(["log", "-1", "--format=%aD"]).current_dir(workspace()))?;
    Ok(format!(
        "{PACKAGE} ({version}-1) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- The qmail-rs developers <postmaster@localhost>  {day}"
    ))
}

/// What the programs need of the system's libraries, as dpkg-shlibdeps finds it.
fn libraries(root: &Path) -> Result<String> {
    // It reads debian/control of a source package.
    let source = root.with_extension("source");
    place(&source, "debian/control", format!("Source: {PACKAGE}\n\nPackage: {PACKAGE}\nArchitecture: any\n").as_bytes())?;
    let mut find = Command::new("dpkg-shlibdeps");
    find.arg("-O").current_dir(&source);
    for name in program_names()? {
        find.arg(root.join(LIBEXEC).join(name));
    }
    let found = output(&mut find).context("dpkg-shlibdeps is in Debian's package dpkg-dev")?;
    std::fs::remove_dir_all(&source)?;
    let found = found.trim().strip_prefix("shlibs:Depends=").context("dpkg-shlibdeps found no libraries")?;
    Ok(found.to_owned())
}

/// The same tree for other systems.
fn tarball(tree: &Path, out: &Path, version: &str, system: &str) -> Result<PathBuf> {
    let name = format!("{PACKAGE}-{version}-{}-{system}.tar.xz", std::env::consts::ARCH);
    let tarball = out.join(name);
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-cJf"]).arg(&tarball).arg("-C").arg(tree).arg(".");
    must(&mut tar)?;
    Ok(tarball)
}

fn lint(deb: &Path) -> Result<()> {
    if Command::new("lintian").arg("--version").output().is_err() {
        println!("lintian is not installed: the package was not looked at");
        return Ok(());
    }
    must(Command::new("lintian").args(["--fail-on", "error,warning", "--allow-root"]).arg(deb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_gets_its_user() {
        let text = sysusers();
        for role in SERVICE_ROLES {
            assert!(text.contains(&format!("u {role} -:qmail ")), "{role}");
        }
    }

    #[test]
    fn what_is_linked_is_a_program_with_a_page() {
        let names = program_names().unwrap();
        for (path, program) in links() {
            assert!(names.iter().any(|name| name == program), "{path}");
            let called = path.rsplit('/').next().unwrap();
            let page = |section| workspace().join(format!("docs/man/{called}.{section}"));
            assert!(page(1).is_file() || page(8).is_file(), "{path} has no page");
            assert!(!OF_OTHERS.contains(&called), "{path} is another package's");
        }
    }

    /// A program that nobody decided about is in neither list.
    #[test]
    fn every_small_program_is_linked_or_left_to_others() {
        let linked: Vec<&str> = links().into_iter().map(|(_, program)| program).collect();
        let files =
            output(Command::new("git").args(["ls-files", "programs/*/tools/src/bin/*.rs"]).current_dir(workspace())).unwrap();
        for name in files.lines().filter_map(|file| Path::new(file).file_stem()?.to_str()) {
            assert!(linked.contains(&name) != OF_OTHERS.contains(&name), "{name}");
        }
    }
}
