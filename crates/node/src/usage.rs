//! What instances use, written down every minute where they run, in Triton's files, and added up by the hour for whoever bills it.
//!
//! ```text
//!   <directory>/2026-11-28T19.log       lines of this hour: one an instance and minute, and a summary behind each minute
//!               2026-11-28T18.sums      what that hour's lines add up to, and what the next hour goes on from
//!               2026-11-28T18.log.gz    its lines
//! ```
//! No headnode is needed to write any of it. An hour is ended by its sums, then its compressed lines, then the removal of the others, each
//! on the disk before the next; whoever is killed in between does the rest at the next start, with the same outcome, because sums
//! follow from lines alone. So nothing is counted twice, whatever dies when. Sums of an hour are told when the next one is written,
//! and never change afterwards: hours only grow.
//!
//! **Clocks.** Hours are the headnodes' as far as they are known ([`Shared::now`]). A clock that is set back by less than [`DOUBTED`] writes on
//! in the hour that is open. One that leaps ahead by more is not believed before a headnode was heard in this run of the agent: a machine
//! without a battery in its clock begins in another century. When one turns out to have been that wrong, the open hour is written on
//! as the present one, and what came behind that is not told ([`Book::turn_back`]); the counters make up for it. Only sums of hours that no
//! headnode told the time of go so: where a headnode's word stands against another's, the open hour stays open until time has come so
//! far. A headnode's word lapses when the machine's clock is set, until it is heard again ([`crate::shared::ClockTold`]).
//!
//! **Trouble.** After an error the files are opened anew with the next minute, so a directory that was removed is made again. Sums
//! that cannot be read back are put aside, and the hour behind goes on from those before.
//!
//! **Limits.** The newest [`KEPT`] hours are kept, and [`BYTES_MAX`] of their lines; the oldest go first. By number and not by age, so that no
//! clock removes what was not billed yet. An hour that is open takes [`OPEN_BYTES_MAX`]. What finds no room is made up for by the next
//! line that does, since counters grow.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use model::{
    id::{InstanceId, ServerId},
    instance::Wanted,
    meters::InstanceMeters,
    target::{Target, ZoneTarget},
    time::Timestamp,
    usage::{
        CpuUsage, DiskUsage, Held, Hour, HourUsage, Line, Meter, NetworkUsage, Row, Sample, SampleConfig, SampleNic,
        Summary, VERSION, attribute,
    },
};
use nodeapi::inquiry::{USAGE_BYTES, UsagePage};
use serde::{Deserialize, Serialize};

use crate::{
    files::{Disk, Durability},
    meters::{self, Reading},
    shared::Shared,
};

/// Hours whose files are kept: two months, so that a bill can be looked into.
const KEPT: usize = 62 * 24;
/// Compressed lines of all hours together, bytes: some weeks of a machine with 300 instances.
const BYTES_MAX: u64 = 1 << 30;
/// Lines of the open hour, bytes: ten times those of 300 instances.
const OPEN_BYTES_MAX: u64 = 256 << 20;
/// A clock that leaps so far, hours, either way, is not believed without a headnode's word.
const DOUBTED: i64 = 24;
/// Between two looks.
const MINUTE_MS: i64 = 60_000;
/// What was read so long ago, milliseconds, was read before a clock was set: a reading takes seconds.
const ASTRAY_MS: u64 = 600_000;

/// What an hour adds up to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sums {
    rows: Vec<Row>,
    held: Held,
    /// Whether it was ended by the headnodes' time. Those that do not say so are not removed either.
    #[serde(default = "is_told")]
    told: bool,
}

const fn is_told() -> bool {
    true
}

/// Whose time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Time {
    /// The headnodes'.
    Told,
    /// The machine's own: none was heard in this run.
    Alone,
}

/// The files. Held while one minute is written or an hour is read, on a thread that may wait.
#[derive(Default)]
pub(crate) struct Usage(Arc<Mutex<Files>>);

