//! This machine's doors to the kernel, built from the settings: for the agent, for `neso down` and for `neso clean-data`.

use std::time::Duration;

use base::shutdown::Shutdown;
use headnode::Settings;

use crate::failure::{Failure, Outcome};

pub(crate) async fn run_agent(_settings: &Settings, _shutdown: Shutdown) -> Outcome {
    Err(Failure::new("not yet"))
}

pub(crate) async fn wipe(_settings: &Settings) -> Outcome<usize> {
    Err(Failure::new("not yet"))
}

pub(crate) async fn halt(_settings: &Settings, _grace: Duration) -> Outcome<usize> {
    Err(Failure::new("not yet"))
}
