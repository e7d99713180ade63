//! One connection of a name server: question by question, each answered from here or by another server.

use super::question::{HEADER, failure};
use super::{PATIENCE, Sources};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);

/// A socket with messages on their way in and out. Each message has its length before it.
#[derive(Debug)]
struct Pipe {
    socket: OwnedFd,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    closed: bool,
}

impl Pipe {
    fn new(socket: OwnedFd) -> Self {
        Self { socket, inbox: Vec::new(), outbox: Vec::new(), closed: false }
    }

    fn flags(&self) -> PollFlags {
        if self.outbox.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    fn put(&mut self, message: &[u8]) {
        // Longer ones do not come in either.
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        self.outbox.extend_from_slice(&length.to_be_bytes());
        self.outbox.extend_from_slice(&message[..usize::from(length)]);
    }

    /// The next whole message.
    fn take(&mut self) -> Option<Vec<u8>> {
        let length = usize::from(u16::from_be_bytes([*self.inbox.first()?, *self.inbox.get(1)?]));
        let message = self.inbox.get(2..2 + length)?.to_vec();
        self.inbox.drain(..2 + length);
        Some(message)
    }

    fn flow(&mut self) {
        let mut buffer = [0; 4096];
        while !self.outbox.is_empty() {
            match send(&self.socket, &self.outbox, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(Errno::INTR) => {}
                // Not yet connected counts as full.
                Err(Errno::AGAIN | Errno::NOTCONN) => break,
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
        while self.inbox.len() <= usize::from(u16::MAX) {
            match recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    self.closed = true;
                    return;
                }
                Ok((count, _)) => self.inbox.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOTCONN) => return,
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }
}

/// A question that another server was asked.
#[derive(Debug)]
struct Asked {
    question: Vec<u8>,
    server: usize,
    pipe: Pipe,
    until: Instant,
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Stream {
    client: Pipe,
    asked: Option<Asked>,
    until: Instant,
}

impl Stream {
    /// A connection that was just accepted.
    pub(super) fn new(client: TcpStream) -> Option<Self> {
        client.set_nonblocking(true).ok()?;
        Some(Self { client: Pipe::new(client.into()), asked: None, until: Instant::now() + IDLE })
    }

    pub(super) fn waits_for(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let pipes = [Some(&self.client), self.asked.as_ref().map(|asked| &asked.pipe)];
        pipes.into_iter().flatten().map(|pipe| (pipe.socket.as_fd(), pipe.flags()))
    }

    pub(super) fn deadline(&self) -> Instant {
        self.asked.as_ref().map_or(self.until, |asked| asked.until)
    }

    /// Does what can be done without waiting; false when the connection is over.
    pub(super) fn turn(&mut self, sources: &Sources) -> bool {
        self.client.flow();
        loop {
            if let Some(asked) = &mut self.asked {
                asked.pipe.flow();
                match asked.pipe.take() {
                    Some(answer) => {
                        self.client.put(&answer);
                        self.asked = None;
                    }
                    None if asked.pipe.closed || asked.until <= Instant::now() => {
                        let (question, next) = (std::mem::take(&mut asked.question), asked.server + 1);
                        self.pass_on(question, next, sources);
                    }
                    None => break,
                }
                continue;
            }
            let Some(question) = self.client.take() else { break };
            self.until = Instant::now() + IDLE;
            match sources.own_answer(&question) {
                Some(answer) => self.client.put(&answer),
                None if question.len() < HEADER => return false,
                None => self.pass_on(question, 0, sources),
            }
        }
        self.client.flow();
        !self.client.closed && (self.asked.is_some() || self.until > Instant::now())
    }

    /// Asks a server, or the next one that can be asked; where there is none, the client is told so.
    fn pass_on(&mut self, question: Vec<u8>, first: usize, sources: &Sources) {
        let mut servers = sources.upstream.iter().enumerate().skip(first);
        self.asked = servers.find_map(|(server, address)| {
            let mut pipe = Pipe::new(connection_to(*address).ok()?);
            pipe.put(&question);
            Some(Asked { question: question.clone(), server, pipe, until: Instant::now() + PATIENCE })
        });
        if self.asked.is_none() {
            self.client.put(&failure(&question));
        }
    }
}

/// A connection that is being made.
fn connection_to(server: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(&socket, &server) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}