/// The files as far as they can be opened.
#[derive(Default)]
struct Files {
    book: Option<Book>,
    /// Why they could not be opened, or written in the last minute.
    failed: Option<String>,
}

/// Writes every minute until shutdown, if it is to be written.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let Some(directory) = shared.config.usage_dir.clone() else { return };
    let mut failing = None;
    let mut written = open(&shared, &directory).await;
    loop {
        let failed = written.err();
        if let Some(error) = failed.as_ref().filter(|error| failing.as_ref() != Some(*error)) {
            tracing::error!(%error, "failed to write down what instances use; the next minute makes up for this one");
        }
        failing = failed;
        let wait = MINUTE_MS - shared.now().0.rem_euclid(MINUTE_MS);
        let pause = tokio::time::sleep(Duration::from_millis(wait.unsigned_abs()));
        if shared.shutdown.unless(pause).await.is_none() {
            return;
        }
        written = open(&shared, &directory).await;
        if written.is_ok() {
            written = minute(&shared).await;
        }
    }
}

/// Opens the files, unless they are open: what was left open by the agent before is ended without waiting for a minute to pass.
async fn open(shared: &Shared, directory: &Path) -> Result<(), String> {
    let (directory, disk, now) = (directory.to_owned(), shared.config.disk.clone(), shared.now());
    with(shared, move |files| files.open(&directory, disk, now)).await
}

/// Looks, and writes what is seen.
async fn minute(shared: &Arc<Shared>) -> Result<(), String> {
    let begun = shared.now_ms();
    let reading = meters::read(shared).await?;
    let ended = shared.now_ms();
    let runtime = ended.saturating_sub(begun).unsigned_abs();
    let lines = lines(&shared.target(), shared.config.server, &reading, runtime);
    let is_astray = shared.of_datacenter(Timestamp(ended)).0.abs_diff(reading.meters.at.0) > ASTRAY_MS;
    let time = if shared.clock_told.holds(ended) && !is_astray { Time::Told } else { Time::Alone };
    with(shared, move |files| files.write(&lines, time)).await
}

/// Hours that have ended and follow `after`, oldest first, as many as one answer takes.
pub(crate) async fn ended(shared: &Shared, after: Option<Hour>) -> Result<UsagePage, String> {
    if shared.config.usage_dir.is_none() {
        return Ok(UsagePage::default());
    }
    with(shared, move |files| files.ended(after)).await
}

/// Does something with the files where it may wait.
async fn with<T: Send + 'static>(
    shared: &Shared,
    something: impl FnOnce(&mut Files) -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let files = shared.usage.0.clone();
    let done = shared.verbs.run("usage", move |_| something(&mut files.lock().unwrap_or_else(PoisonError::into_inner)));
    done.await.map_err(|error| error.to_string())
}

impl Files {
    /// Opens them, unless they are open and the last minute went well.
    fn open(&mut self, directory: &Path, disk: Disk, now: Timestamp) -> io::Result<()> {
        if self.book.is_some() && self.failed.is_none() {
            return Ok(());
        }
        let told_through = self.book.take().and_then(|book| book.told_through);
        let opened = Book::open(directory, disk, now);
        self.failed = opened.as_ref().err().map(ToString::to_string);
        self.book = Some(Book { told_through, ..opened? });
        Ok(())
    }

    /// Writes a minute.
    fn write(&mut self, lines: &[Line], time: Time) -> io::Result<()> {
        let Some(book) = &mut self.book else { return Ok(()) };
        let written = book.write(lines, time);
        self.failed = written.as_ref().err().map(ToString::to_string);
        written
    }

    /// See [`Book::ended`].
    fn ended(&self, after: Option<Hour>) -> io::Result<UsagePage> {
        let why = self.failed.as_deref().unwrap_or("the agent has only begun");
        let book = self.book.as_ref().ok_or_else(|| io::Error::other(format!("usage is not written: {why}")))?;
        book.ended(after)
    }
}

