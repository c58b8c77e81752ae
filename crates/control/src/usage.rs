//! What accounts used, month by month: hours that machines have added up, each counted once.
//!
//! ```text
//! a machine's hour ─► one record for each account in it: is this hour in it? ─► no: with the hour's rows, and the hour's number
//!                                                                                └─ all of them ─► "counted through this hour"
//! ```
//! A record has what one machine's instances of one account used in one month, and the number of the last hour in it. So an hour may be
//! brought again by whoever, in pieces, after a crash in between or by two headnodes at once, and is counted once. Hours of one machine
//! are brought in their order.
//!
//! Months stay bounded: a record has [`MONTH_ROWS_MAX`] rows and some, and months are kept for [`MONTHS_KEPT`]. A bill is read from the
//! records of one account, one after the other; all accounts are summed up page by page and never held together.

use std::collections::BTreeMap;

use model::{
    id::{AccountId, ServerId},
    time::Timestamp,
    usage::{Hour, HourUsage, Month, MonthUsage, Row, Sums, UsageRead, together},
};
use store::{Snapshot, Transaction};

use crate::{
    Control, Error, Result,
    tables::{INSTANCES, SERVERS, USAGE, USAGE_READ, usage_key},
};

#[cfg(doc)]
use model::usage::MONTH_ROWS_MAX;

/// Months that are kept besides the present one. Every headnode holds them in memory, some hundred bytes an instance and month; who bills
/// takes what it needs for its books out of them.
pub const MONTHS_KEPT: u16 = 3;
/// Accounts of one page of a month.
pub const PAGE_ACCOUNTS: usize = 1_000;
/// Rows of one page of an account's month.
pub const PAGE_ROWS: usize = 5_000;
/// Accounts whose records change in one commit: some 200 KiB each at the very most, where a store takes 1.5 MiB.
const COMMIT_ACCOUNTS: usize = 5;
/// Records forgotten in one pass, and in one commit.
const PASS_RECORDS: usize = 10_000;
const COMMIT_RECORDS: usize = 50;

/// The last hour of a machine that is counted. One that is yet to come was counted while a headnode's clock was wrong, and says nothing.
fn counted_through(snapshot: &Snapshot, server: ServerId, now: Timestamp) -> Option<Hour> {
    let read = snapshot.get(&USAGE_READ, &server.to_string());
    read.map(|read| read.through).filter(|through| *through <= Hour::of(now))
}

/// Machines of which an hour that had ended at `now` is not counted, and which is the last that is.
pub fn behind(control: &Control, now: Timestamp) -> Vec<(ServerId, Option<Hour>)> {
    let due = Hour::of(now).earlier(1);
    let snapshot = control.snapshot();
    let all = snapshot.scan(&SERVERS).map(|server| (server.id, counted_through(&snapshot, server.id, now)));
    all.filter(|(_, through)| through.is_none_or(|through| through < due)).collect()
}

