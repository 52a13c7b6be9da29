//! Times what each event costs without I/O: its codec, the stitcher, and the fan-out to many readers.

use criterion::{Criterion, criterion_group, criterion_main};
use tailwater_benches::{decode, encode, fan_out, recorded, stitch};

fn delivery(criterion: &mut Criterion) {
    let events = recorded();
    let payloads = encode(&events);
    let stored = decode(&payloads);
    criterion.bench_function("encode 500 events", |bench| bench.iter(|| encode(&events)));
    let name = "decode 500 events, and make their frames";
    criterion.bench_function(name, |bench| bench.iter(|| decode(&payloads)));
    criterion.bench_function("stitch 500 events", |bench| bench.iter(|| stitch(&stored)));
    let name = "fan 500 events out to 100 readers";
    criterion.bench_function(name, |bench| bench.iter(|| fan_out(&stored)));
}

criterion_group!(benches, delivery);
criterion_main!(benches);
