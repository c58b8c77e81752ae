//! What each fuzz target does with the bytes it is given. The targets themselves (`fuzz_targets/`) feed it what the fuzzer invents; a
//! test of the workspace includes this file and feeds it the seeds in `corpus/`, so that every `make test` sees them pass.
//!
//! A target must end, quietly, for every input; what it asserts is what must hold for whatever passes. A target of several
//! inputs gets them in one, with bytes 255 between: no text holds that byte.

use std::io::{self, Read};

use bytes::Bytes;
use cloudapi::{
    signature::{Algorithm, Hash, Head, KeyId, PublicKey, claim},
    types::changefeed::Registration,
    websocket::{Message, Socket},
};
use headnode::{
    backup::file::{self, Item},
    cloudapi::Params,
    cmon,
};
use host::{
    archive::{self, Member, MemberKind, Sink},
    echo::{Echo, Family},
    linux::nflog,
};
use http::{HeaderMap, HeaderValue, Method, Version, header};
use mdata::Frame;
use model::{
    delta::{Misfit, ReportDelta, TargetDelta},
    firewall::{Language, Rule},
    id::AccountId,
    image::{Compression, manifest as manifests},
    target::Report,
    time::Timestamp,
};
use sha2::{Digest, Sha256};

/// What a target does with one input.
pub type Target = fn(&[u8]);

/// Every target by name.
pub const TARGETS: [(&str, Target); 17] = [
    ("archive", archive),
    ("authorization", authorization),
    ("backup", backup),
    ("changefeed", changefeed),
    ("dns_message", dns_message),
    ("echo_reply", echo_reply),
    ("firewall_log", firewall_log),
    ("firewall_rule", firewall_rule),
    ("key_id", key_id),
    ("manifest", manifest),
    ("metadata_frame", metadata_frame),
    ("monitor", monitor),
    ("params", params),
    ("presigned", presigned),
    ("public_key", public_key),
    ("report_delta", report_delta),
    ("target_delta", target_delta),
];

/// When signatures are looked at: Tue, 24 Nov 2026 15:06:00 GMT, seconds since the epoch.
const NOW: i64 = 1_795_532_760;

/// Lines of the kernel's packet log: first as a message, then as a packet.
pub fn firewall_log(bytes: &[u8]) {
    if let Some(line) = nflog::read(bytes) {
        assert_eq!(line.mark.to_string().parse(), Ok(line.mark));
    }
    if let Some(packet) = nflog::packet(bytes) {
        assert_eq!(packet.source.is_ipv4(), packet.destination.is_ipv4());
        assert!(packet.ports.is_none() || packet.icmp.is_none());
    }
}

/// Image archives: every member that passes stays inside the root.
pub fn archive(bytes: &[u8]) {
    let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    for compression in [Compression::None, Compression::Gzip] {
        let _ = archive::read(&mut &*bytes, &sum, compression, &mut Inside);
    }
}

struct Inside;

impl Sink for Inside {
    fn member(&mut self, member: &Member, content: &mut dyn Read) -> host::error::Result<()> {
        let mut paths = vec![&member.path];
        if let MemberKind::Hardlink(target) = &member.kind {
            assert!(!target.is_empty());
            paths.push(target);
        }
        for part in paths.into_iter().flatten() {
            assert!(!part.is_empty() && part != b"." && part != b".." && !part.contains(&b'/') && !part.contains(&0));
        }
        assert!(u64::from(member.uid) < archive::ID_END && u64::from(member.gid) < archive::ID_END);
        let _ = io::copy(content, &mut io::sink());
        Ok(())
    }
}

/// The `Authorization` header, whatever a stranger writes there.
pub fn authorization(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, value);
    headers.insert(header::DATE, HeaderValue::from_static("Tue, 24 Nov 2026 15:06:00 GMT"));
    let head = Head { method: &Method::GET, target: "/ana/machines", version: Version::HTTP_11, headers: &headers };
    let _ = claim(head, NOW);
}

/// Backups, whole files and the lines in them: what is said to be whole has shown all it says it has.
pub fn backup(bytes: &[u8]) {
    let _ = file::read(bytes, None, &mut |_| Ok(()));
    let (mut files, mut records) = (0, 0);
    let read = file::read_lines(bytes, &mut |item| {
        match item {
            Item::File { .. } => files += 1,
            Item::Record { .. } => records += 1,
        }
        Ok(())
    });
    if let Ok((_, end)) = read {
        assert_eq!((end.files, end.records), (files, records));
    }
}

