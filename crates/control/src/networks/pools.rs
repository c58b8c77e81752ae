//! Pools: several networks that are asked for as one.

use std::sync::Arc;

use model::{
    id::{AccountId, NetworkId, PoolId},
    network::{Network, Pool},
    placement::Choice,
    rules,
};
use store::{Entry, Snapshot, Transaction};

use super::{allocate, check_description, common, sees};
use crate::{
    Control, Error, FieldCode, Result, Scope,
    error::Faults,
    tables::{EVERYBODY, NETWORKS, POOLS, SEEN_BY},
};

/// Networks of a pool at most: each may be looked at for every create.
pub const NETWORKS_MAX: usize = 64;

/// What a new pool is made of; see [`Pool`] for the fields.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct NewPool {
    pub name: String,
    pub description: Option<String>,
    pub owners: Vec<AccountId>,
    pub networks: Vec<NetworkId>,
}

/// A pool with what follows from its networks.
#[derive(Debug, Clone)]
pub struct PoolView {
    /// The record.
    pub pool: Arc<Entry<Pool>>,
    /// Whether its networks are public.
    pub public: bool,
}

/// Makes a pool.
pub async fn create(control: &Control, new: NewPool) -> Result<PoolView> {
    let mut faults = Faults::default();
    faults.check("name", rules::check_name(&new.name));
    check_description(new.description.as_deref(), &mut faults);
    faults.finish()?;
    let id = PoolId::from_random(base::random::wide_bits());
    let pool = Pool {
        id,
        name: new.name,
        description: new.description,
        owners: new.owners,
        networks: new.networks,
        created_at: control.now(),
    };
    control
        .store
        .update(|snapshot| {
            let taken = snapshot
                .scan(&NETWORKS)
                .any(|network| network.name == pool.name && common(&network.owners, &pool.owners));
            if taken || named(snapshot, &pool.owners, &pool.name) {
                return Err(Error::AlreadyExists { what: "network or pool", name: pool.name.clone() });
            }
            check_networks(snapshot, &pool)?;
            Ok((Transaction::new().create(&POOLS, pool.clone()), ()))
        })
        .await?;
    get(control, Scope::All, id)
}

/// The pool with an id, if it may be seen.
pub fn get(control: &Control, scope: Scope, id: PoolId) -> Result<PoolView> {
    let snapshot = control.snapshot();
    let pool = visible(&snapshot, scope, id).ok_or_else(|| Error::not_found("pool", id))?;
    Ok(view(&snapshot, pool))
}

/// The pools that may be seen, by name.
pub fn list(control: &Control, scope: Scope) -> Vec<PoolView> {
    let snapshot = control.snapshot();
    let mut pools: Vec<Arc<Entry<Pool>>> = match scope {
        Scope::All => snapshot.scan(&POOLS).collect(),
        Scope::Account(account) => {
            let shared = snapshot.find(&POOLS, SEEN_BY, EVERYBODY);
            shared.chain(snapshot.find(&POOLS, SEEN_BY, &account.to_string())).collect()
        }
    };
    pools.sort_by(|one, other| one.name.cmp(&other.name));
    pools.into_iter().map(|pool| view(&snapshot, pool)).collect()
}

/// Chooses the networks of a pool anew; instances keep the addresses they have.
pub async fn set_networks(control: &Control, id: PoolId, networks: Vec<NetworkId>) -> Result<PoolView> {
    control
        .store
        .update(|snapshot| {
            let entry = visible(snapshot, Scope::All, id).ok_or_else(|| Error::not_found("pool", id))?;
            let changed = Pool { networks: networks.clone(), ..entry.value.clone() };
            check_networks(snapshot, &changed)?;
            Ok::<_, Error>((Transaction::new().replace(&POOLS, &entry, changed), ()))
        })
        .await?;
    get(control, Scope::All, id)
}

/// Deletes a pool; its networks stay.
pub async fn delete(control: &Control, id: PoolId) -> Result<()> {
    control
        .store
        .update(|snapshot| {
            let entry = visible(snapshot, Scope::All, id).ok_or_else(|| Error::not_found("pool", id))?;
            Ok::<_, Error>((Transaction::new().delete(&POOLS, &entry), ()))
        })
        .await?;
    Ok(())
}

/// A pool with those of its networks that have addresses to give.
pub(crate) struct OpenPool {
    pool: Arc<Entry<Pool>>,
    networks: Vec<Arc<Entry<Network>>>,
}

