//! Folded stacks: `process;[class];function;... nanoseconds`, a line a stack, as flamegraph.pl,
//! inferno, speedscope and others read them. The second part is the ledger's class, so sums by it
//! are the ledger. Functions of the kernel end with `_[k]`, inlined ones with `_[i]`
//! (stackcollapse-perf's marks).

use std::{collections::BTreeMap, io};

use super::stacks::{Frame, Stacks};

/// What stands where there is no stack.
pub const NO_STACK: &str = "[no stack]";

/// One line a stack, sorted.
///
/// # Errors
/// None.
pub fn write(stacks: &Stacks) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for ((process, class, functions), ns) in lines(stacks) {
        let line = format!("{process};[{class}];{} {ns}\n", functions.join(";"));
        out.extend(line.bytes());
    }
    Ok(out)
}

/// Name of the process, class and functions of every stack, outermost first.
pub type Line<'a> = (String, &'a str, Vec<String>);

/// Time by line; never 0.
pub fn lines(stacks: &Stacks) -> BTreeMap<Line<'_>, u64> {
    let mut lines = BTreeMap::new();
    for (place, amount) in stacks.in_order() {
        if amount.weight == 0 {
            continue;
        }
        let process = &stacks.processes[place.process as usize];
        let mut functions: Vec<String> = place
            .stack
            .iter()
            .map(|id| function(&stacks.frames[*id as usize]))
            .collect();
        if functions.is_empty() {
            functions.push(NO_STACK.to_owned());
        }
        let line = (part(&process.comm), place.class.as_str(), functions);
        *lines.entry(line).or_default() += amount.weight;
    }
    lines
}

fn function(frame: &Frame) -> String {
    let mark = match (frame.kernel, frame.frame.inlined) {
        (true, _) => "_[k]",
        (false, true) => "_[i]",
        (false, false) => "",
    };
    format!("{}{mark}", part(&frame.frame.name))
}

/// A name that reads as one part of one line: `;` and the end of a line separate, and digits after
/// a space at the end are a number.
fn part(name: &str) -> String {
    let mut part: String = name
        .chars()
        .map(|c| match c {
            ';' => ':',
            c if c.is_control() => '?',
            c => c,
        })
        .collect();
    if let Some((_, last)) = part.rsplit_once(' ')
        && last.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    {
        let at = part.len() - last.len() - 1;
        part.replace_range(at..=at, "_");
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::Mode,
        profile::fixtures::{shown, stacks},
    };

    #[test]
    fn a_line_is_process_class_functions_and_nanoseconds() {
        let text = String::from_utf8(write(&stacks(shown(Mode::Wall, false))).unwrap()).unwrap();
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "app;[cpu.kernel];main;read;vfs_read_[k] 1000",
                "app;[cpu.user];main;app::work;app::hash_[i] 3000",
                "app;[cpu.user];main;libx.so+0x12:_3 1000",
                "app;[disk];[no stack] 200",
                "app;[disk];main;fsync;ext4_sync_file_[k] 300",
                "app;[lock];main;app::work;app::update;futex_wait_[k] 3000",
                "app;[runq];[no stack] 500",
            ]
        );
    }

    #[test]
    fn no_name_can_pass_for_two_parts_or_for_a_number() {
        for (name, want) in [
            ("<[u8; 4] as T>::f", "<[u8: 4] as T>::f"),
            ("two\nlines\x1b[31m", "two?lines?[31m"),
            ("operator 12", "operator_12"),
            ("", ""),
            ("f(int, char)", "f(int, char)"),
        ] {
            assert_eq!(part(name), want);
        }
    }
}
