//! BuildKit's line format.

use super::{Lines, Renderer, bytes, harmless};
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;
use xbuild_engine::event::{Event, EventKind, StepId};

#[derive(Default)]
pub(super) struct Plain {
    steps: HashMap<StepId, Step>,
    shown: u32,
    last: Option<StepId>,
}

#[derive(Default)]
struct Step {
    name: String,
    /// Number in the display, given when the step is first shown.
    number: Option<u32>,
    started: Duration,
    logs: [Lines; 2],
    transfers: HashMap<String, u64>,
}

impl Renderer for Plain {
    fn event(&mut self, event: &Event, out: &mut dyn Write) -> io::Result<()> {
        if let EventKind::Named(name) = &event.kind {
            self.steps.insert(event.step, Step { name: name.clone(), ..Step::default() });
            return Ok(());
        }
        let number = self.header(event.step, out)?;
        let Some(step) = self.steps.get_mut(&event.step) else {
            return Ok(());
        };
        let seconds = event.at.saturating_sub(step.started).as_secs_f64();
        match &event.kind {
            EventKind::Named(_) => {}
            EventKind::Started => step.started = event.at,
            EventKind::Cached => writeln!(out, "#{number} CACHED\n")?,
            EventKind::Done => {
                step.flush(number, seconds, out)?;
                writeln!(out, "#{number} DONE {seconds:.1}s\n")?;
            }
            EventKind::Failed(error) => {
                step.flush(number, seconds, out)?;
                writeln!(out, "#{number} ERROR: {}\n", harmless(error))?;
            }
            EventKind::Cancelled => writeln!(out, "#{number} CANCELED\n")?,
            EventKind::Log { stream, data } => {
                let mut text = Vec::new();
                let lines = &mut step.logs[usize::from(*stream == 2)];
                lines.push(data, |line| text.push(format!("#{number} {seconds:.3} {}", harmless(line))));
                text.iter().try_for_each(|line| writeln!(out, "{line}"))?;
            }
            EventKind::Note(text) => writeln!(out, "#{number} {}", harmless(text))?,
            EventKind::Transfer { name, current, total } => {
                // Every tenth of the way, and the end.
                let tenth = if *total > 0 { current * 10 / total } else { 10 };
                if step.transfers.insert(name.clone(), tenth) != Some(tenth) {
                    let of = if *total > 0 { format!(" / {}", bytes(*total)) } else { String::new() };
                    let end = if current >= total { " done" } else { "" };
                    writeln!(out, "#{number} {} {}{of}{end}", harmless(name), bytes(*current))?;
                }
            }
            EventKind::Warning { short, .. } => writeln!(out, "#{number} WARN: {}", harmless(short))?,
        }
        match event.kind {
            EventKind::Cached | EventKind::Done | EventKind::Failed(_) | EventKind::Cancelled => self.last = None,
            _ => {}
        }
        Ok(())
    }
}

impl Plain {
    /// Names the step if the line before was about another one.
    fn header(&mut self, id: StepId, out: &mut dyn Write) -> io::Result<u32> {
        let Some(step) = self.steps.get_mut(&id) else {
            return Ok(0);
        };
        let first = step.number.is_none();
        let number = *step.number.get_or_insert_with(|| {
            self.shown += 1;
            self.shown
        });
        if self.last != Some(id) {
            if self.last.is_some() {
                writeln!(out)?;
            }
            let more = if first { "" } else { "..." };
            match first {
                true => writeln!(out, "#{number} {}", harmless(&step.name))?,
                false => writeln!(out, "#{number} {more}")?,
            }
            self.last = Some(id);
        }
        Ok(number)
    }
}

impl Step {
    fn flush(&mut self, number: u32, seconds: f64, out: &mut dyn Write) -> io::Result<()> {
        let mut text = Vec::new();
        for lines in &mut self.logs {
            lines.flush(|line| text.push(format!("#{number} {seconds:.3} {}", harmless(line))));
        }
        text.iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}
