//! What the kernel side and the user side of perf-agent must agree on.
//!
//! Map keys and values, ring records, loss reasons, the table of kernel struct offsets, the
//! histogram index and the classification of a blocked thread. `no_std`, no I/O, no allocation.
//!
//! Every wire type is `repr(C)`, has its padding named, holds integers only and has its size
//! asserted: ring memory is not zeroed by the kernel, and a `bool` or an enum read from it would be
//! undefined behaviour.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod classify;
pub mod histogram;
pub mod loss;
pub mod offsets;
pub mod signals;

pub use classify::{Blocked, CLASS_NAMES, class, classify, fd, futex, sys, task_state};

/// Marks a wire type as plain data for user space (aya) and gives it byte views.
macro_rules! wire {
    ($($ty:ty => $size:expr),+ $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$ty>() == $size);
        // SAFETY: repr(C), integers only, padding named (the size assertion above would move
        // otherwise), valid for every bit pattern.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $ty {}
        // SAFETY: as above.
        unsafe impl $crate::Wire for $ty {}
    )+};
}
pub(crate) use wire;

/// A type that crosses the kernel boundary as bytes.
///
/// # Safety
/// The type is `repr(C)`, contains only integers, has no implicit padding and is valid for every
/// bit pattern.
pub unsafe trait Wire: Copy + Sized {
    /// The bytes of the value, in host order.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: by the trait's contract every byte is initialised.
        unsafe {
            core::slice::from_raw_parts(
                (&raw const *self).cast::<u8>(),
                core::mem::size_of::<Self>(),
            )
        }
    }

    /// Reads a value from the front of `bytes`; `None` where they are too short.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < core::mem::size_of::<Self>() {
            return None;
        }
        // SAFETY: long enough, and every bit pattern is valid by the trait's contract.
        Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast::<Self>()) })
    }
}

// SAFETY: an integer.
unsafe impl Wire for u32 {}
// SAFETY: an integer.
unsafe impl Wire for u64 {}
