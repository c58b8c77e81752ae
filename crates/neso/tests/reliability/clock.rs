//! Setting the clock of running processes, and of no others.
//!
//! All of them share one kernel, and its clock is everybody's. Programs do not ask the kernel, though, but a page of code that it maps into each process
//! (the vDSO): Rust's and C's libraries do, and so does Go, which has no library that could be replaced. So the functions on that page are overwritten in the
//! process that is meant: they ask the kernel and add what the clock is to be wrong by. The monotonic clock, which no machine's operator sets, is left
//! alone, as are the times the kernel itself writes at files. A process that is started meanwhile has the right time.
//!
//! What is written there is for x86-64.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

/// How long a process may take to stand still outside the page.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process whose clock was set.
pub(crate) struct WrongClock {
    pid: u32,
    memory: File,
    /// What was overwritten, with where.
    before: Vec<(u64, Vec<u8>)>,
}

impl WrongClock {
    /// Sets the clock of process `pid` by `seconds`.
    pub(crate) fn set(pid: u32, seconds: i64) -> Self {
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let memory = memory.expect("a process of ours");
        let (from, to) = page(pid);
        let mut bytes = vec![0; usize::try_from(to - from).expect("a page")];
        memory.read_exact_at(&mut bytes, from).expect("the page can be read");
        let functions = [
            ("__vdso_clock_gettime", clock_gettime(seconds)),
            ("__vdso_gettimeofday", gettimeofday(seconds)),
            ("__vdso_time", time(seconds)),
        ];
        let before: Vec<(u64, Vec<u8>)> = functions
            .iter()
            .map(|(name, code)| {
                let at = function(&bytes, name).unwrap_or_else(|| panic!("the kernel's page has `{name}`"));
                (from + at as u64, bytes[at..at + code.len()].to_vec())
            })
            .collect();
        still(pid, (from, to), || {
            for ((_, code), (at, _)) in functions.iter().zip(&before) {
                memory.write_all_at(code, *at).expect("the page can be written");
            }
        });
        Self { pid, memory, before }
    }

    /// Sets it right.
    pub(crate) fn mend(self) {
        if !fs::exists(format!("/proc/{}/task", self.pid)).unwrap_or(false) {
            return;
        }
        still(self.pid, page(self.pid), || {
            for (at, bytes) in &self.before {
                // It may have ended since.
                let _ = self.memory.write_all_at(bytes, *at);
            }
        });
    }
}

/// Does `change` while no thread of `pid` is at work on the page.
fn still(pid: u32, (from, to): (u64, u64), change: impl FnOnce()) {
    let process = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a process id"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        kill(process, Signal::SIGSTOP).expect("our own process can be stopped");
        let places: Option<Vec<u64>> = fs::read_dir(format!("/proc/{pid}/task"))
            .expect("its threads")
            .flatten()
            .map(|task| {
                // `running`, or the system call with its arguments, then stack and place.
                let text = fs::read_to_string(task.path().join("syscall")).ok()?;
                let place = text.split_whitespace().last()?.trim_start_matches("0x").to_owned();
                u64::from_str_radix(&place, 16).ok()
            })
            .collect();
        if places.is_some_and(|places| places.iter().all(|place| !(from..to).contains(place))) {
            change();
            break;
        }
        kill(process, Signal::SIGCONT).expect("our own process can go on");
        assert!(Instant::now() < deadline, "process {pid} does not stand still");
        std::thread::sleep(Duration::from_millis(2));
    }
    kill(process, Signal::SIGCONT).expect("our own process can go on");
}

/// From where to where the page is.
fn page(pid: u32) -> (u64, u64) {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its memory");
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("the kernel maps the page");
    let (from, to) = line.split_whitespace().next().and_then(|span| span.split_once('-')).expect("a span");
    let number = |text| u64::from_str_radix(text, 16).expect("an address");
    (number(from), number(to))
}

