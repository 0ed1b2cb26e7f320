//! What the wire's fuzz targets (tests/fuzz) begin with, and whatever has failed in them once.

#[path = "../../tests/fuzz/checks/commit_receive.rs"]
mod commit_receive;
#[path = "../../tests/fuzz/checks/wire_channel.rs"]
mod wire_channel;
#[path = "../../tests/fuzz/checks/wire_decoder.rs"]
mod wire_decoder;
#[path = "../../tests/fuzz/checks/wire_report.rs"]
mod wire_report;
#[path = "../../tests/fuzz/checks/wire_turn.rs"]
mod wire_turn;

use std::fs;
use std::path::Path;

fn run(target: &str, check: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(target);
    let mut count = 0;
    for seed in fs::read_dir(seeds).unwrap() {
        check(&fs::read(seed.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0, "{target} has no seeds");
}

#[test]
fn seeds_of_the_decoder() {
    run("wire_decoder", wire_decoder::check);
}

#[test]
fn seeds_of_a_channel() {
    run("wire_channel", wire_channel::check);
}

#[test]
fn seeds_of_the_report() {
    run("wire_report", wire_report::check);
}

#[test]
fn seeds_of_a_commit() {
    run("commit_receive", commit_receive::check);
}

#[test]
fn seeds_of_what_may_come_when() {
    run("wire_turn", wire_turn::check);
}
