#![no_main]

#[path = "../checks/wire_channel.rs"]
mod wire_channel;

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire_channel::check(data));
