//! The only module that touches the kernel's BPF interfaces: loads the object, attaches its
//! programs, and gives `drain` its maps as bytes.

pub mod btf;
mod debug_log;
pub mod host;
pub mod kallsyms;
mod linked_in;
mod links;
pub mod maps;
mod probed;
pub mod raw;
pub mod tables;
pub mod unwind;
mod uprobe_cost;
mod uprobes;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{Ebpf, EbpfLoader, maps::RingBuf, programs::ProgramError};
use perf_ebpf_common::{
    offsets::{ABSENT, Need, Offsets},
    signals::{
        allocations::DEFAULT_SAMPLE_BYTES, control::Settings, memory::Resident,
        sockets::CAPTURE_MAX, unwind::Block,
    },
};

pub use self::links::{PROGRAMS, SAMPLE_HZ};
use self::{btf::Btf, debug_log::DebugLog, links::Links, maps::Maps, uprobes::Uprobes};
use crate::model::SignalState;

/// The kernel side, compiled; empty where perf-agent was built without a BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/perf-agent.o"));

/// How to load the kernel side.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Follow processes that the target forks.
    pub follow_children: bool,
    /// Take stacks of blocks and samples.
    pub stacks: bool,
    /// Samples of each CPU a second.
    pub frequency: u32,
    /// Size of the event ring, a power of two of at least a page.
    pub ring_bytes: u32,
    pub max_threads: u32,
    pub max_sites: u32,
    /// Most bytes of one send or receive that are captured; 0 turns the sockets signal off.
    pub capture_bytes: u32,
    /// Size of the ring of captured bytes, a power of two of at least a page.
    pub data_ring_bytes: u32,
    pub max_connections: u32,
    /// Memory for unwind tables, in the kernel. Two million rows and their indices in 16 MiB; all
    /// that MariaDB maps takes about three.
    pub unwind_bytes: u32,
    /// One in so many remembered stacks is walked again, rounded up to a power of two.
    pub memo_check_one_in: u32,
    /// Attach the programs' debug log.
    pub debug: bool,
    /// Probe OpenSSL.
    pub tls: bool,
    /// Probe allocators, and sample an allocation for each so many bytes; a power of two.
    pub allocations: Option<u32>,
    /// The target is a command of this host that is yet to begin, with this program: probe the host's
    /// OpenSSL, and what is linked into it.
    pub command: Option<PathBuf>,
    /// Load also those that stand in for hooks this kernel has, to verify them.
    pub every_program: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            follow_children: true,
            stacks: true,
            frequency: SAMPLE_HZ,
            ring_bytes: 1 << 20,
            max_threads: 16384,
            max_sites: 16384,
            capture_bytes: CAPTURE_MAX as u32,
            data_ring_bytes: 8 << 20,
            max_connections: 16384,
            unwind_bytes: 16 << 20,
            memo_check_one_in: 128,
            debug: false,
            tls: true,
            allocations: None,
            command: None,
            every_program: false,
        }
    }
}

/// The loaded kernel side. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    links: Links,
    pub maps: Maps,
    pub ring: RingBuf<aya::maps::MapData>,
    /// Bytes of the target's sockets.
    pub data: RingBuf<aya::maps::MapData>,
    /// Each signal, on or off and why.
    pub signals: Vec<SignalState>,
    pub cpus: usize,
    debug_log: Option<DebugLog>,
    tls: Uprobes,
    allocations: Uprobes,
    /// Allocations are sampled.
    sampled: bool,
}

impl Kernel {
    /// Loads every program this kernel has the hooks for; attaches none.
    ///
    /// # Errors
    /// Built without kernel programs; missing privilege; a kernel without BTF; a program that the
    /// verifier refuses. Each says what to do.
    pub fn load(options: &LoadOptions) -> Result<Kernel> {
        Kernel::load_and(options, |_| Ok(()))
    }

