//! From control files to the machine's configuration.

use control::Inject;
use control::smtpd::PriorityOffer;
use message::inject::Names;
use reception::terms::refusals;
use sasl::Mechanisms;
use smtp::data::BareLf;
use smtp::server::{Config, DsnOffer, Limits, RcptHosts, SubmissionRules, TransferRules};
use std::io;

/// `virtual_domains` stand in for the directory where nobody can be asked; they are part of rcpthosts (users/domains).
///
/// # Errors
/// `control/authmechanisms` names something that is no mechanism.
pub(crate) fn config(control: control::Smtpd, virtual_domains: Vec<Vec<u8>>) -> io::Result<Config> {
    let mechanisms = Mechanisms::parse(control.mechanisms.as_deref()).map_err(|name| {
        io::Error::other(format!("control/authmechanisms: `{}` is no mechanism", wire::escape::visible(&name)))
    })?;
    let limits = Limits {
        databytes: control.databytes,
        recipients_max: control.recipients_max,
        bad_recipients_max: control.bad_recipients_max,
        command_s: control.timeout_s,
        ..Limits::default()
    };
    Ok(Config {
        limits,
        mechanisms,
        me: control.me,
        greeting: control.greeting,
        localiphost: control.localiphost,
        barelf: if control.normalizes_bare_lf { BareLf::Normalize } else { BareLf::Reject },
        rcpthosts: RcptHosts::new(control.rcpthosts.into_iter().chain(virtual_domains), control.morercpthosts),
        refusals: refusals(control.refusals),
        dsn: if control.offers_dsn_to_all { DsnOffer::Everybody } else { DsnOffer::Relaying },
        transfer: TransferRules {
            deliver_by_min_s: control.deliver_by_min_s,
            priority: match control.priority {
                PriorityOffer::Nobody => smtp::server::PriorityOffer::Nobody,
                PriorityOffer::Relaying => smtp::server::PriorityOffer::Relaying,
                PriorityOffer::Everybody => smtp::server::PriorityOffer::Everybody,
            },
        },
        submission: SubmissionRules {
            binds_senders: control.submission.binds_senders,
            hides_client: control.submission.hides_client,
        },
    })
}

/// # Errors
/// One of the names cannot stand in an address.
pub(crate) fn names(control: &Inject) -> io::Result<Names> {
    let Inject { default_host, default_domain, plus_domain, .. } = control;
    Names::new(default_host, default_domain, plus_domain)
        .map_err(|error| io::Error::other(format!("control/defaulthost, defaultdomain, plusdomain: {error}")))
}
