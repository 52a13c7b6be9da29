//! Joining a replay and live copies.

use criterion::{Criterion, criterion_group, criterion_main};
use tailwater_benches::{decode, encode, recorded, stitch};

fn stitcher(criterion: &mut Criterion) {
    let events = decode(&encode(&recorded()));
    criterion.bench_function("stitch 500 events", |bench| bench.iter(|| stitch(&events)));
}

criterion_group!(benches, stitcher);
criterion_main!(benches);
