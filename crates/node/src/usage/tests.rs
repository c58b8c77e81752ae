//! Files of a machine that is killed at every moment, and what they add up to.

use std::{io::Read as _, sync::atomic::Ordering};

use flate2::read::GzDecoder;
use model::{id::AccountId, usage::Sums as Used};
use proptest::prelude::*;

use super::*;

const BEGIN: Timestamp = Timestamp(1_795_532_400_000);

fn sample(minute: i64) -> Sample {
    let id = InstanceId::from_random(3);
    Sample {
        v: VERSION.into(),
        timestamp: BEGIN.plus_millis(minute * MINUTE_MS),
        server_uuid: ServerId::from_random(1),
        datacenter_name: "here".into(),
        uuid: id,
        os_uuid: id,
        status: "running".into(),
        started: Some(BEGIN),
        age_ms: None,
        config: SampleConfig {
            name: id.to_string(),
            brand: "lx".into(),
            attributes: [(attribute::OWNER.to_owned(), AccountId::from_random(2).to_string())].into(),
            cpu_shares: "1".into(),
            cpu_cap: None,
            max_lwps: "1".into(),
            max_physical_memory: "1048576".into(),
            max_swap: "1048576".into(),
            networks: Vec::new(),
        },
        network_usage: BTreeMap::new(),
        disk_usage: BTreeMap::new(),
        // A thousand nanoseconds a minute.
        cpu_usage: Some(CpuUsage { user_ns: minute.unsigned_abs() * 1_000, system_ns: 0 }),
        memory_usage: None,
    }
}

fn lines(minute: i64) -> Vec<Line> {
    at(minute, minute)
}

/// A minute's lines; the clock says `says`.
fn at(minute: i64, says: i64) -> Vec<Line> {
    let sample = Sample { timestamp: BEGIN.plus_millis(says * MINUTE_MS), ..sample(minute) };
    let summary = Summary {
        v: VERSION.into(),
        timestamp: sample.timestamp,
        server_uuid: sample.server_uuid,
        datacenter_name: "here".into(),
        vm_count: 1,
        runtime: 0,
    };
    vec![Line::Usage(Box::new(sample)), Line::Summary(summary)]
}

/// A disk that nobody waits for.
struct Careless;

impl crate::files::Watch for Careless {
    fn replacing(&self, _: &Path, _: &[u8], _: Durability) -> io::Result<()> {
        Ok(())
    }

