//! Telling secondaries that a zone has changed (RFC 1996). One task a secondary; it tells the newest serial of each zone that the
//! secondary sees, repeats what is not answered, more slowly each time, and gives up until the next change. Giving up is harmless: a
//! secondary looks by itself as often as the zone says.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use base::{backoff::Backoff, clock::Clock, shutdown::Shutdown, task, watch};
use tokio::{net::UdpSocket, task::JoinHandle};

use crate::{
    counters::{Counters, add},
    message::{self, HEADER, Head, OPCODE_NOTIFY},
    name::Name,
    rrset::{Kind, Rrset},
    server::Shared,
    settings::{NotifyTarget, Policy, TsigKey},
    tsig,
    write::{Section, Writer},
    zone::Zone,
    zones::Zones,
};

/// Secondaries told at most; the settings may name more, which is logged.
const TARGETS_MAX: usize = 64;
/// Zones told about at once.
const ZONES_AT_ONCE: usize = 256;
/// Messages about one change to one secondary.
const ATTEMPTS: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LAST_WAIT: Duration = Duration::from_secs(15);
/// Changes that follow each other within this time are told once.
const GATHER: Duration = Duration::from_millis(100);
/// How long a secondary's task pauses when its socket cannot be had.
const PAUSE: Duration = Duration::from_secs(5);
const MESSAGE_BYTES: usize = 1232;

/// What the tasks tell from.
#[derive(Clone)]
pub(crate) struct Notifier {
    pub(crate) shared: Arc<Shared>,
    pub(crate) zones: watch::Receiver<Arc<Zones>>,
    pub(crate) policy: watch::Receiver<Arc<Policy>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) shutdown: Shutdown,
}

/// A message that is not answered yet.
struct Told {
    apex: Name,
    serial: u32,
    id: u16,
    signed_over: Option<Vec<u8>>,
}

impl Notifier {
    /// Keeps one task for each secondary of the policy, until the end comes.
    pub(crate) async fn run(mut self) {
        let mut tasks: HashMap<NotifyTarget, (Option<TsigKey>, JoinHandle<()>)> = HashMap::new();
        loop {
            let policy = self.policy.borrow_and_update().clone();
            if policy.notify.len() > TARGETS_MAX {
                tracing::warn!(
                    targets = policy.notify.len(),
                    "only the first {TARGETS_MAX} secondaries are told of changes"
                );
            }
            let wanted: HashMap<NotifyTarget, Option<TsigKey>> = policy
                .notify
                .iter()
                .take(TARGETS_MAX)
                .map(|target| {
                    let key = policy.keys.iter().find(|key| Some(&key.name) == target.key.as_ref());
                    (target.clone(), key.cloned())
                })
                .collect();
            tasks.retain(|target, (key, task)| {
                let stays = wanted.get(target).is_some_and(|wanted| wanted == key);
                if !stays {
                    task.abort();
                }
                stays
            });
            for (target, key) in wanted {
                if tasks.contains_key(&target) {
                    continue;
                }
                if target.key.is_some() && key.is_none() {
                    tracing::warn!(target = %target.address, "not told of changes: its key is not among the keys");
                    continue;
                }
                let (this, address, own) = (self.clone(), target.address, key.clone());
                let task = task::spawn("dns-notify", async move {
                    let shutdown = this.shutdown.clone();
                    shutdown.unless(this.tell(address, own)).await;
                });
                tasks.insert(target, (key, task));
            }
            let shutdown = self.shutdown.clone();
            match shutdown.unless(self.policy.changed()).await {
                Some(Ok(())) => {}
                Some(Err(watch::Closed)) => return shutdown.wait().await,
                None => return,
            }
        }
    }

    /// Tells one secondary, for ever.
    async fn tell(mut self, address: SocketAddr, key: Option<TsigKey>) {
        let mut told: HashMap<Name, u32> = HashMap::new();
        loop {
            let zones = self.zones.borrow_and_update().clone();
            let news = news(&zones, address, &mut told);
            if news.is_empty() {
                if self.zones.changed().await.is_err() {
                    return std::future::pending().await;
                }
                tokio::time::sleep(GATHER).await;
                continue;
            }
            if let Err(error) = self.tell_of(&news, address, key.as_ref()).await {
                tracing::debug!(target = %address, error = %error, "cannot tell a secondary of a change");
                tokio::time::sleep(PAUSE).await;
            }
            // Answered or given up: both until the next change.
            told.extend(news.iter().map(|zone| (zone.apex().clone(), zone.serial())));
        }
    }

