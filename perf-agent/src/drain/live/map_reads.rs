//! Reads the kernel side's maps at the end of a window, and empties what is no longer used.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use perf_ebpf_common::{
    Wire, class, fd,
    signals::{
        LatencyCell,
        allocations::{Allocation, AllocationKey, AllocationTotals, LiveKey},
        block_io::{BlockIoKey, InFlight, NOBODYS},
        ledger::{SiteKey, SiteTotals, ThreadState, thread_state},
        locks::{LockHoldKey, LockHoldTotals},
        memory::{GrowthKey, GrowthTotals},
        sockets::Connection,
        stacks::MemoStats,
        syscalls::{SyscallErrorKey, SyscallKey},
    },
};

use super::Live;
use crate::{
    drain::{ConnectionsFact, Fact, Frame, MapId, RequestsFact, StatementsFact, seeds, slots},
    kernel::raw::RawMap,
    signals::histograms,
};

/// How long a Unix socket must have been quiet before it is looked for in `/proc`.
const QUIET_NS: u64 = 1_000_000_000;

impl Live {
    /// Block requests of the target whose end was not seen.
    pub(super) fn open_requests(&self) -> Result<u64> {
        let entries = self.kernel.maps.io_in_flight.entries();
        let entries = entries.context("reading io_in_flight")?;
        let stride = size_of::<u64>() + size_of::<InFlight>();
        let requests = entries
            .chunks_exact(stride)
            .filter_map(|entry| InFlight::from_bytes(&entry[size_of::<u64>()..]));
        Ok(requests.filter(|request| request.slot != NOBODYS).count() as u64)
    }

    /// Calls counted since the last slice, by slot and number.
    pub(super) fn calls_counted(&mut self) -> Result<Vec<(u32, u32, u64)>> {
        let entries = self
            .kernel
            .maps
            .syscalls
            .entries()
            .context("reading syscalls")?;
        let stride = size_of::<SyscallKey>() + size_of::<LatencyCell>();
        let mut counts = Vec::new();
        for entry in entries.chunks_exact(stride) {
            let (Some(key), Some(count)) = (
                SyscallKey::from_bytes(entry),
                u64::from_bytes(&entry[size_of::<SyscallKey>()..]),
            ) else {
                continue;
            };
            let before = self
                .counted_calls
                .insert((key.slot, key.nr), count)
                .unwrap_or(0);
            if count > before {
                counts.push((key.slot, key.nr, count - before));
            }
        }
        counts.sort_unstable();
        Ok(counts)
    }

    /// Reads the connections and turns what was said on them into facts. The map's entries.
    pub(super) fn end_connections(&mut self, end_ns: u64) -> Result<Vec<u8>> {
        let map = &self.kernel.maps.connections;
        let entries = map.entries().context("reading connections")?;
        self.connection_entries = entries.len() / (8 + size_of::<Connection>());
        let mut facts = self.connections.window(&entries, end_ns);
        facts.traffic.unreadable_tls = self.kernel.unreadable_tls();
        self.forget_unix(&entries, end_ns)?;
        self.frames.extend(
            [
                Fact::Connections(ConnectionsFact {
                    rows: facts.connections,
                }),
                Fact::Statements(StatementsFact {
                    rows: facts.statements,
                }),
                Fact::Requests(RequestsFact {
                    rows: facts.requests,
                }),
                Fact::Traffic(facts.traffic),
            ]
            .map(Frame::Fact),
        );
        Ok(entries)
    }

    /// Waits for anything at all that are under way, of threads to which more of an answer is to come: they are
    /// told as waits for it, as which the kernel side books them when they end.
    pub(super) fn name_waits(&self, threads: &mut [u8], connections: &[u8]) {
        let mut waits = Vec::new();
        for entry in threads.chunks_exact_mut(4 + size_of::<ThreadState>()) {
            if let Some(thread) = ThreadState::from_bytes(&entry[4..])
                && thread.state == thread_state::BLOCKED
                && thread.site.class == class::IDLE
                && thread.answered_sk != 0
            {
                waits.push((thread, &mut entry[4..]));
            }
        }
        // Servers have none: their connections are not put into a table for it.
        if waits.is_empty() {
            return;
        }
        let entries = connections.chunks_exact(8 + size_of::<Connection>());
        let of_socket: HashMap<u64, Connection> = entries
            .filter_map(|entry| {
                let connection = Connection::from_bytes(&entry[8..])?;
                Some((u64::from_bytes(entry)?, connection))
            })
            .collect();
        for (mut thread, bytes) in waits {
            if let Some(connection) = of_socket.get(&thread.answered_sk)
                && let Some(class) = self.connections.awaited(connection.id, thread.since_ns)
            {
                thread.site.wait_for(connection, class);
                bytes.copy_from_slice(thread.as_bytes());
            }
        }
    }

