//! A machine in QEMU: emulated, for Debian's kernel does not boot under every `/dev/kvm`; driven over a virtio port, without
//! any network; its power can be cut.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::root::{Root, good};

/// One command's longest time: emulated, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(900);
/// How often we look.
const POLL: Duration = Duration::from_millis(100);

/// The machine, on or off.
pub(crate) struct Machine {
    directory: tempfile::TempDir,
    root: Root,
    running: Option<(Child, BufReader<UnixStream>)>,
}

impl Machine {
    /// One that is off, with its disks: the root, the directory `payload` as an archive, and an empty one.
    pub(crate) fn new(root: Root, payload: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("neso-machine-").tempdir().expect("a directory");
        root.copy_disk(&directory.path().join("root.img"));
        let archive = directory.path().join("payload.tar");
        good(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(payload).arg("."));
        let pool = fs::File::create(directory.path().join("pool.img")).expect("an empty disk");
        pool.set_len(2 << 30).expect("a sparse file");
        Self { directory, root, running: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Everything the kernel and systemd said, over all boots.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("console.log")).unwrap_or_default()).into_owned()
    }

    /// Switches it on and waits until it takes commands.
    pub(crate) fn boot(&mut self) {
        let socket = self.path("port");
        let _ = fs::remove_file(&socket);
        let disk = |name: &str, options: &str| {
            format!("file={},if=virtio,format=raw,cache=unsafe{options}", self.path(name).display())
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1536", "-nodefaults"]);
        qemu.args(["-no-user-config", "-display", "none", "-no-reboot", "-kernel"]).arg(self.root.kernel());
        qemu.arg("-initrd").arg(self.root.initrd());
        qemu.args(["-append", "rw console=ttyS0 panic=-1 systemd.show_status=0"]);
        let console = format!("file,id=console,append=on,path={}", self.path("console.log").display());
        qemu.args(["-chardev", &console, "-serial", "chardev:console", "-device", "virtio-serial"]);
        qemu.args(["-chardev", &format!("socket,id=port,server=on,wait=off,path={}", socket.display())]);
        qemu.args(["-device", "virtserialport,chardev=port,name=neso.0"]);
        for drive in [disk("root.img", ""), disk("payload.tar", ",readonly=on"), disk("pool.img", ",discard=unmap")] {
            qemu.args(["-drive", &drive]);
        }
        let child = qemu.stdin(Stdio::null()).spawn().expect("QEMU runs");
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "QEMU does not listen: {error}"),
            }
            std::thread::sleep(POLL);
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        self.running = Some((child, BufReader::new(stream)));
        self.good("true");
    }

    /// Runs a script in it; its status and what it printed.
    #[track_caller]
    pub(crate) fn run(&mut self, script: &str) -> (i32, String) {
        let console = self.path("console.log");
        let (_, port) = self.running.as_mut().expect("the machine is on");
        say(port, script);
        let mut answer = String::new();
        if let Err(error) = port.read_line(&mut answer) {
            let said = String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).into_owned();
            panic!("no answer to `{script}`: {error}\n--- console\n{}", tail(&said));
        }
        let (status, output) = answer.trim_end().split_once(' ').unwrap_or((answer.trim_end(), ""));
        (status.parse().unwrap_or(-1), String::from_utf8_lossy(&unbase64(output)).into_owned())
    }

    /// Runs a script that must succeed; what it printed.
    #[track_caller]
    pub(crate) fn good(&mut self, script: &str) -> String {
        let (status, output) = self.run(script);
        if status != 0 {
            let (_, logs) = self.run("tail -n 20 /var/log/neso/*.log");
            panic!("`{script}` failed ({status})\n{output}\n--- logs\n{logs}\n--- console\n{}", tail(&self.console()));
        }
        output
    }

    /// Waits until a script succeeds.
    #[track_caller]
    pub(crate) fn wait(&mut self, what: &str, script: &str) {
        let script = format!("n=0; until {script}; do n=$((n+1)); [ $n -lt 600 ] || exit 1; sleep 0.5; done");
        let (status, output) = self.run(&script);
        assert_eq!(status, 0, "waited in vain for {what}: {output}\n{}", self.run("tail -n 20 /var/log/neso/*.log").1);
    }

    /// Cuts the power.
    pub(crate) fn cut_power(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Tells it to go down and waits until it is off. Who takes our commands goes down with the rest, and may be too late to
    /// answer this one.
    pub(crate) fn power_off(&mut self) {
        let (mut child, mut port) = self.running.take().expect("the machine is on");
        say(&mut port, "systemctl poweroff");
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().expect("our own child").is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("it does not go down\n{}", tail(&self.console()));
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut_power();
    }
}

/// Sends a script.
fn say(port: &mut BufReader<UnixStream>, script: &str) {
    let line = format!("{}\n", base64(script.as_bytes()));
    port.get_mut().write_all(line.as_bytes()).expect("the port takes a command");
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for piece in bytes.chunks(3) {
        let word = piece.iter().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte)) << (8 * (3 - piece.len()));
        for place in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= piece.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn unbase64(text: &str) -> Vec<u8> {
    let digits = text.bytes().filter_map(|byte| ALPHABET.iter().position(|digit| *digit == byte));
    let (mut bytes, mut word, mut bits) = (Vec::new(), 0_usize, 0);
    for digit in digits {
        (word, bits) = (((word << 6) | digit) & 0xff_ffff, bits + 6);
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from((word >> bits) & 0xff).expect("eight bits"));
        }
    }
    bytes
}
