//! What replies mean for the commands they answer: errors, hits and misses, subscriptions.

use super::{
    super::Outcome,
    commands::{Effect, Lookup},
    replies::Facts,
};

/// What must be known of a request to read its answer.
#[derive(Clone, Copy)]
pub struct Asked {
    pub lookup: Lookup,
    pub effect: Effect,
    pub arguments: u32,
    /// Answers that came of those to a subscription.
    pub answers: u32,
}

/// Subscriptions, as the server counts them.
#[derive(Default)]
pub struct Subscriptions {
    pub channels: u32,
    pub patterns: u32,
    pub shards: u32,
}

/// First words of what is published to a subscriber.
pub const MESSAGES: &[&[u8]] = &[b"message", b"pmessage", b"smessage"];
/// First words of what answers a subscription.
pub const CHANNEL_ANSWERS: &[&[u8]] = &[
    b"subscribe",
    b"psubscribe",
    b"ssubscribe",
    b"unsubscribe",
    b"punsubscribe",
    b"sunsubscribe",
];

impl Subscriptions {
    /// Whether pushes may come.
    pub fn any(&self) -> bool {
        self.channels + self.patterns + self.shards > 0
    }

    /// How many others of a kind there are beside the one that is given up.
    pub fn others(&self, word: &[u8]) -> u32 {
        let of_kind = match word {
            b"punsubscribe" => self.patterns,
            b"sunsubscribe" => self.shards,
            _ => self.channels,
        };
        of_kind.saturating_sub(1)
    }

    /// Channels and patterns are told as one number, shard channels as another.
    pub fn note(&mut self, facts: &Facts) {
        let now = u32::try_from(facts.integer).unwrap_or(0);
        match facts.word() {
            b"subscribe" | b"unsubscribe" => self.channels = now.saturating_sub(self.patterns),
            b"psubscribe" | b"punsubscribe" => self.patterns = now.saturating_sub(self.channels),
            _ => self.shards = now,
        }
    }
}

/// What an answer says of its request.
#[inline]
pub fn outcome(asked: &Asked, facts: &Facts) -> Outcome {
    if facts.error.is_some() {
        return Outcome {
            error: facts.error,
            ..Outcome::default()
        };
    }
    let one = |hit: bool| (u32::from(hit), u32::from(!hit));
    let (hits, misses) = match asked.lookup {
        Lookup::None => (0, 0),
        Lookup::Value => one(!facts.null),
        Lookup::Each => (facts.values, facts.nulls),
        Lookup::Any => one(facts.values > 0),
        Lookup::Found => {
            let found = u32::try_from(facts.integer).unwrap_or(0);
            (found, asked.arguments.saturating_sub(found))
        }
        Lookup::Positive => one(facts.integer > 0),
        Lookup::Rows => one(facts.elements > 0 || facts.length > 0),
        Lookup::Ttl => one(facts.integer != -2),
        Lookup::Type => one(facts.word() != b"none"),
    };
    Outcome {
        error: None,
        hits,
        misses,
    }
}
