//! Zone transfers: the whole zone (AXFR), or what is new since a serial (IXFR), as a row of messages over one connection. A
//! transfer reads one zone as it was when it was asked for, however long it takes and whatever changes meanwhile.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::TcpStream;

use crate::{
    counters::{Outcome, Transport, add},
    handle::Transfer,
    peers::Sent,
    rrset::{Kind, Rrset},
    tcp::{self, MESSAGE_BYTES, Service},
    write::{Full, Section, Writer},
    zone::Past,
};

/// Bytes of a transfer's message, about: pointers reach no further than this, and secondaries can work on one while the next comes.
const PART_BYTES: usize = 16 << 10;
/// How long a transfer waits for a place among those that run.
const TURN: Duration = Duration::from_secs(60);

/// Sends the transfer. None: the connection is to be closed.
pub(crate) async fn send(
    stream: &mut TcpStream,
    transfer: Transfer,
    peer: SocketAddr,
    service: &Service,
    buffer: &mut [u8],
) -> Option<()> {
    let counters = &service.shared.counters;
    counters.answered(Transport::Tcp, None, Outcome::Good);
    let turn = tokio::time::timeout(TURN, service.shared.transfers.acquire()).await;
    let Ok(Ok(_turn)) = turn else {
        add(&counters.transfers_failed);
        return None;
    };
    let differences = transfer.differences();
    let (apex, serial, since) = (transfer.zone.apex().clone(), transfer.zone.serial(), transfer.since);
    let (zone, is_whole) = (apex.to_string(), differences.is_none());
    let mut parts = Parts::new(stream, transfer, service, buffer);
    let sent = match &differences {
        None => parts.whole().await,
        Some(differences) => parts.differences(differences).await,
    };
    match sent {
        None => {
            add(&counters.transfers_failed);
            if let Some(since) = since {
                service.shared.peers.said(peer.ip(), &apex, since);
            }
            tracing::info!(%peer, zone, serial, "a zone transfer ended before its end");
        }
        Some(()) => {
            let sent = match &differences {
                None => Sent::Whole,
                Some(differences) if differences.is_empty() => Sent::Nothing,
                Some(_) => Sent::Differences,
            };
            service.shared.peers.sent(peer.ip(), &apex, serial, sent, service.now_s());
            add(if is_whole { &counters.transfers_whole } else { &counters.transfers_differences });
            tracing::debug!(%peer, zone, serial, is_whole, "a zone was transferred");
        }
    }
    sent
}

/// A row of messages. Each begins as an answer to the same question.
struct Parts<'a> {
    stream: &'a mut TcpStream,
    transfer: Transfer,
    service: &'a Service,
    /// Messages are written here, each behind its length.
    buffer: &'a mut [u8],
    /// Records of the message that is being filled, encoded with owners in full, until they are a message.
    pending: Vec<Record>,
    pending_bytes: usize,
    is_first: bool,
}

struct Record {
    owner: Vec<u8>,
    kind: Kind,
    ttl_s: u32,
    data: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn new(stream: &'a mut TcpStream, transfer: Transfer, service: &'a Service, buffer: &'a mut [u8]) -> Self {
        Self { stream, transfer, service, buffer, pending: Vec::new(), pending_bytes: 0, is_first: true }
    }

    async fn whole(&mut self) -> Option<()> {
        let zone = self.transfer.zone.clone();
        self.put_rrset(zone.apex().as_wire(), zone.soa_rrset()).await?;
        for (name, rrsets) in zone.names() {
            for rrset in rrsets {
                self.put_rrset(name.as_wire(), rrset).await?;
            }
        }
        self.put_end().await?;
        self.flush().await
    }

    async fn differences(&mut self, differences: &[Arc<Past>]) -> Option<()> {
        let zone = self.transfer.zone.clone();
        let apex = zone.apex().as_wire();
        self.put_end().await?;
        for past in differences {
            let (before, after) = zone.own_records(past);
            self.put_rrset(apex, &before).await?;
            for change in &past.difference.changes {
                self.put_missing(change.name.as_wire(), &change.before, &change.after).await?;
            }
            self.put_rrset(apex, &after).await?;
            for change in &past.difference.changes {
                self.put_missing(change.name.as_wire(), &change.after, &change.before).await?;
            }
        }
        if !differences.is_empty() {
            self.put_end().await?;
        }
        self.flush().await
    }

    /// The records of some sets that others do not have.
    async fn put_missing(&mut self, owner: &[u8], these: &[Rrset], others: &[Rrset]) -> Option<()> {
        for rrset in these {
            let other = others.iter().find(|other| other.kind() == rrset.kind() && other.ttl_s() == rrset.ttl_s());
            let has = |data: &[u8]| other.is_some_and(|other| other.data().any(|held| held == data));
            let is_signed = |data: &[u8]| other.is_some_and(|other| other.signatures().any(|held| held == data));
            for data in rrset.data().filter(|data| !has(data)) {
                self.put(owner, rrset.kind(), rrset.ttl_s(), data).await?;
            }
            for data in rrset.signatures().filter(|data| !is_signed(data)) {
                self.put(owner, Kind::RRSIG, rrset.ttl_s(), data).await?;
            }
        }
        Some(())
    }

    /// The zone's own record, alone: what begins and ends a transfer.
    async fn put_end(&mut self) -> Option<()> {
        let zone = self.transfer.zone.clone();
        let own = zone.soa_rrset().without_signatures();
        self.put_rrset(zone.apex().as_wire(), &own).await
    }

    async fn put_rrset(&mut self, owner: &[u8], rrset: &Rrset) -> Option<()> {
        for data in rrset.data() {
            self.put(owner, rrset.kind(), rrset.ttl_s(), data).await?;
        }
        for data in rrset.signatures() {
            self.put(owner, Kind::RRSIG, rrset.ttl_s(), data).await?;
        }
        Some(())
    }

    async fn put(&mut self, owner: &[u8], kind: Kind, ttl_s: u32, data: &[u8]) -> Option<()> {
        let bytes = owner.len() + 10 + data.len();
        if self.pending_bytes + bytes > PART_BYTES {
            self.flush().await?;
        }
        self.pending_bytes += bytes;
        self.pending.push(Record { owner: owner.to_vec(), kind, ttl_s, data: data.to_vec() });
        Some(())
    }

    async fn flush(&mut self) -> Option<()> {
        if self.pending.is_empty() {
            return Some(());
        }
        let len = self.write().ok()?;
        self.pending.clear();
        self.pending_bytes = 0;
        self.buffer[..2].copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
        tcp::send(self.stream, &self.service.limits, &self.buffer[..2 + len]).await
    }

    /// Writes the pending records as one message, and returns its length.
    fn write(&mut self) -> Result<usize, Full> {
        let message = self.buffer.get_mut(2..MESSAGE_BYTES).ok_or(Full)?;
        let signed = self.transfer.signed.as_mut();
        let reserved = signed.as_ref().map_or(0, |signed| signed.reserved());
        let room = message.len();
        let mut writer = Writer::new(message, room, reserved, self.transfer.head, &self.transfer.question, None);
        writer.set_authoritative();
        for record in &self.pending {
            writer.put_record(Section::Answer, &record.owner, record.kind, record.ttl_s, &record.data)?;
        }
        let len = writer.finish(Outcome::Good);
        let is_first = std::mem::take(&mut self.is_first);
        let Some(signed) = signed else { return Ok(len) };
        let now_s = self.service.now_s();
        Ok(if is_first { signed.sign_first(message, len, now_s) } else { signed.sign_next(message, len, now_s) })
    }
}
