//! The unmodified `triton` command against a datacenter of its own.
//!
//! One datacenter is started below a temporary root with `neso up`, and one long story is told to it, in the order a
//! tenant would: each command is the real npm package, and what it prints is compared with the contract field by field. The
//! story is one test, because its steps build on each other; a step that fails names its command and shows its output.
//!
//! `NESO_TRITON` names the command; without it one on the path is taken. Without any, or without root, the test says so and
//! passes, unless `NESO_REQUIRE_CLIENTS` is set, as `make test` does.
#![allow(
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "the subject is other people's commands, and skips are said"
)]

mod datacenter;
mod shape;
mod story;

#[test]
fn the_triton_command_works_unmodified() {
    let triton = std::env::var("NESO_TRITON").unwrap_or_else(|_| "triton".to_owned());
    if let Some(lack) = datacenter::lack(&triton) {
        assert!(std::env::var_os("NESO_REQUIRE_CLIENTS").is_none(), "cannot run the clients' tests: {lack}");
        println!("skipped: the triton command's test, because {lack}");
        return;
    }
    let datacenter = datacenter::Datacenter::start(&triton);
    story::tell(&datacenter);
}
