//! A server of files on loopback.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What is answered for a path.
#[derive(Clone, Debug)]
pub enum Reply {
    /// 200 and these bytes, with an ETag.
    File(Vec<u8>),
    /// Another status without a body.
    Status(u16),
    /// The same with a header, as `Location: /elsewhere`.
    Header(u16, String),
    /// A length that is greater than what follows.
    Cut(Vec<u8>),
}

/// Serves files over HTTP on a loopback port; ends when dropped.
#[derive(Debug)]
pub struct FileServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    replies: Mutex<BTreeMap<String, Reply>>,
    requests: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl FileServer {
    /// Starts it without any file.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if own.stop.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away early is none of our business.
                let _ = answer(stream, &own);
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// Sets what is at a path that begins with `/`, and gives its address.
    pub fn put(&self, path: &str, reply: Reply) -> String {
        self.shared.replies.lock().expect("no holder panics").insert(path.to_owned(), reply);
        format!("http://{}{path}", self.address)
    }

    /// First lines of the requests until now.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().expect("no holder panics").clone()
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the thread; it ends with the process otherwise.
        if TcpStream::connect(self.address).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut known = None;
    for line in lines {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        known = line.strip_prefix("if-none-match:").map(|tag| tag.trim().to_owned()).or(known);
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let reply = shared.replies.lock().expect("no holder panics").get(path).cloned().unwrap_or(Reply::Status(404));
    shared.requests.lock().expect("no holder panics").push(first.clone());
    let (status, length, body) = match reply {
        Reply::Status(status) => (status, 0, Vec::new()),
        Reply::Header(status, header) => {
            return write!(stream, "HTTP/1.1 {status} -\r\n{header}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        Reply::Cut(bytes) => (200, bytes.len() + 1000, bytes),
        Reply::File(bytes) => (200, bytes.len(), bytes),
    };
    let tag = format!("\"{}\"", &crate::hex(&body)[..16]);
    if status == 200 && known.as_deref() == Some(tag.as_str()) {
        return write!(stream, "HTTP/1.1 304 OK\r\nETag: {tag}\r\nConnection: close\r\n\r\n");
    }
    write!(stream, "HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nETag: {tag}\r\nConnection: close\r\n\r\n")?;
    if !first.starts_with("HEAD ") {
        stream.write_all(&body)?;
    }
    stream.flush()
}
