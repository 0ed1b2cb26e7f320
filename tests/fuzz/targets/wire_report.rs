#![no_main]

#[path = "../checks/wire_report.rs"]
mod wire_report;

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire_report::check(data));
