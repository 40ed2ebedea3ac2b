//! The hottest call paths as text: one tree a process, outermost function first, each with its share
//! of the time shown, its time and the classes it is in.

use std::collections::BTreeMap;

use super::{
    coverage,
    folded::NO_STACK,
    stacks::{Place, Stacks},
};
use crate::{
    cli::Mode,
    detect::is_own,
    model::Classes,
    sink::{
        text::{Span, Style, Text, plain},
        units::{count, percent},
    },
};

/// Parts of a hundred below which a path is not shown on its own.
const CUT: u64 = 100;
/// A chain of calls ends where one part in this many of its time has left it.
const CHAIN_LOSS: u64 = 10;
/// Of a chain of calls without a branch, at most so many functions of the program's own are shown,
/// the innermost ones, beside its first and its last.
const OWN_SHOWN: usize = 3;
/// A name longer than this is shown without what stands in its angle brackets and parentheses: of
/// Rust's and C++'s names that is most. The other formats have them whole.
const LONG: usize = 40;

/// A function reached by one path of calls.
#[derive(Default)]
struct Node {
    ns: u64,
    classes: Classes,
    /// The program's own code, not a runtime's or the kernel's.
    own: bool,
    below: BTreeMap<String, Node>,
}

impl Node {
    fn add(&mut self, class: &str, ns: u64) -> &mut Self {
        self.ns += ns;
        *self.classes.entry(class.to_owned()).or_default() += ns;
        self
    }

    /// Largest first.
    fn sorted(&self) -> Vec<(&String, &Node)> {
        let mut below: Vec<_> = self.below.iter().collect();
        below.sort_by(|a, b| b.1.ns.cmp(&a.1.ns).then_with(|| a.0.cmp(b.0)));
        below
    }
}

/// The whole text.
pub fn text(stacks: &Stacks) -> Text {
    let mut text = Text::default();
    text.line([(Style::Bold, headline(stacks))]);
    let total = stacks.basis.shown_ns;
    if total > 0 {
        let mut writer = Writer {
            text: &mut text,
            stacks,
            total,
        };
        let root = tree(stacks);
        writer.header();
        let (shown, rest) = split(root.sorted(), total);
        for (name, process) in shown {
            writer.row(process, "", name);
            writer.below(process, "");
        }
        if let Some(rest) = large(&rest, total) {
            writer.rest(&rest, "");
        }
    }
    text.gap();
    for line in coverage::text(stacks).lines() {
        text.line([(Style::Dim, line.to_owned())]);
    }
    text
}

/// What costs most, in a sentence.
fn headline(stacks: &Stacks) -> String {
    let title = coverage::whom(stacks);
    let shown = match stacks.shown.mode {
        Mode::Cpu => "CPU time",
        Mode::Off => "time off the CPU",
        Mode::Wall => "thread time",
        Mode::Alloc => "allocated",
    };
    let total = stacks.basis.shown_ns;
    let of = format!("{} {shown}", coverage::amount(stacks, total));
    match stacks.hottest() {
        Some((class, function, ns)) if total > 0 => format!(
            "{title}: {} of {of} is {class} in `{function}`",
            percent(ns, total)
        ),
        _ if total > 0 => format!("{title}: {of}, none of it with a stack"),
        _ if stacks.shown.mode == Mode::Alloc => format!("{title}: nothing sampled was allocated"),
        _ => format!("{title}: no {shown} to show"),
    }
}

fn tree(stacks: &Stacks) -> Node {
    let mut root = Node::default();
    for (place, amount) in stacks.in_order() {
        let process = &stacks.processes[place.process as usize];
        let name = format!("{} (pid {})", process.comm, process.pid);
        let names = names(stacks, place);
        let (class, ns) = (place.class.as_str(), amount.weight);
        // What was allocated is freed, or it is not.
        if ns == 0 {
            continue;
        }
        let mut node = root.add(class, ns);
        for (name, own) in std::iter::once((name, false)).chain(names) {
            node = node.below.entry(name).or_default().add(class, ns);
            node.own |= own;
        }
    }
    root
}

/// A stack's functions, and whether they are the program's own.
fn names(stacks: &Stacks, place: &Place) -> Vec<(String, bool)> {
    if place.stack.is_empty() {
        return vec![(NO_STACK.to_owned(), false)];
    }
    let frames = place.stack.iter().map(|id| &stacks.frames[*id as usize]);
    frames
        .map(|f| (f.frame.name.clone(), !f.kernel && is_own(&f.frame)))
        .collect()
}

/// Nodes large enough to be shown, and the others.
fn split<'a>(
    nodes: Vec<(&'a String, &'a Node)>,
    total: u64,
) -> (Vec<(&'a String, &'a Node)>, Vec<&'a Node>) {
    let (shown, rest): (Vec<_>, Vec<_>) = nodes
        .into_iter()
        .partition(|(_, node)| is_large(node.ns, total));
    (shown, rest.into_iter().map(|(_, node)| node).collect())
}

