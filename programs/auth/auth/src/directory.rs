//! The directory: whose an address is, whether there is somebody, and where a virtual recipient goes. What only the recipient's own files
//! can say is asked of qmail-lspawn, whose answers for logins come through here as well.

use crate::recipients::{Asker, Key, Look};
use crate::rows::{OverQuota, delivery_settings};
use crate::server::{LspawnWaiter, Server};
use accounts::{Directory as _, Resolution, UserName};
use control::Routed;
use ipc::Message as _;
use ipc::auth::{Answer, Directory as Verdict, Target};
use ipc::lspawn::Existence;
use std::os::fd::OwnedFd;
use std::time::Duration;
use wire::{Address, Domain};

/// Aliases that count as a user's own address when there is a reply to be sent; they travel with each delivery.
pub(crate) const OWN_ALIASES_MAX: usize = 30;

/// Whose an address is.
pub(crate) enum Place {
    /// Of a domain of users/domains, or of that which it is an alias of: the local part.
    Virtual(Domain, Vec<u8>),
    /// Of the system's users: the local part with its virtualdomains prefix.
    Local(Vec<u8>),
    NotMine,
    /// Ours, but never a mailbox.
    Nobody,
}

impl Server {
    pub(crate) fn recipient(&mut self, asker: Asker, address: &Address, size: u64) {
        let verdict = match self.place(address) {
            Err(_) => Verdict::Temporary {},
            Ok(Place::NotMine) => Verdict::NotMine {},
            Ok(Place::Nobody) => Verdict::NoMailbox {},
            Ok(Place::Virtual(domain, local)) => match self.resolve(&domain, &local) {
                // What follows a dash names a `.qmail` file, which only the user's own worker can look for.
                Ok(Resolution::Mailbox { user, separator: Some(b'-'), ext }) => {
                    return self.look_for(asker, Key::Mailbox { domain, user: user.as_bytes().to_vec(), ext });
                }
                Ok(Resolution::Mailbox { user, .. }) => match self.accounts.account(&domain, user.as_bytes()) {
                    Ok(Some(account)) => return self.judge_room(asker, domain, &user, &account, size),
                    Ok(None) => Verdict::NoMailbox {},
                    Err(error) => self.store_failed(&error),
                },
                Ok(Resolution::Forward(_)) => Verdict::Mailbox {},
                Ok(Resolution::NoSuch) => Verdict::NoMailbox {},
                Err(error) => self.store_failed(&error),
            },
            Ok(Place::Local(local)) if local.is_empty() => Verdict::NoMailbox {},
            Ok(Place::Local(local)) => return self.look_for(asker, Key::Local(local.to_ascii_lowercase())),
        };
        self.answer(asker.client, &Answer::Recipient { id: asker.id, verdict }, None);
    }

    pub(crate) fn route(&mut self, address: &Address) -> Target {
        let temporary = |text: String| Target::Temporary { text: ipc::clip(text.as_bytes()).into() };
        match self.place(address) {
            Err(text) => temporary(text),
            // It was virtual when it was accepted: an administrator is at work.
            Ok(Place::NotMine | Place::Local(_)) => temporary("the domain is not in users/domains now".to_owned()),
            Ok(Place::Nobody) => Target::NoMailbox {},
            Ok(Place::Virtual(domain, local)) => match self.resolve(&domain, &local) {
                Ok(Resolution::Mailbox { user, separator, ext }) => {
                    // What follows a plus is the user's own mark, not the name of a `.qmail` file: it is always delivered.
                    let ext = if separator == Some(b'+') { Vec::new() } else { ext };
                    self.mailbox(domain, &user, ext).unwrap_or_else(temporary)
                }
                Ok(Resolution::Forward(targets)) => Target::Forward { domain, targets },
                Ok(Resolution::NoSuch) => Target::NoMailbox {},
                Err(error) => {
                    self.store_failed(&error);
                    temporary(error.to_string())
                }
            },
        }
    }

