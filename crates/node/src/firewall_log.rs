//! What the firewall's rules log on this machine: a file for people and collectors, and the newest lines for whoever asks.
//!
//! Tenants decide how much is logged, so all of it is bounded: the kernel limits each rule, the file has two pages of which the
//! older one is thrown away, and so many lines are held in memory. After a restart of the agent those are read back from the
//! file. Losing a line is said, and harms nothing.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base::{backoff::Backoff, channel::Receiver};
use host::filter::{LogNews, Logged};
use model::firewall::log::{LogEntry, LogFilter, protocol_name};
use nodeapi::inquiry::{FIREWALL_LOG_MAX_LINES, FirewallLogPage};

use crate::{config::AgentConfig, shared::Shared, verbs::Verbs};

/// Lines held in memory, each of at most some hundred bytes.
const HELD_MAX: usize = 4_096;

/// Bytes of a page of the file; there are two.
const PAGE_BYTES: u64 = 4 << 20;

/// Bytes of the file's end that are read at the start: about as many lines as are held.
const READ_BACK_BYTES: u64 = 2 << 20;

/// Shortest and longest pause before the kernel is asked again for a log that it did not hand out.
const ASK_FLOOR: Duration = Duration::from_millis(500);
const ASK_CEILING: Duration = Duration::from_secs(60);

/// Lines written at once.
const AT_ONCE: usize = 256;

/// The newest lines, and what they are written to. Clones share it.
#[derive(Clone)]
pub(crate) struct FirewallLog(Arc<Mutex<State>>);

struct State {
    path: PathBuf,
    /// Tells this run of the agent from others: marks of another mean nothing here.
    run: u64,
    /// Number of the first line held; lines are numbered from the start of this run.
    first: u64,
    held: VecDeque<LogEntry>,
    /// The page being written, and its bytes.
    page: Option<(File, u64)>,
    /// Whether the last write failed: it is said once.
    broken: bool,
}

/// A place between lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    run: u64,
    next: u64,
}

impl FirewallLog {
    /// The log at `path`, with the newest lines of earlier runs. `run` is another number each time.
    pub(crate) fn open(path: PathBuf, run: u64) -> Self {
        let mut held = VecDeque::new();
        for page in [older(&path), path.clone()] {
            match end_of(&page) {
                Ok(text) => held.extend(text.lines().filter_map(|line| serde_json::from_str(line).ok())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(%error, path = %page.display(), "failed to read the firewall's log back");
                }
            }
        }
        held.drain(..held.len().saturating_sub(HELD_MAX));
        Self(Arc::new(Mutex::new(State { path, run, first: 0, held, page: None, broken: false })))
    }

    /// Takes lines. The file may wait for the disk.
    fn add(&self, lines: Vec<LogEntry>) {
        let mut state = self.lock();
        let written = state.write(&lines);
        if let (Err(error), false) = (&written, state.broken) {
            tracing::error!(%error, path = %state.path.display(), "failed to write the firewall's log; its newest lines are in memory alone");
        }
        state.broken = written.is_err();
        state.held.extend(lines);
        let too_many = state.held.len().saturating_sub(HELD_MAX);
        state.held.drain(..too_many);
        state.first += too_many as u64;
    }

