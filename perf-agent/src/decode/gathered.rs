//! What the decoders of all connections give in a window.

use super::{
    Output, Transaction,
    conversation::Conversation,
    requests::{Piece, Requests, Serving},
    statements::{Key, Statements},
};
use crate::drain::TrafficFact;

/// See the module.
#[derive(Default)]
pub struct Gathered {
    pub statements: Statements,
    pub requests: Requests,
    pub traffic: TrafficFact,
}

impl Gathered {
    /// Tells the requests of a piece that a conversation took, before [`Gathered::take`].
    pub fn passed(
        &mut self,
        conversation: &mut Conversation,
        serving: &mut Serving,
        (mut piece, peer): (Piece, u32),
        output: &Output,
    ) {
        let protocol = conversation.protocol();
        let exchanges = &output.exchanges;
        if conversation.is_client() {
            if let (Some(protocol), false) = (protocol, exchanges.is_empty()) {
                let (thread, alone) = ((piece.tid, piece.tgid), conversation.is_one_threads());
                let peer = (protocol, peer);
                self.requests.called(thread, alone, peer, exchanges);
            }
            return;
        }
        piece.in_flight = match protocol {
            Some(_) => conversation.is_in_flight(),
            None => !piece.sent,
        };
        piece.asks_nothing = !piece.sent && !piece.in_flight && conversation.is_at_boundary();
        self.requests.served(serving, &piece, protocol, exchanges);
    }

    /// Takes what the decoder of a connection just gave; process and peer are its statements'.
    pub fn take(
        &mut self,
        conversation: Option<&mut Conversation>,
        (tgid, peer): (u32, u32),
        output: &mut Output,
    ) {
        for (what, n) in output.anomalies.drain(..) {
            let anomalies = &mut self.traffic.anomalies;
            *anomalies.entry(what.name().to_owned()).or_default() += n;
        }
        let Some(conversation) = conversation else {
            return;
        };
        if let Some((at_ns, state)) = output.transactions.last() {
            conversation.idle_in_transaction_since_ns =
                (*state != Transaction::Idle).then_some(*at_ns);
            output.transactions.clear();
        }
        if output.exchanges.is_empty() {
            return;
        }
        if let Some(protocol) = conversation.protocol() {
            let client = conversation.is_client();
            let key = |text| Key {
                tgid,
                protocol,
                client,
                peer,
                text,
            };
            self.statements.add(conversation, key, &output.exchanges);
        }
        output.exchanges.clear();
    }
}
