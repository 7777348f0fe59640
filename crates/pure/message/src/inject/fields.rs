//! The header fields that qmail-inject knows, and what each is for.

use crate::header::field_name;

/// A field with a meaning here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Sender,
    From,
    ReplyTo,
    To,
    Cc,
    Bcc,
    Date,
    MessageId,
    ResentSender,
    ResentFrom,
    ResentReplyTo,
    ResentTo,
    ResentCc,
    ResentBcc,
    ResentDate,
    ResentMessageId,
    ReturnReceiptTo,
    ErrorsTo,
    ApparentlyTo,
    ReturnPath,
    ContentLength,
    MailFollowupTo,
}

const NAMES: [(&[u8], Known); 22] = [
    (b"sender", Known::Sender),
    (b"from", Known::From),
    (b"reply-to", Known::ReplyTo),
    (b"to", Known::To),
    (b"cc", Known::Cc),
    (b"bcc", Known::Bcc),
    (b"date", Known::Date),
    (b"message-id", Known::MessageId),
    (b"resent-sender", Known::ResentSender),
    (b"resent-from", Known::ResentFrom),
    (b"resent-reply-to", Known::ResentReplyTo),
    (b"resent-to", Known::ResentTo),
    (b"resent-cc", Known::ResentCc),
    (b"resent-bcc", Known::ResentBcc),
    (b"resent-date", Known::ResentDate),
    (b"resent-message-id", Known::ResentMessageId),
    (b"return-receipt-to", Known::ReturnReceiptTo),
    (b"errors-to", Known::ErrorsTo),
    (b"apparently-to", Known::ApparentlyTo),
    (b"return-path", Known::ReturnPath),
    (b"content-length", Known::ContentLength),
    (b"mail-followup-to", Known::MailFollowupTo),
];

impl Known {
    /// By the name of a field; `None` for any other field.
    pub(super) fn of(raw: &[u8]) -> Option<Self> {
        let name = field_name(raw)?;
        NAMES.iter().find(|(lower, _)| name.eq_ignore_ascii_case(lower)).map(|(_, known)| *known)
    }

    /// Is it a list of recipients (then a field that cannot be read is left alone)?
    pub(super) fn is_recipient(self) -> bool {
        matches!(self, Self::To | Self::Cc | Self::Bcc | Self::ApparentlyTo | Self::ResentTo | Self::ResentCc | Self::ResentBcc)
    }

    /// Is it rewritten?
    pub(super) fn has_addresses(self) -> bool {
        self.is_recipient()
            || matches!(
                self,
                Self::Sender | Self::From | Self::ReplyTo | Self::ReturnReceiptTo | Self::ErrorsTo | Self::ReturnPath
            )
            || matches!(self, Self::ResentSender | Self::ResentFrom | Self::ResentReplyTo)
    }

    /// Is it left out of what is sent?
    pub(super) fn is_deleted(self) -> bool {
        matches!(self, Self::Bcc | Self::ResentBcc | Self::ReturnPath | Self::ContentLength)
    }
}

/// Which known fields the header holds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen(u32);

impl Seen {
    pub(super) fn insert(&mut self, known: Known) {
        self.0 |= 1 << (known as u32);
    }

    pub(super) fn has(self, known: Known) -> bool {
        self.0 & (1 << (known as u32)) != 0
    }

    /// Is this a resent message (RFC 5322 §3.6.6): does any Resent- field of the list stand in it?
    pub(super) fn is_resent(self) -> bool {
        use Known::{ResentBcc, ResentCc, ResentDate, ResentFrom, ResentMessageId, ResentReplyTo, ResentSender, ResentTo};
        [ResentSender, ResentFrom, ResentReplyTo, ResentTo, ResentCc, ResentBcc, ResentDate, ResentMessageId]
            .iter()
            .any(|known| self.has(*known))
    }
}
