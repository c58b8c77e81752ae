//! Images: manifests in the store, files on the headnode's disk.

mod files;

use std::sync::Arc;

use model::{
    id::{AccountId, ImageId},
    image::{Image, ImageFile, ImageState, manifest::Manifest},
    rules,
};
use store::{Entry, Snapshot, Transaction};

use crate::{
    Control, Error, Result, Scope,
    error::{Faults, counted},
    packages::matches_pattern,
    tables::{BY_IMAGE, IMAGES, INSTANCES},
};

pub use files::{KnownFile, add_file, file_path, is_here, known_files, place_file, try_file};

/// Instances that keep an image from being deleted and are named, at most: a line a person can read.
const USERS_NAMED: usize = 5;

/// Which images to list; `None` is any. Names may have `*`.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct ImageFilter {
    pub name: Option<String>,
    pub version: Option<String>,
    pub os: Option<String>,
    /// Active ones when it is `None`.
    pub state: Option<StateFilter>,
    pub public: Option<bool>,
    pub owner: Option<AccountId>,
}

/// Which states to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateFilter {
    /// Every state.
    All,
    /// One.
    Only(ImageState),
}

/// What changes in an image; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct ImageChange {
    pub name: Option<String>,
    pub version: Option<String>,
    pub description: Option<String>,
    pub homepage: Option<String>,
    pub eula: Option<String>,
    pub public: Option<bool>,
    pub acl: Option<Vec<AccountId>>,
    pub tags: Option<std::collections::BTreeMap<String, serde_json::Value>>,
    /// Operators: [`ImageState::Active`] or [`ImageState::Disabled`].
    pub state: Option<ImageState>,
}

/// Makes the record of an image whose file follows. Making the same one again while it has no file is no error, so
/// that an interrupted import can be repeated.
pub async fn create(control: &Control, owner: AccountId, manifest: Manifest) -> Result<Arc<Entry<Image>>> {
    let image = manifest.into_image(owner, control.now());
    let id = image.id;
    control
        .store
        .update(|snapshot| match snapshot.get(&IMAGES, &id.to_string()) {
            Some(entry) if entry.state == ImageState::Unactivated && entry.owner == owner => {
                Ok((Transaction::new().replace(&IMAGES, &entry, image.clone()), ()))
            }
            Some(_) => Err(Error::AlreadyExists { what: "image", name: id.to_string() }),
            None => Ok((Transaction::new().create(&IMAGES, image.clone()), ())),
        })
        .await?;
    get(control, Scope::All, id)
}

/// Notes that the image's file is here, verified and safely on disk: from now on instances can be made of it.
pub(crate) async fn activate(control: &Control, id: ImageId, file: ImageFile) -> Result<Arc<Entry<Image>>> {
    let now = control.now();
    change(control, Scope::All, id, |image| {
        if image.file.as_ref().is_some_and(|present| *present != file) {
            return Err(Error::Conflict(format!("image {id} has another file already")));
        }
        image.file = Some(file.clone());
        image.published_at = image.published_at.or(Some(now));
        image.state = ImageState::Active;
        image.error = None;
        Ok(())
    })
    .await
}

/// The image with an id, if it may be seen.
pub fn get(control: &Control, scope: Scope, id: ImageId) -> Result<Arc<Entry<Image>>> {
    visible(&control.snapshot(), scope, id).ok_or_else(|| Error::not_found("image", id))
}

/// Images that pass `filter` and may be seen, by name and then newest first.
pub fn list(control: &Control, scope: Scope, filter: &ImageFilter) -> Vec<Arc<Entry<Image>>> {
    let state = filter.state.unwrap_or(StateFilter::Only(ImageState::Active));
    let passes = |image: &Image| {
        sees(scope, image)
            && (state == StateFilter::All || state == StateFilter::Only(image.state))
            && filter.name.as_ref().is_none_or(|pattern| matches_pattern(pattern, &image.name))
            && filter.version.as_ref().is_none_or(|pattern| matches_pattern(pattern, &image.version))
            && filter.os.as_ref().is_none_or(|os| image.os == *os)
            && filter.public.is_none_or(|public| image.public == public)
            && filter.owner.is_none_or(|owner| image.owner == owner)
    };
    let mut images: Vec<_> = control.snapshot().scan(&IMAGES).filter(|image| passes(image)).collect();
    images.sort_by(|one, other| (&one.name, other.published_at).cmp(&(&other.name, one.published_at)));
    images
}

