//! Who is busy, as operators and tenants see it without Prometheus: as one answer, and on a terminal.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{datacenter::Datacenter, shell::Guest};

/// Size of the terminal.
const COLUMNS: usize = 70;
const ROWS: usize = 16;

fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill runs");
    assert!(sent.success(), "our own process is there");
}

fn named<'a>(instances: &'a Value, name: &str) -> &'a Value {
    let all = instances.as_array().expect("a list");
    all.iter().find(|one| one["name"] == name).unwrap_or(&Value::Null)
}

#[test]
fn who_is_busy_is_shown_to_operators_and_tenants() {
    let Some(datacenter) = Datacenter::start() else { return };
    let busy = Guest::create(&datacenter, "busy", "g1-nano");
    datacenter.good(&["instance", "create", "-w", "--name", "idle", "minimal", "g1-nano"]);
    busy.tell("while :; do :; done");
    let mut top = Value::Null;
    datacenter.wait("the busy one to be the busiest", || {
        top = datacenter.json(&["top", "-j"]);
        let cpus = |name: &str| named(&top["instances"], name)["cpus"].as_f64();
        top["instances"][0]["name"] == "busy"
            && cpus("busy").zip(cpus("idle")).is_some_and(|(busy, idle)| busy > 2.0 * idle)
    });
    let machine = &top["machines"][0];
    assert_eq!(
        (&machine["reachable"], &machine["running"], &machine["instances"]),
        (&json!(true), &json!(2), &json!(2))
    );
    assert!(machine["cpu_part"].as_f64().is_some_and(|part| part > 0.0 && part <= 1.0), "{top}");
    assert!(named(&top["instances"], "idle")["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{top}");
    assert_eq!(top["counts"]["instances_running"], 2);
    // Nobody looks for alerts here, which is not the same as none.
    assert_eq!(top["alerts"], Value::Null);
    assert!(top["alerts_missing"].as_str().is_some_and(|why| why.contains("monitoring enable")), "{top}");
    let one = datacenter.good(&["top", "-n", "1"]);
    assert!(one.contains("  busy  ") && !one.contains("  idle  ") && !one.contains('\u{1b}'), "{one}");

    let stats = datacenter.json(&["instance", "stats", "-j"]);
    assert_eq!((stats.as_array().map(Vec::len), &stats[0]["name"]), (Some(2), &json!("busy")), "{stats}");
    assert!(stats[0]["cpus"].as_f64().is_some_and(|cpus| cpus > 0.0) && stats[0]["disk_part"].is_f64(), "{stats}");
    let idle = datacenter.json(&["instance", "stats", "-j", "idle"]);
    assert_eq!((idle.as_array().map(Vec::len), &idle[0]["name"]), (Some(1), &json!("idle")), "{idle}");
    drawn_until_interrupted(&datacenter);

    // A machine that stands still: what is not known is said, and nobody waits for it.
    let agent = datacenter.pid("node").expect("it runs");
    signal(agent, "-STOP");
    let mut top = Value::Null;
    datacenter.wait("the machine to count as silent", || {
        top = datacenter.json(&["top", "-j"]);
        top["machines"][0]["reachable"] == false
    });
    assert_eq!((&top["machines"][0].get("cpu_part"), &top["instances"]), (&None, &json!([])), "{top}");
    let silent = datacenter.json(&["instance", "stats", "-j", "busy"]);
    assert_eq!(silent[0]["missing"], "its machine does not answer", "{silent}");
    signal(agent, "-CONT");
    datacenter.wait("the machine to be heard", || datacenter.json(&["top", "-j"])["machines"][0]["reachable"] == true);

    for name in ["busy", "idle"] {
        datacenter.good(&["instance", "delete", "-w", name]);
    }
    datacenter.wait_idle();
    datacenter.assert_agreed();
    datacenter.assert_clean();
}

/// On a terminal it goes on while a headnode is away, keeps to the screen, and ends without an error when it is interrupted.
fn drawn_until_interrupted(datacenter: &Datacenter) {
    let terminal = Terminal::open(datacenter, "top");
    datacenter.wait("a picture", || terminal.pictures().last().is_some_and(|picture| picture.contains("busy")));
    datacenter.kill("headnode");
    let seen = terminal.pictures().len();
    datacenter.wait("new pictures after the headnode's end", || {
        terminal.pictures()[seen..].iter().any(|picture| picture.contains("busy") && !picture.contains("nothing new"))
    });
    for picture in terminal.pictures() {
        let lines: Vec<_> = picture.split("\u{1b}[K\r\n").collect();
        assert!(lines.len() <= ROWS && lines.iter().all(|line| line.chars().count() < COLUMNS), "{lines:#?}");
    }
    terminal.interrupt();
}

/// A command of ours on a terminal.
struct Terminal {
    child: Child,
    shown: PathBuf,
}

impl Terminal {
    fn open(datacenter: &Datacenter, words: &str) -> Self {
        let shown = datacenter.root().join("shown");
        let file = fs::File::create(&shown).expect("a file for what is shown");
        let ours = datacenter.command(&[]);
        let root = datacenter.root().display();
        let program = ours.get_program().to_str().expect("a path");
        let line = format!("stty cols {COLUMNS} rows {ROWS}; exec {program} --root {root} {words}");
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(file);
        for (name, value) in ours.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Self { child: command.spawn().expect("util-linux is there"), shown }
    }

    /// What was drawn, one after the other.
    fn pictures(&self) -> Vec<String> {
        let shown = fs::read(&self.shown).expect("what is shown");
        // Whole ones end so; what clears the screen before the first of them stands behind nothing.
        let whole = |one: &str| Some(one.strip_suffix("\u{1b}[J")?.to_owned());
        String::from_utf8_lossy(&shown).split("\u{1b}[H").filter_map(whole).collect()
    }

    /// Types Ctrl-C.
    fn interrupt(mut self) {
        let keys = self.child.stdin.as_mut().expect("a keyboard");
        keys.write_all(b"\x03").expect("it takes keys");
        let ended = self.child.wait().expect("it ends");
        assert!(ended.success(), "{ended}: {}", fs::read_to_string(&self.shown).unwrap_or_default());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
