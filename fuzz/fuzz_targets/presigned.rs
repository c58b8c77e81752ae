#![no_main]
//! Queries of pre-signed URLs.

use cloudapi::signature::{Head, claim};
use http::{HeaderMap, Method, Version};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|query: &str| {
    let target = format!("/ana/machines?{query}");
    let headers = HeaderMap::new();
    let head = Head { method: &Method::GET, target: &target, version: Version::HTTP_11, headers: &headers };
    let _ = claim(head, 1_795_532_760);
});
