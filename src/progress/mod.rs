//! Showing what a build does: plain lines, a live terminal view, JSON lines, or nothing.

mod plain;
mod rawjson;
mod tty;

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use xbuild_engine::event::{Event, Sink};

/// `--progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// `tty` in a terminal, `plain` elsewhere.
    #[default]
    #[value(alias = "")]
    Auto,
    /// A live view.
    Tty,
    /// Lines, as BuildKit writes them.
    Plain,
    /// One JSON object a line, as `buildctl --progress=rawjson`.
    Rawjson,
    /// Only the result.
    Quiet,
    /// Nothing.
    None,
}

/// A renderer: takes events, and draws where it wants to.
trait Renderer: Send {
    fn event(&mut self, event: &Event, out: &mut dyn Write) -> std::io::Result<()>;
    /// Called about ten times a second.
    fn tick(&mut self, _out: &mut dyn Write) -> std::io::Result<()> {
        Ok(())
    }
    fn finish(&mut self, _out: &mut dyn Write) -> std::io::Result<()> {
        Ok(())
    }
}

/// The progress of one build on standard error.
pub(crate) struct Progress {
    renderer: Arc<Mutex<Box<dyn Renderer>>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    ticker: Option<std::thread::JoinHandle<()>>,
}

struct Silent;

impl Renderer for Silent {
    fn event(&mut self, _: &Event, _: &mut dyn Write) -> std::io::Result<()> {
        Ok(())
    }
}

impl Progress {
    pub(crate) fn start(mode: Mode) -> Self {
        let live = mode == Mode::Tty || (mode == Mode::Auto && std::io::stderr().is_terminal());
        let renderer: Box<dyn Renderer> = match mode {
            Mode::Quiet | Mode::None => Box::new(Silent),
            Mode::Rawjson => Box::new(rawjson::RawJson::default()),
            _ if live => Box::new(tty::Tty::default()),
            _ => Box::new(plain::Plain::default()),
        };
        let renderer = Arc::new(Mutex::new(renderer));
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let ticker = live.then(|| {
            let (renderer, stop) = (renderer.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    let mut renderer = renderer.lock().unwrap_or_else(PoisonError::into_inner);
                    // A closed terminal does not stop the build.
                    let _ = at_once(|out| renderer.tick(out));
                }
            })
        });
        Self { renderer, stop, ticker }
    }

    /// Where the engine sends its events.
    pub(crate) fn sink(&self) -> Arc<Sink> {
        let renderer = self.renderer.clone();
        Arc::new(move |event| {
            let mut renderer = renderer.lock().unwrap_or_else(PoisonError::into_inner);
            // A reader of our output that went away does not stop the build.
            let _ = at_once(|out| renderer.event(&event, out));
        })
    }

    /// Draws the end.
    pub(crate) fn finish(mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(ticker) = self.ticker.take() {
            // It only sleeps and draws.
            let _ = ticker.join();
        }
        let mut renderer = self.renderer.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = at_once(|out| renderer.finish(out));
    }
}

/// Draws to the terminal in one write: standard error keeps nothing back by itself.
fn at_once(draw: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut drawn = Vec::new();
    draw(&mut drawn)?;
    std::io::stderr().lock().write_all(&drawn)
}

/// `12.4MB`, with decimal prefixes as Docker shows transfers.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n}B"),
        _ if value < 10.0 => format!("{value:.2}{}", UNITS[unit]),
        _ if value < 100.0 => format!("{value:.1}{}", UNITS[unit]),
        _ => format!("{value:.0}{}", UNITS[unit]),
    }
}

/// Control characters other than tab become visible, so that nothing printed by a step moves the cursor.
pub(crate) fn harmless(line: &str) -> std::borrow::Cow<'_, str> {
    let bad = |c: char| (c.is_control() && c != '\t') || ('\u{202a}'..='\u{202e}').contains(&c);
    if !line.contains(bad) {
        return line.into();
    }
    line.chars()
        .flat_map(|c| if bad(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect::<String>()
        .into()
}

/// Cuts a byte stream into lines, holding back what is not ended; a carriage return ends a line, too.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Longest line that is held back, in bytes.
    const MAX: usize = 64 << 10;

    fn push(&mut self, data: &[u8], mut line: impl FnMut(&str)) {
        for piece in data.split_inclusive(|b| *b == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.rest.len() > Self::MAX {
                self.flush(&mut line);
            }
        }
    }

    fn flush(&mut self, mut line: impl FnMut(&str)) {
        if !self.rest.is_empty() {
            let text = String::from_utf8_lossy(&self.rest);
            let text = text.trim_end_matches(['\n', '\r']);
            line(text.rsplit('\r').next().unwrap_or(text));
            self.rest.clear();
        }
    }
}
