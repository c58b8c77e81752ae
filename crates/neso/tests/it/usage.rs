//! What instances use is written down where they run, and billed once, whoever dies in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use flate2::read::GzDecoder;
use model::{
    id::{AccountId, InstanceId, ServerId},
    time::Timestamp,
    usage::{CpuUsage, DiskUsage, Hour, Line, NetworkUsage, Sample, SampleConfig, Summary, VERSION, attribute},
};
use serde_json::{Value, json};

use crate::datacenter::Datacenter;

const MINUTE_MS: i64 = 60_000;

/// Files of a machine's usage by name.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeMap::new() };
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().expect("names are text");
    // One that goes meanwhile was not there.
    entries
        .map(|entry| entry.expect("an entry"))
        .filter_map(|entry| Some((name(&entry), fs::read(entry.path()).ok()?)))
        .collect()
}

fn lines(text: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(text);
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// An instance of somebody's, as an agent before this one saw it: it is started at minute 0, and again after minute 90.
struct Past {
    first: Hour,
    instance: InstanceId,
    owner: AccountId,
}

impl Past {
    fn at(&self, minute: i64) -> Timestamp {
        self.first.begins().plus_millis(minute * MINUTE_MS)
    }

    /// What was written in a minute: a second of CPU time is used in each, and a thousand bytes arrive.
    fn minute(&self, minute: i64) -> String {
        let begun = if minute > 90 { 90 } else { 0 };
        let server = ServerId::from_random(1);
        let attributes = [
            (attribute::OWNER, self.owner.to_string()),
            (attribute::ALIAS, "before".to_owned()),
            (attribute::PACKAGE, "small".to_owned()),
        ];
        let sample = Sample {
            v: VERSION.to_owned(),
            timestamp: self.at(minute),
            server_uuid: server,
            datacenter_name: "here".to_owned(),
            uuid: self.instance,
            os_uuid: self.instance,
            status: "running".to_owned(),
            started: Some(self.at(begun)),
            age_ms: Some((minute - begun) * MINUTE_MS),
            config: SampleConfig {
                name: self.instance.to_string(),
                brand: "lx".to_owned(),
                attributes: attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
                cpu_shares: "100".to_owned(),
                cpu_cap: None,
                max_lwps: "500".to_owned(),
                max_physical_memory: (128u64 << 20).to_string(),
                max_swap: (256u64 << 20).to_string(),
                networks: Vec::new(),
            },
            network_usage: [(
                "net0".to_owned(),
                NetworkUsage { sent_bytes: 0, received_bytes: minute.unsigned_abs() * 1_000 },
            )]
            .into(),
            disk_usage: [(
                "d".to_owned(),
                DiskUsage { name: "d".to_owned(), used: 10 << 20, quota: 1 << 30, kind: "filesystem".to_owned() },
            )]
            .into(),
            cpu_usage: Some(CpuUsage { user_ns: (minute - begun).unsigned_abs() * 1_000_000_000, system_ns: 0 }),
            memory_usage: Some(1 << 20),
        };
        let summary = Summary {
            v: VERSION.to_owned(),
            timestamp: self.at(minute),
            server_uuid: server,
            datacenter_name: "here".to_owned(),
            vm_count: 1,
            runtime: 1,
        };
        let line = |line: Line| serde_json::to_string(&line).expect("a line is JSON") + "\n";
        line(Line::Usage(Box::new(sample))) + &line(Line::Summary(summary))
    }

    /// Two hours of it, with a minute in which nobody looked and the half of a line behind which the machine lost power.
    fn write(&self, directory: &Path) {
        fs::create_dir_all(directory).expect("a directory");
        for hour in [0, 1] {
            let minutes = (hour * 60..hour * 60 + 60).filter(|minute| *minute != 30);
            let text: String = minutes.map(|minute| self.minute(minute)).collect();
            let path = directory.join(format!("{}.log", self.first.later(hour)));
            fs::write(path, text + "{\"type\":\"usage\",\"v\":\"HF").expect("an hour's lines");
        }
    }

    /// What is billed for it, in whatever months it was; `None` while its hours are not all counted.
    fn billed(&self, datacenter: &Datacenter) -> Option<Vec<Value>> {
        let months: BTreeSet<String> = [0, 1].map(|hour| self.first.later(hour).month().to_string()).into();
        let owner = self.owner.to_string();
        let of = |month: String| datacenter.ask(&["adm", "-j", "usage", &owner, "--month", &month]);
        let views = months.into_iter().map(of).collect::<Option<Vec<_>>>()?;
        let rows = views.iter().flat_map(|view| view["accounts"].as_array().expect("accounts"));
        let rows: Vec<Value> = rows.flat_map(|one| one["instances"].as_array().expect("rows").clone()).collect();
        let minutes: u64 = rows.iter().map(|row| row["sums"]["minutes"].as_u64().expect("a number")).sum();
        (minutes >= 119).then_some(rows)
    }

    fn sum(rows: &[Value], field: &str) -> u64 {
        rows.iter().map(|row| row["sums"][field].as_u64().unwrap_or_else(|| panic!("{field} of {row}"))).sum()
    }

    /// That exactly what it used is billed.
    #[track_caller]
    fn assert_exact(&self, rows: &[Value]) {
        let sum = |field| Self::sum(rows, field);
        // Of the run that ended after minute 90 the last look was at minute 90. The first minute is there by the first look.
        assert_eq!(sum("cpu_ns"), 119_000_000_000, "{rows:?}");
        assert_eq!((sum("received_bytes"), sum("sent_bytes")), (119_000, 0), "{rows:?}");
        assert_eq!((sum("minutes"), sum("running_minutes")), (120, 119), "{rows:?}");
        assert_eq!((sum("memory_mib_minutes"), sum("disk_mib_minutes")), (128 * 119, 10 * 120), "{rows:?}");
        assert!(rows.iter().all(|row| row["alias"] == "before" && row["package"] == "small"), "{rows:?}");
    }
}

#[test]
fn hours_are_billed_once_whoever_dies_in_them() {
    let now = Timestamp(base::clock::Clock::now_ms(&base::clock::SystemClock));
    let past = Past {
        // The second is the one before the present.
        first: Hour::of(now).earlier(2),
        instance: InstanceId::random(),
        owner: AccountId::random(),
    };
    let points = ["node.usage.summed", "node.usage.packed", "control.usage.counted"];
    // For now something is in the way, so that nothing is counted before the past is there.
    let started = Datacenter::start_after(|datacenter| {
        let directory = datacenter.settings().node_dir().join("usage");
        fs::create_dir_all(directory.parent().expect("it is in a directory")).expect("a directory");
        fs::write(directory, "").expect("a file");
    });
    let Some(datacenter) = started else { return };
    let directory = datacenter.settings().node_dir().join("usage");
    datacenter.good(&["instance", "create", "-w", "--name", "metered", "minimal", "g1-nano"]);
    datacenter.wait("the agent to say so", || datacenter.logs().contains("failed to write down what instances use"));
    // Whoever ends an hour, packs it or counts it dies in the middle of that, once each.
    fs::create_dir_all(datacenter.crash_file()).expect("a directory");
    for point in points {
        fs::write(datacenter.crash_file().join(point), "").expect("a crash point is armed");
    }
    let beside = directory.with_file_name("past");
    past.write(&beside);
    datacenter.kill("node");
    fs::remove_file(&directory).expect("the file goes");
    fs::rename(&beside, &directory).expect("the past takes its place");
    let armed = || points.iter().any(|point| datacenter.crash_file().join(point).exists());
    datacenter.wait("each of them to have died", || !armed());
    let ended = format!("{}.sums", past.first.later(1));
    datacenter.wait("the last hour to be ended by the next minute", || files(&directory).contains_key(&ended));
    datacenter.wait("the hours to be billed", || past.billed(&datacenter).is_some());
    let bill = past.billed(&datacenter).expect("it was there");
    past.assert_exact(&bill);
    for hour in [0, 1].map(|hour| past.first.later(hour)) {
        let files = files(&directory);
        assert!(files.contains_key(&format!("{hour}.sums")) && !files.contains_key(&format!("{hour}.log")), "{hour}");
        let mut unpacked = Vec::new();
        GzDecoder::new(&files[&format!("{hour}.log.gz")][..]).read_to_end(&mut unpacked).expect("it is whole");
        assert!(lines(&unpacked).iter().filter(|line| line["uuid"] == json!(past.instance)).count() >= 59);
    }

    // A real one beside it, every minute.
    written_every_minute(&datacenter, &directory);

    // Neither another headnode process nor another agent counts anything again.
    datacenter.kill("headnode");
    datacenter.kill("node");
    datacenter.wait("the headnode to answer", || datacenter.ask(&["adm", "-j", "info"]).is_some());
    let again = || {
        let loops = datacenter.ask(&["adm", "-j", "loops"])?;
        let one = loops.as_array()?.iter().find(|one| one["name"] == "count usage")?.clone();
        one["passes"].as_u64()
    };
    datacenter.wait("machines to be asked again", || again() >= Some(2));
    assert_eq!(past.billed(&datacenter), Some(bill));
    refused_and_shown(&datacenter, &past);

    datacenter.good(&["instance", "delete", "-w", "metered"]);
    datacenter.wait_idle();
    datacenter.assert_agreed();
    datacenter.assert_clean();
}

/// Lines of the one instance there is appear, with what is known of it.
fn written_every_minute(datacenter: &Datacenter, directory: &Path) {
    let id = datacenter.instances()[0]["id"].as_str().expect("an id").to_owned();
    let own = |line: &&Value| line["type"] == "usage" && line["uuid"] == *id && line["status"] == "running";
    let written = || {
        let open = files(directory).into_iter().filter(|(name, _)| name.ends_with(".log"));
        open.map(|(_, text)| lines(&text)).find(|lines| lines.iter().any(|line| own(&line)))
    };
    datacenter.wait("a minute to be written", || written().is_some());
    let all = written().expect("it was there");
    let line = all.iter().find(own).expect("a line of the instance");
    assert_eq!(line["config"]["attributes"]["alias"], "metered");
    assert_eq!(line["config"]["attributes"]["package-name"], "g1-nano");
    assert!(
        line["started"].is_string()
            && line["age_ms"].as_i64().is_some_and(|age| age > 0)
            && line["cpu_usage"]["user_ns"].is_u64(),
        "{line}"
    );
    assert!(line["network_usage"]["net0"]["sent_bytes"].is_u64() && line["disk_usage"][&id]["used"].is_u64(), "{line}");
    let summary = all.iter().rfind(|line| line["type"] == "summary").expect("a line behind the minute");
    assert_eq!(summary["vm_count"], 1);
    assert_eq!(fs::metadata(directory).expect("the directory").permissions().mode() & 0o777, 0o700);
}

/// What an operator sees.
fn refused_and_shown(datacenter: &Datacenter, past: &Past) {
    let (owner, month) = (past.owner.to_string(), past.first.later(1).month().to_string());
    let told = datacenter.good(&["adm", "usage", &owner, "--month", &month]);
    assert!(told.contains("before") && told.contains("1.98 h") && told.contains("0.25 GiB h"), "{told}");
    let all = datacenter.good(&["adm", "usage", "--month", &month]);
    assert!(all.contains(&owner) && !all.contains("before"), "{all}");
    let wrong = datacenter.run(&["adm", "usage", "--month", "2026-13"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("a month such as 2026-11"), "{wrong:?}");
    let wrong = datacenter.run(&["adm", "usage", "nobody"]);
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("nobody"), "{wrong:?}");
    // Tenants' numbers are the operator's: nothing of them is told to somebody without the operator's key.
    let settings = datacenter.settings();
    let url = format!("https://{}/v1/usage", settings.listen.ops);
    let asked =
        std::process::Command::new("curl").args(["-sk", "--max-time", "20", &url]).output().expect("`curl` runs");
    assert!(!asked.status.success() && asked.stdout.is_empty(), "{asked:?}");
}
