//! The change feed: what a client registers for, and what it is told.
//!
//! The registration and the change are Triton's. Ours is the *cursor*: it stands for all that was told so far, a client that was away
//! gives it back as `since`, and it is good at every headnode. To clients that send `since`, and to no other, changes carry a cursor and
//! notes come between them.

use std::{borrow::Cow, collections::BTreeSet, fmt, str::FromStr};

use model::{changed::SubResource, id::InstanceId};
use serde::{Deserialize, Serialize, de};
use serde_json::{Map, Value};

use super::Machine;

/// Bytes of a registration: room for [`VMS_MAX`] ids.
pub const REGISTRATION_MAX: usize = 64 << 10;
/// Instances that a registration names at most.
pub const VMS_MAX: usize = 1_000;

/// A place in the feed: everything up to a revision of the records was told, at a time. Clients take it for a text without a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Revision of the records.
    pub revision: u64,
    /// When the headnode that gave it knew of nothing newer, seconds since 1970.
    pub seconds: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.revision, self.seconds)
    }
}

/// No headnode gave this as a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a cursor that this datacenter gave, or an empty text for all there is")]
pub struct NoCursor;

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| NoCursor);
        let (revision, seconds) = text.split_once('-').ok_or(NoCursor)?;
        let cursor = Self { revision: number(revision)?, seconds: number(seconds)? };
        // One spelling each.
        if cursor.to_string() == text { Ok(cursor) } else { Err(NoCursor) }
    }
}

impl Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// From where on a client wants to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Everything there is comes first.
    Nothing,
    /// What came after a place.
    Cursor(Cursor),
}

/// What a client wants to be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// A change is told when it touches one of these.
    pub sub_resources: BTreeSet<SubResource>,
    /// Of these instances alone; `None` is all of the account's.
    pub vms: Option<BTreeSet<InstanceId>>,
    /// `None`, as Triton's clients: from now on, without cursors.
    pub since: Option<Since>,
}

/// Why a registration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct BadRegistration {
    /// The field that is wrong.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

fn bad(field: &'static str, problem: impl Into<String>) -> BadRegistration {
    BadRegistration { field, problem: problem.into() }
}

impl Registration {
    /// Every change of every instance, from `since` on.
    pub fn everything(since: Option<Since>) -> Self {
        Self { sub_resources: SubResource::ALL.into(), vms: None, since }
    }

    /// What a client sent.
    ///
    /// # Errors
    /// With the field that is wrong.
    pub fn parse(text: &str) -> Result<Self, BadRegistration> {
        if text.len() > REGISTRATION_MAX {
            return Err(bad("registration", format!("has more than {REGISTRATION_MAX} bytes")));
        }
        let fields: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| bad("registration", format!("is not a JSON object: {error}")))?;
        if fields.get("resource").and_then(Value::as_str) != Some("vm") {
            return Err(bad("resource", "must be \"vm\""));
        }
        Ok(Self { sub_resources: sub_resources(&fields)?, vms: vms(&fields)?, since: since(&fields)? })
    }

    /// As it is sent.
    pub fn to_text(&self) -> String {
        let mut fields = Map::new();
        fields.insert("resource".into(), "vm".into());
        let words = self.sub_resources.iter().map(|one| Value::from(one.as_str())).collect::<Vec<_>>();
        fields.insert("subResources".into(), words.into());
        if let Some(vms) = &self.vms {
            let ids = vms.iter().map(|id| Value::from(id.to_string())).collect::<Vec<_>>();
            fields.insert("vms".into(), ids.into());
        }
        match self.since {
            None => {}
            Some(Since::Nothing) => _ = fields.insert("since".into(), "".into()),
            Some(Since::Cursor(cursor)) => _ = fields.insert("since".into(), cursor.to_string().into()),
        }
        Value::from(fields).to_string()
    }

    /// Whether a change is told.
    pub fn admits(&self, id: InstanceId, touched: &[SubResource]) -> bool {
        self.admits_instance(id) && touched.iter().any(|one| self.sub_resources.contains(one))
    }

    /// Whether it is about this instance.
    pub fn admits_instance(&self, id: InstanceId) -> bool {
        self.vms.as_ref().is_none_or(|vms| vms.contains(&id))
    }
}

fn sub_resources(fields: &Map<String, Value>) -> Result<BTreeSet<SubResource>, BadRegistration> {
    const FIELD: &str = "subResources";
    let known = || SubResource::ALL.map(SubResource::as_str).join(", ");
    let words = fields.get(FIELD).and_then(Value::as_array);
    let words = words.ok_or_else(|| bad(FIELD, format!("must be a list of {}", known())))?;
    let one = |word: &Value| word.as_str().and_then(SubResource::named);
    let all: Option<BTreeSet<_>> = words.iter().map(one).collect();
    all.ok_or_else(|| bad(FIELD, format!("may hold {} and nothing else", known())))
}

