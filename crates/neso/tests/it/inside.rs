//! Running things inside instances, as their own root would: with the instance's capabilities, filter of system calls
//! and nothing more.
//!
//! A script of the tenant's, run at boot, looks for job files and runs them; the test writes the jobs into the instance's root
//! and reads what they said. What the small image has no program for, raw frames above all, this very test binary does:
//! it is copied into the instance together with its libraries, and [`probe`] is its way in there.

use std::{
    fmt::Display,
    fs,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::Value;

use crate::{
    datacenter::Datacenter,
    wire::{Nic, Wire},
};

/// Runs the jobs it finds, for ever.
const SCRIPT: &str = r#"#!/bin/sh
mkdir -p /probe
while :; do
    for job in /probe/*.job; do
        [ -e "$job" ] || continue
        name=${job%.job}
        mv "$job" "$name.now"
        sh "$name.now" >"$name.out" 2>&1 </dev/null
        echo $? >"$name.rc"
    done
    sleep 0.05
done
"#;

/// The variable that tells [`probe`] what to do.
const TASK: &str = "NESO_TEST_PROBE";
/// How lines of the probe begin, among those of the test harness around it.
const SAYS: &str = "probe: ";
/// What the probe says when it listens.
pub(crate) const READY: &str = "ready";
/// How long a connection that shall not come about is tried.
const SILENCE: Duration = Duration::from_millis(400);

/// An instance to run things in.
pub(crate) struct Guest<'a> {
    datacenter: &'a Datacenter,
    pub(crate) name: &'static str,
    /// As operators see it.
    pub(crate) view: Value,
    root: PathBuf,
    jobs: AtomicU32,
}

impl<'a> Guest<'a> {
    /// Asks for an instance on `networks`, whose root will run jobs.
    pub(crate) fn order(datacenter: &Datacenter, name: &'static str, networks: &[&str]) {
        let script = datacenter.settings().paths.run.join("jobs.sh");
        fs::write(&script, SCRIPT).expect("the script is written");
        let script = script.display().to_string();
        let mut line = vec!["instance", "create", "--name", name, "--script", &script];
        networks.iter().for_each(|network| line.extend(["-N", network]));
        line.extend(["minimal", "g1-nano"]);
        datacenter.good(&line);
    }

    /// Waits until it runs, and brings the probe into it.
    pub(crate) fn meet(datacenter: &'a Datacenter, name: &'static str) -> Self {
        datacenter.wait(&format!("{name} to run"), || datacenter.state(name).as_deref() == Some("running"));
        let view = datacenter.json(&["adm", "-j", "instance", "get", name]);
        let root = datacenter.settings().pool_dir().join("roots").join(view["id"].as_str().expect("an id"));
        let probe = root.join("probe");
        fs::create_dir_all(&probe).expect("a directory in the instance");
        let binary = std::env::current_exe().expect("this binary");
        let listed = Command::new("ldd").arg(&binary).output().expect("`ldd` runs");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
            let file = library.rsplit('/').next().expect("a name");
            let file = if file.starts_with("ld-") { "ld.so" } else { file };
            fs::copy(library, probe.join(file)).expect("a library");
        }
        fs::copy(&binary, probe.join("it")).expect("the probe");
        Self { datacenter, name, view, root, jobs: AtomicU32::new(0) }
    }

    /// Its NIC on the `n`th network.
    pub(crate) fn nic(&self, n: usize) -> Nic {
        Nic::of(&self.view, n)
    }

    /// Begins a job.
    pub(crate) fn begin(&self, line: &str) -> Job<'_> {
        let number = self.jobs.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("probe").join(format!("{number:03}"));
        let unfinished = path.with_extension("new");
        fs::write(&unfinished, line).expect("a job is written");
        fs::rename(unfinished, path.with_extension("job")).expect("a job is given");
        Job { guest: self, line: line.to_owned(), path }
    }

    /// Runs a line of shell to its end: whether it succeeded, and what it printed.
    #[track_caller]
    pub(crate) fn shell(&self, line: &str) -> (bool, String) {
        self.begin(line).end()
    }

    /// Begins a task of the probe.
    pub(crate) fn begin_probe(&self, task: &str) -> Job<'_> {
        self.begin(&format!(
            "{TASK}='{task}' /probe/ld.so --library-path /probe /probe/it --exact inside::probe --nocapture"
        ))
    }

    /// What the probe says of a task.
    #[track_caller]
    pub(crate) fn probe(&self, task: &str) -> Vec<String> {
        self.begin_probe(task).said()
    }

    /// Whether a TCP connection from inside comes about.
    #[track_caller]
    pub(crate) fn connects(&self, to: SocketAddr) -> bool {
        !self.opens(&[to]).is_empty()
    }

    /// The doors to which a TCP connection from inside comes about.
    #[track_caller]
    pub(crate) fn opens(&self, doors: &[SocketAddr]) -> Vec<String> {
        let doors: Vec<String> = doors.iter().map(SocketAddr::to_string).collect();
        self.probe(&format!("connect {}", doors.join(" ")))
    }

    /// Whether an address answers a ping from inside.
    #[track_caller]
    pub(crate) fn pings(&self, address: impl Into<IpAddr>) -> bool {
        !self.answering(&[address.into()]).is_empty()
    }

    /// The addresses that answer a ping from inside.
    #[track_caller]
    pub(crate) fn answering<A: Display>(&self, addresses: &[A]) -> Vec<String> {
        let ping = |address: &A| format!("(ping -c 1 -W 1 {address} >/dev/null 2>&1 && echo {address}) & ");
        let line = addresses.iter().map(ping).collect::<String>() + "wait";
        self.shell(&line).1.lines().map(str::to_owned).collect()
    }
}

/// Something under way inside an instance.
pub(crate) struct Job<'a> {
    guest: &'a Guest<'a>,
    line: String,
    path: PathBuf,
}

impl Job<'_> {
    fn out(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path.with_extension("out")).unwrap_or_default()).into_owned()
    }

    /// Waits until it printed `text`.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        let what = format!("{} to say {text:?} to `{}`", self.guest.name, self.line);
        self.guest.datacenter.wait(&what, || self.out().contains(text));
    }

    /// Waits for its end: whether it succeeded, and what it printed.
    #[track_caller]
    pub(crate) fn end(&self) -> (bool, String) {
        let code = self.path.with_extension("rc");
        let read = || fs::read_to_string(&code).unwrap_or_default().trim().to_owned();
        self.guest.datacenter.wait(&format!("`{}` in {}", self.line, self.guest.name), || !read().is_empty());
        (read() == "0", self.out())
    }

    /// Waits for the end of a task of the probe, which must succeed; what it said.
    #[track_caller]
    pub(crate) fn said(&self) -> Vec<String> {
        let (good, out) = self.end();
        assert!(good, "`{}` in {}: {out}", self.line, self.guest.name);
        // The harness prints the test's name without a line's end before the first of ours.
        out.lines().filter_map(|line| Some(line.split_once(SAYS)?.1.to_owned())).collect()
    }
}

impl Job<'_> {
    /// Frames a `hear` of the probe heard.
    #[track_caller]
    pub(crate) fn heard(&self) -> Vec<Vec<u8>> {
        self.said().iter().filter(|line| *line != READY).map(|line| from_hex(line)).collect()
    }
}

/// What a copy of this binary does inside an instance; nothing anywhere else.
#[test]
fn probe() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<&str> = task.split_whitespace().collect();
    let say = |text: &str| println!("{SAYS}{text}");
    match words.as_slice() {
        ["connect", doors @ ..] => std::thread::scope(|scope| {
            for door in doors {
                scope.spawn(|| {
                    let to: SocketAddr = door.parse().expect("an address with its port");
                    if TcpStream::connect_timeout(&to, SILENCE).is_ok() {
                        say(door);
                    }
                });
            }
        }),
        ["greet", to, text] => {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.send_to(text.as_bytes(), to).expect("a datagram is sent");
        }
        ["send", interface, frames @ ..] => {
            let wire = Wire::open(interface);
            frames.iter().for_each(|frame| wire.send(&from_hex(frame)));
        }
        ["hear", interface, end] => {
            let wire = Wire::open(interface);
            say(READY);
            wire.hear_until(&from_hex(end)).iter().for_each(|frame| say(&to_hex(frame)));
        }
        _ => panic!("no task of the probe: {task}"),
    }
}

/// Bytes as hex digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes hex digits stand for.
pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().map(|digit| u8::try_from(digit.to_digit(16).expect("hex")).expect("one digit")).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
