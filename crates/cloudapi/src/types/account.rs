//! Accounts and their keys.

use std::borrow::Cow;

use model::{id::AccountId, time::Timestamp};
use serde::{Deserialize, Serialize};

/// `GET /:account`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names say it, and are the contract's")]
pub struct Account<'a> {
    pub id: AccountId,
    pub login: Cow<'a, str>,
    pub email: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub company_name: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_name: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_name: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postal_code: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub city: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<Cow<'a, str>>,
    #[serde(rename = "triton_cns_enabled")]
    pub triton_cns_enabled: bool,
    pub created: Timestamp,
    pub updated: Timestamp,
}

/// `POST /:account`: what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the names say it, and are the contract's")]
pub struct AccountUpdate {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub company_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postal_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub city: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
    #[serde(rename = "triton_cns_enabled", skip_serializing_if = "Option::is_none")]
    pub triton_cns_enabled: Option<bool>,
}

/// An SSH public key of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key<'a> {
    /// What people call it; the fingerprint when they gave no name.
    pub name: Cow<'a, str>,
    /// MD5 of the key as colon-separated hex: what stands in key ids.
    pub fingerprint: Cow<'a, str>,
    /// One line of OpenSSH text.
    pub key: Cow<'a, str>,
    /// Whether hardware vouched for it.
    #[serde(default)]
    pub attested: bool,
    /// What its holder must do besides holding it (`pin`, `touch`); empty for ordinary keys.
    #[serde(default)]
    pub multifactor: Vec<String>,
    /// When it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<model::time::Timestamp>,
}

/// `POST /:account/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateKey {
    /// Name; the fingerprint when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One line of OpenSSH text.
    pub key: String,
}
