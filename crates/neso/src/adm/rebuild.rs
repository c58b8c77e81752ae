//! `neso adm rebuild`: make known again what machines have and no record knows, after a restore or when they were brought.

use opsapi::{Client, FoundInstance, FoundRule, Rebuild, RebuildView};

use super::{Output, or_dash, table};
use crate::{answer, failure::Outcome};

/// Which, and whether.
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    /// Carry it out. Without this, only what would be done is shown.
    #[arg(long)]
    yes: bool,
    /// Go on although some instances cannot be adopted: they run on, but nobody knows them and no firewall filters them. Machines that do not answer
    /// are told nothing until they do.
    #[arg(long, requires = "yes")]
    leave: bool,
}

/// Runs it.
pub(crate) async fn run(client: &Client, output: Output, command: Command) -> Outcome {
    let view = match command.yes {
        true => client.rebuild(&Rebuild { leave: command.leave }).await?,
        false => client.rebuild_look().await?,
    };
    if output.json {
        return output.show(&view, |_| comfy_table::Table::new());
    }
    if !view.found.is_empty() {
        let rows = view.found.iter().map(row);
        answer::print(table(
            &["instance", "name", "owner", "package", "addresses", "server", "state", "verdict"],
            rows,
        ))?;
        for found in &view.found {
            for note in &found.notes {
                answer::print(format!("{}: {note}", found.instance))?;
            }
        }
    }
    if !view.rules.is_empty() {
        answer::print(table(&["rule", "owner", "text", "server", "verdict"], view.rules.iter().map(rule_row)))?;
        for rule in &view.rules {
            for note in &rule.notes {
                answer::print(format!("{}: {note}", rule.rule))?;
            }
        }
    }
    if !view.lost.is_empty() {
        let rows = view.lost.iter().map(|lost| {
            let (id, alias) = (lost.instance.to_string(), lost.alias.clone());
            vec![id, alias, or_dash(lost.owner_login.as_ref()), lost.server.to_string(), lost.lost_at.to_string()]
        });
        answer::print(table(&["lost instance", "name", "owner", "server", "since"], rows))?;
    }
    answer::print(summary(&view))?;
    Ok(())
}

fn row(found: &FoundInstance) -> Vec<String> {
    let addresses: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
    let state = found.state.map(|state| format!("{state:?}").to_lowercase());
    let owner = found.owner_login.clone().or_else(|| found.owner.map(|owner| owner.to_string()));
    vec![
        found.instance.to_string(),
        or_dash(found.alias.as_ref()),
        or_dash(owner),
        or_dash(found.package.as_ref()),
        addresses.join(" "),
        found.hostname.clone(),
        or_dash(state),
        found.refused.clone().unwrap_or_else(|| "adopted".to_owned()),
    ]
}

fn rule_row(found: &FoundRule) -> Vec<String> {
    let owner = found.owner_login.clone().or_else(|| found.owner.map(|owner| owner.to_string()));
    vec![
        found.rule.to_string(),
        owner.unwrap_or_else(|| "everybody's".to_owned()),
        found.text.clone(),
        found.hostname.clone(),
        found.refused.clone().unwrap_or_else(|| "made again".to_owned()),
    ]
}

/// How it stands, and what to do next.
fn summary(view: &RebuildView) -> String {
    let refused = view.found.iter().filter(|found| found.refused.is_some()).count();
    let rules_refused = view.rules.iter().filter(|rule| rule.refused.is_some()).count();
    let silent: Vec<&str> =
        view.waiting.iter().filter(|server| !server.has_spoken).map(|server| server.hostname.as_str()).collect();
    let adopted = view.found.len() - refused;
    let mut lines = Vec::new();
    lines.push(match (view.done, view.found.len()) {
        (_, 0) => "No machine has an instance that no record knows.".to_owned(),
        (true, _) => format!("{adopted} instances are known again, {refused} are not."),
        (false, _) => format!("{adopted} instances would be known again, {refused} would not. --yes carries it out."),
    });
    let rules = view.rules.iter().filter(|rule| rule.refused.is_none()).count();
    match (view.done, rules) {
        (_, 0) => {}
        (true, _) => lines.push(format!("{rules} rules of the firewall are known again.")),
        (false, _) => lines.push(format!("{rules} rules of the firewall would be known again.")),
    }
    if !view.lost.is_empty() {
        lines.push(format!(
            "{} instances of the backup are not on their machines: they are marked as failed, and may be deleted.",
            view.lost.len()
        ));
    }
    if !silent.is_empty() {
        lines.push(format!("Not heard of since, and told nothing until then: {}.", silent.join(", ")));
    }
    let unheard: Vec<String> = view
        .waiting
        .iter()
        .filter_map(|server| Some(format!("{} ({})", server.hostname, server.unheard.as_ref()?)))
        .collect();
    if !unheard.is_empty() {
        lines.push(format!(
            "Did not say now which rules of the firewall they hold, some of which nobody else may know: {}.",
            unheard.join("; ")
        ));
    }
    match (view.waiting.iter().filter(|server| server.has_spoken).count(), view.done) {
        (0, _) => {}
        (count, true) if !unheard.is_empty() => lines.push(format!(
            "{count} machines are told nothing until all have said it: run it again when they answer. --leave goes on with the others, and leaves those that \
             do not answer as they are until they do."
        )),
        (count, true) if refused + rules_refused > 0 => lines.push(format!(
            "{count} machines are told nothing until what stands in the way is gone, or --leave leaves that alone."
        )),
        (count, true) => lines.push(format!("{count} machines are told nothing yet: run it again in a moment.")),
        (count, false) => lines.push(format!("{count} machines are told nothing until --yes.")),
    }
    if view.waiting.iter().any(|server| server.brought) {
        lines.push(
            "An owner is an account of its own; `neso adm account create LOGIN --id OWNER` before --yes gives it its name, otherwise it gets one, and keys \
             may be added to it."
                .to_owned(),
        );
    }
    lines.push(
        "Rules of the firewall that were disabled, or concerned no instance, no machine holds; and of those of the backup some may have been deleted since."
            .to_owned(),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use model::{id::ServerId, time::Timestamp};
    use opsapi::WaitingServer;

    use super::*;

    #[test]
    fn who_did_not_say_what_it_holds_is_named() {
        let waiting = |hostname: &str, unheard: Option<&str>| WaitingServer {
            server: ServerId::random(),
            hostname: hostname.to_owned(),
            taken_at: Timestamp(1),
            brought: false,
            has_spoken: true,
            unheard: unheard.map(str::to_owned),
        };
        let said = |waiting| summary(&RebuildView { waiting, done: true, ..RebuildView::default() });
        let text = said(vec![waiting("cn-1", None), waiting("cn-2", Some("it is silent"))]);
        assert!(text.contains("cn-2 (it is silent)") && !text.contains("cn-1 ("), "{text}");
        assert!(
            text.contains("2 machines are told nothing until all have said it") && text.contains("--leave"),
            "{text}"
        );
        let text = said(vec![waiting("cn-1", None)]);
        assert!(text.contains("run it again in a moment") && !text.contains("--leave"), "{text}");
    }
}
