//! Questions to the name server: 100,000 names, one core, against Debian's BIND, Knot and NSD with the same zone in the same run, asked by
//! Debian's `dnsperf` from the other core.
//!
//! The load is one program on one core as well and may be the slower side. So beside the questions a second there are the questions a
//! second *of the server's own processor time*, which is what a core could do if it were asked enough, and hardly moves
//! when the machine is busy with others.

use std::{
    fmt::Write as _,
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ::dns::{Change, Data, Limits, Name, Policy, Rrset, Server, Settings, Signing, Soa, View, Zone, ZoneKey, Zones};
use base::{
    clock::{Clock as _, SystemClock},
    random::Chance,
    shutdown::Shutdown,
    watch,
};

use crate::report::{Row, Section};

/// First argument of the child that is our server.
pub(crate) const CHILD: &str = "dns-child";
const NAMES: usize = 100_000;
const QUESTIONS: u64 = 200_000;
const ROUNDS: usize = 3;
/// Changes whose way into an answer is timed.
const CHANGES: u32 = 500;
const ROUND_S: &str = "5";
/// The core of the servers, and that of the load.
const CORES: (&str, &str) = ("1", "0");
const START: Duration = Duration::from_secs(60);
const APEX: &str = "dc.example";

/// Who answers.
const SERVERS: [(&str, Start); 4] = [("Knot", knot), ("BIND", bind), ("NSD", nsd), ("neso", neso)];

/// How one is started on a port, with a zone file of that many names in a directory of its own.
type Start = fn(&Path, u16, usize) -> Result<Command, String>;

/// Runs the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    let scratch = PathBuf::from(format!("/tmp/neso-bench-dns-{}", std::process::id()));
    fs::create_dir_all(&scratch).map_err(|error| format!("cannot make {}: {error}", scratch.display()))?;
    let measured = measure_in(&scratch);
    let _ = fs::remove_dir_all(&scratch);
    measured
}

fn measure_in(scratch: &Path) -> Result<Vec<Section>, String> {
    let questions = scratch.join("questions");
    let mut chance = Chance::new(1);
    let mut text = String::new();
    for _ in 0..QUESTIONS {
        let number = usize::try_from(chance.bits() % NAMES as u64).unwrap_or(0);
        let _ = writeln!(text, "{} A", host(number));
    }
    fs::write(&questions, text).map_err(|error| format!("cannot write the questions: {error}"))?;

    let mut running = Vec::new();
    let mut memory = Vec::new();
    for (name, start) in SERVERS {
        let empty = Running::start(&scratch.join(format!("{name}-empty")), start, 1).map(|one| one.memory());
        let full = Running::start(&scratch.join(name), start, NAMES);
        let each = match (&full, &empty) {
            (Ok(full), Ok(empty)) => Ok(vec![(full.memory() - *empty) / NAMES as f64]),
            (Err(why), _) | (_, Err(why)) => Err(why.clone()),
        };
        memory.push(Row { name: name.to_owned(), unit: "bytes", samples: each });
        running.push((name, full));
    }
    let mut sections = Vec::new();
    for (mode, clients) in [("udp", "50"), ("tcp", "20")] {
        let mut rates = vec![Ok(Vec::new()); SERVERS.len()];
        let mut own = vec![Ok(Vec::new()); SERVERS.len()];
        for _ in 0..ROUNDS {
            for (place, (_, server)) in running.iter().enumerate() {
                let asked =
                    server.as_ref().map_err(String::clone).and_then(|server| server.ask(&questions, mode, clients));
                note(&mut rates[place], asked.as_ref().map(|(rate, _)| *rate));
                note(&mut own[place], asked.as_ref().map(|(_, own)| *own));
            }
        }
        let rows = |samples: Vec<Result<Vec<f64>, String>>| {
            let named = samples.into_iter().zip(SERVERS);
            named.map(|(samples, (name, _))| Row { name: name.to_owned(), unit: "thousand/s", samples }).collect()
        };
        let name = mode.to_uppercase();
        sections.push(Section {
            about: format!(
                "Questions over {name} for {NAMES} names, answered on one core: a second of the server's own processor time. {clients} clients, \
                 {ROUNDS} rounds of {ROUND_S} s in turn; ratios are against Knot."
            ),
            rows: rows(own),
        });
        sections.push(Section {
            about: format!("The same over {name}, a second of the clock; the load is one program on the other core."),
            rows: rows(rates),
        });
    }
    let about = format!("Memory for each of {NAMES} names, beyond that of an empty zone.");
    sections.push(Section { about, rows: memory });
    sections.push(visible()?);
    Ok(sections)
}