/// Where a function begins in the page, which is an ELF library.
fn function(page: &[u8], name: &str) -> Option<usize> {
    const DYNAMIC_SYMBOLS: u64 = 11;
    let number = |at: usize, bytes: usize| {
        let mut all = [0; 8];
        all[..bytes].copy_from_slice(page.get(at..at + bytes)?);
        Some(u64::from_le_bytes(all))
    };
    let place = |at: usize| usize::try_from(number(at, 8)?).ok();
    let (sections, size, count) = (place(0x28)?, number(0x3a, 2)? as usize, number(0x3c, 2)? as usize);
    let section = |index: usize| sections + index * size;
    let symbols = (0..count).map(section).find(|at| number(at + 4, 4) == Some(DYNAMIC_SYMBOLS))?;
    let names = place(section(number(symbols + 0x28, 4)? as usize) + 0x18)?;
    let (begin, length) = (place(symbols + 0x18)?, place(symbols + 0x20)?);
    (begin..begin + length).step_by(24).find_map(|symbol| {
        let text = page.get(names + number(symbol, 4)? as usize..)?;
        let is_it = text.starts_with(name.as_bytes()) && text.get(name.len()) == Some(&0);
        is_it.then(|| place(symbol + 8)).flatten()
    })
}

/// `clock_gettime(clock in edi, timespec in rsi)`: adds to seconds of the wall clock, fine (0) and coarse (5).
fn clock_gettime(seconds: i64) -> Vec<u8> {
    let mut code = vec![0xb8, 228, 0, 0, 0, 0x0f, 0x05]; // mov eax, 228; syscall
    code.extend([0x85, 0xc0, 0x75, 22]); // test eax, eax; jnz end
    code.extend([0x85, 0xff, 0x74, 5]); // test edi, edi; jz add
    code.extend([0x83, 0xff, 5, 0x75, 13]); // cmp edi, 5; jne end
    code.extend(add(seconds, 0x0e)); // add: mov rcx, seconds; add [rsi], rcx
    code.push(0xc3); // end: ret
    code
}

/// `gettimeofday(timeval in rdi, zone in rsi)`; nobody asks for the zone alone.
fn gettimeofday(seconds: i64) -> Vec<u8> {
    let mut code = vec![0xb8, 96, 0, 0, 0, 0x0f, 0x05];
    code.extend([0x85, 0xc0, 0x75, 13]);
    code.extend(add(seconds, 0x0f)); // add [rdi], rcx
    code.push(0xc3);
    code
}

/// `time(NULL)`; a pointer gets the right time, and who asks so late in history gets a wrong answer all the same.
fn time(seconds: i64) -> Vec<u8> {
    let mut code = vec![0xb8, 201, 0, 0, 0, 0x0f, 0x05];
    code.extend([0x48, 0xb9]);
    code.extend(seconds.to_le_bytes());
    code.extend([0x48, 0x01, 0xc8, 0xc3]); // add rax, rcx; ret
    code
}

fn add(seconds: i64, operand: u8) -> Vec<u8> {
    let mut code = vec![0x48, 0xb9];
    code.extend(seconds.to_le_bytes());
    code.extend([0x48, 0x01, operand]);
    code
}

/// A process whose clock is set and set right again.
pub(crate) mod trial {
    use std::{
        io::{BufRead as _, BufReader},
        process::{Command, Stdio},
    };

    use super::*;

    pub(crate) fn run() {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program).arg(crate::TICK).stdout(Stdio::piped()).spawn().expect("it runs");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut off = || {
            let told: i64 = lines.next().expect("it ticks").expect("text").parse().expect("seconds");
            told - now()
        };
        assert!(off().abs() < 60);
        let wrong = WrongClock::set(child.id(), -3_600);
        // One may have been on its way.
        let told: Vec<i64> = (0..3).map(|_| off()).collect();
        assert!((-3_660..-3_540).contains(&told[2]), "{told:?}");
        wrong.mend();
        let told: Vec<i64> = (0..3).map(|_| off()).collect();
        assert!(told[2].abs() < 60, "{told:?}");
        child.kill().and_then(|()| child.wait()).expect("it ends");
        println!("test clock::a_process_is_told_a_wrong_time_and_then_the_right_one ... ok");
    }

    /// The body of that process.
    pub(crate) fn tick() {
        use std::io::Write as _;
        while writeln!(std::io::stdout(), "{}", now()).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn now() -> i64 {
        use base::clock::Clock as _;
        base::clock::SystemClock.now_ms() / 1_000
    }
}
