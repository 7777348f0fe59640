//! From control files to the machines' configuration.

use qmtp::exchange::Config;
use reception::terms::refusals;
use smtp::data::BareLf;
use smtp::server::RcptHosts;

/// `virtual_domains` stand in for the directory where nobody can be asked; they are part of rcpthosts (users/domains).
pub(crate) fn config(control: control::Smtpd, virtual_domains: Vec<Vec<u8>>) -> Config {
    Config {
        me: control.me,
        barelf: if control.normalizes_bare_lf { BareLf::Normalize } else { BareLf::Reject },
        databytes: control.databytes,
        recipients_max: control.recipients_max,
        bad_recipients_max: control.bad_recipients_max,
        timeout_s: control.timeout_s,
        rcpthosts: RcptHosts::new(control.rcpthosts.into_iter().chain(virtual_domains), control.morercpthosts),
        refusals: refusals(control.refusals),
    }
}
