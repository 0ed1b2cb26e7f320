#![no_main]

#[path = "../checks/gate_frames.rs"]
mod gate_frames;

libfuzzer_sys::fuzz_target!(|data: &[u8]| gate_frames::check(data));