struct Writer<'a> {
    text: &'a mut Text,
    stacks: &'a Stacks,
    total: u64,
}

impl Writer<'_> {
    fn header(&mut self) {
        self.text.gap();
        let header = format!(
            "{:>8} {:>9}  call path (without those under 1 %)",
            "share",
            match self.stacks.shown.mode {
                Mode::Alloc => "bytes",
                Mode::Cpu | Mode::Off | Mode::Wall => "time",
            }
        );
        self.text.line([(Style::Dim, header)]);
    }

    fn row(&mut self, node: &Node, branch: &str, what: &str) {
        let figures = format!(
            "{:>8} {:>9}  ",
            percent(node.ns, self.total),
            coverage::amount(self.stacks, node.ns)
        );
        let mut spans: Vec<Span> = vec![
            plain(figures),
            (Style::Dim, branch.to_owned()),
            plain(what),
            plain("  "),
        ];
        spans.extend(classes(node));
        self.text.line(spans);
    }

    /// What a node calls, cut below the hundredth part, chains without a branch on one line.
    fn below(&mut self, node: &Node, indent: &str) {
        let (shown, rest) = split(node.sorted(), self.total);
        // Where there is nothing else, the row above says it all.
        let rest = large(&rest, self.total).filter(|_| !shown.is_empty());
        let last = shown.len() + usize::from(rest.is_some());
        for (i, (name, child)) in shown.into_iter().enumerate() {
            let (names, end) = chain(name, child, self.total);
            let (branch, pad) = match i + 1 == last {
                true => ("└ ", "  "),
                false => ("├ ", "│ "),
            };
            self.row(child, &format!("{indent}{branch}"), &folded(&names));
            self.below(end, &format!("{indent}{pad}"));
        }
        if let Some(rest) = rest {
            self.rest(&rest, &format!("{indent}└ "));
        }
    }

    fn rest(&mut self, (n, sum): &(usize, Node), branch: &str) {
        let what = format!("… {} more, each under 1 %", count(*n as u64));
        self.row(sum, branch, &what);
    }
}

/// Small nodes that come to a hundredth together: how many, and their sum.
fn large(nodes: &[&Node], total: u64) -> Option<(usize, Node)> {
    let mut sum = Node::default();
    for (class, ns) in nodes.iter().flat_map(|node| &node.classes) {
        sum.add(class, *ns);
    }
    is_large(sum.ns, total).then_some((nodes.len(), sum))
}

fn is_large(ns: u64, total: u64) -> bool {
    u128::from(ns) * u128::from(CUT) >= u128::from(total)
}

/// Follows calls as long as nearly all the time goes to one: what leaves the chain on its way is
/// small, each and together.
fn chain<'a>(name: &'a str, node: &'a Node, total: u64) -> (Vec<(&'a str, bool)>, &'a Node) {
    let (mut names, mut end) = (vec![(name, node.own)], node);
    while let [(name, next), others @ ..] = end.sorted().as_slice()
        && is_large(next.ns, total)
        && !others.first().is_some_and(|(_, n)| is_large(n.ns, total))
        && (!is_large(node.ns - next.ns, total) || node.ns - next.ns <= node.ns / CHAIN_LOSS)
    {
        names.push((name.as_str(), next.own));
        end = next;
    }
    (names, end)
}

/// A name without what stands in brackets, where it is long.
fn short(name: &str) -> String {
    if name.chars().count() <= LONG {
        return name.to_owned();
    }
    let (mut out, mut depth) = (String::new(), 0u32);
    let mut before = ' ';
    for c in name.chars() {
        let arrow = c == '>' && matches!(before, '-' | '=');
        before = c;
        if matches!(c, '>' | ')') && !arrow {
            depth = depth.saturating_sub(1);
        }
        if depth == 0 {
            out.push(c);
        }
        if matches!(c, '<' | '(') {
            if depth == 0 {
                out.push('…');
            }
            depth += 1;
        }
    }
    out
}

/// A chain on one line. Of a long one the ends are shown and what the program's own code is in it;
/// the others are counted.
fn folded(names: &[(&str, bool)]) -> String {
    let last = names.len().saturating_sub(1);
    let own = (0..names.len()).rev().filter(|i| names[*i].1);
    let mut shown: Vec<usize> = own.take(OWN_SHOWN).chain([0, last]).collect();
    shown.sort_unstable();
    shown.dedup();
    let mut parts = Vec::new();
    let mut next = 0;
    for i in shown {
        match i - next {
            0 => {}
            // A mark would be as long.
            1 => parts.push(short(names[next].0)),
            n => parts.push(format!("… {n} …")),
        }
        parts.push(short(names[i].0));
        next = i + 1;
    }
    parts.join(" → ")
}

