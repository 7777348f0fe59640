//! SMTP command lines: the verb, the path of MAIL and RCPT, their parameters, the size of BDAT.
//!
//! Guarantees: a path that parses is an [`Address`] with its local part unquoted, its source route taken off, its domain a
//! host name or an address literal; every number is checked. Takes a line without its ending and never looks beyond it.
//!
//! As generous as qmail: blanks after the colon, no angle brackets, dots anywhere in a local part, no domain. Stricter than
//! qmail: bytes that RFC 5321 has no place for are refused, not carried along.
//! Standards: RFC 5321 §4.1, RFC 1870 (SIZE), RFC 6152 (8BITMIME), RFC 6531 (SMTPUTF8), RFC 3030 (BDAT), RFC 3207 (STARTTLS),
//! RFC 3461 (DSN), RFC 2852 (DELIVERBY), RFC 4865 (FUTURERELEASE), RFC 4954 §5 (AUTH=), RFC 6710 (MT-PRIORITY).
//! Used by [`crate::server`].

use std::net::{Ipv4Addr, Ipv6Addr};
use wire::civil::Civil;
use wire::dsn::{Envid, Notify, Orcpt, Ret};
use wire::quote::is_atext;
use wire::{Address, By, Domain, Priority};

/// Longest command line in bytes without its ending: 512 (RFC 5321 §4.5.3.1.4) and room for the parameters of extensions.
pub const COMMAND_LEN_MAX: usize = 2048;
/// Longest path; qmail-smtpd's bound, which counts 900 bytes with a NUL at the end.
pub const PATH_LEN_MAX: usize = 899;

