//! Changes to an instance that runs: what succeeds, and what is refused by which field's name.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::stage::{IMAGE, Stage, Who};

const NOWHERE: &str = "00000000-0000-0000-0000-000000000001";

/// Insists on a refusal of exactly this field.
async fn refused(stage: &Stage, target: &str, body: Value, code: &str, field: &str) {
    let answer = stage.ask(Who::Ana, Method::POST, target, body.clone()).await;
    assert_eq!((answer.status, &*answer.code()), (StatusCode::CONFLICT, code), "{target} {body}");
    let fields: Vec<Value> =
        answer.json()["errors"].as_array().unwrap().iter().map(|error| error["field"].clone()).collect();
    assert_eq!(fields, [json!(field)], "{target} {body}");
}

#[tokio::test]
async fn wrong_types_and_unknown_things_name_their_field() {
    let stage = Stage::new().await;
    let create = |name: &str, value: Value| {
        let mut body = json!({"package": "small", "image": IMAGE});
        body[name] = value;
        body
    };
    for (field, value) in [
        ("package", json!("nosuch")),
        ("package", json!(["small"])),
        ("image", json!(NOWHERE)),
        ("image", json!({"id": IMAGE})),
        ("networks", json!([NOWHERE])),
        ("networks", json!("nosuch")),
        ("affinity", json!(5)),
        ("affinity", json!([{"near": "web"}])),
        ("name", json!("-dash")),
        ("name", json!(["web"])),
        ("name", json!(5)),
        ("package", json!(5)),
        ("firewall_enabled", json!(1)),
        ("deletion_protection", json!("yes")),
    ] {
        refused(&stage, "/my/machines", create(field, value), "InvalidArgument", field).await;
    }
    let everything = json!({
        "name": 5, "package": "nosuch", "image": NOWHERE, "networks": [NOWHERE], "affinity": 5, "brand": "odd",
        "firewall_enabled": "perhaps", "tags": {"a": []}, "metadata": {"b": {}},
    });
    let answer = stage.ask(Who::Ana, Method::POST, "/my/machines", everything).await;
    assert_eq!((answer.status, &*answer.code()), (StatusCode::CONFLICT, "ValidationFailed"));
    let mut fields: Vec<String> = answer.json()["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["field"].as_str().unwrap().to_owned())
        .collect();
    fields.sort();
    let wanted =
        ["affinity", "brand", "firewall_enabled", "image", "metadata.b", "name", "networks", "package", "tag.a"];
    assert_eq!(fields, wanted, "every wrong field is named once");
    assert!(wanted.iter().all(|field| answer.json()["message"].as_str().unwrap().contains(field)));
    let both = stage.ask(Who::Ana, Method::POST, "/my/machines", json!({"package": "x", "image": "y"})).await;
    assert_eq!((both.status, &*both.code()), (StatusCode::CONFLICT, "ValidationFailed"));
    assert_eq!(both.json()["errors"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn types_are_checked_in_every_change() {
    let stage = Stage::new().await;
    let machine = format!("/my/machines/{}", stage.running("web").await);
    let image = format!("/my/images/{IMAGE}");
    let fields = async |who, method: Method, target: &str, body: Value| {
        let answer = stage.ask(who, method, target, body).await;
        assert_eq!(answer.status, StatusCode::CONFLICT, "{target} {:?}", answer.body);
        let mut fields: Vec<String> = answer.json()["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|error| error["field"].as_str().unwrap().to_owned())
            .collect();
        fields.sort();
        fields.join(" ")
    };
    for (who, method, target, body, wanted) in [
        (
            Who::Ana,
            Method::POST,
            "/my",
            json!({"email": 1, "phone": [], "triton_cns_enabled": 3}),
            "email phone triton_cns_enabled",
        ),
        (Who::Ana, Method::POST, "/my/keys", json!({"name": 1}), "key name"),
        (Who::Ana, Method::PUT, "/my/config", json!({"default_network": 7}), "default_network"),
        (Who::Ana, Method::GET, "/my/packages?memory=x&disk=y", Value::Null, "disk memory"),
        (Who::Ana, Method::GET, "/my/images?state=odd&public=maybe&owner=me", Value::Null, "owner public state"),
        (
            Who::Ana,
            Method::GET,
            "/my/machines?limit=a&offset=b&type=c&state=d&docker=e&memory=f&image=g",
            Value::Null,
            "docker image limit memory offset state type",
        ),
        (Who::Ana, Method::POST, &machine, json!({"action": "rename", "name": 5}), "name"),
        (Who::Ana, Method::POST, &machine, json!({"action": 5}), "action"),
        (Who::Ana, Method::POST, &format!("{machine}/nics"), json!({"network": 5, "primary": "no"}), "network primary"),
        (Who::Ana, Method::POST, &format!("{machine}/tags"), json!({"a": {}, "b": []}), "tag.a tag.b"),
        (Who::Ana, Method::POST, &format!("{machine}/metadata"), json!({"a": {}, "b": []}), "a b"),
        (
            Who::Ops,
            Method::POST,
            &image,
            json!({"action": "update", "name": 5, "tags": 6, "acl": ["x"]}),
            "acl name tags",
        ),
    ] {
        assert_eq!(fields(who, method.clone(), target, body).await, wanted, "{method} {target}");
    }
}

#[tokio::test]
async fn passwords_are_shown_to_those_who_ask() {
    let stage = Stage::new().await;
    let body = json!({
        "package": "small", "image": IMAGE, "metadata": {"credentials": {"root": "one"}, "admin_pw": "two", "open": "x"},
    });
    let made = stage.ask(Who::Ana, Method::POST, "/my/machines", body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
    let machine = format!("/my/machines/{}", made.json()["id"].as_str().unwrap());
    stage.converge().await;
    let metadata = format!("{machine}/metadata");
    let answer = stage.ask(Who::Ana, Method::POST, &metadata, json!({"demo_pw": "three", "more": "y"})).await;
    assert_eq!(answer.json(), json!({"open": "x", "more": "y"}));
    let all = json!({"root": "one", "admin": "two", "demo": "three"});
    for quiet in [&machine, &format!("{machine}?credentials=false")] {
        assert_eq!(stage.get(Who::Ana, quiet).await.json()["metadata"], json!({"open": "x", "more": "y"}));
    }
    let open = format!("{machine}?credentials=true");
    assert_eq!(stage.get(Who::Ana, &open).await.json()["metadata"]["credentials"], all);
    assert_eq!(stage.get(Who::Ana, "/my/machines?credentials=true").await.json()[0]["metadata"]["credentials"], all);
    assert_eq!(stage.get(Who::Ana, &format!("{metadata}?credentials=true")).await.json()["credentials"], all);
    assert_eq!(stage.get(Who::Ana, &format!("{metadata}/credentials")).await.json(), all);
    assert!(stage.get(Who::Ana, &metadata).await.json().get("credentials").is_none());
    // All of it goes, but what logging in needs.
    stage.ask(Who::Ana, Method::POST, &metadata, json!({"root_authorized_keys": "k"})).await;
    let gone = stage.ask(Who::Ana, Method::DELETE, &metadata, Value::Null).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    assert_eq!(stage.get(Who::Ana, &metadata).await.json(), json!({"root_authorized_keys": "k"}));
}

#[tokio::test]
async fn the_way_out_is_the_primary_one() {
    let stage = Stage::new().await;
    for (networks, primary) in [
        (json!([stage.private, stage.external]), &stage.external),
        (json!([{"ipv4_uuid": stage.external}, {"ipv4_uuid": stage.private, "primary": true}]), &stage.private),
        (json!([stage.private]), &stage.private),
    ] {
        let body = json!({"package": "small", "image": IMAGE, "networks": networks});
        let made = stage.ask(Who::Ana, Method::POST, "/my/machines", body).await.json();
        let nics = made["nics"].as_array().unwrap();
        let found: Vec<&Value> = nics.iter().filter(|nic| nic["primary"] == true).map(|nic| &nic["network"]).collect();
        assert_eq!(found, [&json!(primary)], "{networks}");
    }
}

#[tokio::test]
async fn resize() {
    let stage = Stage::new().await;
    let machine = format!("/my/machines/{}", stage.running("web").await);
    let to = |package: Value| json!({"action": "resize", "package": package});
    refused(&stage, &machine, json!({"action": "resize"}), "MissingParameter", "package").await;
    refused(&stage, &machine, to(json!("nosuch")), "InvalidArgument", "package").await;
    refused(&stage, &machine, to(json!(NOWHERE)), "InvalidArgument", "package").await;
    let answer = stage.ask(Who::Ana, Method::POST, &machine, to(json!("large"))).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    stage.converge().await;
    let after = stage.get(Who::Ana, &machine).await.json();
    assert_eq!((&after["package"], &after["memory"]), (&json!("large"), &json!(256)));
}

#[tokio::test]
async fn nics_come_and_go() {
    let stage = Stage::new().await;
    let machine = format!("/my/machines/{}", stage.running("web").await);
    let nics = format!("{machine}/nics");
    refused(&stage, &nics, json!({}), "MissingParameter", "network").await;
    refused(&stage, &nics, json!({"network": NOWHERE}), "InvalidArgument", "network").await;
    refused(&stage, &nics, json!({"network": 7}), "InvalidArgument", "network").await;

    let before = stage.get(Who::Ana, &nics).await.json();
    let taken: Vec<&Value> = before.as_array().unwrap().iter().map(|nic| &nic["network"]).collect();
    let private = json!(stage.private);
    if taken.contains(&&private) {
        let nic = before.as_array().unwrap().iter().find(|nic| nic["network"] == private).unwrap();
        let mac = nic["mac"].as_str().unwrap().replace(':', "");
        let gone = stage.ask(Who::Ana, Method::DELETE, &format!("{nics}/{mac}"), Value::Null).await;
        assert_eq!(gone.status, StatusCode::NO_CONTENT);
        stage.converge().await;
    }
    let added = stage.ask(Who::Ana, Method::POST, &nics, json!({"network": private})).await;
    assert_eq!(added.status, StatusCode::CREATED, "{:?}", added.body);
    let mac = added.json()["mac"].as_str().unwrap().replace(':', "");
    let one = format!("{nics}/{mac}");
    assert!(added.header("location").unwrap().ends_with(&format!("/nics/{mac}")));
    stage.converge().await;
    assert_eq!(stage.get(Who::Ana, &one).await.json()["state"], "running");

    assert_eq!(stage.ask(Who::Ana, Method::DELETE, &one, Value::Null).await.status, StatusCode::NO_CONTENT);
    stage.converge().await;
    let gone = stage.get(Who::Ana, &one).await;
    assert_eq!((gone.status, &*gone.code()), (StatusCode::NOT_FOUND, "ResourceNotFound"));
    let again = stage.ask(Who::Ana, Method::DELETE, &one, Value::Null).await;
    assert_eq!((again.status, &*again.code()), (StatusCode::NOT_FOUND, "ResourceNotFound"));
}
