//! kill -9 while instances are changed, images come and go, and a provision that cannot succeed is undone.
//!
//! All points of a change are armed at once, as files in a directory; whoever passes one removes its file and dies. What
//! was asked for is asked for again, each time a little differently, until every point has been passed and the last wish
//! is fulfilled. Then every flow has ended, and records, disk and kernel tell of the same instances.

use std::{cell::Cell, fs, path::Path, process::Command, time::Instant};

use serde_json::{Value, json};

use crate::datacenter::{Datacenter, entries};

/// Points that every change passes: in the store and in the target's way down.
const PUSHED: [&str; 3] = ["store.commit.before", "store.commit.after", "node.target.written"];
/// Points that a change passes for which the agent has to do something.
const ACTED: [&str; 2] = ["node.step.before", "node.step.after"];
/// Id of the image without an init.
const HOLLOW: &str = "5c1f9a34-6e0b-4d0a-9c57-3b1f0f7f1e01";

#[test]
fn changes_survive_every_kill() {
    let Some(datacenter) = Datacenter::start() else { return };
    fs::create_dir(datacenter.crash_file()).expect("a directory for crash points");
    datacenter.good(&["instance", "create", "-w", "--name", "changed", "minimal", "g1-nano"]);
    datacenter.wait_idle();
    let id = datacenter.instances()[0]["id"].as_str().expect("an id").to_owned();
    let init = datacenter.init(&id);

    let flow = |step: &str| ["before", "after", "committed"].map(|moment| format!("flow.{step}.{moment}"));
    let mut table = Vec::new();
    let mut tried = |what: &str, points: Vec<String>, change: &Change<'_>| {
        let (count, began) = (points.len(), Instant::now());
        survive(&datacenter, what, &points, change);
        table
            .push(format!("{what:<10} killed at {count} points, all well after {:>6} ms", began.elapsed().as_millis()));
    };
    let acted = |step| names(&PUSHED).chain(names(&ACTED)).chain(flow(step)).collect::<Vec<_>>();

    tried(
        "resize",
        acted("resize.await_limits"),
        &Change {
            ask: &|round| ["instance", "resize", &id, package(round)].map(str::to_owned).to_vec(),
            done: &|one, round| one["package_name"] == package(round) && one["fact"]["limits"] == one["limits"],
        },
    );
    tried(
        "nics",
        acted("nics.await_nics"),
        &Change {
            ask: &|_| match nics(&datacenter, &id).as_slice() {
                [_, second] => ["instance", "nics", &id, "--remove", second].map(str::to_owned).to_vec(),
                _ => ["instance", "nics", &id, "--add", "private"].map(str::to_owned).to_vec(),
            },
            done: &|one, _| macs(&one["nics"]) == macs_of_fact(one),
        },
    );
    tried(
        "rename",
        names(&PUSHED).collect(),
        &Change {
            ask: &|round| vec!["instance".into(), "rename".into(), id.clone(), format!("changed-{round}")],
            done: &|one, round| one["alias"] == format!("changed-{round}"),
        },
    );
    tried(
        "metadata",
        names(&PUSHED).collect(),
        &Change {
            ask: &|round| vec!["instance".into(), "metadata".into(), id.clone(), format!("round=m{round}")],
            done: &|one, round| one["metadata"]["round"] == format!("m{round}"),
        },
    );
    tried(
        "tags",
        names(&PUSHED).collect(),
        &Change {
            ask: &|round| vec!["instance".into(), "tags".into(), id.clone(), format!("round=r{round}")],
            done: &|one, round| one["tags"]["round"] == format!("r{round}"),
        },
    );
    println!("{}", table.join("\n"));
    assert_eq!(datacenter.init(&id), init, "the instance was started again");
    datacenter.good(&["instance", "delete", "-w", &id]);
    datacenter.wait_idle();
    datacenter.assert_clean();
}

#[test]
fn images_and_failing_provisions_survive_every_kill() {
    let Some(datacenter) = Datacenter::start() else { return };
    fs::create_dir(datacenter.crash_file()).expect("a directory for crash points");
    let files = datacenter.settings().headnode_dir().join("images");
    let before = entries(&files);
    let manifest = hollow_image(&datacenter.root().join("hollow"));
    let manifest = manifest.to_str().expect("a plain path");

    arm(&datacenter, &["store.commit.before", "store.commit.after", "image.file.received", "image.file.named"]);
    until(&datacenter, "the image to be imported", || {
        datacenter.run(&["adm", "image", "import", manifest]).status.success() && image_state(&datacenter) == "active"
    });
    let sum = entries(&files).into_iter().find(|file| !before.contains(file)).expect("the image's file");

    // A provision that cannot succeed: the image has no init. Its undo is killed at every moment.
    let undo = ["before", "after", "committed"].map(|moment| format!("flow.provision.await_running.undo.{moment}"));
    arm(&datacenter, &undo.each_ref().map(String::as_str));
    datacenter.good(&["instance", "create", "--name", "hollow", "hollow", "g1-nano"]);
    until(&datacenter, "the provision to be undone", || datacenter.state("hollow").as_deref() == Some("failed"));
    datacenter.wait_idle();
    let failed = datacenter.json(&["adm", "-j", "instance", "get", "hollow"]);
    assert!(failed["failure"].is_string(), "a failed instance says why: {failed}");
    datacenter.good(&["instance", "delete", "hollow"]);
    datacenter.wait("the failed instance to go", || datacenter.state("hollow").is_none());
    datacenter.wait_idle();
    datacenter.assert_clean();

    arm(&datacenter, &["store.commit.before", "store.commit.after", "image.delete.recorded"]);
    until(&datacenter, "the image to be deleted", || {
        if !entries(&datacenter.crash_file()).is_empty() && image_state(&datacenter) == "absent" {
            let _ = datacenter.run(&["adm", "image", "import", manifest]);
        }
        let _ = datacenter.run(&["adm", "image", "delete", HOLLOW]);
        image_state(&datacenter) == "absent"
    });
    datacenter.wait("the image's file to go", || !entries(&files).contains(&sum));
    assert_eq!(entries(&files), before, "files of images are left");
}

