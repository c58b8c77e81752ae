//! Connections: questions in a row, answered in their order, and zone transfers between them. A connection has a place among all and
//! among its client's, is closed when it asks nothing for a while, and whoever does not take what it asked for is left.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base::{clock::Clock, shutdown::Shutdown, task, watch};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    counters::{Transport, add},
    handle::{Context, Handled},
    message,
    server::Shared,
    settings::{Limits, Policy},
    transfer,
    zones::Zones,
};

/// Bytes of a question over TCP at most; nobody needs more of us.
const QUESTION_BYTES: usize = 4096;
/// Bytes of a message at most, with its length before it.
pub(crate) const MESSAGE_BYTES: usize = 2 + 65_535;
/// Answers are sent when they fill so much, or when no further question is there.
const SEND_BYTES: usize = 16 << 10;
/// How long accepting pauses when the kernel has nothing left for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// What every connection is served with.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) shared: Arc<Shared>,
    pub(crate) zones: watch::Receiver<Arc<Zones>>,
    pub(crate) policy: watch::Receiver<Arc<Policy>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) shutdown: Shutdown,
    pub(crate) limits: Limits,
}

impl Service {
    /// Seconds since the epoch.
    pub(crate) fn now_s(&self) -> u64 {
        u64::try_from(self.clock.now_ms() / 1000).unwrap_or(0)
    }
}

/// How many connections each client has.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Leaf data, held for a look and a change.
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    each: HashMap<IpAddr, usize>,
}

/// A connection's place; free again when it is dropped.
struct Place {
    shared: Arc<Shared>,
    client: IpAddr,
}

impl Places {
    fn take(&self, client: IpAddr, limits: &Limits) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.each.get(&client).copied().unwrap_or(0);
        if taken.all >= limits.connections || own >= limits.connections_of_one {
            return false;
        }
        taken.all += 1;
        taken.each.insert(client, own + 1);
        true
    }

    fn free(&self, client: IpAddr) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        let own = taken.each.get(&client).copied().unwrap_or(0);
        if own > 1 {
            taken.each.insert(client, own - 1);
        } else {
            taken.each.remove(&client);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.places.free(self.client);
    }
}

/// Accepts connections until the end comes.
pub(crate) async fn accept(listener: TcpListener, service: Service) {
    let shutdown = service.shutdown.clone();
    while let Some(accepted) = shutdown.unless(listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let client = one_client(peer.ip());
        if !service.shared.places.take(client, &service.limits) {
            add(&service.shared.counters.connections_refused);
            continue;
        }
        let place = Place { shared: service.shared.clone(), client };
        let service = service.clone();
        task::spawn("dns-connection", async move {
            let _place = place;
            let shutdown = service.shutdown.clone();
            shutdown.unless(serve(stream, peer, service)).await;
        });
    }
}

/// Whoever has one address of IPv6 has the 2^64 beside it.
fn one_client(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 64 << 64).into(),
    }
}

/// Serves one connection; ends when either side has had enough.
async fn serve(mut stream: TcpStream, peer: SocketAddr, service: Service) {
    let _ = stream.set_nodelay(true);
    let mut asked = vec![0_u8; 2 * (2 + QUESTION_BYTES)];
    let (mut start, mut end) = (0, 0);
    // Pages that are not written to are not there.
    let mut answers = vec![0_u8; SEND_BYTES + MESSAGE_BYTES];
    loop {
        asked.copy_within(start..end, 0);
        (start, end) = (0, end - start);
        let read = tokio::time::timeout(service.limits.idle, stream.read(&mut asked[end..])).await;
        match read {
            Ok(Ok(more)) if more > 0 => end += more,
            _ => return,
        }
        if serve_read(&mut stream, peer, &service, &asked, &mut start, end, &mut answers).await.is_none() {
            return;
        }
    }
}

/// Answers every whole question of what was read. None: the connection is to be closed.
async fn serve_read(
    stream: &mut TcpStream,
    peer: SocketAddr,
    service: &Service,
    asked: &[u8],
    start: &mut usize,
    end: usize,
    answers: &mut [u8],
) -> Option<()> {
    let mut ready = 0;
    while let Some(len) = asked.get(*start..(*start + 2).min(end)).and_then(|two| two.first_chunk::<2>()) {
        let len = usize::from(u16::from_be_bytes(*len));
        if len > QUESTION_BYTES {
            add(&service.shared.counters.dropped);
            return None;
        }
        if *start + 2 + len > end {
            break;
        }
        let message = &asked[*start + 2..*start + 2 + len];
        *start += 2 + len;
        // Nobody sends what is no question over a connection who means well: it is closed.
        match handle(service, peer.ip(), message, &mut answers[ready + 2..])? {
            Handled::Answer(answered) => {
                answers[ready..ready + 2].copy_from_slice(&u16::try_from(answered.len).ok()?.to_be_bytes());
                ready += 2 + answered.len;
            }
            Handled::Transfer(transfer) => {
                send(stream, &service.limits, &answers[..std::mem::take(&mut ready)]).await?;
                transfer::send(stream, *transfer, peer, service, answers).await?;
            }
        }
        if ready > SEND_BYTES - 1024 {
            send(stream, &service.limits, &answers[..std::mem::take(&mut ready)]).await?;
        }
    }
    send(stream, &service.limits, &answers[..ready]).await
}

fn handle(service: &Service, client: IpAddr, message: &[u8], buffer: &mut [u8]) -> Option<Handled> {
    let zones = service.zones.borrow().clone();
    let policy = service.policy.borrow().clone();
    let context = Context {
        zones: &zones,
        policy: &policy,
        counters: &service.shared.counters,
        strangers: &service.shared.strangers,
        client,
        transport: Transport::Tcp,
        datagram_bytes: service.limits.datagram_bytes,
        now_s: service.now_s(),
    };
    let room = buffer.len().min(MESSAGE_BYTES - 2);
    let buffer = &mut buffer[..room];
    match message::read(message) {
        Err(unreadable) => context.refuse(unreadable, buffer).map(Handled::Answer),
        Ok(query) => Some(context.handle(&query, message, buffer)),
    }
}

/// Sends it, if the peer takes it in time.
pub(crate) async fn send(stream: &mut TcpStream, limits: &Limits, bytes: &[u8]) -> Option<()> {
    if bytes.is_empty() {
        return Some(());
    }
    tokio::time::timeout(limits.patience, stream.write_all(bytes)).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_come_back() {
        let (places, limits) =
            (Places::default(), Limits { connections: 3, connections_of_one: 2, ..Limits::default() });
        let (one, other): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        assert!(places.take(one, &limits) && places.take(one, &limits) && !places.take(one, &limits));
        assert!(places.take(other, &limits) && !places.take(other, &limits));
        places.free(one);
        assert!(places.take(other, &limits));
        [one, other, other].into_iter().for_each(|client| places.free(client));
        assert!(places.taken.lock().unwrap().each.is_empty());
        let (near, far) = ("2001:db8::1".parse().unwrap(), "2001:db8:0:0:ffff::2".parse().unwrap());
        assert_eq!(one_client(near), one_client(far));
    }
}
