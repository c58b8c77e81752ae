//! CloudAPI: what tenants' tools talk to.
//!
//! ```text
//! request ─► routes: which endpoint? ─► auth: whose key, whose path? ─► throttle ─► read-only? ─► params: one map of query
//! and body ─► repeat: done before? ─► the noun's handler: control::… ─► reply: headers, negotiation, error body
//! ```
//! A handler is a function from [`call::Call`] to a reply or an [`error::ApiError`]; it sees neither headers nor bytes. It
//! knows shapes and words of the contract, and nothing of how things are done: that is `control`'s. All endpoints stand in
//! one table ([`routes`]), so that a test can knock at every door as a stranger.

mod absent;
mod account;
mod audit;
mod auth;
mod call;
mod changefeed;
mod create;
mod enforced;
mod error;
mod fabrics;
mod fwrules;
mod images;
mod keys;
mod machine_view;
mod machines;
mod metadata;
mod multipart;
mod networks;
mod nics;
mod packages;
mod params;
mod repeat;
mod reply;
mod routes;
mod service;
mod services;
mod stats;
mod tags;
pub(crate) mod throttle;
mod version;

use std::{collections::BTreeMap, sync::Arc};

use axum::Router;
use control::Control;

use crate::{meters::Meters, telemetry::Requests};

pub use params::{Malformed, Params};
pub use throttle::Rate;

/// What the operator decides about this door.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of this datacenter.
    pub datacenter: String,
    /// URL of every datacenter of the cloud by name, this one included.
    pub datacenters: BTreeMap<String, String>,
    /// URL of every further service by name, e.g. `cmon`.
    pub services: BTreeMap<String, String>,
    /// Where `/` and `/docs` lead.
    pub manual_url: String,
    /// Requests per account and group of endpoints; `None` does not throttle.
    pub throttle: Option<Rate>,
    /// Refuse every change.
    pub maintenance: Option<Maintenance>,
    /// Where requests are counted.
    pub requests: Requests,
    /// What machines are asked with what their instances use; without it nobody is told.
    pub meters: Option<Meters>,
}

/// A maintenance window.
#[derive(Debug, Clone)]
pub struct Maintenance {
    /// What tenants are told.
    pub message: String,
    /// When it is expected to end, seconds since 1970.
    pub until: Option<i64>,
}

impl Options {
    /// Options of a datacenter of its own, reachable at `url`.
    pub fn new(datacenter: &str, url: &str) -> Self {
        Self {
            datacenter: datacenter.to_owned(),
            datacenters: BTreeMap::from([(datacenter.to_owned(), url.to_owned())]),
            services: BTreeMap::from([("cloudapi".to_owned(), url.to_owned())]),
            manual_url: "/docs/manual/".to_owned(),
            throttle: Some(Rate::default()),
            maintenance: None,
            requests: Requests::default(),
            meters: None,
        }
    }
}

/// The door. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct CloudApi(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) control: Control,
    pub(crate) options: Options,
    keys: auth::KeyCache,
    throttle: throttle::Throttle,
    feeds: changefeed::Feeds,
}

impl std::ops::Deref for CloudApi {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// All of CloudAPI as a service, with the manual beside it for whoever asks.
pub fn router(control: Control, options: Options) -> Router {
    let throttle = throttle::Throttle::new(options.throttle);
    let api = CloudApi(Arc::new(Inner {
        control,
        options,
        keys: auth::KeyCache::default(),
        throttle,
        feeds: changefeed::Feeds::default(),
    }));
    crate::manual::router().fallback(move |request| service::answer(api.clone(), request))
}

/// Method, path and name of every endpoint that asks for a signature, for tests that walk through all of them.
pub fn endpoints() -> impl Iterator<Item = (http::Method, &'static str, &'static str)> {
    routes::ROUTES.iter().map(|route| (route.method.clone(), route.path, route.name))
}
