//! `control/authsources`: who judges a login, a source a line, asked in this order. Missing: the accounts alone.
//!
//! It decides who gets in and names programs that run as root, so it must be root's (or the caller's) alone.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::{ControlError, Root, Watched, read};

/// The file's name.
pub const FILE: &str = "authsources";
/// What PAM calls this server, unless the line says otherwise.
pub const PAM_SERVICE_DEFAULT: &str = "qmail-rs";
/// Each takes its time with every login that fails.
const SOURCES_MAX: usize = 8;
/// A line travels in a datagram with the login.
const LINE_LEN_MAX: usize = 4096;

/// Who can judge a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The accounts of this host.
    Accounts,
    /// A program with the checkpassword interface, by qmail-checkpw.
    Checkpassword { program: PathBuf, args: Vec<Vec<u8>> },
    /// `etc/shadow` below the root, by qmail-checkpw.
    Shadow,
    /// PAM under this service name, by qmail-checkpw.
    Pam { service: String },
    /// A directory, by control/ldap and qmail-authnet.
    Ldap,
    /// Of tokens alone: an OAuth issuer, by control/oauth and qmail-authnet.
    Oauth,
}

impl Source {
    /// Does qmail-checkpw serve it?
    #[must_use]
    pub fn needs_checkpw(&self) -> bool {
        matches!(self, Self::Checkpassword { .. } | Self::Shadow | Self::Pam { .. })
    }

    /// Does qmail-authnet serve it?
    #[must_use]
    pub fn needs_authnet(&self) -> bool {
        matches!(self, Self::Ldap | Self::Oauth)
    }

    /// Does it know the users of the system alone?
    #[must_use]
    pub fn is_of_system(&self) -> bool {
        matches!(self, Self::Shadow | Self::Pam { .. })
    }

    /// The source of a line.
    ///
    /// # Errors
    /// It names none; the text says why.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).map(<[u8]>::to_vec);
        let source = words.next().unwrap_or_default();
        let args: Vec<Vec<u8>> = words.collect();
        match (source.as_slice(), args.as_slice()) {
            (b"accounts", []) => Ok(Self::Accounts),
            (b"shadow", []) => Ok(Self::Shadow),
            (b"ldap", []) => Ok(Self::Ldap),
            (b"oauth", []) => Ok(Self::Oauth),
            (b"pam", []) => Ok(Self::Pam { service: PAM_SERVICE_DEFAULT.to_owned() }),
            (b"pam", [service]) => pam_service(service).ok_or_else(|| "the name of a PAM service is a file name".to_owned()),
            (b"checkpassword", [program, args @ ..]) if program.starts_with(b"/") => {
                Ok(Self::Checkpassword { program: Path::new(OsStr::from_bytes(program)).to_owned(), args: args.to_vec() })
            }
            (b"checkpassword", _) => Err("`checkpassword` needs the absolute path of a program".to_owned()),
            (b"accounts" | b"shadow" | b"pam" | b"ldap" | b"oauth", _) => Err("too many words".to_owned()),
            _ => Err(
                "no such source; write `accounts`, `checkpassword PROGRAM [ARGS]`, `shadow`, `pam [SERVICE]`, `ldap` or `oauth`"
                    .to_owned(),
            ),
        }
    }
}

fn pam_service(name: &[u8]) -> Option<Source> {
    let is_name = name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) && !name.starts_with(b".");
    let service = std::str::from_utf8(name).ok().filter(|_| is_name)?;
    Some(Source::Pam { service: service.to_owned() })
}

/// As [`Source::parse`] reads it.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accounts => f.write_str("accounts"),
            Self::Shadow => f.write_str("shadow"),
            Self::Ldap => f.write_str("ldap"),
            Self::Oauth => f.write_str("oauth"),
            Self::Pam { service } => write!(f, "pam {service}"),
            Self::Checkpassword { program, .. } => write!(f, "checkpassword {}", program.display()),
        }
    }
}

impl Source {
    /// The bytes that another process tells the source by: the words of the line with one blank between them.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        let Self::Checkpassword { program, args } = self else { return self.to_string().into_bytes() };
        let words = [&b"checkpassword"[..], program.as_os_str().as_bytes()].into_iter().chain(args.iter().map(Vec::as_slice));
        words.collect::<Vec<_>>().join(&b' ')
    }
}

/// The sources in their order; `None` is a missing file.
///
/// # Errors
/// The line that names no source, or how many there may be.
pub fn parse(text: Option<&[u8]>) -> Result<Vec<Source>, String> {
    let Some(text) = text else { return Ok(vec![Source::Accounts]) };
    let lines = users::list_lines(text);
    let source = |(number, line): (usize, &[u8])| {
        let shown = || wire::escape::visible(line.get(..80.min(line.len())).unwrap_or_default());
        if line.len() > LINE_LEN_MAX {
            return Err(format!("line {number} is longer than {LINE_LEN_MAX} bytes"));
        }
        Source::parse(line).map_err(|problem| format!("line {number}, `{}`: {problem}", shown()))
    };
    let sources = lines.map(source).collect::<Result<Vec<_>, _>>()?;
    if sources.len() > SOURCES_MAX {
        return Err(format!("names {} sources; {SOURCES_MAX} are enough", sources.len()));
    }
    Ok(sources)
}

