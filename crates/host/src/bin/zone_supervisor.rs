//! Zones' supervisors as a program of its own, for tests of this crate; installed machines use `neso zone-supervisor`.

use std::process::ExitCode;

fn main() -> ExitCode {
    host::linux::zone::supervisor::main(std::env::args_os().skip(1))
}
