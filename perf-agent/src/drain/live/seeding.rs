//! Puts threads that are there already under trace.

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, Result, bail};
use perf_ebpf_common::{
    Wire as _, class,
    signals::{
        ledger::{ASKED, ListenerKey, MEMO_SLOTS, SiteKey, StackMemo, ThreadState, thread_state},
        locks::InnerTid,
        tls::TlsCall,
    },
};

use super::{Live, monotonic_ns, proc_facts::thread_fact};
use crate::unwind::Request;
use crate::{
    drain::{Fact, Frame, listeners, procfs},
    kernel::Kernel,
};

impl Live {
    /// Puts every thread of a process under trace. New threads cannot slip by: the fork hook is
    /// attached, and the task list is read until it shows nobody new.
    ///
    /// # Errors
    /// The process is not there, or the thread map is full.
    pub fn seed(&mut self, pid: u32) -> Result<()> {
        let now = monotonic_ns();
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"))
            .with_context(|| format!("process {pid} is not there"))?;
        let slot = self.add_process(pid, comm.trim_end().to_owned(), now);
        self.tell_unwinder(Request::Follow(pid));
        let namespaced = inner_tid(pid, pid) != 0;
        loop {
            let mut new = 0;
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))
                .with_context(|| format!("process {pid} ended"))?;
            for entry in tasks.flatten() {
                let Some(tid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                    continue;
                };
                new += usize::from(self.seed_thread(pid, tid, slot, namespaced)?);
            }
            if new == 0 {
                return Ok(());
            }
        }
    }

    /// Whether the thread was not there yet.
    fn seed_thread(&mut self, pid: u32, tid: u32, slot: u32, namespaced: bool) -> Result<bool> {
        let mut state = seeded_state(pid, tid, slot, monotonic_ns());
        if namespaced {
            state.inner_tid = inner_tid(pid, tid);
        }
        match self.kernel.maps.add_thread(&state) {
            Ok(()) => {
                self.thread_entries += 1;
                self.know_by_inner_tid(&state)?;
                self.process(pid).threads.insert(tid);
                // The base of the cross-check.
                self.frames
                    .extend(thread_fact(pid, tid).map(|f| Frame::Fact(Fact::Thread(f))));
                Ok(true)
            }
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(e) if e.raw_os_error() == Some(libc::E2BIG) => {
                bail!("process {pid} has more threads than --max-threads allows")
            }
            Err(e) => Err(e).context("seeding a thread"),
        }
    }
}

impl Live {
    /// Lets the kernel side find a thread by the id that the locks of its process have.
    fn know_by_inner_tid(&self, t: &ThreadState) -> Result<()> {
        if t.inner_tid == 0 {
            return Ok(());
        }
        let key = InnerTid {
            tgid: t.tgid,
            tid: t.inner_tid,
        };
        let map = &self.kernel.maps.inner_tids;
        match map.update(key.as_bytes(), &t.tid.to_ne_bytes(), 0) {
            // Full: owners of its locks are told by who lets go.
            Err(e) if e.raw_os_error() == Some(libc::E2BIG) => Ok(()),
            result => result.context("filling inner_tids"),
        }
    }
}

/// Id of a thread in its own pid namespace, 0 in the initial one.
fn inner_tid(pid: u32, tid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"));
    procfs::inner_tid(&status.unwrap_or_default()).unwrap_or(0)
}

/// The account of a thread that is there already.
pub(super) fn seeded_state(pid: u32, tid: u32, slot: u32, now_ns: u64) -> ThreadState {
    ThreadState {
        seq: 0,
        since_ns: now_ns,
        start_ns: now_ns,
        spent_ns: [0; class::COUNT],
        unaccounted_ns: 0,
        last_ns: 0,
        woken_ns: 0,
        fences: 0,
        promote_at_ns: u64::MAX,
        switches: 0,
        runtime_ns: 0,
        run_delay_ns: u64::MAX,
        runq_before_ns: 0,
        cpu_before_ns: 0,
        file: 0,
        file_sk: 0,
        asked: [0; ASKED],
        answered_sk: 0,
        idle_ns: 0,
        idle_until_ns: 0,
        site: SiteKey::EMPTY,
        memo: [StackMemo::EMPTY; MEMO_SLOTS],
        sys_enter_ns: 0,
        told_ns: 0,
        samples_user: 0,
        samples_kernel: 0,
        tls: TlsCall {
            ssl: 0,
            buffer: 0,
            length_at: 0,
            moved_ns: 0,
            account_ns: 0,
        },
        tid,
        tgid: pid,
        sys_nr: 0,
        file_port: 0,
        slot: slot as u16,
        file_detail: [0; 2],
        state: thread_state::SEEDED,
        last_class: class::UNKNOWN,
        file_kind: 0,
        file_detail_kind: 0,
        missed_wake_class: 0,
        woken_from: 0,
        tls_call: 0,
        memo_next: 0,
        lock_wait: 0,
        pad: [0; 3],
        inner_tid: 0,
        seq_tail: 0,
    }
}

/// Tells the kernel side which ports the targets' network namespaces listen on.
pub(super) fn fill_listeners(kernel: &Kernel, targets: &[u32]) -> Result<()> {
    let mut done = HashSet::new();
    for pid in targets {
        let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/net")) else {
            continue;
        };
        let netns = namespace.ino() as u32;
        if !done.insert(netns) {
            continue;
        }
        for port in listeners::listened(*pid) {
            let key = ListenerKey {
                netns,
                port: port.into(),
            };
            kernel
                .maps
                .listeners
                .update(key.as_bytes(), &[1], 0)
                .context("filling listeners")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_account_is_empty_and_its_own() {
        let t = seeded_state(10, 11, 3, 77);
        assert_eq!(
            (t.tgid, t.tid, t.slot, t.since_ns, t.start_ns),
            (10, 11, 3, 77, 77)
        );
        assert_eq!((t.state, t.seq, t.seq_tail), (thread_state::SEEDED, 0, 0));
    }
}
