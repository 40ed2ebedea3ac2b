//! One direction of a protocol whose headers tell the length: messages while boundaries are known,
//! the search for the next one while they are not.

use super::framing::{Frames, Length, Message};
use super::seek::{Found, Seeker};
use super::{Anomaly, Joined, Output};

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

    /// Looks for a boundary at the beginning of a piece if none is known; the piece is to be fed if
    /// one is. `plausible` tells whether exactly `window` bytes are a header: strictly, as nothing
    /// else vouches for it.
    pub fn sync(
        &mut self,
        at_ns: u64,
        piece: &[u8],
        window: usize,
        plausible: impl Fn(&[u8]) -> bool,
        output: &mut Output,
    ) -> Option<Found> {
        if !self.frames.lost() {
            return Some(Found::default());
        }
        let found = self.seeker.find(at_ns, piece, window, plausible)?;
        if found.skipped {
            output.anomaly(Anomaly::Resynced, 1);
        }
        self.frames.reset();
        Some(found)
    }

    /// Takes a piece behind what was `found` before it, and gives the messages that became whole.
    pub fn feed(
        &mut self,
        found: &Found,
        at_ns: u64,
        piece: &[u8],
        length_of: impl Fn(&[u8]) -> Length,
        output: &mut Output,
        mut message: impl FnMut(Message<'_>, &mut Output),
    ) {
        let held = &found.held[..found.held_len];
        for (at_ns, bytes) in [(found.since_ns, held), (at_ns, piece)] {
            if self.frames.lost() {
                return;
            }
            let taken = self.frames.feed(at_ns, bytes, &length_of, |m| {
                message(m, output);
                true
            });
            if self.frames.lost() {
                output.anomaly(Anomaly::Malformed, 1);
                self.frames.lose();
                self.seeker.gap((bytes.len() - taken) as u64 + 1);
            }
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

    /// No message is open, and it is known that none is.
    pub fn is_at_boundary(&self) -> bool {
        self.frames.is_at_boundary()
    }

    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.frames.held_bytes()
    }
}
