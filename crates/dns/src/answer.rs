//! What to say to a question: a function of the question and the zones, written straight into the buffer that is sent.

use std::net::IpAddr;

use crate::{
    counters::{Outcome, Transport},
    message::{self, CLASS_IN, KIND_ANY, Query},
    name,
    rrset::{Kind, Rrset},
    write::{Full, Section, Writer},
    zone::{Node, Zone, upwards},
    zones::Zones,
};

/// Aliases followed in one answer; a resolver follows the rest.
const ALIASES_MAX: usize = 8;
/// Bytes of an answer over UDP to a client that says nothing about larger ones.
const DATAGRAM_BYTES_MIN: usize = 512;
/// Questions about several zones, or about a message: nobody asks them of a zone.
const KINDS_NOT_ASKED: std::ops::RangeInclusive<u16> = 249..=254;

/// Where a question came from and how long its answer may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) zones: &'a Zones,
    pub(crate) client: IpAddr,
    pub(crate) transport: Transport,
    /// Bytes of an answer over UDP at most.
    pub(crate) datagram_bytes: usize,
    /// Bytes to keep for a signature.
    pub(crate) reserved: usize,
}

/// An answer that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) len: usize,
    pub(crate) outcome: Outcome,
    pub(crate) truncated: bool,
    /// The name is not there itself: one that stands for many was asked for it.
    pub(crate) by_star: bool,
}

/// What a set of records is said about.
struct Lookup<'a, 'w, 'b> {
    zone: &'a Zone,
    kind: Kind,
    signed: bool,
    turn: u16,
    /// Names that were answered for by one that stands for many, where it has to be shown that they are not there.
    made: Vec<Vec<u8>>,
    /// Whether any name was.
    by_star: bool,
    writer: &'w mut Writer<'b>,
}

/// Writes the answer to a question that is neither a transfer nor of another opcode.
pub(crate) fn answer(asked: Asked<'_>, query: &Query<'_>, buffer: &mut [u8]) -> Answered {
    let limit = limit(asked, query, buffer.len());
    let mut writer = Writer::new(buffer, limit, asked.reserved, query.head, query.question, query.edns);
    let (outcome, by_star) = match refusal(query) {
        Some(outcome) => (outcome, false),
        None => match asked.zones.find(query.name.as_wire(), asked.client) {
            None => (Outcome::Refused, false),
            Some(zone) => from_zone(zone, query, &mut writer),
        },
    };
    let truncated = writer.is_truncated();
    Answered { len: writer.finish(outcome), outcome, truncated, by_star }
}

/// Writes an answer without records.
pub(crate) fn short(asked: Asked<'_>, query: &Query<'_>, outcome: Outcome, buffer: &mut [u8]) -> Answered {
    let limit = limit(asked, query, buffer.len());
    let writer = Writer::new(buffer, limit, asked.reserved, query.head, query.question, query.edns);
    Answered { len: writer.finish(outcome), outcome, truncated: false, by_star: false }
}

/// Turns an answer into one that says that the whole is had over TCP; as short as the question.
pub(crate) fn cut(asked: Asked<'_>, query: &Query<'_>, buffer: &mut [u8]) -> Answered {
    let limit = limit(asked, query, buffer.len());
    let mut writer = Writer::new(buffer, limit, 0, query.head, query.question, query.edns);
    writer.truncate();
    Answered { len: writer.finish(Outcome::Good), outcome: Outcome::Good, truncated: true, by_star: false }
}

fn limit(asked: Asked<'_>, query: &Query<'_>, room: usize) -> usize {
    match (asked.transport, query.edns) {
        (Transport::Tcp, _) => room,
        (Transport::Udp, None) => DATAGRAM_BYTES_MIN,
        (Transport::Udp, Some(edns)) => {
            let wanted = usize::from(edns.datagram_bytes).max(DATAGRAM_BYTES_MIN);
            wanted.min(asked.datagram_bytes.max(DATAGRAM_BYTES_MIN))
        }
    }
}

/// Why a question is not even looked up.
fn refusal(query: &Query<'_>) -> Option<Outcome> {
    if query.edns.is_some_and(|edns| edns.version > 0) {
        return Some(Outcome::BadVersion);
    }
    if query.has_answers || query.kind == message::KIND_OPT {
        return Some(Outcome::Malformed);
    }
    if query.class != CLASS_IN {
        return Some(Outcome::Refused);
    }
    KINDS_NOT_ASKED.contains(&query.kind.0).then_some(Outcome::NotImplemented)
}

