//! How many headnodes there should be, and whether a machine may become one or cease to be one.
//!
//! Headnodes that keep the store together commit what more than half of them have. So two survive the loss of none, as one does, and have
//! twice as many that may be lost; three survive the loss of one, five of two. An even number is a step on the way, never a place to stay:
//! it is taken only from somebody who says so.

use serde::{Deserialize, Serialize};

use crate::{id::ServerId, time::Timestamp};

/// The oldest etcd that can take part.
pub const ETCD_OLDEST: (u32, u32) = (3, 4);
/// Clocks of headnodes differ by so much at most, milliseconds; the time of an answer on its way is in it.
pub const CLOCK_TOLERANCE_MS: u64 = 10_000;
/// Where members listen for headnodes, unless that is taken.
pub const CLIENT_PORT: u16 = 8446;
/// Where members listen for each other, unless that is taken.
pub const PEER_PORT: u16 = 8447;

/// What a machine found out about itself when it was asked whether it could run a headnode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fitness {
    /// Version of its program.
    pub release: String,
    /// What its clock said.
    pub now: Timestamp,
    /// Version of the etcd that is installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<String>,
    /// A port that is free for headnodes to reach a member at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_port: Option<u16>,
    /// One for other members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_port: Option<u16>,
    /// Ports of headnode's listeners in its settings that something else has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<u16>,
}

/// A headnode there is, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Its machine.
    pub id: ServerId,
    /// What that calls itself.
    pub hostname: String,
    /// Whether it beats.
    pub fresh: bool,
}

/// How many of `count` are more than half.
pub const fn majority(count: usize) -> usize {
    count / 2 + 1
}

/// How many of `count` may be lost while the rest can still commit.
pub const fn spare(count: usize) -> usize {
    count.saturating_sub(majority(count))
}

/// What so many headnodes mean, in a sentence.
pub fn meaning(count: usize) -> String {
    let lost = match spare(count) {
        0 => "none may be lost".to_owned(),
        1 => "one may be lost".to_owned(),
        many => format!("{many} may be lost"),
    };
    match count {
        1 => "one headnode: while it is away nothing can be changed".to_owned(),
        count if count.is_multiple_of(2) => {
            format!("{count} headnodes: {lost}, as with {}; {} are better", count - 1, count + 1)
        }
        count => format!("{count} headnodes: {lost}"),
    }
}

/// Refuses to stay at an even number of headnodes, unless that is wanted.
pub fn check_count(before: usize, after: usize, even_is_wanted: bool) -> Result<(), String> {
    if after == 0 {
        return Err("it is the last headnode: the datacenter would have none".to_owned());
    }
    if !after.is_multiple_of(2) || even_is_wanted {
        return Ok(());
    }
    let way = match after > before {
        true => format!("name {} machines at once", after + 1 - before),
        false => "replace the machine instead (`neso adm ha replace OLD NEW`), or remove another one too".to_owned(),
    };
    Err(format!(
        "that would leave {after} headnodes, which survive the loss of {}, as {} do, and there is one more that may be lost: {way}; \
         with `--even` it is done all the same",
        match spare(after) {
            0 => "none".to_owned(),
            some => some.to_string(),
        },
        after - 1
    ))
}

/// Refuses a machine whose name a headnode has, or that is one.
pub fn check_seat(seats: &[Seat], id: ServerId, hostname: &str) -> Result<(), String> {
    if seats.iter().any(|seat| seat.id == id) {
        return Err(format!("{hostname} is a headnode already"));
    }
    match seats.iter().find(|seat| seat.hostname == hostname) {
        Some(seat) => Err(format!(
            "the headnode on server {} is called {hostname} too: give one of the machines another name (`hostnamectl \
             set-hostname NAME`, then restart its node)",
            seat.id
        )),
        None => Ok(()),
    }
}

