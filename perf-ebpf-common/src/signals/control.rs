//! Settings the kernel side reads: fixed ones are read-only globals, changing ones sit in the
//! map `control`.

use crate::wire;

/// Fixed at load time; the verifier folds every field.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Nanoseconds a new process charges its histograms to its parent before it gets its own.
    pub promote_after_ns: u64,
    /// Follow processes forked by the target.
    pub follow_children: u32,
    /// Take kernel and user stacks of blocks.
    pub stacks: u32,
    /// One of this many stack-memo hits is walked again and compared. A power of two.
    pub memo_check_one_in: u32,
    /// `bpf_task_pt_regs` exists (5.15 and later).
    pub has_task_pt_regs: u32,
    /// Mask of the bit `in_iowait` within its byte.
    pub in_iowait_mask: u32,
    /// Offset of the saved registers from `task->stack`, for kernels without `bpf_task_pt_regs`.
    pub regs_from_stack: u32,
    /// block_rq_insert and block_rq_issue pass the request as argument 1, not 0 (before 5.11).
    pub rq_is_second_arg: u32,
    /// Log thread starts, execs and exits through aya-log.
    pub debug: u32,
    /// Most bytes of one send or receive that are captured, at most
    /// [`super::sockets::CAPTURE_MAX`]; 0 captures nothing.
    pub capture_bytes: u32,
    /// Bytes from one of an address space's counters of pages to the next.
    pub rss_stat_stride: u32,
    /// Where in a counter the count is.
    pub rss_stat_count: u32,
    /// See [`super::allocations::DEFAULT_SAMPLE_BYTES`]. A power of two.
    pub alloc_sample_bytes: u32,
    /// Offsets in `pt_regs` of a system call's arguments 0 to 3.
    pub regs_args: [u32; 4],
}
wire!(Settings => 72);

impl Settings {
    /// What the object holds before user space fills it.
    pub const UNSET: Settings = Settings {
        promote_after_ns: 0,
        follow_children: 0,
        stacks: 0,
        memo_check_one_in: 1,
        has_task_pt_regs: 0,
        in_iowait_mask: 0,
        regs_from_stack: 0,
        rq_is_second_arg: 0,
        debug: 0,
        capture_bytes: 0,
        rss_stat_stride: 0,
        rss_stat_count: 0,
        alloc_sample_bytes: 1,
        regs_args: [0; 4],
    };
}

/// Changes while tracing; one entry in a memory-mapped array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Start of the current slice of the syscalls signal: an entry seen before it pairs with
    /// nothing.
    pub slice_start_ns: u64,
    /// Not 0: a call that was entered before the attach is not counted at all, so that the counts
    /// are those of calls made under the trace. In slices it is counted (and not timed): a slice
    /// is to see as many ends of calls as there are.
    pub only_whole_calls: u64,
    /// Uprobes do nothing any more: it takes the kernel 0.1 s to take one out.
    pub uprobes_stopped: u64,
}
wire!(Control => 16 + 8);

/// Where a function of the kernel is: from its first byte to the next one's. Zeroes where it is not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionRange {
    pub start: u64,
    pub end: u64,
}
wire!(FunctionRange => 16);
