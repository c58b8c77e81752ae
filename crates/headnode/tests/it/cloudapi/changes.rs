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
    ] {
        refused(&stage, "/my/machines", create(field, value), "InvalidArgument", field).await;
    }
    let both = stage.ask(Who::Ana, Method::POST, "/my/machines", json!({"package": "x", "image": "y"})).await;
    assert_eq!((both.status, &*both.code()), (StatusCode::CONFLICT, "ValidationFailed"));
    assert_eq!(both.json()["errors"].as_array().unwrap().len(), 2);
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
