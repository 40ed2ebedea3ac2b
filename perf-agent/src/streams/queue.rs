//! Lines on their way to one reader: bounded, so that a slow one costs memory up to a limit and time
//! of nobody else. What finds no room is counted, and the reader is told where it is missing.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::model::{Body, Dropped, Line, Stamp};

/// A line with its newline, shared by all its readers.
pub type Text = Arc<[u8]>;

/// Serializes a line.
pub fn text(line: &Line) -> std::io::Result<Text> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

/// What is given to the reader next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Line(Text),
    /// That many lines are missing here.
    Dropped(u64, Stamp),
}

impl Item {
    /// The bytes to write; what has no bytes was no line.
    pub fn text(&self) -> Text {
        match self {
            Item::Line(text) => text.clone(),
            Item::Dropped(lines, stamp) => {
                let line = Line::new(Body::Dropped(Dropped {
                    stamp: stamp.clone(),
                    lines: *lines,
                }));
                text(&line).unwrap_or_default()
            }
        }
    }
}

/// What [`Queue::pop`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Item(Item),
    /// Nothing within the time given.
    Nothing,
    /// Nothing, and nothing will come.
    End,
}

/// Lines so far: those meant for the reader, and those of them it did not get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub lines: u64,
    pub dropped: u64,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    /// Dropped since the reader was told last.
    untold: u64,
    /// Of the last that was dropped, and of the last there was.
    stamp: Stamp,
    newest: Stamp,
    counts: Counts,
    /// The reader took nothing for as long as it is waited for.
    stalled: bool,
    closed: bool,
    gone: bool,
}

impl State {
    fn put(&mut self, text: Text) {
        self.tell();
        self.bytes += text.len();
        self.items.push_back(Item::Line(text));
    }

    /// Puts down what is missing at this place.
    fn tell(&mut self) {
        if self.untold > 0 {
            let lines = std::mem::take(&mut self.untold);
            self.items
                .push_back(Item::Dropped(lines, self.stamp.clone()));
        }
    }
}

/// The queue of one reader.
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes of lines it holds at most; a single line may be longer.
    limit: usize,
}

