//! Administrators of domains: accounts that may manage a domain's users and aliases, over a socket that anyone may connect to.
//!
//! Who connects logs in first, with the account's own password (no app password), as every login is judged and counted: by account, and in
//! the place of an address by the uid at the other end. Then each request is judged anew: the account must still be there, open, and an
//! administrator of the domain that the request is about. What is root's stays root's: domains, their bounds and administrators, sending
//! limits, hashes, imports and exports. An administrator does not lay hands on another one: not on the password, the app passwords, the
//! mail or the name.
//!
//! Bounds: [`MANAGERS_MAX`] connections, [`PER_UID_MAX`] for each uid, one request at a time, two minutes each.

use crate::admin::{Failure, mistake};
use crate::server::{Server, log};
use accounts::Directory as _;
use ipc::admin::{AccountRequest, DomainChange};
use logline::Line;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;
use wire::{Address, Domain};

const MANAGERS_MAX: usize = 32;
const PER_UID_MAX: usize = 4;

/// What a request is about.
enum About<'a> {
    Domain(&'a Domain),
    /// An alias, or what does no harm to the user.
    Address(&'a Address),
    /// A user as a person: no other administrator.
    User(&'a Address),
    /// A user who is to be locked out: no administrator at all.
    Victim(&'a Address),
    Root,
}

impl Server {
    /// Is there room for one more connection of this uid?
    pub(crate) fn may_manage_from(&self, uid: u32) -> bool {
        let managers = || self.clients.values().filter(|client| client.rights.manage);
        managers().count() < MANAGERS_MAX && managers().filter(|client| client.uid == uid).count() < PER_UID_MAX
    }

    /// In the place of an address, by which failures are counted: of the prefix that is for nobody (RFC 6666), a network for each uid.
    pub(crate) fn manager_address(&self, client: u64) -> Option<IpAddr> {
        let client = self.clients.get(&client).filter(|client| client.rights.manage)?;
        let [a, b, c, d] = client.uid.to_be_bytes();
        Some(Ipv6Addr::from([1, 0, 0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]).into())
    }

    pub(crate) fn becomes_manager(&mut self, client: u64, address: &[u8]) {
        if let (Some(client), Ok(address)) =
            (self.clients.get_mut(&client).filter(|client| client.rights.manage), Address::new(address))
        {
            client.manager = Some(address);
        }
    }

    /// When a connection has been there long enough.
    pub(crate) fn managers_due(&self) -> Option<Duration> {
        self.clients.values().filter_map(crate::clients::Client::due).min()
    }

    pub(crate) fn expire_managers(&mut self, now: Duration) {
        let late = |client: &crate::clients::Client| client.due().is_some_and(|due| due <= now);
        let gone: Vec<u64> = self.clients.iter().filter(|(_, client)| late(client)).map(|(number, _)| *number).collect();
        gone.into_iter().for_each(|number| self.close(number));
    }

    /// May this connection ask for that? Root may everything.
    pub(crate) fn judge_manager(&mut self, client: u64, request: &AccountRequest) -> Result<(), Failure> {
        let Some(client) = self.clients.get(&client).filter(|client| client.rights.manage) else { return Ok(()) };
        let manager = client.manager.clone().ok_or_else(|| mistake("log in first".to_owned()))?;
        let judged = self.may(&manager, request);
        let is_change = !matches!(
            request,
            AccountRequest::UserList { .. }
                | AccountRequest::AliasList { .. }
                | AccountRequest::UserShow { .. }
                | AccountRequest::UserUsage { .. }
                | AccountRequest::DomainList { .. }
                | AccountRequest::AppPasswordList { .. }
        );
        if is_change {
            let uid = client.uid;
            let about = match about(request) {
                About::Domain(domain) => domain.to_string(),
                About::Address(address) | About::User(address) | About::Victim(address) => address.to_string(),
                About::Root => "-".to_owned(),
            };
            let allowed = if judged.is_ok() { "allowed" } else { "refused" };
            let line = Line::new(&format!("administration {allowed}: {}", name(request))).put("uid", uid);
            log(line.bytes("by", manager.as_bytes()).bytes("of", about.as_bytes()));
        }
        judged
    }

    fn may(&self, manager: &Address, request: &AccountRequest) -> Result<(), Failure> {
        let at = |address: &Address| {
            let domain = address.domain().and_then(|domain| Domain::new(domain).ok());
            domain.ok_or_else(|| mistake(format!("{address} has no domain")))
        };
        let own = at(manager)?;
        let credentials = self.accounts.credentials(&own, &manager.local().to_ascii_lowercase())?;
        if credentials.is_none_or(|credentials| credentials.suspended) {
            return Err(mistake(format!("{manager} administers nothing")));
        }
        let about = about(request);
        let domain = match &about {
            About::Domain(domain) => (*domain).clone(),
            About::Address(address) | About::User(address) | About::Victim(address) => at(address)?,
            About::Root => return Err(mistake("only root may do this".to_owned())),
        };
        let is = |one: &Address, other: &Address| one.as_bytes().eq_ignore_ascii_case(other.as_bytes());
        let administrators = self.accounts.domain(&domain)?.administrators;
        if !administrators.iter().any(|there| is(there, manager)) {
            return Err(mistake(format!("{manager} does not administer {domain}")));
        }
        let is_administrator = |address: &Address| administrators.iter().any(|there| is(there, address));
        match about {
            About::User(address) if is_administrator(address) && !is(address, manager) => {
                Err(mistake(format!("{address} administers {domain}, too: only root may do this")))
            }
            About::Victim(address) if is_administrator(address) => {
                Err(mistake(format!("{address} administers {domain}: only root may do this")))
            }
            _ => Ok(()),
        }
    }
}

fn about(request: &AccountRequest) -> About<'_> {
    use AccountRequest as Ask;
    match request {
        Ask::UserAdd { address, .. } | Ask::UserKeepClear { address, add: true, .. } => About::Address(address),
        Ask::UserShow { address } | Ask::UserUsage { address } | Ask::UserQuota { address, .. } => About::Address(address),
        Ask::AliasAdd { address, .. } | Ask::AliasRemove { address } => About::Address(address),
        Ask::UserPassword { address, .. } | Ask::UserKeepClear { address, add: false, .. } => About::User(address),
        Ask::UserForward { address, .. } | Ask::UserVacation { address, .. } => About::User(address),
        Ask::AppPasswordAdd { address, .. } | Ask::AppPasswordList { address } => About::User(address),
        Ask::AppPasswordRemove { address, .. } => About::User(address),
        Ask::UserRemove { address } | Ask::UserSuspend { address, .. } | Ask::UserRename { address, .. } => {
            About::Victim(address)
        }
        Ask::UserList { domain: Some(domain), .. } | Ask::AliasList { domain: Some(domain), .. } => About::Domain(domain),
        Ask::DomainList { domain: Some(domain), .. } => About::Domain(domain),
        Ask::DomainChange {
            domain,
            change:
                DomainChange {
                    alias_of: None,
                    default_quota: Some(_),
                    quota_bytes: None,
                    users_max: None,
                    administrator_add: None,
                    administrator_remove: None,
                },
        } => About::Domain(domain),
        _ => About::Root,
    }
}

/// For the log.
fn name(request: &AccountRequest) -> &'static str {
    use AccountRequest as Ask;
    match request {
        Ask::UserAdd { .. } | Ask::UserAddHash { .. } => "user-add",
        Ask::UserRemove { .. } => "user-remove",
        Ask::UserRename { .. } => "user-rename",
        Ask::UserPassword { .. } | Ask::UserKeepClear { .. } => "user-password",
        Ask::UserQuota { .. } => "user-quota",
        Ask::UserSuspend { .. } => "user-suspend",
        Ask::UserForward { .. } => "user-forward",
        Ask::UserVacation { .. } => "user-vacation",
        Ask::UserLimits { .. } => "user-limits",
        Ask::AliasAdd { .. } => "alias-add",
        Ask::AliasRemove { .. } => "alias-remove",
        Ask::AppPasswordAdd { .. } => "app-password-add",
        Ask::AppPasswordRemove { .. } => "app-password-remove",
        Ask::DomainChange { .. } => "domain-change",
        _ => "other",
    }
}