    /// As [`Kernel::load`]; `early` gets the maps while the verifier still reads the programs, which
    /// takes most of the time of an attach.
    ///
    /// # Errors
    /// As [`Kernel::load`], and what `early` returns.
    pub fn load_and(
        options: &LoadOptions,
        early: impl FnOnce(&mut Maps) -> Result<()>,
    ) -> Result<Kernel> {
        if OBJECT.is_empty() {
            bail!(
                "this perf-agent was built without its kernel programs; build it with `cargo xtask build`"
            );
        }
        host::check_privilege()?;
        host::raise_memlock_limit();
        // The loader reads all of the kernel's types as well when it is made, for nothing: 30 ms, beside
        // our own reading.
        let (loader, types) = std::thread::scope(|scope| {
            let loader = scope.spawn(EbpfLoader::new);
            let types = Btf::of_running_kernel();
            (loader.join(), types)
        });
        let types = types.map_err(|e| {
            anyhow!("{e}; the kernel needs type information (CONFIG_DEBUG_INFO_BTF=y)")
        })?;
        let mut loader = loader.map_err(|_| anyhow!("reading the kernel's type information"))?;
        let (offsets, absent) = btf::resolve(&types);
        if let Some((field, _)) = absent.iter().find(|(_, need)| *need == Need::Ledger) {
            bail!("this kernel has no field `{field}`, without which no ledger can be kept");
        }
        let settings = settings(options, &types, &offsets)?;
        let hooks: Vec<String> = PROGRAMS
            .iter()
            .filter(|p| !p.is_uprobe())
            .map(|p| format!("btf_trace_{}", p.hook))
            .collect();
        let btf = aya::Btf::parse(&types.typedefs_only(&hooks), aya::Endianness::default())
            .context("reading the kernel's type information")?;
        drop(types);
        let cpus = aya::util::nr_cpus().map_err(|(what, e)| anyhow!("{what}: {e}"))?;
        let mut ebpf = loader
            .btf(Some(&btf))
            .override_global("OFFSETS", &offsets, true)
            .override_global("SETTINGS", &settings, true)
            .map_max_entries("events", options.ring_bytes)
            .map_max_entries("threads", options.max_threads)
            .map_max_entries("sites", options.max_sites)
            .map_max_entries("data", options.data_ring_bytes)
            .map_max_entries("data_scratch", cpus as u32)
            .map_max_entries("connections", options.max_connections)
            .map_max_entries("protocols", options.max_connections)
            .map_max_entries("unwind_words", unwind_blocks(options))
            .map_max_entries("allocations", of_allocations(options, 8192))
            .map_max_entries("allocating", of_allocations(options, 1024))
            .map_max_entries("live_allocations", of_allocations(options, 65536))
            .load(OBJECT)
            .context("creating the kernel maps")?;
        let mut maps = Maps::open(&ebpf)?;
        early(&mut maps)?;
        let ring = RingBuf::try_from(ebpf.take_map("events").context("map events is missing")?)
            .context("mapping the event ring")?;
        let data = RingBuf::try_from(ebpf.take_map("data").context("map data is missing")?)
            .context("mapping the data ring")?;
        let debug_log = match options.debug {
            true => Some(DebugLog::open(&mut ebpf)?),
            false => None,
        };
        let mut kernel = Kernel {
            ebpf,
            links: Links::new(options.frequency),
            maps,
            ring,
            data,
            signals: Vec::new(),
            cpus,
            debug_log,
            tls: Uprobes::new(&probed::TLS),
            allocations: Uprobes::new(&probed::ALLOCATIONS),
            sampled: options.allocations.is_some(),
        };
        let wanted = [
            ("sockets", options.capture_bytes > 0),
            (links::TLS, options.tls),
            (links::ALLOCATIONS, options.allocations.is_some()),
        ];
        let off = wanted.iter().filter(|(_, on)| !on);
        let without: Vec<&str> = off.map(|(signal, _)| *signal).collect();
        kernel
            .links
            .load(&mut kernel.ebpf, &btf, &without, options.every_program)?;
        drop(btf);
        give_memory_back();
        kernel.fill_tables()?;
        kernel.note_absent(&absent);
        Ok(kernel)
    }

    /// Whether this program was built with its kernel side.
    pub fn built_in() -> bool {
        !OBJECT.is_empty()
    }

