//! What qmail-inject does to a header, as a pure function: the header as it came in, options and environment already resolved by the
//! program; out come the header to send, the envelope sender and the recipients (qmail-family §1.1, qmail-inject(8)).
//!
//! [`Splitter`] finds the end of the header in a stream, [`rewrite`] does the rest. Byte-exact with the classic program but for:
//! UTF-8 addresses are not quoted (RFC 6531); a NUL in an address is an error, not its end; `<>` with the letter `r` stays the null
//! sender; line ends inside quoted strings and comments are unfolded.
//! Used by qmail-inject and sendmail.

mod addrlist;
mod completion;
mod defaults;
mod fields;
mod qualify;
mod splitter;

use std::fmt;

use wire::{Address, AddressError};

pub use addrlist::{LINE_LEN_MAX, addresses};
pub use completion::Names;
pub use splitter::{HEADER_LEN_MAX, Splitter};

use crate::rfc822::{self, Unparsable};
use addrlist::{Unreadable, rewrite_field};
use fields::{Known, Seen};
use qualify::Qualifier;
use wire::quote;

/// The letters of QMAILINJECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Letters {
    /// `c`: the full name as a comment.
    pub name_as_comment: bool,
    /// `s`: ignore Return-Path fields.
    pub ignore_return_path: bool,
    /// `f`: delete From fields.
    pub delete_from: bool,
    /// `i`: delete Message-ID fields.
    pub delete_message_id: bool,
    /// `r`: a sender for each recipient (VERP).
    pub verp: bool,
    /// `m`: a sender for each message.
    pub per_message: bool,
}

impl Letters {
    /// From the variable's value; other letters mean nothing.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        let has = |letter| value.contains(&letter);
        Self {
            name_as_comment: has(b'c'),
            ignore_return_path: has(b's'),
            delete_from: has(b'f'),
            delete_message_id: has(b'i'),
            verp: has(b'r'),
            per_message: has(b'm'),
        }
    }
}

/// Where recipients come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecipientsFrom {
    /// `-A`: the arguments if there are any, otherwise the header.
    #[default]
    ArgumentsElseHeader,
    /// `-a`
    Arguments,
    /// `-h`
    Header,
    /// `-H`
    Both,
}

/// Everything the rewriting depends on besides the header.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub recipients_from: RecipientsFrom,
    /// Recipients given as arguments, unquoted.
    pub arguments: Vec<Vec<u8>>,
    /// `-f`, unquoted.
    pub sender: Option<Vec<u8>>,
    pub letters: Letters,
    /// QMAILUSER, MAILUSER, USER, LOGNAME or `anonymous`.
    pub user: Vec<u8>,
    /// QMAILHOST or MAILHOST.
    pub host: Option<Vec<u8>>,
    /// QMAILSUSER; `user` if not set.
    pub sender_user: Option<Vec<u8>>,
    /// QMAILSHOST; `host` if not set.
    pub sender_host: Option<Vec<u8>>,
    /// QMAILNAME, MAILNAME or NAME.
    pub full_name: Option<Vec<u8>>,
    pub default_domain: Vec<u8>,
    pub default_host: Vec<u8>,
    pub plus_domain: Vec<u8>,
    pub id_host: Vec<u8>,
    /// The addresses of the file that QMAILMFTFILE names; `None` if there is none.
    pub list_addresses: Option<Vec<Vec<u8>>>,
    pub now_s: u64,
    pub pid: u32,
}

/// The rewritten message head and its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// Without the empty line that ends it: [`Splitter::finish`] gives that with the body.
    pub header: Vec<u8>,
    pub sender: Address,
    /// In the order in which the classic program gives them: arguments, then each field's addresses from right to left.
    pub recipients: Vec<Address>,
}

impl Injection {
    /// The line that `-n` prints first.
    #[must_use]
    pub fn return_path_line(&self) -> Vec<u8> {
        [b"Return-Path: <", quote::address(self.sender.as_bytes()).as_slice(), b">\n"].concat()
    }
}

