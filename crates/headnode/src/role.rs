//! What this machine does about its role as a headnode, written down: `headnode/role.json` below the data directory.
//!
//! ```text
//!  target says    node process                                  role.json     supervisor
//!  running        fetches the kit, writes its files ──────────► ready         starts headnode and member
//!  absent         ───────────────────────────────────────────► leaving       ends them
//!                 removes files once nobody runs ─────────────► absent
//! ```
//! The machine a datacenter began on has no such file, and runs its headnode because it joined nobody. The file is replaced whole and
//! survives the loss of power; a damaged one counts as none, and the node process writes it anew. A headnode that starts and finds that it was
//! taken out writes `leaving` itself: its node may know nobody else who could tell.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use model::{
    role::{HeadnodeFact, HeadnodeState},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    members::recover,
    pki::{PkiError, make_directory, write_file},
    settings::Settings,
};

/// Version of the file's shape.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    since: Timestamp,
    state: HeadnodeState,
    /// Where the others' node links are, while it leaves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headnodes: Vec<String>,
}

/// Where the file is.
pub fn path(settings: &Settings) -> PathBuf {
    settings.headnode_dir().join("role.json")
}

/// What is written down; nothing also when it cannot be read.
pub fn read(settings: &Settings) -> Option<HeadnodeFact> {
    let path = path(settings);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "what this machine is cannot be read");
            return None;
        }
    };
    match serde_json::from_str::<Written>(&text) {
        Ok(written) if written.version == VERSION => {
            Some(HeadnodeFact { since: written.since, state: written.state, error: None })
        }
        Ok(Written { version, .. }) => {
            tracing::warn!(path = %path.display(), version, "what this machine is was written by another program");
            None
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "what this machine is was damaged");
            None
        }
    }
}

/// Where other headnodes' node links are, as it was written down when this one was to leave.
pub fn others(settings: &Settings) -> Vec<String> {
    let text = fs::read_to_string(path(settings)).unwrap_or_default();
    serde_json::from_str::<Written>(&text).map(|written| written.headnodes).unwrap_or_default()
}

/// Writes it down. `headnodes` are where the others' node links are: a machine that leaves turns to them.
pub fn write(
    settings: &Settings,
    since: Timestamp,
    state: HeadnodeState,
    headnodes: &[String],
) -> Result<(), PkiError> {
    let path = path(settings);
    let written = Written { version: VERSION, since, state, headnodes: headnodes.to_vec() };
    let text = serde_json::to_vec(&written).expect("plain data");
    make_directory(path.parent().unwrap_or(Path::new("/")))?;
    write_file(&path, &text, 0o644)
}

/// Whether this machine runs a headnode. While its store is begun anew, none is started.
pub fn runs_headnode(settings: &Settings) -> bool {
    if recover::is_under_way(settings) {
        return false;
    }
    match read(settings).map(|fact| fact.state) {
        Some(HeadnodeState::Ready) => true,
        Some(HeadnodeState::Leaving | HeadnodeState::Absent) => false,
        Some(HeadnodeState::Preparing) | None => settings.join.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Join;

    #[test]
    fn a_machine_that_joined_runs_one_when_it_is_ready() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        assert!(runs_headnode(&settings), "the datacenter began here");
        settings.join = Some(Join { headnodes: vec!["127.0.0.1:1".into()] });
        assert!(!runs_headnode(&settings));
        for (state, runs) in [
            (HeadnodeState::Preparing, false),
            (HeadnodeState::Ready, true),
            (HeadnodeState::Leaving, false),
            (HeadnodeState::Absent, false),
        ] {
            write(&settings, Timestamp(7), state, &["10.0.0.2:8444".to_owned()]).unwrap();
            assert_eq!(others(&settings), ["10.0.0.2:8444"]);
            assert_eq!(read(&settings), Some(HeadnodeFact { since: Timestamp(7), state, error: None }));
            assert_eq!(runs_headnode(&settings), runs, "{state:?}");
        }
        for torn in ["", "{", "{\"version\": 9, \"since\": 7, \"state\": \"ready\"}"] {
            fs::write(path(&settings), torn).unwrap();
            assert_eq!(read(&settings), None, "{torn}");
        }
    }
}
