//! A live view: finished steps scroll away above, running ones with their last lines of output stay below.

use super::{Lines, Renderer, bytes, harmless};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::time::{Duration, Instant};
use xbuild_engine::event::{Event, EventKind, StepId};

/// Lines of output shown under a running step.
const TAIL: usize = 6;

#[derive(Default)]
pub(super) struct Tty {
    steps: BTreeMap<StepId, Step>,
    /// Lines of the lower part on the screen.
    drawn: usize,
    began: Option<Instant>,
    finished: usize,
    cached: usize,
    total: usize,
}

#[derive(Default)]
struct Step {
    name: String,
    started: Option<Duration>,
    logs: [Lines; 2],
    tail: VecDeque<String>,
    transfers: BTreeMap<String, (u64, u64)>,
}

impl Renderer for Tty {
    fn event(&mut self, event: &Event, out: &mut dyn Write) -> io::Result<()> {
        self.began.get_or_insert_with(Instant::now);
        if let EventKind::Named(name) = &event.kind {
            self.total += 1;
            self.steps.insert(event.step, Step { name: name.clone(), ..Step::default() });
            return Ok(());
        }
        let Some(step) = self.steps.get_mut(&event.step) else {
            return Ok(());
        };
        match &event.kind {
            EventKind::Named(_) => {}
            EventKind::Started => step.started = Some(event.at),
            EventKind::Log { stream, data } => {
                let tail = &mut step.tail;
                step.logs[usize::from(*stream == 2)].push(data, |line| {
                    tail.push_back(harmless(line).into_owned());
                    if tail.len() > TAIL {
                        tail.pop_front();
                    }
                });
            }
            EventKind::Note(text) => step.tail.push_back(harmless(text).into_owned()),
            EventKind::Transfer { name, current, total } => {
                step.transfers.insert(name.clone(), (*current, *total));
            }
            EventKind::Warning { short, .. } => self.scroll(&format!(" \x1b[33m!\x1b[0m {}", harmless(short)), out)?,
            EventKind::Cached => {
                self.cached += 1;
                self.end(event, "\x1b[34mCACHED\x1b[0m", out)?;
            }
            EventKind::Done => self.end(event, "", out)?,
            EventKind::Failed(_) => self.end(event, "\x1b[31mERROR\x1b[0m", out)?,
            EventKind::Cancelled => self.end(event, "CANCELED", out)?,
        }
        Ok(())
    }

    fn tick(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let width = width();
        let now = self.began.map_or(Duration::ZERO, |b| b.elapsed());
        let mut lines = vec![format!("[+] Building {:.1}s ({}/{})", now.as_secs_f64(), self.finished, self.total)];
        for step in self.steps.values() {
            let Some(started) = step.started else {
                continue;
            };
            let seconds = now.saturating_sub(started).as_secs_f64();
            lines.push(format!(" => {} {seconds:>6.1}s", harmless(&step.name)));
            for (name, (current, total)) in &step.transfers {
                let bar = if *total > 0 { bar(*current, *total) } else { String::new() };
                lines.push(format!(" => => {} {bar} {}", harmless(name), bytes(*current)));
            }
            lines.extend(step.tail.iter().map(|line| format!(" => => # {line}")));
        }
        self.erase(out)?;
        lines.truncate(40);
        for line in &lines {
            let short: String = line.chars().take(width).collect();
            writeln!(out, "{short}")?;
        }
        self.drawn = lines.len();
        out.flush()
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.erase(out)?;
        let seconds = self.began.map_or(0.0, |b| b.elapsed().as_secs_f64());
        writeln!(out, "[+] Built in {seconds:.1}s ({} steps, {} cached)", self.finished, self.cached)
    }
}

impl Tty {
    fn end(&mut self, event: &Event, word: &str, out: &mut dyn Write) -> io::Result<()> {
        let Some(step) = self.steps.remove(&event.step) else {
            return Ok(());
        };
        self.finished += 1;
        let seconds = step.started.map_or(0.0, |s| event.at.saturating_sub(s).as_secs_f64());
        let gap = if word.is_empty() { "" } else { " " };
        self.scroll(&format!(" => {word}{gap}{} {seconds:.1}s", harmless(&step.name)), out)
    }

    /// A line above the live part.
    fn scroll(&mut self, line: &str, out: &mut dyn Write) -> io::Result<()> {
        self.erase(out)?;
        writeln!(out, "{line}")
    }

    fn erase(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.drawn > 0 {
            write!(out, "\x1b[{}A\x1b[J", self.drawn)?;
            self.drawn = 0;
        }
        Ok(())
    }
}

fn bar(current: u64, total: u64) -> String {
    const WIDTH: u64 = 20;
    let full = (current.min(total) * WIDTH).checked_div(total).unwrap_or(0) as usize;
    format!("[{}{}]", "=".repeat(full), " ".repeat(WIDTH as usize - full))
}

fn width() -> usize {
    // A terminal that does not know its size says 0.
    let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
    if columns == 0 { 100 } else { columns.max(20) }
}