/// A command, with what stands behind its verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command<'a> {
    Helo(&'a [u8]),
    Ehlo(&'a [u8]),
    /// LMTP's (RFC 2033 §4.1).
    Lhlo(&'a [u8]),
    Mail(&'a [u8]),
    Rcpt(&'a [u8]),
    Data(&'a [u8]),
    Bdat(&'a [u8]),
    Auth(&'a [u8]),
    StartTls(&'a [u8]),
    Xclient(&'a [u8]),
    Rset,
    Noop,
    Quit,
    Help,
    Vrfy,
    Expn,
    Unknown,
}

impl<'a> Command<'a> {
    /// The verb is what stands before the first space, in any case; blanks around the rest do not count. So a line that starts with
    /// a blank has no verb, as with qmail.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Self {
        let line = without_blanks_behind(line);
        let (verb, rest) = line.split_at(line.iter().position(|b| *b == b' ').unwrap_or(line.len()));
        let rest = without_blanks_before(rest);
        let is = |name: &str| verb.eq_ignore_ascii_case(name.as_bytes());
        match verb.len() {
            4 if is("HELO") => Self::Helo(rest),
            4 if is("EHLO") => Self::Ehlo(rest),
            4 if is("LHLO") => Self::Lhlo(rest),
            4 if is("MAIL") => Self::Mail(rest),
            4 if is("RCPT") => Self::Rcpt(rest),
            4 if is("DATA") => Self::Data(rest),
            4 if is("BDAT") => Self::Bdat(rest),
            4 if is("AUTH") => Self::Auth(rest),
            7 if is("XCLIENT") => Self::Xclient(rest),
            4 if is("RSET") => Self::Rset,
            4 if is("NOOP") => Self::Noop,
            4 if is("QUIT") => Self::Quit,
            4 if is("HELP") => Self::Help,
            4 if is("VRFY") => Self::Vrfy,
            4 if is("EXPN") => Self::Expn,
            8 if is("STARTTLS") => Self::StartTls(rest),
            _ => Self::Unknown,
        }
    }
}

/// Spaces and tabs only: a CR that ends no line is no blank, wherever it stands.
fn is_blank(b: u8) -> bool {
    matches!(b, b' ' | b'\t')
}

fn without_blanks_before(bytes: &[u8]) -> &[u8] {
    bytes.get(bytes.iter().take_while(|b| is_blank(**b)).count()..).unwrap_or_default()
}

fn without_blanks_behind(bytes: &[u8]) -> &[u8] {
    let blanks = bytes.iter().rev().take_while(|b| is_blank(**b)).count();
    bytes.get(..bytes.len().saturating_sub(blanks)).unwrap_or_default()
}

/// Why an argument is refused; all permanent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// Not `FROM:` or `TO:`, or an unclosed bracket or quote.
    Form,
    /// The path is longer than [`PATH_LEN_MAX`].
    TooLong,
    /// No mailbox as RFC 5321 §4.1.2 writes one.
    Mailbox,
    /// A parameter nobody offered.
    Parameter,
    /// An offered parameter with a value that makes no sense.
    Value,
}

/// Takes the path behind `keyword` (`FROM` or `TO`) and a colon; gives the address, empty for `<>`, and the parameters.
///
/// # Errors
/// [`Syntax`], all permanent.
pub fn path<'a>(argument: &'a [u8], keyword: &str) -> Result<(Address, &'a [u8]), Syntax> {
    let (word, rest) = argument.split_at_checked(keyword.len()).ok_or(Syntax::Form)?;
    let rest = rest.strip_prefix(b":").filter(|_| word.eq_ignore_ascii_case(keyword.as_bytes())).ok_or(Syntax::Form)?;
    let rest = without_blanks_before(rest);
    let (inner, parameters) = match rest.strip_prefix(b"<") {
        Some(open) => {
            let close = unquoted_position(open, b'>').ok_or(Syntax::Form)?;
            let (inner, behind) = open.split_at_checked(close).ok_or(Syntax::Form)?;
            (inner, behind.get(1..).unwrap_or_default())
        }
        None if rest.is_empty() => return Err(Syntax::Form),
        None => rest.split_at(unquoted_position(rest, b' ').unwrap_or(rest.len())),
    };
    if !parameters.is_empty() && !parameters.starts_with(b" ") {
        return Err(Syntax::Form);
    }
    if inner.len() > PATH_LEN_MAX {
        return Err(Syntax::TooLong);
    }
    let address = if inner.is_empty() { Address::null() } else { mailbox(without_route(inner)?)? };
    Ok((address, without_blanks_before(without_blanks_behind(parameters))))
}

/// The first `wanted` outside of quotes.
fn unquoted_position(bytes: &[u8], wanted: u8) -> Option<usize> {
    let (mut in_quotes, mut escaped) = (false, false);
    bytes.iter().position(|&b| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        escaped = in_quotes && b == b'\\';
        in_quotes ^= b == b'"';
        b == wanted && !in_quotes
    })
}

/// `@a,@b:user@host` → `user@host`: a source route MUST be accepted and SHOULD be ignored (RFC 5321 §4.1.1.3, Appendix C).
fn without_route(path: &[u8]) -> Result<&[u8], Syntax> {
    if !path.starts_with(b"@") {
        return Ok(path);
    }
    let mut in_literal = false;
    let is_end = |b: &u8| {
        in_literal = *b == b'[' || (in_literal && *b != b']');
        *b == b':' && !in_literal
    };
    let colon = path.iter().position(is_end).ok_or(Syntax::Mailbox)?;
    let (route, rest) = path.split_at_checked(colon).ok_or(Syntax::Mailbox)?;
    for hop in route.split(|b| *b == b',') {
        let host = hop.strip_prefix(b"@").ok_or(Syntax::Mailbox)?;
        Domain::new(host).map_err(|_| Syntax::Mailbox)?;
    }
    rest.get(1..).filter(|rest| !rest.is_empty()).ok_or(Syntax::Mailbox)
}

/// A mailbox, or a local part alone.
fn mailbox(bytes: &[u8]) -> Result<Address, Syntax> {
    // qmail's envelope sender of double bounces has a domain that no RFC knows (qmail-family §3.3).
    if bytes == b"#@[]" {
        return Address::new(bytes).map_err(|_| Syntax::Mailbox);
    }
    if !bytes.is_ascii() && std::str::from_utf8(bytes).is_err() {
        return Err(Syntax::Mailbox);
    }
    let (local, rest) = match bytes.strip_prefix(b"\"") {
        Some(quoted) => quoted_local(quoted)?,
        None => dot_local(bytes)?,
    };
    let address = match rest.strip_prefix(b"@") {
        Some(host) => Address::join(&local, domain(host)?),
        None if rest.is_empty() => Address::new(&local),
        None => return Err(Syntax::Mailbox),
    };
    address.map_err(|_| Syntax::Mailbox)
}

/// Quoted-string (RFC 5321 §4.1.2) behind its first quote: its content, unescaped, and what follows it.
fn quoted_local(bytes: &[u8]) -> Result<(Vec<u8>, &[u8]), Syntax> {
    let mut local = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&b, after)) = rest.split_first() {
        rest = after;
        let b = match b {
            b'"' => return Ok((local, rest)),
            b'\\' => {
                let (&escaped, after) = rest.split_first().ok_or(Syntax::Mailbox)?;
                rest = after;
                escaped
            }
            b => b,
        };
        if b.is_ascii_control() {
            return Err(Syntax::Mailbox);
        }
        local.push(b);
    }
    Err(Syntax::Mailbox)
}

/// Dot-string, with dots anywhere (addresses like `a..b@` and `a.@` exist), and what follows it.
fn dot_local(bytes: &[u8]) -> Result<(Vec<u8>, &[u8]), Syntax> {
    let (local, rest) = bytes.split_at(bytes.iter().position(|b| *b == b'@').unwrap_or(bytes.len()));
    if local.is_empty() || !local.iter().all(|b| is_atext(*b) || *b == b'.') {
        return Err(Syntax::Mailbox);
    }
    Ok((local.to_vec(), rest))
}

/// A host name without its final dot, or an address literal (RFC 5321 §4.1.3).
fn domain(host: &[u8]) -> Result<&[u8], Syntax> {
    Domain::new(host).map_err(|_| Syntax::Mailbox)?;
    if host.starts_with(b"[") {
        literal(host).ok_or(Syntax::Mailbox)?;
    }
    Ok(host.strip_suffix(b".").unwrap_or(host))
}

/// The address of a literal `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
#[must_use]
pub fn literal(host: &[u8]) -> Option<std::net::IpAddr> {
    let inner = std::str::from_utf8(host.strip_prefix(b"[")?.strip_suffix(b"]")?).ok()?;
    match inner.split_at_checked(5) {
        Some((tag, ip)) if tag.eq_ignore_ascii_case("ipv6:") => ip.parse::<Ipv6Addr>().ok().map(Into::into),
        _ => inner.parse::<Ipv4Addr>().ok().map(Into::into),
    }
}

/// What was offered to this client beside that which everybody may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offered {
    pub verp: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 4865.
    pub hold: bool,
    /// REQUIRETLS (RFC 8689).
    pub requiretls: bool,
    /// RFC 2852.
    pub deliver_by: bool,
    /// RFC 6710.
    pub priority: bool,
}

/// When a message may be delivered (RFC 4865).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// HOLDFOR: so many seconds from now.
    For(u64),
    /// HOLDUNTIL, UNIX seconds.
    Until(u64),
}

/// The parameters of MAIL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MailParameters {
    /// SIZE= (RFC 1870); a number too large for 64 bits reads as the largest.
    pub size: u64,
    /// BODY=8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// SMTPUTF8 (RFC 6531).
    pub utf8: bool,
    /// XVERP[=chars]: what stands between the sender's local part and the recipient; `-` if the client names nothing.
    pub verp: Option<u8>,
    /// RET= and ENVID= (RFC 3461).
    pub ret: Option<Ret>,
    pub envid: Option<Envid>,
    /// HOLDFOR= or HOLDUNTIL= (RFC 4865).
    pub hold: Option<Hold>,
    /// REQUIRETLS (RFC 8689).
    pub requiretls: bool,
    /// BY= (RFC 2852).
    pub by: Option<By>,
    /// MT-PRIORITY= (RFC 6710).
    pub priority: Option<Priority>,
}

