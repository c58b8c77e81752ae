//! What happens to machines, cables and headnodes that nobody asked for.

use std::fmt;

use crate::{chance::Chance, datacenter::Datacenter, link::Weather, machine::Node};

/// Verbs of the machine that fail now and then.
const VERBS: [&str; 15] = [
    "zones.prepare",
    "zones.start",
    "zones.stop",
    "zones.set_limits",
    "zones.destroy",
    "datasets.import",
    "datasets.clone_image",
    "datasets.set_quota",
    "datasets.remove_root",
    "links.ensure_bridge",
    "links.attach",
    "links.detach",
    "links.program",
    "filters.apply",
    "filters.firewall",
];

/// How a zone ends by itself: in words, exit code, signal.
const ENDS: [(&str, Option<i32>, Option<i32>); 3] =
    [("halted", None, Some(2)), ("rebooted", None, Some(1)), ("exited with code 1", Some(1), None)];

/// How often what happened.
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Tally {
    pub requests: usize,
    pub refused: usize,
    pub unanswered: usize,
    pub created: usize,
    pub agents_killed: usize,
    pub agents_stopped: usize,
    pub power_losses: usize,
    pub files_lost: usize,
    pub headnode_restarts: usize,
    pub headnode_crashes: usize,
    pub cuts: usize,
    pub verbs_failed: usize,
    pub writes_refused: usize,
    pub zones_ended: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests ({} refused, {} never answered), {} instances, {} agents killed and {} stopped, {} power losses ({} files \
             came back other than they were), {} restarts and {} crashes of the headnode, {} cuts, {} failing verbs, \
             {} refusing disks, {} zones ended by themselves",
            self.requests,
            self.refused,
            self.unanswered,
            self.created,
            self.agents_killed,
            self.agents_stopped,
            self.power_losses,
            self.files_lost,
            self.headnode_restarts,
            self.headnode_crashes,
            self.cuts,
            self.verbs_failed,
            self.writes_refused,
            self.zones_ended
        )
    }
}

/// Something happens to a machine. What, in words.
pub(crate) fn strike(datacenter: &mut Datacenter, chance: &mut Chance, tally: &mut Tally) -> Result<String, String> {
    let count = datacenter.nodes.len() as u64;
    let number = usize::try_from(chance.below(count.max(1))).unwrap_or(0);
    let Some(node) = datacenter.nodes.get_mut(number) else { return Ok("there is no machine".to_owned()) };
    let what = match chance.below(100) {
        0..18 => {
            node.kill_agent();
            tally.agents_killed += 1;
            "the agent is killed".to_owned()
        }
        18..40 => {
            node.start_agent(Some(chance));
            "an agent is there".to_owned()
        }
        40..52 => {
            let stopped = !node.is_stopped();
            if node.set_stopped(stopped) {
                tally.agents_stopped += usize::from(stopped);
            }
            format!("the agent is stopped: {stopped}")
        }
        52..60 => {
            let lost =
                node.lose_power(chance).map_err(|error| format!("the disk of node {number} failed us: {error}"))?;
            tally.power_losses += 1;
            tally.files_lost += lost;
            let back = chance.percent(70);
            if back {
                node.start_agent(Some(chance));
            }
            format!("power is lost ({lost} files came back other than they were); booted: {back}")
        }
        60..70 => end_a_zone(node, chance, tally),
        70..78 => {
            let verb = chance.pick(&VERBS).copied().unwrap_or_default();
            let times = u32::try_from(1 + chance.below(8)).unwrap_or(1);
            node.machine.faults.arm(verb, times, "fate");
            tally.verbs_failed += 1;
            format!("{verb} fails {times} times")
        }
        78..82 => {
            let times = u32::try_from(1 + chance.below(5)).unwrap_or(1);
            node.disk.fail(times);
            tally.writes_refused += 1;
            format!("the disk refuses {times} writes")
        }
        _ => {
            let weather = weather(chance, *node.cable.weather.borrow());
            tally.cuts += usize::from(!weather.up || !weather.down);
            node.cable.weather.send_replace(weather);
            format!("the cable is {weather:?}")
        }
    };
    Ok(format!("node {number}: {what}"))
}

/// Nothing more happens; whatever is down comes up, whatever is cut is mended.
pub(crate) fn rest(datacenter: &mut Datacenter) {
    for node in &mut datacenter.nodes {
        node.machine.faults.clear();
        node.disk.fail(0);
        node.cable.weather.send_replace(Weather::FAIR);
        node.settle();
    }
}

/// Another weather than `now`: a bad one after a fair one, and the other way round.
fn weather(chance: &mut Chance, now: Weather) -> Weather {
    if now != Weather::FAIR && chance.percent(70) {
        return Weather::FAIR;
    }
    let (mut up, mut down) = (true, true);
    match chance.below(5) {
        0 => (up, down) = (false, false),
        1 => up = false,
        2 => down = false,
        _ => {}
    }
    let travel_ms = if chance.percent(30) { 5_000 } else { Weather::FAIR.travel_ms };
    Weather { up, down, travel_ms, lost_percent: chance.below(30), late_percent: chance.below(20) }
}

fn end_a_zone(node: &Node, chance: &mut Chance, tally: &mut Tally) -> String {
    let zones = node.machine.host().zones.list().unwrap_or_default();
    let running: Vec<_> = zones.iter().filter(|zone| zone.running).map(|zone| zone.instance).collect();
    let (Some(id), Some((reason, code, signal))) = (chance.pick(&running).copied(), chance.pick(&ENDS).copied()) else {
        return "nothing runs".to_owned();
    };
    node.machine.zones.end_boot(id, code, signal, reason);
    tally.zones_ended += 1;
    format!("{id} {reason}")
}
