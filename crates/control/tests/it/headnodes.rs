//! Several control planes over one store: who does the work, whom machines speak to, and what becomes of both when one is gone. Time here is
//! the runtime's own, which stands still while anybody has something to do.

use std::{sync::Arc, time::Duration};

use base::{
    clock::{Clock, Sleep},
    shutdown::{Shutdown, Trigger},
};
use control::{
    Control,
    headnodes::{self, Announcement, Measure},
    servers,
};
use model::{
    delta::{Held, TargetNews},
    headnode::{DiskSigns, Stage},
    id::{InstanceId, ServerId},
    part::Digest,
    role::{HeadnodeRole, HeadnodeWanted},
    server::{Condition, Server},
    state::{PublicState, Reachability},
    target::Target,
    time::Timestamp,
};
use store::{Store, Transaction, memory::Memory};
use tokio::time::Instant;

use crate::world::{Choices, Machine, World, config, run_flows};

/// The runtime's time as a wall clock.
struct Virtual(Instant);

impl Clock for Virtual {
    fn now_ms(&self) -> i64 {
        1_767_225_600_000 + i64::try_from(self.0.elapsed().as_millis()).expect("a test is short")
    }

    fn sleep_until(&self, at_ms: i64) -> Sleep<'_> {
        let delay = u64::try_from(at_ms - self.now_ms()).unwrap_or(0);
        Box::pin(tokio::time::sleep(Duration::from_millis(delay)))
    }
}

struct Well;

impl Measure for Well {
    fn images_missing(&self) -> u64 {
        0
    }

    fn disk(&self) -> DiskSigns {
        DiskSigns { free_percent: Some(50.0), ..DiskSigns::default() }
    }
}

struct Full;

impl Measure for Full {
    fn images_missing(&self) -> u64 {
        0
    }

    fn disk(&self) -> DiskSigns {
        DiskSigns { free_percent: Some(0.5), ..DiskSigns::default() }
    }
}

/// What they share.
struct Site {
    engine: Arc<Memory>,
    clock: Arc<Virtual>,
}

/// One of them. Dies with its trigger.
struct Head {
    world: World,
    id: ServerId,
    trigger: Option<Trigger>,
}

fn announcement(number: u8, vxlan_port: u16) -> Announcement {
    Announcement {
        hostname: format!("head-{number}"),
        cloudapi: format!("10.0.0.{number}:8443"),
        node_link: format!("10.0.0.{number}:8444"),
        ops: format!("10.0.0.{number}:8445"),
        member: None,
        shared_settings: Digest::of(&vxlan_port),
        release: "1".to_owned(),
    }
}

impl Site {
    /// A datacenter with one headnode.
    async fn new() -> (Self, Head) {
        let site = Self { engine: Arc::new(Memory::new()), clock: Arc::new(Virtual(Instant::now())) };
        let seed = World::with(Choices {
            clock: site.clock.clone(),
            over: Some(site.engine.clone()),
            flows: false,
            ..Choices::default()
        })
        .await;
        let first = site.head(&seed, 1, 4_789, Well).await;
        seed.trigger.fire();
        (site, first)
    }

    /// One more headnode, over the records of `like`.
    async fn head(&self, like: &World, number: u8, vxlan_port: u16, measure: impl Measure) -> Head {
        let store = Store::open(self.engine.clone(), control::schema()).await.expect("the store opens");
        let (trigger, shutdown) = Shutdown::new();
        let id = ServerId::from_random(u128::from(number));
        let mut config = config(&like.dir);
        config.headnode = Some(id);
        config.fabric.vxlan_port = vxlan_port;
        let control = Control::start(store, self.clock.clone(), config, shutdown.clone());
        headnodes::register(&control, id, &announcement(number, vxlan_port)).await.expect("it is registered");
        base::task::spawn("beats", headnodes::keep_beating(control.clone(), id, measure, shutdown.clone()));
        run_flows(&control, shutdown.clone());
        let mut loops = flow::loops::Loops::new(self.clock.clone());
        control::loops::add_all(&mut loops, &control);
        base::task::spawn("loops", loops.run(shutdown));
        let world = World {
            control,
            owner: like.owner,
            scope: like.scope,
            image: like.image,
            network: like.network,
            server: like.server,
            dir: like.dir.clone(),
            trigger: like.trigger.clone(),
        };
        Head { world, id, trigger: Some(trigger) }
    }
}