/// Why a message cannot be injected. All are permanent (exit 100).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InjectError {
    /// A sender field, `-f` or a control file's host name that cannot be read; the text.
    Line(Vec<u8>),
    /// An argument that cannot be read as an address.
    Argument(Vec<u8>),
    /// An address longer than an envelope may hold.
    AddressTooLong,
    /// A header longer than [`HEADER_LEN_MAX`].
    HeaderTooLong,
    /// More addresses in the header than [`ADDRESSES_MAX`].
    TooManyAddresses,
}

impl InjectError {
    /// Never: the same input fails again.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        false
    }
}

impl fmt::Display for InjectError {
    /// The text behind `qmail-inject: fatal: `, control bytes made visible but for the line ends of the header field.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(text) => {
                f.write_str("unable to parse this line:")?;
                let lines = text.strip_suffix(b"\n").unwrap_or(text).split(|b| *b == b'\n');
                lines.take(REPORTED_LINES_MAX).try_for_each(|line| write!(f, "\n{}", visible_part(line)))
            }
            Self::Argument(text) => write!(f, "unable to parse address: {}", visible_part(text)),
            Self::AddressTooLong => f.write_str("envelope address too long for qq (#5.1.3)"),
            Self::HeaderTooLong => f.write_str("header too long (#5.3.4)"),
            Self::TooManyAddresses => f.write_str("too many addresses in the header (#5.5.3)"),
        }
    }
}

impl std::error::Error for InjectError {}

/// Most addresses in all fields of a header together: an `a,` of two bytes becomes a whole address in several places, so the length of
/// the header alone does not bound memory.
pub const ADDRESSES_MAX: usize = 500_000;

/// As much of a bad field as is worth showing.
const REPORTED_LINES_MAX: usize = 50;
const REPORTED_LINE_LEN_MAX: usize = 1000;

/// TABs stay: they begin folded lines.
fn visible_part(line: &[u8]) -> String {
    let shown = line.get(..REPORTED_LINE_LEN_MAX).unwrap_or(line);
    shown.split(|b| *b == b'\t').map(wire::escape::visible).collect::<Vec<_>>().join("\t")
}

impl From<AddressError> for InjectError {
    fn from(error: AddressError) -> Self {
        match error {
            AddressError::TooLong => Self::AddressTooLong,
            AddressError::ControlByte | AddressError::Domain => Self::Argument(Vec::new()),
        }
    }
}

/// Rewrites a header whose fields [`Splitter`] found.
///
/// # Errors
/// [`InjectError`], all permanent.
pub fn rewrite(options: &Options, header: &[Vec<u8>]) -> Result<Injection, InjectError> {
    let texts = qualify::Texts::of(options);
    let qualifier = texts.qualifier()?;
    let mut work = Work::new(options, &qualifier);
    if let Some(sender) = &options.sender {
        work.sender = Some(work.argument(sender).map_err(|_| InjectError::Line(quote::address(sender)))?);
    }
    let from = match options.recipients_from {
        RecipientsFrom::ArgumentsElseHeader if options.arguments.is_empty() => RecipientsFrom::Header,
        RecipientsFrom::ArgumentsElseHeader => RecipientsFrom::Arguments,
        given => given,
    };
    let mut recipients = Vec::new();
    if from != RecipientsFrom::Header {
        for argument in &options.arguments {
            recipients.push(work.argument(argument).map_err(|_| InjectError::Argument(argument.clone()))?);
        }
    }
    for field in header {
        work.field(field)?;
    }
    let sender = work.take_sender()?;
    let mut out = work.added_fields()?;
    out.append(&mut work.saved);
    if from != RecipientsFrom::Arguments {
        if let Some(error) = work.lost {
            return Err(error);
        }
        recipients.append(if work.seen.is_resent() { &mut work.resent } else { &mut work.header });
    }
    let recipients = recipients.iter().map(|r| Address::new(r));
    Ok(Injection { header: out, sender: Address::new(&sender)?, recipients: recipients.collect::<Result<_, _>>()? })
}

