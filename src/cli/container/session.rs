//! The user's terminal or pipes at one end, a process of a container at the other.

use anyhow::{Context, Result, bail};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use xbuild_runner::container::{Answer, Connection, Event, Request};

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The process has ended.
    Exited(i32),
    /// The user has left it.
    Detached,
    /// It could not be started: why, and the code that stands for it.
    Failed(String, u8),
}

/// What a session is made of.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connection: Connection,
    /// The process has a terminal.
    pub(crate) terminal: bool,
    /// Pass standard input on.
    pub(crate) stdin: bool,
    /// Keys that leave it; `ctrl-p,ctrl-q` when nothing is said.
    pub(crate) detach_keys: Option<String>,
    /// Pass signals on.
    pub(crate) proxy: bool,
}

/// Puts the user's terminal back when dropped.
struct Raw(Termios);

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal is gone if this fails.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// A process with a terminal whose input is passed on needs one here.
pub(crate) fn check_terminal(tty: bool, stdin: bool) -> Result<()> {
    if tty && stdin && !std::io::stdin().is_terminal() {
        bail!("the input device is not a TTY");
    }
    Ok(())
}

/// Rows and columns of the user's terminal.
pub(crate) fn size() -> Option<(u16, u16)> {
    let of = |size: rustix::termios::Winsize| (size.ws_row, size.ws_col);
    tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())).ok().map(of)
}

impl Session {
    /// Passes everything on until the process ends or the user leaves.
    pub(crate) fn run(self) -> Result<Ended> {
        let keys = detach_keys(self.detach_keys.as_deref())?;
        let raw = if self.terminal && self.stdin && isatty(std::io::stdin()) { Some(make_raw()?) } else { None };
        let left = Arc::new(AtomicBool::new(false));
        if self.stdin {
            let (connection, left, terminal) = (self.connection.clone(), left.clone(), self.terminal);
            // Blocks on standard input; it ends with the program.
            std::thread::spawn(move || forward_input(&connection, &left, if terminal { &keys } else { &[] }));
        }
        if self.terminal || self.proxy {
            forward_signals(self.connection.clone(), self.terminal, self.proxy && !self.terminal)?;
        }
        let ended = forward_output(&self.connection, &left);
        drop(raw);
        ended
    }
}

fn make_raw() -> Result<Raw> {
    let own = tcgetattr(std::io::stdin()).context("cannot read the terminal's settings")?;
    let mut raw = own.clone();
    raw.make_raw();
    tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw).context("cannot set the terminal")?;
    Ok(Raw(own))
}

fn forward_output(connection: &Connection, left: &AtomicBool) -> Result<Ended> {
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    // Nobody may read any more; the process goes on all the same.
    let (mut out_open, mut err_open) = (true, true);
    loop {
        match connection.next() {
            Ok(Some(Event::Stdout(data))) => {
                out_open = out_open && out.write_all(&data).and_then(|()| out.flush()).is_ok()
            }
            Ok(Some(Event::Stderr(data))) => err_open = err_open && err.write_all(&data).is_ok(),
            Ok(Some(Event::Answer(Answer::Exited { code }))) => return Ok(Ended::Exited(code)),
            Ok(Some(Event::Answer(Answer::Failed { message, code }))) => return Ok(Ended::Failed(message, code)),
            Ok(Some(Event::Answer(Answer::Refused(why)))) => bail!(why),
            Ok(Some(Event::Answer(_))) => {}
            Ok(None) | Err(_) if left.load(Ordering::SeqCst) => return Ok(Ended::Detached),
            Ok(None) => bail!("the container's monitor ended unexpectedly"),
            Err(error) => return Err(error.into()),
        }
    }
}

