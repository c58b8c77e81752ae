//! `neso adm placement …`: why instances go where they go, and how many more would fit.

use model::placement::{Explanation, explain::Unplaced};
use opsapi::{Client, PlacementQuestion};

use super::{Output, table};
use crate::{answer, failure::Outcome};

/// Machines listed per stage; the rest is counted.
const NAMED_MAX: usize = 3;

/// What to ask.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Would so many of these fit, and where? Nothing is made.
    Explain {
        /// Package by name or id.
        #[arg(long)]
        package: String,
        /// Whose they would be; affinity and spread then see this account's instances.
        #[arg(long)]
        account: Option<String>,
        /// Network by name or id; may be repeated.
        #[arg(long = "network")]
        networks: Vec<String>,
        /// Rule of affinity, such as `instance!=db*`; may be repeated.
        #[arg(long)]
        affinity: Vec<String>,
        /// How many.
        #[arg(long, default_value_t = 1)]
        count: u32,
    },
    /// The last requests that found no machine, and why.
    Refused,
}

/// Runs it.
pub(crate) async fn run(client: &Client, output: Output, command: Command) -> Outcome {
    match command {
        Command::Explain { package, account, networks, affinity, count } => {
            let question = PlacementQuestion { account, package, networks, affinity, count: Some(count) };
            let explanation = client.explain_placement(&question).await?;
            if output.json {
                return output.show(&explanation, stages);
            }
            answer::print(stages(&explanation))?;
            if explanation.ranked.is_empty() {
                for rule in &explanation.unmet {
                    answer::print(format!("No instance matches \"{rule}\", so no machine can meet it."))?;
                }
                return output.say("No machine can take one.");
            }
            answer::print(ranking(&explanation))?;
            let drawn_from = explanation.ranked.iter().filter(|ranked| ranked.drawn_from).count();
            if drawn_from > 1 {
                let band = explanation.band;
                answer::print(format!(
                    "The first {drawn_from} are within {band} points of the best: one of them is drawn."
                ))?;
            }
            let placed = count.saturating_sub(explanation.left_over);
            match explanation.left_over {
                0 => output.say(format!("All {placed} would fit.")),
                left => output.say(format!("{placed} would fit, {left} would find no machine.")),
            }
        }
        Command::Refused => output.show(&client.unplaced().await?, |refused| refusals(refused)),
    }
}

fn stages(explanation: &Explanation) -> comfy_table::Table {
    table(
        &["stage", "machines before", "turned down", "why"],
        explanation.stages.iter().map(|stage| {
            let mut why: Vec<String> = stage
                .refused
                .iter()
                .take(NAMED_MAX)
                .map(|refused| format!("{}: {}", refused.hostname, refused.reason))
                .collect();
            if stage.refused.len() > NAMED_MAX {
                why.push(format!("and {} more", stage.refused.len() - NAMED_MAX));
            }
            vec![stage.name.clone(), stage.before.to_string(), stage.refused.len().to_string(), why.join("\n")]
        }),
    )
}

fn ranking(explanation: &Explanation) -> comfy_table::Table {
    table(
        &["machine", "would take", "score", "room", "soft rules", "neighbours"],
        explanation.ranked.iter().map(|ranked| {
            vec![
                ranked.hostname.clone(),
                explanation.fits.get(&ranked.server).copied().unwrap_or(0).to_string(),
                ranked.score.to_string(),
                ranked.room.to_string(),
                ranked.soft_rules.to_string(),
                ranked.neighbours.to_string(),
            ]
        }),
    )
}

fn refusals(refused: &[Unplaced]) -> comfy_table::Table {
    table(
        &["at", "owner", "name", "package", "why"],
        refused.iter().map(|refused| {
            vec![
                refused.at.to_string(),
                refused.owner.to_string(),
                refused.alias.clone(),
                refused.package.clone(),
                refused.summary.clone(),
            ]
        }),
    )
}
