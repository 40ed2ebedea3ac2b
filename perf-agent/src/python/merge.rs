//! Puts the interpreter's frames into the native stack.
//!
//! Each frame of the interpreter's loop on the native stack stands for the frames that it ran, which
//! end where the next call of the loop began.

use perf_ebpf_common::signals::python::parts;

use crate::drain::FrameFact;

/// A native frame, with the functions inlined there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Native {
    pub frames: Vec<FrameFact>,
    /// Whether it is the interpreter's loop.
    pub is_loop: bool,
}

/// A frame of the interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PythonFrame {
    /// Address of its code object.
    pub code: u64,
    /// Code unit under way.
    pub unit: u32,
    /// See `perf_ebpf_common::signals::python::code_print`.
    pub print: u64,
}

/// What each call of the loop runs, the innermost first. The last is not known to be whole where the
/// walk was cut short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub calls: Vec<Vec<PythonFrame>>,
    pub whole: bool,
}

/// Reads the words of a stack record, each with its print.
pub fn calls(words: &[(u64, u64)]) -> Calls {
    let mut calls = Vec::new();
    let mut open = Vec::new();
    let mut ended = true;
    for (word, print) in words {
        let (code, unit, is_entry) = parts(*word);
        if code != 0 {
            open.push(PythonFrame {
                code,
                unit: unit as u32,
                print: *print,
            });
        }
        ended = is_entry;
        if is_entry {
            calls.push(std::mem::take(&mut open));
        }
    }
    if !ended {
        calls.push(open);
    }
    Calls {
        calls,
        whole: ended,
    }
}

/// The merged stack, innermost first, and whether both agreed on how often the loop was called.
///
/// Where they do not, they are matched from the outermost on: a call that is about to begin or to end
/// is the innermost, and has no frame yet or no more. `from_outermost` is false where one of them was
/// cut short there.
pub fn merge(
    native: Vec<Native>,
    mut python: Vec<Vec<FrameFact>>,
    from_outermost: bool,
) -> (Vec<FrameFact>, bool) {
    let loops = native.iter().filter(|frame| frame.is_loop).count();
    let agreed = loops == python.len();
    let mut merged = Vec::new();
    // Calls and loops without a counterpart at the inner end.
    let mut passed_over = 0;
    if from_outermost && loops > python.len() {
        passed_over = loops - python.len();
    }
    let extra = match from_outermost {
        true => python.len().saturating_sub(loops),
        false => 0,
    };
    let mut first: Vec<FrameFact> = python.drain(..extra).flatten().collect();
    let mut python = python.into_iter();
    for frame in native {
        if !frame.is_loop {
            merged.extend(frame.frames);
            continue;
        }
        merged.append(&mut first);
        if passed_over > 0 {
            passed_over -= 1;
            merged.extend(frame.frames);
            continue;
        }
        match python.next() {
            Some(run) if !run.is_empty() => merged.extend(run),
            _ => merged.extend(frame.frames),
        }
    }
    merged.extend(first);
    merged.extend(python.flatten());
    (merged, agreed)
}

#[cfg(test)]
mod tests {
    use perf_ebpf_common::signals::python::{ENTRY, word};

    use super::*;

    fn frame(name: &str) -> FrameFact {
        FrameFact {
            name: name.to_owned(),
            ..FrameFact::default()
        }
    }

    /// Names of a native stack, in which `eval` is the loop.
    fn native(names: &str) -> Vec<Native> {
        let native = |name: &str| Native {
            frames: vec![frame(name)],
            is_loop: name == "eval",
        };
        names.split(' ').map(native).collect()
    }

    /// Calls, parted by `|`.
    fn python(names: &str) -> Vec<Vec<FrameFact>> {
        let run = |run: &str| run.split_whitespace().map(frame).collect();
        names.split('|').map(run).collect()
    }

    fn merged(stack: &str, frames: &str, from_outermost: bool) -> (String, bool) {
        let (merged, agreed) = merge(native(stack), python(frames), from_outermost);
        let names: Vec<String> = merged.into_iter().map(|f| f.name).collect();
        (names.join(" "), agreed)
    }

    #[test]
    fn each_call_of_the_loop_becomes_the_frames_it_ran() {
        assert_eq!(
            merged("read eval sort eval main", "key | c b a", true),
            ("read key sort c b a main".to_owned(), true)
        );
    }

    #[test]
    fn a_call_that_has_no_frame_yet_is_the_innermost() {
        assert_eq!(
            merged("eval vector eval main", "b a", true),
            ("eval vector b a main".to_owned(), false)
        );
        assert_eq!(
            merged("free eval call eval main", "|b a", true),
            ("free eval call b a main".to_owned(), true)
        );
    }

    #[test]
    fn a_frame_whose_loop_is_not_seen_is_next_to_its_caller() {
        assert_eq!(
            merged("cold vector eval main", "c | b a", true),
            ("cold vector c b a main".to_owned(), false)
        );
    }

    #[test]
    fn where_the_outer_end_is_missing_both_are_matched_from_the_inner_one() {
        assert_eq!(
            merged("read eval sort", "key | c b a", false),
            ("read key sort c b a".to_owned(), false)
        );
        assert_eq!(
            merged("eval sort eval main", "key", false),
            ("key sort eval main".to_owned(), false)
        );
    }

    #[test]
    fn words_end_a_call_at_its_entry_and_at_a_frame_without_code() {
        let read = |words: &[u64]| {
            let words: Vec<(u64, u64)> = words.iter().map(|word| (*word, 7)).collect();
            let read = calls(&words);
            let pairs = |run: &Vec<PythonFrame>| run.iter().map(|f| (f.code, f.unit)).collect();
            let runs: Vec<Vec<(u64, u32)>> = read.calls.iter().map(pairs).collect();
            (runs, read.whole)
        };
        let marked = [
            word(0x10, 1, false),
            word(0x20, 2, true),
            word(0x30, 3, true),
        ];
        let runs = vec![vec![(0x10, 1), (0x20, 2)], vec![(0x30, 3)]];
        assert_eq!(read(&marked), (runs, true));
        let shims = [
            word(0x10, 1, false),
            ENTRY,
            ENTRY,
            word(0x20, 2, false),
            ENTRY,
        ];
        let runs = vec![vec![(0x10, 1)], vec![], vec![(0x20, 2)]];
        assert_eq!(read(&shims), (runs.clone(), true));
        assert_eq!(read(&shims[..4]), (runs, false));
        assert_eq!(read(&[]), (vec![], true));
    }
}
