//! What user space fixes at load time: read-only globals, which the verifier folds, so that a
//! branch for another kernel costs nothing.

use perf_ebpf_common::{offsets::Offsets, signals::control::Settings};

#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets::UNSET;

#[unsafe(no_mangle)]
pub static SETTINGS: Settings = Settings::UNSET;

/// Reads a value that user space may have overridden at load: volatile, so that the compiler does
/// not fold what the object was built with.
#[inline(always)]
pub fn fixed<T: Copy>(value: &T) -> T {
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::read_volatile(value) }
}

/// A field of [`OFFSETS`].
macro_rules! offset {
    ($field:ident) => {
        $crate::globals::fixed(&$crate::globals::OFFSETS.$field)
    };
}

/// A field of [`SETTINGS`].
macro_rules! setting {
    ($($field:tt)+) => {
        $crate::globals::fixed(&$crate::globals::SETTINGS.$($field)+)
    };
}

pub(crate) use {offset, setting};
