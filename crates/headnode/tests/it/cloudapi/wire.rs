//! Statuses, codes, headers, and the ways parameters come.

use bytes::Bytes;
use headnode::cloudapi::{Maintenance, Rate};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::stage::{IMAGE, Stage, Who};

#[tokio::test]
async fn ping_and_docs_need_no_key() {
    let stage = Stage::new().await;
    let ping = stage.get(Who::Nobody, "/--ping").await;
    assert_eq!(ping.json()["ping"], "pong");
    assert_eq!(ping.json()["cloudapi"]["versions"][0], "9.0.0");
    assert_eq!(ping.header("triton-datacenter-name"), Some("home-1"));
    let docs = stage.get(Who::Nobody, "/docs").await;
    assert_eq!(docs.status, StatusCode::FOUND);
    let manual = stage.get(Who::Nobody, docs.header("location").unwrap()).await;
    assert_eq!(manual.status, StatusCode::OK, "{:?}", docs.header("location"));
}

#[tokio::test]
async fn every_answer_has_the_standard_headers() {
    let stage = Stage::new().await;
    let answer = stage.get(Who::Ana, "/my/packages").await;
    for name in [
        "date",
        "api-version",
        "request-id",
        "x-request-id",
        "response-time",
        "content-md5",
        "content-length",
        "server",
        "access-control-allow-origin",
        "content-type",
    ] {
        assert!(answer.header(name).is_some(), "{name}");
    }
    assert_eq!(answer.header("api-version"), Some("9.0.0"));
    assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()));
    let head = stage.ask(Who::Ana, Method::HEAD, "/my/packages", Value::Null).await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    for name in ["content-md5", "content-length"] {
        assert_eq!(head.header(name), answer.header(name));
    }
}