fn vms(fields: &Map<String, Value>) -> Result<Option<BTreeSet<InstanceId>>, BadRegistration> {
    let ids = match fields.get("vms") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(ids)) => ids,
        Some(_) => return Err(bad("vms", "must be a list of ids of instances")),
    };
    if ids.len() > VMS_MAX {
        return Err(bad("vms", format!("names {} instances, {VMS_MAX} are allowed", ids.len())));
    }
    let all: Option<BTreeSet<_>> = ids.iter().map(|id| id.as_str()?.parse().ok()).collect();
    all.map(Some).ok_or_else(|| bad("vms", "may hold ids of instances and nothing else"))
}

fn since(fields: &Map<String, Value>) -> Result<Option<Since>, BadRegistration> {
    match fields.get("since") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(Some(Since::Nothing)),
        Some(Value::String(text)) => match text.parse() {
            Ok(cursor) => Ok(Some(Since::Cursor(cursor))),
            Err(error) => Err(bad("since", error.to_string())),
        },
        Some(_) => Err(bad("since", NoCursor.to_string())),
    }
}

/// What a change is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeKind {
    /// `vm`.
    pub resource: Cow<'static, str>,
    /// What is different; where that is not known any more, what the client registered for.
    pub sub_resources: Vec<SubResource>,
}

/// An instance has changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change<'a> {
    /// Which.
    pub changed_resource_id: InstanceId,
    /// When this was sent, milliseconds since 1970, as text.
    pub published: Cow<'a, str>,
    /// Its state.
    pub resource_state: Cow<'a, str>,
    /// What changed.
    pub change_kind: ChangeKind,
    /// All of it, as it is now.
    pub resource_object: Machine<'a>,
    /// Once this was read, begin here the next time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
}

/// What stands between changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Note {
    /// Every instance there is follows: forget those that are known.
    List {
        /// Why the changes alone are not told.
        reason: Cow<'static, str>,
    },
    /// Everything was told up to here.
    Current {
        /// Begin here the next time.
        cursor: Cursor,
    },
}

/// Either.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// An instance has changed.
    Change(Box<Change<'static>>),
    /// Something about the feed.
    Note(Note),
}

impl Told {
    /// What a server sent.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let value: Value = serde_json::from_str(text)?;
        match value.get("event") {
            Some(_) => serde_json::from_value(value).map(Self::Note),
            None => serde_json::from_value(value).map(|change| Self::Change(Box::new(change))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn registrations() -> impl Strategy<Value = Registration> {
        let words = proptest::sample::subsequence(SubResource::ALL.to_vec(), 0..=8);
        let ids = proptest::collection::btree_set(any::<u128>().prop_map(InstanceId::from_random), 0..20);
        let since = prop_oneof![
            Just(None),
            Just(Some(Since::Nothing)),
            (any::<u64>(), any::<u64>())
                .prop_map(|(revision, seconds)| Some(Since::Cursor(Cursor { revision, seconds }))),
        ];
        (words, proptest::option::of(ids), since).prop_map(|(words, vms, since)| Registration {
            sub_resources: words.into_iter().collect(),
            vms,
            since,
        })
    }

    proptest! {
        #[test]
        fn a_registration_says_what_it_was_made_of(registration in registrations()) {
            prop_assert_eq!(Registration::parse(&registration.to_text()), Ok(registration));
        }

        #[test]
        fn a_cursor_has_one_spelling(text in "[0-9+]{0,22}-?[0-9+ ]{0,22}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("", "registration"),
            ("[]", "registration"),
            (r#"{"subResources":["state"]}"#, "resource"),
            (r#"{"resource":"network","subResources":["state"]}"#, "resource"),
            (r#"{"resource":"vm"}"#, "subResources"),
            (r#"{"resource":"vm","subResources":["package"]}"#, "subResources"),
            (r#"{"resource":"vm","subResources":[],"vms":"all"}"#, "vms"),
            (r#"{"resource":"vm","subResources":[],"vms":["web"]}"#, "vms"),
            (r#"{"resource":"vm","subResources":[],"since":7}"#, "since"),
            (r#"{"resource":"vm","subResources":[],"since":"07-1"}"#, "since"),
        ];
        for (text, field) in cases {
            assert_eq!(Registration::parse(text).map_err(|bad| bad.field), Err(field), "{text}");
        }
        let many = vec![InstanceId::random().to_string(); VMS_MAX + 1];
        let text = serde_json::json!({"resource": "vm", "subResources": [], "vms": many}).to_string();
        assert_eq!(Registration::parse(&text).map_err(|bad| bad.field), Err("vms"));
        assert_eq!(
            Registration::parse(&" ".repeat(REGISTRATION_MAX + 1)).map_err(|bad| bad.field),
            Err("registration")
        );
    }

    #[test]
    fn notes_are_told_from_changes() {
        let note = Note::Current { cursor: Cursor { revision: 7, seconds: 9 } };
        let text = serde_json::to_string(&note).unwrap();
        assert_eq!(text, r#"{"event":"current","cursor":"7-9"}"#);
        assert_eq!(Told::parse(&text).unwrap(), Told::Note(note));
        assert!(Told::parse(r#"{"event":"other"}"#).is_err() && Told::parse("{}").is_err());
    }
}
