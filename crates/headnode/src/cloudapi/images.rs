//! Images: list, get, update, delete.

use std::borrow::Cow;

use cloudapi::types::{
    Image,
    image::{File, ImageError, Requirements},
};
use control::images::{self, ImageChange, ImageFilter, StateFilter};
use http::StatusCode;
use model::{
    id::{AccountId, ImageId},
    image::{Compression, ImageKind, ImageState},
};
use serde_json::Value;

use super::{
    call::Call,
    error::{ApiError, Faults},
    machines::not_here,
    params::Params,
    reply::Reply,
    version::Version,
};

const STATES: [(&str, ImageState); 5] = [
    ("active", ImageState::Active),
    ("unactivated", ImageState::Unactivated),
    ("disabled", ImageState::Disabled),
    ("creating", ImageState::Creating),
    ("failed", ImageState::Failed),
];

/// `GET /:account/images`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    let params = &call.params;
    let mut faults = Faults::default();
    let state = match faults.take(params.text("state")).as_deref() {
        None => None,
        Some("all") => Some(StateFilter::All),
        Some(text) => match STATES.into_iter().find(|(word, _)| *word == text) {
            Some((_, state)) => Some(StateFilter::Only(state)),
            None => {
                faults.add(ApiError::invalid("state", format!("{text} is not a valid state; use active or all")));
                None
            }
        },
    };
    let filter = ImageFilter {
        name: faults.take(params.text("name")),
        version: faults.take(params.text("version")),
        os: faults.take(params.text("os")),
        state,
        public: faults.take(params.flag("public")),
        owner: faults.take(params.parsed("owner", "the id of an account")),
    };
    let kind = faults.take(params.text("type"));
    faults.finish()?;
    let images = images::list(call.control(), call.scope(), &filter);
    let shown: Vec<Image<'_>> = images
        .iter()
        .filter(|image| kind.as_deref().is_none_or(|kind| kind_of(image, call.version) == kind))
        .map(|image| show(image, call.version))
        .collect();
    Ok(Reply::json(&shown))
}

/// `GET /:account/images/:image`.
pub(super) async fn get(call: Call) -> Result<Reply, ApiError> {
    let image = images::get(call.control(), call.scope(), call.id("image", 0)?)?;
    Ok(Reply::json(&show(&image, call.version)))
}

/// `POST /:account/images/:image`.
pub(super) async fn act(call: Call) -> Result<Reply, ApiError> {
    let id: ImageId = call.id("image", 0)?;
    images::get(call.control(), call.scope(), id)?;
    match call.params.required("action")?.as_str() {
        "update" => {
            let change = change(&call.params)?;
            let image = images::update(call.control(), call.scope(), id, change).await?;
            Ok(Reply::json(&show(&image, call.version)))
        }
        "export" => Err(not_here("exports of images")),
        "clone" => Err(not_here("clones of images")),
        other => Err(ApiError::invalid("action", format!("\"{other}\" is not an action on images; use update"))),
    }
}

/// `DELETE /:account/images/:image`.
pub(super) async fn delete(call: Call) -> Result<Reply, ApiError> {
    images::delete(call.control(), call.scope(), call.id("image", 0)?).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

fn change(params: &Params) -> Result<ImageChange, ApiError> {
    let account = |value: &Value| -> Result<AccountId, ApiError> {
        let text = value.as_str().unwrap_or_default();
        text.parse().map_err(|_| ApiError::invalid("acl", format!("acl: {value} is not the id of an account")))
    };
    let mut faults = Faults::default();
    let acl = params.get("acl").map(|_| faults.take(params.list("acl").iter().map(account).collect()));
    let tags = match params.get("tags") {
        None => None,
        Some(Value::Object(tags)) => Some(tags.clone().into_iter().collect()),
        Some(_) => {
            faults.add(ApiError::invalid("tags", "tags must be an object"));
            None
        }
    };
    let change = ImageChange {
        name: faults.take(params.text("name")),
        version: faults.take(params.text("version")),
        description: faults.take(params.text("description")),
        homepage: faults.take(params.text("homepage")),
        eula: faults.take(params.text("eula")),
        acl,
        tags,
        ..ImageChange::default()
    };
    faults.finish()?;
    Ok(change)
}

/// From version 8 the kind of file, before it what instances of it were called.
fn kind_of(image: &model::image::Image, version: Version) -> &'static str {
    match image.kind {
        ImageKind::LxDataset if version.at_least(8, 0) => "lx-dataset",
        ImageKind::LxDataset => "smartmachine",
    }
}

fn show(image: &model::image::Image, version: Version) -> Image<'_> {
    let requirements = &image.requirements;
    let state = STATES.iter().find(|(_, state)| *state == image.state).map_or("unactivated", |(word, _)| *word);
    let file = image.file.as_ref().map(|file| File {
        compression: Cow::Borrowed(match file.compression {
            Compression::None => "none",
            Compression::Gzip => "gzip",
        }),
        sha1: Cow::Borrowed(&file.sha1),
        size: file.size,
    });
    Image {
        id: image.id,
        name: Cow::Borrowed(&image.name),
        version: Cow::Borrowed(&image.version),
        os: Cow::Borrowed(&image.os),
        requirements: Requirements {
            max_memory: requirements.max_memory,
            max_ram: requirements.max_memory,
            min_memory: requirements.min_memory,
            min_ram: requirements.min_memory,
            brand: match image.kind {
                ImageKind::LxDataset => Some(Cow::Borrowed("lx")),
            },
        },
        kind: Cow::Borrowed(kind_of(image, version)),
        description: image.description.as_deref().map(Cow::Borrowed),
        files: file.into_iter().collect(),
        tags: Cow::Borrowed(&image.tags),
        homepage: image.homepage.as_deref().map(Cow::Borrowed),
        published_at: image.published_at,
        owner: image.owner,
        public: image.public,
        state: Cow::Borrowed(state),
        eula: image.eula.as_deref().map(Cow::Borrowed),
        acl: Cow::Borrowed(&image.acl),
        error: image
            .error
            .as_deref()
            .map(|message| ImageError { code: Cow::Borrowed("InternalError"), message: Cow::Borrowed(message) }),
    }
}
