//! What the rules ask of one process in one window.

use super::settings::Settings;
use crate::model::{
    Classes, ConnectionRow, Connections, Frame, Latency, Ledger, Level, Process, ProcessReport,
    Profile, RequestRow, Requests, Site, StatementRow, Statements, SyscallRow, Syscalls,
    ThreadLedger,
};

/// Libraries that are never "the program's own code".
const RUNTIME_LIBRARIES: &[&str] = &[
    "libc.so",
    "libc-",
    "ld-linux",
    "ld-musl",
    "libpthread",
    "libm.so",
    "libgcc_s",
    "libpython",
    "python3",
    "libstdc++",
    "librt",
    "[vdso]",
    "[kernel]",
];

/// Functions of language runtimes linked into the program itself, by how they begin.
const RUNTIME_PREFIXES: &[&str] = &[
    "std::",
    "core::",
    "alloc::",
    "<std::",
    "<core::",
    "<alloc::",
    "parking_lot",
    "<parking_lot",
    "lock_api::",
    "<lock_api::",
    "tokio::runtime",
    "mio::",
    "__rust_",
    "__lll_",
    "__pthread_",
    "___pthread_",
    "pthread_mutex_",
    "pthread_rwlock_",
    "pthread_cond_",
    "__futex_",
    "__libc_",
    "__GI_",
    "__syscall",
    "__mem",
    // Go's standard library, as far as threads wait in it or read the clock.
    "runtime.",
    "runtime/",
    "syscall.",
    "internal/",
    "sync.",
    "sync/atomic.",
    "time.",
    "io.",
    "net.",
    "os.",
];

/// The same, by their whole name.
const RUNTIME_FUNCTIONS: &[&str] = &[
    "syscall",
    "futex_wait",
    "memcpy",
    "memset",
    "memmove",
    "nanosleep",
    "__nanosleep",
    "clock_nanosleep",
    "__clock_nanosleep",
    "usleep",
    "read",
    "write",
    "poll",
    "epoll_wait",
];

/// Calls that wait for any of many descriptors.
const POLLS: &[&str] = &[
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "poll",
    "ppoll",
    "select",
    "pselect6",
];

/// Where the kernel enters a page fault, by architecture (x86-64, arm64) and what both call next
/// (`arch/*/mm/fault.c`, `mm/memory.c`).
const FAULT_ENTRIES: &[&str] = &[
    "asm_exc_page_fault",
    "exc_page_fault",
    "do_user_addr_fault",
    "el0_da",
    "el0_ia",
    "do_mem_abort",
    "do_page_fault",
    "handle_mm_fault",
];

/// A thread counts as one the process rests on when it lived this share of the window.
const MIN_LIFETIME_SHARE: f64 = 0.5;

/// A process report with the questions rules have.
pub struct View<'a> {
    pub ledger: &'a Ledger,
    pub syscalls: Option<&'a Syscalls>,
    pub profile: &'a Profile,
    connections: Option<&'a Connections>,
    statements: Option<&'a Statements>,
    requests: Option<&'a Requests>,
    pub settings: &'a Settings,
}

impl<'a> View<'a> {
    /// With nothing set.
    #[cfg(test)]
    pub fn new(report: &'a ProcessReport) -> Self {
        View::with(report, &super::settings::DEFAULTS)
    }

    pub fn with(report: &'a ProcessReport, settings: &'a Settings) -> Self {
        View {
            ledger: &report.ledger,
            syscalls: report.syscalls.as_ref(),
            profile: &report.profile,
            connections: report.connections.as_ref(),
            statements: report.statements.as_ref(),
            requests: report.requests.as_ref(),
            settings,
        }
    }

