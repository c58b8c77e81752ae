//! What machines and their instances use.

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use model::meters::NodeMeters;

use super::{Answer, Ops, servers::find_server};

pub(super) fn routes() -> Router<Ops> {
    Router::new().route("/v1/servers/{server}/meters", get(meters))
}

async fn meters(State(ops): State<Ops>, Path(server): Path<String>) -> Answer<NodeMeters> {
    let server = find_server(&ops.control, &server)?.server.id;
    Ok(Json(NodeMeters::clone(&*ops.meters.of(server).await?)))
}
