//! Reading each event of a history from many readers.

use criterion::{Criterion, criterion_group, criterion_main};
use tailwater_benches::{decode, encode, fan_out, recorded};

fn readers(criterion: &mut Criterion) {
    let events = decode(&encode(&recorded()));
    let name = "fan 500 events out to 100 readers";
    criterion.bench_function(name, |bench| bench.iter(|| fan_out(&events)));
}

criterion_group!(benches, readers);
criterion_main!(benches);
