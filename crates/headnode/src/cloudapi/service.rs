//! One request, from its bytes to its answer: the order of the checks is the contract's.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::{body::Body, extract::ConnectInfo};
use bytes::Bytes;
use cloudapi::{
    error::Code,
    signature::{Head, http_date},
    types::Ping,
};
use control::instances;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::upgrade::OnUpgrade;
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    CloudApi, auth,
    call::Call,
    changefeed::Upgrade,
    error::ApiError,
    machine_view,
    params::{BODY_MAX, Params},
    repeat,
    reply::{Frame, Reply},
    routes::{self, Found},
    version::{self, Version},
};
use crate::telemetry::Door;

/// How long a client may take to send at most [`BODY_MAX`] bytes.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// Answers a request, whatever it is.
pub(super) async fn answer(api: CloudApi, request: Request<Body>) -> Response<Body> {
    let started = Instant::now();
    let (mut parts, body) = request.into_parts();
    let on = parts.extensions.remove::<OnUpgrade>();
    name_host(&mut parts);
    let running = api.options.requests.begin(Door::Cloudapi);
    let version = version::negotiate(&parts.headers);
    let frame = Frame {
        started,
        now_seconds: api.control.now().0.div_euclid(1_000),
        request_id: request_id(&parts.headers),
        version: *version.as_ref().unwrap_or(&Version::NEWEST),
        datacenter: &api.options.datacenter,
        head: parts.method == Method::HEAD,
        plain: accepts(&parts.headers, "text/plain") && !accepts(&parts.headers, "application/json"),
    };
    if let Some(reply) = public(&api, &parts.method, parts.uri.path()) {
        let response = frame.finish(reply);
        running.end(&parts.method, Some(PUBLIC), response.status());
        return response;
    }
    let found = routes::find(&parts.method, parts.uri.path());
    let route = match &found {
        Found::Endpoint(route, _) => Some(route.path),
        Found::OtherMethods(_) | Found::Nothing => None,
    };
    // Also for calls that change something: what they are refused for must not be a state that is past.
    let fresh = api.control.store.fresh().await;
    let reply = match handle(&api, &parts, found, Arriving { body, on }, version).await {
        Ok(reply) => reply,
        Err(ApiError::Gone(instance)) => {
            let view = instances::view(&api.control, instance);
            let machine = machine_view::machine(&view, frame.version, machine_view::Show::default());
            Reply::json(&machine).status(StatusCode::GONE)
        }
        Err(error) => error.into(),
    };
    let response = frame.finish(match fresh {
        Ok(()) => reply,
        Err(stale) => reply.header(cloudapi::types::service::STALE, stale.age.as_millis().to_string()),
    });
    running.end(&parts.method, route, response.status());
    response
}

/// What requests are counted as that anybody may send.
const PUBLIC: &str = "public";

/// Seconds after which a headnode that is not well may be asked again.
const OUT_RETRY_SECONDS: u64 = 5;

/// What comes after a request's head.
struct Arriving {
    body: Body,
    /// The connection itself, where it can become something else.
    on: Option<OnUpgrade>,
}

async fn handle(
    api: &CloudApi,
    parts: &Parts,
    found: Found,
    arriving: Arriving,
    version: Result<Version, String>,
) -> Result<Reply, ApiError> {
    let path = parts.uri.path();
    let (route, mut values) = match found {
        Found::Endpoint(route, values) => (route, values),
        Found::OtherMethods(methods) => {
            let message = format!("{} is not allowed on {path}", parts.method);
            return Err(ApiError::new(Code::MethodNotAllowed, message).with_header(header::ALLOW, methods.join(", ")));
        }
        Found::Nothing => return Err(ApiError::not_found(format!("{path} does not exist"))),
    };
    let version = version.map_err(|range| {
        let known = cloudapi::types::service::VERSIONS.join(", ");
        ApiError::new(Code::InvalidVersion, format!("no version fits \"{range}\"; this server speaks {known}"))
    })?;
    if !["application/json", "text/plain"].iter().any(|kind| accepts(&parts.headers, kind)) {
        return Err(ApiError::new(Code::NotAcceptable, "answers are application/json; accept that"));
    }

    let target = parts.uri.path_and_query().map_or(path, |target| target.as_str());
    let head = Head { method: &parts.method, target, version: parts.version, headers: &parts.headers };
    let headnodes = &api.control.headnodes;
    let signer = auth::signer(&api.control, &api.keys, head);
    // By a clock that is wrong every signature is.
    let signer = signer.map_err(|error| if headnodes.is_clock_wrong(api.control.now()) { out() } else { error })?;
    let account = auth::owner(&api.control, &signer.holder, &values.remove(0))?;
    let operator = signer.holder.operator;
    if !operator {
        let admitted = api.throttle.admit(signer.holder.id, route.group, api.control.now().0);
        admitted.map_err(|seconds| {
            let message = format!("too many requests; try again in {seconds} s");
            ApiError::new(Code::TooManyRequests, message).with_header(header::RETRY_AFTER, seconds.to_string())
        })?;
    }
    maintenance(api, &parts.method)?;
    can_change(api, &parts.method)?;
    let body = read(parts, arriving.body).await?;
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let params = Params::merge(parts.uri.query(), content_type, &body)?;
    let query = Params::merge(parts.uri.query(), None, &Bytes::new())?;
    let named = repeat::named(parts, signer.holder.id, account.id, version, &body)?;
    let call = Call {
        api: api.clone(),
        control: api.control.for_calls_of(account.id),
        operation: route.name,
        account,
        operator,
        key_id: signer.key_id,
        ip: parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|remote| remote.0.ip()),
        version,
        path: values,
        params,
        query,
        upgrade: Some(Upgrade::of(&parts.headers, arriving.on)),
    };
    match named {
        Some(named) => repeat::once(named, call, route.run).await,
        None => (route.run)(call).await,
    }
}

