//! What a machine is given that is to keep a part of the store: the store's authority, and where the others are.

use std::path::Path;

use control::{
    Control,
    headnodes::members::{Invitation, KeptIn, MembersError, NewMember},
    tables::HEADNODES,
};
use model::id::ServerId;
use nodeapi::kit::{KitFile, KitPlace, Secret};

use crate::{
    members::{
        file::{self, ClusterFile},
        keep::{failed, refused},
        left_behind,
        process::bare,
    },
    pki::StorePki,
    settings::Settings,
};

/// Files for the headnode on `server`, which has a record that says where its member is to be. None where the store has no members.
///
/// # Errors
/// When its member could not be added.
pub async fn kit(control: &Control, settings: &Settings, server: ServerId) -> Result<Vec<KitFile>, MembersError> {
    let members = control.members().map_err(|why| refused(&why))?;
    if members.kept_in() != KeptIn::Members {
        return Ok(Vec::new());
    }
    let record = control.snapshot().get(&HEADNODES, &server.to_string());
    let Some(place) = record.and_then(|record| record.member.clone()) else {
        return Err(refused("it is not known yet where its member is to be"));
    };
    let new = NewMember { server, client: bare(&place.client), peer: bare(&place.peer) };
    let invitation = members.add_learner(new).await?;
    files(settings, &invitation, &place.client, &place.peer)
}

fn files(settings: &Settings, invitation: &Invitation, client: &str, peer: &str) -> Result<Vec<KitFile>, MembersError> {
    let pki = StorePki::of(settings);
    let text = |path: &Path| std::fs::read_to_string(path).map_err(failed("read the store's authority"));
    let cluster =
        serde_json::to_string_pretty(&ClusterFile::invited(invitation, client, peer, left_behind::era(settings)));
    let cluster = cluster.map_err(failed("write down where the store is"))?;
    let file = |place, name: &str, content| KitFile { place, name: name.to_owned(), content: Secret(content) };
    Ok(vec![
        file(KitPlace::Pki, "store-ca.pem", text(&pki.authority)?),
        file(KitPlace::Pki, "store-ca.key", text(&pki.authority_key)?),
        file(KitPlace::Headnode, file::FILE, cluster),
    ])
}
