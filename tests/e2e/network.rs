//! Networks of RUN steps and of `run`.
//!
//! What looks at all links, tables or settings of a host does so in a network namespace of its own, so that tests do not
//! see each other's.

use crate::{lab, program};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use xbuild_testkit::{Done, Lab, wait_until};

const OUT: &[&str] = &["--progress=plain", "-o", "type=local,dest=out"];

/// Runs a script in network and mount namespaces of its own, as a host that has loopback only. Functions: `links` and
/// `tables` list what xbuild has made there, `soon CONDITION` waits for it.
fn on_another_host(lab: &Lab, script: &str) -> Done {
    const HEAD: &str = "set -eu\nip link set lo up\n\
        xbuild() { \"$XBUILD\" \"$@\"; }\n\
        links() { ip -o link | grep -c -e xbr- -e xb- -e veth || true; }\n\
        tables() { nft list tables | grep -c xbuild || true; }\n\
        soon() { n=0; while ! eval \"$1\"; do n=$((n + 1)); [ $n -lt 2000 ]; sleep 0.01; done; }\n";
    let script = format!("{HEAD}{script}");
    let root = lab.root();
    lab.tool("unshare", &["--net", "--mount", "sh", "-c", &script])
        .env("XBUILD", program())
        .env("XBUILD_ROOT", root)
        .run()
}

/// Answers every connection with `text`, as long as the test runs.
fn serve(address: Ipv4Addr, text: &'static str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Who hangs up early gets nothing.
            let _ = stream.read(&mut [0; 1024]);
            let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        }
    });
    port
}

#[test]
fn a_step_reaches_the_host_but_not_its_loopback() {
    let Some(lab) = lab(&[]) else { return };
    let inner = serve(Ipv4Addr::LOCALHOST, "loopback");
    let outer = serve(Ipv4Addr::UNSPECIFIED, "gateway");
    let name = format!("xbuild-test-{}", lab.token());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    lab.write(
        "app/Dockerfile",
        format!(
            "FROM busybox\n\
             RUN timeout 3 wget -qO /inner http://127.0.0.1:{inner}/ || echo refused > /inner\n\
             RUN timeout 20 wget -qO /outer http://host.docker.internal:{outer}/\n\
             RUN --network=none timeout 3 wget -qO /none http://host.docker.internal:{outer}/ || echo refused > /none\n\
             RUN grep -c {name} /proc/net/unix > /sockets || true\n\
             RUN cat /proc/net/if_inet6 > /loopback; tail -n +3 /proc/net/dev | cut -d: -f1 > /links\n"
        ),
    );
    lab.xbuild(OUT).args(&["--add-host", "host.docker.internal:host-gateway", "app"]).ok();
    assert_eq!(lab.read("out/inner"), "refused");
    assert_eq!(lab.read("out/outer"), "gateway");
    assert_eq!(lab.read("out/none"), "refused");
    assert_eq!(lab.read("out/sockets"), "0");
    let links = lab.read("out/links");
    assert_eq!(links.split_whitespace().collect::<Vec<_>>(), ["lo", "eth0"]);
    assert!(lab.read("out/loopback").starts_with("00000000000000000000000000000001 "));
}

#[test]
fn every_step_has_a_network_of_its_own() {
    let Some(lab) = lab(&[]) else { return };
    let steps: String =
        (0..6).map(|n| format!("RUN readlink /proc/self/ns/net > /{n}; ip -4 a > /address{n}\n")).collect();
    lab.write(
        "app/Dockerfile",
        format!("FROM busybox\n{steps}RUN --network=host readlink /proc/self/ns/net > /host\n"),
    );
    lab.xbuild(OUT).args(&["--allow", "network.host", "app"]).ok();
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(lab.read("out/host"), host.to_str().unwrap());
    for n in 0..6 {
        assert_ne!(lab.read(&format!("out/{n}")), host.to_str().unwrap());
        assert!(lab.read(&format!("out/address{n}")).contains("eth0"));
    }
    let run = |network: &[&str]| {
        let call = lab.xbuild(&["run"]).args(network).args(&["busybox", "readlink", "/proc/self/ns/net"]);
        call.ok().out()
    };
    assert_eq!(run(&["--network", "host"]), host.to_str().unwrap());
    assert_ne!(run(&[]), host.to_str().unwrap());
    assert_ne!(run(&["--network", "default"]), host.to_str().unwrap());
}

