//! Debian's Prometheus beside a headnode: it is started and ended, sees everything there is, and finds what is wrong.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    process::Command,
    sync::mpsc,
    time::{Duration, Instant},
};

use base::daemon::PidFile;
use headnode::{monitoring::Wanted, telemetry::families};
use serde_json::Value;

use crate::datacenter::Datacenter;

/// A machine is missed after half a minute, and the alert waits for one more.
const ALERT_PATIENCE: Duration = Duration::from_secs(300);
/// Families that one headnode with its store in a file does not have, or only after something happened.
const ELSEWHERE: [&str; 3] = ["neso_member_", "neso_headnode_clock_offset_seconds", "neso_headnode_behind_seconds"];

/// Asks Prometheus' API.
fn ask(port: u16, path: &str) -> Value {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("Prometheus listens");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").expect("it takes questions");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    assert!(head.starts_with("HTTP/1.0 200"), "{path}: {answer}");
    serde_json::from_str(body).expect("its answers are JSON")
}

/// The series that a query finds now.
fn query(port: u16, text: &str) -> Vec<Value> {
    let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let answer = ask(port, &format!("/api/v1/query?query={encoded}"));
    answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{text}: {answer}")).clone()
}

/// When the headnode that Prometheus saw last was started.
fn headnode_started(port: u16) -> Option<String> {
    let found = query(port, "process_start_time_seconds{job=\"neso-headnode\"}");
    Some(found.first()?["value"][1].as_str().expect("a number").to_owned())
}

/// The process that holds the monitor's pid file, once that is Prometheus.
fn prometheus(datacenter: &Datacenter) -> Option<u32> {
    running(datacenter, "monitor.pid", "prometheus")
}

/// The process that holds the notifier's pid file, once that is Alertmanager.
fn alertmanager(datacenter: &Datacenter) -> Option<u32> {
    running(datacenter, "notifier.pid", "prometheus-alertmanager")
}

fn running(datacenter: &Datacenter, pid_file: &str, program: &str) -> Option<u32> {
    let pid = PidFile::holder(&datacenter.settings().paths.run.join(pid_file)).filter(|pid| *pid != 0)?;
    let running = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    running.ends_with(program).then_some(pid)
}

fn signal(name: &str, pid: u32) {
    let done = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(done.is_ok_and(|status| status.success()), "process {pid} takes {name}");
}

/// Reads one line.
fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    // A client that goes away ends the conversation.
    let _ = reader.read_line(&mut line);
    line
}

/// A server at a free port that hands over what each of its clients said.
fn server(talk: fn(TcpStream) -> Option<String>) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it has one").port();
    let (sender, receiver) = mpsc::sync_channel(64);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Some(said) = talk(stream) {
                // The test may have seen enough.
                let _ = sender.try_send(said);
            }
        }
    });
    (port, receiver)
}

/// A mail server's side, as far as a client without TLS needs it; what was mailed.
fn take_mail(mut stream: TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut mail = String::new();
    stream.write_all(b"220 here\r\n").ok()?;
    loop {
        let command = line(&mut reader);
        let verb = command.split([' ', '\r']).next()?.to_ascii_uppercase();
        mail.push_str(&command);
        let answer = match verb.as_str() {
            "" => return None,
            "DATA" => "354 go on",
            "QUIT" => "221 bye",
            _ => "250 yes",
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).ok()?;
        if verb == "QUIT" {
            return Some(mail);
        }
        if verb == "DATA" {
            loop {
                let line = line(&mut reader);
                if line.is_empty() || line == ".\r\n" {
                    break;
                }
                mail.push_str(&line);
            }
            stream.write_all(b"250 kept\r\n").ok()?;
        }
    }
}

/// A web server's side; the body that was sent.
fn take_post(mut stream: TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut length = 0;
    loop {
        let head = line(&mut reader).to_ascii_lowercase();
        if let Some(value) = head.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if head.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok()?;
    Some(String::from_utf8_lossy(&body).into_owned())
}

/// Waits until somebody was told what holds all of `words`.
fn told(by: &mpsc::Receiver<String>, words: &[&str]) {
    let deadline = Instant::now() + ALERT_PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let said = by.recv_timeout(left).unwrap_or_else(|_| panic!("nobody was told of {words:?}"));
        if words.iter().all(|word| said.contains(word)) {
            return;
        }
    }
}