/// A pool's networks that have a free address and are none of `except`: of each NIC tag the first `per_tag`, so that a pool of many
/// networks on one wire is not looked through.
///
/// # Errors
/// [`Error::NoAddress`] in the pool's name when there is none.
pub(crate) fn open(
    control: &Control,
    snapshot: &Snapshot,
    pool: Arc<Entry<Pool>>,
    except: impl Fn(NetworkId) -> bool,
    per_tag: usize,
) -> Result<OpenPool> {
    let mut networks: Vec<Arc<Entry<Network>>> = Vec::new();
    for id in pool.networks.iter().filter(|id| !except(**id)) {
        let Some(network) = snapshot.get(&NETWORKS, &id.to_string()) else { continue };
        let enough = networks.iter().filter(|other| other.nic_tag == network.nic_tag).count() >= per_tag;
        if !enough && allocate::has_room(control, snapshot, &network) {
            networks.push(network);
        }
    }
    if networks.is_empty() {
        Err(Error::NoAddress { network: pool.name.clone() })
    } else {
        Ok(OpenPool { pool, networks })
    }
}

impl OpenPool {
    /// What placement has to choose among.
    pub(crate) fn choice(&self) -> Choice {
        let networks = self.networks.iter().map(|network| (network.id, network.nic_tag.clone())).collect();
        Choice { pool: self.pool.name.clone(), networks }
    }

    /// One of its networks.
    pub(crate) fn network(&self, id: NetworkId) -> Option<Arc<Entry<Network>>> {
        self.networks.iter().find(|network| network.id == id).cloned()
    }
}

/// The pool with an id, if `scope` sees it.
pub(crate) fn visible(snapshot: &Snapshot, scope: Scope, id: PoolId) -> Option<Arc<Entry<Pool>>> {
    snapshot.get(&POOLS, &id.to_string()).filter(|pool| sees(scope, &pool.owners))
}

/// The pool with a name, if `scope` sees it.
pub(crate) fn by_name(snapshot: &Snapshot, scope: Scope, name: &str) -> Option<Arc<Entry<Pool>>> {
    snapshot.scan(&POOLS).find(|pool| pool.name == name && sees(scope, &pool.owners))
}

/// Whether there is a pool of that name which somebody would see beside an object of `owners`.
pub(crate) fn named(snapshot: &Snapshot, owners: &[AccountId], name: &str) -> bool {
    snapshot.scan(&POOLS).any(|pool| pool.name == name && common(&pool.owners, owners))
}

fn view(snapshot: &Snapshot, pool: Arc<Entry<Pool>>) -> PoolView {
    let first = pool.networks.first().and_then(|id| snapshot.get(&NETWORKS, &id.to_string()));
    PoolView { public: first.is_some_and(|network| network.public), pool }
}

fn check_networks(snapshot: &Snapshot, pool: &Pool) -> Result<()> {
    let fault = |code, why: String| Err(Error::field("networks", code, why));
    if pool.networks.is_empty() || pool.networks.len() > NETWORKS_MAX {
        return fault(FieldCode::Invalid, format!("must have 1 to {NETWORKS_MAX} entries"));
    }
    let mut members: Vec<Arc<Entry<Network>>> = Vec::with_capacity(pool.networks.len());
    for id in &pool.networks {
        let Some(network) = snapshot.get(&NETWORKS, &id.to_string()) else {
            return fault(FieldCode::Invalid, format!("there is no network {id}"));
        };
        let name = network.name.clone();
        if network.fabric.is_some() {
            return fault(FieldCode::Invalid, format!("\"{name}\" is a tenant's own network"));
        }
        if members.iter().any(|other| other.id == network.id) {
            return fault(FieldCode::Conflict, format!("\"{name}\" is named twice"));
        }
        let shown = network.owners.is_empty()
            || (!pool.owners.is_empty() && pool.owners.iter().all(|owner| network.owners.contains(owner)));
        if !shown {
            return fault(FieldCode::Conflict, format!("\"{name}\" is not seen by everybody who sees the pool"));
        }
        members.push(network);
    }
    let shape = |network: &Network| (network.public, network.subnet.is_some(), network.subnet6.is_some());
    match members.iter().find(|network| shape(network) != shape(&members[0])) {
        None => Ok(()),
        Some(other) => {
            let why = format!(
                "\"{}\" and \"{}\" differ: all must be public or none, and all of the same families of addresses",
                members[0].name, other.name
            );
            fault(FieldCode::Conflict, why)
        }
    }
}
