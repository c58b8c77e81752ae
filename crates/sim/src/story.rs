//! What happens: a tenant who wants things, and fate.

use std::{collections::VecDeque, fmt, time::Duration};

use control::{Error, Scope, instances, tables::INSTANCES};
use model::{id::InstanceId, instance::Caller};

use crate::{
    Outcome,
    chance::Chance,
    datacenter::{Datacenter, PACKAGES},
    invariants,
    trace::Trace,
};

/// Instances at once; a few more than the network has addresses, so that it runs out.
const INSTANCES_MAX: usize = 32;

/// Longest pause between two steps, milliseconds.
const PAUSE_MS: u64 = 3000;

/// How long after the faults everything may take to come to rest, virtual time. Longer than the longest deadline of a flow.
const REST: Duration = Duration::from_secs(40 * 60);

/// Between two looks while waiting for rest.
const LOOK: Duration = Duration::from_secs(5);

/// Lines of the diary that are kept.
const DIARY_LINES: usize = 60;

/// Verbs of the machine that fail now and then.
const VERBS: [&str; 12] = [
    "zones.prepare",
    "zones.start",
    "zones.stop",
    "zones.set_limits",
    "zones.destroy",
    "datasets.import",
    "datasets.clone_image",
    "datasets.set_quota",
    "datasets.remove_root",
    "links.attach",
    "links.detach",
    "filters.apply",
];

/// How often what happened.
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Tally {
    pub requests: usize,
    pub refused: usize,
    pub created: usize,
    pub agents_killed: usize,
    pub machine_boots: usize,
    pub headnode_restarts: usize,
    pub cuts: usize,
    pub verbs_failed: usize,
    pub zones_ended: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests ({} refused), {} instances, {} agents killed, {} boots of the machine, {} of the headnode, {} cuts, \
             {} failing verbs, {} zones ended by themselves",
            self.requests,
            self.refused,
            self.created,
            self.agents_killed,
            self.machine_boots,
            self.headnode_restarts,
            self.cuts,
            self.verbs_failed,
            self.zones_ended
        )
    }
}

struct Story {
    datacenter: Datacenter,
    chance: Chance,
    tally: Tally,
    diary: VecDeque<String>,
    trace: Trace,
    begun: tokio::time::Instant,
}

/// Plays the story of `seed` on a paused runtime.
pub async fn play(seed: u64, steps: usize) -> Outcome {
    let outcome = |tally, violations, diary: VecDeque<String>, trace: Trace| {
        let (trace, diary) = (trace.digest(), diary.into());
        Outcome { seed, steps, tally, trace, violations, diary }
    };
    let datacenter = match Datacenter::start(seed).await {
        Ok(datacenter) => datacenter,
        Err(error) => {
            let why = vec![base::errors::chain(&error)];
            return outcome(Tally::default(), why, VecDeque::new(), Trace::new());
        }
    };
    let mut story = Story {
        datacenter,
        chance: Chance::new(seed),
        tally: Tally::default(),
        diary: VecDeque::new(),
        trace: Trace::new(),
        begun: tokio::time::Instant::now(),
    };
    let violations = story.tell(steps).await;
    story.trace_records();
    outcome(story.tally, violations, story.diary, story.trace)
}

impl Story {
    /// The whole story; what went wrong in it.
    async fn tell(&mut self, steps: usize) -> Vec<String> {
        for _ in 0..steps {
            if let Err(violation) = self.step().await {
                return vec![violation];
            }
            let pause = self.chance.below(PAUSE_MS);
            let wrong = self.pass(Duration::from_millis(pause)).await;
            if !wrong.is_empty() {
                return wrong;
            }
        }
        self.note("the faults stop".to_owned());
        self.datacenter.machine.faults.clear();
        self.datacenter.start_agent();
        self.datacenter.mend(false);
        let open = self.rest(invariants::open).await;
        if !open.is_empty() {
            return open;
        }
        self.note("everything is deleted".to_owned());
        let mut wrong = self.delete_all().await;
        if wrong.is_empty() {
            wrong = self
                .rest(|datacenter| {
                    let mut left = invariants::open(datacenter);
                    left.extend(invariants::leaks(datacenter));
                    left
                })
                .await;
        }
        wrong
    }

