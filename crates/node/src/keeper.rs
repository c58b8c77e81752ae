//! The keeper of the target: refuses what is not ours or older than what we hold, writes down the rest, then tells.
//!
//! The file says its version. A damaged one counts as none: the next headnode sends the target anew, and until then
//! nothing is stopped or removed, because instances without a target are left alone.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use model::{id::ServerId, target::Target};
use serde::{Deserialize, Serialize};

use crate::{
    error::AgentError,
    files::{self, Durability},
};

/// Version of the file's shape.
const VERSION: u32 = 1;

/// What becomes of a target that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Write it down and act on it.
    Newer,
    /// It is what we hold.
    Held,
    /// It is older than what we hold.
    Older,
    /// It is for another machine.
    Foreign,
}

/// Judges a target that was offered.
pub(crate) fn judge(server: ServerId, held: Option<&Target>, offered: &Target) -> Offer {
    if offered.server != server {
        return Offer::Foreign;
    }
    match held.map(|held| offered.generation.cmp(&held.generation)) {
        None | Some(std::cmp::Ordering::Greater) => Offer::Newer,
        Some(std::cmp::Ordering::Equal) => Offer::Held,
        Some(std::cmp::Ordering::Less) => Offer::Older,
    }
}

/// Where the target lies.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("target.json")
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    target: &'a Target,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Read {
    target: Target,
}

/// Writes a target so that it survives the loss of power: instances are started from it when nobody else is there.
pub(crate) fn write(path: &Path, target: &Target) -> std::io::Result<()> {
    let content = serde_json::to_vec(&Written { version: VERSION, target })?;
    files::replace(path, &content, Durability::Power)
}

/// Reads the target of the last run.
pub(crate) fn read(path: &Path, server: ServerId) -> Result<Option<Arc<Target>>, AgentError> {
    let content =
        files::read(path).map_err(|source| AgentError::File { doing: "read", path: path.to_owned(), source })?;
    let Some(content) = content else { return Ok(None) };
    match serde_json::from_slice::<Version>(&content) {
        Ok(Version { version }) if version > VERSION => {
            return Err(AgentError::Newer { path: path.to_owned(), found: version, known: VERSION });
        }
        _ => {}
    }
    match serde_json::from_slice::<Read>(&content) {
        Ok(Read { target }) if target.server == server => Ok(Some(Arc::new(target))),
        Ok(Read { target }) => {
            tracing::warn!(path = %path.display(), server = %target.server, "the stored target is for another machine; ignored");
            Ok(None)
        }
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the stored target is damaged; waiting for a headnode");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn target(server: ServerId, generation: u64) -> Target {
        let (networks, images, zones) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Target {
            server,
            generation,
            datacenter: "here".to_owned(),
            networks,
            images,
            zones,
            firewall: Default::default(),
            underlay: None,
            peers: BTreeMap::new(),
        }
    }

    #[test]
    fn only_newer_ones_of_ours() {
        let (ours, other) = (ServerId::random(), ServerId::random());
        let held = target(ours, 5);
        assert_eq!(judge(ours, None, &target(ours, 0)), Offer::Newer);
        assert_eq!(judge(ours, Some(&held), &target(ours, 6)), Offer::Newer);
        assert_eq!(judge(ours, Some(&held), &target(ours, 5)), Offer::Held);
        assert_eq!(judge(ours, Some(&held), &target(ours, 4)), Offer::Older);
        assert_eq!(judge(ours, Some(&held), &target(other, 6)), Offer::Foreign);
    }

    #[test]
    fn damage_and_the_future_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(directory.path());
        let server = ServerId::random();
        assert!(read(&path, server).unwrap().is_none());
        write(&path, &target(server, 7)).unwrap();
        assert_eq!(read(&path, server).unwrap().unwrap().generation, 7);
        assert!(read(&path, ServerId::random()).unwrap().is_none());
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(read(&path, server).unwrap().is_none());
        std::fs::write(&path, r#"{"version":99,"goal":{}}"#).unwrap();
        assert!(matches!(read(&path, server), Err(AgentError::Newer { found: 99, .. })));
    }
}
