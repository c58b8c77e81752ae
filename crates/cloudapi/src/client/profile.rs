//! Profiles: where the datacenter is and who we are there, read from the places the `triton` command reads.
//!
//! A profile named `env` comes from `TRITON_URL`, `TRITON_ACCOUNT`, `TRITON_KEY_ID` (or the older `SDC_` names); others are
//! files `~/.triton/profiles.d/NAME.json`; `~/.triton/config.json` names the current one.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Largest profile file we read, bytes.
const FILE_MAX: u64 = 65_536;

/// Whom to talk to and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// `env`, or the file's name.
    pub name: String,
    /// e.g. `https://127.0.0.1:8443`; several of one datacenter, separated by commas, are tried in turn. (`triton` itself takes one.)
    pub url: String,
    /// Login of the account that signs.
    pub account: String,
    /// Account to act on instead, for operators.
    pub act_as: Option<String>,
    /// MD5 or SHA-256 fingerprint of the key to sign with.
    pub key_id: String,
    /// Accept any certificate.
    pub insecure: bool,
    /// Further authorities to trust, PEM.
    pub ca_file: Option<PathBuf>,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// None is configured.
    #[error("no profile: set TRITON_URL, TRITON_ACCOUNT and TRITON_KEY_ID, or make one with `triton profile create`")]
    None,
    /// The named one does not exist.
    #[error("there is no profile \"{name}\" (`{path}`)")]
    Unknown {
        /// Its name.
        name: String,
        /// Where it would be.
        path: PathBuf,
    },
    /// Half of the environment is set.
    #[error("the environment sets some of TRITON_URL, TRITON_ACCOUNT and TRITON_KEY_ID, but not {0}")]
    Incomplete(&'static str),
    /// A file cannot be read.
    #[error("failed to read profile `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("failed to parse profile `{path}`")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    url: String,
    account: String,
    key_id: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    act_as_account: Option<String>,
}

#[derive(Deserialize)]
struct Config {
    profile: Option<String>,
}

/// Whatever looks up environment variables: [`std::env::var`] outside tests.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Profile {
    /// The profile `wanted`, or the current one.
    pub fn load(wanted: Option<&str>, environment: Environment<'_>) -> Result<Self, ProfileError> {
        let home = environment("HOME").map(PathBuf::from).unwrap_or_default();
        let directory = environment("TRITON_CONFIG_DIR").map_or_else(|| home.join(".triton"), PathBuf::from);
        let name = match wanted.map(str::to_owned).or_else(|| environment("TRITON_PROFILE")) {
            Some(name) => name,
            None => match current(&directory)? {
                Some(name) => name,
                None => "env".to_owned(),
            },
        };
        let mut profile = match name.as_str() {
            "env" => Self::from_environment(environment)?,
            _ => Self::from_file(&name, &directory.join("profiles.d").join(format!("{name}.json")))?,
        };
        profile.ca_file =
            environment("TRITON_CA_FILE").or_else(|| environment("NODE_EXTRA_CA_CERTS")).map(PathBuf::from);
        Ok(profile)
    }

    fn from_environment(environment: Environment<'_>) -> Result<Self, ProfileError> {
        let either =
            |new: &str, old: &str| environment(new).or_else(|| environment(old)).filter(|value| !value.is_empty());
        let url = either("TRITON_URL", "SDC_URL");
        let account = either("TRITON_ACCOUNT", "SDC_ACCOUNT");
        let key_id = either("TRITON_KEY_ID", "SDC_KEY_ID");
        let (url, account, key_id) = match (url, account, key_id) {
            (Some(url), Some(account), Some(key_id)) => (url, account, key_id),
            (None, None, None) => return Err(ProfileError::None),
            (None, ..) => return Err(ProfileError::Incomplete("TRITON_URL")),
            (_, None, _) => return Err(ProfileError::Incomplete("TRITON_ACCOUNT")),
            (.., None) => return Err(ProfileError::Incomplete("TRITON_KEY_ID")),
        };
        let set =
            |name: &str| environment(name).is_some_and(|value| !matches!(value.as_str(), "" | "0" | "false" | "no"));
        Ok(Self {
            name: "env".into(),
            url,
            account,
            act_as: None,
            key_id,
            insecure: set("TRITON_TLS_INSECURE") || set("SDC_TLS_INSECURE") || set("SDC_TESTING"),
            ca_file: None,
        })
    }

    fn from_file(name: &str, path: &Path) -> Result<Self, ProfileError> {
        let file: File =
            read(path)?.ok_or_else(|| ProfileError::Unknown { name: name.to_owned(), path: path.to_owned() })?;
        Ok(Self {
            name: name.to_owned(),
            url: file.url,
            account: file.account,
            act_as: file.act_as_account,
            key_id: file.key_id,
            insecure: file.insecure,
            ca_file: None,
        })
    }
}

fn current(directory: &Path) -> Result<Option<String>, ProfileError> {
    let config: Option<Config> = read(&directory.join("config.json"))?;
    Ok(config.and_then(|config| config.profile).filter(|name| !name.is_empty()))
}

/// `None` when the file does not exist.
fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, ProfileError> {
    let failed = |source| ProfileError::Read { path: path.to_owned(), source };
    let bytes = match fs::metadata(path) {
        Ok(found) if found.len() > FILE_MAX => return Err(failed(io::Error::other("the file is too large"))),
        Ok(_) => fs::read(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| ProfileError::Parse { path: path.to_owned(), source })
}