#[test]
fn steps_that_run_together_do_not_reach_each_other() {
    let Some(lab) = lab(&[]) else { return };
    // Both share a directory, by which one tells the other its address.
    let mount = "--mount=type=cache,target=/shared";
    lab.write(
        "app/Dockerfile",
        format!(
            "FROM busybox AS server\n\
             RUN {mount} echo reached > /index.html; httpd -p 80 -h /; \
             ip -4 -o a show eth0 | sed 's,.*inet \\([0-9.]*\\).*,\\1,' > /shared/address.new; \
             mv /shared/address.new /shared/address; \
             n=0; while [ ! -e /shared/done ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done; touch /ended\n\
             FROM busybox\n\
             RUN {mount} n=0; while [ ! -s /shared/address ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done; \
             test -s /shared/address; timeout 2 wget -qO /answer http://$(cat /shared/address)/ || echo refused > /answer; \
             touch /shared/done\n\
             COPY --from=server /ended /\n"
        ),
    );
    lab.xbuild(OUT).arg("app").ok();
    assert_eq!(lab.read("out/answer"), "refused");
}

#[test]
fn nothing_is_left_of_networks() {
    let Some(lab) = lab(&["unshare", "ip", "nft"]) else { return };
    lab.write("good/Dockerfile", "FROM busybox\nRUN true\nRUN echo a\nRUN echo b\n");
    lab.write("bad/Dockerfile", "FROM busybox\nRUN ip link show eth0 && false\n");
    let token = lab.token();
    lab.write("slow/Dockerfile", format!("FROM busybox\nRUN true\nRUN sleep {token}\nRUN true\n"));
    let done = on_another_host(
        &lab,
        "xbuild good\n\
         [ $(tables) = 0 ]; soon '[ $(links) = 0 ]'; echo good\n\
         ! xbuild bad\n\
         [ $(tables) = 0 ]; soon '[ $(links) = 0 ]'; echo bad\n\
         for signal in INT KILL; do\n\
           \"$XBUILD\" slow & pid=$!\n\
           soon '[ $(links) -ge 1 ] && [ $(tables) = 1 ]'; sleep 0.2\n\
           kill -$signal $pid; ! wait $pid\n\
           soon '[ $(links) = 0 ]'; soon '[ $(tables) = 0 ]'; echo $signal\n\
         done\n\
         xbuild run busybox true\n\
         soon '[ $(links) = 0 ]'; soon '[ $(tables) = 0 ]'; echo run\n",
    );
    assert_eq!(done.code, 0, "{done}");
    assert_eq!(done.out(), "good\nbad\nINT\nKILL\nrun", "{done}");
    assert!(!done.stderr.contains("WARN"), "{done}");
    lab.assert_no_traces(&token);
}

/// Knows one address, 192.0.2.99 of `known.test`.
const NAME_SERVER: &str = "
import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(('127.0.0.1', 53))
open('listening', 'w').close()
while True:
    question, client = udp.recvfrom(4096)
    known = b'\\x05known\\x04test\\0\\0\\x01' in question
    flags, answers = (b'\\x81\\x80', 1) if known else (b'\\x81\\x83', 0)
    answer = question[:2] + flags + bytes([0, 1, 0, answers, 0, 0, 0, 0]) + question[12:]
    if known:
        answer += b'\\xc0\\x0c\\0\\x01\\0\\x01\\0\\0\\0\\x3c\\0\\x04\\xc0\\0\\x02\\x63'
    udp.sendto(answer, client)
";

#[test]
fn names_are_found_where_the_hosts_resolver_is_on_loopback() {
    let Some(lab) = lab(&["unshare", "ip", "python3"]) else { return };
    lab.write("resolv.conf", "nameserver 127.0.0.1\nsearch lan\noptions timeout:5\n");
    lab.write("server.py", NAME_SERVER);
    lab.write(
        "app/Dockerfile",
        "FROM busybox\nRUN cat /etc/resolv.conf > /conf; nslookup -type=a known.test > /known; nslookup unknown.test > /unknown; true\n",
    );
    let done = on_another_host(
        &lab,
        "mount --bind resolv.conf /etc/resolv.conf\n\
         python3 server.py & trap \"kill $!\" EXIT; soon '[ -e listening ]'\n\
         xbuild --progress=plain -o type=local,dest=out app\n\
         xbuild run busybox nslookup -type=a known.test\n",
    );
    assert_eq!(done.code, 0, "{done}");
    assert!(done.out().contains("192.0.2.99"), "{done}");
    assert_eq!(lab.read("out/conf"), "nameserver 127.0.0.11\nsearch lan\noptions timeout:5");
    assert!(lab.read("out/known").contains("192.0.2.99"), "{done}");
    assert!(!lab.read("out/unknown").contains("192.0.2"), "{done}");
}

