//! Two headnodes over one etcd, and a node that knows both: one is stopped where it stands, and nobody waits for it.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    datacenter::Datacenter,
    etcd_store::{Cluster, Second},
};

/// The addresses of headnodes in the document a node holds.
fn known_to_node(datacenter: &Datacenter) -> usize {
    let directory = datacenter.settings().node_dir();
    let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
    // The newest line that speaks of them counts; both files have them as a list of texts.
    let (whole, journal) = (text("target.json"), text("target.journal"));
    let last = journal.lines().rev().find(|line| line.contains("\"headnodes\":[")).unwrap_or(&whole);
    last.split_once("\"headnodes\":[").map_or(0, |(_, rest)| rest.split(']').next().unwrap_or("").split(',').count())
}

#[test]
fn one_of_two_headnodes_stops_and_nobody_waits() {
    let Some(cluster) = Cluster::start(1) else { return };
    let Some(datacenter) = Datacenter::start_after(|datacenter| cluster.keep(datacenter)) else { return };
    datacenter.good(&["instance", "create", "-w", "--name", "one", "minimal", "g1-nano"]);
    let mut second = Second::start(&datacenter, &cluster);
    datacenter.wait("the node to know both headnodes", || known_to_node(&datacenter) == 2);

    // Image files come over by themselves, and a damaged one is fetched again.
    let here = datacenter.settings().headnode_dir().join("images");
    let there = second.settings().headnode_dir().join("images");
    let files: Vec<_> =
        fs::read_dir(&here).expect("images").map(|entry| entry.expect("an entry").file_name()).collect();
    let files: Vec<_> = files.into_iter().filter(|name| name.len() == 64).collect();
    assert!(!files.is_empty());
    let same = || files.iter().all(|name| fs::read(here.join(name)).ok() == fs::read(there.join(name)).ok());
    datacenter.wait("images to be at the second headnode", same);
    second.kill();
    let mut damaged = fs::read(there.join(&files[0])).expect("a file");
    damaged[0] ^= 0x55;
    fs::write(there.join(&files[0]), damaged).expect("it is damaged");
    second.start_again(&datacenter);
    datacenter.wait("the damaged file to be whole again", same);

    // The second asks a node that speaks to the first.
    let console = second.run(&datacenter, &["adm", "instance", "console", "one"]);
    assert!(console.status.success(), "{}", String::from_utf8_lossy(&console.stderr));

    // A command at the first one's place knows where else to ask.
    let known = || headnode::presence::known_ops(&datacenter.settings()).len();
    datacenter.wait("the first headnode to write down where the second is", || known() == 2);

    // Somebody listens to what changes, at the first headnode.
    let both = format!("{},{}", datacenter.settings().cloudapi_url(), second.url());
    let feed = Listener::start(&datacenter, &both);
    datacenter.wait("the list of instances to be told", || feed.last("one").as_deref() == Some("running"));

    // The first is stopped where it stands. Its clients go to the other one, and so does its node.
    let pid = datacenter.pid("headnode").expect("it runs");
    signal(pid, "-STOP");
    second.good(&datacenter, &["instance", "-j", "create", "-w", "--name", "two", "minimal", "g1-nano"]);
    second.good(&datacenter, &["instance", "-j", "stop", "-w", "one"]);
    let console = second.run(&datacenter, &["adm", "instance", "console", "two"]);
    assert!(console.status.success(), "{}", String::from_utf8_lossy(&console.stderr));
    // Whoever knows both addresses gets an answer without being told which one lives, and whoever listens is told what happened.
    let listed =
        datacenter.command(&["instance", "-j", "get", "two"]).env("TRITON_URL", &both).output().expect("it runs");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    datacenter.wait("what happened to be told", || {
        (feed.last("one").as_deref(), feed.last("two").as_deref()) == (Some("stopped"), Some("running"))
    });
    let listed = datacenter.run(&["adm", "-j", "server", "list"]);
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert_eq!(datacenter.pid("headnode"), Some(pid), "nothing was restarted");

    // It goes on, and is one of two again.
    signal(pid, "-CONT");
    datacenter.wait("the first headnode to answer", || datacenter.state("two").as_deref() == Some("running"));
    std::thread::sleep(Duration::from_secs(1));
    for name in ["one", "two"] {
        datacenter.good(&["instance", "delete", "-w", name]);
        datacenter.wait("the deletion to be told", || feed.last(name).as_deref() == Some("deleted"));
    }
    ended_and_gone_on(&datacenter, feed);
    datacenter.wait_idle();
    datacenter.assert_agreed();
    datacenter.assert_clean();
}

/// Whoever listened was told everything once; another one begins where it ended.
fn ended_and_gone_on(datacenter: &Datacenter, mut feed: Listener) {
    assert_eq!(feed.count("list"), 1, "nothing was begun again");
    // What flows write behind a deletion touches nothing that is told; the next place is behind it too.
    datacenter.wait_idle();
    let places = feed.count("current");
    datacenter.wait("a place behind all that happened", || feed.count("current") > places);
    feed.stop();
    // Another one begins where it ended, and has nothing to tell; before the beginning there is everything, deleted ones too.
    let cursor = feed.cursor();
    let told = datacenter.good(&["instance", "changes", "-j", "--once", "--since", &cursor]);
    assert_eq!(told.lines().count(), 1, "{told}");
    let told = datacenter.good(&["instance", "changes", "--once", "--since", &format!("0-{}", after_dash(&cursor))]);
    assert!(told.contains("  one  deleted  ") && told.contains("  two  deleted  "), "{told}");
}

/// `neso instance changes`, while other things happen.
struct Listener {
    child: Child,
    heard: PathBuf,
}

impl Listener {
    fn start(datacenter: &Datacenter, urls: &str) -> Self {
        let heard = datacenter.root().join("heard");
        let file = fs::File::create(&heard).expect("a file for what is heard");
        let mut command = datacenter.command(&["instance", "changes", "-j", "--since", ""]);
        let child = command.env("TRITON_URL", urls).stdin(Stdio::null()).stdout(file).spawn().expect("it runs");
        Self { child, heard }
    }

    fn lines(&self) -> Vec<Value> {
        let heard = fs::read_to_string(&self.heard).expect("what was heard");
        // The last line may be under way.
        heard.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The state of an instance as it was told last.
    fn last(&self, name: &str) -> Option<String> {
        let lines = self.lines();
        let last = lines.iter().rev().find(|line| line["resourceObject"]["name"] == name)?;
        Some(last["resourceState"].as_str().expect("a state").to_owned())
    }

    /// How many notes of a kind were told.
    fn count(&self, event: &str) -> usize {
        self.lines().iter().filter(|line| line["event"] == event).count()
    }

    /// From where on another one goes on.
    fn cursor(&self) -> String {
        let lines = self.lines();
        let last = lines.iter().rev().find_map(|line| line["cursor"].as_str());
        last.expect("a cursor was told").to_owned()
    }

    /// As Ctrl-C does: whoever has seen enough made no mistake.
    fn stop(&mut self) {
        signal(self.child.id(), "-INT");
        let ended = self.child.wait().expect("it ends");
        assert!(ended.success(), "{ended}");
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may have been stopped before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn after_dash(cursor: &str) -> &str {
    cursor.split_once('-').expect("a cursor has two parts").1
}

fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill runs");
    assert!(sent.success(), "our own process is there");
}
