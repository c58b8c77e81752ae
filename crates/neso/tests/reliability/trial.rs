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
    pub(crate) break_it: fn(&mut Stage),
    /// How long it is left so.
    pub(crate) lasts: Duration,
    /// Undoes what does not mend itself.
    pub(crate) mend: fn(&mut Stage),
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
    /// Why the history cannot have happened, or what was acknowledged is not there.
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

/// Does `fault` to a datacenter that is well, under load.
pub(crate) fn run(stage: &mut Stage, fault: &Fault) -> Outcome {
    let mut load = Load::start(stage, &stage.orders(fault.name));
    std::thread::sleep(WARM);
    load.mark(BROKEN);
    (fault.break_it)(stage);
    std::thread::sleep(fault.lasts);
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
    stage.clear(fault.name);
    Outcome {
        silence: history.silence(broken, end),
        usual: history.silence(Duration::from_secs(1).as_nanos() as u64, broken),
        recovery,
        acknowledged: history.count(|line| matches!(line.got, Got::Done | Got::Absent | Got::Value(_))),
        failed: history.count(|line| line.again && line.got.is_failure()),
        stale: history.count(|line| line.got == Got::Stale),
        unknown: history.count(|line| matches!(line.got, Got::Unknown(_))),
        broken_promise: promise.err(),
    }
}
