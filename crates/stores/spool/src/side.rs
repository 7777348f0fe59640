//! Side files: bodies too long for a log record, on their way to the disk.
//!
//! A [`SideBody`] takes bytes without ever blocking; the side-file threads write them to `incoming/`, and when the message is
//! accepted they fsync the file and rename it into `bodies/`. A body that is dropped before is removed.
//! Memory is bounded by the caller: it stops reading from its client while [`SideBody::backlog`] is high.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A caller should read no more from its client while more than this waits for the disk.
pub const SIDE_BACKLOG_MAX: usize = 512 * 1024;

/// A body being written to a side file.
pub struct SideBody {
    pub(crate) shared: Arc<SideShared>,
}

/// What the owner of a [`SideBody`] and a side-file thread share.
pub(crate) struct SideShared {
    pub(crate) number: u64,
    pub(crate) inner: Mutex<SideInner>,
}

#[derive(Default)]
pub(crate) struct SideInner {
    /// Given, not yet written.
    pub(crate) chunks: VecDeque<Vec<u8>>,
    pub(crate) backlog: usize,
    /// Given in all.
    pub(crate) len: u64,
}

impl SideShared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, SideInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SideBody {
    /// Appends bytes. Errors of the disk show when the message is accepted: it is refused.
    pub fn write(&mut self, bytes: Vec<u8>) {
        let mut inner = self.shared.lock();
        inner.backlog = inner.backlog.saturating_add(bytes.len());
        inner.len = inner.len.saturating_add(bytes.len() as u64);
        inner.chunks.push_back(bytes);
    }

    /// Bytes given but not yet written; see [`SIDE_BACKLOG_MAX`] and [`crate::Completion::SideDrained`].
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.shared.lock().backlog
    }

    /// Bytes given in all.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.shared.lock().len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number that [`crate::Completion::SideDrained`] uses.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.shared.number
    }
}

impl std::fmt::Debug for SideBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SideBody({})", self.shared.number)
    }
}
