//! What a login may send: as whom, and how much.
//!
//! A login's own addresses are the account's address, its sub-addresses (`user-ext@`, `user+ext@`), aliases that lead to it and to
//! nobody else, over other such aliases if need be, and what `control/submissionsenders` names. Not its own are aliases with several
//! targets (a shared address needs a line in that file), what a catch-all takes (nobody made that address), and local parts that would
//! have to be quoted: readers disagree about them.

use crate::alert::{Alert, Alerts, RECIPIENTS_MAX};
use crate::directory::Place;
use crate::recipients::Asker;
use crate::sending::{Past, Sending, Sent};
use crate::sending_log::SendingLog;
use crate::server::{Server, log};
use accounts::{Directory, Resolution};
use control::Root;
use control::submission::{SubmissionLimits, SubmissionSenders};
use control::watched::Watched;
use ipc::auth::{Answer, Limit, Permission};
use logline::Line;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use wire::{Address, Domain};

/// Aliases on the way from an address to a mailbox.
const ALIASES_MAX: usize = 8;

/// What is known about sending.
pub(crate) struct Rules {
    senders: Watched<SubmissionSenders>,
    limits: Watched<SubmissionLimits>,
    sending: Sending,
    /// What was sent, on the disk; `None` until the first question.
    log: Option<SendingLog>,
    log_path: PathBuf,
    /// Whom control/alerts names.
    alerted: Watched<Vec<Address>>,
    alerts: Alerts,
}

impl Rules {
    pub(crate) fn new(root: &Root, run: Arc<OwnedFd>) -> Self {
        Self {
            senders: SubmissionSenders::watch(root),
            limits: SubmissionLimits::watch(root),
            sending: Sending::default(),
            log: None,
            log_path: root.lib().join("sending"),
            alerted: Watched::new(root.control_file("alerts"), alerted),
            alerts: Alerts::new(run),
        }
    }

    /// Notes what happened; the first time, what happened before this process is taken into account.
    fn note(&mut self, login: &[u8], past: Past) -> io::Result<()> {
        let (now, now_s) = (now(), sys::clock::unix_s());
        match &mut self.log {
            Some(log) => log.note(login, past, &mut self.sending, now, now_s),
            None => Ok(()),
        }
    }

    fn open_log(&mut self) -> io::Result<()> {
        if self.log.is_none() {
            let (now, now_s) = (now(), sys::clock::unix_s());
            self.log = Some(SendingLog::open(self.log_path.clone(), &mut self.sending, now, now_s)?);
        }
        Ok(())
    }
}

/// The time since boot, and so much more that what was sent yesterday has a place in it.
fn now() -> Duration {
    sys::clock::boottime().saturating_add(Duration::from_secs(3 * 86_400))
}

/// `control/alerts`: an address a line.
fn alerted(text: Option<&[u8]>) -> Result<Vec<Address>, String> {
    let lines = text.map(control::read::lines_of).unwrap_or_default();
    let address = |line: &Vec<u8>| {
        let address = Address::new(line).ok().filter(|address| address.domain().is_some_and(|domain| !domain.is_empty()));
        address.ok_or_else(|| format!("`{}` is no address with a domain", wire::escape::visible(line)))
    };
    lines.iter().take(RECIPIENTS_MAX / 2).map(address).collect()
}

impl Server {
    pub(crate) fn may_send(&mut self, asker: Asker, login: &[u8], address: &Address) {
        let permission = self.permission(login, address).unwrap_or_else(|text| {
            self.trouble(&text);
            Permission::Temporary {}
        });
        if permission == (Permission::NotYours {}) {
            log(Line::new("sender refused:").bytes("login", login).bytes("address", address.as_bytes()));
        }
        self.answer(asker.client, &Answer::Permission { id: asker.id, permission }, None);
    }

    /// A message goes to so many recipients; counted if it may.
    pub(crate) fn may_submit(&mut self, asker: Asker, login: &[u8], recipients: u32) {
        let permission = self.within_limits(login, Some(recipients)).unwrap_or_else(|text| {
            self.trouble(&text);
            Permission::Temporary {}
        });
        self.answer(asker.client, &Answer::Permission { id: asker.id, permission }, None);
    }

    /// `recipients`: of a message that is to be counted; `None`: there may be one.
    fn within_limits(&mut self, login: &[u8], recipients: Option<u32>) -> Result<Permission, String> {
        let limits = self.limits_of(login)?;
        let (name, now) = (login.to_ascii_lowercase(), now());
        if let Err(error) = self.rules.open_log() {
            self.trouble(&format!("{}: {error}: what is sent is counted in memory alone", self.rules.log_path.display()));
        }
        let sending = &mut self.rules.sending;
        let sent = match recipients {
            Some(recipients) => sending.send(&name, recipients, &limits, now),
            None => sending.look(&name, &limits, now),
        };
        let noted = match (&sent, recipients) {
            (Sent::Yes, Some(recipients)) => self.rules.note(&name, Past::message(recipients)),
            (Sent::Limited { is_news: true, .. }, _) => self.rules.note(&name, Past::news()),
            _ => Ok(()),
        };
        if let Err(error) = noted {
            self.trouble(&format!("{}: {error}: what is sent is counted in memory alone", self.rules.log_path.display()));
        }
        Ok(match sent {
            Sent::Yes => Permission::Yes {},
            Sent::Limited { limit, is_news } => {
                if is_news {
                    let event = format!("alert: submission limit reached: {}", words(&limit));
                    log(Line::new(&event).bytes("login", login));
                    self.alert(login, &limit, &limits);
                }
                Permission::Limited { limit }
            }
        })
    }

