//! Placement explained.

use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use control::placement;
use model::{
    id::AccountId,
    placement::{Explanation, explain::Unplaced},
};
use opsapi::PlacementQuestion;

use super::{Answer, Body, Ops};

pub(super) fn routes() -> Router<Ops> {
    Router::new().route("/v1/placement/explain", post(explain)).route("/v1/placement/unplaced", get(unplaced))
}

async fn explain(State(ops): State<Ops>, Body(question): Body<PlacementQuestion>) -> Answer<Explanation> {
    let owner = match &question.account {
        Some(account) => super::accounts::find(&ops.control, account)?.id,
        None => AccountId::new(uuid::Uuid::nil()),
    };
    let question = placement::Question {
        owner,
        package: question.package,
        networks: question.networks,
        affinity: question.affinity,
        count: question.count.unwrap_or(1),
    };
    Ok(Json(placement::explain(&ops.control, &question)?))
}

async fn unplaced(State(ops): State<Ops>) -> Answer<Vec<Unplaced>> {
    Ok(Json(ops.control.refusals.newest()))
}
