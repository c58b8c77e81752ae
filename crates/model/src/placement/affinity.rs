//! Rules of affinity, as CloudAPI has them: `instance!=db*` keeps a new instance from every machine with an instance whose name
//! begins with `db`; `role==~web` would like to be beside one that has the tag.
//!
//! ```text
//! rule  := [ "rack." ] key operator [ "~" ] value
//! key   := "instance" | "container" | name of a tag        operator := "==" | "!="
//! value := exact | glob with "*" or "?" | "/" regular expression "/"            "~" makes it a wish instead of a must
//! ```
//! `rack.` is ours: the rule then speaks of racks, what fails together, instead of machines. Rules see the owner's own instances
//! only. They are turned into [`Wishes`], sets of machines, once per request; a machine is then judged by look-ups. A `!=` holds for
//! instances that exist when the new one is placed; it does not move anything later.

use std::{collections::BTreeSet, fmt, str::FromStr};

use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::{
    id::{AccountId, InstanceId, ServerId},
    instance::{Instance, TagValue},
    pairs::Pairs,
};

/// Bytes of a rule at most.
pub const RULE_MAX_BYTES: usize = 512;
/// Bytes a compiled regular expression may take: room for what people write, none for what is written to hurt.
const REGEX_MAX_BYTES: usize = 64 << 10;
/// Before a key, makes a rule one of racks.
const RACK: &str = "rack.";

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    text: String,
    key: Key,
    near: bool,
    soft: bool,
    racks: bool,
    value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Instance,
    Tag(String),
}

#[derive(Debug, Clone)]
enum Value {
    Exact(String),
    Glob(String),
    Regex(Regex),
}

/// A text that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// It is too long.
    #[error("is longer than {RULE_MAX_BYTES} bytes")]
    TooLong,
    /// It has neither operator.
    #[error("has no \"==\" or \"!=\" in it, as in \"instance!=db*\"")]
    NoOperator,
    /// What stands before the operator cannot be a key.
    #[error(
        "\"{0}\" is no key; it is \"instance\" or the name of a tag, two or more letters, digits, \"-\", \"_\" or \".\""
    )]
    Key(String),
    /// What stands after the operator cannot be a value.
    #[error("\"{0}\" is no value; it takes letters, digits, spaces and any of -:_.*()/?+[]\\^$|")]
    Value(String),
    /// It is no regular expression we understand.
    #[error("\"{value}\" is no regular expression: {why}")]
    Regex {
        /// As given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text.len() > RULE_MAX_BYTES {
            return Err(RuleError::TooLong);
        }
        // `==` is looked for first, as Triton does: a value may hold `!=`, a key may not.
        let (whole_key, near, rest) = match (text.split_once("=="), text.split_once("!=")) {
            (Some((key, rest)), _) => (key, true, rest),
            (None, Some((key, rest))) => (key, false, rest),
            (None, None) => return Err(RuleError::NoOperator),
        };
        if !is_key(whole_key) {
            return Err(RuleError::Key(whole_key.to_owned()));
        }
        let (racks, key) = match whole_key.strip_prefix(RACK) {
            Some(key) if is_key(key) => (true, key),
            _ => (false, whole_key),
        };
        let (soft, value) = rest.strip_prefix('~').map_or((false, rest), |value| (true, value));
        if value.is_empty() || !value.chars().all(is_value_char) {
            return Err(RuleError::Value(value.to_owned()));
        }
        let key = match key {
            "instance" | "container" => Key::Instance,
            tag => Key::Tag(tag.to_owned()),
        };
        Ok(Self { text: text.to_owned(), key, near, soft, racks, value: Value::parse(value)? })
    }
}

