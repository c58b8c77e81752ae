//! `neso adm usage`: what accounts used in a month.

use model::usage::{Month, Row, SEVERAL, Sums};
use opsapi::{Client, UsageQuestion, UsageView};

use super::{Output, bytes, table};
use crate::failure::Outcome;

/// What accounts used in a month, for bills.
///
/// Machines write down every minute what their instances use, add it up by the hour, and a headnode counts each hour some minutes after
/// it has ended. So the present hour is not in a month yet, and a month is whole when the next one is an hour old and no machine is named
/// beneath the table. Months are in UTC; the present one and three before it are kept.
///
/// RUNNING is the time instances ran, CPU what they computed, MEMORY the memory they might have used while they ran and DISK what they
/// took of the disk while they were there, in GiB times hours; SENT and RECEIVED are bytes of all NICs. With an account, there is a line for
/// each instance and package it had; instances beyond 400 an account and machine share a line `(several)` for each package.
///
/// `-j` has the exact sums: `minutes` (there), `running_minutes`, `cpu_ns`, `memory_mib_minutes`, `disk_mib_minutes`, `sent_bytes`,
/// `received_bytes`.
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    /// One account, by login or id, instance by instance; all accounts when none is named.
    account: Option<String>,
    /// The month, in UTC; the present one by default.
    #[arg(long, value_name = "YYYY-MM")]
    month: Option<Month>,
}

/// Machines that are named one by one when their hours are missing; `-j` has all.
const BEHIND_SHOWN: usize = 20;

/// Runs it.
pub(crate) async fn run(client: &Client, output: Output, command: Command) -> Outcome {
    let Command { account, month } = command;
    let is_one = account.is_some();
    let month = month.map(|month| month.to_string());
    let view = whole(client, UsageQuestion { month, account, after: None }).await?;
    output.show(&view, |view| if is_one { by_instance(view) } else { by_account(view) })?;
    for machine in view.behind.iter().take(BEHIND_SHOWN) {
        let hostname = &machine.hostname;
        output.say(match machine.through {
            Some(through) => format!("{hostname}: counted through {through}; its later hours are missing here."),
            None => format!("{hostname}: no hour of it is counted yet; the first is when it has ended."),
        })?;
    }
    if let Some(more @ 1..) = view.behind.len().checked_sub(BEHIND_SHOWN) {
        output.say(format!("So are those of {more} more machines."))?;
    }
    Ok(())
}

/// All pages as one.
async fn whole(client: &Client, question: UsageQuestion) -> Outcome<UsageView> {
    let mut view = client.usage(&question).await?;
    // All pages are of one month, also when another begins meanwhile.
    let month = Some(view.month.to_string());
    while let Some(after) = view.next.take() {
        let question = UsageQuestion { month: month.clone(), after: Some(after), ..question.clone() };
        let page = client.usage(&question).await?;
        view.next = page.next;
        for mut more in page.accounts {
            match view.accounts.last_mut().filter(|last| last.account == more.account) {
                // More of its instances; the sums are of all.
                Some(last) => {
                    last.instances.append(&mut more.instances);
                    last.sums = more.sums;
                }
                None => view.accounts.push(more),
            }
        }
    }
    Ok(view)
}

const COLUMNS: [&str; 6] = ["running", "cpu", "memory", "disk", "sent", "received"];

fn by_account(view: &UsageView) -> comfy_table::Table {
    let head: Vec<_> = ["account"].into_iter().chain(COLUMNS).collect();
    let name = |login: &Option<String>, id: model::id::AccountId| login.clone().unwrap_or_else(|| id.to_string());
    let rows = view.accounts.iter().map(|one| row(vec![name(&one.login, one.account)], one.sums));
    table(&head, rows)
}

fn by_instance(view: &UsageView) -> comfy_table::Table {
    let head: Vec<_> = ["instance", "name", "package"].into_iter().chain(COLUMNS).collect();
    let name = |one: &Row| if one.instance == SEVERAL { "(several)".to_owned() } else { one.instance.short() };
    let own = |one: &Row| row(vec![name(one), one.alias.clone(), one.package.clone()], one.sums);
    let all = view.accounts.iter().flat_map(|account| account.instances.iter().map(own));
    let sum =
        view.accounts.iter().map(|account| row(vec!["all".to_owned(), String::new(), String::new()], account.sums));
    table(&head, all.chain(sum).collect::<Vec<_>>())
}

/// Times in hours, room in GiB times hours.
fn row(mut names: Vec<String>, sums: Sums) -> Vec<String> {
    let hours = |minutes: u64| format!("{:.2} h", minutes as f64 / 60.0);
    let gib_hours = |mib_minutes: u64| format!("{:.2} GiB h", mib_minutes as f64 / (1_024.0 * 60.0));
    names.extend([
        hours(sums.running_minutes),
        format!("{:.2} h", sums.cpu_ns as f64 / 3.6e12),
        gib_hours(sums.memory_mib_minutes),
        gib_hours(sums.disk_mib_minutes),
        bytes(sums.sent_bytes),
        bytes(sums.received_bytes),
    ]);
    names
}
