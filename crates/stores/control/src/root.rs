//! Where an instance lives: all its paths lie below one directory, `/` by default.
//!
//! `--root DIR` wins over the variable QMAIL_ROOT. Nothing in qmail is setuid, so the variable gives nobody rights.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use wire::Domain;

use crate::{ControlError, Id, Ids, read};

/// The environment variable that names the root.
pub const ROOT_VARIABLE: &str = "QMAIL_ROOT";

/// The root of an instance: an absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// `dir` made absolute.
    ///
    /// # Errors
    /// The working directory cannot be found out; temporary.
    pub fn new(dir: &Path) -> Result<Self, ControlError> {
        std::path::absolute(dir).map(Self).map_err(|error| ControlError::from_io(dir, &error))
    }

    /// QMAIL_ROOT, or `/`.
    ///
    /// # Errors
    /// As [`Root::new`].
    pub fn from_env() -> Result<Self, ControlError> {
        let dir = std::env::var_os(ROOT_VARIABLE).filter(|dir| !dir.is_empty());
        Self::new(Path::new(dir.as_deref().unwrap_or(OsStr::new("/"))))
    }

    /// Takes `--root DIR` or `--root=DIR` out of the front part of the arguments (up to `--`), else as [`Root::from_env`].
    ///
    /// # Errors
    /// `--root` without a directory, or as [`Root::new`].
    pub fn from_args(args: &mut Vec<OsString>) -> Result<Self, ControlError> {
        let options = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
        let is_root = |arg: &OsString| arg == "--root" || arg.as_encoded_bytes().starts_with(b"--root=");
        let Some(at) = args.iter().take(options).position(is_root) else { return Self::from_env() };
        let option = args.remove(at);
        let glued = option.as_encoded_bytes().strip_prefix(b"--root=").map(<[u8]>::to_vec);
        let dir = match glued {
            Some(dir) => <OsString as std::os::unix::ffi::OsStringExt>::from_vec(dir),
            None if at < args.len() => args.remove(at),
            None => OsString::new(),
        };
        if dir.is_empty() {
            return Err(ControlError::new(Path::new("--root"), "must be followed by a directory"));
        }
        Self::new(Path::new(&dir))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Is it the system's own instance?
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.0.parent().is_none()
    }

    /// `etc/qmail`.
    #[must_use]
    pub fn etc(&self) -> PathBuf {
        self.0.join("etc/qmail")
    }

    /// `etc/qmail/control`: one file per value.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.0.join("etc/qmail/control")
    }

    /// `etc/qmail/users`: assign, cdb, domains.
    #[must_use]
    pub fn users(&self) -> PathBuf {
        self.0.join("etc/qmail/users")
    }

    /// `etc/qmail/alias`: home of the user alias.
    #[must_use]
    pub fn alias(&self) -> PathBuf {
        self.0.join("etc/qmail/alias")
    }

    /// `etc/qmail/tls`.
    #[must_use]
    pub fn tls(&self) -> PathBuf {
        self.0.join("etc/qmail/tls")
    }

    /// `etc/qmail/ids`.
    #[must_use]
    pub fn ids_file(&self) -> PathBuf {
        self.0.join("etc/qmail/ids")
    }

    /// `etc/qmail/users/domains`.
    #[must_use]
    pub fn domains_file(&self) -> PathBuf {
        self.0.join("etc/qmail/users/domains")
    }

    /// `var/spool/qmail`.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.0.join("var/spool/qmail")
    }

    /// `var/lib/qmail`: accounts and caches.
    #[must_use]
    pub fn lib(&self) -> PathBuf {
        self.0.join("var/lib/qmail")
    }

    /// `var/mail`, the parent of the virtual domains' directories.
    #[must_use]
    pub fn mail_base(&self) -> PathBuf {
        self.0.join("var/mail")
    }

    /// `var/mail/DOMAIN`: where `qmail domain add` puts a domain; users/domains may name another place.
    #[must_use]
    pub fn mail(&self, domain: &Domain) -> PathBuf {
        self.mail_base().join(Path::new(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(domain.as_bytes())))
    }

    /// `run/qmail`: sockets.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.0.join("run/qmail")
    }

    /// The path of a control file.
    #[must_use]
    pub fn control_file(&self, name: &str) -> PathBuf {
        self.control().join(name)
    }

    /// The bytes of a control file.
    ///
    /// # Errors
    /// Unreadable; temporary. So are the errors of all that follow.
    pub fn text(&self, name: &str) -> Result<Option<Vec<u8>>, ControlError> {
        read::file(&self.control_file(name))
    }

    /// A single value.
    ///
    /// # Errors
    /// Unreadable; temporary.
    pub fn line(&self, name: &str) -> Result<Option<Vec<u8>>, ControlError> {
        Ok(self.text(name)?.map(|text| read::line_of(&text).to_vec()))
    }

    /// A single value whose default is `me`, and without `me` the file's own name, as qmail-inject(8) and qmail-send(8) have it.
    ///
    /// # Errors
    /// Unreadable; temporary.
    pub fn line_or_me(&self, name: &str) -> Result<Vec<u8>, ControlError> {
        let value = match self.line(name)? {
            Some(value) => Some(value),
            None => self.line("me")?,
        };
        Ok(value.unwrap_or_else(|| name.as_bytes().to_vec()))
    }

    /// A number; `None` also when the file does not begin with one.
    ///
    /// # Errors
    /// Unreadable; temporary.
    pub fn int(&self, name: &str) -> Result<Option<u64>, ControlError> {
        Ok(self.text(name)?.and_then(|text| read::int_of(&text)))
    }

    /// A list.
    ///
    /// # Errors
    /// Unreadable; temporary.
    pub fn lines(&self, name: &str) -> Result<Option<Vec<Vec<u8>>>, ControlError> {
        Ok(self.text(name)?.map(|text| read::lines_of(&text)))
    }

    /// A map, keys in lower case, in the order of the file; of equal keys the last counts.
    ///
    /// # Errors
    /// Unreadable; temporary.
    pub fn map(&self, name: &str) -> Result<Option<read::Map>, ControlError> {
        Ok(self.text(name)?.map(|text| read::map_of(&text)))
    }

    /// A list of hosts, empty if the file is missing: no rcpthosts means nobody, not everybody (promise 5).
    ///
    /// # Errors
    /// Unreadable; temporary.
    pub fn hosts(&self, name: &str) -> Result<users::HostSet, ControlError> {
        Ok(self.text(name)?.map(|text| users::HostSet::parse(&text)).unwrap_or_default())
    }

    /// A list of networks.
    ///
    /// # Errors
    /// Unreadable, or a line that is no network; temporary.
    pub fn networks(&self, name: &str) -> Result<Option<users::Networks>, ControlError> {
        let parse = |text: Vec<u8>| users::Networks::parse(&text).map_err(|error| self.wrong(&self.control_file(name), &error));
        self.text(name)?.map(parse).transpose()
    }

    /// Networks whose clients may send a password without TLS (`authcleartext`; missing: this host).
    ///
    /// # Errors
    /// As [`Root::networks`].
    pub fn authcleartext(&self) -> Result<users::Networks, ControlError> {
        Ok(self.networks("authcleartext")?.unwrap_or_else(users::Networks::loopback))
    }

    /// The name of this host, without which nothing runs.
    ///
    /// # Errors
    /// Missing, empty or unreadable; temporary.
    pub fn me(&self) -> Result<Vec<u8>, ControlError> {
        let me = self.line("me")?.filter(|me| !me.is_empty());
        me.ok_or_else(|| {
            ControlError::new(
                &self.control_file("me"),
                "missing; write the full name of this host into it, or run qmail setup --me HOST",
            )
        })
    }

    /// `control/listen`; empty if missing.
    ///
    /// # Errors
    /// Unreadable or malformed; temporary.
    pub fn listen(&self) -> Result<Vec<users::Listener>, ControlError> {
        let text = self.text("listen")?.unwrap_or_default();
        users::listen::parse(&text).map_err(|error| self.wrong(&self.control_file("listen"), &error))
    }

    /// The networks of the proxies in front of a listener that was handed over as `SERVICE:LINE` of `control/listen`; `None` if clients
    /// connect there themselves.
    ///
    /// # Errors
    /// Unreadable or malformed, or another listener stands there meanwhile: qmail-start reads the file again. Temporary.
    pub fn proxies(&self, listener: &str) -> Result<Option<users::Networks>, ControlError> {
        let listeners = self.listen()?;
        let found = listener.split_once(':').and_then(|(service, line)| {
            listeners.get(line.parse::<usize>().ok()?).filter(|listener| listener.service.name() == service)
        });
        let wrong = |problem: &str| ControlError::new(&self.control_file("listen"), problem);
        match found {
            Some(found) => found.proxies().map_err(|problem| wrong(&problem)),
            // Handed over by something else than qmail-start.
            None if listeners.is_empty() => Ok(None),
            None => Err(wrong("was changed at this moment; it will be read again")),
        }
    }

    /// An option of the listener that was handed over as `SERVICE:LINE` of `control/listen`.
    ///
    /// # Errors
    /// As [`Root::listen`]; temporary.
    pub fn listener_option(&self, listener: &str, key: &str) -> Result<Option<Vec<u8>>, ControlError> {
        let listeners = self.listen()?;
        let line = listener.split_once(':').and_then(|(_, line)| line.parse::<usize>().ok());
        let found = line.and_then(|line| listeners.get(line)).and_then(|listener| listener.option(key));
        Ok(found.map(|value| value.as_bytes().to_vec()))
    }

    /// Who is who in this instance. A file that is root's counts for everybody, also for a service process that runs under an id
    /// from it. Without such a file the instance is the caller's own and every id is the caller; root must have the file.
    ///
    /// # Errors
    /// Unreadable, malformed, writable by others, or missing for root; temporary.
    pub fn ids(&self) -> Result<Ids, ControlError> {
        let path = self.ids_file();
        let caller = Id { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        let Some((file, metadata)) = read::open(&path)? else {
            if caller.uid == 0 {
                return Err(ControlError::new(&path, "missing; run qmail setup, which writes it"));
            }
            return Ok(Ids::Caller(caller));
        };
        read::check_owner(&path, &metadata)?;
        if std::os::unix::fs::MetadataExt::uid(&metadata) != 0 {
            return Ok(Ids::Caller(caller));
        }
        let text = read::contents(&path, file, &metadata)?;
        Ids::parse(&text).map_err(|error| self.wrong(&path, &error))
    }

    /// Whom a program that root has started goes on as, by the name of a role. `None`: this process is not root's, or no system is set up here.
    ///
    /// # Errors
    /// As [`Root::ids`], or the role has no line there; temporary.
    pub fn role_for_root(&self, name: &str) -> Result<Option<Id>, ControlError> {
        if !rustix::process::geteuid().is_root() || !self.ids_file().exists() {
            return Ok(None);
        }
        let id = self.ids()?.get(name);
        id.map(Some).ok_or_else(|| ControlError::new(&self.ids_file(), format!("has no line for {name}; run qmail setup")))
    }

    /// users/domains; empty if missing.
    ///
    /// # Errors
    /// Unreadable, malformed, or somebody else than root may write it; temporary.
    pub fn virtual_domains(&self) -> Result<users::VirtualDomains, ControlError> {
        let path = self.domains_file();
        let text = read::owned_file(&path)?.unwrap_or_default();
        users::VirtualDomains::parse(&text).map_err(|error| self.wrong(&path, &error))
    }

    /// All that decides where a recipient goes; a missing `locals` means `me` (qmail-send(8)).
    ///
    /// # Errors
    /// A file unreadable or malformed; temporary.
    pub fn routing(&self) -> Result<users::Routing, ControlError> {
        let locals = match self.text("locals")? {
            Some(text) => users::HostSet::parse(&text),
            None => [self.me()?].into_iter().collect(),
        };
        let virtualdomains = self.text("virtualdomains")?.unwrap_or_default();
        let envnoathost = self.line_or_me("envnoathost")?;
        Ok(users::Routing::new(self.virtual_domains()?, locals, self.hosts("percenthack")?, envnoathost, &virtualdomains))
    }

    /// `smtproutes`.
    ///
    /// # Errors
    /// Unreadable; temporary.
    pub fn routes(&self) -> Result<crate::Routes, ControlError> {
        Ok(crate::Routes::new(self.map("smtproutes")?.unwrap_or_default()))
    }

    fn wrong(&self, path: &Path, error: &users::LineError) -> ControlError {
        ControlError::new(path, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Routed;
    use users::ids::SERVICE_ROLES;

    fn instance(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["control", "users"] {
            std::fs::create_dir_all(dir.path().join("etc/qmail").join(sub)).unwrap();
        }
        for (name, text) in files {
            std::fs::write(dir.path().join("etc/qmail").join(name), text).unwrap();
        }
        let root = Root::new(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn root_comes_from_the_arguments() {
        let args = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        for (list, root, rest) in [
            (&["a", "--root", "/x", "b"][..], "/x", &["a", "b"][..]),
            (&["--root=/y/z", "--", "--root"], "/y/z", &["--", "--root"]),
        ] {
            let mut given = args(list);
            assert_eq!(Root::from_args(&mut given).unwrap().path(), Path::new(root));
            assert_eq!(given, args(rest));
        }
        assert!(Root::from_args(&mut args(&["--root"])).is_err());
        assert!(Root::new(Path::new("rel")).unwrap().path().is_absolute());
        assert!(Root::new(Path::new("/")).unwrap().is_system());
        assert_eq!(Root::new(Path::new("/")).unwrap().control_file("me"), Path::new("/etc/qmail/control/me"));
    }

    #[test]
    fn values_and_their_defaults() {
        let (_dir, root) =
            instance(&[("control/me", "mx.example \n"), ("control/databytes", "100x\n"), ("control/rcpthosts", ".a\n#b\n")]);
        assert_eq!(root.me().unwrap(), b"mx.example");
        assert_eq!(root.int("databytes").unwrap(), Some(100));
        assert_eq!(root.line("smtpgreeting").unwrap(), None);
        assert_eq!(root.line_or_me("defaulthost").unwrap(), b"mx.example");
        assert_eq!(root.lines("rcpthosts").unwrap(), Some(vec![b".a".to_vec()]));
        assert!(root.hosts("percenthack").unwrap().is_empty());
        assert!(root.listen().unwrap().is_empty());
        assert_eq!(root.networks("relayclients").unwrap(), None);
        let (_dir, bare) = instance(&[]);
        assert!(bare.me().unwrap_err().problem.contains("qmail setup"));
        assert_eq!(bare.line_or_me("defaulthost").unwrap(), b"defaulthost");
    }

    #[test]
    fn locals_default_to_me_and_virtual_domains_come_first() {
        let (_dir, root) = instance(&[("control/me", "mx.example\n"), ("users/domains", "mx.example:5:6:/m\n")]);
        let routing = root.routing().unwrap();
        let to = wire::Address::new(b"joe").unwrap();
        assert!(matches!(routing.rewrite(&to).unwrap(), Routed::Virtual(address) if address.as_bytes() == b"joe@mx.example"));
        let (_dir, root) = instance(&[("control/me", "mx.example\n"), ("users/domains", "x:0:6:/m\n")]);
        assert!(root.routing().unwrap_err().to_string().contains("users/domains: line 1"));
    }

    #[test]
    fn ids_are_the_files_or_the_callers() {
        let text: String = SERVICE_ROLES.iter().zip(100..).map(|(role, uid)| format!("{role} {uid} 99\n")).collect();
        let (_dir, with) = instance(&[("ids", &text)]);
        let (_dir2, without) = instance(&[]);
        let qmailq = with.ids().unwrap().get("qmailq").unwrap();
        if rustix::process::geteuid().is_root() {
            assert_eq!(qmailq, Id { uid: 103, gid: 99 });
            assert!(without.ids().unwrap_err().problem.contains("qmail setup"));
        } else {
            assert_eq!(qmailq.uid, rustix::process::geteuid().as_raw());
            assert!(matches!(without.ids().unwrap(), Ids::Caller(_)));
        }
    }
}