impl MailParameters {
    /// # Errors
    /// [`Syntax::Parameter`] for a parameter that is not offered, [`Syntax::Value`]; also for one that stands twice, since nobody
    /// knows which of them the next reader would believe.
    pub fn parse(parameters: &[u8], offered: Offered) -> Result<Self, Syntax> {
        let mut all = Self::default();
        let mut names = Vec::new();
        for parameter in parameters.split(|b| *b == b' ').filter(|p| !p.is_empty()) {
            let mut halves = parameter.splitn(2, |b| *b == b'=');
            let (name, value) = (halves.next().unwrap_or_default().to_ascii_uppercase(), halves.next());
            match (&name[..], value) {
                (b"SIZE", Some(digits)) => all.size = number(digits).ok_or(Syntax::Value)?,
                (b"BODY", Some(body)) if body.eq_ignore_ascii_case(b"7BIT") => {}
                (b"BODY", Some(body)) if body.eq_ignore_ascii_case(b"8BITMIME") => all.eight_bit = true,
                (b"SMTPUTF8", None) => all.utf8 = true,
                (b"REQUIRETLS", None) if offered.requiretls => all.requiretls = true,
                (b"BY", Some(by)) if offered.deliver_by => all.by = Some(By::parse(by).ok_or(Syntax::Value)?),
                (b"MT-PRIORITY", Some(number)) if offered.priority => {
                    all.priority = Some(Priority::parse(number).ok_or(Syntax::Value)?);
                }
                (b"XVERP", None) if offered.verp => all.verp = Some(b'-'),
                (b"XVERP", Some(chars)) if offered.verp => all.verp = Some(verp_delimiter(chars)?),
                (b"RET", Some(ret)) if offered.dsn => all.ret = Some(Ret::parse(ret).ok_or(Syntax::Value)?),
                (b"ENVID", Some(envid)) if offered.dsn => all.envid = Some(Envid::new(envid).ok_or(Syntax::Value)?),
                (b"HOLDFOR" | b"HOLDUNTIL", Some(_)) if offered.hold && all.hold.is_some() => return Err(Syntax::Value),
                (b"HOLDFOR", Some(seconds)) if offered.hold => all.hold = Some(Hold::For(hold_for(seconds)?)),
                (b"HOLDUNTIL", Some(date)) if offered.hold => {
                    all.hold = Some(Hold::Until(Civil::unix_of_rfc3339(date).ok_or(Syntax::Value)?));
                }
                // Whom it names is nobody's concern here, and clients that always send it lose nothing (RFC 4954 §5).
                (b"AUTH", Some(mailbox)) if is_xtext(mailbox) => {}
                (b"SIZE" | b"BODY" | b"SMTPUTF8" | b"AUTH", _) => return Err(Syntax::Value),
                _ => return Err(Syntax::Parameter),
            }
            if names.contains(&name) {
                return Err(Syntax::Value);
            }
            names.push(name);
        }
        Ok(all)
    }
}

