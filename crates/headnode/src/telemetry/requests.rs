//! Requests by door, route and status, and how long they took.
//!
//! A route is the pattern of a path, never the path: what there may be is known from the program, and what strangers ask for is not in it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use base::histogram::Histogram;
use http::{Method, StatusCode};
use model::metrics::{Exposition, Labels, Value};
use tokio::time::Instant;

use super::{
    distribution,
    families::{REQUEST_SECONDS, REQUESTS, REQUESTS_ABANDONED, REQUESTS_RUNNING},
};

/// Routes and methods that are told apart at most: several times what there are. What comes later is told as [`OTHER`].
const SERIES_MAX: usize = 1_024;
/// A route that does not exist.
const NONE: &str = "none";
/// What is not told apart.
const OTHER: &str = "other";

/// Where a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    /// Tenants'.
    Cloudapi,
    /// Operators'.
    Ops,
}

impl Door {
    const ALL: [Self; 2] = [Self::Cloudapi, Self::Ops];

    const fn name(self) -> &'static str {
        match self {
            Self::Cloudapi => "cloudapi",
            Self::Ops => "ops",
        }
    }
}

/// What was asked of a headnode since it started. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Requests(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    // Leaf data: one look-up and a few additions.
    series: Mutex<BTreeMap<Key, Series>>,
    running: [AtomicU64; Door::ALL.len()],
    abandoned: [AtomicU64; Door::ALL.len()],
}

type Key = (Door, &'static str, Box<str>);

#[derive(Debug, Default)]
struct Series {
    took: Histogram,
    codes: BTreeMap<u16, u64>,
}

/// A request that is being answered. One that is dropped before its end was abandoned.
pub struct Running<'a> {
    requests: &'a Requests,
    door: Door,
    begun: Instant,
    is_answered: bool,
}

impl Requests {
    /// One more begins.
    pub fn begin(&self, door: Door) -> Running<'_> {
        self.0.running[door as usize].fetch_add(1, Ordering::Relaxed);
        Running { requests: self, door, begun: Instant::now(), is_answered: false }
    }

    /// Writes them.
    pub(super) fn write(&self, text: &mut Exposition) {
        let (mut counts, mut times) = (Vec::new(), Vec::new());
        for ((door, method, route), series) in &*self.0.series.lock().unwrap_or_else(PoisonError::into_inner) {
            let labels = Labels::none().with("api", door.name()).with("method", method).with("route", route);
            counts.extend(series.codes.iter().map(|(code, n)| (labels.with("code", &code.to_string()), *n)));
            times.push((labels, distribution(&series.took.read())));
        }
        text.family(&REQUESTS, counts.iter().map(|(labels, count)| (labels, Value::Count(*count))));
        text.histograms(&REQUEST_SECONDS, times.iter().map(|(labels, took)| (labels, took)));
        for (family, counters) in [(&REQUESTS_RUNNING, &self.0.running), (&REQUESTS_ABANDONED, &self.0.abandoned)] {
            let doors = Door::ALL.map(|door| {
                let count = counters[door as usize].load(Ordering::Relaxed);
                (Labels::none().with("api", door.name()), Value::Count(count))
            });
            text.family(family, doors.iter().map(|(labels, count)| (labels, *count)));
        }
    }
}

impl Running<'_> {
    /// It was answered. `route` is the pattern that was met, if any was.
    pub fn end(mut self, method: &Method, route: Option<&str>, status: StatusCode) {
        self.is_answered = true;
        let mut key: Key = (self.door, method_name(method), route.unwrap_or(NONE).into());
        let mut all = self.requests.0.series.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= SERIES_MAX && !all.contains_key(&key) {
            key = (self.door, OTHER, OTHER.into());
        }
        let series = all.entry(key).or_default();
        series.took.observe(self.begun.elapsed());
        *series.codes.entry(status.as_u16()).or_default() += 1;
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let (inner, door) = (&self.requests.0, self.door as usize);
        inner.running[door].fetch_sub(1, Ordering::Relaxed);
        if !self.is_answered {
            inner.abandoned[door].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Counts the requests of the ops API.
pub async fn count(State(requests): State<Requests>, request: Request, next: Next) -> Response {
    let running = requests.begin(Door::Ops);
    let (method, route) = (request.method().clone(), request.extensions().get::<MatchedPath>().cloned());
    let response = next.run(request).await;
    running.end(&method, route.as_ref().map(MatchedPath::as_str), response.status());
    response
}

/// Anybody may invent methods.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(requests: &Requests) -> String {
        let mut text = Exposition::default();
        requests.write(&mut text);
        text.into_text()
    }

    #[test]
    fn requests_are_told_by_route_and_status() {
        let requests = Requests::default();
        for status in [200, 200, 404] {
            let running = requests.begin(Door::Cloudapi);
            assert!(text(&requests).contains("neso_http_requests_running{api=\"cloudapi\"} 1"));
            running.end(&Method::GET, Some("/:account/machines"), StatusCode::from_u16(status).unwrap());
        }
        drop(requests.begin(Door::Ops));
        requests.begin(Door::Ops).end(&Method::from_bytes(b"BREW").unwrap(), None, StatusCode::NOT_FOUND);
        let text = text(&requests);
        let machines = "api=\"cloudapi\",method=\"GET\",route=\"/:account/machines\"";
        for line in [
            format!("neso_http_requests_total{{{machines},code=\"200\"}} 2"),
            format!("neso_http_requests_total{{{machines},code=\"404\"}} 1"),
            format!("neso_http_request_duration_seconds_count{{{machines}}} 3"),
            format!("neso_http_request_duration_seconds_bucket{{{machines},le=\"+Inf\"}} 3"),
            "neso_http_requests_total{api=\"ops\",method=\"other\",route=\"none\",code=\"404\"} 1".to_owned(),
            "neso_http_requests_running{api=\"cloudapi\"} 0".to_owned(),
            "neso_http_requests_abandoned_total{api=\"ops\"} 1".to_owned(),
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn there_are_no_more_series_than_may_be() {
        let requests = Requests::default();
        for number in 0..SERIES_MAX + 50 {
            requests.begin(Door::Ops).end(&Method::GET, Some(&format!("/{number}")), StatusCode::OK);
        }
        assert_eq!(requests.0.series.lock().unwrap().len(), SERIES_MAX + 1);
        let told = text(&requests);
        assert!(told.contains("{api=\"ops\",method=\"other\",route=\"other\",code=\"200\"} 50"), "what came later");
    }
}