    fn note(&mut self, what: String) {
        let at = self.begun.elapsed().as_secs_f64();
        let line = format!("{at:9.3} s  {what}");
        self.trace.take(&line);
        self.diary.push_back(line);
        if self.diary.len() > DIARY_LINES {
            self.diary.pop_front();
        }
    }

    fn trace_records(&mut self) {
        for instance in self.datacenter.control.snapshot().scan(&INSTANCES) {
            self.trace.take(&format!("{:?}", instance.value));
        }
    }

    /// Lets time pass and looks.
    async fn pass(&mut self, time: Duration) -> Vec<String> {
        tokio::time::sleep(time).await;
        self.datacenter.tell_time();
        self.trace.take(&self.datacenter.control.snapshot().revision().0.to_string());
        invariants::at_every_tick(&self.datacenter)
    }

    /// Waits until `open` finds nothing; what it still finds at the end.
    async fn rest(&mut self, open: impl Fn(&Datacenter) -> Vec<String>) -> Vec<String> {
        let until = tokio::time::Instant::now() + REST;
        loop {
            let wrong = self.pass(LOOK).await;
            if !wrong.is_empty() {
                return wrong;
            }
            let left = open(&self.datacenter);
            if left.is_empty() || tokio::time::Instant::now() >= until {
                return left;
            }
        }
    }

    /// One thing happens. An error is something that must not happen.
    async fn step(&mut self) -> Result<(), String> {
        match self.chance.below(100) {
            0..75 => self.request().await,
            75..80 => {
                self.datacenter.kill_agent();
                self.tally.agents_killed += 1;
                self.note("the agent is killed".to_owned());
                Ok(())
            }
            80..86 => {
                self.datacenter.start_agent();
                self.note("an agent is there".to_owned());
                Ok(())
            }
            86..88 => {
                self.datacenter.reboot_machine();
                self.tally.machine_boots += 1;
                self.note("the machine boots".to_owned());
                Ok(())
            }
            88..91 => self.end_a_zone(),
            91..93 => {
                self.tally.headnode_restarts += 1;
                self.note("the headnode starts again".to_owned());
                let again = self.datacenter.restart_headnode().await;
                again.map_err(|error| format!("the headnode does not start: {}", base::errors::chain(&error)))
            }
            93..95 => self.fail_a_verb(),
            _ => self.change_the_cable(),
        }
    }

    fn change_the_cable(&mut self) -> Result<(), String> {
        if self.datacenter.is_cut() {
            let bad = self.chance.percent(50);
            self.datacenter.mend(bad);
            self.note(format!("the cable is mended (bad: {bad})"));
        } else {
            self.datacenter.cut();
            self.tally.cuts += 1;
            self.note("the cable is cut".to_owned());
        }
        Ok(())
    }

    fn fail_a_verb(&mut self) -> Result<(), String> {
        let verb = self.chance.pick(&VERBS).copied().unwrap_or_default();
        let times = u32::try_from(1 + self.chance.below(8)).unwrap_or(1);
        self.datacenter.machine.faults.arm(verb, times, "fate");
        self.tally.verbs_failed += 1;
        self.note(format!("{verb} fails {times} times"));
        Ok(())
    }

    fn end_a_zone(&mut self) -> Result<(), String> {
        let zones = self.datacenter.machine.host().zones.list().unwrap_or_default();
        let running: Vec<_> = zones.iter().filter(|zone| zone.running).map(|zone| zone.instance).collect();
        let Some(id) = self.chance.pick(&running).copied() else { return Ok(()) };
        let ways = [("halted", None, Some(2)), ("rebooted", None, Some(1)), ("exited with code 1", Some(1), None)];
        let Some((reason, code, signal)) = self.chance.pick(&ways).copied() else { return Ok(()) };
        self.datacenter.machine.zones.end_boot(id, code, signal, reason);
        self.tally.zones_ended += 1;
        self.note(format!("{id} {reason}"));
        Ok(())
    }

