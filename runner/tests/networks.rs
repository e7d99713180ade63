//! Networks of containers, each test on a host of its own: a thread in a new network namespace. Needs root.

#![expect(clippy::print_stderr, reason = "a test that cannot run says so")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use xbuild_runner::network::{
    Attachment, ContainerNetwork, EndpointRequest, NetworkError, Networks, NewNetwork, PortRequest, Protocol, Resolvers,
};

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Held by the test that runs: a program that another one starts at this moment is born with this one's sockets and locks, so
/// that what was let go would still be in use.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test on a host of its own, which has loopback and a store.
fn on_a_host(test: fn(&Networks, &Path)) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: not root");
        return;
    }
    let thread = std::thread::spawn(move || {
        xbuild_sys::unshare(rustix::thread::UnshareFlags::NEWNET.bits()).expect("a network namespace");
        sh("ip link set lo up");
        let root = tempfile::tempdir().expect("a directory");
        let networks = Networks::open(root.path(), || "2026-01-02T03:04:05Z".to_owned()).expect("networks");
        test(&networks, root.path());
        networks.sweep().expect("swept");
        // The kernel takes links of a namespace that is gone away in its own time.
        let start = Instant::now();
        while sh("ip -o link | grep -c -e xb- -e veth || true") != "0" {
            assert!(start.elapsed() < PATIENCE, "left over: {}", sh("ip -o link"));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(sh("nft list tables"), "");
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn sh(script: &str) -> String {
    let out = Command::new("sh").args(["-euc", script]).output().expect("a shell");
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

fn network(name: &str) -> NewNetwork {
    NewNetwork { name: name.to_owned(), ..NewNetwork::default() }
}

fn wanted(name: &str, network: &str) -> ContainerNetwork {
    let id = format!("{name:0<64}").replace(|c: char| !c.is_ascii_hexdigit(), "e");
    let endpoint = EndpointRequest { network: network.to_owned(), ..EndpointRequest::default() };
    let resolvers = Resolvers::parse(b"nameserver 192.0.2.53\n");
    ContainerNetwork { id, name: name.to_owned(), endpoints: vec![endpoint], ports: Vec::new(), resolvers }
}

fn inside(attachment: &Attachment, script: &str) -> String {
    let path = attachment.namespace().path();
    sh(&format!("nsenter --net={} sh -euc '{script}'", path.display()))
}

/// The same, while the container's name server is served.
fn while_served(attachment: &mut Attachment, script: &str) -> String {
    let path = attachment.namespace().path();
    let script = format!("nsenter --net={} sh -euc '{script}'", path.display());
    std::thread::scope(|scope| {
        let child = scope.spawn(|| sh(&script));
        while !child.is_finished() {
            attachment.turn();
            std::thread::sleep(Duration::from_millis(1));
        }
        child.join().expect("a script")
    })
}

/// What `make` gives in the container's network.
fn visit<T: Send>(attachment: &Attachment, make: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(attachment.namespace().path()).expect("namespace");
    let enter = || {
        rustix::thread::move_into_link_name_space(file.as_fd(), None).expect("entered");
        make()
    };
    std::thread::scope(|scope| scope.spawn(enter).join().expect("visited"))
}

/// Answers so many connections to port 80 with `hello`; its socket keeps the namespace until then.
fn serve(attachment: &Attachment, times: usize) {
    let listener = visit(attachment, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).expect("listener"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().take(times).flatten() {
            let _ = stream.write_all(b"hello\n");
        }
    });
}

/// What a server answers.
fn fetch(address: Ipv4Addr, port: u16) -> String {
    let mut text = String::new();
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), PATIENCE).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.read_to_string(&mut text).expect("answer");
    text.trim().to_owned()
}

#[test]
fn containers_of_a_network_find_each_other() {
    on_a_host(|networks, _| {
        networks.create(network("app")).expect("made");
        let mut web = wanted("web", "app");
        web.endpoints[0].aliases.push("www".to_owned());
        let web = networks.attach(&web).expect("web");
        let mut client = networks.attach(&wanted("client", "app")).expect("client");
        let address = web.endpoints()[0].address;
        assert_eq!(inside(&client, &format!("busybox ping -c1 -W5 {address} >/dev/null && echo yes")), "yes");
        let asked = wanted("client", "app");
        let conf = networks.resolv_conf(client.endpoints(), &asked.resolvers).expect("text");
        assert_eq!(conf, b"nameserver 127.0.0.11\noptions ndots:0\n");
        let mut ask = |name: &str| {
            let script = format!("busybox nslookup -type=a {name} 127.0.0.11 | tail -n +3 || true");
            while_served(&mut client, &script)
        };
        for name in ["web", "WWW", "www.app", &web.endpoints()[0].container[..12]] {
            let answer = ask(name);
            assert!(answer.contains(&address.to_string()), "{name}: {answer}");
        }
        networks.rename(&web.endpoints()[0].container, "other").expect("renamed");
        assert!(ask("other").contains(&address.to_string()));
        assert!(!ask("web").contains(&address.to_string()));
        web.detach().expect("detached");
        assert!(!ask("www").contains(&address.to_string()));
        client.detach().expect("detached");
        networks.remove("app").expect("removed");
    });
}

#[test]
fn networks_do_not_reach_each_other_nor_the_hosts_loopback() {
    on_a_host(|networks, _| {
        networks.create(network("a")).expect("made");
        networks.create(NewNetwork { internal: true, ..network("shut") }).expect("made");
        let web = networks.attach(&wanted("web", "a")).expect("web");
        let other = networks.attach(&wanted("other", "bridge")).expect("other");
        let shut = networks.attach(&wanted("shut", "shut")).expect("shut");
        let address = web.endpoints()[0].address;
        let ping = |from: &Attachment, to: Ipv4Addr| {
            inside(from, &format!("busybox ping -c1 -W1 {to} >/dev/null 2>&1 && echo yes || echo no"))
        };
        assert_eq!(ping(&other, address), "no");
        assert_eq!(ping(&shut, address), "no");
        let gateway = other.endpoints()[0].gateway.expect("a gateway");
        assert_eq!(ping(&other, gateway), "yes");
        assert_eq!(inside(&shut, "ip route | grep -c default || true"), "0");
        assert_eq!(inside(&other, "ip route | grep -c default"), "1");
        // By way of the gateway, as a neighbour that routes for it.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listener");
        let port = listener.local_addr().expect("address").port();
        let attack = format!(
            "ip link set lo down; ip addr del 127.0.0.1/8 dev lo 2>/dev/null || true; \
             echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet; ip route add 127.0.0.1 via {gateway} dev eth0; \
             timeout 2 busybox nc -z 127.0.0.1 {port} && echo reached || echo no"
        );
        assert_eq!(inside(&other, &attack), "no");
        [web, other, shut].into_iter().for_each(|attachment| drop(attachment.detach().expect("detached")));
    });
}

#[test]
fn published_ports_lead_to_the_container() {
    on_a_host(|networks, _| {
        let mut web = wanted("web", "bridge");
        let binding = |host_address, host_port: u16, container_port, protocol| PortRequest {
            host_address,
            host_ports: (host_port, host_port),
            container_port,
            protocol,
        };
        web.ports = vec![
            binding(Ipv4Addr::UNSPECIFIED, 0, 80, Protocol::Tcp),
            binding(Ipv4Addr::LOCALHOST, 0, 81, Protocol::Udp),
        ];
        let web = networks.attach(&web).expect("web");
        let client = networks.attach(&wanted("client", "bridge")).expect("client");
        let [tcp, udp] = [0, 1].map(|n| web.ports()[n].host_port);
        assert!(tcp != 0 && udp != 0);
        serve(&web, 4);
        let gateway = web.endpoints()[0].gateway.expect("a gateway");
        assert_eq!(fetch(Ipv4Addr::LOCALHOST, tcp), "hello");
        assert_eq!(fetch(gateway, tcp), "hello");
        assert_eq!(visit(&client, || fetch(gateway, tcp)), "hello");
        assert_eq!(visit(&web, || fetch(gateway, tcp)), "hello");

        let receiver = visit(&web, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 81)).expect("socket"));
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("socket");
        sender.send_to(b"ping", (Ipv4Addr::LOCALHOST, udp)).expect("sent");
        receiver.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let mut buffer = [0; 16];
        let (count, from) = receiver.recv_from(&mut buffer).expect("received");
        assert_eq!(&buffer[..count], b"ping");
        receiver.send_to(b"pong", from).expect("sent");
        sender.set_read_timeout(Some(PATIENCE)).expect("timeout");
        assert_eq!(sender.recv(&mut buffer).expect("answered"), 4);

        let mut second = wanted("second", "bridge");
        second.ports = vec![binding(Ipv4Addr::LOCALHOST, tcp, 80, Protocol::Tcp)];
        let error = networks.attach(&second).expect_err("the port is taken");
        assert!(matches!(error, NetworkError::PortTaken { port, .. } if port == tcp), "{error}");
        web.detach().expect("detached");
        networks.attach(&second).expect("the port is free").detach().expect("detached");
        client.detach().expect("detached");
    });
}

