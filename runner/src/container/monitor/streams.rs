//! Input and output on their way between processes, clients and the log.

use super::clients::Client;
use super::{CHUNK, Interest, Monitor, Other, PROBE_OUTPUT, Part, Purpose, WATERMARK};
use crate::container::child::Child;
use crate::container::log::Stream;
use crate::container::wire::{self, Tag};
use rustix::io::Errno;

impl Monitor {
    pub(super) fn takes_input(&self, client: &Client) -> bool {
        let full = |child: &Child| child.streams.input.len() > WATERMARK;
        match client.interest {
            Interest::Other(key) => !self.others.get(&key).is_some_and(|other| full(&other.child)),
            _ => !self.main.as_ref().is_some_and(full),
        }
    }

    /// Whether a client of the process is behind.
    pub(super) fn is_blocked(&self, key: Option<u64>) -> bool {
        self.listeners(key).any(|(_, client)| client.outbox.len() > WATERMARK)
    }

    pub(super) fn listeners(&self, key: Option<u64>) -> impl Iterator<Item = (&u64, &Client)> {
        let wanted = key.map_or(Interest::Main, Interest::Other);
        self.clients.iter().filter(move |(_, client)| client.interest == wanted)
    }

    /// Passes input on to the client's process. Its end is passed on where the process was started for that.
    pub(super) fn feed(&mut self, key: u64, data: &[u8]) {
        let Some(client) = self.clients.get(&key) else {
            return;
        };
        if !client.streams.stdin {
            return;
        }
        let (child, once) = match client.interest {
            Interest::Other(other) => (self.others.get_mut(&other).map(|other| &mut other.child), true),
            _ => (self.main.as_mut(), self.container.config.stdin_once),
        };
        let Some(child) = child else {
            return;
        };
        if data.is_empty() {
            child.streams.input_ends |= once && !child.streams.terminal;
        }
        child.streams.feed(data);
        child.streams.push();
    }

    pub(super) fn serve_child(&mut self, key: Option<u64>, part: Part) {
        let child = match key {
            None => self.main.as_mut(),
            Some(key) => self.others.get_mut(&key).map(|other| &mut other.child),
        };
        let Some(child) = child else {
            return;
        };
        match part {
            Part::Session => child.take_report(),
            Part::Process => child.take_end(),
            Part::Console => {
                // Without a terminal there is no output; the process's end tells the rest.
                let _ = child.streams.take_console();
                child.streams.push();
            }
            Part::Stdin => child.streams.push(),
            Part::Stdout => self.pass_on(key, Stream::Stdout),
            Part::Stderr => self.pass_on(key, Stream::Stderr),
        }
    }

    /// Passes output on: to the log, and to clients.
    pub(super) fn pass_on(&mut self, key: Option<u64>, stream: Stream) {
        let mut buffer = [0; CHUNK];
        let child = match key {
            None => self.main.as_mut(),
            Some(key) => self.others.get_mut(&key).map(|other| &mut other.child),
        };
        let Some(child) = child else {
            return;
        };
        let from = match stream {
            Stream::Stdout => &mut child.streams.stdout,
            Stream::Stderr => &mut child.streams.stderr,
        };
        let Some(fd) = from else {
            return;
        };
        let data = match rustix::io::read(&*fd, &mut buffer) {
            Ok(0) => &[],
            Ok(count) => &buffer[..count],
            Err(Errno::INTR | Errno::AGAIN) => return,
            // A terminal whose last user is gone says so.
            Err(_) => &[],
        };
        if data.is_empty() {
            *from = None;
            return;
        }
        match key {
            None => {
                if let Some(log) = &mut self.log {
                    // A full disk must not stop the container.
                    let _ = log.write(stream, data);
                }
            }
            Some(key) => {
                if let Some(Other { purpose: Purpose::Probe { output, .. }, .. }) = self.others.get_mut(&key) {
                    let room = PROBE_OUTPUT.saturating_sub(output.len());
                    output.extend(&data[..data.len().min(room)]);
                }
            }
        }
        let wanted = key.map_or(Interest::Main, Interest::Other);
        let tag = if stream == Stream::Stdout { Tag::Stdout } else { Tag::Stderr };
        for client in self.clients.values_mut().filter(|client| client.interest == wanted) {
            let wants = if stream == Stream::Stdout { client.streams.stdout } else { client.streams.stderr };
            if wants {
                client.outbox.extend(wire::frame(tag, data));
                client.push();
            }
        }
    }
}
