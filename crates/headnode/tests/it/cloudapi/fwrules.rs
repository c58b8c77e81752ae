//! Rules of the firewall over the wire.

use std::time::Duration;

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
    let mut rule = made.json();
    let revision = rule["enforced"].as_object_mut().and_then(|enforced| enforced.remove("revision"));
    assert!(revision.and_then(|revision| revision.as_u64()).is_some_and(|revision| revision > 0));
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
    assert_eq!((&live["enforced"]["nodes"], &live["enforced"]["live"]), (&json!(1), &json!(1)));
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

#[tokio::test]
async fn changes_of_instances_are_waited_for() {
    let stage = Stage::new().await;
    let (web, db) = (stage.running("web").await, stage.running("db").await);
    let settled = async |method: Method, path: String, body: Value| {
        let ask = stage.ask(Who::Ana, method, &path, body);
        tokio::pin!(ask);
        // The machine goes on reporting until the answer is there.
        loop {
            tokio::select! {
                biased;
                answer = &mut ask => break answer,
                () = stage.converge() => tokio::task::yield_now().await,
            }
        }
    };
    let counts = |answer: &super::stage::Answer| {
        ["x-enforced-nodes", "x-enforced-live"]
            .map(|name| answer.header(name).map(str::to_owned))
            .map(Option::unwrap_or_default)
    };
    let walled =
        settled(Method::POST, format!("/my/machines/{db}?action=enable_firewall&wait=enforced"), Value::Null).await;
    assert_eq!((walled.status.as_u16(), counts(&walled)), (202, ["1".to_owned(), "1".to_owned()]));
    let rule = json!({"rule": "FROM tag role = web TO all vms ALLOW tcp PORT 80", "enabled": true});
    stage.ask(Who::Ana, Method::POST, "/my/fwrules", rule).await;

    let tags = format!("/my/machines/{web}/tags");
    let tagged = settled(Method::POST, format!("{tags}?wait=enforced"), json!({"role": "web"})).await;
    assert_eq!((tagged.json(), counts(&tagged)), (json!({"role": "web"}), ["1".to_owned(), "1".to_owned()]));
    assert!(tagged.header("x-enforced-revision").is_some_and(|revision| revision != "0"));
    let shown = settled(Method::GET, format!("/my/machines/{web}?wait=enforced"), Value::Null).await.json();
    assert_eq!((&shown["enforced"]["nodes"], &shown["enforced"]["live"]), (&json!(1), &json!(1)));
    let plain = stage.get(Who::Ana, &format!("/my/machines/{web}")).await.json();
    assert!(plain.get("enforced").is_none(), "only who asks is told");

    // In a body it is a tag like any other.
    let named = stage.ask(Who::Ana, Method::POST, &tags, json!({"wait": "long"})).await;
    assert_eq!((named.json(), named.header("x-enforced-nodes")), (json!({"role": "web", "wait": "long"}), None));
    let gone = settled(Method::DELETE, format!("{tags}/role?wait=enforced"), Value::Null).await;
    assert_eq!(
        (gone.status.as_u16(), counts(&gone)),
        (204, ["0".to_owned(), "0".to_owned()]),
        "no set has it any more"
    );
    for path in [format!("{tags}?wait=long"), format!("/my/machines/{web}?action=enable_firewall&wait=1")] {
        let refused = stage.ask(Who::Ana, Method::POST, &path, json!({"a": "b"})).await;
        assert_eq!((refused.status.as_u16(), &refused.json()["errors"][0]["field"]), (409, &json!("wait")), "{path}");
    }
}

/// Polls a request for a while that must not be answered yet.
async fn is_held_back(ask: &mut (impl Future<Output = super::stage::Answer> + Unpin)) {
    for _ in 0..500 {
        tokio::select! {
            biased;
            answer = &mut *ask => panic!("answered too early: {} {:?}", answer.status, answer.headers),
            () = tokio::task::yield_now() => {}
        }
    }
}

#[tokio::test]
async fn nics_are_waited_for_until_they_are_live_or_time_is_up() {
    let stage = Stage::new().await;
    let (web, db) = (stage.running("web").await, stage.running("db").await);
    stage.ask(Who::Ana, Method::POST, &format!("/my/machines/{db}?action=enable_firewall"), Value::Null).await;
    let rule = json!({"rule": "FROM all vms TO all vms ALLOW tcp PORT 80", "enabled": true});
    stage.ask(Who::Ana, Method::POST, "/my/fwrules", rule).await;
    stage.converge().await;
    let counts = |answer: &super::stage::Answer| {
        ["x-enforced-nodes", "x-enforced-live"].map(|name| answer.header(name).unwrap_or_default().to_owned())
    };
    let nics = format!("/my/machines/{web}/nics");
    let of_it = async || stage.get(Who::Ana, &nics).await.json().as_array().expect("a list").clone();
    let private = of_it().await.into_iter().find(|nic| nic["network"] == stage.private.as_str()).expect("a NIC there");
    let known = || {
        let address = private["ip"].as_str().expect("an address").parse().expect("of IPv4");
        stage.document().firewall.sets.values().any(|set| set.addresses.contains(address))
    };
    assert!(known());

    let one = |nic: &Value| format!("{nics}/{}?wait=enforced", nic["mac"].as_str().expect("a MAC").replace(':', ""));
    let path = one(&private);
    let ask = stage.ask(Who::Ana, Method::DELETE, &path, Value::Null);
    tokio::pin!(ask);
    is_held_back(&mut ask).await;
    stage.converge().await;
    let gone = ask.await;
    assert_eq!((gone.status.as_u16(), counts(&gone)), (204, ["1".to_owned(), "1".to_owned()]));
    assert!(!known(), "what the machine confirmed has the address no more");

    let (path, body) = (format!("{nics}?wait=enforced"), json!({"network": stage.private}));
    let ask = stage.ask(Who::Ana, Method::POST, &path, body.clone());
    tokio::pin!(ask);
    is_held_back(&mut ask).await;
    assert_eq!(of_it().await.len(), 2, "it is made, and not yet answered for");
    stage.converge().await;
    let added = ask.await;
    assert_eq!((added.status.as_u16(), counts(&added)), (201, ["1".to_owned(), "1".to_owned()]));
    assert!(added.header("x-enforced-revision").is_some_and(|revision| revision != "0"));

    // A machine that does not confirm: the answer says so, the change stands, and one may wait on.
    let path = one(&added.json());
    let ask = stage.ask(Who::Ana, Method::DELETE, &path, Value::Null);
    tokio::pin!(ask);
    is_held_back(&mut ask).await;
    stage.clock.advance(Duration::from_millis(control::firewall::ENFORCED_WAIT_MAX_MS));
    let late = ask.await;
    assert_eq!((late.status.as_u16(), counts(&late)), (204, ["1".to_owned(), "0".to_owned()]));
    assert_eq!(of_it().await.len(), 1);
    stage.converge().await;
    let shown = stage.get(Who::Ana, &format!("/my/machines/{web}?wait=enforced")).await.json();
    assert_eq!((&shown["enforced"]["nodes"], &shown["enforced"]["live"]), (&json!(1), &json!(1)));
}
