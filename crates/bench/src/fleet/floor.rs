//! The floor: the same listener, TLS and HTTP/2 as the node link's, in front of a server that reads what machines say and knows
//! nothing.

use std::{path::PathBuf, time::Duration};

use axum::{
    Json, Router,
    http::StatusCode,
    routing::{get, post},
};
use base::{
    clock::{Clock as _, SystemClock},
    shutdown::{Shutdown, signal},
};
use bytes::Bytes;
use headnode::{
    Settings,
    listen::{Limits, serve},
    pki,
    tls::{ClientCertificates, TlsSource},
};
use model::time::Timestamp;
use nodeapi::{LONG_POLL_SECONDS, ReportAnswer};
use tokio::net::TcpListener;

/// The process: `fleet-floor ROOT`. Ends when asked to.
pub(crate) fn child(arguments: &[String]) -> Result<(), String> {
    let [root] = arguments else { return Err("the floor needs the datacenter's directory".to_owned()) };
    let file = PathBuf::from(root).join("etc/neso/neso.toml");
    let settings = Settings::load(&file).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| format!("cannot start a runtime: {error}"))?.block_on(run(&settings))
}

async fn run(settings: &Settings) -> Result<(), String> {
    let (pki, _) = pki::ensure(settings, Timestamp(SystemClock.now_ms())).map_err(|error| error.to_string())?;
    let tls = TlsSource::open(&pki, ClientCertificates::Optional).map_err(|error| error.to_string())?;
    let listener = TcpListener::bind(settings.listen.node_link).await.map_err(|error| error.to_string())?;
    let wait = || async {
        tokio::time::sleep(Duration::from_secs(LONG_POLL_SECONDS)).await;
        StatusCode::NO_CONTENT
    };
    let router = Router::new().route("/v1/target", get(wait)).route("/v1/inquiries", get(wait)).route(
        "/v1/report",
        post(async |_: Bytes| Json(ReportAnswer { generation: 0, held: None, received_at: None, answered_at: None })),
    );
    let (trigger, shutdown) = Shutdown::new();
    let serving = base::task::spawn("floor", serve("floor", listener, tls, router, Limits::NODES, None, shutdown));
    let _ = signal().await;
    trigger.fire();
    let _ = serving.await;
    Ok(())
}
