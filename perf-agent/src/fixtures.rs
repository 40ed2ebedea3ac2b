//! Lines for tests. The full ones have every field set, written out without `..Default` on
//! purpose: a field added to the model does not compile here until it is set, and is then looked
//! for in the schema.

use std::collections::BTreeMap;

use crate::model::*;

pub fn stamp() -> Stamp {
    Stamp {
        ts: "2026-01-02T03:04:05.678Z".into(),
        host: "db1".into(),
    }
}

pub fn who() -> Process {
    Process {
        pid: 4242,
        comm: "server".into(),
    }
}

/// One second.
pub fn window() -> Window {
    Window {
        start_ns: 5_000_000_000,
        end_ns: 6_000_000_000,
    }
}

/// `count` durations of one microsecond each.
pub fn latency(count: u64) -> Latency {
    Latency {
        count,
        sum_ns: count * 1_000,
        p50_ns: 1_000,
        p90_ns: 1_000,
        p95_ns: 1_000,
        p99_ns: 1_000,
        max_ns: 1_000,
    }
}

pub fn classes(classes: &[(&str, u64)]) -> Classes {
    classes.iter().map(|(k, v)| ((*k).into(), *v)).collect()
}

fn map(key: &str, value: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([(key.into(), value)])
}

pub fn frame(name: &str, module: &str) -> Frame {
    Frame {
        name: name.into(),
        module: Some(module.into()),
        source: Some("main.c:12".into()),
        build_id: Some("5f3c".into()),
        symbolized: true,
        inlined: false,
    }
}

fn full_site(detail: Detail) -> Site {
    Site {
        class: "lock".into(),
        syscall: Some("futex".into()),
        count: 3,
        sum_ns: 300,
        max_ns: 200,
        detail: Some(detail),
        user_stack: vec![Frame {
            inlined: true,
            ..frame("worker", "/usr/bin/server")
        }],
        kernel_stack: vec![frame("futex_wait", "[kernel]")],
    }
}

fn full_sites() -> Vec<Site> {
    vec![
        full_site(Detail::Futex {
            address: "0x7f0000001000".into(),
        }),
        full_site(Detail::Peer {
            peer: "10.0.0.1:5432".into(),
            port: 5432,
        }),
        full_site(Detail::Unix {
            path: "/run/postgresql/.s.PGSQL.5432".into(),
        }),
        full_site(Detail::File {
            device: "8:1".into(),
            inode: 77,
            path: Some("/var/lib/db/wal.001".into()),
        }),
    ]
}

fn full_ledger() -> Ledger {
    Ledger {
        stamp: stamp(),
        who: who(),
        window: window(),
        process: ProcessLedger {
            lifetime_ns: 1_000,
            classes: classes(&[("cpu.user", 900), ("net.tcp", 90)]),
            residual_ns: 10,
            latency: BTreeMap::from([("cpu".into(), latency(2))]),
            switches: 2,
            threads_started: 1,
            threads_exited: 1,
            short_lived: Some(ShortLived {
                processes: 1,
                threads: 1,
                lifetime_ns: 10,
                classes: classes(&[("cpu.user", 10)]),
                residual_ns: 0,
                comms: map("sh", 1),
            }),
        },
        threads: vec![ThreadLedger {
            tid: 4242,
            comm: "server".into(),
            lifetime_ns: 1_000,
            classes: classes(&[("cpu.user", 900), ("net.tcp", 90)]),
            residual_ns: 10,
            switches: 2,
            exited: true,
        }],
        cpu_split: CpuSplit {
            source: "samples".into(),
            user_samples: 9,
            kernel_samples: 1,
        },
        schedstat: SchedstatCheck {
            threads: 1,
            ledger_cpu_ns: 900,
            kernel_cpu_ns: 901,
            ledger_runq_ns: 0,
            kernel_runq_ns: 1,
        },
        faults: Faults {
            minor: 3,
            major: 1,
            blocked_ns: 5,
            cpu_ns: Some(30_000_000),
            cpu_samples: 3,
        },
        memory: Some(Box::new(full_memory())),
        block_io: vec![BlockIo {
            device: "vda".into(),
            operation: "write".into(),
            requests: 2,
            bytes: 4096,
            latency: latency(1),
        }],
        throttled: Some(Throttled {
            cgroup: "/system.slice/server.service".into(),
            periods: 10,
            throttled_periods: 2,
            throttled_ns: 1_000,
        }),
    }
}

