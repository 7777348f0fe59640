//! Answers kept for as long as they hold, and one question for all who ask the same at once.
//!
//! Holds at most [`ENTRIES_MAX`] entries (past-holes R10); the oldest goes first. Keys are names in lower case.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;

/// Entries of one kind of records.
pub const ENTRIES_MAX: usize = 10_000;

/// An entry; its cell is empty while the first asker waits for the answer.
type Slot<T> = Rc<OnceCell<(T, Instant)>>;

/// Values by name.
#[derive(Debug)]
pub struct Cache<T> {
    entries: RefCell<Entries<T>>,
}

#[derive(Debug)]
struct Entries<T> {
    slots: HashMap<Rc<str>, Slot<T>>,
    /// The keys of `slots`, each once, oldest first.
    order: VecDeque<Rc<str>>,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self { entries: RefCell::new(Entries { slots: HashMap::new(), order: VecDeque::new() }) }
    }
}

impl<T: Clone> Cache<T> {
    /// The value of `key` if it still holds, else what `question` answers, with its life in seconds. Whoever asks for the same
    /// key meanwhile waits for that answer; if the asker is dropped, the next one asks itself.
    pub async fn get(&self, key: &str, question: impl Future<Output = (T, u32)>) -> T {
        let slot = self.slot(key);
        let entry = slot.get_or_init(|| async {
            let (value, ttl_s) = question.await;
            (value, Instant::now() + Duration::from_secs(u64::from(ttl_s)))
        });
        entry.await.0.clone()
    }

    fn slot(&self, key: &str) -> Slot<T> {
        let mut entries = self.entries.borrow_mut();
        if let Some(slot) = entries.slots.get_mut(key) {
            if slot.get().is_some_and(|(_, until)| *until <= Instant::now()) {
                *slot = Slot::default();
            }
            return Rc::clone(slot);
        }
        while entries.order.len() >= ENTRIES_MAX {
            let oldest = entries.order.pop_front();
            oldest.and_then(|key| entries.slots.remove(&key));
        }
        let key: Rc<str> = key.into();
        let slot = Slot::default();
        entries.order.push_back(Rc::clone(&key));
        entries.slots.insert(key, Rc::clone(&slot));
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn on_tokio(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(test);
    }

    #[test]
    fn one_question_for_many_and_again_when_it_has_run_out() {
        on_tokio(async {
            let (cache, asked) = (Cache::default(), Cell::new(0));
            let question = || async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                asked.set(asked.get() + 1);
                (asked.get(), 5)
            };
            let both = tokio::join!(cache.get("a", question()), cache.get("a", question()), cache.get("b", question()));
            assert_eq!((both.0, asked.get()), (both.1, 2));
            tokio::time::advance(Duration::from_secs(4)).await;
            assert_eq!(cache.get("a", question()).await, both.0);
            tokio::time::advance(Duration::from_secs(2)).await;
            assert_eq!(cache.get("a", question()).await, 3);
        });
    }

    #[test]
    fn an_asker_who_leaves_is_replaced() {
        on_tokio(async {
            let cache = Cache::default();
            let never = async {
                std::future::pending::<()>().await;
                (1, 5)
            };
            let left = tokio::time::timeout(Duration::from_secs(1), cache.get("a", never)).await;
            assert!(left.is_err());
            assert_eq!(cache.get("a", async { (2, 5) }).await, 2);
        });
    }

    #[test]
    fn the_oldest_goes_first() {
        on_tokio(async {
            let cache = Cache::default();
            for number in 0..=ENTRIES_MAX {
                cache.get(&number.to_string(), async { (number, 1000) }).await;
            }
            assert_eq!(cache.entries.borrow().slots.len(), ENTRIES_MAX);
            assert_eq!(cache.entries.borrow().order.len(), ENTRIES_MAX);
            assert_eq!(cache.get("1", async { (0, 1) }).await, 1);
            assert_eq!(cache.get("0", async { (7, 1) }).await, 7);
        });
    }
}
