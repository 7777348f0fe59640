//! A sorted map from message ids to small values: 4 bytes and the value for each, no more.
//!
//! Ids grow, so nearly every insert is a push at the end of the list of the segment where the message was first accepted;
//! a removed value is only marked, and the list is cleaned when half of it is dead. A million messages cost no rehashing ever.

use std::collections::BTreeMap;

/// Bits of an id within its segment ([`crate::MessageId`]).
const HOME_BITS: u32 = 23;
/// Marks a removed slot; ids within a segment never reach it.
const DEAD: u32 = 1 << 31;

struct Slot<T> {
    key: u32,
    value: T,
}

struct Home<T> {
    /// Sorted by key without [`DEAD`].
    slots: Vec<Slot<T>>,
    dead: usize,
}

/// See the module.
pub(crate) struct Table<T> {
    homes: BTreeMap<u64, Home<T>>,
    len: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { homes: BTreeMap::new(), len: 0 }
    }
}

fn split(id: u64) -> (u64, u32) {
    (id >> HOME_BITS, u32::try_from(id & ((1 << HOME_BITS) - 1)).unwrap_or(0))
}

impl<T: Copy> Table<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        let (home, key) = split(id);
        let slots = &self.homes.get(&home)?.slots;
        let at = slots.binary_search_by_key(&key, |slot| slot.key & !DEAD).ok()?;
        slots.get(at).filter(|slot| slot.key == key).map(|slot| &slot.value)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let (home, key) = split(id);
        let slots = &mut self.homes.get_mut(&home)?.slots;
        let at = slots.binary_search_by_key(&key, |slot| slot.key & !DEAD).ok()?;
        slots.get_mut(at).filter(|slot| slot.key == key).map(|slot| &mut slot.value)
    }

    /// Inserts or replaces.
    pub(crate) fn insert(&mut self, id: u64, value: T) {
        let (number, key) = split(id);
        if !self.homes.contains_key(&number)
            && let Some(mut last) = self.homes.last_entry()
        {
            // Its segment is full now: give back what doubling reserved.
            last.get_mut().slots.shrink_to_fit();
        }
        let home = self.homes.entry(number).or_insert_with(|| Home { slots: Vec::new(), dead: 0 });
        let slot = Slot { key, value };
        if home.slots.last().is_none_or(|last| last.key & !DEAD < key) {
            home.slots.push(slot);
            self.len += 1;
            return;
        }
        match home.slots.binary_search_by_key(&key, |slot| slot.key & !DEAD) {
            Ok(at) => {
                if let Some(old) = home.slots.get_mut(at) {
                    if old.key & DEAD != 0 {
                        home.dead -= 1;
                        self.len += 1;
                    }
                    *old = slot;
                }
            }
            Err(at) => {
                home.slots.insert(at, slot);
                self.len += 1;
            }
        }
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let (number, key) = split(id);
        let home = self.homes.get_mut(&number)?;
        let at = home.slots.binary_search_by_key(&key, |slot| slot.key & !DEAD).ok()?;
        let slot = home.slots.get_mut(at).filter(|slot| slot.key == key)?;
        slot.key |= DEAD;
        let value = slot.value;
        home.dead += 1;
        self.len -= 1;
        if home.dead == home.slots.len() {
            self.homes.remove(&number);
        } else if home.dead * 2 > home.slots.len() {
            home.slots.retain(|slot| slot.key & DEAD == 0);
            home.slots.shrink_to_fit();
            home.dead = 0;
        }
        Some(value)
    }

    /// In the order of the ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.from(0)
    }

    /// From the id `first` on, in order.
    pub(crate) fn from(&self, first: u64) -> impl Iterator<Item = (u64, &T)> {
        let (home, key) = split(first);
        self.homes.range(home..).flat_map(move |(number, slots)| {
            let skip = if *number == home { slots.slots.partition_point(|slot| slot.key & !DEAD < key) } else { 0 };
            let live = slots.slots.iter().skip(skip).filter(|slot| slot.key & DEAD == 0);
            live.map(move |slot| ((number << HOME_BITS) | u64::from(slot.key), &slot.value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_a_map(steps in proptest::collection::vec((0..3_u64, 0..40_u64, any::<bool>()), 0..400)) {
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            for (number, (home, key, insert)) in steps.into_iter().enumerate() {
                let id = home << HOME_BITS | key;
                if insert {
                    table.insert(id, number);
                    map.insert(id, number);
                } else {
                    prop_assert_eq!(table.remove(id), map.remove(&id));
                }
                prop_assert_eq!(table.get(id), map.get(&id));
                prop_assert_eq!(table.len(), map.len());
            }
            prop_assert!(table.iter().map(|(id, value)| (id, *value)).eq(map.clone()));
            prop_assert!(table.from(20).map(|(id, _)| id).eq(map.range(20..).map(|(id, _)| *id)));
        }
    }
}
