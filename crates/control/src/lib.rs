//! The brain of a datacenter: one folder per noun, free functions `noun::verb(&Control, …)`.
//!
//! Every read is served from one immutable snapshot of the store. Every change is a pure decision on one snapshot, turned into one
//! transaction; if somebody else was faster, the decision is made again on a newer snapshot ([`store::Store::update`]).
//!
//! What should be is written here (intent); what is comes from the machines' reports ([`servers::apply_report`]). Nobody
//! here ever calls a machine: each is handed one document ([`servers::watch_target`]) and answers with facts. Flows
//! ([`flows`]) wait for those facts on a person's behalf, loops ([`loops`]) tidy up.
//!
//! Verbs that a tenant's client may ask for go through [`Control::update`], so that a call that is repeated is carried out once
//! ([`repeats`]).
//!
//! This crate knows no HTTP and none of the public contract's types; doors translate.

pub mod config;
mod error;
mod liveness;
pub mod tables;

pub mod accounts;
pub mod fabrics;
pub mod firewall;
pub mod headnodes;
pub mod images;
pub mod instances;
pub mod metrics;
pub mod names;
pub mod networks;
pub mod packages;
pub mod paths;
pub mod placement;
pub mod rebuild;
pub mod repeats;
pub mod servers;
pub mod usage;

pub mod flows;
pub mod loops;

use std::{
    collections::HashMap,
    net::IpAddr,
    ops::Deref,
    sync::{Arc, Mutex, OnceLock},
};

use base::{clock::Clock, shutdown::Shutdown};
use model::{
    id::{AccountId, NetworkId},
    time::Timestamp,
};
use store::{Snapshot, Store};

use crate::headnodes::members::Members;

pub use crate::{
    config::ControlConfig,
    error::{Error, FieldCode, FieldError, Result},
    liveness::{Heard, Liveness, STRANGERS_MAX},
    tables::schema,
};

/// The control plane. Cheap to clone; all clones are one, but that some may be of a call with a name ([`repeats`]).
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
    /// Which call this is, when its client named it.
    call: Option<Arc<repeats::NamedCall>>,
    /// Whose calls it is for, if it is for calls: see [`Control::for_calls_of`].
    account: Option<AccountId>,
}

/// What every verb needs.
pub struct Inner {
    /// The records.
    pub store: Store,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The operator's decisions.
    pub config: ControlConfig,
    /// Who else runs a control plane over this store.
    pub headnodes: Arc<headnodes::Headnodes>,
    /// What keeps the store, once it was told.
    members: OnceLock<Arc<dyn Members>>,
    /// Heartbeats.
    pub nodes: Liveness,
    /// The last requests that found no machine.
    pub refusals: placement::Refusals,
    /// Where history goes that leaves the store; nowhere in a simulation.
    pub archive: Option<flow::Archive>,
    /// What each machine reported last.
    pub(crate) reports: servers::reports::Reports,
    /// Targets of all machines, kept up to date in memory.
    pub(crate) targets: servers::targets::Targets,
    /// The address each network gave last, by whether it is IPv6: only a hint where to look for a free one first.
    pub(crate) last_given: Mutex<HashMap<(NetworkId, bool), IpAddr>>,
    /// Named calls that are under way here.
    pub(crate) turns: repeats::Turns,
}

impl Deref for Control {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl Control {
    /// A control plane over `store`, whose schema must be [`schema`]'s. Starts the task that keeps the machines' targets up to
    /// date; it ends with `shutdown`.
    pub fn start(store: Store, clock: Arc<dyn Clock>, config: ControlConfig, shutdown: Shutdown) -> Self {
        let headnodes = Arc::new(headnodes::Headnodes::new(config.headnode));
        let nodes = Liveness::new(clock.clone(), headnodes.clone(), config.unreachable_after_ms);
        let targets = servers::targets::Targets::new(&config);
        let archive = config.archive_dir.clone().map(flow::Archive::new);
        let inner = Inner {
            headnodes,
            members: OnceLock::new(),
            store,
            clock,
            config,
            nodes,
            archive,
            refusals: placement::Refusals::default(),
            reports: servers::reports::Reports::default(),
            targets,
            last_given: Mutex::default(),
            turns: repeats::Turns::default(),
        };
        let control = Self { inner: Arc::new(inner), call: None, account: None };
        headnodes::start(&control, shutdown.clone());
        servers::targets::start(control.clone(), shutdown);
        control
    }

    /// The same for calls about what `account` has. Where many want to decide at once, they wait in a line of their own, and the lines take turns
    /// ([`Store::in_line`]).
    #[must_use]
    pub fn for_calls_of(&self, account: AccountId) -> Self {
        Self { account: Some(account), ..self.clone() }
    }

    /// The store, in the line of those this is for.
    pub(crate) fn line(&self) -> Store {
        match self.account {
            Some(account) => self.store.in_line(&account.to_string()),
            None => self.store.clone(),
        }
    }

    /// Says what keeps the store; once, before flows run.
    pub fn keep_store_with(&self, members: Arc<dyn Members>) {
        // Whoever says it again is another clone of the same.
        let _ = self.members.set(members);
    }

    /// What keeps the store, or why nothing is known that does.
    pub fn members(&self) -> Result<Arc<dyn Members>, String> {
        let known = self.members.get().cloned();
        known.ok_or_else(|| "this control plane was not told what keeps its store".to_owned())
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.clock.now_ms())
    }

    /// Everything as of now.
    pub fn snapshot(&self) -> Snapshot {
        self.store.snapshot()
    }
}

/// Whose objects a verb may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One account's own, and what it was given sight of.
    Account(AccountId),
    /// Everybody's: operators.
    All,
}

impl Scope {
    /// Whether objects of `owner` are in scope.
    pub fn covers(self, owner: AccountId) -> bool {
        match self {
            Self::Account(account) => account == owner,
            Self::All => true,
        }
    }
}
