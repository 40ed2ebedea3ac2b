//! From frames, as a trace makes them and a recording keeps them, to the bytes of every format.

use std::{collections::BTreeMap, fs, path::Path};

use perf_ebpf_common::{
    Wire as _, class,
    signals::ledger::{
        ASKED, MEMO_SLOTS, SiteKey, SiteTotals, StackMemo, ThreadState, thread_state,
    },
};

use super::{FORMATS, Profiler, fixtures::shown};
use crate::{
    cli::{Mode, ProfileOutputs},
    drain::{
        EndFact, Fact, Frame, FrameFact, MapId, ProcessFact, StackFact, Start, WindowFact,
        codec::Writer,
    },
    replay,
    trace::Consumer as _,
};

const PID: u32 = 500;
const SLOT: u16 = 1;
const S: u64 = 1_000_000_000;

/// One thread, blocked for a lock since `since_ns`.
fn thread(spent_ns: [u64; class::COUNT], since_ns: u64, site: SiteKey) -> ThreadState {
    ThreadState {
        seq: 1,
        since_ns,
        start_ns: S,
        spent_ns,
        unaccounted_ns: 0,
        last_ns: 0,
        woken_ns: 0,
        fences: 0,
        promote_at_ns: u64::MAX,
        switches: 1,
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
        site,
        memo: [StackMemo::EMPTY; MEMO_SLOTS],
        sys_enter_ns: 0,
        told_ns: 0,
        samples_user: 3,
        samples_kernel: 0,
        tls: perf_ebpf_common::signals::tls::TlsCall::default(),
        tid: PID,
        tgid: PID,
        sys_nr: 0,
        file_port: 0,
        slot: SLOT,
        file_detail: [0; 2],
        state: thread_state::BLOCKED,
        last_class: class::CPU,
        file_kind: 0,
        file_detail_kind: 0,
        missed_wake_class: 0,
        woken_from: 0,
        tls_call: 0,
        memo_next: 0,
        lock_wait: 0,
        pad: [0; 3],
        inner_tid: 0,
        seq_tail: 1,
    }
}

fn key(class: u8, user_stack: u64) -> SiteKey {
    SiteKey {
        user_stack,
        slot: SLOT,
        nr: 0,
        class,
        ..SiteKey::EMPTY
    }
}

fn sites(sites: &[(SiteKey, u64, u64)]) -> Frame {
    let mut bytes = Vec::new();
    for (key, count, sum_ns) in sites {
        let totals = SiteTotals {
            count: *count,
            sum_ns: *sum_ns,
            max_ns: *sum_ns,
        };
        bytes.extend(key.as_bytes());
        bytes.extend(totals.as_bytes());
    }
    Frame::Map(MapId::Sites, bytes)
}

fn stack(id: u64, names: &[&str]) -> Frame {
    let frame = |name: &&str| FrameFact {
        name: (*name).to_owned(),
        module: Some("/usr/bin/app".into()),
        source: None,
        symbolized: true,
        inlined: false,
        build_id: None,
    };
    Frame::Fact(Fact::Stack(StackFact {
        id,
        frames: names.iter().map(frame).collect(),
    }))
}