#[tokio::test]
async fn refusals() {
    let stage = Stage::new().await;
    let id = stage.running("web").await;
    let machine = format!("/my/machines/{id}");
    let create = |body: Value| (Method::POST, "/my/machines".to_owned(), body);
    let cases = [
        (create(json!({"image": IMAGE})), 409, "MissingParameter"),
        (create(json!({"package": "small"})), 409, "MissingParameter"),
        (create(json!({"package": "nosuch", "image": IMAGE})), 409, "InvalidArgument"),
        (create(json!({"package": "small", "image": "nosuch"})), 409, "InvalidArgument"),
        (create(json!({"package": "small", "image": IMAGE, "name": "web"})), 409, "InvalidArgument"),
        (create(json!({"package": "small", "image": IMAGE, "networks": [1]})), 409, "InvalidArgument"),
        (create(json!({"package": "small", "image": IMAGE, "tags": {"a": []}})), 409, "InvalidArgument"),
        (create(json!({"package": "small", "image": IMAGE, "volumes": [{"name": "v"}]})), 501, "NotImplemented"),
        ((Method::POST, machine.clone(), json!({})), 409, "MissingParameter"),
        ((Method::POST, machine.clone(), json!({"action": "fly"})), 409, "InvalidArgument"),
        ((Method::POST, machine.clone(), json!({"action": "resize"})), 409, "MissingParameter"),
        ((Method::GET, "/my/machines/nosuch".into(), Value::Null), 404, "ResourceNotFound"),
        ((Method::GET, "/my/machines?state=odd".into(), Value::Null), 409, "InvalidArgument"),
        ((Method::GET, "/my/machines?limit=many".into(), Value::Null), 409, "InvalidArgument"),
        ((Method::GET, format!("{machine}/vnc"), Value::Null), 400, "MachineHasNoVNCError"),
        ((Method::GET, "/my/changefeed".into(), Value::Null), 400, "UpgradeRequiredError"),
        ((Method::GET, "/my/volumes/x".into(), Value::Null), 404, "VolumeNotFound"),
        ((Method::POST, "/my/keys".into(), json!({"key": "no key"})), 409, "InvalidArgument"),
        ((Method::DELETE, "/my/packages".into(), Value::Null), 405, "MethodNotAllowed"),
        ((Method::GET, "/my/nosuch/at/all/here".into(), Value::Null), 404, "ResourceNotFound"),
        ((Method::GET, "/my/nosuch".into(), Value::Null), 404, "ResourceNotFound"),
        ((Method::DELETE, "/my/nosuch/one".into(), Value::Null), 404, "ResourceNotFound"),
        ((Method::PUT, "/my/nosuch".into(), json!({"role-tag": []})), 404, "ResourceNotFound"),
        ((Method::PUT, "/my/machines".into(), json!({"role-tag": []})), 501, "NotImplemented"),
        ((Method::PUT, machine.clone(), json!({"role-tag": []})), 501, "NotImplemented"),
        ((Method::POST, "/my/users".into(), json!({"login": "x"})), 501, "NotImplemented"),
        ((Method::POST, "/my/volumes".into(), json!({"name": "x"})), 501, "NotImplemented"),
        ((Method::POST, format!("{machine}/snapshots"), json!({"name": "x"})), 501, "NotImplemented"),
        ((Method::POST, format!("{machine}/migrate"), json!({"action": "begin"})), 501, "NotImplemented"),
        ((Method::POST, "/my/images".into(), json!({"machine": id})), 501, "NotImplemented"),
    ];
    for ((method, target, body), status, code) in cases {
        let answer = stage.ask(Who::Ana, method.clone(), &target, body.clone()).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (status, code), "{method} {target} {body}");
        assert!(!answer.json()["message"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_known_path_says_its_methods() {
    let stage = Stage::new().await;
    let answer = stage.ask(Who::Ana, Method::PATCH, "/my/machines", Value::Null).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.header("allow"), Some("GET, POST, HEAD"));
}

#[tokio::test]
async fn every_get_has_a_head() {
    let stage = Stage::new().await;
    let id = stage.running("web").await;
    for (_, pattern, name) in headnode::cloudapi::endpoints().filter(|(method, _, _)| *method == Method::GET) {
        let target = pattern.replace(":account", "my").replace(":machine", &id).replace(":network", &stage.private);
        let target = target.replace(":image", IMAGE).replace(":package", "small").replace(":ip", "10.89.0.9");
        let target = target.replace(":key", "laptop").replace(":datacenter", "home-1");
        let get = stage.get(Who::Ana, &target).await;
        let head = stage.ask(Who::Ana, Method::HEAD, &target, Value::Null).await;
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{name} {target}");
        for header in ["content-type", "content-length", "content-md5", "x-resource-count", "x-query-limit", "location"]
        {
            assert_eq!(head.header(header), get.header(header), "{name} {target} {header}");
        }
    }
}

#[tokio::test]
async fn refusals_of_bytes_and_headers() {
    let stage = Stage::new().await;
    let json = ("content-type", "application/json");
    let large = Bytes::from(vec![b' '; 100_001]);
    for (headers, body, status, code) in [
        (vec![json], large, 413, "RequestTooLarge"),
        (vec![json], Bytes::from_static(b"{"), 400, "BadRequest"),
        (vec![("content-type", "text/xml")], Bytes::from_static(b"<a/>"), 415, "UnsupportedMediaType"),
        (vec![json, ("accept", "image/png")], Bytes::new(), 406, "NotAcceptable"),
        (vec![json, ("accept-version", "~6")], Bytes::new(), 449, "InvalidVersion"),
        (vec![("authorization", "Signature nonsense")], Bytes::new(), 400, "InvalidHeader"),
    ] {
        let who = if headers[0].0 == "authorization" { Who::Nobody } else { Who::Ana };
        let answer = stage.send(who, Method::POST, "/my/keys", &headers, body).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (status, code));
    }
}

#[tokio::test]
async fn a_life() {
    let stage = Stage::new().await;
    let id = stage.running("web").await;
    let machine = format!("/my/machines/{id}");
    let state = async || stage.get(Who::Ana, &machine).await.json()["state"].clone();
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let stop = stage.send(Who::Ana, Method::POST, &machine, &form, Bytes::from_static(b"action=stop")).await;
    assert_eq!((stop.status, stop.body.len()), (StatusCode::ACCEPTED, 0));
    assert_eq!(state().await, "stopping");
    stage.converge().await;
    assert_eq!(state().await, "stopped");
    let start = stage.ask(Who::Ana, Method::POST, &format!("{machine}?action=start"), Value::Null).await;
    assert_eq!(start.status, StatusCode::ACCEPTED);
    stage.converge().await;
    assert_eq!(state().await, "running");

    for _ in 0..2 {
        let body = json!({"action": "enable_deletion_protection"});
        assert_eq!(stage.ask(Who::Ana, Method::POST, &machine, body).await.status, StatusCode::ACCEPTED);
    }
    let kept = stage.ask(Who::Ana, Method::DELETE, &machine, Value::Null).await;
    assert_eq!((kept.status.as_u16(), &*kept.code()), (409, "CannotDestroyMachineError"));
    stage.ask(Who::Ana, Method::POST, &machine, json!({"action": "disable_deletion_protection"})).await;
    for _ in 0..2 {
        let gone = stage.ask(Who::Ana, Method::DELETE, &machine, Value::Null).await;
        assert_eq!(gone.status, StatusCode::NO_CONTENT);
    }
    stage.converge().await;
    let gone = stage.get(Who::Ana, &machine).await;
    assert_eq!((gone.status, &gone.json()["state"]), (StatusCode::GONE, &json!("deleted")));
    assert_eq!(stage.ask(Who::Ana, Method::DELETE, &machine, Value::Null).await.status, StatusCode::GONE);
    assert_eq!(stage.get(Who::Ana, "/my/machines").await.json(), json!([]));
    assert_eq!(stage.get(Who::Ana, "/my/machines?tombstone=true").await.json()[0]["id"], id);
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let stage = Stage::new().await;
    let one = stage.running("one").await;
    stage.running("two").await;
    stage.ask(Who::Ana, Method::POST, &format!("/my/machines/{one}/tags"), json!({"role": "web", "n": 1})).await;
    for (query, count) in [
        ("", 2),
        ("?name=one", 1),
        ("?name=three", 0),
        ("?state=running", 2),
        ("?state=stopped", 0),
        ("?state=provisioning", 2),
        ("?tag.role=web", 1),
        ("?tag.n=1", 1),
        ("?tag.role=db", 0),
        ("?tags=*", 1),
        ("?type=smartmachine", 2),
        ("?type=virtualmachine", 0),
        ("?brand=lx", 2),
        ("?brand=bhyve", 0),
        ("?docker=true", 0),
        ("?memory=128", 2),
        ("?memory=129", 0),
        ("?limit=1", 1),
        ("?limit=1&offset=1", 1),
        ("?offset=2", 0),
    ] {
        let answer = stage.get(Who::Ana, &format!("/my/machines{query}")).await;
        assert_eq!(answer.json().as_array().unwrap().len(), count, "{query}");
        assert_eq!(answer.header("x-resource-count"), Some(&*count.to_string()), "{query}");
    }
    assert_eq!(stage.get(Who::Ana, "/my/machines").await.header("x-query-limit"), Some("1000"));
}

#[tokio::test]
async fn tags_metadata_and_nics() {
    let stage = Stage::new().await;
    let id = stage.running("web").await;
    let machine = format!("/my/machines/{id}");
    let tags =
        stage.ask(Who::Ana, Method::POST, &format!("{machine}/tags"), json!({"a": "b", "n": 1, "t": true})).await;
    assert_eq!(tags.json(), json!({"a": "b", "n": 1, "t": true}));
    assert_eq!(stage.get(Who::Ana, &format!("{machine}/tags/a")).await.body, "\"b\"");
    let plain = [("accept", "text/plain")];
    let text = stage.send(Who::Ana, Method::GET, &format!("{machine}/tags/a"), &plain, Bytes::new()).await;
    assert_eq!((&text.body[..], text.header("content-type")), (&b"b"[..], Some("text/plain")));
    let replaced = stage.ask(Who::Ana, Method::PUT, &format!("{machine}/tags"), json!({"z": 1})).await;
    assert_eq!(replaced.json(), json!({"z": 1}));
    assert_eq!(stage.get(Who::Ana, &format!("{machine}/tags/a")).await.code(), "ResourceNotFound");

    let metadata = stage.ask(Who::Ana, Method::POST, &format!("{machine}/metadata"), json!({"foo": "bar"})).await;
    assert_eq!(metadata.json()["foo"], "bar");
    let kept = stage.ask(Who::Ana, Method::DELETE, &format!("{machine}/metadata/credentials"), Value::Null).await;
    assert_eq!(kept.code(), "InvalidArgument");
    let gone = stage.ask(Who::Ana, Method::DELETE, &format!("{machine}/metadata/foo"), Value::Null).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);

    let nics = stage.get(Who::Ana, &format!("{machine}/nics")).await;
    let mac = nics.json()[0]["mac"].as_str().unwrap().replace(':', "");
    assert_eq!(stage.get(Who::Ana, &format!("{machine}/nics/{mac}")).await.status, StatusCode::OK);
    let network = nics.json()[0]["network"].clone();
    let again = stage.ask(Who::Ana, Method::POST, &format!("{machine}/nics"), json!({"network": network})).await;
    assert_eq!(again.status, StatusCode::FOUND);
    assert_eq!(again.header("location"), Some(&*format!("/ana/machines/{id}/nics/{mac}")));
}

#[tokio::test]
async fn too_many_and_maintenance() {
    let stage = Stage::with(|options| options.throttle = Some(Rate { burst: 2, per_second: 1.0 })).await;
    for status in [200, 200, 429] {
        assert_eq!(stage.get(Who::Ana, "/my/packages").await.status.as_u16(), status);
    }
    assert_eq!(stage.get(Who::Ana, "/my/packages").await.code(), "TooManyRequests");
    assert_eq!(stage.get(Who::Ana, "/my/keys").await.status, StatusCode::OK);
    let window = Maintenance { message: "back at noon".into(), until: Some(1_795_600_000) };
    let stage = Stage::with(|options| options.maintenance = Some(window)).await;
    let refused = stage.ask(Who::Ana, Method::POST, "/my/machines", json!({})).await;
    assert_eq!((refused.status.as_u16(), &*refused.code()), (503, "ServiceUnavailable"));
    assert!(refused.header("retry-after").unwrap().ends_with("GMT"));
    assert_eq!(stage.get(Who::Ana, "/my/machines").await.status, StatusCode::OK);
}
