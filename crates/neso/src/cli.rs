//! The command line: what can be typed, and which module answers. The runtime is made here, as small as each command
//! allows.

use std::{future::Future, process::ExitCode};

use base::shutdown::Shutdown;
use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use crate::{
    adm,
    context::Place,
    doctor, down,
    failure::{Failure, Outcome},
    image, install, join, manual, processes, restore,
    tenant::{self, call, nouns},
    top, up,
};

/// What exit codes mean, at the end of `--help`.
const EXIT_CODES: &str = "Exit codes: 0 done; 1 refused or failed, with the reason and what to do about it on standard \
error; 2 a command line that cannot be read. `neso instance ssh` ends with the code of ssh.";

/// A public cloud on your own machines.
#[derive(Debug, Parser)]
#[command(name = "neso", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the datacenter on this machine, making whatever is not there yet.
    Up {
        /// Stay in the foreground and supervise; otherwise a background process does.
        #[arg(long)]
        foreground: bool,
    },
    /// Stop the datacenter on this machine.
    Down {
        /// Leave instances running.
        #[arg(long)]
        keep_instances: bool,
    },
    /// Remove every trace of the datacenter: instances, data, certificates, settings.
    CleanData {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Run the headnode in the foreground.
    Headnode {
        /// End when standard input closes.
        #[arg(long, hide = true)]
        supervised: bool,
    },
    /// Run the node's agent in the foreground, or make this machine a node of a datacenter.
    Node {
        /// End when standard input closes.
        #[arg(long, hide = true)]
        supervised: bool,
        #[command(subcommand)]
        verb: Option<join::Verb>,
    },
    /// Become this machine's member of the store's cluster.
    #[command(hide = true)]
    Member {
        /// End when the process that started it ends.
        #[arg(long, hide = true)]
        supervised: bool,
        /// Wait until this machine is to have one.
        #[arg(long)]
        wait: bool,
    },
    /// Become Prometheus, where this machine's headnode has it beside it.
    #[command(hide = true)]
    Monitor {
        /// End when the process that started it ends.
        #[arg(long, hide = true)]
        supervised: bool,
        /// Wait until this machine is to have one.
        #[arg(long)]
        wait: bool,
    },
    /// Become Alertmanager, where this machine's headnode has it beside it.
    #[command(hide = true)]
    Notifier {
        /// End when the process that started it ends.
        #[arg(long, hide = true)]
        supervised: bool,
        /// Wait until this machine is to have one.
        #[arg(long)]
        wait: bool,
    },
    /// Keep headnode and node running; `neso up` starts this in the background.
    #[command(hide = true)]
    Supervise,
    /// Start the datacenter under systemd, so that it starts with the machine.
    Install {
        /// Print the systemd units instead.
        #[arg(long)]
        print: bool,
    },
    /// Halt the instances; a systemd unit runs this when the machine goes down.
    #[command(hide = true)]
    HaltInstances,
    /// Make a headnode of a backup, on a machine that has none.
    Restore(restore::Command),
    /// Operators' commands.
    Adm(adm::Command),
    /// Tenants' commands: instances over CloudAPI, with triton's profiles.
    #[command(visible_alias = "inst")]
    Instance(tenant::Command),
    /// The tenant's account.
    Account(nouns::Noun<nouns::Account>),
    /// The account's SSH keys.
    Key(nouns::Noun<nouns::Key>),
    /// Images: list, show, change, build.
    #[command(visible_alias = "img")]
    Image(nouns::Noun<nouns::Image>),
    /// Packages: the sizes instances come in.
    #[command(visible_alias = "pkg")]
    Package(nouns::Noun<nouns::Package>),
    /// Networks and their addresses.
    #[command(visible_alias = "net")]
    Network(nouns::Noun<nouns::Network>),
    /// Ask any endpoint of CloudAPI, signed with the tenant's key.
    Cloudapi(call::Call),
    /// Watch the datacenter: machines, the busiest instances, flows under way, alerts.
    Top(top::Command),
    /// Check machine and datacenter, and say how to mend each finding.
    Doctor {
        /// Print JSON.
        #[arg(short, long)]
        json: bool,
    },
    /// Read the manual.
    Manual {
        /// Which chapter; without one, the list.
        chapter: Option<String>,
    },
}

