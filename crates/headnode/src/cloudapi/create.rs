//! Making an instance: all the ways in which the contract lets tenants say what they want.

use std::collections::BTreeMap;

use control::{
    Error,
    instances::{self, CreateInstance, NetworkChoice},
};
use http::{StatusCode, header};
use model::{
    id::NetworkId,
    instance::{Brand, TagValue},
    target::is_internal_key,
};
use serde_json::Value;

use super::{
    call::Call,
    error::{ApiError, Faults},
    machine_view::machine,
    machines::{not_here, show},
    params::{Params, scalar},
    reply::Reply,
};

/// `POST /:account/machines`.
pub(super) async fn create(call: Call) -> Result<Reply, ApiError> {
    let (request, mut faults) = read(&call.params);
    if !faults.is_empty() {
        faults.add_others(instances::faults(call.control(), call.account.id, &request)?);
        faults.finish()?;
    }
    let view = instances::create(call.control(), &call.caller(), call.account.id, request).await.map_err(|error| {
        // Creating refers to things; what is not there is a wrong argument, not a missing endpoint.
        match error {
            Error::NotFound { what, id } => ApiError::invalid(what, format!("{what} {id} does not exist")),
            other => other.into(),
        }
    })?;
    let location = format!("/{}/machines/{}", call.account.login, view.instance.id);
    let show = show(&call)?;
    let machine = machine(&view, call.version, show);
    let reply = Reply::json(&machine).status(StatusCode::CREATED).header(header::LOCATION, location);
    Ok(if show.credentials { reply.secret() } else { reply })
}

/// What is asked for, and what of it cannot be read.
fn read(params: &Params) -> (CreateInstance, Faults) {
    let mut faults = Faults::default();
    if params.get("locality").is_some() && params.get("affinity").is_some() {
        let message = "locality and affinity cannot be given together; use affinity";
        faults.add(ApiError::invalid("locality", message));
    }
    for (field, what) in [
        ("volumes", "volumes"),
        ("disks", "disks of one's own"),
        ("delegate_dataset", "delegated datasets"),
        ("delegated_dataset", "delegated datasets"),
        ("encrypted", "encrypted instances"),
    ] {
        let asked = params.get(field).is_some_and(|value| !matches!(value, Value::Bool(false)) && *value != "false");
        if asked && *params.get(field).unwrap_or(&Value::Null) != Value::Array(Vec::new()) {
            faults.add(not_here(what));
        }
    }
    let (metadata, internal_metadata) = metadata(params, &mut faults);
    let request = CreateInstance {
        alias: faults.take(params.text("name")).filter(|name| !name.is_empty()),
        package: faults.take(params.required("package")),
        image: faults.take(params.required("image")),
        networks: faults.take(networks(params)),
        metadata,
        internal_metadata,
        tags: tags(params, &mut faults),
        deletion_protection: faults.take(params.flag("deletion_protection")).unwrap_or(false),
        firewall_enabled: faults.take(params.flag("firewall_enabled")).unwrap_or(false),
        brand: faults.take(brand(params)),
        affinity: faults.take(affinity(params)),
    };
    (request, faults)
}

fn brand(params: &Params) -> Result<Option<Brand>, ApiError> {
    match params.text("brand")?.as_deref() {
        None | Some("") => Ok(None),
        Some("lx") => Ok(Some(Brand::Lx)),
        Some("kvm") => Ok(Some(Brand::Kvm)),
        Some(other) => Err(ApiError::invalid("brand", format!("brand \"{other}\" is not offered here; use lx or kvm"))),
    }
}

fn affinity(params: &Params) -> Result<Vec<String>, ApiError> {
    let rule = |value: &Value| match value {
        Value::String(rule) => Ok(rule.clone()),
        _ => Err(ApiError::invalid("affinity", "affinity must be a list of rules like instance!=web*")),
    };
    params.list("affinity").iter().map(rule).collect()
}

/// Networks as ids or as objects with wishes, never mixed.
fn networks(params: &Params) -> Result<Vec<NetworkChoice>, ApiError> {
    let list = params.list("networks");
    if list.iter().any(Value::is_string) && list.iter().any(Value::is_object) {
        return Err(ApiError::invalid("networks", "networks must be all ids or all objects"));
    }
    let mut choices: Vec<NetworkChoice> = Vec::new();
    for value in &list {
        let choice = network("networks", value)?;
        // Naming a network twice is one NIC, as it always was.
        if choices.iter().all(|other| other.network != choice.network) {
            choices.push(choice);
        }
    }
    if choices.iter().filter(|choice| choice.primary).count() > 1 {
        return Err(ApiError::invalid("networks", "only one network can be the primary one"));
    }
    Ok(choices)
}

