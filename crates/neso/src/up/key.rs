//! The tenant's SSH key: made once, in the invoking user's home, owned by that user.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown},
    path::{Path, PathBuf},
};

use headnode::Settings;
use ssh_key::{LineEnding, PrivateKey, private::Ed25519Keypair};

use crate::failure::{Failure, Outcome};

/// Name of the private key's file.
const FILE: &str = "id_neso";

/// A key pair on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TenantKey {
    /// The private key's file; the public one lies beside it with `.pub`.
    pub(crate) path: PathBuf,
    /// One OpenSSH line.
    pub(crate) public: String,
}

/// Who typed the command: with sudo, not root.
struct Invoker {
    home: PathBuf,
    ids: Option<(u32, u32)>,
}

/// Reads the key, or makes it.
pub(crate) fn ensure(settings: &Settings) -> Outcome<(TenantKey, bool)> {
    let invoker = invoker();
    let directory = match &settings.first_run.key_directory {
        Some(directory) => directory.clone(),
        None => invoker.home.join(".ssh"),
    };
    let path = directory.join(FILE);
    let public_path = path.with_extension("pub");
    if let Ok(public) = fs::read_to_string(&public_path)
        && path.exists()
    {
        return Ok((TenantKey { path, public: public.trim().to_owned() }, false));
    }
    let fail =
        |what: &Path, error: std::io::Error| Failure::new(format!("failed to write `{}`: {error}", what.display()));
    if !directory.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|error| fail(&directory, error))?;
        give(&directory, &invoker)?;
    }
    let (private, public) = generate(&format!("{}@neso", settings.first_run.tenant))?;
    write(&path, private.as_bytes(), 0o600).map_err(|error| fail(&path, error))?;
    write(&public_path, format!("{public}\n").as_bytes(), 0o644).map_err(|error| fail(&public_path, error))?;
    give(&path, &invoker)?;
    give(&public_path, &invoker)?;
    Ok((TenantKey { path, public }, true))
}

/// A fresh Ed25519 key: private and public text.
fn generate(comment: &str) -> Outcome<(String, String)> {
    let mut seed = [0; 32];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut seed))
        .map_err(|error| Failure::new(format!("failed to read `/dev/urandom`: {error}")))?;
    let pair = Ed25519Keypair::from_seed(&seed);
    let key = PrivateKey::new(pair.into(), comment)?;
    Ok((key.to_openssh(LineEnding::LF)?.to_string(), key.public_key().to_openssh()?))
}

pub(crate) fn write(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let _ = fs::remove_file(path);
    fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(content)
}

fn give(path: &Path, invoker: &Invoker) -> Outcome {
    let Some((user, group)) = invoker.ids else {
        return Ok(());
    };
    chown(path, Some(user), Some(group))
        .map_err(|error| Failure::new(format!("failed to give `{}` to its user: {error}", path.display())))
}

fn invoker() -> Invoker {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if let (Some(user), Some(group)) = (number("SUDO_UID"), number("SUDO_GID"))
        && let Some(home) = home_of(user)
    {
        return Invoker { home, ids: Some((user, group)) };
    }
    Invoker { home: std::env::var_os("HOME").map_or_else(|| "/root".into(), PathBuf::from), ids: None }
}

fn home_of(user: u32) -> Option<PathBuf> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse::<u32>().ok()? == user).then(|| fields.get(5).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ssh_keys_and_differ() {
        let (private, public) = generate("demo@neso").unwrap();
        assert!(private.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
        assert!(public.starts_with("ssh-ed25519 ") && public.ends_with(" demo@neso"));
        assert_ne!(generate("x").unwrap().0, generate("x").unwrap().0);
    }
}