    pub fn who(&self) -> &'a Process {
        &self.ledger.who
    }

    /// Length of the window.
    pub fn wall_ns(&self) -> u64 {
        self.ledger.window.length_ns()
    }

    pub fn lifetime_ns(&self) -> u64 {
        self.ledger.process.lifetime_ns
    }

    /// Time in a class, of the whole process.
    pub fn class(&self, name: &str) -> u64 {
        class(&self.ledger.process.classes, name)
    }

    pub fn cpu_ns(&self) -> u64 {
        cpu(&self.ledger.process.classes)
    }

    /// An amount in the window, as a rate per second of wall time.
    pub fn per_s(&self, amount: u64) -> u64 {
        let wall = u128::from(self.wall_ns().max(1));
        let rate = (u128::from(amount) * 1_000_000_000 + wall / 2) / wall;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    pub fn latency(&self, class: &str) -> Option<&'a Latency> {
        self.ledger.process.latency.get(class)
    }

    /// The largest share that some time takes: of the process, or of any thread that lived for
    /// most of the window (a pool of idle threads must not hide the one that is stuck).
    pub fn share_of(&self, time: impl Fn(&Classes) -> u64) -> f64 {
        let process = ratio(time(&self.ledger.process.classes), self.lifetime_ns());
        self.settled_threads()
            .map(|thread| ratio(time(&thread.classes), thread.lifetime_ns))
            .fold(process, f64::max)
    }

    /// Threads that lived for most of the window.
    pub fn settled_threads(&self) -> impl Iterator<Item = &'a ThreadLedger> {
        let least = self.wall_ns() as f64 * MIN_LIFETIME_SHARE;
        let threads = &self.ledger.threads;
        threads
            .iter()
            .filter(move |thread| thread.lifetime_ns as f64 >= least)
    }

    /// How near the busiest thread is to having no time left: on the CPU or waiting for one. Of a
    /// process whose threads all come and go, how near it keeps one CPU to that.
    pub fn saturation(&self) -> f64 {
        if self.settled_threads().next().is_none() {
            let wanted = self.cpu_ns() + self.class("runq");
            return ratio(wanted, self.wall_ns()).min(1.0);
        }
        self.settled_threads().map(demand).fold(0.0, f64::max)
    }

    /// CPU time that is saved matters as far as a thread has none to spare.
    pub fn cpu_impact_cap(&self) -> Level {
        match self.saturation() {
            s if s >= 0.90 => Level::High,
            s if s >= 0.75 => Level::Medium,
            _ => Level::Low,
        }
    }

    pub fn sites(&self, of_class: impl Fn(&str) -> bool) -> impl Iterator<Item = &'a Site> {
        let sites = &self.profile.sites;
        sites.iter().filter(move |site| of_class(&site.class))
    }

    /// What was asked, and what the target was asked; none where it was not seen.
    pub fn statements(&self) -> impl Iterator<Item = &'a StatementRow> + use<'a> {
        let rows: &[StatementRow] = self.statements.map_or(&[], |line| &line.statements);
        rows.iter()
    }

    /// What the target answered, by route or statement, whoever asked.
    pub fn requests(&self) -> impl Iterator<Item = &'a RequestRow> + use<'a> {
        let rows: &[RequestRow] = self.requests.map_or(&[], |line| &line.requests);
        rows.iter()
    }

    /// Connections used in the window.
    pub fn connections(&self) -> impl Iterator<Item = &'a ConnectionRow> + use<'a> {
        let rows: &[ConnectionRow] = self.connections.map_or(&[], |line| &line.connections);
        rows.iter()
    }

    /// Rows of system calls, none where they were not counted.
    pub fn rows(&self) -> &'a [SyscallRow] {
        self.syscalls.map_or(&[], |syscalls| &syscalls.syscalls)
    }
}

/// Time in a class.
pub fn class(classes: &Classes, name: &str) -> u64 {
    classes.get(name).copied().unwrap_or(0)
}

pub fn cpu(classes: &Classes) -> u64 {
    class(classes, "cpu.user") + class(classes, "cpu.kernel")
}

/// Time waiting for peers.
pub fn net(classes: &Classes) -> u64 {
    let ours = classes.iter().filter(|(name, _)| name.starts_with("net."));
    ours.map(|(_, ns)| ns).sum()
}

/// Share of its life a thread ran or wanted to run.
pub fn demand(thread: &ThreadLedger) -> f64 {
    let wanted = cpu(&thread.classes) + class(&thread.classes, "runq");
    ratio(wanted, thread.lifetime_ns)
}

/// Whether a system call waits for any of many descriptors.
pub fn is_poll(call: &str) -> bool {
    POLLS.contains(&call)
}

/// 0 of nothing.
pub fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// Mean, 0 of nothing.
pub fn mean(sum: u64, count: u64) -> u64 {
    sum.checked_div(count).unwrap_or(0)
}

/// The innermost function of the program's own code: past libc, the vdso and the language runtime.
pub fn own_function(site: &Site) -> Option<String> {
    innermost_own(&site.user_stack)
}

/// As [`own_function`], of the frames of user code.
pub fn innermost_own(user_stack: &[Frame]) -> Option<String> {
    user_stack.iter().find(|f| is_own(f)).map(label)
}

/// Whether the kernel was at work on a page fault.
pub fn in_fault(site: &Site) -> bool {
    let is_entry = |f: &Frame| FAULT_ENTRIES.contains(&f.name.as_str());
    site.kernel_stack.iter().any(is_entry)
}

