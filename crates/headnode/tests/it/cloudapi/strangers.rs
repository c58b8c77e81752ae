//! Every door, as somebody who may not pass.

use control::accounts;
use headnode::cloudapi::endpoints;
use http::{Method, StatusCode};
use serde_json::Value;

use super::stage::{Stage, Who};

/// A path of the table, for one account, with something in every place.
fn path(pattern: &str, login: &str) -> String {
    let segments = pattern.split('/').map(|segment| match segment {
        ":account" => login,
        segment if segment.starts_with(':') => "0b0e3c0e-4e0f-4f6b-8c5e-1d2f3a4b5c6d",
        segment => segment,
    });
    segments.collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn nobody_passes_unsigned_forged_or_on_anothers_path() {
    let stage = Stage::new().await;
    let mut walked = 0;
    for (method, pattern, name) in endpoints() {
        let own = path(pattern, "ana");
        for (who, target, status, code) in [
            (Who::Nobody, &own, 401, "InvalidCredentials"),
            (Who::Forger, &own, 401, "InvalidCredentials"),
            (Who::Bob, &own, 403, "NotAuthorized"),
            (Who::Bob, &path(pattern, "nosuch"), 403, "NotAuthorized"),
        ] {
            let answer = stage.ask(who, method.clone(), target, Value::Null).await;
            assert_eq!((answer.status.as_u16(), &*answer.code()), (status, code), "{name} {method} {target}");
        }
        walked += 1;
    }
    assert!(walked > 100, "only {walked} endpoints");
}

#[tokio::test]
async fn a_disabled_account_passes_nowhere() {
    let stage = Stage::new().await;
    let id = accounts::by_login(&stage.control, "ana").unwrap().id;
    accounts::set_disabled(&stage.control, id, true).await.unwrap();
    for (method, pattern, name) in endpoints() {
        let answer = stage.ask(Who::Ana, method, &path(pattern, "ana"), Value::Null).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (403, "NotAuthorized"), "{name}");
    }
}

#[tokio::test]
async fn foreign_instances_do_not_exist() {
    let stage = Stage::new().await;
    let id = stage.running("web").await;
    for (method, pattern, name) in endpoints().filter(|(_, pattern, _)| pattern.contains("/machines/:machine")) {
        let target = path(&pattern.replace(":machine", &id), "bob");
        let body = match method {
            Method::GET => Value::Null,
            // The one that wants a list, which is no tag and no metadata.
            Method::PUT if pattern.contains("/nics/") => serde_json::json!({"ipv6_ips": ["fd00::1"]}),
            _ => serde_json::json!({"action": "stop", "network": stage.external, "x": "y"}),
        };
        let target = target.replace("nics/0b0e3c0e-4e0f-4f6b-8c5e-1d2f3a4b5c6d", "nics/90b8d0000001");
        let answer = stage.ask(Who::Bob, method, &target, body).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{name} {target} {:?}", answer.body);
    }
}

#[tokio::test]
async fn operators_pass_everywhere() {
    let stage = Stage::new().await;
    let id = stage.running("web").await;
    let answer = stage.get(Who::Ops, &format!("/ana/machines/{id}")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.json()["timeline"].is_array(), "{:?}", answer.body);
    assert!(stage.get(Who::Ana, &format!("/ana/machines/{id}")).await.json().get("timeline").is_none());
    assert_eq!(stage.get(Who::Ops, "/nosuch/machines").await.code(), "ResourceNotFound");
}
