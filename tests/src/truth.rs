//! Holds the agent's ledger against what a program measured of itself.
//!
//! Ledger lines are summed over their windows per thread; then each thread's lifetime, its CPU and
//! run queue time (against the scheduler's own figures) and each class are compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How far two figures may be apart: a share of the true one plus a constant.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub percent: f64,
    pub ms: f64,
}

impl Tolerance {
    /// The difference allowed for a figure.
    pub fn of(self, truth_ns: u64) -> u64 {
        (truth_ns as f64 * self.percent / 100.0 + self.ms * 1e6) as u64
    }
}

/// What is demanded of a ledger.
#[derive(Clone, Copy, Debug)]
pub struct Demands {
    /// Of lifetimes and blocked classes.
    pub classes: Tolerance,
    /// Of `cpu.*` and `runq`.
    pub cpu: Tolerance,
    /// Of a thread's lifetime.
    pub residual_percent: f64,
}

impl Default for Demands {
    fn default() -> Self {
        Demands {
            classes: Tolerance {
                percent: 2.0,
                ms: 2.0,
            },
            cpu: Tolerance {
                percent: 1.0,
                ms: 2.0,
            },
            residual_percent: 0.5,
        }
    }
}

/// What one thread measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub pid: u64,
    pub tid: u64,
    pub name: String,
    /// False where the thread lived before it began to measure: then its lifetime, and classes it
    /// did not measure, say nothing.
    pub whole: bool,
    pub lifetime_ns: u64,
    /// Time on the CPU and in the run queue, where they are known.
    pub schedstat: Option<(u64, u64)>,
    /// What may have been taken from the thread on the CPU: to the scheduler it did not run then.
    pub taken_ns: u64,
    pub classes: BTreeMap<String, u64>,
    /// How much of a class may have been so.
    pub taken: BTreeMap<String, u64>,
}

impl Measured {
    /// What the scheduler's figures and the measured waits leave of the lifetime: time a hypervisor
    /// took while the thread was on the CPU, which the scheduler counts as nobody's, and waits
    /// which the thread did not foresee, such as those inside the kernel for locks of the address
    /// space (6 ms once, beside other work). A ledger has to put it somewhere.
    pub fn unforeseen_ns(&self) -> u64 {
        let (run_ns, wait_ns) = self.schedstat.unwrap_or_default();
        let counted = run_ns + wait_ns + self.classes.values().sum::<u64>();
        self.lifetime_ns.saturating_sub(counted)
    }
}

/// One thread in the agent's ledger, summed over all windows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Booked {
    pub pid: u64,
    pub comm: String,
    pub lifetime_ns: u64,
    pub residual_ns: u64,
    pub classes: BTreeMap<String, u64>,
}

impl Booked {
    /// `cpu.user` and `cpu.kernel` together.
    pub fn cpu_ns(&self) -> u64 {
        let get = |class| self.classes.get(class).copied().unwrap_or(0);
        get("cpu.user") + get("cpu.kernel")
    }
}

/// One comparison.
#[derive(Clone, Debug)]
pub struct Row {
    pub tid: u64,
    pub name: String,
    pub what: String,
    pub truth_ns: u64,
    /// What was taken from the thread: to the ledger it runs then, to its own clock it does not. So a ledger has up
    /// to so much more CPU time, and less of what the program calls a wait.
    pub taken: Taken,
    pub ledger_ns: u64,
    pub allowed_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    More(u64),
    Less(u64),
}

impl Row {
    pub fn holds(&self) -> bool {
        let (least, most) = match self.taken {
            Taken::More(ns) => (self.truth_ns, self.truth_ns + ns),
            Taken::Less(ns) => (self.truth_ns.saturating_sub(ns), self.truth_ns),
        };
        (least.saturating_sub(self.allowed_ns)..=most + self.allowed_ns).contains(&self.ledger_ns)
    }
}

fn number(value: &Value, pointer: &str) -> Result<u64> {
    value
        .pointer(pointer)
        .and_then(Value::as_u64)
        .with_context(|| format!("no number at {pointer} in {value}"))
}