/// How soon a change is in an answer, once whoever publishes has it.
fn visible() -> Result<Section, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut zone = zone(NAMES).map_err(|error| text(&error))?;
    let runtime = crate::runtime()?;
    let (zones, receiver) = watch::channel(Arc::new(Zones::new([(View::Everybody, zone.clone())])));
    let (_trigger, shutdown) = Shutdown::new();
    let addresses = vec![([127, 0, 0, 1], 0).into()];
    let settings = Settings { addresses, threads: 1, limits: Limits::default(), policy: Policy::default() };
    let server = runtime.block_on(Server::start(settings, receiver, Arc::new(SystemClock), shutdown));
    let server = server.map_err(|error| text(&error))?;
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(|error| text(&error))?;
    socket.connect(server.addresses()[0]).map_err(|error| text(&error))?;
    socket.set_read_timeout(Some(START)).map_err(|error| text(&error))?;
    let name: Name = host(NAMES / 2).parse().map_err(|error: ::dns::NameError| text(&error))?;
    let mut question = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    question.extend_from_slice(name.as_wire());
    question.extend_from_slice(&[0, 1, 0, 1]);
    let ask = || -> Result<[u8; 4], String> {
        let mut answer = [0; 512];
        socket.send(&question).map_err(|error| text(&error))?;
        let len = socket.recv(&mut answer).map_err(|error| text(&error))?;
        answer[..len].last_chunk::<4>().copied().ok_or_else(|| "an answer without an address".to_owned())
    };
    let mut without = Vec::new();
    // The zone after a change as it is, then signed.
    let plain = change_all(&mut zone, &name, &zones, &ask, &mut without, |zone, serial, changes| {
        zone.with(serial, &changes).map_err(|error| text(&error))
    })?;
    let secret = ZoneKey::generate(Signing::Ed25519).map_err(|error| text(&error))?;
    let keys = [ZoneKey::read(Signing::Ed25519, &secret).map_err(|error| text(&error))?];
    let now_s = u64::try_from(SystemClock.now_ms() / 1000).unwrap_or(0);
    zone = ::dns::sign_whole(&zone, &keys, now_s).map_err(|error| text(&error))?;
    let signed = change_all(&mut zone, &name, &zones, &ask, &mut without, |zone, serial, changes| {
        ::dns::sign(zone, &changes, serial, &keys, now_s).map_err(|error| text(&error))
    })?;
    let row = |name: &str, samples| Row { name: name.to_owned(), unit: "µs", samples: Ok(samples) };
    Ok(Section {
        about: format!(
            "A name of {NAMES} changes: from the change at hand until an answer over UDP has it, the new zone made meanwhile. {CHANGES} changes each."
        ),
        rows: vec![
            row("an answer", without),
            row("a change, and the answer with it", plain),
            row("a change of a signed zone, and the answer with it", signed),
        ],
    })
}

