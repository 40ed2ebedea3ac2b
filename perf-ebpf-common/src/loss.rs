//! Every reason for which the kernel side can fail to record something. One counter each, in the
//! per-CPU map `loss`; a failed reserve or insert that is not counted here is a bug.
//!
//! Numbers are written to recordings: a reason that goes away keeps its number.

/// A counted loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loss {
    /// The event ring had no room for a record.
    RingFull = 0,
    /// `threads` was full: a new thread of the target is not followed.
    ThreadsFull = 1,
    /// `sites` was full: an interval is in the ledger but not under its stack and detail.
    SitesFull = 2,
    /// A thread was switched in that was never seen woken: its wait for a CPU is in the blocked
    /// class before it.
    WakeMissed = 3,
    /// A thread was switched in twice with no switch-out between: the time is residual.
    SwitchOutMissed = 4,
    /// `wakers` was full: a lock wait has no waker.
    WakersFull = 5,
    /// A user stack could not be read.
    UserStackFailed = 6,
    /// A kernel stack could not be read.
    KernelStackFailed = 7,
    /// `stack_seen` was full: a stack is not shown.
    StackSeenFull = 8,
    /// The fd table or the file behind an fd could not be read: the class comes from the system
    /// call alone.
    FdUnreadable = 9,
    /// `syscalls` was full: calls of one kind are not counted.
    SyscallsFull = 10,
    /// `syscall_errors` was full: an error is counted without its errno.
    SyscallErrorsFull = 11,
    /// `io_in_flight` was full: a request's latency is not known.
    IoInFlightFull = 12,
    /// `block_io` was full: requests of one device and operation are not counted.
    BlockIoFull = 13,
    /// A thread in `threads` had an impossible histogram slot.
    SlotInvalid = 14,
    /// `listeners` was full: a server's connections on one port are taken for a client's.
    ListenersFull = 15,
    /// No loss: a switch-in that the kernel did not tell of, put back by the scheduler's clock.
    SwitchInInferred = 16,
    /// No loss: a wake-up that the kernel did not tell of, put back by the scheduler's clock.
    WakeInferred = 17,
    /// No loss: a preemption that the kernel did not tell of, put back by the scheduler's clock.
    PreemptionInferred = 18,
    /// The data ring had no room: the bytes are counted, the decoder sees a gap.
    DataRingFull = 19,
    /// `connections` was full: bytes of one connection are not seen.
    ConnectionsFull = 20,
    /// Payload in user memory could not be read: the bytes are counted, the decoder sees a gap.
    PayloadUnreadable = 21,
    /// OpenSSL moved plaintext and no socket was seen to carry it (a memory BIO): not decoded.
    TlsUnattributed = 22,
    /// `resident` or `growth` was full: memory that grew is without a stack.
    GrowthFull = 23,
    /// `allocations`, `allocating` or `live_allocations` was full: a sample is not counted.
    AllocationsFull = 24,
    /// A sampled allocation was begun while another thread walked its stack on the same CPU: it is not
    /// counted.
    AllocationStackBusy = 25,
    /// `lock_holds` was full: a lock's owner is not shown.
    LockHoldsFull = 26,
    /// Both places of a lock in `held_locks` were taken by others that are waited for: its owner is not
    /// known.
    HeldLockTaken = 27,
    /// `inner_tids` was full: a thread in a pid namespace is not known by the id its locks have.
    InnerTidsFull = 28,
    /// No loss: the end of a request that the kernel did not tell of, known by the next at its address. It is
    /// counted, and has no latency.
    IoEndInferred = 29,
}

impl Loss {
    /// How many reasons there are.
    pub const COUNT: usize = 30;

    /// All of them, in the order of their numbers.
    pub const ALL: [Loss; Loss::COUNT] = [
        Loss::RingFull,
        Loss::ThreadsFull,
        Loss::SitesFull,
        Loss::WakeMissed,
        Loss::SwitchOutMissed,
        Loss::WakersFull,
        Loss::UserStackFailed,
        Loss::KernelStackFailed,
        Loss::StackSeenFull,
        Loss::FdUnreadable,
        Loss::SyscallsFull,
        Loss::SyscallErrorsFull,
        Loss::IoInFlightFull,
        Loss::BlockIoFull,
        Loss::SlotInvalid,
        Loss::ListenersFull,
        Loss::SwitchInInferred,
        Loss::WakeInferred,
        Loss::PreemptionInferred,
        Loss::DataRingFull,
        Loss::ConnectionsFull,
        Loss::PayloadUnreadable,
        Loss::TlsUnattributed,
        Loss::GrowthFull,
        Loss::AllocationsFull,
        Loss::AllocationStackBusy,
        Loss::LockHoldsFull,
        Loss::HeldLockTaken,
        Loss::InnerTidsFull,
        Loss::IoEndInferred,
    ];

    /// Whether something is missing: else it was made good, and is reported as `inferred`.
    pub const fn is_loss(self) -> bool {
        !matches!(
            self,
            Loss::SwitchInInferred
                | Loss::WakeInferred
                | Loss::PreemptionInferred
                | Loss::IoEndInferred
        )
    }

    /// Name in `coverage.lost` (or `coverage.inferred`).
    pub const fn name(self) -> &'static str {
        match self {
            Loss::RingFull => "ring_full",
            Loss::ThreadsFull => "threads_full",
            Loss::SitesFull => "sites_full",
            Loss::WakeMissed => "wake_missed",
            Loss::SwitchOutMissed => "switch_out_missed",
            Loss::WakersFull => "wakers_full",
            Loss::UserStackFailed => "user_stack_failed",
            Loss::KernelStackFailed => "kernel_stack_failed",
            Loss::StackSeenFull => "stack_seen_full",
            Loss::FdUnreadable => "fd_unreadable",
            Loss::SyscallsFull => "syscalls_full",
            Loss::SyscallErrorsFull => "syscall_errors_full",
            Loss::IoInFlightFull => "io_in_flight_full",
            Loss::BlockIoFull => "block_io_full",
            Loss::SlotInvalid => "slot_invalid",
            Loss::ListenersFull => "listeners_full",
            Loss::SwitchInInferred => "switch_in",
            Loss::WakeInferred => "wake",
            Loss::PreemptionInferred => "preemption",
            Loss::DataRingFull => "data_ring_full",
            Loss::ConnectionsFull => "connections_full",
            Loss::PayloadUnreadable => "payload_unreadable",
            Loss::TlsUnattributed => "tls_unattributed",
            Loss::GrowthFull => "growth_full",
            Loss::AllocationsFull => "allocations_full",
            Loss::AllocationStackBusy => "allocation_stack_busy",
            Loss::LockHoldsFull => "lock_holds_full",
            Loss::HeldLockTaken => "held_lock_taken",
            Loss::InnerTidsFull => "inner_tids_full",
            Loss::IoEndInferred => "io_end",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_listed_in_the_order_of_their_numbers() {
        for (i, loss) in Loss::ALL.iter().enumerate() {
            assert_eq!(*loss as usize, i, "{}", loss.name());
        }
    }
}
