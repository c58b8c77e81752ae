//! `<data>/headnode/cluster.json`: where this headnode's records are kept, and the member it runs.
//!
//! It is the first thing read at a start and survives everything: which of two stores is the one in force hangs on a word in it. So it is replaced
//! whole and is on the disk before anybody goes on. There is none on a headnode whose records have always been in a file.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use control::headnodes::members::Invitation;
use serde::{Deserialize, Serialize};

use crate::{members::process::bare, settings::Settings};

/// Its name.
pub const FILE: &str = "cluster.json";
/// The newest version of its shape.
const VERSION: u32 = 1;

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// Of its shape.
    pub version: u32,
    /// Which store is in force.
    pub kept_in: Kept,
    /// The member beside this headnode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberFile>,
    /// Where members with a vote are reached by headnodes: URLs. Kept up to date, so that headnodes find each other after everything was off.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// How often the store was begun anew from one member (see `recover`): headnodes of an earlier beginning are left behind.
    #[serde(default)]
    pub era: u64,
}

/// Which store is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// `store.db`; a member, if there is one, is being filled.
    Sqlite,
    /// The members.
    Etcd,
}

/// The member beside this headnode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberFile {
    /// Its name: this server's id.
    pub name: String,
    /// `HOST:PORT` for headnodes.
    pub client: String,
    /// `HOST:PORT` for members.
    pub peer: String,
    /// Keeps members of other clusters out.
    pub token: String,
    /// Who was a member when it was made: `NAME=URL,…`. Of no account once it has data.
    pub initial_cluster: String,
    /// Whether it is the first of a new cluster.
    pub first: bool,
    /// It was seen at work: without data it must not start again under the number it had, because it has forgotten what it agreed to.
    #[serde(default)]
    pub started: bool,
}

/// Why it cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ClusterFileError {
    /// The system refused.
    #[error("failed to {doing} `{path}`")]
    Io {
        /// Which operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("`{path}` cannot be understood: {why}; it says which store is in force, so it is not made anew by itself")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl ClusterFile {
    /// The file of this headnode.
    pub fn path(settings: &Settings) -> PathBuf {
        settings.headnode_dir().join(FILE)
    }

    /// Where its member's data are.
    pub fn data_dir(settings: &Settings) -> PathBuf {
        settings.headnode_dir().join("member")
    }

    /// What it says, if it is there.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn load(settings: &Settings) -> Result<Option<Self>, ClusterFileError> {
        Self::load_from(&Self::path(settings))
    }

    fn load_from(path: &Path) -> Result<Option<Self>, ClusterFileError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ClusterFileError::Io { doing: "read", path: path.to_owned(), source }),
        };
        let damaged = |why: String| ClusterFileError::Damaged { path: path.to_owned(), why };
        let file: Self = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if file.version != VERSION {
            return Err(damaged(format!("its version is {}, this program knows {VERSION}", file.version)));
        }
        if file.kept_in == Kept::Etcd && file.endpoints.is_empty() {
            return Err(damaged("it names no endpoint of the store".to_owned()));
        }
        Ok(Some(file))
    }

    /// A store in a file and a member that is to be filled.
    pub fn filling(member: MemberFile) -> Self {
        Self { version: VERSION, kept_in: Kept::Sqlite, member: Some(member), endpoints: Vec::new(), era: 0 }
    }

    /// What a headnode begins with that joins others: a member at these addresses, `HOST:PORT` or URLs, and where the others are.
    pub fn invited(invitation: &Invitation, client: &str, peer: &str, era: u64) -> Self {
        let Invitation { name, token, initial_cluster, endpoints } = invitation.clone();
        let (client, peer) = (bare(client), bare(peer));
        let member = MemberFile { name, client, peer, token, initial_cluster, first: false, started: false };
        Self { era, ..Self::in_members(Some(member), endpoints) }
    }

    /// A store in members.
    pub fn in_members(member: Option<MemberFile>, endpoints: Vec<String>) -> Self {
        Self { version: VERSION, kept_in: Kept::Etcd, member, endpoints, era: 0 }
    }

    /// Replace the file; when this returns well it is on the disk.
    ///
    /// # Errors
    /// When it is not; then the one before is in force.
    pub fn save(&self, settings: &Settings) -> Result<(), ClusterFileError> {
        self.save_to(&Self::path(settings))
    }

    fn save_to(&self, path: &Path) -> Result<(), ClusterFileError> {
        let io = |doing| move |source| ClusterFileError::Io { doing, path: path.to_owned(), source };
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(io("make the directory of"))?;
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        let before = fs::read(path).ok();
        let next = path.with_extension("json.next");
        let written = fs::File::create(&next).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(io("write"))?;
        fs::rename(&next, path).map_err(io("replace"))?;
        let durable = fs::File::open(directory).and_then(|directory| directory.sync_all());
        if let Err(source) = durable {
            // It is the new one that a look shows now, and an error says that it is not: so put it back.
            match before {
                Some(before) => fs::write(path, before),
                None => fs::remove_file(path),
            }
            .map_err(io("put back"))?;
            return Err(io("make durable")(source));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> MemberFile {
        MemberFile {
            name: "one".to_owned(),
            client: "127.0.0.1:2379".to_owned(),
            peer: "127.0.0.1:2380".to_owned(),
            token: "t".to_owned(),
            initial_cluster: "one=https://127.0.0.1:2380".to_owned(),
            first: true,
            started: false,
        }
    }

    #[test]
    fn what_was_written_is_read_and_damage_is_no_absence() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper").join(FILE);
        assert_eq!(ClusterFile::load_from(&path).unwrap(), None);
        let filling = ClusterFile::filling(member());
        filling.save_to(&path).unwrap();
        assert_eq!(ClusterFile::load_from(&path).unwrap(), Some(filling));
        let there = ClusterFile::in_members(Some(member()), vec!["https://127.0.0.1:2379".to_owned()]);
        there.save_to(&path).unwrap();
        assert_eq!(ClusterFile::load_from(&path).unwrap(), Some(there.clone()));
        assert!(!path.with_extension("json.next").exists());
        for damage in [
            String::new(),
            "{}".to_owned(),
            serde_json::to_string(&ClusterFile { version: 2, ..there.clone() }).unwrap(),
            serde_json::to_string(&ClusterFile { endpoints: Vec::new(), ..there }).unwrap(),
        ] {
            fs::write(&path, &damage).unwrap();
            let refused = ClusterFile::load_from(&path).unwrap_err();
            assert!(matches!(refused, ClusterFileError::Damaged { .. }), "{damage}: {refused}");
        }
    }

    #[test]
    fn a_first_releases_file_is_read() {
        let text = r#"{"version":1,"kept_in":"etcd","member":{"name":"n","client":"h:1","peer":"h:2","token":"t",
            "initial_cluster":"n=https://h:2","first":false},"endpoints":["https://h:1"]}"#;
        let file: ClusterFile = serde_json::from_str(text).unwrap();
        assert!(!file.member.unwrap().started && file.era == 0);
    }
}
