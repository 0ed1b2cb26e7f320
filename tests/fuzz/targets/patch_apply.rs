#![no_main]

#[path = "../checks/patch_apply.rs"]
mod patch_apply;

libfuzzer_sys::fuzz_target!(|data: &[u8]| patch_apply::check(data));
