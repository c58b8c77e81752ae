//! VLANs and networks of tenants' own, as clients know them.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::stage::{IMAGE, Stage, Who};

const VLANS: &str = "/ana/fabrics/default/vlans";

#[tokio::test]
async fn vlans_and_their_networks() {
    let stage = Stage::new().await;
    let ask = async |method: Method, path: &str, body: Value| stage.ask(Who::Ana, method, path, body).await;
    assert_eq!(stage.get(Who::Ana, VLANS).await.json(), json!([]));
    let made = ask(Method::POST, VLANS, json!({"vlan_id": 3, "name": "v3"})).await;
    assert_eq!((made.status, made.json()), (StatusCode::CREATED, json!({"vlan_id": 3, "name": "v3"})));
    assert_eq!(made.header("location"), Some("/ana/fabrics/default/vlans/3"));
    let three = format!("{VLANS}/3");
    let changed = ask(Method::PUT, &three, json!({"description": "hi"})).await;
    let vlan = json!({"vlan_id": 3, "name": "v3", "description": "hi"});
    assert_eq!((changed.status, changed.json()), (StatusCode::ACCEPTED, vlan.clone()));
    assert_eq!(stage.get(Who::Ana, &three).await.json(), vlan);
    assert_eq!(stage.get(Who::Ana, VLANS).await.json(), json!([vlan]));
    let on_it = format!("{three}/networks");
    // What `triton network create` sends.
    let body = json!({
        "name": "net3", "subnet": "10.3.0.0/24", "provision_start_ip": "10.3.0.10", "provision_end_ip": "10.3.0.99",
        "resolvers": ["8.8.8.8"], "routes": {"10.9.0.0/16": "10.3.0.2"}, "gateway": "10.3.0.1",
    });
    let made = ask(Method::POST, &on_it, body.clone()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let mut shown = body.clone();
    let more = json!({"id": id, "public": false, "fabric": true, "internet_nat": true, "vlan_id": 3});
    shown.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    assert_eq!(made.json(), shown);
    for path in [format!("{on_it}/{id}"), format!("/ana/networks/{id}")] {
        assert_eq!(stage.get(Who::Ana, &path).await.json(), shown);
    }
    assert_eq!(stage.get(Who::Ana, &format!("{on_it}?vlan_id=3")).await.json(), json!([shown]));
    assert_eq!(stage.get(Who::Ana, "/ana/networks?fabric=true").await.json(), json!([shown]));
    assert_eq!(stage.get(Who::Ana, "/ana/networks").await.json().as_array().unwrap().len(), 3);
    let changed = ask(Method::PUT, &format!("{on_it}/{id}"), json!({"name": "other", "resolvers": []})).await;
    assert_eq!((changed.status.as_u16(), &changed.json()["name"]), (202, &json!("other")));
    for (path, who) in [(format!("/bob/networks/{id}"), Who::Bob), (three.replace("ana", "bob"), Who::Bob)] {
        assert_eq!(stage.get(who, &path).await.code(), "ResourceNotFound");
    }
    let again = ask(Method::DELETE, &three, Value::Null).await;
    assert_eq!((again.status.as_u16(), &*again.code()), (409, "InUseError"));
    for path in [format!("{on_it}/{id}"), three.clone()] {
        assert_eq!(ask(Method::DELETE, &path, Value::Null).await.status, StatusCode::NO_CONTENT);
    }
    assert_eq!(stage.get(Who::Ana, &three).await.code(), "ResourceNotFound");
}

#[tokio::test]
async fn every_wrong_field_is_named() {
    let stage = Stage::new().await;
    stage.ask(Who::Ana, Method::POST, VLANS, json!({"vlan_id": 3, "name": "v3"})).await;
    let on_it = format!("{VLANS}/3/networks");
    let network = |change: Value| {
        let mut body = json!({
            "name": "n", "subnet": "10.3.0.0/24", "provision_start_ip": "10.3.0.10", "provision_end_ip": "10.3.0.99",
            "gateway": "10.3.0.1",
        });
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        body
    };
    for (path, body, code, field) in [
        (VLANS, json!({"name": "x"}), "MissingParameter", "vlan_id"),
        (VLANS, json!({"vlan_id": 4096, "name": "x"}), "InvalidArgument", "vlan_id"),
        (VLANS, json!({"vlan_id": "x", "name": "x"}), "InvalidArgument", "vlan_id"),
        (VLANS, json!({"vlan_id": 4}), "MissingParameter", "name"),
        (&on_it, network(json!({"subnet": "10.3.0.0"})), "InvalidArgument", "subnet"),
        (&on_it, network(json!({"subnet": null})), "MissingParameter", "subnet"),
        (&on_it, network(json!({"provision_start_ip": null})), "MissingParameter", "provision_start_ip"),
        (&on_it, network(json!({"subnet6": "2001:db8::/64"})), "InvalidArgument", "subnet6"),
        (
            &on_it,
            network(json!({"subnet6": "fd00:3::/64", "provision_start_ip6": "10.3.0.9"})),
            "InvalidArgument",
            "provision_start_ip6",
        ),
        (
            &on_it,
            network(json!({"subnet6": "fd00:3::/64", "provision_start_ip6": "fd00:4::9"})),
            "InvalidArgument",
            "provision_start_ip6",
        ),
        (&on_it, network(json!({"gateway6": "fd00:3::1"})), "InvalidArgument", "subnet6"),
        (&on_it, network(json!({"provision_start_ip": "10.4.0.1"})), "InvalidArgument", "provision_start_ip"),
        (&on_it, network(json!({"provision_end_ip": "10.3.0.2"})), "InvalidArgument", "provision_end_ip"),
        (&on_it, network(json!({"routes": {"x": "10.3.0.2"}})), "InvalidArgument", "routes"),
        (&on_it, network(json!({"resolvers": ["x"]})), "InvalidArgument", "resolvers"),
        (&on_it, network(json!({"gateway": null, "internet_nat": true})), "InvalidArgument", "internet_nat"),
    ] {
        let refused = stage.ask(Who::Ana, Method::POST, path, body.clone()).await;
        assert_eq!((&*refused.code(), &refused.json()["errors"][0]["field"]), (code, &json!(field)), "{body}");
    }
    let public = network(json!({
        "subnet": "8.8.8.0/24", "provision_start_ip": "8.8.8.10", "provision_end_ip": "8.8.8.20", "gateway": "8.8.8.1",
    }));
    let refused = stage.ask(Who::Ana, Method::POST, &on_it, public).await.json();
    assert!(refused["message"].as_str().unwrap().contains("must lie in 10.0.0.0/8"), "{refused}");
}

#[tokio::test]
async fn an_instance_of_two_families() {
    let stage = Stage::new().await;
    stage.ask(Who::Ana, Method::POST, VLANS, json!({"vlan_id": 3, "name": "v3"})).await;
    let body = json!({
        "name": "dual", "subnet": "10.3.0.0/24", "provision_start_ip": "10.3.0.10", "provision_end_ip": "10.3.0.99",
        "gateway": "10.3.0.1", "subnet6": "fd00:3::/64", "gateway6": "fd00:3::1", "routed": true,
    });
    let made = stage.ask(Who::Ana, Method::POST, &format!("{VLANS}/3/networks"), body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
    let network = made.json();
    let expected = ("fd00:3::2", "fd00:3::ffff:ffff:ffff:ffff", "fd00:3::1", true);
    let text = |field: &str| network[field].as_str().unwrap_or_default().to_owned();
    let got = (text("provision_start_ip6"), text("provision_end_ip6"), text("gateway6"), network["routed"] == true);
    assert_eq!((&*got.0, &*got.1, &*got.2, got.3), expected);
    let id = &network["id"];
    let wishes = json!({"ipv4_uuid": id, "ipv4_ips": ["10.3.0.50"], "ipv6_ips": ["fd00:3::50"]});
    let body = json!({"name": "web", "package": "small", "image": IMAGE, "networks": [wishes]});
    let machine = stage.ask(Who::Ana, Method::POST, "/ana/machines", body).await;
    assert_eq!(machine.status, StatusCode::CREATED, "{:?}", machine.body);
    let machine = machine.json();
    assert_eq!((&machine["ips"], &machine["primaryIp"]), (&json!(["10.3.0.50", "fd00:3::50"]), &json!("10.3.0.50")));
    let mac = &machine["nics"][0]["mac"];
    let nic = json!({
        "ip": "10.3.0.50", "mac": mac, "primary": true, "netmask": "255.255.255.0", "gateway": "10.3.0.1",
        "ip6": "fd00:3::50", "prefix6": 64, "gateway6": "fd00:3::1", "network": id, "state": "provisioning",
    });
    assert_eq!(machine["nics"], json!([nic]));
    let ips = format!("/ana/networks/{}/ips", id.as_str().unwrap());
    let held = stage.get(Who::Ana, &format!("{ips}/fd00:3::50")).await.json();
    assert_eq!((&held["belongs_to_uuid"], &held["managed"]), (&machine["id"], &json!(false)));
    let reserved = stage.ask(Who::Ana, Method::PUT, &format!("{ips}/10.3.0.7"), json!({"reserved": true})).await;
    assert_eq!(reserved.json()["reserved"], true);
}

#[tokio::test]
async fn an_instance_of_ipv6_alone_with_a_list_of_addresses() {
    let stage = Stage::new().await;
    stage.ask(Who::Ana, Method::POST, VLANS, json!({"vlan_id": 3, "name": "v3"})).await;
    let body =
        json!({"name": "six", "subnet6": "fd00:3::/64", "gateway6": "fd00:3::1", "provision_end_ip6": "fd00:3::99"});
    let made = stage.ask(Who::Ana, Method::POST, &format!("{VLANS}/3/networks"), body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
    let network = made.json();
    let id = &network["id"];
    assert!(["subnet", "provision_start_ip", "provision_end_ip", "gateway"].iter().all(|four| network[four].is_null()));
    assert_eq!((&network["internet_nat"], &network["provision_end_ip6"]), (&json!(true), &json!("fd00:3::99")));
    let create = async |name: &str, wishes: Value| {
        let body = json!({"name": name, "package": "small", "image": IMAGE, "networks": [wishes]});
        stage.ask(Who::Ana, Method::POST, "/ana/machines", body).await
    };
    let machine = create("web", json!({"ipv4_uuid": id, "ipv6_ips": ["fd00:3::51", "fd00:3::50"]})).await;
    assert_eq!(machine.status, StatusCode::CREATED, "{:?}", machine.body);
    let machine = machine.json();
    assert_eq!((&machine["ips"], &machine["primaryIp"]), (&json!(["fd00:3::51", "fd00:3::50"]), &json!("fd00:3::51")));
    let nic = json!({
        "ip": "fd00:3::51", "mac": machine["nics"][0]["mac"], "primary": true, "netmask": "ffff:ffff:ffff:ffff::",
        "gateway": "fd00:3::1", "ip6": "fd00:3::51", "ips6": ["fd00:3::51", "fd00:3::50"], "prefix6": 64,
        "gateway6": "fd00:3::1", "network": id, "state": "provisioning",
    });
    assert_eq!(machine["nics"], json!([nic]));
    let alone = create("any", json!({"ipv4_uuid": id})).await.json();
    assert_eq!((&alone["ips"], &alone["nics"][0]["ips6"]), (&json!(["fd00:3::2"]), &Value::Null));
    for (wishes, words) in [
        (json!({"ipv4_uuid": id, "ipv4_ips": ["10.3.0.5"]}), "has no IPv4 subnet, so nobody can hold 10.3.0.5"),
        (json!({"ipv4_uuid": id, "ipv6_ips": ["fd00:3::50"]}), "fd00:3::50 is in use"),
        (json!({"ipv4_uuid": id, "ipv6_ips": ["fd00:4::50"]}), "fd00:4::50 cannot be held"),
        (json!({"ipv4_uuid": id, "ipv6_ips": ["fd00:3::7", "x"]}), "\"x\" is not an IPv6 address"),
        (json!({"ipv4_uuid": id, "ipv6_ips": []}), "ipv6_ips must be a list of addresses"),
        (json!({"ipv4_uuid": id, "ipv4_ips": ["10.3.0.5", "10.3.0.6"]}), "ipv4_ips must be a list of one address"),
    ] {
        let refused = create("wrong", wishes.clone()).await;
        let said = refused.json();
        assert!(
            refused.status.is_client_error() && said.to_string().replace("\\\"", "\"").contains(words),
            "{wishes}: {said}"
        );
    }
}
