//! The change feed: an account's changes over a WebSocket, in Triton's messages, and from any place on for clients that remember one.
//!
//! ```text
//! signed GET with an upgrade ─► 101 ─► registration ─► [list or what was missed ─► current] ─► changes … ─► close, with a reason
//! ```
//! One task has one connection. It holds one message at a time, and of a list or of what was missed the records as they were: while a client
//! does not take it, what comes after is not queued but found again in the records, where several changes of one instance are one
//! (`control::instances::changes`). A client that takes nothing for [`SEND_DEADLINE`], or a whole list for longer than [`LIST_DEADLINE`], is
//! closed, and may come back with its cursor, here or at another headnode.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cloudapi::{
    error::Code,
    signature::KeyId,
    types::changefeed::{Change, ChangeKind, Cursor, Note, REGISTRATION_MAX, Registration, Since},
    websocket::{self, CloseCode, Message, Socket, SocketError},
};
use control::{
    Control, accounts,
    instances::{
        self,
        changes::{Changed, Feed, Missed, place_after},
    },
};
use futures_util::FutureExt as _;
use http::{HeaderMap, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use model::{changed::SubResource, id::AccountId, time::Timestamp};
use serde::Serialize;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use super::{
    call::Call,
    error::ApiError,
    machine_view::{Show, machine},
    reply::Reply,
    version::Version,
};

/// Connections of one account at once: a few programs, each with one.
const ACCOUNT_MAX: usize = 16;
/// Connections at once, of all accounts: each holds one message and a few buffers, and looks at every change.
const FEEDS_MAX: usize = 1_024;
/// From the answer to the upgraded connection, and for the last words of one.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A client takes a message within this time, or is closed.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// A client takes all that it missed, or everything there is, within this time.
const LIST_DEADLINE: Duration = Duration::from_secs(600);
/// How often a client hears something, and it is looked whether it may go on.
const BEAT: Duration = Duration::from_secs(5);
/// A client that was not heard of for so long is gone, or speaks no WebSocket: it has twelve beats to answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Registrations on one connection: each may ask for a whole list.
const REGISTRATIONS_MAX: u32 = 32;

/// What a request brings that may become a WebSocket.
pub(super) struct Upgrade {
    on: OnUpgrade,
    key: String,
}

impl Upgrade {
    /// Of a request's headers and its connection.
    ///
    /// # Errors
    /// With what is missing.
    pub(super) fn of(headers: &HeaderMap, on: Option<OnUpgrade>) -> Result<Self, &'static str> {
        let key = websocket::asked(headers)?;
        let on = on.ok_or("this connection cannot become a WebSocket; use HTTP/1.1")?;
        Ok(Self { on, key })
    }
}

// === who is connected ===

/// Connections by account.
#[derive(Default)]
pub(super) struct Feeds {
    /// Leaf data: held for a few instructions.
    open: Arc<Mutex<HashMap<AccountId, usize>>>,
}

/// One of [`Feeds`]; gives its place back when it is dropped.
struct Place {
    open: Arc<Mutex<HashMap<AccountId, usize>>>,
    account: AccountId,
}

impl Feeds {
    fn take(&self, account: AccountId) -> Result<Place, String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.values().sum::<usize>() >= FEEDS_MAX {
            return Err(format!("{FEEDS_MAX} change feeds are open at this headnode; try another one, or later"));
        }
        let own = open.entry(account).or_default();
        if *own >= ACCOUNT_MAX {
            return Err(format!("{ACCOUNT_MAX} change feeds of this account are open; close one"));
        }
        *own += 1;
        Ok(Place { open: self.open.clone(), account })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = open.get_mut(&self.account) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.account);
            }
        }
    }
}

