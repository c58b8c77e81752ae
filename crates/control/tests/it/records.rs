//! What is stored stays readable: one stored record of each table with every field filled, as this release writes it.
//!
//! The files in `tests/records` are promises, and never edited once a release was made with them: `<table>.<number>.json` is read by
//! every later release. A field that is added makes the newest file of its table lack it, and a field that goes or changes makes a file
//! unreadable, or read as something else; both fail here. What to do then is in decision 36.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use control::tables;
use serde::{
    Deserializer,
    de::{DeserializeOwned, DeserializeSeed, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Error, Map, Value};
use store::{Store, Table, memory::Memory};

/// What is stored of every table, oldest first.
fn stored(table: &str) -> Vec<(String, Value)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/records");
    let number = |name: &str| name.strip_prefix(table)?.strip_prefix('.')?.strip_suffix(".json")?.parse::<u32>().ok();
    let names = fs::read_dir(&directory).expect("the records").map(|entry| entry.expect("an entry").file_name());
    let mut found: Vec<(u32, String)> =
        names.filter_map(|name| name.into_string().ok()).filter_map(|name| Some((number(&name)?, name))).collect();
    found.sort();
    let read = |name: &str| {
        let text = fs::read_to_string(directory.join(name)).expect("a record");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    found.into_iter().map(|(_, name)| (name.clone(), read(&name))).collect()
}

fn check<T: DeserializeOwned + serde::Serialize>(table: &'static Table<T>, seen: &mut BTreeSet<&'static str>) {
    seen.insert(table.name);
    let all = stored(table.name);
    let (newest, _) = all.last().unwrap_or_else(|| panic!("no stored record of table {}", table.name));
    for (name, record) in &all {
        let version = record["v"].as_u64().and_then(|version| u32::try_from(version).ok()).expect("a version");
        let written = record["d"].clone();
        let value = match version == table.version {
            true => written.clone(),
            false => (table.upgrade)(version, written.clone()).unwrap_or_else(|why| panic!("{name}: {why}")),
        };
        let read: T =
            serde_json::from_value(value).unwrap_or_else(|error| panic!("{name} is not read any more: {error}"));
        let again = serde_json::to_value(&read).expect("it is JSON");
        if name == newest {
            assert_eq!(
                version, table.version,
                "{name}: the newest stored record is of another version than is written"
            );
            assert_eq!(again, written, "{name} is read as something else than was written");
            T::deserialize(Whole { value: written, path: table.name.to_owned() })
                .unwrap_or_else(|error| panic!("{name}: {error}; add a file of the form that is written now"));
        }
        // What a newer release adds is read past.
        let mut newer = record["d"].clone();
        newer.as_object_mut().expect("a record").insert("added_later".to_owned(), Value::Bool(true));
        if version == table.version {
            let read: T =
                serde_json::from_value(newer).unwrap_or_else(|error| panic!("{name} with a new field: {error}"));
            assert_eq!(serde_json::to_value(&read).expect("it is JSON"), again, "{name}: and is not kept");
        }
    }
}

#[tokio::test]
async fn every_table_reads_what_was_ever_written() {
    let mut seen = BTreeSet::new();
    check(&tables::ACCOUNTS, &mut seen);
    check(&tables::KEYS, &mut seen);
    check(&tables::PACKAGES, &mut seen);
    check(&tables::NETWORKS, &mut seen);
    check(&tables::VLANS, &mut seen);
    check(&tables::NIC_TAGS, &mut seen);
    check(&tables::POOLS, &mut seen);
    check(&tables::ADDRESSES, &mut seen);
    check(&tables::IMAGES, &mut seen);
    check(&tables::INSTANCES, &mut seen);
    check(&tables::NAMES, &mut seen);
    check(&tables::ZONES, &mut seen);
    check(&tables::ZONE_KEYS, &mut seen);
    check(&tables::SERVERS, &mut seen);
    check(&tables::INVITES, &mut seen);
    check(&tables::CLAIMS, &mut seen);
    check(&tables::FIREWALL_RULES, &mut seen);
    check(&tables::REPEATS, &mut seen);
    check(&tables::AFFINITY_GROUPS, &mut seen);
    check(&tables::USAGE, &mut seen);
    check(&tables::USAGE_READ, &mut seen);
    check(&tables::HEADNODES, &mut seen);
    check(&tables::BEATS, &mut seen);
    check(&flow::FLOWS, &mut seen);
    let store = Store::open(Arc::new(Memory::new()), control::schema()).await.expect("the store opens");
    let known: BTreeSet<&str> = store.snapshot().table_sizes().into_iter().map(|(name, _)| name).collect();
    assert_eq!(seen, known, "a table without stored records");
}

/// The look that finds missing fields does find them, at any depth.
#[test]
fn a_missing_field_is_named() {
    let (_, record) = stored("instances").pop().expect("an instance");
    for (pointer, field) in [("/nics/0", "more6"), ("/fact/exit", "asked"), ("", "lost_at")] {
        let mut value = record["d"].clone();
        value.pointer_mut(pointer).and_then(Value::as_object_mut).expect("a record").remove(field).expect("the field");
        let whole = Whole { value, path: "instances".to_owned() };
        let refused = <model::instance::Instance as serde::Deserialize>::deserialize(whole).expect_err("it lacks one");
        assert!(refused.to_string().contains(field), "{refused}");
    }
}

/// A value in which every struct must have all its fields: those that may be left out too.
struct Whole {
    value: Value,
    path: String,
}

impl<'de> Deserializer<'de> for Whole {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => visitor.visit_u64(value),
                (None, Some(value)) => visitor.visit_i64(value),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or_default()),
            },
            Value::String(value) => visitor.visit_string(value),
            Value::Array(values) => {
                visitor.visit_seq(Items { values: values.into_iter(), path: format!("{}[]", self.path) })
            }
            Value::Object(fields) => {
                visitor.visit_map(Fields { fields: fields.into_iter(), next: None, path: self.path })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let none = Map::new();
        let there = self.value.as_object().unwrap_or(&none);
        match fields.iter().find(|field| !there.contains_key(**field)) {
            Some(field) => Err(Error::custom(format!("{} lacks `{field}`", self.path))),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let (name, content) = match self.value {
            Value::String(name) => (name, Value::Null),
            Value::Object(fields) if fields.len() == 1 => fields.into_iter().next().expect("one"),
            _ => return Err(Error::custom(format!("{} is no variant", self.path))),
        };
        visitor.visit_enum(Variant { name, content, path: self.path })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

struct Items {
    values: std::vec::IntoIter<Value>,
    path: String,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let next = self.values.next().map(|value| seed.deserialize(Whole { value, path: self.path.clone() }));
        next.transpose()
    }
}

struct Fields {
    fields: serde_json::map::IntoIter,
    next: Option<(String, Value)>,
    path: String,
}

impl<'de> MapAccess<'de> for Fields {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.next = self.fields.next();
        let name = self.next.as_ref().map(|(name, _)| Whole { value: name.clone().into(), path: self.path.clone() });
        name.map(|name| seed.deserialize(name)).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (name, value) = self.next.take().ok_or_else(|| Error::custom("a value without a name"))?;
        seed.deserialize(Whole { value, path: format!("{}.{name}", self.path) })
    }
}

struct Variant {
    name: String,
    content: Value,
    path: String,
}

impl<'de> EnumAccess<'de> for Variant {
    type Error = Error;
    type Variant = Whole;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Whole), Error> {
        let path = format!("{}.{}", self.path, self.name);
        let name = seed.deserialize(Whole { value: self.name.into(), path: self.path })?;
        Ok((name, Whole { value: self.content, path }))
    }
}

impl<'de> VariantAccess<'de> for Whole {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        if self.value.is_null() { Ok(()) } else { Err(Error::custom(format!("{} has content", self.path))) }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        self.deserialize_struct("", fields, visitor)
    }
}
