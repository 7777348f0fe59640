//! control/accounts: where the accounts of the virtual domains are. Missing: in SQLite, below var/lib/qmail. Read by qmail-start, qmail-auth and
//! qmail-authnet.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::url::Endpoint;
use crate::{ControlError, Root, read, secret};
use wire::Secret;

/// The file's name.
pub const FILE: &str = "accounts";
/// The file with the password, if there is none in the URL and no `passfile`.
pub const PASSWORD_FILE: &str = "accountspassword";
const PORT: u16 = 5432;
/// PostgreSQL's own bound of names (NAMEDATALEN).
const NAME_LEN_MAX: usize = 63;
/// Bytes of a socket's path (unix(7)), less the file's name.
const SOCKET_DIR_LEN_MAX: usize = 80;

/// Where the accounts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    Sqlite,
    Postgres(Box<Postgres>),
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// By TLS, unless it is on this host and the URL says `sslmode=disable`.
    Tcp { endpoint: Endpoint, is_tls: bool },
    /// The directory of its Unix socket, and the port that is a part of the socket's name.
    Unix { dir: PathBuf, port: u16 },
}

/// A database of a PostgreSQL server.
#[derive(Clone, PartialEq, Eq)]
pub struct Postgres {
    pub server: Server,
    pub user: String,
    pub database: String,
    /// Authorities that are trusted instead of the system's.
    pub cafile: Option<PathBuf>,
    /// As the URL has it.
    password: Option<Secret>,
    /// What `passfile` names.
    passfile: Option<PathBuf>,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// As people and logs see it, without a password.
impl fmt::Display for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Server::Tcp { endpoint, .. } => write!(f, "postgres://{}@{endpoint}/{}", self.user, self.database),
            Server::Unix { dir, port } => {
                write!(f, "postgres://{}@/{}?host={}&port={port}", self.user, self.database, dir.display())
            }
        }
    }
}

impl Store {
    /// Reads `control/accounts`.
    ///
    /// # Errors
    /// Unreadable, malformed, or with a password that everybody may read; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let path = root.control_file(FILE);
        let Some((file, metadata)) = read::open(&path)? else { return Ok(Self::Sqlite) };
        let mode = metadata.mode();
        let text = Secret::new(read::contents(&path, file, &metadata)?);
        let url = std::str::from_utf8(read::line_of(text.expose())).map_err(|_| ControlError::new(&path, "is no text"))?;
        if url.is_empty() {
            return Ok(Self::Sqlite);
        }
        let postgres = Postgres::parse(url, &root.control()).map_err(|problem| ControlError::new(&path, problem))?;
        if postgres.password.is_some() && mode & 0o007 != 0 {
            let problem = format!("holds a password that everybody may read (chmod 640), or put it into control/{PASSWORD_FILE}");
            return Err(ControlError::new(&path, problem));
        }
        Ok(Self::Postgres(Box::new(postgres)))
    }
}

impl Postgres {
    /// `postgres://USER[:PASSWORD]@HOST[:PORT]/DATABASE[?sslmode=…&sslrootcert=…&passfile=…&host=…&port=…]`, parts in percent-encoding.
    fn parse(url: &str, beside: &Path) -> Result<Self, String> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let rest = rest.ok_or("is no URL postgres://USER@HOST/DATABASE")?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = place.split_once('/').ok_or("names no database: postgres://USER@HOST/DATABASE")?;
        let (login, host) = authority.rsplit_once('@').ok_or("names no user: postgres://USER@HOST/DATABASE")?;
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(Secret::new(decoded(password)?))),
            None => (login, None),
        };
        let mut settings = Settings::parse(query)?;
        let password = password.filter(|password| !password.expose().is_empty());
        let path = |path: String| beside.join(path);
        let postgres = Self {
            server: server(host, &mut settings)?,
            user: name("user", user)?,
            database: name("database", database)?,
            cafile: settings.take("sslrootcert").map(path),
            password,
            passfile: settings.take("passfile").map(path),
        };
        settings.end()?;
        if postgres.password.is_some() && postgres.passfile.is_some() {
            return Err("has a password and a `passfile`: one of them is enough".to_owned());
        }
        Ok(postgres)
    }

    /// The password, for qmail-authnet: that of the URL, the first line of `passfile`, or of control/accountspassword. `None`: there is none, and
    /// the server asks for none (peer, a certificate).
    ///
    /// # Errors
    /// The file is not its reader's alone, or what `passfile` names is missing; temporary.
    pub fn password(&self, root: &Root) -> Result<Option<Secret>, ControlError> {
        if let Some(password) = &self.password {
            return Ok(Some(password.clone()));
        }
        self.password_file(root).map(|path| secret::read(&path)).transpose()
    }

    /// What an administrator is told while the system is down.
    #[must_use]
    pub fn down(&self) -> String {
        format!(
            "the accounts are in {self} (control/accounts), which only the running system reaches; start it (qmail start), then try again"
        )
    }

    /// The file with the password, if it is not in the URL.
    #[must_use]
    pub fn password_file(&self, root: &Root) -> Option<PathBuf> {
        if self.password.is_some() {
            return None;
        }
        let usual = root.control_file(PASSWORD_FILE);
        self.passfile.clone().or_else(|| usual.exists().then_some(usual))
    }
}

