//! Images and their files.

use control::{
    Error, Scope,
    images::{self, ImageChange, ImageFilter, StateFilter},
};
use model::{id::ImageId, image::ImageState};

use crate::world::{CONTENT, World, manifest, pieces};

fn files(world: &World) -> Vec<String> {
    let listing = std::fs::read_dir(world.dir.path().join("images")).expect("the directory is there");
    listing.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn a_wrong_file_is_refused_and_leaves_nothing() {
    let world = World::new().await;
    let before = files(&world);
    let id = ImageId::random();
    images::create(&world.control, world.owner, manifest(id, b"what it should be")).await.expect("an image");
    let wrong: [&[u8]; 3] = [b"what it shouldn't", b"too short", b"what it should be, and then some"];
    for content in wrong {
        let refused = images::add_file(&world.control, id, pieces(content)).await.expect_err("it is wrong");
        assert!(refused.to_string().starts_with("file:"), "{refused}");
    }
    let broken =
        futures_util::stream::iter([Ok(bytes::Bytes::from_static(b"what")), Err(std::io::Error::other("cut"))]);
    images::add_file(&world.control, id, broken).await.expect_err("it was cut off");
    assert_eq!(files(&world), before);
    assert_eq!(images::get(&world.control, Scope::All, id).expect("it is known").state, ImageState::Unactivated);
    let image = images::add_file(&world.control, id, pieces(b"what it should be")).await.expect("it is right");
    let file = image.file.as_ref().expect("it has a file");
    let path = images::file_path(&world.control, &file.sha256).expect("it can be fetched");
    assert_eq!(std::fs::read(path).expect("it can be read"), b"what it should be");
    let twice = images::add_file(&world.control, id, pieces(b"what it should be")).await;
    assert!(matches!(twice, Err(Error::Conflict(_))));
}

#[tokio::test]
async fn paths_come_only_from_records() {
    let world = World::new().await;
    for stranger in ["../store.db", "", &"0".repeat(64)] {
        assert!(images::file_path(&world.control, stranger).is_err(), "{stranger}");
    }
}

#[tokio::test]
async fn files_go_with_their_last_image() {
    let world = World::new().await;
    let second = ImageId::random();
    images::create(&world.control, world.owner, manifest(second, CONTENT)).await.expect("an image");
    images::add_file(&world.control, second, pieces(CONTENT)).await.expect("the same file");
    assert_eq!(files(&world).len(), 1);
    images::delete(&world.control, world.scope, second).await.expect("deleted");
    assert_eq!(files(&world).len(), 1, "another image has it");
    world.create("web").await.expect("it is asked for");
    let used = images::delete(&world.control, world.scope, world.image).await.expect_err("it is used");
    let id = control::instances::list(&world.control, world.scope, &Default::default(), 1, 0)[0].instance.id;
    assert!(matches!(&used, Error::InUse(_)) && used.to_string().contains(&format!("web ({id})")), "{used}");
}

#[tokio::test]
async fn strangers_see_public_ones_and_change_none() {
    let world = World::new().await;
    let stranger = Scope::Account(model::id::AccountId::random());
    assert_eq!(images::list(&world.control, stranger, &ImageFilter::default()).len(), 1);
    let refused = images::delete(&world.control, stranger, world.image).await.expect_err("it is not theirs");
    assert!(matches!(refused, Error::NotAuthorized(_)));
    let hide = ImageChange { public: Some(false), description: Some("mine".to_owned()), ..ImageChange::default() };
    images::update(&world.control, world.scope, world.image, hide).await.expect("changed");
    assert!(images::get(&world.control, stranger, world.image).is_err());
    let disable = ImageChange { state: Some(ImageState::Disabled), ..ImageChange::default() };
    images::update(&world.control, Scope::All, world.image, disable).await.expect("changed");
    assert!(images::list(&world.control, world.scope, &ImageFilter::default()).is_empty());
    let all = ImageFilter { state: Some(StateFilter::All), ..ImageFilter::default() };
    assert_eq!(images::list(&world.control, world.scope, &all).len(), 1);
    let refused = world.create("web").await.expect_err("it is disabled");
    assert!(refused.to_string().contains("not active"), "{refused}");
}
