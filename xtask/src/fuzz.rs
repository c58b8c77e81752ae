//! `cargo xtask fuzz [--seconds N] [target…]`: builds the fuzz targets with coverage counters, by the workspace's own toolchain, and
//! runs each for so long, or all.
//!
//! Starts from the seeds in `fuzz/corpus/`; what is found on the way lies below the target directory and is the start of
//! the next run. An input that breaks something is left in `artifacts` there; once mended, it becomes a seed.

use std::path::{Path, PathBuf};

use crate::command;

/// How long each target runs unless told otherwise.
const SECONDS: u64 = 60;
/// One input may take this long, seconds.
const INPUT_SECONDS: u64 = 10;
/// Memory of a target, MiB: nothing a stranger sends may need more.
const MEMORY_MIB: u64 = 1024;
/// What the fuzzer needs to see where an input leads: counters on edges, their table, and comparisons.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg fuzzing",
    "-Cdebug-assertions",
    "-Ccodegen-units=1",
];

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<(), String> {
    let (seconds, wanted) = parse(arguments)?;
    let known = targets(root)?;
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        return Err(format!("there is no fuzz target `{unknown}`; there are: {}", known.join(", ")));
    }
    let host = host_triple(root)?;
    let output = output_directory(root);
    let binaries = output.to_string_lossy().into_owned();
    let manifest = "fuzz/Cargo.toml";
    let build = ["build", "--release", "--manifest-path", manifest, "--target", &host, "--target-dir", &binaries];
    command::run_with(root, "cargo", &build, &[("RUSTFLAGS", &FLAGS.join(" "))])?;
    let mut broken = Vec::new();
    for name in known.iter().filter(|name| wanted.is_empty() || wanted.contains(name)) {
        if let Err(error) = fuzz(root, &output, &host, name, seconds) {
            eprintln!("{error}");
            broken.push(name.as_str());
        }
    }
    match broken.as_slice() {
        [] => Ok(()),
        broken => Err(format!("broken: {}; see `{}`", broken.join(", "), output.join("artifacts").display())),
    }
}

fn fuzz(root: &Path, output: &Path, host: &str, name: &str, seconds: u64) -> Result<(), String> {
    let found = output.join("found").join(name);
    let artifacts = output.join("artifacts");
    for directory in [&found, &artifacts] {
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("cannot make `{}`: {error}", directory.display()))?;
    }
    let program = output.join(host).join("release").join(name);
    let arguments = [
        format!("-max_total_time={seconds}"),
        format!("-timeout={INPUT_SECONDS}"),
        format!("-rss_limit_mb={MEMORY_MIB}"),
        "-print_final_stats=1".to_owned(),
        "-verbosity=0".to_owned(),
        format!("-artifact_prefix={}/{name}-", artifacts.display()),
        found.to_string_lossy().into_owned(),
        root.join("fuzz/corpus").join(name).to_string_lossy().into_owned(),
    ];
    command::run(root, &program.to_string_lossy(), &arguments.each_ref().map(String::as_str))
}

fn parse(arguments: &[String]) -> Result<(u64, Vec<String>), String> {
    let (mut seconds, mut names) = (SECONDS, Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--seconds" {
            let value = rest.next().ok_or("--seconds needs a number")?;
            seconds = value.parse().map_err(|_| format!("\"{value}\" is no number of seconds"))?;
        } else {
            names.push(argument.clone());
        }
    }
    Ok((seconds, names))
}

/// Names of all targets: the files they are.
fn targets(root: &Path) -> Result<Vec<String>, String> {
    let directory = root.join("fuzz/fuzz_targets");
    let entries =
        std::fs::read_dir(&directory).map_err(|error| format!("cannot list `{}`: {error}", directory.display()))?;
    let names = entries.flatten().filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

fn host_triple(root: &Path) -> Result<String, String> {
    let version = command::output(root, "rustc", &["--version", "--verbose"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "`rustc --version --verbose` names no host".to_owned())
}

fn output_directory(root: &Path) -> PathBuf {
    command::target_directory(root).join("fuzz")
}
