//! Time in the libraries of accelerators, by stacks: a call that waits for the accelerator blocks in
//! whatever its driver waits with (`poll`, a futex, an `ioctl`) or spins, and its frame says so in each
//! case. Probes on the functions would tell how often those that spin are called, and cost everybody
//! a microsecond a call; the stacks are there anyway.

use std::collections::BTreeMap;

use crate::{
    detect::{is_own, label},
    model::{AcceleratorCall, Frame, Site},
};

/// Calls shown.
const TOP_CALLS: usize = 8;

/// Libraries of CUDA and ROCm, by how their files begin.
const LIBRARIES: &[&str] = &[
    "libcuda.so",
    "libcudart",
    "libcudnn",
    "libcublas",
    "libnccl",
    "libamdhip64",
    "libhsa-runtime64",
    "librocblas",
    "librccl",
];

/// Functions that return when the accelerator is through (CUDA driver and run-time API, HIP, HSA),
/// those that copy to the host and wait among them. They are known by name alone, because the CUDA run
/// time is most often linked into the program.
const WAITS: &[&str] = &[
    "cuCtxSynchronize",
    "cuStreamSynchronize",
    "cuEventSynchronize",
    "cuMemcpyDtoH_v2",
    "cuMemcpyHtoD_v2",
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "hipDeviceSynchronize",
    "hipStreamSynchronize",
    "hipEventSynchronize",
    "hipMemcpy",
    "hsa_signal_wait_relaxed",
    "hsa_signal_wait_scacquire",
];

/// Time by call and caller, most first. Takes every site of a process, CPU samples as time.
pub fn calls(sites: &[Site]) -> Vec<AcceleratorCall> {
    let mut calls: BTreeMap<(String, Option<String>), AcceleratorCall> = BTreeMap::new();
    for site in sites {
        let Some((call, waits, outside)) = call(site) else {
            continue;
        };
        let mut own = outside.iter().filter(|f| is_own(f) && !in_library(f));
        let caller = own.next().map(label);
        let root = own.next_back().map(label).or_else(|| caller.clone());
        let row = calls.entry((call.clone(), caller.clone())).or_default();
        (row.call, row.waits, row.caller, row.root) = (call, waits, caller, root);
        if site.class.starts_with("cpu.") {
            row.cpu_ns += site.sum_ns;
        } else {
            row.blocks += site.count;
            row.blocked_ns += site.sum_ns;
        }
    }
    let mut calls: Vec<AcceleratorCall> = calls.into_values().collect();
    calls.sort_by_key(|call| std::cmp::Reverse((call.waits, call.blocked_ns + call.cpu_ns)));
    calls.truncate(TOP_CALLS);
    calls
}

/// The call a site is in, whether it waits, and the frames outside it.
fn call(site: &Site) -> Option<(String, bool, &[Frame])> {
    let stack = &site.user_stack;
    let waits = |f: &Frame| f.symbolized && WAITS.contains(&f.name.as_str());
    if let Some(at) = stack.iter().rposition(waits) {
        return Some((stack[at].name.clone(), true, &stack[at + 1..]));
    }
    if let Some(at) = stack.iter().rposition(in_library) {
        let call = label(&stack[at]);
        return Some((call, site.class == "gpu", &stack[at + 1..]));
    }
    // A driver without a library: the device itself.
    let syscall = site.syscall.as_deref().unwrap_or("the device");
    (site.class == "gpu").then(|| (syscall.to_owned(), true, stack.as_slice()))
}

fn in_library(frame: &Frame) -> bool {
    let file = frame.module.as_deref().and_then(|m| m.rsplit('/').next());
    file.is_some_and(|file| LIBRARIES.iter().any(|name| file.starts_with(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{frame, site};

    fn stacked(class: &str, ns: u64, frames: &[(&str, &str)]) -> Site {
        let mut site = site(class, "", 4, ns, None);
        site.user_stack = frames.iter().map(|(n, m)| frame(n, m)).collect();
        site
    }

    #[test]
    fn a_call_is_known_by_its_frame_whether_it_blocks_or_spins() {
        const APP: &str = "/usr/bin/app";
        let step = [
            ("poll", "/usr/lib/libc.so.6"),
            ("cuStreamSynchronize", "/usr/lib/libcuda.so.1"),
            // Linked into the program, as the CUDA run time is.
            ("cudaStreamSynchronize", APP),
            ("train_step", APP),
            ("main", APP),
        ];
        let launch = [
            ("cuLaunchKernel", "/usr/lib/libcuda.so.1"),
            ("train_step", APP),
            ("main", APP),
        ];
        let sites = [
            stacked("idle", 70, &step),
            stacked("cpu.user", 9, &step[1..]),
            stacked("cpu.user", 5, &launch),
            stacked("idle", 900, &[("read_batch", APP), ("main", APP)]),
        ];
        let found = calls(&sites);
        let of = |call: &str, waits, blocks, blocked_ns, cpu_ns| AcceleratorCall {
            call: call.into(),
            waits,
            caller: Some("train_step".into()),
            root: Some("main".into()),
            blocks,
            blocked_ns,
            cpu_ns,
        };
        assert_eq!(
            found,
            [
                of("cudaStreamSynchronize", true, 4, 70, 9),
                of("cuLaunchKernel", false, 0, 0, 5),
            ]
        );
    }

    #[test]
    fn the_device_itself_is_waited_for_without_a_library() {
        let mut wait = stacked(
            "gpu",
            50,
            &[("ioctl", "/usr/lib/libc.so.6"), ("run", "/usr/bin/app")],
        );
        wait.syscall = Some("ioctl".into());
        let found = calls(&[wait]);
        assert_eq!((found[0].call.as_str(), found[0].waits), ("ioctl", true));
        assert_eq!(found[0].root.as_deref(), Some("run"));
    }
}