/// The outcome, and whether a name that stands for many answered.
fn from_zone(zone: &Zone, query: &Query<'_>, writer: &mut Writer<'_>) -> (Outcome, bool) {
    let signed = query.edns.is_some_and(|edns| edns.dnssec);
    let turn = query.head.id;
    let mut lookup = Lookup { zone, kind: query.kind, signed, turn, made: Vec::new(), by_star: false, writer };
    let outcome = lookup.follow(query.name.as_wire()).unwrap_or_else(|Full| {
        lookup.writer.truncate();
        Outcome::Good
    });
    (outcome, lookup.by_star)
}

impl<'a> Lookup<'a, '_, '_> {
    /// The answer about a name, and about those it is an alias of.
    fn follow(&mut self, asked: &[u8]) -> Result<Outcome, Full> {
        let zone = self.zone;
        let mut alias: Option<&'a [u8]> = None;
        for _ in 0..=ALIASES_MAX {
            let name = alias.unwrap_or(asked);
            if zone.has_cuts()
                && let Some((cut, servers)) = self.cut_above(name)
            {
                if alias.is_none() {
                    return self.refer(cut, servers);
                }
                // What lies beyond is not ours; a resolver goes on from the alias.
                self.show_made()?;
                return Ok(Outcome::Good);
            }
            self.writer.set_authoritative();
            let node = zone.node(name).or_else(|| {
                let star = zone.wildcard(name);
                self.by_star |= star.is_some();
                star
            });
            let Some(node) = node else {
                self.show_made()?;
                self.deny(name)?;
                return Ok(Outcome::NoSuchName);
            };
            match node
                .rrset(Kind::CNAME)
                .filter(|_| !matches!(self.kind, Kind::CNAME | KIND_ANY | Kind::NSEC | Kind::RRSIG))
            {
                None => {
                    self.found(name, alias.is_none(), node)?;
                    return Ok(Outcome::Good);
                }
                Some(rrset) => {
                    self.put(name, alias.is_none(), rrset)?;
                    self.note_made(name);
                    let target = rrset.data().next().unwrap_or_default();
                    if !name::is_under(target, zone.apex().as_wire()) {
                        self.show_made()?;
                        return Ok(Outcome::Good);
                    }
                    alias = Some(target);
                }
            }
        }
        self.show_made()?;
        Ok(Outcome::Good)
    }

    /// The records that a name has of the kind that was asked for, or that it has none.
    fn found(&mut self, name: &[u8], is_asked: bool, node: &'a Node) -> Result<(), Full> {
        let zone = self.zone;
        let is_apex = name == zone.apex().as_wire();
        let rrset = match self.kind {
            Kind::SOA if is_apex => Some(zone.soa_rrset()),
            // One of them is answer enough for who wants anything (RFC 8482).
            KIND_ANY => node.rrsets().first(),
            Kind::RRSIG => return self.all_signatures(name, is_apex, node),
            kind => node.rrset(kind),
        };
        match rrset {
            None => {
                self.show_made()?;
                self.deny(name)
            }
            Some(rrset) => {
                self.put(name, is_asked, rrset)?;
                self.note_made(name);
                self.show_made()?;
                self.add_addresses(rrset);
                Ok(())
            }
        }
    }

    /// Notes a name that was answered for, if that was by one that stands for many.
    fn note_made(&mut self, name: &[u8]) {
        if self.signed && self.zone.has_wildcards() && self.zone.node(name).is_none() {
            self.made.push(name.to_vec());
        }
    }

