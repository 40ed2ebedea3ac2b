//! What the decoders of all connections give in a window.

use super::{
    Output, Transaction,
    conversation::Conversation,
    statements::{Key, Statements},
};
use crate::drain::TrafficFact;

/// See the module.
#[derive(Default)]
pub struct Gathered {
    pub statements: Statements,
    pub traffic: TrafficFact,
}

impl Gathered {
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
