//! memcached: the text protocol with its meta commands, and the binary protocol.
//!
//! - Answers come in order. A quiet request (meta `q`, binary `GETQ` and the like) is answered only
//!   if it has something to tell; that it was not shows with the next answer to a later request, and
//!   it ends there: a quiet get as a miss, others as done. Quiet requests are told apart by their
//!   opaque or key, where they have one, else by what their answers look like.
//! - `noreply` is never answered: such an exchange ends with its request.
//! - Hits and misses are `get_hits` and `get_misses` of `stats`, per key; those of `gat`, binary
//!   `GAT` and `mg` that touches are among `touch_hits` and `touch_misses` there.
//! - `NOT_FOUND`, `NOT_STORED` and `EXISTS` are answers, not errors.
//! - The text has the name of the text protocol's command for the binary opcodes too.
//!
//! Memory of a connection: at most [`text::KEEP`] bytes of a request's line while it is open,
//! [`super::lexer::KEEP`] of anything else, and what is outstanding.
//!
//! Own code: crates for memcached are clients; none reads a stream of both directions in pieces.

mod binary;
mod text;

#[cfg(test)]
mod tests;

use super::{
    Decoder, Direction, Entry, Joined, Outcome, Output, Outstanding, Protocol, TextId, Verdict,
    keys,
};

pub const ENTRY: Entry = Entry {
    protocol: Protocol::Memcached,
    detect,
    decoder: |joined| Box::new(Memcached::Unseen(joined)),
};

/// Tells memcached's shapes from other protocols' in [`Output::shape`].
const SHAPES: u64 = 0x4d45_4d43_4143_4845;

fn detect(direction: Direction, bytes: &[u8]) -> Verdict {
    match bytes.first() {
        None => Verdict::Unsure,
        Some(&binary::REQUEST | &binary::RESPONSE) => binary::detect(direction, bytes),
        Some(_) => text::detect(direction, bytes),
    }
}

/// The text of a command with its key's pattern.
fn shape(name: &str, key: Option<&[u8]>, output: &mut Output) -> TextId {
    let mut hash = keys::mix(SHAPES, keys::fingerprint(name.as_bytes()));
    if let Some(key) = key {
        hash = keys::mix(hash, keys::fingerprint(key));
    }
    output.shape(hash, |options| match key {
        Some(key) => format!("{name} {}", keys::shown(key, options)),
        None => name.to_owned(),
    })
}

/// Finds the request that is answered, which may stand behind quiet ones that were not: these end
/// with it. An answer that fits none is an orphan.
fn find<T>(
    outstanding: &mut Outstanding<T>,
    at_ns: u64,
    is_it: impl Fn(&T) -> bool,
    silence: impl Fn(&T) -> Option<Outcome>,
    output: &mut Output,
) -> bool {
    let mut found = false;
    let at = outstanding.position(|asked| {
        found = is_it(asked);
        found || silence(asked).is_none()
    });
    for _ in 0..at.filter(|_| found).unwrap_or(0) {
        if let Some(outcome) = outstanding.next().and_then(&silence) {
            outstanding.answer(at_ns, outcome, output);
        }
    }
    found
}

/// One connection; which of the two protocols it is shows with its first byte.
enum Memcached {
    Unseen(Joined),
    Text(Box<text::Text>),
    Binary(Box<binary::Binary>),
}

impl Memcached {
    fn inner(&mut self) -> Option<&mut dyn Decoder> {
        match self {
            Memcached::Unseen(_) => None,
            Memcached::Text(text) => Some(&mut **text),
            Memcached::Binary(binary) => Some(&mut **binary),
        }
    }
}

impl Decoder for Memcached {
    fn bytes(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output) {
        if let (Memcached::Unseen(joined), Some(first)) = (&*self, bytes.first()) {
            *self = match *first {
                binary::REQUEST | binary::RESPONSE => {
                    Memcached::Binary(Box::new(binary::Binary::new(*joined)))
                }
                _ => Memcached::Text(Box::new(text::Text::new(*joined))),
            };
        }
        if let Some(inner) = self.inner() {
            inner.bytes(direction, at_ns, bytes, output);
        }
    }

    fn gap(&mut self, direction: Direction, at_ns: u64, count: u64, output: &mut Output) {
        if let Memcached::Unseen(joined) = self {
            // Whatever comes may be in the middle of a message.
            *joined = Joined::Late;
        }
        if let Some(inner) = self.inner() {
            inner.gap(direction, at_ns, count, output);
        }
    }

    fn end(&mut self, output: &mut Output) {
        if let Some(inner) = self.inner() {
            inner.end(output);
        }
    }

    fn in_flight(&self) -> usize {
        match self {
            Memcached::Unseen(_) => 0,
            Memcached::Text(text) => text.in_flight(),
            Memcached::Binary(binary) => binary.in_flight(),
        }
    }
}

/// An error by its code.
fn failed(code: &str, output: &mut Output) -> Outcome {
    Outcome {
        error: Some(output.text(code)),
        ..Outcome::default()
    }
}
