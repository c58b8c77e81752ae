//! Lives of instances: made, changed, stopped, gone; across agents and boots of the machine.

use host::filter::{Logged, LoggedPacket};
use model::{
    firewall::{
        Action, Direction,
        log::{LogDirection, LogEvent, LogFilter},
    },
    id::{FirewallRuleId, ImageId, InstanceId, ServerId},
    instance::Wanted,
    target::{ZoneFact, ZoneState},
};
use nodeapi::inquiry::{Answer, Question};

use crate::world::{World, eventually, limits, nic};

#[tokio::test]
async fn from_nothing_to_running_to_nothing() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(2);
    let fact = world.headnode.wait_state(id, ZoneState::Running).await;
    assert_eq!((fact.starts_done, fact.reboots_done), (1, 0));
    let phases: Vec<_> = fact.timeline.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(phases, ["image", "dataset", "network", "zone start"]);
    assert!(fact.timeline.iter().all(|phase| phase.ms < 30_000));
    assert_eq!(fact.limits, Some(limits(1)));
    assert_eq!(fact.nics.len(), 2);
    assert_eq!(fact.error, None);

    let spec = world.machine.zones.spec(id).unwrap();
    assert_eq!(spec.hostname, "web");
    assert_eq!(spec.resolv_conf.as_deref(), Some("search example.test\nnameserver 9.9.9.9\n"));
    assert!(spec.hosts.unwrap().contains("10.88.0.10 web.example.test web"));
    assert_eq!(spec.ids.first, 1 << 28);
    let filters = world.machine.filters.current();
    assert_eq!(filters.nics.len(), 2);
    assert_eq!(filters.bridges.len(), 1);

    world.headnode.zone(id, |zone| zone.wanted = Wanted::Absent);
    world.headnode.wait_state(id, ZoneState::Absent).await;
    world.headnode.change(|target| {
        target.zones.remove(&id);
    });
    world.headnode.wait("no instance", |report| report.zones.is_empty()).await;
    world.assert_empty();
    agent.end().await;
}

#[tokio::test]
async fn ipv6_addresses_change_while_the_zone_runs() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(2);
    let before = world.headnode.wait_state(id, ZoneState::Running).await;
    assert!(before.addresses6.is_empty());
    let mac = nic(10, 1).mac;
    for list in [&["fd00:88::5", "fd00:88::6"][..], &["fd00:88::6"]] {
        let addresses: Vec<std::net::Ipv6Addr> = list.iter().map(|ip| ip.parse().unwrap()).collect();
        world.headnode.zone(id, |zone| {
            zone.nics[1].addresses6 = list.iter().map(|ip| format!("{ip}/64").parse().unwrap()).collect();
        });
        let held = [(mac, addresses.clone())].into();
        let fact = world.headnode.wait_fact(id, "the new list", |fact| fact.addresses6 == held).await;
        assert_eq!((fact.state, fact.started_at), (ZoneState::Running, before.started_at), "it ran on");
        // What it may send from is exactly what it holds.
        let allowed = world.machine.filters.current().nics[&mac].addresses.clone();
        let expected = ["10.88.0.11".parse().unwrap()].into_iter().chain(addresses.into_iter().map(Into::into));
        assert_eq!(allowed.into_iter().collect::<std::collections::BTreeSet<std::net::IpAddr>>(), expected.collect());
    }
    agent.end().await;
}

#[tokio::test]
async fn eight_at_once_fetch_their_image_once() {
    let world = World::new();
    let agent = world.start();
    let ids: Vec<_> = (0..8).map(|_| world.create(1)).collect();
    let report = world
        .headnode
        .wait("all running", |report| {
            ids.iter().all(|id| report.zones.get(id).is_some_and(|fact| fact.state == ZoneState::Running))
        })
        .await;
    assert_eq!(report.images.len(), 1);
    assert_eq!(world.headnode.image_requests(), 1);
    let ranges: std::collections::BTreeSet<_> =
        ids.iter().map(|id| world.machine.zones.spec(*id).unwrap().ids).collect();
    assert_eq!(ranges.len(), 8);
    assert_eq!(world.machine.filters.current().nics.len(), 8);
    agent.end().await;
}

