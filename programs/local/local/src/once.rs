//! `--once`: one delivery for qmail-lspawn whose `.qmail` file holds program lines, carried out whole and unconfined as the
//! recipient, like the classic face, but asked for and answered on the socket `work` (ipc::worker).
//!
//! With QMAILLOCAL in its environment it runs that program instead ([`crate::replacement`]).
//!
//! What the programs print goes into the report, so that a bounce can quote it. When qmail-lspawn is gone nobody hears the report, and the
//! delivery will be tried again: so this process ends at once, with the programs of its group.

use crate::carry_out::{Carrier, check_loop, dot_qmail};
use crate::failure::Failure;
use crate::forward::Forwarder;
use crate::home::Home;
use crate::orders::{Manner, Orders};
use crate::replacement;
use crate::shell::Shell;
use crate::worker::{delivery, report};
use dotqmail::Plan;
use ipc::worker::{Recipient, Request};
use ipc::{DATAGRAM_LEN_MAX, Message};
use maildir::Body;
use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use sys::inherited::Inherited;
use sys::{Received, Seqpacket};
use wire::Address;

/// Runs the face.
#[must_use]
pub fn main() -> ExitCode {
    let served =
        Inherited::take().and_then(|mut inherited| inherited.one("work")).and_then(|work| serve(&Seqpacket::from_fd(work)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("qmail-local: {e}");
            ExitCode::from(dotqmail::exit::TEMPORARY)
        }
    }
}

fn serve(work: &Seqpacket) -> io::Result<()> {
    let mut datagram = vec![0; DATAGRAM_LEN_MAX];
    let Received::Datagram(len, fd) = work.recv_with_fd(&mut datagram)? else { return Ok(()) };
    let request = Request::decode(datagram.get(..len).unwrap_or_default())?;
    let (Request::Deliver { number, sender, recipient, default_delivery, settings, inherits, lmtp }, Some(message)) =
        (request, fd)
    else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a delivery"));
    };
    let carried_out = end_with_the_asker(work)?;
    let shell = Shell::captured();
    if let Some(program) = replacement::program() {
        let done = replacement::run(&program, &shell, &sender, &recipient, &default_delivery, message);
        carried_out.store(true, Ordering::SeqCst);
        return work.send(&done.report(number).encode());
    }
    let manner = Manner { default_delivery: default_delivery.0, settings: settings.0, inherits: inherits.0, lmtp };
    let result = deliver(&shell, &sender, &recipient, &manner, message);
    carried_out.store(true, Ordering::SeqCst);
    work.send(&report(number, &shell.take_output(), result).encode())
}

/// Leads a group of processes, if it does not yet, which is killed when nobody holds the other end of `work` any more, unless all is
/// carried out by then: what programs leave running in the background is theirs to leave.
fn end_with_the_asker(work: &Seqpacket) -> io::Result<Arc<AtomicBool>> {
    let own = rustix::process::getpid();
    if rustix::process::getpgrp() != own {
        rustix::process::setpgid(None, None)?;
    }
    let work = work.as_fd().try_clone_to_owned()?;
    let carried_out = Arc::new(AtomicBool::new(false));
    let is_carried_out = Arc::clone(&carried_out);
    std::thread::Builder::new().spawn(move || {
        let mut fds = [PollFd::new(&work, PollFlags::RDHUP)];
        while rustix::event::poll(&mut fds, None).is_err() {}
        if !is_carried_out.load(Ordering::SeqCst) {
            let _ = rustix::process::kill_process_group(own, Signal::KILL);
        }
    })?;
    Ok(carried_out)
}

fn deliver(shell: &Shell, sender: &Address, recipient: &Recipient, manner: &Manner, message: OwnedFd) -> Result<String, Failure> {
    let mut orders = Orders::read(manner)?;
    let message = sys::memfd::own_description(message).map_err(|e| Failure::system("Unable to read message", &e))?;
    let body = Body::new(message).map_err(|e| Failure::system("Unable to read message", &e))?;
    let delivery = delivery(sender, recipient);
    let home = Home::open(delivery.home)?;
    if let Some(fault) = home.fault()? {
        return Err(fault.into());
    }
    check_loop(&delivery, &body)?;
    let found = dot_qmail(&home, delivery.dash, delivery.ext)?;
    orders.lmtp = orders.lmtp.filter(|_| found.text.is_empty());
    let root = control::Root::from_env().map_err(|e| Failure::temporary(e.to_string()))?;
    let carrier = Carrier {
        home: &home,
        delivery,
        default_at: found.default_at,
        body: &body,
        host: &maildir::host_name(),
        now_s: sys::clock::unix_s(),
        shell: Some(shell),
        forwarder: &Forwarder::from_environment(&root),
        quota: orders.quota,
        inherits: &orders.inherits,
        warning: &orders.warning,
        lmtp: orders.lmtp.as_ref(),
    };
    let plan = Plan::new(&found.text, found.is_forward_only, &orders.default_delivery);
    Ok(carrier.carry_out(&plan)?.text())
}
