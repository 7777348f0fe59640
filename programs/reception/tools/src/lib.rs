//! Small programs around tcpserver(1): tcprules and tcprulescheck for its rules, tcp-env for inetd(8).
#![forbid(unsafe_code)]

pub mod rules;
pub mod tcp_env;