impl Head {
    fn control(&self) -> &Control {
        &self.world.control
    }

    fn dies(&mut self) {
        self.trigger.take().expect("it lives").fire();
    }

    /// Waits until this one sees `count` share the work.
    async fn until_workers(&self, count: usize) {
        let mut roster = self.control().headnodes.watch();
        let seen = roster.wait_for(|roster| roster.workers().len() == count);
        tokio::time::timeout(Duration::from_secs(60), seen).await.expect("in time").expect("it lives");
    }

    fn reachability(&self) -> Reachability {
        servers::get(self.control(), self.world.server).expect("it is known").reachability
    }

    /// Waits until this one calls the machine so, and says how long that took.
    async fn until_reachability(&self, wanted: Reachability) -> Duration {
        let begun = Instant::now();
        while self.reachability() != wanted {
            assert!(begun.elapsed() < Duration::from_secs(300), "it never is {wanted:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        begun.elapsed()
    }

    /// What the machine is told here when it holds `held`.
    async fn news(&self, held: &Target) -> Option<Target> {
        let asked = Held { generation: held.generation, digest: Some(held.digest()) };
        match servers::watch_news(self.control(), self.world.server, asked).await.expect("it is known")? {
            TargetNews::Whole(target) => Some(target),
            TargetNews::Delta(delta) => Some(delta.apply(held).expect("it fits")),
        }
    }

    fn base(&self) -> u64 {
        servers::get(self.control(), self.world.server).expect("it is known").server.generation_base
    }
}

#[tokio::test(start_paused = true)]
async fn flows_of_one_that_dies_go_on_within_seconds() {
    let (site, mut first) = Site::new().await;
    let second = site.head(&first.world, 2, 4_789, Well).await;
    for head in [&first, &second] {
        head.until_workers(2).await;
    }
    let mut ids: Vec<InstanceId> = Vec::new();
    for number in 0..12 {
        ids.push(first.world.create(&format!("web-{number}")).await.expect("it is asked for").instance.id);
    }
    let is_first = |id: &InstanceId| model::headnode::owner(&[first.id, second.id], &id.to_string()) == Some(first.id);
    assert!((1..12).contains(&ids.iter().filter(|id| is_first(id)).count()), "each has some");
    tokio::time::sleep(Duration::from_secs(1)).await;
    first.dies();
    let died = Instant::now();
    let mut machine = Machine::new(&second.world);
    for id in &ids {
        machine.obey(&second.world, *id).await;
        second.world.until(*id, |view| view.state == PublicState::Running && view.instance.flow.is_none()).await;
    }
    assert!(died.elapsed() < Duration::from_secs(10), "{:?}", died.elapsed());
    assert_eq!(second.world.held().0, 12);
}

#[tokio::test(start_paused = true)]
async fn a_sick_one_gives_its_work_away_and_gets_it_back() {
    let (site, first) = Site::new().await;
    assert!(first.control().headnodes.roster().is_alone() && first.control().headnodes.roster().is_first());
    let mut sick = site.head(&first.world, 2, 4_789, Full).await;
    let going = sick.control().headnodes.going_out();
    tokio::time::timeout(Duration::from_secs(60), going).await.expect("it goes");
    first.until_workers(1).await;
    assert_eq!(first.control().headnodes.roster().workers(), [first.id]);
    assert!(sick.control().headnodes.is_out() && !first.control().headnodes.is_out());
    let view = headnodes::list(first.control()).pop().expect("the second");
    let why = view.beat.expect("it beats").health.sick.clone().expect("it is sick");
    assert!(view.fresh && !view.works && why.contains("nearly full"), "{why}");

    // Started again on a larger disk.
    sick.dies();
    let second = site.head(&first.world, 2, 4_789, Well).await;
    first.until_workers(2).await;
    second.until_workers(2).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!second.control().headnodes.is_out());

    // One that is being taken out owns nothing, and one that is gone from the records beats no more.
    let mut entry = first.control().snapshot().get(&control::tables::HEADNODES, &second.id.to_string()).expect("it");
    let leaving = model::headnode::Headnode { stage: Stage::Leaving, ..entry.value.clone() };
    let transaction = Transaction::new().replace(&control::tables::HEADNODES, &entry, leaving);
    first.control().store.commit(transaction).await.expect("it is written");
    second.until_workers(1).await;
    entry = first.control().snapshot().get(&control::tables::HEADNODES, &second.id.to_string()).expect("it");
    let transaction = Transaction::new().delete(&control::tables::HEADNODES, &entry);
    first.control().store.commit(transaction).await.expect("it is written");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let beats = || {
        let snapshot = first.control().snapshot();
        snapshot.get(&control::tables::BEATS, &second.id.to_string()).map(|beat| beat.sequence)
    };
    let before = beats();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(beats(), before);
    assert!(first.control().headnodes.roster().is_alone());
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_where_somebody_hears_it() {
    let (site, mut first) = Site::new().await;
    let second = site.head(&first.world, 2, 4_789, Well).await;
    second.until_workers(2).await;
    let mut machine = Machine::new(&first.world);
    machine.report(&first.world).await;
    // Longer than anybody waits who hears nothing: the second takes the first one's word.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        machine.report(&first.world).await;
        assert_eq!(second.reachability(), Reachability::Reachable);
    }
    let view = servers::get(second.control(), machine.id).expect("it is known");
    assert_eq!((view.server.heard_by, view.condition), (Some(first.id), Condition::Running));

    // It falls silent: the first says so, and the second hears it.
    let took = second.until_reachability(Reachability::Unreachable).await;
    assert!((25..45).contains(&took.as_secs()), "{took:?}");
    assert_eq!(first.reachability(), Reachability::Unreachable);
    machine.report(&first.world).await;
    second.until_reachability(Reachability::Reachable).await;

    // The first dies, and nobody can say any more whether the machine lives.
    first.dies();
    let took = second.until_reachability(Reachability::Unreachable).await;
    assert!((25..45).contains(&took.as_secs()), "{took:?}");
    machine.report(&second.world).await;
    assert_eq!(second.reachability(), Reachability::Reachable);
    let view = servers::get(second.control(), machine.id).expect("it is known");
    assert_eq!(view.server.heard_by, Some(second.id));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_moves_between_two_is_told_everything_once() {
    let (site, first) = Site::new().await;
    let second = site.head(&first.world, 2, 4_789, Well).await;
    second.until_workers(2).await;
    let mut machine = Machine::new(&first.world);
    let id = first.world.create("web").await.expect("it is asked for").instance.id;
    machine.obey(&first.world, id).await;
    first.world.until(id, |view| view.instance.flow.is_none()).await;
    let mut held = machine.target.clone().expect("it was told");
    assert_eq!(held.headnodes, ["10.0.0.1:8444", "10.0.0.2:8444"]);
    let heads = [&second, &first];
    for (round, head) in heads.iter().cycle().take(6).enumerate() {
        // A change made through the other one reaches it here.
        let name = format!("web-{round}");
        let other = heads[(round + 1) % 2];
        let made = other.world.create(&name).await.expect("it is asked for").instance.id;
        loop {
            if let Some(news) = head.news(&held).await {
                assert!(news.generation > held.generation);
                held = news;
            }
            if held.zones.contains_key(&made) {
                break;
            }
        }
        machine.target = Some(held.clone());
        machine.converge();
        machine.report(&head.world).await;
        head.world.until(made, |view| view.state == PublicState::Running && view.instance.flow.is_none()).await;
        while let Ok(Some(news)) = tokio::time::timeout(Duration::from_secs(5), head.news(&held)).await {
            held = news;
        }
        // Nothing more is said, wherever it goes now: what it holds is what everybody makes of the records.
        for head in heads {
            head.control().store.fresh().await.expect("memory is fresh");
            let told = tokio::time::timeout(Duration::from_secs(5), head.news(&held)).await;
            let told = told.ok().flatten();
            assert!(told.is_none_or(|told| told.digest() == held.digest()), "it holds the same already");
            let made = servers::target_for(&head.control().config, &head.control().snapshot(), machine.id);
            assert_eq!(made.expect("a document").digest(), held.digest());
        }
    }
    assert_eq!(first.base(), 0, "no generation was raised");
    assert_eq!(first.world.held().0, 7);
}

#[tokio::test(start_paused = true)]
async fn of_two_the_one_that_is_left_is_told_unless_every_machine_joined_it() {
    for (gone, left) in [(1_u8, vec!["10.0.0.2:8444"]), (2, Vec::new())] {
        let (site, first) = Site::new().await;
        let second = site.head(&first.world, 2, 4_789, Well).await;
        let role = HeadnodeRole { since: Timestamp(1), wanted: HeadnodeWanted::Running, headnodes: Vec::new() };
        let added = Server { headnode_role: Some(role), ..Server::new(second.id, "head-2", Timestamp(1)) };
        let control = if gone == 1 { second.control() } else { first.control() };
        control.store.commit(Transaction::new().create(&control::tables::SERVERS, added)).await.expect("it is written");
        second.until_workers(2).await;
        let held = servers::watch_target(control, first.world.server, 0).await.expect("known").expect("some");
        assert_eq!(held.headnodes, ["10.0.0.1:8444", "10.0.0.2:8444"]);

        let key = ServerId::from_random(gone.into()).to_string();
        let entry = control.snapshot().get(&control::tables::HEADNODES, &key).expect("its record");
        let forgotten = Transaction::new().delete(&control::tables::HEADNODES, &entry);
        control.store.commit(forgotten).await.expect("it is written");
        let told = servers::watch_target(control, first.world.server, held.generation).await.expect("known");
        assert_eq!(told.expect("another document").headnodes, left, "{gone} is gone");
        // One that starts now makes the same of the records.
        let made = servers::target_for(&control.config, &control.snapshot(), first.world.server);
        assert_eq!(made.expect("a document").headnodes, left, "{gone} is gone");
    }
}

#[tokio::test(start_paused = true)]
async fn two_that_disagree_about_settings_do_not_raise_for_ever() {
    let (site, first) = Site::new().await;
    let second = site.head(&first.world, 2, 4_790, Well).await;
    second.until_workers(2).await;
    let mut held = servers::watch_target(first.control(), first.world.server, 0).await.expect("known").expect("some");
    let mut ports = Vec::new();
    for head in [&first, &second, &first, &second, &first, &second, &first, &second] {
        // What one has shown, the other is told of a moment later: asked before, it does not know yet what led to it.
        head.control().store.fresh().await.expect("memory is fresh");
        tokio::time::sleep(Duration::from_secs(1)).await;
        while let Ok(Some(news)) = tokio::time::timeout(Duration::from_secs(5), head.news(&held)).await {
            assert!(news.generation > held.generation);
            held = news;
        }
        ports.push(held.vxlan_port);
    }
    assert_eq!(ports[..2], [4_789, 4_790], "the other one tells it");
    assert!(ports[2..].windows(2).all(|pair| pair[0] == pair[1]), "and then it is left alone: {ports:?}");
    assert!((1..=2).contains(&first.base()), "raised {} times", first.base());

    // They agree again: then the next to speak to it tells it, though it was told something else before.
    let third = site.head(&first.world, 3, 4_791, Well).await;
    drop((first, second));
    for number in [1, 2] {
        let again = announcement(number, 4_791);
        headnodes::refresh(third.control(), ServerId::from_random(number.into()), &again).await.expect("it is written");
    }
    let told = third.news(&held).await.expect("another document");
    assert_eq!(told.vxlan_port, 4_791);
}

#[tokio::test(start_paused = true)]
async fn a_release_too_far_from_those_that_beat_does_not_start() {
    let (site, mut first) = Site::new().await;
    let second = site.head(&first.world, 2, 4_789, Well).await;
    first.until_workers(2).await;
    let (control, id) = (second.control(), second.id);
    let says = |release: &str| {
        let record = control.snapshot().get(&control::tables::HEADNODES, &first.id.to_string()).expect("the first");
        let headnode = model::headnode::Headnode { release: release.to_owned(), ..record.value.clone() };
        Transaction::new().replace(&control::tables::HEADNODES, &record, headnode)
    };
    control.store.commit(says("0.1.7")).await.expect("it is written");
    for release in ["0.1.0", "0.2.0"] {
        headnodes::admit_release(control, id, release).await.expect("one apart at most");
    }
    let why = headnodes::admit_release(control, id, "0.3.0").await.expect_err("two apart").to_string();
    assert!(why.contains("too new") && why.contains("install release 0.2"), "{why}");
    // One that does not beat keeps nobody from starting; it will be told when it comes back.
    first.dies();
    second.until_workers(1).await;
    headnodes::admit_release(control, id, "0.3.0").await.expect("nobody of the old release is at work");
    assert!(headnodes::list(control).iter().any(|view| view.headnode.id == first.id), "its record is there");
}