/// `GET /:account/changefeed`.
pub(super) async fn open(mut call: Call) -> Result<Reply, ApiError> {
    let upgrade = call.upgrade.take().ok_or("this speaks WebSocket only").and_then(|upgrade| upgrade);
    let upgrade = upgrade.map_err(|why| ApiError::new(Code::UpgradeRequired, why))?;
    let place = call.api.feeds.take(call.account.id);
    let place = place.map_err(|why| ApiError::new(Code::TooManyRequests, why))?;
    let accept = websocket::accept(&upgrade.key);
    let client = Client {
        control: call.control.clone(),
        owner: call.account.id,
        key_id: call.key_id.clone(),
        version: call.version,
        _place: place,
    };
    base::task::spawn("changefeed", client.serve(upgrade.on));
    let reply = Reply::empty(StatusCode::SWITCHING_PROTOCOLS).header(header::CONNECTION, "upgrade");
    Ok(reply.header(header::UPGRADE, "websocket").header(header::SEC_WEBSOCKET_ACCEPT, accept))
}

/// Who listens, and to what.
struct Client {
    control: Control,
    owner: AccountId,
    /// What it signed with.
    key_id: String,
    version: Version,
    _place: Place,
}

/// Why a connection ends.
enum End {
    /// The other side is not there any more.
    Gone,
    /// We close it, with a code and a reason.
    Close(CloseCode, String),
}

impl End {
    fn close(code: CloseCode, reason: impl Into<String>) -> Self {
        Self::Close(code, reason.into())
    }
}

impl From<SocketError> for End {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Io(_) => Self::Gone,
            SocketError::Violation { code, reason } => Self::Close(code, reason),
        }
    }
}

impl Client {
    async fn serve(self, on: OnUpgrade) {
        let Ok(Ok(upgraded)) = timeout(HANDSHAKE_DEADLINE, on).await else { return };
        let socket = Socket::of_server(TokioIo::new(upgraded), REGISTRATION_MAX).await;
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session =
            Session { beat, heard_at: Instant::now(), registrations: 0, told: None, socket, client: self };
        let Err(end) = session.run().await;
        if let End::Close(code, reason) = end {
            tracing::debug!(account = %session.client.owner, %code, reason, "closing a change feed");
            // Whoever does not take this does not miss it.
            let _ = timeout(HANDSHAKE_DEADLINE, session.socket.end(code, reason)).await;
        }
    }
}

/// A connection under way.
struct Session {
    client: Client,
    socket: Socket<TokioIo<Upgraded>>,
    beat: Interval,
    heard_at: Instant,
    registrations: u32,
    /// What it registered for, and its changes; none before that.
    told: Option<Told>,
}

/// What a client is told of, and how far.
struct Told {
    registration: Registration,
    feed: Feed,
    /// When nothing was newer than what was told before the changes that are told now.
    before_at: Timestamp,
    /// When nothing was newer than [`Feed::through`].
    through_at: Timestamp,
}

/// What happens to one.
enum Event {
    Read(Option<Message>),
    Changed(Vec<Changed>),
    Beat,
}

impl Session {
    async fn run(&mut self) -> Result<Infallible, End> {
        loop {
            match self.event().await? {
                Event::Read(None) => return Err(End::Gone),
                Event::Read(Some(message)) => self.heard(message).await?,
                Event::Changed(changed) => self.pass_on(changed).await?,
                Event::Beat => self.beat().await?,
            }
        }
    }