/// What a raw socket hears where machines try the wires between them: nothing is larger than what was heard, and a request of ours
/// is never taken for an answer.
pub fn echo_reply(bytes: &[u8]) {
    for (family, header) in [(Family::V4, 0), (Family::V6, 40)] {
        let Some(echo) = Echo::read_reply(family, bytes) else { continue };
        assert!(echo.size as usize <= bytes.len() + header);
        let request = echo.request(family);
        assert_eq!(Echo::read_reply(family, &request), None);
    }
}

/// Texts of firewall rules, in each version of the language: what is understood says the same when written again.
pub fn firewall_rule(bytes: &[u8]) {
    let text = text(bytes);
    for language in [Language::V1, Language::V2, Language::V3, Language::V4] {
        if let Ok(rule) = Rule::parse_as(text, language) {
            let canonical = rule.to_string();
            assert_eq!(Rule::parse_as(&canonical, language).as_ref(), Ok(&rule));
            assert_eq!(canonical.parse::<Rule>(), Ok(rule), "a newer language means the same");
        }
    }
}

/// Key ids.
pub fn key_id(bytes: &[u8]) {
    if let Ok(id) = KeyId::parse(text(bytes)) {
        assert!(!id.login.is_empty() && !id.key.is_empty());
    }
}

/// What a watcher shows and whom it asks for: a certificate, or a host's name.
pub fn monitor(bytes: &[u8]) {
    if let Ok(certificate) = cmon::certificate::Certificate::read(bytes) {
        assert!(!certificate.login.is_empty());
        let _ = (certificate.key_id(), certificate.is_alive(NOW));
    }
    if let Some(cmon::host::Asked::Id { instance, server }) = cmon::host::read(text(bytes)) {
        assert_eq!(instance.to_string(), server.to_string());
    }
}

/// Image manifests, each also turned into the image it describes.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = manifests::parse(bytes) {
        let _ = manifest.into_image(AccountId::random(), Timestamp(0));
    }
}

/// Lines of the metadata protocol: whatever parses says the same when written again. A first byte 255 asks for a right
/// checksum: left to chance, none would ever be right, and nothing behind it would be seen.
pub fn metadata_frame(bytes: &[u8]) {
    let line = match bytes.strip_prefix(&[255]) {
        Some(bytes) => {
            let text = text(bytes);
            format!("V2 {} {:08x} {text}", text.len(), crc32fast::hash(text.as_bytes()))
        }
        None => text(bytes).to_owned(),
    };
    let Ok(frame) = Frame::parse(&line) else { return };
    let again = Frame::encode(frame.request_id, frame.word, frame.payload.as_deref());
    let parsed = Frame::parse(again.trim_end_matches('\n')).expect("what we encode can be parsed");
    let payload = frame.payload.filter(|payload| !payload.is_empty());
    assert_eq!((parsed.request_id, parsed.word, parsed.payload), (frame.request_id, frame.word, payload));
}

/// Query and body of a request, in each of the types we read: query, boundary, body.
pub fn params(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == 255);
    let (query, boundary) = (text(parts.next().unwrap_or_default()), text(parts.next().unwrap_or_default()));
    let body = Bytes::copy_from_slice(parts.next().unwrap_or_default());
    let multipart = format!("multipart/form-data; boundary={boundary}");
    for content_type in ["application/json", "application/x-www-form-urlencoded", &multipart] {
        let _ = Params::merge(Some(query), Some(content_type), &body);
    }
}

/// Queries of pre-signed URLs.
pub fn presigned(bytes: &[u8]) {
    let target = format!("/ana/machines?{}", text(bytes));
    let headers = HeaderMap::new();
    let head = Head { method: &Method::GET, target: &target, version: Version::HTTP_11, headers: &headers };
    let _ = claim(head, NOW);
}

/// OpenSSH public key text, and signatures of any shape against whatever key it gives: key, signature.
pub fn public_key(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 255);
    let Ok(key) = PublicKey::from_openssh(text(parts.next().unwrap_or_default())) else { return };
    let signature = parts.next().unwrap_or_default();
    for algorithm in [Algorithm::Rsa(Hash::Sha256), Algorithm::Ecdsa(Hash::Sha256), Algorithm::Ed25519] {
        key.verify(algorithm, b"message", signature);
    }
}

/// What is new in a report, from a node: whatever can be read leads somewhere from any report, and says there what it said.
pub fn report_delta(bytes: &[u8]) {
    let Ok(delta) = serde_json::from_slice::<ReportDelta>(bytes) else { return };
    let held: Report = serde_json::from_str(REPORT).expect("a report");
    let (base, delta) = (held.digest(), ReportDelta { server: held.server, ..delta });
    assert!(delta.base == base || delta.apply(base, &held).is_err());
    let delta = ReportDelta { base, ..delta };
    let Err(Misfit::Result { reached, .. }) = delta.apply(base, &held) else { return };
    let next = ReportDelta { digest: reached, ..delta }.apply(base, &held).expect("it leads where it leads");
    let again = ReportDelta::between(base, &held, &next).expect("only facts differ");
    assert_eq!(again.apply(base, &held).expect("it leads there too"), next);
}

