//! `neso instance stats`: what one's instances use, between two looks.

use std::{collections::BTreeMap, time::Duration};

use cloudapi::types::stats::Stats;
use model::{
    id::InstanceId,
    meters::InstanceMeters,
    rates::{self, Between, InstanceRates, Moment},
    time::Timestamp,
};
use serde::Serialize;

use super::Tenant;
use crate::{
    adm::{Output, bytes, or_dash, table},
    answer,
    failure::Outcome,
};

/// Between two looks at least, seconds: answers are as old as that.
const APART_MIN: u64 = 10;

/// Looks until each machine has told something else, where one answer is wanted.
const LOOKS_MAX: u64 = 4;

/// What to look at.
#[derive(Debug, clap::Args)]
pub(crate) struct Look {
    /// Look again and again, until it is interrupted.
    #[arg(long)]
    watch: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = APART_MIN, value_parser = clap::value_parser!(u64).range(APART_MIN..=3_600))]
    every: u64,
    /// Only this instance, by id, short id or name.
    instance: Option<String>,
}

impl Look {
    /// It goes on until it is interrupted.
    pub(super) const fn is_endless(&self) -> bool {
        self.watch
    }
}

/// One line.
#[derive(Debug, Serialize)]
struct Line {
    id: InstanceId,
    name: String,
    state: String,
    /// Between which times.
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    #[serde(flatten)]
    rates: InstanceRates,
    /// Why nothing is known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
}

/// Runs it. The first look has nothing to be compared with, and is not shown.
pub(super) async fn show(tenant: &Tenant, output: Output, look: Look) -> Outcome {
    let machine = match &look.instance {
        Some(name) => Some(tenant.find_id(name).await?),
        None => None,
    };
    let (mut before, mut last) = (Vec::new(), tenant.client.stats(machine).await?);
    for looks in 1_u64.. {
        tokio::time::sleep(Duration::from_secs(look.every)).await;
        let now = tenant.client.stats(machine).await?;
        remember(&mut before, last, &now);
        let lines = lines(&before, &now);
        last = now;
        if !look.watch {
            if looks < LOOKS_MAX && lines.iter().any(|line| line.to.is_some() && line.from.is_none()) {
                continue;
            }
            return output.show(&lines, |lines| rows(lines));
        }
        // Many answers: each a line of JSON, or a table after its time.
        let text = match output.json {
            true => serde_json::to_string(&lines)?,
            false => format!("{}\n{}\n", or_dash(lines.iter().filter_map(|line| line.to).max()), rows(&lines)),
        };
        if !answer::print_more(text)? {
            break;
        }
    }
    Ok(())
}

/// Keeps of each instance the answer before the one there is `now`. A machine tells the same for some seconds, so that two answers may hold one
/// reading.
fn remember<'a>(before: &mut Vec<Stats<'a>>, last: Vec<Stats<'a>>, now: &[Stats<'a>]) {
    let at: BTreeMap<InstanceId, Option<Timestamp>> = now.iter().map(|stats| (stats.id, stats.at)).collect();
    let is_new = |stats: &Stats<'_>| stats.at.is_some() && at.get(&stats.id).is_some_and(|at| *at != stats.at);
    let newer: BTreeMap<InstanceId, Stats<'a>> =
        last.into_iter().filter(is_new).map(|stats| (stats.id, stats)).collect();
    before.retain(|stats| at.contains_key(&stats.id) && !newer.contains_key(&stats.id));
    before.extend(newer.into_values());
}

/// What was used between two answers, the busiest first.
fn lines(before: &[Stats<'_>], now: &[Stats<'_>]) -> Vec<Line> {
    let earlier: BTreeMap<InstanceId, (Moment, &InstanceMeters)> =
        before.iter().filter_map(|stats| Some((stats.id, stats.look()?))).collect();
    let line = |stats: &Stats<'_>| {
        let last = earlier.get(&stats.id).copied();
        Line {
            id: stats.id,
            name: stats.name.to_string(),
            state: stats.state.to_string(),
            from: last.map(|(moment, _)| moment.at),
            to: stats.at,
            rates: stats.look().map(|now| rates::instance(Between { before: last, now })).unwrap_or_default(),
            missing: stats.missing.as_ref().map(ToString::to_string),
        }
    };
    let mut lines: Vec<_> = now.iter().map(line).collect();
    lines.sort_by(|one, other| other.rates.cpus.unwrap_or(-1.0).total_cmp(&one.rates.cpus.unwrap_or(-1.0)));
    lines
}

