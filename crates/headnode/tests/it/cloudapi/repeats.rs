//! Every call that changes something, sent three times under one name: answered alike, carried out once, also when the first answer
//! was lost between the commit and the client.

use std::{cell::RefCell, collections::BTreeSet};

use bytes::Bytes;
use control::{accounts, tables::REPEATS};
use headnode::cloudapi::endpoints;
use http::{Method, StatusCode};
use model::repeat::Repeat;
use serde_json::{Value, json};
use store::Transaction;

use super::stage::{Answer, IMAGE, Stage, Who};

/// Changes that this datacenter does not offer yet: nothing to repeat. Who builds one moves it into the story below.
const ABSENT: [&str; 29] = [
    "SetRoleTags",
    "CreateAccessKey",
    "DeleteAccessKey",
    "AddForeignDatacenter",
    "CreateImageFromMachine",
    "CreateMachineSnapshot",
    "StartMachineFromSnapshot",
    "DeleteMachineSnapshot",
    "CreateMachineDisk",
    "ResizeMachineDisk",
    "DeleteMachineDisk",
    "MigrateMachine",
    "CreateUser",
    "UpdateUser",
    "DeleteUser",
    "ChangeUserPassword",
    "CreateUserKey",
    "DeleteUserKey",
    "CreateRole",
    "UpdateRole",
    "DeleteRole",
    "CreatePolicy",
    "UpdatePolicy",
    "DeletePolicy",
    "CreateVolume",
    "UpdateVolume",
    "DeleteVolume",
    "SetRoleTagsOfKind",
    "SetRoleTagsOfOne",
];

/// A walk through all that can be changed.
struct Walk {
    stage: Stage,
    walked: RefCell<BTreeSet<&'static str>>,
}

impl Walk {
    async fn ana(&self, name: &'static str, method: Method, target: &str, body: Value) -> Value {
        self.thrice(Who::Ana, name, method, target, body).await
    }

    /// Sends a call three times, the third time with its answer forgotten, and checks that it happened once.
    async fn thrice(&self, who: Who, name: &'static str, method: Method, target: &str, body: Value) -> Value {
        let key = format!("{name}-{}", self.walked.borrow().len());
        let repeat = async || send(&self.stage, who, &key, method.clone(), target, &body).await;
        let first = repeat().await;
        assert!(first.status.is_success(), "{name} {target}: {} {:?}", first.status, first.body);
        let after_first = self.sizes();
        let again = repeat().await;
        same(name, &first, &again);
        self.forget_answer(if who == Who::Ops { "ops" } else { "ana" }, &key).await;
        let derived = repeat().await;
        same(name, &first, &derived);
        assert_eq!(self.sizes(), after_first, "{name} left more than one trace");
        let elsewhere = format!("{target}{}x=1", if target.contains('?') { '&' } else { '?' });
        let other = send(&self.stage, who, &key, method, &elsewhere, &body).await;
        assert_eq!((other.status, &*other.code()), (StatusCode::CONFLICT, "InvalidArgument"), "{name}");
        assert_eq!(other.json()["errors"][0]["field"], "Idempotency-Key");
        self.walked.borrow_mut().insert(name);
        serde_json::from_slice(&first.body).unwrap_or(Value::Null)
    }

    /// Records of every table but the one of repeats.
    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let sizes = self.stage.control.snapshot().table_sizes();
        sizes.into_iter().filter(|(table, _)| *table != "repeats").collect()
    }

    /// As a headnode leaves it that dies after the commit.
    async fn forget_answer(&self, login: &str, key: &str) {
        let owner = accounts::by_login(&self.stage.control, login).unwrap().id;
        let entry = self.stage.control.snapshot().get(&REPEATS, &format!("{owner}/{key}")).expect("it is recorded");
        assert!(entry.answer.is_some() && !entry.made.is_empty(), "{key}: {:?}", entry.value);
        let unanswered = Repeat { answer: None, ..entry.value.clone() };
        let transaction = Transaction::new().replace(&REPEATS, &entry, unanswered);
        self.stage.control.store.commit(transaction).await.unwrap();
    }
}

