//! qmail-tcpto(8) and qmail-tcpok(8): the addresses that qmail-remote could not connect to lately.

use control::Root;
use ipc::admin::{RemoteAnswer, RemoteRequest, UnreachedRow};

use crate::Failure;
use crate::admin::Admin;

/// A line for each of them, by address.
///
/// # Errors
/// Not running, or qmail-remote is gone.
pub fn show(root: &Root) -> Result<Vec<u8>, Failure> {
    let answers = Admin::remote(root)?.unreached(&RemoteRequest::Unreached {})?;
    let rows = answers.iter().flat_map(|answer| match answer {
        RemoteAnswer::Unreached { rows, .. } => rows.as_slice(),
        RemoteAnswer::Ok {} => &[],
    });
    Ok(rows.map(line).collect::<String>().into_bytes())
}

/// They count as well again.
///
/// # Errors
/// As [`show`].
pub fn forget(root: &Root) -> Result<Vec<u8>, Failure> {
    Admin::remote(root)?.unreached(&RemoteRequest::Forget {}).map(|_| Vec::new())
}

fn line(row: &UnreachedRow) -> String {
    let address = wire::escape::visible(&row.address);
    format!("{address} timed out {} seconds ago; # recent timeouts: {}\n", row.ago_s, row.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_classic_form() {
        let row = UnreachedRow { address: "2001:db8::1".into(), ago_s: 77, count: 2 };
        assert_eq!(line(&row), "2001:db8::1 timed out 77 seconds ago; # recent timeouts: 2\n");
    }
}
