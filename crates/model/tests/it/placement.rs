//! Placement as a whole: stages, scores, the walk down the roomiest machines, and that it is a function of its arguments.

use std::{collections::BTreeMap, ops::ControlFlow};

use model::{
    id::{InstanceId, NetworkId, ServerId},
    pairs::Pairs,
    placement::{
        Candidate, Choice, Demand, Fleet, Mark, Neighbour, NoRoom, Placed, Policy, Refusal, Request, Rule, Spread,
        Weights, Wishes, explain, place, roominess, stage,
    },
    server::{Hardware, Ratios, Reserved, Server, Trait},
    state::Reachability,
    time::Timestamp,
    unit::Mib,
};
use proptest::prelude::*;

const SMALL: Demand = Demand { memory: Mib(256), disk: Mib(1_000), cpu: 100 };

fn id(number: u128) -> ServerId {
    ServerId::new(uuid::Uuid::from_u128(number))
}

fn network(number: u128) -> NetworkId {
    NetworkId::new(uuid::Uuid::from_u128(number))
}

fn server(number: u128, memory: u64, reserved: u64) -> Server {
    let mut server = Server {
        hardware: Hardware { memory: Mib(memory), cpus: 4, pool_size: Mib(100_000), ..Hardware::default() },
        reserved: Reserved { memory: Mib(reserved), ..Reserved::default() },
        ..Server::new(id(number), format!("s{number}"), Timestamp(0))
    };
    server.roominess = roominess(&Policy::default(), &server);
    server
}

fn request() -> Request<'static> {
    Request {
        demand: SMALL,
        nic_tags: [].into(),
        choices: Vec::new(),
        traits: BTreeMap::new(),
        wishes: Wishes::default(),
        spread: &(),
    }
}

fn reachable(server: &Server) -> Candidate<'_> {
    Candidate { server, reachability: Reachability::Reachable }
}

/// Machines as a store with an index by roominess would list them.
struct Listed<'a> {
    roomiest: Vec<&'a Server>,
    by_id: Vec<&'a Server>,
    wishes: &'a Wishes,
}

impl<'a> Listed<'a> {
    fn of(servers: &'a [Server], wishes: &'a Wishes) -> Self {
        let mut roomiest: Vec<&Server> = servers.iter().filter(|server| server.accepts_instances).collect();
        roomiest.sort_by_key(|server| (std::cmp::Reverse(server.roominess), server.id));
        let mut by_id: Vec<&Server> = servers.iter().collect();
        by_id.sort_by_key(|server| server.id);
        Self { roomiest, by_id, wishes }
    }
}

