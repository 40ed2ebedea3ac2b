//! One direction of a protocol whose headers tell the length: messages while boundaries are known,
//! the search for the next one while they are not.

use super::framing::{Frames, Length, Message};
use super::seek::Seeker;
use super::{Anomaly, Joined, Output};

/// How a protocol's messages are told apart.
pub struct Framing<L, P> {
    pub length_of: L,
    /// Whether this is a header, asked of exactly `window` bytes: strict, as nothing else vouches
    /// for it.
    pub plausible: P,
    pub window: usize,
}

/// One direction of a connection.
pub struct Lane {
    frames: Frames,
    seeker: Seeker,
}

impl Lane {
    /// `keep` as in [`Frames::new`].
    pub fn new(joined: Joined, keep: usize) -> Lane {
        let mut frames = Frames::new(keep);
        if joined == Joined::Late {
            frames.lose();
        }
        Lane {
            frames,
            seeker: Seeker::default(),
        }
    }

    /// Takes a piece and gives the messages that became whole.
    pub fn feed(
        &mut self,
        at_ns: u64,
        piece: &[u8],
        framing: &Framing<impl Fn(&[u8]) -> Length, impl Fn(&[u8]) -> bool>,
        output: &mut Output,
        mut message: impl FnMut(Message<'_>, &mut Output),
    ) {
        if self.frames.lost() {
            let found = self
                .seeker
                .find(at_ns, piece, framing.window, &framing.plausible);
            let Some(found) = found else {
                return;
            };
            if found.skipped {
                output.anomaly(Anomaly::Resynced, 1);
            }
            self.frames.reset();
            let held = &found.held[..found.held_len];
            self.take(found.since_ns, held, framing, output, &mut message);
        }
        self.take(at_ns, piece, framing, output, &mut message);
    }

    fn take(
        &mut self,
        at_ns: u64,
        bytes: &[u8],
        framing: &Framing<impl Fn(&[u8]) -> Length, impl Fn(&[u8]) -> bool>,
        output: &mut Output,
        message: &mut impl FnMut(Message<'_>, &mut Output),
    ) {
        if self.frames.lost() {
            return;
        }
        let taken = self.frames.feed(at_ns, bytes, &framing.length_of, |m| {
            message(m, output);
            true
        });
        if self.frames.lost() {
            output.anomaly(Anomaly::Malformed, 1);
            self.frames.lose();
            self.seeker.gap((bytes.len() - taken) as u64 + 1);
        }
    }

    /// `count` bytes passed unseen; tells whether boundaries are lost now.
    pub fn gap(
        &mut self,
        at_ns: u64,
        count: u64,
        output: &mut Output,
        mut message: impl FnMut(Message<'_>, &mut Output),
    ) -> bool {
        self.frames.gap(at_ns, count, |m| {
            message(m, output);
            true
        });
        if self.frames.lost() {
            self.seeker.gap(count);
        }
        self.frames.lost()
    }

    /// Boundaries are not known.
    pub fn lost(&self) -> bool {
        self.frames.lost()
    }

    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.frames.held_bytes()
    }
}