fn text(value: &Value, field: &str) -> Result<String> {
    let text = value[field].as_str();
    Ok(text
        .with_context(|| format!("no {field} in {value}"))?
        .into())
}

fn classes(value: &Value, field: &str) -> Result<BTreeMap<String, u64>> {
    let object = value[field]
        .as_object()
        .with_context(|| format!("no {field} in {value}"))?;
    object
        .iter()
        .map(|(class, ns)| {
            let ns = ns.as_u64();
            Ok((
                class.clone(),
                ns.with_context(|| format!("class {class} is not a number in {value}"))?,
            ))
        })
        .collect()
}

/// Reads what a program measured (`truth --json`, or the `DONE` line of a workload).
///
/// # Errors
/// Where a field is missing.
pub fn measured(json: &Value) -> Result<Vec<Measured>> {
    let threads = json["threads"].as_array().context("no threads measured")?;
    threads
        .iter()
        .map(|t| {
            Ok(Measured {
                pid: number(t, "/pid")?,
                tid: number(t, "/tid")?,
                name: text(t, "name")?,
                whole: t["whole"].as_bool().unwrap_or(true),
                lifetime_ns: number(t, "/lifetime_ns")?,
                schedstat: match t["schedstat"] {
                    Value::Null => None,
                    _ => Some((
                        number(t, "/schedstat/run_ns")?,
                        number(t, "/schedstat/wait_ns")?,
                    )),
                },
                taken_ns: number(t, "/taken_ns")?,
                classes: classes(t, "classes")?,
                taken: classes(t, "taken")?,
            })
        })
        .collect()
}

/// How long the thread `holder` of the ground-truth program held each of its locks, by how it was known
/// to hold it, against how long the thread that waited for that lock measured.
pub fn compare_holds(measured: &[Measured], lines: &[Value], demands: Demands) -> Vec<Row> {
    let owners: Vec<&Value> = lines
        .iter()
        .filter(|line| line["type"] == "profile")
        .flat_map(|line| line["locks"].as_array().into_iter().flatten())
        .flat_map(|lock| lock["owners"].as_array().into_iter().flatten())
        .filter(|owner| owner["owner_comm"] == "holder")
        .collect();
    // A lock of Rust's standard library, and one of pthread's.
    let waiters = [("mutex", "waker"), ("mutex-c", "mutex_word")];
    let row = |(waiter, source): (&str, &str)| {
        let waiter = measured.iter().find(|m| m.name == waiter)?;
        let truth_ns = waiter.classes.get("lock").copied().unwrap_or(0);
        let told = owners.iter().filter(|o| o["owner_source"] == source);
        Some(Row {
            tid: waiter.tid,
            name: waiter.name.clone(),
            what: format!("held, by {source}"),
            truth_ns,
            taken: Taken::Less(0),
            ledger_ns: told.filter_map(|o| o["hold_ns"].as_u64()).sum(),
            allowed_ns: demands.classes.of(truth_ns),
        })
    };
    waiters.into_iter().filter_map(row).collect()
}

/// Sums the threads of all `ledger` lines by thread id.
///
/// # Errors
/// Where a line lacks a field, or its own figures do not add up (see [`closes`]).
pub fn booked(lines: &[Value]) -> Result<BTreeMap<u64, Booked>> {
    let mut threads: BTreeMap<u64, Booked> = BTreeMap::new();
    for line in lines.iter().filter(|line| line["type"] == "ledger") {
        closes(line)?;
        for t in line["threads"].as_array().context("no threads")? {
            let sum = threads.entry(number(t, "/tid")?).or_default();
            sum.pid = number(line, "/pid")?;
            sum.comm = text(t, "comm")?;
            sum.lifetime_ns += number(t, "/lifetime_ns")?;
            sum.residual_ns += number(t, "/residual_ns")?;
            for (class, ns) in classes(t, "classes")? {
                *sum.classes.entry(class).or_default() += ns;
            }
        }
    }
    Ok(threads)
}