/// Two windows of a second: 0.7 s computing in two functions and 1.3 s in the lock, of which the
/// last 0.9 s are still going on, more sites than a line shows of one class among them.
fn trace() -> Vec<Frame> {
    let lock = key(class::LOCK, 9);
    let many: Vec<(SiteKey, u64, u64)> = (0..20)
        .map(|n| (key(class::TIMER, 100 + n), 1, S / 200))
        .collect();
    let mut spent = [0; class::COUNT];
    spent[class::CPU as usize] = 7 * S / 10;
    spent[class::LOCK as usize] = 3 * S / 10;
    spent[class::TIMER as usize] = S / 10;
    let window = |end_ns| {
        Frame::Fact(Fact::Window(Box::new(WindowFact {
            end_ns,
            ..WindowFact::default()
        })))
    };
    let threads = |state: ThreadState| {
        let mut bytes = PID.to_ne_bytes().to_vec();
        bytes.extend(state.as_bytes());
        Frame::Map(MapId::Threads, bytes)
    };
    let mut frames = vec![
        Frame::Fact(Fact::Start(Start {
            monotonic_ns: S,
            realtime_ns: 1_700_000_000 * S,
            targets: vec![PID],
            ..Start::default()
        })),
        Frame::Fact(Fact::Process(ProcessFact {
            pid: PID,
            comm: "app".into(),
            slot: SLOT.into(),
        })),
        stack(1, &["hash", "work", "main"]),
        stack(2, &["parse", "work", "main"]),
        stack(9, &["update", "work", "main"]),
    ];
    frames.extend((0..20).map(|n| stack(100 + n, &[&format!("nap_{n}"), "main"])));
    let mut first = vec![(key(class::CPU, 1), 5, 0), (key(class::CPU, 2), 2, 0)];
    first.extend(&many);
    first.push((lock, 2, 2 * S / 10));
    spent[class::LOCK as usize] = 2 * S / 10;
    frames.extend([
        sites(&first),
        threads(thread(spent, 2 * S, lock)),
        window(2 * S),
    ]);
    first.pop();
    first.push((lock, 3, 3 * S / 10));
    spent[class::LOCK as usize] = 3 * S / 10;
    let state = thread(spent, 21 * S / 10, lock);
    frames.extend([sites(&first), threads(state), window(3 * S)]);
    frames.push(Frame::Fact(Fact::End(EndFact {
        reason: "duration".into(),
        exit_code: None,
    })));
    frames
}

fn outputs(folder: &Path) -> ProfileOutputs {
    let at = |name: &str| Some(folder.join(name));
    ProfileOutputs {
        flamegraph: at("flamegraph"),
        folded: at("folded"),
        pprof: at("pprof"),
        speedscope: at("speedscope"),
    }
}

fn written(folder: &Path) -> Vec<Vec<u8>> {
    let files = FORMATS.iter().map(|f| fs::read(folder.join(f.name)));
    files.map(Result::unwrap).collect()
}

#[test]
fn a_recording_gives_the_bytes_of_the_trace_in_every_format_and_sums_to_its_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let shown = shown(Mode::Wall, true);
    let mut live = Profiler::new(shown, &outputs(folder.path())).unwrap();
    live.frames(trace()).unwrap();
    live.finish().unwrap();
    let of_trace = written(folder.path());

    let recording = folder.path().join("a.parec");
    let mut writer = Writer::new(fs::File::create(&recording).unwrap()).unwrap();
    trace()
        .iter()
        .for_each(|frame| writer.frame(frame).unwrap());
    writer.finish().unwrap();
    for _ in 0..2 {
        let mut replayed = Profiler::new(shown, &outputs(folder.path())).unwrap();
        replay::open(&recording)
            .unwrap()
            .play(&mut replayed)
            .unwrap();
        for (format, (a, b)) in FORMATS
            .iter()
            .zip(of_trace.iter().zip(written(folder.path())))
        {
            assert!(*a == b, "{} differs", format.name);
        }
    }

    let text = fs::read_to_string(folder.path().join("folded")).unwrap();
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for line in text.lines() {
        let (stack, ns) = line.rsplit_once(' ').unwrap();
        *sums.entry(stack.split(';').nth(1).unwrap()).or_default() += ns.parse::<u64>().unwrap();
    }
    let want = [
        ("[cpu.user]", 7 * S / 10),
        ("[lock]", 12 * S / 10),
        ("[timer]", S / 10),
    ];
    assert_eq!(sums, BTreeMap::from(want));
    assert!(
        text.contains("app;[cpu.user];main;work;hash 500000000\n"),
        "{text}"
    );
    assert!(
        text.contains("app;[lock];main;work;update 1200000000\n"),
        "{text}"
    );
    // Every site, not the eight largest.
    assert_eq!(text.matches(";nap_").count(), 20, "{text}");
}