    /// A user's mailbox, with what the account says of deliveries.
    fn mailbox(&mut self, domain: Domain, user: &UserName, ext: Vec<u8>) -> Result<Target, String> {
        if self.renaming.contains(&(domain.clone(), user.clone())) {
            return Err("the user is being renamed".to_owned());
        }
        let account = self.accounts.account(&domain, user.as_bytes()).map_err(|error| self.trouble(&error.to_string()))?;
        // The user was removed between two queries; the next attempt finds nobody.
        let account = account.ok_or("the user is gone")?;
        let defers = self.places.defers_over_quota().map_err(|error| self.trouble(&error.to_string()))?;
        let (warns_at, warning) =
            self.places.quota_warning().map_err(|error| self.trouble(&error.to_string())).unwrap_or_default();
        let over = OverQuota { defers, warns_at, warning };
        let mut settings = delivery_settings(&domain, user, account, ext.is_empty(), over);
        if let Some(vacation) = &mut settings.vacation {
            let aliases = self.accounts.aliases_to(&vacation.address, OWN_ALIASES_MAX);
            vacation.others = aliases.map_err(|error| self.trouble(&error.to_string()))?;
        }
        let settings = settings.to_bytes();
        Ok(Target::Mailbox { domain, user: user.as_bytes().into(), ext: ext.into(), settings })
    }

    /// As the accounts say; a domain without a postmaster has this host's (RFC 5321 §4.5.1: there is always one).
    pub(crate) fn resolve(&mut self, domain: &Domain, local: &[u8]) -> Result<Resolution, accounts::Error> {
        let resolution = accounts::resolve(&self.accounts, domain, local)?;
        if resolution != Resolution::NoSuch || !local.eq_ignore_ascii_case(b"postmaster") {
            return Ok(resolution);
        }
        let host = self.places.routing().map(|routing| routing.envnoathost.clone()).unwrap_or_default();
        let Ok(postmaster) = Address::join(b"postmaster", &host) else { return Ok(Resolution::NoSuch) };
        // Where the host's own name is a virtual domain there is nobody to fall back on.
        let is_local = matches!(self.places.route(&postmaster), Ok(Some(Routed::Local(_))));
        Ok(if is_local { Resolution::Forward(vec![postmaster]) } else { Resolution::NoSuch })
    }

    /// Whose is the address?
    pub(crate) fn place(&mut self, address: &Address) -> Result<Place, String> {
        let routed = self.places.route(address).map_err(|error| self.trouble(&error.to_string()))?;
        Ok(match routed {
            None => Place::Nobody,
            Some(Routed::Remote(_)) => Place::NotMine,
            Some(Routed::Local(address)) => Place::Local(address.local().to_vec()),
            Some(Routed::Virtual(address)) => match address.domain().map(Domain::new) {
                Some(Ok(domain)) => {
                    let real = accounts::real_domain(&self.accounts, domain);
                    Place::Virtual(real.map_err(|error| self.trouble(&error.to_string()))?, address.local().to_vec())
                }
                _ => Place::Nobody,
            },
        })
    }

    /// By what is known, else qmail-lspawn says: it knows users/assign, asks qmail-getpw and has the user's worker look for files.
    fn look_for(&mut self, asker: Asker, key: Key) {
        let now = sys::clock::boottime();
        let verdict = match self.recipients.look(&key, asker, now) {
            Look::Known(true) => Verdict::Mailbox {},
            Look::Known(false) => Verdict::NoMailbox {},
            Look::Full => Verdict::Temporary {},
            Look::Wait => return,
            Look::Ask => return self.ask_exists(key, now),
        };
        self.answer(asker.client, &Answer::Recipient { id: asker.id, verdict }, None);
    }

    fn ask_exists(&mut self, key: Key, now: Duration) {
        use ipc::lspawn::Request::{Exists, ExistsMailbox};
        let question = key.clone();
        let datagram = |id| match question {
            Key::Local(local) => Exists { id, local: local.into() }.encode(),
            Key::Mailbox { domain, user, ext } => ExistsMailbox { id, domain, user: user.into(), ext: ext.into() }.encode(),
        };
        if let Err(waiter) = self.lspawn.ask(datagram, LspawnWaiter::Exists { key }, now) {
            self.lspawn_gone(waiter);
        }
    }

