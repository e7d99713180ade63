//! The hot paths by the clock.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use xbuild_benches::*;
use xbuild_cache::Packing;

fn frontend(c: &mut Criterion) {
    for (name, stages, steps) in [("tiny", 3, 4), ("1000 steps", 10, 100), ("500 stages", 500, 1)] {
        let text = dockerfile(stages, steps);
        let parsed = parse(&text);
        let plan = lower(&parsed);
        c.bench_function(&format!("parse/{name}"), |b| b.iter(|| parse(black_box(&text))));
        c.bench_function(&format!("lower/{name}"), |b| b.iter(|| lower(black_box(&parsed))));
        c.bench_function(&format!("solve cached/{name}"), |b| b.iter(|| solve(black_box(&plan))));
    }
    let rules = ignore_rules();
    c.bench_function("ignore/1000 paths", |b| b.iter(|| ignored(black_box(&rules))));
}

fn trees(c: &mut Criterion) {
    let known = Context::new(5000, 100, true);
    c.bench_function("stat walk/5000 known files", |b| b.iter(|| known.digest()));
    let unknown = Context::new(500, 20_000, false);
    c.bench_function("tree hash/500 files of 20 kB", |b| b.iter(|| unknown.digest()));
    c.bench_function("layer tar/500 files of 20 kB", |b| b.iter(|| unknown.layer()));
}

fn packing(c: &mut Criterion) {
    let bytes = text(8 << 20);
    let mut group = c.benchmark_group("pack");
    group.throughput(Throughput::Bytes(bytes.len() as u64)).sample_size(10);
    group.bench_function("gzip 6", |b| b.iter(|| pack(black_box(&bytes), Packing::Gzip(6))));
    group.bench_function("zstd 3", |b| b.iter(|| pack(black_box(&bytes), Packing::Zstd(3))));
}

fn documents(c: &mut Criterion) {
    let records = Records::new(1000);
    c.bench_function("index/1000 records", |b| b.iter(|| records.find()));
    c.bench_function("references/4", |b| b.iter(references));
    let bytes = manifest(40);
    c.bench_function("manifest/40 layers", |b| b.iter(|| document(black_box(&bytes))));
}

criterion_group!(benches, frontend, trees, packing, documents);
criterion_main!(benches);
