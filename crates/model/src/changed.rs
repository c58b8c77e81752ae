//! Which sides of an instance a change touched, in the words of Triton's change feed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    instance::Instance,
    state::{Reachability, public},
};

/// A side of an instance that a client may ask to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubResource {
    /// Its name.
    Alias,
    /// Its metadata.
    CustomerMetadata,
    /// It is gone.
    Destroyed,
    /// Its NICs and their addresses.
    Nics,
    /// Whose it is.
    OwnerUuid,
    /// The machine it lives on.
    ServerUuid,
    /// Its state.
    State,
    /// Its tags.
    Tags,
}

impl SubResource {
    /// Every one, in the order they are told in.
    pub const ALL: [Self; 8] = [
        Self::Alias,
        Self::CustomerMetadata,
        Self::Destroyed,
        Self::Nics,
        Self::OwnerUuid,
        Self::ServerUuid,
        Self::State,
        Self::Tags,
    ];

    /// Triton's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alias => "alias",
            Self::CustomerMetadata => "customer_metadata",
            Self::Destroyed => "destroyed",
            Self::Nics => "nics",
            Self::OwnerUuid => "owner_uuid",
            Self::ServerUuid => "server_uuid",
            Self::State => "state",
            Self::Tags => "tags",
        }
    }

    /// The one of that word.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == word)
    }

    /// Whether `before` and `after` differ in this.
    fn differs(self, before: &Instance, after: &Instance) -> bool {
        // A machine that is silent changes no record, and is not what a change of one tells.
        let state = |instance| public(instance, Reachability::Reachable);
        match self {
            Self::Alias => before.alias != after.alias,
            Self::CustomerMetadata => before.metadata != after.metadata,
            Self::Destroyed => before.deleted_at.is_some() != after.deleted_at.is_some(),
            Self::Nics => before.nics != after.nics,
            Self::OwnerUuid => before.owner != after.owner,
            Self::ServerUuid => before.server != after.server,
            Self::State => state(before) != state(after),
            Self::Tags => before.tags != after.tags,
        }
    }
}

impl fmt::Display for SubResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is different in `after`. Of one that was not there before everything is, except that it is gone unless it is.
pub fn touched(before: Option<&Instance>, after: &Instance) -> Vec<SubResource> {
    let is_touched = |one: &SubResource| match before {
        Some(before) => one.differs(before, after),
        None => *one != SubResource::Destroyed || after.deleted_at.is_some(),
    };
    SubResource::ALL.into_iter().filter(is_touched).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_what_it_is_written_as() {
        for one in SubResource::ALL {
            assert_eq!(SubResource::named(one.as_str()), Some(one));
            assert_eq!(serde_json::to_value(one).unwrap(), one.as_str());
        }
        assert_eq!(SubResource::named("package"), None);
    }
}