#[tokio::test]
async fn stop_start_reboot_resize_and_nics() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(1);
    world.headnode.wait_state(id, ZoneState::Running).await;

    world.headnode.zone(id, |zone| zone.wanted = Wanted::Stopped);
    let fact = world.headnode.wait_state(id, ZoneState::Stopped).await;
    assert_eq!(fact.exit.unwrap().reason, "halted");
    // What is off answers no ping.
    assert_eq!(world.machine.host().links.nics().unwrap(), []);

    world.headnode.zone(id, |zone| {
        zone.wanted = Wanted::Running;
        zone.starts += 1;
    });
    let fact = world.headnode.wait_fact(id, "start 2", |fact| fact.starts_done == 2).await;
    assert_eq!(fact.state, ZoneState::Running);
    // How the boot before ended stays told, and that it was asked for.
    assert!(fact.exit.is_some_and(|exit| exit.asked), "{:?}", world.headnode.last_report());
    assert_eq!(world.machine.zones.boots(), 2);

    world.headnode.zone(id, |zone| zone.reboots += 1);
    world.headnode.wait_fact(id, "reboot 1", |fact| fact.reboots_done == 1 && fact.state == ZoneState::Running).await;
    assert_eq!(world.machine.zones.boots(), 3);

    world.headnode.zone(id, |zone| zone.limits = limits(2));
    world.headnode.wait_fact(id, "new limits", |fact| fact.limits == Some(limits(2))).await;
    assert_eq!(world.machine.host().zones.status(id).unwrap().limits, Some(limits(2)));
    assert_eq!(world.machine.datasets.root(id).unwrap().1, limits(2).disk);

    world.headnode.zone(id, |zone| zone.nics.push(nic(10, 1)));
    world.headnode.wait_fact(id, "two NICs", |fact| fact.nics.len() == 2).await;
    assert_eq!(world.machine.links.attached(id).unwrap().nics.len(), 2);
    world.headnode.zone(id, |zone| {
        zone.nics.remove(0);
    });
    world.headnode.wait_fact(id, "one NIC", |fact| fact.nics.len() == 1).await;
    assert_eq!(world.machine.filters.current().nics.keys().collect::<Vec<_>>(), [&nic(10, 1).mac]);
    assert_eq!(world.machine.zones.boots(), 3);
    agent.end().await;
}

#[tokio::test]
async fn a_zone_that_ends_by_itself_stays_and_says_why() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(1);
    world.headnode.wait_state(id, ZoneState::Running).await;
    world.machine.zones.end_boot(id, Some(3), None, "exited with code 3");
    let fact = world.headnode.wait_state(id, ZoneState::Stopped).await;
    assert_eq!(fact.exit.unwrap().code, Some(3));
    agent.end().await;
    // Another agent does not start it either.
    world.headnode.forget_reports();
    let agent = world.start();
    world.headnode.wait("a new run", |report| report.zones.contains_key(&id)).await;
    assert_eq!(world.machine.zones.boots(), 1);
    world.headnode.zone(id, |zone| zone.starts += 1);
    world.headnode.wait_state(id, ZoneState::Running).await;
    // A reboot from inside is carried out.
    world.machine.zones.end_boot(id, None, Some(1), "rebooted from inside");
    let rebooted = |fact: &ZoneFact| fact.exit.as_ref().is_some_and(|exit| exit.reason.starts_with("rebooted"));
    let fact = world.headnode.wait_fact(id, "a third boot", |fact| fact.started_at.is_some() && rebooted(fact)).await;
    assert_eq!((fact.state, fact.exit.unwrap().asked), (ZoneState::Running, false));
    assert_eq!(world.machine.zones.boots(), 3);
    agent.end().await;
}

#[tokio::test]
async fn agents_come_and_go_and_zones_run_on() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(1);
    let before = world.headnode.wait_state(id, ZoneState::Running).await;
    agent.end().await;
    world.headnode.forget_reports();
    let agent = world.start();
    let after = world.headnode.wait("a new run", |report| report.zones.contains_key(&id)).await;
    assert_eq!(after.zones[&id].started_at, before.started_at);
    assert_eq!(world.machine.zones.boots(), 1);
    assert_eq!(world.machine.filters.current().nics.len(), 1);
    assert_eq!(world.machine.filters.current().bridges.len(), 1);
    // What the zone did while no agent was there is noticed.
    agent.end().await;
    world.headnode.forget_reports();
    world.machine.zones.end_boot(id, None, Some(9), "killed: out of memory");
    let agent = world.start();
    let fact = world.headnode.wait_state(id, ZoneState::Stopped).await;
    assert_eq!(fact.exit.unwrap().reason, "killed: out of memory");
    agent.end().await;
}

