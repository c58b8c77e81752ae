//! Becoming a headnode by files, and ceasing to be one: what [`nodeapi::kit`] carries, made here and taken in there.
//!
//! A kit is taken in piece by piece, and each piece once: files appear whole, the settings last. Who dies in between does it again. That all is
//! there is said by [`crate::role`] alone. What is taken in is checked first: the authority is the one this machine joined, its key fits,
//! names stay in their directories, and files elsewhere are those that the settings name.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use model::time::Timestamp;
use nodeapi::kit::{HeadnodeKit, KIT_FILES_MAX, KitFile, KitPlace, Secret};

use crate::{
    members::left_behind,
    pki::{self, PkiError, make_directory, write_file},
    settings::{self, AdoptError, Settings, SettingsError, Shared},
};

/// The authority's certificate.
const AUTHORITY: &str = "ca.pem";
/// The authority's key.
const AUTHORITY_KEY: &str = "ca.key";
/// What stays beside the certificates when a machine is no headnode any more: what it joined with.
const OF_A_NODE: [&str; 7] = [AUTHORITY, "node.pem", "node.key", "node.next-key", "join.key", "server-id", "lock"];

/// Why a machine does not become a headnode, or does not cease to be one.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// A file could not be read or written.
    #[error("failed to {doing} `{path}`")]
    Io {
        /// Operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Certificates or keys.
    #[error("failed to put the datacenter's keys in place")]
    Pki(#[from] PkiError),
    /// Settings.
    #[error("failed to take over the headnodes' settings")]
    Adopt(#[from] AdoptError),
    /// The settings file.
    #[error("failed to change this machine's settings")]
    Settings(#[from] SettingsError),
    /// The kit is not for this machine.
    #[error("what the headnode sent is not used: {0}")]
    Refused(String),
}

impl KitError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// Everything a machine needs to run a headnode of this one's datacenter. `store` is what it needs to keep the store, if neso does.
pub fn make(settings: &Settings, since: Timestamp, store: Vec<KitFile>) -> Result<HeadnodeKit, KitError> {
    let directory = settings.pki_dir();
    let mut files = Vec::new();
    for name in [AUTHORITY, AUTHORITY_KEY] {
        files.push(file(KitPlace::Pki, name.to_owned(), &directory.join(name))?);
    }
    let shared = settings.shared();
    for path in elsewhere(&shared) {
        files.push(file(KitPlace::Anywhere, path.display().to_string(), &path)?);
    }
    files.extend(store);
    Ok(HeadnodeKit { datacenter: settings.datacenter.name.clone(), since, files, settings: shared.sections() })
}

fn file(place: KitPlace, name: String, path: &Path) -> Result<KitFile, KitError> {
    let content = fs::read_to_string(path).map_err(KitError::io("read", path))?;
    Ok(KitFile { place, name, content: Secret(content) })
}

/// Files that shared settings name: every headnode needs its own copy under the same path.
fn elsewhere(shared: &Shared) -> BTreeSet<PathBuf> {
    let store = shared.store.iter().flat_map(|store| [&store.authority, &store.certificate, &store.key]);
    store.chain([&shared.backup.key_file]).flatten().cloned().collect()
}

/// Takes a kit in. `settings` are those of `settings_file`.
pub fn take_in(settings_file: &Path, settings: &Settings, kit: &HeadnodeKit) -> Result<(), KitError> {
    let shared = Shared::of_sections(&kit.settings)?;
    let files = checked(settings, &shared, kit)?;
    let text = fs::read_to_string(settings_file).map_err(KitError::io("read", settings_file))?;
    let adopted = settings::adopt(&text, &shared)?;
    for (path, content) in files {
        make_directory(path.parent().unwrap_or(Path::new("/")))?;
        if fs::read_to_string(&path).ok().as_deref() != Some(content) {
            write_file(&path, content.as_bytes(), 0o600)?;
        }
    }
    base::crash::point("headnode.kit.files");
    replace_settings(settings_file, &text, &adopted)
}

/// Where each file goes, if all may go there.
fn checked<'a>(
    settings: &Settings,
    shared: &Shared,
    kit: &'a HeadnodeKit,
) -> Result<Vec<(PathBuf, &'a str)>, KitError> {
    let refuse = |why: String| Err(KitError::Refused(why));
    if kit.files.len() > KIT_FILES_MAX {
        return refuse(format!("it has more than {KIT_FILES_MAX} files"));
    }
    let known = settings.pki_dir().join(AUTHORITY);
    let known = fs::read_to_string(&known).map_err(KitError::io("read", &known))?;
    let find = |name: &str| {
        let found = kit.files.iter().find(|file| file.place == KitPlace::Pki && file.name == name);
        found.map(|file| file.content.0.as_str())
    };
    match (find(AUTHORITY), find(AUTHORITY_KEY)) {
        (Some(authority), _) if authority.trim() != known.trim() => {
            return refuse("its authority is another than the one this machine joined".to_owned());
        }
        (Some(authority), Some(key)) if pki::fits(authority, key) => {}
        _ => return refuse("the authority's key is missing or does not fit its certificate".to_owned()),
    }
    let allowed = elsewhere(shared);
    let mut files = Vec::new();
    for file in &kit.files {
        let is_plain = !file.name.is_empty() && !file.name.starts_with('.') && !file.name.contains(['/', '\0']);
        let path = match file.place {
            KitPlace::Pki if is_plain && !(OF_A_NODE[1..].contains(&file.name.as_str())) => {
                settings.pki_dir().join(&file.name)
            }
            KitPlace::Headnode if is_plain && file.name != "role.json" => settings.headnode_dir().join(&file.name),
            KitPlace::Anywhere if allowed.contains(Path::new(&file.name)) => PathBuf::from(&file.name),
            _ => return refuse(format!("it has a file `{}` that belongs to no headnode", file.name)),
        };
        files.push((path, file.content.0.as_str()));
    }
    Ok(files)
}

/// Removes what makes this machine a headnode, when none of its processes runs any more. It stays a node: one that the datacenter began on
/// reaches `headnodes` from now on.
pub fn remove(settings_file: &Path, settings: &Settings, headnodes: &[String]) -> Result<(), KitError> {
    if settings.join.is_none() {
        if headnodes.is_empty() {
            return Err(KitError::Refused("no other headnode is known that this machine could turn to".to_owned()));
        }
        let text = fs::read_to_string(settings_file).map_err(KitError::io("read", settings_file))?;
        let others: Vec<String> = headnodes.iter().map(|address| format!("{address:?}")).collect();
        let joined = format!(
            "{text}\n[join]\n# This machine runs a node and no headnode any more; its headnodes are these:\n\
             headnodes = [{}]\n",
            others.join(", ")
        );
        Settings::parse(&joined).map_err(AdoptError::Misfit)?;
        replace_settings(settings_file, &text, &joined)?;
    }
    let role = crate::role::path(settings);
    put_left_behind_aside(&settings.headnode_dir())?;
    empty(&settings.headnode_dir(), |path| *path == role || is_left_behind(path))?;
    let pki = settings.pki_dir();
    empty(&pki, |path| OF_A_NODE.iter().any(|name| *path == pki.join(name)))?;
    empty(&settings.paths.operator, |_| false)
}

/// Start of the name under which a member's data are kept that was left behind: they may be the only ones to have what they have.
const KEPT: &str = "member.left-behind";

fn is_left_behind(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(KEPT))
}

/// Keeps the data of a member that was left behind.
fn put_left_behind_aside(directory: &Path) -> Result<(), KitError> {
    let data = directory.join("member");
    if !directory.join(left_behind::MARKER).exists() || !data.exists() {
        return Ok(());
    }
    let free = (1..).map(|number| directory.join(format!("{KEPT}-{number}"))).find(|path| !path.exists());
    let kept = free.unwrap_or_else(|| directory.join(KEPT));
    fs::rename(&data, kept).map_err(KitError::io("rename", &data))
}

/// Removes what is in a directory but what `stays`.
fn empty(directory: &Path, stays: impl Fn(&PathBuf) -> bool) -> Result<(), KitError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(KitError::io("list", directory)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(KitError::io("list", directory))?;
        let path = entry.path();
        if stays(&path) {
            continue;
        }
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(KitError::io("remove", &path))?;
    }
    Ok(())
}