    /// Shows that names that were answered for by one that stands for many are not there themselves. After all answers.
    fn show_made(&mut self) -> Result<(), Full> {
        for name in std::mem::take(&mut self.made) {
            if let Some((owner, rrset)) = self.zone.denial(&name) {
                self.writer.put(Section::Authority, owner.as_wire(), rrset, u32::MAX, true)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, name: &[u8], is_asked: bool, rrset: &Rrset) -> Result<(), Full> {
        if !is_asked {
            return self.writer.put(Section::Answer, name, rrset, u32::MAX, self.signed);
        }
        self.writer.put_asked(Section::Answer, rrset, self.turn)?;
        if self.signed { self.writer.put_asked_signatures(Section::Answer, rrset) } else { Ok(()) }
    }

    fn all_signatures(&mut self, name: &[u8], is_apex: bool, node: &Node) -> Result<(), Full> {
        let own = is_apex.then(|| self.zone.soa_rrset());
        let mut any = false;
        for rrset in node.rrsets().iter().chain(own) {
            for data in rrset.signatures() {
                any = true;
                self.writer.put_record(Section::Answer, name, Kind::RRSIG, rrset.ttl_s(), data)?;
            }
        }
        if any { Ok(()) } else { self.deny(name) }
    }

    /// The addresses of what an answer points at, as far as there is room.
    fn add_addresses(&mut self, rrset: &Rrset) {
        let skip = match rrset.kind() {
            Kind::SRV => 6,
            Kind::NS => 0,
            _ => return,
        };
        let targets = rrset.data().filter_map(|data| data.get(skip..));
        for (place, target) in targets.clone().enumerate() {
            if targets.clone().take(place).any(|earlier| earlier == target) {
                continue;
            }
            let Some(node) = self.zone.node(target) else { continue };
            let addresses = node.rrsets().iter().filter(|rrset| matches!(rrset.kind(), Kind::A | Kind::AAAA));
            for addresses in addresses {
                if self.writer.put(Section::Additional, target, addresses, u32::MAX, self.signed).is_err() {
                    return;
                }
            }
        }
    }

    /// The name at or above `name`, below the apex, that has name servers of its own.
    fn cut_above(&self, name: &[u8]) -> Option<(&'a [u8], &'a Rrset)> {
        let zone = self.zone;
        let mut cut = None;
        for above in upwards(name, zone.apex()).filter(|above| above.len() > zone.apex().as_wire().len()) {
            if let Some((owner, servers)) = zone.servers(above) {
                cut = Some((owner, servers));
            }
        }
        // The parent's side of the cut answers for the digest itself.
        cut.filter(|(owner, _)| !(self.kind == Kind::DS && *owner == name))
    }

    /// Names those who know, with the addresses that cannot be found without them.
    fn refer(&mut self, cut: &[u8], servers: &Rrset) -> Result<Outcome, Full> {
        self.writer.put(Section::Authority, cut, servers, u32::MAX, false)?;
        if self.signed
            && let Some(digests) = self.zone.node(cut).and_then(|node| node.rrset(Kind::DS))
        {
            self.writer.put(Section::Authority, cut, digests, u32::MAX, true)?;
        }
        let mut any = false;
        for server in servers.data() {
            let Some(node) = self.zone.node(server) else { continue };
            for addresses in node.rrsets().iter().filter(|rrset| matches!(rrset.kind(), Kind::A | Kind::AAAA)) {
                match self.writer.put(Section::Additional, server, addresses, u32::MAX, false) {
                    Ok(()) => any = true,
                    // Without one address the servers cannot be reached.
                    Err(Full) if !any && name::is_under(server, cut) => return Err(Full),
                    Err(Full) => {}
                }
            }
        }
        Ok(Outcome::Good)
    }

    /// Says that there is nothing, and for how long that may be remembered; to who wants it, with what shows it.
    fn deny(&mut self, name: &[u8]) -> Result<(), Full> {
        let zone = self.zone;
        let apex = zone.apex().as_wire();
        self.writer.put(Section::Authority, apex, zone.soa_rrset(), zone.soa().negative_s, self.signed)?;
        let Some((owner, rrset)) = zone.denial(name).filter(|_| self.signed) else { return Ok(()) };
        self.writer.put(Section::Authority, owner.as_wire(), rrset, u32::MAX, true)?;
        if zone.node(name).is_some() {
            return Ok(());
        }
        // Nor is there anything that stands for all names there.
        let above = upwards(name, zone.apex()).find(|above| zone.node(above).is_some()).unwrap_or(apex);
        let any = [name::ANY, above].concat();
        match zone.denial(&any).filter(|(other, _)| *other != owner) {
            None => Ok(()),
            Some((owner, rrset)) => self.writer.put(Section::Authority, owner.as_wire(), rrset, u32::MAX, true),
        }
    }
}

/// The zone's own record alone: what a secondary that asks over UDP for what is new looks at first.
pub(crate) fn serial(asked: Asked<'_>, query: &Query<'_>, buffer: &mut [u8]) -> Answered {
    let limit = limit(asked, query, buffer.len());
    let mut writer = Writer::new(buffer, limit, asked.reserved, query.head, query.question, query.edns);
    let Some(zone) = asked.zones.find(query.name.as_wire(), asked.client) else {
        let outcome = Outcome::Refused;
        return Answered { len: writer.finish(outcome), outcome, truncated: false, by_star: false };
    };
    writer.set_authoritative();
    if writer.put(Section::Answer, zone.apex().as_wire(), zone.soa_rrset(), u32::MAX, false).is_err() {
        writer.truncate();
    }
    let truncated = writer.is_truncated();
    Answered { len: writer.finish(Outcome::Good), outcome: Outcome::Good, truncated, by_star: false }
}
