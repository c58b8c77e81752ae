//! A machine whose clock goes wrong after it joined: real processes, which are shown another time than others.
//!
//! The kernel has one clock for all, so what our program asks it is answered by a small library in between ([`SHIM`]), whose error
//! lies in a file and can be changed while the program runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use base::clock::{Clock as _, SystemClock};
use model::time::Timestamp;

use crate::fleet::{Fleet, Machine};

/// Adds the seconds in a file to what the machine's clock says.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *ahead;

__attribute__((constructor)) static void look(void) {
    const char *path = getenv("CLOCK_AHEAD");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *seen = file < 0 ? MAP_FAILED : mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (seen != MAP_FAILED) ahead = seen;
    if (file >= 0) close(file);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, clock, time);
    if (!failed && clock == CLOCK_REALTIME && ahead) time->tv_sec += *ahead;
    return failed;
}
"#;

const DAY: i64 = 86_400;

/// A clock that can be set wrong.
struct Wrong {
    library: PathBuf,
    ahead: PathBuf,
}

impl Wrong {
    /// Compiles the library into `directory`; `None`, with a line that says why, without a C compiler.
    fn new(directory: &Path) -> Option<Self> {
        let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
        fs::write(&source, SHIM).expect("a file");
        let mut compiler = Command::new("cc");
        match compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).output() {
            Err(error) => {
                println!("skipped: a machine with a wrong clock, because there is no `cc`: {error}");
                return None;
            }
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        }
        let wrong = Self { library, ahead: directory.join("ahead") };
        wrong.set(0);
        Some(wrong)
    }

    fn set(&self, seconds: i64) {
        // In place: the processes that run have the file in their memory.
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(false).open(&self.ahead).expect("a file");
        std::io::Write::write_all(&mut file, &seconds.to_ne_bytes()).expect("it is written");
    }

    /// What a program must be told to see this clock.
    fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_str().expect("a path of text").to_owned();
        vec![("LD_PRELOAD".to_owned(), text(&self.library)), ("CLOCK_AHEAD".to_owned(), text(&self.ahead))]
    }
}

/// How far ahead the headnode takes a machine's clock to be, milliseconds, if it was told well enough.
fn ahead(fleet: &Fleet, machine: &Machine) -> Option<i64> {
    let clock = fleet.server(machine)["clock"].clone();
    (clock["within_ms"].as_u64()? < 3_000).then(|| clock["ahead_ms"].as_i64()).flatten()
}

fn is_about(ahead_ms: Option<i64>, seconds: i64) -> bool {
    ahead_ms.is_some_and(|ahead_ms| ahead_ms.abs_diff(seconds * 1_000) < 4_000)
}

#[test]
fn a_clock_that_goes_wrong_is_told_of_and_misleads_nobody() {
    let Some(mut fleet) = Fleet::start(1) else { return };
    let directory = fleet.machines[0].root.with_file_name("clock");
    fs::create_dir_all(&directory).expect("a directory");
    let Some(clock) = Wrong::new(&directory) else { return };
    fleet.machines[0].good(&["down"]);
    fleet.machines[0].environment = clock.environment();
    fleet.machines[0].good(&["up"]);
    let machine = &fleet.machines[0];
    fleet.wait("its clock to be looked at", || is_about(ahead(&fleet, machine), 0));
    assert!(fleet.server(machine)["clock_ahead_ms"].is_null());

    // Two hours behind: told of, and what it says of an instance is right all the same.
    clock.set(-7_200);
    fleet.wait("it to be found wrong", || is_about(ahead(&fleet, machine), -7_200));
    let recorded = || fleet.server(machine)["clock_ahead_ms"].as_i64();
    fleet.wait("that to be in its record", || is_about(recorded(), -7_200));
    let told = fleet.good(&["adm", "server", "list"]);
    assert!(
        told.contains("running, clock 1 h 59 min behind") || told.contains("running, clock 2 h 0 min behind"),
        "{told}"
    );
    let told = fleet.good(&["doctor"]);
    assert!(told.contains("behind the headnode's") && told.contains("timedatectl"), "{told}");
    let told = machine.good(&["doctor"]);
    assert!(told.contains("behind the headnode's"), "{told}");
    let began = SystemClock.now_ms();
    fleet.good(&["instance", "create", "-w", "--name", "one", "minimal", "g1-nano"]);
    let instance = fleet.instance("one").expect("an instance");
    let slack = 5_000;
    for phase in instance["timeline"].as_array().expect("a timeline") {
        let at: Timestamp = phase["at"].as_str().and_then(|at| at.parse().ok()).expect("a time");
        assert!((began - slack..=SystemClock.now_ms() + slack).contains(&at.0), "{phase}");
    }

    // So far behind that certificates made today look as if they were of tomorrow: it goes on while it is connected.
    clock.set(-3 * DAY);
    fleet.wait("it to be found very wrong", || is_about(ahead(&fleet, machine), -3 * DAY));
    let told = fleet.head.bad_or_good(&["doctor"]);
    assert!(told.contains("it will not get in again once its connection breaks"), "{told}");
    machine.good(&["down", "--keep-instances"]);
    machine.good(&["up"]);
    fleet.wait("it to say why it does not get in", || {
        machine.log("node").contains("certificate is too young or too old")
    });
    let told = machine.bad_or_good(&["doctor"]);
    assert!(told.contains("certificates look wrong by it"), "{told}");

    // Somebody sets it: it comes back by itself.
    clock.set(0);
    fleet.wait("it to be right again", || {
        let server = fleet.server(machine);
        server["reachable"] == true && is_about(ahead(&fleet, machine), 0) && server["clock_ahead_ms"].is_null()
    });
}