#[test]
fn several_processes_share_the_host() {
    let Some(lab) = lab(&["unshare", "ip", "nft"]) else { return };
    lab.write("other/Dockerfile", "FROM busybox\nRUN ip -4 -o a show eth0 > /address; sleep 1\n");
    let done = on_another_host(
        &lab,
        "for n in 1 2 3 4 5 6; do\n\
           \"$XBUILD\" --build-arg N=$n --no-cache -o type=local,dest=out$n other & pids=\"${pids:-} $!\"\n\
         done\n\
         for pid in $pids; do wait $pid; done\n\
         sort out*/address | uniq | wc -l\n\
         soon '[ $(links) = 0 ]'; tables\n",
    );
    assert_eq!(done.code, 0, "{done}");
    assert!(!done.stderr.contains("WARN"), "{done}");
    assert_eq!(done.out(), "6\n0", "{done}");
}

#[test]
fn without_the_power_to_make_networks_the_hosts_is_used_and_said_once() {
    let Some(lab) = lab(&["unshare", "ip", "nft", "setpriv"]) else { return };
    lab.write(
        "app/Dockerfile",
        "FROM busybox\nRUN readlink /proc/self/ns/net > /1\nRUN readlink /proc/self/ns/net > /2\n",
    );
    let weak = "setpriv --bounding-set=-net_admin \"$XBUILD\" --no-cache --progress=plain -o type=local,dest=out app\n\
                readlink /proc/self/ns/net | cat - out/1 out/2 | uniq | wc -l\n\
                setpriv --bounding-set=-net_admin \"$XBUILD\" run busybox true || echo $?\n";
    let done = on_another_host(&lab, weak);
    assert_eq!(done.code, 0, "{done}");
    assert_eq!(done.out(), "1\n125", "a container does not start: {done}");
    let said: Vec<_> = done.stderr.lines().filter(|line| line.contains("WARN")).collect();
    let [said] = said[..] else { panic!("not said once: {done}") };
    assert!(said.contains("the host's is used") && said.contains("not permitted"), "{done}");
    assert!(done.stderr.contains("failed to set up container networking"), "{done}");

    let docker = "nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'\n\
                  before=$(nft list ruleset)\n\
                  [ $(xbuild run busybox readlink /proc/self/ns/net) != $(readlink /proc/self/ns/net) ]\n\
                  xbuild --no-cache --progress=plain -o type=local,dest=out app\n\
                  readlink /proc/self/ns/net | cat - out/1 out/2 | sort -u | wc -l\n\
                  \"$XBUILD\" slow & pid=$!\n\
                  soon 'nft list ruleset | grep -q \"xbr-.*accept comment\"'; kill -KILL $pid; ! wait $pid\n\
                  xbuild --no-cache --progress=plain app\n\
                  soon '[ $(links) = 0 ]'; soon '[ $(tables) = 0 ]'; [ \"$(nft list ruleset)\" = \"$before\" ]\n";
    lab.write("slow/Dockerfile", format!("FROM busybox\nRUN sleep {}\n", lab.token()));
    let done = on_another_host(&lab, docker);
    assert_eq!(done.code, 0, "{done}");
    assert_eq!(done.out(), "3", "{done}");
    assert!(!done.stderr.contains("WARN"), "{done}");

    let barred = "nft add table inet wall\n\
                  nft add chain inet wall gate '{ type filter hook forward priority 0; policy drop; }'\n\
                  xbuild --no-cache --progress=plain -o type=local,dest=out app\n\
                  readlink /proc/self/ns/net | cat - out/1 out/2 | uniq | wc -l\n";
    let done = on_another_host(&lab, barred);
    assert_eq!(done.code, 0, "{done}");
    assert_eq!(done.out(), "1", "{done}");
    assert!(done.stderr.contains("chain `gate` of table `wall`"), "{done}");
}

