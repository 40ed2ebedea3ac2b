//! What is read without the lexer is what is read with it: streams in random pieces against the same
//! streams byte by byte, of which no piece holds a whole command or reply.

use proptest::prelude::*;

use super::{super::Options, *};

/// Items and the order they come in; one byte of them set to another value, where there is one; and
/// where the pieces end.
type Stream = (Vec<u8>, Vec<usize>);

fn stream(items: Vec<Vec<u8>>) -> impl Strategy<Value = Stream> {
    let damage = proptest::option::weighted(0.5, (any::<prop::sample::Index>(), any::<u8>()));
    (undamaged(items), damage).prop_map(|((mut bytes, cuts), damage)| {
        if let Some((at, value)) = damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        (bytes, cuts)
    })
}

fn undamaged(items: Vec<Vec<u8>>) -> impl Strategy<Value = Stream> {
    let items = proptest::collection::vec(proptest::sample::select(items), 1..12);
    let cuts = proptest::collection::vec(any::<prop::sample::Index>(), 0..4);
    (items, cuts).prop_map(|(items, cuts)| {
        let bytes = items.concat();
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
        "*2\r\n$3\r\nGET\r\n$14\r\nbasket:17:item\r\n",
        "*3\r\n$6\r\nEXISTS\r\n$6\r\nuser:1\r\n$7\r\nuser:12\r\n",
        "*2\r\n$4\r\nTYPE\r\n$14\r\nbasket:17:item\r\n",
        "*2\r\n$19\r\nALONGNAMEOFACOMMAND\r\n$14\r\nbasket:17:item\r\n",
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

/// Without those that are malformed: where a decoder goes on behind them is a matter of pieces.
fn sound(items: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let bare = |item: &Vec<u8>| {
        item.windows(2)
            .any(|two| two[0] != b'\r' && two[1] == b'\n')
    };
    items.into_iter().filter(|item| !bare(item)).collect()
}

/// What a decoder makes of commands and then answers.
fn decoded<'a>(
    commands: impl Iterator<Item = &'a [u8]>,
    answers: impl Iterator<Item = &'a [u8]>,
) -> Vec<String> {
    let (mut redis, mut output) = (
        Redis::new(Joined::AtStart),
        Output::new(Options { raw: true }),
    );
    commands.for_each(|piece| redis.bytes(Direction::Request, 1, piece, &mut output));
    answers.for_each(|piece| redis.bytes(Direction::Response, 2, piece, &mut output));
    redis.end(&mut output);
    let exchanges = std::mem::take(&mut output.exchanges);
    let exchanges = exchanges.iter();
    let mut lines: Vec<String> = exchanges
        .map(|e| {
            let error = e.error.map(|error| output.text_of(error));
            format!("{} {error:?} {e:?}", output.text_of(e.text))
        })
        .collect();
    lines.push(format!("{:?} {:?}", output.anomalies, output.decoded));
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50_000))]
    #[test]
    fn what_is_decoded_of_any_pieces_is_what_is_decoded_byte_by_byte(
        commands in undamaged(sound(commands())), answers in undamaged(sound(answers())),
    ) {
        prop_assert_eq!(
            decoded(pieces(&commands), pieces(&answers)),
            decoded(commands.0.chunks(1), answers.0.chunks(1))
        );
    }

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
    let mut requests = Requests::default();
    let pipeline = "*2\r\n$3\r\nGET\r\n$14\r\nbasket:17:item\r\n".repeat(3);
    let mut rest = pipeline.as_bytes();
    assert!(requests.text_again(&mut rest, &mut output).is_none());
    let first = requests.whole(1, &mut rest, &mut output).map(|r| r.text);
    for _ in 0..2 {
        assert_eq!(requests.text_again(&mut rest, &mut output), first);
    }
    assert_eq!(rest, b"");
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