/// The parameters of RCPT.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RcptParameters {
    /// NOTIFY= and ORCPT= (RFC 3461).
    pub notify: Option<Notify>,
    pub orcpt: Option<Orcpt>,
}

impl RcptParameters {
    /// # Errors
    /// As [`MailParameters::parse`].
    pub fn parse(parameters: &[u8], offered: Offered) -> Result<Self, Syntax> {
        let mut all = Self::default();
        for parameter in parameters.split(|b| *b == b' ').filter(|p| !p.is_empty()) {
            let mut halves = parameter.splitn(2, |b| *b == b'=');
            let (name, value) = (halves.next().unwrap_or_default().to_ascii_uppercase(), halves.next());
            match (&name[..], value) {
                (b"NOTIFY" | b"ORCPT", _) if !offered.dsn => return Err(Syntax::Parameter),
                (b"NOTIFY", Some(list)) if all.notify.is_none() => all.notify = Some(Notify::parse(list).ok_or(Syntax::Value)?),
                (b"ORCPT", Some(orcpt)) if all.orcpt.is_none() => all.orcpt = Some(Orcpt::new(orcpt).ok_or(Syntax::Value)?),
                (b"NOTIFY" | b"ORCPT", _) => return Err(Syntax::Value),
                _ => return Err(Syntax::Parameter),
            }
        }
        Ok(all)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.notify.is_none() && self.orcpt.is_none()
    }
}

