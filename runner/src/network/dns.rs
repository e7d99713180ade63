//! A name server inside a network namespace, served from outside it.
//!
//! Names that its [`Lookup`] knows it answers itself. It passes other questions on, as they are, to the servers that the host itself asks, which may be on the host's loopback. One
//! thread serves it: queries over UDP are answered as their answers come in, each through a socket of its own, so that
//! nobody but the server that was asked can answer; one over TCP, which is rare, gets a thread while it lasts.

use super::question::{HEADER, Question, Record, failure};
use super::resolver::INSIDE;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PORT: u16 = 53;
/// How long a server has, before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// Questions that are open at once; the oldest gives way.
const MOST_OPEN: usize = 256;
const MOST_CONNECTIONS: usize = 16;
const LARGEST: usize = 65535;

/// Sockets at 127.0.0.11, port 53.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds them in the network namespace of the calling thread.
    pub(super) fn bind() -> io::Result<Self> {
        let udp = UdpSocket::bind((INSIDE, PORT))?;
        let tcp = TcpListener::bind((INSIDE, PORT))?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp, tcp })
    }
}

/// Who knows names that no other server does.
pub(super) trait Lookup: Send + Sync + std::fmt::Debug {
    /// What is known of a name; none if it is not known.
    fn lookup(&self, question: &Question) -> Option<Vec<Record>>;
}

/// Names that are known here, if any.
type Names = Option<Arc<dyn Lookup>>;

