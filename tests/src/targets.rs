//! The table of all fuzz targets: `fuzz-smoke` runs them on the stable toolchain, `fuzz/` under libFuzzer.

/// A function that panics when an invariant is broken.
pub type Target = fn(&[u8]);

/// Name (also of the corpus folder) and function.
pub const TARGETS: &[(&str, Target)] = &[
    ("dotqmail_chunks", dotqmail::fuzz::chunks),
    ("dotqmail_names", dotqmail::fuzz::names),
    ("dotqmail_plan", dotqmail::fuzz::plan),
    ("dotqmail_trace", dotqmail::fuzz::trace),
    ("ipc_messages", ipc::fuzz::messages),
    ("ldap_filters", ldap::fuzz::filters),
    ("ldap_responses", ldap::fuzz::responses),
    ("message_bounces", message::fuzz::bounces),
    ("message_dos_text", message::fuzz::dos_text),
    ("message_injection", message::fuzz::injection),
    ("message_scanner", message::fuzz::scanner),
    ("message_submission", message::fuzz::submission),
    ("message_tokens", message::fuzz::tokens),
    ("message_vacation", message::fuzz::vacation),
    ("pop3_authorization", pop3::fuzz::authorization),
    ("pop3_encoder", pop3::fuzz::encoder),
    ("pop3_transaction", pop3::fuzz::transaction),
    ("sasl_bearer", sasl::fuzz::bearer),
    ("sasl_exchange", sasl::fuzz::exchange),
    ("schedule_backlog", schedule::fuzz::backlog),
    ("schedule_fair", schedule::fuzz::fair),
    ("smtp_client", smtp::client::fuzz::client),
    ("smtp_encode", smtp::client::fuzz::encode),
    ("smtp_reply", smtp::client::fuzz::reply),
    ("smtp_session", smtp::server::fuzz::session),
    ("tls_client_certificates", tls::fuzz::client_certificates),
    ("users_assign", users::fuzz::assign),
    ("users_names", users::fuzz::names),
    ("users_routing", users::fuzz::routing),
    ("users_tables", users::fuzz::tables),
    ("wire_addresses", wire::fuzz::addresses),
    ("wire_base64", wire::fuzz::base64),
    ("wire_databases", wire::fuzz::databases),
    ("wire_lines", wire::fuzz::lines),
    ("wire_netstrings", wire::fuzz::netstrings),
    ("wire_proxy_headers", wire::fuzz::proxy_headers),
];
