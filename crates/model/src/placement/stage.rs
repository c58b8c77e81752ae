//! The stages a machine passes in order, and the words of each for turning it down.

use std::fmt;

use super::{Candidate, Demand, Policy, Request, wiring};
use crate::{
    id::ServerId,
    server::{Reserved, Server},
    state::Reachability,
};

/// Stages by name, in order: the columns of an explanation.
pub const STAGES: [&str; 11] = [
    "open",
    "headnode",
    "reachable",
    "traits",
    "nic tags",
    "affinity",
    "instances",
    "cpu caps",
    "memory",
    "disk",
    "cpu",
];

/// Why a machine is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The operator closed it for new instances.
    Closed,
    /// It runs a headnode.
    Headnode,
    /// It has not been heard of for a while.
    Unreachable,
    /// It has a trait nobody asked for, or lacks one that is asked for.
    Trait {
        /// The trait.
        name: String,
        /// Whether the request asks for it.
        asked: bool,
    },
    /// It is not wired to a network that is asked for.
    NicTag(String),
    /// It is wired to no network of a pool that is asked for, or to none with a free address.
    Pool(String),
    /// A rule of affinity wants it to be somewhere else.
    Affinity(String),
    /// It has as many instances as a machine may.
    TooMany {
        /// That many.
        limit: u32,
    },
    /// Its instances all have a CPU cap and the new one has none, or the other way round.
    CpuCaps {
        /// Whether the request has a cap.
        capped: bool,
    },
    /// Too little is left of something.
    TooSmall {
        /// `memory`, `disk` or `cpu`.
        what: &'static str,
        /// Needed, in MiB or percent of a core.
        needed: u64,
        /// Left, in the same unit.
        left: u64,
    },
}

impl Refusal {
    /// Which of [`STAGES`] it comes from.
    pub fn stage(&self) -> &'static str {
        match self {
            Self::Closed => "open",
            Self::Headnode => "headnode",
            Self::Unreachable => "reachable",
            Self::Trait { .. } => "traits",
            Self::NicTag(_) | Self::Pool(_) => "nic tags",
            Self::Affinity(_) => "affinity",
            Self::TooMany { .. } => "instances",
            Self::CpuCaps { .. } => "cpu caps",
            Self::TooSmall { what, .. } => what,
        }
    }

    /// What a tenant may read of it: how many machines, never which.
    fn words(stage: &str) -> &'static str {
        match stage {
            "open" | "headnode" => "closed for new instances",
            "reachable" => "not reachable",
            "traits" => "kept for other instances",
            "nic tags" => "not on the networks asked for",
            "affinity" => "ruled out by affinity",
            "instances" => "at their limit of instances",
            "cpu caps" => "kept for instances of the other kind of CPU cap",
            "memory" => "with too little memory left",
            "disk" => "with too little disk left",
            _ => "with too little CPU left",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("takes no new instances"),
            Self::Headnode => f.write_str("runs a headnode"),
            Self::Unreachable => f.write_str("has not been heard of"),
            Self::Trait { name, asked: true } => write!(f, "trait \"{name}\" is asked for, and it has no such one"),
            Self::Trait { name, asked: false } => write!(f, "kept for requests with trait \"{name}\""),
            Self::NicTag(tag) => write!(f, "not wired to NIC tag \"{tag}\""),
            Self::Pool(pool) => write!(f, "not wired to a network of pool \"{pool}\" that has addresses left"),
            Self::Affinity(rule) => write!(f, "ruled out by \"{rule}\""),
            Self::TooMany { limit } => write!(f, "has {limit} instances already"),
            Self::CpuCaps { capped: true } => f.write_str("has instances without a CPU cap"),
            Self::CpuCaps { capped: false } => f.write_str("has instances with a CPU cap"),
            Self::TooSmall { what: "cpu", needed, left } => write!(f, "cpu: {needed}% needed, {left}% left"),
            Self::TooSmall { what, needed, left } => write!(f, "{what}: {needed} MiB needed, {left} MiB left"),
        }
    }
}

/// No machine can take the instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.summary())]
pub struct NoRoom {
    /// Each machine with its reason.
    pub refusals: Vec<(ServerId, Refusal)>,
    /// Rules of affinity that no instance answers to, so that no machine could meet them.
    pub unmet: Vec<String>,
}

