//! Ring records as plain data.

use perf_ebpf_common::{
    Wire as _,
    signals::{
        RecordHeader,
        ledger::UnixName,
        lifecycle::{Exec, ThreadExited, ThreadStarted},
        record,
        sockets::{ConnectionClosed, ConnectionMet},
        stacks::StackRecord,
        unwind::Missed,
    },
};

/// A record of the event ring.
pub enum Record {
    Started(ThreadStarted),
    Exited(Box<ThreadExited>),
    Exec(Exec),
    /// A stack, its addresses and the interpreter's frames, each with its code's print, innermost
    /// first.
    Stack(StackRecord, Vec<u64>, Vec<(u64, u64)>),
    /// Identity and path (`@` in front of an abstract one).
    UnixName(u64, String),
    Met(Box<ConnectionMet>),
    Closed(Box<ConnectionClosed>),
    UnwindMissed(Missed),
}

/// Reads a record; `None` where its kind is unknown or it is too short for what it says.
pub fn parse(bytes: &[u8]) -> Option<Record> {
    Some(match RecordHeader::from_bytes(bytes)?.kind {
        record::THREAD_STARTED => Record::Started(ThreadStarted::from_bytes(bytes)?),
        record::THREAD_EXITED => Record::Exited(Box::new(ThreadExited::from_bytes(bytes)?)),
        record::EXEC => Record::Exec(Exec::from_bytes(bytes)?),
        record::STACK => {
            let stack = StackRecord::from_bytes(bytes)?;
            let rest = bytes.get(size_of::<StackRecord>()..)?;
            let (native, python) = (usize::from(stack.frames), usize::from(stack.python));
            let words = rest.get(..(native + 2 * python) * 8)?.chunks_exact(8);
            let mut words = words.filter_map(u64::from_bytes);
            let addresses = words.by_ref().take(native).collect();
            let frames: Vec<u64> = words.by_ref().take(python).collect();
            Record::Stack(stack, addresses, frames.into_iter().zip(words).collect())
        }
        record::UNIX_NAME => {
            let name = UnixName::from_bytes(bytes)?;
            let path = name.path.get(..name.len as usize).unwrap_or(&name.path);
            let (mark, path) = match path.split_first() {
                Some((0, rest)) => ("@", rest),
                _ => ("", path),
            };
            let path = path.split(|b| *b == 0).next().unwrap_or_default();
            Record::UnixName(name.id, format!("{mark}{}", String::from_utf8_lossy(path)))
        }
        record::CONNECTION_MET => Record::Met(Box::new(ConnectionMet::from_bytes(bytes)?)),
        record::CONNECTION_CLOSED => Record::Closed(Box::new(ConnectionClosed::from_bytes(bytes)?)),
        record::UNWIND_MISSED => Record::UnwindMissed(Missed::from_bytes(bytes)?),
        _ => return None,
    })
}

/// A kernel `comm`: up to its first NUL.
pub fn comm(bytes: &[u8; 16]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stack_record() -> Vec<u8> {
        let header = RecordHeader {
            kind: record::STACK,
            pad: 0,
            at_ns: 5,
        };
        let mut bytes = StackRecord {
            header,
            id: 9,
            tgid: 3,
            frames: 2,
            python: 1,
            stop: 0,
        }
        .as_bytes()
        .to_vec();
        bytes.extend(10u64.to_ne_bytes());
        bytes.extend(20u64.to_ne_bytes());
        bytes.extend(30u64.to_ne_bytes());
        bytes.extend(40u64.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_stack_comes_with_its_addresses() {
        let Some(Record::Stack(record, addresses, python)) = parse(&stack_record()) else {
            panic!()
        };
        assert_eq!((record.id, record.tgid, addresses), (9, 3, vec![10, 20]));
        assert_eq!(python, [(30, 40)]);
    }

    #[test]
    fn a_stack_that_claims_more_frames_than_it_has_is_refused() {
        let bytes = stack_record();
        assert!(parse(&bytes[..bytes.len() - 1]).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..900), kind in 0u8..9) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if bytes.len() > 3 {
                bytes[1..4].fill(0);
            }
            let _ = parse(&bytes);
        }
    }
}