fn server(host: &str, settings: &mut Settings) -> Result<Server, String> {
    let sslmode = settings.take("sslmode");
    let (host_setting, port_setting) = (settings.take("host"), settings.take("port"));
    let port =
        port_setting.map(|port| port.parse::<u16>().ok().filter(|port| *port != 0).ok_or("`port` is no port")).transpose()?;
    let (host, port) = match host_setting {
        Some(dir) if host.is_empty() => (dir, port.unwrap_or(PORT)),
        Some(_) => return Err("names its host twice".to_owned()),
        None if host.starts_with("%2F") || host.starts_with("%2f") => {
            let (dir, after) = host.split_once(':').map_or((host, None), |(dir, port)| (dir, port.parse().ok()));
            (text(dir)?, after.or(port).unwrap_or(PORT))
        }
        None => {
            let default = port.unwrap_or(PORT);
            let endpoint = Endpoint::parse(host, default).ok_or_else(|| format!("`{host}` is no host (HOST or HOST:PORT)"))?;
            return tcp(endpoint, sslmode.as_deref());
        }
    };
    if !host.starts_with('/') {
        let endpoint = Endpoint::parse(&host, port).ok_or_else(|| format!("`{host}` is no host"))?;
        return tcp(endpoint, sslmode.as_deref());
    }
    if host.len() > SOCKET_DIR_LEN_MAX {
        return Err("the directory of the Unix socket has a name that is too long".to_owned());
    }
    // What PostgreSQL's own programs write by default means nothing for a Unix socket.
    Ok(Server::Unix { dir: host.into(), port })
}

/// With `verify-full` or not at all: with `require` and `verify-ca` anybody on the way, or with any certificate, could be the server.
fn tcp(endpoint: Endpoint, sslmode: Option<&str>) -> Result<Server, String> {
    match sslmode {
        None | Some("verify-full") => Ok(Server::Tcp { endpoint, is_tls: true }),
        Some("disable") if endpoint.is_loopback() => Ok(Server::Tcp { endpoint, is_tls: false }),
        Some("disable") => {
            Err("`sslmode=disable` is for 127.0.0.0/8 and [::1] alone: hashes would travel in the clear".to_owned())
        }
        Some(other) => Err(format!("`sslmode={other}` does not tell the server from others; write `sslmode=verify-full`")),
    }
}

fn name(what: &str, part: &str) -> Result<String, String> {
    let name = text(part)?;
    if name.is_empty() || name.len() > NAME_LEN_MAX || name.contains('\0') {
        return Err(format!("the name of the {what} has 1 to {NAME_LEN_MAX} bytes"));
    }
    Ok(name)
}

fn text(part: &str) -> Result<String, String> {
    String::from_utf8(decoded(part)?).map_err(|_| "a part of it is no UTF-8".to_owned())
}

/// RFC 3986 §2.1.
fn decoded(part: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digits = [bytes.next(), bytes.next()].map(|digit| char::from(digit.unwrap_or_default()).to_digit(16));
                let [Some(high), Some(low)] = digits else { return Err("has a `%` without two hexadecimal digits".to_owned()) };
                u8::try_from(high << 4 | low).unwrap_or_default()
            }
            byte => byte,
        });
    }
    Ok(out)
}

/// What stands behind `?`.
struct Settings(Vec<(String, String)>);

impl Settings {
    fn parse(query: &str) -> Result<Self, String> {
        let mut all: Vec<(String, String)> = Vec::new();
        for setting in query.split('&').filter(|setting| !setting.is_empty()) {
            let (key, value) = setting.split_once('=').ok_or_else(|| format!("`{setting}` is no setting KEY=VALUE"))?;
            if all.iter().any(|(known, _)| known == key) {
                return Err(format!("`{key}` stands there twice"));
            }
            all.push((key.to_owned(), text(value)?));
        }
        Ok(Self(all))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        Some(self.0.remove(at).1).filter(|value| !value.is_empty())
    }

