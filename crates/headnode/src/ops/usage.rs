//! What accounts used in a month, page by page.

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use control::{
    Control,
    tables::{ACCOUNTS, SERVERS},
    usage::{self, PAGE_ACCOUNTS, PAGE_ROWS},
};
use model::{
    id::{AccountId, InstanceId},
    usage::{Month, Row, Sums},
};
use opsapi::{AccountUsage, MachineBehind, UsageQuestion, UsageView};

use super::{Answer, Ops, Refusal, accounts};

/// How long hours may take to be counted before somebody is told that they are missing, milliseconds.
const LATE_MS: i64 = 600_000;

pub(super) fn routes() -> Router<Ops> {
    Router::new().route("/v1/usage", get(of_month))
}

async fn of_month(State(ops): State<Ops>, Query(asked): Query<UsageQuestion>) -> Answer<UsageView> {
    let control = &ops.control;
    let month = match &asked.month {
        Some(text) => {
            let wrong = |error: model::usage::NoTime| control::Error::invalid("month", error.to_string());
            text.parse::<Month>().map_err(wrong)?
        }
        None => Month::of(control.now()),
    };
    let (accounts, next) = match &asked.account {
        Some(account) => one_account(control, month, account, asked.after.as_deref())?,
        None => all_accounts(control, month, asked.after.as_deref())?,
    };
    let behind = if asked.after.is_none() { behind(control) } else { Vec::new() };
    Ok(Json(UsageView { month, accounts, behind, next }))
}

fn all_accounts(
    control: &Control,
    month: Month,
    after: Option<&str>,
) -> Result<(Vec<AccountUsage>, Option<String>), Refusal> {
    let after: Option<AccountId> = parsed(after)?;
    let (found, more) = usage::of_month(control, month, after, PAGE_ACCOUNTS);
    let next = found.last().filter(|_| more).map(|(account, _)| account.to_string());
    let accounts = found.into_iter().map(|(account, sums)| AccountUsage {
        account,
        login: login(control, account),
        sums,
        instances: Vec::new(),
    });
    Ok((accounts.collect(), next))
}

/// With what each of its instances used. An account that is no more is found by its id.
fn one_account(
    control: &Control,
    month: Month,
    account: &str,
    after: Option<&str>,
) -> Result<(Vec<AccountUsage>, Option<String>), Refusal> {
    let after: Option<InstanceId> = parsed(after)?;
    let found = accounts::find(control, account).map(|account| account.id);
    let id = match (found, account.parse::<AccountId>()) {
        (Ok(id), _) => id,
        (Err(_), Ok(id)) if !usage::of_account(control, month, id).is_empty() => id,
        (Err(refusal), _) => return Err(refusal),
    };
    let rows = usage::of_account(control, month, id);
    if rows.is_empty() {
        return Ok((Vec::new(), None));
    }
    let sums = rows.iter().fold(Sums::default(), |sums, row| sums.plus(row.sums));
    let (instances, next) = page(rows, after);
    Ok((vec![AccountUsage { account: id, login: login(control, id), sums, instances }], next))
}

/// Rows behind an instance, as many as a page takes; all of one instance are on one page.
fn page(rows: Vec<Row>, after: Option<InstanceId>) -> (Vec<Row>, Option<String>) {
    let begin = rows.partition_point(|row| after.is_some_and(|after| row.instance <= after));
    let mut end = rows.len().min(begin + PAGE_ROWS);
    while end < rows.len() && rows[end].instance == rows[end - 1].instance {
        end += 1;
    }
    let next = (end < rows.len()).then(|| rows[end - 1].instance.to_string());
    (rows[begin..end].to_vec(), next)
}

fn behind(control: &Control) -> Vec<MachineBehind> {
    let snapshot = control.snapshot();
    let hostname = |server| snapshot.get(&SERVERS, &format!("{server}")).map(|found| found.hostname.clone());
    let all = usage::behind(control, control.now().plus_millis(-LATE_MS)).into_iter();
    all.map(|(server, through)| MachineBehind { server, hostname: hostname(server).unwrap_or_default(), through })
        .collect()
}

fn login(control: &Control, account: AccountId) -> Option<String> {
    control.snapshot().get(&ACCOUNTS, &account.to_string()).map(|account| account.login.clone())
}

fn parsed<T: std::str::FromStr>(after: Option<&str>) -> Result<Option<T>, Refusal> {
    let wrong = |_| control::Error::invalid("after", "must be what `next` of the page before said");
    Ok(after.map(str::parse).transpose().map_err(wrong)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_every_row_once_and_part_no_instance() {
        let row = |number: usize, package: &str| Row {
            instance: InstanceId::from_random((number as u128) << 96),
            owner: AccountId::from_random(1),
            alias: String::new(),
            package: package.to_owned(),
            sums: Sums::default(),
        };
        let mut rows: Vec<_> =
            (0..PAGE_ROWS).flat_map(|number| [row(number, "a"), row(number, "b"), row(number, "c")]).collect();
        rows.sort_by_key(|row| row.instance);
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let (some, next) = page(rows.clone(), after);
            assert!(some.len() >= 3 && some.len() <= PAGE_ROWS + 2);
            all.extend(some);
            let Some(next) = next else { break };
            after = Some(next.parse().unwrap());
        }
        assert!(all == rows, "{} of {} rows", all.len(), rows.len());
    }
}
