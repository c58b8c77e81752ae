//! `neso adm firewall …`: rules of the firewall of every account, global ones among them, and how far each is enforced.

use opsapi::{Client, FirewallRuleChange, FirewallRuleView, NewFirewallRule};

use super::{Output, firewall_log, table};
use crate::failure::{Failure, Outcome};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List rules.
    #[command(visible_alias = "ls")]
    List {
        /// Only this account's, by login or id.
        #[arg(long)]
        account: Option<String>,
    },
    /// One rule.
    Get {
        /// Its id.
        rule: String,
    },
    /// Make a rule: global, unless an account is named. Waits until machines enforce it.
    Create {
        /// Its text, such as `FROM any TO all vms ALLOW tcp PORT 22`.
        rule: String,
        /// Whose, by login or id.
        #[arg(long)]
        account: Option<String>,
        /// For people.
        #[arg(long)]
        description: Option<String>,
        /// Machines log what it decides.
        #[arg(long)]
        log: bool,
        /// Keep it disabled.
        #[arg(long)]
        disabled: bool,
    },
    /// Change a rule; what is not named stays. Waits until machines enforce it as it is then.
    Set(Set),
    /// Enable a rule.
    Enable {
        /// Its id.
        rule: String,
    },
    /// Disable a rule.
    Disable {
        /// Its id.
        rule: String,
    },
    /// Print what rules with logging decided, the newest last.
    Log(firewall_log::Log),
    /// Delete a rule.
    #[command(visible_alias = "rm")]
    Delete {
        /// Its id.
        rule: String,
    },
}

/// See [`Command::Set`].
#[derive(Debug, clap::Args)]
pub(crate) struct Set {
    /// Its id.
    id: String,
    /// Its new text.
    #[arg(long, value_name = "TEXT")]
    rule: Option<String>,
    /// Whether it does anything.
    #[arg(long, value_name = "BOOL")]
    enabled: Option<bool>,
    /// Whether machines log what it decides.
    #[arg(long, value_name = "BOOL")]
    log: Option<bool>,
    /// For people; empty takes it away.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

impl Set {
    fn change(self) -> Result<(String, FirewallRuleChange), Failure> {
        let Self { id, rule, enabled, log, description } = self;
        let change = FirewallRuleChange { rule, enabled, log, description };
        if change == FirewallRuleChange::default() {
            return Err(Failure::new("nothing to change is named: --rule, --enabled, --log or --description"));
        }
        Ok((id, change))
    }
}

/// Runs it.
pub(crate) async fn run(client: &Client, output: Output, command: Command) -> Outcome {
    let one = match command {
        Command::List { account } => {
            return output.show(&client.firewall_rules(account.as_deref()).await?, |rules| rows(rules));
        }
        Command::Delete { rule } => {
            client.delete_firewall_rule(&rule).await?;
            return output.say(format!("Deleted firewall rule {rule}."));
        }
        Command::Log(log) => return firewall_log::run(client, output, log).await,
        Command::Get { rule } => client.firewall_rule(&rule).await?,
        Command::Create { rule, account, description, log, disabled } => {
            let new = NewFirewallRule { account, rule, enabled: !disabled, log, description };
            client.create_firewall_rule(&new).await?
        }
        Command::Set(set) => {
            let (id, change) = set.change()?;
            client.change_firewall_rule(&id, &change).await?
        }
        Command::Enable { rule } => client.set_firewall_rule_enabled(&rule, true).await?,
        Command::Disable { rule } => client.set_firewall_rule_enabled(&rule, false).await?,
    };
    output.show(&one, |one| rows(std::slice::from_ref(one)))
}

fn rows(rules: &[FirewallRuleView]) -> comfy_table::Table {
    table(
        &["id", "owner", "enabled", "live on", "waiting for", "rule", "description"],
        rules.iter().map(|view| {
            vec![
                view.rule.id.to_string(),
                view.rule.owner.map_or_else(|| "global".to_owned(), |owner| owner.to_string()),
                view.rule.enabled.to_string(),
                format!("{} of {}", view.live, view.machines),
                view.waiting_for.join(", "),
                view.rule.rule.to_string(),
                view.rule.description.clone().unwrap_or_default(),
            ]
        }),
    )
}
