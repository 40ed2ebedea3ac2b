//! A thread that lives 50 ms.

use std::io;
use std::time::Duration;

use super::gate::{Gate, Options};
use super::measured::Measured;
use super::meter;

const LIFE: Duration = Duration::from_millis(50);

pub fn run(_options: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let brief = Measured::start("brief", |meter| {
        meter.blocked("timer", || {
            std::thread::sleep(LIFE);
            Ok(Vec::new())
        })
    })?;
    Ok(meter::to_json(&brief.accounts()?))
}
