//! The line of an instruction, from a code object's table.

use super::LineFormat;

/// The line of code unit `unit`; `None` where it is of none, or the table does not reach so far.
pub fn line(format: LineFormat, table: &[u8], first_line: i32, unit: u32) -> Option<i32> {
    match format {
        LineFormat::Deltas => deltas(table, first_line, unit),
        LineFormat::Ranges => ranges(table, first_line, unit),
        LineFormat::Locations => locations(table, first_line, unit),
    }
}

/// Pairs of how many bytes of code and how many lines further (`Objects/lnotab_notes.txt`).
fn deltas(table: &[u8], first_line: i32, unit: u32) -> Option<i32> {
    let (mut at, mut line) = (0u32, first_line);
    for pair in table.chunks_exact(2) {
        at = at.saturating_add(pair[0].into());
        if at > unit.saturating_mul(2) {
            break;
        }
        line = line.saturating_add((pair[1] as i8).into());
    }
    Some(line)
}

/// Pairs of a range's length in bytes and the lines it begins further on; -128 is a range without.
fn ranges(table: &[u8], first_line: i32, unit: u32) -> Option<i32> {
    let (mut end, mut line) = (0u32, first_line);
    for pair in table.chunks_exact(2) {
        end = end.saturating_add(pair[0].into());
        let here = match pair[1] as i8 {
            i8::MIN => None,
            delta => {
                line = line.saturating_add(delta.into());
                Some(line)
            }
        };
        if end > unit.saturating_mul(2) {
            return here;
        }
    }
    None
}

/// Entries of a byte (its highest bit set, four bits of kind, three of length in code units less one)
/// and what belongs to the kind (`Objects/locations.md`).
fn locations(table: &[u8], first_line: i32, unit: u32) -> Option<i32> {
    let (mut end, mut line) = (0u32, first_line);
    let mut rest = table;
    while let Some((first, after)) = rest.split_first() {
        let length = after.iter().take_while(|byte| **byte & 0x80 == 0).count();
        let (operands, next) = after.split_at(length);
        rest = next;
        let kind = (first >> 3) & 15;
        let here = match kind {
            15 => None,
            13 | 14 => {
                line = line.saturating_add(signed(operands));
                Some(line)
            }
            10..=12 => {
                line = line.saturating_add(i32::from(kind) - 10);
                Some(line)
            }
            _ => Some(line),
        };
        end = end.saturating_add(u32::from(first & 7) + 1);
        if end > unit {
            return here;
        }
    }
    None
}

/// A number in groups of six bits, the least first, its sign in the lowest bit.
fn signed(bytes: &[u8]) -> i32 {
    let mut value = 0u32;
    for (i, byte) in bytes.iter().take(5).enumerate() {
        value |= u32::from(byte & 63) << (6 * i);
        if byte & 64 == 0 {
            break;
        }
    }
    let magnitude = (value >> 1) as i32;
    if value & 1 != 0 {
        -magnitude
    } else {
        magnitude
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lines by code unit, written as `first unit-line` of each run.
    fn lines(format: LineFormat, table: &[u8], first: i32, units: u32) -> Vec<Option<i32>> {
        (0..units)
            .map(|unit| line(format, table, first, unit))
            .collect()
    }

    include!("lines_samples.rs");

    #[test]
    fn tables_of_each_version_say_what_the_interpreter_says_of_them() {
        for sample in SAMPLES {
            let said: Vec<Option<i32>> = sample
                .lines
                .iter()
                .flat_map(|(units, line)| std::iter::repeat_n(*line, *units))
                .collect();
            let read = lines(
                sample.format,
                sample.table,
                sample.first_line,
                said.len() as u32,
            );
            assert_eq!(read, said, "{}", sample.version);
        }
    }

    #[test]
    fn past_its_end_a_table_says_nothing() {
        assert_eq!(line(LineFormat::Locations, &[0x80, 0], 7, 1), None);
        assert_eq!(line(LineFormat::Ranges, &[2, 1], 7, 1), None);
        assert_eq!(line(LineFormat::Locations, &[], 7, 0), None);
    }

    proptest! {
        #[test]
        fn no_table_makes_the_reader_panic(
            table in proptest::collection::vec(any::<u8>(), 0..300), first: i32, unit: u32
        ) {
            for format in [LineFormat::Deltas, LineFormat::Ranges, LineFormat::Locations] {
                let _ = line(format, &table, first, unit);
            }
        }
    }
}
