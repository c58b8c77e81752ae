//! One message in, at most one message out: the part of both transports that is the same. Transfers alone are handed back, because they
//! are many messages.

use std::{net::IpAddr, sync::Arc};

use crate::{
    answer::{self, Answered, Asked},
    counters::{Counters, Outcome, Transport, add},
    message::{self, HEADER, KIND_AXFR, KIND_IXFR, OPCODE_NOTIFY, OPCODE_QUERY, Query, Tsig, Unreadable},
    settings::Policy,
    strangers::Strangers,
    tsig::{self, Bad, Signed},
    zone::{Past, Zone, is_later},
    zones::Zones,
};

/// What a message is looked at with.
pub(crate) struct Context<'a> {
    pub(crate) zones: &'a Zones,
    pub(crate) policy: &'a Policy,
    pub(crate) counters: &'a Counters,
    pub(crate) strangers: &'a Strangers,
    pub(crate) client: IpAddr,
    pub(crate) transport: Transport,
    /// Bytes of an answer over UDP at most.
    pub(crate) datagram_bytes: usize,
    /// Seconds since the epoch.
    pub(crate) now_s: u64,
}

/// What becomes of a question.
pub(crate) enum Handled {
    /// The buffer holds this answer to it.
    Answer(Answered),
    /// It asks for a zone, and may have it.
    Transfer(Box<Transfer>),
}

/// Who may have a zone, and how it is asked for.
pub(crate) struct Transfer {
    pub(crate) zone: Zone,
    pub(crate) head: message::Head,
    pub(crate) question: Vec<u8>,
    /// The serial since which differences are wanted; none: the whole zone.
    pub(crate) since: Option<u32>,
    pub(crate) signed: Option<Signed>,
}

impl Context<'_> {
    /// Handles a question, of which `message` is the whole; an answer is written into `buffer`.
    pub(crate) fn handle(&self, query: &Query<'_>, message: &[u8], buffer: &mut [u8]) -> Handled {
        let handled = match &query.tsig {
            None => self.handle_query(query, None, buffer),
            Some(tsig) => match tsig::verify(message, tsig, &self.policy.keys, self.now_s) {
                Ok(signed) => self.handle_query(query, Some(signed), buffer),
                Err(bad) => Err(self.not_authentic(query, tsig, bad, buffer)),
            },
        };
        match handled {
            Ok(transfer) => Handled::Transfer(Box::new(transfer)),
            Err(answered) => {
                self.counters.answered(self.transport, Some(query.kind), answered.outcome);
                if answered.truncated {
                    add(&self.counters.truncated);
                }
                Handled::Answer(answered)
            }
        }
    }

    /// Handles what is no question: it is not answered, or is told that it is malformed.
    pub(crate) fn refuse(&self, unreadable: Unreadable, buffer: &mut [u8]) -> Option<Answered> {
        let Unreadable::Malformed(head) = unreadable else {
            add(&self.counters.dropped);
            return None;
        };
        let outcome = Outcome::Malformed;
        self.counters.answered(self.transport, None, outcome);
        let room = buffer.len().max(HEADER);
        let len = crate::write::Writer::new(buffer, room, 0, head, &[], None).finish(outcome);
        Some(Answered { len, outcome, truncated: false, by_star: false })
    }

    pub(crate) fn asked(&self, reserved: usize) -> Asked<'_> {
        Asked {
            zones: self.zones,
            client: self.client,
            transport: self.transport,
            datagram_bytes: self.datagram_bytes,
            reserved,
        }
    }

    /// A transfer that may go on, or else the answer.
    fn handle_query(&self, query: &Query<'_>, signed: Option<Signed>, buffer: &mut [u8]) -> Result<Transfer, Answered> {
        let asked = self.asked(signed.as_ref().map_or(0, Signed::reserved));
        let answered = match query.head.opcode {
            OPCODE_QUERY if matches!(query.kind, KIND_AXFR | KIND_IXFR) => {
                match self.transfer(query, signed.as_ref()) {
                    Ok(zone) => {
                        let since = query.serial.filter(|_| query.kind == KIND_IXFR);
                        let question = query.question.to_vec();
                        return Ok(Transfer { zone, head: query.head, question, since, signed });
                    }
                    // Over UDP a secondary gets the serial, and comes again over TCP if it is new.
                    Err(None) => answer::serial(asked, query, buffer),
                    Err(Some(outcome)) => answer::short(asked, query, outcome, buffer),
                }
            }
            OPCODE_QUERY => answer::answer(asked, query, buffer),
            OPCODE_NOTIFY => {
                add(&self.counters.notify_received);
                answer::short(asked, query, Outcome::Refused, buffer)
            }
            _ => answer::short(asked, query, Outcome::NotImplemented, buffer),
        };
        Err(match signed {
            None => answered,
            Some(mut signed) => Answered { len: signed.sign_first(buffer, answered.len, self.now_s), ..answered },
        })
    }

    /// The zone that is asked for, if it may be had over this transport; none with `None`: its serial alone.
    fn transfer(&self, query: &Query<'_>, signed: Option<&Signed>) -> Result<Zone, Option<Outcome>> {
        let is_malformed = query.has_answers
            || (query.kind == KIND_AXFR && self.transport == Transport::Udp)
            || (query.kind == KIND_IXFR && query.serial.is_none());
        if is_malformed {
            return Err(Some(Outcome::Malformed));
        }
        if !self.may_transfer(signed) {
            add(&self.counters.transfers_refused);
            self.strangers.note(self.client, query.name.as_wire());
            return Err(Some(Outcome::Refused));
        }
        let zone = self.zones.find(query.name.as_wire(), self.client);
        let zone =
            zone.filter(|zone| zone.apex().as_wire() == query.name.as_wire() && query.class == message::CLASS_IN);
        match (zone, self.transport) {
            (None, _) => Err(Some(Outcome::NotAuthentic)),
            (Some(_), Transport::Udp) => Err(None),
            (Some(zone), Transport::Tcp) => Ok(zone.clone()),
        }
    }

    fn may_transfer(&self, signed: Option<&Signed>) -> bool {
        self.policy.transfers.iter().any(|rule| {
            rule.network.contains(&self.client)
                && rule.key.as_ref().is_none_or(|key| signed.is_some_and(|signed| signed.key() == key))
        })
    }

    fn not_authentic(&self, query: &Query<'_>, tsig: &Tsig<'_>, bad: Bad, buffer: &mut [u8]) -> Answered {
        if matches!(query.kind, KIND_AXFR | KIND_IXFR) {
            add(&self.counters.transfers_refused);
            self.strangers.note(self.client, query.name.as_wire());
        }
        let asked = self.asked(bad.reserved(tsig));
        let answered = answer::short(asked, query, Outcome::NotAuthentic, buffer);
        Answered { len: bad.append(tsig, buffer, answered.len, self.now_s), ..answered }
    }
}