    fn removing(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn appending(&self, _: &Path, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn emptying(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

fn open(directory: &Path, minute: i64) -> Book {
    let disk = Disk::watched(Arc::new(Careless));
    Book::open(directory, disk, BEGIN.plus_millis(minute * MINUTE_MS)).expect("the files open")
}

/// All hours that have ended, asked for one after the other.
fn all(book: &Book) -> Vec<HourUsage> {
    let mut found: Vec<HourUsage> = Vec::new();
    loop {
        let page = book.ended(found.last().map(|usage| usage.hour)).expect("the sums are read");
        found.extend(page.hours);
        if !page.more {
            return found;
        }
    }
}

fn used(hours: &[HourUsage]) -> Used {
    hours.iter().flat_map(|usage| &usage.rows).fold(Used::default(), |sums, row| sums.plus(row.sums))
}

/// How the agent ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// In the middle of a line.
    Torn,
    /// After the sums of the last hour that ended, before its lines were packed.
    Summed,
    /// After they were packed, before they were removed.
    Packed,
    /// Between two minutes.
    Clean,
}

fn ends() -> impl Strategy<Value = Vec<(i64, End)>> {
    let end = prop_oneof![Just(End::Torn), Just(End::Summed), Just(End::Packed), Just(End::Clean)];
    proptest::collection::vec((1i64..100, end), 0..8)
}

/// Puts the last hour that ended back into the state in which an agent leaves it that dies there.
fn die(directory: &Path, end: End) {
    let last = |suffix| hours(directory, suffix).expect("files").into_iter().max();
    match end {
        End::Clean => {}
        End::Torn => {
            if let Some((_, path)) = last(LINES) {
                let mut file = OpenOptions::new().append(true).open(path).expect("the lines");
                file.write_all(br#"{"type":"usage","v":"HF4","timest"#).expect("half a line");
            }
        }
        End::Summed | End::Packed => {
            let Some((hour, path)) = last(PACKED) else { return };
            let mut lines = Vec::new();
            GzDecoder::new(File::open(&path).expect("packed lines")).read_to_end(&mut lines).expect("they are whole");
            fs::write(directory.join(format!("{hour}{LINES}")), lines).expect("the lines are back");
            if matches!(end, End::Summed) {
                fs::remove_file(path).expect("the packed lines are gone");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whoever dies when, and whatever minutes nobody looked: every nanosecond is in exactly one hour, and every minute.
    #[test]
    fn hours_add_up_however_often_the_agent_dies(ends in ends(), skipped in proptest::collection::btree_set(1i64..400, 0..60)) {
        let directory = tempfile::tempdir().expect("a directory");
        let mut book = open(directory.path(), 0);
        let (mut minute, mut deaths) = (0, ends.into_iter());
        let mut next_death = deaths.next();
        let mut until_death = next_death.map_or(i64::MAX, |(minutes, _)| minutes);
        // The last look is at the beginning of an hour that is open in the end.
        while minute < 420 {
            if minute == 0 || !skipped.contains(&minute) {
                book.write(&lines(minute), Time::Alone).expect("a minute is written");
            }
            until_death -= 1;
            if until_death <= 0 {
                drop(book);
                die(directory.path(), next_death.map_or(End::Clean, |(_, end)| end));
                book = open(directory.path(), minute);
                next_death = deaths.next();
                until_death = next_death.map_or(i64::MAX, |(minutes, _)| minutes);
            }
            minute += 1;
        }
        book.write(&lines(420), Time::Alone).expect("the last hour ends");
        let hours = all(&book);
        let last = (0..420).rev().find(|minute| *minute == 0 || !skipped.contains(minute)).expect("one was written");
        let sums = used(&hours);
        prop_assert_eq!(sums.cpu_ns, last.unsigned_abs() * 1_000);
        prop_assert_eq!(sums.running_minutes, last.unsigned_abs());
        prop_assert!(hours.is_sorted_by(|one, next| one.hour < next.hour));
        let open: Vec<_> = super::hours(directory.path(), LINES).expect("files");
        prop_assert_eq!(open.len(), 1, "what has ended is packed");
    }
}

#[test]
fn a_clock_that_is_set_back_opens_no_hour_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut book = open(directory.path(), 0);
    for (minute, says) in [(0, 0), (30, 30), (60, 60), (61, 61), (62, 59), (63, 58), (64, 59)] {
        book.write(&at(minute, says), Time::Alone).expect("a minute is written");
    }
    // Also one that a new agent finds there.
    drop(book);
    let mut book = open(directory.path(), 59);
    book.write(&at(65, 60), Time::Alone).expect("a minute is written");
    book.write(&at(66, 120), Time::Alone).expect("the hour ends");
    let hours = all(&book);
    assert_eq!(hours.len(), 2);
    assert_eq!(used(&hours).cpu_ns, 65_000);
}

/// An hour that has ended may be told already: nothing comes into it any more.
#[test]
fn what_has_ended_is_not_opened_by_a_new_agent_whose_clock_is_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut book = open(directory.path(), 0);
    book.write(&lines(0), Time::Alone).expect("a minute is written");
    book.write(&lines(60), Time::Alone).expect("the hour ends");
    drop(book);
    let told = all(&open(directory.path(), 60));
    // Killed before there was a line of the new hour.
    fs::remove_file(directory.path().join("2026-11-24T16.log")).expect("its only line");
    let mut book = open(directory.path(), 59);
    book.write(&at(61, 59), Time::Alone).expect("a minute is written");
    book.write(&at(62, 120), Time::Alone).expect("the next hour ends");
    let hours = all(&book);
    assert_eq!((hours.len(), &hours[..1], used(&hours).cpu_ns), (2, &told[..], 61_000));
}

/// A machine whose clock has no battery starts in another century, and is told the time after a while.
#[test]
fn another_century_is_not_believed_and_not_lived_with() {
    const YEARS: i64 = 30 * 365 * 24 * 60;
    let directory = tempfile::tempdir().expect("a directory");
    let mut book = open(directory.path(), 0);
    for minute in [0, 60] {
        book.write(&lines(minute), Time::Told).expect("a minute is written");
    }
    // Neither ahead nor behind.
    for years in [YEARS, -YEARS] {
        drop(book);
        book = open(directory.path(), years);
        book.write(&at(61, years), Time::Alone).expect("a minute is written");
        book.write(&at(62, years + 60), Time::Alone).expect("a minute is written");
    }
    assert_eq!(all(&book).len(), 1, "the hour stays open");
    book.write(&at(121, 121), Time::Told).expect("a minute is written");
    assert_eq!((all(&book).len(), used(&all(&book)).cpu_ns), (2, 62_000));

    // A new machine knows no better.
    let directory = tempfile::tempdir().expect("a directory");
    let mut book = open(directory.path(), YEARS);
    for (minute, says) in [(0, YEARS), (60, YEARS + 60), (61, YEARS + 61)] {
        book.write(&at(minute, says), Time::Alone).expect("a minute is written");
    }
    assert_eq!(all(&book).len(), 1);
    for minute in [62, 63, 121] {
        book.write(&lines(minute), Time::Told).expect("a minute is written");
    }
    let hours = all(&book);
    assert_eq!(hours.iter().map(|usage| usage.hour).collect::<Vec<_>>(), [Hour::of(BEGIN).later(1)]);
    // Counted from the first look in the hour that was open: nothing runs on a machine that was never told anything.
    assert_eq!(used(&hours).cpu_ns, 3_000);
}

/// A disk that has no room for a while: the next line that finds some makes up for those that did not.
#[test]
fn a_full_disk_loses_no_counters() {
    let directory = tempfile::tempdir().expect("a directory");
    let full = Arc::new(Full::default());
    let disk = Disk::watched(full.clone());
    let mut book = Book::open(directory.path(), disk, BEGIN).expect("the files open");
    book.write(&lines(0), Time::Alone).expect("a minute is written");
    for minute in 1..200 {
        full.0.store((40..130).contains(&minute), Ordering::Relaxed);
        assert_eq!(book.write(&lines(minute), Time::Alone).is_err(), (40..130).contains(&minute), "{minute}");
    }
    book.write(&lines(240), Time::Alone).expect("the hour ends");
    let hours = all(&book);
    assert_eq!((hours.len(), used(&hours).cpu_ns, used(&hours).running_minutes), (3, 199_000, 199));
}

/// The disk is full when an hour has its sums and not yet its compressed lines: it goes on, so its sums are not told yet.
#[test]
fn sums_of_an_hour_that_is_not_ended_are_not_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let full = Arc::new(Full::default());
    let mut book = Book::open(directory.path(), Disk::watched(full.clone()), BEGIN).expect("the files open");
    book.write(&lines(0), Time::Alone).expect("a minute is written");
    full.1.store(true, Ordering::Relaxed);
    book.write(&lines(60), Time::Alone).expect_err("there is no room");
    assert_eq!(super::hours(directory.path(), SUMS).expect("files").len(), 1);
    assert_eq!(all(&book), []);
    // Nor by an agent that finds it so; the clock was set back, and the hour gets another line.
    let mut book = open(directory.path(), 59);
    assert_eq!(all(&book), []);
    book.write(&at(60, 59), Time::Alone).expect("a minute is written");
    book.write(&at(61, 60), Time::Alone).expect("the hour ends");
    assert_eq!(used(&all(&book)).cpu_ns, 60_000);
}

/// A disk without room at times: for anything, or for compressed lines.
#[derive(Default)]
struct Full(std::sync::atomic::AtomicBool, std::sync::atomic::AtomicBool);

impl Full {
    fn room(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl crate::files::Watch for Full {
    fn replacing(&self, path: &Path, _: &[u8], _: Durability) -> io::Result<()> {
        if self.1.load(Ordering::Relaxed) && path.extension().is_some_and(|extension| extension == "gz") {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room()
    }

    fn removing(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn appending(&self, _: &Path, _: &[u8]) -> io::Result<()> {
        self.room()
    }

    fn emptying(&self, _: &Path) -> io::Result<()> {
        self.room()
    }
}

#[test]
fn only_root_reads_what_tenants_use() {
    let directory = tempfile::tempdir().expect("a directory");
    let below = directory.path().join("usage");
    let mut book = open(&below, 0);
    book.write(&lines(0), Time::Alone).expect("a minute is written");
    assert_eq!(fs::metadata(&below).expect("it is there").permissions().mode() & 0o777, 0o700);
}

#[test]
fn old_hours_go_and_whoever_asks_is_given_those_after() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut book = open(directory.path(), 0);
    book.kept = 40;
    for hour in 0..45 {
        book.write(&lines(hour * 60), Time::Alone).expect("a minute is written");
    }
    let kept = all(&book);
    assert_eq!(kept.len(), 40);
    let third = kept[kept.len() - 3].hour;
    assert_eq!(book.ended(Some(third)).expect("the sums are read").hours, kept[kept.len() - 2..]);
    assert_eq!(super::hours(directory.path(), PACKED).expect("files").len(), kept.len());
}

/// Minutes of three days.
const BACK: i64 = 3 * 24 * 60;

/// A headnode, or a clock that was set before the next report, says that it is days ago: for a minute, or until the hour is over.
#[test]
fn a_wrong_word_of_a_headnode_takes_no_hour_away() {
    for last_wrong in [62, 119] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut book = open(directory.path(), 0);
        for minute in [0, 60, 61] {
            book.write(&lines(minute), Time::Told).expect("a minute is written");
        }
        let told = all(&book);
        for minute in 62..=last_wrong {
            book.write(&at(minute, minute - BACK), Time::Told).expect("a minute is written");
            assert_eq!(all(&book), told, "nothing ends and nothing goes");
        }
        for minute in [120, 180] {
            book.write(&lines(minute), Time::Told).expect("a minute is written");
        }
        // What was asked for goes on behind what was told.
        let next = book.ended(told.last().map(|usage| usage.hour)).expect("the sums are read").hours;
        let hours: Vec<_> = next.iter().map(|usage| usage.hour).collect();
        assert_eq!(hours, [1, 2].map(|hour| Hour::of(BEGIN).later(hour)));
        assert_eq!((used(&told).cpu_ns, used(&next).cpu_ns), (0, 120_000), "wrong until {last_wrong}");
    }
}

/// Hours that were ended without a headnode are as good as told once one said that their time has come.
#[test]
fn hours_that_a_headnode_saw_come_are_not_taken_away_either() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut book = open(directory.path(), 0);
    for (minute, time) in [(0, Time::Alone), (60, Time::Alone), (61, Time::Told)] {
        book.write(&lines(minute), time).expect("a minute is written");
    }
    let ended = all(&book);
    book.write(&at(62, 62 - BACK), Time::Told).expect("a minute is written");
    assert_eq!((ended.len(), all(&book)), (1, ended));
}

/// A headnode's clock is days ahead for a minute: the hour that was opened so is the present one again.
#[test]
fn an_hour_that_a_headnode_opened_too_early_is_not_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut book = open(directory.path(), 0);
    for (minute, says) in [(0, 0), (60, 60), (61, 61 + BACK), (62, 62), (180, 180)] {
        book.write(&at(minute, says), Time::Told).expect("a minute is written");
    }
    let hours: Vec<_> = all(&book).iter().map(|usage| usage.hour).collect();
    assert_eq!(hours, [0, 1, 2].map(|hour| Hour::of(BEGIN).later(hour)));
    assert_eq!(used(&all(&book)).cpu_ns, 62_000);
}

/// Somebody removes the directory, or puts something in its way, while the agent runs.
#[test]
fn files_that_cannot_be_written_are_opened_anew_and_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let below = directory.path().join("usage");
    let mut files = Files::default();
    let open = |files: &mut Files| files.open(&below, Disk::watched(Arc::new(Careless)), BEGIN);
    fs::write(&below, "").expect("a file in the way");
    let error = open(&mut files).expect_err("there is no directory").to_string();
    assert!(error.contains(&below.display().to_string()), "{error}");
    let told = files.ended(None).expect_err("there are no files").to_string();
    assert_eq!(told, format!("usage is not written: {error}"));
    fs::remove_file(&below).expect("it goes");
    open(&mut files).expect("the files open");
    files.write(&lines(0), Time::Told).expect("a minute is written");
    fs::remove_dir_all(&below).expect("it goes");
    let error = files.write(&lines(5), Time::Told).expect_err("it has no name any more").to_string();
    assert!(error.contains("failed to open") && error.contains(&below.display().to_string()), "{error}");
    for minute in [6, 7, 60] {
        open(&mut files).expect("the files open");
        files.write(&lines(minute), Time::Told).expect("a minute is written");
    }
    let page = files.ended(None).expect("the sums are read");
    // Nothing is known of what was before.
    assert_eq!((page.hours.len(), used(&page.hours).cpu_ns), (1, 1_000));
}

/// Hours that have ended are told while the disk has no room for more.
#[test]
fn a_full_disk_keeps_nobody_from_reading() {
    let directory = tempfile::tempdir().expect("a directory");
    let full = Arc::new(Full::default());
    let mut files = Files::default();
    for minute in [0, 60, 61, 62] {
        full.0.store(minute > 60, Ordering::Relaxed);
        files.open(directory.path(), Disk::watched(full.clone()), BEGIN).expect("the files open");
        assert_eq!(files.write(&lines(minute), Time::Told).is_err(), minute > 60);
        assert_eq!(files.ended(None).expect("the sums are read").hours.len(), usize::from(minute >= 60));
    }
}

/// Half a file, as a broken disk leaves it: the next hour goes on from the one before.
#[test]
fn sums_that_cannot_be_read_stop_no_other_hour() {
    for is_read_first in [true, false] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut book = open(directory.path(), 0);
        for minute in [0, 60, 119, 120] {
            book.write(&lines(minute), Time::Told).expect("a minute is written");
        }
        let damaged = book.path(Hour::of(BEGIN).later(1), SUMS);
        fs::write(&damaged, b"{\"rows\":[").expect("half a file");
        if is_read_first {
            assert_eq!(all(&book).len(), 1);
        }
        // What has ended is not written again, also when there is no line of the next hour and a clock was set back.
        fs::remove_file(book.path(Hour::of(BEGIN).later(2), LINES)).expect("its only line");
        drop(book);
        let mut book = open(directory.path(), 119);
        for (minute, says) in [(121, 119), (180, 180)] {
            book.write(&at(minute, says), Time::Told).expect("a minute is written");
        }
        let hours = all(&book);
        assert_eq!(
            hours.iter().map(|usage| usage.hour).collect::<Vec<_>>(),
            [0, 2].map(|hour| Hour::of(BEGIN).later(hour))
        );
        assert_eq!(used(&hours).cpu_ns, 121_000, "counters make up for it");
        assert!(!damaged.exists() && book.path(Hour::of(BEGIN).later(1), DAMAGED).exists());
    }
}