impl Queue {
    pub fn new(limit: usize) -> Queue {
        Queue {
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
            limit,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a line if there is room, or will be within `patience`; else counts it as dropped. A
    /// reader that once let that time pass is not waited for again before it has taken something.
    pub fn push(&self, text: &Text, stamp: &Stamp, patience: Duration) {
        let mut state = self.lock();
        let full = |state: &mut State| {
            !state.gone && !state.items.is_empty() && state.bytes + text.len() > self.limit
        };
        if !patience.is_zero() && !state.stalled && full(&mut state) {
            let waited = self.changed.wait_timeout_while(state, patience, full);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.counts.lines += 1;
        state.newest.clone_from(stamp);
        if full(&mut state) {
            state.stalled = true;
            state.counts.dropped += 1;
            state.untold += 1;
            state.stamp.clone_from(stamp);
        } else {
            state.put(text.clone());
        }
        self.changed.notify_all();
    }

    /// Appends a line whether there is room or not, for the few that must come: the state a reader
    /// begins with, and the end.
    pub fn push_always(&self, text: &Text) {
        let mut state = self.lock();
        state.counts.lines += 1;
        state.put(text.clone());
        self.changed.notify_all();
    }

    /// What was given to the reader and did not reach it: lines, and word of so many others that are
    /// missing.
    pub fn unread(&self, lines: u64, told: u64) {
        if lines + told > 0 {
            let mut state = self.lock();
            state.counts.dropped += lines;
            state.untold += lines + told;
            state.stamp = state.newest.clone();
        }
    }

    /// Puts back what was taken last and not delivered, behind word of what is missing before it.
    pub fn put_back(&self, item: Item) {
        let mut state = self.lock();
        if let Item::Line(text) = &item {
            state.bytes += text.len();
        }
        state.items.push_front(item);
        if state.untold > 0 {
            let lines = std::mem::take(&mut state.untold);
            let missing = Item::Dropped(lines, state.stamp.clone());
            state.items.push_front(missing);
        }
    }

    /// Takes the next; waits for it for at most `patience`.
    pub fn pop(&self, patience: Duration) -> Next {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if state.items.is_empty() {
                state.tell();
            }
            if let Some(item) = state.items.pop_front() {
                if let Item::Line(text) = &item {
                    state.bytes -= text.len();
                }
                state.stalled = false;
                self.changed.notify_all();
                return Next::Item(item);
            }
            if state.closed || state.gone {
                return Next::End;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Nothing;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Nothing will come any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until it is closed, for at most `patience`; whether it is.
    pub fn wait_closed(&self, patience: Duration) -> bool {
        let open = |state: &mut State| !state.closed;
        let waited = self.changed.wait_timeout_while(self.lock(), patience, open);
        waited.unwrap_or_else(PoisonError::into_inner).0.closed
    }

    /// The reader has left: nothing is kept for it.
    pub fn leave(&self) {
        let mut state = self.lock();
        state.gone = true;
        state.items.clear();
        state.bytes = 0;
        self.changed.notify_all();
    }

    /// Waits until the reader has left, for at most `patience`; whether it has.
    pub fn wait_gone(&self, patience: Duration) -> bool {
        let there = |state: &mut State| !state.gone;
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), patience, there);
        waited.unwrap_or_else(PoisonError::into_inner).0.gone
    }

    pub fn is_gone(&self) -> bool {
        self.lock().gone
    }

    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Lines it still holds.
    pub fn waiting(&self) -> u64 {
        let lines = |item: &&Item| matches!(item, Item::Line(_));
        self.lock().items.iter().filter(lines).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;
    /// Longer than any test waits.
    const LONG: Duration = Duration::from_secs(60);

    fn line(text: &str) -> Text {
        text.as_bytes().into()
    }

    fn stamp(ts: &str) -> Stamp {
        Stamp {
            ts: ts.into(),
            host: "h".into(),
        }
    }

    fn taken(queue: &Queue) -> Vec<String> {
        let mut out = Vec::new();
        while let Next::Item(item) = queue.pop(NOW) {
            out.push(match item {
                Item::Line(text) => String::from_utf8(text.to_vec()).unwrap(),
                Item::Dropped(lines, stamp) => format!("-{lines} at {}", stamp.ts),
            });
        }
        out
    }

    #[test]
    fn what_finds_no_room_is_counted_where_it_is_missing() {
        let queue = Queue::new(2);
        for (i, text) in ["a", "b", "c", "d"].iter().enumerate() {
            queue.push(&line(text), &stamp(&i.to_string()), NOW);
        }
        assert_eq!(queue.pop(NOW), Next::Item(Item::Line(line("a"))));
        queue.push(&line("e"), &stamp("4"), NOW);
        queue.push(&line("f"), &stamp("5"), NOW);
        assert_eq!(taken(&queue), ["b", "-2 at 3", "e", "-1 at 5"]);
        let counts = Counts {
            lines: 6,
            dropped: 3,
        };
        assert_eq!(queue.counts(), counts);
    }

    #[test]
    fn a_line_longer_than_the_limit_passes_alone() {
        let queue = Queue::new(2);
        queue.push(&line("longer"), &stamp("0"), NOW);
        queue.push(&line("x"), &stamp("1"), NOW);
        assert_eq!(taken(&queue), ["longer", "-1 at 1"]);
    }

    #[test]
    fn the_end_has_room_and_comes_after_what_is_missing() {
        let queue = Queue::new(1);
        for text in ["a", "b"] {
            queue.push(&line(text), &stamp(text), NOW);
        }
        queue.push_always(&line("bye"));
        queue.close();
        assert_eq!(queue.waiting(), 2);
        assert_eq!(taken(&queue), ["a", "-1 at b", "bye"]);
        assert_eq!(queue.pop(LONG), Next::End);
    }

    #[test]
    fn a_reader_is_waited_for_once_and_again_when_it_has_taken_something() {
        let queue = Queue::new(1);
        queue.push(&line("a"), &stamp("0"), LONG);
        // Full, and nobody reads: the first waits, the second would for ever.
        queue.push(&line("b"), &stamp("1"), Duration::from_millis(1));
        queue.push(&line("c"), &stamp("2"), LONG);
        assert_eq!(queue.counts().dropped, 2);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = Vec::new();
                while let Next::Item(item) = queue.pop(LONG) {
                    seen.push(item);
                }
                seen
            });
            for text in ["d", "e", "f"] {
                // Waits until what was there before is taken.
                while queue.waiting() > 0 {
                    std::thread::yield_now();
                }
                queue.push(&line(text), &stamp("3"), LONG);
            }
            queue.close();
            let lines = reader.join().unwrap();
            assert_eq!(lines.len(), 5, "{lines:?}");
        });
        assert_eq!(queue.counts().dropped, 2);
    }

    #[test]
    fn what_was_not_delivered_is_put_back_behind_what_is_lost() {
        let queue = Queue::new(10);
        for text in ["a", "b", "c"] {
            queue.push(&line(text), &stamp("0"), NOW);
        }
        queue.pop(NOW);
        let Next::Item(b) = queue.pop(NOW) else {
            panic!("there is one more");
        };
        queue.unread(1, 4);
        queue.put_back(b);
        assert_eq!(taken(&queue), ["-5 at 0", "b", "c"]);
        assert_eq!(queue.counts().dropped, 1);
    }

    #[test]
    fn nothing_is_kept_for_a_reader_that_left() {
        let queue = Queue::new(10);
        queue.push(&line("a"), &stamp("0"), NOW);
        queue.leave();
        assert_eq!(queue.pop(LONG), Next::End);
        assert!(queue.is_gone());
    }

    #[test]
    fn a_missing_line_is_told_as_a_line_of_the_contract() {
        let text = Item::Dropped(3, stamp("2026-01-02T03:04:05.678Z")).text();
        assert_eq!(
            std::str::from_utf8(&text).unwrap(),
            "{\"v\":1,\"type\":\"dropped\",\"ts\":\"2026-01-02T03:04:05.678Z\",\"host\":\"h\",\"lines\":3}\n"
        );
    }
}
