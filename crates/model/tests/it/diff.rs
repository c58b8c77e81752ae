//! A node that follows the plan comes to rest where the target says, whatever happens to it on the way.
//!
//! The world here is the smallest one in which everything can happen: a kernel and a pool that do what steps say, a memory that may
//! lose its last change when the agent dies, a machine that reboots, a zone that ends by itself, a tenant who asks.

use std::collections::BTreeMap;

use model::{
    diff::{Ended, Leftover, Observed, Remembered, Step, Wiring, carried_out, leftover, plan},
    id::{AccountId, ImageId, MacAddr, NetworkId},
    instance::{Brand, Wanted},
    pairs::Pairs,
    target::{Limits, NetworkTarget, NicTarget, ZoneTarget},
    time::Timestamp,
    unit::{CpuShares, Mib},
};
use proptest::prelude::*;

/// Steps to rest from anywhere; the longest honest way is a reboot with a changed quota.
const STEPS_MAX: usize = 12;

pub(crate) fn zone(wanted: Wanted) -> ZoneTarget {
    ZoneTarget {
        wanted,
        starts: 1,
        reboots: 0,
        owner: AccountId::new(uuid::Uuid::nil()),
        alias: "a".to_owned(),
        hostname: "a".to_owned(),
        brand: Brand::Lx,
        image: ImageId::new(uuid::Uuid::nil()),
        package_name: "p".to_owned(),
        package_version: None,
        package: None,
        limits: limits(1),
        nics: Vec::new(),
        resolvers: Vec::new(),
        dns_domain: None,
        routes: BTreeMap::new(),
        metadata: Pairs::default(),
        internal_metadata: Pairs::default(),
        tags: Pairs::default(),
        guest_metadata_seen: 0,
        created_at: Timestamp(0),
    }
}

fn limits(size: u64) -> Limits {
    Limits {
        memory: Mib(64 * size),
        swap: Mib(128 * size),
        disk: Mib(1024 * size),
        max_processes: 100,
        cpu_cap: None,
        cpu_shares: CpuShares(100),
    }
}

fn wiring(nics: u8) -> Wiring {
    let network = NetworkTarget {
        nic_tag: "ext".to_owned(),
        vlan: 0,
        subnet: Some("10.0.0.0/24".parse().unwrap()),
        host_address: None,
        nat: false,
        mtu: 1500,
        ..NetworkTarget::default()
    };
    let nic = |index: u8| NicTarget {
        mac: MacAddr::from_suffix(u32::from(index)),
        interface: format!("net{index}"),
        network: NetworkId::new(uuid::Uuid::nil()),
        address: Some(format!("10.0.0.{}/24", index + 2).parse().unwrap()),
        gateway: None,
        addresses6: Vec::new(),
        gateway6: None,
        primary: index == 0,
        mtu: 1500,
    };
    Wiring { nics: (0..nics).map(|index| (nic(index), network.clone())).collect(), routes: BTreeMap::new() }
}

struct World {
    zone: ZoneTarget,
    wiring: Wiring,
    remembered: Remembered,
    observed: Observed,
    boots: u32,
}

impl World {
    fn new(nics: u8) -> Self {
        let (remembered, observed) = (Remembered::default(), Observed::default());
        Self { zone: zone(Wanted::Running), wiring: wiring(nics), remembered, observed, boots: 0 }
    }

    fn boot_id(&self) -> String {
        self.boots.to_string()
    }

    fn plan(&self) -> Vec<Step> {
        plan(&self.zone, &self.wiring, &self.remembered, self.observed, &self.boot_id())
    }

    fn carry_out(&mut self, step: Step) {
        let boot_id = self.boot_id();
        // A kernel refuses what is out of order.
        match step {
            Step::Start => assert!(self.observed.root && self.observed.traces && !self.observed.running),
            Step::Network => assert!(self.observed.traces || self.observed.running),
            Step::Stop | Step::Limits => assert!(self.observed.running),
            _ => {}
        }
        carried_out(step, &self.zone, &self.wiring, &mut self.remembered, &mut self.observed, &boot_id);
    }

    /// Until there is nothing to do; the steps that were done.
    fn settle(&mut self) -> Vec<Step> {
        let mut done = Vec::new();
        loop {
            let steps = self.plan();
            if steps.is_empty() {
                return done;
            }
            for step in steps {
                self.carry_out(step);
                done.push(step);
                assert!(done.len() <= STEPS_MAX, "no rest: {done:?}");
            }
        }
    }