/// One to nine digits that are not all zero (RFC 4865 §5).
fn hold_for(digits: &[u8]) -> Result<u64, Syntax> {
    number(digits).filter(|seconds| digits.len() <= 9 && *seconds > 0).ok_or(Syntax::Value)
}

/// The first of the two delimiters. The second replaces the recipient's `@` and is always qmail's `=`: `list-` + `user=host`.
fn verp_delimiter(chars: &[u8]) -> Result<u8, Syntax> {
    match chars {
        [first, b'='] if first.is_ascii_punctuation() && is_atext(*first) => Ok(*first),
        _ => Err(Syntax::Value),
    }
}

/// xtext (RFC 3461 §4) of at least one character: printable ASCII without `=`, `+` followed by two upper-case hexadecimal digits.
fn is_xtext(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some((&b, behind)) = rest.split_first() {
        rest = match (b, behind) {
            (b'+', [b'0'..=b'9' | b'A'..=b'F', b'0'..=b'9' | b'A'..=b'F', after @ ..]) => after,
            (b'+' | b'=', _) => return false,
            (b'!'..=b'~', _) => behind,
            _ => return false,
        };
    }
    !text.is_empty()
}

/// Digits as a number; more than 64 bits hold read as the largest, so that a bound can refuse them.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0u64, |n, digit| n.saturating_mul(10).saturating_add(u64::from(digit.wrapping_sub(b'0')))))
}

