//! Accounts and their keys.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{delete, get, post},
};
use control::{Control, accounts, accounts::keys};
use model::account::{Account, AccountKey, Profile};
use opsapi::{NewAccount, NewKey};
use store::Entry;

use super::{Answer, Body, Ops, Refusal, value, values};

pub(super) fn routes() -> Router<Ops> {
    Router::new()
        .route("/v1/accounts", get(list).post(create))
        .route("/v1/accounts/{account}", get(one))
        .route("/v1/accounts/{account}/disable", post(disable))
        .route("/v1/accounts/{account}/enable", post(enable))
        .route("/v1/accounts/{account}/enable-names", post(enable_names))
        .route("/v1/accounts/{account}/disable-names", post(disable_names))
        .route("/v1/accounts/{account}/keys", get(list_keys).post(add_key))
        .route("/v1/accounts/{account}/keys/{key}", delete(remove_key))
}

/// An account by login or id.
pub(super) fn find(control: &Control, account: &str) -> Result<Arc<Entry<Account>>, Refusal> {
    let found = match account.parse() {
        Ok(id) => accounts::get(control, id),
        Err(_) => accounts::by_login(control, account),
    };
    Ok(found?)
}

async fn list(State(ops): State<Ops>) -> Answer<Vec<Account>> {
    Ok(Json(values(&accounts::list(&ops.control))))
}

async fn one(State(ops): State<Ops>, Path(account): Path<String>) -> Answer<Account> {
    Ok(Json(value(&find(&ops.control, &account)?)))
}

async fn create(State(ops): State<Ops>, Body(new): Body<NewAccount>) -> Answer<Account> {
    let profile = Profile { email: new.email, ..Profile::default() };
    let new = accounts::NewAccount { id: new.id, login: new.login, profile, operator: new.operator };
    Ok(Json(value(&accounts::create(&ops.control, new).await?)))
}

async fn disable(State(ops): State<Ops>, Path(account): Path<String>) -> Answer<Account> {
    set_disabled(&ops, &account, true).await
}

async fn enable(State(ops): State<Ops>, Path(account): Path<String>) -> Answer<Account> {
    set_disabled(&ops, &account, false).await
}

async fn set_disabled(ops: &Ops, account: &str, disabled: bool) -> Answer<Account> {
    let id = find(&ops.control, account)?.id;
    Ok(Json(value(&accounts::set_disabled(&ops.control, id, disabled).await?)))
}

async fn enable_names(State(ops): State<Ops>, Path(account): Path<String>) -> Answer<Account> {
    set_names(&ops, &account, true).await
}

async fn disable_names(State(ops): State<Ops>, Path(account): Path<String>) -> Answer<Account> {
    set_names(&ops, &account, false).await
}

async fn set_names(ops: &Ops, account: &str, enabled: bool) -> Answer<Account> {
    let id = find(&ops.control, account)?.id;
    let change = accounts::ProfileChange { names_enabled: Some(enabled), ..accounts::ProfileChange::default() };
    Ok(Json(value(&accounts::update(&ops.control, id, change).await?)))
}

async fn list_keys(State(ops): State<Ops>, Path(account): Path<String>) -> Answer<Vec<AccountKey>> {
    let id = find(&ops.control, &account)?.id;
    Ok(Json(values(&keys::list(&ops.control, id))))
}

async fn add_key(State(ops): State<Ops>, Path(account): Path<String>, Body(new): Body<NewKey>) -> Answer<AccountKey> {
    let id = find(&ops.control, &account)?.id;
    Ok(Json(value(&keys::add(&ops.control, id, new.name, &new.key).await?)))
}

async fn remove_key(State(ops): State<Ops>, Path((account, key)): Path<(String, String)>) -> Answer<()> {
    let id = find(&ops.control, &account)?.id;
    Ok(Json(keys::remove(&ops.control, id, &key).await?))
}
