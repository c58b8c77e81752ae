//! What machines and their instances use, and what this headnode tells of itself.

use axum::{
    Json, Router,
    extract::{MatchedPath, Path, Request, State},
    http::{Method, header},
    response::{IntoResponse, Response},
    routing::get,
};
use control::{Control, tables::INSTANCES};
use model::{
    id::{InstanceId, ServerId},
    meters::{InstanceMeters, NodeMeters},
    metrics::{Exposition, Labels, exposition::CONTENT_TYPE, instance, machine},
};

use super::{Answer, Ops, Refusal, servers::find_server};

pub(super) fn routes() -> Router<Ops> {
    Router::new().route(OWN, get(own)).route("/v1/servers/{server}/meters", get(meters)).route(OF_SERVER, get(metrics))
}

/// What this headnode tells of itself.
const OWN: &str = "/v1/metrics";
/// A machine and its instances.
const OF_SERVER: &str = "/v1/servers/{server}/metrics";

/// Whether a request does nothing but read metrics.
pub(super) fn is_watching(request: &Request) -> bool {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    request.method() == Method::GET && matches!(route, Some(OWN | OF_SERVER))
}

async fn meters(State(ops): State<Ops>, Path(server): Path<String>) -> Answer<NodeMeters> {
    let server = find_server(&ops.control, &server)?.server.id;
    Ok(Json(NodeMeters::clone(&*ops.meters.of(server).await?)))
}

/// What this headnode tells of itself.
async fn own(State(ops): State<Ops>) -> Response {
    exposition(ops.telemetry().text().await)
}

/// A machine and its instances in one text, for whoever watches all of them.
async fn metrics(State(ops): State<Ops>, Path(server): Path<String>) -> Result<Response, Refusal> {
    let server = find_server(&ops.control, &server)?.server.id;
    let meters = ops.meters.of(server).await?;
    let mut text = Exposition::default();
    machine::all(&meters.machine, meters.at, &mut text);
    instance::all(&instances_on(&ops.control, server, &meters), &mut text);
    Ok(exposition(text.into_text()))
}

/// Instances of a machine that the records know to be there, with who they are.
fn instances_on<'a>(control: &Control, server: ServerId, meters: &'a NodeMeters) -> Vec<(Labels, &'a InstanceMeters)> {
    let snapshot = control.snapshot();
    let labelled = |(id, meters): (&InstanceId, &'a InstanceMeters)| {
        let found = snapshot.get(&INSTANCES, &id.to_string()).filter(|found| found.server == server)?;
        let labels = Labels::none()
            .with("vm", &id.to_string())
            .with("alias", &found.alias)
            .with("owner", &found.owner.to_string());
        Some((labels, meters))
    };
    meters.instances.iter().filter_map(labelled).collect()
}

fn exposition(text: String) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}