pub fn full_memory() -> Memory {
    Memory {
        resident_bytes: 40 << 20,
        peak_bytes: 41 << 20,
        anon_bytes: 30 << 20,
        file_bytes: 9 << 20,
        shmem_bytes: 1 << 20,
        swap_bytes: 1 << 20,
        data_bytes: 50 << 20,
        grown_bytes: Some(2 << 20),
        trend: Some(MemoryTrend {
            windows: 10,
            rising: 10,
            length_ns: 10_000_000_000,
            from_bytes: 12 << 20,
            change_bytes: 20 << 20,
            late_bytes: 10 << 20,
            fallen_bytes: 0,
        }),
        limit: MemoryLimit {
            cgroup: Some("/system.slice/server.service".into()),
            limit_bytes: 512 << 20,
            left_bytes: 472 << 20,
        },
    }
}

pub fn full_growth() -> Growth {
    Growth {
        samples: 4,
        bytes: 2 << 20,
        total_bytes: 20 << 20,
        user_stack: vec![frame("keep", "/usr/bin/server")],
    }
}

fn full_syscalls() -> Syscalls {
    Syscalls {
        stamp: stamp(),
        who: who(),
        window: window(),
        mode: "sampled".into(),
        fraction: 0.1,
        slices: 10,
        hook_ns: Some(300),
        slowdown: Some(1.5),
        syscalls: vec![SyscallRow {
            name: "read".into(),
            count: 100,
            count_error: Some(7),
            errors: map("EAGAIN", 4),
            latency: latency(10),
            bytes: 4096,
        }],
    }
}

fn full_profile() -> Profile {
    Profile {
        stamp: stamp(),
        who: who(),
        window: window(),
        sites: full_sites(),
        rest: classes(&[("idle", 10)]),
        locks: vec![Lock {
            address: "0x7f0000001000".into(),
            waits: 3,
            sum_ns: 300,
            max_ns: 200,
            waiters: 1,
            holds: 2,
            hold_ns: 250,
            max_hold_ns: 150,
            wakers: vec![Waker {
                waker_tid: 1,
                waker_comm: "holder".into(),
                waiter_tid: 2,
                waiter_comm: "waiter".into(),
                count: 3,
                sum_ns: 300,
            }],
            waker_rest: Some(WakerRest {
                pairs: 1,
                count: 1,
                sum_ns: 10,
            }),
            owners: vec![full_owner()],
        }],
        growth: vec![full_growth()],
        accelerator: vec![AcceleratorCall {
            call: "cuStreamSynchronize".into(),
            waits: true,
            caller: Some("train_step".into()),
            root: Some("main".into()),
            blocks: 20,
            blocked_ns: 2_000,
            cpu_ns: 1_000,
        }],
    }
}

fn full_owner() -> LockOwner {
    LockOwner {
        owner_tid: 1,
        owner_comm: "holder".into(),
        owner_source: "mutex_word".into(),
        holds: 2,
        hold_ns: 250,
        max_hold_ns: 150,
        meanwhile: classes(&[("cpu", 50), ("disk", 180), ("unknown", 20)]),
        release_stack: vec![frame("flush_log", "/usr/bin/app")],
        blocked_class: Some("disk".into()),
        blocked_stack: vec![frame("fsync", "/usr/lib/libc.so.6")],
    }
}

pub fn full_finding() -> Finding {
    Finding {
        stamp: stamp(),
        who: who(),
        window: window(),
        id: "0123456789abcdef".into(),
        category: "lock_contention".into(),
        area: "system_bottleneck".into(),
        impact: Level::High,
        effort: Level::Medium,
        confidence: 0.8,
        delegate_to: "performance-engineer".into(),
        subject: "lock taken in worker".into(),
        title: "Threads wait for a lock".into(),
        evidence: vec![Evidence {
            name: "wait".into(),
            value: 420e6,
            unit: "ns/s".into(),
            samples: 12,
        }],
        gain_bound_ns_per_s: 420_000_000,
        recommendations: vec!["Hold it for less time".into()],
        state: State::New,
        since: stamp().ts,
        caused_by: Some("fedcba9876543210".into()),
        stacks: full_sites(),
        growth: vec![full_growth()],
        exhausted_in_ns: Some(236_000_000_000),
        owner: Some(full_owner()),
    }
}

