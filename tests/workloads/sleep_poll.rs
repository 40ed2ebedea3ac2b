//! A clerk looks every ten milliseconds whether there is a letter to answer; the twin is woken.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvError, SyncSender, TryRecvError};
use std::thread;
use std::time::Duration;

use super::row::{ENGINEER, Job, Program, Row, Worth, nothing};
use super::shift::{compute, steps_per_ms, work};

pub const ROW: Row = Row {
    name: "sleep-poll loop",
    unit: "letter",
    category: "sleep_poll",
    about: "between pieces of work",
    delegate: ENGINEER,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: nothing,
};

const EVERY: Duration = Duration::from_millis(8);
const NAP: Duration = Duration::from_millis(10);

fn run(job: &Job) -> io::Result<()> {
    let sick = job.health.is_sick();
    let steps = steps_per_ms();
    work(1, EVERY, |_| {
        let (send, letters) = mpsc::sync_channel(1);
        let (answer, answers) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("clerk".to_owned())
            .spawn(move || match sick {
                true => clerk(|| look_again_and_again(&letters), &answer, steps),
                false => clerk(|| letters.recv(), &answer, steps),
            })?;
        Ok(move || {
            send.send(()).map_err(io::Error::other)?;
            answers.recv().map_err(io::Error::other)
        })
    })
}

/// Answers letters until nobody writes any more.
fn clerk(next: impl Fn() -> Result<(), RecvError>, answer: &SyncSender<()>, steps: u64) {
    while next().is_ok() {
        compute(steps);
        if answer.send(()).is_err() {
            return;
        }
    }
}

#[inline(never)]
fn look_again_and_again(letters: &Receiver<()>) -> Result<(), RecvError> {
    loop {
        match letters.try_recv() {
            Ok(()) => return Ok(()),
            Err(TryRecvError::Empty) => thread::sleep(NAP),
            Err(TryRecvError::Disconnected) => return Err(RecvError),
        }
    }
}