/// One network of a request.
pub(super) fn network(field: &str, value: &Value) -> Result<NetworkChoice, ApiError> {
    let id = |value: &Value| -> Result<NetworkId, ApiError> {
        let text = value.as_str().unwrap_or_default();
        text.parse().map_err(|_| ApiError::invalid(field, format!("{value} is not the id of a network")))
    };
    let object = match value {
        Value::String(_) => return Ok(NetworkChoice::any(id(value)?)),
        Value::Object(object) => object,
        _ => {
            return Err(ApiError::invalid(
                field,
                format!("{field}: ids of networks or objects with ipv4_uuid are expected"),
            ));
        }
    };
    if let Some(unknown) = object
        .keys()
        .find(|key| !matches!(key.as_str(), "ipv4_uuid" | "ipv4_ips" | "ipv4_count" | "ipv6_ips" | "primary"))
    {
        return Err(ApiError::invalid(field, format!("{field}: \"{unknown}\" cannot be chosen for a network")));
    }
    if object.get("ipv4_count").is_some_and(|count| *count != 1) {
        return Err(ApiError::invalid(field, format!("{field}: ipv4_count can only be 1")));
    }
    let ip = match all(field, object, "ipv4_ips", "an IPv4 address")?.as_deref() {
        None => None,
        Some([ip]) => Some(*ip),
        Some(_) => return Err(ApiError::invalid(field, format!("{field}: ipv4_ips must be a list of one address"))),
    };
    let ips6 = all(field, object, "ipv6_ips", "an IPv6 address")?.unwrap_or_default();
    let primary = object.get("primary").is_some_and(|value| *value == true);
    let uuid =
        object.get("ipv4_uuid").ok_or_else(|| ApiError::invalid(field, format!("{field}: ipv4_uuid is missing")))?;
    Ok(NetworkChoice { network: id(uuid)?, ip, ips6, primary })
}

/// The addresses that are asked for, at least one if any.
fn all<T: std::str::FromStr>(
    field: &str,
    object: &serde_json::Map<String, Value>,
    key: &str,
    what: &str,
) -> Result<Option<Vec<T>>, ApiError> {
    let one = |value: &Value| {
        let ip = value.as_str().and_then(|text| text.parse().ok());
        ip.ok_or_else(|| ApiError::invalid(field, format!("{field}: {value} is not {what}")))
    };
    match object.get(key) {
        None => Ok(None),
        Some(Value::Array(ips)) if !ips.is_empty() => ips.iter().map(one).collect::<Result<_, _>>().map(Some),
        Some(_) => Err(ApiError::invalid(field, format!("{field}: {key} must be a list of addresses"))),
    }
}

type Texts = BTreeMap<String, String>;

/// `metadata.key` parameters and a `metadata` object; passwords go where tenants do not see them by chance.
fn metadata(params: &Params, faults: &mut Faults) -> (Texts, Texts) {
    let (mut open, mut internal) = (BTreeMap::new(), BTreeMap::new());
    for (key, value) in faults.take(dotted(params, "metadata")) {
        if key == "credentials" {
            internal.extend(faults.take(credentials("metadata.credentials", &value)));
            continue;
        }
        match scalar(&value) {
            Some(text) if is_internal_key(&key) => drop(internal.insert(key, text)),
            Some(text) => drop(open.insert(key, text)),
            None => faults.add(ApiError::invalid(&format!("metadata.{key}"), format!("metadata.{key} must be text"))),
        }
    }
    for field in ["password", "administrator_pw"] {
        if let Some(password) = faults.take(params.scalar(field)) {
            internal.insert("administrator_pw".to_owned(), password);
        }
    }
    (open, internal)
}

/// Passwords by user, as keys of metadata.
pub(super) fn credentials(field: &str, value: &Value) -> Result<Texts, ApiError> {
    let parsed = value.as_str().and_then(|text| serde_json::from_str(text).ok());
    let refused = || ApiError::invalid(field, format!("{field} must be an object of passwords by user"));
    let Value::Object(users) = parsed.as_ref().unwrap_or(value) else { return Err(refused()) };
    let suffixed = |user: &String| if user.ends_with("_pw") { user.clone() } else { format!("{user}_pw") };
    users.iter().map(|(user, password)| Ok((suffixed(user), scalar(password).ok_or_else(refused)?))).collect()
}

/// `tag.key` parameters and a `tags` object.
fn tags(params: &Params, faults: &mut Faults) -> BTreeMap<String, TagValue> {
    let given = [faults.take(dotted(params, "tag")), faults.take(dotted(params, "tags"))];
    given
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((faults.take(tag(&key, &value).map(Some))?, key)))
        .map(|(value, key)| (key, value))
        .collect()
}

/// One tag's value.
pub(super) fn tag(key: &str, value: &Value) -> Result<TagValue, ApiError> {
    match value {
        Value::Bool(flag) => Ok(TagValue::Bool(*flag)),
        Value::Number(number) => Ok(TagValue::Number(number.clone())),
        Value::String(text) => Ok(TagValue::Text(text.clone())),
        _ => Err(ApiError::invalid(&format!("tag.{key}"), format!("tag.{key} must be text, a number or a boolean"))),
    }
}

/// All of `name.key = value`, and of `name = {key: value}` where the object may also be JSON text.
fn dotted(params: &Params, name: &str) -> Result<Vec<(String, Value)>, ApiError> {
    let mut found = Vec::new();
    for (key, value) in params.iter() {
        if let Some(rest) = key.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) {
            if rest.is_empty() {
                return Err(ApiError::invalid(key, format!("{key} has no name after the dot")));
            }
            found.push((rest.to_owned(), value.clone()));
        }
    }
    let Some(value) = params.get(name) else {
        return Ok(found);
    };
    let parsed = value.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    match parsed.as_ref().unwrap_or(value) {
        Value::Object(map) => found.extend(map.iter().map(|(key, value)| (key.clone(), value.clone()))),
        _ => return Err(ApiError::invalid(name, format!("{name} must be an object"))),
    }
    Ok(found)
}
