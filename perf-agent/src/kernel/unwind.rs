//! The maps of the unwind tables, as [`Maps`] wants them.

use std::io;

use anyhow::Result;
use aya::Ebpf;
use perf_ebpf_common::{
    Wire as _,
    signals::{
        python::Python,
        unwind::{Block, MAX_RANGES, Object, Range, Rule, Space},
    },
};

use super::{maps::raw_map, raw::RawMap};
use crate::unwind::table::Maps;

/// Handed to the thread that builds the tables.
pub struct UnwindMaps {
    processes: RawMap,
    spaces: RawMap,
    objects: RawMap,
    rules: RawMap,
    words: RawMap,
}

impl UnwindMaps {
    /// Opens them.
    ///
    /// # Errors
    /// A map is missing from the object.
    pub fn open(ebpf: &Ebpf) -> Result<Self> {
        Ok(UnwindMaps {
            processes: raw_map(ebpf, "unwind_processes", 4, 4)?,
            spaces: raw_map(ebpf, "unwind_spaces", 4, size_of::<Space>())?,
            objects: raw_map(ebpf, "unwind_objects", 4, size_of::<Object>())?,
            rules: raw_map(ebpf, "unwind_rules", 4, size_of::<Rule>())?,
            words: raw_map(ebpf, "unwind_words", 4, size_of::<Block>())?,
        })
    }
}

impl Maps for UnwindMaps {
    fn blocks(&self) -> u32 {
        self.words.max_entries as u32
    }

    fn read_block(&self, number: u32) -> io::Result<Block> {
        let bytes = self.words.lookup(&number.to_ne_bytes(), 1)?;
        bytes
            .and_then(|bytes| Block::from_bytes(&bytes))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write_block(&self, number: u32, block: &Block) -> io::Result<()> {
        self.words
            .update(&number.to_ne_bytes(), block.as_bytes(), 0)
    }

    fn write_object(&self, number: u32, object: &Object) -> io::Result<()> {
        self.objects
            .update(&number.to_ne_bytes(), object.as_bytes(), 0)
    }

    fn write_rule(&self, number: u32, rule: &Rule) -> io::Result<()> {
        self.rules.update(&number.to_ne_bytes(), rule.as_bytes(), 0)
    }

    fn write_space(&self, number: u32, ranges: &[Range], python: Python) -> io::Result<()> {
        let mut space = Box::new(Space {
            missed_ns: 0,
            python,
            ranges: [Range::UNUSED; MAX_RANGES],
        });
        for (to, from) in space.ranges.iter_mut().zip(ranges) {
            *to = *from;
        }
        self.spaces
            .update(&number.to_ne_bytes(), space.as_bytes(), 0)
    }

    fn set_process(&self, pid: u32, space: Option<u32>) -> io::Result<()> {
        let key = pid.to_ne_bytes();
        match space {
            Some(space) => self.processes.update(&key, &space.to_ne_bytes(), 0),
            None => self.processes.delete(&key),
        }
    }

    fn processes(&self) -> io::Result<Vec<(u32, u32)>> {
        let entries = self.processes.entries()?;
        Ok(entries
            .chunks_exact(8)
            .filter_map(|entry| Some((u32::from_bytes(entry)?, u32::from_bytes(&entry[4..])?)))
            .collect())
    }
}
