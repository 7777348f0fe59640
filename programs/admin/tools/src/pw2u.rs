//! qmail-pw2u(8): a passwd file on standard input becomes the lines of users/assign on standard output.
//!
//! -o (default): who has no home, or one that is another's, is left out; -h: a home that is not there is an error; -H: homes do not count.
//! -u: names with upper case, too (-U: not). -cX: X is the delimiter of extensions instead of `-`; -C: none. -/: `.qmail/ext` instead of
//! `.qmail-ext`. Beside them, in `users`: include, exclude, mailnames (`user:name:…`), subusers (`sub:user:ext:`), append.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use tool::options::{self, Letters, Opt};
use tool::{End, Name, PERMANENT, input};

const ME: Name = Name("qmail-pw2u");
const ALIAS: &[u8] = b"alias";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Homes {
    /// -o
    Skip,
    /// -h
    Stop,
    /// -H
    Ignore,
}

struct Settings {
    homes: Homes,
    takes_upper: bool,
    delimiter: Option<u8>,
    /// `-:`, or `-/:` with -/.
    dash: &'static [u8],
    include: Option<HashSet<Vec<u8>>>,
    exclude: HashSet<Vec<u8>>,
    mail_names: HashMap<Vec<u8>, Vec<u8>>,
}

/// The program.
///
/// # Errors
/// Wrong options (100, silent but for their name), a file that cannot be read, no user alias, a subuser of nobody; temporary.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    let letters = Letters { flags: b"/ohHuUC", with_value: b"c", with_glued_value: b"" };
    let (options, _) = options::known(ME, args, letters).ok_or(End::silent(PERMANENT))?;
    let users = crate::root(ME)?.users();
    let settings = settings(&options, &users)?;
    let passwd = input::table().map_err(|_| ME.temporary("unable to read input"))?;
    let mut out = Vec::new();
    let mut accounts: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    let mut has_alias = false;
    for account in passwd.split(|b| *b == b'\n').filter_map(Account::parse) {
        if settings.takes(&account)? {
            has_alias |= account.name == ALIAS;
            settings.print(&account, &mut out);
            accounts.entry(account.name.to_ascii_lowercase()).or_insert_with(|| account.fields());
        }
    }
    if !has_alias {
        return Err(ME.temporary("unable to find alias user"));
    }
    for line in optional(&users.join("subusers"))?.split(|b| *b == b'\n') {
        settings.subuser(line, &accounts, &mut out)?;
    }
    out.extend(optional(&users.join("append"))?);
    out.extend_from_slice(b".\n");
    let written = sys::standard::output().and_then(|mut stdout| stdout.write_all(&out));
    written.map(|()| 0).map_err(|_| ME.temporary("unable to write output"))
}

/// The bytes of a file; none if it is not there.
fn optional(path: &Path) -> Result<Vec<u8>, End> {
    match input::file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        text => text.map_err(|_| ME.temporary("unable to read controls")),
    }
}

fn settings(options: &[Opt], users: &Path) -> Result<Settings, End> {
    let names = |file: &str| -> Result<HashSet<Vec<u8>>, End> {
        let lines = control::read::lines_of(&optional(&users.join(file))?);
        Ok(lines.iter().map(|line| line.to_ascii_lowercase()).collect())
    };
    let mut settings = Settings {
        homes: Homes::Skip,
        takes_upper: false,
        delimiter: Some(b'-'),
        dash: b"-:",
        include: users.join("include").exists().then(|| names("include")).transpose()?,
        exclude: names("exclude")?,
        mail_names: control::read::map_of(&optional(&users.join("mailnames"))?).into_iter().collect(),
    };
    for option in options {
        match option {
            Opt::Flag(b'/') => settings.dash = b"-/:",
            Opt::Flag(b'o') => settings.homes = Homes::Skip,
            Opt::Flag(b'h') => settings.homes = Homes::Stop,
            Opt::Flag(b'H') => settings.homes = Homes::Ignore,
            Opt::Flag(b'u') => settings.takes_upper = true,
            Opt::Flag(b'U') => settings.takes_upper = false,
            Opt::Flag(b'C') => settings.delimiter = None,
            Opt::Value(_, value) => settings.delimiter = value.first().copied(),
            Opt::Flag(_) | Opt::Unknown(_) => {}
        }
    }
    Ok(settings)
}

/// A line of passwd(5).
struct Account<'a> {
    name: &'a [u8],
    uid: &'a [u8],
    gid: &'a [u8],
    home: &'a [u8],
}

impl<'a> Account<'a> {
    /// `None` for a line that has too few fields or a NUL, and for uid 0.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
        let [name, _, uid, gid, _, home, _, ..] = fields.as_slice() else { return None };
        let account = Self { name, uid, gid, home };
        (!line.contains(&0) && account.uid() != 0).then_some(account)
    }

    /// Leading digits, as ever.
    fn uid(&self) -> u64 {
        let digits = self.uid.iter().take_while(|b| b.is_ascii_digit());
        digits.fold(0, |sum: u64, digit| sum.saturating_mul(10).saturating_add(u64::from(digit.saturating_sub(b'0'))))
    }

    /// `:user:uid:gid:home:`
    fn fields(&self) -> Vec<u8> {
        [b":", self.name, b":", self.uid, b":", self.gid, b":", self.home, b":"].concat()
    }
}

impl Settings {
    fn takes(&self, account: &Account<'_>) -> Result<bool, End> {
        let key = account.name.to_ascii_lowercase();
        let is_listed = self.include.as_ref().is_none_or(|include| include.contains(&key)) && !self.exclude.contains(&key);
        if !is_listed || (!self.takes_upper && account.name.iter().any(u8::is_ascii_uppercase)) {
            return Ok(false);
        }
        if self.homes == Homes::Ignore {
            return Ok(true);
        }
        match std::fs::metadata(input::path(account.home)) {
            Ok(home) => Ok(u64::from(home.uid()) == account.uid()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.homes == Homes::Skip => Ok(false),
            Err(_) => Err(ME.temporary([b"unable to stat ", account.home].concat())),
        }
    }

    fn print(&self, account: &Account<'_>, out: &mut Vec<u8>) {
        let fields = account.fields();
        if account.name == ALIAS {
            out.extend([b"+", &fields[..], self.dash, b":\n"].concat());
        }
        let names = self.mail_names.get(&account.name.to_ascii_lowercase()).map_or(account.name, Vec::as_slice);
        for name in names.split(|b| *b == b':').filter(|name| !name.is_empty()) {
            out.extend([b"=", name, &fields, b"::\n"].concat());
            if let Some(delimiter) = self.delimiter {
                out.extend([b"+", name, &[delimiter], &fields, self.dash, b":\n"].concat());
            }
        }
    }

    fn subuser(&self, line: &[u8], accounts: &HashMap<Vec<u8>, Vec<u8>>, out: &mut Vec<u8>) -> Result<(), End> {
        let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
        let [sub, user, rest @ ..] = fields.as_slice() else { return Ok(()) };
        if rest.is_empty() {
            return Ok(());
        }
        let Some(account) = accounts.get(&user.to_ascii_lowercase()) else {
            return Err(ME.temporary([b"unable to find ", *user, b" user for subuser"].concat()));
        };
        let [ext, _, ..] = rest else { return Ok(()) };
        out.extend([b"=", *sub, account, self.dash, ext, b":\n"].concat());
        if let Some(delimiter) = self.delimiter {
            out.extend([b"+", *sub, &[delimiter], account, self.dash, ext, b"-:\n"].concat());
        }
        Ok(())
    }
}