impl NoRoom {
    /// Why none of `candidates`, which are all machines there are, can take what is asked for.
    pub fn among<'a>(
        request: &Request<'_>,
        policy: &Policy,
        candidates: impl IntoIterator<Item = Candidate<'a>>,
    ) -> Self {
        let judged = candidates.into_iter().filter_map(|candidate| {
            judge(request, policy, candidate).err().map(|refusal| (candidate.server.id, refusal))
        });
        Self { refusals: judged.collect(), unmet: request.wishes.unmet() }
    }

    /// One sentence a tenant may read: no machine is named in it.
    pub fn summary(&self) -> String {
        if let Some(rule) = self.unmet.first() {
            return format!("no machine can take it: no instance of yours matches affinity rule \"{rule}\"");
        }
        if self.refusals.is_empty() {
            return "no machine has joined the datacenter yet".to_owned();
        }
        let mut parts: Vec<(&str, usize)> = Vec::new();
        for stage in STAGES {
            let count = self.refusals.iter().filter(|(_, refusal)| refusal.stage() == stage).count();
            let words = Refusal::words(stage);
            match parts.iter_mut().find(|(known, _)| *known == words) {
                Some((_, total)) => *total += count,
                None => parts.push((words, count)),
            }
        }
        let parts: Vec<String> = parts
            .into_iter()
            .filter(|(_, number)| *number > 0)
            .map(|(words, number)| format!("{number} {words}"))
            .collect();
        format!("no machine can take it: {}", parts.join(", "))
    }
}

/// Whether `candidate` can take what is asked for.
pub fn judge(request: &Request<'_>, policy: &Policy, candidate: Candidate<'_>) -> Result<(), Refusal> {
    let Candidate { server, reachability } = candidate;
    if !server.accepts_instances {
        return Err(Refusal::Closed);
    }
    if server.headnode && !policy.headnode_takes_instances {
        return Err(Refusal::Headnode);
    }
    if reachability == Reachability::Unreachable {
        return Err(Refusal::Unreachable);
    }
    traits(request, server)?;
    if let (Some(wired), false) = (&server.nic_tags, request.nic_tags.is_empty())
        && let Some(tag) = request.nic_tags.iter().find(|tag| !wired.contains(*tag))
    {
        return Err(Refusal::NicTag(tag.clone()));
    }
    if !request.choices.is_empty() {
        wiring::assign(&request.choices, server.nic_tags.as_ref())
            .map_err(|choice| Refusal::Pool(choice.pool.clone()))?;
    }
    request.wishes.allows(server.id, server.rack.as_deref()).map_err(|rule| Refusal::Affinity(rule.to_owned()))?;
    let limit = policy.instances(server);
    if server.reserved.instances >= limit {
        return Err(Refusal::TooMany { limit });
    }
    let others = if request.demand.is_uncapped() {
        server.reserved.instances.saturating_sub(server.reserved.uncapped)
    } else {
        server.reserved.uncapped
    };
    if policy.uncapped_apart && others > 0 {
        return Err(Refusal::CpuCaps { capped: !request.demand.is_uncapped() });
    }
    let nothing = Demand { memory: crate::unit::Mib(0), disk: crate::unit::Mib(0), cpu: 0 };
    room(request.demand, nothing, policy, server, &server.reserved)
}

/// Whether `server` can take `demand` in place of `released`, which it holds already: a resize.
pub fn fits(demand: Demand, released: Demand, policy: &Policy, server: &Server) -> Result<(), Refusal> {
    let reserved = server.reserved.minus(released);
    // Shrinking always fits, also on a machine that promised too much under an older policy.
    room(demand, released, policy, server, &reserved)
}

fn traits(request: &Request<'_>, server: &Server) -> Result<(), Refusal> {
    let unmet = |(name, asked): &(&String, &crate::server::Trait)| {
        !server.traits.get(*name).is_some_and(|has| has.serves(asked))
    };
    if let Some((name, _)) = request.traits.iter().find(unmet) {
        return Err(Refusal::Trait { name: name.clone(), asked: true });
    }
    match server.traits.keys().find(|name| !request.traits.contains_key(*name)) {
        Some(name) => Err(Refusal::Trait { name: name.clone(), asked: false }),
        None => Ok(()),
    }
}

fn room(demand: Demand, had: Demand, policy: &Policy, server: &Server, reserved: &Reserved) -> Result<(), Refusal> {
    let stages = [
        ("memory", demand.memory.0, had.memory.0, policy.memory(server), reserved.memory.0),
        ("disk", demand.disk.0, had.disk.0, policy.disk(server), reserved.disk.0),
        ("cpu", demand.cpu, had.cpu, policy.cpu(server), reserved.cpu),
    ];
    for (what, needed, had, promisable, promised) in stages {
        let left = promisable.saturating_sub(promised);
        if needed > left && needed > had {
            return Err(Refusal::TooSmall { what, needed, left });
        }
    }
    Ok(())
}
