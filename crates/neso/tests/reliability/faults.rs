//! The faults. Numbers of headnodes are positions in the stage; the *leader* is the machine whose member of the store leads.

use std::time::Duration;

use crate::{
    stage::Stage,
    trial::{Break, Fault, Part},
};

const NOTHING: fn(&mut Stage) = |_| ();
/// What a machine gives up that is sick, silent or cut off.
const ALL: &[Part] = &[Part::Lead, Part::Work];
const HOUR: i64 = 3_600;

/// All of them. Those `make test` does come first.
pub(crate) fn all() -> Vec<Fault> {
    [ends(), freezes(), links(), disks(), others()].into_iter().flatten().collect()
}

/// A fault that nobody has to be told of.
const fn fault(name: &'static str, about: &'static str, break_it: Break, seconds: u64, mend: fn(&mut Stage)) -> Fault {
    Fault { name, about, break_it, lasts: Duration::from_secs(seconds), mend, told: None, gives_up: &[] }
}

impl Fault {
    /// Other headnodes say so of the machine while it lasts, and it has given these up when it has lasted.
    const fn told(self, told: &'static str, gives_up: &'static [Part]) -> Self {
        Self { told: Some(told), gives_up, ..self }
    }
}

/// What is killed.
fn ends() -> Vec<Fault> {
    vec![
        fault(
            "headnode-killed",
            "kill -9 of the headnode on the leader's machine",
            Break::Leader(|stage, number| stage.kill(number, "headnode")),
            8,
            NOTHING,
        ),
        fault(
            "leader-killed",
            "kill -9 of the member of the store that leads",
            Break::Leader(|stage, number| stage.kill(number, "member")),
            8,
            NOTHING,
        ),
        fault(
            "power-lost",
            "every process of every machine killed at once, then started again",
            Break::Any(Stage::lose_power),
            1,
            Stage::start_all,
        ),
        fault(
            crate::LOSES_CACHES,
            "the same, and everything is lost that was not flushed to the disks of headnodes, members and nodes",
            Break::Any(Stage::lose_power_and_caches),
            1,
            Stage::start_all,
        ),
        fault(
            "machine-killed",
            "every process on the leader's machine killed, for 20 s",
            Break::Leader(Stage::down),
            20,
            Stage::start_all,
        )
        .told("no beat", ALL),
        fault(
            "majority-lost",
            "two of three machines killed, for 20 s",
            Break::Any(Stage::lose_majority),
            20,
            Stage::start_all,
        ),
        fault(
            "member-data-deleted",
            "the data directory of the leader's member is deleted, and the member killed",
            Break::Leader(Stage::delete_member_data),
            20,
            NOTHING,
        ),
    ]
}

/// What is alive and does nothing.
fn freezes() -> Vec<Fault> {
    vec![
        fault(
            "leader-frozen",
            "SIGSTOP for 60 s of the member of the store that leads",
            Break::Leader(|stage, number| stage.freeze(number, &["member"])),
            60,
            Stage::thaw,
        )
        .told("its member of the store is behind", ALL),
        fault(
            "machine-frozen",
            "SIGSTOP for 60 s of headnode and member on the leader's machine",
            Break::Leader(|stage, number| stage.freeze(number, &["headnode", "member"])),
            60,
            Stage::thaw,
        )
        .told("no beat", ALL),
    ]
}

/// Machines that do not hear, or are not heard.
fn links() -> Vec<Fault> {
    vec![
        fault(
            "link-cut",
            "the leader's machine cut off both ways for 30 s",
            Break::Leader(|stage, number| stage.cut(number, Cut::BOTH)),
            30,
            Stage::join_links,
        )
        .told("no beat", ALL),
        fault(
            "link-cut-inwards",
            "the leader's machine hears nobody for 30 s, and is heard",
            Break::Leader(|stage, number| stage.cut(number, Cut::INWARDS)),
            30,
            Stage::join_links,
        )
        .told("no beat", ALL),
        fault(
            "link-cut-outwards",
            "the leader's machine is heard by nobody for 30 s, and hears",
            Break::Leader(|stage, number| stage.cut(number, Cut::OUTWARDS)),
            30,
            Stage::join_links,
        )
        .told("no beat", ALL),
        fault(
            "member-apart",
            "the leader's member hears no other member for 30 s, while headnodes and clients reach it",
            Break::Leader(Stage::part_member),
            30,
            Stage::join_links,
        )
        .told("its member of the store is behind", ALL),
        fault(
            "links-flapping",
            "all links between headnodes down and up every 2 s, for 30 s",
            Break::Any(Stage::flap),
            1,
            Stage::join_links,
        ),
    ]
}

/// Disks that are slow, full, or refuse.
fn disks() -> Vec<Fault> {
    vec![
        fault(
            "disk-slow-1s",
            "every flush of the leader's disk takes 1 s longer, for 30 s",
            Break::Leader(|stage, number| stage.slow_disk(number, Duration::from_secs(1))),
            30,
            Stage::mend_disks,
        )
        .told("its disk is slow", ALL),
        fault(
            "disk-slow-10s",
            "every flush of the leader's disk takes 10 s longer, for 60 s",
            Break::Leader(|stage, number| stage.slow_disk(number, Duration::from_secs(10))),
            60,
            Stage::mend_disks,
        )
        .told("its disk", ALL),
        fault(
            "disk-full",
            "no space is left on the leader's disk, for 20 s",
            Break::Leader(Stage::fill_disk),
            20,
            Stage::mend_disks,
        )
        .told("its disk is nearly full", ALL),
        fault(
            "disk-read-only",
            "the leader's disk reports an error and turns read-only, for 20 s",
            Break::Leader(Stage::break_disk),
            20,
            Stage::mend_disks,
        )
        .told("its disk does not keep what is written", ALL),
    ]
}

/// Clocks, and certificates.
fn others() -> Vec<Fault> {
    vec![
        fault(
            "clock-ahead",
            "the clock of every process on the leader's machine is set an hour ahead, for 30 s",
            Break::Leader(|stage, number| stage.set_clock(number, HOUR)),
            30,
            Stage::mend_clocks,
        )
        .told("ahead of those of all others", ALL),
        fault(
            "clock-behind",
            "the clock of every process on the leader's machine is set an hour back, for 30 s",
            Break::Leader(|stage, number| stage.set_clock(number, -HOUR)),
            30,
            Stage::mend_clocks,
        )
        .told("behind those of all others", ALL),
        fault(
            "certificate-expired",
            "the leader's machine is off until all its certificates have ended, and is switched on again",
            Break::Leader(Stage::expire_certificates),
            10,
            Stage::start_all,
        )
        .told("no beat", ALL),
        fault(
            "next-release",
            "the next release is installed on one machine after the other, then the one before again",
            Break::Any(Stage::roll_forward),
            1,
            Stage::roll_back,
        ),
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
