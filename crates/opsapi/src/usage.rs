//! What accounts used in a month, and the client's verb for it.

use model::{
    id::{AccountId, ServerId},
    usage::{Hour, Month, Row, Sums},
};
use serde::{Deserialize, Serialize};

use crate::{Client, Error, client::segment};

/// Which month, and whose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageQuestion {
    /// Such as `2026-11`; the present one when it is not said.
    #[serde(default)]
    pub month: Option<String>,
    /// One account, by login or id, with what each of its instances used; else all that used something.
    #[serde(default)]
    pub account: Option<String>,
    /// What [`UsageView::next`] of the page before said.
    #[serde(default)]
    pub after: Option<String>,
}

/// A page of a month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageView {
    /// Which.
    pub month: Month,
    /// By account.
    pub accounts: Vec<AccountUsage>,
    /// Machines of which an hour that has ended is not in it yet; on the first page.
    pub behind: Vec<MachineBehind>,
    /// There are more: ask for what comes after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What an account used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountUsage {
    /// Whose.
    pub account: AccountId,
    /// Its login; `None` when the account is no more.
    pub login: Option<String>,
    /// All of it.
    pub sums: Sums,
    /// By instance and package, when one account was asked for; as many as a page takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<Row>,
}

/// A machine whose hours are not all counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineBehind {
    /// Which.
    pub server: ServerId,
    /// Its name.
    pub hostname: String,
    /// The last hour that is counted, if one is.
    pub through: Option<Hour>,
}

impl Client {
    /// What accounts used in a month: one page of it.
    pub async fn usage(&self, question: &UsageQuestion) -> Result<UsageView, Error> {
        let asked = [("month", &question.month), ("account", &question.account), ("after", &question.after)];
        let asked = asked.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", segment(value.as_ref()?))));
        let query: Vec<_> = asked.collect();
        self.get(&format!("/v1/usage?{}", query.join("&"))).await
    }
}
