//! Another name for a user: the home first, by the user's own worker, and then the account.
//!
//! While that is going on mail for the user waits in the queue. If qmail-auth or the machine ends in between, the home has its new name and the
//! account its old: nothing is lost, and the administrator, who had no answer, finds out why the command cannot be repeated (there is a
//! directory of the new name) and renames it back. If the accounts refuse, the home is renamed back here.

use crate::admin::{Failure, mistake, said, user_of};
use crate::server::{LspawnWaiter, Server, log};
use accounts::{Directory as _, Error, UserName};
use ipc::Message as _;
use wire::{Address, Domain};

/// A user who is being renamed, and who asked for it.
pub(crate) struct Renaming {
    client: u64,
    domain: Domain,
    from: UserName,
    to: UserName,
    keeps_alias: bool,
}

impl Server {
    pub(crate) fn rename(&mut self, client: u64, address: &Address, to: &[u8], keeps_alias: bool) {
        if let Err(failure) = self.begin_rename(client, address, to, keeps_alias) {
            self.admin_answer(client, Err(failure));
        }
    }

    fn begin_rename(&mut self, client: u64, address: &Address, to: &[u8], keeps_alias: bool) -> Result<(), Failure> {
        let (domain, from) = user_of(address)?;
        let to = UserName::new(to).ok_or_else(|| mistake(format!("`{}` can be no user's name", wire::escape::visible(to))))?;
        if !self.accounts.has_user(&domain, from.as_bytes())? {
            return Err(Error::NoUser.into());
        }
        if self.accounts.has_user(&domain, to.as_bytes())? || self.accounts.alias(&domain, to.as_bytes())?.is_some() {
            return Err(Error::Exists.into());
        }
        if !self.renaming.insert((domain.clone(), from.clone())) {
            return Err(Failure::temporary("the user is being renamed already"));
        }
        // Nobody sends mail where the home has been.
        self.announce_change();
        let (at, user, name) = (domain.clone(), from.as_bytes().into(), to.as_bytes().into());
        let question = |id| ipc::lspawn::Request::Rename { id, domain: at, user, to: name }.encode();
        let waiter = LspawnWaiter::Renamed(Box::new(Renaming { client, domain, from, to, keeps_alias }));
        if let Err(waiter) = self.lspawn.ask(question, waiter, sys::clock::boottime()) {
            self.lspawn_gone(waiter);
        }
        Ok(())
    }

    /// qmail-lspawn's word on the home; `Some`: why it has its old name.
    pub(crate) fn renamed(&mut self, renaming: Renaming, failure: Option<&str>) {
        let Renaming { client, domain, from, to, keeps_alias } = renaming;
        self.renaming.remove(&(domain.clone(), from.clone()));
        let done = match failure {
            Some(why) => Err(Failure::temporary(why)),
            None => said(self.accounts.rename_user(&domain, &from, &to, keeps_alias)),
        };
        if failure.is_none() && done.is_err() {
            log(format_args!("the home of {from}@{domain}, renamed to {to}, gets its old name again"));
            let (user, name) = (to.as_bytes().into(), from.as_bytes().into());
            let question = |id| ipc::lspawn::Request::Rename { id, domain, user, to: name }.encode();
            drop(self.lspawn.ask(question, LspawnWaiter::Nobody, sys::clock::boottime()));
        }
        self.admin_answer(client, done);
    }
}
