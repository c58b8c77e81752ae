//! Answers: status, body, and the headers every answer carries.

use std::time::Instant;

use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use cloudapi::signature::http_date;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

use super::{error::ApiError, version::Version};

/// Release of the contract this server follows.
const SERVER: &str = "cloudapi/9.20.0";

/// What a handler answers.
#[derive(Debug)]
pub(super) struct Reply {
    status: StatusCode,
    content: Content,
    headers: Vec<(HeaderName, String)>,
    /// See [`Reply::secret`].
    secret: bool,
}

#[derive(Debug)]
enum Content {
    None,
    Json(Vec<u8>),
    /// Bare when the client asks for `text/plain`, a JSON string otherwise.
    Text(String),
}

impl Reply {
    pub(super) fn json<T: Serialize>(value: &T) -> Self {
        let bytes = serde_json::to_vec(value).expect("bodies are plain data with text keys");
        Self { status: StatusCode::OK, content: Content::Json(bytes), headers: Vec::new(), secret: false }
    }

    pub(super) fn text(text: String) -> Self {
        Self { status: StatusCode::OK, content: Content::Text(text), headers: Vec::new(), secret: false }
    }

    pub(super) fn empty(status: StatusCode) -> Self {
        Self { status, content: Content::None, headers: Vec::new(), secret: false }
    }

    pub(super) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Number of things in this page, and how many it could have.
    pub(super) fn counted(self, count: usize, limit: Option<usize>) -> Self {
        let reply = self.header(HeaderName::from_static("x-resource-count"), count.to_string());
        match limit {
            Some(limit) => reply.header(HeaderName::from_static("x-query-limit"), limit.to_string()),
            None => reply,
        }
    }
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Refused { code, body, headers } => {
                let status = StatusCode::from_u16(code.status()).expect("the table of codes has valid statuses");
                Self { headers, ..Self::json(&body).status(status) }
            }
            // Only reached where no body can be had; the service shows the instance otherwise.
            ApiError::Gone(_) => Self::empty(StatusCode::GONE),
        }
    }
}

// === what is remembered of a reply ===

/// A reply as text, for the record of a call that may be repeated.
#[derive(Serialize, Deserialize)]
struct Remembered {
    status: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    json: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, String)>,
}

impl Reply {
    /// This shows what must not be written down.
    pub(super) fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// All of it as text; `None` when it is not to be written down.
    pub(super) fn to_text(&self) -> Option<String> {
        if self.secret {
            return None;
        }
        let (json, text) = match &self.content {
            Content::None => (None, None),
            Content::Json(bytes) => (Some(String::from_utf8(bytes.clone()).ok()?), None),
            Content::Text(text) => (None, Some(text.clone())),
        };
        let headers = self.headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.clone())).collect();
        let remembered = Remembered { status: self.status.as_u16(), json, text, headers };
        Some(serde_json::to_string(&remembered).expect("a reply is plain data"))
    }

    /// The reply that [`Reply::to_text`] wrote; `None` when the text is something else.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let remembered: Remembered = serde_json::from_str(text).ok()?;
        let content = match (remembered.json, remembered.text) {
            (Some(json), _) => Content::Json(json.into_bytes()),
            (None, Some(text)) => Content::Text(text),
            (None, None) => Content::None,
        };
        let headers = remembered.headers.into_iter();
        let headers = headers.filter_map(|(name, value)| Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value)));
        let status = StatusCode::from_u16(remembered.status).ok()?;
        Some(Self { status, content, headers: headers.collect(), secret: false })
    }
}

/// What an answer needs to know of its request.
pub(super) struct Frame<'a> {
    pub(super) started: Instant,
    pub(super) now_seconds: i64,
    pub(super) request_id: String,
    pub(super) version: Version,
    pub(super) datacenter: &'a str,
    pub(super) head: bool,
    /// The client asked for `text/plain`.
    pub(super) plain: bool,
}

impl Frame<'_> {
    /// The bytes that go out.
    pub(super) fn finish(self, reply: Reply) -> Response<Body> {
        let (bytes, content_type) = match reply.content {
            Content::None => (Bytes::new(), None),
            Content::Json(bytes) => (bytes.into(), Some("application/json")),
            Content::Text(text) if self.plain => (text.into(), Some("text/plain")),
            Content::Text(text) => (serde_json::to_vec(&text).expect("text is JSON").into(), Some("application/json")),
        };
        let mut response = Response::new(Body::empty());
        *response.status_mut() = reply.status;
        let headers = response.headers_mut();
        headers.reserve(20);
        self.standard(headers);
        if let Some(content_type) = content_type {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            set(headers, HeaderName::from_static("content-md5"), &BASE64.encode(Md5::digest(&bytes)));
        }
        if !matches!(reply.status, StatusCode::NO_CONTENT | StatusCode::SWITCHING_PROTOCOLS) {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        }
        for (name, value) in &reply.headers {
            set(headers, name.clone(), value);
        }
        if !self.head && !bytes.is_empty() {
            *response.body_mut() = Body::from(bytes);
        }
        response
    }

    fn standard(&self, headers: &mut HeaderMap) {
        const FIXED: [(&str, &str); 5] = [
            ("server", SERVER),
            ("access-control-allow-origin", "*"),
            ("access-control-allow-methods", "GET, HEAD, POST, PUT, DELETE"),
            (
                "access-control-allow-headers",
                "Accept, Accept-Version, Authorization, Content-Length, Content-MD5, Content-Type, Date, X-Date, Api-Version, \
                 Idempotency-Key",
            ),
            (
                "access-control-expose-headers",
                "Api-Version, Idempotent-Replayed, Neso-Stale, Request-Id, Response-Time, X-Query-Limit, X-Resource-Count",
            ),
        ];
        for (name, value) in FIXED {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        set(headers, header::DATE, &http_date(self.now_seconds));
        headers.insert(HeaderName::from_static("api-version"), HeaderValue::from_static(self.version.as_str()));
        set(headers, HeaderName::from_static("request-id"), &self.request_id);
        set(headers, HeaderName::from_static("x-request-id"), &self.request_id);
        set(headers, HeaderName::from_static("triton-datacenter-name"), self.datacenter);
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        headers.insert(HeaderName::from_static("response-time"), HeaderValue::from(millis));
    }
}

/// Sets a header; a value that cannot be one (a name in a foreign script) is left out rather than failing the request.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
