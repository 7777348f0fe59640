//! What the header lacks: the envelope sender, Date, Message-ID, From, a visible recipient field, Mail-Followup-To.

use wire::civil::Civil;

use super::addrlist::{LINE_LEN_MAX, rewrite_field};
use super::fields::Known;
use super::{InjectError, Work};
use crate::rfc822::{Kind, Token, unparse};
use wire::quote;

impl Work<'_> {
    /// The envelope sender: `-f`, Return-Path, or made of user and host.
    pub(super) fn take_sender(&mut self) -> Result<Vec<u8>, InjectError> {
        if let Some(sender) = self.sender.take() {
            return Ok(sender);
        }
        let options = self.options;
        let mut user = options.sender_user.clone().unwrap_or_else(|| options.user.clone());
        if options.letters.per_message {
            user.extend_from_slice(format!("-{}.{}", options.now_s, options.pid).as_bytes());
        }
        if options.letters.verp {
            user.push(b'-');
        }
        let host = options.sender_host.as_ref().or(options.host.as_ref());
        let mut tokens = vec![Token::text(Kind::Atom, &b"Return-Path"[..]), Token::special(Kind::Colon)];
        tokens.push(Token::text(Kind::Quote, user));
        tokens.extend(host_tokens(host));
        let text = unparse(&tokens, LINE_LEN_MAX);
        let (_, found) = self.rewrite(&text)?;
        self.take_return_path(found);
        Ok(self.sender.take().unwrap_or_default())
    }

    /// The fields that stand before all others, in order.
    pub(super) fn added_fields(&self) -> Result<Vec<u8>, InjectError> {
        if self.seen.is_resent() {
            return self.added(
                b"Resent-",
                [Known::ResentDate, Known::ResentMessageId, Known::ResentFrom, Known::ResentTo, Known::ResentCc],
            );
        }
        let mut out = self.added(b"", [Known::Date, Known::MessageId, Known::From, Known::To, Known::Cc])?;
        out.extend(self.mail_followup_to());
        Ok(out)
    }

    fn added(&self, prefix: &[u8], [date, message_id, from, to, cc]: [Known; 5]) -> Result<Vec<u8>, InjectError> {
        let mut out = Vec::new();
        let mut add = |text: &[u8]| {
            out.extend_from_slice(prefix);
            out.extend_from_slice(text);
        };
        if !self.seen.has(date) {
            add(format!("Date: {}\n", Civil::from_unix(self.options.now_s).rfc5322()).as_bytes());
        }
        if !self.seen.has(message_id) {
            add(&self.message_id());
        }
        if !self.seen.has(from) {
            add(&self.from()?);
        }
        if !self.seen.has(to) && !self.seen.has(cc) {
            add(b"Cc: recipient list not shown: ;\n");
        }
        Ok(out)
    }

    /// `Message-ID: <YYYYMMDDhhmmss.PID.qmail@IDHOST>`
    fn message_id(&self) -> Vec<u8> {
        let Civil { year, month, day, hour, minute, second, .. } = Civil::from_unix(self.options.now_s);
        let id = format!("{year}{month:02}{day:02}{hour:02}{minute:02}{second:02}.{}", self.options.pid);
        let host: Vec<u8> = self.options.id_host.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n' | 0)).collect();
        [b"Message-ID: <", id.as_bytes(), b".qmail@", &host, b">\n"].concat()
    }

    /// `From: "Full Name" <user@host>`, or `From: user@host (Full Name)`.
    fn from(&self) -> Result<Vec<u8>, InjectError> {
        let options = self.options;
        let name = options.full_name.as_deref();
        let (phrase, comment) = if options.letters.name_as_comment { (None, name) } else { (name, None) };
        let mut tokens = vec![Token::text(Kind::Atom, &b"From"[..]), Token::special(Kind::Colon)];
        if let Some(phrase) = phrase {
            tokens.extend([Token::text(Kind::Quote, phrase), Token::special(Kind::Left)]);
        }
        let kind = if quote::is_needed(&options.user) { Kind::Quote } else { Kind::Atom };
        tokens.push(Token::text(kind, options.user.as_slice()));
        tokens.extend(host_tokens(options.host.as_ref()));
        if phrase.is_some() {
            tokens.push(Token::special(Kind::Right));
        }
        tokens.extend(comment.map(|comment| Token::text(Kind::Comment, comment)));
        Ok(self.rewrite(&unparse(&tokens, LINE_LEN_MAX))?.0)
    }

    /// Written and read again, since a host from the environment is text: it may hold dots and worse.
    fn rewrite(&self, text: &[u8]) -> Result<(Vec<u8>, Vec<Vec<u8>>), InjectError> {
        rewrite_field(text, self.qualifier).map_err(|_| InjectError::Line(text.to_vec()))
    }

    /// Names To and Cc if one of them is a list of the user's and the field is not there yet.
    fn mail_followup_to(&self) -> Vec<u8> {
        let lists = self.options.list_addresses.as_deref().unwrap_or_default();
        let is_list = |address: &Vec<u8>| lists.iter().any(|list| list.eq_ignore_ascii_case(address));
        if self.seen.has(Known::MailFollowupTo) || !self.to_cc.iter().any(is_list) {
            return Vec::new();
        }
        let addresses: Vec<Vec<u8>> = self.to_cc.iter().rev().map(|address| quote::address(address)).collect();
        [b"Mail-Followup-To: ", addresses.join(&b",\n  "[..]).as_slice(), b"\n"].concat()
    }
}

fn host_tokens(host: Option<&Vec<u8>>) -> impl Iterator<Item = Token<'_>> {
    host.into_iter().flat_map(|host| [Token::special(Kind::At), host_token(host)])
}

/// `[192.0.2.1]` is a domain literal: as an atom it would be written with backslashes, which no reader takes.
fn host_token(host: &[u8]) -> Token<'_> {
    match host.strip_prefix(b"[").and_then(|inner| inner.strip_suffix(b"]")) {
        Some(inner) => Token::text(Kind::Literal, inner),
        None => Token::text(Kind::Atom, host),
    }
}
