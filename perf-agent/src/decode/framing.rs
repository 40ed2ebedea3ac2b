//! Messages whose header tells their length: cut out of a stream that comes in any pieces, with
//! memory for no more than a message's beginning.

/// What the bytes at a message boundary say of the message's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// More bytes of the header are needed.
    Short,
    /// The whole message, header and body.
    Whole(u64),
    /// As `Whole`, and no more than the header is to be kept of it if it comes in pieces.
    Skim(u64),
    /// This is no header.
    Invalid,
}

/// A message that passed whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its beginning: everything, or at most `keep` bytes, or what came before a gap.
    pub bytes: &'a [u8],
    /// Length of the whole message.
    pub length: u64,
    /// How many of its bytes were captured: all but those in gaps.
    pub captured: u64,
    /// When the pieces with its first and its last byte passed.
    pub first_ns: u64,
    pub last_ns: u64,
}

/// One direction of a connection as messages.
pub struct Frames {
    /// Most bytes of a message kept when it comes in pieces.
    keep: usize,
    kept: Vec<u8>,
    /// Length of the open message, 0 while its header is not whole.
    length: u64,
    /// Bytes of the open message that passed.
    passed: u64,
    /// Bytes of it that passed unseen.
    unseen: u64,
    first_ns: u64,
    /// A part of the open message was in a gap, or is not to be kept: `kept` must not grow past it.
    holed: bool,
    /// Message boundaries are not known.
    lost: bool,
}

impl Frames {
    /// `keep` bounds the memory and what a decoder sees of a long message; it must not be smaller
    /// than the largest header.
    pub fn new(keep: usize) -> Frames {
        Frames {
            keep,
            kept: Vec::new(),
            length: 0,
            passed: 0,
            unseen: 0,
            first_ns: 0,
            holed: false,
            lost: false,
        }
    }

    /// Whether message boundaries are unknown: after a gap over one, or an invalid header.
    pub fn lost(&self) -> bool {
        self.lost
    }

    /// Boundaries are not known: of a connection that is joined late.
    pub fn lose(&mut self) {
        self.open_nothing();
        self.lost = true;
    }

