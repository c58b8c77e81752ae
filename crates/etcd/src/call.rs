//! gRPC calls over one HTTP/2 connection: a message is five bytes of head (compressed or not, length) and its bytes; the status comes
//! in trailers. That is all of gRPC that etcd needs, and hyper does the HTTP/2.
//!
//! What matters most to the callers is in [`CallError`]: whether the member certainly did *not* do what it was asked.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use base::channel::{Receiver, Sender, bounded};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2,
};
use hyper_util::rt::TokioIo;
use prost::Message;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    endpoint::{Endpoint, Tls},
    messages::path,
};

/// How long making a connection may take; a frozen member's kernel still takes connections, but nobody answers the handshake.
const DIAL_MAX: Duration = Duration::from_secs(2);
/// Bytes of a message's head.
const HEAD_BYTES: usize = 5;
/// Largest message taken from a member: far above a page of records, far below what would hurt.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Messages on their way to a member in one stream; one request for progress each second is all there is.
const OUTGOING_MAX: usize = 8;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The member never got it.
    #[error("reach etcd at {endpoint}: {why}")]
    Unsent { endpoint: String, why: String },
    /// No answer came; the member may have done it.
    #[error("no answer from etcd at {endpoint}: {why}")]
    Lost { endpoint: String, why: String },
    /// One side does not take the other's certificate.
    #[error("etcd at {endpoint} and we do not trust each other: {why}")]
    Untrusted { endpoint: String, why: String },
    /// The member answered.
    #[error("etcd at {endpoint} says: {message}")]
    Refused { endpoint: String, code: Code, message: String },
    /// The answer is larger than [`MESSAGE_BYTES_MAX`].
    #[error("the answer of etcd at {endpoint} is larger than {MESSAGE_BYTES_MAX} bytes")]
    TooLarge { endpoint: String },
}

/// gRPC's status codes that make a difference here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    OutOfRange,
    Unauthenticated,
    Unimplemented,
    /// All others; what was asked may have been done, or may be done yet.
    Other(u32),
}

impl Code {
    fn of(number: u32) -> Self {
        match number {
            3 => Self::InvalidArgument,
            5 => Self::NotFound,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            16 => Self::Unauthenticated,
            other => Self::Other(other),
        }
    }
}

impl CallError {
    /// Whether what was asked certainly was not done and never will be.
    pub(crate) fn is_definite(&self) -> bool {
        match self {
            Self::Unsent { .. } => true,
            Self::Lost { .. } | Self::Untrusted { .. } | Self::TooLarge { .. } => false,
            Self::Refused { code, .. } => !matches!(code, Code::Other(_)),
        }
    }

    /// Whether another member may do better.
    pub(crate) fn is_the_members_fault(&self) -> bool {
        match self {
            Self::Unsent { .. } | Self::Lost { .. } | Self::Untrusted { .. } => true,
            Self::TooLarge { .. } => false,
            Self::Refused { code, .. } => matches!(code, Code::Other(_)),
        }
    }
}

/// A connection to one member. Cheap to clone; calls share it.
#[derive(Clone)]
pub(crate) struct Channel {
    sender: http2::SendRequest<Outgoing>,
    base: Arc<str>,
    endpoint: Arc<str>,
}

type Outgoing = UnsyncBoxBody<Bytes, Infallible>;

/// hyper's own tasks are ours too: they have a name and are counted.
#[derive(Clone, Copy)]
struct Tasks;

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        base::task::spawn("etcd-connection", future);
    }
}

