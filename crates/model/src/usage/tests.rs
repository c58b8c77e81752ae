//! Sums against a machine that is imagined minute by minute, and looked at only sometimes.

use proptest::prelude::*;

use super::*;

const BEGIN: Timestamp = Timestamp(1_795_532_760_000);

fn sample(at: Timestamp, started: Option<Timestamp>, cpu_ns: u64, traffic: (u64, u64)) -> Sample {
    let id = InstanceId::from_random(7);
    let attributes = [
        (attribute::OWNER, AccountId::from_random(9).to_string()),
        (attribute::ALIAS, "web".to_owned()),
        (attribute::PACKAGE, "small".to_owned()),
    ];
    Sample {
        v: VERSION.into(),
        timestamp: at,
        server_uuid: ServerId::from_random(1),
        datacenter_name: "here".into(),
        uuid: id,
        os_uuid: id,
        status: if started.is_some() { "running" } else { "installed" }.into(),
        started,
        age_ms: None,
        config: SampleConfig {
            name: id.to_string(),
            brand: "lx".into(),
            attributes: attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            cpu_shares: "100".into(),
            cpu_cap: None,
            max_lwps: "500".into(),
            max_physical_memory: (128u64 << 20).to_string(),
            max_swap: (256u64 << 20).to_string(),
            networks: Vec::new(),
        },
        network_usage: [("net0".to_owned(), NetworkUsage { sent_bytes: traffic.0, received_bytes: traffic.1 })]
            .into_iter()
            .filter(|_| started.is_some())
            .collect(),
        disk_usage: [(
            "d".to_owned(),
            DiskUsage { name: "d".into(), used: 10 << 20, quota: 1 << 30, kind: "filesystem".into() },
        )]
        .into(),
        cpu_usage: started.map(|_| CpuUsage { user_ns: cpu_ns, system_ns: 0 }),
        memory_usage: None,
    }
}

/// What happens in a minute of the imagined machine.
#[derive(Debug, Clone, Copy)]
enum Minute {
    Runs { cpu_ns: u32, sent: u32, is_looked_at: bool },
    IsRestarted,
    Stops,
    Starts,
}

fn minutes() -> impl Strategy<Value = Vec<Minute>> {
    let runs = (any::<u32>(), any::<u32>(), any::<bool>()).prop_map(|(cpu_ns, sent, is_looked_at)| Minute::Runs {
        cpu_ns,
        sent,
        is_looked_at,
    });
    let one =
        prop_oneof![8 => runs, 1 => Just(Minute::IsRestarted), 1 => Just(Minute::Stops), 1 => Just(Minute::Starts)];
    proptest::collection::vec(one, 1..200)
}

proptest! {
    /// Whoever looks before each end and whenever else it pleases him counts each nanosecond and each byte once, also when the meter is
    /// told something twice, or loses its memory and reads what it wrote.
    #[test]
    fn nothing_is_lost_or_counted_twice(minutes in minutes(), forgets in 1usize..50, set in -400i64..400) {
        let (mut at, mut started, mut cpu_ns, mut sent) = (BEGIN, Some(BEGIN), 0u64, 0u64);
        let mut meter = Meter::default();
        let (mut used, mut ran, mut sums) = ((0u64, 0u64), 0u64, Sums::default());
        // No two runs begin in the same millisecond, also when the clock is set back.
        let run = |at: Timestamp, number: usize| at.plus_millis(i64::try_from(number).expect("it is small"));
        let look = |meter: &mut Meter, at, started, cpu_ns, sent| {
            let sample = sample(at, started, cpu_ns, (sent, 0));
            meter.add(&sample);
            meter.add(&sample);
        };
        look(&mut meter, BEGIN, started, 0, 0);
        for (number, minute) in minutes.iter().enumerate() {
            at = at.plus_millis(MINUTE_MS);
            // Somebody sets the clock, once.
            if number == 20 {
                at = at.plus_millis(set * MINUTE_MS);
            }
            match minute {
                Minute::Runs { cpu_ns: more, sent: bytes, is_looked_at } if started.is_some() => {
                    (cpu_ns, sent) = (cpu_ns + u64::from(*more), sent + u64::from(*bytes));
                    used = (used.0 + u64::from(*more), used.1 + u64::from(*bytes));
                    ran += 1;
                    if *is_looked_at {
                        look(&mut meter, at, started, cpu_ns, sent);
                    }
                }
                Minute::Runs { is_looked_at: true, .. } => look(&mut meter, at, started, 0, 0),
                Minute::Runs { .. } => {}
                Minute::IsRestarted | Minute::Stops => {
                    if started.is_some() {
                        ran += 1;
                        look(&mut meter, at, started, cpu_ns, sent);
                    }
                    cpu_ns = 0;
                    // Its NICs stay when it is restarted.
                    match (minute, started) {
                        (Minute::IsRestarted, Some(_)) => started = Some(run(at, number)),
                        (Minute::IsRestarted, None) => {}
                        _ => (started, sent) = (None, 0),
                    }
                }
                Minute::Starts => {
                    if started.is_none() {
                        started = Some(run(at, number));
                        look(&mut meter, at, started, 0, 0);
                    } else {
                        ran += 1;
                    }
                }
            }
            if number % forgets == 0 {
                let (rows, seen) = meter.take();
                sums = rows.iter().fold(sums, |sums, row| sums.plus(row.sums));
                let written = serde_json::to_string(seen).unwrap();
                meter = Meter::after(serde_json::from_str(&written).unwrap());
            }
        }
        if started.is_some() {
            look(&mut meter, at.plus_millis(1), started, cpu_ns, sent);
        }
        sums = meter.take().0.iter().fold(sums, |sums, row| sums.plus(row.sums));
        prop_assert_eq!((sums.cpu_ns, sums.sent_bytes), used);
        // A start and a stop each may round to a minute more or less.
        let edges = minutes.iter().filter(|minute| !matches!(minute, Minute::Runs { .. })).count() as u64 + 2;
        let jumped = if minutes.len() > 20 { set.unsigned_abs() } else { 0 };
        prop_assert!(sums.running_minutes.abs_diff(ran) <= edges + jumped, "{} of {ran} minutes", sums.running_minutes);
    }

    #[test]
    fn hours_and_months_are_read_as_they_are_written(hours in -1_000_000i64..10_000_000) {
        let hour = Hour(hours);
        prop_assert_eq!(hour.to_string().parse(), Ok(hour));
        prop_assert_eq!(hour.month().to_string().parse(), Ok(hour.month()));
        prop_assert!(hour.to_string().starts_with(&hour.month().to_string()));
    }
}

