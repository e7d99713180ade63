//! Measures the cost of one sandbox: `sandbox-loop [ROUNDS] [THREADS]`, as root, with a static busybox.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use xbuild_runner::{Launcher, Network, Rootfs, Spec, Stdio};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    xbuild_runner::helper::main_if_requested();
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let rounds = arguments.next().transpose()?.unwrap_or(200);
    let threads = arguments.next().transpose()?.unwrap_or(1);
    let folder = tempfile::tempdir()?;
    let lower = folder.path().join("lower");
    for name in ["bin", "etc", "proc", "sys", "dev"] {
        fs::create_dir_all(lower.join(name))?;
    }
    fs::copy("/bin/busybox", lower.join("bin/busybox"))?;
    let launcher = Launcher::new()?;
    launcher.warm_up()?;
    for network in [Network::Host, Network::None] {
        let mut times: Vec<Duration> = Vec::new();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|worker| {
                    let (launcher, lower) = (&launcher, &lower);
                    let base = folder.path().join(format!("{network:?}-{worker}"));
                    scope.spawn(move || {
                        (0..rounds).map(|round| one(launcher, lower, &base, round, network)).collect::<Vec<_>>()
                    })
                })
                .collect();
            for worker in workers {
                times.extend(worker.join().expect("worker"));
            }
        });
        times.sort();
        let at = |share: usize| times[(times.len() - 1) * share / 100];
        println!("{network:?}: min {:?} median {:?} p90 {:?} max {:?}", at(0), at(50), at(90), at(100));
    }
    Ok(())
}

fn one(launcher: &Launcher, lower: &Path, base: &Path, round: usize, network: Network) -> Duration {
    let (upper, work) = (base.join(format!("{round}/upper")), base.join(format!("{round}/work")));
    fs::create_dir_all(&upper).expect("upper");
    fs::create_dir_all(&work).expect("work");
    let root = Rootfs::Overlay { lower: vec![lower.to_owned()], upper, work, volatile: true, userxattr: false };
    let mut spec = Spec::new(root, ["/bin/busybox", "true"].map(str::to_owned).to_vec());
    spec.hosts_file = Some(b"127.0.0.1\tlocalhost\n".to_vec());
    spec.resolv_conf = Some(b"nameserver 1.1.1.1\n".to_vec());
    spec.network = network;
    let start = Instant::now();
    let running = launcher.start(&spec, Stdio::default()).expect("start");
    let outcome = running.wait().expect("outcome");
    assert_eq!(outcome.code(), 0);
    start.elapsed()
}