/// Whether an alert is in a window of maintenance.
fn is_silenced(datacenter: &Datacenter, name: &str) -> bool {
    let alerts = datacenter.ask(&["adm", "-j", "alerts"]).unwrap_or_default();
    let is_it = |alert: &&Value| alert["labels"]["alertname"] == name;
    alerts.as_array().into_iter().flatten().find(is_it).is_some_and(|alert| alert["silenced"] == true)
}

/// Waits until all targets are up; how many there are.
fn targets_up(datacenter: &Datacenter) -> usize {
    let mut count = 0;
    datacenter.wait("all targets to be up", || {
        let Some(status) = datacenter.ask(&["adm", "-j", "monitoring", "status"]) else { return false };
        let targets = status["targets"].as_array().expect("a list");
        count = targets.len();
        count >= 2 && targets.iter().all(|target| target["health"] == "up")
    });
    count
}

/// Names of the alerts that fire.
fn firing(datacenter: &Datacenter) -> BTreeSet<String> {
    let alerts = datacenter.ask(&["adm", "-j", "alerts"]).unwrap_or_default();
    let name = |alert: &Value| Some(alert["labels"]["alertname"].as_str()?.to_owned());
    alerts.as_array().into_iter().flatten().filter_map(name).collect()
}

fn wait_for_alert(datacenter: &Datacenter, name: &str, fires: bool) {
    let begun = Instant::now();
    while firing(datacenter).contains(name) != fires {
        assert!(begun.elapsed() < ALERT_PATIENCE, "{name} fires: {}, still\n{}", !fires, datacenter.logs());
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// `neso top` shows an alert, too.
fn is_at_the_top(datacenter: &Datacenter, name: &str) {
    let top = datacenter.json(&["top", "-j"]);
    let alerts = top["alerts"].as_array().expect("they are known");
    let alert = alerts.iter().find(|alert| alert["labels"]["alertname"] == name).expect("it is among them");
    let summary = alert["annotations"]["summary"].as_str().expect("in words");
    let shown = datacenter.good(&["top"]);
    assert!(shown.lines().any(|line| line.starts_with("! ") && line.ends_with(summary)), "{shown}");
}

/// Everything in the list is told, and what rules speak of arrives with values.
fn all_is_seen(datacenter: &Datacenter, port: u16) {
    // Some is known after the second beat only.
    datacenter.wait("everything in the list to be told", || {
        let text = datacenter.good(&["adm", "metrics"]);
        let is_told = |name: &str| text.contains(&format!("# TYPE {name} "));
        let is_elsewhere = |name: &str| ELSEWHERE.iter().any(|elsewhere| name.starts_with(elsewhere));
        // The first backup is taken some minutes after the first account was made.
        let missing: Vec<&str> = families::ALL.iter().map(|family| family.name).filter(|name| !is_told(name)).collect();
        missing.iter().all(|name| is_elsewhere(name) || *name == "neso_backup_age_seconds")
    });
    let rules = ask(port, "/api/v1/rules");
    let rules = rules["data"]["groups"][0]["rules"].as_array().expect("a group of rules").clone();
    assert!(rules.len() >= 30, "{} rules", rules.len());
    for rule in &rules {
        assert_ne!(rule["health"], "err", "{rule}");
        let expression = rule["query"].as_str().expect("an expression");
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for metric in words.filter(|word| word.starts_with("neso_")) {
            let is_elsewhere = ELSEWHERE.iter().any(|name| metric.starts_with(name));
            let what = format!("{metric}, of which {} speaks", rule["name"]);
            datacenter.wait(&what, || is_elsewhere || !query(port, metric).is_empty());
        }
    }
}

/// Every dashboard and each of its panels' queries, with the dashboard's name and the panel's.
fn panels() -> Vec<(String, String)> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../monitoring/grafana/dashboards");
    let mut found = Vec::new();
    for file in std::fs::read_dir(directory).expect("the dashboards are in the repository") {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("it can be read");
        let dashboard: Value = serde_json::from_str(&text).expect("a dashboard is JSON");
        for panel in dashboard["panels"].as_array().expect("it has panels") {
            for target in panel["targets"].as_array().expect("a panel has queries") {
                let name = format!("{}: {}", dashboard["title"], panel["title"]);
                found.push((name, target["expr"].as_str().expect("a query").to_owned()));
            }
        }
    }
    found
}

/// No panel is empty where there is something to see, or wrong where there is not.
fn no_panel_is_empty(datacenter: &Datacenter, port: u16) {
    datacenter.wait("the instance's memory", || !query(port, "mem_limit").is_empty());
    let instance = query(port, "mem_limit").remove(0);
    let label = |name: &str| instance["metric"][name].as_str().expect("instances are told apart").to_owned();
    let panels = panels();
    assert!(panels.len() > 90, "{} queries", panels.len());
    for (panel, expression) in panels {
        let expression = expression
            .replace("$__rate_interval", "1m")
            .replace("$node", &label("node"))
            .replace("$vm", &label("vm"))
            .replace("$owner", &label("owner"));
        // An error is an answer without a result.
        let found = query(port, &expression);
        if !ELSEWHERE.iter().any(|name| expression.contains(name)) && found.is_empty() {
            datacenter.wait(&format!("{panel}, {expression}"), || !query(port, &expression).is_empty());
        }
    }
}

/// Its certificate opens metrics and nothing else.
fn it_may_only_watch(datacenter: &Datacenter) {
    let settings = datacenter.settings();
    let status = |path: &str| {
        let file = |name: &str| headnode::monitoring::directory(&settings).join(name);
        let mut curl = Command::new("curl");
        curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--connect-to"]);
        curl.arg(format!("headnode.neso.internal:443:{}", settings.listen.ops));
        curl.arg("--cacert")
            .arg(file("ca.pem"))
            .arg("--cert")
            .arg(file("watcher.pem"))
            .arg("--key")
            .arg(file("watcher.key"));
        let output = curl.arg(format!("https://headnode.neso.internal{path}")).output().expect("curl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(status("/v1/metrics"), "200");
    for closed in ["/v1/instances", "/v1/datacenter", "/v1/accounts", "/v1/no-such-thing"] {
        assert_eq!(status(closed), "403", "{closed}");
    }
}

/// Enables it, to look more often than an operator may ask for: a datacenter of one headnode waits for nobody. Its port.
fn enable(datacenter: &Datacenter) -> u16 {
    Wanted { every_seconds: 2, ..Wanted::default() }.save(&datacenter.settings()).expect("it is written down");
    datacenter.good(&["adm", "monitoring", "enable"]);
    let wanted = Wanted::load(&datacenter.settings()).expect("it can be read").expect("it is written down");
    assert_eq!(wanted.every_seconds, 2);
    let refused = datacenter.run(&["adm", "monitoring", "enable", "--every", "9"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("10..=300"));
    let first = prometheus(datacenter).expect("it answered");
    datacenter.good(&["adm", "monitoring", "enable", "--keep-days", "31"]);
    assert!(prometheus(datacenter).is_some_and(|next| next != first), "who answers is not who was told to end");
    wanted.port
}

/// It outlives its headnode, says so, and does not outlive its supervisor.
fn it_ends_with_its_supervisor(datacenter: &Datacenter, port: u16) {
    let pid = prometheus(datacenter).expect("it still runs");
    let told_by = alertmanager(datacenter).expect("it still runs");
    let before = headnode_started(port).expect("the headnode was seen");
    datacenter.kill("headnode");
    assert_eq!(prometheus(datacenter), Some(pid));
    datacenter.wait("the next headnode to be seen", || headnode_started(port).is_some_and(|started| started != before));
    assert_eq!(prometheus(datacenter), Some(pid));
    targets_up(datacenter);
    datacenter.kill("supervisor");
    datacenter.wait("Prometheus to end with its supervisor", || prometheus(datacenter).is_none());
    datacenter.good(&["up"]);
    datacenter.wait("another Prometheus", || prometheus(datacenter).is_some_and(|next| next != pid));
    targets_up(datacenter);
    datacenter.wait("another Alertmanager", || alertmanager(datacenter).is_some_and(|next| next != told_by));
}

/// Of what it saw, and of who was told.
fn nothing_stays_behind(datacenter: &Datacenter) {
    let directory = headnode::monitoring::directory(&datacenter.settings());
    let seen = headnode::monitoring::data_directory(&datacenter.settings());
    assert!(seen.exists() && directory.join("alertmanager.yml").exists());
    datacenter.good(&["adm", "monitoring", "disable", "--purge"]);
    assert_eq!(alertmanager(datacenter), None);
    assert!(!seen.exists() && !directory.join("alertmanager.yml").exists() && !directory.join("alerts").exists());
}

#[test]
fn prometheus_sees_the_datacenter_and_finds_what_is_wrong() {
    if headnode::monitoring::program().is_none() || headnode::monitoring::notify::program().is_none() {
        println!(
            "skipped: Prometheus beside a headnode, because it or Alertmanager (Debian's packages prometheus, prometheus-alertmanager) is missing"
        );
        return;
    }
    let Some(datacenter) = Datacenter::start() else { return };
    let refused = datacenter.run(&["adm", "alerts"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("monitoring enable"));
    let port = enable(&datacenter);
    assert_eq!(targets_up(&datacenter), 2, "the headnode and the machine it runs on");
    let pid = prometheus(&datacenter).expect("it runs");
    assert_ne!(std::fs::metadata(format!("/proc/{pid}")).expect("it runs").uid(), 0, "not as root");
    datacenter.good(&["instance", "create", "-w", "--name", "seen", "minimal", "g1-nano"]);
    all_is_seen(&datacenter, port);
    no_panel_is_empty(&datacenter, port);
    it_may_only_watch(&datacenter);

    // An agent that hangs, with its machine, for all that can be told from elsewhere.
    let agent = PidFile::holder(&datacenter.settings().paths.run.join("node.pid")).expect("the agent runs");
    assert!(!firing(&datacenter).contains("NodeUnreachable"));
    let (mail_port, mails) = server(take_mail);
    let (hook_port, posts) = server(take_post);
    let (mail, hook) = (format!("127.0.0.1:{mail_port}"), format!("http://127.0.0.1:{hook_port}/hook"));
    let notify =
        ["adm", "alerts", "notify", "--gather", "1", "--mail-to", "ops@example.org", "--mail-from", "neso@example.org"];
    let refused = datacenter.run(&[&notify[..], &["--smtp", "nowhere"]].concat());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("HOST:PORT"), "what is wrong is named");
    let by_mail = [&notify[..], &["--smtp", mail.as_str(), "--smtp-plain"]].concat();
    datacenter.good(&by_mail);
    let first = alertmanager(&datacenter).expect("it answered");
    datacenter.good(&[&by_mail[..], &["--webhook", hook.as_str()]].concat());
    assert!(alertmanager(&datacenter).is_some_and(|next| next != first), "who answers is not who was told to end");
    signal("STOP", agent);
    wait_for_alert(&datacenter, "NodeUnreachable", true);
    is_at_the_top(&datacenter, "NodeUnreachable");
    told(&mails, &["RCPT TO:<ops@example.org>", "NodeUnreachable"]);
    told(&posts, &["\"status\":\"firing\"", "NodeUnreachable", "neso adm server get"]);

    // Nobody is told in a window of maintenance; it is shown all the same.
    assert!(!is_silenced(&datacenter, "NodeUnreachable"));
    let silence =
        ["adm", "-j", "alerts", "silence", "--hours", "1", "--why", "new disks", "--alert", "NodeUnreachable"];
    let window = datacenter.json(&silence)["silenceID"].as_str().expect("its id").to_owned();
    datacenter.wait("the window to begin", || is_silenced(&datacenter, "NodeUnreachable"));
    assert!(datacenter.good(&["adm", "alerts", "silences"]).contains("new disks"));
    datacenter.good(&["adm", "alerts", "unsilence", &window]);
    datacenter.wait("the window to end", || !is_silenced(&datacenter, "NodeUnreachable"));
    signal("CONT", agent);
    told(&posts, &["\"status\":\"resolved\"", "NodeUnreachable"]);
    wait_for_alert(&datacenter, "NodeUnreachable", false);

    it_ends_with_its_supervisor(&datacenter, port);
    nothing_stays_behind(&datacenter);
    datacenter.good(&["instance", "delete", "-w", "seen"]);
    assert_eq!(prometheus(&datacenter), None);
    datacenter.assert_clean();
}