fn is_key(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && text.len() > 1
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_value_char(character: char) -> bool {
    character.is_ascii_alphanumeric() || character.is_whitespace() || "-:_.*()/?+[]\\^$|".contains(character)
}

impl Value {
    fn parse(text: &str) -> Result<Self, RuleError> {
        if text.len() >= 3 && text.starts_with('/') && text.ends_with('/') {
            let regex = RegexBuilder::new(&text[1..text.len() - 1]).unicode(false).size_limit(REGEX_MAX_BYTES).build();
            return regex.map(Self::Regex).map_err(|error| {
                let why = error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                RuleError::Regex { value: text.to_owned(), why }
            });
        }
        Ok(if text.contains('*') { Self::Glob(text.to_owned()) } else { Self::Exact(text.to_owned()) })
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(value) => value == text,
            Self::Glob(pattern) => glob(pattern.as_bytes(), text.as_bytes()),
            Self::Regex(regex) => regex.is_match(text.as_bytes()),
        }
    }
}

/// Whether `text` is what `pattern` describes: `*` any bytes, `?` one. In time of the product of their lengths at worst.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[from] => (at, from) = (at + 1, from + 1),
            _ => match &mut retry {
                Some((star, taken)) => {
                    *taken += 1;
                    (at, from) = (*star + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Rule {
    /// Whether it speaks of racks and not of machines.
    pub fn is_of_racks(&self) -> bool {
        self.racks
    }

    fn matches(&self, neighbour: &Neighbour<'_>) -> bool {
        match &self.key {
            Key::Instance => {
                let id = neighbour.id.to_string();
                // Exact values may be the eight digits people type.
                let short = matches!(&self.value, Value::Exact(value) if *value == neighbour.id.short());
                short || self.value.matches(neighbour.alias) || self.value.matches(&id)
            }
            Key::Tag(name) => neighbour.tags.get(name).is_some_and(|value| match value {
                TagValue::Text(text) => self.value.matches(text),
                TagValue::Number(number) => self.value.matches(&number.to_string()),
                TagValue::Bool(flag) => self.value.matches(if *flag { "true" } else { "false" }),
            }),
        }
    }
}

/// How often an owner's instances were placed by rules of racks. Record of table `affinity_groups`, key the owner: each such placement
/// changes it, so that no two are decided without one having seen the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AffinityGroup {
    /// Whose instances.
    pub owner: AccountId,
    /// So many.
    pub placements: u64,
}

/// An instance of the same owner that is on a machine.
#[derive(Debug, Clone, Copy)]
pub struct Neighbour<'a> {
    /// Its id.
    pub id: InstanceId,
    /// Its name.
    pub alias: &'a str,
    /// Its tags.
    pub tags: &'a Pairs<String, TagValue>,
    /// Where it is.
    pub server: ServerId,
}

impl<'a> Neighbour<'a> {
    /// `instance` as a neighbour.
    pub fn of(instance: &'a Instance) -> Self {
        Self { id: instance.id, alias: &instance.alias, tags: &instance.tags, server: instance.server }
    }
}

/// Where an instance must be, must not be, should be and should not be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wishes {
    wishes: Vec<Wish>,
}

#[derive(Debug, Clone, PartialEq)]
struct Wish {
    rule: String,
    near: bool,
    soft: bool,
    /// Machines with a matching instance. When the rule is one of racks: those that are in no rack.
    servers: BTreeSet<ServerId>,
    /// Racks with a matching instance, when the rule is one of racks.
    racks: BTreeSet<String>,
}

impl Wish {
    fn matches(&self, server: ServerId, rack: Option<&str>) -> bool {
        self.servers.contains(&server) || rack.is_some_and(|rack| self.racks.contains(rack))
    }

    fn matches_nothing(&self) -> bool {
        self.servers.is_empty() && self.racks.is_empty()
    }

    fn is_within(&self, other: &Self) -> bool {
        self.servers.is_subset(&other.servers) && self.racks.is_subset(&other.racks)
    }
}

