//! Block I/O by device and operation.

use std::collections::{BTreeMap, HashMap};

use perf_ebpf_common::signals::{LatencyCell, block_io::BlockIoKey};

use crate::{
    model::BlockIo,
    signals::{entries, latency},
};

/// Cells at the end of the window before and now.
#[derive(Default)]
pub struct BlockIos {
    now: BTreeMap<BlockIoKey, LatencyCell>,
    before: HashMap<BlockIoKey, LatencyCell>,
    devices: HashMap<u32, String>,
}

impl BlockIos {
    pub fn cells(&mut self, bytes: &[u8]) {
        self.now.extend(entries::<BlockIoKey, LatencyCell>(bytes));
    }

    pub fn device(&mut self, dev: u32, name: &str) {
        self.devices.insert(dev, name.to_owned());
    }

    pub fn slot_freed(&mut self, slot: u32) {
        self.before.retain(|key, _| key.slot != slot);
    }

    /// Requests of each process in the window.
    pub fn window(&mut self, owners: &BTreeMap<u32, u32>) -> HashMap<u32, Vec<BlockIo>> {
        let mut out: HashMap<u32, Vec<BlockIo>> = HashMap::new();
        for (key, cell) in std::mem::take(&mut self.now) {
            let before = self.before.insert(key, cell);
            let requests = cell.count - before.map_or(0, |b| b.count);
            let Some(pid) = owners.get(&key.slot).filter(|_| requests > 0) else {
                continue;
            };
            let device = self
                .devices
                .get(&key.dev)
                .cloned()
                .unwrap_or_else(|| format!("{}:{}", key.dev >> 20, key.dev & 0xf_ffff));
            out.entry(*pid).or_default().push(BlockIo {
                device,
                operation: operation(key.op),
                requests,
                bytes: cell.bytes - before.map_or(0, |b| b.bytes),
                latency: latency::of_cell(&cell, before.as_ref()),
            });
        }
        out
    }
}

/// Name of a `REQ_OP_*` (`include/linux/blk_types.h`).
fn operation(op: u32) -> String {
    match op {
        0 => "read".to_owned(),
        1 => "write".to_owned(),
        2 => "flush".to_owned(),
        3 => "discard".to_owned(),
        5 => "secure_erase".to_owned(),
        9 => "write_zeroes".to_owned(),
        _ => format!("op{op}"),
    }
}