fn full_connections() -> Connections {
    Connections {
        stamp: stamp(),
        who: who(),
        window: window(),
        connections: vec![ConnectionRow {
            id: 77,
            protocol: "redis".into(),
            role: "client".into(),
            local: "127.0.0.1:40000".into(),
            peer: "127.0.0.1:6379".into(),
            age: "new".into(),
            opened: true,
            closed: true,
            tx_bytes: 10,
            rx_bytes: 20,
            connect_ns: Some(30_000),
            rtt_ns: Some(20_000),
            rtt_min_ns: Some(10_000),
            rtt_max_ns: Some(40_000),
            retransmits: 1,
            resets: 1,
            send_stalls: 1,
            send_stall_ns: 5,
            tls: false,
            exchanges: 3,
            in_flight: 1,
            idle_in_transaction_ns: 7,
        }],
    }
}

fn full_statements() -> Statements {
    Statements {
        stamp: stamp(),
        who: who(),
        window: window(),
        statements: vec![statement("SELECT ?", 10, 1_000)],
    }
}

fn full_requests() -> Requests {
    Requests {
        stamp: stamp(),
        who: who(),
        window: window(),
        requests: vec![request("GET /orders/*")],
    }
}

/// Requests of a route of which one of two is attributed.
pub fn request(text: &str) -> RequestRow {
    let ledger = RequestLedger {
        latency_ns: 1_000,
        classes: classes(&[("cpu", 300), ("net.postgresql", 690)]),
        residual_ns: 10,
    };
    let downstream = vec![Downstream {
        protocol: "postgresql".into(),
        peer: "10.0.0.9:5432".into(),
        count: 2,
        errors: 1,
        time_ns: 690,
        statements: vec![DownstreamStatement {
            text: "SELECT ?".into(),
            count: 2,
            errors: 1,
            sum_ns: 690,
        }],
    }];
    RequestRow {
        protocol: "http".into(),
        fingerprint: "0123456789abcdef".into(),
        text: text.into(),
        count: 2,
        errors: 1,
        errors_by_code: map("503", 1),
        latency: latency(2),
        attributed: 1,
        unattributed: map("interleaved", 1),
        ledger: ledger.clone(),
        downstream: downstream.clone(),
        slowest: vec![
            SlowRequest {
                started_ns: 5_000_001_000,
                latency_ns: 1_000,
                tid: 4242,
                error: Some("503".into()),
                trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
                unattributed: None,
                ledger: Some(ledger),
                downstream,
            },
            SlowRequest {
                started_ns: 5_000_000_000,
                latency_ns: 1_000,
                tid: 4242,
                error: None,
                trace_id: None,
                unattributed: Some("interleaved".into()),
                ledger: None,
                downstream: Vec::new(),
            },
        ],
    }
}

/// A statement asked `count` times of one server, each answered after `ns`.
pub fn statement(text: &str, count: u64, ns: u64) -> StatementRow {
    let each = Latency {
        count,
        sum_ns: count * ns,
        p50_ns: ns,
        p90_ns: ns,
        p95_ns: ns,
        p99_ns: ns,
        max_ns: ns,
    };
    StatementRow {
        protocol: "postgresql".into(),
        role: "client".into(),
        peer: "10.0.0.9:5432".into(),
        fingerprint: "0123456789abcdef".into(),
        text: text.into(),
        count,
        errors: 1,
        errors_by_code: map("23505", 1),
        latency: each,
        first_byte: each,
        queued: Latency::default(),
        wall_share: (count * ns) as f64 / 1e9,
        hits: 1,
        misses: 1,
        runs: 1,
        run_exchanges: 5,
        longest_run: 5,
        led_by: Some("SELECT all".into()),
    }
}

/// A statement asked without an error, a look-up or a run.
pub fn asked(text: &str, count: u64, ns: u64) -> StatementRow {
    StatementRow {
        fingerprint: format!("{:016x}", crate::hash::fnv1a(&["postgresql", text])),
        errors: 0,
        errors_by_code: BTreeMap::new(),
        hits: 0,
        misses: 0,
        runs: 0,
        run_exchanges: 0,
        longest_run: 0,
        led_by: None,
        ..statement(text, count, ns)
    }
}

/// A healthy connection to a PostgreSQL server that was there before.
pub fn connected(peer: &str, exchanges: u64) -> ConnectionRow {
    ConnectionRow {
        protocol: "postgresql".into(),
        role: "client".into(),
        peer: peer.into(),
        age: "preexisting".into(),
        exchanges,
        tx_bytes: exchanges * 100,
        rx_bytes: exchanges * 500,
        ..ConnectionRow::default()
    }
}