/// Parses, runs, prints a failure.
pub(crate) fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("neso: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Outcome {
    let place = cli.place;
    match cli.command {
        Command::Up { foreground } => small(|shutdown| async move { up::run(&place, foreground, shutdown).await }),
        Command::Down { keep_instances } => small(|_| async move { down::run(&place, keep_instances).await }),
        Command::CleanData { yes } => small(|_| async move { down::clean(&place, yes).await }),
        Command::Headnode { supervised } => processes::headnode(&place, supervised),
        Command::Node { verb: Some(verb), .. } => small(|_| async move { join::run(&place, verb).await }),
        Command::Member { supervised, wait } => processes::member(&place, supervised, wait),
        Command::Monitor { supervised, wait } => processes::monitor(&place, supervised, wait),
        Command::Notifier { supervised, wait } => processes::notifier(&place, supervised, wait),
        Command::Node { supervised, verb: None } => processes::node(&place, supervised),
        Command::Supervise => processes::supervisor(&place),
        Command::Install { print } => small(|_| async move { install::run(&place, print).await }),
        Command::HaltInstances => small(|_| async move { down::halt_instances(&place).await }),
        Command::Restore(command) => small(|_| async move { restore::run(&place, command).await }),
        Command::Adm(command) => asking(async move { adm::run(&place, command).await }),
        Command::Instance(command) if command.is_endless() => watching(async move { tenant::run(command).await }),
        Command::Instance(command) => asking(async move { tenant::run(command).await }),
        Command::Top(command) if command.is_endless() => watching(async move { top::run(&place, command).await }),
        Command::Top(command) => asking(async move { top::run(&place, command).await }),
        Command::Doctor { json } => asking(async move { doctor::run(&place, json).await }),
        Command::Account(noun) => asking(async move { nouns::account(noun).await }),
        Command::Key(noun) => asking(async move { nouns::key(noun).await }),
        Command::Image(noun) => match noun.verb {
            nouns::Image::Build(command) => image::run(command),
            _ => asking(async move { nouns::image(noun).await }),
        },
        Command::Package(noun) => asking(async move { nouns::package(noun).await }),
        Command::Network(noun) => asking(async move { nouns::network(noun).await }),
        Command::Cloudapi(call) => asking(async move { call::run(call).await }),
        Command::Manual { chapter } => manual::run(chapter.as_deref()),
    }
}

/// Runs a command on a runtime of one thread, with a shutdown that Ctrl-C and SIGTERM set.
fn small<F: Future<Output = Outcome>>(command: impl FnOnce(Shutdown) -> F) -> Outcome {
    on(&Builder::new_current_thread().enable_all().build()?, command)
}

/// Runs a command that asks, waits and shows: a signal ends it at once. What it asked for goes on in the datacenter.
fn asking(command: impl Future<Output = Outcome>) -> Outcome {
    let interrupted = || Err(Failure::new("interrupted; what was already asked for goes on in the datacenter"));
    small(|shutdown| async move { shutdown.unless(command).await.unwrap_or_else(interrupted) })
}

/// Runs a command that shows what happens until whoever watches has seen enough and interrupts it.
fn watching(command: impl Future<Output = Outcome>) -> Outcome {
    small(|shutdown| async move { shutdown.unless(command).await.unwrap_or(Ok(())) })
}

/// Runs a command on a runtime.
pub(crate) fn on<F: Future<Output = Outcome>>(runtime: &Runtime, command: impl FnOnce(Shutdown) -> F) -> Outcome {
    runtime.block_on(async {
        let (trigger, shutdown) = Shutdown::new();
        processes::listen_for_signals(trigger);
        command(shutdown).await
    })
}
