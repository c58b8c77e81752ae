//! `neso`: the one binary. Operators run `neso up`, `neso adm`, `neso doctor`; tenants run `neso instance`; the machine
//! itself runs `neso headnode`, `neso node` and one `neso zone-supervisor` per instance.
//!
//! The supervisor is dispatched before anything else happens: it must stay a small single-threaded process, so no
//! runtime, no argument parser and no logger may exist before it.

mod cli;
mod context;
mod failure;
mod image;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if arguments
        .get(1)
        .is_some_and(|word| word == "zone-supervisor")
    {
        return ExitCode::FAILURE;
    }
    cli::main()
}