impl Fleet for Listed<'_> {
    fn favoured(&self, look: &mut dyn FnMut(Candidate<'_>)) {
        let (ids, racks) = (self.wishes.favoured(), self.wishes.favoured_racks());
        let near =
            |server: &Server| ids.contains(&server.id) || server.rack.as_ref().is_some_and(|rack| racks.contains(rack));
        self.roomiest.iter().filter(|server| near(server)).for_each(|server| look(reachable(server)));
    }

    fn roomiest(&self, from: Option<Mark>, look: &mut dyn FnMut(Candidate<'_>) -> ControlFlow<()>) {
        let before = |server: &Server, mark: Mark| {
            server.roominess > mark.roominess || (server.roominess == mark.roominess && server.id < mark.id)
        };
        let skipped = self.roomiest.iter().skip_while(|server| from.is_some_and(|mark| before(server, mark)));
        for server in skipped {
            if look(reachable(server)).is_break() {
                break;
            }
        }
    }

    fn by_id(&self, from: ServerId, look: &mut dyn FnMut(Candidate<'_>) -> ControlFlow<()>) {
        for server in self.by_id.iter().skip_while(|server| server.id < from) {
            if look(reachable(server)).is_break() {
                break;
            }
        }
    }
}

/// A machine whose id is somewhere, as ids are.
fn scattered(number: u64, memory: u64, reserved: u64) -> Server {
    let mut chance = seeded(number);
    let id = ServerId::new(uuid::Uuid::from_u128(u128::from(chance()) << 64 | u128::from(chance())));
    Server { id, ..server(number.into(), memory, reserved) }
}

/// Chance that follows from a number, whatever number that is.
fn seeded(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed ^ (seed >> 29)
    }
}

fn place_by(seed: u64, request: &Request<'_>, policy: &Policy, servers: &[Server]) -> Result<Placed, NoRoom> {
    let listed = Listed::of(servers, &request.wishes);
    let placed = place(request, policy, &listed, &mut seeded(seed));
    placed.ok_or_else(|| NoRoom::among(request, policy, servers.iter().map(reachable)))
}

fn place_among(request: &Request<'_>, policy: &Policy, servers: &[Server]) -> Result<Placed, NoRoom> {
    place_by(7, request, policy, servers)
}

fn refusal_of(request: &Request<'_>, policy: &Policy, server: &Server) -> String {
    match stage::judge(request, policy, reachable(server)) {
        Ok(()) => "fits".to_owned(),
        Err(refusal) => refusal.to_string(),
    }
}

#[test]
fn every_stage_gives_its_reason() {
    let (policy, asks) = (Policy::default(), request());
    let good = server(1, 4_096, 0);
    assert_eq!(refusal_of(&asks, &policy, &good), "fits");
    let silent = Candidate { server: &good, reachability: Reachability::Unreachable };
    assert_eq!(stage::judge(&asks, &policy, silent).unwrap_err().to_string(), "has not been heard of");
    let closed = Server { accepts_instances: false, ..good.clone() };
    assert_eq!(refusal_of(&asks, &policy, &closed), "takes no new instances");
    let headnode = Server { headnode: true, ..good.clone() };
    assert_eq!(refusal_of(&asks, &policy, &headnode), "runs a headnode");
    let allowed = Policy { headnode_takes_instances: true, ..policy };
    assert_eq!(refusal_of(&asks, &allowed, &headnode), "fits");
    assert_eq!(refusal_of(&asks, &policy, &server(1, 1_200, 0)), "memory: 256 MiB needed, 176 MiB left");
    let promised = |reserved: Reserved| Server { reserved, ..good.clone() };
    let busy = promised(Reserved { cpu: 1_550, ..Reserved::default() });
    assert_eq!(refusal_of(&asks, &policy, &busy), "cpu: 100% needed, 50% left");
    let busy = promised(Reserved { disk: Mib(399_500), ..Reserved::default() });
    assert_eq!(refusal_of(&asks, &policy, &busy), "disk: 1000 MiB needed, 500 MiB left");
    let busy = promised(Reserved { instances: 2_000, ..Reserved::default() });
    assert_eq!(refusal_of(&asks, &policy, &busy), "has 2000 instances already");
    let wired = Server { nic_tags: Some(["external".to_owned()].into()), ..good.clone() };
    let on = |tag: &str| Request { nic_tags: [tag.to_owned()].into(), ..request() };
    assert_eq!(refusal_of(&on("external"), &policy, &wired), "fits");
    assert_eq!(refusal_of(&on("storage"), &policy, &wired), "not wired to NIC tag \"storage\"");
    assert_eq!(refusal_of(&on("storage"), &policy, &good), "fits");
    let pool = |tag: &str| Choice { pool: "racks".to_owned(), networks: vec![(network(1), tag.to_owned())] };
    let of = |tag: &str| Request { choices: vec![pool(tag)], ..request() };
    assert_eq!(refusal_of(&of("external"), &policy, &wired), "fits");
    let refused = "not wired to a network of pool \"racks\" that has addresses left";
    assert_eq!(refusal_of(&of("storage"), &policy, &wired), refused);
    assert_eq!(
        refusal_of(&Request { choices: vec![Choice::default()], ..request() }, &policy, &good),
        refused.replace("racks", "")
    );
}

#[test]
fn capped_and_uncapped_can_be_kept_apart() {
    let apart = Policy { uncapped_apart: true, ..Policy::default() };
    let uncapped = Request { demand: Demand { cpu: 0, ..SMALL }, ..request() };
    let with = |instances: u32, uncapped: u32| Server {
        reserved: Reserved { instances, uncapped, ..Reserved::default() },
        ..server(1, 4_096, 0)
    };
    assert_eq!(refusal_of(&request(), &apart, &with(2, 1)), "has instances without a CPU cap");
    assert_eq!(refusal_of(&uncapped, &apart, &with(2, 1)), "has instances with a CPU cap");
    assert_eq!(refusal_of(&uncapped, &apart, &with(2, 2)), "fits");
    assert_eq!(refusal_of(&request(), &Policy::default(), &with(2, 1)), "fits");
}

#[test]
fn traits_keep_machines_for_those_who_ask() {
    let policy = Policy::default();
    let flag = |name: &str| BTreeMap::from([(name.to_owned(), Trait::Flag(true))]);
    let list = |values: &[&str]| {
        BTreeMap::from([("ssd".to_owned(), Trait::List(values.iter().map(|v| (*v).to_owned()).collect()))])
    };
    let gpu = Server { traits: flag("gpu"), ..server(1, 4_096, 0) };
    let asks = |traits| Request { traits, ..request() };
    assert_eq!(refusal_of(&request(), &policy, &gpu), "kept for requests with trait \"gpu\"");
    assert_eq!(refusal_of(&asks(flag("gpu")), &policy, &gpu), "fits");
    assert_eq!(
        refusal_of(&asks(flag("gpu")), &policy, &server(2, 4_096, 0)),
        "trait \"gpu\" is asked for, and it has no such one"
    );
    let ssd = Server { traits: list(&["nvme", "sata"]), ..server(1, 4_096, 0) };
    let text = BTreeMap::from([("ssd".to_owned(), Trait::Text("nvme".to_owned()))]);
    assert_eq!(refusal_of(&asks(text), &policy, &ssd), "fits");
    assert_eq!(refusal_of(&asks(list(&["nvme", "sas"])), &policy, &ssd), "fits");
    assert!(refusal_of(&asks(list(&["sas"])), &policy, &ssd).contains("has no such one"));
}

#[test]
fn a_machine_overrides_the_policy() {
    let mut own = server(1, 4_096, 0);
    own.ratios = Ratios { memory_kept: Some(Mib(4_000)), ..Ratios::default() };
    assert_eq!(refusal_of(&request(), &Policy::default(), &own), "memory: 256 MiB needed, 96 MiB left");
    own.ratios = Ratios { instances_max: Some(0), ..Ratios::default() };
    assert_eq!(refusal_of(&request(), &Policy::default(), &own), "has 0 instances already");
}

#[test]
fn a_refusal_names_no_machine() {
    let servers = [server(1, 1_100, 0), server(2, 1_100, 0), Server { accepts_instances: false, ..server(3, 1, 0) }];
    let no_room = place_among(&request(), &Policy::default(), &servers).expect_err("none fits");
    assert_eq!(
        no_room.to_string(),
        "no machine can take it: 1 closed for new instances, 2 with too little memory left"
    );
    let nobody = place_among(&request(), &Policy::default(), &[]).expect_err("nobody is there");
    assert_eq!(nobody.to_string(), "no machine has joined the datacenter yet");
}

/// Where the neighbours are.
#[derive(Debug)]
struct At<'a> {
    servers: &'a [Server],
    neighbours: &'a [(&'a str, u128)],
}

