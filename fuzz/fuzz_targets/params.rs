#![no_main]
//! Query and body of a request, in each of the types we read.

use bytes::Bytes;
use headnode::cloudapi::Params;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str, &[u8])| {
    let (query, boundary, body) = input;
    let body = Bytes::copy_from_slice(body);
    let multipart = format!("multipart/form-data; boundary={boundary}");
    for content_type in ["application/json", "application/x-www-form-urlencoded", &multipart] {
        let _ = Params::merge(Some(query), Some(content_type), &body);
    }
});