#[tokio::test]
async fn a_machine_boots_with_no_headnode() {
    let world = World::new();
    let agent = world.start();
    let (running, stopped, halted, died) = (world.create(1), world.create(1), world.create(1), world.create(1));
    for id in [running, stopped, halted, died] {
        world.headnode.wait_state(id, ZoneState::Running).await;
    }
    world.headnode.zone(stopped, |zone| zone.wanted = Wanted::Stopped);
    world.headnode.wait_state(stopped, ZoneState::Stopped).await;
    world.machine.zones.end_boot(halted, None, Some(2), "halted");
    world.machine.zones.end_boot(died, Some(1), None, "exited with code 1");
    world.headnode.wait_state(halted, ZoneState::Stopped).await;
    world.headnode.wait_state(died, ZoneState::Stopped).await;
    agent.end().await;

    world.headnode.cut(true);
    world.machine.reboot();
    std::fs::remove_dir_all(&world.config.control_dir).unwrap();
    let agent = world.start();
    let runs = |id: InstanceId| world.machine.host().zones.status(id).is_ok_and(|status| status.running);
    eventually("the two start", || runs(running) && runs(died)).await;
    assert!(!runs(stopped) && !runs(halted));
    assert!(world.socket_path(running).exists());
    assert_eq!(world.machine.filters.current().nics.len(), 2);
    world.headnode.cut(false);
    let report = world.headnode.wait("the new boot", |report| report.boot_id.ends_with('1')).await;
    assert_eq!(report.zones.len(), 4);
    agent.end().await;
}

#[tokio::test]
async fn unknown_zones_are_reported_and_left_alone() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(1);
    world.headnode.wait_state(id, ZoneState::Running).await;
    world.headnode.change(|target| target.zones.clear());
    world.headnode.wait_seen().await;
    agent.end().await;
    world.headnode.forget_reports();
    let agent = world.start();
    let report = world.headnode.wait("a new run", |report| !report.zones.is_empty()).await;
    assert_eq!(report.zones[&id].state, ZoneState::Running);
    assert_eq!(world.machine.filters.current().nics.len(), 1);
    agent.end().await;
}

#[tokio::test]
async fn targets_of_others_and_of_the_past_are_refused() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(1);
    world.headnode.wait_state(id, ZoneState::Running).await;
    world.headnode.wait_seen().await;
    let good = world.headnode.target_now();

    let mut foreign = good.clone();
    foreign.server = ServerId::random();
    foreign.generation += 1;
    foreign.zones.get_mut(&id).unwrap().wanted = Wanted::Absent;
    world.headnode.offer(foreign);
    let mut older = good.clone();
    older.generation -= 1;
    older.zones.get_mut(&id).unwrap().wanted = Wanted::Absent;
    world.headnode.offer(older);
    // The next good one shows that the bad ones were read and refused.
    let mut next = good.clone();
    next.generation += 5;
    next.zones.get_mut(&id).unwrap().limits = limits(3);
    world.headnode.offer(next);
    world.headnode.wait_fact(id, "new limits", |fact| fact.limits == Some(limits(3))).await;
    assert_eq!(world.machine.zones.boots(), 1);
    agent.end().await;
}

#[tokio::test]
async fn only_what_is_new_travels() {
    let world = World::new();
    let agent = world.start();
    let first = world.create(1);
    world.headnode.wait_state(first, ZoneState::Running).await;
    let second = world.create(1);
    world.headnode.wait_state(second, ZoneState::Running).await;
    world.headnode.wait_seen().await;
    let (deltas, wholes) = world.headnode.travelled();
    assert!(deltas >= 2, "the second target and the reports after the first are {deltas} deltas");
    // A headnode that starts anew knows of nothing that anything could follow on.
    world.headnode.forget();
    world.headnode.zone(first, |zone| zone.limits = limits(3));
    world.headnode.wait_fact(first, "new limits", |fact| fact.limits == Some(limits(3))).await;
    assert!(world.headnode.travelled().1 >= wholes + 2, "a target and a report are told whole again");
    // And then not any more.
    let (deltas, wholes) = world.headnode.travelled();
    world.headnode.zone(second, |zone| zone.limits = limits(2));
    world.headnode.wait_fact(second, "new limits", |fact| fact.limits == Some(limits(2))).await;
    let (more_deltas, still_wholes) = world.headnode.travelled();
    assert!(more_deltas > deltas);
    assert_eq!(still_wholes, wholes);
    agent.end().await;
}

