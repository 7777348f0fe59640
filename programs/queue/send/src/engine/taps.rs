//! Copies for an archive (`control/taps`): one recipient more of a message, accepted with it or not at all.
//!
//! The archive is nobody's recipient: no report names it, whether it takes the copy or not, and what fails there is told to the
//! administrator by an alert. A copy that a delivery forwards is not archived again ([`FLAG_ARCHIVED`]).

use ipc::options::{Options, RecipientOptions};
use ipc::queue::FLAG_ARCHIVED;
use spool::{Change, Log as Spool};
use wire::Address;
use wire::dsn::Notify;

use super::Engine;

impl<S: Spool> Engine<S> {
    /// Adds the archive's recipient to a message that is to be accepted.
    pub(super) fn tap(&mut self, sender: &Address, recipients: &mut Vec<Address>, flags: &mut u32, options: &mut Options) {
        if *flags & FLAG_ARCHIVED != 0 {
            return;
        }
        let Some(archive) = self.settings.archive(sender, recipients) else { return };
        *flags |= FLAG_ARCHIVED;
        let is_archive = |recipient: &Address| recipient.as_bytes().eq_ignore_ascii_case(archive.as_bytes());
        let Ok(recipient) = u32::try_from(recipients.len()) else { return };
        if !recipients.iter().any(is_archive) {
            recipients.push(archive);
            options.recipients.push(RecipientOptions { recipient, notify: Some(Notify::NEVER), orcpt: None });
        }
    }

    /// A recipient failed for good. Of a copy for the archive nobody else would hear.
    pub(super) fn fail(&mut self, message: u64, recipient: u32, text: &[u8]) -> Option<Change> {
        let active = self.active.get_mut(&message)?;
        if active.envelope.flags & FLAG_ARCHIVED != 0
            && let Some(address) = active.envelope.recipients.get(recipient as usize)
            && self.settings.is_archive(address)
        {
            let why = String::from_utf8_lossy(text.trim_ascii_end());
            self.log.alert(&format!("msg {message} is not archived at {address}: {why}"));
        }
        active.refused(recipient, text)
    }
}
