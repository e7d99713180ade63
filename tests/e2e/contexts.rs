//! Where a context may come from.

use crate::{UNIQUE, lab};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use xbuild_testkit::{FileServer, Lab, Reply, skip, wait_until};

/// A tar with `Dockerfile`, `dir/f` and an executable.
fn context() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let dockerfile = "FROM busybox\nCOPY . /ctx\nRUN /ctx/dir/run > /out && cat /ctx/dir/f >> /out\n";
    for (path, mode, text) in
        [("Dockerfile", 0o644, dockerfile), ("dir/f", 0o640, "content\n"), ("dir/run", 0o755, "#!/bin/sh\necho ran\n")]
    {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn packed(plain: &[u8]) -> [(&'static str, Vec<u8>); 5] {
    fn finish<W: Write>(mut writer: W, plain: &[u8]) -> W {
        writer.write_all(plain).unwrap();
        writer
    }
    let gz = finish(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()), plain).finish();
    let bz2 = finish(bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast()), plain).finish();
    let xz = finish(liblzma::write::XzEncoder::new(Vec::new(), 1), plain).finish();
    let zst = zstd::encode_all(plain, 1);
    [
        ("tar", plain.to_vec()),
        ("tar.gz", gz.unwrap()),
        ("tar.bz2", bz2.unwrap()),
        ("tar.xz", xz.unwrap()),
        ("tar.zst", zst.unwrap()),
    ]
}

#[test]
fn an_archive_on_standard_input() {
    let Some(lab) = lab(&[]) else { return };
    for (name, bytes) in packed(&context()) {
        let out = format!("out.{name}");
        lab.xbuild(&["-o", &out, "-"]).input(bytes).ok();
        assert_eq!(lab.read(&format!("{out}/out")), "ran\ncontent", "{name}");
    }
    lab.xbuild(&["-o", "f", "-f", "dir/Other", "-"]).input(context()).exits(1).says("Other");
    let plain = context();
    let done = lab.xbuild(&["-o", "cut", "-"]).input(&plain[..plain.len() / 2]).exits(1).says("ERROR");
    assert!(!done.stderr.contains("panicked"), "{done}");
    lab.xbuild(&["-"]).input("").exits(1).says("ERROR");
}

#[test]
fn a_dockerfile_on_standard_input() {
    let Some(lab) = lab(&[]) else { return };
    lab.xbuild(&["-o", "alone", "-"]).input("FROM busybox\nRUN echo alone > /out\n").ok();
    assert_eq!(lab.read("alone/out"), "alone");
    lab.write("ctx/f", "content\n");
    lab.write("ctx/Dockerfile", "FROM nosuch\n");
    lab.xbuild(&["-o", "with", "-f", "-", "ctx"]).input("FROM busybox\nCOPY f /out\n").ok();
    assert_eq!(lab.read("with/out"), "content");
    lab.xbuild(&["-f", "-", "-"]).input("FROM busybox\n").exits(1).says("standard input");
    let failed = lab.xbuild(&["-f", "-", "ctx"]).input("FROM busybox\nRUN exit 4\n").exits(1);
    failed.says("Dockerfile:2").says("exit code: 4");
}

#[test]
fn an_archive_or_a_dockerfile_from_a_server() {
    let Some(lab) = lab(&[]) else { return };
    let server = FileServer::start();
    for (name, bytes) in packed(&context()) {
        let address = server.put(&format!("/ctx.{name}"), Reply::File(bytes));
        let out = format!("out.{name}");
        lab.xbuild(&["-o", &out, &address]).ok();
        assert_eq!(lab.read(&format!("{out}/out")), "ran\ncontent", "{name}");
    }
    let address = server.put("/file", Reply::File(b"FROM busybox\nRUN echo remote > /out\n".to_vec()));
    lab.xbuild(&["-o", "file", &address]).ok();
    assert_eq!(lab.read("file/out"), "remote");
    let gone = server.put("/gone", Reply::Status(404));
    lab.xbuild(&[&gone]).exits(1).says("404").says("/gone");
    let cut = server.put("/cut", Reply::Cut(context()));
    lab.xbuild(&[&cut]).exits(1).says("/cut");
}

#[test]
fn add_fetches_and_asks_whether_it_changed() {
    let Some(lab) = lab(&[]) else { return };
    let server = FileServer::start();
    let address = server.put("/f", Reply::File(b"one\n".to_vec()));
    lab.write("app/Dockerfile", format!("FROM busybox\nADD {address} /f\nRUN {UNIQUE} > /id\n"));
    let first = crate::built(&lab, "app", "id", &[]);
    assert_eq!(lab.read("app.out/f"), "one");
    assert_eq!(crate::built(&lab, "app", "id", &[]), first);
    server.put("/f", Reply::File(b"two\n".to_vec()));
    assert_ne!(crate::built(&lab, "app", "id", &[]), first);
    assert_eq!(lab.read("app.out/f"), "two");
    let sum = format!("ADD --checksum=sha256:{} {address} /f", "0".repeat(64));
    lab.write("app/Dockerfile", format!("FROM busybox\n{sum}\n"));
    lab.xbuild(&["app"]).exits(1).says("Dockerfile:2");
}