    /// Tells those who look after the account.
    fn alert(&mut self, login: &[u8], limit: &Limit, limits: &SubmissionLimits) {
        let host = self.places.routing().map(|routing| routing.envnoathost.clone()).unwrap_or_default();
        let domain = Address::new(login).ok().and_then(|login| Domain::new(login.domain()?).ok());
        let named = self.rules.alerted.get().cloned().map_err(|error| self.trouble(&error.to_string())).unwrap_or_default();
        let mut to = named;
        if to.is_empty() {
            let at = domain.as_ref().map_or(&host[..], Domain::as_bytes);
            to.extend(Address::join(b"postmaster", at));
        }
        if let Some(Ok(settings)) = domain.map(|domain| self.accounts.domain(&domain)) {
            to.extend(settings.administrators);
        }
        to.truncate(RECIPIENTS_MAX);
        let Ok(from) = Address::join(b"postmaster", &host) else { return };
        let most = match limit {
            Limit::MessagesPerHour {} => limits.messages_per_hour,
            Limit::RecipientsPerHour {} => limits.recipients_per_hour,
            Limit::MessagesPerDay {} => limits.messages_per_day,
            Limit::RecipientsPerDay {} => limits.recipients_per_day,
        };
        let (login, what) = (wire::escape::visible(login), words(limit).replace('-', " "));
        let text = format!(
            "The account {login} has sent as much as it may: {most} {what}.\n\nFurther messages are refused for now. \
             If this is not the owner's\ndoing, give the account a new password or suspend it:\n\n    qmail user suspend {login}\n\n\
             This alert comes once a day for each account.\n"
        );
        self.rules.alerts.send(Alert { from, to, subject: format!("Sending limit reached: {login}"), text });
    }

    /// The host's, but for what is set of the account.
    fn limits_of(&mut self, login: &[u8]) -> Result<SubmissionLimits, String> {
        let mut limits = *self.rules.limits.get().map_err(|error| error.to_string())?;
        if let Some((domain, user)) = self.account_of(login)?
            && let Some(account) = self.accounts.account(&domain, user.as_bytes()).map_err(|error| error.to_string())?
        {
            limits.messages_per_hour = account.limits.per_hour.unwrap_or(limits.messages_per_hour);
            limits.messages_per_day = account.limits.per_day.unwrap_or(limits.messages_per_day);
        }
        Ok(limits)
    }

    fn permission(&mut self, login: &[u8], address: &Address) -> Result<Permission, String> {
        if self.is_suspended(login)? || !self.is_own(login, address)? {
            return Ok(Permission::NotYours {});
        }
        self.within_limits(login, None)
    }

    /// Since it logged in.
    fn is_suspended(&mut self, login: &[u8]) -> Result<bool, String> {
        let Some((domain, user)) = self.account_of(login)? else { return Ok(false) };
        let credentials = self.accounts.credentials(&domain, user.as_bytes()).map_err(|error| error.to_string())?;
        Ok(credentials.is_some_and(|credentials| credentials.suspended))
    }

    fn is_own(&mut self, login: &[u8], address: &Address) -> Result<bool, String> {
        let Some(domain) = address.domain() else { return Ok(false) };
        if wire::quote::is_needed(address.local()) {
            return Ok(false);
        }
        let senders = self.rules.senders.get().map_err(|error| error.to_string())?;
        if senders.permits(login, address.local(), domain) {
            return Ok(true);
        }
        match self.place(address)? {
            // An address that percenthack changes is another one to everybody else; an alias domain changes the domain alone.
            Place::Virtual(domain, local) if address.local().eq_ignore_ascii_case(&local) => self.leads_to(login, domain, local),
            // A user of the system logs in by his name.
            Place::Local(local) => Ok(!login.contains(&b'@') && local.eq_ignore_ascii_case(login)),
            _ => Ok(false),
        }
    }

    /// Is whatever comes to this address the login's alone?
    fn leads_to(&mut self, login: &[u8], domain: Domain, local: Vec<u8>) -> Result<bool, String> {
        let (mut domain, mut local) = (domain, local);
        for _ in 0..=ALIASES_MAX {
            let resolution = accounts::resolve(&self.accounts, &domain, &local).map_err(|error| error.to_string())?;
            let target = match resolution {
                Resolution::Mailbox { user, .. } => {
                    let owner = [user.as_bytes(), b"@", domain.as_bytes()].concat();
                    return Ok(owner.eq_ignore_ascii_case(login));
                }
                Resolution::Forward(targets) => match <[Address; 1]>::try_from(targets) {
                    Ok([target]) => target,
                    Err(_) => return Ok(false),
                },
                Resolution::NoSuch => return Ok(false),
            };
            let alias = self.accounts.alias(&domain, &local.to_ascii_lowercase()).map_err(|error| error.to_string())?;
            // Else the catch-all took it.
            if alias.is_none() {
                return Ok(false);
            }
            match self.place(&target)? {
                Place::Virtual(next, part) => (domain, local) = (next, part),
                Place::Local(part) => return Ok(!login.contains(&b'@') && part.eq_ignore_ascii_case(login)),
                Place::NotMine | Place::Nobody => return Ok(false),
            }
        }
        Ok(false)
    }
}

fn words(limit: &Limit) -> &'static str {
    match limit {
        Limit::MessagesPerHour {} => "messages-per-hour",
        Limit::RecipientsPerHour {} => "recipients-per-hour",
        Limit::MessagesPerDay {} => "messages-per-day",
        Limit::RecipientsPerDay {} => "recipients-per-day",
    }
}
