//! Writing an answer into a buffer of fixed size. The question's name stands at byte 12 of every answer, so every owner that ends as it
//! does is written as a pointer there; nothing else is compressed.

use crate::{
    counters::Outcome,
    message::{CLASS_IN, Edns, HEADER, Head, KIND_OPT, OPT_BYTES},
    name,
    rrset::{FIXED, Kind, OWNER, Rrset},
};

/// The size of a datagram that we are ready to receive, as our extension record says.
const RECEIVED_BYTES: u16 = 1232;

/// The parts of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Answer,
    Authority,
    Additional,
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// An answer as far as it is written.
pub(crate) struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
    /// Records end here: behind is room for what is written last.
    limit: usize,
    counts: [u16; 3],
    question_end: usize,
    edns: Option<Edns>,
}

impl<'a> Writer<'a> {
    /// An answer to `head`, with its question, of at most `limit` bytes, `reserved` bytes among them for a signature.
    pub(crate) fn new(
        buffer: &'a mut [u8],
        limit: usize,
        reserved: usize,
        head: Head,
        question: &[u8],
        edns: Option<Edns>,
    ) -> Self {
        let limit = limit.min(buffer.len());
        let reserved = reserved + if edns.is_some() { OPT_BYTES } else { 0 };
        let end = HEADER + question.len();
        let [id, id_low] = head.id.to_be_bytes();
        let flags = 0x80 | head.opcode << 3 | u8::from(head.recursion_desired);
        let low = if head.checking_disabled { 0x10 } else { 0 };
        buffer[..HEADER].copy_from_slice(&[
            id,
            id_low,
            flags,
            low,
            0,
            u8::from(!question.is_empty()),
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
        buffer[HEADER..end].copy_from_slice(question);
        Self {
            buffer,
            len: end,
            limit: limit.saturating_sub(reserved).max(end),
            counts: [0; 3],
            question_end: end,
            edns,
        }
    }

    /// The answer is the zone's own.
    pub(crate) fn set_authoritative(&mut self) {
        self.buffer[2] |= 4;
    }

    /// Takes all records away and says that the whole is had over TCP.
    pub(crate) fn truncate(&mut self) {
        self.buffer[2] |= 2;
        self.len = self.question_end;
        self.counts = [0; 3];
    }

    /// Whether it says that the whole is had over TCP.
    pub(crate) fn is_truncated(&self) -> bool {
        self.buffer[2] & 2 != 0
    }

    /// The set of the name that was asked for. Where all records are of one size, they begin at another each time, so that clients that take
    /// the first are spread.
    pub(crate) fn put_asked(&mut self, section: Section, rrset: &Rrset, turn: u16) -> Result<(), Full> {
        let (wire, count) = (rrset.answer(), rrset.count());
        let each = wire.len() / usize::from(count);
        let first = usize::from(turn % count) * each;
        if count > 1 && matches!(rrset.kind(), Kind::A | Kind::AAAA) {
            self.bytes(&wire[first..])?;
            self.bytes(&wire[..first])?;
        } else {
            self.bytes(wire)?;
        }
        self.counts[section as usize] += count;
        Ok(())
    }

    /// The signatures of the set of the name that was asked for.
    pub(crate) fn put_asked_signatures(&mut self, section: Section, rrset: &Rrset) -> Result<(), Full> {
        let (wire, count) = rrset.answer_signatures();
        self.bytes(wire)?;
        self.counts[section as usize] += count;
        Ok(())
    }

    /// The set of any name, with its signatures if they are wanted, for at most `ttl_max_s` seconds. All of it or nothing.
    pub(crate) fn put(
        &mut self,
        section: Section,
        owner: &[u8],
        rrset: &Rrset,
        ttl_max_s: u32,
        signed: bool,
    ) -> Result<(), Full> {
        let (start, count) = (self.len, self.counts[section as usize]);
        let ttl = rrset.ttl_s().min(ttl_max_s);
        let done = rrset.data().try_for_each(|data| self.put_record(section, owner, rrset.kind(), ttl, data));
        let done = done.and_then(|()| {
            let mut signatures = rrset.signatures().filter(|_| signed);
            signatures.try_for_each(|data| self.put_record(section, owner, Kind::RRSIG, ttl, data))
        });
        if done.is_err() {
            (self.len, self.counts[section as usize]) = (start, count);
        }
        done
    }

    /// One record.
    pub(crate) fn put_record(
        &mut self,
        section: Section,
        owner: &[u8],
        kind: Kind,
        ttl_s: u32,
        data: &[u8],
    ) -> Result<(), Full> {
        let start = self.len;
        self.put_owner(owner)?;
        let mut fixed = [0; FIXED - OWNER.len()];
        fixed[..2].copy_from_slice(&kind.0.to_be_bytes());
        fixed[2..4].copy_from_slice(&CLASS_IN.to_be_bytes());
        fixed[4..8].copy_from_slice(&ttl_s.to_be_bytes());
        fixed[8..].copy_from_slice(&u16::try_from(data.len()).map_err(|_| Full)?.to_be_bytes());
        if self.bytes(&fixed).and_then(|()| self.bytes(data)).is_err() {
            self.len = start;
            return Err(Full);
        }
        self.counts[section as usize] = self.counts[section as usize].saturating_add(1);
        Ok(())
    }

    /// Writes what comes last, and returns how long it is.
    pub(crate) fn finish(mut self, outcome: Outcome) -> usize {
        let (code, extended) = outcome.code();
        self.buffer[3] |= code;
        if let Some(edns) = self.edns {
            let [size, size_low] = RECEIVED_BYTES.to_be_bytes();
            let [kind, kind_low] = KIND_OPT.0.to_be_bytes();
            let flags = if edns.dnssec { 0x80 } else { 0 };
            let opt = [0, kind, kind_low, size, size_low, extended, 0, flags, 0, 0, 0];
            // Its room was kept.
            if let Some(room) = self.buffer.get_mut(self.len..self.len + OPT_BYTES) {
                room.copy_from_slice(&opt);
                self.len += OPT_BYTES;
                self.counts[2] += 1;
            }
        }
        for (at, count) in [6, 8, 10].into_iter().zip(self.counts) {
            self.buffer[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        self.len
    }

    fn put_owner(&mut self, owner: &[u8]) -> Result<(), Full> {
        let question_len = (self.question_end - HEADER).saturating_sub(4);
        let mut asked = [0; name::NAME_MAX];
        let asked = &mut asked[..question_len];
        asked.copy_from_slice(&self.buffer[HEADER..HEADER + question_len]);
        asked.make_ascii_lowercase();
        let mut rest = owner;
        while rest.len() > 1 {
            if name::is_under(asked, rest) {
                let place = HEADER + question_len - rest.len();
                let own = &owner[..owner.len() - rest.len()];
                // A question is at most 255 bytes behind the header.
                let pointer = 0xc000 | u16::try_from(place).map_err(|_| Full)?;
                return self.bytes(own).and_then(|()| self.bytes(&pointer.to_be_bytes()));
            }
            rest = name::parent(rest).unwrap_or_default();
        }
        self.bytes(owner)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Full> {
        let end = self.len + bytes.len();
        if end > self.limit {
            return Err(Full);
        }
        self.buffer[self.len..end].copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }
}
