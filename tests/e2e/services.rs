//! Real servers in images of Debian's packages: `examples/services`, with what kills them.

use crate::program;
use rustix::process::{Pid, Signal, kill_process};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use xbuild_testkit::{Lab, missing, skip, wait_until};

/// The lab of all tests here that run now, with the image `debian`. It is gone with the last of them.
static SHARED: Mutex<Weak<Lab>> = Mutex::new(Weak::new());

/// A container of one of the services; removed when dropped.
struct Service<'a> {
    lab: &'a Lab,
    name: String,
}

/// The lab, with an image of this target of the example. None, and a note, where Debian's packages cannot be had.
fn with_image(target: &str) -> Option<Arc<Lab>> {
    let lab = with_debian()?;
    let context = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/services");
    lab.xbuild(&["build", "--progress=plain", "--target", target, "-t", target, context]).ok();
    Some(lab)
}

fn with_debian() -> Option<Arc<Lab>> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lab) = shared.upgrade() {
        return Some(lab);
    }
    if let Some(reason) = missing(&["mmdebstrap", "bash"]) {
        skip(&reason);
        return None;
    }
    let lab = Lab::empty(program());
    let script = concat!(". ", env!("CARGO_MANIFEST_DIR"), "/examples/lib.sh; need_debian");
    let made = lab.tool("bash", &["-c", script]).env("XBUILD", program()).env("XBUILD_ROOT", lab.root()).run();
    if made.code != 0 {
        skip(&format!("Debian's packages cannot be had: {made}"));
        return None;
    }
    let lab = Arc::new(lab);
    *shared = Arc::downgrade(&lab);
    Some(lab)
}

impl<'a> Service<'a> {
    fn start(lab: &'a Lab, name: &str, flags: &[&str], image: &str) -> Self {
        lab.xbuild(&["run", "-d", "--name", name]).args(flags).arg(image).ok();
        Self { lab, name: name.to_owned() }
    }

    fn ask(&self, template: &str) -> String {
        self.lab.xbuild(&["inspect", "--format", template, &self.name]).ok().out()
    }

    fn exec(&self, command: &[&str]) -> String {
        self.lab.xbuild(&["exec", &self.name]).args(command).ok().out()
    }

    fn wait_for_state(&self, wanted: &str) {
        wait_until(&format!("{} is {wanted}", self.name), || {
            let state = self.ask("{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}");
            state.split(' ').any(|word| word == wanted)
        });
    }

    /// Kills process 1, as the kernel would that is out of memory.
    fn kill_server(&self) {
        kill(self.ask("{{.State.Pid}}").parse().unwrap());
    }

    /// Kills the process that looks after the container, which is the parent of its process 1. One that looked after
    /// it before may still be there, tidying up.
    fn kill_monitor(&self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.ask("{{.State.Pid}}"))).unwrap();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
        kill(parent.trim().parse().unwrap());
    }

    fn stop(&self) -> String {
        self.lab.xbuild(&["stop", &self.name]).ok();
        self.ask("{{.State.ExitCode}}")
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        self.lab.xbuild(&["rm", "-f", &self.name]).run();
    }
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// A port of this machine that nobody listens on now.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// What a server on this machine answers; nothing if it does not.
fn fetch(lab: &Lab, port: u16, path: &str) -> String {
    let script = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())";
    lab.tool("python3", &["-c", script, &format!("http://127.0.0.1:{port}{path}")]).run().out()
}

#[test]
fn nginx_serves_a_directory_and_comes_back_when_it_is_killed() {
    let Some(lab) = with_image("nginx") else { return };
    lab.write("site/index.html", "from a directory of the host\n");
    let port = free_port();
    let (publish, bind) = (format!("127.0.0.1:{port}:80"), format!("{}:/var/www/html:ro", lab.path("site").display()));
    let web = Service::start(&lab, "web", &["-p", &publish, "-v", &bind, "--restart", "always"], "nginx");
    let serves = || fetch(&lab, port, "/index.html") == "from a directory of the host";
    wait_until("nginx serves", serves);
    web.kill_server();
    wait_until("it was started again", || web.ask("{{.RestartCount}} {{.State.Status}}") == "1 running");
    wait_until("nginx serves again", serves);
    let log = lab.xbuild(&["logs", "web"]).ok().out();
    assert!(log.contains("GET /index.html"), "{log}");
    web.exec(&["nginx", "-s", "reload"]);
    assert_eq!(web.stop(), "0", "SIGQUIT ends it in order");
}

#[test]
fn redis_keeps_what_it_was_told_whoever_is_killed() {
    let Some(lab) = with_image("redis") else { return };
    std::fs::create_dir(lab.path("redis-data")).unwrap();
    let bind = format!("{}:/data", lab.path("redis-data").display());
    let start = || Service::start(&lab, "redis", &["-v", &bind], "redis");
    let server = start();
    server.wait_for_state("healthy");
    assert_eq!(server.exec(&["redis-cli", "set", "key", "first"]), "OK");
    server.kill_server();
    server.wait_for_state("exited");
    assert_eq!(server.ask("{{.State.ExitCode}} {{.State.OOMKilled}}"), "137 false");

    lab.xbuild(&["start", "redis"]).ok();
    server.wait_for_state("healthy");
    assert_eq!(server.exec(&["redis-cli", "get", "key"]), "first");
    assert_eq!(server.exec(&["redis-cli", "set", "key", "second"]), "OK");
    server.kill_monitor();
    server.wait_for_state("exited");
    lab.xbuild(&["start", "redis"]).ok();
    server.wait_for_state("healthy");
    assert_eq!(server.exec(&["redis-cli", "get", "key"]), "second");
    server.kill_monitor();
    server.wait_for_state("exited");
    drop(server);

    let server = start();
    server.wait_for_state("healthy");
    assert_eq!(server.exec(&["redis-cli", "get", "key"]), "second");
    assert_eq!(server.stop(), "0");
}