/// Changes one name again and again and waits for each in an answer: how long each took, microseconds; `answers` gets how long an answer alone takes.
fn change_all(
    zone: &mut Zone,
    name: &Name,
    zones: &watch::Sender<Arc<Zones>>,
    ask: &impl Fn() -> Result<[u8; 4], String>,
    answers: &mut Vec<f64>,
    next: impl Fn(&Zone, u32, Vec<Change>) -> Result<Zone, String>,
) -> Result<Vec<f64>, String> {
    let mut took = Vec::new();
    for _ in 0..CHANGES {
        let began = Instant::now();
        ask()?;
        answers.push(began.elapsed().as_secs_f64() * 1e6);
        let serial = zone.serial() + 1;
        let wanted = serial.to_be_bytes();
        let after = Rrset::new(30, &[Data::A(wanted.into())]).map_err(|error| error.to_string())?;
        let change = Change { name: name.clone(), before: zone.unsigned(name), after: vec![after] };
        let began = Instant::now();
        *zone = next(zone, serial, vec![change])?;
        zones.send_replace(Arc::new(Zones::new([(View::Everybody, zone.clone())])));
        while ask()? != wanted {}
        took.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(took)
}

fn note(samples: &mut Result<Vec<f64>, String>, sample: Result<f64, &String>) {
    match (samples.as_mut(), sample) {
        (Ok(samples), Ok(sample)) => samples.push(sample),
        (Ok(_), Err(why)) => *samples = Err(why.clone()),
        (Err(_), _) => {}
    }
}

/// A server that answers.
struct Running {
    child: Child,
    port: u16,
}

impl Running {
    fn start(directory: &Path, start: Start, names: usize) -> Result<Self, String> {
        fs::create_dir_all(directory).map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = port.map_err(|error| format!("no free port: {error}"))?.port();
        let log = fs::File::create(directory.join("log")).map_err(|error| error.to_string())?;
        let own = start(directory, port, names)?;
        let mut command = Command::new("taskset");
        command
            .args(["-c", CORES.0])
            .arg(own.get_program())
            .args(own.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().map_err(|error| format!("cannot start it: {error}"))?;
        let running = Self { child, port };
        let began = Instant::now();
        while !running.answers(names) {
            if began.elapsed() > START {
                return Err("it does not answer".to_owned());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(running)
    }

    fn answers(&self, names: usize) -> bool {
        let last = host(names - 1);
        let port = self.port.to_string();
        let output =
            Command::new("dig").args(["@127.0.0.1", "-p", &port, &last, "A", "+short", "+time=1", "+tries=1"]).output();
        output.is_ok_and(|output| output.stdout == format!("{}\n", address(names - 1)).into_bytes())
    }

    /// Thousands of answers a second, and a second of the server's processor time.
    fn ask(&self, questions: &Path, mode: &str, clients: &str) -> Result<(f64, f64), String> {
        let before = self.processor_s();
        let mut load = Command::new("taskset");
        load.args(["-c", CORES.1, "dnsperf", "-s", "127.0.0.1", "-p", &self.port.to_string(), "-m", mode]);
        load.args(["-c", clients, "-T", "1", "-q", "200", "-l", ROUND_S, "-d"]).arg(questions);
        let output = load.output().map_err(|error| format!("cannot start `dnsperf`: {error}"))?;
        let used = self.processor_s() - before;
        let text = String::from_utf8_lossy(&output.stdout);
        let figure = |name: &str| -> Option<f64> {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let completed = figure("Queries completed:").ok_or("dnsperf is not installed, or gave no figure")?;
        let rate = figure("Queries per second:").ok_or("dnsperf gave no rate")?;
        let good = text
            .lines()
            .any(|line| line.contains("Response codes:") && line.contains("NOERROR") && line.contains("(100.00%)"));
        if !good {
            return Err(format!(
                "not all answers were good: {}",
                text.lines().find(|line| line.contains("Response codes:")).unwrap_or_default()
            ));
        }
        Ok((rate / 1000.0, completed / used / 1000.0))
    }

    /// Its processes: itself, and those it has started.
    fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.child.id()];
        let mut at = 0;
        while let Some(parent) = found.get(at).copied() {
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            at += 1;
        }
        found
    }

    fn processor_s(&self) -> f64 {
        let ticks: f64 = self.processes().into_iter().filter_map(ticks).sum();
        ticks / 100.0
    }

    /// Bytes, what processes share counted once.
    fn memory(&self) -> f64 {
        let of = |process: u32| {
            let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        self.processes().into_iter().filter_map(of).sum::<f64>() * 1024.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let processes = self.processes();
        for process in processes.into_iter().rev().filter_map(|process| i32::try_from(process).ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// Clock ticks a process has run, of which there are a hundred a second.
fn ticks(process: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ').skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

fn host(number: usize) -> String {
    format!("host-{number}.inst.account-{}.{APEX}", number % 1000)
}

fn address(number: usize) -> std::net::Ipv4Addr {
    u32::try_from(number).map_or(0x0a00_0000, |number| 0x0a00_0000 + number).into()
}

fn zone_file(directory: &Path, names: usize) -> Result<PathBuf, String> {
    let mut text = format!(
        "$ORIGIN {APEX}.\n$TTL 30\n@ SOA ns.{APEX}. hostmaster.{APEX}. 1 3600 600 86400 30\n@ NS ns.{APEX}.\nns A 127.0.0.1\n"
    );
    for number in 0..names {
        let _ = writeln!(text, "{}. A {}", host(number), address(number));
    }
    let file = directory.join("zone");
    fs::write(&file, text).map_err(|error| format!("cannot write the zone: {error}"))?;
    Ok(file)
}

fn configured(directory: &Path, program: &str, before: &[&str], text: String) -> Result<Command, String> {
    let file = directory.join("conf");
    fs::write(&file, text).map_err(|error| format!("cannot write a configuration: {error}"))?;
    let path = Path::new("/usr/sbin").join(program);
    if !path.exists() {
        return Err(format!("`{program}` is not installed"));
    }
    let mut command = Command::new(path);
    command.args(before).arg(file);
    Ok(command)
}

fn bind(directory: &Path, port: u16, names: usize) -> Result<Command, String> {
    let (path, zone) = (directory.display(), zone_file(directory, names)?);
    let text = format!(
        "options {{ directory \"{path}\"; pid-file \"{path}/pid\"; session-keyfile \"{path}/session\"; recursion no; notify no; \
         listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; dnssec-validation no; empty-zones-enable no; \
         minimal-responses yes; tcp-clients 1000; }};\ncontrols {{ }};\n\
         zone \"{APEX}\" {{ type primary; file \"{}\"; }};\n",
        zone.display()
    );
    configured(directory, "named", &["-g", "-n", "1", "-c"], text)
}

fn knot(directory: &Path, port: u16, names: usize) -> Result<Command, String> {
    let (path, zone) = (directory.display(), zone_file(directory, names)?);
    let text = format!(
        "server:\n    rundir: {path}\n    listen: 127.0.0.1@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n\
         database:\n    storage: {path}\n\
         zone:\n  - domain: {APEX}\n    storage: {path}\n    file: {}\n    zonefile-load: whole\n",
        zone.display()
    );
    configured(directory, "knotd", &["-c"], text)
}

fn nsd(directory: &Path, port: u16, names: usize) -> Result<Command, String> {
    let (path, zone) = (directory.display(), zone_file(directory, names)?);
    let text = format!(
        "server:\n    ip-address: 127.0.0.1@{port}\n    server-count: 1\n    tcp-count: 1000\n    username: \"\"\n    chroot: \"\"\n    \
         zonesdir: {path}\n    database: \"\"\n    pidfile: {path}/pid\n    xfrdfile: {path}/xfrd\n    xfrdir: {path}\n    \
         zonelistfile: {path}/list\n    rrl-ratelimit: 0\n\
         remote-control:\n    control-enable: no\nzone:\n    name: {APEX}\n    zonefile: {}\n",
        zone.display()
    );
    configured(directory, "nsd", &["-d", "-c"], text)
}

fn neso(_: &Path, port: u16, names: usize) -> Result<Command, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut command = Command::new(program);
    command.args([CHILD, &port.to_string(), &names.to_string()]);
    Ok(command)
}

/// Our server, as a program of its own until it is ended.
pub(crate) fn child(arguments: &[String]) -> Result<(), String> {
    let number =
        |at: usize| arguments.get(at).and_then(|word| word.parse::<usize>().ok()).ok_or("a port and a number of names");
    let port = u16::try_from(number(0)?).map_err(|error| error.to_string())?;
    let zone = zone(number(1)?).map_err(|error| error.to_string())?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let (_zones, receiver) = watch::channel(Arc::new(Zones::new([(View::Everybody, zone)])));
        let (_trigger, shutdown) = Shutdown::new();
        let addresses = vec![([127, 0, 0, 1], port).into()];
        let settings = Settings { addresses, threads: 1, limits: Limits::default(), policy: Policy::default() };
        let server = Server::start(settings, receiver, Arc::new(SystemClock), shutdown).await;
        let _server = server.map_err(|error| error.to_string())?;
        std::future::pending().await
    })
}

fn zone(names: usize) -> Result<Zone, Box<dyn std::error::Error>> {
    let apex: Name = APEX.parse()?;
    let server = apex.child("ns")?;
    let (primary, mailbox) = (server.clone(), apex.child("hostmaster")?);
    let soa = Soa { primary, mailbox, refresh_s: 3600, retry_s: 600, expire_s: 86_400, negative_s: 30, ttl_s: 30 };
    let mut all = vec![
        (apex.clone(), vec![Rrset::new(30, &[Data::Ns(server.clone())])?]),
        (server, vec![Rrset::new(30, &[Data::A([127, 0, 0, 1].into())])?]),
    ];
    for number in 0..names {
        all.push((host(number).parse()?, vec![Rrset::new(30, &[Data::A(address(number))])?]));
    }
    Ok(Zone::load(apex, soa, 1, all, [])?)
}
