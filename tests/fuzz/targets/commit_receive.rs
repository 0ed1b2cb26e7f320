#![no_main]

#[path = "../checks/commit_receive.rs"]
mod commit_receive;

libfuzzer_sys::fuzz_target!(|data: &[u8]| commit_receive::check(data));
