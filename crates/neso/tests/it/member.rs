//! The store's member as the supervisor's third child: there as long as it is written down, whoever else ends.

use std::path::Path;

use base::{
    clock::{Clock as _, SystemClock},
    daemon::{self, PidFile},
};
use headnode::{
    Settings,
    members::{
        file::{ClusterFile, MemberFile},
        process,
    },
    pki,
};
use model::time::Timestamp;

use crate::datacenter::Datacenter;

/// Writes down that this machine has a member, as a move of the store begins.
fn note(settings: &Settings) {
    let (client, peer) = process::addresses(settings, None);
    let member = MemberFile {
        name: "one".to_owned(),
        initial_cluster: format!("one=https://{peer}"),
        client,
        peer,
        token: "a-test".to_owned(),
        first: true,
        started: false,
    };
    ClusterFile::filling(member).save(settings).expect("it can be written");
}

/// The process that holds the member's pid file, once that is etcd.
fn member(settings: &Settings) -> Option<u32> {
    let pid = PidFile::holder(&settings.paths.run.join("member.pid")).filter(|pid| *pid != 0)?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    (program.file_name() == Path::new("etcd").file_name()).then_some(pid)
}

#[test]
fn a_member_is_there_as_long_as_it_is_written_down() {
    if !etcd::local::is_installed() {
        println!("skipped: a member beside a headnode, because etcd is not installed (Debian's package etcd-server)");
        return;
    }
    let Some(datacenter) = Datacenter::start() else { return };
    let settings = datacenter.settings();
    let another = |than: u32| {
        let mut found = None;
        datacenter.wait("another member", || {
            found = member(&settings).filter(|pid| *pid != than);
            found.is_some()
        });
        found.expect("it was waited for")
    };
    let gone = |what: &str| datacenter.wait(what, || member(&settings).is_none());
    assert_eq!(member(&settings), None, "nothing says that there is one");

    pki::make_store_authority(&settings, Timestamp(SystemClock.now_ms())).expect("an authority");
    note(&settings);
    let first = another(0);
    // The headnode's end is not its end, and its own end not for long.
    datacenter.kill("headnode");
    datacenter.wait("another headnode", || datacenter.ask(&["adm", "-j", "server", "list"]).is_some());
    assert_eq!(member(&settings), Some(first));
    daemon::kill(first).expect("a process of ours");
    let second = another(first);

    // It ends with its supervisor, however that ends.
    datacenter.kill("supervisor");
    gone("the member to end with its supervisor");
    datacenter.good(&["up"]);
    let third = another(second);

    // When it is not to be there any more, it is not.
    std::fs::remove_file(ClusterFile::path(&settings)).expect("it was written");
    gone("the member to end");
    assert!(!daemon_lives(third));
    note(&settings);
    another(third);
    datacenter.good(&["down"]);
    assert_eq!(PidFile::holder(&settings.paths.run.join("member.pid")), None, "down leaves nothing");
    datacenter.good(&["up"]);
    datacenter.assert_clean();
}

fn daemon_lives(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).exists()
}