#[tokio::test]
async fn a_stop_during_a_fetch_is_heard() {
    let world = World::new();
    // The image the zone wants is not described yet.
    let agent = world.start();
    let id = world.create(0);
    let other: ImageId = "2b8a1f0e-5a3c-4f0e-9d52-7d2f4c0f9a11".parse().unwrap();
    world.headnode.zone(id, |zone| zone.image = other);
    let fact = world.headnode.wait_fact(id, "an error", |fact| fact.error.is_some()).await;
    assert!(fact.error.unwrap().contains("describes no image"));
    world.headnode.zone(id, |zone| zone.wanted = Wanted::Absent);
    world.headnode.wait_state(id, ZoneState::Absent).await;
    world.assert_empty();
    agent.end().await;
}

#[tokio::test]
async fn a_target_is_seen_only_with_a_word_on_every_instance_in_it() {
    let world = World::new();
    let agent = world.start();
    let first = world.create(1);
    world.headnode.wait_state(first, ZoneState::Running).await;
    agent.end().await;
    // Nothing can be made: what is new stays in passage while reports go on.
    world.machine.faults.arm("zones.prepare", 1000, "not now");
    let (agent, mut generations) = (world.start(), Vec::new());
    for _ in 0..20 {
        let id = world.create(1);
        let generation = world.headnode.target_now().generation;
        world.headnode.zone(id, |zone| zone.wanted = Wanted::Absent);
        generations.push((generation, id));
    }
    for report in world.headnode.reports_until_seen().await {
        let ids = generations.iter().filter(|(generation, _)| *generation <= report.target_seen).map(|(_, id)| id);
        for id in ids.chain((report.target_seen > 0).then_some(&first)) {
            assert!(report.zones.contains_key(id), "seen {} without a word on {id}", report.target_seen);
        }
    }
    agent.end().await;
}

#[tokio::test]
async fn processes_killed_for_memory_are_counted_while_the_zone_runs() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(1);
    world.headnode.wait_state(id, ZoneState::Running).await;
    world.machine.zones.kill_for_memory(id);
    world.headnode.wait_fact(id, "one killed", |fact| fact.oom_kills == 1).await;
    world.headnode.zone(id, |zone| zone.reboots += 1);
    world.headnode.wait_fact(id, "a new count", |fact| fact.reboots_done == 1 && fact.oom_kills == 0).await;
    agent.end().await;
}

#[tokio::test]
async fn a_console_is_read_on_request() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(1);
    world.headnode.wait_state(id, ZoneState::Running).await;
    let ask = async |instance, max_bytes, after: Option<&str>| {
        world.headnode.ask(Question::Console { instance, max_bytes, after: after.map(str::to_owned) }).await
    };
    let console = |answer| match answer {
        Answer::Console(console) => console,
        other => panic!("answered: {other:?}"),
    };
    let nothing = console(ask(id, 100, None).await);
    assert_eq!((nothing.text.as_str(), nothing.next, nothing.lost), ("", None, false));
    world.machine.zones.write_console(id, "one → ".as_bytes());
    let first = console(ask(id, 100, None).await);
    assert_eq!(first.text, "one → ");
    // The first byte of three: the character comes when it is whole.
    world.machine.zones.write_console(id, &"two →".as_bytes()[..5]);
    let second = console(ask(id, 100, first.next.as_deref()).await);
    assert_eq!(second.text, "two ");
    world.machine.zones.write_console(id, &"two →".as_bytes()[5..]);
    assert_eq!(console(ask(id, 100, second.next.as_deref()).await).text, "→");
    // A stopped one has it too.
    world.headnode.zone(id, |zone| zone.wanted = Wanted::Stopped);
    world.headnode.wait_state(id, ZoneState::Stopped).await;
    assert_eq!(console(ask(id, 9, None).await).text, " two →");
    let refused = |answer| match answer {
        Answer::Refused { why } => why,
        other => panic!("answered: {other:?}"),
    };
    assert!(refused(ask(id, 9, Some("here")).await).contains("no place in a console log"));
    assert!(refused(ask(model::id::InstanceId::random(), 9, None).await).contains("has no instance"));
    agent.end().await;
}