    pub(crate) fn lspawn_ready(&mut self, buf: &mut [u8]) {
        loop {
            let gone = match self.lspawn.receive(buf) {
                Ok(None) => return,
                Ok(Some((len, fd))) => match ipc::lspawn::Answer::decode(buf.get(..len).unwrap_or_default()) {
                    Ok(answer) => {
                        self.lspawn_says(answer, fd);
                        continue;
                    }
                    Err(_) => self.lspawn.reset(),
                },
                Err(gone) => gone,
            };
            gone.into_iter().for_each(|waiter| self.lspawn_gone(waiter));
            return;
        }
    }

    fn lspawn_says(&mut self, answer: ipc::lspawn::Answer, fd: Option<OwnedFd>) {
        use ipc::lspawn::Answer::{Exists, NoSession, NoUser, Renamed, Room, Session};
        let id = match &answer {
            Exists { id, .. } | Session { id } | NoSession { id, .. } | NoUser { id, .. } | Room { id, .. } => id,
            Renamed { id, .. } => id,
        };
        match (self.lspawn.answered(*id), answer) {
            (Some(LspawnWaiter::Exists { key }), Exists { answer, .. }) => match answer {
                Existence::Yes {} => self.settle(&key, Some(true), Verdict::Mailbox {}),
                Existence::No {} => self.settle(&key, Some(false), Verdict::NoMailbox {}),
                // The user is there: the mail is taken, and the delivery will find out.
                Existence::CannotTell {} => self.settle(&key, None, Verdict::Mailbox {}),
                Existence::Down {} => self.settle(&key, None, Verdict::Temporary {}),
            },
            (Some(LspawnWaiter::Room { number, mailbox, size }), Room { room, .. }) => {
                self.room_told(number, mailbox, size, &room)
            }
            (Some(LspawnWaiter::Usage { client, quota }), Room { room, .. }) => self.usage(client, quota, &room),
            (Some(LspawnWaiter::Renamed(renaming)), Renamed { failure, .. }) => {
                let failure = failure.map(|text| wire::escape::visible(&text));
                self.renamed(*renaming, failure.as_deref());
            }
            (Some(LspawnWaiter::SystemUser { login, name }), answer) => self.system_user(login, &name, answer, fd),
            (Some(LspawnWaiter::Session { asker, user }), answer) => self.session(asker, &user, &answer, fd),
            (Some(waiter), _) => self.lspawn_gone(waiter),
            // Too late; the session's socket is closed here, which ends it.
            (None, _) => {}
        }
    }

    pub(crate) fn lspawn_gone(&mut self, waiter: LspawnWaiter) {
        match waiter {
            LspawnWaiter::Exists { key } => self.settle(&key, None, Verdict::Temporary {}),
            LspawnWaiter::Room { number, .. } => self.room_unknown(number),
            LspawnWaiter::Renamed(renaming) => {
                self.renamed(*renaming, Some("qmail-lspawn does not answer; homes are renamed by the running system"));
            }
            LspawnWaiter::Usage { client, quota } => self.usage(client, quota, &ipc::lspawn::Room::CannotTell {}),
            LspawnWaiter::Nobody => {}
            LspawnWaiter::Session { asker, .. } => self.unavailable(asker, "no answer from qmail-lspawn"),
            LspawnWaiter::SystemUser { login, .. } => self.unavailable(login.asker, "no answer from qmail-lspawn"),
        }
    }

    fn settle(&mut self, key: &Key, definite: Option<bool>, verdict: Verdict) {
        for asker in self.recipients.settle(key, definite, sys::clock::boottime()) {
            self.answer(asker.client, &Answer::Recipient { id: asker.id, verdict: verdict.clone() }, None);
        }
    }

    fn store_failed(&mut self, error: &accounts::Error) -> Verdict {
        self.trouble(&error.to_string());
        Verdict::Temporary {}
    }
}