/// What is new in a target, from a headnode or a file: the same.
pub fn target_delta(bytes: &[u8]) {
    let Ok(delta) = serde_json::from_slice::<TargetDelta>(bytes) else { return };
    let held: model::target::Target = serde_json::from_str(TARGET).expect("a target");
    let delta = TargetDelta { server: held.server, ..delta };
    assert!(delta.base == held.digest() || delta.apply(&held).is_err());
    let delta = TargetDelta { base: held.digest(), ..delta };
    let Err(Misfit::Result { reached, .. }) = delta.apply(&held) else { return };
    let next = TargetDelta { digest: reached, ..delta }.apply(&held).expect("it leads where it leads");
    assert_eq!(TargetDelta::between(&held, &next).apply(&held).expect("it leads there too"), next);
}

/// A report and a target on which deltas follow.
const REPORT: &str = include_str!("../documents/report.json");
const TARGET: &str = include_str!("../documents/target.json");

/// A datagram to the name server, with and without keys and leave to have zones.
pub fn dns_message(bytes: &[u8]) {
    let name = |text: &str| text.parse::<dns::Name>().expect("a name");
    let set = |records: &[dns::Data]| dns::Rrset::new(30, records).expect("a set");
    let srv = dns::Data::Srv { priority: 0, weight: 1, port: 80, target: name("a.example") };
    let names = [
        (name("example"), vec![set(&[dns::Data::Ns(name("a.example"))])]),
        (name("a.example"), vec![set(&[dns::Data::A([192, 0, 2, 1].into())])]),
        (name("_s._tcp.b.example"), vec![set(&[srv])]),
        (name("c.example"), vec![set(&[dns::Data::Cname(name("a.example"))])]),
        (name("d.example"), vec![set(&[dns::Data::Ns(name("n.d.example"))])]),
    ];
    let (primary, mailbox) = (name("a.example"), name("root.example"));
    let soa = dns::Soa { primary, mailbox, refresh_s: 1, retry_s: 1, expire_s: 9, negative_s: 1, ttl_s: 1 };
    let zone = dns::Zone::load(name("example"), soa, 7, names, []).expect("a zone");
    let zones = dns::Zones::new([(dns::View::Everybody, zone)]);
    let secret = dns::Secret::new(vec![1; 32]);
    let key = dns::TsigKey { name: name("key"), algorithm: dns::Algorithm::HmacSha256, secret };
    let rule = dns::TransferRule { network: "192.0.2.0/24".parse().expect("a network"), key: None };
    let open = dns::Policy { transfers: vec![rule], keys: vec![key], ..dns::Policy::default() };
    for policy in [dns::Policy::default(), open] {
        if let Some(reply) = dns::reply(&zones, &policy, [192, 0, 2, 9].into(), 1_795_532_760, bytes) {
            assert!(bytes[2] & 0x80 == 0 && reply[2] & 0x80 != 0, "questions are answered, answers are not");
            assert!(reply[..2] == bytes[..2] && reply.len() <= 1232 + 512);
            let next = dns::reply(&zones, &policy, [192, 0, 2, 9].into(), 1_795_532_760, &reply);
            assert!(next.is_none(), "a conversation ends");
        }
    }
}

/// What a client of the change feed sends: frames, with a registration in them.
pub fn changefeed(bytes: &[u8]) {
    const MESSAGE_MAX: usize = 4_096;
    at_once(async {
        let mut socket = Socket::of_server(tokio::io::join(bytes, tokio::io::sink()), MESSAGE_MAX).await;
        while let Ok(Some(message)) = socket.read().await {
            assert!(message.len() <= MESSAGE_MAX);
            if let Message::Text(text) = message {
                let _ = Registration::parse(&text);
            }
        }
    });
    if let Ok(registration) = Registration::parse(text(bytes)) {
        assert_eq!(Registration::parse(&registration.to_text()), Ok(registration));
    }
}

/// Runs what never waits.
fn at_once(work: impl Future<Output = ()>) {
    let mut work = std::pin::pin!(work);
    let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
    assert!(work.as_mut().poll(context).is_ready(), "bytes that are here are not waited for");
}

/// As much of the beginning as is text.
fn text(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}
