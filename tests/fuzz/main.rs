//! Replays the corpus of the fuzz targets in `fuzz/`: inputs that reached new code, and those that once were findings.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "the targets are public for the fuzzer")]

use std::fs;
use std::path::Path;

use tailwater::{auth, config, wire};

#[path = "../../src/edge/ws/reader.rs"]
mod reader;
#[path = "../../src/backend/sse.rs"]
mod sse;
#[path = "../../fuzz/src/targets.rs"]
mod targets;

#[test]
fn every_input_of_the_corpus_is_handled() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let mut count = 0;
        for entry in fs::read_dir(corpus.join(name)).expect("a corpus") {
            let path = entry.expect("a file").path();
            println!("{}", path.display());
            target(&fs::read(path).expect("an input"));
            count += 1;
        }
        assert!(count > 5, "{name} has only {count} inputs");
    }
}