fn forward_input(connection: &Connection, left: &AtomicBool, keys: &[u8]) {
    let mut buffer = vec![0; 32 << 10];
    let mut watch = Watch { keys, matched: 0 };
    loop {
        let data = match rustix::io::read(std::io::stdin(), &mut buffer) {
            Ok(0) => &[],
            Ok(count) => &buffer[..count],
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
            Err(_) => &[],
        };
        if data.is_empty() {
            // The process may have ended before its input.
            let _ = connection.feed(&[]);
            return;
        }
        let (passed, leaves) = watch.filter(data);
        if !passed.is_empty() && connection.feed(&passed).is_err() {
            return;
        }
        if leaves {
            left.store(true, Ordering::SeqCst);
            connection.hang_up();
            return;
        }
    }
}

/// Looks for the keys that detach, and holds back what may be their beginning.
struct Watch<'a> {
    keys: &'a [u8],
    matched: usize,
}

impl Watch<'_> {
    fn filter(&mut self, data: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(data.len());
        for byte in data {
            if self.keys.get(self.matched) == Some(byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return (passed, true);
                }
                continue;
            }
            passed.extend(&self.keys[..self.matched]);
            self.matched = 0;
            if self.keys.first() == Some(byte) {
                self.matched = 1;
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

/// Bytes of `ctrl-p,ctrl-q`.
fn detach_keys(text: Option<&str>) -> Result<Vec<u8>> {
    let text = text.unwrap_or("ctrl-p,ctrl-q");
    let one = |key: &str| match (key.strip_prefix("ctrl-"), key.as_bytes()) {
        (Some(control), _) => match control.as_bytes() {
            [letter @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')] => {
                Ok(letter.to_ascii_uppercase() & 0x1f)
            }
            _ => bail!("invalid detach keys ({text}): unknown character: '{key}'"),
        },
        (None, [plain]) => Ok(*plain),
        _ => bail!("invalid detach keys ({text}): unknown character: '{key}'"),
    };
    if text.is_empty() { Ok(Vec::new()) } else { text.split(',').map(one).collect() }
}

/// Passes changes of the terminal's size on, and signals that would end this program.
fn forward_signals(connection: Connection, terminal: bool, proxy: bool) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    const PROXIED: [i32; 10] = [1, 2, 3, 10, 12, 14, 15, 18, 21, 22];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot watch signals")?;
    let (ready, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let (sender, mut receiver) = tokio::sync::mpsc::channel(16);
            let kinds = PROXIED.iter().filter(|_| proxy).copied().chain(terminal.then_some(28));
            for number in kinds {
                let Ok(mut stream) = signal(SignalKind::from_raw(number)) else {
                    continue;
                };
                let sender = sender.clone();
                tokio::spawn(
                    async move { while stream.recv().await.is_some() && sender.send(number).await.is_ok() {} },
                );
            }
            // Whoever started this may go on: handlers are there.
            let _ = ready.send(());
            while let Some(number) = receiver.recv().await {
                let sent = match (number, size()) {
                    (28, Some((rows, columns))) => connection.send(&Request::Resize(rows, columns)),
                    (28, None) => Ok(()),
                    (number, _) => connection.send(&Request::Signal(number)),
                };
                if sent.is_err() {
                    return;
                }
            }
        });
    });
    // An error only means that the thread is gone.
    let _ = wait.recv();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_across_reads_and_given_back() {
        let keys = detach_keys(None).unwrap();
        assert_eq!(keys, [0x10, 0x11]);
        let mut watch = Watch { keys: &keys, matched: 0 };
        assert_eq!(watch.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(watch.filter(b"c\x10"), (b"\x10c".to_vec(), false));
        assert_eq!(watch.filter(b"\x10"), (b"\x10".to_vec(), false));
        assert_eq!(watch.filter(b"\x11rest"), (Vec::new(), true));
        assert_eq!(detach_keys(Some("ctrl-x,z")).unwrap(), [0x18, b'z']);
        assert!(detach_keys(Some("ctrl-,")).is_err());
        assert!(Watch { keys: &[], matched: 0 }.filter(b"\x10\x11").0 == b"\x10\x11");
    }
}