impl Spread for At<'_> {
    fn on(&self, server: ServerId) -> usize {
        self.neighbours.iter().filter(|(_, at)| id(*at) == server).count()
    }

    fn in_rack(&self, rack: &str) -> usize {
        let here = self.servers.iter().filter(|server| server.rack.as_deref() == Some(rack));
        here.map(|server| self.on(server.id)).sum()
    }
}

fn with_rules<'a>(rules: &[&str], at: &'a At<'a>) -> Request<'a> {
    let At { servers, neighbours } = at;
    let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
    let none = Pairs::default();
    let neighbours: Vec<Neighbour<'_>> = neighbours
        .iter()
        .map(|(alias, at)| Neighbour { id: InstanceId::random(), alias, tags: &none, server: id(*at) })
        .collect();
    let rack_of = |of: ServerId| servers.iter().find(|server| server.id == of)?.rack.clone();
    Request { wishes: Wishes::of(&rules, neighbours, rack_of), spread: at, ..request() }
}

#[test]
fn hard_rules_decide_and_soft_ones_tip() {
    let policy = Policy::default();
    let servers = [server(1, 8_192, 2_048), server(2, 8_192, 1_024), server(3, 8_192, 0)];
    let chosen = |rules: &[&str], neighbours: &[(&str, u128)]| {
        let at = At { servers: &servers, neighbours };
        let request = with_rules(rules, &at);
        place_among(&request, &policy, &servers).map(|placed| placed.server).map_err(|no_room| no_room.to_string())
    };
    assert_eq!(chosen(&[], &[]), Ok(id(3)), "the roomiest");
    assert_eq!(chosen(&["instance==db0"], &[("db0", 1)]), Ok(id(1)));
    assert_eq!(chosen(&["instance==~db0"], &[("db0", 1)]), Ok(id(1)));
    assert_eq!(chosen(&["instance!=db0"], &[("db0", 3)]), Ok(id(2)));
    assert_eq!(
        chosen(&["instance!=db*"], &[("db0", 1), ("db1", 2), ("db2", 3)]).unwrap_err(),
        "no machine can take it: 3 ruled out by affinity"
    );
    assert_eq!(chosen(&["instance!=~db*"], &[("db0", 1), ("db1", 2), ("db2", 3)]), Ok(id(3)));
    assert_eq!(
        chosen(&["instance==db9"], &[("db0", 1)]).unwrap_err(),
        "no machine can take it: no instance of yours matches affinity rule \"instance==db9\""
    );
}