impl Channel {
    /// Connect.
    pub(crate) async fn dial(endpoint: &Endpoint, tls: Option<&Tls>) -> Result<Self, CallError> {
        let unsent = |why: String| CallError::Unsent { endpoint: endpoint.to_string(), why };
        let untrusted = |why: String| CallError::Untrusted { endpoint: endpoint.to_string(), why };
        let dialled = async {
            let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await;
            let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
            let stream = stream.map_err(|error| unsent(error.to_string()))?;
            if !endpoint.is_tls() {
                return Self::over(stream, endpoint).await.map_err(unsent);
            }
            let tls = tls.ok_or_else(|| untrusted("no certificates were given for it".to_owned()))?;
            let name = ServerName::try_from(endpoint.host().to_owned());
            let name = name.map_err(|error| untrusted(error.to_string()))?;
            // Read anew each time, so that renewed certificates are used without a restart.
            let config = tls.client_config().map_err(|error| untrusted(base::errors::chain(&error)))?;
            let stream = TlsConnector::from(config).connect(name, stream).await;
            // A handshake that rustls itself gave up is about certificates; others are about the connection.
            let stream = stream.map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => untrusted(error.to_string()),
                _ => unsent(error.to_string()),
            })?;
            Self::over(stream, endpoint).await.map_err(unsent)
        };
        match tokio::time::timeout(DIAL_MAX, dialled).await {
            Ok(dialled) => dialled,
            Err(_) => Err(unsent(format!("no connection within {} s", DIAL_MAX.as_secs()))),
        }
    }

    async fn over<S>(stream: S, endpoint: &Endpoint) -> Result<Self, String>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) =
            http2::handshake(Tasks, TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        base::task::spawn("etcd-connection", async move {
            // Each call on it learns of its end by itself.
            let _ = connection.await;
        });
        Ok(Self { sender, base: endpoint.base().into(), endpoint: endpoint.to_string().into() })
    }

    /// Whether calls can still be made on it.
    pub(crate) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Ask and wait for the answer, `within` this time.
    pub(crate) async fn unary<Q: Message, A: Message + Default>(
        &self,
        path: &str,
        question: &Q,
        within: Duration,
    ) -> Result<A, CallError> {
        // What a member is asked about itself it answers also without a leader.
        let with_leader = !matches!(path, path::STATUS | path::MEMBER_LIST);
        self.unary_if(with_leader, path, question, within).await
    }

    /// The same for what a member can answer alone.
    pub(crate) async fn unary_of_itself<Q: Message, A: Message + Default>(
        &self,
        path: &str,
        question: &Q,
        within: Duration,
    ) -> Result<A, CallError> {
        self.unary_if(false, path, question, within).await
    }

    async fn unary_if<Q: Message, A: Message + Default>(
        &self,
        with_leader: bool,
        path: &str,
        question: &Q,
        within: Duration,
    ) -> Result<A, CallError> {
        let asked = async {
            let body = Full::new(framed(question)).boxed_unsync();
            let mut answers = self.send(path, body, with_leader).await?;
            let answer = answers.next().await?.ok_or_else(|| self.lost("the answer is empty"))?;
            // To the end of the stream, or it would have to be reset.
            let _ = answers.next().await;
            Ok(answer)
        };
        match tokio::time::timeout(within, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(self.lost(format!("none within {} ms", within.as_millis()))),
        }
    }

    /// A stream of questions and answers that begins with `first`. The outer answer comes when the member took the stream.
    pub(crate) async fn stream<Q: Message, A: Message + Default>(
        &self,
        path: &str,
        first: &Q,
    ) -> Result<(Questions, Answers<A>), CallError> {
        let (sender, receiver) = bounded("etcd-stream", OUTGOING_MAX);
        let questions = Questions { sender };
        questions.send(first);
        let body = StreamBody::new(futures_util::stream::unfold(receiver, next_frame)).boxed_unsync();
        let answers = self.send(path, body, true).await?;
        Ok((questions, answers))
    }

    async fn send<A>(&self, path: &str, body: Outgoing, with_leader: bool) -> Result<Answers<A>, CallError> {
        let uri = Uri::try_from(format!("{}{path}", self.base)).map_err(|error| self.unsent(error))?;
        let mut request = Request::post(uri)
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers");
        // A member that has no leader says so instead of keeping a watch open that hears nothing.
        if with_leader {
            request = request.header("hasleader", "true");
        }
        let request = request.body(body).map_err(|error| self.unsent(error))?;
        let mut sender = self.sender.clone();
        sender.ready().await.map_err(|error| self.unsent(error))?;
        let response = sender.send_request(request).await.map_err(|error| self.lost(base::errors::chain(&error)))?;
        if response.status() != http::StatusCode::OK {
            return Err(self.lost(format!("HTTP {}", response.status())));
        }
        self.check(response.headers())?;
        Ok(Answers::new(response, self.clone()))
    }

    /// What the status in `headers` says, if there is one.
    fn check(&self, headers: &HeaderMap) -> Result<(), CallError> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let Some(status) = text("grpc-status") else { return Ok(()) };
        match status.parse() {
            Ok(0) => Ok(()),
            number => Err(CallError::Refused {
                endpoint: self.endpoint.to_string(),
                code: Code::of(number.unwrap_or(2)),
                message: text("grpc-message").unwrap_or("no reason given").to_owned(),
            }),
        }
    }

    fn unsent(&self, error: impl std::error::Error) -> CallError {
        CallError::Unsent { endpoint: self.endpoint.to_string(), why: base::errors::chain(&error) }
    }

    pub(crate) fn lost(&self, why: impl std::fmt::Display) -> CallError {
        let (endpoint, why) = (self.endpoint.to_string(), why.to_string());
        // With TLS 1.3 the other side looks at our certificate after the handshake, and its objection comes instead of an answer.
        match why.contains("fatal alert") {
            true => CallError::Untrusted { endpoint, why },
            false => CallError::Lost { endpoint, why },
        }
    }
}