#[test]
fn named_contexts() {
    let Some(lab) = lab(&[]) else { return };
    lab.write("app/Dockerfile", "FROM base\nCOPY --from=more f /f\nRUN cat /f > /out\n");
    lab.write("more/f", "more\n");
    lab.write("base/Dockerfile", "FROM busybox\nRUN echo base > /base\n");
    lab.xbuild(&["-o", "type=oci,dest=layout,tar=false", "-t", "base:1", "base"]).ok();
    let build = |base: &str| {
        let base = format!("base={base}");
        lab.xbuild(&["-o", "out", "--build-context", "more=more", "--build-context", &base, "app"]).ok();
        assert_eq!(lab.read("out/out"), "more", "{base}");
    };
    build("docker-image://busybox");
    build("oci-layout://layout:1");
    assert_eq!(lab.read("out/base"), "base");
    let server = FileServer::start();
    let address = server.put("/more.tar.gz", Reply::File(packed(&context())[1].1.clone()));
    lab.write("app/Dockerfile", "FROM busybox\nCOPY --from=more dir/f /out\n");
    lab.xbuild(&["-o", "http", "--build-context", &format!("more={address}"), "app"]).ok();
    assert_eq!(lab.read("http/out"), "content");
}

/// `git daemon` on a loopback port; ends when dropped.
struct GitDaemon {
    child: Child,
    port: u16,
}

impl GitDaemon {
    fn start(lab: &Lab, base: &str) -> Option<Self> {
        let place = lab.tool("git", &["--exec-path"]).ok().out();
        // `git daemon` would leave the daemon behind when it is killed.
        let program = std::path::Path::new(&place).join("git-daemon");
        if !program.is_file() {
            skip("`git daemon` is not installed");
            return None;
        }
        for _ in 0..5 {
            let free = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr());
            let port = free.expect("a loopback port is free").port();
            let mut command = Command::new(&program);
            command.args(["--export-all", "--reuseaddr", "--listen=127.0.0.1", &format!("--port={port}")]);
            command.arg(format!("--base-path={}", lab.path(base).display())).arg(lab.path(base));
            command.env("HOME", lab.home()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut daemon = Self { child: command.spawn().expect("git-daemon can be started"), port };
            let mut ended = false;
            wait_until("git-daemon listens", || {
                ended = daemon.child.try_wait().expect("a child can be waited for").is_some();
                ended || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if !ended {
                return Some(daemon);
            }
        }
        panic!("git-daemon does not start");
    }
}

impl Drop for GitDaemon {
    fn drop(&mut self) {
        // Both fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_git_repository() {
    let Some(lab) = lab(&["git"]) else { return };
    lab.write("git/app/Dockerfile", "FROM busybox\nCOPY . /ctx\nRUN cat /ctx/f > /out\n");
    lab.write("git/app/f", "first\n");
    let git = |arguments: &[&str]| {
        let who = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-C", "git/app"];
        lab.tool("git", &who).args(arguments).ok().out()
    };
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "first"]);
    git(&["tag", "v1"]);
    let commit = git(&["rev-parse", "HEAD"]);
    lab.write("git/app/f", "second\n");
    lab.write("git/app/sub/Dockerfile", "FROM busybox\nCOPY g /out\n");
    lab.write("git/app/sub/g", "below\n");
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "second"]);
    git(&["checkout", "-q", "-b", "side"]);
    lab.write("git/app/f", "side\n");
    git(&["commit", "-q", "-a", "-m", "side"]);
    git(&["checkout", "-q", "main"]);

    let Some(daemon) = GitDaemon::start(&lab, "git") else { return };
    let address = format!("git://127.0.0.1:{}/app/.git", daemon.port);
    let build = |suffix: &str| {
        lab.xbuild(&["-o", "out", &format!("{address}{suffix}")]).ok();
        lab.read("out/out")
    };
    assert_eq!(build(""), "second");
    assert!(!lab.path("out/ctx/.git").exists(), "the repository's own files are no part of the context");
    assert_eq!(build("#v1"), "first");
    assert_eq!(build(&format!("#{commit}")), "first");
    assert_eq!(build("#side"), "side");
    assert_eq!(build("#main:sub"), "below");
    assert_eq!(build("#:sub"), "below");
    lab.xbuild(&[&format!("{address}#nosuch")]).exits(1).says("nosuch");
    lab.xbuild(&[&format!("{address}#main:nosuch")]).exits(1).says("nosuch");

    lab.write("git/app/f", "third\n");
    git(&["commit", "-q", "-a", "-m", "third"]);
    assert_eq!(build(""), "third", "a branch that moved is fetched again");
    lab.write("add/Dockerfile", format!("FROM busybox\nADD {address}#v1 /src\n"));
    lab.xbuild(&["-o", "added", "add"]).ok();
    assert_eq!(lab.read("added/src/f"), "first");
}
