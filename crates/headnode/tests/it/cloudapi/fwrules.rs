//! Rules of the firewall over the wire.

use http::Method;
use serde_json::{Value, json};

use super::stage::{Stage, Who};

#[tokio::test]
async fn rules_are_made_changed_waited_for_and_listed() {
    let stage = Stage::new().await;
    let id = stage.running("web").await;
    stage.ask(Who::Ana, Method::POST, &format!("/my/machines/{id}?action=enable_firewall"), Value::Null).await;
    let body = json!({"rule": "from any to all vms allow tcp port 80", "enabled": true, "description": "web"});
    let made = stage.ask(Who::Ana, Method::POST, "/my/fwrules", body).await;
    assert_eq!(made.status.as_u16(), 201);
    let rule = made.json();
    let path = format!("/my/fwrules/{}", rule["id"].as_str().unwrap());
    assert_eq!(
        rule,
        json!({
            "id": rule["id"], "rule": "FROM any TO all vms ALLOW tcp PORT 80", "enabled": true, "description": "web",
            "log": false, "version": 1, "enforced": {"nodes": 1, "live": 0},
        })
    );
    stage.converge().await;
    let live = stage.get(Who::Ana, &format!("{path}?wait=enforced")).await.json();
    assert_eq!(live["enforced"], json!({"nodes": 1, "live": 1}));
    let off = stage.ask(Who::Ana, Method::POST, &format!("{path}/disable"), json!({})).await;
    assert_eq!((off.status.as_u16(), &off.json()["enabled"]), (202, &json!(false)));
    let on = stage.ask(Who::Ana, Method::POST, &format!("{path}/enable"), json!({})).await;
    assert_eq!((on.status.as_u16(), &on.json()["version"]), (202, &json!(3)));
    let new = json!({"rule": "FROM any TO all vms ALLOW tcp PORT 81"});
    let changed = stage.ask(Who::Ana, Method::POST, &path, new).await;
    assert_eq!(changed.json()["rule"], "FROM any TO all vms ALLOW tcp PORT 81");
    let machines = stage.get(Who::Ana, &format!("{path}/machines")).await;
    assert_eq!((machines.header("x-resource-count"), &machines.json()[0]["id"]), (Some("1"), &json!(id)));
    let of_it = stage.get(Who::Ana, &format!("/my/machines/{id}/fwrules")).await.json();
    assert_eq!(of_it[0]["id"], rule["id"]);
    assert_eq!(stage.get(Who::Ana, "/my/fwrules").await.json().as_array().map(Vec::len), Some(1));

    let peers = |count| (1..=count).map(|n| format!("ip 10.0.0.{n}")).collect::<Vec<_>>().join(" OR ");
    let fits = json!({"rule": format!("FROM ({}) TO all vms ALLOW ah", peers(24))});
    assert_eq!(stage.ask(Who::Ana, Method::POST, "/my/fwrules", fits).await.status.as_u16(), 201);
    let crowded = format!("FROM ({}) TO all vms ALLOW ah", peers(25));
    for (body, field) in [
        (json!({"rule": "FROM any TO any ALLOW tcp PORT 80"}), "rule"),
        (json!({"rule": crowded}), "rule"),
        (json!({"rule": 7}), "rule"),
        (json!({}), "rule"),
        (json!({"rule": "FROM any TO all vms ALLOW tcp PORT 80", "enabled": "perhaps"}), "enabled"),
        (json!({"rule": "FROM any TO all vms ALLOW tcp PORT 80", "wait": "long"}), "wait"),
    ] {
        let refused = stage.ask(Who::Ana, Method::POST, "/my/fwrules", body.clone()).await;
        assert_eq!((refused.status.as_u16(), &refused.json()["errors"][0]["field"]), (409, &json!(field)), "{body}");
    }
    assert_eq!(stage.ask(Who::Ana, Method::DELETE, &path, Value::Null).await.status.as_u16(), 204);
    assert_eq!(stage.get(Who::Ana, &path).await.code(), "ResourceNotFound");
}