/// Whether this headnode can do what is asked, if it changes something.
fn can_change(api: &CloudApi, method: &Method) -> Result<(), ApiError> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    if let Some(lack) = api.control.headnodes.lacking() {
        let error = ApiError::new(Code::ServiceUnavailable, lack.for_tenants());
        return Err(error.with_header(header::RETRY_AFTER, OUT_RETRY_SECONDS.to_string()));
    }
    if api.control.headnodes.is_out() { Err(out()) } else { Ok(()) }
}

/// This headnode is not well.
fn out() -> ApiError {
    let message = "this headnode cannot change anything at the moment; another one can, or this one again soon";
    let error = ApiError::new(Code::ServiceUnavailable, message);
    error.with_header(header::RETRY_AFTER, OUT_RETRY_SECONDS.to_string())
}

/// What anybody may ask, and no record says.
fn public(api: &CloudApi, method: &Method, path: &str) -> Option<Reply> {
    if *method == Method::OPTIONS {
        return Some(Reply::empty(StatusCode::NO_CONTENT));
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    match path {
        // For whoever moves an address or a name to a headnode that is well.
        "/--ping" if api.control.headnodes.is_out() || api.control.headnodes.lacking().is_some() => {
            Some(Reply::json(&Ping::pong()).status(StatusCode::SERVICE_UNAVAILABLE))
        }
        "/--ping" => Some(Reply::json(&Ping::pong())),
        "/" | "/docs" | "/docs/" | "/favicon.ico" => {
            Some(Reply::empty(StatusCode::FOUND).header(header::LOCATION, api.options.manual_url.clone()))
        }
        _ => None,
    }
}

fn maintenance(api: &CloudApi, method: &Method) -> Result<(), ApiError> {
    match &api.options.maintenance {
        Some(window) if !matches!(*method, Method::GET | Method::HEAD) => {
            let error = ApiError::new(Code::ServiceUnavailable, window.message.clone());
            Err(match window.until {
                Some(until) => error.with_header(header::RETRY_AFTER, http_date(until)),
                None => error,
            })
        }
        _ => Ok(()),
    }
}

async fn read(parts: &Parts, body: Body) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::new(Code::RequestTooLarge, format!("bodies may have {BODY_MAX} bytes at most"));
    let announced =
        parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > BODY_MAX as u64) {
        return Err(too_large());
    }
    match timeout(BODY_DEADLINE, Limited::new(body, BODY_MAX).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::new(Code::BadRequest, "the body ended early")),
        Err(_) => Err(ApiError::new(Code::BadRequest, "the body did not arrive in time")),
    }
}

/// HTTP/2 carries the host in the target; signatures speak of a header.
fn name_host(parts: &mut Parts) {
    if parts.headers.contains_key(header::HOST) {
        return;
    }
    if let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(header::HOST, host);
    }
}

/// The client's own id for the request when it sends one, so that its logs and ours can be laid side by side.
fn request_id(headers: &HeaderMap) -> String {
    let sent = headers.get(HeaderName::from_static("x-request-id")).or_else(|| headers.get("request-id"));
    let sent = sent.and_then(|value| value.to_str().ok()).filter(|text| Uuid::parse_str(text).is_ok());
    sent.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// Whether `Accept` admits a type; without the header everything is admitted.
fn accepts(headers: &HeaderMap, kind: &str) -> bool {
    let Some(accept) = headers.get(header::ACCEPT) else {
        return true;
    };
    let family = kind.split('/').next().unwrap_or("");
    accept.to_str().unwrap_or("").split(',').any(|part| {
        let part = part.split(';').next().unwrap_or("").trim();
        part == kind || part == "*/*" || part.strip_suffix("/*") == Some(family)
    })
}
