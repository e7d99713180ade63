//! `logs`.

use super::values::moment;
use crate::cli::{Global, Outcome};
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xbuild_runner::container::log::{Entry, LOG_NAME, numbered};
use xbuild_runner::container::{Containers, Found, clock};

/// Flags of `logs`.
#[derive(clap::Args, Debug)]
pub(crate) struct LogsArgs {
    /// Show labels and variables of the log's options, too
    #[arg(long)]
    details: bool,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// From this time on (`10m`, or RFC 3339)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Up to this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only the last N lines
    #[arg(short = 'n', long = "tail", default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// Show times
    #[arg(short, long)]
    timestamps: bool,
    /// Name or ID
    container: String,
}

/// How often a log that is followed is looked at.
const PAUSE: Duration = Duration::from_millis(25);

pub(crate) fn logs(args: &LogsArgs, global: &Global) -> Result<Outcome> {
    let containers = global.containers()?;
    let found = containers.find(&args.container)?;
    if found.container.host_config.log_config.kind == "none" {
        bail!("configured logging driver does not support reading: none");
    }
    let bound = |text: &Option<String>| text.as_deref().map(moment).transpose();
    let mut printer = Printer {
        since: bound(&args.since)?,
        until: bound(&args.until)?,
        timestamps: args.timestamps,
        details: args.details,
        out: BufWriter::with_capacity(64 << 10, std::io::stdout().lock()),
        err: BufWriter::with_capacity(64 << 10, std::io::stderr().lock()),
        last_was_error: false,
        at_start: [true, true],
    };
    let path = found.directory.join(LOG_NAME);
    // Opened before the older ones are read, so that nothing that is written meanwhile is missed.
    let mut current = match File::open(&path) {
        Ok(file) => Some(BufReader::with_capacity(128 << 10, file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot open `{}`", path.display())),
    };
    let tail = match args.tail.as_str() {
        "all" | "-1" | "" => None,
        // As docker: what is no number is everything.
        number => number.parse::<usize>().ok(),
    };
    print_past(&path, current.as_mut(), tail, &mut printer)?;
    printer.flush()?;
    if args.follow {
        follow(&containers, &found, &path, current, &mut printer)?;
    }
    Ok(Outcome::Success)
}

fn older_files(path: &Path) -> Vec<PathBuf> {
    let mut older: Vec<PathBuf> = (1..).map(|number| numbered(path, number)).take_while(|path| path.exists()).collect();
    older.reverse();
    older
}

fn print_past(
    path: &Path,
    current: Option<&mut BufReader<File>>,
    tail: Option<usize>,
    printer: &mut Printer<'_>,
) -> Result<()> {
    let mut kept: VecDeque<Entry> = VecDeque::new();
    let mut take = |entry: Entry, printer: &mut Printer<'_>| -> Result<()> {
        match tail {
            None => printer.print(&entry),
            Some(count) => {
                if printer.wants(&entry) {
                    kept.push_back(entry);
                    // Pieces of one line count as one.
                    while kept.iter().filter(|entry| entry.log.ends_with('\n')).count() > count && kept.len() > count {
                        kept.pop_front();
                    }
                    if count == 0 {
                        kept.clear();
                    }
                }
                Ok(())
            }
        }
    };
    for older in older_files(path) {
        if let Ok(file) = File::open(&older) {
            read_entries(&mut BufReader::with_capacity(128 << 10, file), &mut |entry| take(entry, printer))?;
        }
    }
    if let Some(current) = current {
        read_entries(current, &mut |entry| take(entry, printer))?;
    }
    kept.iter().try_for_each(|entry| printer.print(entry))
}

/// Reads whole lines up to the end; a line that is being written stays for the next time.
fn read_entries(from: &mut BufReader<File>, take: &mut dyn FnMut(Entry) -> Result<()>) -> Result<bool> {
    let mut line = Vec::new();
    let mut any = false;
    loop {
        line.clear();
        let count = from.read_until(b'\n', &mut line).context("cannot read the log")?;
        if line.last() != Some(&b'\n') {
            if count > 0 {
                from.seek_relative(-i64::try_from(count)?).context("cannot read the log")?;
            }
            return Ok(any);
        }
        any = true;
        // A line that a crash has cut is left out.
        if let Ok(entry) = serde_json::from_slice(&line) {
            take(entry)?;
        }
    }
}

fn follow(
    containers: &Containers,
    found: &Found,
    path: &Path,
    mut current: Option<BufReader<File>>,
    printer: &mut Printer<'_>,
) -> Result<()> {
    loop {
        // Looked at before the log: what was written before the end is there then.
        let alive = containers.read(&found.container.id).is_ok_and(|now| now.state.status.is_alive());
        let mut any = false;
        if let Some(file) = &mut current {
            any = read_entries(file, &mut |entry| printer.print(&entry))?;
            printer.flush()?;
        }
        let same = |file: &BufReader<File>| {
            let own = file.get_ref().metadata().ok()?;
            Some(std::fs::metadata(path).ok()?.ino() == own.ino())
        };
        if !any && current.as_ref().and_then(same) != Some(true) {
            let next = File::open(path).ok().map(|file| BufReader::with_capacity(128 << 10, file));
            if next.is_some() {
                current = next;
                continue;
            }
        }
        if printer.is_past() || (!alive && !any) {
            return Ok(());
        }
        if !any {
            std::thread::sleep(PAUSE);
        }
    }
}

struct Printer<'a> {
    since: Option<(i64, u32)>,
    until: Option<(i64, u32)>,
    timestamps: bool,
    details: bool,
    out: BufWriter<std::io::StdoutLock<'a>>,
    err: BufWriter<std::io::StderrLock<'a>>,
    /// Which of the two was written last.
    last_was_error: bool,
    /// The next piece begins a line, by stream.
    at_start: [bool; 2],
}

impl Printer<'_> {
    fn wants(&self, entry: &Entry) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let time = clock::parse(&entry.time);
        time.is_some_and(|time| {
            self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
        })
    }

    /// Whether nothing that comes can be wanted.
    fn is_past(&self) -> bool {
        self.until.is_some_and(|until| clock::now() > until)
    }

    fn print(&mut self, entry: &Entry) -> Result<()> {
        if !self.wants(entry) {
            return Ok(());
        }
        let error = entry.stream == "stderr";
        if error != std::mem::replace(&mut self.last_was_error, error) {
            // Where both go to one place, they are to keep their order.
            self.flush()?;
        }
        let to: &mut dyn Write = if error { &mut self.err } else { &mut self.out };
        let at_start = &mut self.at_start[usize::from(error)];
        if self.timestamps && *at_start {
            write!(to, "{} ", entry.time)?;
        }
        if self.details && *at_start {
            // Options that would put labels or variables here are refused when a container is made.
            write!(to, " ")?;
        }
        *at_start = entry.log.ends_with('\n');
        Ok(to.write_all(entry.log.as_bytes())?)
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush()?;
        Ok(self.err.flush()?)
    }
}