async fn send(stage: &Stage, who: Who, key: &str, method: Method, target: &str, body: &Value) -> Answer {
    let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    stage.send(who, method, target, &headers, bytes).await
}

#[track_caller]
fn same(name: &str, first: &Answer, again: &Answer) {
    assert_eq!((again.status, &again.body), (first.status, &first.body), "{name}");
    assert_eq!(again.header("location"), first.header("location"), "{name}");
    assert_eq!((first.header("idempotent-replayed"), again.header("idempotent-replayed")), (None, Some("true")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_may_be_sent_again() {
    let walk = Walk { stage: Stage::new().await, walked: RefCell::default() };
    let (post, put, delete) = (Method::POST, Method::PUT, Method::DELETE);
    walk.ana("UpdateAccount", post.clone(), "/my", json!({"phone": "1"})).await;
    let config = json!({"default_network": walk.stage.private});
    walk.ana("UpdateConfig", put.clone(), "/my/config", config).await;
    let openssh = std::fs::read_to_string(super::stage::keys().join("ecdsa-384.pub")).unwrap();
    walk.ana("CreateKey", post.clone(), "/my/keys", json!({"name": "k", "key": openssh})).await;
    walk.ana("DeleteKey", delete.clone(), "/my/keys/k", Value::Null).await;

    let vlans = "/my/fabrics/default/vlans";
    walk.ana("CreateFabricVLAN", post.clone(), vlans, json!({"vlan_id": 3, "name": "three"})).await;
    walk.ana("UpdateFabricVLAN", put.clone(), &format!("{vlans}/3"), json!({"name": "drei"})).await;
    let new = json!({
        "name": "own", "subnet": "10.3.0.0/24", "provision_start_ip": "10.3.0.10", "provision_end_ip": "10.3.0.99",
        "gateway": "10.3.0.1", "subnet6": "fd00:3::/64",
    });
    let own = walk.ana("CreateFabricNetwork", post.clone(), &format!("{vlans}/3/networks"), new).await;
    let own = own["id"].as_str().unwrap();
    let of_own = format!("{vlans}/3/networks/{own}");
    walk.ana("UpdateFabricNetwork", put.clone(), &of_own, json!({"description": "mine"})).await;
    let ip = format!("/my/networks/{own}/ips/10.3.0.200");
    walk.ana("UpdateNetworkIP", put.clone(), &ip, json!({"reserved": true})).await;

    let machine = change_a_machine(&walk, own).await;
    let rule = json!({"rule": "FROM any TO all vms ALLOW tcp PORT 80"});
    let rule = walk.ana("CreateFirewallRule", post.clone(), "/my/fwrules", rule).await;
    let rule = format!("/my/fwrules/{}", rule["id"].as_str().unwrap());
    walk.ana("UpdateFirewallRule", post.clone(), &rule, json!({"description": "web"})).await;
    walk.ana("EnableFirewallRule", post.clone(), &format!("{rule}/enable"), Value::Null).await;
    walk.ana("DisableFirewallRule", post.clone(), &format!("{rule}/disable"), Value::Null).await;
    walk.ana("DeleteFirewallRule", delete.clone(), &rule, Value::Null).await;

    walk.ana("DeleteMachine", delete.clone(), &machine, Value::Null).await;
    walk.stage.converge().await;
    walk.stage.until(async || walk.stage.get(Who::Ana, &machine).await.status == StatusCode::GONE).await;
    walk.ana("DeleteFabricNetwork", delete.clone(), &of_own, Value::Null).await;
    walk.ana("DeleteFabricVLAN", delete.clone(), &format!("{vlans}/3"), Value::Null).await;
    let image = format!("/my/images/{IMAGE}");
    walk.thrice(Who::Ops, "UpdateImage", post, &format!("{image}?action=update"), json!({"version": "2"})).await;
    walk.thrice(Who::Ops, "DeleteImage", delete, &image, Value::Null).await;

    let walked = walk.walked.into_inner();
    let changes = endpoints().filter(|(method, ..)| *method != Method::GET).map(|(_, _, name)| name);
    let left: Vec<&str> = changes.filter(|name| !walked.contains(name) && !ABSENT.contains(name)).collect();
    assert_eq!(left, [""; 0], "nobody tried to repeat these");
}

/// All that can be done to an instance but deleting it; its path.
async fn change_a_machine(walk: &Walk, own: &str) -> String {
    let (post, put, delete) = (Method::POST, Method::PUT, Method::DELETE);
    let create = json!({"package": "small", "image": IMAGE});
    let made = walk.ana("CreateMachine", post.clone(), "/my/machines", create).await;
    walk.stage.converge().await;
    let machine = format!("/my/machines/{}", made["id"].as_str().unwrap());
    for (number, action) in
        ["stop", "start", "reboot", "enable_firewall", "enable_deletion_protection"].iter().enumerate()
    {
        settled(&walk.stage, &machine).await;
        let body = json!({"action": action, "number": number});
        walk.ana("UpdateMachine", post.clone(), &machine, body).await;
        walk.walked.borrow_mut().insert(action);
        walk.stage.converge().await;
    }
    walk.ana("UpdateMachine", post.clone(), &machine, json!({"action": "rename", "name": "other"})).await;
    walk.walked.borrow_mut().insert("rename");
    settled(&walk.stage, &machine).await;
    walk.ana("UpdateMachine", post.clone(), &machine, json!({"action": "resize", "package": "large"})).await;
    walk.walked.borrow_mut().insert("resize");
    walk.ana("UpdateMachine", post.clone(), &machine, json!({"action": "disable_deletion_protection"})).await;
    walk.stage.converge().await;
    settled(&walk.stage, &machine).await;
    let nic = walk.ana("AddNic", post.clone(), &format!("{machine}/nics"), json!({"network": own})).await;
    walk.stage.converge().await;
    settled(&walk.stage, &machine).await;
    let mac = nic["mac"].as_str().unwrap().replace(':', "");
    let of_nic = format!("{machine}/nics/{mac}");
    walk.ana("UpdateNic", put.clone(), &of_nic, json!({"ipv6_ips": ["fd00:3::77", "fd00:3::78"]})).await;
    let wrong = json!({"ipv6_ips": ["10.3.0.9"]});
    let refused = send(&walk.stage, Who::Ana, "wrong", Method::PUT, &of_nic, &wrong).await;
    assert_eq!(refused.json()["errors"][0]["field"], "ipv6_ips", "{:?}", refused.body);
    walk.stage.converge().await;
    settled(&walk.stage, &machine).await;
    assert_eq!(walk.stage.get(Who::Ana, &of_nic).await.json()["ips6"], json!(["fd00:3::77", "fd00:3::78"]));
    walk.ana("RemoveNic", delete.clone(), &format!("{machine}/nics/{mac}"), Value::Null).await;
    walk.stage.converge().await;

    let tags = format!("{machine}/tags");
    walk.ana("AddMachineTags", post.clone(), &tags, json!({"a": 1})).await;
    walk.ana("ReplaceMachineTags", put.clone(), &tags, json!({"b": 2, "c": 3})).await;
    walk.ana("DeleteMachineTag", delete.clone(), &format!("{tags}/b"), Value::Null).await;
    walk.ana("DeleteMachineTags", delete.clone(), &tags, Value::Null).await;
    let metadata = format!("{machine}/metadata");
    walk.ana("UpdateMachineMetadata", post.clone(), &metadata, json!({"k": "v", "l": "w"})).await;
    walk.ana("DeleteMachineMetadata", delete.clone(), &format!("{metadata}/k"), Value::Null).await;
    walk.ana("DeleteAllMachineMetadata", delete.clone(), &metadata, Value::Null).await;
    machine
}

/// Waits until no flow holds the instance's next change up.
async fn settled(stage: &Stage, machine: &str) {
    stage
        .until(async || {
            let state = stage.get(Who::Ana, machine).await.json()["state"].clone();
            state == "running" || state == "stopped"
        })
        .await;
}

#[tokio::test]
async fn names_that_are_none_are_refused_by_their_field() {
    let stage = Stage::new().await;
    let body = json!({"package": "small", "image": IMAGE});
    for bad in ["", "a b", &"x".repeat(256)] {
        let refused = send(&stage, Who::Ana, bad, Method::POST, "/my/machines", &body).await;
        assert_eq!((refused.status, &*refused.code()), (StatusCode::CONFLICT, "InvalidArgument"), "{bad:?}");
        assert_eq!(refused.json()["errors"][0]["field"], "Idempotency-Key");
        // What changes nothing needs no name.
        assert_eq!(send(&stage, Who::Ana, bad, Method::GET, "/my/machines", &Value::Null).await.json(), json!([]));
    }
}

#[tokio::test]
async fn a_name_is_the_signers_and_the_same_path_may_be_spelled_in_two_ways() {
    let stage = Stage::new().await;
    let body = json!({"package": "small", "image": IMAGE});
    let first = send(&stage, Who::Ana, "k", Method::POST, "/ana/machines", &body).await;
    assert_eq!(first.status, StatusCode::CREATED, "{:?}", first.body);
    let again = send(&stage, Who::Ana, "k", Method::POST, "/my/machines", &body).await;
    same("CreateMachine", &first, &again);
    let operators = send(&stage, Who::Ops, "k", Method::POST, "/ana/machines", &body).await;
    let bobs = send(&stage, Who::Bob, "k", Method::POST, "/bob/machines", &body).await;
    for other in [operators, bobs] {
        assert_eq!(other.status, StatusCode::CREATED, "{:?}", other.body);
        assert_ne!(other.json()["id"], first.json()["id"]);
    }
}

#[tokio::test]
async fn a_refused_call_may_be_corrected_under_its_name() {
    let stage = Stage::new().await;
    let wrong = json!({"package": "nosuch", "image": IMAGE});
    let right = json!({"package": "small", "image": IMAGE});
    for _ in 0..2 {
        let refused = send(&stage, Who::Ana, "k", Method::POST, "/my/machines", &wrong).await;
        assert_eq!(refused.json()["errors"][0]["field"], "package");
    }
    let made = send(&stage, Who::Ana, "k", Method::POST, "/my/machines", &right).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let refused = send(&stage, Who::Ana, "k", Method::POST, "/my/machines", &wrong).await;
    assert_eq!(refused.json()["errors"][0]["field"], "Idempotency-Key");
}

#[tokio::test]
async fn passwords_in_an_answer_are_not_written_down() {
    let stage = Stage::new().await;
    let body = json!({"package": "small", "image": IMAGE, "metadata.credentials": {"root": "sesame-42"}});
    let target = "/my/machines?credentials=true";
    let first = send(&stage, Who::Ana, "k", Method::POST, target, &body).await;
    assert_eq!(first.json()["metadata"]["credentials"]["root"], "sesame-42", "{:?}", first.body);
    let written: Vec<String> =
        stage.control.snapshot().scan(&REPEATS).map(|entry| serde_json::to_string(&entry.value).unwrap()).collect();
    assert!(written.len() == 1 && !written[0].contains("sesame-42"), "{written:?}");
    let again = send(&stage, Who::Ana, "k", Method::POST, target, &body).await;
    same("CreateMachine", &first, &again);
}

#[tokio::test]
async fn browsers_are_told_that_names_are_admitted() {
    let stage = Stage::new().await;
    let answer = stage.get(Who::Nobody, "/--ping").await;
    assert!(answer.header("access-control-allow-headers").unwrap().ends_with(", Idempotency-Key"));
}