#[tokio::test]
async fn what_rules_log_is_told_and_survives_the_agent() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(1);
    world.headnode.wait_state(id, ZoneState::Running).await;
    let rule = FirewallRuleId::random();
    let ask = async |filter, after: Option<&str>| {
        let question = Question::FirewallLog { filter, max_lines: 10, after: after.map(str::to_owned) };
        match world.headnode.ask(question).await {
            Answer::FirewallLog(page) => page,
            other => panic!("answered: {other:?}"),
        }
    };
    let (of_it, all) = (LogFilter { rule: Some(rule), instance: None }, LogFilter::default());
    let begin = ask(of_it, None).await;
    assert_eq!((begin.entries.len(), begin.lost), (0, false));
    let logged = |rule| Logged {
        rule,
        action: Action::Block,
        direction: Direction::Inbound,
        instance: id,
        packet: LoggedPacket {
            source: "192.0.2.7".parse().unwrap(),
            destination: "10.88.0.10".parse().unwrap(),
            protocol: 6,
            ports: Some((1027, 22)),
            icmp: None,
        },
    };
    assert!(world.machine.filters.log(logged(FirewallRuleId::random())) && world.machine.filters.log(logged(rule)));
    let mut page = begin.clone();
    while page.entries.is_empty() {
        page = ask(of_it, Some(&begin.next)).await;
    }
    let [line] = &page.entries[..] else { panic!("lines of another rule: {page:?}") };
    assert_eq!((line.event, line.direction, line.protocol.as_str()), (LogEvent::Reject, LogDirection::In, "tcp"));
    assert_eq!((line.rule, line.vm, line.alias.as_deref()), (rule, id, Some("web")));
    assert_eq!((line.source_port, line.destination_port), (Some(1027), Some(22)));
    assert_eq!(ask(of_it, Some(&page.next)).await.entries, []);
    agent.end().await;

    let agent = world.start();
    world.headnode.wait_state(id, ZoneState::Running).await;
    let again = ask(all, None).await;
    assert_eq!(again.entries.len(), 2, "read back from the file");
    assert_eq!(again.entries[1], *line);
    agent.end().await;
}

#[tokio::test]
async fn a_log_that_was_not_handed_out_is_asked_for_again() {
    let world = World::new();
    world.machine.faults.arm("filters.logged", 3, "another agent reads it still");
    let agent = world.start();
    let id = world.create(1);
    world.headnode.wait_state(id, ZoneState::Running).await;
    let line = || Logged {
        rule: FirewallRuleId::random(),
        action: Action::Block,
        direction: Direction::Inbound,
        instance: id,
        packet: LoggedPacket {
            source: "192.0.2.7".parse().unwrap(),
            destination: "10.88.0.10".parse().unwrap(),
            protocol: 17,
            ports: None,
            icmp: None,
        },
    };
    eventually("somebody to read", || world.machine.filters.log(line())).await;
    agent.end().await;
}

#[tokio::test]
async fn what_somebody_took_away_comes_back() {
    let world = World::new();
    let agent = world.start();
    let ids = [world.create(1), world.create(2)];
    for id in ids {
        world.headnode.wait_state(id, ZoneState::Running).await;
    }
    let (rules, bridges) = (world.machine.filters.current(), world.machine.links.bridges());
    assert_eq!((rules.nics.len(), bridges.len()), (3, 1));

    world.machine.filters.lose_power();
    world.machine.links.lose_bridges();
    world.machine.host().links.detach(ids[1]).unwrap();
    eventually("the rules to be back", || world.machine.filters.current() == rules).await;
    eventually("the bridge to be back", || world.machine.links.bridges() == bridges).await;
    eventually("the NICs to be back", || world.machine.host().links.nics().unwrap().len() == 3).await;
    assert!(ids.iter().all(|id| world.machine.zones.spec(*id).is_some()));
    let fact = world.headnode.wait_state(ids[1], ZoneState::Running).await;
    assert_eq!(fact.starts_done, 1, "nothing was started again");
    agent.end().await;
}