/// `BDAT size [LAST]`: the number of bytes that follow, and whether they end the message (RFC 3030 §2).
///
/// `None` when no size can be read or 64 bits do not hold it: then nobody knows where the next command starts.
#[must_use]
pub fn bdat(argument: &[u8]) -> Option<(u64, bool)> {
    let mut words = argument.split(|b| *b == b' ').filter(|word| !word.is_empty());
    let size = number(words.next()?).filter(|n| *n != u64::MAX)?;
    match (words.next(), words.next()) {
        (None, _) => Some((size, false)),
        (Some(last), None) if last.eq_ignore_ascii_case(b"LAST") => Some((size, true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_what_stands_before_the_first_blank() {
        assert_eq!(Command::parse(b"mAiL  FROM:<a@b> "), Command::Mail(b"FROM:<a@b>"));
        assert_eq!(Command::parse(b"MAILFROM:<a@b>"), Command::Unknown);
        assert_eq!(Command::parse(b"quit now"), Command::Quit);
        assert_eq!(Command::parse(b""), Command::Unknown);
        assert_eq!(Command::parse(b"DATA\0"), Command::Unknown);
        assert_eq!(Command::parse(b"DATA \t "), Command::Data(b""));
        for odd in [&b" QUIT"[..], b"\tQUIT", b"QUIT\r", b"QUIT\x0b", b"MAIL\tFROM:<a@b>"] {
            assert_eq!(Command::parse(odd), Command::Unknown, "{}", odd.escape_ascii());
        }
    }

    #[test]
    fn paths_that_are_accepted() {
        for (argument, address, parameters) in [
            ("FROM:<a@b.c>", "a@b.c", ""),
            ("from: <a@b.c> SIZE=1  X", "a@b.c", "SIZE=1  X"),
            ("FROM:a@b.c SIZE=1", "a@b.c", "SIZE=1"),
            ("FROM:<>", "", ""),
            ("FROM:<> BODY=8BITMIME", "", "BODY=8BITMIME"),
            ("FROM:<Postmaster>", "Postmaster", ""),
            ("FROM:<@x.y,@z:a@b>", "a@b", ""),
            ("FROM:<@[192.0.2.1],@[IPv6:2001:db8::1]:a@[IPv6:::1]>", "a@[IPv6:::1]", ""),
            ("FROM:<\"a b\"@c>", "a b@c", ""),
            ("FROM:<\"a\\\"> b@\\\\\"@c> X", "a\"> b@\\@c", "X"),
            ("FROM:<a..b.@c.>", "a..b.@c", ""),
            ("FROM:<a@[192.0.2.1]>", "a@[192.0.2.1]", ""),
            ("FROM:<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]", ""),
            ("FROM:<#@[]>", "#@[]", ""),
            ("FROM:<jürgen@exämple.org>", "jürgen@exämple.org", ""),
            ("FROM:<a!b%c+d=e/f@host_name>", "a!b%c+d=e/f@host_name", ""),
        ] {
            let (got, rest) = path(argument.as_bytes(), "FROM").unwrap_or_else(|e| panic!("{argument}: {e:?}"));
            assert_eq!((got.as_bytes(), rest), (address.as_bytes(), parameters.as_bytes()), "{argument}");
        }
    }

    #[test]
    fn paths_that_are_refused() {
        for (argument, why) in [
            (&b""[..], Syntax::Form),
            (b"FROM", Syntax::Form),
            (b"TO:<a@b>", Syntax::Form),
            (b"FROM:", Syntax::Form),
            (b"FROM:<a@b", Syntax::Form),
            (b"FROM:<a@b>SIZE=1", Syntax::Form),
            (b"FROM:<\"a>", Syntax::Form),
            (b"FROM:<a b@c>", Syntax::Mailbox),
            (b"FROM:<a<b@c>", Syntax::Mailbox),
            (b"FROM:<@c>", Syntax::Mailbox),
            (b"FROM:<@c:>", Syntax::Mailbox),
            (b"FROM:<@[::1]>", Syntax::Mailbox),
            (b"FROM:<@[:a@b>", Syntax::Mailbox),
            (b"FROM:\r<a@b>", Syntax::Mailbox),
            (b"FROM:<a@b>\r", Syntax::Form),
            (b"FROM:<a@>", Syntax::Mailbox),
            (b"FROM:<a@b..c>", Syntax::Mailbox),
            (b"FROM:<a@b@c>", Syntax::Mailbox),
            (b"FROM:<a@b/c>", Syntax::Mailbox),
            (b"FROM:<a@[300.1.1.1]>", Syntax::Mailbox),
            (b"FROM:<a@[]>", Syntax::Mailbox),
            (b"FROM:<a@[x:y]>", Syntax::Mailbox),
            (b"FROM:<\"a\\", Syntax::Form),
            (b"FROM:<\"a\x01b\"@c>", Syntax::Mailbox),
            (b"FROM:<\"a\"b@c>", Syntax::Mailbox),
            (b"FROM:<a\xff@c>", Syntax::Mailbox),
        ] {
            assert_eq!(path(argument, "FROM").unwrap_err(), why, "{}", argument.escape_ascii());
        }
        let local_of = |len: usize| [b"FROM:<", "a".repeat(len).as_bytes(), b"@b>"].concat();
        assert!(path(&local_of(PATH_LEN_MAX - 2), "FROM").is_ok());
        assert_eq!(path(&local_of(PATH_LEN_MAX - 1), "FROM").unwrap_err(), Syntax::TooLong);
    }

    #[test]
    fn parameters_of_mail() {
        let offered = Offered { verp: true, ..Offered::default() };
        let parse = |text: &str| MailParameters::parse(text.as_bytes(), offered);
        assert_eq!(parse("").unwrap(), MailParameters::default());
        let all = MailParameters { size: 7, eight_bit: true, utf8: true, verp: Some(b'-'), ..MailParameters::default() };
        assert_eq!(parse("size=7 body=8bitmime SMTPUTF8 XVERP AUTH=<>").unwrap(), all);
        assert_eq!(parse("AUTH=e+3Dmc2@example.com").unwrap(), MailParameters::default());
        assert_eq!(parse("XVERP=+=").unwrap().verp, Some(b'+'));
        assert_eq!(parse("SIZE=99999999999999999999999").unwrap().size, u64::MAX);
        for bad in [
            "SIZE",
            "SIZE=",
            "SIZE=-1",
            "SIZE=0x1",
            "BODY=BINARYMIME",
            "BODY",
            "SMTPUTF8=1",
            "XVERP=",
            "XVERP=a=",
            "XVERP=@=",
            "XVERP=+-",
            "XVERP=+",
            "SIZE=1 SIZE=1",
            "SMTPUTF8 smtputf8",
            "BODY=7BIT SIZE=1 BODY=8BITMIME",
            "AUTH=<> AUTH=<>",
            "AUTH",
            "AUTH=",
            "AUTH=a=b",
            "AUTH=a+3d",
            "AUTH=a+3",
            "AUTH=\u{e9}",
        ] {
            assert_eq!(parse(bad).unwrap_err(), Syntax::Value, "{bad}");
        }
        for bad in ["RET=FULL", "=", "X"] {
            assert_eq!(parse(bad).unwrap_err(), Syntax::Parameter, "{bad}");
        }
        assert_eq!(MailParameters::parse(b"XVERP", Offered::default()).unwrap_err(), Syntax::Parameter);
    }

    #[test]
    fn parameters_of_reports_and_of_later_delivery() {
        let offered = Offered { dsn: true, hold: true, ..Offered::default() };
        let parse = |text: &str| MailParameters::parse(text.as_bytes(), offered);
        let all = parse("ret=hdrs ENVID=a+20b HOLDFOR=60").unwrap();
        assert_eq!((all.ret, all.envid.unwrap().decoded(), all.hold), (Some(Ret::Headers), b"a b".to_vec(), Some(Hold::For(60))));
        assert_eq!(parse("HOLDUNTIL=2026-11-23T08:05:09Z").unwrap().hold, Some(Hold::Until(1_795_421_109)));
        for bad in [
            "RET",
            "RET=",
            "RET=ALL",
            "RET=FULL RET=FULL",
            "ENVID=",
            "ENVID=a=b",
            "ENVID=+0A",
            "ENVID=a+2",
            "HOLDFOR=0",
            "HOLDFOR=",
            "HOLDFOR=1234567890",
            "HOLDFOR=-1",
            "HOLDFOR=1 HOLDUNTIL=2026-11-23T08:05:09Z",
            "HOLDUNTIL=2026-11-23",
            "HOLDFOR=1 HOLDFOR=1",
        ] {
            let wanted = if matches!(bad, "RET") { Syntax::Parameter } else { Syntax::Value };
            assert_eq!(parse(bad).unwrap_err(), wanted, "{bad}");
        }
        for not_offered in ["RET=FULL", "ENVID=a", "HOLDFOR=1", "HOLDUNTIL=2026-11-23T08:05:09Z"] {
            assert_eq!(MailParameters::parse(not_offered.as_bytes(), Offered::default()).unwrap_err(), Syntax::Parameter);
        }
        let parse = |text: &str| RcptParameters::parse(text.as_bytes(), offered);
        assert!(parse("").unwrap().is_empty());
        let all = parse("NOTIFY=SUCCESS,delay orcpt=rfc822;a+2Bb@x").unwrap();
        assert_eq!(
            (all.notify.unwrap().text(), all.orcpt.unwrap().decoded()),
            ("SUCCESS,DELAY".to_owned(), b"rfc822;a+b@x".to_vec())
        );
        for (bad, why) in [
            ("NOTIFY", Syntax::Value),
            ("NOTIFY=", Syntax::Value),
            ("NOTIFY=NEVER,DELAY", Syntax::Value),
            ("ORCPT=a", Syntax::Value),
            ("NOTIFY=NEVER NOTIFY=NEVER", Syntax::Value),
            ("ORCPT=rfc822;a+0Db", Syntax::Value),
            ("SIZE=1", Syntax::Parameter),
            ("X", Syntax::Parameter),
        ] {
            assert_eq!(parse(bad).unwrap_err(), why, "{bad}");
        }
        assert_eq!(RcptParameters::parse(b"NOTIFY=NEVER", Offered::default()).unwrap_err(), Syntax::Parameter);
    }

    #[test]
    fn sizes_of_bdat() {
        assert_eq!(bdat(b"0 LAST"), Some((0, true)));
        assert_eq!(bdat(b"18446744073709551614"), Some((u64::MAX - 1, false)));
        for bad in [&b""[..], b"LAST", b"18446744073709551615", b"99999999999999999999999", b"1 last x", b"1 FIRST", b"-1", b"1x"]
        {
            assert_eq!(bdat(bad), None, "{}", bad.escape_ascii());
        }
    }
}
