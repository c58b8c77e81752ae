//! A store in a cluster that somebody else keeps, which loses its majority: there is no file of ours to read, and nothing of ours to start.

use serde_json::Value;

use crate::{datacenter::Datacenter, etcd_store::Cluster};

/// Whom the store waits for, as the headnode says it.
fn waiting(datacenter: &Datacenter) -> Option<Value> {
    let view = datacenter.ask(&["adm", "-j", "ha", "status"])?;
    Some(view["waiting"].clone()).filter(Value::is_object)
}

/// Waits until the headnode says that it waits for two of three members, and looks at what it says to whom.
fn waits_for(datacenter: &Datacenter, cluster: &Cluster, missing: [usize; 2], server: &str) {
    let addresses = missing.map(|number| cluster.address(number));
    datacenter.wait("it to say whom it waits for", || {
        waiting(datacenter).is_some_and(|waiting| {
            let told = waiting["missing"].as_array().map_or(&[][..], Vec::as_slice);
            told.len() == 2 && addresses.iter().all(|address| told.iter().any(|one| one["address"] == address.as_str()))
        })
    });
    let view = datacenter.json(&["adm", "-j", "ha", "status"]);
    let text = view["waiting"]["text"].as_str().expect("a sentence");
    assert!(text.contains("1 of 3 members answers, 2 are needed"), "{text}");
    assert!(addresses.iter().all(|address| text.contains(address.as_str())), "{text}");
    assert_eq!((&view["store"], &view["may_be_lost"]), (&Value::from("elsewhere"), &Value::from(0)), "{view}");
    let advice = view["advice"].to_string();
    assert!(advice.contains("kept by somebody else") && !advice.contains("recover"), "{advice}");

    let doctor = datacenter.run(&["doctor", "-j"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains("\"majority\"") && doctor.contains(&addresses[0]), "{doctor}");
    assert!(doctor.contains("kept by somebody else") && !doctor.contains("adm recover"), "{doctor}");

    assert_eq!(datacenter.state("one").as_deref(), Some("running"), "reading goes on");
    for reading in [&["adm", "instance", "list"][..], &["instance", "list"]] {
        let output = datacenter.run(reading);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains("may be old"), "{reading:?} says that it may be old: {said}");
    }
    for (changing, told) in [
        (&["adm", "server", "set", server, "--comments", "no"][..], "has no majority since"),
        (&["instance", "stop", "one"][..], "nothing can be changed since"),
    ] {
        let output = datacenter.run(changing);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(told), "{changing:?}: {said}");
    }
}

/// Ends the headnode with `kill -9` and waits for the one that the supervisor starts in its place.
fn kill_headnode(datacenter: &Datacenter) {
    let before = datacenter.pid("headnode");
    datacenter.kill("headnode");
    datacenter.wait("another headnode", || datacenter.pid("headnode").is_some_and(|pid| Some(pid) != before));
}

#[test]
fn a_cluster_that_somebody_else_keeps_loses_its_majority() {
    let Some(mut cluster) = Cluster::start(3) else { return };
    let Some(datacenter) = Datacenter::start_after(|datacenter| cluster.keep(datacenter)) else { return };
    datacenter.good(&["instance", "create", "-w", "--name", "one", "minimal", "g1-nano"]);
    let servers = datacenter.json(&["adm", "-j", "server", "list"]);
    let server = servers[0]["id"].as_str().expect("an id").to_owned();
    datacenter.good(&["adm", "server", "set", &server, "--comments", "with a majority"]);
    // A member has heard of a commit when it has heard of the next one.
    datacenter.good(&["instance", "tags", "one", "last=yes"]);

    cluster.kill(1);
    cluster.kill(2);
    waits_for(&datacenter, &cluster, [1, 2], &server);
    kill_headnode(&datacenter);
    waits_for(&datacenter, &cluster, [1, 2], &server);
    let seen = datacenter.json(&["adm", "-j", "server", "get", &server]);
    assert_eq!(seen["comments"], "with a majority", "it is read from the member that is left");

    // Where none is left there is nothing to read: it says so, and tries again and again. etcd that is started without a majority answers nobody either.
    cluster.kill(0);
    kill_headnode(&datacenter);
    let addresses = [0, 1, 2].map(|number| cluster.address(number));
    let log = || std::fs::read_to_string(datacenter.settings().paths.log.join("headnode.log")).unwrap_or_default();
    datacenter.wait("it to say that none answers", || {
        let said = |line: &str| {
            line.contains("failed to open the store in etcd") && addresses.iter().all(|address| line.contains(address))
        };
        log().lines().any(said)
    });
    cluster.start_alone(0);
    let tries = log().matches("failed to open the store in etcd").count();
    datacenter.wait("it to try again", || log().matches("failed to open the store in etcd").count() > tries);
    cluster.start_two_again();
    datacenter.wait("a change to be taken", || {
        datacenter.run(&["adm", "server", "set", &server, "--comments", "with a majority again"]).status.success()
    });
    datacenter.wait("nobody to be waited for", || waiting(&datacenter).is_none());
    let seen = datacenter.json(&["adm", "-j", "server", "get", &server]);
    assert_eq!(seen["comments"], "with a majority again");
    datacenter.wait("a stop to be taken", || datacenter.run(&["instance", "stop", "-w", "one"]).status.success());
    datacenter.good(&["instance", "delete", "-w", "one"]);
    datacenter.wait_idle();
    datacenter.assert_agreed();
    datacenter.assert_clean();
}
