//! Where instances go: the rules of [`model::placement`] on one snapshot of the records.
//!
//! The decision is part of the commit that makes the instance, and that commit checks the chosen machine's record: two instances
//! that would crowd or offend each other on one machine cannot both be committed without the second one having seen the
//! first. Those placed by rules of racks also take turns among their owner's ([`take_turn`]). Nothing is locked for the whole
//! datacenter.
//!
//! Machines are read in the order of their room from an index of the records, from the first one or from somewhere on, and the owner's other
//! instances are counted only on the machines that are compared; rules of affinity, when there are any, look through the owner's instances once.

mod refusals;

use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeMap,
    ops::ControlFlow,
    sync::Arc,
};

use model::{
    id::{AccountId, ServerId},
    network::Network,
    package::Package,
    placement::{
        self, Candidate, Choice, Demand, Explanation, Fleet, Mark, Neighbour, NoRoom, Request, Rule, Spread, Wishes,
        affinity::AffinityGroup, explain,
    },
    server::Server,
    time::Timestamp,
};
use store::{Entry, Snapshot, Transaction};

pub use refusals::Refusals;

use crate::{
    Control, Error, FieldCode, Result, Scope,
    error::Faults,
    networks::{self, pools},
    packages,
    tables::{AFFINITY_GROUPS, BY_OWNER, BY_OWNER_ON, BY_RACK, BY_ROOM, INSTANCES, SERVERS, owner_on, room_key},
};

/// Affinity rules in one request at most.
pub const RULES_MAX: usize = 32;
/// Instances of one owner on a machine, or in a rack, counted at most: beyond, machines are not told apart.
const COUNTED_MAX: usize = 10;
/// Machines of one owner's that are counted for a placement at most.
const WALKED_MAX: usize = 500;

/// What an instance to be placed needs.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) owner: AccountId,
    /// What it would be called.
    pub(crate) alias: &'a str,
    pub(crate) package: &'a Package,
    pub(crate) networks: Vec<&'a Network>,
    /// NICs on networks that are chosen with the machine.
    pub(crate) choices: Vec<Choice>,
    pub(crate) rules: &'a [Rule],
    pub(crate) now: Timestamp,
}

/// Reads rules of affinity; every one that is wrong is named.
pub(crate) fn parse_rules(texts: &[String]) -> Result<Vec<Rule>> {
    let mut faults = Faults::default();
    if texts.len() > RULES_MAX {
        faults.check("affinity", Err(format!("has more than {RULES_MAX} entries")));
    }
    let mut rules = Vec::with_capacity(texts.len().min(RULES_MAX));
    for text in texts.iter().take(RULES_MAX) {
        match text.parse() {
            Ok(rule) => rules.push(rule),
            Err(error) => faults.check("affinity", Err(format!("rule \"{}\": {error}", shortened(text)))),
        }
    }
    faults.finish()?;
    Ok(rules)
}

/// Chooses a machine.
pub(crate) fn choose(control: &Control, snapshot: &Snapshot, asked: &Asked<'_>) -> Result<Arc<Entry<Server>>> {
    let others = Others::of(snapshot, asked.owner);
    let request = request(snapshot, asked, &others)?;
    let policy = &control.config.placement;
    let machines = Machines::of(control, snapshot, &request, asked.now);
    if let Some(placed) = placement::place(&request, policy, &machines, &mut base::random::bits) {
        let chosen = snapshot.get(&SERVERS, &placed.server.to_string());
        return chosen.ok_or_else(|| Error::not_found("server", placed.server));
    }
    let all: Vec<_> = snapshot.scan(&SERVERS).collect();
    let no_room = NoRoom::among(&request, policy, all.iter().map(|server| machines.candidate(server)));
    control.refusals.note(refusals::unplaced(asked, &no_room));
    Err(no_room.into())
}

/// A question of the operator's.
#[derive(Debug, Clone)]
pub struct Question {
    /// Whose instances they would be.
    pub owner: AccountId,
    /// Package by id or name.
    pub package: String,
    /// Networks and pools by id or name; fabrics need no wiring.
    pub networks: Vec<String>,
    /// Rules of affinity.
    pub affinity: Vec<String>,
    /// How many; at most [`explain::COUNT_MAX`].
    pub count: u32,
}