#[test]
fn an_owners_instances_spread_over_machines_and_racks() {
    let racked = |number, rack: &str| Server { rack: Some(rack.to_owned()), ..server(number, 8_192, 0) };
    let servers = [racked(1, "a"), racked(2, "a"), racked(3, "b")];
    let at = At { servers: &servers, neighbours: &[("one", 1)] };
    let request = with_rules(&[], &at);
    let placed = place_among(&request, &Policy::default(), &servers).expect("there is room");
    assert_eq!(placed.server, id(3), "neither beside it nor in its rack");
    let gather = Policy { weights: Weights { owner_spread: -5, ..Policy::default().weights }, ..Policy::default() };
    let placed = place_among(&request, &gather, &servers).expect("there is room");
    assert_eq!(placed.server, id(1));
}

#[test]
fn few_machines_are_looked_at_however_many_there_are() {
    for count in [10, 100, 10_000_u64] {
        let servers: Vec<Server> = (0..count).map(|number| scattered(number, 8_192, number * 4_000 / count)).collect();
        for seed in 0..50 {
            let placed = place_by(seed, &request(), &Policy::default(), &servers).expect("there is room");
            assert!(placed.looked_at < 60, "{placed:?}");
        }
    }
}

#[test]
fn those_who_place_at_once_rarely_choose_the_same_machine() {
    // One machine stands out by a little, as one does where something was just deleted.
    let mut servers: Vec<Server> = (0..1_000).map(|number| scattered(number, 8_192, 50)).collect();
    servers.push(scattered(1_000, 8_192, 0));
    // A part of a fleet that is full otherwise is found too.
    let full = (1_001..11_000).map(|number| scattered(number, 8_192, 6_000));
    for fleet in [servers.clone(), servers.into_iter().chain(full).collect()] {
        let mut chosen: BTreeMap<ServerId, usize> = BTreeMap::new();
        for seed in 0..1_000 {
            let placed = place_by(seed, &request(), &Policy::default(), &fleet).expect("there is room");
            assert!(placed.score > 2_900, "{placed:?}");
            *chosen.entry(placed.server).or_default() += 1;
        }
        // Drawn evenly, 632 would come out.
        assert!(chosen.len() > 400, "only {} of a thousand machines", chosen.len());
        let most = chosen.values().max().copied().unwrap_or(0);
        assert!(most < 100, "one of them {most} times");
    }
}

#[test]
fn a_fleet_that_is_packed_full_one_by_one_has_no_band() {
    let packs = Policy { weights: Weights { memory: -2, ..Policy::default().weights }, ..Policy::default() };
    assert_eq!(packs.band(), 0);
    let mut servers: Vec<Server> = (0..50).map(|number| server(number, 8_192, 0)).collect();
    servers[17].reserved.memory = Mib(16);
    for server in &mut servers {
        server.roominess = roominess(&packs, server);
    }
    for seed in 0..50 {
        assert_eq!(place_by(seed, &request(), &packs, &servers).expect("there is room").server, id(17));
    }
}

#[test]
fn an_explanation_counts_down_stage_by_stage() {
    let mut servers = [server(1, 8_192, 0), server(2, 8_192, 0), server(3, 1_100, 0)];
    servers[1].accepts_instances = false;
    let explained = explain::explain(&request(), &Policy::default(), 40, servers.iter().map(reachable));
    let row = |name: &str| explained.stages.iter().find(|stage| stage.name == name).expect("a stage");
    assert_eq!((row("open").before, row("open").refused.len()), (3, 1));
    assert_eq!((row("memory").before, row("memory").refused[0].hostname.as_str()), (2, "s3"));
    assert_eq!(explained.ranked.iter().map(|ranked| ranked.server).collect::<Vec<_>>(), [id(1)]);
    assert_eq!((explained.band, explained.ranked[0].drawn_from), (30, true));
    // 16 by CPU: 4 cores at 400 % in shares of 100 %.
    assert_eq!((explained.fits.get(&id(1)), explained.left_over), (Some(&16), 24));
}