// === what is seen ===

/// A minute's lines.
fn lines(target: &Target, server: ServerId, reading: &Reading, runtime: u64) -> Vec<Line> {
    let meters = &reading.meters;
    let there = target.zones.iter().filter(|(_, zone)| zone.wanted != Wanted::Absent);
    let samples = there.filter_map(|(id, zone)| {
        let used = meters.instances.get(id)?;
        let started = used.zone.and_then(|zone| zone.started_at);
        let sample = Sample {
            v: VERSION.to_owned(),
            timestamp: meters.at,
            server_uuid: server,
            datacenter_name: target.datacenter.clone(),
            uuid: *id,
            os_uuid: *id,
            status: if used.zone.is_some() { "running" } else { "installed" }.to_owned(),
            started,
            age_ms: started.map(|started| reading.here_ms.saturating_sub(started.0)),
            config: config(*id, zone),
            network_usage: traffic(used),
            disk_usage: disk(*id, zone, used),
            cpu_usage: used.zone.map(|zone| CpuUsage { user_ns: zone.cpu_user_ns, system_ns: zone.cpu_system_ns }),
            memory_usage: used.zone.map(|zone| zone.memory_bytes),
        };
        Some(Line::Usage(Box::new(sample)))
    });
    let mut lines: Vec<_> = samples.collect();
    lines.push(Line::Summary(Summary {
        v: VERSION.to_owned(),
        timestamp: meters.at,
        server_uuid: server,
        datacenter_name: target.datacenter.clone(),
        vm_count: lines.len(),
        runtime,
    }));
    lines
}

fn config(id: InstanceId, zone: &ZoneTarget) -> SampleConfig {
    let known = [
        (attribute::OWNER, Some(zone.owner.to_string())),
        (attribute::ALIAS, Some(zone.alias.clone())),
        (attribute::PACKAGE, Some(zone.package_name.clone())),
        ("package-version", zone.package_version.clone()),
        (attribute::BILLING, zone.package.map(|package| package.to_string())),
        ("dataset-uuid", Some(zone.image.to_string())),
        ("create-timestamp", Some(zone.created_at.to_string())),
    ];
    let limits = &zone.limits;
    let bytes = |mib: model::unit::Mib| (mib.0 << 20).to_string();
    let nics = zone.nics.iter().map(|nic| SampleNic {
        mac_addr: nic.mac,
        physical: nic.interface.clone(),
        primary: nic.primary.then(|| "true".to_owned()),
        ip: nic.address.map(|address| address.addr().to_string()),
        netmask: nic.address.map(|address| address.netmask().to_string()),
    });
    SampleConfig {
        name: id.to_string(),
        brand: zone.brand.as_str().to_owned(),
        attributes: known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect(),
        cpu_shares: limits.cpu_shares.0.to_string(),
        cpu_cap: limits.cpu_cap.map(|cap| cap.0.to_string()),
        max_lwps: limits.max_processes.to_string(),
        max_physical_memory: bytes(limits.memory),
        max_swap: bytes(limits.swap),
        networks: nics.collect(),
    }
}

fn traffic(used: &InstanceMeters) -> BTreeMap<String, NetworkUsage> {
    let of = |link: &model::meters::LinkMeters| NetworkUsage {
        sent_bytes: link.sent_bytes,
        received_bytes: link.received_bytes,
    };
    used.nics.iter().map(|(name, link)| (name.clone(), of(link))).collect()
}

fn disk(id: InstanceId, zone: &ZoneTarget, used: &InstanceMeters) -> BTreeMap<String, DiskUsage> {
    let one = used.disk_bytes.map(|bytes| {
        let name = id.to_string();
        let quota = zone.limits.disk.0 << 20;
        (name.clone(), DiskUsage { name, used: bytes, quota, kind: "filesystem".to_owned() })
    });
    one.into_iter().collect()
}

