//! The account itself, its limits and its configuration.

use std::borrow::Cow;

use cloudapi::types::{Account, Config, service::Limit};
use control::accounts::{self, ProfileChange};

use super::{
    call::Call,
    error::{ApiError, Faults},
    reply::Reply,
};

/// `GET /:account`.
pub(super) async fn get(call: Call) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(&call.account)))
}

/// `POST /:account`.
pub(super) async fn update(call: Call) -> Result<Reply, ApiError> {
    let params = &call.params;
    let mut faults = Faults::default();
    let change = ProfileChange {
        email: faults.take(params.text("email")),
        company_name: faults.take(params.text("companyName")),
        first_name: faults.take(params.text("firstName")),
        last_name: faults.take(params.text("lastName")),
        address: faults.take(params.text("address")),
        postal_code: faults.take(params.text("postalCode")),
        city: faults.take(params.text("city")),
        state: faults.take(params.text("state")),
        country: faults.take(params.text("country")),
        phone: faults.take(params.text("phone")),
        names_enabled: faults.take(params.flag("triton_cns_enabled")),
    };
    faults.finish()?;
    let account = accounts::update(call.control(), call.account.id, change).await?;
    Ok(Reply::json(&show(&account)))
}

/// `GET /:account/limits`: there are none.
pub(super) async fn limits(_call: Call) -> Result<Reply, ApiError> {
    Ok(Reply::json::<[Limit; 0]>(&[]))
}

/// `GET /:account/config`.
pub(super) async fn config(call: Call) -> Result<Reply, ApiError> {
    Ok(Reply::json(&Config { default_network: call.account.default_network }))
}

/// `PUT /:account/config`.
pub(super) async fn set_config(call: Call) -> Result<Reply, ApiError> {
    let network = call.params.parsed("default_network", "the id of a network")?;
    let network = network.ok_or_else(|| ApiError::missing("default_network"))?;
    let account = accounts::set_config(call.control(), call.account.id, Some(network)).await?;
    Ok(Reply::json(&Config { default_network: account.default_network }))
}

fn show(account: &model::account::Account) -> Account<'_> {
    let profile = &account.profile;
    Account {
        id: account.id,
        login: Cow::Borrowed(&account.login),
        email: Cow::Borrowed(&profile.email),
        company_name: profile.company_name.as_deref().map(Cow::Borrowed),
        first_name: profile.first_name.as_deref().map(Cow::Borrowed),
        last_name: profile.last_name.as_deref().map(Cow::Borrowed),
        address: profile.address.as_deref().map(Cow::Borrowed),
        postal_code: profile.postal_code.as_deref().map(Cow::Borrowed),
        city: profile.city.as_deref().map(Cow::Borrowed),
        state: profile.state.as_deref().map(Cow::Borrowed),
        country: profile.country.as_deref().map(Cow::Borrowed),
        phone: profile.phone.as_deref().map(Cow::Borrowed),
        triton_cns_enabled: account.names_enabled,
        created: account.created_at,
        updated: account.updated_at,
    }
}
