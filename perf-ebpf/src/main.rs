//! perf-agent's kernel side: one eBPF object.
//!
//! [`hooks`] holds one entry point a hook; each asks first whether the thread is a target's and
//! then calls the signals that want the event. The signals own their maps.
#![no_std]
#![no_main]
#![expect(internal_features, reason = "atomic_xadd: see prelude::add")]
#![feature(asm_experimental_arch, core_intrinsics)]

mod file;
mod globals;
mod hooks;
mod prelude;
mod registers;
mod shared_maps;
mod signals;

/// The kernel lends some helpers to GPL-compatible programs only; this project's own licence is
/// MIT OR Apache-2.0, and MIT is GPL-compatible.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a reachable panic, so this is never part of a loaded program.
    loop {}
}
