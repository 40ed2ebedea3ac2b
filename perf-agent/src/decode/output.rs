//! What decoders give, and the texts they name it by.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use super::{Direction, TraceId, key_texts::KeyTexts, keys, shapes::Shapes};

/// Texts kept at one time; what is new past it shares one text.
const MAX_TEXTS: usize = 16384;

/// A text in [`Output`]: a statement's shape or an error's code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TextId(pub u32);

/// The text of everything past [`MAX_TEXTS`].
pub const OTHER_TEXT: TextId = TextId(0);

/// What may leave the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Keys and values may be shown (`--unsafe-raw`). Otherwise texts hold no literal and keys only
    /// as a hash of their pattern.
    pub raw: bool,
}

/// A request and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The request's shape, without literals.
    pub text: TextId,
    /// When the piece with the request's first byte passed.
    pub started_ns: u64,
    /// When the piece with the answer's first byte passed.
    pub first_byte_ns: u64,
    /// When the piece with the answer's last byte passed.
    pub last_byte_ns: u64,
    /// How long it waited behind earlier requests of the same connection, part of the latency.
    pub queued_ns: u64,
    /// Code of the error it ended with: SQLSTATE, errno, status, the first word of a Redis error.
    pub error: Option<TextId>,
    /// Cache lookups in it that found something, and that found nothing.
    pub hits: u32,
    pub misses: u32,
    /// The trace that the request says it belongs to.
    pub trace: Option<TraceId>,
}

impl Exchange {
    /// From the request's first byte to the answer's last.
    pub fn latency_ns(&self) -> u64 {
        self.last_byte_ns.saturating_sub(self.started_ns)
    }
}

/// Why something could not be made an exchange of. Counted, never dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Anomaly {
    /// An answer to a request that was not seen: sent before the trace, or in a gap.
    Orphan,
    /// A request that was never answered: the connection or the trace ended, or its answer was lost.
    Unanswered,
    /// Bytes that are not this protocol.
    Malformed,
    /// Message boundaries were lost (a gap, malformed bytes) and found again.
    Resynced,
    /// More requests in flight than are kept.
    QueueFull,
    /// A part of the protocol that is recognised and not decoded, such as compression.
    Unsupported,
    /// An answer whose status refers to what was sent before the trace: counted as no error.
    StatusUnseen,
}

impl Anomaly {
    /// Name in `coverage.protocol`.
    pub const fn name(self) -> &'static str {
        match self {
            Anomaly::Orphan => "orphan_answers",
            Anomaly::Unanswered => "unanswered",
            Anomaly::Malformed => "malformed",
            Anomaly::Resynced => "resynced",
            Anomaly::QueueFull => "queue_full",
            Anomaly::Unsupported => "unsupported",
            Anomaly::StatusUnseen => "status_unseen",
        }
    }
}

/// State of a database session, as its server tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transaction {
    Idle,
    Open,
    /// Open, and every statement is refused until it is rolled back.
    Failed,
}

/// Takes what decoders find. One for all connections of a trace; whoever feeds a decoder drains it
/// after each call.
pub struct Output {
    pub options: Options,
    /// Exchanges that ended, in the order of their ends.
    pub exchanges: Vec<Exchange>,
    /// Since it was last drained.
    pub anomalies: Vec<(Anomaly, u64)>,
    /// The server said so at this time.
    pub transactions: Vec<(u64, Transaction)>,
    /// Bytes that were understood, of the requests and of the answers.
    pub decoded: [u64; 2],
    /// Texts by the requests they were made of.
    pub shapes: Shapes,
    key_texts: KeyTexts,
    texts: Vec<Box<str>>,
    ids: HashMap<Box<str>, TextId>,
    by_hash: HashMap<u64, TextId, BuildHasherDefault<Hashed>>,
}

/// Takes a key that is a hash already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Output {
    pub fn new(options: Options) -> Output {
        let mut output = Output {
            options,
            exchanges: Vec::new(),
            anomalies: Vec::new(),
            transactions: Vec::new(),
            decoded: [0; 2],
            shapes: Shapes::default(),
            key_texts: KeyTexts::default(),
            texts: Vec::new(),
            ids: HashMap::new(),
            by_hash: HashMap::default(),
        };
        output.text("(other statements)");
        output
    }

    /// The id of a text; the same text has the same id as long as the trace lasts.
    pub fn text(&mut self, text: &str) -> TextId {
        if let Some(id) = self.ids.get(text) {
            return *id;
        }
        if self.texts.len() >= MAX_TEXTS {
            return OTHER_TEXT;
        }
        let id = TextId(self.texts.len() as u32);
        self.texts.push(text.into());
        self.ids.insert(text.into(), id);
        id
    }

    /// The id of the text that `build` gives for what has this 64-bit hash, asked only when the hash
    /// is new: naming a request costs a lookup of some 5 ns and no text. Decoders share the hashes, so
    /// each mixes its protocol into them.
    pub fn shape(&mut self, hash: u64, build: impl FnOnce(Options) -> String) -> TextId {
        if let Some(id) = self.by_hash.get(&hash) {
            return *id;
        }
        let text = build(self.options);
        let id = self.text(&text);
        // What has no text of its own is not remembered either: memory stays bounded.
        if self.by_hash.len() < MAX_TEXTS {
            self.by_hash.insert(hash, id);
        }
        id
    }

    /// As [`Output::shape`], for a request of which `of` is a hash of all but its key.
    pub fn key_shape(
        &mut self,
        of: u64,
        key: &[u8],
        build: impl FnOnce(Options) -> String,
    ) -> TextId {
        if let Some(id) = self.key_texts.get(of, key) {
            return id;
        }
        let id = self.shape(keys::mix(of, keys::fingerprint(key)), build);
        self.key_texts.put(of, key, id);
        id
    }

    /// The text of an id.
    pub fn text_of(&self, id: TextId) -> &str {
        self.texts.get(id.0 as usize).map_or("", |text| text)
    }

    pub fn anomaly(&mut self, what: Anomaly, count: u64) {
        if count > 0 {
            self.anomalies.push((what, count));
        }
    }

    /// `count` more bytes of a direction were understood (those of a gap that was passed over by
    /// its message's length are not: they were not seen).
    pub fn decoded(&mut self, direction: Direction, count: usize) {
        self.decoded[direction as usize] += count as u64;
    }
}
