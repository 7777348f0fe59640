//! Which certificate is due, and what is noted of an attempt.
//!
//! An attempt counts as failed from before it begins until it has ended well: whatever ends this process, the next one does not ask the
//! authority again at once.

use crate::Trouble;
use crate::oracle::State;
use control::Acme;
use control::acme::Note;

/// Pause after a first failure, doubled with each further one up to the longest.
const PAUSE_MIN_S: u64 = 3600;
const PAUSE_MAX_S: u64 = 24 * 3600;
/// Renewals are spread over this part of a certificate's life before they are due.
const SPREAD_PART: u64 = 30;

/// When the certificate is to be had, in UNIX seconds; 0 is now. With `after_failures`, not before the pause after a failure is over.
#[must_use]
pub fn due_s(state: &State, config: &Acme, after_failures: bool) -> u64 {
    let note = &state.note;
    if after_failures && is_same(state, config) && note.failures > 0 {
        return note.next_s;
    }
    // One from another authority, as one for trials, is replaced; one that the administrator got elsewhere is renewed in its time.
    let is_others = !note.source.is_empty() && note.source != config.directory_text;
    if !state.is_issued || !state.covers || is_others {
        return 0;
    }
    renew_s(state, config)
}

/// Was the last attempt for what is wanted now?
fn is_same(state: &State, config: &Acme) -> bool {
    state.note.directory == config.directory_text && state.note.hosts == state.hosts.join(" ")
}

/// When it is renewed if all goes well.
#[must_use]
pub fn renew_s(state: &State, config: &Acme) -> u64 {
    let at_s = config.renew_s(state.not_before_s, state.not_after_s);
    // The moment that was drawn when it came, unless the configuration wants an earlier one.
    let is_drawn = state.note.renew_s > state.not_before_s && state.note.obtained_s > 0;
    if is_drawn { at_s.min(state.note.renew_s) } else { at_s }
}

/// What is noted before an attempt.
#[must_use]
pub fn begun(state: &State, config: &Acme, now_s: u64, random: u64) -> Note {
    let failures = if is_same(state, config) { state.note.failures.saturating_add(1) } else { 1 };
    Note {
        directory: config.directory_text.clone(),
        hosts: state.hosts.join(" "),
        tried_s: now_s,
        failures,
        next_s: now_s.saturating_add(pause_s(failures, random)),
        problem: "the attempt was interrupted".to_owned(),
        ..state.note.clone()
    }
}

/// What is noted when it failed.
#[must_use]
pub fn failed(begun: Note, trouble: &Trouble, now_s: u64) -> Note {
    Note { next_s: begun.next_s.max(now_s.saturating_add(trouble.retry_after_s)), problem: trouble.text.clone(), ..begun }
}

/// What is noted when it is there: `state` is of the new certificate.
#[must_use]
pub fn obtained(begun: Note, state: &State, config: &Acme, now_s: u64, random: u64) -> Note {
    let at_s = config.renew_s(state.not_before_s, state.not_after_s);
    let spread_s = state.not_after_s.saturating_sub(state.not_before_s) / SPREAD_PART;
    let renew_s = at_s.saturating_sub(random.checked_rem(spread_s).unwrap_or(0));
    let source = config.directory_text.clone();
    Note { source, obtained_s: now_s, renew_s, failures: 0, next_s: 0, problem: String::new(), ..begun }
}

/// An hour, doubled up to a day, and a quarter more or less.
fn pause_s(failures: u64, random: u64) -> u64 {
    let doublings = u32::try_from(failures.saturating_sub(1).min(10)).unwrap_or(10);
    let pause_s = PAUSE_MIN_S.saturating_mul(1 << doublings).min(PAUSE_MAX_S);
    (pause_s / 4 * 3).saturating_add(random.checked_rem(pause_s / 2).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::Root;

    const DAY_S: u64 = 86_400;

    fn config(text: &str) -> Acme {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        std::fs::write(root.control_file("acme"), format!("directory https://ca.test/d\n{text}")).unwrap();
        Acme::read(&root).unwrap().unwrap()
    }

    fn state() -> State {
        State {
            hosts: vec!["a.b".to_owned(), "c.d".to_owned()],
            is_issued: true,
            covers: true,
            not_before_s: 100 * DAY_S,
            not_after_s: 190 * DAY_S,
            note: Note::default(),
        }
    }

    #[test]
    fn what_nobody_vouches_for_or_lacks_a_host_is_due_now_and_the_rest_in_its_time() {
        let config = config("");
        assert_eq!(due_s(&state(), &config, true), 160 * DAY_S);
        assert_eq!(due_s(&State { is_issued: false, ..state() }, &config, true), 0);
        assert_eq!(due_s(&State { covers: false, ..state() }, &config, true), 0);
        let note = Note { source: "https://trial.test/".to_owned(), ..Note::default() };
        assert_eq!(due_s(&State { note, ..state() }, &config, true), 0, "from another authority");
    }

    #[test]
    fn failures_are_waited_for_by_the_hour_also_by_who_begins_anew() {
        let config = config("");
        let mut state = State { is_issued: false, ..state() };
        let (mut now, mut pauses) = (1000, Vec::new());
        for _ in 0..8 {
            let begun = begun(&state, &config, now, 0);
            assert!(begun.next_s > now && begun.problem.contains("interrupted"));
            state.note = failed(begun, &"no".into(), now);
            assert_eq!((due_s(&state, &config, true), due_s(&state, &config, false)), (state.note.next_s, 0));
            pauses.push(state.note.next_s - now);
            now = state.note.next_s;
        }
        assert_eq!(pauses, [2700, 5400, 10_800, 21_600, 43_200, 64_800, 64_800, 64_800]);
        assert!((0..10_000).all(|random| (2700..4500).contains(&pause_s(1, random * 7919))));
        // Another authority or other hosts are another matter.
        state.hosts.pop();
        assert_eq!(due_s(&state, &config, true), 0);
        let told = Trouble { text: "slow down".to_owned(), retry_after_s: 500_000 };
        assert_eq!(failed(Note::default(), &told, 7).next_s, 500_007, "the authority's own word counts");
    }

    #[test]
    fn a_renewal_is_drawn_once_and_spread() {
        let config = config("");
        let begun = begun(&state(), &config, 1000, 0);
        let drawn: Vec<u64> = (0..50).map(|n| obtained(begun.clone(), &state(), &config, 1000, n * 86_311).renew_s).collect();
        assert!(drawn.iter().all(|at| (157 * DAY_S..=160 * DAY_S).contains(at)) && drawn.iter().any(|at| *at != drawn[0]));
        let note = obtained(begun, &state(), &config, 1000, 5000);
        assert_eq!((note.failures, note.problem.as_str(), note.obtained_s), (0, "", 1000));
        let state = State { note, ..state() };
        assert_eq!(due_s(&state, &config, true), 160 * DAY_S - 5000);
    }
}