/// A client of one thread that waited for PostgreSQL for so long of its second, and asked this on one
/// connection.
pub fn asking_report(wait_ns: u64, statements: Vec<StatementRow>) -> ProcessReport {
    let times = [
        ("net.postgresql", wait_ns),
        ("idle", 1_000_000_000 - wait_ns),
    ];
    let mut report = report("app", vec![thread(1, &times)]);
    let exchanges = statements.iter().map(|row| row.count).sum();
    report.connections = Some(Connections {
        connections: vec![connected("10.0.0.9:5432", exchanges)],
        ..full_connections()
    });
    report.statements = Some(Statements {
        statements,
        ..full_statements()
    });
    report
}

fn full_coverage() -> Coverage {
    Coverage {
        stamp: stamp(),
        window: window(),
        lifetime_ns: 1_000,
        residual_ns: 10,
        generated: 12,
        received: 11,
        lost: map("ring_full", 1),
        inferred: map("switch_in", 1),
        bytes_seen: 1,
        bytes_decoded: 1,
        sockets: SocketCoverage {
            connections: 2,
            unlisted_connections: 1,
            unlisted_bytes: 10,
            tls_unreadable_bytes: 9,
            unreadable_tls: vec!["GnuTLS".to_owned()],
            statements_dropped: 1,
            unattributed_statements: 1,
            anomalies: map("orphan_answers", 1),
        },
        requests: RequestCoverage {
            served: 2,
            attributed: 1,
            unattributed: map("interleaved", 1),
            calls: 5,
            calls_elsewhere: 1,
        },
        frames: 20,
        unsymbolized_frames: 2,
        stack_memo: StackMemoCoverage {
            hits: 10,
            walks: 2,
            checked: 1,
            mismatched: 0,
        },
        stack_walks: map("complete", 2),
        python_walks: map("complete", 2),
        maps: map("threads", 9),
        agent: AgentCost {
            cpu_ns: 1_000,
            bpf_ns: 500,
            bpf_fraction: 0.1,
            rss_bytes: 30 << 20,
        },
        streams: vec![full_stream()],
    }
}

fn full_stream() -> StreamCoverage {
    StreamCoverage {
        stream: "exec".into(),
        name: "database-specialist".into(),
        readers: 1,
        refused: 1,
        lines: 12,
        dropped: 2,
        restarts: 1,
    }
}

fn full_dropped() -> Dropped {
    Dropped {
        stamp: stamp(),
        lines: 3,
    }
}

fn full_hello() -> Hello {
    Hello {
        stamp: stamp(),
        agent: "0.1.0".into(),
        kernel: "6.1.0".into(),
        arch: "x86_64".into(),
        cpus: 2,
        targets: vec![who()],
        follow_children: true,
        interval_ns: 1_000_000_000,
        signals: vec![SignalState {
            name: "ledger".into(),
            on: true,
            reason: "tp_btf".into(),
        }],
    }
}

fn full_bye() -> Bye {
    Bye {
        stamp: stamp(),
        reason: "duration".into(),
        windows: 1,
        lifetime_ns: 1_000,
        residual_ns: 10,
        generated: 12,
        received: 11,
        lost: map("ring_full", 1),
        streams: vec![full_stream()],
        exit_code: Some(0),
    }
}

/// One line of each type, every field set, every variant of an enum with fields used.
pub fn full_lines() -> Vec<Line> {
    [
        Body::Hello(full_hello()),
        Body::Ledger(full_ledger()),
        Body::Syscalls(full_syscalls()),
        Body::Profile(full_profile()),
        Body::Connections(full_connections()),
        Body::Statements(full_statements()),
        Body::Requests(full_requests()),
        Body::Finding(full_finding()),
        Body::Coverage(full_coverage()),
        Body::Dropped(full_dropped()),
        Body::Bye(full_bye()),
    ]
    .into_iter()
    .map(in_every_type)
    .collect()
}

/// Does not compile when a variant is added: add it to the lists here.
fn in_every_type(body: Body) -> Line {
    match &body {
        Body::Hello(_)
        | Body::Ledger(_)
        | Body::Syscalls(_)
        | Body::Profile(_)
        | Body::Connections(_)
        | Body::Statements(_)
        | Body::Requests(_)
        | Body::Finding(_)
        | Body::Coverage(_)
        | Body::Dropped(_)
        | Body::Bye(_) => Line::new(body),
    }
}

