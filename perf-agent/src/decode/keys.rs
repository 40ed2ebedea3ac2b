//! Patterns of cache keys: `user:8412:profile` and `user:77:profile` are one, `user:*:profile`.
//!
//! A key is split at the usual separators; a segment that looks like an identifier (numbers, hex,
//! UUIDs, long random words, anything not ASCII) becomes `*`, and a word with a number behind it
//! keeps the word (`user8412` is `user*`). What is left may still tell secrets, so without
//! [`Options::raw`] only a hash of the pattern leaves the process: `key#1f3a9c2e`, the same on every
//! host and in every run, so that a known key can be looked up by whoever knows it.
//!
//! Own code because it runs once per command on the hot path: [`fingerprint`] walks the key once
//! and neither copies nor allocates; the text is built only for a pattern not met before.

use super::Options;

/// Bytes of a key that are looked at; a longer key ends in `*`.
pub const MAX_KEY: usize = 128;

const DIGIT: u8 = 1;
/// a to f, which are hex digits.
const HEX: u8 = 2;
const LETTER: u8 = 4;
const SEPARATOR: u8 = 8;
/// Control characters and everything outside ASCII.
const BINARY: u8 = 16;
/// Other printable ASCII.
const MARK: u8 = 32;

const CLASS: [u8; 256] = {
    let mut class = [BINARY; 256];
    let mut byte = 0;
    while byte < 256 {
        class[byte] = match byte as u8 {
            b'0'..=b'9' => DIGIT,
            b'a'..=b'f' | b'A'..=b'F' => HEX,
            b'g'..=b'z' | b'G'..=b'Z' => LETTER,
            // Braces mark the part of a key that decides its cluster slot.
            b':' | b'.' | b'/' | b'|' | b'-' | b'_' | b'{' | b'}' => SEPARATOR,
            b' '..=b'~' => MARK,
            _ => BINARY,
        };
        byte += 1;
    }
    class
};

/// What became of a part of a key.
enum Part<'a> {
    Separator(u8),
    Word(&'a [u8]),
    /// The word, then `*` for the rest; either may be empty.
    Folded(&'a [u8], &'a [u8]),
}

/// A hash of the key's pattern: equal for keys of the same pattern.
pub fn fingerprint(key: &[u8]) -> u64 {
    let mut hash = 0x243f_6a88_85a3_08d3;
    parts(key, |part| match part {
        Part::Separator(byte) => hash = mix(hash, u64::from(byte)),
        Part::Word(word) => hash = mix_bytes(hash, word),
        Part::Folded(word, _) => hash = mix(mix_bytes(hash, word), 0x100),
    });
    hash
}

/// The key's pattern as text. Never of use without [`Options::raw`]; see [`shown`].
pub fn pattern(key: &[u8]) -> String {
    let mut text = String::new();
    let mut push = |bytes: &[u8]| text.extend(bytes.iter().map(|b| char::from(*b)));
    parts(key, |part| match part {
        Part::Separator(byte) => push(&[byte]),
        Part::Word(word) => push(word),
        Part::Folded(word, _) => {
            push(word);
            push(b"*");
        }
    });
    text
}

/// The key's pattern as it may leave the process.
pub fn shown(key: &[u8], options: Options) -> String {
    if options.raw {
        return pattern(key);
    }
    let hash = fingerprint(key);
    format!("key#{:08x}", (hash >> 32) as u32 ^ hash as u32)
}

/// Folds 64 bits into a hash: a multiplication whose halves are combined, about 1 ns.
pub fn mix(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15;
    product as u64 ^ (product >> 64) as u64 ^ word.rotate_left(32)
}

fn mix_bytes(mut hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    for word in words {
        hash = mix(hash, u64::from_le_bytes(*word));
    }
    if !rest.is_empty() {
        hash = mix(hash, word(rest));
    }
    mix(hash, bytes.len() as u64)
}

/// At most eight bytes as a number, the first the lowest and zeros behind the last. Loads that
/// overlap take a third of the time of a copy of as many bytes as there are.
pub fn word(bytes: &[u8]) -> u64 {
    let length = bytes.len();
    match (bytes.first_chunk(), bytes.last_chunk(), bytes) {
        (Some(first), Some(last), _) => {
            let last = u64::from(u32::from_le_bytes(*last));
            u64::from(u32::from_le_bytes(*first)) | last << (8 * (length - 4))
        }
        (.., [first, .., last]) => {
            let middle = u64::from(bytes[length / 2]) << (8 * (length / 2));
            u64::from(*first) | middle | u64::from(*last) << (8 * (length - 1))
        }
        (.., [only]) => u64::from(*only),
        (.., []) => 0,
    }
}

fn parts<'a>(key: &'a [u8], mut part: impl FnMut(Part<'a>)) {
    let cut = key.len() > MAX_KEY;
    let key = &key[..key.len().min(MAX_KEY)];
    let mut at = 0;
    while at < key.len() {
        let byte = key[at];
        if CLASS[usize::from(byte)] == SEPARATOR {
            part(Part::Separator(byte));
            at += 1;
            continue;
        }
        if is_uuid(&key[at..]) {
            part(Part::Folded(&[], &key[at..at + 36]));
            at += 36;
            continue;
        }
        let segment = Segment::of(&key[at..]);
        let word = &key[at..at + segment.length];
        at += segment.length;
        match segment.kept() {
            _ if cut && at == key.len() => part(Part::Folded(&[], word)),
            Some(kept) if kept == word.len() => part(Part::Word(word)),
            Some(kept) => part(Part::Folded(&word[..kept], &word[kept..])),
            None => part(Part::Folded(&[], word)),
        }
    }
    if cut
        && key
            .last()
            .is_some_and(|b| CLASS[usize::from(*b)] == SEPARATOR)
    {
        part(Part::Folded(&[], &[]));
    }
}

