//! The only helpers the signals use to touch kernel memory, time and counters.

use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xadd},
};

pub use aya_ebpf::programs::BtfTracePointContext;
use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_probe_read_user},
    maps::HashMap,
};
use perf_ebpf_common::loss::Loss;

pub(crate) use crate::globals::{offset, setting};
use crate::shared_maps::LOSS;

/// A pointer the verifier knows the type of (`PTR_TO_BTF_ID`): a tracepoint argument or what was
/// reached from one by [`field`].
pub type Typed = *const c_void;

/// Nanoseconds of CLOCK_MONOTONIC (34 ns a call: take it once an event, after the filter).
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments; allowed in every program type used here.
    unsafe { bpf_ktime_get_ns() }
}

/// Reads a field through a typed pointer: a plain load, which the kernel lets fault safely (it
/// reads zero). A few ns less than a helper call, at every switch.
#[inline(always)]
pub fn field<T: Copy>(base: Typed, offset: u32) -> T {
    // SAFETY: the verifier only accepts typed pointers here and makes faulting loads read zero.
    unsafe { core::ptr::read_volatile(base.byte_add(offset as usize).cast::<T>()) }
}

/// Reads kernel memory through an address that is only a number to the verifier.
#[inline(always)]
pub fn kernel<T: Copy + Default>(address: u64) -> Option<T> {
    let mut value = T::default();
    // SAFETY: writes exactly one T; a bad address is an error, not a fault.
    let result = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            address as *const c_void,
        )
    };
    (result == 0).then_some(value)
}

/// Reads the current thread's user memory.
#[inline(always)]
pub fn user<T: Copy + Default>(address: u64) -> Option<T> {
    let mut value = T::default();
    // SAFETY: writes exactly one T; a bad address is an error, not a fault.
    let result = unsafe {
        bpf_probe_read_user(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            address as *const c_void,
        )
    };
    (result == 0).then_some(value)
}

/// Copies `size` bytes of the current thread's user memory, all or nothing.
///
/// # Safety
/// `to` is valid for `size` bytes.
#[inline(always)]
pub unsafe fn copy_user(to: *mut c_void, size: u32, address: u64) -> bool {
    // SAFETY: `to` by the caller's contract; a bad address is an error.
    unsafe { bpf_probe_read_user(to, size, address as *const c_void) == 0 }
}

/// Copies `size` bytes between kernel objects of this program (map values, ring slots). One helper
/// call: LLVM would otherwise turn a copy of some hundred bytes into as many loads and stores.
///
/// # Safety
/// `to` is valid for `size` bytes.
#[inline(always)]
pub unsafe fn copy(to: *mut c_void, from: *const c_void, size: u32) -> bool {
    // SAFETY: `to` by the caller's contract; a bad `from` is an error.
    unsafe { bpf_probe_read_kernel(to, size, from) == 0 }
}

/// The same number, of which the compiler knows nothing.
///
/// VERIFIER: before an index is compared with an array's length. The compiler proves the bound of
/// `bucket_of` by itself and drops or splits the comparison, the verifier cannot follow the proof
/// ("math between map_value pointer and register with unbounded min value").
#[inline(always)]
pub fn opaque(mut value: usize) -> usize {
    // SAFETY: moves a register onto itself. (Not an empty sequence: its line information would then
    // share an instruction with the next, which the kernel refuses.)
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags));
    }
    value
}

/// A value read back from the map it was just stored to.
///
/// VERIFIER: it forgets what path a value came by, so that paths which differ in nothing else are
/// verified once from here on and not once each (over 1,000,000 instructions otherwise).
#[inline(always)]
pub fn forgotten<T: Copy>(place: &T) -> T {
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::read_volatile(place) }
}

/// Keeps the compiler from moving stores across: volatile ones are ordered among themselves alone. (That the
/// CPU does not is x86-64's own order.)
#[inline(always)]
pub fn ordered() {
    // SAFETY: no instruction.
    unsafe { core::arch::asm!("", options(nostack, preserves_flags)) };
}

/// The element of a key, made as a copy of `empty` where there is none; where there is no room for it, that is
/// counted as `full`. Where it is there, which is nearly always, it is looked up once.
#[inline(always)]
pub fn element<K, V>(map: &HashMap<K, V>, key: &K, empty: &V, full: Loss) -> Option<*mut V> {
    if let Some(element) = map.get_ptr_mut(key) {
        return Some(element);
    }
    // Another CPU may have made it meanwhile: that is an error here and a hit below.
    let _ = map.insert(key, empty, BPF_NOEXIST as u64);
    let element = map.get_ptr_mut(key);
    if element.is_none() {
        lose(full);
    }
    element
}

/// Counts a loss. Every early-out that loses something calls this.
#[inline(always)]
pub fn lose(reason: Loss) {
    if let Some(count) = LOSS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU element, so nobody else writes it.
        unsafe { *count += 1 };
    }
}

/// Adds without reading back (`BPF_XADD`, which 5.10 has; fetching atomics came with 5.12).
///
/// The intrinsic, because the BPF target has no compare-and-swap and the standard library offers
/// `fetch_add` only with it.
///
/// # Safety
/// `to` points into a map value.
#[inline(always)]
pub unsafe fn add(to: *mut u64, value: u64) {
    // VERIFIER: of an addition of a constant zero the compiler makes an atomic OR, which 5.10 does
    // not know.
    if value == 0 {
        return;
    }
    // SAFETY: aligned and valid by the caller's contract.
    unsafe { atomic_xadd::<_, _, { AtomicOrdering::Relaxed }>(to, value) };
}

/// As [`add`], 32 bits.
///
/// # Safety
/// `to` points into a map value.
#[inline(always)]
pub unsafe fn add32(to: *mut u32, value: u32) {
    // VERIFIER: of an addition of a constant zero the compiler makes an atomic OR, which 5.10 does
    // not know.
    if value == 0 {
        return;
    }
    // SAFETY: aligned and valid by the caller's contract.
    unsafe { atomic_xadd::<_, _, { AtomicOrdering::Relaxed }>(to, value) };
}

/// Raises a maximum. Two CPUs may race and the smaller value may stay: the maximum is then at most
/// one interval short, which is cheaper than a compare-and-swap that 5.10 does not have.
///
/// # Safety
/// `to` points into a map value.
#[inline(always)]
pub unsafe fn raise(to: *mut u64, value: u64) {
    // SAFETY: aligned and valid by the caller's contract.
    unsafe {
        if *to < value {
            *to = value;
        }
    }
}