/// One line of each type with nothing optional in it.
pub fn minimal_lines() -> Vec<Line> {
    let ledger = minimal_report("server").ledger;
    let profile = minimal_report("server").profile;
    let mut hello = full_hello();
    hello.targets.clear();
    hello.signals.clear();
    let mut syscalls = full_syscalls();
    syscalls.syscalls.clear();
    (syscalls.hook_ns, syscalls.slowdown) = (None, None);
    let mut finding = full_finding();
    finding.evidence.clear();
    finding.recommendations.clear();
    finding.stacks.clear();
    finding.caused_by = None;
    finding.growth.clear();
    finding.exhausted_in_ns = None;
    finding.owner = None;
    let mut connections = full_connections();
    connections.connections.clear();
    let mut statements = full_statements();
    statements.statements.clear();
    let mut requests = full_requests();
    requests.requests.clear();
    let mut bye = full_bye();
    bye.lost.clear();
    bye.streams.clear();
    bye.exit_code = None;
    [
        Body::Hello(hello),
        Body::Ledger(ledger),
        Body::Syscalls(syscalls),
        Body::Profile(profile),
        Body::Connections(connections),
        Body::Statements(statements),
        Body::Requests(requests),
        Body::Finding(finding),
        Body::Coverage(Coverage {
            stamp: stamp(),
            ..Coverage::default()
        }),
        Body::Dropped(full_dropped()),
        Body::Bye(bye),
    ]
    .into_iter()
    .map(in_every_type)
    .collect()
}

/// A process in which nothing happened, for tests that fill in what they need.
pub fn minimal_report(comm: &str) -> ProcessReport {
    let who = Process {
        pid: 4242,
        comm: comm.into(),
    };
    ProcessReport {
        ledger: Ledger {
            stamp: stamp(),
            who: who.clone(),
            window: window(),
            process: ProcessLedger::default(),
            threads: Vec::new(),
            cpu_split: CpuSplit::default(),
            schedstat: SchedstatCheck::default(),
            faults: Faults::default(),
            memory: None,
            block_io: Vec::new(),
            throttled: None,
        },
        syscalls: None,
        profile: Profile {
            stamp: stamp(),
            who,
            window: window(),
            sites: Vec::new(),
            rest: Classes::new(),
            locks: Vec::new(),
            growth: Vec::new(),
            accelerator: Vec::new(),
        },
        connections: None,
        statements: None,
        allocations: Vec::new(),
        requests: None,
    }
}

/// A thread that lived for the sum of its classes.
pub fn thread(tid: u32, times: &[(&str, u64)]) -> ThreadLedger {
    ThreadLedger {
        tid,
        comm: format!("thread-{tid}"),
        lifetime_ns: times.iter().map(|(_, ns)| ns).sum(),
        classes: classes(times),
        ..ThreadLedger::default()
    }
}

/// A process made of threads, its own figures their sum, in a window of one second.
pub fn report(comm: &str, threads: Vec<ThreadLedger>) -> ProcessReport {
    let mut report = minimal_report(comm);
    let process = &mut report.ledger.process;
    for thread in &threads {
        process.lifetime_ns += thread.lifetime_ns;
        for (class, ns) in &thread.classes {
            *process.classes.entry(class.clone()).or_default() += ns;
        }
    }
    report.ledger.threads = threads;
    report
}

/// A window with these processes in it.
pub fn window_report(processes: Vec<ProcessReport>) -> WindowReport {
    WindowReport {
        processes,
        coverage: Coverage {
            stamp: stamp(),
            window: window(),
            ..Coverage::default()
        },
    }
}

/// A site without stacks; no system call where `syscall` is empty.
pub fn site(class: &str, syscall: &str, count: u64, sum_ns: u64, detail: Option<Detail>) -> Site {
    Site {
        class: class.into(),
        syscall: (!syscall.is_empty()).then(|| syscall.into()),
        count,
        sum_ns,
        max_ns: sum_ns.checked_div(count).unwrap_or(0),
        detail,
        ..Site::default()
    }
}

/// A row of system calls, counted in full.
pub fn row(name: &str, count: u64, p50_ns: u64, bytes: u64) -> SyscallRow {
    SyscallRow {
        name: name.into(),
        count,
        count_error: None,
        errors: BTreeMap::new(),
        latency: Latency {
            count,
            sum_ns: count * p50_ns,
            p50_ns,
            p90_ns: p50_ns,
            p95_ns: p50_ns,
            p99_ns: p50_ns,
            max_ns: p50_ns,
        },
        bytes,
    }
}

/// System calls counted in full.
pub fn syscalls(rows: Vec<SyscallRow>) -> Syscalls {
    Syscalls {
        mode: "full".into(),
        fraction: 1.0,
        slices: 1,
        hook_ns: None,
        slowdown: None,
        syscalls: rows,
        ..full_syscalls()
    }
}
