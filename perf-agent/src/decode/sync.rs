//! Where message boundaries are lost and found again, for protocols whose answers come in order
//! and whose messages have no mark that finds their beginning in any bytes.
//!
//! Lost requests make what is asked behind them unpairable until the connection was idle
//! ([`Outstanding::requests_lost`]); lost answers make everything outstanding so, but for one case:
//! a client that waits for its answers has the only one outstanding when it asks again.

use super::{Anomaly, Direction, Joined, Outcome, Output, Outstanding};

/// What to do with a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Read on.
    On,
    /// Forget what is open; a boundary is at this offset.
    Anew(usize),
    /// Nothing in it can be read.
    Skip,
}

/// Whether boundaries are known, of both directions.
pub struct Sync {
    lost: [bool; 2],
    /// Nothing of a direction was seen, and its first bytes may be in the middle of a message.
    fresh: [bool; 2],
    /// Found by what the other direction told; the piece that is read anew has not come.
    anew: [bool; 2],
    /// Bytes of the open messages.
    open: [usize; 2],
    /// The only answer that was outstanding went on past a gap; its last bytes passed at this time.
    torn_ns: Option<u64>,
}

impl Sync {
    pub fn new(joined: Joined) -> Sync {
        Sync {
            lost: [false; 2],
            fresh: [joined == Joined::Late; 2],
            anew: [false; 2],
            open: [0; 2],
            torn_ns: None,
        }
    }

    pub fn lost(&self, direction: Direction) -> bool {
        self.lost[direction as usize]
    }

    /// `count` bytes of the open message were read.
    pub fn read(&mut self, direction: Direction, count: usize) {
        self.open[direction as usize] += count;
    }

    /// What was read is a message.
    pub fn message(&mut self, direction: Direction, output: &mut Output) {
        output.decoded(
            direction,
            std::mem::take(&mut self.open[direction as usize]),
        );
    }

    /// What was read are messages, but for the last `open` bytes, which are of an open one.
    pub fn messages(&mut self, direction: Direction, open: u64, output: &mut Output) {
        let read = &mut self.open[direction as usize];
        let open = usize::try_from(open).map_or(*read, |open| open.min(*read));
        output.decoded(direction, *read - open);
        *read = open;
    }

    /// Boundaries of a direction are gone. `begun` says that the answer to the next request had
    /// begun, so that what is cut off is the end of that one.
    pub fn lose<T>(
        &mut self,
        direction: Direction,
        at_ns: u64,
        begun: bool,
        outstanding: &mut Outstanding<T>,
        output: &mut Output,
    ) {
        self.lost[direction as usize] = true;
        self.anew[direction as usize] = false;
        match direction {
            Direction::Request => outstanding.requests_lost(),
            Direction::Response
                if begun && outstanding.len() == 1 && outstanding.waits_for_answers() =>
            {
                self.message(direction, output);
                self.torn_ns = Some(at_ns);
            }
            Direction::Response => outstanding.answers_lost(output),
        }
        self.open[direction as usize] = 0;
    }

    /// Bytes that are not the protocol's: boundaries are lost with them.
    pub fn malformed<T>(
        &mut self,
        direction: Direction,
        at_ns: u64,
        outstanding: &mut Outstanding<T>,
        output: &mut Output,
    ) {
        output.anomaly(Anomaly::Malformed, 1);
        self.lose(direction, at_ns, false, outstanding, output);
    }

    /// Bytes passed unseen. Returns whether boundaries were known until then.
    pub fn gap<T>(
        &mut self,
        direction: Direction,
        at_ns: u64,
        outstanding: &mut Outstanding<T>,
        output: &mut Output,
    ) -> bool {
        let way = direction as usize;
        if std::mem::take(&mut self.fresh[way]) || std::mem::take(&mut self.anew[way]) {
            self.lose(direction, at_ns, false, outstanding, output);
        }
        if let (Direction::Response, Some(torn_ns)) = (direction, &mut self.torn_ns) {
            *torn_ns = at_ns;
        }
        !self.lost[way]
    }

    /// A piece comes. `fits` tells whether it may begin with a message, for a connection joined
    /// late; `boundary` where in it one surely begins.
    pub fn piece<T>(
        &mut self,
        (direction, at_ns): (Direction, u64),
        outstanding: &mut Outstanding<T>,
        output: &mut Output,
        fits: impl FnOnce() -> bool,
        boundary: impl FnOnce() -> Option<usize>,
    ) -> Piece {
        if direction == Direction::Request {
            self.turn(outstanding, output);
        }
        let way = direction as usize;
        if std::mem::take(&mut self.fresh[way]) && !fits() {
            self.lose(direction, at_ns, false, outstanding, output);
        }
        if std::mem::take(&mut self.anew[way]) {
            return Piece::Anew(0);
        }
        if !self.lost[way] {
            return Piece::On;
        }
        if let (Direction::Response, Some(torn_ns)) = (direction, &mut self.torn_ns) {
            *torn_ns = at_ns;
            return Piece::Skip;
        }
        let Some(at) = boundary() else {
            return Piece::Skip;
        };
        self.lost[way] = false;
        output.anomaly(Anomaly::Resynced, 1);
        Piece::Anew(at)
    }

    /// A client that waits for answers has them all when it asks again.
    fn turn<T>(&mut self, outstanding: &mut Outstanding<T>, output: &mut Output) {
        let way = Direction::Response as usize;
        if !self.lost[way] || !outstanding.waits_for_answers() {
            return;
        }
        if let Some(at_ns) = self.torn_ns.take() {
            outstanding.answer(at_ns, Outcome::default(), output);
        }
        if outstanding.is_empty() {
            (self.lost[way], self.anew[way]) = (false, true);
            output.anomaly(Anomaly::Resynced, 1);
            outstanding.idle();
        }
    }
}
