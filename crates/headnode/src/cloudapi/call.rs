//! What a handler gets.

use std::{net::IpAddr, pin::Pin, str::FromStr, sync::Arc};

use control::{Control, Scope};
use model::{account::Account, id::InstanceId, instance::Caller};
use store::Entry;

use super::{CloudApi, changefeed::Upgrade, error::ApiError, params::Params, reply::Reply, version::Version};

/// What a handler returns.
pub(super) type Outcome = Pin<Box<dyn Future<Output = Result<Reply, ApiError>> + Send>>;

/// One request whose signature is good and whose parameters are read.
pub(super) struct Call {
    pub(super) api: CloudApi,
    /// What its verbs are called with: knows the call's name, if it has one.
    pub(super) control: Control,
    /// The contract's name of what is asked for.
    pub(super) operation: &'static str,
    /// Whose path it is.
    pub(super) account: Arc<Entry<Account>>,
    /// Whether the one who signed is an operator.
    pub(super) operator: bool,
    /// The key id that signed.
    pub(super) key_id: String,
    /// Where it came from.
    pub(super) ip: Option<IpAddr>,
    /// The version that was agreed on.
    pub(super) version: Version,
    /// Values of the path's `:` segments after the account.
    pub(super) path: Vec<String>,
    /// Query and body.
    pub(super) params: Params,
    /// The query alone.
    pub(super) query: Params,
    /// The connection, if it is to become something else; or why it cannot.
    pub(super) upgrade: Option<Result<Upgrade, &'static str>>,
}

impl Call {
    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    /// What this request may touch: the account in the path, whoever signed.
    pub(super) fn scope(&self) -> Scope {
        Scope::Account(self.account.id)
    }

    /// Who asks, for the history.
    pub(super) fn caller(&self) -> Caller {
        Caller::Signature { ip: self.ip.map(|ip| ip.to_string()), key_id: self.key_id.clone() }
    }

    /// The `position`-th `:` segment after the account.
    pub(super) fn segment(&self, position: usize) -> &str {
        self.path.get(position).map_or("", String::as_str)
    }

    /// The instance in the path.
    pub(super) fn machine(&self) -> Result<InstanceId, ApiError> {
        self.id("VM", 0)
    }

    /// An id in the path. What cannot be an id cannot be found.
    pub(super) fn id<T: FromStr>(&self, what: &str, position: usize) -> Result<T, ApiError> {
        let text = self.segment(position);
        text.parse().map_err(|_| ApiError::not_found(format!("{what} {text} not found")))
    }
}
