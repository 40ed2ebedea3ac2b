//! The next message boundary after boundaries were lost, or on a connection joined late.
//!
//! Only where a piece begins: a piece is one read or write of the traced program, and programs read
//! and write from boundary to boundary, while the bytes inside a payload can look like any header.
//! A header that is itself read in pieces (a length first, then the rest) is put together.

/// Bytes a header check may ask for.
pub const MAX_WINDOW: usize = 32;

/// Collects the beginning of a piece until a header can be checked.
#[derive(Default)]
pub struct Seeker {
    held: [u8; MAX_WINDOW],
    len: usize,
    /// When the first held byte passed.
    since_ns: u64,
    /// Bytes that belong to no message, since the last find.
    passed_over: u64,
}

/// A boundary.
#[derive(Default)]
pub struct Found {
    /// The header's bytes from earlier pieces, which go before the piece.
    pub held: [u8; MAX_WINDOW],
    pub held_len: usize,
    pub since_ns: u64,
    /// Bytes were passed over to find it.
    pub skipped: bool,
}

impl Seeker {
    /// Takes a piece; `plausible` is asked of exactly `window` bytes (at most [`MAX_WINDOW`]).
    pub fn find(
        &mut self,
        at_ns: u64,
        piece: &[u8],
        window: usize,
        plausible: impl Fn(&[u8]) -> bool,
    ) -> Option<Found> {
        let window = window.min(MAX_WINDOW);
        if self.len > 0 {
            let more = piece.len().min(window - self.len);
            let mut joined = self.held;
            joined[self.len..self.len + more].copy_from_slice(&piece[..more]);
            if self.len + more < window {
                self.held = joined;
                self.len += more;
                return None;
            }
            if plausible(&joined[..window]) {
                return Some(self.found());
            }
            self.passed_over = self.passed_over.saturating_add(self.len as u64);
            self.len = 0;
        }
        if piece.len() < window {
            self.held[..piece.len()].copy_from_slice(piece);
            self.len = piece.len();
            self.since_ns = at_ns;
            return None;
        }
        if plausible(&piece[..window]) {
            self.since_ns = at_ns;
            return Some(self.found());
        }
        self.passed_over = self.passed_over.saturating_add(piece.len() as u64);
        None
    }

    /// Bytes passed unseen: what is held is not the beginning of what comes next.
    pub fn gap(&mut self, count: u64) {
        let held = self.len as u64;
        self.passed_over = self.passed_over.saturating_add(count).saturating_add(held);
        self.len = 0;
    }

    fn found(&mut self) -> Found {
        let found = Found {
            held: self.held,
            held_len: self.len,
            since_ns: self.since_ns,
            skipped: self.passed_over > 0,
        };
        (self.len, self.passed_over) = (0, 0);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plausible(header: &[u8]) -> bool {
        header == b"HEAD"
    }

    #[test]
    fn a_header_at_the_beginning_of_a_piece_is_found_whole_or_in_pieces() {
        let mut seeker = Seeker::default();
        assert!(seeker.find(1, b"tail HEAD", 4, plausible).is_none());
        let found = seeker.find(2, b"HEAD and more", 4, plausible);
        let found = found.expect("a header");
        assert_eq!(
            (found.held_len, found.since_ns, found.skipped),
            (0, 2, true)
        );
        assert!(seeker.find(3, b"H", 4, plausible).is_none());
        assert!(seeker.find(4, b"E", 4, plausible).is_none());
        let found = seeker.find(5, b"AD!", 4, plausible).expect("a header");
        assert_eq!(
            (&found.held[..found.held_len], found.since_ns),
            (&b"HE"[..], 3)
        );
        assert!(!found.skipped);
    }

    #[test]
    fn a_short_tail_before_a_header_does_not_hide_it() {
        let mut seeker = Seeker::default();
        assert!(seeker.find(1, b"xy", 4, plausible).is_none());
        let found = seeker.find(2, b"HEAD", 4, plausible).expect("a header");
        assert!(found.skipped && found.held_len == 0);
        assert!(seeker.find(3, b"HE", 4, plausible).is_none());
        seeker.gap(7);
        assert!(seeker.find(4, b"AD..", 4, plausible).is_none());
    }
}
