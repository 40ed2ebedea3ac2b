//! What is read without the lexer is what is read with it: streams in random pieces against the same
//! streams byte by byte, of which no piece holds a whole command or reply.

use proptest::prelude::*;

use super::{super::Options, *};

/// Items and the order they come in; one byte of them set to another value, where there is one; and
/// where the pieces end.
type Stream = (Vec<u8>, Vec<usize>);

fn stream(items: Vec<Vec<u8>>) -> impl Strategy<Value = Stream> {
    let items = proptest::collection::vec(proptest::sample::select(items), 1..12);
    let damage = proptest::option::weighted(0.5, (any::<prop::sample::Index>(), any::<u8>()));
    let cuts = proptest::collection::vec(any::<prop::sample::Index>(), 0..4);
    (items, damage, cuts).prop_map(|(items, damage, cuts)| {
        let mut bytes = items.concat();
        if let Some((at, value)) = damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        (bytes, cuts)
    })
}

fn pieces((bytes, cuts): &Stream) -> impl Iterator<Item = &[u8]> {
    cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]])
}

fn requests<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let (mut requests, mut output) = (Requests::default(), Output::new(Options { raw: true }));
    let mut steps = Vec::new();
    for mut rest in pieces {
        while let Some(step) = requests.next(1, &mut rest, &mut output) {
            match step {
                requests::Step::Malformed => return steps,
                requests::Step::Nothing => steps.push("nothing".to_owned()),
                requests::Step::Request(request) => {
                    steps.push(format!("{} {request:?}", output.text_of(request.text)));
                }
            }
        }
    }
    steps
}

fn replies<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let (mut replies, mut output) = (Replies::default(), Output::new(Options::default()));
    let mut steps = Vec::new();
    for mut rest in pieces {
        loop {
            let facts = match replies.simple(&mut rest) {
                Some(facts) => facts,
                None => match replies.next(1, &mut rest, false, &mut output) {
                    None => break,
                    Some(replies::Step::Reply { facts, .. }) => facts,
                    Some(_) => return steps,
                },
            };
            steps.push(format!("{facts:?}"));
        }
    }
    steps
}

fn commands() -> Vec<Vec<u8>> {
    let long = format!("*2\r\n$3\r\nGET\r\n$300\r\n{}\r\n", "key:".repeat(75));
    let texts = [
        "*2\r\n$3\r\nGET\r\n$6\r\nuser:1\r\n",
        "*2\r\n$3\r\nGET\r\n$6\r\nuser:2\r\n",
        "*2\r\n$3\r\nget\r\n$7\r\nuser:31\r\n",
        "*3\r\n$3\r\nSET\r\n$6\r\nuser:1\r\n$3\r\na\r\n\r\n",
        "*3\r\n$4\r\nEVAL\r\n$1\r\n1\r\n$1\r\nk\r\n",
        "*4\r\n$5\r\nBITOP\r\n$2\r\nOR\r\n$2\r\nk1\r\n$2\r\nk2\r\n",
        "*1\r\n$4\r\nPING\r\n",
        "*1\r\n$3\r\nGET\r\n",
        "*2\r\n$6\r\nCLIENT\r\n$4\r\nLIST\r\n",
        "*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$3\r\nOFF\r\n",
        "*1\r\n$5\r\nMULTI\r\n",
        "*2\r\n$7\r\nFT.INFO\r\n$3\r\nidx\r\n",
        "*2\r\n$6\r\nNOSUCH\r\n$3\r\nGET\r\n",
        "*2\r\n$3\r\nGET\r\n$0\r\n\r\n",
        "*02\r\n$03\r\nGET\r\n$1\r\nk\r\n",
        "*2\n$3\nGET\n$1\nk\r\n",
        "*0\r\n",
        "*-1\r\n",
        "\r\n",
        "PING\r\n",
        "GET user:1\r\n",
        &long,
    ];
    texts.iter().map(|t| t.as_bytes().to_vec()).collect()
}

fn answers() -> Vec<Vec<u8>> {
    let long = format!("$300\r\n{}\r\n", "value:".repeat(50));
    let texts = [
        "+OK\r\n",
        "+\r\n",
        "+OK\n",
        "+QUEUED\r\n",
        "+a status longer than sixteen bytes\r\n",
        "$3\r\nabc\r\n",
        "$0\r\n\r\n",
        "$-1\r\n",
        "$17\r\nabcdefghijklmnopq\r\n",
        "$03\r\nabc\r\n",
        "$3\nabc\r\n",
        ":7\r\n",
        ":-7\r\n",
        ":12345678901\r\n",
        ":+3\r\n",
        "-ERR no\r\n",
        "*2\r\n$1\r\na\r\n:3\r\n",
        "*-1\r\n",
        "_\r\n",
        "#t\r\n",
        "|1\r\n+k\r\n:1\r\n+OK\r\n",
        "$?\r\n;1\r\na\r\n;0\r\n",
        ">2\r\n+a\r\n$1\r\nb\r\n",
        "*?\r\n:1\r\n.\r\n",
        &long,
    ];
    texts.iter().map(|t| t.as_bytes().to_vec()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50_000))]
    #[test]
    fn commands_in_any_pieces_are_those_read_byte_by_byte(stream in stream(commands())) {
        prop_assert_eq!(requests(pieces(&stream)), requests(stream.0.chunks(1)));
    }

    #[test]
    fn replies_in_any_pieces_are_those_read_byte_by_byte(stream in stream(answers())) {
        prop_assert_eq!(replies(pieces(&stream)), replies(stream.0.chunks(1)));
    }
}

#[test]
fn the_short_ways_are_taken() {
    let mut output = Output::new(Options::default());
    let mut rest: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*3";
    let request = Requests::default().whole(1, &mut rest, &mut output);
    assert_eq!((request.map(|r| r.arguments), rest), (Some(1), &b"*3"[..]));
    for (reply, taken) in [
        ("+OK\r\n", true),
        ("$1\r\na\r\n", true),
        ("-ERR\r\n", false),
    ] {
        let mut rest = reply.as_bytes();
        assert_eq!(Replies::default().simple(&mut rest).is_some(), taken);
        assert_eq!(rest.is_empty(), taken, "{reply}");
    }
}