/// The function a CPU sample is put down to: the program's own, else whatever is innermost.
pub fn hot_function(site: &Site) -> Option<String> {
    own_function(site).or_else(|| {
        let frames = site.user_stack.iter().chain(&site.kernel_stack);
        frames.filter(|f| is_named(f)).map(label).next()
    })
}

/// Whether a name means the same in the next run; a bare address does not.
fn is_named(frame: &Frame) -> bool {
    frame.symbolized || frame.name.contains("+0x")
}

/// Where the source of Rust's standard library is: of rustup's compilers, and of Debian's.
const RUST_LIBRARY: [&str; 2] = ["/rustc/", "/usr/src/rustc-"];

/// Whether a user frame is the program's own code and no runtime's or library's of a language.
pub fn is_own(frame: &Frame) -> bool {
    let module = frame.module.as_deref().map_or("", base_name);
    let name = frame.name.as_str();
    // Where rustc says the standard library's code stands, which may be there under a bare name. A
    // function of the program's with such code inlined has the line of that, and its own whole name.
    let qualified = name.split('<').next().is_some_and(|n| n.contains("::"));
    let inlined = (frame.inlined || !qualified)
        && frame
            .source
            .as_deref()
            .is_some_and(|source| RUST_LIBRARY.iter().any(|at| source.starts_with(at)));
    let runtime = RUNTIME_LIBRARIES.iter().any(|lib| module.starts_with(lib))
        || frame.symbolized
            && (frame.module.as_deref().is_some_and(is_python_library)
                || RUNTIME_FUNCTIONS.contains(&name)
                || RUNTIME_PREFIXES.iter().any(|start| name.starts_with(start)));
    is_named(frame) && !runtime && !inlined
}

/// Whether it is Python code that was installed, not the program's own.
fn is_python_library(module: &str) -> bool {
    module.contains("/lib/python3") || module.starts_with("<frozen ")
}

/// A function's name without the hash that changes with each build.
pub fn label(frame: &Frame) -> String {
    match frame.name.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            name.to_owned()
        }
        _ => frame.name.clone(),
    }
}

pub fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{frame, minimal_report, site};

    #[test]
    fn own_code_is_the_innermost_frame_past_the_runtimes() {
        let mut lock = site("lock", "futex", 1, 1, None);
        lock.user_stack = vec![
            frame("__lll_lock_wait", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
            frame(
                "std::sys::sync::mutex::futex::Mutex::lock_contended",
                "/usr/bin/app",
            ),
            frame("app::cache::get::h0123456789abcdef", "/usr/bin/app"),
            frame("main", "/usr/bin/app"),
        ];
        assert_eq!(own_function(&lock).as_deref(), Some("app::cache::get"));
        lock.user_stack.truncate(2);
        assert_eq!(own_function(&lock), None);
        assert_eq!(hot_function(&lock).as_deref(), Some("__lll_lock_wait"));
    }

    #[test]
    fn of_a_go_program_the_standard_library_is_passed_over() {
        let mut lock = site("lock", "futex", 1, 1, None);
        let names = [
            "runtime/internal/syscall.Syscall6",
            "internal/poll.(*FD).Write",
            "os.(*File).Write",
            "main.writeLedger",
            "runtime.goexit",
        ];
        lock.user_stack = names.map(|name| frame(name, "/usr/bin/app")).to_vec();
        assert_eq!(own_function(&lock).as_deref(), Some("main.writeLedger"));
    }

    #[test]
    fn a_bare_address_names_nothing_but_an_offset_in_a_module_does() {
        let mut cpu = site("cpu.user", "", 1, 1, None);
        let mut bare = frame("0x55aa12", "/usr/bin/app");
        bare.symbolized = false;
        bare.module = None;
        let mut offset = frame("redis-server+0x12f0", "/usr/bin/redis-server");
        offset.symbolized = false;
        cpu.user_stack = vec![bare, offset];
        assert_eq!(hot_function(&cpu).as_deref(), Some("redis-server+0x12f0"));
    }

    #[test]
    fn rates_are_per_second_of_wall_time() {
        let mut report = minimal_report("app");
        report.ledger.window.end_ns = report.ledger.window.start_ns + 250_000_000;
        assert_eq!(View::new(&report).per_s(100), 400);
        report.ledger.window.end_ns = report.ledger.window.start_ns;
        assert_eq!(View::new(&report).per_s(0), 0);
    }
}