/// Checks that classes and residual make up the lifetime, for the process of a ledger line and for
/// each of its threads, that the threads make up the process, and that none lives longer than the
/// window.
///
/// # Errors
/// Names the first place that does not add up.
pub fn closes(line: &Value) -> Result<()> {
    let window = number(line, "/window/end_ns")? - number(line, "/window/start_ns")?;
    let (mut of_threads, mut residuals) = (0, 0);
    for t in line["threads"].as_array().context("no threads")? {
        adds_up(t, &format!("thread {}", t["tid"]))?;
        residuals += number(t, "/residual_ns")?;
        let lifetime = number(t, "/lifetime_ns")?;
        if lifetime > window {
            bail!(
                "thread {} lives {lifetime} ns in a window of {window} ns",
                t["tid"]
            );
        }
        of_threads += lifetime;
    }
    let process = &line["process"];
    let pid = &line["pid"];
    adds_up_within(process, &format!("process {pid}"))?;
    let lifetime = number(process, "/lifetime_ns")?;
    if lifetime != of_threads {
        bail!("process {pid} lives {lifetime} ns, its threads {of_threads} ns");
    }
    if number(process, "/residual_ns")? != residuals {
        bail!("the threads of process {pid} leave {residuals} ns: {process}");
    }
    if process["short_lived"].is_object() {
        adds_up_within(&process["short_lived"], "short-lived processes")?;
    }
    Ok(())
}

/// For a sum of several: residuals are added without their sign.
fn adds_up_within(ledger: &Value, who: &str) -> Result<()> {
    let (lifetime, sum, residual) = figures(ledger)?;
    if lifetime.abs_diff(sum) > residual {
        bail!("{who}: {sum} in classes, {lifetime} of life, residual {residual}: {ledger}");
    }
    Ok(())
}

/// Lifetime, sum of classes, residual.
fn figures(ledger: &Value) -> Result<(u64, u64, u64)> {
    Ok((
        number(ledger, "/lifetime_ns")?,
        classes(ledger, "classes")?.values().sum(),
        number(ledger, "/residual_ns")?,
    ))
}

fn adds_up(ledger: &Value, who: &str) -> Result<()> {
    let (lifetime, sum, residual) = figures(ledger)?;
    if lifetime.abs_diff(sum) != residual {
        bail!("{who}: {sum} in classes, {lifetime} of life, residual {residual}: {ledger}");
    }
    Ok(())
}

/// Compares every thread that was measured. A thread the ledger lacks is compared with zero.
pub fn compare(
    measured: &[Measured],
    booked: &BTreeMap<u64, Booked>,
    demands: Demands,
) -> Vec<Row> {
    let nothing = Booked::default();
    measured
        .iter()
        .flat_map(|m| compare_thread(m, booked.get(&m.tid).unwrap_or(&nothing), demands))
        .collect()
}

fn compare_thread(m: &Measured, b: &Booked, demands: Demands) -> Vec<Row> {
    let row = |what: &str, (truth_ns, taken), ledger_ns, allowed_ns| Row {
        tid: m.tid,
        name: m.name.clone(),
        what: what.to_owned(),
        truth_ns,
        taken,
        ledger_ns,
        allowed_ns,
    };
    let get = |map: &BTreeMap<String, u64>, class: &str| map.get(class).copied().unwrap_or(0);
    let mut rows = Vec::new();
    if let Some((run_ns, wait_ns)) = m.schedstat {
        for (what, truth, taken, ledger) in [
            ("cpu", run_ns, m.taken_ns, b.cpu_ns()),
            ("runq", wait_ns, 0, get(&b.classes, "runq")),
        ] {
            let allowed = demands.cpu.of(truth) + m.unforeseen_ns();
            rows.push(row(what, (truth, Taken::More(taken)), ledger, allowed));
        }
    }
    let residual = (b.lifetime_ns as f64 * demands.residual_percent / 100.0) as u64;
    let nothing = Taken::More(0);
    rows.push(row("residual", (0, nothing), b.residual_ns, residual));
    if m.whole {
        let allowed = demands.classes.of(m.lifetime_ns);
        let truth = (m.lifetime_ns, nothing);
        rows.push(row("lifetime", truth, b.lifetime_ns, allowed));
    }
    let names: BTreeSet<&String> = if m.whole {
        m.classes.keys().chain(b.classes.keys()).collect()
    } else {
        m.classes.keys().collect()
    };
    for class in names {
        if !class.starts_with("cpu.") && class != "runq" {
            let truth = get(&m.classes, class);
            // Only more: what a program foresaw is there whatever else there is.
            let booked = get(&b.classes, class);
            let unforeseen = if booked > truth { m.unforeseen_ns() } else { 0 };
            let allowed = demands.classes.of(truth) + unforeseen;
            let taken = Taken::Less(get(&m.taken, class));
            rows.push(row(class, (truth, taken), booked, allowed));
        }
    }
    rows
}