/// Follows the file.
#[must_use]
pub fn watched(root: &Root) -> Watched<Vec<Source>> {
    Watched::owned(root.control_file(FILE), parse)
}

/// The sources as they are now.
///
/// # Errors
/// Unreadable, malformed or somebody else's; temporary.
pub fn load(root: &Root) -> Result<Vec<Source>, ControlError> {
    let path = root.control_file(FILE);
    let text = read::owned_file(&path)?;
    parse(text.as_deref()).map_err(|problem| ControlError::new(&path, problem))
}

/// Is there a source that qmail-checkpw serves? Without one it is not started.
///
/// # Errors
/// As [`load`].
pub fn wants_checkpw(root: &Root) -> Result<bool, ControlError> {
    Ok(load(root)?.iter().any(Source::needs_checkpw))
}

/// Is there a source that qmail-authnet serves? Without one it is not started.
///
/// # Errors
/// As [`load`].
pub fn wants_authnet(root: &Root) -> Result<bool, ControlError> {
    let is_elsewhere = crate::accounts::Store::read(root)? != crate::accounts::Store::Sqlite;
    Ok(is_elsewhere || load(root)?.iter().any(Source::needs_authnet))
}

/// A program that runs as root must be a regular file that nobody but root (or the caller) may change.
///
/// # Errors
/// It is not there, or it is not such a file.
pub fn check_program(path: &Path) -> Result<(), ControlError> {
    match read::open(path)? {
        None => Err(ControlError::new(path, "does not exist; control/authsources names it")),
        Some((_, metadata)) => read::check_owner(path, &metadata),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpassword(program: &str, args: &[&str]) -> Source {
        Source::Checkpassword { program: program.into(), args: args.iter().map(|arg| arg.as_bytes().to_vec()).collect() }
    }

    #[test]
    fn sources_in_their_order() {
        assert_eq!(parse(None).unwrap(), [Source::Accounts]);
        assert_eq!(parse(Some(b"")).unwrap(), []);
        let pam = |service: &str| Source::Pam { service: service.to_owned() };
        assert_eq!(
            parse(Some(
                b"# mine first\n accounts\r\n\nshadow\ncheckpassword  /bin/x -a\tb \npam\npam imap.x_y-z\nldap \noauth\n"
            ))
            .unwrap(),
            [
                Source::Accounts,
                Source::Shadow,
                checkpassword("/bin/x", &["-a", "b"]),
                pam("qmail-rs"),
                pam("imap.x_y-z"),
                Source::Ldap,
                Source::Oauth
            ]
        );
    }

    #[test]
    fn errors_name_the_line() {
        for (text, part) in [
            ("accounts\nacounts\n", "line 2, `acounts`: no such source"),
            ("accounts x\n", "too many words"),
            ("shadow /etc/shadow\n", "too many words"),
            ("oauth x\n", "too many words"),
            ("ldaps\n", "line 1, `ldaps`: no such source"),
            ("checkpassword\n", "absolute path"),
            ("checkpassword bin/x\n", "absolute path"),
            ("pam a/b\n", "file name"),
            ("pam ..\n", "file name"),
            ("pam a b\n", "too many words"),
            (&"accounts\n".repeat(9), "9 sources"),
        ] {
            let problem = parse(Some(text.as_bytes())).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
        assert!(parse(Some(&[b'a'; LINE_LEN_MAX + 1])).unwrap_err().contains("longer"));
    }

    #[test]
    fn a_source_is_told_by_its_line() {
        for line in ["accounts", "shadow", "ldap", "oauth", "pam x", "checkpassword /bin/x", "checkpassword /bin/x -a b"] {
            let source = Source::parse(line.as_bytes()).unwrap();
            assert_eq!(source.line(), line.as_bytes());
            assert_eq!(Source::parse(&source.line()).unwrap(), source);
        }
        assert_eq!(Source::parse(b"pam").unwrap().line(), b"pam qmail-rs");
    }

    #[test]
    fn the_file_and_the_programs_it_names_are_roots() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        assert!(!wants_checkpw(&root).unwrap() && !wants_authnet(&root).unwrap());
        let file = root.control_file(FILE);
        for (text, checkpw, authnet) in [
            ("accounts\n", false, false),
            ("# shadow\n#ldap\n", false, false),
            ("accounts\nshadow\n", true, false),
            ("pam\n", true, false),
            ("accounts\nldap\n", false, true),
            (" oauth\n", false, true),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!((wants_checkpw(&root), wants_authnet(&root)), (Ok(checkpw), Ok(authnet)), "{text}");
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o664)).unwrap();
        assert!(load(&root).unwrap_err().problem.contains("others may write"));
        assert!(watched(&root).get().is_err());
        assert!(check_program(&file).is_err());
        assert!(check_program(&dir.path().join("none")).unwrap_err().problem.contains("does not exist"));
        assert!(check_program(dir.path()).is_err());
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        check_program(&file).unwrap();
    }
}
