//! Which text was made of which bytes: so that a request seen before is not normalized again.

use std::hash::{BuildHasher, Hash, RandomState};

use super::TextId;
use super::output::OTHER_TEXT;

/// Requests remembered, for all connections together; 16 bytes each.
const SLOTS: usize = 8192;

/// A table without chains: what falls into a slot takes it over, so texts that never come again
/// (those with literals) cost no more than the slot.
///
/// Requests are told apart by a 64-bit hash alone; its key is random for each run, so that no peer
/// can make up two requests that share one.
pub struct Shapes {
    hasher: RandomState,
    /// Hash 0 is an empty slot.
    slots: Vec<(u64, TextId)>,
    buffer: String,
}

impl Default for Shapes {
    fn default() -> Self {
        Shapes {
            hasher: RandomState::new(),
            slots: Vec::new(),
            buffer: String::new(),
        }
    }
}

impl Shapes {
    /// Hash of a request's bytes, with all that decides what is made of them.
    pub fn hash(&self, of: &impl Hash) -> u64 {
        self.hasher.hash_one(of)
    }

    pub fn get(&self, hash: u64) -> Option<TextId> {
        let (of, id) = *self.slots.get(hash as usize % SLOTS)?;
        (of == hash && hash != 0).then_some(id)
    }

    /// Room to build a text in; [`Shapes::put`] takes it back.
    pub fn take_buffer(&mut self) -> String {
        std::mem::take(&mut self.buffer)
    }

    pub fn put(&mut self, hash: u64, id: TextId, buffer: String) {
        self.buffer = buffer;
        if self.slots.is_empty() {
            self.slots.resize(SLOTS, (0, OTHER_TEXT));
        }
        self.slots[hash as usize % SLOTS] = (hash, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_found_until_another_takes_its_slot() {
        let mut shapes = Shapes::default();
        assert_eq!(shapes.get(7), None);
        shapes.put(7, TextId(1), String::new());
        assert_eq!(shapes.get(7), Some(TextId(1)));
        assert_eq!(shapes.get(7 + SLOTS as u64), None);
        shapes.put(7 + SLOTS as u64, TextId(2), String::new());
        assert_eq!(shapes.get(7), None);
    }
}
