//! The faults. Numbers of headnodes are positions in the stage; the *leader* is the machine whose member of the store leads.

use std::time::Duration;

use crate::{stage::Stage, trial::Fault};

const NOTHING: fn(&mut Stage) = |_| ();

/// All of them.
pub(crate) fn all() -> Vec<Fault> {
    [ends(), freezes(), links(), disks()].into_iter().flatten().collect()
}

/// What is killed. Those `make test` does come first.
fn ends() -> Vec<Fault> {
    let secs = Duration::from_secs;
    vec![
        Fault {
            name: "headnode-killed",
            about: "kill -9 of the headnode on the leader's machine",
            break_it: |stage| stage.kill(stage.leader(), "headnode"),
            lasts: secs(8),
            mend: NOTHING,
        },
        Fault {
            name: "leader-killed",
            about: "kill -9 of the member of the store that leads",
            break_it: |stage| stage.kill(stage.leader(), "member"),
            lasts: secs(8),
            mend: NOTHING,
        },
        Fault {
            name: "power-lost",
            about: "every process of every machine killed at once, then started again",
            break_it: Stage::lose_power,
            lasts: secs(1),
            mend: Stage::start_all,
        },
        Fault {
            name: "machine-killed",
            about: "every process on the leader's machine killed, for 20 s",
            break_it: |stage| stage.down(stage.leader()),
            lasts: secs(20),
            mend: Stage::start_all,
        },
        Fault {
            name: "majority-lost",
            about: "two of three machines killed, for 20 s",
            break_it: Stage::lose_majority,
            lasts: secs(20),
            mend: Stage::start_all,
        },
        Fault {
            name: "member-data-deleted",
            about: "the data directory of the leader's member is deleted, and the member killed",
            break_it: |stage| stage.delete_member_data(stage.leader()),
            lasts: secs(20),
            mend: NOTHING,
        },
    ]
}

/// What is alive and does nothing.
fn freezes() -> Vec<Fault> {
    let secs = Duration::from_secs;
    vec![
        Fault {
            name: "leader-frozen",
            about: "SIGSTOP for 60 s of the member of the store that leads",
            break_it: |stage| stage.freeze(stage.leader(), &["member"]),
            lasts: secs(60),
            mend: Stage::thaw,
        },
        Fault {
            name: "machine-frozen",
            about: "SIGSTOP for 60 s of headnode and member on the leader's machine",
            break_it: |stage| stage.freeze(stage.leader(), &["headnode", "member"]),
            lasts: secs(60),
            mend: Stage::thaw,
        },
    ]
}

/// Machines that do not hear, or are not heard.
fn links() -> Vec<Fault> {
    let secs = Duration::from_secs;
    vec![
        Fault {
            name: "link-cut",
            about: "the leader's machine cut off both ways for 30 s",
            break_it: |stage| stage.cut(stage.leader(), Cut::BOTH),
            lasts: secs(30),
            mend: Stage::join_links,
        },
        Fault {
            name: "link-cut-inwards",
            about: "the leader's machine hears nobody for 30 s, and is heard",
            break_it: |stage| stage.cut(stage.leader(), Cut::INWARDS),
            lasts: secs(30),
            mend: Stage::join_links,
        },
        Fault {
            name: "link-cut-outwards",
            about: "the leader's machine is heard by nobody for 30 s, and hears",
            break_it: |stage| stage.cut(stage.leader(), Cut::OUTWARDS),
            lasts: secs(30),
            mend: Stage::join_links,
        },
        Fault {
            name: "links-flapping",
            about: "all links between headnodes down and up every 2 s, for 30 s",
            break_it: Stage::flap,
            lasts: secs(1),
            mend: Stage::join_links,
        },
    ]
}

/// Disks that are slow, full, or refuse.
fn disks() -> Vec<Fault> {
    let secs = Duration::from_secs;
    vec![
        Fault {
            name: "disk-slow-1s",
            about: "every fsync of the leader takes 1 s longer, for 30 s",
            break_it: |stage| stage.slow_disk(stage.leader(), Duration::from_secs(1)),
            lasts: secs(30),
            mend: Stage::mend_disks,
        },
        Fault {
            name: "disk-slow-10s",
            about: "every fsync of the leader takes 10 s longer, for 60 s",
            break_it: |stage| stage.slow_disk(stage.leader(), Duration::from_secs(10)),
            lasts: secs(60),
            mend: Stage::mend_disks,
        },
        Fault {
            name: "disk-full",
            about: "no space is left on the leader's disk, for 20 s",
            break_it: |stage| stage.fill_disk(stage.leader()),
            lasts: secs(20),
            mend: Stage::mend_disks,
        },
        Fault {
            name: "disk-read-only",
            about: "the leader's disk reports an error and turns read-only, for 20 s",
            break_it: |stage| stage.break_disk(stage.leader()),
            lasts: secs(20),
            mend: Stage::mend_disks,
        },
    ]
}

/// Which direction of a link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) inwards: bool,
    pub(crate) outwards: bool,
}

impl Cut {
    const BOTH: Self = Self { inwards: true, outwards: true };
    const INWARDS: Self = Self { inwards: true, outwards: false };
    const OUTWARDS: Self = Self { inwards: false, outwards: true };
}
