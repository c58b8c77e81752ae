//! Query and body, merged into one map, as the contract wants it.
//!
//! The body may be JSON, a form, or a multipart form; what it says goes before the query. A key that is given twice in a
//! query or a form becomes a list. Values of forms are text, so the getters read
//! numbers and booleans out of text; they do not take a number for text.

use bytes::Bytes;
use cloudapi::error::Code;
use percent_encoding::percent_decode;
use serde_json::{Map, Value};

use super::{error::ApiError, multipart};

/// Most bytes of a body: the contract's number.
pub(super) const BODY_MAX: usize = 100_000;
/// Most parameters of one request.
const PARAMETERS_MAX: usize = 4_096;

/// The parameters of one request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Params(Map<String, Value>);

/// Why a query or body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// What was sent is not what its type says.
    #[error("cannot read the {0}")]
    Unreadable(&'static str),
    /// More than anybody needs.
    #[error("more than {PARAMETERS_MAX} parameters")]
    TooMany,
    /// A type nobody here reads.
    #[error("cannot read a body of type \"{0}\"; send application/json or a form")]
    MediaType(String),
}

impl From<Malformed> for ApiError {
    fn from(error: Malformed) -> Self {
        let code = match error {
            Malformed::Unreadable(_) | Malformed::TooMany => Code::BadRequest,
            Malformed::MediaType(_) => Code::UnsupportedMediaType,
        };
        Self::new(code, error.to_string())
    }
}

impl Params {
    /// Merges a query and a body of the given content type.
    pub fn merge(query: Option<&str>, content_type: Option<&str>, body: &Bytes) -> Result<Self, Malformed> {
        let mut params = Self::default();
        if let Some(query) = query {
            params.form(query.as_bytes(), "query")?;
        }
        if body.is_empty() {
            return Ok(params);
        }
        let from_body = Self::body(content_type, body)?;
        params.0.extend(from_body.0);
        Ok(params)
    }

    fn body(content_type: Option<&str>, body: &[u8]) -> Result<Self, Malformed> {
        let mut params = Self::default();
        let content_type = content_type.unwrap_or("application/json");
        let essence = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => match serde_json::from_slice(body) {
                Ok(Value::Object(map)) => params.0 = map,
                // Some clients send an empty value instead of no body.
                Ok(Value::Null) => {}
                _ => return Err(Malformed::Unreadable("body: it must be a JSON object")),
            },
            "application/x-www-form-urlencoded" => params.form(body, "form")?,
            "multipart/form-data" => {
                let parts = multipart::parse(content_type, body).ok_or(Malformed::Unreadable("multipart form"))?;
                for (name, value) in parts {
                    params.push(name, value)?;
                }
            }
            other => return Err(Malformed::MediaType(other.chars().take(64).collect())),
        }
        Ok(params)
    }

    fn form(&mut self, text: &[u8], what: &'static str) -> Result<(), Malformed> {
        for pair in text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            let (key, value) = (&pair[..end], pair.get(end + 1..).unwrap_or_default());
            let (Some(key), Some(value)) = (decode(key), decode(value)) else {
                return Err(Malformed::Unreadable(what));
            };
            self.push(key, value)?;
        }
        Ok(())
    }

    fn push(&mut self, key: String, value: String) -> Result<(), Malformed> {
        if self.0.len() >= PARAMETERS_MAX {
            return Err(Malformed::TooMany);
        }
        let value = Value::String(value);
        match self.0.get_mut(&key) {
            None => drop(self.0.insert(key, value)),
            Some(Value::Array(list)) => list.push(value),
            Some(first) => {
                let list = vec![first.take(), value];
                *first = Value::Array(list);
            }
        }
        Ok(())
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.iter()
    }

    /// A value of any type; `null` counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// Text.
    pub(super) fn text(&self, key: &str) -> Result<Option<String>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(ApiError::invalid(key, format!("{key} must be a string"))),
        }
    }

    /// Text, a number or a boolean, written out.
    pub(super) fn scalar(&self, key: &str) -> Result<Option<String>, ApiError> {
        let one = |value| scalar(value).ok_or_else(|| ApiError::invalid(key, format!("{key} must be one value")));
        self.get(key).map(one).transpose()
    }

    /// Text that has to be there.
    pub(super) fn required(&self, key: &str) -> Result<String, ApiError> {
        self.text(key)?.filter(|text| !text.is_empty()).ok_or_else(|| ApiError::missing(key))
    }

    /// `true` or `false`, also as text.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(Value::String(text)) if text == "true" => Ok(Some(true)),
            Some(Value::String(text)) if text == "false" => Ok(Some(false)),
            Some(other) => Err(ApiError::invalid(key, format!("{key} must be true or false, not {other}"))),
        }
    }

    /// A whole number, also as text.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        let number = |value: &Value| match value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        match self.get(key) {
            None => Ok(None),
            Some(value) => number(value)
                .map(Some)
                .ok_or_else(|| ApiError::invalid(key, format!("{key} must be a whole number, not {value}"))),
        }
    }

    /// Something with a text form of its own: an id, an address.
    pub(super) fn parsed<T: std::str::FromStr>(&self, key: &str, what: &str) -> Result<Option<T>, ApiError> {
        match self.text(key)? {
            None => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| ApiError::invalid(key, format!("{key} must be {what}, not \"{text}\""))),
        }
    }

    /// A list; one value counts as a list of one, and text that is a JSON list counts as that.
    pub(super) fn list(&self, key: &str) -> Vec<Value> {
        match self.get(key) {
            None => Vec::new(),
            Some(Value::Array(list)) => list.clone(),
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Array(list)) => list,
                _ => vec![Value::String(text.clone())],
            },
            Some(one) => vec![one.clone()],
        }
    }
}

