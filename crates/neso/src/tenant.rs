//! `neso instance`: the tenant's client.

use std::time::Duration;

use headnode::Settings;

use crate::{
    failure::{Failure, Outcome},
    up::key::TenantKey,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Command {}

pub(crate) async fn run(_command: Command) -> Outcome {
    Err(Failure::new("not yet"))
}

/// An instance as `neso up` speaks of it.
#[derive(Debug, Clone)]
pub(crate) struct FirstInstance {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) ip: Option<String>,
}

pub(crate) struct Tenant {}

impl Tenant {
    pub(crate) fn open(_settings: &Settings, _login: &str, _key: &TenantKey, _fingerprint: &str) -> Outcome<Self> {
        Err(Failure::new("not yet"))
    }
    pub(crate) async fn find(&self, _id: &str) -> Outcome<Option<FirstInstance>> {
        Err(Failure::new("not yet"))
    }
    pub(crate) async fn create(&self, _image: &str, _package: &str, _name: &str) -> Outcome<FirstInstance> {
        Err(Failure::new("not yet"))
    }
    pub(crate) async fn wait_running(&self, _id: &str, _patience: Duration) -> Outcome<FirstInstance> {
        Err(Failure::new("not yet"))
    }
}
