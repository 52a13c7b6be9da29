//! Runs each part of the scenario once, for `scripts/instructions.sh`, which counts the instructions of the functions.

use std::hint::black_box;

use tailwater_benches::{decode, encode, fan_out, recorded, stitch};

fn main() {
    let events = recorded();
    let payloads = encode(&events);
    let stored = decode(&payloads);
    assert_eq!(stitch(&stored), events.len());
    black_box(fan_out(&stored));
}