    /// Takes Unix sockets that are gone out of the map: no event tells of their end.
    fn forget_unix(&mut self, entries: &[u8], now_ns: u64) -> Result<()> {
        let mut there: HashMap<u32, Vec<u64>> = HashMap::new();
        for entry in entries.chunks_exact(8 + size_of::<Connection>()) {
            let Some(c) = Connection::from_bytes(&entry[8..]) else {
                continue;
            };
            let unix = matches!(c.kind, fd::UNIX_CLIENT | fd::UNIX_SERVER | fd::UNIX_PAIR);
            if !unix || now_ns.saturating_sub(c.last_ns) < QUIET_NS {
                continue;
            }
            let sockets = there
                .entry(c.tgid)
                .or_insert_with(|| seeds::sockets_of(c.tgid));
            if !sockets.contains(&c.id) {
                self.kernel.maps.connections.delete(&entry[..8])?;
                self.kernel.maps.protocols.delete(&c.id.to_ne_bytes())?;
            }
        }
        Ok(())
    }

    /// The thread map, with entries that were caught in the middle of an update read again.
    pub(super) fn read_threads(&mut self) -> Result<Vec<u8>> {
        let mut entries = self
            .kernel
            .maps
            .threads
            .entries()
            .context("reading threads")?;
        let stride = 4 + size_of::<ThreadState>();
        self.thread_entries = entries.len() / stride;
        for entry in entries.chunks_exact_mut(stride) {
            for _ in 0..3 {
                let Some(t) = ThreadState::from_bytes(&entry[4..]) else {
                    break;
                };
                if t.seq == t.seq_tail {
                    break;
                }
                if let Some(again) = self.kernel.maps.threads.lookup(&entry[..4], 1)? {
                    entry[4..].copy_from_slice(&again);
                }
            }
        }
        Ok(entries)
    }

    pub(super) fn read_maps(&mut self) -> Result<()> {
        for (_, slot) in self.slots.processes().collect::<Vec<_>>() {
            self.read_histograms(slot);
        }
        let maps = &self.kernel.maps;
        let mut frames = Vec::new();
        let mut read = |id, map: &RawMap, name| -> Result<()> {
            let entries = map.entries().with_context(|| format!("reading {name}"))?;
            frames.push(Frame::Map(id, entries));
            Ok(())
        };
        read(MapId::Sites, &maps.sites, "sites")?;
        read(MapId::Wakers, &maps.wakers, "wakers")?;
        read(MapId::LockHolds, &maps.lock_holds, "lock_holds")?;
        read(MapId::Syscalls, &maps.syscalls, "syscalls")?;
        read(MapId::SyscallErrors, &maps.syscall_errors, "syscall_errors")?;
        read(MapId::BlockIo, &maps.block_io, "block_io")?;
        read(MapId::Growth, &maps.growth, "growth")?;
        if self.allocations {
            read(MapId::Allocations, &maps.allocations, "allocations")?;
        }
        let mut facts = Vec::new();
        for frame in &frames {
            match frame {
                Frame::Map(MapId::Sites, bytes) => {
                    let owner: HashMap<u32, u32> = self
                        .slots
                        .processes()
                        .map(|(pid, slot)| (slot, pid))
                        .collect();
                    facts.extend(self.names.files(bytes, |slot| owner.get(&slot).copied()));
                }
                Frame::Map(MapId::BlockIo, bytes) => facts.extend(self.names.devices(bytes)),
                _ => {}
            }
        }
        self.frames.extend(frames);
        self.frames.extend(facts.into_iter().map(Frame::Fact));
        Ok(())
    }