    fn end(self) -> Result<(), String> {
        match self.0.first() {
            Some((key, _)) => Err(format!("`{key}` is no setting here; there are sslmode, sslrootcert, passfile, host, port")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn parse(url: &str) -> Result<Postgres, String> {
        Postgres::parse(url, Path::new("/c"))
    }

    #[test]
    fn urls_say_where_and_who() {
        let tcp = |host: &str, port, is_tls| Server::Tcp { endpoint: Endpoint { host: host.to_owned(), port }, is_tls };
        let unix = |dir: &str, port| Server::Unix { dir: dir.into(), port };
        for (url, server, user, database) in [
            ("postgres://qmail@db.example.org/mail", tcp("db.example.org", 5432, true), "qmail", "mail"),
            ("postgresql://q%40x@db:5433/m%2fx?sslmode=verify-full", tcp("db", 5433, true), "q@x", "m/x"),
            ("postgres://q@127.0.0.1/m?sslmode=disable", tcp("127.0.0.1", 5432, false), "q", "m"),
            ("postgres://q@[::1]:7/m", tcp("::1", 7, true), "q", "m"),
            ("postgres://q@%2Frun%2Fpostgresql/m", unix("/run/postgresql", 5432), "q", "m"),
            ("postgres://q@%2Frun%2Fpg:5433/m", unix("/run/pg", 5433), "q", "m"),
            ("postgres://q@/m?host=/run/postgresql&port=6000", unix("/run/postgresql", 6000), "q", "m"),
            ("postgres://q@/m?host=db", tcp("db", 5432, true), "q", "m"),
        ] {
            let postgres = parse(url).unwrap();
            assert_eq!((postgres.server, postgres.user.as_str(), postgres.database.as_str()), (server, user, database), "{url}");
        }
        let postgres = parse("postgres://q@db/m?sslrootcert=ca.pem&passfile=/etc/pw").unwrap();
        assert_eq!((postgres.cafile, postgres.passfile), (Some("/c/ca.pem".into()), Some("/etc/pw".into())));
        for (url, why) in [
            ("mysql://q@db/m", "is no URL"),
            ("postgres://db/m", "no user"),
            ("postgres://q@db", "no database"),
            ("postgres://q@db/", "database"),
            ("postgres://@db/m", "user"),
            ("postgres://q@d b/m", "no host"),
            ("postgres://q@/m", "no host"),
            ("postgres://q@db/m?sslmode=require", "verify-full"),
            ("postgres://q@db/m?sslmode=prefer", "verify-full"),
            ("postgres://q@db/m?sslmode=disable", "127.0.0.0/8"),
            ("postgres://q@localhost/m?sslmode=disable", "127.0.0.0/8"),
            ("postgres://q%4@db/m", "hexadecimal"),
            ("postgres://q@db/m?x=1", "`x`"),
            ("postgres://q@db/m?port=1&port=2", "twice"),
            ("postgres://q:p@db/m?passfile=x", "one of them"),
            ("postgres://q@db/m?host=x", "twice"),
        ] {
            assert!(parse(url).unwrap_err().contains(why), "{url}: {:?}", parse(url));
        }
    }

    #[test]
    fn a_password_is_not_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        assert_eq!(Store::read(&root).unwrap(), Store::Sqlite);
        let write = |file: &str, text: &str, mode| {
            std::fs::write(root.control_file(file), text).unwrap();
            std::fs::set_permissions(root.control_file(file), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let password = || match Store::read(&root)? {
            Store::Postgres(postgres) => postgres.password(&root).map(|p| p.map(|p| p.expose().to_vec())),
            Store::Sqlite => panic!("SQLite"),
        };
        write(FILE, "postgres://q:p%3Aw@db/m\n", 0o644);
        assert!(password().unwrap_err().problem.contains("chmod 640"));
        write(FILE, "postgres://q:p%3Aw@db/m\n", 0o640);
        assert_eq!(password().unwrap(), Some(b"p:w".to_vec()));
        let Store::Postgres(postgres) = Store::read(&root).unwrap() else { panic!("SQLite") };
        assert!(!format!("{postgres:?} {postgres}").contains("p:w"));
        write(FILE, "postgres://q@db/m\n", 0o644);
        assert_eq!(password().unwrap(), None);
        write(PASSWORD_FILE, "hush\n", 0o644);
        assert!(password().unwrap_err().problem.contains("others may read"));
        write(PASSWORD_FILE, "hush\n", 0o600);
        assert_eq!(password().unwrap(), Some(b"hush".to_vec()));
        write(FILE, "postgres://q@db/m?passfile=other\n", 0o644);
        assert!(password().unwrap_err().problem.contains("missing"));
        write(FILE, "\n", 0o644);
        assert_eq!(Store::read(&root).unwrap(), Store::Sqlite);
    }
}
