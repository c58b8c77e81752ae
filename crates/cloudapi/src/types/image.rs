//! Images.

use std::{borrow::Cow, collections::BTreeMap};

use model::{
    id::{AccountId, ImageId},
    time::Timestamp,
    unit::Mib,
};
use serde::{Deserialize, Serialize};

/// An image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image<'a> {
    /// Identity.
    pub id: ImageId,
    /// e.g. `debian-12`.
    pub name: Cow<'a, str>,
    /// e.g. `20261124`.
    pub version: Cow<'a, str>,
    /// `linux`, `smartos`, `windows`, `bsd`, `other`.
    pub os: Cow<'a, str>,
    /// What an instance must offer.
    pub requirements: Requirements,
    /// From API version 8 the kind of file (`lx-dataset`), before it `smartmachine` or `virtualmachine`.
    #[serde(rename = "type", default)]
    pub kind: Cow<'a, str>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Cow<'a, str>>,
    /// The file, as a list of at most one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File<'a>>,
    /// Free labels.
    #[serde(default)]
    pub tags: Cow<'a, BTreeMap<String, serde_json::Value>>,
    /// Link for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub homepage: Option<Cow<'a, str>>,
    /// When it became active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<Timestamp>,
    /// Whose it is.
    pub owner: AccountId,
    /// Everybody may use it.
    pub public: bool,
    /// `active`, `unactivated`, `disabled`, `creating`, `failed`.
    pub state: Cow<'a, str>,
    /// Link to licence text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eula: Option<Cow<'a, str>>,
    /// Accounts besides the owner that may use it.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub acl: Cow<'a, [AccountId]>,
    /// Why the state is `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ImageError<'a>>,
}

/// What an image asks of packages and instances.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirements {
    /// MiB. `max_memory` and `max_ram` are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<Mib>,
    /// See [`Requirements::max_memory`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ram: Option<Mib>,
    /// MiB. `min_memory` and `min_ram` are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_memory: Option<Mib>,
    /// See [`Requirements::min_memory`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ram: Option<Mib>,
    /// Brand instances of it must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brand: Option<Cow<'static, str>>,
}

/// The file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File<'a> {
    /// `none`, `gzip` …
    pub compression: Cow<'a, str>,
    /// SHA-1, lower-case hex.
    pub sha1: Cow<'a, str>,
    /// Bytes.
    pub size: u64,
}

/// Why an image could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageError<'a> {
    /// A word of the contract.
    pub code: Cow<'a, str>,
    /// For people.
    pub message: Cow<'a, str>,
}

/// `POST /:account/images/:id?action=update`: what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names say it, see `Image`")]
pub struct ImageUpdate {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub homepage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eula: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acl: Option<Vec<AccountId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, serde_json::Value>>,
}
