//! A thread that lives 50 ms.

use std::io;
use std::time::Duration;

use super::gate::{Gate, Options, join, thread};
use super::meter::{self, Meter};

const LIFE: Duration = Duration::from_millis(50);

pub fn run(_options: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let account = join(thread("brief", || {
        let mut meter = Meter::new()?;
        meter.blocked("timer", || {
            std::thread::sleep(LIFE);
            Ok(())
        })?;
        meter.finish("brief")
    })?)??;
    Ok(meter::to_json(&[account]))
}
