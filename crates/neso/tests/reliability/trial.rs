//! One fault under load: what clients saw of it, and whether all they were told is true.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    history::{self, Event, Got, InstanceLine, Line, Mark},
    load::Orders,
    stage::Stage,
};

/// How long the load runs before anything is done to the datacenter.
const WARM: Duration = Duration::from_secs(4);
/// How long it goes on when all is well again.
const CALM: Duration = Duration::from_secs(4);
/// How often it is looked how others see a machine.
const LOOK: Duration = Duration::from_millis(500);
/// Marks in the history.
const BROKEN: &str = "broken";
const MENDED: &str = "mended";

/// Something that happens to a datacenter.
pub(crate) struct Fault {
    /// A short name.
    pub(crate) name: &'static str,
    /// What is done, for the table.
    pub(crate) about: &'static str,
    /// Does it.
    pub(crate) break_it: Break,
    /// How long it is left so.
    pub(crate) lasts: Duration,
    /// Undoes what does not mend itself.
    pub(crate) mend: fn(&mut Stage),
    /// What the headnodes of other machines must say of the machine while it lasts: a part of it.
    pub(crate) told: Option<&'static str>,
    /// What the machine must have given up when it has lasted.
    pub(crate) gives_up: &'static [Part],
}

/// To whom something is done.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Break {
    /// The machine whose member leads.
    Leader(fn(&mut Stage, usize)),
    /// Whoever it chooses.
    Any(fn(&mut Stage)),
}

/// What a machine has among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Its member leads the store.
    Lead,
    /// Its headnode has a share of the flows and loops, and nodes and tenants come to it.
    Work,
}

/// What it came to.
pub(crate) struct Outcome {
    /// Longest time without an acknowledged change, from the fault on.
    pub(crate) silence: Duration,
    /// The same before the fault: what is usual here.
    pub(crate) usual: Duration,
    /// From mending to all headnodes being well.
    pub(crate) recovery: Duration,
    /// Acknowledged changes and reads.
    pub(crate) acknowledged: usize,
    /// Requests that got no answer at the second headnode either, or were refused.
    pub(crate) failed: usize,
    /// Answers that said that they may be old.
    pub(crate) stale: usize,
    /// Operations whose effect nobody knows.
    pub(crate) unknown: usize,
    /// What other headnodes said of the machine, and how long it took until they said what they must.
    pub(crate) told: Option<(String, Duration)>,
    /// Why the history cannot have happened, or what was acknowledged is not there, or a sick machine was not told of.
    pub(crate) broken_promise: Option<String>,
}

/// Clients at work.
struct Load {
    child: Child,
    input: ChildStdin,
    /// Written by the reader alone until it has ended.
    events: Arc<Mutex<Vec<Event>>>,
    reader: JoinHandle<()>,
}

impl Load {
    fn start(stage: &Stage, orders: &Orders) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = stage.clients().command(program);
        command.arg(crate::LOAD).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the load runs");
        let mut input = child.stdin.take().expect("its input is a pipe");
        writeln!(input, "{}", serde_json::to_string(orders).expect("orders are plain data")).expect("it reads");
        let output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let events = Arc::<Mutex<Vec<Event>>>::default();
        let written = events.clone();
        let reader = base::task::thread("history", move || {
            for line in output.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("the load prints events");
                written.lock().expect("nobody else writes").push(event);
            }
        })
        .expect("a thread");
        Self { child, input, events, reader }
    }

    fn mark(&mut self, name: &str) {
        writeln!(self.input, "{name}").expect("the load reads marks");
    }

    fn end(mut self) -> History {
        drop(self.input);
        self.reader.join().expect("the load prints events");
        let mut history = History::default();
        for event in self.events.lock().expect("nobody writes any more").drain(..) {
            match event {
                Event::Line(line) => history.lines.push(line),
                Event::Instance(line) => history.instances.push(line),
                Event::Mark(mark) => history.marks.push(mark),
            }
        }
        assert!(self.child.wait().expect("it ends").success(), "the load ended well");
        history
    }
}

#[derive(Default)]
struct History {
    lines: Vec<Line>,
    instances: Vec<InstanceLine>,
    marks: Vec<Mark>,
}

