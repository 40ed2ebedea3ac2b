//! Where kernel struct fields are, resolved from the running kernel's BTF at start.
//!
//! rustc emits no CO-RE relocations, so user space fills [`Offsets`] (see `kernel::btf` in
//! perf-agent) and the kernel side reads it as a read-only global, which the verifier folds.

/// Offset of a field this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// A list of fields: the struct, plus one table of how to find each.
macro_rules! offsets {
    ($($(#[$doc:meta])* $field:ident: $need:ident [$($path:literal),+],)+) => {
        /// Byte offsets of kernel fields, [`ABSENT`] where the kernel has none.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Offsets { $($(#[$doc])* pub $field: u32,)+ }

        impl Offsets {
            /// Every field absent: what the object holds before user space fills it.
            pub const UNSET: Offsets = Offsets { $($field: ABSENT,)+ };
        }

        /// How to find each field: its name here, who needs it, and `struct.path` candidates in
        /// order (kernels rename fields).
        pub const FIELDS: &[Field] = &[$(Field {
            name: stringify!($field),
            need: Need::$need,
            paths: &[$($path),+],
            set: |offsets, value| offsets.$field = value,
        },)+];
    };
}

/// Which part of the program cannot work without a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The ledger itself: without it the program refuses to start.
    Ledger,
    /// Telling what an fd is; without it time blocked on fds is `other`.
    Fd,
    /// Peers of sockets.
    Net,
    /// Block I/O.
    BlockIo,
    /// Growth of memory.
    Memory,
    /// Exactly one of several alternatives, checked where it is used.
    Optional,
}

/// One kernel field.
pub struct Field {
    pub name: &'static str,
    pub need: Need,
    /// `struct.field.field` candidates; anonymous members are descended.
    pub paths: &'static [&'static str],
    /// Writes the offset into the table.
    pub set: fn(&mut Offsets, u32),
}

