//! A datacenter's ordinary days.

use std::{
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::datacenter::{Datacenter, PATIENCE};

/// A `neso up` with nothing to do takes seconds; this is the most we let pass.
const SECOND_UP: Duration = Duration::from_secs(10);

/// From the first start to the last delete: what a tenant and an operator see, and that nothing is left.
#[test]
fn an_instance_lives_and_leaves_nothing() {
    let Some(datacenter) = Datacenter::start() else { return };

    let began = Instant::now();
    let before = fs::read(datacenter.settings().pki_dir().join("server.pem")).expect("a certificate");
    datacenter.good(&["up"]);
    assert!(began.elapsed() < SECOND_UP, "a second `neso up` took {:?}", began.elapsed());
    assert_eq!(fs::read(datacenter.settings().pki_dir().join("server.pem")).expect("a certificate"), before);

    datacenter.good(&["instance", "create", "-w", "--name", "one", "minimal", "g1-nano"]);
    let one = datacenter.json(&["adm", "-j", "instance", "get", "one"]);
    assert_eq!(one["state"], "running");
    let phases: Vec<&str> =
        one["timeline"].as_array().expect("a timeline").iter().flat_map(|phase| phase["name"].as_str()).collect();
    for phase in ["queued", "placed", "image", "dataset", "network", "zone start", "ready"] {
        assert!(phases.contains(&phase), "the timeline lacks {phase}: {phases:?}");
    }
    answers(&datacenter, datacenter.good(&["instance", "ip", "one"]).trim());

    for (verb, state) in [("stop", "stopped"), ("start", "running"), ("reboot", "running")] {
        datacenter.good(&["instance", verb, "-w", "one"]);
        if verb == "reboot" {
            // It runs before and after: what tells that it was waited for is its record.
            let one = datacenter.json(&["adm", "-j", "instance", "get", "one"]);
            let rebooted = |entry: &serde_json::Value| entry["action"] == "reboot" && entry["success"] == true;
            assert!(one["history"].as_array().expect("a history").iter().any(rebooted), "`reboot -w` did not wait");
        }
        datacenter.wait(state, || datacenter.state("one").as_deref() == Some(state));
    }
    datacenter.wait_idle();
    let found = datacenter.json(&["doctor", "-j"]);
    let bad: Vec<_> =
        found.as_array().expect("findings").iter().filter(|finding| finding["severity"] == "fatal").collect();
    assert!(bad.is_empty(), "the doctor finds {bad:?}");

    certificates_are_renewed(&datacenter);
    datacenter.good(&["instance", "delete", "-w", "one"]);
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// Both processes use renewed certificates, and neither was started again for that.
fn certificates_are_renewed(datacenter: &Datacenter) {
    let pids = || ["headnode", "node"].map(|name| datacenter.pid(name));
    let serial = |name: &str, all: &serde_json::Value| {
        let found = all.as_array().and_then(|all| all.iter().find(|one| one["name"] == name)).expect("a certificate");
        found["serial"].as_str().expect("a serial number").to_owned()
    };
    let before = (pids(), datacenter.json(&["adm", "-j", "certificate", "list"]));
    let after = datacenter.json(&["adm", "-j", "certificate", "renew"]);
    assert_eq!(serial("authority", &before.1), serial("authority", &after));
    for name in ["headnode", "node", "operator"] {
        assert_ne!(serial(name, &before.1), serial(name, &after), "{name}");
    }
    let shown = serial("node", &after);
    let log = datacenter.root().join("var/log/neso/headnode.log");
    datacenter.wait("the node to show its new certificate", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines().any(|line| line.contains("did not show before") && line.contains(&shown))
    });
    datacenter.good(&["instance", "list"]);
    assert_eq!(pids(), before.0, "a process was started again");
}

/// Waits until the instance at `ip` has told this machine its Ethernet address, which is one of ours.
fn answers(datacenter: &Datacenter, ip: &str) {
    datacenter.wait(&format!("{ip} to answer"), || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        // Whether anybody takes the datagram does not matter: sending it asks who has the address.
        let _ = socket.send_to(b"?", (ip, 9));
        let table = fs::read_to_string("/proc/net/arp").expect("the kernel's neighbours");
        table.lines().any(|line| line.starts_with(&format!("{ip} ")) && line.contains(" 90:b8:d0:"))
    });
}