    pub(super) fn read_histograms(&mut self, slot: u32) {
        if slot == slots::SHARED {
            return;
        }
        if let Some(element) = self.kernel.maps.histograms.element(slot as usize) {
            // SAFETY: a live element of the mapped array.
            let h = unsafe { histograms::read_live(slot, element.as_ptr()) };
            self.frames.push(Frame::Map(MapId::Histograms, h.pack()));
        }
    }

    /// Empties the elements of slots that are free again.
    pub(super) fn free_slots(&mut self, now_ns: u64) -> Result<()> {
        for slot in self.slots.rested(now_ns) {
            if let Some(element) = self.kernel.maps.histograms.element(slot as usize) {
                // SAFETY: a live element; no thread charges to it any more.
                unsafe { element.as_ptr().write_bytes(0, 1) };
            }
            let maps = &self.kernel.maps;
            delete_slot::<SiteKey>(
                &maps.sites,
                size_of::<SiteTotals>(),
                |k| k.slot.into(),
                slot,
            )?;
            let totals = size_of::<LockHoldTotals>();
            delete_slot::<LockHoldKey>(&maps.lock_holds, totals, |k| k.slot.into(), slot)?;
            let cell = size_of::<LatencyCell>();
            delete_slot::<SyscallKey>(&maps.syscalls, cell, |k| k.slot, slot)?;
            delete_slot::<SyscallErrorKey>(&maps.syscall_errors, 8, |k| k.slot, slot)?;
            delete_slot::<BlockIoKey>(&maps.block_io, cell, |k| k.slot, slot)?;
            delete_slot::<GrowthKey>(&maps.growth, size_of::<GrowthTotals>(), |k| k.slot, slot)?;
            let totals = size_of::<AllocationTotals>();
            delete_slot::<AllocationKey>(&maps.allocations, totals, |k| k.slot, slot)?;
            self.counted_calls.retain(|(s, _), _| *s != slot);
            self.frames.push(Frame::Fact(Fact::SlotFreed { slot }));
        }
        Ok(())
    }

    /// Takes allocations of processes that ended, or changed their program, out of the map: nobody
    /// frees them. They stay counted as not freed.
    pub(super) fn forget_allocations(&mut self) -> Result<()> {
        let gone = std::mem::take(&mut self.gone);
        if !self.allocations || gone.is_empty() {
            return Ok(());
        }
        let map = &self.kernel.maps.live_allocations;
        let stride = size_of::<LiveKey>() + size_of::<Allocation>();
        for entry in map.entries()?.chunks_exact(stride) {
            if LiveKey::from_bytes(entry).is_some_and(|key| gone.contains(&key.tgid)) {
                map.delete(&entry[..size_of::<LiveKey>()])?;
            }
        }
        Ok(())
    }

    pub(super) fn per_cpu_sum(&self, map: &RawMap, key: u32) -> Result<u64> {
        let values = map
            .lookup(&key.to_ne_bytes(), self.kernel.cpus)?
            .unwrap_or_default();
        Ok(values.chunks_exact(8).filter_map(u64::from_bytes).sum())
    }

    pub(super) fn memo(&self) -> Result<[u64; 4]> {
        let values = self
            .kernel
            .maps
            .memo_stats
            .lookup(&0u32.to_ne_bytes(), self.kernel.cpus)?;
        let mut sum = [0; 4];
        for stats in values
            .unwrap_or_default()
            .chunks_exact(size_of::<MemoStats>())
        {
            if let Some(s) = MemoStats::from_bytes(stats) {
                for (total, part) in sum
                    .iter_mut()
                    .zip([s.hits, s.walks, s.checked, s.mismatched])
                {
                    *total += part;
                }
            }
        }
        Ok(sum)
    }
}

/// Deletes a slot's entries from a map.
fn delete_slot<K: Wire>(
    map: &RawMap,
    value_size: usize,
    slot_of: impl Fn(&K) -> u32,
    slot: u32,
) -> Result<()> {
    for entry in map.entries()?.chunks_exact(size_of::<K>() + value_size) {
        if let Some(key) = K::from_bytes(entry)
            && slot_of(&key) == slot
        {
            map.delete(key.as_bytes())?;
        }
    }
    Ok(())
}