/// Serves until dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `sockets` by asking `upstream`, from the network namespace of the calling thread.
    pub fn start(sockets: Sockets, upstream: Vec<SocketAddr>) -> io::Result<Self> {
        Self::start_with(sockets, upstream, None)
    }

    /// The same, with names of its own.
    pub(super) fn start_with(sockets: Sockets, upstream: Vec<SocketAddr>, names: Names) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut service = Service { sockets, names, upstream, open: Vec::new(), connections: Arc::default() };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("dns".into()).spawn(move || service.run(&stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An eventfd takes a one at any time, and the thread looks at nothing else for long.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A question that was passed on.
struct Open {
    question: Vec<u8>,
    client: SocketAddr,
    /// Which server it went to.
    server: usize,
    socket: UdpSocket,
    until: Instant,
}

struct Service {
    sockets: Sockets,
    names: Names,
    upstream: Vec<SocketAddr>,
    open: Vec<Open>,
    connections: Arc<AtomicUsize>,
}

impl Service {
    fn run(&mut self, stop: &OwnedFd) {
        loop {
            let mut fds = vec![
                PollFd::new(stop, PollFlags::IN),
                PollFd::new(&self.sockets.udp, PollFlags::IN),
                PollFd::new(&self.sockets.tcp, PollFlags::IN),
            ];
            fds.extend(self.open.iter().map(|open| PollFd::new(&open.socket, PollFlags::IN)));
            if poll(&mut fds, self.next_deadline().as_ref()).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                return;
            }
            self.answer(&ready[3..]);
            if ready[1] {
                self.ask();
            }
            if ready[2] {
                self.connect();
            }
        }
    }

    fn next_deadline(&self) -> Option<Timespec> {
        let first = self.open.iter().map(|open| open.until).min()?;
        let left = first.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Timespec::try_from(left).ok()
    }

    /// Takes new questions.
    fn ask(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok((count, client)) = self.sockets.udp.recv_from(&mut buffer) {
            let question = &buffer[..count];
            if let Some(answer) = own_answer(&self.names, question) {
                let _ = self.sockets.udp.send_to(&answer, client);
            } else if count >= HEADER {
                if self.open.len() >= MOST_OPEN {
                    self.open.remove(0);
                }
                self.pass_on(question.to_vec(), client, 0);
            }
        }
    }

    /// Asks a server, or the next one that can be asked; who asks nobody is told so.
    fn pass_on(&mut self, question: Vec<u8>, client: SocketAddr, first: usize) {
        for (server, address) in self.upstream.iter().enumerate().skip(first) {
            let Ok(socket) = socket_to(*address) else { continue };
            if socket.send(&question).is_ok() {
                self.open.push(Open { question, client, server, socket, until: Instant::now() + PATIENCE });
                return;
            }
        }
        let _ = self.sockets.udp.send_to(&failure(&question), client);
    }

    /// Takes answers; `ready` says which of the open questions have one.
    fn answer(&mut self, ready: &[bool]) {
        let now = Instant::now();
        let mut buffer = vec![0; LARGEST];
        let all = std::mem::take(&mut self.open);
        for (n, open) in all.into_iter().enumerate() {
            let received = if ready.get(n) == Some(&true) { Some(open.socket.recv(&mut buffer)) } else { None };
            match received {
                Some(Ok(count)) if is_answer(&open.question, &buffer[..count]) => {
                    let _ = self.sockets.udp.send_to(&buffer[..count], open.client);
                }
                // Refused: nobody listens there.
                Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                    self.pass_on(open.question, open.client, open.server + 1);
                }
                _ if open.until <= now => self.pass_on(open.question, open.client, open.server + 1),
                _ => self.open.push(open),
            }
        }
    }

    fn connect(&self) {
        while let Ok((stream, _)) = self.sockets.tcp.accept() {
            if self.connections.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
                self.connections.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (upstream, names) = (self.upstream.clone(), self.names.clone());
            let connections = Arc::clone(&self.connections);
            let serve = move || {
                // A connection that breaks is the client's to repeat.
                let _ = converse(stream, &upstream, &names);
                connections.fetch_sub(1, Ordering::Relaxed);
            };
            if std::thread::Builder::new().name("dns-tcp".into()).spawn(serve).is_err() {
                self.connections.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

fn own_answer(names: &Names, message: &[u8]) -> Option<Vec<u8>> {
    let names = names.as_ref()?;
    let question = Question::parse(message)?;
    Some(question.answer(message, &names.lookup(&question)?))
}

fn socket_to(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Whether the bytes answer the question: same number, and an answer.
fn is_answer(question: &[u8], bytes: &[u8]) -> bool {
    bytes.len() >= HEADER && bytes[..2] == question[..2] && bytes[2] & 0x80 != 0
}

/// Serves one connection, question by question.
fn converse(mut client: TcpStream, upstream: &[SocketAddr], names: &Names) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(IDLE))?;
    client.set_write_timeout(Some(IDLE))?;
    loop {
        let question = receive(&mut client)?;
        let answer = own_answer(names, &question)
            .or_else(|| upstream.iter().find_map(|server| exchange(*server, &question).ok()));
        send(&mut client, &answer.unwrap_or_else(|| failure(&question)))?;
    }
}

fn exchange(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    send(&mut stream, question)?;
    receive(&mut stream)
}

fn send(to: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_be_bytes()[..], message].concat())
}

fn receive(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    from.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    from.read_exact(&mut message)?;
    if message.len() < HEADER { Err(io::ErrorKind::InvalidData.into()) } else { Ok(message) }
}

#[cfg(test)]
mod tests {
    use super::super::question::tests::ask;
    use super::*;

    /// A name server on loopback, and its address.
    fn server(upstream: Vec<SocketAddr>, names: Names) -> (Server, SocketAddr) {
        // The same port for both protocols; another test may have either.
        let sockets = std::iter::repeat_with(|| {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let tcp = TcpListener::bind(udp.local_addr().unwrap()).ok()?;
            udp.set_nonblocking(true).and_then(|()| tcp.set_nonblocking(true)).unwrap();
            Some(Sockets { udp, tcp })
        });
        let sockets = sockets.take(100).flatten().next().expect("a port is free");
        let address = sockets.udp.local_addr().unwrap();
        (Server::start_with(sockets, upstream, names).unwrap(), address)
    }

    fn ask_udp(server: SocketAddr, question: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(IDLE)).unwrap();
        socket.send_to(question, server).unwrap();
        let mut buffer = vec![0; 4096];
        let (count, _) = socket.recv_from(&mut buffer).unwrap();
        buffer.truncate(count);
        buffer
    }

    #[derive(Debug)]
    struct One(&'static str, Ipv4Addr);

    impl Lookup for One {
        fn lookup(&self, question: &Question) -> Option<Vec<Record>> {
            (question.name == self.0).then(|| vec![Record::Address(self.1)])
        }
    }

    #[test]
    fn questions_go_to_the_first_server_that_listens() {
        let deaf = {
            let gone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            gone.local_addr().unwrap()
        };
        let (_far, upstream) = server(Vec::new(), Some(Arc::new(One("known", Ipv4Addr::new(192, 0, 2, 1)))));
        let (_near, address) = server(vec![deaf, upstream], None);
        assert!(ask_udp(address, &ask("known", 1)).ends_with(&[192, 0, 2, 1]));
        const SERVER_FAILURE: u8 = 2;
        assert_eq!(ask_udp(address, &ask("unknown", 1))[3] & 15, SERVER_FAILURE);
    }

    #[test]
    fn connections_are_served_too() {
        let (_far, upstream) = server(Vec::new(), Some(Arc::new(One("known", Ipv4Addr::new(192, 0, 2, 1)))));
        let (_near, address) = server(vec![upstream], Some(Arc::new(One("own", Ipv4Addr::new(192, 0, 2, 2)))));
        let mut stream = TcpStream::connect(address).unwrap();
        for (name, last) in [("known", 1), ("own", 2), ("known", 1)] {
            send(&mut stream, &ask(name, 1)).unwrap();
            assert!(receive(&mut stream).unwrap().ends_with(&[192, 0, 2, last]), "{name}");
        }
    }

    #[test]
    fn what_is_no_question_gets_no_answer() {
        let (_server, address) = server(Vec::new(), Some(Arc::new(One("own", Ipv4Addr::new(192, 0, 2, 2)))));
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for junk in [&b"x"[..], &[0; 11], &[0xff; 600]] {
            socket.send_to(junk, address).unwrap();
        }
        assert!(ask_udp(address, &ask("own", 1)).ends_with(&[192, 0, 2, 2]));
    }
}
