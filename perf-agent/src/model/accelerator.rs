//! Time in the libraries of accelerators.

use serde::Serialize;

/// Time of one process in one function of an accelerator's library (CUDA, ROCm), called from one place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AcceleratorCall {
    /// The outermost function of the library, or the system call on the device.
    pub call: String,
    /// It waits until the accelerator is through with something.
    pub waits: bool,
    /// The innermost function of the program's own that called it, and the outermost: who its thread is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// How often it blocked, and for how long.
    pub blocks: u64,
    pub blocked_ns: u64,
    /// On the CPU: of a call that waits, time it spun.
    pub cpu_ns: u64,
}