impl Transfer {
    /// The differences that were asked for, when they are known, wanted, and shorter than the zone. `Some` without any: nothing is new.
    pub(crate) fn differences(&self) -> Option<Vec<Arc<Past>>> {
        let since = self.since?;
        if !is_later(self.zone.serial(), since) {
            return Some(Vec::new());
        }
        let differences: Vec<_> = self.zone.past(since)?.cloned().collect();
        let changes: usize = differences.iter().map(|past| past.difference.changes.len()).sum();
        // Of a signed zone the signatures of its own record are wanted too.
        let is_whole = !self.zone.is_signed() || differences.iter().all(|past| past.own.is_some());
        (is_whole && changes <= self.zone.name_count()).then_some(differences)
    }
}

/// What a server says to a datagram, if anything: the same code, without a socket and without the limit on equal answers.
pub fn reply(zones: &Zones, policy: &Policy, client: IpAddr, now_s: u64, message: &[u8]) -> Option<Vec<u8>> {
    let (counters, strangers) = (Counters::default(), Strangers::default());
    let datagram_bytes = crate::settings::Limits::default().datagram_bytes;
    let (counters, strangers, transport) = (&counters, &strangers, Transport::Udp);
    let context = Context { zones, policy, counters, strangers, client, transport, datagram_bytes, now_s };
    let mut buffer = vec![0; datagram_bytes + crate::udp::ROOM_BYTES];
    let answered = match message::read(message) {
        Err(unreadable) => context.refuse(unreadable, &mut buffer)?,
        Ok(query) => match context.handle(&query, message, &mut buffer) {
            Handled::Answer(answered) => answered,
            Handled::Transfer(_) => return None,
        },
    };
    buffer.truncate(answered.len);
    Some(buffer)
}