// === the files ===

/// The open hour, and what has ended.
struct Book {
    directory: PathBuf,
    disk: Disk,
    /// The hour that is written, and its file once there is a line of this run in it.
    hour: Hour,
    file: Option<File>,
    /// The latest hour that a headnode's time was in, in this run of the agent.
    told_through: Option<Hour>,
    /// Headnodes contradict each other, and that was logged.
    is_contradicted: bool,
    /// [`KEPT`].
    kept: usize,
}

impl Book {
    /// The files in `directory`: hours that were left open are ended but for the last, which goes on.
    fn open(directory: &Path, disk: Disk, now: Timestamp) -> io::Result<Self> {
        // Names, addresses and habits of tenants are nobody else's business.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(about("create", directory))?;
        let own = fs::Permissions::from_mode(0o700);
        fs::set_permissions(directory, own).map_err(about("set the permissions of", directory))?;
        let mut open: Vec<Hour> = hours(directory, LINES)?.into_iter().map(|(hour, _)| hour).collect();
        open.sort_unstable();
        // What has ended is not written again, whatever the clock says.
        let after = last_ended(directory)?.map_or(Hour::of(now), |ended| ended.later(1).max(Hour::of(now)));
        let first = open.first().copied().unwrap_or(after);
        let mut book = Self {
            directory: directory.to_owned(),
            disk,
            hour: first,
            file: None,
            told_through: None,
            is_contradicted: false,
            kept: KEPT,
        };
        for next in open.into_iter().skip(1) {
            // Whose time it was nobody knows any more: they stay.
            book.end(next, Time::Told)?;
        }
        Ok(book)
    }

    /// Writes a minute.
    fn write(&mut self, lines: &[Line], time: Time) -> io::Result<()> {
        let Some(Line::Summary(summary)) = lines.last() else { return Ok(()) };
        let hour = Hour::of(summary.timestamp);
        let is_far_behind = hour.later(DOUBTED) < self.hour && time == Time::Told;
        if hour > self.hour && (time == Time::Told || hour <= self.hour.later(DOUBTED)) {
            self.end(hour, time)?;
        } else if is_far_behind {
            self.turn_back(hour)?;
        }
        if time == Time::Told {
            self.told_through = self.told_through.max(Some(hour));
            self.is_contradicted &= is_far_behind;
        }
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        let path = self.path(self.hour, LINES);
        // One that somebody removed takes lines nowhere.
        let mut file = match self.file.take().filter(|file| is_at(file, &path)) {
            Some(file) => file,
            None => self.reopen(&path).map_err(about("open", &path))?,
        };
        if file.metadata().map_err(about("look at", &path))?.len() > OPEN_BYTES_MAX {
            return Err(io::Error::other(format!("`{}` is larger than {OPEN_BYTES_MAX} bytes", path.display())));
        }
        self.disk.append(&mut file, &path, &text).map_err(about("write", &path))?;
        // Only a file whose last line went well is written again.
        self.file = Some(file);
        Ok(())
    }

    /// The file of the open hour, for more lines.
    fn reopen(&self, path: &Path) -> io::Result<File> {
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        if file.metadata()?.len() > 0 {
            // Behind a torn line: that one stays alone.
            file.write_all(b"\n")?;
        }
        File::open(&self.directory)?.sync_all()?;
        Ok(file)
    }

    /// Ends the present hour by that time; `next` is the one that is written from now on.
    fn end(&mut self, next: Hour, time: Time) -> io::Result<()> {
        self.file = None;
        let lines = self.path(self.hour, LINES);
        if lines.exists() {
            let sums = serde_json::to_vec(&self.added_up(time)?)?;
            let path = self.path(self.hour, SUMS);
            self.disk.replace(&path, &sums, Durability::Power).map_err(about("write", &path))?;
            base::crash::point("node.usage.summed");
            let path = self.path(self.hour, PACKED);
            let packed = packed(&lines).map_err(about("pack", &lines))?;
            self.disk.replace(&path, &packed, Durability::Power).map_err(about("write", &path))?;
            base::crash::point("node.usage.packed");
            self.disk.remove(&lines).map_err(about("remove", &lines))?;
        }
        self.hour = next;
        self.sweep()
    }

