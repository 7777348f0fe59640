//! The configuration as it is now: what was read at the start, what SIGHUP reads again, and the files that count at once.

use std::sync::Arc;
use std::time::Duration;

use control::send::{Limits, Send, watched_qmtproutes, watched_routes, watched_senders};
use control::{ControlError, LmtpPlace, LmtpRoutes, Root, Route, Routes, Senders, SiteLimits, Taps, Watched};
use message::verp;
use schedule::SiteLimit;
use users::{Routing, VirtualDomains};
use wire::{Address, Domain};

use crate::log::Log;

/// See the module.
pub struct Settings {
    root: Root,
    send: Send,
    routes: Watched<Routes>,
    qmtp: Watched<Routes>,
    senders: Watched<Senders>,
    lmtp: Watched<LmtpRoutes>,
    taps: Watched<Taps>,
    site_limits: Watched<Arc<SiteLimits>>,
    /// What the scheduler goes by.
    site_limits_used: Arc<SiteLimits>,
    domains: Watched<Arc<VirtualDomains>>,
    /// What `send.routing` has in it.
    domains_used: Option<Arc<VirtualDomains>>,
    /// Said already.
    complaint: Option<ControlError>,
}

impl Settings {
    /// # Errors
    /// A file unreadable or malformed; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let mut settings = Self {
            send: Send::read(root)?,
            routes: watched_routes(root),
            qmtp: watched_qmtproutes(root),
            senders: watched_senders(root),
            lmtp: LmtpRoutes::watched(root),
            taps: Taps::watched(root),
            site_limits: SiteLimits::watched(root),
            site_limits_used: Arc::default(),
            domains: control::watched::domains(root),
            domains_used: None,
            complaint: None,
            root: root.clone(),
        };
        settings.routes.get()?;
        settings.qmtp.get()?;
        settings.senders.get()?;
        settings.lmtp.get()?;
        settings.taps.get()?;
        settings.site_limits_used = Arc::clone(settings.site_limits.get()?);
        settings.domains.get()?;
        Ok(settings)
    }

    /// Looks at the files that count at once. True if a domain may have become virtual or ceased to be.
    pub fn refresh(&mut self, log: &mut Log) -> bool {
        let trouble = self.routes.get().err().or(self.senders.get().err()).or(self.lmtp.get().err());
        let trouble = trouble.or(self.qmtp.get().err()).or(self.taps.get().err()).or(self.site_limits.get().err());
        let trouble = trouble.or(self.domains.get().err());
        if trouble.is_some() && trouble != self.complaint {
            let text = trouble.as_ref().map(ToString::to_string).unwrap_or_default();
            log.warning(&format!("{text}; going on with what was read before"));
        }
        self.complaint = trouble;
        let Some(domains) = self.domains.last() else { return false };
        if self.domains_used.as_ref().is_some_and(|used| Arc::ptr_eq(used, domains)) {
            return false;
        }
        self.send.routing.virtual_domains = VirtualDomains::clone(domains);
        self.domains_used = Some(Arc::clone(domains));
        true
    }

    /// True if control/sitelimits has changed since the last call.
    pub fn has_new_site_limits(&mut self) -> bool {
        match self.site_limits.last().filter(|limits| !Arc::ptr_eq(limits, &self.site_limits_used)) {
            Some(limits) => {
                self.site_limits_used = Arc::clone(limits);
                true
            }
            None => false,
        }
    }

    /// SIGHUP: everything that is not looked at anyway. What cannot be read stays as it was, all of it.
    pub fn reread(&mut self, log: &mut Log) {
        match Send::read(&self.root) {
            Ok(fresh) => {
                self.send = fresh;
                self.domains_used = None;
            }
            Err(error) => log.alert(&format!("unable to reread the control files: {error}; going on with the old ones")),
        }
    }

    #[must_use]
    pub fn routing(&self) -> &Routing {
        &self.send.routing
    }

    /// lmtproutes for a host that is none of ours: it comes before authsenders, smtproutes and MX.
    #[must_use]
    pub fn lmtp_place(&self, host: &[u8]) -> Option<&LmtpPlace> {
        self.lmtp.last()?.lookup(host)
    }

    /// qmtproutes for a host: it comes before smtproutes and MX, and behind authsenders, which names its own relay.
    #[must_use]
    pub fn qmtp_route(&self, sender: &Address, host: &[u8]) -> Option<(Vec<u8>, u16)> {
        self.qmtp.last()?.lookup_qmtp(host).filter(|_| self.by_sender(sender).is_none())
    }

    fn by_sender(&self, sender: &Address) -> Option<Route> {
        self.senders.last().filter(|senders| !senders.is_empty()).and_then(|senders| senders.lookup(&verp::base(sender)))
    }

    /// authsenders for a sender (of VERP: the base), or else smtproutes for a host; `None` means MX.
    #[must_use]
    pub fn route(&self, sender: &Address, host: &[u8]) -> Option<Route> {
        self.by_sender(sender).or_else(|| self.routes.last()?.lookup(host))
    }

    /// Who gets a copy of a message (taps), by the file as it is now. What is wrong with it [`Settings::refresh`] tells.
    pub fn archive(&mut self, sender: &Address, recipients: &[Address]) -> Option<Address> {
        let _ = self.taps.get();
        let taps = self.taps.last().filter(|taps| !taps.is_empty())?;
        taps.archive(&verp::base(sender), recipients).cloned()
    }

    /// Does this address get copies, by taps?
    #[must_use]
    pub fn is_archive(&self, address: &Address) -> bool {
        self.taps.last().is_some_and(|taps| taps.is_archive(address))
    }

    /// What a host that mail goes to gets at most (sitelimits).
    #[must_use]
    pub fn site_limit(&self, host: &[u8]) -> SiteLimit {
        let limit = self.site_limits_used.lookup(host);
        let interval = limit.per_minute.and_then(|count| Duration::from_secs(60).checked_div(count));
        SiteLimit { at_a_time: limit.connections.unwrap_or(u32::MAX), interval: interval.unwrap_or_default() }
    }

    #[must_use]
    pub fn limits(&self) -> Limits {
        self.send.limits
    }

    #[must_use]
    pub fn queuelifetime_s(&self) -> u64 {
        self.send.queuelifetime_s
    }

    #[must_use]
    pub fn doublebounce_to(&self) -> Option<&Address> {
        self.send.doublebounce_to.as_ref()
    }

    #[must_use]
    pub fn bouncefrom(&self) -> &[u8] {
        &self.send.bouncefrom
    }

    #[must_use]
    pub fn bouncehost(&self) -> &Domain {
        &self.send.bouncehost
    }

    #[must_use]
    pub fn bouncemaxbytes(&self) -> Option<u64> {
        self.send.bouncemaxbytes
    }
}
