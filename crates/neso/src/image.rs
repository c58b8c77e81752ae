//! `neso image`: building images on this machine.

use std::path::PathBuf;

use crate::failure::{Failure, Outcome};

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Build an image file and its manifest from Debian's packages.
    Build {
        /// `minimal` or `debian-12`.
        name: String,
        /// Directory for the two files.
        #[arg(long, short, default_value = ".")]
        output: PathBuf,
    },
}

/// Runs it.
pub(crate) fn run(command: Command) -> Outcome {
    let Command::Build { name, output } = command;
    build(&name, &output, &|_| ()).map(|_| ())
}

/// Builds image `name` into `output`, telling `progress` what happens; returns the path of the manifest.
pub(crate) fn build(
    name: &str,
    _output: &std::path::Path,
    _progress: &dyn Fn(&str),
) -> Outcome<PathBuf> {
    Err(Failure::new(format!(
        "there is no recipe for an image called `{name}`"
    )))
}
