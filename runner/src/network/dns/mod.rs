//! A name server inside a network namespace, served from outside it.
//!
//! Names that its [`Lookup`] knows it answers itself. Other questions it passes on, as they are, to the servers that the
//! host itself asks, which may be on the host's loopback. Over UDP each goes through a socket of its own, so that
//! nobody but the server that was asked can answer.
//!
//! [`Service`] never blocks and has no thread: whoever owns it waits for its descriptors and gives it its turn. [`Server`]
//! is one with a thread that does this.

pub(super) mod question;
mod stream;

use super::resolver::INSIDE;
use question::{HEADER, Question, Record, failure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use stream::Stream;

const PORT: u16 = 53;
/// How long a server has, before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// Questions that are open at once; the oldest gives way.
const MOST_OPEN: usize = 256;
/// Connections that are open at once; the oldest gives way.
const MOST_STREAMS: usize = 16;
/// Longest message over UDP.
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
        Self::of(UdpSocket::bind((INSIDE, PORT))?, TcpListener::bind((INSIDE, PORT))?)
    }

    fn of(udp: UdpSocket, tcp: TcpListener) -> io::Result<Self> {
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

/// Where answers come from.
#[derive(Clone, Debug, Default)]
struct Sources {
    names: Option<Arc<dyn Lookup>>,
    upstream: Vec<SocketAddr>,
}

impl Sources {
    fn own_answer(&self, message: &[u8]) -> Option<Vec<u8>> {
        let names = self.names.as_ref()?;
        let question = Question::parse(message)?;
        Some(question.answer(message, &names.lookup(&question)?))
    }
}

/// A question that was passed on.
#[derive(Debug)]
struct Open {
    question: Vec<u8>,
    client: SocketAddr,
    /// Which server it went to.
    server: usize,
    socket: UdpSocket,
    until: Instant,
}

/// A name server that is to be waited for, in the network namespace from which it asks others.
#[derive(Debug)]
pub struct Service {
    sockets: Sockets,
    sources: Sources,
    open: Vec<Open>,
    streams: Vec<Stream>,
}

impl Service {
    /// Serves `sockets` by asking `upstream`.
    #[must_use]
    pub fn new(sockets: Sockets, upstream: Vec<SocketAddr>) -> Self {
        let sources = Sources { names: None, upstream };
        Self { sockets, sources, open: Vec::new(), streams: Vec::new() }
    }

    /// With names of its own.
    pub(super) fn with_names(mut self, names: Arc<dyn Lookup>) -> Self {
        self.sources.names = Some(names);
        self
    }

    /// What it waits for.
    pub fn waits_for(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let own = [self.sockets.udp.as_fd(), self.sockets.tcp.as_fd()];
        let open = self.open.iter().map(|open| open.socket.as_fd());
        let streams = self.streams.iter().flat_map(Stream::waits_for);
        own.into_iter().chain(open).map(|fd| (fd, PollFlags::IN)).chain(streams)
    }

    /// Until when it waits at most.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let open = self.open.iter().map(|open| open.until);
        open.chain(self.streams.iter().map(Stream::deadline)).min()
    }

    /// Does what can be done without waiting.
    pub fn turn(&mut self) {
        self.take_answers();
        self.take_questions();
        while let Ok((client, _)) = self.sockets.tcp.accept() {
            if self.streams.len() >= MOST_STREAMS {
                self.streams.remove(0);
            }
            self.streams.extend(Stream::new(client));
        }
        let sources = &self.sources;
        self.streams.retain_mut(|stream| stream.turn(sources));
    }

    fn take_questions(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok((count, client)) = self.sockets.udp.recv_from(&mut buffer) {
            let question = &buffer[..count];
            if let Some(answer) = self.sources.own_answer(question) {
                let _ = self.sockets.udp.send_to(&answer, client);
            } else if count >= HEADER {
                if self.open.len() >= MOST_OPEN {
                    self.open.remove(0);
                }
                self.pass_on(question.to_vec(), client, 0);
            }
        }
    }

    /// Asks a server, or the next one that can be asked; where there is none, the client is told so.
    fn pass_on(&mut self, question: Vec<u8>, client: SocketAddr, first: usize) {
        for (server, address) in self.sources.upstream.iter().enumerate().skip(first) {
            let Ok(socket) = socket_to(*address) else { continue };
            if socket.send(&question).is_ok() {
                self.open.push(Open { question, client, server, socket, until: Instant::now() + PATIENCE });
                return;
            }
        }
        let _ = self.sockets.udp.send_to(&failure(&question), client);
    }

    fn take_answers(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut buffer = vec![0; LARGEST];
        for open in std::mem::take(&mut self.open) {
            match open.socket.recv(&mut buffer) {
                Ok(count) if is_answer(&open.question, &buffer[..count]) => {
                    let _ = self.sockets.udp.send_to(&buffer[..count], open.client);
                }
                // Refused: nobody listens there.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    self.pass_on(open.question, open.client, open.server + 1);
                }
                _ if open.until <= now => self.pass_on(open.question, open.client, open.server + 1),
                _ => self.open.push(open),
            }
        }
    }
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