/// Where in a key any other digit would give the same pattern: `0x0f` for such a byte, else 0.
/// `None` where other bytes were folded too: a key with random words does not come again, not even
/// but for its digits.
pub(super) fn free_digits<const N: usize>(key: &[u8]) -> Option<[u8; N]> {
    let (mut free, mut at, mut others) = ([0; N], 0, false);
    parts(key, |part| match part {
        Part::Separator(_) => at += 1,
        Part::Word(word) => at += word.len(),
        Part::Folded(word, rest) => {
            at += word.len();
            others |= !rest.iter().all(u8::is_ascii_digit);
            if let Some(free) = free.get_mut(at..at + rest.len()) {
                free.fill(0x0f);
            }
            at += rest.len();
        }
    });
    (!others && key.len() <= N).then_some(free)
}

/// Segments would split it, and one in sixteen of its middle groups has no digit.
fn is_uuid(bytes: &[u8]) -> bool {
    bytes.len() >= 36
        && bytes[8] == b'-'
        && bytes[..36].iter().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => *b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

/// What one walk over a segment tells.
struct Segment {
    length: usize,
    /// Classes met, ORed.
    seen: u8,
    digits: usize,
    /// Length before the first digit.
    before: usize,
    /// Something else than a digit stood behind a digit.
    mixed: bool,
}

impl Segment {
    fn of(bytes: &[u8]) -> Segment {
        let (mut length, mut seen, mut digits) = (0, 0, 0);
        let class = |at: usize| bytes.get(at).map(|byte| CLASS[usize::from(*byte)]);
        while let Some(class) = class(length).filter(|class| class & (SEPARATOR | DIGIT) == 0) {
            seen |= class;
            length += 1;
        }
        let before = length;
        while let Some(class) = class(length).filter(|class| *class != SEPARATOR) {
            digits += usize::from(class & DIGIT);
            seen |= class;
            length += 1;
        }
        Segment {
            length,
            seen,
            digits,
            before,
            mixed: before + digits < length,
        }
    }

    /// How much of the segment's beginning is a word to keep; None if it is an identifier.
    fn kept(&self) -> Option<usize> {
        let hex = self.seen & !(DIGIT | HEX) == 0;
        let identifier = self.seen & BINARY != 0
            || hex && self.length >= 8
            || self.length >= 24
            || self.digits > 0 && self.length >= 16 && (self.mixed || self.before >= 16)
            || self.mixed && self.digits >= 2;
        match () {
            () if identifier => None,
            () if self.digits == 0 || self.mixed => Some(self.length),
            () => Some(self.before),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_fold_and_words_stay() {
        for (key, expected) in [
            ("user:8412:profile", "user:*:profile"),
            ("user8412", "user*"),
            ("key:000000000012", "key:*"),
            ("myhash", "myhash"),
            ("session:3f2a9c", "session:*"),
            ("session:deadbeef", "session:*"),
            (
                "cart:550e8400-e29b-41d4-abcd-446655440000/items",
                "cart:*/items",
            ),
            ("api/v2/oauth2token", "api/v*/oauth2token"),
            ("job|2024-01-02|done", "job|*-*-*|done"),
            ("{tenant7}.queue_high", "{tenant*}.queue_high"),
            ("token:eyJhbGciOiJIUzI1NiJ9", "token:*"),
            ("name:J\u{e9}r\u{f4}me", "name:*"),
            ("a b,c=d", "a b,c=d"),
            ("", ""),
        ] {
            assert_eq!(pattern(key.as_bytes()), expected, "{key}");
        }
        let long = "seg:".repeat(40);
        assert_eq!(pattern(long.as_bytes()), "seg:".repeat(32) + "*");
        assert_eq!(
            pattern(&[b"a".as_slice(), &[b'x'; 200]].concat()),
            "*",
            "one long word"
        );
    }

    #[test]
    fn keys_of_one_pattern_have_one_fingerprint_and_it_never_changes() {
        let of = |key: &str| fingerprint(key.as_bytes());
        assert_eq!(of("user:1:x"), of("user:999:x"));
        assert_eq!(of("user1"), of("user22"));
        let patterns = [
            "user:*", "user*", "user", "*", "", "user:", ":user", "us:er",
        ];
        let keys = [
            "user:1", "user1", "user", "1", "", "user:", ":user", "us:er",
        ];
        let mut hashes: Vec<u64> = keys.iter().map(|k| of(k)).collect();
        for (key, pattern) in keys.iter().zip(patterns) {
            assert_eq!(super::pattern(key.as_bytes()), pattern);
        }
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), keys.len(), "patterns that differ collide");
        // Written down once: dashboards hold these names.
        let shown = shown(b"user:8412:profile", Options::default());
        assert_eq!(shown, "key#001e99b3");
        assert_eq!(
            super::shown(b"user:8412:profile", Options { raw: true }),
            "user:*:profile"
        );
    }
}
