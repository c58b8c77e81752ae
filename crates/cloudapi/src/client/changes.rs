//! Listening to an account's changes, at one headnode after the other, from where the last one ended.

use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep, timeout};

use super::http::{Client, ClientError, failed};
use crate::{
    types::changefeed::{Note, Registration, Since, Told},
    websocket::{self, CloseCode, Message, Socket},
};

/// Largest message read, bytes: an instance with all the metadata it may have.
const MESSAGE_MAX: usize = 8 << 20;
/// From the first packet to the upgraded connection; a headnode that stands still is left then.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// A server says something every 5 s; one that is stopped where it stands takes connections and says nothing.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// How long it is tried to find a headnode that tells more.
const SEARCH_MAX: Duration = Duration::from_secs(600);
/// Between two rounds of trying them all.
const PAUSE_FLOOR: Duration = Duration::from_millis(250);
const PAUSE_CEILING: Duration = Duration::from_secs(10);

/// A feed that goes on by itself when its connection ends.
pub struct Changes<'a> {
    client: &'a Client,
    registration: Registration,
    socket: Option<Socket<TokioIo<Upgraded>>>,
    /// The connection has told something that is not told again.
    has_told: bool,
    /// Since when nothing is told.
    lost_at: Option<Instant>,
}

impl Client {
    /// Listens to what is registered for. With a `since` in it nothing is missed when the connection is lost and another one takes its place;
    /// without, nothing is told of what happened in between.
    pub fn changes(&self, registration: Registration) -> Changes<'_> {
        Changes { client: self, registration, socket: None, has_told: false, lost_at: None }
    }
}

impl Changes<'_> {
    /// From where on another one would have to listen, to be told what this one was not.
    pub const fn since(&self) -> Option<Since> {
        self.registration.since
    }

    /// The next that is told.
    ///
    /// # Errors
    /// When the server refuses, or nobody is found who tells more.
    pub async fn next(&mut self) -> Result<Told, ClientError> {
        let mut pause = PAUSE_FLOOR;
        loop {
            let error = match self.told().await {
                Ok(Ok(told)) => {
                    self.note(&told);
                    return Ok(told);
                }
                Ok(Err(reason)) => {
                    // Who let go of this may not be well.
                    self.client.prefer_another();
                    ClientError::Closed { reason }
                }
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => error,
            };
            self.socket = None;
            let lost_at = *self.lost_at.get_or_insert_with(Instant::now);
            sleep(pause).await;
            match std::mem::take(&mut self.has_told) {
                true => pause = PAUSE_FLOOR,
                false if lost_at.elapsed() > SEARCH_MAX => return Err(error),
                false => pause = (pause * 2).min(PAUSE_CEILING),
            }
        }
    }

    /// What the connection tells next, or why it has ended.
    async fn told(&mut self) -> Result<Result<Told, String>, ClientError> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(connect(self.client, &self.registration).await?),
        };
        loop {
            let message = match timeout(SILENCE_MAX, socket.read()).await {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => return Ok(Err("the server left without a word".to_owned())),
                Ok(Err(error)) => return Ok(Err(error.to_string())),
                Err(_) => return Ok(Err(format!("the server said nothing for {} s", SILENCE_MAX.as_secs()))),
            };
            match message {
                Message::Text(text) => {
                    let told = Told::parse(&text).map_err(|source| ClientError::Answer {
                        url: "the change feed".to_owned(),
                        status: StatusCode::SWITCHING_PROTOCOLS,
                        source,
                    })?;
                    return Ok(Ok(told));
                }
                Message::Close(Some(last)) if last.code == CloseCode::Policy => {
                    return Err(ClientError::Closed { reason: last.reason.to_string() });
                }
                Message::Close(last) => {
                    let reason = last.map(|last| last.reason.to_string()).filter(|reason| !reason.is_empty());
                    return Ok(Err(reason.unwrap_or_else(|| "the server left without a word".to_owned())));
                }
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    fn note(&mut self, told: &Told) {
        let cursor = match told {
            Told::Change(change) => change.cursor,
            Told::Note(Note::Current { cursor }) => Some(*cursor),
            // It would be told again.
            Told::Note(Note::List { .. }) => return,
        };
        (self.has_told, self.lost_at) = (true, None);
        if let (Some(_), Some(cursor)) = (self.registration.since, cursor) {
            self.registration.since = Some(Since::Cursor(cursor));
        }
    }
}

/// What another attempt, or another headnode, would say too.
fn is_final(error: &ClientError) -> bool {
    match error {
        ClientError::Refused { status, .. } => status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS,
        ClientError::Connect { .. } | ClientError::Timeout { .. } => false,
        ClientError::Profile(_) | ClientError::Sign(_) | ClientError::Answer { .. } | ClientError::Closed { .. } => {
            true
        }
    }
}

/// A connection with a registration, to the first headnode that takes it.
async fn connect(client: &Client, registration: &Registration) -> Result<Socket<TokioIo<Upgraded>>, ClientError> {
    let mut order = client.order();
    loop {
        let (index, is_last) = order.remove(0);
        let url = format!("{}{}", client.bases[index], client.ask(Method::GET, "/changefeed", &[], None).target);
        let outcome = match timeout(CONNECT_DEADLINE, upgrade(client, &url, registration)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ClientError::Timeout { url, seconds: CONNECT_DEADLINE.as_secs() }),
        };
        match outcome {
            Err(error) if !is_last && !is_final(&error) => {}
            outcome => return client.noted(index, outcome),
        }
    }
}

async fn upgrade(
    client: &Client,
    url: &str,
    registration: &Registration,
) -> Result<Socket<TokioIo<Upgraded>>, ClientError> {
    let key = websocket::key();
    let mut request = client.request(&client.ask(Method::GET, "/changefeed", &[], None), url, None).await?;
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(websocket::VERSION));
    headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).expect("base64 is a header's value"));
    let response = client.http1.request(request).await.map_err(|error| failed(url, error))?;
    let lost = |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Connect { url: url.to_owned(), source };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Client::refusal(url, response).await);
    }
    let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).and_then(|value| value.to_str().ok());
    if accepted != Some(&websocket::accept(&key)) {
        return Err(lost("it accepted a WebSocket that was not asked for".into()));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| lost(error.into()))?;
    let mut socket = Socket::of_client(TokioIo::new(upgraded), MESSAGE_MAX).await;
    let sent = socket.send(Message::text(registration.to_text())).await;
    sent.map_err(|error| lost(error.into()))?;
    Ok(socket)
}
