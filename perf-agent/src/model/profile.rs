//! Places in the code: stacks, locks and what woke them.

use serde::Serialize;

use super::{AcceleratorCall, Classes, Growth, Lock, Process, Stamp, Window};

/// Where one process blocked and what it ran, by stack.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    #[serde(flatten)]
    pub stamp: Stamp,
    #[serde(flatten)]
    pub who: Process,
    pub window: Window,
    /// Largest first, the top ones of each class.
    pub sites: Vec<Site>,
    /// What the sites left out sum to, by class.
    pub rest: Classes,
    /// Contended locks, largest wait first.
    pub locks: Vec<Lock>,
    /// Who touched first what the process has in memory: what grew most since the attach.
    pub growth: Vec<Growth>,
    /// Time in the libraries of accelerators, calls that wait first.
    pub accelerator: Vec<AcceleratorCall>,
}

/// One place where time went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Site {
    pub class: String,
    /// System call, where blocked in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syscall: Option<String>,
    /// Completed intervals; samples for `cpu.*`.
    pub count: u64,
    /// Time inside the window, open intervals included; for `cpu.*` the class's time by share of
    /// samples.
    pub sum_ns: u64,
    /// Longest completed interval since the attach; 0 for `cpu.*`.
    pub max_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
    /// Innermost first. Empty where no stack was taken.
    pub user_stack: Vec<Frame>,
    pub kernel_stack: Vec<Frame>,
}

/// What a site waits for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Detail {
    /// User address of the futex word, hexadecimal.
    Futex { address: String },
    /// `address:port` of a TCP or UDP peer.
    Peer { peer: String, port: u16 },
    /// Path of a Unix server socket (`@` for abstract).
    Unix { path: String },
    /// A file; the path where its fd was still open when asked.
    File {
        device: String,
        inode: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<String>,
    },
}

/// One frame of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Frame {
    /// Demangled function, or `module+0xoffset` where there is no symbol, or the bare address.
    pub name: String,
    /// File the code is mapped from; `[kernel]`, `[vdso]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// `file:line`, where debug information tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Build ID of the module, hexadecimal, where there is no symbol: its debug information can be
    /// found by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// False where `name` is not a symbol.
    pub symbolized: bool,
    /// Its code stands inside that of the next frame; told with `--inlines on`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub inlined: bool,
}
