//! What a client may ask for of reports and of the transfer: DSN, DELIVERBY (RFC 2852) and MT-PRIORITY (RFC 6710).
//!
//! A stranger's sender may be anybody, so what makes reports to the sender is for those who may send anywhere, unless the configuration
//! says otherwise; and a stranger gets ahead of nobody: he may only ask for less than the usual priority.

use super::exchange::{Action, Actions, DsnOffer};
use super::submission::hold_until;
use super::{Session, replies};
use crate::command::Hold;
use wire::{By, DeliverBy, Priority};

/// What holds for the transfer of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferRules {
    /// The least time in seconds that BY=…;R may leave; `None`: DELIVERBY is not offered. Offered to whom DSN is offered.
    pub deliver_by_min_s: Option<u64>,
    pub priority: PriorityOffer,
}

impl Default for TransferRules {
    fn default() -> Self {
        Self { deliver_by_min_s: Some(0), priority: PriorityOffer::Relaying }
    }
}

/// To whom MT-PRIORITY is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PriorityOffer {
    Nobody,
    /// To clients that may send anywhere.
    #[default]
    Relaying,
    /// Strangers' priorities above the usual one are lowered to it.
    Everybody,
}

impl Session {
    /// Where nothing goes before a login, what a login brings is announced before it: few clients ask again.
    fn is_trusted_here(&self) -> bool {
        self.is_relay_client() || self.peer.is_submission
    }

    pub(super) fn offers_reports(&self) -> bool {
        match self.config.dsn {
            DsnOffer::Nobody => false,
            DsnOffer::Relaying => self.is_trusted_here(),
            DsnOffer::Everybody => true,
        }
    }

    pub(super) fn offers_deliver_by(&self) -> bool {
        self.config.transfer.deliver_by_min_s.is_some() && self.offers_reports()
    }

    pub(super) fn offers_priority(&self) -> bool {
        // Whoever queues for another program cannot tell it.
        self.config.dsn != DsnOffer::Nobody
            && match self.config.transfer.priority {
                PriorityOffer::Nobody => false,
                PriorityOffer::Relaying => self.is_trusted_here(),
                PriorityOffer::Everybody => true,
            }
    }

    /// `DELIVERBY min-by-time` (RFC 2852 §4).
    pub(super) fn deliver_by_keyword(&self) -> String {
        match self.config.transfer.deliver_by_min_s {
            Some(min_s) if min_s > 0 => format!("DELIVERBY {min_s}"),
            _ => "DELIVERBY".to_owned(),
        }
    }

    /// Why BY= is refused: less time than offered, or a message that would be held beyond it (RFC 4865 §5).
    pub(super) fn deliver_by_refusal(&self, by: By, hold: Option<Hold>) -> Option<&'static str> {
        let now_s = self.now.unix_s;
        let min_s = i64::try_from(self.config.transfer.deliver_by_min_s.unwrap_or(0)).unwrap_or(i64::MAX);
        let held_s = hold.and_then(|hold| hold_until(hold, now_s)).unwrap_or(0);
        match () {
            () if by.returns && by.seconds < min_s => Some(replies::DELIVER_BY_TOO_SOON),
            () if held_s > now_s && held_s >= DeliverBy::new(by, now_s).at_s => Some(replies::DELIVER_BY_HELD),
            () => None,
        }
    }

    /// A priority as this client may have it.
    pub(super) fn allowed(&self, asked: Option<Priority>) -> Option<Priority> {
        asked.map(|priority| if self.is_relay_client() { priority } else { priority.min(Priority::NORMAL) })
    }

    /// The header that goes on. Its MT-Priority field says what MAIL could not (RFC 6758 §4): it counts if MAIL said nothing and it is
    /// the only one, and does not go on.
    pub(super) fn header_accepted(&self, header: Vec<u8>, named: Option<Priority>, out: &mut Actions) {
        if !self.offers_priority() {
            return out.body(header);
        }
        let (header, values) = without_priority(header);
        if let ([value], None) = (&values[..], named)
            && let Some(priority) = self.allowed(Priority::parse(value.trim_ascii()))
        {
            out.push(Action::Priority(priority));
        }
        out.body(header);
    }
}

const FIELD: &[u8] = b"mt-priority";

/// A header without its MT-Priority fields, and their values.
fn without_priority(header: Vec<u8>) -> (Vec<u8>, Vec<Vec<u8>>) {
    let is_field = |line: &[u8]| {
        let (name, rest) = line.split_at_checked(FIELD.len()).unwrap_or_default();
        name.eq_ignore_ascii_case(FIELD) && rest.trim_ascii_start().starts_with(b":")
    };
    if !header.split(|b| *b == b'\n').any(is_field) {
        return (header, Vec::new());
    }
    let (mut kept, mut values, mut is_inside) = (Vec::with_capacity(header.len()), Vec::<Vec<u8>>::new(), false);
    for line in header.split_inclusive(|b| *b == b'\n') {
        let is_folded = line.starts_with(b" ") || line.starts_with(b"\t");
        match (is_folded && is_inside, is_field(line)) {
            (true, _) => values.last_mut().into_iter().for_each(|value| value.extend_from_slice(line.trim_ascii())),
            (false, true) => {
                let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
                values.push(line.get(colon.saturating_add(1)..).unwrap_or_default().trim_ascii().to_vec());
            }
            (false, false) => kept.extend_from_slice(line),
        }
        is_inside = is_field(line) || is_folded && is_inside;
    }
    (kept, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_fields_are_taken_out() {
        for (header, kept, values) in [
            ("Subject: x\n", "Subject: x\n", &[][..]),
            ("MT-Priority: 3\nSubject: x\n", "Subject: x\n", &["3"]),
            ("Subject: x\nmt-priority :\n -4\nTo: y\n z\n", "Subject: x\nTo: y\n z\n", &["-4"]),
            ("MT-Priority: 3\nMT-Priority: 4\n", "", &["3", "4"]),
            ("X-MT-Priority: 3\nMT-PriorityX: 3\n", "X-MT-Priority: 3\nMT-PriorityX: 3\n", &[]),
            ("Subject: x\n MT-Priority: 3\n", "Subject: x\n MT-Priority: 3\n", &[]),
            ("", "", &[]),
        ] {
            let (found, said) = without_priority(header.as_bytes().to_vec());
            assert_eq!(found, kept.as_bytes(), "{header:?}");
            assert_eq!(said, values.iter().map(|value| value.as_bytes().to_vec()).collect::<Vec<_>>(), "{header:?}");
        }
    }
}
