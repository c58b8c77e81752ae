//! Our own client's signatures, from key files of every kind and through the grammars other clients use.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cloudapi::{
    client::{Profile, Signer},
    signature::{SignatureError, http_date, presign},
};
use http::Method;

use crate::signatures::{NAMES, NOW, Request, directory, public};

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn every_kind_of_key_signs() {
    for name in NAMES {
        let signer = Signer::from_file(&directory().join(name)).unwrap();
        assert_eq!(signer.fingerprint_md5, public(name).fingerprint_md5);
        let date = http_date(NOW);
        let sign = |message: String| BASE64.encode(run(signer.sign(message.as_bytes())).unwrap());
        let algorithm = signer.algorithm();
        let id = format!("/ana/keys/{}", signer.fingerprint_md5);

        let draft = sign(format!("host: here\ndate: {date}\n(request-target): post /ana/keys"));
        let draft = format!(
            r#"Signature keyId="{id}",algorithm="{algorithm}",headers="host date (request-target)",signature="{draft}""#
        );
        let legacy = sign(date.clone());
        let legacy = format!(r#"Signature keyId="{id}",algorithm="{algorithm}" {legacy}"#);
        let line = sign(format!("POST /ana/keys HTTP/1.1\n{date}"));
        let line = format!(r#"Signature keyId="{id}",algorithm="{algorithm}",headers="request-line date" {line}"#);
        for authorization in [draft, legacy, line] {
            let headers = [("host", "here"), ("date", &*date), ("authorization", &*authorization)];
            let request = Request::new(Method::POST, "/ana/keys", &headers);
            assert_eq!(request.check(NOW), Ok("ana"), "{authorization}");
            let other = Request::new(Method::POST, "/ana/keys?x=1", &headers);
            let bare = authorization.ends_with('=') && !authorization.contains("headers");
            assert_eq!(other.check(NOW).is_ok(), bare || !authorization.contains("request"), "{authorization}");
        }
    }
}

#[test]
fn x_date_goes_before_date() {
    let signer = Signer::from_file(&directory().join("ed25519-256")).unwrap();
    let date = http_date(NOW);
    let signature = BASE64.encode(run(signer.sign(format!("x-date: {date}").as_bytes())).unwrap());
    let authorization =
        format!(r#"Signature keyId="/ana/keys/ed25519-256",algorithm="ed25519-sha512",signature="{signature}""#);
    let headers = [("x-date", &*date), ("date", "long ago"), ("authorization", &*authorization)];
    assert_eq!(Request::new(Method::GET, "/ana", &headers).check(NOW), Ok("ana"));
}

#[test]
fn signed_urls() {
    let signer = Signer::from_file(&directory().join("ecdsa-384")).unwrap();
    let query = presign(
        ("GET", "here:8443", "/ana/machines"),
        "/ana/keys/ecdsa-384",
        signer.algorithm(),
        NOW + 60,
        &[("name", "a b*")],
        |message| run(signer.sign(message)),
    )
    .unwrap();
    let target = format!("/ana/machines?{query}");
    let url = |method, target: &str| Request::new(method, target, &[("host", "here:8443")]);
    assert_eq!(url(Method::GET, &target).check(NOW), Ok("ana"));
    assert_eq!(url(Method::GET, &target).check(NOW + 61), Err(SignatureError::Expired(1)));
    assert_eq!(url(Method::DELETE, &target).check(NOW), Err(SignatureError::NoMatch));
    assert_eq!(url(Method::GET, &target.replace("a%20b", "a%20c")).check(NOW), Err(SignatureError::NoMatch));
    assert_eq!(url(Method::GET, &format!("{target}&more=1")).check(NOW), Err(SignatureError::NoMatch));
    let elsewhere = Request::new(Method::GET, &target, &[("host", "there:8443")]);
    assert_eq!(elsewhere.check(NOW), Err(SignatureError::NoMatch));
    let half = url(Method::GET, "/ana/machines?expires=1&keyId=x").check(NOW).unwrap_err();
    assert_eq!(
        half.to_string(),
        "cannot read the Authorization header: a signed URL also needs the parameters algorithm, signature"
    );
}

#[test]
fn keys_are_found_by_fingerprint() {
    let home = std::env::temp_dir().join(format!("neso-signers-{}", std::process::id()));
    std::fs::create_dir_all(home.join(".ssh")).unwrap();
    for name in NAMES {
        std::fs::copy(directory().join(name), home.join(".ssh").join(name)).unwrap();
    }
    let environment = |name: &str| (name == "HOME").then(|| home.display().to_string());
    for name in NAMES {
        for id in [&public(name).fingerprint_md5, &public(name).fingerprint_sha256, name] {
            let signer = run(Signer::find(id, &environment)).unwrap();
            assert_eq!(signer.fingerprint_md5, public(name).fingerprint_md5);
        }
    }
    let missing = run(Signer::find("aa:bb", &environment)).unwrap_err().to_string();
    assert!(missing.ends_with("/.ssh`, and no SSH agent runs"), "{missing}");
    std::fs::remove_dir_all(home).unwrap();
}

#[test]
fn profiles() {
    let home = std::env::temp_dir().join(format!("neso-profiles-{}", std::process::id()));
    std::fs::create_dir_all(home.join(".triton/profiles.d")).unwrap();
    let from = |pairs: &'static [(&str, &str)]| {
        let home = home.display().to_string();
        move |name: &str| match name {
            "HOME" => Some(home.clone()),
            _ => pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()),
        }
    };
    let none = Profile::load(None, &from(&[])).unwrap_err().to_string();
    assert!(none.starts_with("no profile: set TRITON_URL"), "{none}");
    let half = Profile::load(None, &from(&[("TRITON_URL", "https://x"), ("SDC_KEY_ID", "k")])).unwrap_err();
    assert!(half.to_string().ends_with("but not TRITON_ACCOUNT"), "{half}");
    let all = [("TRITON_URL", "https://x"), ("SDC_ACCOUNT", "ana"), ("SDC_KEY_ID", "k"), ("TRITON_TLS_INSECURE", "1")];
    let all = Box::leak(Box::new(all));
    let profile = Profile::load(None, &from(all)).unwrap();
    assert_eq!((&*profile.url, &*profile.account, profile.insecure), ("https://x", "ana", true));

    std::fs::write(home.join(".triton/config.json"), r#"{"profile":"lab"}"#).unwrap();
    let text = r#"{"name":"lab","url":"https://lab","account":"ana","keyId":"k","actAsAccount":"bob","insecure":true}"#;
    std::fs::write(home.join(".triton/profiles.d/lab.json"), text).unwrap();
    let profile = Profile::load(None, &from(&[])).unwrap();
    assert_eq!((&*profile.name, profile.act_as.as_deref()), ("lab", Some("bob")));
    assert_eq!(Profile::load(Some("env"), &from(all)).unwrap().name, "env");
    std::fs::remove_dir_all(home).unwrap();
}
