#![no_main]

#[path = "../checks/wire_turn.rs"]
mod wire_turn;

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire_turn::check(data));