/// Changes what tenants see of an image. Only its owner may, and operators.
pub async fn update(control: &Control, scope: Scope, id: ImageId, wanted: ImageChange) -> Result<Arc<Entry<Image>>> {
    change(control, scope, id, |image| {
        let mut faults = Faults::default();
        for (field, new, target) in
            [("name", &wanted.name, &mut image.name), ("version", &wanted.version, &mut image.version)]
        {
            if let Some(new) = new {
                faults.check(field, rules::check_name(new));
                target.clone_from(new);
            }
        }
        let texts = [
            ("description", &wanted.description, &mut image.description),
            ("homepage", &wanted.homepage, &mut image.homepage),
            ("eula", &wanted.eula, &mut image.eula),
        ];
        for (field, new, target) in texts {
            if let Some(new) = new {
                if new.len() > model::image::manifest::TEXT_MAX_BYTES {
                    faults.check(field, Err("is too long".to_owned()));
                }
                *target = Some(new.clone()).filter(|text| !text.is_empty());
            }
        }
        if let Some(acl) = &wanted.acl {
            if acl.len() > model::image::manifest::ACL_MAX {
                faults.check("acl", Err(format!("has more than {} entries", model::image::manifest::ACL_MAX)));
            }
            image.acl.clone_from(acl);
        }
        if let Some(tags) = &wanted.tags {
            faults.check("tags", rules::check_tag_names(tags.keys()));
            image.tags.clone_from(tags);
        }
        image.public = wanted.public.unwrap_or(image.public);
        match wanted.state {
            Some(state @ (ImageState::Active | ImageState::Disabled)) if image.file.is_some() => image.state = state,
            Some(_) => faults.check("state", Err("an image with a file can be \"active\" or \"disabled\"".to_owned())),
            None => {}
        }
        faults.finish()
    })
    .await
}

/// Deletes an image that no instance uses, and its file when no other image has the same.
pub async fn delete(control: &Control, scope: Scope, id: ImageId) -> Result<()> {
    let again = control.is_repeated();
    let (_, orphan) = control
        .update(|snapshot| {
            let entry = owned(snapshot, scope, id)?;
            if let Some(users) = users(snapshot, scope, id) {
                return Err(Error::InUse(format!("image {id} is used by {users}; delete them first")));
            }
            let orphan = entry.file.as_ref().map(|file| file.sha256.clone());
            let orphan = orphan.filter(|sha256| snapshot.find(&IMAGES, "file", sha256).count() == 1);
            Ok((Transaction::new().delete(&IMAGES, &entry), orphan))
        })
        .await?;
    base::crash::point("image.delete.recorded");
    // By the time a call is repeated another image may have the file.
    if let Some(sha256) = orphan.filter(|_| !again) {
        // The record is gone, so a failure here leaves only a file that the sweep of unused files takes.
        files::remove(control, &sha256).await;
    }
    Ok(())
}

/// The instances made of an image, in words; `None` when there are none. Those that `scope` does not cover are only counted.
fn users(snapshot: &Snapshot, scope: Scope, id: ImageId) -> Option<String> {
    let (own, others): (Vec<_>, Vec<_>) =
        snapshot.find(&INSTANCES, BY_IMAGE, &id.to_string()).partition(|instance| scope.covers(instance.owner));
    let mut words: Vec<String> =
        own.iter().take(USERS_NAMED).map(|instance| format!("{} ({})", instance.alias, instance.id)).collect();
    match own.len().saturating_sub(USERS_NAMED) + others.len() {
        0 => {}
        count if words.is_empty() => words.push(format!("{} of others", counted(count, "instance"))),
        count => words.push(format!("{count} more")),
    }
    (!words.is_empty()).then(|| words.join(", "))
}

/// Removes files that belong to no image: left by a crash between file and record.
pub(crate) async fn sweep_files(control: &Control) -> Result<usize> {
    files::sweep(control).await
}

/// The image with an id, if `scope` sees it.
pub(crate) fn visible(snapshot: &Snapshot, scope: Scope, id: ImageId) -> Option<Arc<Entry<Image>>> {
    snapshot.get(&IMAGES, &id.to_string()).filter(|image| sees(scope, image))
}

fn sees(scope: Scope, image: &Image) -> bool {
    match scope {
        Scope::All => true,
        Scope::Account(account) => image.public || image.owner == account || image.acl.contains(&account),
    }
}

/// The image with an id, to be changed by `scope`.
fn owned(snapshot: &Snapshot, scope: Scope, id: ImageId) -> Result<Arc<Entry<Image>>> {
    let entry = visible(snapshot, scope, id).ok_or_else(|| Error::not_found("image", id))?;
    if scope.covers(entry.owner) {
        Ok(entry)
    } else {
        Err(Error::NotAuthorized(format!("image {id} belongs to another account")))
    }
}

async fn change(
    control: &Control,
    scope: Scope,
    id: ImageId,
    edit: impl Fn(&mut Image) -> Result<()>,
) -> Result<Arc<Entry<Image>>> {
    control
        .update(|snapshot| {
            let entry = owned(snapshot, scope, id)?;
            let mut image = entry.value.clone();
            edit(&mut image)?;
            Ok::<_, Error>((Transaction::new().replace(&IMAGES, &entry, image), ()))
        })
        .await?;
    get(control, Scope::All, id)
}