/// A value as text, unless it is a list or an object.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn decode(text: &[u8]) -> Option<String> {
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(query: &str, content_type: Option<&str>, body: &str, expected: Value) {
        let params = Params::merge(Some(query), content_type, &Bytes::copy_from_slice(body.as_bytes()));
        assert_eq!(params.map(|params| Value::Object(params.0)), Ok(expected));
    }

    #[test]
    fn merged() {
        check("action=stop&x=1", None, "", json!({"action": "stop", "x": "1"}));
        check("action=stop", None, r#"{"action":"start","n":1}"#, json!({"action": "start", "n": 1}));
        let form = Some("application/x-www-form-urlencoded; charset=utf-8");
        check("a=1", form, "b=two+words&b=%26&tag.c=", json!({"a": "1", "b": ["two words", "&"], "tag.c": ""}));
        let multipart = "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\none\r\ntwo\r\n--x--\r\n";
        check("", Some("multipart/form-data; boundary=x"), multipart, json!({"a": "one\r\ntwo"}));
        check("", Some("application/json"), "null", json!({}));
    }

    #[test]
    fn refused() {
        for (content_type, body) in [
            ("application/json", "[1]"),
            ("application/json", "{"),
            ("application/x-www-form-urlencoded", "a=%ff"),
            ("multipart/form-data", "--x"),
        ] {
            let got = Params::merge(None, Some(content_type), &Bytes::from_static(body.as_bytes()));
            assert!(matches!(got, Err(Malformed::Unreadable(_))), "{content_type} {body}");
        }
        let got = Params::merge(None, Some("text/xml"), &Bytes::from_static(b"<a/>"));
        assert_eq!(got, Err(Malformed::MediaType("text/xml".into())));
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(query in "[ -~]{0,80}", kind in 0_usize..4, body: Vec<u8>) {
            let types = ["application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"];
            let _ = Params::merge(Some(&query), Some(types[kind]), &Bytes::from(body));
        }

        #[test]
        fn forms_are_read_back(pairs in prop::collection::btree_map("[a-z.]{1,8}", ".{0,20}", 0..8)) {
            let encode = |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
            let body: Vec<String> = pairs.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
            let form = Some("application/x-www-form-urlencoded");
            let params = Params::merge(None, form, &Bytes::from(body.join("&"))).unwrap();
            for (key, value) in &pairs {
                prop_assert_eq!(params.0.get(key), Some(&Value::String(value.clone())));
            }
        }
    }
}
