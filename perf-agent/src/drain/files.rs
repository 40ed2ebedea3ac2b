//! Names of what sites refer to by number: files by inode, block devices by number.

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt as _};

use perf_ebpf_common::{
    Wire as _,
    signals::{
        LatencyCell,
        block_io::BlockIoKey,
        ledger::{SiteKey, SiteTotals, detail},
    },
};

use super::{Fact, FileFact};

/// What was named already.
#[derive(Default)]
pub struct Names {
    files: HashSet<(u32, u64)>,
    devices: HashSet<u32>,
}

/// Most files named: a program that touches more has a family, not a file, as its problem.
const MAX_FILES: usize = 4096;

impl Names {
    /// Names the files of new sites. `process_of` gives the process of a histogram slot.
    pub fn files(&mut self, sites: &[u8], process_of: impl Fn(u32) -> Option<u32>) -> Vec<Fact> {
        let stride = size_of::<SiteKey>() + size_of::<SiteTotals>();
        let mut facts = Vec::new();
        for entry in sites.chunks_exact(stride) {
            let Some(key) = SiteKey::from_bytes(entry) else {
                continue;
            };
            let (inode, dev) = (key.detail[0], key.detail[1] as u32);
            if key.detail_kind != detail::FILE
                || self.files.len() >= MAX_FILES
                || !self.files.insert((dev, inode))
            {
                continue;
            }
            let path = process_of(key.slot.into()).and_then(|pid| path_of(pid, key.port, inode));
            if let Some(path) = path {
                facts.push(Fact::File(FileFact { dev, inode, path }));
            }
        }
        facts
    }

    /// Names new block devices.
    pub fn devices(&mut self, block_io: &[u8]) -> Vec<Fact> {
        let stride = size_of::<BlockIoKey>() + size_of::<LatencyCell>();
        let mut facts = Vec::new();
        for entry in block_io.chunks_exact(stride) {
            let Some(key) = BlockIoKey::from_bytes(entry) else {
                continue;
            };
            if self.devices.insert(key.dev) {
                facts.push(Fact::Device {
                    dev: key.dev,
                    name: device_name(key.dev),
                });
            }
        }
        facts
    }
}

/// Path behind an fd, if it still is the file with that inode.
fn path_of(pid: u32, fd: u16, inode: u64) -> Option<String> {
    let link = format!("/proc/{pid}/fd/{fd}");
    if fs::metadata(&link).ok()?.ino() != inode {
        return None;
    }
    Some(fs::read_link(&link).ok()?.to_string_lossy().into_owned())
}

/// Name of a block device in /sys, `major:minor` where it has none.
fn device_name(dev: u32) -> String {
    let number = format!("{}:{}", dev >> 20, dev & 0xf_ffff);
    fs::read_link(format!("/sys/dev/block/{number}"))
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or(number)
}
