//! The command line: what can be typed, and which module answers.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{context::Place, failure::Outcome, image};

/// A public cloud on your own machines.
#[derive(Debug, Parser)]
#[command(name = "neso", version, max_term_width = 100)]
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
    /// Remove every trace of the datacenter: data, instances, certificates, settings.
    CleanData {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Run the headnode in the foreground.
    Headnode,
    /// Run the node's agent in the foreground.
    Node,
    /// Write systemd units, so that the datacenter starts with the machine.
    Install {
        /// Print the units instead.
        #[arg(long)]
        print: bool,
    },
    /// Check machine and datacenter, and say how to mend each finding.
    Doctor {
        /// Print JSON.
        #[arg(short, long)]
        json: bool,
    },
    /// Build images.
    #[command(subcommand)]
    Image(image::Command),
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
    match cli.command {
        Command::Image(command) => image::run(command),
        _ => Err(crate::failure::Failure::new("this command is being built")),
    }
}