/// A running zone does not notice the end of the agent, of the headnode, of both and of their supervisor.
#[test]
fn zones_outlive_every_process_of_ours() {
    let Some(datacenter) = Datacenter::start() else { return };
    datacenter.good(&["instance", "create", "-w", "--name", "two", "minimal", "g1-nano"]);
    let booted = || {
        let view = datacenter.ask(&["adm", "-j", "instance", "get", "two"])?;
        let init = datacenter.init(view["id"].as_str()?)?;
        (view["state"] == "running").then(|| (init, view["fact"]["started_at"].clone()))
    };
    let first = booted().expect("it runs");
    for victims in [&["node"][..], &["headnode"], &["headnode", "node"], &["supervisor"]] {
        for victim in victims {
            datacenter.wait("its process", || datacenter.pid(victim).is_some());
            datacenter.kill(victim);
        }
        datacenter.good(&["up"]);
        datacenter.wait("the zone to be adopted", || booted().is_some());
        assert_eq!(booted(), Some(first.clone()), "it was started again after the end of {victims:?}");
    }
    datacenter.good(&["instance", "delete", "-w", "two"]);
    datacenter.assert_clean();
}

/// A supervisor that is just ending when `neso up` finds it, as after a kill, is followed by another.
#[test]
fn up_outlives_the_supervisor_it_found() {
    let Some(datacenter) = Datacenter::start() else { return };
    datacenter.kill("supervisor");
    datacenter.wait("it to be gone", || datacenter.pid("supervisor").is_none());
    // Its place stays taken for a while, as by a process whose memory is still being given back.
    let place = datacenter.settings().paths.run.join("supervisor.pid");
    let dying = base::daemon::PidFile::take(&place).expect("its place is free");
    let mut up = datacenter.command(&["up"]);
    let up = up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary under test runs");
    let children = ["headnode", "node"];
    datacenter.wait("its children to follow it", || children.iter().all(|name| datacenter.pid(name).is_none()));
    // Time to find it. A command so slow that it does not has less to do.
    std::thread::sleep(Duration::from_secs(2));
    drop(dying);
    let output = up.wait_with_output().expect("it ends");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "--- out\n{out}\n--- err\n{err}\n{}", datacenter.logs());
    assert!(err.contains("starting another"), "{err}");
    assert!(datacenter.ask(&["adm", "-j", "info"]).is_some(), "it runs");
}

/// What ran when the machine was told to go down runs after it came up, with no headnode there; what was stopped stays
/// stopped.
#[test]
fn instances_come_back_without_a_headnode() {
    come_back(|datacenter| drop(datacenter.good(&["down"])));
}

/// The same when the machine lost power.
#[test]
fn instances_come_back_after_a_power_loss() {
    come_back(Datacenter::lose_power);
}

fn come_back(go_down: impl FnOnce(&Datacenter)) {
    let Some(datacenter) = Datacenter::start() else { return };
    for name in ["wanted", "unwanted"] {
        datacenter.good(&["instance", "create", "-w", "--name", name, "minimal", "g1-nano"]);
    }
    datacenter.good(&["instance", "stop", "-w", "unwanted"]);
    datacenter.wait_idle();
    let id =
        |name: &str| datacenter.json(&["adm", "-j", "instance", "get", name])["id"].as_str().expect("an id").to_owned();
    let (wanted, unwanted) = (id("wanted"), id("unwanted"));
    go_down(&datacenter);
    assert_eq!(datacenter.init(&wanted), None, "nothing runs on a machine that is down");

    // The node alone, as on a machine whose headnode is gone.
    let mut node = datacenter.command(&["node"]).stderr(Stdio::null()).spawn().expect("the node runs");
    datacenter.wait("the wanted zone to start by itself", || datacenter.init(&wanted).is_some());
    assert_eq!(datacenter.init(&unwanted), None, "a stopped instance was started");
    base::daemon::terminate(node.id()).expect("our own process");
    let deadline = Instant::now() + PATIENCE;
    while node.try_wait().expect("our own child").is_none() {
        assert!(Instant::now() < deadline, "the node does not end");
        std::thread::sleep(Duration::from_millis(20));
    }

    let init = datacenter.init(&wanted);
    datacenter.good(&["up"]);
    datacenter.wait("both to be known", || datacenter.state("wanted").as_deref() == Some("running"));
    assert_eq!(datacenter.state("unwanted").as_deref(), Some("stopped"));
    assert_eq!(datacenter.init(&wanted), init, "it was started a second time");
    datacenter.wait_idle();
    datacenter.assert_agreed();
    for name in ["wanted", "unwanted"] {
        datacenter.good(&["instance", "delete", "-w", name]);
    }
    datacenter.assert_clean();
}