#[test]
fn containers_get_through_a_firewall_of_iptables() {
    on_a_host(|networks, _| {
        sh(
            "nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'",
        );
        let before = sh("nft list ruleset");
        networks.create(network("front")).expect("made");
        let mut web = wanted("web", "front");
        web.ports = vec![PortRequest {
            host_address: Ipv4Addr::UNSPECIFIED,
            host_ports: (0, 0),
            container_port: 80,
            protocol: Protocol::Tcp,
        }];
        let web = networks.attach(&web).expect("web");
        let client = networks.attach(&wanted("client", "bridge")).expect("client");
        serve(&web, 1);
        let gateway = web.endpoints()[0].gateway.expect("a gateway");
        assert_eq!(visit(&client, || fetch(gateway, web.ports()[0].host_port)), "hello");
        client.detach().expect("detached");
        web.detach().expect("detached");
        networks.sweep().expect("swept");
        assert_eq!(sh("nft list ruleset"), before);
        sh("nft delete table ip filter");
    });
}

#[test]
fn addresses_are_as_asked_and_used_again() {
    on_a_host(|networks, root| {
        let small = NewNetwork { subnet: Some("10.199.7.0/29".parse().expect("subnet")), ..network("small") };
        let made = networks.create(small.clone()).expect("made");
        assert!(matches!(networks.create(small), Err(NetworkError::Exists(_))));
        let overlapping = NewNetwork { subnet: Some("10.199.0.0/16".parse().expect("subnet")), ..network("large") };
        assert!(matches!(networks.create(overlapping), Err(NetworkError::Overlap(_))));
        let mut fixed = wanted("fixed", &made.id[..8]);
        fixed.endpoints[0].address = Some(Ipv4Addr::new(10, 199, 7, 4));
        let fixed_one = networks.attach(&fixed).expect("fixed");
        fixed.id = fixed.id.replace('f', "0");
        assert!(matches!(networks.attach(&fixed), Err(NetworkError::AddressTaken(_))));
        fixed.endpoints[0].address = Some(Ipv4Addr::new(10, 9, 9, 9));
        assert!(matches!(networks.attach(&fixed), Err(NetworkError::Invalid(_))));
        for round in 0..2 {
            let all: Vec<_> = (0..4)
                .map(|n| networks.attach(&wanted(&format!("c{round}{n}"), "small")).expect("one of four"))
                .collect();
            assert!(matches!(networks.attach(&wanted("full", "small")), Err(NetworkError::Exhausted(_))));
            // Without a word, as a process that is killed.
            drop(all);
        }
        let again = networks.attach(&wanted("c10", "small")).expect("the same container, whose places are left");
        assert_eq!(again.endpoints().len(), 1);
        drop(again);
        assert!(matches!(networks.remove("small"), Err(NetworkError::InUse { .. })));
        drop(fixed_one);
        networks.remove("small").expect("removed");
        assert!(!root.join("networks").join(&made.id).exists());
        assert!(matches!(networks.remove("bridge"), Err(NetworkError::Predefined(_))));
    });
}

