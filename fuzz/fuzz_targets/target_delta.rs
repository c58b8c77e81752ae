#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::target_delta(bytes));