    async fn tell_of(&self, news: &[Zone], address: SocketAddr, key: Option<&TsigKey>) -> std::io::Result<()> {
        let own = match address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(own).await?;
        socket.connect(address).await?;
        let counters = &self.shared.counters;
        let mut backoff = Backoff::new(FIRST_WAIT, LAST_WAIT);
        let mut open: Vec<&Zone> = news.iter().collect();
        for _ in 0..ATTEMPTS {
            let mut sent = Vec::with_capacity(open.len());
            for zone in &open {
                let (bytes, message) = self.message(zone, key);
                add(&counters.notify_sent);
                // Who does not listen refuses; that is no answer, and it may listen the next time.
                let _ = socket.send(&bytes).await;
                sent.push(message);
            }
            let wait = backoff.next_delay();
            let _ = tokio::time::timeout(wait, hear(&socket, &mut sent, key, counters)).await;
            let is_open =
                |zone: &Zone| sent.iter().any(|told| told.apex == *zone.apex() && told.serial == zone.serial());
            for zone in open.iter().filter(|zone| !is_open(zone)) {
                self.shared.peers.told(address.ip(), zone.apex(), zone.serial());
            }
            open.retain(|zone| is_open(zone));
            if open.is_empty() {
                return Ok(());
            }
            let newer = self.zones.borrow().clone();
            let is_old = |zone: &&Zone| newer.get(zone.apex(), address.ip()).map(Zone::serial) != Some(zone.serial());
            if open.iter().any(is_old) {
                // There is something newer to tell instead.
                return Ok(());
            }
        }
        for zone in open {
            add(&counters.notify_failed);
            let (zone, serial) = (zone.apex().to_string(), zone.serial());
            tracing::info!(target = %address, zone, serial, "a secondary does not answer; it is told again at the next change");
        }
        Ok(())
    }

    fn message(&self, zone: &Zone, key: Option<&TsigKey>) -> (Vec<u8>, Told) {
        let mut buffer = vec![0; MESSAGE_BYTES];
        #[expect(clippy::cast_possible_truncation, reason = "any sixteen of the bits will do")]
        let id = base::random::bits() as u16;
        let head = Head { id, opcode: OPCODE_NOTIFY, recursion_desired: false, checking_disabled: false };
        let len = request(&mut buffer, head, zone.apex(), zone.soa_rrset());
        let now_s = u64::try_from(self.clock.now_ms() / 1000).unwrap_or(0);
        let (len, signed_over) = match key {
            None => (len, None),
            Some(key) => {
                let (len, mac) = tsig::sign_request(key, &mut buffer, len, now_s);
                (len, Some(mac))
            }
        };
        buffer.truncate(len);
        (buffer, Told { apex: zone.apex().clone(), serial: zone.serial(), id, signed_over })
    }
}

/// The zones a secondary sees with a serial it was not told, so many at most; what is gone is forgotten.
fn news(zones: &Zones, address: SocketAddr, told: &mut HashMap<Name, u32>) -> Vec<Zone> {
    told.retain(|apex, _| zones.get(apex, address.ip()).is_some());
    let mut news = Vec::new();
    for (_, zone) in zones.iter() {
        // Of zones with one apex it is the one that the secondary sees.
        let Some(seen) = zones.get(zone.apex(), address.ip()) else { continue };
        let is_new = told.get(zone.apex()) != Some(&seen.serial());
        if is_new && news.len() < ZONES_AT_ONCE && !news.iter().any(|one: &Zone| one.apex() == zone.apex()) {
            news.push(seen.clone());
        }
    }
    news
}

/// A request that says the zone's own record, as a hint.
fn request(buffer: &mut [u8], head: Head, apex: &Name, soa: &Rrset) -> usize {
    let mut question = apex.as_wire().to_vec();
    question.extend_from_slice(&Kind::SOA.0.to_be_bytes());
    question.extend_from_slice(&message::CLASS_IN.to_be_bytes());
    let room = buffer.len();
    let mut writer = Writer::new(buffer, room, 256, head, &question, None);
    writer.set_authoritative();
    // Without room the hint is left out.
    let _ = writer.put(Section::Answer, apex.as_wire(), soa, u32::MAX, false);
    let len = writer.finish(crate::counters::Outcome::Good);
    // It is a question, with what an answer has.
    buffer[2] &= 0x7f;
    len
}

/// Takes answers until every message has one. Any answer will do: also one that says no shows that it was heard.
async fn hear(socket: &UdpSocket, sent: &mut Vec<Told>, key: Option<&TsigKey>, counters: &Counters) {
    let mut buffer = [0_u8; MESSAGE_BYTES];
    while !sent.is_empty() {
        let Ok(len) = socket.recv(&mut buffer).await else {
            // Nobody listens: the rest of the wait is for it to begin.
            return std::future::pending().await;
        };
        let before = sent.len();
        sent.retain(|told| !is_answer(&buffer[..len], told, key));
        if sent.len() < before {
            add(&counters.notify_answered);
        }
    }
}

fn is_answer(message: &[u8], told: &Told, key: Option<&TsigKey>) -> bool {
    let Some(header) = message.first_chunk::<HEADER>() else { return false };
    if header[..2] != told.id.to_be_bytes() || header[2] >> 3 != 0x10 | OPCODE_NOTIFY {
        return false;
    }
    let (Some(key), Some(over)) = (key, &told.signed_over) else { return true };
    message::answer_tsig(message).is_some_and(|tsig| tsig::is_answer_good(message, &tsig, key, over))
}