    /// Attaches what runs for the whole trace, the lifecycle first: from its first event on no new
    /// thread of a seeded one is missed. The syscalls signal is attached apart.
    ///
    /// # Errors
    /// A hook the ledger cannot work without is refused.
    pub fn attach(&mut self) -> Result<()> {
        let states = self.links.attach_all(&mut self.ebpf)?;
        self.signals.extend(states);
        Ok(())
    }

    /// Probes OpenSSL, and allocators, where a process has them mapped or linked in. True where a probe
    /// on OpenSSL was added.
    pub fn probe(&mut self, pid: u32) -> bool {
        self.allocations.look_at(&mut self.ebpf, &self.links, pid);
        self.tls.look_at(&mut self.ebpf, &self.links, pid)
    }

    /// As [`Kernel::probe`], for what a command on this host will load, and its program.
    pub fn probe_command(&mut self, program: &Path) -> bool {
        for uprobes in [&mut self.allocations, &mut self.tls] {
            uprobes.look_at_command(&mut self.ebpf, &self.links, program);
        }
        self.tls.any()
    }

    /// TLS libraries in the targets that cannot be read, as far as they were looked at.
    pub fn unreadable_tls(&self) -> Vec<String> {
        let names = self.tls.unreadable().into_iter();
        names.map(str::to_owned).collect()
    }

    /// Waits until all that the targets have mapped was looked at.
    pub fn finish_search(&mut self) {
        self.tls.finish_search();
    }

    /// How the signals stand whose programs are uprobes: that of allocations where it was asked for,
    /// which `trace` cannot. Measures what the probes cost.
    pub fn uprobe_states(&mut self) -> Vec<SignalState> {
        let asked = [Some(&self.tls), self.sampled.then_some(&self.allocations)];
        let state = |uprobes: &Uprobes| {
            let (on, reason) = match uprobes.refusal(&self.links) {
                Some(why) => (false, why.to_owned()),
                None => (true, uprobes.told(&mut self.ebpf)),
            };
            SignalState {
                name: uprobes.signal().to_owned(),
                on,
                reason,
            }
        };
        asked.into_iter().flatten().map(state).collect()
    }

    /// Whether allocations could be sampled.
    pub fn allocations_state(&self) -> SignalState {
        let refusal = self.allocations.refusal(&self.links);
        let how = "uprobes on malloc, calloc, realloc and free, for `profile --mode alloc`";
        SignalState {
            name: links::ALLOCATIONS.to_owned(),
            on: refusal.is_none(),
            reason: refusal.unwrap_or(how).to_owned(),
        }
    }

