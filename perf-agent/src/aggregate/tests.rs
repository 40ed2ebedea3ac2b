use perf_ebpf_common::{
    Wire as _, class,
    signals::{
        RecordHeader,
        ledger::{ThreadState, thread_state},
        lifecycle::{ThreadExited, ThreadStarted},
        record,
    },
};

use super::threads::Threads;
use crate::model::Window;

const MS: u64 = 1_000_000;

fn exited(start_ns: u64, cpu_ns: u64, at_ns: u64) -> ThreadExited {
    let mut thread = ThreadState::from_bytes(&[0; size_of::<ThreadState>()]).unwrap();
    (thread.tid, thread.tgid) = (7, 7);
    thread.start_ns = start_ns;
    thread.since_ns = at_ns;
    thread.spent_ns[class::CPU as usize] = cpu_ns;
    thread.spent_ns[class::TIMER as usize] = at_ns - start_ns - cpu_ns;
    thread.last_class = class::CPU;
    thread.state = thread_state::ON_CPU;
    let mut record = ThreadExited::from_bytes(&[0; size_of::<ThreadExited>()]).unwrap();
    record.header = RecordHeader {
        kind: record::THREAD_EXITED,
        pad: 0,
        at_ns,
    };
    record.thread = thread;
    record
}

#[test]
fn a_thread_that_ends_between_the_windows_end_and_the_last_look_at_the_ring_is_in_both_windows() {
    let mut threads = Threads::default();
    threads.process(7, "short");
    threads.exited(&exited(0, 400 * MS, 1_005 * MS));
    let mut window = |start_ns, end_ns| {
        let accounts = threads.window(Window { start_ns, end_ns });
        let account = &accounts[0];
        let ledger = &account.ledger;
        let classed: u64 = ledger.classes.values().sum();
        assert_eq!(classed, ledger.lifetime_ns, "{:?}", ledger.classes);
        (
            ledger.lifetime_ns,
            ledger.residual_ns,
            account.threads[0].exited,
        )
    };
    assert_eq!(window(0, 1_000 * MS), (1_000 * MS, 0, false));
    assert_eq!(window(1_000 * MS, 2_000 * MS), (5 * MS, 0, true));
    assert!(
        threads
            .window(Window {
                start_ns: 2_000 * MS,
                end_ns: 3_000 * MS
            })
            .is_empty()
    );
}

#[test]
fn a_process_that_begins_behind_the_windows_end_is_counted_as_begun_in_the_next_one() {
    let mut threads = Threads::default();
    threads.process(7, "parent");
    threads.exited(&exited(0, 400 * MS, 3_000 * MS));
    let mut started = ThreadStarted::from_bytes(&[0; size_of::<ThreadStarted>()]).unwrap();
    started.header.at_ns = 1_001 * MS;
    (started.tid, started.tgid) = (9, 9);
    (started.parent_tid, started.parent_tgid) = (7, 7);
    threads.started(&started);
    let window = |start_ns, end_ns| Window { start_ns, end_ns };
    let first = threads.window(window(0, 1_000 * MS));
    assert!(first[0].ledger.short_lived.is_none());
    let mut ended = exited(1_001 * MS, MS, 1_003 * MS);
    (ended.thread.tid, ended.thread.tgid) = (9, 9);
    threads.exited(&ended);
    let second = threads.window(window(1_000 * MS, 2_000 * MS));
    // Under its parent, which it was forked by, and not on a line of its own.
    let [parent] = &second[..] else {
        panic!("{} lines", second.len());
    };
    let short = parent.ledger.short_lived.as_ref().unwrap();
    assert_eq!((short.processes, short.threads), (1, 1));
    assert_eq!(short.lifetime_ns, 2 * MS);
}
