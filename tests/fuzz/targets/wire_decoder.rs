#![no_main]

#[path = "../checks/wire_decoder.rs"]
mod wire_decoder;

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire_decoder::check(data));
