//! A thread of its own for names: reading a program's debug information takes tenths of a second, and
//! seconds on a host whose CPUs are busy. A ring of 8 MiB is full after less than that where a server is
//! asked a million things a second (12,598 records were lost so while a trace began).

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Stacks, Unnamed};
use crate::drain::{StackFact, live::resident_bytes};

/// Stacks named at once, at most: 25 ms of work where all are new, and room for their frames many times over.
pub const AT_ONCE: usize = 256;

/// How often it is looked whether what was read of programs is to be let go of.
const LOOK: Duration = Duration::from_millis(100);

enum Request {
    Name(Unnamed),
    /// The process maps code that was not known of.
    Remap(u32),
    /// The process runs another program now, or none.
    Forget(u32),
}

/// The thread that names stacks, in the order in which they are given to it.
pub struct Namer {
    requests: mpsc::Sender<Request>,
    named: UnboundedReceiver<StackFact>,
    counts: Arc<[AtomicU64; 2]>,
}

/// What became of the interpreters' frames, by name in `coverage.python_walks`.
const COUNTS: [&str; 2] = ["shifted", "unreadable"];

impl Namer {
    /// Starts the thread. For `inlines` and `directories` see [`Stacks::new`].
    ///
    /// # Errors
    /// There can be no thread.
    pub fn start(inlines: bool, directories: &[PathBuf]) -> io::Result<Namer> {
        let (requests, asked) = mpsc::channel();
        let (answers, named) = unbounded_channel();
        let counts = Arc::<[AtomicU64; 2]>::default();
        let (directories, counted) = (directories.to_vec(), counts.clone());
        thread::Builder::new()
            .name("names".to_owned())
            .spawn(move || {
                // Made here: what it caches does not go from thread to thread.
                serve(
                    Stacks::new(inlines, &directories),
                    &asked,
                    &answers,
                    &counted,
                );
            })?;
        Ok(Namer {
            requests,
            named,
            counts,
        })
    }

    /// Asks for the names of a stack, which come from [`Namer::next`] in the order of the requests.
    pub fn name(&self, stack: Unnamed) {
        self.tell(Request::Name(stack));
    }

    /// The process maps code that was not known of.
    pub fn remap(&self, pid: u32) {
        self.tell(Request::Remap(pid));
    }

    /// The process runs another program now, or none.
    pub fn forget(&self, pid: u32) {
        self.tell(Request::Forget(pid));
    }

    /// Where the thread has ended, `next` says so.
    fn tell(&self, request: Request) {
        let _ = self.requests.send(request);
    }

    /// The next stack, where it is named already.
    pub fn try_next(&mut self) -> Option<StackFact> {
        self.named.try_recv().ok()
    }

    /// The next stack. May be given up on without losing one.
    ///
    /// # Errors
    /// The thread has ended.
    pub async fn next(&mut self) -> Result<StackFact> {
        let named = self.named.recv().await;
        named.context("the thread that names stacks has ended; its panic is on standard error")
    }

    /// What became of the interpreters' frames so far.
    pub fn python_counts(&self) -> BTreeMap<String, u64> {
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        COUNTS.map(str::to_owned).into_iter().zip(counts).collect()
    }
}

fn serve(
    mut stacks: Stacks,
    requests: &mpsc::Receiver<Request>,
    named: &UnboundedSender<StackFact>,
    counts: &[AtomicU64; 2],
) {
    let mut looked = Instant::now();
    loop {
        // Without anything to let go of it sleeps until it is asked.
        let request = match stacks.holds_programs() {
            true => requests.recv_timeout(LOOK),
            false => requests.recv().map_err(RecvTimeoutError::from),
        };
        let (unnamed, other) = match request {
            Ok(Request::Name(first)) => waiting(first, requests),
            Ok(other) => (Vec::new(), Some(other)),
            Err(RecvTimeoutError::Timeout) => (Vec::new(), None),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if !unnamed.is_empty() {
            let facts = stacks.name_all(&unnamed);
            for (count, now) in counts.iter().zip(stacks.python_counts()) {
                count.store(now, Relaxed);
            }
            if facts.into_iter().any(|fact| named.send(fact).is_err()) {
                return;
            }
        }
        match other {
            Some(Request::Remap(pid)) => stacks.remap(pid),
            Some(Request::Forget(pid)) => stacks.forget(pid),
            Some(Request::Name(_)) | None => {}
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            stacks.let_go(looked, resident_bytes);
        }
    }
}

/// The stacks that wait for their names, up to the next request of another kind, and that one.
fn waiting(first: Unnamed, requests: &mpsc::Receiver<Request>) -> (Vec<Unnamed>, Option<Request>) {
    let mut unnamed = vec![first];
    while unnamed.len() < AT_ONCE {
        match requests.try_recv() {
            Ok(Request::Name(stack)) => unnamed.push(stack),
            Ok(other) => return (unnamed, Some(other)),
            Err(_) => break,
        }
    }
    (unnamed, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stacks_come_back_named_in_the_order_they_were_asked_for() {
        let mut namer = Namer::start(false, &[]).unwrap();
        let pid = std::process::id();
        let address = stacks_come_back_named_in_the_order_they_were_asked_for as *const () as u64;
        for id in 0..100 {
            let addresses = vec![address + 1];
            namer.name(Unnamed::native(id, pid, addresses));
            namer.forget(pid);
        }
        for id in 0..100 {
            let stack = namer.next().await.unwrap();
            assert_eq!(stack.id, id);
            assert!(
                stack.frames[0].name.contains("stacks_come_back"),
                "{stack:?}"
            );
        }
        assert!(namer.try_next().is_none());
    }
}