#[test]
fn addresses_keep_clear_of_the_hosts_routes() {
    let Some(lab) = lab(&["unshare", "ip"]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\nRUN ip -4 -o a show eth0 > /address\n");
    let done = on_another_host(
        &lab,
        "ip link add uplink type veth peer name far; ip link set far up; ip link set uplink up mtu 1380\n\
         ip addr add 10.1.2.3/8 dev uplink; ip route add default via 10.0.0.1; ip route add 172.30.7.0/24 dev uplink\n\
         xbuild --progress=plain -o type=local,dest=out app; xbuild run busybox cat /sys/class/net/eth0/mtu\n",
    );
    assert_eq!(done.code, 0, "{done}");
    let address = lab.read("out/address");
    assert!(address.contains("inet 172.19."), "{address}");
    assert_eq!(done.out(), "1380");
}

#[test]
fn a_build_that_runs_nothing_opens_nothing() {
    let Some(lab) = lab(&["strace"]) else { return };
    lab.write("app/Dockerfile", "FROM busybox\nRUN echo cached\n");
    let trace = |name: &str| {
        let strace = ["-f", "-qq", "-e", "trace=socket,unshare", "-o", name, program().to_str().unwrap(), "app"];
        let root = lab.root();
        lab.tool("strace", &strace).env("XBUILD_ROOT", root).ok();
        lab.read(name)
    };
    assert!(trace("first").contains("AF_NETLINK"));
    let second = trace("second");
    assert!(!second.contains("AF_NETLINK") && !second.contains("CLONE_NEWNET"), "{second}");
}

#[test]
fn containers_find_each_other_and_are_found_from_the_host() {
    let Some(lab) = lab(&["unshare", "ip", "nft"]) else { return };
    let done = on_another_host(
        &lab,
        "xbuild network create --subnet 10.199.0.0/24 --label a=b app >/dev/null\n\
         xbuild run -d --name web --network app --network-alias www -p 127.0.0.1:8080:80 busybox \
           sh -c 'echo hello > /index.html; exec httpd -f -p 80 -h /' >/dev/null\n\
         soon 'xbuild exec web wget -qO- http://127.0.0.1/ >/dev/null 2>&1'\n\
         xbuild run --rm --network app busybox timeout 10 wget -qO- http://www/\n\
         busybox timeout 10 busybox wget -qO- http://127.0.0.1:8080/\n\
         xbuild port web\n\
         xbuild network inspect -f '{{len .Containers}} {{.Labels.a}}' app\n\
         ! xbuild run --rm -p 8080:80 busybox true\n\
         ! xbuild network rm app\n\
         xbuild rm -f web; xbuild network rm app\n\
         soon '[ $(links) = 0 ]'; soon '[ $(tables) = 0 ]'; echo gone\n",
    );
    assert_eq!(done.code, 0, "{done}");
    let expected = ["hello", "hello", "80/tcp -> 127.0.0.1:8080", "1 b", "web", "app", "gone"];
    assert_eq!(done.out().lines().collect::<Vec<_>>(), expected, "{done}");
    assert!(done.stderr.contains("port is already allocated") && done.stderr.contains("active endpoints"), "{done}");
}

#[test]
fn a_killed_monitor_gives_ports_and_addresses_back() {
    let Some(lab) = lab(&["unshare", "ip", "nft"]) else { return };
    let done = on_another_host(
        &lab,
        "xbuild network create --subnet 10.199.0.0/30 tight >/dev/null\n\
         xbuild run -d --name first --network tight -p 8080:80 busybox sleep 600 >/dev/null\n\
         ! xbuild run --rm --network tight busybox true\n\
         monitor=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$(xbuild inspect -f '{{.State.Pid}}' first)/status)\n\
         kill -9 $monitor; soon '[ ! -e /proc/$monitor ]'\n\
         xbuild run --rm --network tight -p 8080:80 busybox echo second\n\
         soon '[ $(links) = 0 ]'; soon '[ $(tables) = 0 ]'; echo gone\n",
    );
    assert_eq!(done.code, 0, "{done}");
    assert_eq!(done.out(), "second\ngone", "{done}");
    assert!(done.stderr.contains("no free address"), "{done}");
}

#[test]
fn a_hundred_containers_leave_nothing() {
    let Some(lab) = lab(&["unshare", "ip", "nft"]) else { return };
    let token = lab.token();
    let script = format!(
        "for n in $(seq 100); do xbuild run -d -p 127.0.0.1::80 -v volume-$n:/data busybox sleep {token}; done > ids\n\
         [ $(xbuild ps -q | wc -l) = 100 ]; [ $(links) = 101 ]; find /sys/fs/cgroup -name \"$(head -1 ids)\" | wc -l\n\
         xbuild rm -f $(xbuild ps -q) > removed; wc -l < removed; xbuild volume prune -af > pruned\n\
         soon '[ $(links) = 0 ]'; soon '[ $(tables) = 0 ]'\n\
         for id in $(cat ids); do find /sys/fs/cgroup -name \"$id\"; done; xbuild ps -aq; xbuild volume ls -q\n"
    );
    let done = on_another_host(&lab, &script);
    assert_eq!(done.code, 0, "{done}");
    let said = done.out();
    let [groups, removed] = said.lines().collect::<Vec<_>>()[..] else { panic!("{done}") };
    assert!(groups != "0" && removed == "100", "{done}");
    lab.assert_no_traces(&token);
    for folder in ["containers", "volumes", "networks/running", "staging"] {
        wait_until(&format!("`{folder}` is empty"), || {
            let visible = |entry: &std::fs::DirEntry| !entry.file_name().to_string_lossy().starts_with('.');
            std::fs::read_dir(lab.root().join(folder)).unwrap().flatten().filter(visible).count() == 0
        });
    }
}