impl Wishes {
    /// What `rules` come to among `neighbours`, all of the owner's instances. `rack_of` says which rack a machine is in.
    pub fn of<'a>(
        rules: &[Rule],
        neighbours: impl IntoIterator<Item = Neighbour<'a>>,
        rack_of: impl Fn(ServerId) -> Option<String>,
    ) -> Self {
        let wish = |rule: &Rule| Wish {
            rule: rule.text.clone(),
            near: rule.near,
            soft: rule.soft,
            servers: BTreeSet::new(),
            racks: BTreeSet::new(),
        };
        let mut result = Self { wishes: rules.iter().map(wish).collect() };
        for neighbour in neighbours {
            let rack = rack_of(neighbour.server);
            for (rule, wish) in rules.iter().zip(&mut result.wishes) {
                if !rule.matches(&neighbour) {
                    continue;
                }
                match rack.clone().filter(|_| rule.racks) {
                    Some(rack) => wish.racks.insert(rack),
                    None => wish.servers.insert(neighbour.server),
                };
            }
        }
        result
    }

    /// Two rules that no machine can meet together: the first wants to be only where the second must not be.
    pub fn contradiction(&self) -> Option<(&str, &str)> {
        let hard = |near: bool| self.wishes.iter().filter(move |wish| !wish.soft && wish.near == near);
        hard(true).filter(|near| !near.matches_nothing()).find_map(|near| {
            let against = hard(false).find(|far| near.is_within(far))?;
            Some((near.rule.as_str(), against.rule.as_str()))
        })
    }

    /// Machines that a rule wants to be near, hard or soft.
    pub fn favoured(&self) -> BTreeSet<ServerId> {
        self.wishes.iter().filter(|wish| wish.near).flat_map(|wish| wish.servers.iter().copied()).collect()
    }

    /// Racks that a rule wants to be near; their machines are favoured too.
    pub fn favoured_racks(&self) -> BTreeSet<String> {
        self.wishes.iter().filter(|wish| wish.near).flat_map(|wish| wish.racks.iter().cloned()).collect()
    }

    /// Whether only favoured machines can be right.
    pub fn must_be_near(&self) -> bool {
        self.wishes.iter().any(|wish| wish.near && !wish.soft)
    }

    /// Hard rules that no instance answers to.
    pub fn unmet(&self) -> Vec<String> {
        let unmet = |wish: &&Wish| wish.near && !wish.soft && wish.matches_nothing();
        self.wishes.iter().filter(unmet).map(|wish| wish.rule.clone()).collect()
    }

    /// The hard rule that rules a machine out, if one does.
    pub fn allows(&self, server: ServerId, rack: Option<&str>) -> Result<(), &str> {
        match self.wishes.iter().find(|wish| !wish.soft && wish.matches(server, rack) != wish.near) {
            Some(against) => Err(&against.rule),
            None => Ok(()),
        }
    }

    /// Soft rules that speak for a machine, less those that speak against it.
    pub fn balance(&self, server: ServerId, rack: Option<&str>) -> i64 {
        let speaks = |wish: &&Wish| wish.soft && wish.matches(server, rack);
        self.wishes.iter().filter(speaks).map(|wish| if wish.near { 1 } else { -1 }).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DB: u128 = 1;
    const WEB: u128 = 2;

    fn server(number: u128) -> ServerId {
        ServerId::new(uuid::Uuid::from_u128(number))
    }

    fn instance(number: u128) -> InstanceId {
        InstanceId::new(uuid::Uuid::from_u128(number << 96))
    }

    /// `db0` on machine 1 in rack `r1`, `web0` (role=web, tier=2) on machine 2 in no rack.
    fn wishes(rules: &[&str]) -> Wishes {
        let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
        let none = Pairs::default();
        let web: Pairs<String, TagValue> = [
            ("role".to_owned(), TagValue::Text("web".to_owned())),
            ("tier".to_owned(), TagValue::Number(2.into())),
            ("live".to_owned(), TagValue::Bool(true)),
        ]
        .into();
        let neighbours = [
            Neighbour { id: instance(DB), alias: "db0", tags: &none, server: server(1) },
            Neighbour { id: instance(WEB), alias: "web0", tags: &web, server: server(2) },
        ];
        Wishes::of(&rules, neighbours, |id| (id == server(1)).then(|| "r1".to_owned()))
    }

    #[test]
    fn rules_name_instances_in_every_way() {
        let id = instance(DB).to_string();
        for value in ["db0", "db*", "*b?", "*0", "/^db/", "/b0$/", id.as_str(), &id[..8], "00000001*"] {
            let wishes = wishes(&[&format!("instance!={value}")]);
            assert!(wishes.allows(server(1), None).is_err(), "{value}");
        }
        for value in ["web0", "b0", "db", "d*x", "/^b/", "0000000"] {
            assert!(wishes(&[&format!("container!={value}")]).allows(server(1), None).is_ok(), "{value}");
        }
    }

    #[test]
    fn tags_of_every_type_match() {
        for rule in ["role==web", "role==w*", "tier==2", "live==true", "role==/e/"] {
            assert_eq!(wishes(&[rule]).allows(server(2), None), Ok(()), "{rule}");
            assert_eq!(wishes(&[rule]).allows(server(1), None), Err(rule));
        }
    }

    #[test]
    fn soft_rules_tip_the_balance_and_rule_nothing_out() {
        let wishes = wishes(&["instance==~db0", "role!=~web"]);
        assert_eq!([1, 2, 3].map(|number| wishes.balance(server(number), None)), [1, -1, 0]);
        assert!([1, 2, 3].iter().all(|number| wishes.allows(server(*number), None).is_ok()));
        assert_eq!(wishes.favoured(), [server(1)].into());
        assert!(!wishes.must_be_near());
    }

    #[test]
    fn racks_are_what_fails_together() {
        let far = wishes(&["rack.instance!=db0"]);
        assert_eq!(far.allows(server(7), Some("r1")), Err("rack.instance!=db0"));
        assert_eq!(far.allows(server(7), Some("r2")), Ok(()));
        assert_eq!(far.allows(server(7), None), Ok(()));
        // A machine in no rack fails alone.
        let far = wishes(&["rack.instance!=web0"]);
        assert_eq!((far.allows(server(2), None), far.allows(server(7), None)), (Err("rack.instance!=web0"), Ok(())));
        assert_eq!(wishes(&["rack.instance==db0"]).favoured_racks(), ["r1".to_owned()].into());
    }

    #[test]
    fn rules_that_cannot_hold_together_are_named() {
        assert_eq!(wishes(&["instance==db0", "instance!=d*"]).contradiction(), Some(("instance==db0", "instance!=d*")));
        assert_eq!(wishes(&["instance==/b0/", "instance!=db0"]).contradiction(), None, "web0 is left");
        assert_eq!(wishes(&["instance==db0", "instance!=~db0"]).contradiction(), None);
        assert_eq!(wishes(&["instance==nobody", "instance!=db0"]).unmet(), ["instance==nobody"]);
    }

    #[test]
    fn what_is_no_rule_says_why() {
        let error = |text: &str| text.parse::<Rule>().expect_err(text).to_string();
        assert!(error("instance=db0").contains("has no \"==\" or \"!=\""));
        assert!(error("x==db0").starts_with("\"x\" is no key"));
        assert!(error("9tag==a").contains("is no key"));
        assert!(error("instance==").starts_with("\"\" is no value"));
        assert!(error("instance==a;b").contains("is no value"));
        assert!(error("instance==/(/").contains("unclosed group"), "{}", error("instance==/(/"));
        assert!(error(&format!("instance=={}", "a".repeat(600))).contains("longer than"));
        // `{}` is no character of a value, so a counted repetition cannot be written; classes can still be large.
        assert!("instance==/\\w+\\w+\\w+/".parse::<Rule>().is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_a_rule_or_an_error(text in "\\PC{0,64}") {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string(), text);
            }
        }

        #[test]
        fn near_rules_parse(key in "[a-z_][a-z0-9_.-]{1,12}", soft in any::<bool>(), value in "[-a-z0-9:_.*()?+]{1,20}") {
            let text = format!("{key}=={}{value}", if soft { "~" } else { "" });
            let rule: Rule = text.parse().expect("a rule");
            prop_assert_eq!((rule.soft, rule.near), (soft, true));
        }

        #[test]
        fn a_glob_is_its_regular_expression(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            let regex = format!("^{}$", pattern.replace('*', ".*").replace('?', "."));
            let regex = Regex::new(&regex).expect("an expression");
            prop_assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), regex.is_match(text.as_bytes()));
        }
    }
}