    /// Attaches or detaches the two system call hooks.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_syscalls(&mut self, on: bool) -> Result<()> {
        self.links.set_syscalls(&mut self.ebpf, on)
    }

    /// Attaches or detaches the hook of memory growth.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_memory(&mut self, on: bool) -> Result<()> {
        if on {
            // What was counted last is of the time before it was detached.
            for entry in self
                .maps
                .resident
                .entries()?
                .chunks_exact(4 + size_of::<Resident>())
            {
                self.maps.resident.delete(&entry[..4])?;
            }
        }
        self.links.set_memory(&mut self.ebpf, on)
    }

    /// Passes on what the kernel side's debug log holds, where it is on.
    pub fn drain_debug_log(&mut self) {
        if let Some(log) = &mut self.debug_log {
            log.drain();
        }
    }

    /// Detaches everything but the uprobes, which go with the programs; the maps stay for the last read.
    pub fn detach(&mut self) {
        self.links.detach_all(&mut self.ebpf);
    }

    /// Name and verified instruction count of every program.
    ///
    /// # Errors
    /// A program's information cannot be read.
    pub fn verified(&self) -> Result<Vec<(String, Option<u32>)>> {
        let mut rows = self
            .ebpf
            .programs()
            .filter_map(|(name, program)| match program.info() {
                Ok(info) => Some(Ok((name.to_owned(), info.verified_instruction_count()))),
                Err(ProgramError::NotLoaded) => None,
                Err(e) => Some(Err(e).context(name.to_owned())),
            })
            .collect::<Result<Vec<_>>>()?;
        rows.sort();
        Ok(rows)
    }

    /// Total run time in ns and number of runs of all programs, as far as the kernel counted them.
    pub fn run_time(&self) -> (u64, u64) {
        self.links.run_time(&self.ebpf)
    }

    fn fill_tables(&mut self) -> Result<()> {
        let devices = std::fs::read_to_string("/proc/devices").unwrap_or_default();
        for (map, table) in [
            (&self.maps.sys_kinds, tables::sys_kinds().as_slice()),
            (
                &self.maps.device_kinds,
                tables::device_kinds(&devices).as_slice(),
            ),
            (&self.maps.buffer_kinds, tables::buffer_kinds().as_slice()),
        ] {
            for (i, kind) in table.iter().enumerate().filter(|(_, kind)| **kind != 0) {
                map.update(&(i as u32).to_ne_bytes(), &[*kind], 0)
                    .context("filling a table")?;
            }
        }
        Ok(())
    }

    fn note_absent(&mut self, absent: &[(&'static str, Need)]) {
        self.signals.push(SignalState {
            name: "faults".to_owned(),
            on: true,
            reason: "counted by the kernel (/proc), time blocked from the ledger".to_owned(),
        });
        for (need, name) in [
            (Need::Fd, "fds"),
            (Need::Net, "peers"),
            (Need::BlockIo, "block_io"),
            (Need::Memory, "memory"),
        ] {
            let missing: Vec<_> = absent
                .iter()
                .filter(|(_, n)| *n == need)
                .map(|(field, _)| *field)
                .collect();
            let on = missing.is_empty();
            if matches!(need, Need::BlockIo | Need::Memory) && on {
                continue; // said when its hooks are attached
            }
            self.signals.push(SignalState {
                name: name.to_owned(),
                on,
                reason: if on {
                    "read from the kernel's fd tables".to_owned()
                } else {
                    format!("this kernel has no {}", missing.join(", "))
                },
            });
        }
    }
}

/// Has the allocator return what is free: reading the kernel's types and naming stacks take tens of
/// MB for a moment, which it would keep.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer and leaves live allocations alone.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Blocks of the unwind tables; the one a map must have where no stacks are taken.
fn unwind_blocks(options: &LoadOptions) -> u32 {
    let blocks = options.unwind_bytes / size_of::<Block>() as u32;
    if options.stacks { blocks.max(1) } else { 1 }
}

/// Entries of a map of allocations; the one a map must have where they are not sampled.
fn of_allocations(options: &LoadOptions, entries: u32) -> u32 {
    options.allocations.map_or(1, |_| entries)
}

/// The read-only globals, from the options and what the kernel is.
fn settings(options: &LoadOptions, types: &Btf, offsets: &Offsets) -> Result<Settings> {
    let mut settings = Settings::UNSET;
    settings.promote_after_ns = 1_000_000_000;
    settings.follow_children = options.follow_children.into();
    settings.stacks = options.stacks.into();
    settings.memo_check_one_in = options.memo_check_one_in.next_power_of_two();
    settings.alloc_sample_bytes = options.allocations.unwrap_or(DEFAULT_SAMPLE_BYTES);
    settings.debug = options.debug.into();
    settings.capture_bytes = options.capture_bytes.min(CAPTURE_MAX as u32);
    settings.has_task_pt_regs = host::has_helper_task_pt_regs().into();
    settings.in_iowait_mask = types
        .place("task_struct.in_iowait")
        .and_then(|place| place.bit)
        .map(|bit| 1 << bit)
        .context("task_struct.in_iowait is not a bit-field")?;
    settings.regs_from_stack = host::kernel_stack_bytes() - offsets.regs_size;
    settings.rq_is_second_arg = types
        .tracepoint_args("block_rq_issue")
        .is_some_and(|args| args > 1)
        .into();
    let counters_are_words = types
        .tracepoint_args("rss_stat")
        .is_some_and(|args| args > 2);
    (settings.rss_stat_stride, settings.rss_stat_count) = match counters_are_words {
        true => (size_of::<u64>() as u32, 0),
        false => (offsets.percpu_counter_size, offsets.percpu_counter_count),
    };
    settings.regs_args = host::argument_registers(types)
        .map_err(|name| anyhow!("struct pt_regs of this kernel has no `{name}`"))?;
    debug_assert_ne!(offsets.regs_nr, ABSENT);
    Ok(settings)
}
