//! Images: a manifest makes the record, the file makes it active.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::{Body as HttpBody, Bytes},
    extract::{DefaultBodyLimit, Path, State},
    routing::{get, put},
};
use control::{
    Control, Scope, images,
    images::{ImageFilter, StateFilter},
};
use futures_util::TryStreamExt as _;
use model::{
    image::{Image, manifest},
    instance::Caller,
};
use opsapi::BODY_MAX_BYTES;
use store::Entry;

use super::{Answer, Ops, Refusal, accounts, value, values};

pub(super) fn routes() -> Router<Ops> {
    Router::new()
        .route("/v1/images", get(list).post(create))
        .route("/v1/images/{image}", get(one).delete(remove))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        // The file has the manifest's size for its limit.
        .route("/v1/images/{image}/file", put(add_file).layer(DefaultBodyLimit::disable()))
}

/// An image by id, `name@version`, or name (then the newest).
fn find(control: &Control, image: &str) -> Result<Arc<Entry<Image>>, Refusal> {
    if let Ok(id) = image.parse() {
        return Ok(images::get(control, Scope::All, id)?);
    }
    let (name, version) = match image.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (image, None),
    };
    images::list(control, Scope::All, &every())
        .into_iter()
        .filter(|found| found.name == name && version.is_none_or(|version| found.version == version))
        .max_by_key(|found| (found.published_at, found.created_at))
        .ok_or_else(|| control::Error::not_found("image", image).into())
}

/// Every image, whatever its state.
pub(super) fn every() -> ImageFilter {
    ImageFilter { state: Some(StateFilter::All), ..ImageFilter::default() }
}

async fn list(State(ops): State<Ops>) -> Answer<Vec<Image>> {
    Ok(Json(values(&images::list(&ops.control, Scope::All, &every()))))
}

async fn one(State(ops): State<Ops>, Path(image): Path<String>) -> Answer<Image> {
    Ok(Json(value(&find(&ops.control, &image)?)))
}

/// Makes the record from a manifest; the image belongs to the operator who imports it.
async fn create(State(ops): State<Ops>, Extension(caller): Extension<Caller>, body: Bytes) -> Answer<Image> {
    let manifest = manifest::parse(&body).map_err(|error| control::Error::invalid("manifest", error.to_string()))?;
    let owner = match &caller {
        Caller::Operator { user } => accounts::find(&ops.control, user)?.id,
        _ => return Err(control::Error::NotAuthorized("only operators import images".to_owned()).into()),
    };
    Ok(Json(value(&images::create(&ops.control, owner, manifest).await?)))
}

async fn add_file(State(ops): State<Ops>, Path(image): Path<String>, body: HttpBody) -> Answer<Image> {
    let id = find(&ops.control, &image)?.id;
    let content = body.into_data_stream().map_err(std::io::Error::other);
    Ok(Json(value(&images::add_file(&ops.control, id, content).await?)))
}

async fn remove(State(ops): State<Ops>, Path(image): Path<String>) -> Answer<()> {
    let id = find(&ops.control, &image)?.id;
    Ok(Json(images::delete(&ops.control, Scope::All, id).await?))
}