#[test]
fn one_that_nobody_saw_begin_is_counted_from_now_on() {
    let mut meter = Meter::default();
    let at = BEGIN.plus_millis(10 * HOUR_MS);
    meter.add(&sample(at, Some(BEGIN), 5_000, (700, 0)));
    meter.add(&sample(at.plus_millis(MINUTE_MS), Some(BEGIN), 6_000, (800, 0)));
    let rows = meter.take().0;
    assert_eq!((rows[0].sums.cpu_ns, rows[0].sums.sent_bytes, rows[0].sums.running_minutes), (1_000, 100, 2));
    assert_eq!((rows[0].sums.memory_mib_minutes, rows[0].sums.disk_mib_minutes), (256, 20));
}

/// A restart is told a moment after its counters are seen.
#[test]
fn counters_that_fall_in_one_run_are_of_the_next_and_count_once() {
    let mut meter = Meter::default();
    let at = |minute: i64| BEGIN.plus_millis(minute * MINUTE_MS);
    meter.add(&sample(at(0), Some(BEGIN), 1_000, (0, 0)));
    meter.add(&sample(at(1), Some(BEGIN), 30, (0, 0)));
    meter.add(&sample(at(2), Some(at(1)), 70, (0, 0)));
    assert_eq!(meter.take().0[0].sums.cpu_ns, 1_070);
}

/// Whoever wrote nothing for hours, for want of room, knows that an instance that is new and began meanwhile is new.
#[test]
fn one_that_began_while_nobody_looked_is_counted_from_its_beginning() {
    let mut meter = Meter::default();
    meter.looked(BEGIN);
    let at = |minute: i64| BEGIN.plus_millis(minute * MINUTE_MS);
    meter.add(&sample(at(180), Some(at(60)), 9_000, (700, 0)));
    let sums = meter.take().0[0].sums;
    assert_eq!((sums.cpu_ns, sums.sent_bytes, sums.minutes, sums.running_minutes), (9_000, 700, 120, 120));
}

#[test]
fn a_clock_that_is_set_loses_and_invents_no_counters() {
    let mut meter = Meter::default();
    let at = |minute: i64| BEGIN.plus_millis(minute * MINUTE_MS);
    let years = 20 * 365 * 24 * 60;
    for (minute, cpu_ns) in [(0, 0), (1, 10), (years, 20), (years + 1, 30), (2, 40), (3, 50)] {
        meter.add(&sample(at(minute), Some(BEGIN), cpu_ns, (cpu_ns, 0)));
        meter.looked(at(minute));
    }
    let sums = meter.take().0[0].sums;
    assert_eq!((sums.cpu_ns, sums.sent_bytes), (50, 50));
    assert_eq!(sums.running_minutes, 4, "one for each look but the first and the one at which it was set back");
}

fn row(instance: InstanceId, package: &str) -> Row {
    let sums = Sums { minutes: 1, ..Sums::default() };
    Row { instance, owner: AccountId::from_random(9), alias: "a".into(), package: package.into(), sums }
}

