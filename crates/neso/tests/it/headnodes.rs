//! Two headnodes over one etcd, and a node that knows both: one is stopped where it stands, and nobody waits for it.

use std::{fs, process::Command, time::Duration};

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

    // The first is stopped where it stands. Its clients go to the other one, and so does its node.
    let pid = datacenter.pid("headnode").expect("it runs");
    signal(pid, "-STOP");
    second.good(&datacenter, &["instance", "-j", "create", "-w", "--name", "two", "minimal", "g1-nano"]);
    second.good(&datacenter, &["instance", "-j", "stop", "-w", "one"]);
    let console = second.run(&datacenter, &["adm", "instance", "console", "two"]);
    assert!(console.status.success(), "{}", String::from_utf8_lossy(&console.stderr));
    // Whoever knows both addresses gets an answer without being told which one lives.
    let both = format!("{},{}", datacenter.settings().cloudapi_url(), second.url());
    let listed =
        datacenter.command(&["instance", "-j", "get", "two"]).env("TRITON_URL", &both).output().expect("it runs");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = datacenter.run(&["adm", "-j", "server", "list"]);
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert_eq!(datacenter.pid("headnode"), Some(pid), "nothing was restarted");

    // It goes on, and is one of two again.
    signal(pid, "-CONT");
    datacenter.wait("the first headnode to answer", || datacenter.state("two").as_deref() == Some("running"));
    std::thread::sleep(Duration::from_secs(1));
    for name in ["one", "two"] {
        datacenter.good(&["instance", "delete", "-w", name]);
    }
    datacenter.wait_idle();
    datacenter.assert_agreed();
    datacenter.assert_clean();
}

fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill runs");
    assert!(sent.success(), "our own process is there");
}