#[test]
fn running_containers_change_networks() {
    on_a_host(|networks, _| {
        networks.create(network("late")).expect("made");
        let web = networks.attach(&wanted("web", "late")).expect("web");
        let client = networks.attach(&wanted("client", "bridge")).expect("client");
        let id = client.endpoints()[0].container.clone();
        let namespace = || std::fs::File::open(client.namespace().path()).expect("namespace").into();
        let request = EndpointRequest { network: "late".to_owned(), ..EndpointRequest::default() };
        let endpoint = networks.connect((&id, "client"), namespace(), &request).expect("connected");
        assert_eq!(endpoint.link, "eth1");
        assert!(matches!(
            networks.connect((&id, "client"), namespace(), &request),
            Err(NetworkError::Connected { .. })
        ));
        let address = web.endpoints()[0].address;
        assert_eq!(inside(&client, &format!("busybox ping -c1 -W5 {address} >/dev/null && echo yes")), "yes");
        networks.disconnect((&id, "client"), "late").expect("disconnected");
        assert_eq!(inside(&client, "ls /sys/class/net >/dev/null; ip -o link | wc -l"), "2");
        assert!(matches!(networks.disconnect((&id, "client"), "late"), Err(NetworkError::NotConnected { .. })));
        client.detach().expect("detached");
        web.detach().expect("detached");
        assert!(
            networks
                .connect((&id, "client"), std::fs::File::open("/proc/self/ns/net").expect("own").into(), &request)
                .is_err()
        );
    });
}