/// Takes a decision apart without making anything.
pub fn explain(control: &Control, question: &Question) -> Result<Explanation> {
    let snapshot = control.snapshot();
    let rules = parse_rules(&question.affinity)?;
    let mut faults = Faults::default();
    if question.count > explain::COUNT_MAX {
        faults.check("count", Err(format!("must be at most {}", explain::COUNT_MAX)));
    }
    let package = packages::look_up(&snapshot, &question.package);
    if package.is_none() {
        faults.check("package", Err(format!("there is no package \"{}\"", question.package)));
    }
    let (mut wanted, mut pools) = (Vec::new(), Vec::new());
    for name in &question.networks {
        let by_id = name.parse().ok().and_then(|id| networks::visible(&snapshot, Scope::All, id));
        let pool = || {
            let by_id = name.parse().ok().and_then(|id| pools::visible(&snapshot, Scope::All, id));
            by_id.or_else(|| pools::by_name(&snapshot, Scope::All, name))
        };
        match by_id.or_else(|| networks::by_name(&snapshot, Scope::All, name)) {
            Some(network) => wanted.push(network),
            None => match pool() {
                Some(pool) => pools.push(pool),
                None => faults.check("networks", Err(format!("there is no network \"{name}\""))),
            },
        }
    }
    faults.finish()?;
    let is_named = |id| wanted.iter().any(|network: &Arc<Entry<Network>>| network.id == id);
    let count = pools.len();
    let open = pools.into_iter().map(|pool| pools::open(control, &snapshot, pool, is_named, count));
    let choices = open.map(|open| Ok(open?.choice())).collect::<Result<_>>()?;
    let Some(package) = package else { unreachable!("a missing one was a fault") };
    let asked = Asked {
        owner: question.owner,
        alias: "",
        package: &package,
        networks: wanted.iter().map(|network| &network.value).collect(),
        choices,
        rules: &rules,
        now: control.now(),
    };
    let others = Others::of(&snapshot, question.owner);
    let request = request(&snapshot, &asked, &others)?;
    let servers: Vec<Arc<Entry<Server>>> = snapshot.scan(&SERVERS).collect();
    let candidates = servers
        .iter()
        .map(|server| Candidate { server, reachability: control.nodes.reachability(server.id, asked.now) });
    Ok(explain::explain(&request, &control.config.placement, question.count, candidates))
}

/// The owner's turn at placing by rules of racks, in the commit that places. Rules of machines need none: two instances that offend
/// each other on one machine both change that machine's record. On two machines of one rack they change nothing in common, so two headnodes
/// that each see neither could put them there; with this record one of them sees the other's first.
pub(crate) fn take_turn(snapshot: &Snapshot, asked: &Asked<'_>, transaction: Transaction) -> Transaction {
    if !asked.rules.iter().any(Rule::is_of_racks) {
        return transaction;
    }
    match snapshot.get(&AFFINITY_GROUPS, &asked.owner.to_string()) {
        Some(entry) => {
            let next = AffinityGroup { placements: entry.placements + 1, ..entry.value.clone() };
            transaction.replace(&AFFINITY_GROUPS, &entry, next)
        }
        None => transaction.create(&AFFINITY_GROUPS, AffinityGroup { owner: asked.owner, placements: 1 }),
    }
}

/// `server` with the room it has: for every commit that changes what room is made of.
pub(crate) fn with_room(control: &Control, mut server: Server) -> Server {
    server.roominess = placement::roominess(&control.config.placement, &server);
    server
}

fn request<'a>(snapshot: &Snapshot, asked: &Asked<'_>, others: &'a Others<'_>) -> Result<Request<'a>> {
    let rack_of = |id: ServerId| snapshot.get(&SERVERS, &id.to_string()).and_then(|server| server.rack.clone());
    let wishes = if asked.rules.is_empty() {
        Wishes::default()
    } else {
        let owned = snapshot.find(&INSTANCES, BY_OWNER, &asked.owner.to_string());
        let entries: Vec<_> = owned.filter(|entry| !entry.released && entry.failure.is_none()).collect();
        Wishes::of(asked.rules, entries.iter().map(|entry| Neighbour::of(entry)), rack_of)
    };
    if let Some((one, other)) = wishes.contradiction() {
        let why = format!("rules \"{one}\" and \"{other}\" contradict each other: no machine can meet both");
        return Err(Error::field("affinity", FieldCode::Conflict, why));
    }
    Ok(Request {
        demand: Demand::of(&packages::limits(asked.package)),
        // A fabric needs no wire of its own.
        nic_tags: asked
            .networks
            .iter()
            .filter(|network| network.fabric.is_none())
            .map(|network| network.nic_tag.clone())
            .collect(),
        choices: asked.choices.clone(),
        traits: asked.package.traits.clone(),
        wishes,
        spread: others,
    })
}

/// The machines of one snapshot.
struct Machines<'a> {
    control: &'a Control,
    snapshot: &'a Snapshot,
    wishes: &'a Wishes,
    /// How the keys of [`BY_ROOM`] begin: machines without traits, or those that have one that is asked for.
    kind: String,
    now: Timestamp,
}

impl<'a> Machines<'a> {
    fn of(control: &'a Control, snapshot: &'a Snapshot, request: &'a Request<'_>, now: Timestamp) -> Self {
        let kind = request.traits.keys().next().map_or_else(|| "/".to_owned(), |name| format!("{name}=/"));
        Self { control, snapshot, wishes: &request.wishes, kind, now }
    }

    fn candidate<'s>(&self, server: &'s Server) -> Candidate<'s> {
        Candidate { server, reachability: self.control.nodes.reachability(server.id, self.now) }
    }
}