/// Something that is asked for again and again, each round a little differently.
struct Change<'a> {
    /// The command of a round.
    ask: &'a dyn Fn(u32) -> Vec<String>,
    /// Whether what that round asked for is so.
    done: &'a dyn Fn(&Value, u32) -> bool,
}

#[track_caller]
fn survive(datacenter: &Datacenter, what: &str, points: &[String], change: &Change<'_>) {
    arm(datacenter, &points.iter().map(String::as_str).collect::<Vec<_>>());
    let round = Cell::new(0);
    let ask = || {
        round.set(round.get() + 1);
        let command = (change.ask)(round.get());
        // May be lost with the headnode: nothing was acknowledged then, and the tenant asks again.
        let _ = datacenter.run(&command.iter().map(String::as_str).collect::<Vec<_>>());
    };
    ask();
    until(datacenter, &format!("{what} to be done"), || {
        let Some(all) = datacenter.ask(&["adm", "-j", "instance", "list"]) else { return false };
        let done = all.as_array().is_some_and(|all| all.len() == 1 && (change.done)(&all[0], round.get()));
        if !done || !entries(&datacenter.crash_file()).is_empty() {
            ask();
            return false;
        }
        true
    });
    datacenter.assert_agreed();
}

/// Waits until every armed point was passed, no flow is under way, and `done` says so.
#[track_caller]
fn until(datacenter: &Datacenter, what: &str, done: impl Fn() -> bool) {
    datacenter.wait(&format!("{what} (still armed: {:?})", entries(&datacenter.crash_file())), || {
        let idle = datacenter
            .ask(&["adm", "-j", "flow", "list", "--unfinished"])
            .is_some_and(|flows| flows == Value::Array(Vec::new()));
        idle && done() && entries(&datacenter.crash_file()).is_empty()
    });
}

fn arm(datacenter: &Datacenter, points: &[&str]) {
    for point in points {
        fs::write(datacenter.crash_file().join(point), "").expect("a crash point is armed");
    }
}

fn names<'a>(points: &'a [&str]) -> impl Iterator<Item = String> + 'a {
    points.iter().map(|point| (*point).to_owned())
}

/// The package a round asks for.
fn package(round: u32) -> &'static str {
    if round.is_multiple_of(2) { "g1-nano" } else { "g1-micro" }
}

/// Ethernet addresses of the instance's NICs, as its record has them.
fn nics(datacenter: &Datacenter, id: &str) -> Vec<String> {
    datacenter.ask(&["adm", "-j", "instance", "get", id]).map(|one| macs(&one["nics"])).unwrap_or_default()
}

fn macs(nics: &Value) -> Vec<String> {
    nics.as_array().into_iter().flatten().filter_map(|nic| nic["mac"].as_str()).map(str::to_owned).collect()
}

/// The same as the machine reports them.
fn macs_of_fact(one: &Value) -> Vec<String> {
    let nics = one["fact"]["nics"].as_array();
    nics.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn image_state(datacenter: &Datacenter) -> String {
    let Some(images) = datacenter.ask(&["adm", "-j", "image", "list"]) else { return "unknown".to_owned() };
    let found = images.as_array().into_iter().flatten().find(|image| image["id"] == HOLLOW);
    found.map_or("absent", |image| image["state"].as_str().unwrap_or("unknown")).to_owned()
}

/// An image whose root holds one file and no init; the path of its manifest.
fn hollow_image(directory: &Path) -> std::path::PathBuf {
    let root = directory.join("root");
    fs::create_dir_all(root.join("etc")).expect("a directory");
    fs::write(root.join("etc/motd"), "nobody is here\n").expect("a file");
    let file = directory.join("hollow.tar");
    let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&file).arg("etc").status();
    assert!(packed.is_ok_and(|status| status.success()), "`tar` packs");
    let summed = Command::new("sha256sum").arg(&file).output().expect("`sha256sum` runs");
    let sum = String::from_utf8_lossy(&summed.stdout)[..64].to_owned();
    let size = fs::metadata(&file).expect("the file").len();
    let manifest = json!({
        "v": 2, "uuid": HOLLOW, "name": "hollow", "version": "1", "os": "linux", "type": "lx-dataset", "public": true,
        "files": [{"sha256": sum, "size": size, "compression": "none"}],
    });
    let path = directory.join("hollow.imgmanifest");
    fs::write(&path, manifest.to_string()).expect("a manifest");
    path
}