/// The state of one rewriting.
struct Work<'a> {
    options: &'a Options,
    qualifier: &'a Qualifier<'a>,
    seen: Seen,
    /// The fields that stay, rewritten.
    saved: Vec<u8>,
    sender: Option<Vec<u8>>,
    /// Addresses of To, Cc, Bcc, Apparently-To.
    header: Vec<Vec<u8>>,
    /// Addresses of Resent-To, -Cc, -Bcc.
    resent: Vec<Vec<u8>>,
    /// Addresses of To and Cc, for Mail-Followup-To.
    to_cc: Vec<Vec<u8>>,
    address_count: usize,
    /// A recipient field whose recipients stay unknown: none of them may be left out without a word.
    lost: Option<InjectError>,
}

impl<'a> Work<'a> {
    fn new(options: &'a Options, qualifier: &'a Qualifier<'a>) -> Self {
        let seen = Seen::default();
        let (saved, header, resent, to_cc) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { options, qualifier, seen, saved, sender: None, header, resent, to_cc, address_count: 0, lost: None }
    }

    /// An address given outside the header: it is quoted, read and qualified like one inside.
    fn argument(&self, unquoted: &[u8]) -> Result<Vec<u8>, Unparsable> {
        if unquoted.contains(&0) {
            return Err(Unparsable::Nul);
        }
        let quoted = quote::address(unquoted);
        let mut tokens = rfc822::parse(&quoted)?;
        self.qualifier.qualify(&mut tokens);
        Ok(rfc822::unquote(&tokens))
    }

    /// One field of the header, folds included.
    fn field(&mut self, raw: &[u8]) -> Result<(), InjectError> {
        let Some(known) = Known::of(raw) else {
            self.saved.extend_from_slice(raw);
            return Ok(());
        };
        let letters = self.options.letters;
        if (known == Known::From && letters.delete_from)
            || (known == Known::MessageId && letters.delete_message_id)
            || (known == Known::ReturnPath && letters.ignore_return_path)
        {
            return Ok(());
        }
        self.seen.insert(known);
        let written = if known.has_addresses() { self.address_field(known, raw)? } else { None };
        if !known.is_deleted() {
            self.saved.extend_from_slice(written.as_deref().unwrap_or(raw));
        }
        Ok(())
    }

    /// A field of addresses, rewritten; `None` for a recipient field that cannot be read, which passes as it is.
    fn address_field(&mut self, known: Known, raw: &[u8]) -> Result<Option<Vec<u8>>, InjectError> {
        let (written, addresses) = match rewrite_field(raw, self.qualifier) {
            Ok((written, addresses)) => (Some(written), addresses),
            Err(Unreadable { reason, found }) if known.is_recipient() => {
                self.lost = self.lost.take().or_else(|| loss(reason, raw));
                (None, found)
            }
            Err(_) => return Err(InjectError::Line(raw.to_vec())),
        };
        self.address_count = self.address_count.saturating_add(addresses.len());
        if self.address_count > ADDRESSES_MAX {
            return Err(InjectError::TooManyAddresses);
        }
        self.take_addresses(known, addresses);
        Ok(written)
    }

    fn take_addresses(&mut self, known: Known, mut addresses: Vec<Vec<u8>>) {
        match known {
            Known::To | Known::Cc => {
                if self.options.list_addresses.is_some() {
                    self.to_cc.extend_from_slice(&addresses);
                }
                self.header.append(&mut addresses);
            }
            Known::Bcc | Known::ApparentlyTo => self.header.append(&mut addresses),
            Known::ResentTo | Known::ResentCc | Known::ResentBcc => self.resent.append(&mut addresses),
            Known::ReturnPath => self.take_return_path(addresses),
            _ => {}
        }
    }