    async fn event(&mut self) -> Result<Event, End> {
        let told = &mut self.told;
        let changed = async {
            match told {
                Some(told) => told.feed.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Whoever never stops talking keeps nothing else from its turn.
            biased;
            _ = self.beat.tick() => Ok(Event::Beat),
            message = self.socket.read() => Ok(Event::Read(message?)),
            changed = changed => Ok(Event::Changed(changed)),
        }
    }

    async fn heard(&mut self, message: Message) -> Result<(), End> {
        self.heard_at = Instant::now();
        match message {
            Message::Text(text) => self.register(&text).await,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(()),
            Message::Close(_) => Err(End::close(CloseCode::Normal, "")),
            Message::Binary(_) => Err(End::close(CloseCode::Unsupported, "a registration is text")),
        }
    }

    /// From now on it is told this; what it said before does not count any more.
    async fn register(&mut self, text: &str) -> Result<(), End> {
        self.registrations += 1;
        if self.registrations > REGISTRATIONS_MAX {
            let why = format!("a connection takes {REGISTRATIONS_MAX} registrations");
            return Err(End::close(CloseCode::Policy, why));
        }
        let registration = Registration::parse(text).map_err(|bad| End::close(CloseCode::Policy, bad.to_string()))?;
        let control = self.client.control.clone();
        let is_fresh = control.store.fresh().await.is_ok();
        // Before the records are looked at: what is deleted after that has a tombstone for as long as is promised.
        let opened_at = control.now();
        let feed = Feed::open(&control, self.client.owner);
        let since = registration.since;
        let everything = |reason| (feed.present(), Some(reason), opened_at);
        let (missed, list, before_at) = match since {
            None => (Vec::new(), None, opened_at),
            Some(Since::Nothing) => everything("everything was asked for"),
            Some(Since::Cursor(place)) => {
                let at = Timestamp(i64::try_from(place.seconds).unwrap_or(i64::MAX).saturating_mul(1_000));
                match feed.missed(&control, place.revision, at) {
                    Missed::Changed(missed) => (missed, None, at),
                    Missed::TooLongAgo => everything("what was deleted since then is not remembered any more"),
                    // It may just not have arrived here yet.
                    Missed::Unknown if !is_fresh => {
                        let why = "this headnode does not know the newest records; ask another one, or try again";
                        return Err(End::close(CloseCode::Again, why));
                    }
                    Missed::Unknown => everything("the datacenter's records do not reach that far"),
                }
            }
        };
        self.told = Some(Told { registration, feed, before_at, through_at: opened_at });
        if let Some(reason) = list {
            self.say(&Note::List { reason: reason.into() }).await?;
        }
        // What changed of each is not remembered.
        let missed: Vec<_> = missed.into_iter().map(|instance| Changed { instance, touched: None }).collect();
        self.tell_all(&missed).await?;
        if since.is_some() { self.say_current().await } else { Ok(()) }
    }

    async fn pass_on(&mut self, changed: Vec<Changed>) -> Result<(), End> {
        let now = self.client.control.now();
        if let Some(told) = &mut self.told {
            told.before_at = std::mem::replace(&mut told.through_at, now);
        }
        self.tell_all(&changed).await
    }

    /// Tells of changes, in their order, and that it is still there in between.
    async fn tell_all(&mut self, changed: &[Changed]) -> Result<(), End> {
        let begun = Instant::now();
        let Some(told) = &self.told else { return Ok(()) };
        let through = told.feed.through();
        let in_order: Vec<_> = changed.iter().map(|changed| changed.instance.clone()).collect();
        for (position, changed) in changed.iter().enumerate() {
            if self.beat.tick().now_or_never().is_some() {
                self.keep_up().await?;
            }
            if begun.elapsed() > LIST_DEADLINE {
                return Err(End::close(CloseCode::Again, "all this took too long; go on with the last cursor"));
            }
            self.tell(changed, place_after(&in_order, position, through)).await?;
        }
        // It was not listened to meanwhile.
        self.heard_at += begun.elapsed();
        Ok(())
    }

    /// Tells of a change, if it was registered for.
    async fn tell(&mut self, changed: &Changed, place: u64) -> Result<(), End> {
        let Some(told) = &self.told else { return Ok(()) };
        let (registration, Changed { instance, touched }) = (&told.registration, changed);
        let sub_resources: Vec<SubResource> = match touched {
            // Which of them changed is not known; whether it is gone is.
            None => {
                let is_told = |one: &SubResource| *one != SubResource::Destroyed || instance.deleted_at.is_some();
                registration.sub_resources.iter().copied().filter(is_told).collect()
            }
            Some(touched) => touched.clone(),
        };
        let is_wanted = match touched {
            None => registration.admits_instance(instance.id),
            Some(touched) => registration.admits(instance.id, touched),
        };
        if !is_wanted {
            return Ok(());
        }
        let cursor = registration.since.map(|_| told.cursor(place));
        let view = instances::view(&self.client.control, instance.clone());
        let change = Change {
            changed_resource_id: instance.id,
            published: self.client.control.now().0.to_string().into(),
            resource_state: view.state.as_str().into(),
            change_kind: ChangeKind { resource: "vm".into(), sub_resources },
            resource_object: machine(&view, self.client.version, Show::default()),
            cursor,
        };
        self.say(&change).await
    }

    async fn say_current(&mut self) -> Result<(), End> {
        let Some(told) = self.told.as_mut().filter(|told| told.registration.since.is_some()) else { return Ok(()) };
        // The time first: what comes after it is newer than both.
        let control = &self.client.control;
        let now = control.now();
        if control.snapshot().revision().0 == told.feed.through() {
            told.through_at = now;
        }
        let cursor = told.cursor(told.feed.through());
        self.say(&Note::Current { cursor }).await
    }

    async fn beat(&mut self) -> Result<(), End> {
        if self.heard_at.elapsed() > SILENCE_MAX {
            // Its machine may have slept: it is welcome to go on.
            return Err(End::close(CloseCode::Again, "nothing was heard for a minute"));
        }
        self.keep_up().await?;
        self.say_current().await
    }

    /// Sees whether it may go on, and lets the client know that it is there.
    async fn keep_up(&mut self) -> Result<(), End> {
        let control = &self.client.control;
        if control.headnodes.is_out() || control.headnodes.lacking().is_some() {
            let why = "this headnode is not well; go on at another one, or here later";
            return Err(End::close(CloseCode::Away, why));
        }
        if !self.client.may_listen() {
            return Err(End::close(CloseCode::Policy, "the key or the account is not valid any more"));
        }
        self.send(Message::Ping(Vec::new().into())).await
    }

    async fn say(&mut self, said: &impl Serialize) -> Result<(), End> {
        let text = serde_json::to_string(said).expect("what is told is plain data with text keys");
        self.send(Message::text(text)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        match timeout(SEND_DEADLINE, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            // Half a message may be on its way, so no last words fit; but the connection ends, which says enough.
            Err(_) => {
                tracing::info!(account = %self.client.owner, "a change feed was cut: its client takes nothing");
                Err(End::Gone)
            }
        }
    }
}

impl Told {
    /// The place up to which everything was told, at a time when nothing was newer: tombstones are counted from there.
    fn cursor(&self, place: u64) -> Cursor {
        let at = if place >= self.feed.through() { self.through_at } else { self.before_at };
        Cursor { revision: place, seconds: u64::try_from(at.0.div_euclid(1_000)).unwrap_or(0) }
    }
}

impl Client {
    /// Whether the key that opened this, and its account, are still good.
    fn may_listen(&self) -> bool {
        let Ok(key_id) = KeyId::parse(&self.key_id) else { return false };
        let signer = accounts::by_login(&self.control, &key_id.login);
        signer.is_ok_and(|signer| {
            let may = signer.id == self.owner || signer.operator;
            may && !signer.disabled && accounts::keys::find(&self.control, signer.id, &key_id.key).is_some()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_fills_its_own_places_alone() {
        let feeds = Feeds::default();
        let (ana, bob) = (AccountId::random(), AccountId::random());
        let held: Vec<_> = (0..ACCOUNT_MAX).map(|_| feeds.take(ana).unwrap()).collect();
        assert!(feeds.take(ana).is_err() && feeds.take(bob).is_ok());
        drop(held);
        assert!(feeds.take(ana).is_ok());
        assert!(feeds.open.lock().unwrap().is_empty());
    }
}
