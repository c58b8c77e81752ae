//! Requests signed by hand, with nothing of ours: `openssl` makes the keys, the signatures and the connection.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use base::clock::{Clock as _, SystemClock};

use crate::datacenter::Datacenter;

/// What `openssl` prints, given `input`.
fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("`openssl` is installed");
    child.stdin.take().expect("a pipe").write_all(input).expect("it reads");
    child.wait_with_output().expect("it ends").stdout
}

/// A key of the tenant that only `openssl` knows.
struct Key {
    pem: String,
    /// `/login/keys/fingerprint`.
    id: String,
    algorithm: &'static str,
}

impl Key {
    fn make(datacenter: &Datacenter, login: &str, name: &str, making: &[&str], algorithm: &'static str) -> Self {
        let path = datacenter.root().join(name);
        let pem = path.to_str().expect("a plain path").to_owned();
        fs::write(&path, "").expect("a file");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("for us alone");
        fs::write(&path, openssl(making, b"")).expect("a key");
        let public = Command::new("ssh-keygen").args(["-y", "-f", &pem]).output().expect("`ssh-keygen` is installed");
        assert!(public.status.success(), "{public:?}");
        let file = format!("{pem}.pub");
        fs::write(&file, public.stdout).expect("its public half");
        datacenter.good(&["adm", "account", "add-key", login, &file, "--name", name]);
        let keys = datacenter.json(&["adm", "-j", "account", "keys", login]);
        let keys = keys.as_array().expect("a list");
        let key = keys.iter().find(|key| key["name"] == name).expect("the key is listed");
        Self {
            pem,
            id: format!("/{login}/keys/{}", key["fingerprint_md5"].as_str().expect("a fingerprint")),
            algorithm,
        }
    }

    fn sign(&self, text: &str) -> String {
        let signature = openssl(&["dgst", "-sha256", "-sign", &self.pem], text.as_bytes());
        String::from_utf8(openssl(&["base64", "-A"], &signature)).expect("base64")
    }

    /// The grammar of the HTTP Signatures draft.
    fn draft(&self, signed: &str) -> String {
        let (id, algorithm, signature) = (&self.id, self.algorithm, self.sign(&format!("date: {signed}")));
        format!("Signature keyId=\"{id}\",algorithm=\"{algorithm}\",headers=\"date\",signature=\"{signature}\"")
    }

    /// The grammar of the first clients: the bare value is signed, and the signature follows the parameters.
    fn first(&self, signed: &str) -> String {
        format!("Signature keyId=\"{}\",algorithm=\"{}\" {}", self.id, self.algorithm, self.sign(signed))
    }

    /// The query of a URL that is good for `method` until `expires`.
    fn url(&self, (method, host, path): (&str, &str, &str), expires: i64) -> String {
        let (algorithm, id) = (encoded(self.algorithm), encoded(&self.id));
        let query = format!("algorithm={algorithm}&expires={expires}&keyId={id}");
        let signature = self.sign(&format!("{method}\n{host}\n{path}\n{query}"));
        format!("{path}?{query}&signature={}", encoded(&signature))
    }
}

/// The first tenant with a key of its own, for requests that no command of ours makes.
pub(crate) struct Tenant<'a> {
    key: Key,
    login: &'a str,
    host: &'a str,
}

impl<'a> Tenant<'a> {
    pub(crate) fn of(datacenter: &'a Datacenter) -> Self {
        let login = datacenter.said("TRITON_ACCOUNT");
        let making = ["ecparam", "-name", "prime256v1", "-genkey", "-noout"];
        Self { key: Key::make(datacenter, login, "tenant", &making, "ecdsa-sha256"), login, host: host(datacenter) }
    }

    /// Status and body of the answer to a request without a body, below the tenant's own path.
    pub(crate) fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let date = date(now());
        let headers = [("date", date.as_str()), ("authorization", &self.key.draft(&date))];
        ask(self.host, method, &format!("/{}{path}", self.login), &headers)
    }
}

/// Name and port of CloudAPI.
fn host(datacenter: &Datacenter) -> &str {
    datacenter.said("TRITON_URL").trim_start_matches("https://").trim_end_matches('/')
}

/// All but what RFC 3986 leaves unreserved as `%` and two digits.
fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    text.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Status and body of an answer.
fn ask(host: &str, method: &str, target: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
    let answer = openssl(&["s_client", "-quiet", "-connect", host], request.as_bytes());
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {request}: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemClock.now_ms() / 1_000
}

fn date(seconds: i64) -> String {
    cloudapi::signature::http_date(seconds)
}

#[test]
fn both_grammars_and_signed_urls_are_understood() {
    let Some(datacenter) = Datacenter::start() else { return };
    let login = datacenter.said("TRITON_ACCOUNT");
    let host = host(&datacenter);
    let keys = [
        Key::make(&datacenter, login, "rsa", &["genrsa", "-traditional", "2048"], "rsa-sha256"),
        Key::make(&datacenter, login, "ec", &["ecparam", "-name", "prime256v1", "-genkey", "-noout"], "ecdsa-sha256"),
    ];
    let path = format!("/{login}/machines");
    for key in &keys {
        let said = |seconds: i64, claim: String| {
            ask(host, "GET", &path, &[("date", &date(seconds)), ("authorization", &claim)])
        };
        let at = now();
        for claim in [key.draft(&date(at)), key.first(&date(at))] {
            let (status, body) = said(at, claim.clone());
            assert_eq!((status, body.trim()), (200, "[]"), "{claim}");
            // The same signature under another date, and one that is bent.
            for (at, claim) in [(at + 7, claim.clone()), (at, claim.replacen("/keys/", "/keys/0", 1))] {
                let (status, body) = said(at, claim.clone());
                assert_eq!(status, 401, "{claim}: {body}");
                assert!(body.contains("InvalidCredentials"), "{claim}: {body}");
            }
        }
        for at in [now() - 400, now() + 400] {
            let (status, body) = said(at, key.first(&date(at)));
            assert_eq!(status, 401, "{body}");
            assert!(body.contains("clock"), "the clock is named: {body}");
        }

        let place = ("GET", host, path.as_str());
        let good = key.url(place, now() + 60);
        let (status, body) = ask(host, "GET", &good, &[]);
        assert_eq!((status, body.trim()), (200, "[]"), "{good}");
        for (method, target, why) in [
            ("POST", good.clone(), "match"),
            ("GET", good.replace("&keyId", "1&keyId"), "match"),
            ("GET", good.replace(&path, &format!("/{login}/images")), "match"),
            ("GET", key.url(place, now() - 60), "expired"),
        ] {
            let (status, body) = ask(host, method, &target, &[]);
            assert_eq!(status, 401, "{method} {target}: {body}");
            assert!(body.contains(why), "{method} {target}: {body}");
        }
        let (status, body) = ask(host, "GET", &good.replace("algorithm=", "algo="), &[]);
        assert_eq!(status, 400, "{body}");
        assert!(body.contains("algorithm"), "what is missing is named: {body}");
    }
    let sub_user = format!("Signature keyId=\"/{login}/users/bob/keys/x\",algorithm=\"rsa-sha256\" AAAA");
    let (status, body) = ask(host, "GET", &path, &[("date", &date(now())), ("authorization", &sub_user)]);
    assert_eq!(status, 401, "{body}");
    assert!(body.contains("sub-user"), "{body}");
}
