//! What a build says while it runs. Typed; how it looks is the caller's.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which step an event is about; numbers are unique in one build and given in order of appearance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepId(pub u32);

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// Since the build began.
    pub at: Duration,
    /// The step.
    pub step: StepId,
    /// What.
    pub kind: EventKind,
}

/// Kinds of events. A step is `Named` before anything else is said of it, and ends at most once.
#[derive(Clone, Debug)]
pub enum EventKind {
    /// The step appears under this name.
    Named(String),
    /// Its work begins.
    Started,
    /// Its result was recorded.
    Cached,
    /// Its work ended well.
    Done,
    /// It failed.
    Failed(String),
    /// It ended because the build did.
    Cancelled,
    /// Output of the step's process.
    Log {
        /// 1 for standard output, 2 for standard error.
        stream: u8,
        /// The bytes, any.
        data: Vec<u8>,
    },
    /// A line about the work.
    Note(String),
    /// A transfer of the step: bytes done, bytes in all if known.
    Transfer {
        /// What is moved.
        name: String,
        /// Bytes done.
        current: u64,
        /// Bytes in all; 0 if not known.
        total: u64,
    },
    /// A build check found something.
    Warning {
        /// Rendered with place and excerpt.
        text: String,
        /// One line.
        short: String,
    },
}

/// Takes events, from any thread; must not block for long.
pub type Sink = dyn Fn(Event) + Send + Sync;

/// Hands out step numbers and stamps events with the time.
#[derive(Clone)]
pub struct Events {
    sink: Arc<Sink>,
    began: Instant,
    next: Arc<std::sync::atomic::AtomicU32>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("began", &self.began).finish_non_exhaustive()
    }
}

impl Events {
    /// Starts the clock of a build.
    pub fn new(sink: Arc<Sink>) -> Self {
        Self { sink, began: Instant::now(), next: Arc::default() }
    }

    /// Sends an event about `step`.
    pub fn send(&self, step: StepId, kind: EventKind) {
        (self.sink)(Event { at: self.began.elapsed(), step, kind });
    }

    /// A new step, not started.
    pub fn name(&self, name: &str) -> StepId {
        let step = StepId(self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1);
        self.send(step, EventKind::Named(name.to_owned()));
        step
    }

    /// Runs `work` as a step of its own.
    pub fn step<T, E: std::fmt::Display>(&self, name: &str, work: impl FnOnce(StepId) -> Result<T, E>) -> Result<T, E> {
        let step = self.name(name);
        self.send(step, EventKind::Started);
        let result = work(step);
        self.send(
            step,
            match &result {
                Ok(_) => EventKind::Done,
                Err(error) => EventKind::Failed(error.to_string()),
            },
        );
        result
    }

    /// Time since the build began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}
