#![no_main]

#[path = "../checks/patch_stream.rs"]
mod patch_stream;

libfuzzer_sys::fuzz_target!(|data: &[u8]| patch_stream::check(data));