async fn next_frame(mut receiver: Receiver<Bytes>) -> Option<(Result<Frame<Bytes>, Infallible>, Receiver<Bytes>)> {
    let bytes = receiver.recv().await?;
    Some((Ok(Frame::data(bytes)), receiver))
}

/// The questions' end of a stream; dropping it says that no more come.
pub(crate) struct Questions {
    sender: Sender<Bytes>,
}

impl Questions {
    /// One more, unless those before it are still on their way or the stream has ended; its answers tell.
    pub(crate) fn send(&self, question: &impl Message) {
        let _ = self.sender.try_send(framed(question));
    }
}

/// The answers' end of a call.
pub(crate) struct Answers<A> {
    body: Incoming,
    // What came and is no whole message yet: kept here, so that waiting for the next one may be given up and begun again.
    read: BytesMut,
    channel: Channel,
    kind: std::marker::PhantomData<fn() -> A>,
}

impl<A> Answers<A> {
    fn new(response: Response<Incoming>, channel: Channel) -> Self {
        Self { body: response.into_body(), read: BytesMut::new(), channel, kind: std::marker::PhantomData }
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }
}

impl<A: Message + Default> Answers<A> {
    /// The next answer; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<A>, CallError> {
        loop {
            let taken = take_message(&mut self.read).map_err(|problem| match problem {
                Unreadable::Compressed => self.channel.lost("it is compressed, which was not asked for"),
                Unreadable::TooLarge => CallError::TooLarge { endpoint: self.channel.endpoint.to_string() },
            })?;
            if let Some(message) = taken {
                return A::decode(message).map(Some).map_err(|error| self.channel.lost(&error));
            }
            let frame = match self.body.frame().await {
                Some(frame) => frame.map_err(|error| self.channel.lost(base::errors::chain(&error)))?,
                None if self.read.is_empty() => return Ok(None),
                None => return Err(self.channel.lost("it ends in the middle")),
            };
            match frame.into_data() {
                Ok(data) => self.read.extend_from_slice(&data),
                Err(other) => {
                    if let Some(trailers) = other.trailers_ref() {
                        self.channel.check(trailers)?;
                    }
                }
            }
        }
    }
}

/// A message with its head.
fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).expect("a message is smaller than 4 GiB"));
    message.encode(&mut bytes).expect("the buffer grows");
    bytes.freeze()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    Compressed,
    TooLarge,
}

/// The first whole message of what was read, without its head.
fn take_message(read: &mut BytesMut) -> Result<Option<Bytes>, Unreadable> {
    let Some(head) = read.get(..HEAD_BYTES) else { return Ok(None) };
    if head[0] != 0 {
        return Err(Unreadable::Compressed);
    }
    let length = usize::try_from((&head[1..]).get_u32()).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX {
        return Err(Unreadable::TooLarge);
    }
    if read.len() < HEAD_BYTES + length {
        return Ok(None);
    }
    read.advance(HEAD_BYTES);
    Ok(Some(read.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::PutRequest;

    #[test]
    fn messages_are_cut_where_they_end() {
        let one = PutRequest { key: "a".into(), value: "one".into() };
        let two = PutRequest { key: "b".into(), value: "".into() };
        let sent = [framed(&one), framed(&two)].concat();
        let mut read = BytesMut::new();
        let mut taken = Vec::new();
        for byte in sent {
            read.put_u8(byte);
            while let Some(message) = take_message(&mut read).unwrap() {
                taken.push(PutRequest::decode(message).unwrap());
            }
        }
        assert_eq!(taken, [one, two]);
        assert!(read.is_empty());
    }

    #[test]
    fn what_nobody_asked_for_is_refused_before_it_is_read() {
        let head = |compressed, length: u32| {
            let mut bytes = BytesMut::new();
            bytes.put_u8(compressed);
            bytes.put_u32(length);
            bytes
        };
        assert_eq!(take_message(&mut head(1, 0)), Err(Unreadable::Compressed));
        let most = u32::try_from(MESSAGE_BYTES_MAX).unwrap();
        assert_eq!(take_message(&mut head(0, most)), Ok(None));
        assert_eq!(take_message(&mut head(0, most + 1)), Err(Unreadable::TooLarge));
    }

    #[test]
    fn only_what_certainly_was_not_done_is_definite() {
        let refused =
            |number| CallError::Refused { endpoint: String::new(), code: Code::of(number), message: String::new() };
        let definite = [3, 5, 7, 8, 9, 11, 12, 16];
        for number in 1..=17 {
            assert_eq!(refused(number).is_definite(), definite.contains(&number), "{number}");
        }
        assert!(!CallError::Lost { endpoint: String::new(), why: String::new() }.is_definite());
    }
}