    /// Memory held, for the bound a decoder states.
    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.kept.capacity()
    }

    /// Forgets the open message; the next byte is taken for a boundary.
    pub fn reset(&mut self) {
        self.open_nothing();
        self.lost = false;
    }

    /// When the first byte of the message that is still open passed.
    pub fn open_since_ns(&self) -> Option<u64> {
        (self.passed > 0).then_some(self.first_ns)
    }

    /// No message is open, and it is known that none is.
    pub fn is_at_boundary(&self) -> bool {
        self.passed == 0 && !self.lost
    }

    /// Bytes of the open message that passed, those in gaps too; 0 at a boundary.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// The kept beginning of the message that is still open, empty if none is.
    pub fn open_bytes(&self) -> &[u8] {
        &self.kept
    }

    fn open_nothing(&mut self) {
        self.kept.clear();
        // A message of the largest kept size must not hold its memory for the rest of the
        // connection's life: there may be ten thousand of them.
        self.kept.shrink_to(256);
        self.length = 0;
        self.passed = 0;
        self.unseen = 0;
        self.holed = false;
    }

    /// Takes bytes; calls `message` for each message that became whole. Returns how many bytes were
    /// taken: all of them, or fewer where boundaries were lost (`lost` is then set and what is
    /// left begins at the header that was refused), or where `message` returned false: what
    /// follows is then not of this framing (an upgrade, TLS).
    pub fn feed(
        &mut self,
        at_ns: u64,
        bytes: &[u8],
        length_of: impl Fn(&[u8]) -> Length,
        mut message: impl FnMut(Message<'_>) -> bool,
    ) -> usize {
        let mut at = 0;
        while at < bytes.len() && !self.lost {
            let rest = &bytes[at..];
            if self.passed == 0 {
                // The usual case: a whole message in one piece is not copied.
                match length_of(rest) {
                    Length::Whole(n) | Length::Skim(n) if n <= rest.len() as u64 && n > 0 => {
                        at += n as usize;
                        let whole = Message {
                            bytes: &rest[..n as usize],
                            length: n,
                            captured: n,
                            first_ns: at_ns,
                            last_ns: at_ns,
                        };
                        if !message(whole) {
                            return at;
                        }
                        continue;
                    }
                    Length::Whole(0) | Length::Skim(0) | Length::Invalid => {
                        self.lost = true;
                        return at;
                    }
                    Length::Whole(n) => self.length = n,
                    // The header's end is found byte by byte.
                    Length::Skim(_) | Length::Short => {}
                }
                self.first_ns = at_ns;
            }
            at += self.take(rest, &length_of);
            if self.length > 0 && self.passed == self.length && !self.close(at_ns, &mut message) {
                return at;
            }
        }
        at
    }

    /// Adds to the open message; returns how many bytes of `rest` belong to it.
    fn take(&mut self, rest: &[u8], length_of: &impl Fn(&[u8]) -> Length) -> usize {
        if self.length == 0 {
            // Byte by byte: at most a header's length in all.
            for (i, byte) in rest.iter().enumerate() {
                self.kept.push(*byte);
                self.passed += 1;
                match length_of(&self.kept) {
                    Length::Short if self.kept.len() < self.keep => {}
                    Length::Whole(n) if n >= self.passed => {
                        self.length = n;
                        return i + 1;
                    }
                    Length::Skim(n) if n >= self.passed => {
                        self.length = n;
                        self.holed = true;
                        return i + 1;
                    }
                    _ => {
                        self.lost = true;
                        return i;
                    }
                }
            }
            return rest.len();
        }
        let n = (self.length - self.passed).min(rest.len() as u64) as usize;
        if !self.holed {
            let room = self.keep.saturating_sub(self.kept.len());
            self.kept.extend_from_slice(&rest[..n.min(room)]);
        }
        self.passed += n as u64;
        n
    }

    fn close(&mut self, at_ns: u64, message: &mut impl FnMut(Message<'_>) -> bool) -> bool {
        let go_on = message(Message {
            bytes: &self.kept,
            length: self.length,
            captured: self.length - self.unseen,
            first_ns: self.first_ns,
            last_ns: at_ns,
        });
        self.open_nothing();
        go_on
    }

    /// `count` bytes passed unseen. A gap that ends within the open message only shortens what is
    /// kept of it; one that goes on past it (or begins where no message is open) loses the boundaries.
    pub fn gap(&mut self, at_ns: u64, count: u64, mut message: impl FnMut(Message<'_>) -> bool) {
        if self.lost || count == 0 {
            return;
        }
        if self.length == 0 {
            self.open_nothing();
            self.lost = true;
            return;
        }
        let left = self.length - self.passed;
        self.holed = true;
        self.passed += count.min(left);
        self.unseen += count.min(left);
        if count >= left {
            self.close(at_ns, &mut message);
            self.lost = count > left;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One byte of length, then the body.
    fn length_of(bytes: &[u8]) -> Length {
        match bytes.first() {
            None => Length::Short,
            Some(255) => Length::Invalid,
            Some(n) => Length::Whole(u64::from(*n) + 1),
        }
    }

    fn feed(frames: &mut Frames, at_ns: u64, bytes: &[u8], out: &mut Vec<(Vec<u8>, u64)>) -> usize {
        frames.feed(at_ns, bytes, length_of, |m| {
            out.push((m.bytes.to_vec(), m.length));
            true
        })
    }

    #[test]
    fn a_message_in_pieces_is_the_same_as_whole_and_knows_its_times() {
        let stream = [3, 1, 2, 3, 0, 2, 9, 9];
        for cut in 0..=stream.len() {
            let (mut frames, mut out) = (Frames::new(16), Vec::new());
            feed(&mut frames, 1, &stream[..cut], &mut out);
            feed(&mut frames, 2, &stream[cut..], &mut out);
            assert_eq!(
                out,
                [(vec![3, 1, 2, 3], 4), (vec![0], 1), (vec![2, 9, 9], 3)]
            );
        }
        let mut frames = Frames::new(16);
        frames.feed(1, &[3, 1], length_of, |_| true);
        let mut times = None;
        frames.feed(5, &[2, 3], length_of, |m| {
            times = Some((m.first_ns, m.last_ns));
            true
        });
        assert_eq!(times, Some((1, 5)));
    }

    #[test]
    fn a_gap_inside_a_message_is_passed_over_and_one_past_its_end_loses_the_boundary() {
        let (mut frames, mut out) = (Frames::new(16), Vec::new());
        feed(&mut frames, 1, &[5, 1], &mut out);
        frames.gap(2, 3, |_| true);
        feed(&mut frames, 3, &[7, 1, 8], &mut out);
        assert_eq!(out, [(vec![5, 1], 6), (vec![1, 8], 2)]);
        feed(&mut frames, 4, &[5, 1], &mut out);
        frames.gap(5, 9, |_| true);
        assert!(frames.lost());
        assert_eq!(feed(&mut frames, 6, &[1, 8], &mut out), 0);
        frames.reset();
        assert_eq!(feed(&mut frames, 7, &[1, 8], &mut out), 2);
    }

    #[test]
    fn only_the_beginning_of_a_long_message_is_kept() {
        let (mut frames, mut out) = (Frames::new(4), Vec::new());
        feed(&mut frames, 1, &[200, 1, 2], &mut out);
        feed(&mut frames, 1, &[0; 198], &mut out);
        assert_eq!(out, [(vec![200, 1, 2, 0], 201)]);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same_messages(
            stream in proptest::collection::vec(any::<u8>(), 0..200),
            cuts in proptest::collection::vec(0usize..200, 0..6),
        ) {
            let (mut whole, mut expected) = (Frames::new(300), Vec::new());
            feed(&mut whole, 0, &stream, &mut expected);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let (mut frames, mut out) = (Frames::new(300), Vec::new());
            for pair in cuts.windows(2) {
                feed(&mut frames, 0, &stream[pair[0]..pair[1]], &mut out);
            }
            prop_assert_eq!(out, expected);
            prop_assert_eq!(frames.lost(), whole.lost());
        }
    }
}