fn rows(lines: &[Line]) -> comfy_table::Table {
    table(
        &["shortid", "name", "state", "cpus", "held back", "memory", "of it", "disk", "sent", "received", "processes"],
        lines.iter().map(|line| {
            let used = columns(&line.rates);
            let state = line.missing.as_ref().map_or(line.state.clone(), |why| format!("{} ({why})", line.state));
            [vec![line.id.short(), line.name.clone(), state], used].concat()
        }),
    )
}

/// Rates as text: CPUs, part held back, memory, part of it, part of the disk, traffic, processes.
pub(crate) fn columns(rates: &InstanceRates) -> Vec<String> {
    vec![
        or_dash(rates.cpus.map(|cpus| format!("{cpus:.2}"))),
        percent(rates.held_back),
        or_dash(rates.memory_bytes.map(bytes)),
        percent(rates.memory_part),
        percent(rates.disk_part),
        per_second(rates.sent_bytes_s),
        per_second(rates.received_bytes_s),
        or_dash(rates.processes),
    ]
}

/// A part of a whole.
pub(crate) fn percent(part: Option<f64>) -> String {
    or_dash(part.map(|part| format!("{:.0} %", part * 100.0)))
}

/// Bytes in a second.
pub(crate) fn per_second(rate: Option<f64>) -> String {
    or_dash(rate.map(|rate| format!("{}/s", bytes(rate.max(0.0) as u64))))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use model::meters::ZoneMeters;

    use super::*;

    fn stats(id: u128, at: i64, cpu_user_ns: u64) -> Stats<'static> {
        let meters = InstanceMeters {
            zone: Some(ZoneMeters { cpu_user_ns, ..ZoneMeters::default() }),
            ..InstanceMeters::default()
        };
        Stats {
            id: InstanceId::from_random(id),
            name: format!("i{id}").into(),
            state: "running".into(),
            at: Some(Timestamp(at)),
            up_ms: None,
            meters: Some(Cow::Owned(meters)),
            missing: None,
        }
    }

    #[test]
    fn a_reading_that_is_told_twice_hides_no_rate() {
        let (mut before, mut last) = (Vec::new(), vec![stats(1, 0, 0), stats(2, 0, 0)]);
        let mut seen = Vec::new();
        for now in [
            vec![stats(1, 0, 0), stats(2, 2_000, 1_000_000_000)],
            vec![stats(1, 4_000, 2_000_000_000), stats(2, 2_000, 1_000_000_000)],
            vec![stats(2, 4_000, 1_000_000_000)],
        ] {
            remember(&mut before, last, &now);
            seen.push(lines(&before, &now).iter().map(|line| (line.name.clone(), line.rates.cpus)).collect::<Vec<_>>());
            last = now;
        }
        let one = |name: &str, cpus| (name.to_owned(), cpus);
        assert_eq!(seen[0], [one("i2", Some(0.5)), one("i1", None)]);
        assert_eq!(seen[1], [one("i1", Some(0.5)), one("i2", Some(0.5))]);
        assert_eq!(seen[2], [one("i2", Some(0.0))]);
        assert_eq!(before.len(), 1, "what is gone is forgotten");
    }

    #[test]
    fn the_busiest_stands_first_and_what_is_new_last() {
        let before = [stats(1, 0, 0), stats(2, 0, 0)];
        let silent =
            Stats { at: None, meters: None, missing: Some("its machine does not answer".into()), ..stats(4, 0, 0) };
        let now = [stats(3, 2_000, 9), stats(1, 2_000, 1_000_000_000), stats(2, 2_000, 3_000_000_000), silent];
        let lines = lines(&before, &now);
        let seen: Vec<_> = lines.iter().map(|line| (&*line.name, line.rates.cpus)).collect();
        assert_eq!(seen, [("i2", Some(1.5)), ("i1", Some(0.5)), ("i3", None), ("i4", None)]);
        assert!(rows(&lines).to_string().contains("its machine does not answer"));
    }
}
