//! What instances use, as tenants see it: their own alone, and what is missing is said.

use headnode::{inquiries::Inquiries, meters::Meters};
use http::{Method, StatusCode};
use model::meters::{InstanceMeters, NodeMeters, ZoneMeters};
use nodeapi::inquiry::{Answer, Question};
use serde_json::json;

use super::stage::{IMAGE, Stage, Who};

#[tokio::test]
async fn tenants_see_what_their_own_instances_use() {
    let inquiries = Inquiries::default();
    let stage = Stage::with(|options| options.meters = Some(Meters::new(inquiries.clone()))).await;
    let id = stage.running("web").await;
    let bobs = json!({"name": "bobs", "package": "small", "image": IMAGE});
    assert_eq!(stage.ask(Who::Bob, Method::POST, "/bob/machines", bobs).await.status, StatusCode::CREATED);
    let late = stage
        .ask(Who::Ana, Method::POST, "/ana/machines", json!({"name": "late", "package": "small", "image": IMAGE}))
        .await;
    let late = late.json()["id"].as_str().unwrap().to_owned();

    let server = stage.document().server;
    let zone = ZoneMeters { cpu_user_ns: 7, processes: 3, ..ZoneMeters::default() };
    let own = InstanceMeters { zone: Some(zone), disk_bytes: Some(9), ..InstanceMeters::default() };
    let meters = NodeMeters { instances: [(id.parse().unwrap(), own)].into(), ..NodeMeters::default() };
    let machine = base::task::spawn("machine", async move {
        loop {
            let inquiry = inquiries.next(server).await;
            assert_eq!(inquiry.question, Question::Meters);
            inquiries.answered(server, inquiry.id, Answer::Meters(Box::new(meters.clone())));
        }
    });
    let answer = stage.get(Who::Ana, "/ana/stats").await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    let all = answer.json();
    let of = |id: &str| all.as_array().unwrap().iter().find(|one| one["id"] == *id).cloned().expect("it is told of");
    assert_eq!(all.as_array().map(Vec::len), Some(2), "Bob's is not among them: {all}");
    let web = of(&id);
    assert_eq!((&web["name"], &web["state"]), (&json!("web"), &json!("running")));
    assert_eq!((&web["meters"]["zone"]["cpu_user_ns"], &web["meters"]["disk_bytes"]), (&json!(7), &json!(9)));
    assert!(web["at"].is_string() && web.get("missing").is_none());
    let new = of(&late);
    assert!(
        new["missing"].as_str().is_some_and(|why| why.contains("nothing of it yet")) && new.get("meters").is_none()
    );
    let one = stage.get(Who::Ana, &format!("/ana/stats?machine={id}")).await.json();
    assert_eq!(one.as_array().map(Vec::len), Some(1));
    assert_eq!(stage.get(Who::Bob, &format!("/bob/stats?machine={id}")).await.status, StatusCode::NOT_FOUND);
    let wrong = stage.get(Who::Ana, "/ana/stats?machine=web").await;
    assert_eq!((wrong.status, &*wrong.code()), (StatusCode::CONFLICT, "InvalidArgument"));
    machine.abort();
}

#[tokio::test]
async fn without_machines_to_ask_it_is_not_offered() {
    let stage = Stage::new().await;
    let answer = stage.get(Who::Ana, "/ana/stats").await;
    assert_eq!((answer.status, &*answer.code()), (StatusCode::NOT_IMPLEMENTED, "NotImplemented"));
}
