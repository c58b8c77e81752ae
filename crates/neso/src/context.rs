//! Where a command works: which settings file, below which root.

use std::path::{Path, PathBuf};

use headnode::settings::{DEFAULT_FILE, Settings};

use crate::failure::{Failure, Outcome};

/// The choice every operator command shares.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// Keep the whole datacenter below this directory, apart from any other on this machine.
    #[arg(long, global = true, value_name = "DIR", env = "NESO_ROOT")]
    pub(crate) root: Option<PathBuf>,
    /// Settings file; by default etc/neso/neso.toml below the root.
    #[arg(long, global = true, value_name = "FILE", env = "NESO_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

impl Place {
    /// The settings file's path.
    pub(crate) fn settings_path(&self) -> PathBuf {
        match (&self.config, &self.root) {
            (Some(file), _) => file.clone(),
            (None, Some(root)) => root.join(DEFAULT_FILE),
            (None, None) => Path::new("/").join(DEFAULT_FILE),
        }
    }

    /// Reads the settings; without a file there is no datacenter here.
    pub(crate) fn settings(&self) -> Outcome<Settings> {
        let path = self.settings_path();
        if !path.exists() {
            return Err(Failure::new(format!("there is no datacenter here: `{}` does not exist", path.display()))
                .mend("run `neso up`, or name another place with --root or --config"));
        }
        Ok(Settings::load(&path)?)
    }

    /// The same choice as arguments for a process of ours.
    pub(crate) fn arguments(&self) -> Vec<std::ffi::OsString> {
        vec!["--config".into(), self.settings_path().into()]
    }
}
