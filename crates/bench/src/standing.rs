//! The record of an instance that has been running for long, for benchmarks that begin with a full datacenter.

use std::collections::BTreeMap;

use model::{
    id::{AccountId, ImageId, InstanceId, PackageId, ServerId},
    instance::{Brand, Instance, Intent, Wanted},
    network::Nic,
    pairs::Pairs,
    target::{Limits, ZoneFact, ZoneState},
    time::Timestamp,
};

/// What tells one such instance from another.
pub(crate) struct Standing {
    pub(crate) alias: String,
    pub(crate) owner: AccountId,
    pub(crate) image: ImageId,
    pub(crate) package: PackageId,
    pub(crate) package_name: &'static str,
    pub(crate) limits: Limits,
    pub(crate) server: ServerId,
    pub(crate) nic: Nic,
}

/// Its record; it was made at `now`, is as wanted, and has nothing under way.
pub(crate) fn instance(of: Standing, now: Timestamp) -> Instance {
    Instance {
        id: InstanceId::random(),
        owner: of.owner,
        alias: of.alias,
        brand: Brand::Lx,
        image: of.image,
        package: of.package,
        package_name: of.package_name.to_owned(),
        affinity: Vec::new(),
        limits: of.limits.clone(),
        server: of.server,
        nics: vec![of.nic.clone()],
        metadata: Pairs::from([("root_authorized_keys".to_owned(), "ssh-ed25519 AAAA bench".to_owned())]),
        internal_metadata: Pairs::default(),
        tags: Pairs::default(),
        firewall_enabled: false,
        deletion_protection: false,
        intent: Intent { wanted: Wanted::Running, starts: 1, reboots: 0 },
        fact: Some(ZoneFact {
            state: ZoneState::Running,
            starts_done: 1,
            reboots_done: 0,
            started_at: Some(now),
            exit: None,
            error: None,
            timeline: Vec::new(),
            limits: Some(of.limits),
            nics: vec![of.nic.mac],
            addresses6: BTreeMap::new(),
            gave_up: false,
            oom_kills: 0,
            guest_metadata: Vec::new(),
        }),
        lost_at: None,
        failure: None,
        flow: None,
        timeline: Vec::new(),
        guest_metadata_seen: 0,
        metadata_edits: 0,
        metadata_edits_served: 0,
        history: Vec::new(),
        created_at: now,
        updated_at: now,
        deleted_at: None,
        delete_asked_at: None,
        released: false,
    }
}
