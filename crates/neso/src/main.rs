//! `neso`: the one binary. Operators run `neso up`, `neso adm`, `neso doctor`; tenants run `neso instance`; the machine
//! itself runs `neso headnode`, `neso node` and one `neso zone-supervisor` per instance.
//!
//! The supervisor is dispatched before anything else happens: it must stay a small single-threaded process, so no
//! runtime, no argument parser and no logger may exist before it.

mod adm;
mod answer;
mod cli;
mod context;
mod doctor;
mod down;
mod failure;
mod image;
mod importing;
mod install;
mod join;
mod machine;
mod manual;
mod processes;
mod progress;
mod promote;
mod restore;
mod supervise;
mod tenant;
mod top;
mod up;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|word| word == "zone-supervisor") {
        return host::linux::zone::supervisor::main(arguments);
    }
    cli::main()
}
