//! The record of a rule, and whom it concerns.
//!
//! Who is on a side of a rule depends on three things of an instance: its owner, its id, its tags. [`Selector`] and [`SetKey`]
//! name the answers ("instances of account A with tag role=db") without listing them, which is what makes everything else small:
//! a document refers to keys, and only the addresses behind a key change when an instance does.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::rule::{Action, Rule, Target, Targets};
use crate::{
    id::{AccountId, FirewallRuleId, InstanceId},
    instance::TagValue,
    pairs::Pairs,
    time::Timestamp,
};

/// A rule with its owner and its history. Record of table `firewall_rules`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRule {
    /// Never changes.
    pub id: FirewallRuleId,
    /// Whose instances it works with; `None` is everybody's (a global rule), which only operators make. Never changes.
    pub owner: Option<AccountId>,
    /// What it says. Stored and sent as its canonical text.
    pub rule: Rule,
    /// A disabled rule is kept, listed, and does nothing.
    pub enabled: bool,
    /// Whether nodes log connections it decides.
    #[serde(default)]
    pub log: bool,
    /// Free text for people, at most [`FirewallRule::DESCRIPTION_MAX`] characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The program that made it, in its own words; same limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Grows with every change; starts at 1. A node says which version it enforces.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When a field last changed.
    pub updated_at: Timestamp,
}

impl FirewallRule {
    /// Characters of `description` and `created_by`.
    pub const DESCRIPTION_MAX: usize = 255;

    /// Whether a text can be a `description` or `created_by`; why not, to stand beside the field's name.
    pub fn check_description(text: &str) -> Result<(), String> {
        match text.chars().count() {
            0..=Self::DESCRIPTION_MAX => Ok(()),
            count => Err(format!("has {count} characters; at most {} are allowed", Self::DESCRIPTION_MAX)),
        }
    }

    /// On which sides an instance is. Whether the rule or the instance's firewall is enabled does not matter here: lists of a
    /// rule's instances and an instance's rules show both.
    pub fn sides(&self, instance: &InstanceView) -> Sides {
        let is_on =
            |direction| self.selectors(direction).iter().any(|selector| self.key(selector.clone()).matches(instance));
        Sides { inbound: is_on(Direction::Inbound), outbound: is_on(Direction::Outbound) }
    }

    /// Which instances' traffic in `direction` it filters: the `TO` side filters what comes in, the `FROM` side what goes out.
    pub fn selectors(&self, direction: Direction) -> Vec<Selector> {
        Selector::of(self.side(direction))
    }

    /// The side whose instances it filters in `direction`.
    pub fn side(&self, direction: Direction) -> &Targets {
        match direction {
            Direction::Inbound => self.rule.to(),
            Direction::Outbound => self.rule.from(),
        }
    }

    /// The side their traffic in `direction` comes from or goes to.
    pub fn peer_side(&self, direction: Direction) -> &Targets {
        self.side(direction.opposite())
    }

    /// Within the owner's instances.
    pub fn key(&self, selector: Selector) -> SetKey {
        SetKey { scope: self.owner, selector }
    }

    /// Whether it says in `direction` what would happen anyway: every rule that could overrule it does so whether it is there or not.
    pub fn is_default(&self, direction: Direction) -> bool {
        self.rule.priority() == 0 && self.rule.action() == direction.default_action()
    }
}

/// Which way traffic goes, seen from the instance that is filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the instance.
    Inbound,
    /// From the instance.
    Outbound,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Inbound, Self::Outbound];

    /// The other one.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Inbound => Self::Outbound,
            Self::Outbound => Self::Inbound,
        }
    }

    /// What happens to traffic no rule decides. Within a priority, the other action decides first.
    pub const fn default_action(self) -> Action {
        match self {
            Self::Inbound => Action::Block,
            Self::Outbound => Action::Allow,
        }
    }
}

/// On which sides of a rule an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sides {
    /// On the `TO` side: its incoming traffic is filtered.
    pub inbound: bool,
    /// On the `FROM` side: its outgoing traffic is filtered.
    pub outbound: bool,
}

impl Sides {
    /// Whether the rule is listed with the instance and the instance with the rule.
    pub const fn any(self) -> bool {
        self.inbound || self.outbound
    }
}

/// What the firewall knows of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    /// Which one.
    pub id: InstanceId,
    /// Whose it is.
    pub owner: AccountId,
    /// Its tags, values as texts.
    pub tags: BTreeMap<String, String>,
    /// The addresses of its NICs, both families.
    pub addresses: Vec<IpAddr>,
    /// Whether its traffic is filtered. Its addresses are peers of others either way.
    pub firewall_enabled: bool,
}

impl InstanceView {
    /// A view with the tags of a record.
    pub fn new(
        id: InstanceId,
        owner: AccountId,
        tags: &Pairs<String, TagValue>,
        addresses: Vec<IpAddr>,
        firewall_enabled: bool,
    ) -> Self {
        let tags = tags.iter().map(|(name, value)| (name.clone(), tag_text(value))).collect();
        Self { id, owner, tags, addresses, firewall_enabled }
    }

    /// Every key that matches it, those of its owner and the global ones: two for itself, two for all, four for each tag.
    pub fn keys(&self) -> impl Iterator<Item = SetKey> + '_ {
        let tags = self.tags.iter().flat_map(|(name, value)| {
            let tag = |value| Selector::Tag { name: name.clone(), value };
            [tag(None), tag(Some(value.clone()))]
        });
        let selectors = [Selector::AllVms, Selector::Vm(self.id)].into_iter().chain(tags);
        selectors
            .flat_map(|selector| [None, Some(self.owner)].map(|scope| SetKey { scope, selector: selector.clone() }))
    }
}

/// A tag's value as rules compare it: `true` is `"true"`, `5` is `"5"`.
pub fn tag_text(value: &TagValue) -> String {
    match value {
        TagValue::Bool(value) => value.to_string(),
        TagValue::Number(value) => value.to_string(),
        TagValue::Text(value) => value.clone(),
    }
}

/// A property that instances may share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// Being one.
    AllVms,
    /// Having a tag, with this value if one is given.
    Tag {
        /// The tag's name.
        name: String,
        /// The tag's value; `None` is any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    },
    /// Being this one.
    Vm(InstanceId),
}

impl Selector {
    /// Those of one side of a rule; addresses, subnets and `any` select no instance.
    pub fn of(side: &Targets) -> Vec<Self> {
        match side {
            Targets::Any => Vec::new(),
            Targets::AllVms => vec![Self::AllVms],
            Targets::List(targets) => targets.iter().filter_map(Self::of_target).collect(),
        }
    }

    fn of_target(target: &Target) -> Option<Self> {
        match target {
            Target::Ip(_) | Target::Subnet(_) => None,
            Target::Tag { name, value } => Some(Self::Tag { name: name.clone(), value: value.clone() }),
            Target::Vm(id) => Some(Self::Vm(*id)),
        }
    }
}

/// A selector among one account's instances or everybody's: what a set of addresses stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SetKey {
    /// Whose instances; `None` is everybody's.
    pub scope: Option<AccountId>,
    /// Which of them.
    pub selector: Selector,
}

impl SetKey {
    /// Whether an instance is meant.
    pub fn matches(&self, instance: &InstanceView) -> bool {
        self.scope.is_none_or(|owner| owner == instance.owner)
            && match &self.selector {
                Selector::AllVms => true,
                Selector::Vm(id) => *id == instance.id,
                Selector::Tag { name, value: None } => instance.tags.contains_key(name),
                Selector::Tag { name, value: Some(value) } => instance.tags.get(name) == Some(value),
            }
    }
}
