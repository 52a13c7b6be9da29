//! What a worker and an edge do with each event once, whoever watches it.

use criterion::{Criterion, criterion_group, criterion_main};
use tailwater_benches::{decode, encode, recorded};

fn codec(criterion: &mut Criterion) {
    let events = recorded();
    criterion.bench_function("encode 500 events", |bench| bench.iter(|| encode(&events)));
    let payloads = encode(&events);
    let name = "decode 500 events, and encode their frames";
    criterion.bench_function(name, |bench| bench.iter(|| decode(&payloads)));
}

criterion_group!(benches, codec);
criterion_main!(benches);