    /// Goes on in `hour`, as the open one: the clock was years ahead, and now a headnode was heard. Sums of hours that are to come go, so that
    /// the present one is what was used since those before them; killed in between, it does the rest the next time. Where a headnode told
    /// the time of one of those, nobody knows which of both tellings is wrong, and what may be counted already is not removed: the
    /// open hour stays.
    fn turn_back(&mut self, hour: Hour) -> io::Result<()> {
        let to_come = |suffix| {
            let found = hours(&self.directory, suffix)?.into_iter().filter(|(ended, _)| *ended > hour);
            Ok::<Vec<_>, io::Error>(found.collect())
        };
        for (ended, path) in to_come(SUMS)? {
            if self.told_through >= Some(ended) || sums_in(&path)?.is_some_and(|sums| sums.told) {
                if !self.is_contradicted {
                    tracing::error!(open = %self.hour, told = %hour, sums = %path.display(),
                        "a headnode tells a time long before hours that a headnode told; the open hour stays open until that time has come. \
                         Look at the headnodes' clocks");
                }
                self.is_contradicted = true;
                return Ok(());
            }
        }
        tracing::warn!(wrong = %self.hour, right = %hour, "the clock was far ahead; what was used since is counted in the present hour");
        self.file = None;
        for (_, path) in to_come(SUMS)?.into_iter().chain(to_come(DAMAGED)?) {
            self.disk.remove(&path).map_err(about("remove", &path))?;
        }
        let right = last_ended(&self.directory)?.map_or(hour, |ended| ended.later(1).max(hour));
        let open = self.path(self.hour, LINES);
        if open.exists() {
            fs::rename(&open, self.path(right, LINES)).map_err(about("rename", &open))?;
            let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
            synced.map_err(about("sync", &self.directory))?;
        }
        self.hour = right;
        Ok(())
    }

    /// What the lines of the present hour add up to. One that was torn is passed over.
    fn added_up(&self, time: Time) -> io::Result<Sums> {
        let mut meter = Meter::after(held_before(&self.directory, self.hour)?);
        let path = self.path(self.hour, LINES);
        let mut reader = BufReader::new(File::open(&path).map_err(about("open", &path))?);
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line).map_err(about("read", &path))? == 0 {
                break;
            }
            match serde_json::from_slice(&line) {
                Ok(Line::Usage(sample)) => meter.add(&sample),
                Ok(Line::Summary(summary)) => meter.looked(summary.timestamp),
                Err(_) => {}
            }
        }
        let (rows, held) = meter.take();
        Ok(Sums { rows, held: held.clone(), told: time == Time::Told })
    }

    /// Hours after `after`, oldest first.
    fn ended(&self, after: Option<Hour>) -> io::Result<UsagePage> {
        let mut ended = hours(&self.directory, SUMS)?;
        // Sums of the present hour are there while it is being ended, and not final.
        ended.retain(|(hour, _)| after.is_none_or(|after| *hour > after) && *hour < self.hour);
        ended.sort_unstable_by_key(|(hour, _)| *hour);
        let (mut page, mut bytes) = (UsagePage::default(), 0);
        for (hour, path) in ended {
            let size = fs::metadata(&path).map_err(about("look at", &path))?.len();
            if bytes > 0 && bytes + size > USAGE_BYTES as u64 {
                page.more = true;
                break;
            }
            bytes += size;
            if let Some(sums) = sums_in(&path)? {
                page.hours.push(HourUsage { hour, rows: sums.rows });
            }
        }
        Ok(page)
    }

    /// Removes what is too old or too much.
    fn sweep(&self) -> io::Result<()> {
        // Sums are small, and what bills are made of: lines do not push them out.
        for (suffix, bytes_max) in [(PACKED, BYTES_MAX), (SUMS, u64::MAX), (DAMAGED, u64::MAX)] {
            let mut found = hours(&self.directory, suffix)?;
            found.sort_unstable_by_key(|(hour, _)| std::cmp::Reverse(*hour));
            let mut bytes: u64 = 0;
            for (number, (_, path)) in found.into_iter().enumerate() {
                bytes = bytes.saturating_add(fs::metadata(&path).map_err(about("look at", &path))?.len());
                if number >= self.kept || bytes > bytes_max {
                    self.disk.remove(&path).map_err(about("remove", &path))?;
                }
            }
        }
        Ok(())
    }

    fn path(&self, hour: Hour, suffix: &str) -> PathBuf {
        self.directory.join(format!("{hour}{suffix}"))
    }
}

