//! How a machine is, as a pure function of its record and of what was heard of it.

use serde::{Deserialize, Serialize};

use super::Server;
use crate::{state::Reachability, time::Timestamp};

/// A machine that said it goes down is expected back within so long, milliseconds: servers with much memory check it for minutes.
pub const REBOOT_MS: u64 = 15 * 60_000;

/// How a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Condition {
    /// It has joined and has never reported.
    SettingUp,
    /// Reports arrive.
    Running,
    /// Reports arrive, it takes nothing new, and nothing is left on it.
    Drained,
    /// It said that it goes down, and has not reported since.
    Rebooting {
        /// When it said so.
        since: Timestamp,
    },
    /// Its agent said that it ends, as for a new version; the machine and its instances go on.
    Restarting {
        /// When it said so.
        since: Timestamp,
    },
    /// No reports arrive.
    Unreachable {
        /// When the last one did.
        since: Option<Timestamp>,
    },
}

/// What was heard of a machine in this run of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sign {
    /// When its last report arrived.
    pub at: Timestamp,
    /// Its agent said that it ends.
    pub leaving: bool,
    /// And the machine with it.
    pub goes_down: bool,
}

/// How a machine is at `now`.
pub fn condition(server: &Server, sign: Option<Sign>, reachability: Reachability, now: Timestamp) -> Condition {
    if sign.is_none() && server.boot_id.is_none() {
        return Condition::SettingUp;
    }
    let since = sign.map(|sign| sign.at).or(server.last_seen_at);
    match sign {
        Some(sign) if sign.leaving && sign.goes_down && now.millis_since(sign.at) <= REBOOT_MS => {
            Condition::Rebooting { since: sign.at }
        }
        Some(sign) if sign.leaving && !sign.goes_down && reachability == Reachability::Reachable => {
            Condition::Restarting { since: sign.at }
        }
        Some(sign) if !sign.leaving && reachability == Reachability::Reachable => {
            match server.drain.is_some() && server.reserved.instances == 0 {
                true => Condition::Drained,
                false => Condition::Running,
            }
        }
        _ => Condition::Unreachable { since },
    }
}
