//! What qmail-getpw said a moment ago about a local part, once it was found to be true: uid and home have been checked.
//!
//! Mail for one user comes in bursts, and asking costs more than all else that this process does for a letter. Only people are
//! kept: a name that was nobody's may be somebody's the next moment. An account that was removed, or a home that went to another
//! user, is noticed after [`FRESH_MAX`]; until then the worker, which has the rights of that uid and no more, fails or not.

use std::collections::HashMap;
use std::time::Duration;

use crate::target::Claim;

/// Age up to which a claim is believed.
const FRESH_MAX: Duration = Duration::from_secs(5);
/// Claims kept; each takes some hundred bytes.
const CLAIMS_MAX: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Claims(HashMap<Vec<u8>, (Claim, Duration)>);

impl Claims {
    /// The claim for `local`, if it is fresh at `now`.
    #[must_use]
    pub(crate) fn get(&self, local: &[u8], now: Duration) -> Option<Claim> {
        self.0.get(local).filter(|(_, since)| now.saturating_sub(*since) < FRESH_MAX).map(|(claim, _)| claim.clone())
    }

    /// Keeps a claim that holds at `now`.
    pub(crate) fn insert(&mut self, local: Vec<u8>, claim: Claim, now: Duration) {
        if self.0.len() >= CLAIMS_MAX {
            self.0.retain(|_, (_, since)| now.saturating_sub(*since) < FRESH_MAX);
        }
        if self.0.len() < CLAIMS_MAX {
            self.0.insert(local, (claim, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::Id;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn claim(user: &str) -> Claim {
        let id = Id { uid: 1001, gid: 1001 };
        Claim { user: user.into(), id, home: "/home/x".into(), dash: "".into(), ext: "".into() }
    }

    #[test]
    fn a_claim_is_believed_for_some_seconds() {
        let mut claims = Claims::default();
        claims.insert(b"ann".to_vec(), claim("ann"), s(100));
        assert_eq!(claims.get(b"ann", s(104)), Some(claim("ann")));
        assert_eq!(claims.get(b"ann", s(105)), None);
        assert_eq!(claims.get(b"Ann", s(100)), None, "the split of a local part depends on its spelling");
    }

    #[test]
    fn there_are_not_more_than_so_many() {
        let mut claims = Claims::default();
        for n in 0..CLAIMS_MAX + 10 {
            claims.insert(format!("u{n}").into_bytes(), claim("u"), s(1));
        }
        assert_eq!(claims.0.len(), CLAIMS_MAX);
        claims.insert(b"late".to_vec(), claim("late"), s(10));
        assert_eq!(claims.0.len(), 1, "old ones make room");
    }
}
