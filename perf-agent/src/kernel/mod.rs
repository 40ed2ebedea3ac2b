//! The only module that touches the kernel's BPF interfaces: loads the object, attaches its
//! programs, and gives `drain` its maps as bytes.

pub mod btf;
pub mod host;
mod links;
pub mod maps;
pub mod raw;
pub mod tables;
pub mod unwind;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{Ebpf, EbpfLoader, maps::RingBuf, programs::ProgramError};
use perf_ebpf_common::{
    offsets::{ABSENT, Need, Offsets},
    signals::{control::Settings, unwind::Block},
};

pub use self::links::PROGRAMS;
use self::{btf::Btf, links::Links, maps::Maps};
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
    /// Size of the event ring, a power of two of at least a page.
    pub ring_bytes: u32,
    pub max_threads: u32,
    pub max_sites: u32,
    /// Where to look for separate debug files, before the distribution's place.
    pub debug_dirs: Vec<std::path::PathBuf>,
    /// Memory for unwind tables, in the kernel. Two million rows and their indices in 16 MiB; all
    /// that MariaDB maps takes about three.
    pub unwind_bytes: u32,
    /// Attach the programs' debug log.
    pub debug: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            follow_children: true,
            stacks: true,
            ring_bytes: 1 << 20,
            max_threads: 16384,
            max_sites: 16384,
            debug_dirs: Vec::new(),
            unwind_bytes: 16 << 20,
            debug: false,
        }
    }
}

/// The loaded kernel side. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    btf: aya::Btf,
    links: Links,
    pub maps: Maps,
    pub ring: RingBuf<aya::maps::MapData>,
    /// Each signal, on or off and why.
    pub signals: Vec<SignalState>,
    pub cpus: usize,
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
        let types = Btf::of_running_kernel().map_err(|e| {
            anyhow!("{e}; the kernel needs type information (CONFIG_DEBUG_INFO_BTF=y)")
        })?;
        let (offsets, absent) = btf::resolve(&types);
        if let Some((field, _)) = absent.iter().find(|(_, need)| *need == Need::Ledger) {
            bail!("this kernel has no field `{field}`, without which no ledger can be kept");
        }
        let settings = settings(options, &types, &offsets)?;
        drop(types);
        let btf = aya::Btf::from_sys_fs().context("reading the kernel's type information")?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("OFFSETS", &offsets, true)
            .override_global("SETTINGS", &settings, true)
            .map_max_entries("events", options.ring_bytes)
            .map_max_entries("threads", options.max_threads)
            .map_max_entries("sites", options.max_sites)
            .map_max_entries("unwind_words", unwind_blocks(options))
            .load(OBJECT)
            .context("creating the kernel maps")?;
        let cpus = aya::util::nr_cpus().map_err(|(what, e)| anyhow!("{what}: {e}"))?;
        let mut maps = Maps::open(&ebpf)?;
        early(&mut maps)?;
        let ring = RingBuf::try_from(ebpf.take_map("events").context("map events is missing")?)
            .context("mapping the event ring")?;
        let mut kernel = Kernel {
            ebpf,
            btf,
            links: Links::default(),
            maps,
            ring,
            signals: Vec::new(),
            cpus,
        };
        kernel.links.load(&mut kernel.ebpf, &kernel.btf)?;
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

    /// Attaches or detaches the two system call hooks.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_syscalls(&mut self, on: bool) -> Result<()> {
        self.links.set_syscalls(&mut self.ebpf, on)
    }

    /// Detaches everything; the maps stay for the last read.
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
        ] {
            let missing: Vec<_> = absent
                .iter()
                .filter(|(_, n)| *n == need)
                .map(|(field, _)| *field)
                .collect();
            let on = missing.is_empty();
            if need == Need::BlockIo && on {
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

/// Blocks of the unwind tables; the one a map must have where no stacks are taken.
fn unwind_blocks(options: &LoadOptions) -> u32 {
    let blocks = options.unwind_bytes / size_of::<Block>() as u32;
    if options.stacks { blocks.max(1) } else { 1 }
}

/// The read-only globals, from the options and what the kernel is.
fn settings(options: &LoadOptions, types: &Btf, offsets: &Offsets) -> Result<Settings> {
    let mut settings = Settings::UNSET;
    settings.promote_after_ns = 1_000_000_000;
    settings.follow_children = options.follow_children.into();
    settings.stacks = options.stacks.into();
    settings.memo_check_one_in = 128;
    settings.debug = options.debug.into();
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
    settings.regs_args = host::argument_registers(types)
        .map_err(|name| anyhow!("struct pt_regs of this kernel has no `{name}`"))?;
    debug_assert_ne!(offsets.regs_nr, ABSENT);
    Ok(settings)
}