/// Somebody makes and deletes instances by the thousand: what he owes is kept, in a record that stays small.
#[test]
fn a_month_of_very_many_instances_keeps_its_sums_and_those_there_now() {
    let mut hour: Hour = "2026-11-01T00".parse().unwrap();
    let mut month = MonthUsage::empty(AccountId::from_random(9), ServerId::from_random(1), hour);
    let always = InstanceId::from_random(1);
    for batch in 0..20u128 {
        let new = (0..100).map(|number| InstanceId::from_random(batch << 32 | number << 8 | 7));
        let rows: Vec<_> = new.map(|id| row(id, "small")).chain([row(always, "large")]).collect();
        month = month.with(hour, &rows).expect("it is a new hour");
        hour = hour.later(1);
        assert!(month.rows.len() <= MONTH_ROWS_MAX + 2, "{}", month.rows.len());
    }
    let minutes = |package: &str| -> u64 {
        month.rows.iter().filter(|row| row.package == package).map(|row| row.sums.minutes).sum()
    };
    assert_eq!((minutes("small"), minutes("large")), (2_000, 20));
    assert_eq!(month.rows.iter().find(|row| row.instance == always).map(|row| row.sums.minutes), Some(20));
    assert!(month.rows.iter().any(|row| row.instance == SEVERAL));
}

#[test]
fn who_is_resized_has_a_row_for_each_package() {
    let mut meter = Meter::default();
    meter.add(&sample(BEGIN, Some(BEGIN), 0, (0, 0)));
    let mut later = sample(BEGIN.plus_millis(MINUTE_MS), Some(BEGIN), 500, (0, 0));
    later.config.attributes.insert(attribute::PACKAGE.into(), "large".into());
    meter.add(&later);
    let rows = meter.take().0;
    let seen: Vec<_> = rows.iter().map(|row| (&*row.package, row.sums.cpu_ns)).collect();
    assert_eq!(seen, [("large", 500), ("small", 0)]);
}

#[test]
fn a_month_before_january_is_december() {
    let month: Month = "2026-01".parse().unwrap();
    assert_eq!(month.earlier(1).to_string(), "2025-12");
    assert_eq!(month.earlier(14).to_string(), "2024-11");
    for wrong in ["2026-13", "2026-1", "26-01", "2026-00", "2026-01-02", ""] {
        assert!(wrong.parse::<Month>().is_err(), "{wrong}");
    }
    for wrong in ["2026-11-28T24", "2026-11-28", "2026-11-28T5", "x"] {
        assert!(wrong.parse::<Hour>().is_err(), "{wrong}");
    }
}

#[test]
fn a_line_has_the_shape_that_triton_gives_it() {
    let line = Line::Usage(Box::new(sample(BEGIN, Some(BEGIN), 5, (1, 2))));
    let value = serde_json::to_value(&line).unwrap();
    assert_eq!((&value["type"], &value["v"], &value["status"]), (&"usage".into(), &"HF4".into(), &"running".into()));
    assert_eq!(value["config"]["attributes"]["owner-uuid"], AccountId::from_random(9).to_string());
    assert_eq!(value["network_usage"]["net0"]["received_bytes"], 2);
    assert_eq!(value["disk_usage"]["d"]["type"], "filesystem");
    assert_eq!(serde_json::from_value::<Line>(value).unwrap(), line);
}

/// Somebody's kernel has no file to spare for a moment: the run goes on, and so do its NICs.
#[test]
fn a_run_that_is_unseen_for_a_moment_counts_once() {
    let mut meter = Meter::default();
    let at = |minute: i64| BEGIN.plus_millis(minute * MINUTE_MS);
    let seen = Some(BEGIN);
    let minutes = [
        (seen, 0, Some((0, 0))),
        (seen, 1_000, Some((500, 50))),
        (None, 0, None),
        (seen, 1_200, Some((600, 60))),
        // Its NIC alone.
        (seen, 1_250, None),
        (seen, 1_300, None),
        (seen, 1_400, Some((700, 70))),
        (None, 0, Some((700, 70))),
        (None, 0, None),
        (seen, 1_500, Some((800, 80))),
    ];
    for (minute, (started, cpu_ns, traffic)) in (0..).zip(minutes) {
        let mut sample = sample(at(minute), started, cpu_ns, traffic.unwrap_or_default());
        if traffic.is_none() {
            sample.network_usage.clear();
        }
        meter.add(&sample);
    }
    let sums = meter.take().0[0].sums;
    assert_eq!((sums.cpu_ns, sums.sent_bytes, sums.received_bytes), (1_500, 800, 80));
}

