//! A training step waits for the accelerator after each small kernel; the twin launches all of them and
//! waits once. The accelerator is a library of ours with the names of CUDA's, `libcuda.so.1`, without a device:
//! a kernel takes its time.

use std::ffi::{CString, c_int, c_void};
use std::io;
use std::mem;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::time::Duration;

use super::row::{Job, ORCHESTRATOR, Program, Row, Stage, Worth};
use super::shift::work;
use crate::servers;

pub const ROW: Row = Row {
    name: "accelerator wait",
    unit: "training step",
    category: "gpu_wait",
    about: "for the accelerator",
    delegate: ORCHESTRATOR,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: build_the_accelerator,
};

/// Leaves the twin's accelerator a little to do when the next step falls due.
const EVERY: Duration = Duration::from_millis(3);
const KERNELS: usize = 60;
const KERNEL_NS: u64 = 20_000;

fn build_the_accelerator(stage: &mut Stage) -> io::Result<()> {
    let library = stage.directory()?.join("libcuda.so.1");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/accelerator/cuda.c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]);
    gcc.arg(source).arg("-o").arg(library);
    servers::to_end(gcc);
    Ok(())
}

/// The two functions of the library that are used.
#[derive(Clone, Copy)]
struct Accelerator {
    launch: extern "C" fn(u64) -> c_int,
    synchronize: extern "C" fn(*mut c_void) -> c_int,
}

impl Accelerator {
    fn load(library: &Path) -> io::Result<Accelerator> {
        let path = CString::new(library.as_os_str().as_encoded_bytes())?;
        let missing = || io::Error::other(format!("{} lacks a function", library.display()));
        // SAFETY: a library of ours, whose functions have these types, and which stays loaded.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            if handle.is_null() {
                return Err(missing());
            }
            let launch = libc::dlsym(handle, c"cuLaunchKernel".as_ptr());
            let synchronize = libc::dlsym(handle, c"cuStreamSynchronize".as_ptr());
            if launch.is_null() || synchronize.is_null() {
                return Err(missing());
            }
            Ok(Accelerator {
                launch: mem::transmute::<*mut c_void, extern "C" fn(u64) -> c_int>(launch),
                synchronize: mem::transmute::<*mut c_void, extern "C" fn(*mut c_void) -> c_int>(
                    synchronize,
                ),
            })
        }
    }
}

fn run(job: &Job) -> io::Result<()> {
    let accelerator = Accelerator::load(&Path::new(job.argument(0)?).join("libcuda.so.1"))?;
    let sick = job.health.is_sick();
    work(1, EVERY, |_| {
        Ok(move || {
            train_step(accelerator, sick);
            Ok(())
        })
    })
}

#[inline(never)]
fn train_step(accelerator: Accelerator, each: bool) {
    for _ in 0..KERNELS {
        (accelerator.launch)(KERNEL_NS);
        if each {
            (accelerator.synchronize)(ptr::null_mut());
        }
    }
    (accelerator.synchronize)(ptr::null_mut());
}