/// Counts an hour of a machine; one that was counted before changes nothing. Rows for an account that does not own the instance are
/// nobody's; returns how many those were.
pub async fn count(control: &Control, server: ServerId, usage: &HourUsage) -> Result<usize> {
    let mut by_account: BTreeMap<AccountId, Vec<Row>> = BTreeMap::new();
    let mut refused = 0;
    let snapshot = control.snapshot();
    let is_owners = |row: &Row| {
        snapshot.get(&INSTANCES, &row.instance.to_string()).is_none_or(|instance| instance.owner == row.owner)
    };
    // What would be forgotten at once is not written.
    let is_kept = usage.hour.month() >= oldest_month(control);
    for row in usage.rows.iter().filter(|_| is_kept) {
        if is_owners(row) {
            by_account.entry(row.owner).or_default().push(row.clone());
        } else {
            refused += 1;
        }
    }
    let accounts: Vec<_> = by_account.into_iter().collect();
    for some in accounts.chunks(COMMIT_ACCOUNTS) {
        let counted = control.store.update(|snapshot| {
            let mut transaction = Transaction::new();
            for (account, rows) in some {
                let empty = MonthUsage::empty(*account, server, usage.hour);
                let held = snapshot.get(&USAGE, &usage_key(empty.month, *account, server));
                let before = held.as_ref().map_or(&empty, |held| &held.value);
                transaction = match (before.with(usage.hour, rows), &held) {
                    (None, _) => transaction,
                    (Some(next), Some(held)) => transaction.replace(&USAGE, held, next),
                    (Some(next), None) => transaction.create(&USAGE, next),
                };
            }
            Ok::<_, Error>((transaction, ()))
        });
        counted.await?;
        base::crash::point("control.usage.counted");
    }
    let now = control.now();
    let noted = control.store.update(|snapshot| {
        let read = UsageRead { server, through: usage.hour };
        let is_old = counted_through(snapshot, server, now).is_some_and(|through| through >= usage.hour);
        let transaction = match snapshot.get(&USAGE_READ, &server.to_string()) {
            Some(_) if is_old => Transaction::new(),
            Some(held) => Transaction::new().replace(&USAGE_READ, &held, read),
            None => Transaction::new().create(&USAGE_READ, read),
        };
        Ok::<_, Error>((transaction, ()))
    });
    noted.await?;
    Ok(refused)
}

/// What accounts used in a month as far as it is counted, by account and behind `after`: at most `most`, and whether there are more.
pub fn of_month(
    control: &Control,
    month: Month,
    after: Option<AccountId>,
    most: usize,
) -> (Vec<(AccountId, Sums)>, bool) {
    // The sign behind the one that ends the account's part of a key: what follows is of the next account.
    let begin = after.map_or_else(|| format!("{month}/"), |after| format!("{month}/{after}0"));
    let snapshot = control.snapshot();
    let mut found: Vec<(AccountId, Sums)> = Vec::new();
    for usage in snapshot.range(&USAGE, &begin).take_while(|usage| usage.month == month) {
        let sums = usage.rows.iter().fold(Sums::default(), |sums, row| sums.plus(row.sums));
        let is_full = found.len() == most;
        match found.last_mut().filter(|(account, _)| *account == usage.account) {
            Some((_, all)) => *all = all.plus(sums),
            None if is_full => return (found, true),
            None => found.push((usage.account, sums)),
        }
    }
    (found, false)
}

/// What one account used in a month as far as it is counted, by instance and package, on whatever machine.
pub fn of_account(control: &Control, month: Month, account: AccountId) -> Vec<Row> {
    let snapshot = control.snapshot();
    let records = snapshot.range(&USAGE, &format!("{month}/{account}/"));
    let records: Vec<_> = records.take_while(|usage| usage.month == month && usage.account == account).collect();
    together(records.iter().flat_map(|usage| &usage.rows))
}

fn oldest_month(control: &Control) -> Month {
    Month::of(control.now()).earlier(MONTHS_KEPT)
}

/// Forgets months that are too old, and how far machines were counted that are no more. Returns how many records went.
pub async fn trim(control: &Control) -> Result<usize> {
    let oldest = oldest_month(control);
    let snapshot = control.snapshot();
    let old: Vec<_> = snapshot.scan(&USAGE).take_while(|usage| usage.month < oldest).take(PASS_RECORDS).collect();
    for some in old.chunks(COMMIT_RECORDS) {
        let transaction = some.iter().fold(Transaction::new(), |all, usage| all.delete(&USAGE, usage));
        control.store.commit(transaction).await?;
    }
    let is_gone = |read: &UsageRead| !snapshot.contains(&SERVERS, &read.server.to_string());
    let gone: Vec<_> = snapshot.scan(&USAGE_READ).filter(|read| is_gone(read)).take(COMMIT_RECORDS).collect();
    if !gone.is_empty() {
        let transaction = gone.iter().fold(Transaction::new(), |all, read| all.delete(&USAGE_READ, read));
        control.store.commit(transaction).await?;
    }
    Ok(old.len() + gone.len())
}