/// Its NICs were made anew while it did not run, and have counted more already than those before.
#[test]
fn a_new_run_with_new_nics_counts_them_from_their_beginning() {
    let mut meter = Meter::default();
    let at = |minute: i64| BEGIN.plus_millis(minute * MINUTE_MS);
    meter.add(&sample(at(0), Some(BEGIN), 0, (0, 0)));
    meter.add(&sample(at(1), Some(BEGIN), 1_000, (500, 0)));
    meter.add(&Sample { network_usage: BTreeMap::new(), ..sample(at(2), None, 0, (0, 0)) });
    meter.add(&sample(at(3), Some(at(2)), 70, (900, 0)));
    let sums = meter.take().0[0].sums;
    assert_eq!((sums.cpu_ns, sums.sent_bytes), (1_070, 1_400));
}

/// The machine's clock is an hour behind or ahead, and so is what it says of starts; samples have the headnodes' time.
#[test]
fn a_run_is_as_old_as_the_clock_says_that_it_was_started_by() {
    for off in [-60, 60] {
        let mut meter = Meter::default();
        let at = |minute: i64| BEGIN.plus_millis(minute * MINUTE_MS);
        meter.looked(at(179));
        let started = Some(at(180 + off));
        for (minute, cpu_ns) in [(181, 7_000), (182, 8_000)] {
            let age_ms = Some((minute - 180) * MINUTE_MS);
            meter.add(&Sample { age_ms, ..sample(at(minute), started, cpu_ns, (cpu_ns / 10, 0)) });
        }
        let sums = meter.take().0[0].sums;
        assert_eq!((sums.cpu_ns, sums.sent_bytes, sums.running_minutes), (8_000, 800, 2), "{off} minutes off");
    }
}

/// The last look was by a clock that was wrong by days: what the next one goes on from is still known.
#[test]
fn a_clock_that_is_set_forgets_nobody_who_is_there() {
    let mut meter = Meter::default();
    let at = |minute: i64| BEGIN.plus_millis(minute * MINUTE_MS);
    for (minute, cpu_ns) in [(0, 0), (1, 10), (-4_000, 20)] {
        meter.add(&sample(at(minute), Some(BEGIN), cpu_ns, (0, 0)));
        meter.looked(at(minute));
    }
    let mut sums = meter.take().0[0].sums;
    meter.add(&sample(at(60), Some(BEGIN), 50, (0, 0)));
    sums = sums.plus(meter.take().0[0].sums);
    assert_eq!(sums.cpu_ns, 50);
    // One that is no more goes after a day of looks without it.
    meter.looked(at(60 + GAP_MINUTES_MAX + 1));
    assert_eq!(serde_json::to_value(meter.take().1).unwrap()["seen"], serde_json::json!({}));
}

#[test]
fn of_too_many_rows_only_those_beyond_lose_their_names() {
    let hour: Hour = "2026-11-01T00".parse().unwrap();
    let month = MonthUsage::empty(AccountId::from_random(9), ServerId::from_random(1), hour);
    let ids = |numbers: std::ops::Range<u128>| numbers.map(|number| InstanceId::from_random(number << 64 | 7));
    let most = MONTH_ROWS_MAX as u128;
    let old: Vec<_> = ids(2..most + 1).map(|id| row(id, "small")).collect();
    let live: Vec<_> = ids(0..2).map(|id| row(id, "small")).collect();
    let month = month.with(hour, &old).expect("it is a new hour").with(hour.later(1), &live).expect("and so is this");
    assert!(live.iter().all(|live| month.rows.contains(live)));
    let several: Vec<_> = month.rows.iter().filter(|row| row.instance == SEVERAL).map(|row| row.sums.minutes).collect();
    assert_eq!((month.rows.len(), several), (MONTH_ROWS_MAX + 1, vec![1]));
    assert!(month.rows.is_sorted_by_key(|row| row.instance), "as they are paged");
}

#[test]
fn an_hour_is_as_large_as_hours_may_be() {
    let hour: Hour = "2026-11-01T00".parse().unwrap();
    let with = |rows| HourUsage { hour, rows };
    let one = |alias: usize, package: usize| Row {
        alias: "a".repeat(alias),
        package: "\u{fc}".repeat(package),
        ..row(InstanceId::from_random(1), "")
    };
    assert_eq!(with(vec![one(ALIAS_MAX, NAME_MAX); HOUR_ROWS_TOLD]).check(), Ok(()));
    let why = with(vec![one(0, 0); HOUR_ROWS_TOLD + 1]).check().unwrap_err();
    assert!(why.contains("2026-11-01T00 has 8001 rows"), "{why}");
    for wrong in [one(ALIAS_MAX + 1, 1), one(1, NAME_MAX + 1)] {
        let why = with(vec![one(1, 1), wrong]).check().unwrap_err();
        assert!(why.contains("`alias`") && why.len() < 400, "{why}");
    }
}