    fn ends(&mut self, how: Ended) {
        if std::mem::take(&mut self.observed.running) {
            self.remembered.ended = Some(how);
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Start,
    Stop,
    Reboot,
    Resize(u64),
    Rewire(u8),
    Ends(Ended),
    MachineBoots,
    /// The agent carries out so many steps, dies in the middle of the next one after it took effect, and forgets it.
    Dies(usize),
    Settle,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Start),
        Just(Event::Stop),
        Just(Event::Reboot),
        (1u64..4).prop_map(Event::Resize),
        (0u8..3).prop_map(Event::Rewire),
        prop_oneof![Just(Ended::Halted), Just(Ended::Rebooted), Just(Ended::Died)].prop_map(Event::Ends),
        Just(Event::MachineBoots),
        (0usize..5).prop_map(Event::Dies),
        Just(Event::Settle),
    ]
}

fn happen(world: &mut World, event: &Event) {
    match event {
        Event::Start => {
            world.zone.wanted = Wanted::Running;
            world.zone.starts += 1;
        }
        Event::Stop => world.zone.wanted = Wanted::Stopped,
        Event::Reboot => {
            world.zone.wanted = Wanted::Running;
            world.zone.reboots += 1;
        }
        Event::Resize(size) => world.zone.limits = limits(*size),
        Event::Rewire(nics) => world.wiring = wiring(*nics),
        Event::Ends(how) => world.ends(*how),
        Event::MachineBoots => {
            world.boots += 1;
            world.observed = Observed { root: world.observed.root, ..Observed::default() };
        }
        Event::Dies(after) => {
            for (index, step) in world.plan().into_iter().enumerate() {
                let before = world.remembered.clone();
                world.carry_out(step);
                if index == *after {
                    world.remembered = before;
                    break;
                }
            }
        }
        Event::Settle => {
            world.settle();
        }
    }
}

