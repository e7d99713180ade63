//! When a container that has ended is started again, and how it feels: decisions without side effects.

use super::config::RestartPolicy;
use super::state::{Health, Probe};
use std::time::Duration;
use xbuild_oci::Healthcheck;

/// A run that lasted this long makes the next pause short again.
const LONG_RUN: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Grows with each restart.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// The pause before the next start, after a run of this length.
    pub(crate) fn next(&mut self, ran: Duration) -> Duration {
        let pause = match self.last {
            Some(last) if ran < LONG_RUN => (last * 2).min(LONGEST_PAUSE),
            _ => FIRST_PAUSE,
        };
        self.last = Some(pause);
        pause
    }
}

/// Whether the policy wants another start.
pub(crate) fn restarts(policy: &RestartPolicy, code: i32, count: u32, stopped_by_hand: bool) -> bool {
    if stopped_by_hand {
        return false;
    }
    match policy.name.as_str() {
        "always" | "unless-stopped" => true,
        "on-failure" => code != 0 && (policy.maximum_retry_count == 0 || count < policy.maximum_retry_count),
        _ => false,
    }
}

/// A health check with docker's defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) command: Vec<String>,
    pub(crate) timeout: Duration,
    interval: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u32,
}

/// Probes that are kept.
const LOG_LENGTH: usize = 5;

impl Check {
    /// The check that an image or the user asks for, if any.
    pub(crate) fn of(asked: Option<&Healthcheck>, shell: Option<&[String]>) -> Option<Check> {
        let asked = asked?;
        let command = match asked.test.split_first() {
            Some((kind, rest)) if kind == "CMD" && !rest.is_empty() => rest.to_vec(),
            Some((kind, [text])) if kind == "CMD-SHELL" => {
                let default = ["/bin/sh".to_owned(), "-c".to_owned()];
                shell.unwrap_or(&default).iter().cloned().chain([text.clone()]).collect()
            }
            _ => return None,
        };
        let or = |nanos: i64, default: u64| match u64::try_from(nanos) {
            Ok(nanos) if nanos > 0 => Duration::from_nanos(nanos),
            _ => Duration::from_secs(default),
        };
        let interval = or(asked.interval, 30);
        Some(Check {
            command,
            timeout: or(asked.timeout, 30),
            interval,
            start_period: or(asked.start_period, 0),
            start_interval: if asked.start_interval > 0 { or(asked.start_interval, 0) } else { interval },
            retries: u32::try_from(asked.retries).ok().filter(|n| *n > 0).unwrap_or(3),
        })
    }

    /// The pause before the next probe, when the container has run for `ran`.
    pub(crate) fn pause(&self, health: &Health, ran: Duration) -> Duration {
        if health.status == "starting" && ran < self.start_period { self.start_interval } else { self.interval }
    }

    /// Takes the result of a probe that began when the container had run for `ran`.
    pub(crate) fn take(&self, health: &mut Health, probe: Probe, ran: Duration) {
        if probe.exit_code == 0 {
            health.failing_streak = 0;
            health.status = "healthy".to_owned();
        } else if health.status != "starting" || ran >= self.start_period {
            health.failing_streak += 1;
            if health.failing_streak >= self.retries {
                health.status = "unhealthy".to_owned();
            }
        }
        health.log.push(probe);
        let excess = health.log.len().saturating_sub(LOG_LENGTH);
        health.log.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_a_run_was_long() {
        let mut backoff = Backoff::default();
        let short = Duration::from_secs(1);
        let pauses: Vec<u128> = (0..4).map(|_| backoff.next(short).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800]);
        assert_eq!((0..20).map(|_| backoff.next(short)).last(), Some(LONGEST_PAUSE));
        assert_eq!(backoff.next(LONG_RUN), FIRST_PAUSE);
    }

    #[test]
    fn policies_decide_as_dockers() {
        let policy = |name: &str, maximum_retry_count| RestartPolicy { name: name.to_owned(), maximum_retry_count };
        for (name, most, code, count, by_hand, want) in [
            ("no", 0, 1, 0, false, false),
            ("", 0, 1, 0, false, false),
            ("always", 0, 0, 9, false, true),
            ("always", 0, 0, 9, true, false),
            ("unless-stopped", 0, 1, 0, false, true),
            ("on-failure", 0, 0, 0, false, false),
            ("on-failure", 0, 3, 99, false, true),
            ("on-failure", 2, 3, 1, false, true),
            ("on-failure", 2, 3, 2, false, false),
        ] {
            assert_eq!(restarts(&policy(name, most), code, count, by_hand), want, "{name} {code} {count}");
        }
    }

    #[test]
    fn failures_in_the_start_period_do_not_count() {
        let asked = Healthcheck {
            test: vec!["CMD-SHELL".to_owned(), "x".to_owned()],
            start_period: 5_000_000_000,
            retries: 2,
            ..Healthcheck::default()
        };
        let check = Check::of(Some(&asked), None).unwrap();
        assert_eq!(check.command, ["/bin/sh", "-c", "x"]);
        let mut health = Health { status: "starting".to_owned(), ..Health::default() };
        let probe = |exit_code| Probe { exit_code, ..Probe::default() };
        check.take(&mut health, probe(1), Duration::from_secs(1));
        assert_eq!((health.status.as_str(), health.failing_streak), ("starting", 0));
        check.take(&mut health, probe(1), Duration::from_secs(6));
        assert_eq!((health.status.as_str(), health.failing_streak), ("starting", 1));
        check.take(&mut health, probe(1), Duration::from_secs(7));
        assert_eq!(health.status, "unhealthy");
        check.take(&mut health, probe(0), Duration::from_secs(8));
        assert_eq!((health.status.as_str(), health.failing_streak, health.log.len()), ("healthy", 0, 4));
        assert!(Check::of(Some(&Healthcheck { test: vec!["NONE".to_owned()], ..asked }), None).is_none());
    }
}
