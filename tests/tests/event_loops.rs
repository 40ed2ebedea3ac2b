//! Waits of event loops for the rest of an answer, against the loop's own clock.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use perf_agent_tests::agent::{Agent, Run};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::truth::{self, Demands, Measured, Tolerance};
use perf_agent_tests::workloads::event_loop::{
    ANSWERS, PART, PUSHED, PUSHES, SUBSCRIBE, SUBSCRIBED, TICKED, head,
};
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

fn pause(ms: u32) {
    thread::sleep(Duration::from_millis(ms.into()));
}

/// Answers in parts, as each request says.
fn in_parts(mut client: TcpStream) {
    client.set_nodelay(true).unwrap();
    let lines = BufReader::new(client.try_clone().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        let Some(how) = line.strip_prefix("GET /parts/") else {
            continue;
        };
        let mut how = how.split(['/', ' ']);
        let mut number = || how.next().unwrap().parse::<u32>().unwrap();
        let (parts, ms) = (number(), number());
        // One part alone comes late as a whole.
        if parts == 1 {
            pause(ms);
        }
        client.write_all(head(parts).as_bytes()).unwrap();
        for part in 0..parts {
            if part > 0 {
                pause(ms);
            }
            client.write_all(&[b'x'; PART]).unwrap();
        }
    }
}

fn push(mut client: TcpStream) {
    client.set_nodelay(true).unwrap();
    client.read_exact(&mut [0; SUBSCRIBE.len()]).unwrap();
    client.write_all(SUBSCRIBED).unwrap();
    for ms in PUSHES {
        pause(ms);
        client.write_all(PUSHED).unwrap();
    }
    // Until it has gone.
    _ = client.read(&mut [0]);
}

/// Traces a workload and its server; what it measured.
fn trace(workload: &str, server: fn(TcpStream)) -> (Run, Vec<Measured>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let server = thread::spawn(move || server(listener.accept().unwrap().0));
    let mut program = Traced::workload(&[workload, "--connect", &to]);
    let agent = Agent::start(["trace", "-p", &program.pid().to_string()]);
    agent.attached();
    program.go();
    let done = program.done(PATIENCE);
    let run = agent.finish(PATIENCE);
    server.join().unwrap();
    run.ended_well("target_exit").lost_nothing();
    (run, truth::measured(&done).unwrap())
}

fn demand(run: &Run, measured: &[Measured], demands: Demands) {
    let booked = truth::booked(&run.lines).unwrap();
    let rows = truth::compare(measured, &booked, demands);
    let table = truth::table(&rows);
    assert!(rows.iter().all(truth::Row::holds), "{table}\n{}", run.text);
    println!("{table}");
}

/// Time and number of the sites of a class, in all windows.
fn sites(run: &Run, class: &str) -> (u64, u64) {
    let sites = run
        .of_type("profile")
        .flat_map(|line| line["sites"].as_array().unwrap())
        .filter(|site| site["class"] == class);
    let figure = |site: &Value, name: &str| site[name].as_u64().unwrap();
    sites.fold((0, 0), |(ns, count), site| {
        (ns + figure(site, "sum_ns"), count + figure(site, "count"))
    })
}

#[test]
fn what_is_in_flight_is_waited_for_and_what_comes_before_and_after_it_is_not() {
    let _alone = alone();
    let (run, measured) = trace("event-loop", in_parts);
    demand(&run, &measured, Demands::default());
    // The waits are at their places as what they are.
    let waits: u32 = ANSWERS.iter().map(|(parts, _)| parts - 1).sum::<u32>() + 3;
    let (ns, count) = sites(&run, "net.http");
    let truth_ns = measured[0].classes["net.http"];
    let off = ns.abs_diff(truth_ns);
    assert!(off < truth_ns / 50 + 2_000_000, "{ns} of {truth_ns}");
    // The head of an answer may come a little before its first part.
    let most = u64::from(waits) + ANSWERS.len() as u64 + 3;
    assert!((waits.into()..=most).contains(&count), "{count} of {waits}");
}

/// Whether the rest of an answer is awaited is found out within a fifth of a second: what else ends a wait
/// before is idle.
#[test]
fn a_loop_with_ticks_waits_for_the_rest_of_an_answer() {
    let _alone = alone();
    let (run, measured) = trace("event-loop-ticks", in_parts);
    let late = Tolerance {
        percent: 2.0,
        ms: 200.0,
    };
    demand(
        &run,
        &measured,
        Demands {
            classes: late,
            ..Demands::default()
        },
    );
    let truth_ns = measured[0].classes["net.http"];
    // It was not what the tolerance is of.
    assert!(truth_ns >= u64::from(TICKED.1) * 950_000, "{truth_ns}");
}

#[test]
fn a_message_that_is_pushed_is_not_waited_for() {
    let _alone = alone();
    let (run, measured) = trace("subscriber", push);
    demand(&run, &measured, Demands::default());
}