/// The comparisons as a table, those that do not hold marked.
pub fn table(rows: &[Row]) -> String {
    let mut out = format!(
        "{:>8} {:<12} {:<12} {:>12} {:>12} {:>10} {:>10} {:>10}\n",
        "tid", "thread", "class", "truth ms", "ledger ms", "diff ms", "taken", "allowed"
    );
    for r in rows {
        let ms = |ns: u64| ns as f64 / 1e6;
        // Writing to a String cannot fail.
        _ = writeln!(
            out,
            "{:>8} {:<12} {:<12} {:>12.3} {:>12.3} {:>10.3} {:>10} {:>10.3}{}",
            r.tid,
            r.name,
            r.what,
            ms(r.truth_ns),
            ms(r.ledger_ns),
            ms(r.ledger_ns) - ms(r.truth_ns),
            match r.taken {
                Taken::More(0) | Taken::Less(0) => String::new(),
                Taken::More(ns) => format!("+{:.3}", ms(ns)),
                Taken::Less(ns) => format!("-{:.3}", ms(ns)),
            },
            ms(r.allowed_ns),
            if r.holds() { "" } else { "  <-- FAILS" }
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(thread: Value) -> Value {
        json!({
            "type": "ledger", "pid": 7, "window": {"start_ns": 0, "end_ns": 1_000_000_000},
            "process": {
                "lifetime_ns": thread["lifetime_ns"], "residual_ns": thread["residual_ns"],
                "classes": thread["classes"]
            },
            "threads": [thread]
        })
    }

    fn thread(lifetime: u64, timer: u64, residual: u64) -> Value {
        json!({
            "tid": 8, "comm": "t", "lifetime_ns": lifetime, "residual_ns": residual,
            "classes": {"timer": timer, "cpu.user": 10_000_000}
        })
    }

    fn truth(timer: u64) -> Vec<Measured> {
        measured(&json!({"threads": [{
            "pid": 7, "tid": 8, "name": "t", "whole": true, "lifetime_ns": 510_000_000,
            "schedstat": {"run_ns": 10_000_000, "wait_ns": 0}, "taken_ns": 0,
            "classes": {"timer": timer}, "taken": {"timer": 0}
        }]}))
        .unwrap()
    }

    fn failures(lines: &[Value], timer: u64) -> Vec<String> {
        compare(&truth(timer), &booked(lines).unwrap(), Demands::default())
            .into_iter()
            .filter(|row| !row.holds())
            .map(|row| row.what)
            .collect()
    }

    #[test]
    fn windows_are_summed_before_they_are_compared() {
        let mut lines = vec![line(thread(500_000_000, 490_000_000, 0))];
        assert!(booked(&lines).unwrap()[&8].classes["timer"] == 490_000_000);
        lines.push(line(json!({
            "tid": 8, "comm": "t", "lifetime_ns": 10_000_000, "residual_ns": 0,
            "classes": {"timer": 10_000_000}
        })));
        assert_eq!(failures(&lines, 500_000_000), Vec::<String>::new());
    }

    #[test]
    fn what_is_off_by_more_than_allowed_fails_and_nothing_else_does() {
        let good = || line(thread(510_000_000, 500_000_000, 0));
        assert_eq!(failures(&[good()], 511_900_000), Vec::<String>::new());
        assert_eq!(failures(&[good()], 513_000_000), ["timer"]);
        let lazy = line(thread(510_000_000, 497_000_000, 3_000_000));
        assert_eq!(failures(&[lazy], 500_000_000), ["residual"]);
        assert_eq!(failures(&[], 500_000_000), ["cpu", "lifetime", "timer"]);
    }

    #[test]
    fn what_the_hypervisor_took_may_be_cpu_or_run_queue_time() {
        let mut truth = truth(497_000_000);
        assert_eq!(truth[0].unforeseen_ns(), 3_000_000);
        let mut line = line(thread(510_000_000, 497_000_000, 0));
        for place in ["/process/classes", "/threads/0/classes"] {
            *line.pointer_mut(place).unwrap() =
                json!({"timer": 497_000_000, "cpu.user": 13_000_000});
        }
        let booked = booked(&[line]).unwrap();
        let holds = |truth: &[Measured]| {
            let rows = compare(truth, &booked, Demands::default());
            rows.iter().all(Row::holds)
        };
        assert!(holds(&truth));
        truth[0].lifetime_ns = 507_000_000;
        assert!(!holds(&truth));
    }

    #[test]
    fn what_was_taken_in_a_wait_may_be_cpu_time_and_nothing_else_may() {
        let timer = 500_000_000;
        let mut lines = [line(thread(510_000_000, timer, 0))];
        for (moved, taken, failed) in [
            (6_000_000, 0, vec!["cpu"]),
            (6_000_000, 6_000_000, vec![]),
            (20_000_000, 6_000_000, vec!["cpu", "timer"]),
        ] {
            let mut truth = truth(timer);
            truth[0].taken_ns = taken;
            truth[0].taken.insert("timer".to_owned(), taken);
            for place in ["/process/classes", "/threads/0/classes"] {
                *lines[0].pointer_mut(place).unwrap() =
                    json!({"timer": timer - moved, "cpu.user": 10_000_000 + moved});
            }
            let rows = compare(&truth, &booked(&lines).unwrap(), Demands::default());
            let wrong: Vec<_> = rows.iter().filter(|row| !row.holds()).collect();
            let wrong: Vec<_> = wrong.iter().map(|row| row.what.as_str()).collect();
            assert_eq!(wrong, failed, "{moved} moved, {taken} taken");
        }
    }

    #[test]
    fn a_line_that_does_not_add_up_is_refused() {
        assert!(closes(&line(thread(510_000_000, 500_000_000, 0))).is_ok());
        assert!(closes(&line(thread(510_000_000, 500_000_001, 0))).is_err());
        assert!(closes(&line(thread(2_010_000_000, 2_000_000_000, 0))).is_err());
        let mut line = line(thread(510_000_000, 500_000_000, 0));
        line["process"]["lifetime_ns"] = json!(520_000_000);
        line["process"]["residual_ns"] = json!(10_000_000);
        assert!(closes(&line).is_err());
        line["process"]["lifetime_ns"] = json!(510_000_000);
        assert!(closes(&line).is_err());
    }

    #[test]
    fn a_class_nobody_measured_counts_against_a_whole_thread() {
        let mut lines = [line(thread(510_000_000, 500_000_000, 0))];
        for place in ["/process/classes", "/threads/0/classes"] {
            *lines[0].pointer_mut(place).unwrap() =
                json!({"timer": 480_000_000, "lock": 20_000_000, "cpu.user": 10_000_000});
        }
        assert_eq!(failures(&lines, 500_000_000), ["lock", "timer"]);
        // Nor could it: then it may be anything.
        assert_eq!(failures(&lines, 480_000_000), Vec::<String>::new());
    }
}
