//! Control files (qmail-control(5)): one file per value below `etc/qmail/control`, and the other places of an instance.
//!
//! A [`Root`] is where an instance lives; it answers paths and reads values by the classic rules. A missing file is a default,
//! an unreadable one a temporary error whose text says what to do: mail waits for a repaired configuration and is never bounced
//! for it. Each program's values are a struct in a module of its own. Nothing here writes; `qmail` (programs/admin) does.
#![forbid(unsafe_code)]

pub mod accounts;
pub mod acme;
pub mod auth;
pub mod authlimits;
pub mod authsources;
pub mod clientrules;
pub mod error;
pub mod hooks;
pub mod inject;
pub mod keyed;
pub mod ldap;
pub mod lmtproutes;
pub mod logformat;
pub mod lspawn;
pub mod oauth;
pub mod popup;
pub mod program;
pub mod qmqp;
pub mod read;
pub mod refusals;
pub mod remote;
pub mod replacements;
pub mod resolve;
pub mod root;
pub mod routes;
pub mod secret;
pub mod send;
pub mod sitelimits;
pub mod smtpd;
pub mod submission;
pub mod taps;
pub mod tlsclients;
pub mod tlspolicy;
pub mod url;
pub mod watched;

pub use acme::Acme;
pub use authlimits::AuthLimits;
pub use clientrules::{ClientRule, ClientRules};
pub use error::ControlError;
pub use hooks::{Hooks, Plugins};
pub use inject::Inject;
pub use ldap::Ldap;
pub use lmtproutes::{LmtpPlace, LmtpRoutes};
pub use logformat::LogFormat;
pub use oauth::Oauth;
pub use qmqp::Qmqpc;
pub use refusals::Refusals;
pub use remote::Remote;
pub use resolve::Resolve;
pub use root::Root;
pub use routes::{Route, Routes, Senders};
pub use sitelimits::SiteLimits;
pub use smtpd::Smtpd;
pub use taps::Taps;
pub use tlsclients::TlsClients;
pub use tlspolicy::{Level, TlsPolicies, TlsPolicy};
pub use users::{Cidr, HostSet, Id, Ids, Listener, Networks, Origin, Routed, Routing, Service, VirtualDomain, VirtualDomains};
pub use watched::Watched;