/// What keeps a machine from running a headnode of program `release`; nothing when it may. `with_member`: it keeps the store too.
pub fn unfit(fitness: &Fitness, release: &str, now: Timestamp, with_member: bool) -> Vec<String> {
    let mut why = Vec::new();
    if fitness.release != release {
        why.push(format!(
            "it runs version {} and this headnode {release}: install the same program there and restart its node",
            fitness.release
        ));
    }
    let off = fitness.now.0.abs_diff(now.0);
    if off > CLOCK_TOLERANCE_MS {
        let side = if fitness.now < now { "behind" } else { "ahead of" };
        why.push(format!("its clock is {} s {side} this headnode's: set it (`timedatectl set-ntp true`)", off / 1_000));
    }
    for port in &fitness.taken {
        why.push(format!(
            "something listens on port {port} there, which its settings give to the headnode: end that, or change `[listen]` \
             in its settings"
        ));
    }
    if with_member {
        match fitness.etcd.as_deref().map(|text| (text, etcd_version(text))) {
            None => why.push("etcd is not installed there: `apt install etcd-server`".to_owned()),
            Some((text, None)) => why.push(format!("its etcd calls itself {text:?}, which is no version")),
            Some((text, Some(version))) if version < ETCD_OLDEST => {
                let (major, minor) = ETCD_OLDEST;
                why.push(format!("its etcd {text} is too old: {major}.{minor} or later is needed"));
            }
            Some(_) => {}
        }
        if fitness.client_port.is_none() || fitness.peer_port.is_none() {
            why.push(format!("no port from {CLIENT_PORT} on is free there"));
        }
    }
    why
}

/// Major and minor of a version of etcd.
pub fn etcd_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_numbers_are_worth_their_machines() {
        assert_eq!((1..=7).map(spare).collect::<Vec<_>>(), [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!(meaning(3), "3 headnodes: one may be lost");
        assert_eq!(meaning(4), "4 headnodes: one may be lost, as with 3; 5 are better");
        for (before, after) in [(1, 3), (3, 5), (3, 1), (3, 3), (2, 1)] {
            assert_eq!(check_count(before, after, false), Ok(()), "{before} {after}");
        }
        let up = check_count(1, 2, false).unwrap_err();
        assert!(up.contains("survive the loss of none") && up.contains("name 2 machines"), "{up}");
        let down = check_count(5, 4, false).unwrap_err();
        assert!(down.contains("survive the loss of 1, as 3 do") && down.contains("ha replace"), "{down}");
        assert_eq!(check_count(1, 2, true), Ok(()));
        assert!(check_count(1, 0, true).unwrap_err().contains("the last"));
    }

    #[test]
    fn two_headnodes_do_not_share_a_name() {
        let id = ServerId::from_random;
        let seats = [Seat { id: id(1), hostname: "one".into(), fresh: true }];
        assert!(check_seat(&seats, id(1), "one").unwrap_err().contains("already"));
        assert!(check_seat(&seats, id(2), "one").unwrap_err().contains("hostnamectl"));
        assert_eq!(check_seat(&seats, id(2), "two"), Ok(()));
    }

    #[test]
    fn everything_that_is_wrong_with_a_machine_is_said_at_once() {
        let now = Timestamp(1_800_000_000_000);
        let good = Fitness {
            release: "1.2.3".into(),
            now,
            etcd: Some("3.4.23".into()),
            client_port: Some(CLIENT_PORT),
            peer_port: Some(PEER_PORT),
            taken: Vec::new(),
        };
        assert!(unfit(&good, "1.2.3", now, true).is_empty());
        let bad = Fitness {
            release: "1.2.2".into(),
            now: now.plus_millis(3_600_000),
            etcd: Some("3.3.25".into()),
            client_port: None,
            peer_port: Some(1),
            taken: vec![8443],
        };
        let why = unfit(&bad, "1.2.3", now, true);
        assert_eq!(why.len(), 5, "{why:#?}");
        assert_eq!(unfit(&bad, "1.2.3", now, false).len(), 3, "where somebody else keeps the store");
        for (etcd, word) in [(None, "apt install"), (Some("master"), "no version")] {
            let machine = Fitness { etcd: etcd.map(str::to_owned), ..good.clone() };
            assert!(unfit(&machine, "1.2.3", now, true)[0].contains(word), "{etcd:?}");
        }
    }
}
