//! Bodies, field by field, as clients know them.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::stage::{IMAGE, Stage, Who};

#[track_caller]
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_machine() {
    let stage = Stage::new().await;
    let body = json!({
        "name": "web-{{shortId}}", "package": "small", "image": IMAGE, "networks": [stage.external, stage.private],
        "metadata.foo": "bar", "metadata.n": 1, "metadata": {"user-script": "#!/bin/sh\n"},
        "tag.role": "web", "tags": {"n": 1, "t": true}, "affinity": ["instance!=db*"],
        "firewall_enabled": true, "deletion_protection": true,
    });
    let made = stage.ask(Who::Ana, Method::POST, "/my/machines", body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
    let machine = made.json();
    let id = machine["id"].as_str().unwrap();
    assert_eq!(made.header("location"), Some(&*format!("/ana/machines/{id}")));
    assert_eq!(machine["state"], "provisioning");
    stage.converge().await;
    let got = stage.get(Who::Ana, &format!("/ana/machines/{id}")).await.json();
    let (created, updated, node) = (&got["created"], &got["updated"], &got["compute_node"]);
    let (external, private) = (&got["nics"][0], &got["nics"][1]);
    assert_eq!(
        got,
        json!({
            "id": id, "name": format!("web-{}", &id[..8]), "type": "smartmachine", "brand": "lx", "state": "running",
            "image": IMAGE, "ips": [external["ip"], private["ip"]], "memory": 128, "disk": 1024,
            "deletion_protection": true,
            "metadata": {"foo": "bar", "n": "1", "user-script": "#!/bin/sh\n"},
            "tags": {"n": 1, "role": "web", "t": true},
            "created": created, "updated": updated, "networks": [stage.external, stage.private],
            "nics": [
                {"ip": external["ip"], "mac": external["mac"], "primary": true, "netmask": "255.255.255.0",
                 "gateway": "10.88.0.1", "network": stage.external, "state": "running"},
                {"ip": private["ip"], "mac": private["mac"], "primary": false, "netmask": "255.255.255.0",
                 "network": stage.private, "state": "running"},
            ],
            "primaryIp": external["ip"], "firewall_enabled": true, "compute_node": node, "package": "small",
        })
    );
    let typed: cloudapi::types::Machine<'static> = serde_json::from_value(got.clone()).unwrap();
    assert_eq!(serde_json::to_value(&typed).unwrap(), got);
    let old = [("accept-version", "7.0.0")];
    let old = stage.send(Who::Ana, Method::GET, &format!("/ana/machines/{id}"), &old, Default::default()).await;
    assert_eq!(old.header("api-version"), Some("7.0.0"));
    assert!(old.json().get("networks").is_none() && old.json().get("brand").is_none());
}

#[tokio::test]
async fn the_other_nouns() {
    let stage = Stage::new().await;
    let account = stage.get(Who::Ana, "/my").await.json();
    assert_eq!(keys(&account), ["created", "email", "id", "login", "triton_cns_enabled", "updated"]);
    let key = stage.get(Who::Ana, "/my/keys/laptop").await.json();
    assert_eq!(keys(&key), ["attested", "created", "fingerprint", "key", "multifactor", "name"]);
    let package = stage.get(Who::Ana, "/my/packages/small").await.json();
    let id = &package["id"];
    let wanted = json!({
        "id": id, "name": "small", "version": "1.0.0", "group": "test", "memory": 128, "swap": 256, "disk": 1024,
        "lwps": 500, "vcpus": 0, "default": false,
    });
    assert_eq!(package, wanted);
    let image = stage.get(Who::Ana, &format!("/my/images/{IMAGE}")).await.json();
    assert_eq!((&image["type"], &image["state"]), (&json!("lx-dataset"), &json!("active")));
    assert_eq!(keys(&image["files"][0]), ["compression", "sha1", "size"]);
    let network = stage.get(Who::Ana, &format!("/my/networks/{}", stage.external)).await.json();
    assert_eq!(network, json!({"id": stage.external, "name": "external", "public": true}));
    assert_eq!(stage.get(Who::Ana, "/my/datacenters").await.json(), json!({"home-1": "https://here:8443"}));
    let moved = stage.get(Who::Ana, "/my/datacenters/home-1").await;
    assert_eq!((moved.status.as_u16(), &*moved.code()), (302, "ResourceMoved"));
    assert_eq!(moved.header("location"), Some("https://here:8443"));
    for none in ["limits", "fwrules", "users", "roles", "policies", "volumes", "migrations", "accesskeys"] {
        assert_eq!(stage.get(Who::Ana, &format!("/my/{none}")).await.json(), json!([]), "{none}");
    }
}

#[tokio::test]
async fn the_audit() {
    let stage = Stage::new().await;
    let id = stage.running("web").await;
    stage.ask(Who::Ana, Method::POST, &format!("/my/machines/{id}?action=rename&name=db"), Value::Null).await;
    let metadata = format!("/my/machines/{id}/metadata");
    stage.ask(Who::Ana, Method::POST, &metadata, json!({"a": "b"})).await;
    // Not before the machine serves it, nor in the same second: clients wait for a line younger than their answer.
    stage.converge().await;
    let newest = async || stage.get(Who::Ana, &format!("/my/machines/{id}/audit")).await.json()[0].clone();
    assert_eq!(newest().await["action"], "rename");
    let asked = stage.get(Who::Ana, &format!("/my/machines/{id}")).await.json()["updated"].clone();
    stage.clock.advance(std::time::Duration::from_secs(1));
    stage.converge().await;
    stage.until(async || newest().await["action"] == "set_metadata").await;
    assert!(newest().await["time"].as_str().unwrap() > asked.as_str().unwrap());
    stage.ask(Who::Ana, Method::DELETE, &format!("{metadata}/a"), Value::Null).await;
    stage.clock.advance(std::time::Duration::from_secs(1));
    stage.converge().await;
    stage.until(async || newest().await["action"] == "remove_metadata").await;
    let audit = stage.get(Who::Ana, &format!("/my/machines/{id}/audit")).await.json();
    assert_eq!((&audit[2]["action"], &audit[2]["success"]), (&json!("rename"), &json!("yes")));
    assert_eq!(audit[0]["caller"]["type"], "signature");
    assert!(audit[0]["caller"]["keyId"].as_str().unwrap().starts_with("/ana/keys/"));
}
