#![no_main]
//! The `Authorization` header, whatever a stranger writes there.

use cloudapi::signature::{Head, claim};
use http::{HeaderMap, HeaderValue, Method, Version, header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, value);
    headers.insert(header::DATE, HeaderValue::from_static("Tue, 24 Nov 2026 15:06:00 GMT"));
    let head = Head { method: &Method::GET, target: "/ana/machines", version: Version::HTTP_11, headers: &headers };
    let _ = claim(head, 1_795_532_760);
});