    /// The tenant asks for something.
    async fn request(&mut self) -> Result<(), String> {
        self.tally.requests += 1;
        let present = self.present();
        let (what, result) = match self.chance.pick(&present).copied() {
            Some(id) if present.len() >= INSTANCES_MAX || self.chance.percent(65) => self.change(id).await,
            _ => ("create".to_owned(), self.create().await),
        };
        match result {
            Ok(()) => self.note(what),
            Err(error) => {
                self.tally.refused += 1;
                let text = base::errors::chain(&error);
                self.note(format!("{what}: {text}"));
                if matches!(error, Error::Store(_) | Error::File { .. } | Error::Unavailable(_)) {
                    return Err(format!("{what}: {text}"));
                }
            }
        }
        Ok(())
    }

    async fn create(&mut self) -> Result<(), Error> {
        let networks = self.datacenter.networks.clone();
        let count = usize::try_from(1 + self.chance.below(2)).unwrap_or(1);
        let choices = networks.into_iter().take(count);
        let request = instances::CreateInstance {
            package: self.chance.pick(&PACKAGES).copied().unwrap_or_default().to_owned(),
            image: self.datacenter.image.to_string(),
            networks: choices.map(instances::NetworkChoice::any).collect(),
            ..instances::CreateInstance::default()
        };
        let view =
            instances::create(&self.datacenter.control, &Caller::System, self.datacenter.account, request).await?;
        self.tally.created += 1;
        self.note(format!("{} is asked for", view.instance.id));
        Ok(())
    }

    /// Something is asked of one instance.
    async fn change(&mut self, id: InstanceId) -> (String, Result<(), Error>) {
        let control = self.datacenter.control.clone();
        let (caller, scope) = (Caller::System, Scope::Account(self.datacenter.account));
        let package = self.chance.pick(&PACKAGES).copied().unwrap_or_default();
        let network = self.chance.pick(&self.datacenter.networks).copied();
        match self.chance.below(10) {
            0 | 1 => (format!("stop {id}"), instances::stop(&control, &caller, scope, id).await.map(drop)),
            2 | 3 => (format!("start {id}"), instances::start(&control, &caller, scope, id).await.map(drop)),
            4 => (format!("reboot {id}"), instances::reboot(&control, &caller, scope, id).await.map(drop)),
            5 => {
                let resized = instances::resize(&control, &caller, scope, id, package).await;
                (format!("resize {id} to {package}"), resized.map(drop))
            }
            6 => {
                let Some(network) = network else { return ("nothing".to_owned(), Ok(())) };
                let choice = instances::NetworkChoice::any(network);
                let added = instances::nics::add(&control, &caller, scope, id, choice).await;
                (format!("add a NIC to {id}"), added.map(drop))
            }
            7 => {
                let nics = instances::nics::list(&control, scope, id).unwrap_or_default();
                let Some(mac) = self.chance.pick(&nics).map(|nic| nic.nic.mac) else { return (String::new(), Ok(())) };
                let removed = instances::nics::remove(&control, &caller, scope, id, mac).await;
                (format!("remove {mac} from {id}"), removed.map(drop))
            }
            _ => (format!("delete {id}"), instances::delete(&control, &caller, scope, id).await.map(drop)),
        }
    }

    fn present(&self) -> Vec<InstanceId> {
        let snapshot = self.datacenter.control.snapshot();
        let mut present: Vec<_> = snapshot.scan(&INSTANCES).filter(|instance| instance.deleted_at.is_none()).collect();
        present.sort_by_key(|instance| (instance.created_at, instance.id));
        present.iter().map(|instance| instance.id).collect()
    }

    async fn delete_all(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        for id in self.present() {
            let scope = Scope::Account(self.datacenter.account);
            match instances::delete(&self.datacenter.control, &Caller::System, scope, id).await {
                Ok(_) | Err(Error::NotFound { .. } | Error::Gone(_)) => {}
                Err(error) => wrong.push(format!("{id} cannot be deleted: {}", base::errors::chain(&error))),
            }
        }
        wrong
    }
}
