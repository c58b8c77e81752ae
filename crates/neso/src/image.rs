//! `neso image`: building images on this machine. The recipes are in `host`; this is the command around them, and the
//! metadata client they put into every image, built into this binary as a static program.

use std::path::{Path, PathBuf};

use base::clock::{Clock, SystemClock};
use host::linux::imagebuild::{self, Order};
use model::time::Timestamp;

use crate::failure::{Failure, Outcome};

/// The static metadata client; `build.rs` made it.
static MDATA: &[u8] = include_bytes!(env!("NESO_MDATA"));

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
    let manifest = build(&name, &output, &|words| eprintln!("{words}"))?;
    say(&manifest.display().to_string());
    Ok(())
}

/// Builds image `name` into `output`, telling `progress` what happens; returns the path of the manifest.
pub(crate) fn build(name: &str, output: &Path, progress: &dyn Fn(&str)) -> Outcome<PathBuf> {
    if !imagebuild::RECIPES.contains(&name) {
        return Err(Failure::new(format!("there is no recipe for an image called `{name}`"))
            .mend(format!("there are recipes for: {}", imagebuild::RECIPES.join(", "))));
    }
    let published_at = Timestamp(SystemClock.now_ms()).to_string();
    // "2026-11-24T…" gives the version 20261124.
    let version: String = published_at.chars().take(10).filter(char::is_ascii_digit).collect();
    let order = Order { name, version: &version, published_at: &published_at, mdata: MDATA, output, progress };
    Ok(imagebuild::build(&order)?)
}

#[expect(clippy::print_stdout, reason = "this is the command's answer")]
fn say(line: &str) {
    println!("{line}");
}