#[test]
fn whatever_is_in_the_band_may_be_drawn_and_nothing_else() {
    // 30 points are 107 MiB of 7,168 here; the last is just outside.
    let servers = [server(1, 8_192, 0), server(2, 8_192, 50), server(3, 8_192, 100), server(4, 8_192, 120)];
    let drawn: std::collections::BTreeSet<ServerId> = (0..200)
        .map(|seed| place_by(seed, &request(), &Policy::default(), &servers).expect("there is room").server)
        .collect();
    assert_eq!(drawn, [id(1), id(2), id(3)].into());
}

fn any_server(number: u128) -> impl Strategy<Value = Server> {
    let rack = prop_oneof![Just(None), Just(Some("a".to_owned())), Just(Some("b".to_owned()))];
    (1_000_u64..20_000, 0_u64..20_000, 0_u64..2_000, rack, any::<bool>()).prop_map(
        move |(memory, reserved, cpu, rack, open)| {
            let mut server = server(number, memory, reserved);
            server.reserved.cpu = cpu;
            (server.rack, server.accepts_instances) = (rack, open);
            server.roominess = roominess(&Policy::default(), &server);
            server
        },
    )
}

proptest! {
    #[test]
    fn a_few_looks_find_one_of_the_best_that_looking_at_all_finds(
        servers in (0_usize..40).prop_flat_map(|count| (0..count).map(|n| any_server(n as u128)).collect::<Vec<_>>()),
        rules in proptest::collection::vec(
            prop_oneof![Just("instance==~db0"), Just("instance!=~db*"), Just("instance!=db1"), Just("rack.instance!=~db0")], 0..3),
        at in proptest::collection::vec(0_u128..12, 0..4),
        seed in any::<u64>(),
    ) {
        let names = ["db0", "db1", "web", "web"];
        let neighbours: Vec<(&str, u128)> = names.into_iter().zip(at).collect();
        let at = At { servers: &servers, neighbours: &neighbours };
        let request = with_rules(&rules, &at);
        let policy = Policy::default();
        let placed = place_by(seed, &request, &policy, &servers);
        let all = explain::explain(&request, &policy, 0, servers.iter().map(reachable));
        match &placed {
            Ok(placed) => {
                let ranked = all.ranked.iter().find(|ranked| ranked.server == placed.server).expect("it fits");
                prop_assert_eq!(ranked.score, placed.score);
                prop_assert!(ranked.drawn_from, "{:?} is not one of the best of {:?}", placed, all.ranked);
            }
            Err(no_room) => {
                prop_assert!(all.ranked.is_empty());
                prop_assert_eq!(no_room.refusals.len(), servers.len());
            }
        }
        let reversed: Vec<Server> = servers.iter().rev().cloned().collect();
        let again = place_by(seed, &request, &policy, &reversed);
        prop_assert_eq!(again.map(|placed| placed.server).ok(), placed.map(|placed| placed.server).ok());
    }

    #[test]
    fn never_promises_more_than_the_policy_allows(
        machines in proptest::collection::vec((1_000_u64..20_000, 0_u64..20_000), 0..8),
        memory in 1_u64..8_000,
    ) {
        let servers: Vec<Server> =
            machines.iter().enumerate().map(|(number, (has, promised))| server(number as u128, *has, *promised)).collect();
        let asks = Request { demand: Demand { memory: Mib(memory), disk: Mib(1), cpu: 0 }, ..request() };
        let fitting = |server: &Server| server.reserved.memory.0 + memory <= server.hardware.memory.0.saturating_sub(1_024);
        match place_among(&asks, &Policy::default(), &servers) {
            Ok(placed) => prop_assert!(fitting(servers.iter().find(|server| server.id == placed.server).expect("one of them"))),
            Err(no_room) => {
                prop_assert!(!servers.iter().any(fitting));
                let too_small = |(_, refusal): &(ServerId, Refusal)| matches!(refusal, Refusal::TooSmall { what: "memory", .. });
                prop_assert!(no_room.refusals.iter().all(too_small));
            }
        }
    }

    #[test]
    fn giving_back_undoes_taking(memory in 0_u64..1_000_000, disk in 0_u64..1_000_000, cpu in 0_u64..10_000) {
        let demand = Demand { memory: Mib(memory), disk: Mib(disk), cpu };
        let before = Reserved { instances: 3, memory: Mib(7), disk: Mib(9), cpu: 11, uncapped: 1 };
        prop_assert_eq!(before.plus(demand).minus(demand), before);
    }
}