/// A service with a thread, until it is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves from the network namespace of the calling thread.
    pub fn start(service: Service) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("dns".into()).spawn(move || serve(service, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An eventfd takes a one at any time, and the thread never blocks elsewhere.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut service: Service, stop: &OwnedFd) {
    loop {
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        fds.extend(service.waits_for().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let left = service.deadline().map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let answer = poll(&mut fds, left.and_then(|left| Timespec::try_from(left).ok()).as_ref());
        if answer.is_ok() && !fds[0].revents().is_empty() {
            return;
        }
        service.turn();
    }
}

#[cfg(test)]
mod tests {
    use super::question::tests::ask;
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    /// Longer than anything takes.
    const LONG: Duration = Duration::from_secs(20);

    #[derive(Debug)]
    struct One(&'static str, Ipv4Addr);

    impl Lookup for One {
        fn lookup(&self, question: &Question) -> Option<Vec<Record>> {
            (question.name == self.0).then(|| vec![Record::Address(self.1)])
        }
    }

    /// A name server on loopback that knows a name, and its address.
    fn server(upstream: Vec<SocketAddr>, name: &'static str, last: u8) -> (Server, SocketAddr) {
        // The same port for both protocols; another test may have either.
        let sockets = std::iter::repeat_with(|| {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let tcp = TcpListener::bind(udp.local_addr().unwrap()).ok()?;
            Some(Sockets::of(udp, tcp).unwrap())
        });
        let sockets = sockets.take(100).flatten().next().expect("a port is free");
        let address = sockets.udp.local_addr().unwrap();
        let names = Arc::new(One(name, Ipv4Addr::new(192, 0, 2, last)));
        (Server::start(Service::new(sockets, upstream).with_names(names)).unwrap(), address)
    }

    fn ask_udp(server: SocketAddr, question: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket.send_to(question, server).unwrap();
        let mut buffer = vec![0; 4096];
        let (count, _) = socket.recv_from(&mut buffer).unwrap();
        buffer.truncate(count);
        buffer
    }

    fn ask_tcp(stream: &mut TcpStream, question: &[u8]) -> Vec<u8> {
        let length = u16::try_from(question.len()).unwrap().to_be_bytes();
        stream.set_read_timeout(Some(LONG)).unwrap();
        // In two pieces, as a network may deliver it.
        stream.write_all(&length[..1]).unwrap();
        stream.write_all(&[&length[1..], question].concat()).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).unwrap();
        answer
    }

    fn code(answer: &[u8]) -> u8 {
        answer[3] & 15
    }

    const SERVER_FAILURE: u8 = 2;

    /// An address where nobody listens.
    fn deaf() -> SocketAddr {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
    }

    #[test]
    fn questions_go_to_the_first_server_that_listens() {
        let (_far, upstream) = server(Vec::new(), "known", 1);
        let (_near, address) = server(vec![deaf(), upstream], "own", 2);
        assert!(ask_udp(address, &ask("known", 1)).ends_with(&[192, 0, 2, 1]));
        assert!(ask_udp(address, &ask("own", 1)).ends_with(&[192, 0, 2, 2]));
        assert_eq!(code(&ask_udp(address, &ask("unknown", 1))), SERVER_FAILURE);
    }

    #[test]
    fn connections_are_served_too() {
        let (_far, upstream) = server(Vec::new(), "known", 1);
        let (_near, address) = server(vec![deaf(), upstream], "own", 2);
        let mut stream = TcpStream::connect(address).unwrap();
        for (name, last) in [("known", 1), ("own", 2), ("known", 1)] {
            assert!(ask_tcp(&mut stream, &ask(name, 1)).ends_with(&[192, 0, 2, last]), "{name}");
        }
        assert_eq!(code(&ask_tcp(&mut stream, &ask("unknown", 1))), SERVER_FAILURE);
        let (_alone, address) = server(Vec::new(), "own", 2);
        let mut stream = TcpStream::connect(address).unwrap();
        assert_eq!(code(&ask_tcp(&mut stream, &ask("unknown", 1))), SERVER_FAILURE);
    }

    #[test]
    fn many_connections_do_not_stop_it() {
        let (_server, address) = server(Vec::new(), "own", 2);
        let mut all: Vec<_> = (0..MOST_STREAMS * 3).map(|_| TcpStream::connect(address).unwrap()).collect();
        let last = all.last_mut().unwrap();
        assert!(ask_tcp(last, &ask("own", 1)).ends_with(&[192, 0, 2, 2]));
    }

    #[test]
    fn what_is_no_question_gets_no_answer() {
        let (_server, address) = server(Vec::new(), "own", 2);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for junk in [&b"x"[..], &[0; 11], &[0xff; 600]] {
            socket.send_to(junk, address).unwrap();
        }
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&[0, 3, 1, 2, 3]).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "the connection is closed");
        assert!(ask_udp(address, &ask("own", 1)).ends_with(&[192, 0, 2, 2]));
    }
}
