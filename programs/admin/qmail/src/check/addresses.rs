//! Addresses of this host that are named: can the listeners of control/listen have theirs, and is control/outgoingip one of ours?

use std::io;
use std::net::{SocketAddr, UdpSocket};

use control::{Ids, Listener, Root};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::Findings;
use crate::admin::Admin;

pub(super) fn check(root: &Root, found: &mut Findings) {
    // What another user may take says nothing of what the system may.
    if !rustix::process::geteuid().is_root() && matches!(root.ids(), Ok(Ids::Table(_)) | Err(_)) {
        return;
    }
    // What is wrong with the lines is said elsewhere.
    let listeners = root.listen().unwrap_or_default();
    let text = root.text("listen").ok().flatten().unwrap_or_default();
    let numbers: Vec<usize> = users::list_lines(&text).map(|(number, _)| number).collect();
    let is_running = Admin::send(root).is_ok();
    for (listener, number) in listeners.iter().zip(numbers) {
        bindable(root, listener, number, is_running, found);
    }
    outgoing(root, found);
}

/// While the system runs its own sockets are there, and only the address is tried.
fn bindable(root: &Root, listener: &Listener, number: usize, is_running: bool, found: &mut Findings) {
    let port = if is_running { 0 } else { listener.address.port() };
    let address = SocketAddr::new(listener.address.ip(), port);
    let Err(error) = bind(address) else { return };
    let said = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there, and nothing starts; stop it (`ss -ltnp` names it), or take another port"
        }
        io::ErrorKind::AddrNotAvailable => {
            let problem = "is no address of this host, and nobody is served there before it is one";
            let cure = "write one of those that `ip address` lists";
            let said = format!("line {number}: {}: {problem}; {cure}", listener.address);
            return found.warning(&root.control_file("listen"), said);
        }
        io::ErrorKind::PermissionDenied => "only root may listen there; run qmail as root, or take a port above 1023",
        _ => return,
    };
    found.error(&root.control_file("listen"), format!("line {number}: {}: {said}", listener.address));
}

/// Takes the address for a moment, without listening.
fn bind(address: SocketAddr) -> io::Result<()> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
    // Connections that have just ended do not count; who listens does.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    Ok(rustix::net::bind(&socket, &address)?)
}

fn outgoing(root: &Root, found: &mut Findings) {
    let Ok(remote) = control::Remote::read(root) else { return };
    let addresses = [remote.outgoing_v4, remote.outgoing_v6];
    for address in addresses.into_iter().flatten() {
        if UdpSocket::bind((address, 0)).is_err() {
            let text = root.text("outgoingip").ok().flatten().unwrap_or_default();
            let shown = address.to_string();
            let line = users::list_lines(&text).find(|(_, line)| *line == shown.as_bytes()).map_or(1, |(number, _)| number);
            let problem = format!("line {line}: {shown} is no address of this host, and no mail goes out from it");
            found.error(&root.control_file("outgoingip"), format!("{problem}; write one of those that `ip address` lists"));
        }
    }
}