offsets! {
    task_pid: Ledger ["task_struct.pid"],
    task_tgid: Ledger ["task_struct.tgid"],
    task_comm: Ledger ["task_struct.comm"],
    /// `state` until 5.13.
    task_state: Ledger ["task_struct.__state", "task_struct.state"],
    task_stack: Ledger ["task_struct.stack"],
    /// The byte that holds the bit-field `in_iowait`; its bit is a global of its own.
    task_in_iowait: Ledger ["task_struct.in_iowait"],
    task_on_rq: Ledger ["task_struct.on_rq"],
    /// Delayed dequeue (EEVDF), since 6.12: a sleeping task may still be on the queue.
    task_sched_delayed: Optional ["task_struct.se.sched_delayed"],
    task_sum_exec_runtime: Ledger ["task_struct.se.sum_exec_runtime"],
    task_run_delay: Optional ["task_struct.sched_info.run_delay"],
    /// Base of the thread's local storage, which is `pthread_self()` on x86-64.
    task_fsbase: Optional ["task_struct.thread.fsbase"],
    /// A thread's ids in the pid namespaces it is in: what a lock's word has is the innermost one.
    task_thread_pid: Optional ["task_struct.thread_pid"],
    pid_level: Optional ["pid.level"],
    pid_numbers: Optional ["pid.numbers"],
    upid_nr: Optional ["upid.nr"],
    upid_size: Optional ["upid"],
    task_min_flt: Ledger ["task_struct.min_flt"],
    task_maj_flt: Ledger ["task_struct.maj_flt"],
    task_nvcsw: Ledger ["task_struct.nvcsw"],
    task_nivcsw: Ledger ["task_struct.nivcsw"],
    task_files: Fd ["task_struct.files"],
    files_fdt: Fd ["files_struct.fdt"],
    fdt_max_fds: Fd ["fdtable.max_fds"],
    fdt_fd: Fd ["fdtable.fd"],
    file_inode: Fd ["file.f_inode"],
    file_dentry: Fd ["file.f_path.dentry"],
    file_private: Fd ["file.private_data"],
    dentry_name: Fd ["dentry.d_name.name"],
    inode_mode: Fd ["inode.i_mode"],
    inode_ino: Fd ["inode.i_ino"],
    inode_rdev: Fd ["inode.i_rdev"],
    inode_sb: Fd ["inode.i_sb"],
    sb_dev: Fd ["super_block.s_dev"],
    sb_magic: Fd ["super_block.s_magic"],
    socket_sk: Net ["socket.sk"],
    sock_family: Net ["sock.__sk_common.skc_family"],
    sock_state: Net ["sock.__sk_common.skc_state"],
    sock_protocol: Net ["sock.sk_protocol"],
    /// Local port, host order.
    sock_num: Net ["sock.__sk_common.skc_num"],
    /// Remote port, network order.
    sock_dport: Net ["sock.__sk_common.skc_dport"],
    sock_daddr: Net ["sock.__sk_common.skc_daddr"],
    sock_v6_daddr: Optional ["sock.__sk_common.skc_v6_daddr"],
    sock_net: Net ["sock.__sk_common.skc_net.net"],
    net_inum: Net ["net.ns.inum"],
    /// Local IPv4 address, network order.
    sock_saddr: Net ["sock.__sk_common.skc_rcv_saddr"],
    sock_v6_saddr: Optional ["sock.__sk_common.skc_v6_rcv_saddr"],
    sock_type: Net ["sock.sk_type"],
    sock_socket: Net ["sock.sk_socket"],
    socket_file: Net ["socket.file"],
    tcp_srtt_us: Optional ["tcp_sock.srtt_us"],
    unix_addr: Net ["unix_sock.addr"],
    unix_peer: Net ["unix_sock.peer"],
    unix_addr_len: Net ["unix_address.len"],
    unix_addr_name: Net ["unix_address.name"],
    /// x86-64 names first, arm64 names after.
    regs_nr: Ledger ["pt_regs.orig_ax", "pt_regs.syscallno"],
    regs_ip: Ledger ["pt_regs.ip", "pt_regs.pc"],
    regs_sp: Ledger ["pt_regs.sp"],
    /// The frame pointer; on arm64 the first of the numbered registers, of which it is the 29th.
    regs_fp: Ledger ["pt_regs.bp", "pt_regs.regs"],
    regs_size: Ledger ["pt_regs"],
    rq_disk: Optional ["request.rq_disk"],
    rq_queue: Optional ["request.q"],
    queue_disk: Optional ["request_queue.disk"],
    disk_major: BlockIo ["gendisk.major"],
    disk_first_minor: BlockIo ["gendisk.first_minor"],
    rq_cmd_flags: BlockIo ["request.cmd_flags"],
    rq_data_len: BlockIo ["request.__data_len"],
    rq_internal_tag: BlockIo ["request.internal_tag"],
    rq_start_time: BlockIo ["request.start_time_ns"],
    task_mm: Memory ["task_struct.mm"],
    /// An array of `percpu_counter` since 6.2, of `long` before: see [`Settings`](crate::signals::control::Settings).
    mm_rss_stat: Memory ["mm_struct.rss_stat"],
    percpu_counter_count: Memory ["percpu_counter.count"],
    percpu_counter_size: Memory ["percpu_counter"],
}

#[cfg(feature = "user")]
// SAFETY: repr(C), u32 fields only, no padding, valid for every bit pattern.
unsafe impl aya::Pod for Offsets {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_one_entry_for_every_word_of_the_struct() {
        assert_eq!(FIELDS.len() * 4, core::mem::size_of::<Offsets>());
        let mut offsets = Offsets::UNSET;
        for (i, field) in FIELDS.iter().enumerate() {
            (field.set)(&mut offsets, i as u32);
        }
        // SAFETY: the struct is exactly FIELDS.len() u32 words.
        let words = unsafe {
            core::slice::from_raw_parts((&raw const offsets).cast::<u32>(), FIELDS.len())
        };
        for (i, word) in words.iter().enumerate() {
            assert_eq!(*word as usize, i, "{} is set elsewhere", FIELDS[i].name);
        }
    }
}
