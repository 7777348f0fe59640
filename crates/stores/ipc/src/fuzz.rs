//! Invariants as plain functions, for cargo-fuzz and for the stable smoke run.

use crate::{Message, accounts, admin, auth, authnet, checkpw, getpw, hook, job, keys, lspawn, mailbox, queue, resolve, worker};

fn total<M: Message>(datagram: &[u8]) {
    if let Ok(message) = M::decode(datagram) {
        assert_eq!(message.encode(), datagram);
    }
}

/// Any bytes are a message that encodes to the same bytes, or malformed.
pub fn messages(data: &[u8]) {
    total::<queue::Answer>(data);
    total::<job::Job>(data);
    total::<job::Answer>(data);
    total::<mailbox::Mailbox>(data);
    total::<lspawn::Request>(data);
    total::<lspawn::Answer>(data);
    total::<worker::Request>(data);
    total::<worker::Report>(data);
    total::<auth::Request>(data);
    total::<auth::Answer>(data);
    total::<authnet::Request>(data);
    total::<authnet::Answer>(data);
    total::<accounts::Request>(data);
    total::<accounts::Answer>(data);
    total::<keys::Request>(data);
    total::<keys::Answer>(data);
    total::<checkpw::Request>(data);
    total::<checkpw::Answer>(data);
    total::<checkpw::Verdict>(data);
    total::<checkpw::Accepted>(data);
    total::<hook::Request>(data);
    total::<hook::Answer>(data);
    total::<getpw::Request>(data);
    total::<getpw::Answer>(data);
    total::<resolve::Request>(data);
    total::<resolve::Answer>(data);
    total::<admin::QueueRequest>(data);
    total::<admin::QueueAnswer>(data);
    total::<admin::AccountRequest>(data);
    total::<admin::AccountAnswer>(data);
    total::<admin::CertRequest>(data);
    total::<admin::CertAnswer>(data);
    let mut seen = 0;
    if queue::items(data, |_| seen += 1).is_ok() {
        assert!(seen > 0);
    }
}
