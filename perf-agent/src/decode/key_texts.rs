//! Texts of the keys met last: a key that differs from one of them only in the digits its pattern
//! leaves out has the same text.
//!
//! A walk over `user:0008412:profile` and a lookup by its hash take some 60 ns, the comparison 6; of the
//! decoding of a pipeline of GETs they were a quarter.

use super::{TextId, keys};

/// Longest key kept.
const MAX_LENGTH: usize = 48;
const WORDS: usize = MAX_LENGTH / 8;
/// Keys kept, of all connections.
const SLOTS: usize = 64;

#[derive(Clone, Copy, Default)]
struct Slot {
    /// What the text is of beside the key.
    of: u64,
    /// 0 in an empty slot.
    length: usize,
    key: [u64; WORDS],
    /// See [`keys::free_digits`].
    free: [u64; WORDS],
    text: TextId,
}

/// See the module.
pub struct KeyTexts {
    slots: Box<[Slot; SLOTS]>,
}

impl Default for KeyTexts {
    fn default() -> KeyTexts {
        KeyTexts {
            slots: Box::new([Slot::default(); SLOTS]),
        }
    }
}

impl KeyTexts {
    /// The text that was [put](KeyTexts::put) for `of` and a key of the same pattern, if it is still
    /// there.
    pub fn get(&self, of: u64, key: &[u8]) -> Option<TextId> {
        let slot = &self.slots[place(of, key)?];
        (slot.of == of && slot.length == key.len() && slot.fits(key)).then_some(slot.text)
    }

    /// Notes the text of `of` and a key.
    pub fn put(&mut self, of: u64, key: &[u8], text: TextId) {
        let Some(place) = place(of, key) else { return };
        let Some(free) = keys::free_digits::<MAX_LENGTH>(key) else {
            return;
        };
        let mut slot = Slot {
            of,
            length: key.len(),
            text,
            ..Slot::default()
        };
        let free = free.chunks(8).map(keys::word);
        let key = key.chunks(8).map(keys::word);
        slot.free
            .iter_mut()
            .zip(free)
            .for_each(|(to, from)| *to = from);
        slot.key
            .iter_mut()
            .zip(key)
            .for_each(|(to, from)| *to = from);
        self.slots[place] = slot;
    }
}

impl Slot {
    /// Whether a key of the same length is the same but for free digits.
    fn fits(&self, key: &[u8]) -> bool {
        let (words, rest) = key.as_chunks();
        let mut differs = 0;
        for ((word, key), free) in words.iter().zip(&self.key).zip(&self.free) {
            differs |= other(u64::from_le_bytes(*word), *key, *free);
        }
        if let (Some(key), Some(free)) = (self.key.get(words.len()), self.free.get(words.len())) {
            differs |= other(keys::word(rest), *key, *free);
        }
        differs == 0
    }
}

/// Not 0 where eight bytes differ in more than free digits: digits are 0x30 to 0x39, so that upper
/// halves are equal, and the lower half plus 6 does not go over.
fn other(word: u64, key: u64, free: u64) -> u64 {
    const SIX: u64 = 0x0606_0606_0606_0606;
    const OVER: u64 = 0x1010_1010_1010_1010;
    (word ^ key) & !free | ((word & free) + (SIX & free)) & OVER
}

/// The slot of a key; none for keys that are not kept.
fn place(of: u64, key: &[u8]) -> Option<usize> {
    let first = usize::from(*key.first()?);
    let place = (of as usize).wrapping_add(key.len() + first * 5) % SLOTS;
    (key.len() <= MAX_LENGTH).then_some(place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_found_by_another_of_its_pattern_and_length_only() {
        let mut texts = KeyTexts::default();
        for (n, key) in ["user:0041:name", "a", "k9", "", "v2x:1", "id:3f2a9c41", "1"]
            .into_iter()
            .enumerate()
        {
            texts.put(7, key.as_bytes(), TextId(n as u32));
        }
        texts.put(7, &[b'x'; MAX_LENGTH + 1], TextId(99));
        for (key, expected) in [
            ("user:0041:name", Some(0)),
            ("user:9999:name", Some(0)),
            ("user:999:name", None),
            ("user:99:9:name", None),
            ("user:99;9:name", None),
            ("user:999?:name", None),
            ("user:999/:name", None),
            ("user:9999:nama", None),
            ("a", Some(1)),
            ("k0", Some(2)),
            ("kk", None),
            ("", None),
            ("v2x:8", Some(4)),
            // A digit that stays in the pattern.
            ("v3x:8", None),
            // Letters were folded: not kept.
            ("id:3f2a9c41", None),
            ("1", Some(6)),
        ] {
            assert_eq!(texts.get(7, key.as_bytes()).map(|t| t.0), expected, "{key}");
        }
        assert_eq!(texts.get(8, b"a"), None, "of another request");
        assert_eq!(texts.get(7, &[b'x'; MAX_LENGTH + 1]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn what_is_found_is_the_text_of_the_same_pattern(
            keys in proptest::collection::vec("[a-c:_0-9;]{0,50}|[uk]:[0-9]{3}:[a-z]?|[0-9]{1,3}", 1..40),
        ) {
            let mut texts = KeyTexts::default();
            for key in &keys {
                let text = TextId(keys::fingerprint(key.as_bytes()) as u32);
                if let Some(found) = texts.get(1, key.as_bytes()) {
                    prop_assert_eq!(found, text, "{}", key);
                }
                texts.put(1, key.as_bytes(), text);
            }
        }
    }
}