/// Whether a zone that is wanted running has a reason not to: it ended by itself and nobody asked since.
fn may_rest_stopped(world: &World) -> bool {
    world.remembered.ended == Some(Ended::Halted)
        || (world.remembered.ended == Some(Ended::Died) && world.remembered.boot_id == Some(world.boot_id()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_history_comes_to_rest_as_wanted(nics in 0u8..3, events in prop::collection::vec(event(), 0..25)) {
        let mut world = World::new(nics);
        for event in &events {
            happen(&mut world, event);
        }
        world.settle();
        prop_assert!(world.observed.root);
        match world.zone.wanted {
            Wanted::Running => {
                prop_assert!(world.observed.running || may_rest_stopped(&world), "{:?}", world.remembered);
            }
            _ => prop_assert!(!world.observed.running),
        }
        // What is off is not on the network; what is on is, exactly.
        prop_assert_eq!(world.observed.connected, world.observed.running && !world.wiring.nics.is_empty());
        let remembered = &world.remembered;
        prop_assert_eq!(remembered.wiring.as_ref(), Some(&world.wiring));
        prop_assert_eq!(remembered.limits.as_ref(), Some(&world.zone.limits));
        prop_assert_eq!(remembered.quota, Some(world.zone.limits.disk));
        prop_assert_eq!((remembered.starts_done, remembered.reboots_done), (world.zone.starts, world.zone.reboots));
    }

    #[test]
    fn nothing_is_ended_or_removed_unasked(nics in 0u8..3, events in prop::collection::vec(event(), 0..25)) {
        let mut world = World::new(nics);
        for event in &events {
            happen(&mut world, event);
            let steps = world.plan();
            prop_assert!(!steps.contains(&Step::Remove));
            let reboot_is_open = world.remembered.reboots_done < world.zone.reboots;
            if steps.contains(&Step::Stop) {
                prop_assert!(world.observed.running && (world.zone.wanted == Wanted::Stopped || reboot_is_open));
            }
            if steps.contains(&Step::Start) {
                prop_assert_eq!(world.zone.wanted, Wanted::Running);
            }
            prop_assert!(steps.iter().filter(|step| **step == Step::Start).count() <= 1);
        }
    }

    #[test]
    fn counters_never_fall(events in prop::collection::vec(event(), 0..25), starts in 0u64..5, reboots in 0u64..5) {
        let mut world = World::new(1);
        for event in &events {
            let before = (world.remembered.starts_done, world.remembered.reboots_done);
            happen(&mut world, event);
            prop_assert!(world.remembered.starts_done >= before.0 && world.remembered.reboots_done >= before.1);
        }
        // A control plane that lost its memory counts from the beginning.
        world.settle();
        let (before, was_running) = ((world.remembered.starts_done, world.remembered.reboots_done), world.observed.running);
        (world.zone.starts, world.zone.reboots) = (starts.min(before.0), reboots.min(before.1));
        world.zone.wanted = Wanted::Running;
        if was_running {
            prop_assert_eq!(world.settle(), []);
        }
        prop_assert_eq!((world.remembered.starts_done, world.remembered.reboots_done), before);
    }

    #[test]
    fn absent_leaves_nothing(nics in 0u8..3, events in prop::collection::vec(event(), 0..25), dies: bool) {
        let mut world = World::new(nics);
        for event in &events {
            happen(&mut world, event);
        }
        world.zone.wanted = Wanted::Absent;
        if dies {
            world.remembered.removing = true;
            // Once begun, there is no way back.
            world.zone.wanted = Wanted::Running;
            prop_assert_eq!(world.plan(), [Step::Remove]);
            world.zone.wanted = Wanted::Absent;
        }
        world.settle();
        prop_assert!(!world.observed.anything());
        prop_assert_eq!(&world.remembered, &Remembered::default());
        prop_assert_eq!(world.plan(), []);
    }

    #[test]
    fn a_sweep_never_touches_what_may_be_wanted(
        root: bool, traces: bool, connected: bool, running: bool, confirmed: bool,
        wanted in prop::option::of(prop_oneof![Just(Wanted::Running), Just(Wanted::Stopped), Just(Wanted::Absent)]),
        removing in prop::option::of(any::<bool>()),
    ) {
        let observed = Observed { root, traces, connected, running };
        let zone = wanted.map(zone);
        let remembered = removing.map(|removing| Remembered { removing, ..Remembered::default() });
        let asked = wanted == Some(Wanted::Absent) || removing == Some(true);
        match leftover(zone.as_ref(), remembered.as_ref(), observed, confirmed) {
            Leftover::Remove => prop_assert!(asked),
            Leftover::Disconnect => {
                prop_assert!(!asked && confirmed && !running && wanted.is_none() && removing.is_none());
                prop_assert!(traces || connected);
            }
            Leftover::Keep => prop_assert!(!asked),
        }
    }
}

#[test]
fn the_ways_a_zone_starts_again() {
    let mut world = World::new(1);
    assert_eq!(world.settle(), [Step::Root, Step::Namespaces, Step::Network, Step::Start]);

    // A crash is left alone until the machine boots.
    world.ends(Ended::Died);
    assert_eq!(world.settle(), [Step::Disconnect]);
    happen(&mut world, &Event::MachineBoots);
    assert_eq!(world.settle(), [Step::Namespaces, Step::Network, Step::Start]);

    // A halt from inside outlives a boot of the machine, and ends with a request.
    world.ends(Ended::Halted);
    happen(&mut world, &Event::MachineBoots);
    assert_eq!(world.settle(), []);
    happen(&mut world, &Event::Start);
    assert_eq!(world.settle(), [Step::Namespaces, Step::Network, Step::Start]);

    // A reboot from inside is a reboot.
    world.ends(Ended::Rebooted);
    assert_eq!(world.settle(), [Step::Namespaces, Step::Network, Step::Start]);

    // Two requests to reboot while the agent was away are one reboot.
    world.zone.reboots += 2;
    assert_eq!(world.settle(), [Step::Stop, Step::Namespaces, Step::Network, Step::Start]);
    assert_eq!(world.settle(), []);

    // A start of what runs is only counted.
    happen(&mut world, &Event::Start);
    assert_eq!(world.settle(), [Step::Accept]);

    // A resize and a new NIC do not disturb what runs.
    world.zone.limits = limits(2);
    world.wiring = wiring(2);
    assert_eq!(world.settle(), [Step::Quota, Step::Network, Step::Limits]);

    happen(&mut world, &Event::Stop);
    assert_eq!(world.settle(), [Step::Stop, Step::Disconnect]);
    world.zone.limits = limits(3);
    assert_eq!(world.settle(), [Step::Quota, Step::Accept]);
    happen(&mut world, &Event::MachineBoots);
    assert_eq!(world.settle(), []);
}

#[test]
fn exits_are_told_apart_by_their_reason() {
    let exit = |reason: &str| model::target::Exit {
        at: Timestamp(0),
        code: None,
        signal: None,
        reason: reason.to_owned(),
        asked: false,
    };
    assert_eq!(Ended::of(&exit("halted")), Ended::Halted);
    assert_eq!(Ended::of(&exit("rebooted from inside")), Ended::Rebooted);
    assert_eq!(Ended::of(&exit("exited with code 0")), Ended::Died);
    assert_eq!(Ended::of(&exit("killed: out of memory")), Ended::Died);
}

#[test]
fn nics_a_dying_agent_connected_and_forgot_are_taken_away() {
    let mut world = World::new(0);
    for event in [Event::Settle, Event::Rewire(1), Event::Resize(2), Event::Dies(1), Event::Rewire(0)] {
        happen(&mut world, &event);
    }
    assert!(world.observed.connected, "the history is the one meant");
    world.settle();
    assert!(!world.observed.connected && world.observed.running);
}