    /// At most `max` lines that fit: those behind `after`, or else, or when that place is gone, the newest.
    pub(crate) fn read(&self, filter: LogFilter, max: u32, after: Option<&str>) -> Result<FirewallLogPage, String> {
        let max = max.clamp(1, FIREWALL_LOG_MAX_LINES) as usize;
        let after: Option<Mark> = after.map(str::parse).transpose()?;
        let state = self.lock();
        let end = state.first + state.held.len() as u64;
        let known = after.filter(|mark| mark.run == state.run && (state.first..=end).contains(&mark.next));
        let numbered = (state.first..).zip(&state.held);
        let mut next = Mark { run: state.run, next: end };
        let entries = match known {
            Some(mark) => {
                let behind = numbered.skip_while(|(number, _)| *number < mark.next);
                let fitting: Vec<_> = behind.filter(|(_, entry)| filter.fits(entry)).take(max + 1).collect();
                if let Some((number, _)) = fitting.get(max) {
                    next.next = *number;
                }
                fitting.into_iter().take(max).map(|(_, entry)| entry.clone()).collect()
            }
            None => {
                let fitting = state.held.iter().rev().filter(|entry| filter.fits(entry));
                let mut newest: Vec<_> = fitting.take(max).cloned().collect();
                newest.reverse();
                newest
            }
        };
        Ok(FirewallLogPage { entries, next: next.to_string(), lost: after.is_some() && known.is_none() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a few insertions and removals that do not panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self, lines: &[LogEntry]) -> io::Result<()> {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        let (mut page, mut bytes) = match self.page.take() {
            Some(page) => page,
            None => {
                let page = page(&self.path, false)?;
                let bytes = page.metadata()?.len();
                (page, bytes)
            }
        };
        if bytes + text.len() as u64 > PAGE_BYTES {
            fs::rename(&self.path, older(&self.path))?;
            (page, bytes) = (self::page(&self.path, true)?, 0);
        }
        page.write_all(&text)?;
        self.page = Some((page, bytes + text.len() as u64));
        Ok(())
    }
}

fn page(path: &Path, anew: bool) -> io::Result<File> {
    // Tenants' traffic is nobody else's business.
    OpenOptions::new().append(true).create(true).create_new(anew).mode(0o600).open(path)
}

fn older(path: &Path) -> PathBuf {
    path.with_added_extension("1")
}

fn end_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(READ_BACK_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(READ_BACK_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}-{}", self.run, self.next)
    }
}

impl FromStr for Mark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split_once('-')
            .and_then(|(run, next)| Some(Self { run: u64::from_str_radix(run, 16).ok()?, next: next.parse().ok()? }));
        parts.ok_or_else(|| format!("\"{}\" is no place in a firewall log", text.chars().take(64).collect::<String>()))
    }
}

/// The log below the agent's data, and what the rules log from now on, if this kernel hands it out.
pub(crate) async fn open(verbs: &Verbs, config: &AgentConfig, now_ms: i64) -> (FirewallLog, Option<Receiver<LogNews>>) {
    let news = verbs.run("firewall log", |host| host.filters.logged()).await;
    if let Err(error) = &news {
        tracing::warn!(error = %base::errors::chain(error), "rules of the firewall log to this machine's kernel log for now");
    }
    // Two runs do not begin within a millisecond.
    let run = u64::try_from(now_ms).unwrap_or(0);
    (FirewallLog::open(config.data_dir.join("firewall.log"), run), news.ok())
}

/// Reads what the rules log until shutdown. While there are no `news` they log to the kernel's log, and it is asked for again: an agent that
/// ended a moment ago may be heard still.
pub(crate) async fn keep(shared: Arc<Shared>, mut news: Option<Receiver<LogNews>>) {
    let mut pauses = Backoff::new(ASK_FLOOR, ASK_CEILING);
    loop {
        if let Some(news) = news.take() {
            pauses.reset();
            read(&shared, news).await;
        }
        tokio::select! {
            biased;
            () = shared.shutdown.wait() => return,
            () = tokio::time::sleep(pauses.next_delay()) => {}
        }
        // What rules that are in force already log to is mended with the next look at them.
        match shared.verbs.run("firewall log", |host| host.filters.logged()).await {
            Ok(again) => {
                tracing::info!("rules of the firewall are read from now on");
                news = Some(again);
            }
            Err(error) => {
                tracing::debug!(error = %base::errors::chain(&error), "the firewall's log is still not handed out")
            }
        }
    }
}

/// Reads until shutdown, or until nothing more will come.
async fn read(shared: &Arc<Shared>, mut news: Receiver<LogNews>) {
    loop {
        let first = tokio::select! {
            biased;
            () = shared.shutdown.wait() => return,
            first = news.recv() => match first {
                Some(first) => first,
                None => return,
            },
        };
        let more = std::iter::from_fn(|| news.try_recv());
        let mut lines = Vec::new();
        for one in std::iter::once(first).chain(more).take(AT_ONCE) {
            match one {
                LogNews::Packet(logged) => lines.push(line(shared, logged)),
                LogNews::Lost(count) => {
                    tracing::warn!(count, "lines of the firewall's log were lost: too many at once")
                }
            }
        }
        let log = shared.firewall_log.clone();
        shared.verbs.run("firewall log", move |_| log.add(lines)).await;
    }
}

fn line(shared: &Shared, logged: Logged) -> LogEntry {
    let Logged { rule, action, direction, instance, packet } = logged;
    LogEntry {
        event: action.into(),
        time: shared.now(),
        direction: direction.into(),
        source_ip: packet.source,
        source_port: packet.ports.map(|(from, _)| from),
        destination_ip: packet.destination,
        destination_port: packet.ports.map(|(_, to)| to),
        protocol: protocol_name(packet.protocol),
        icmp_type: packet.icmp.map(|(kind, _)| kind),
        icmp_code: packet.icmp.map(|(_, code)| code),
        rule,
        vm: instance,
        alias: shared.target.borrow().zones.get(&instance).map(|zone| zone.alias.clone()),
    }
}