impl History {
    /// Writes it below the directory that `NESO_HISTORIES` names, for whoever looks for a reason.
    fn keep(&self, name: &str) {
        let Some(directory) = std::env::var_os("NESO_HISTORIES") else { return };
        let lines = self.lines.iter().map(|line| serde_json::to_string(line).expect("plain data"));
        let instances = self.instances.iter().map(|line| serde_json::to_string(line).expect("plain data"));
        let marks = self.marks.iter().map(|mark| serde_json::to_string(mark).expect("plain data"));
        let text: Vec<String> = lines.chain(instances).chain(marks).collect();
        std::fs::write(std::path::Path::new(&directory).join(name), text.join("\n")).expect("the history is kept");
    }

    fn at(&self, mark: &str) -> u64 {
        self.marks.iter().find(|known| known.name == mark).expect("a mark").at
    }

    /// Longest time between two acknowledged changes from `from` to `to`.
    fn silence(&self, from: u64, to: u64) -> Duration {
        let mut told: Vec<u64> =
            self.lines.iter().filter(|line| line.is_acknowledged_change()).map(|line| line.returned).collect();
        told.retain(|at| (from..to).contains(at));
        told.sort_unstable();
        let ends = told.iter().copied().chain([to]);
        let begins = [from].into_iter().chain(told.iter().copied());
        Duration::from_nanos(begins.zip(ends).map(|(from, to)| to - from).max().unwrap_or(0))
    }

    fn count(&self, what: impl Fn(&Line) -> bool) -> usize {
        self.lines.iter().filter(|line| what(line)).count()
    }
}

/// Looks at what others make of a machine until the fault has lasted: what they said, and when; and whether they must have said more.
fn watch(
    stage: &Stage,
    fault: &Fault,
    number: usize,
    broken: Instant,
    until: Instant,
) -> (Option<(String, Duration)>, Result<(), String>) {
    let (mut told, mut last) = (None, None);
    while Instant::now() < until {
        if let Some(seen) = fault.told.and_then(|_| stage.seen(number)) {
            if told.is_none() && fault.told.is_some_and(|told| seen.told.contains(told)) {
                told = Some((seen.told.clone(), broken.elapsed()));
            }
            last = Some(seen);
        }
        std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
    }
    let Some(must) = fault.told else { return (None, Ok(())) };
    let shown = match last {
        None => Err("no other headnode said how the machine is".to_owned()),
        Some(seen) if told.is_none() => {
            Err(format!("no other headnode said `{must}`; the last word was `{}`", seen.told))
        }
        Some(seen) if seen.leads && fault.gives_up.contains(&Part::Lead) => {
            Err("its member still leads the store".to_owned())
        }
        Some(seen) if seen.works && fault.gives_up.contains(&Part::Work) => {
            Err("it still has a share of the work".to_owned())
        }
        Some(_) => Ok(()),
    };
    (told, shown)
}

/// Does `fault` to a datacenter that is well, under load.
pub(crate) fn run(stage: &mut Stage, fault: &Fault) -> Outcome {
    let mut load = Load::start(stage, &stage.orders(fault.name));
    std::thread::sleep(WARM);
    let leader = stage.leader();
    load.mark(BROKEN);
    let broken = Instant::now();
    match fault.break_it {
        Break::Leader(break_it) => break_it(stage, leader),
        Break::Any(break_it) => break_it(stage),
    }
    let until = Instant::now() + fault.lasts;
    let (told, shown) = watch(stage, fault, leader, broken, until);
    load.mark(MENDED);
    let mended = Instant::now();
    (fault.mend)(stage);
    stage.wait_well();
    let recovery = mended.elapsed();
    std::thread::sleep(CALM);
    let history = load.end();
    history.keep(fault.name);

    let (broken, end) = (history.at(BROKEN), history.lines.iter().map(|line| line.returned).max().unwrap_or(0));
    let promise = history::check(&history.lines).and_then(|()| {
        let (there, gone) = history::owed(&history.instances);
        stage.check_instances(&there, &gone)
    });
    let promise = promise.and(shown);
    stage.clear(fault.name);
    Outcome {
        silence: history.silence(broken, end),
        usual: history.silence(Duration::from_secs(1).as_nanos() as u64, broken),
        recovery,
        acknowledged: history
            .count(|line| matches!(line.got, Got::Done | Got::Absent | Got::AbsentByNow | Got::Value(_))),
        failed: history.count(|line| line.got.is_failure()),
        told,
        stale: history.count(|line| line.got == Got::Stale),
        unknown: history.count(|line| line.got.is_unknown()),
        broken_promise: promise.err(),
    }
}
