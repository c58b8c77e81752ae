//! What the operator decides about a datacenter, as plain data. Whoever starts the headnode fills it in.

use std::path::PathBuf;

use model::{id::ServerId, placement::Policy};

use crate::{fabrics::FabricConfig, names::NamesConfig};

/// Settings of the control plane.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Name of the datacenter, e.g. `home-1`.
    pub datacenter: String,
    /// Name of the region it belongs to.
    pub region: String,
    /// Names of instances.
    pub names: NamesConfig,
    /// Which headnode this control plane is; `None` for one that has no peers.
    pub headnode: Option<ServerId>,
    /// Search domain in guests, Triton's `dns_domain`.
    pub guest_dns_domain: Option<String>,
    /// Directory of the images' files, named by their SHA-256.
    pub images_dir: PathBuf,
    /// Directory of history that leaves the store; `None`: it is dropped.
    pub archive_dir: Option<PathBuf>,
    /// Networks by name that an instance gets when neither request nor account chooses any; the first is the primary one.
    pub default_networks: Vec<String>,
    /// Tenants' own networks.
    pub fabric: FabricConfig,
    /// Which machines take how many instances.
    pub placement: Policy,
    /// Characters of an instance's name at most: [`model::rules::ALIAS_MAX`]. Accounts whose instances have DNS names have 63.
    pub alias_max: usize,
    /// Somebody asks machines for the rules they hold after a restore; nothing goes on before.
    pub asks_for_rules: bool,
    /// Milliseconds without a report after which a machine counts as unreachable.
    pub unreachable_after_ms: i64,
    /// Milliseconds a provision may take before it is given up and everything it holds is given back.
    pub provision_deadline_ms: i64,
    /// Milliseconds a start, stop, reboot, resize or change of NICs may take before it counts as failed.
    pub change_deadline_ms: i64,
    /// Milliseconds the records of deleted instances are kept for `410 Gone` and their history.
    pub tombstones_kept_ms: i64,
}

/// One day in milliseconds.
const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

impl ControlConfig {
    /// The defaults for a datacenter called `datacenter` that keeps images in `images_dir`.
    pub fn new(datacenter: impl Into<String>, images_dir: impl Into<PathBuf>) -> Self {
        Self {
            datacenter: datacenter.into(),
            region: "home".to_owned(),
            names: NamesConfig::default(),
            headnode: None,
            guest_dns_domain: Some("local".to_owned()),
            images_dir: images_dir.into(),
            archive_dir: None,
            default_networks: vec!["external".to_owned(), "private".to_owned()],
            fabric: FabricConfig::default(),
            placement: Policy::default(),
            alias_max: model::rules::ALIAS_MAX,
            // Three heartbeats and the time a slow link needs to come back.
            unreachable_after_ms: 30_000,
            // The first instance from an image waits for the image, which may have gigabytes.
            provision_deadline_ms: 15 * 60 * 1_000,
            // A halt that is not obeyed is enforced after a minute; the rest is slack for a busy machine.
            change_deadline_ms: 5 * 60 * 1_000,
            tombstones_kept_ms: 7 * DAY_MS,
            asks_for_rules: false,
        }
    }
}