/// The classes of a node's time: one name where it is all in it, else the largest with shares.
fn classes(node: &Node) -> Vec<Span> {
    let mut classes: Vec<(&String, u64)> = node.classes.iter().map(|(c, ns)| (c, *ns)).collect();
    classes.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    let mut spans = Vec::new();
    for (i, (class, ns)) in classes.iter().take(3).enumerate() {
        let text = match classes.len() {
            1 => (*class).clone(),
            _ => format!("{class} {}", percent(*ns, node.ns)),
        };
        if i > 0 {
            spans.push(plain(", "));
        }
        spans.push((style(class), text));
    }
    if classes.len() > 3 {
        spans.push(plain(", …"));
    }
    spans
}

/// Warm on the CPU, as in the flame graph.
fn style(class: &str) -> Style {
    match class {
        "cpu.user" | "cpu.kernel" => Style::Red,
        "runq" => Style::Yellow,
        "idle" | "timer" | "freed" => Style::Dim,
        _ => Style::Cyan,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures::{report, shown, stacks};

    #[test]
    fn the_tree_is_merged_over_classes_and_begins_with_what_costs_most() {
        let printed = text(&stacks(shown(Mode::Wall, false))).print(false);
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(
            lines[..12],
            [
                "app (pid 77): 33 % of 9.00 µs thread time is lock in `app::update`",
                "",
                "   share      time  call path (without those under 1 %)",
                "   100 %   9.00 µs  app (pid 77)  cpu.user 44 %, lock 33 %, cpu.kernel 11 %, …",
                "    92 %   8.30 µs  ├ main  cpu.user 48 %, lock 36 %, cpu.kernel 12 %, …",
                "    67 %   6.00 µs  │ ├ app::work  cpu.user 50 %, lock 50 %",
                "    33 %   3.00 µs  │ │ ├ app::hash  cpu.user",
                "    33 %   3.00 µs  │ │ └ app::update → futex_wait  lock",
                "    11 %   1.00 µs  │ ├ libx.so+0x12; 3  cpu.user",
                "    11 %   1.00 µs  │ ├ read → vfs_read  cpu.kernel",
                "   3.3 %    300 ns  │ └ fsync → ext4_sync_file  disk",
                "   7.8 %    700 ns  └ [no stack]  runq 71 %, disk 29 %",
            ],
            "{printed}"
        );
        assert!(
            lines[13].starts_with("coverage: 9.00 µs of 10.0 µs"),
            "{printed}"
        );
        assert!(!printed.contains('\x1b'));
    }

    #[test]
    fn paths_under_a_hundredth_are_summed_and_counted() {
        let mut report = report();
        let classes = &mut report.processes[0].ledger.process.classes;
        classes.insert("cpu.user".into(), 200_000);
        classes.insert("lock".into(), 1_500);
        let mut stacks = Stacks::new(shown(Mode::Wall, true));
        stacks.window(report);
        let printed = text(&stacks).print(false);
        assert!(
            printed.contains("    └ … 3 more, each under 1 %  cpu.kernel "),
            "{printed}"
        );
        assert!(!printed.contains("fsync"), "{printed}");
    }

    #[test]
    fn a_long_chain_shows_its_ends_and_own_code_and_counts_the_others() {
        let chain = |marked: &str| {
            let names: Vec<(&str, bool)> = marked
                .split(' ')
                .map(|name| (name.trim_start_matches('*'), name.starts_with('*')))
                .collect();
            folded(&names)
        };
        assert_eq!(chain("a"), "a");
        assert_eq!(chain("a b c"), "a → b → c");
        assert_eq!(
            chain("start r r r *main *load r *parse *read k k k end"),
            "start → … 4 … → load → r → parse → read → … 3 … → end"
        );
    }

    #[test]
    fn a_long_name_is_shown_without_its_parameters() {
        for (name, want) in [
            ("short<T>", "short<T>"),
            (
                "<alloc::boxed::Box<dyn core::ops::FnOnce<(), Output = ()> + Send> as core::ops::FnOnce<()>>::call_once",
                "<…>::call_once",
            ),
            (
                "std::map<int, std::string>::operator[](int const&, fn() -> long)",
                "std::map<…>::operator[](…)",
            ),
            (
                "call_once<perf_agent::demo::run::{closure_env#1}, core::result::Result<(), E>>",
                "call_once<…>",
            ),
        ] {
            assert_eq!(short(name), want);
        }
    }

    #[test]
    fn nothing_to_show_is_said() {
        let printed = text(&Stacks::new(shown(Mode::Cpu, false))).print(false);
        assert!(
            printed.starts_with("nobody: no CPU time to show\n"),
            "{printed}"
        );
    }
}
