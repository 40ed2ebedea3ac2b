//! Frames on their way out, in their order. Stacks are named on a thread of their own, and what comes
//! behind one waits until it has its names; the rings are emptied meanwhile.

use std::{collections::VecDeque, future, iter};

use anyhow::Result;

use super::{Fact, Frame};
use crate::symbolize::{Unnamed, namer::Namer};

/// Frames, and the thread that some of them wait for.
pub struct Outbox {
    /// `None` is the place of a stack that was given to be named.
    slots: VecDeque<Option<Frame>>,
    pub namer: Namer,
}

impl Outbox {
    pub fn new(namer: Namer) -> Outbox {
        Outbox {
            slots: VecDeque::new(),
            namer,
        }
    }

    pub fn push(&mut self, frame: Frame) {
        self.slots.push_back(Some(frame));
    }

    pub fn extend(&mut self, frames: impl IntoIterator<Item = Frame>) {
        self.slots.extend(frames.into_iter().map(Some));
    }

    /// In front of all others.
    pub fn push_first(&mut self, frame: Frame) {
        self.slots.push_front(Some(frame));
    }

    /// The frame that a stack will be.
    pub fn push_stack(&mut self, stack: Unnamed) {
        self.namer.name(stack);
        self.slots.push_back(None);
    }

    /// The frames up to the first stack that has no names yet.
    pub fn take(&mut self) -> Vec<Frame> {
        iter::from_fn(|| self.next()).collect()
    }

    fn next(&mut self) -> Option<Frame> {
        if self.slots.front()?.is_none() {
            let stack = self.namer.try_next()?;
            self.slots.pop_front();
            return Some(Frame::Fact(Fact::Stack(stack)));
        }
        self.slots.pop_front().flatten()
    }

    /// Waits until there is more to take because a stack was named: for ever where none is waited for.
    /// May be given up on without losing anything.
    ///
    /// # Errors
    /// The thread that names them has ended.
    pub async fn named(&mut self) -> Result<()> {
        let Some(waiting) = self.slots.iter_mut().find(|slot| slot.is_none()) else {
            return future::pending().await;
        };
        *waiting = Some(named(&mut self.namer).await?);
        Ok(())
    }

    /// Waits until every stack is named.
    ///
    /// # Errors
    /// As [`Outbox::named`].
    pub async fn all_named(&mut self) -> Result<()> {
        for waiting in self.slots.iter_mut().filter(|slot| slot.is_none()) {
            *waiting = Some(named(&mut self.namer).await?);
        }
        Ok(())
    }
}

/// The frame of the next stack.
async fn named(namer: &mut Namer) -> Result<Frame> {
    Ok(Frame::Fact(Fact::Stack(namer.next().await?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(id: u64) -> Unnamed {
        Unnamed {
            id,
            pid: std::process::id(),
            addresses: vec![id],
            words: Vec::new(),
            whole: true,
        }
    }

    fn record(byte: u8) -> Frame {
        Frame::Record(vec![byte])
    }

    #[tokio::test]
    async fn what_comes_behind_a_stack_waits_for_its_names_and_keeps_its_place() {
        let mut outbox = Outbox::new(Namer::start(false, &[]).unwrap());
        outbox.push(record(1));
        outbox.push_stack(stack(7));
        outbox.extend([record(2), record(3)]);
        outbox.push_stack(stack(8));
        outbox.push_first(record(0));
        let mut out = outbox.take();
        assert_eq!(out[..2], [record(0), record(1)]);
        outbox.all_named().await.unwrap();
        out.extend(outbox.take());
        let ids = |frame: &Frame| match frame {
            Frame::Fact(Fact::Stack(stack)) => stack.id,
            Frame::Record(bytes) => u64::from(bytes[0]),
            other => panic!("{other:?}"),
        };
        assert_eq!(out.iter().map(ids).collect::<Vec<_>>(), [0, 1, 7, 2, 3, 8]);
        assert_eq!(outbox.take(), []);
    }
}