impl Fleet for Machines<'_> {
    fn favoured(&self, look: &mut dyn FnMut(Candidate<'_>)) {
        let named = self.wishes.favoured().into_iter();
        for server in named.filter_map(|id| self.snapshot.get(&SERVERS, &id.to_string())) {
            look(self.candidate(&server));
        }
        for rack in self.wishes.favoured_racks() {
            for server in self.snapshot.find(&SERVERS, BY_RACK, &rack) {
                look(self.candidate(&server));
            }
        }
    }

    fn roomiest(&self, from: Option<Mark>, look: &mut dyn FnMut(Candidate<'_>) -> ControlFlow<()>) {
        let (key, record) = match from {
            None => (self.kind.clone(), String::new()),
            Some(Mark { roominess, id }) => (format!("{}{}", self.kind, room_key(roominess)), id.to_string()),
        };
        for server in self.snapshot.ordered_from(&SERVERS, BY_ROOM, &self.kind, &key, &record) {
            if look(self.candidate(&server)).is_break() {
                break;
            }
        }
    }

    fn by_id(&self, from: ServerId, look: &mut dyn FnMut(Candidate<'_>) -> ControlFlow<()>) {
        for server in self.snapshot.range(&SERVERS, &from.to_string()) {
            if look(self.candidate(&server)).is_break() {
                break;
            }
        }
    }
}

/// The owner's other instances.
struct Others<'a> {
    snapshot: &'a Snapshot,
    owner: AccountId,
    /// How many are on which machine, in the order of the machines, counted once per request from the keys of an index; `None` for an owner
    /// of very many, where each machine is asked for by itself.
    on: OnceCell<Option<Vec<On<'a>>>>,
    /// How many are in a rack, counted once per rack and request.
    racks: RefCell<BTreeMap<String, usize>>,
}

/// The owner's others on one machine. Its id is left as the text that the records list it by: a placement goes through those of a whole
/// rack for every machine it compares, and reading each would cost it more than all else.
struct On<'a> {
    /// How the id begins, as a number that is ordered as the texts are: it tells nearly all apart.
    head: u64,
    id: &'a str,
    count: usize,
}

fn head(id: &str) -> u64 {
    id.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

impl std::fmt::Debug for Others<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Others").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl<'a> Others<'a> {
    fn of(snapshot: &'a Snapshot, owner: AccountId) -> Self {
        Self { snapshot, owner, on: OnceCell::new(), racks: RefCell::default() }
    }

    fn counted(&self) -> Option<&[On<'a>]> {
        let counted = self.on.get_or_init(|| {
            let mut on = Vec::new();
            let owned = format!("{}@", self.owner);
            // The order of keys is that of the ids in them.
            for (key, count) in self.snapshot.counts(&INSTANCES, BY_OWNER_ON, &owned) {
                if on.len() == WALKED_MAX {
                    return None;
                }
                let id = &key[owned.len()..];
                on.push(On { head: head(id), id, count });
            }
            Some(on)
        });
        counted.as_deref()
    }

    fn count_rack(&self, rack: &str) -> usize {
        let machines = self.snapshot.count_of(&SERVERS, BY_RACK, rack);
        match self.counted() {
            Some([]) => 0,
            // The shorter way: where the owner is, or who is in the rack.
            Some(on) if on.len() < machines => {
                let is_there = |id: &str| {
                    let server = self.snapshot.get(&SERVERS, id);
                    server.is_some_and(|server| server.rack.as_deref() == Some(rack))
                };
                on.iter().filter(|on| is_there(on.id)).map(|on| on.count).sum()
            }
            Some(on) => {
                // Both in one order: side by side, once through.
                let (mut sum, mut rest) = (0, on.iter().peekable());
                for id in self.snapshot.keys_of(&SERVERS, BY_RACK, rack) {
                    let sought = (head(id), id);
                    while rest.next_if(|on| (on.head, on.id) < sought).is_some() {}
                    if let Some(on) = rest.next_if(|on| (on.head, on.id) == sought) {
                        sum += on.count;
                    }
                }
                sum
            }
            None => {
                let mut sum = 0;
                for id in self.snapshot.keys_of(&SERVERS, BY_RACK, rack) {
                    sum += self.on_machine(id);
                    if sum >= COUNTED_MAX {
                        break;
                    }
                }
                sum
            }
        }
    }

    fn on_machine(&self, id: &str) -> usize {
        match self.counted() {
            Some(on) => {
                let found = on.binary_search_by_key(&(head(id), id), |on| (on.head, on.id));
                found.map_or(0, |position| on[position].count)
            }
            None => self.snapshot.count_of(&INSTANCES, BY_OWNER_ON, &owner_on(self.owner, id)),
        }
    }
}

impl Spread for Others<'_> {
    fn on(&self, server: ServerId) -> usize {
        self.on_machine(&server.to_string()).min(COUNTED_MAX)
    }

    fn in_rack(&self, rack: &str) -> usize {
        if let Some(count) = self.racks.borrow().get(rack) {
            return *count;
        }
        let count = self.count_rack(rack).min(COUNTED_MAX);
        self.racks.borrow_mut().insert(rack.to_owned(), count);
        count
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