    /// The first address (from the right) of the first Return-Path is the sender, unless `-f` gave one.
    fn take_return_path(&mut self, addresses: Vec<Vec<u8>>) {
        if let (None, Some(mut sender)) = (&self.sender, addresses.into_iter().next()) {
            if self.options.letters.verp && !sender.is_empty() {
                sender.extend_from_slice(crate::verp::SUFFIX);
            }
            self.sender = Some(sender);
        }
    }
}

/// What is wrong with a recipient field besides its form, which the classic program tolerates.
fn loss(reason: Unparsable, raw: &[u8]) -> Option<InjectError> {
    match reason {
        Unparsable::Form => None,
        Unparsable::Nul => Some(InjectError::Line(raw.to_vec())),
        Unparsable::TooLong => Some(InjectError::TooManyAddresses),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { default_host: b"h.example".to_vec(), default_domain: b"d.example".to_vec(), ..Options::default() }
    }

    fn fields(text: &[u8]) -> Vec<Vec<u8>> {
        let mut splitter = Splitter::default();
        splitter.feed(&mut &text[..]).unwrap();
        splitter.finish().0
    }

    #[test]
    fn everything_has_a_bound() {
        let line = ["To: ", &"a,".repeat(200_000), "\n"].concat();
        assert_eq!(rewrite(&options(), &fields(line.as_bytes())).unwrap().recipients.len(), 200_000);
        let whole = ["To: ", &"user@host.example,".repeat(150_000), "\n"].concat();
        assert_eq!(rewrite(&options(), &fields(whole.as_bytes())).unwrap().recipients.len(), 150_000);
        assert_eq!(rewrite(&options(), &fields(line.repeat(3).as_bytes())), Err(InjectError::TooManyAddresses));
        let mut splitter = Splitter::default();
        let chunk = b"X-A: b\n".repeat(10_000);
        let error = (0..1000).find_map(|_| splitter.feed(&mut chunk.as_slice()).err());
        assert_eq!(error, Some(InjectError::HeaderTooLong));
        let mut splitter = Splitter::default();
        assert_eq!(splitter.feed(&mut [b'x'; 999].as_slice()), Ok(true), "a body of one line is never collected");
        let long = format!("To: {}@b.c\n", "x".repeat(1000));
        assert_eq!(rewrite(&options(), &fields(long.as_bytes())), Err(InjectError::AddressTooLong));
    }

    #[test]
    fn a_field_whose_recipients_stay_unknown_is_no_message_to_nobody() {
        let long = ["To: ", &"a@b.c,".repeat(200_000), "\n"].concat();
        let from = |recipients_from| Options { recipients_from, arguments: vec![b"x@y.z".to_vec()], ..options() };
        for (line, error) in [
            (&long[..], InjectError::TooManyAddresses),
            ("To: a@b.c, d\0@e.f\n", InjectError::Line(b"To: a@b.c, d\0@e.f\n".to_vec())),
        ] {
            assert_eq!(rewrite(&from(RecipientsFrom::Both), &fields(line.as_bytes())), Err(error));
            let done = rewrite(&from(RecipientsFrom::Arguments), &fields(line.as_bytes())).unwrap();
            assert!(done.recipients.len() == 1 && done.header.ends_with(line.as_bytes()));
        }
    }

    #[test]
    fn errors_show_no_control_byte() {
        let error = rewrite(&options(), &fields(b"From: (\x1b[0m\n\t\x07\n")).unwrap_err();
        assert_eq!(error.to_string(), "unable to parse this line:\nFrom: (\\x1b[0m\n\t\\x07");
        let nul = Options { arguments: vec![b"a\0b".to_vec()], ..options() };
        assert_eq!(rewrite(&nul, &[]).unwrap_err().to_string(), "unable to parse address: a\\x00b");
    }
}
