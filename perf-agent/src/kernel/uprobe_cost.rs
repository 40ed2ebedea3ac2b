//! What a probe on a function adds to each of its calls, measured on functions of our own that begin
//! in the same way: entry and return together, in a thread that is no target's, so it is the least
//! that everybody pays who uses the file.

use std::{fs, path::Path, thread, time::Instant};

use anyhow::{Context as _, Result};
use aya::Ebpf;

use super::{
    probed::{Beginning, Probed},
    uprobes::attach_one,
};
use crate::unwind::mappings;

/// Calls timed together, and how often: the least of them had no interruption.
const CALLS: u32 = 20;
const ROUNDS: u32 = 20;
type Function = extern "C" fn() -> u64;

/// Nanoseconds that two probes add to a call of a function with this beginning.
///
/// # Errors
/// The kernel refuses the probes; another architecture than x86-64.
pub fn measure(ebpf: &mut Ebpf, beginning: Beginning, probed: &Probed) -> Result<u64> {
    let function = function(beginning).context("only measured on x86-64")?;
    let address = function as usize as u64;
    let maps = fs::read_to_string("/proc/self/maps").context("reading the own mappings")?;
    let offset = mappings::parse(&maps)
        .iter()
        .find(|m| (m.start..m.end).contains(&address))
        .map(|m| address - m.start + m.offset)
        .context("a function is not mapped")?;
    let plain = ns_per_call(function);
    let program = Path::new("/proc/self/exe");
    let entry = probed.functions.first().context("no function")?.entry;
    let links = [probed.returns, entry].map(|name| attach_one(ebpf, name, program, offset));
    let probed = ns_per_call(function);
    let links = links.into_iter().collect::<Result<Vec<_>>>()?;
    // To detach takes 0.1 s each, in which the kernel waits; without a thread, here.
    _ = thread::Builder::new().spawn(move || drop(links));
    Ok(probed.saturating_sub(plain))
}

fn ns_per_call(function: Function) -> u64 {
    let round = |_| {
        let start = Instant::now();
        for _ in 0..CALLS {
            std::hint::black_box(function());
        }
        start.elapsed().as_nanos() as u64
    };
    let least = (0..ROUNDS).map(round).min().unwrap_or(0);
    least / u64::from(CALLS)
}

/// A function with this beginning. Each returns 0, which the probe of the return takes for a read of
/// nothing, or no memory.
#[cfg(target_arch = "x86_64")]
fn function(beginning: Beginning) -> Option<Function> {
    use std::arch::naked_asm;

    #[unsafe(naked)]
    extern "C" fn push() -> u64 {
        naked_asm!("push rbx", "pop rbx", "xor eax, eax", "ret")
    }
    #[unsafe(naked)]
    extern "C" fn nop() -> u64 {
        naked_asm!(".byte 0x0f, 0x1f, 0x44, 0x00, 0x00", "xor eax, eax", "ret")
    }
    #[unsafe(naked)]
    extern "C" fn endbr() -> u64 {
        naked_asm!(".byte 0xf3, 0x0f, 0x1e, 0xfa", "xor eax, eax", "ret")
    }
    #[unsafe(naked)]
    extern "C" fn other() -> u64 {
        naked_asm!("sub rsp, 24", "add rsp, 24", "xor eax, eax", "ret")
    }
    Some(match beginning {
        Beginning::Push => push,
        Beginning::Nop => nop,
        Beginning::Endbr => endbr,
        Beginning::Other => other,
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn function(_: Beginning) -> Option<Function> {
    None
}