#[test]
fn postgres_outlives_the_commands_that_talk_to_it_and_its_container() {
    let Some(lab) = with_image("postgres") else { return };
    let start = || Service::start(&lab, "postgres", &["-v", "pgdata:/data", "--shm-size", "128m"], "postgres");
    let server = start();
    server.wait_for_state("healthy");
    let sql = |server: &Service, text: &str| server.exec(&["psql", "-qtAc", text]);
    sql(&server, "create table t (n int); insert into t select generate_series(1, 1000)");

    // A command that is killed while it talks to the server.
    let token = lab.token();
    let query = format!("select pg_sleep({token})");
    let running = lab.xbuild(&["exec", "postgres", "psql", "-c", &query]).start();
    wait_until("the query runs", || {
        sql(&server, "select count(*) from pg_stat_activity where query like 'select pg_sleep%'") == "1"
    });
    running.signal(Signal::KILL);
    running.wait();
    assert_eq!(sql(&server, "select count(*) from t"), "1000");

    server.kill_server();
    server.wait_for_state("exited");
    drop(server);
    let server = start();
    server.wait_for_state("healthy");
    assert_eq!(sql(&server, "select sum(n) from t"), "500500");
    assert_eq!(server.stop(), "0", "SIGINT ends it in order");
    lab.xbuild(&["volume", "rm", "pgdata"]).exits(1).says("in use");
    drop(server);
    lab.xbuild(&["volume", "rm", "pgdata"]).ok();
}

#[test]
fn a_python_service_finds_redis_by_name() {
    let Some(lab) = with_image("counter") else { return };
    let lab = &with_image("redis").unwrap_or(lab);
    lab.xbuild(&["network", "create", "counting"]).ok();
    let port = free_port();
    let publish = format!("127.0.0.1:{port}:8080");
    let counter = Service::start(lab, "counter", &["--network", "counting", "-p", &publish], "counter");
    let flags = ["--network", "counting", "--network-alias", "cache"];
    let cache = Service::start(lab, "store", &flags, "redis");
    wait_until("it counts", || fetch(lab, port, "/") == "visitor 1");
    assert_eq!(fetch(lab, port, "/"), "visitor 2");
    cache.kill_server();
    cache.wait_for_state("exited");
    assert_eq!(fetch(lab, port, "/"), "", "nobody has the name now");
    lab.xbuild(&["start", "store"]).ok();
    wait_until("it counts on", || fetch(lab, port, "/") == "visitor 3");
    assert_eq!(counter.ask("{{.RestartCount}} {{.State.Status}}"), "0 running");
    drop((counter, cache));
    lab.xbuild(&["network", "rm", "counting"]).ok();
}

#[test]
fn a_registry_with_https_and_passwords_takes_what_is_pushed() {
    let Some(lab) = with_image("registry") else { return };
    let port = free_port();
    let publish = format!("127.0.0.1:{port}:5000");
    let start = || Service::start(&lab, "registry", &["-p", &publish, "-v", "images:/var/lib/registry"], "registry");
    let server = start();
    wait_until("it listens", || lab.xbuild(&["logs", "registry"]).run().stderr.contains("listening on"));

    // Its own authority is trusted for its name; on loopback no other would be asked for.
    let host = format!("localhost:{port}");
    let trusted = lab.home().join(".docker/certs.d").join(&host);
    std::fs::create_dir_all(&trusted).unwrap();
    lab.xbuild(&["cp", "registry:/certs/ca.crt", trusted.to_str().unwrap()]).ok();
    lab.write("small/Dockerfile", "FROM debian\nRUN echo pushed > /content\n");
    for host in [host, format!("127.0.0.1:{port}")] {
        let image = format!("{host}/small:1");
        lab.xbuild(&["-t", &image, "small"]).ok();
        lab.xbuild(&["push", &image]).exits(1).says("denied");
        lab.xbuild(&["login", "-u", "tester", "--password-stdin", &host]).input("wrong").exits(1).says("unauthorized");
        lab.xbuild(&["login", "-u", "tester", "--password-stdin", &host]).input("right-password").ok();
        lab.xbuild(&["push", &image]).ok();
        lab.xbuild(&["logout", &host]).ok();
        lab.xbuild(&["push", &image]).exits(1).says("denied");
        lab.xbuild(&["login", "-u", "tester", "--password-stdin", &host]).input("right-password").ok();
    }
    std::fs::write(trusted.join("ca.crt"), ANOTHER).unwrap();
    lab.xbuild(&["pull", &format!("localhost:{port}/small:1")]).exits(1).says("certificate that is not trusted");

    server.kill_server();
    server.wait_for_state("exited");
    drop(server);
    let _server = start();
    let other = lab.other_root("other");
    let image = format!("127.0.0.1:{port}/small:1");
    wait_until("it is there again", || lab.xbuild(&["pull", &image]).env("XBUILD_ROOT", &other).run().code == 0);
    let content = lab.xbuild(&["run", "--rm", "--network", "none", &image, "cat", "/content"]);
    assert_eq!(content.env("XBUILD_ROOT", &other).ok().out(), "pushed");
}

/// The certificate of an authority that nobody is vouched for by.
const ANOTHER: &str = include_str!("another-authority.crt");