/// Ends of names.
const LINES: &str = ".log";
const PACKED: &str = ".log.gz";
const SUMS: &str = ".sums";
const DAMAGED: &str = ".sums.damaged";

/// Files whose names are an hour and `suffix`.
fn hours(directory: &Path, suffix: &str) -> io::Result<Vec<(Hour, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(about("read", directory))? {
        let path = entry.map_err(about("read", directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(hour) = name.strip_suffix(suffix).and_then(|hour| hour.parse().ok()) {
            found.push((hour, path));
        }
    }
    Ok(found)
}

/// The last hour that has sums, readable or not.
fn last_ended(directory: &Path) -> io::Result<Option<Hour>> {
    let all = hours(directory, SUMS)?.into_iter().chain(hours(directory, DAMAGED)?);
    Ok(all.map(|(hour, _)| hour).max())
}

/// What `hour` goes on from.
fn held_before(directory: &Path, hour: Hour) -> io::Result<Held> {
    let mut earlier = hours(directory, SUMS)?;
    earlier.retain(|(ended, _)| *ended < hour);
    earlier.sort_unstable_by_key(|(ended, _)| std::cmp::Reverse(*ended));
    for (_, path) in earlier {
        if let Some(sums) = sums_in(&path)? {
            return Ok(sums.held);
        }
    }
    Ok(Held::default())
}

/// Sums as they were written. Those that are not are put aside for good, so that what one hour was begun from no other tells.
fn sums_in(path: &Path) -> io::Result<Option<Sums>> {
    let text = fs::read(path).map_err(about("read", path))?;
    let error = match serde_json::from_slice(&text) {
        Ok(sums) => return Ok(Some(sums)),
        Err(error) => error,
    };
    let mut aside = OsString::from(path);
    aside.push(DAMAGED.trim_start_matches(SUMS));
    tracing::error!(path = %path.display(), %error,
        "sums of an hour cannot be read and are put aside; an hour that is not ended yet makes up for them");
    fs::rename(path, &aside).map_err(about("rename", path))?;
    Ok(None)
}

/// Whether a file is still what its name leads to.
fn is_at(file: &File, path: &Path) -> bool {
    let place = |found: fs::Metadata| (found.dev(), found.ino());
    let (held, named) = (file.metadata().map(place), fs::metadata(path).map(place));
    matches!((held, named), (Ok(held), Ok(named)) if held == named)
}

/// An error with what was done to which file.
fn about(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("failed to {doing} `{}`: {error}", path.display()))
}

/// The whole of a file, compressed. An hour of 300 instances is some 20 MiB, and one of them packed.
fn packed(path: &Path) -> io::Result<Vec<u8>> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::default());
    io::copy(&mut File::open(path)?, &mut packer)?;
    packer.finish()
}

#[cfg(test)]
mod tests;
