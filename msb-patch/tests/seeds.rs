//! What the fuzz targets (tests/fuzz) begin with, and whatever has failed in them once.

#[path = "../../tests/fuzz/checks/patch_apply.rs"]
mod patch_apply;
#[path = "../../tests/fuzz/checks/patch_stream.rs"]
mod patch_stream;

use std::path::Path;

fn each_seed(target: &str, check: impl Fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(target);
    let mut count = 0;
    for seed in std::fs::read_dir(&seeds).expect("seeds") {
        let path = seed.expect("a seed").path();
        println!("{}", path.display());
        check(&std::fs::read(&path).expect("a seed"));
        count += 1;
    }
    assert!(count > 0, "{} is empty", seeds.display());
}

#[test]
fn seeds_of_the_parser() {
    each_seed("patch_stream", patch_stream::check);
}

#[test]
fn seeds_of_plans_and_what_comes_of_them() {
    each_seed("patch_apply", patch_apply::check);
}
