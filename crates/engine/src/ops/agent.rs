//! An ssh agent for a step: a socket of the step's own, and threads that pass on what comes in. The agent's own socket stays
//! what it is, and the agent sees the user of the build, whoever asks inside.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Connections at once; nobody needs more.
const MOST: usize = 32;
const NAME: &str = "agent";

/// Passes on while it lives.
#[derive(Debug)]
pub(super) struct Agent {
    listener: Arc<UnixListener>,
    path: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Ends the thread that waits on it.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
    }
}

impl Agent {
    /// Makes a socket in `directory` that leads to the one at `agent`.
    pub(super) fn forward(agent: &Path, directory: &Path) -> io::Result<Self> {
        // Names of sockets are short, and paths of stores are not.
        let place = File::open(directory)?;
        let listener = Arc::new(UnixListener::bind(format!("/proc/self/fd/{}/{NAME}", place.as_raw_fd()))?);
        let (accepting, agent) = (listener.clone(), agent.to_owned());
        std::thread::Builder::new().name("agent".into()).spawn(move || serve(&accepting, &agent))?;
        Ok(Self { listener, path: directory.join(NAME) })
    }

    /// Where the socket is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn serve(listener: &UnixListener, agent: &Path) {
    let open = Arc::new(AtomicUsize::new(0));
    while let Ok((inside, _)) = listener.accept() {
        if open.load(Ordering::Relaxed) >= MOST {
            continue;
        }
        let (open, agent) = (open.clone(), agent.to_owned());
        open.fetch_add(1, Ordering::Relaxed);
        // Where there is no thread or agent, the connection closes, as with an agent that has ended.
        let _ = std::thread::Builder::new().name("agent".into()).spawn(move || {
            let _ = connect(&inside, &agent);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Passes on in both directions, until both have ended.
fn connect(inside: &UnixStream, agent: &Path) -> io::Result<()> {
    let outside = UnixStream::connect(agent)?;
    std::thread::scope(|scope| {
        scope.spawn(|| pass(inside, &outside));
        pass(&outside, inside);
    });
    Ok(())
}

fn pass(mut from: &UnixStream, mut to: &UnixStream) {
    // Either side may go away; the other is told.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn questions_and_answers_go_through_and_the_socket_ends_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let real = UnixListener::bind(dir.path().join("real")).unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let agent = Agent::forward(&dir.path().join("real"), &inner).unwrap();
        let mut asked = UnixStream::connect(agent.path()).unwrap();
        let (mut answering, _) = real.accept().unwrap();
        asked.write_all(b"question").unwrap();
        let mut room = [0; 8];
        answering.read_exact(&mut room).unwrap();
        assert_eq!(&room, b"question");
        answering.write_all(b"answer").unwrap();
        drop(answering);
        let mut answer = String::new();
        asked.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
        let path = agent.path().to_owned();
        drop(agent);
        // The thread lets go of the socket when it has seen the end.
        while UnixStream::connect(&path).is_ok() {
            std::thread::yield_now();
        }
    }
}
