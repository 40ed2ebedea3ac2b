//! The kernel side's maps, opened by name, as bytes.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use perf_ebpf_common::{
    Wire as _,
    signals::{
        LatencyCell,
        allocations::{Allocation, AllocationKey, AllocationTotals, LiveKey},
        block_io::{BlockIoKey, InFlight},
        control::{Control, FunctionRange},
        ledger::{
            ClassHistograms, ListenerKey, SLOTS, SiteKey, SiteTotals, TARGET_SLOTS, ThreadState,
            WakerKey, target_slot,
        },
        locks::{InnerTid, LockHoldKey, LockHoldTotals},
        memory::{GrowthKey, GrowthTotals, Resident},
        sockets::{Connection, Told},
        stacks::MemoStats,
        syscalls::{SyscallErrorKey, SyscallKey},
    },
};

use super::{
    raw::{MappedArray, NOEXIST, RawMap},
    unwind::UnwindMaps,
};

/// Every map user space reads or writes, but for the ring.
pub struct Maps {
    pub threads: RawMap,
    pub sites: RawMap,
    pub wakers: RawMap,
    pub lock_holds: RawMap,
    pub inner_tids: RawMap,
    pub slots: RawMap,
    pub listeners: RawMap,
    pub syscalls: RawMap,
    pub syscall_errors: RawMap,
    pub block_io: RawMap,
    pub io_in_flight: RawMap,
    pub growth: RawMap,
    pub allocations: RawMap,
    pub live_allocations: RawMap,
    pub resident: RawMap,
    pub sys_kinds: RawMap,
    pub device_kinds: RawMap,
    pub buffer_kinds: RawMap,
    pub connections: RawMap,
    pub protocols: RawMap,
    pub loss: RawMap,
    pub generated: RawMap,
    pub memo_stats: RawMap,
    pub stack_walks: RawMap,
    pub python_walks: RawMap,
    /// Taken by the thread that looks for it.
    pub schedule: Option<MappedArray<FunctionRange>>,
    /// Taken by the thread that builds the tables.
    pub unwind: Option<UnwindMaps>,
    pub histograms: MappedArray<ClassHistograms>,
    pub control: MappedArray<Control>,
    targets: MappedArray<u32>,
}

impl Maps {
    /// Opens them all.
    ///
    /// # Errors
    /// A map is missing from the object, or cannot be mapped.
    pub fn open(ebpf: &Ebpf) -> Result<Maps> {
        let raw = |name, key_size, value_size| raw_map(ebpf, name, key_size, value_size);
        Ok(Maps {
            threads: raw("threads", 4, size_of::<ThreadState>())?,
            sites: raw("sites", size_of::<SiteKey>(), size_of::<SiteTotals>())?,
            wakers: raw("wakers", size_of::<WakerKey>(), size_of::<SiteTotals>())?,
            lock_holds: raw(
                "lock_holds",
                size_of::<LockHoldKey>(),
                size_of::<LockHoldTotals>(),
            )?,
            inner_tids: raw("inner_tids", size_of::<InnerTid>(), 4)?,
            slots: raw("slots", 4, 4)?,
            listeners: raw("listeners", size_of::<ListenerKey>(), 1)?,
            syscalls: raw(
                "syscalls",
                size_of::<SyscallKey>(),
                size_of::<LatencyCell>(),
            )?,
            syscall_errors: raw("syscall_errors", size_of::<SyscallErrorKey>(), 8)?,
            block_io: raw(
                "block_io",
                size_of::<BlockIoKey>(),
                size_of::<LatencyCell>(),
            )?,
            io_in_flight: raw("io_in_flight", 8, size_of::<InFlight>())?,
            allocations: raw(
                "allocations",
                size_of::<AllocationKey>(),
                size_of::<AllocationTotals>(),
            )?,
            live_allocations: raw(
                "live_allocations",
                size_of::<LiveKey>(),
                size_of::<Allocation>(),
            )?,
            growth: raw("growth", size_of::<GrowthKey>(), size_of::<GrowthTotals>())?,
            resident: raw("resident", 4, size_of::<Resident>())?,
            sys_kinds: raw("sys_kinds", 4, 1)?,
            device_kinds: raw("device_kinds", 4, 1)?,
            buffer_kinds: raw("buffer_kinds", 4, 1)?,
            connections: raw("connections", 8, size_of::<Connection>())?,
            protocols: raw("protocols", 8, size_of::<Told>())?,
            loss: raw("loss", 4, 8)?,
            generated: raw("generated", 4, 8)?,
            memo_stats: raw("memo_stats", 4, size_of::<MemoStats>())?,
            stack_walks: raw("stack_walks", 4, 8)?,
            python_walks: raw("python_walks", 4, 8)?,
            schedule: Some(
                MappedArray::map(fd(ebpf, "schedule_range")?.as_fd(), 1)
                    .context("mapping schedule_range")?,
            ),
            unwind: Some(UnwindMaps::open(ebpf)?),
            histograms: MappedArray::map(fd(ebpf, "histograms")?.as_fd(), SLOTS as usize)
                .context("mapping histograms")?,
            control: MappedArray::map(fd(ebpf, "control")?.as_fd(), 1)
                .context("mapping control")?,
            targets: MappedArray::map(fd(ebpf, "targets")?.as_fd(), TARGET_SLOTS as usize)
                .context("mapping targets")?,
        })
    }

    /// Makes a thread the target's.
    ///
    /// # Errors
    /// Those of bpf(2): it is there already, or there is no room.
    pub fn add_thread(&self, t: &ThreadState) -> io::Result<()> {
        // Before it is in there: a thread that is, and is not counted, is not looked up.
        self.count_thread(t.tid, 1);
        let result = self
            .threads
            .update(&t.tid.to_ne_bytes(), t.as_bytes(), NOEXIST);
        if result.is_err() {
            self.count_thread(t.tid, -1);
        }
        result
    }

    /// Takes a thread out of the target.
    ///
    /// # Errors
    /// Those of bpf(2): it is not there.
    pub fn remove_thread(&self, tid: u32) -> io::Result<()> {
        self.threads.delete(&tid.to_ne_bytes())?;
        self.count_thread(tid, -1);
        Ok(())
    }

    fn count_thread(&self, tid: u32, by: i32) {
        if let Some(n) = self.targets.element(target_slot(tid) as usize) {
            // SAFETY: an aligned integer of the mapping, which the kernel side adds to atomically too.
            let n = unsafe { AtomicU32::from_ptr(n.as_ptr()) };
            n.fetch_add(by.cast_unsigned(), Ordering::SeqCst);
        }
    }
}

fn data<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a MapData> {
    match ebpf.map(name) {
        Some(Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data)) => Ok(data),
        _ => anyhow::bail!("map {name} is missing from the kernel object"),
    }
}

fn fd(ebpf: &Ebpf, name: &str) -> Result<OwnedFd> {
    data(ebpf, name)?
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .with_context(|| format!("duplicating the descriptor of map {name}"))
}

pub fn raw_map(ebpf: &Ebpf, name: &str, key_size: usize, value_size: usize) -> Result<RawMap> {
    let info = data(ebpf, name)?
        .info()
        .with_context(|| format!("reading about map {name}"))?;
    anyhow::ensure!(
        info.key_size() as usize == key_size && info.value_size() as usize == value_size,
        "map {name} of the kernel object has other sizes than this program"
    );
    Ok(RawMap {
        fd: fd(ebpf, name)?,
        key_size,
        value_size,
        max_entries: info.max_entries() as usize,
    })
}
