//! Root's questions on admin/remote.sock: which addresses could not be connected to lately (qmail-tcpto(8)), and that they be forgotten
//! (qmail-tcpok(8)).

use std::io;
use std::rc::Rc;

use ipc::Message as _;
use ipc::admin::{RemoteAnswer, RemoteRequest, UnreachedRow};
use ipc_async::{Listener, Packets};
use tokio::task::spawn_local;

use crate::hosts::Bad;
use crate::job::Courier;

/// Rows of a datagram: each has an address of at most 45 bytes and 20 more.
const ROWS_MAX: usize = 400;

/// Serves connections for ever; `callers` says which uids may ask.
///
/// # Errors
/// The listening socket is gone.
pub async fn serve(listener: &Listener, courier: &Rc<Courier>, callers: impl Fn(u32) -> bool) -> io::Result<()> {
    loop {
        let connection = listener.accept().await?;
        if connection.peer().is_ok_and(|peer| callers(peer.uid)) {
            spawn_local(talk(connection, Rc::clone(courier)));
        }
    }
}

/// One request at a time, until the connection ends or says what is none.
async fn talk(connection: Packets, courier: Rc<Courier>) {
    while let Ok(Some((datagram, _))) = connection.recv().await {
        let answers = match RemoteRequest::decode(&datagram) {
            Ok(RemoteRequest::Unreached {}) => unreached(&courier.bad),
            Ok(RemoteRequest::Forget {}) => {
                courier.bad.forget();
                courier.no_qmtp.forget();
                vec![RemoteAnswer::Ok {}]
            }
            Err(_) => return,
        };
        for answer in answers {
            if connection.send(&answer.encode()).await.is_err() {
                return;
            }
        }
    }
}

/// In the order of the addresses, the last answer marked so.
fn unreached(bad: &Bad) -> Vec<RemoteAnswer> {
    let mut known = bad.known();
    known.sort_by_key(|(address, ..)| *address);
    let row = |(address, ago, count): &(std::net::IpAddr, std::time::Duration, u32)| UnreachedRow {
        address: address.to_string().as_str().into(),
        ago_s: ago.as_secs(),
        count: *count,
    };
    let mut answers: Vec<Vec<UnreachedRow>> = known.chunks(ROWS_MAX).map(|rows| rows.iter().map(row).collect()).collect();
    let last = answers.pop().unwrap_or_default();
    let before = answers.into_iter().map(|rows| RemoteAnswer::Unreached { rows, last: false });
    before.chain([RemoteAnswer::Unreached { rows: last, last: true }]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::DATAGRAM_LEN_MAX;

    #[test]
    fn any_number_of_addresses_fits_into_datagrams() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            for count in [0u16, 1, 400, 401, 3000] {
                let bad = Bad::default();
                for n in 0..count {
                    bad.failed(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, n).into());
                }
                let (mut rows_in_all, answers) = (0, unreached(&bad));
                for (at, answer) in answers.iter().enumerate() {
                    assert!(answer.encode().len() <= DATAGRAM_LEN_MAX);
                    let RemoteAnswer::Unreached { rows, last } = answer else { panic!("{answer:?}") };
                    assert_eq!(*last, at + 1 == answers.len());
                    assert!(rows.iter().all(|row| row.count == 1));
                    rows_in_all += rows.len();
                }
                assert_eq!(rows_in_all, usize::from(count));
            }
        });
    }
}
