//! The hot paths by instructions, which are the same in every run: a regression of one per cent is seen.

use gungraun::{library_benchmark, library_benchmark_group, main};
use std::hint::black_box;
use xbuild_benches::*;
use xbuild_cache::Packing;
use xbuild_frontend::{Parsed, Plan, ignore};

fn parsed(stages: usize, steps: usize) -> Parsed {
    parse(&dockerfile(stages, steps))
}

fn plan(stages: usize, steps: usize) -> Plan {
    lower(&parsed(stages, steps))
}

#[library_benchmark]
#[bench::tiny(args = (3, 4), setup = dockerfile)]
#[bench::steps_1000(args = (10, 100), setup = dockerfile)]
fn parse_text(text: String) -> Parsed {
    black_box(parse(&text))
}

#[library_benchmark]
#[bench::tiny(args = (3, 4), setup = parsed)]
#[bench::steps_1000(args = (10, 100), setup = parsed)]
#[bench::stages_500(args = (500, 1), setup = parsed)]
fn lower_tree(parsed: Parsed) -> Plan {
    black_box(lower(&parsed))
}

#[library_benchmark]
#[bench::tiny(args = (3, 4), setup = plan)]
#[bench::steps_1000(args = (10, 100), setup = plan)]
#[bench::stages_500(args = (500, 1), setup = plan)]
fn solve_cached(plan: Plan) -> usize {
    black_box(solve(&plan))
}

#[library_benchmark]
#[bench::paths_1000(setup = ignore_rules)]
fn ignore_paths(rules: ignore::Matcher) -> usize {
    black_box(ignored(&rules))
}

#[library_benchmark]
#[bench::files_2000(args = (2000, 100, true), setup = Context::new)]
fn stat_walk(context: Context) -> [u8; 32] {
    black_box(context.digest())
}

#[library_benchmark]
#[bench::files_100(args = (100, 20_000, false), setup = Context::new)]
fn layer_tar(context: Context) -> usize {
    black_box(context.layer())
}

#[library_benchmark]
#[bench::gzip(args = (1 << 20), setup = text)]
fn pack_text(bytes: Vec<u8>) -> usize {
    black_box(pack(&bytes, Packing::Gzip(6)))
}

#[library_benchmark]
#[bench::records_200(args = (200), setup = Records::new)]
fn index_find(records: Records) -> usize {
    black_box(records.find())
}

#[library_benchmark]
fn parse_references() -> usize {
    black_box(references())
}

#[library_benchmark]
#[bench::layers_40(args = (40), setup = manifest)]
fn parse_manifest(bytes: Vec<u8>) -> xbuild_oci::Document {
    black_box(document(&bytes))
}

library_benchmark_group!(
    name = hot;
    benchmarks = parse_text, lower_tree, solve_cached, ignore_paths, stat_walk, layer_tar, pack_text, index_find,
        parse_references, parse_manifest
);
main!(library_benchmark_groups = hot);
