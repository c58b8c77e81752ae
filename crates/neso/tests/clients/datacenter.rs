//! A datacenter below a temporary root, and commands run against it as its tenant.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

/// The binary under test.
const NESO: &str = env!("CARGO_BIN_EXE_neso");

/// The first start builds an image and waits for the first instance.
const UP_PATIENCE: Duration = Duration::from_secs(300);
/// Any other command; `triton … --wait` asks once a second.
const PATIENCE: Duration = Duration::from_secs(90);

/// What keeps the test from running here, if anything does.
pub(crate) fn lack(triton: &str) -> Option<String> {
    if !Path::new("/proc/self").exists() || run(Command::new("id").arg("-u"), PATIENCE).out.trim() != "0" {
        return Some("it needs root".to_owned());
    }
    let version = Command::new(triton).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    (!version.is_ok_and(|status| status.success())).then(|| format!("`{triton}` cannot be run (npm install -g triton)"))
}

/// What a command did.
pub(crate) struct Done {
    /// Command line, for messages.
    pub(crate) line: String,
    /// Exit code; `None` when it was ended by a signal or by us.
    pub(crate) code: Option<i32>,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Done {
    /// Insists on success and returns standard output.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert!(
            self.code == Some(0),
            "`{}` failed ({:?})\n--- out\n{}\n--- err\n{}",
            self.line,
            self.code,
            self.out,
            self.err
        );
        self.out
    }

    /// Insists on failure with these words.
    #[track_caller]
    pub(crate) fn refused(self, words: &str) {
        assert!(self.code != Some(0), "`{}` should have been refused\n--- out\n{}", self.line, self.out);
        assert!(self.err.contains(words), "`{}` was refused without \"{words}\":\n{}", self.line, self.err);
    }
}

/// Runs a command to its end, or ends it when its time is over.
fn run(command: &mut Command, patience: Duration) -> Done {
    let line = format!("{command:?}");
    let directory = tempfile::tempdir().expect("a directory for output");
    let file = |name: &str| std::fs::File::create(directory.path().join(name)).expect("a file for output");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file("out"))
        .stderr(file("err"))
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
    let deadline = Instant::now() + patience;
    let code = loop {
        if let Some(status) = child.try_wait().expect("our own child can be waited for") {
            break status.code();
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let text = |name: &str| {
        String::from_utf8_lossy(&std::fs::read(directory.path().join(name)).unwrap_or_default()).into_owned()
    };
    Done { line, code, out: text("out"), err: text("err") }
}

/// A running datacenter; removed when dropped.
pub(crate) struct Datacenter {
    root: PathBuf,
    kept: bool,
    environment: BTreeMap<String, String>,
    triton: String,
}

impl Datacenter {
    /// Writes settings, starts everything with the small image only, and learns how a tenant gets in.
    pub(crate) fn start(triton: &str) -> Self {
        // Writers of this story keep one datacenter between two runs.
        let kept = std::env::var_os("NESO_CLIENTS_ROOT").map(PathBuf::from);
        let fresh = || tempfile::Builder::new().prefix("neso-clients-").tempdir().expect("a root").keep();
        let mut datacenter = Self {
            kept: kept.is_some(),
            root: kept.unwrap_or_else(fresh),
            environment: BTreeMap::new(),
            triton: triton.to_owned(),
        };
        let up = datacenter.neso(&["up"], UP_PATIENCE);
        if up.code != Some(0) {
            let logs = datacenter.logs();
            panic!("`neso up` failed ({:?})\n{}\n{}\n--- logs\n{logs}", up.code, up.out, up.err);
        }
        datacenter.environment = exports(&up.out);
        for name in ["TRITON_URL", "TRITON_ACCOUNT", "TRITON_KEY_ID"] {
            assert!(datacenter.environment.contains_key(name), "`neso up` does not say {name}:\n{}", up.out);
        }
        datacenter
    }

    /// Runs our binary in this datacenter.
    pub(crate) fn neso(&self, arguments: &[&str], patience: Duration) -> Done {
        run(
            Command::new(NESO).arg("--root").arg(&self.root).args(arguments).env("HOME", self.root.join("home")),
            patience,
        )
    }

    /// Runs the tenants' command; the words are split at spaces.
    pub(crate) fn triton(&self, words: &str) -> Done {
        self.triton_with(&words.split(' ').collect::<Vec<_>>())
    }

    /// Runs the tenants' command.
    pub(crate) fn triton_with(&self, arguments: &[&str]) -> Done {
        run(&mut self.triton_command(arguments), PATIENCE)
    }

    /// The tenants' command, to be run in another way.
    pub(crate) fn triton_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.triton);
        command
            .args(arguments)
            .envs(&self.environment)
            .env("TRITON_TLS_INSECURE", "1")
            .env("HOME", self.root.join("home"));
        command.env_remove("SSH_AUTH_SOCK").env("NODE_NO_WARNINGS", "1");
        command
    }

    /// Runs it with `-j` and reads what it prints: one value, or one a line.
    #[track_caller]
    pub(crate) fn json(&self, words: &str) -> Vec<Value> {
        let out = self.triton(words).good();
        match serde_json::from_str(&out) {
            Ok(Value::Array(values)) => values,
            Ok(value) => vec![value],
            Err(_) => out
                .lines()
                .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("`{words}`: {error}: {line}")))
                .collect(),
        }
    }

    /// The same for exactly one value.
    #[track_caller]
    pub(crate) fn one(&self, words: &str) -> Value {
        let mut values = self.json(words);
        assert_eq!(values.len(), 1, "`{words}` printed {values:?}");
        values.remove(0)
    }

    /// A directory for the test's own files.
    pub(crate) fn scratch(&self) -> &Path {
        &self.root
    }

    /// The tenant's private key.
    pub(crate) fn key(&self) -> PathBuf {
        let directory = std::fs::read_dir(self.root.join("home/.ssh")).expect("`neso up` made the tenant's key");
        let public = directory.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        public
            .filter(|path| path.extension().is_some_and(|ending| ending == "pub"))
            .map(|path| path.with_extension(""))
            .next()
            .expect("a key has a public half")
    }

    fn logs(&self) -> String {
        ["headnode.log", "node.log"]
            .map(|name| std::fs::read_to_string(self.root.join("var/log/neso").join(name)).unwrap_or_default())
            .join("\n")
    }
}

impl Drop for Datacenter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- logs\n{}", self.logs());
        }
        if self.kept {
            return;
        }
        let done = self.neso(&["clean-data", "--yes"], UP_PATIENCE);
        if done.code == Some(0) {
            let _ = std::fs::remove_dir_all(&self.root);
        } else {
            eprintln!("`neso clean-data` failed: {}\n{}", done.err, done.out);
        }
    }
}

/// `export NAME=value` and `NAME=value` words of a text, quotes taken off.
fn exports(text: &str) -> BTreeMap<String, String> {
    text.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter(|(name, _)| name.starts_with("TRITON_") || name.starts_with("NODE_EXTRA"))
        .map(|(name, value)| (name.to_owned(), value.trim_matches(['"', '\'', '\\', ';']).to_owned()))
        .collect()
}