#[cfg(test)]
mod tests {
    use model::{
        firewall::log::{LogDirection, LogEvent},
        id::{FirewallRuleId, InstanceId},
        time::Timestamp,
    };

    use super::*;

    fn entry(number: i64, rule: FirewallRuleId, vm: InstanceId) -> LogEntry {
        LogEntry {
            event: LogEvent::Allow,
            time: Timestamp(number),
            direction: LogDirection::In,
            source_ip: "10.0.0.1".parse().unwrap(),
            source_port: None,
            destination_ip: "10.0.0.2".parse().unwrap(),
            destination_port: None,
            protocol: "esp".to_owned(),
            icmp_type: None,
            icmp_code: None,
            rule,
            vm,
            alias: None,
        }
    }

    fn times(page: &FirewallLogPage) -> Vec<i64> {
        page.entries.iter().map(|entry| entry.time.0).collect()
    }

    #[test]
    fn pages_follow_each_other_and_miss_nothing() {
        let place = tempfile::tempdir().unwrap();
        let log = FirewallLog::open(place.path().join("firewall.log"), 7);
        let (rule, vm) = (FirewallRuleId::random(), InstanceId::random());
        let all = LogFilter::default();
        let empty = log.read(all, 10, None).unwrap();
        assert_eq!((times(&empty), empty.lost), (vec![], false));
        for number in 0..10 {
            let of = if number % 2 == 0 { rule } else { FirewallRuleId::random() };
            log.add(vec![entry(number, of, vm)]);
        }
        assert_eq!(times(&log.read(all, 3, None).unwrap()), [7, 8, 9], "the newest");
        let wanted = LogFilter { rule: Some(rule), instance: Some(vm) };
        let first = log.read(wanted, 2, Some(&empty.next)).unwrap();
        assert_eq!(times(&first), [0, 2], "from where one stood");
        let second = log.read(wanted, 9, Some(&first.next)).unwrap();
        assert_eq!((times(&second), second.lost), (vec![4, 6, 8], false));
        assert_eq!(times(&log.read(wanted, 9, Some(&second.next)).unwrap()), Vec::<i64>::new());
        let another = log.read(wanted, 1, Some("8-3")).unwrap();
        assert_eq!((times(&another), another.lost), (vec![8], true), "a place of another run is gone");
        assert!(log.read(all, 1, Some("here")).unwrap_err().contains("no place"));
    }

    #[test]
    fn it_is_bounded_and_survives_the_agent() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("firewall.log");
        let log = FirewallLog::open(path.clone(), 1);
        let (rule, vm) = (FirewallRuleId::random(), InstanceId::random());
        let begin = log.read(LogFilter::default(), 1, None).unwrap().next;
        let count = 40_000;
        for chunk in (0..count).collect::<Vec<i64>>().chunks(200) {
            log.add(chunk.iter().map(|number| entry(*number, rule, vm)).collect());
        }
        assert!(log.read(LogFilter::default(), 1, Some(&begin)).unwrap().lost, "what is gone is said");
        assert_eq!(log.lock().held.len(), HELD_MAX);
        let sizes = [&path, &older(&path)].map(|page| fs::metadata(page).unwrap().len());
        assert!(sizes.iter().all(|size| (1..=PAGE_BYTES).contains(size)), "{sizes:?}");
        assert!(sizes[1] > PAGE_BYTES / 2, "a page is turned when it is full: {sizes:?}");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);

        // Half a line, as after a loss of power.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"event\":\"al").unwrap();
        let again = FirewallLog::open(path, 2);
        let page = again.read(LogFilter::default(), 3, None).unwrap();
        assert_eq!(times(&page), [count - 3, count - 2, count - 1]);
    }

    #[test]
    fn a_disk_that_refuses_costs_the_file_alone() {
        let place = tempfile::tempdir().unwrap();
        let log = FirewallLog::open(place.path().join("nowhere/firewall.log"), 1);
        log.add(vec![entry(1, FirewallRuleId::random(), InstanceId::random())]);
        assert_eq!(times(&log.read(LogFilter::default(), 9, None).unwrap()), [1]);
        fs::create_dir(place.path().join("nowhere")).unwrap();
        log.add(vec![entry(2, FirewallRuleId::random(), InstanceId::random())]);
        assert_eq!(fs::read_to_string(place.path().join("nowhere/firewall.log")).unwrap().lines().count(), 1);
    }
}
