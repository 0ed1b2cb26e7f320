//! What the gate's fuzz target (tests/fuzz) begins with, and whatever has failed in it once.

#[path = "../../tests/fuzz/checks/gate_frames.rs"]
mod gate_frames;

use std::fs;
use std::path::Path;

#[test]
fn seeds_of_the_frames() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds/gate_frames");
    let mut count = 0;
    for seed in fs::read_dir(seeds).unwrap() {
        gate_frames::check(&fs::read(seed.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0, "gate_frames has no seeds");
}
