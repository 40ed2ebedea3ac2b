//! The kernel side's debug log (aya-log's ring `AYA_LOGS`), into `tracing` under the target
//! `perf_ebpf`. Off unless diagnostics of that level are on: `-v`, or `RUST_LOG=perf_ebpf=debug`.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;

/// Hands records of the `log` crate, which is what aya-log makes, to `tracing`.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: "perf_ebpf", "{text}"),
            log::Level::Warn => tracing::warn!(target: "perf_ebpf", "{text}"),
            log::Level::Info => tracing::info!(target: "perf_ebpf", "{text}"),
            log::Level::Debug => tracing::debug!(target: "perf_ebpf", "{text}"),
            log::Level::Trace => tracing::trace!(target: "perf_ebpf", "{text}"),
        }
    }

    fn flush(&self) {}
}

/// A reader of the log.
pub struct DebugLog(EbpfLogger<ToTracing>);

impl DebugLog {
    /// Takes the ring out of the loaded object.
    ///
    /// # Errors
    /// The object has none, or it cannot be mapped.
    pub fn open(ebpf: &mut Ebpf) -> Result<DebugLog> {
        EbpfLogger::init_with_logger(ebpf, ToTracing)
            .map(DebugLog)
            .context("opening the kernel side's debug log")
    }

    /// Logs what has come since the last call.
    pub fn drain(&mut self) {
        self.0.flush();
    }
}
