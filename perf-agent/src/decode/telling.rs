//! What the kernel side is told of connections whose client the target is: the ledger class of their
//! protocol, and whether an answer is still on its way. With that it can tell a wait for the rest of an
//! answer from one for nothing.

use perf_ebpf_common::signals::sockets::Told;

use super::{connections::class_of, conversation::Conversation};

/// Of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Telling {
    told: Option<Told>,
    /// It is among those that are looked at.
    pub looked_at: bool,
}

impl Telling {
    /// What is to be told now, if anything, and whether the connection has to be looked at again. `before_ns` is
    /// the time of the look before: where a request was sent since, the connection is busy, and that nothing
    /// is in flight would be over when the kernel side reads it.
    pub fn look(&mut self, conversation: &Conversation, before_ns: u64) -> (Option<Told>, bool) {
        let Some(protocol) = conversation.protocol() else {
            return (None, false);
        };
        let now = Told {
            at_ns: conversation.last_ns,
            class: class_of(protocol),
            in_flight: conversation.is_awaited().into(),
            pad: [0; 6],
        };
        let known = self.told.filter(|told| told.class == now.class);
        let answering = now.in_flight != 0 && now.at_ns > conversation.requested_ns;
        if known.is_some() && conversation.requested_ns >= before_ns && !answering {
            return (None, true);
        }
        let holds = known.is_some_and(|told| {
            told.in_flight == now.in_flight && told.at_ns >= conversation.requested_ns
        });
        // Where more is to come, only what was said of the last piece counts.
        if holds && (now.in_flight == 0 || known == Some(now)) {
            return (None, false);
        }
        self.told = Some(now);
        (Some(now), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Joined, Options, Output, conversation::Captured};
    use perf_ebpf_common::class;

    const MS: u64 = 1_000_000;
    const GET: &[u8] = b"GET /a HTTP/1.1\r\n\r\n";
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
    const EVENTS: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream;charset=utf-8\r\nContent-Length: 9\r\n\r\n";

    /// A client's connection, looked at every 100 ms.
    struct Client {
        conversation: Conversation,
        telling: Telling,
        positions: [u64; 2],
        output: Output,
    }

    impl Client {
        fn new() -> Client {
            Client {
                conversation: Conversation::new(true, Joined::AtStart),
                telling: Telling::default(),
                positions: [0; 2],
                output: Output::new(Options::default()),
            }
        }

        fn passes(&mut self, sent: bool, at_ms: u64, bytes: &[u8]) {
            let way = usize::from(sent);
            let piece = Captured {
                sent,
                at_ns: at_ms * MS,
                tid: 1,
                position: self.positions[way],
                other_position: self.positions[1 - way],
                bytes: bytes.len() as u64,
                head: bytes,
                tail: &[],
            };
            self.positions[way] += bytes.len() as u64;
            self.conversation.take(&piece, &mut self.output);
        }

        /// Time and whether something is in flight, where it is told at a look; whether it is looked at again.
        fn look(&mut self, at_ms: u64) -> (Option<(u64, bool)>, bool) {
            let before_ns = (at_ms - 100) * MS;
            let (told, again) = self.telling.look(&self.conversation, before_ns);
            let told = told.inspect(|told| assert_eq!(told.class, class::NET_HTTP));
            (told.map(|t| (t.at_ns / MS, t.in_flight != 0)), again)
        }
    }

    #[test]
    fn the_protocol_is_told_at_once_and_what_is_in_flight_when_it_is_quiet() {
        let mut client = Client::new();
        assert_eq!(client.look(100), (None, false), "nothing is known");
        client.passes(true, 110, GET);
        client.passes(false, 120, HEAD);
        client.passes(false, 121, b"body");
        assert_eq!(client.look(200), (Some((121, false)), false));
        client.passes(true, 210, GET);
        assert_eq!(client.look(300), (None, true), "busy");
        client.passes(false, 310, HEAD);
        client.passes(false, 311, b"body");
        assert_eq!(client.look(400), (Some((311, false)), false));
        assert_eq!(client.look(500), (None, false), "it is told");
    }

    #[test]
    fn an_answer_under_way_is_told_with_each_part_and_its_end_once() {
        let mut client = Client::new();
        client.passes(true, 10, GET);
        client.passes(false, 20, HEAD);
        assert_eq!(client.look(100), (Some((20, true)), false));
        client.passes(false, 150, b"bo");
        assert_eq!(client.look(200), (Some((150, true)), false));
        assert_eq!(client.look(300), (None, false), "it is told");
        client.passes(false, 350, b"dy");
        assert_eq!(client.look(400), (Some((350, false)), false));
        // One that began since the look before: what comes of it is told at once.
        client.passes(true, 410, GET);
        client.passes(false, 420, HEAD);
        assert_eq!(client.look(500), (Some((420, true)), false));
    }

    #[test]
    fn events_are_not_waited_for() {
        let mut client = Client::new();
        client.passes(true, 10, GET);
        client.passes(false, 20, EVENTS);
        assert_eq!(client.look(100), (Some((20, false)), false));
        client.passes(false, 150, b"data:");
        assert_eq!(client.look(200), (None, false));
        assert_eq!(client.conversation.in_flight(), 1);
        client.passes(false, 250, b"1\n\n\n");
        client.passes(true, 260, GET);
        client.passes(false, 270, HEAD);
        assert_eq!(client.look(500), (Some((270, true)), false));
    }
}