/// Writes the settings if they differ. Who may read them stays as it is.
fn replace_settings(path: &Path, old: &str, new: &str) -> Result<(), KitError> {
    use std::os::unix::fs::PermissionsExt as _;
    if old == new {
        return Ok(());
    }
    let mode = fs::metadata(path).map_err(KitError::io("look at", path))?.permissions().mode() & 0o777;
    Ok(write_file(path, new.as_bytes(), mode)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pki::ensure, settings::Join};

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    struct Site {
        _root: tempfile::TempDir,
        file: PathBuf,
    }

    impl Site {
        fn new(edit: impl FnOnce(String) -> String) -> Self {
            let root = tempfile::tempdir().unwrap();
            let file = root.path().join("neso.toml");
            fs::write(&file, edit(Settings::generate(Some(root.path())).unwrap())).unwrap();
            Self { _root: root, file }
        }

        fn settings(&self) -> Settings {
            Settings::load(&self.file).unwrap()
        }
    }

    /// A headnode, and a machine that joined it.
    fn two() -> (Site, Site) {
        let head = Site::new(|text| text.replace("mtu = 1400", "mtu = 8000"));
        let (pki, _) = ensure(&head.settings(), NOW).unwrap();
        let node = Site::new(|text| format!("{text}\n[join]\nheadnodes = [\"127.0.0.1:1\"]\n"));
        let settings = node.settings();
        let request = pki::request().unwrap();
        let server = model::id::ServerId::random();
        let certificate = pki::certify(&head.settings(), &request.request_pem, server, NOW).unwrap();
        let authority = fs::read_to_string(pki.ca.certificate).unwrap();
        pki::enroll(&settings, server, &authority, &request, &certificate).unwrap();
        (head, node)
    }

    fn store_file(name: &str) -> KitFile {
        KitFile { place: KitPlace::Headnode, name: name.to_owned(), content: Secret("{}".into()) }
    }

    #[test]
    fn a_machine_becomes_a_headnode_of_the_same_authority_and_ceases_to_be_one() {
        let (head, node) = two();
        let kit = make(&head.settings(), NOW, vec![store_file("cluster.json")]).unwrap();
        let before = node.settings();
        for _ in 0..2 {
            take_in(&node.file, &node.settings(), &kit).unwrap();
        }
        let settings = node.settings();
        assert_eq!(settings.shared(), head.settings().shared());
        assert!(settings.headnode_dir().join("cluster.json").exists());
        let id = pki::member(&settings, NOW).unwrap().server_id;
        // It makes certificates that the datacenter takes, and keeps its own.
        let (made, names) = ensure(&settings, NOW).unwrap();
        assert_eq!(made.server_id, id);
        assert_eq!(names.0.len(), 2, "listeners and operator: {names:?}");
        assert_eq!(made.authority().unwrap(), ensure(&head.settings(), NOW).unwrap().0.authority().unwrap());

        crate::role::write(&settings, NOW, model::role::HeadnodeState::Leaving, &[]).unwrap();
        // One that was left behind keeps what its member has, however often it is put away.
        fs::create_dir_all(settings.headnode_dir().join("member/wal")).unwrap();
        fs::write(settings.headnode_dir().join(left_behind::MARKER), "why").unwrap();
        remove(&node.file, &settings, &[]).unwrap();
        remove(&node.file, &settings, &[]).unwrap();
        assert!(settings.headnode_dir().join("member.left-behind-1/wal").exists());
        assert!(!settings.headnode_dir().join("member").exists());
        for gone in ["ca.key", "server.key"] {
            assert!(!settings.pki_dir().join(gone).exists(), "{gone} is left");
        }
        assert!(!settings.headnode_dir().join("cluster.json").exists());
        assert!(crate::role::read(&settings).is_some());
        assert_eq!(pki::member(&settings, NOW).unwrap().server_id, id, "it is still a node");
        assert_eq!(node.settings().join, before.join);
    }

    #[test]
    fn the_first_headnode_becomes_a_node_of_the_others() {
        let (head, _node) = two();
        let settings = head.settings();
        let id = ensure(&settings, NOW).unwrap().0.server_id;
        assert!(remove(&head.file, &settings, &[]).is_err(), "it would reach nobody");
        remove(&head.file, &settings, &["10.0.0.2:8444".to_owned()]).unwrap();
        let settings = head.settings();
        assert_eq!(settings.join, Some(Join { headnodes: vec!["10.0.0.2:8444".to_owned()] }));
        assert_eq!(pki::member(&settings, NOW).unwrap().server_id, id);
        assert!(!settings.pki_dir().join("ca.key").exists());
        remove(&head.file, &settings, &["10.0.0.3:8444".to_owned()]).unwrap();
        assert_eq!(head.settings(), settings, "once is enough");
    }

    #[test]
    fn a_kit_of_another_datacenter_and_files_anywhere_are_refused() {
        let (head, node) = two();
        let (other, _) = two();
        let refused = |kit: &HeadnodeKit| {
            let before = fs::read_to_string(&node.file).unwrap();
            let why = take_in(&node.file, &node.settings(), kit).unwrap_err().to_string();
            assert_eq!(fs::read_to_string(&node.file).unwrap(), before);
            assert!(!node.settings().pki_dir().join("ca.key").exists(), "something was written");
            why
        };
        let foreign = make(&other.settings(), NOW, Vec::new()).unwrap();
        assert!(refused(&foreign).contains("another than the one this machine joined"));
        let kit = make(&head.settings(), NOW, Vec::new()).unwrap();
        let mut wrong_key = kit.clone();
        wrong_key.files[1].content.0.clone_from(&foreign.files[1].content.0);
        assert!(refused(&wrong_key).contains("does not fit"));
        for (place, name) in [
            (KitPlace::Pki, "../evil"),
            (KitPlace::Pki, "node.key"),
            (KitPlace::Headnode, "role.json"),
            (KitPlace::Headnode, ".."),
            (KitPlace::Anywhere, "/etc/passwd"),
        ] {
            let mut kit = kit.clone();
            kit.files.push(KitFile { place, name: name.to_owned(), content: Secret("x".into()) });
            assert!(refused(&kit).contains(name), "{name}");
        }
    }
}
