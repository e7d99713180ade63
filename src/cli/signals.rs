//! Ctrl-C: the first ends the build in order, the second at once.

use anyhow::{Context, Result};
use std::sync::atomic::{AtomicU32, Ordering};
use xbuild_solver::Cancel;

/// A flag that SIGINT, SIGTERM and SIGHUP set.
pub(crate) fn cancel_on_interrupt() -> Result<Cancel> {
    let cancel = Cancel::new();
    let seen = std::sync::Arc::new(AtomicU32::new(0));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot watch signals")?;
    let flag = cancel.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async move {
                use tokio::signal::unix::{SignalKind, signal};
                let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
                let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds.map(signal) else {
                    return;
                };
                loop {
                    // Each arm only waits; nothing is lost when another one is taken.
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                    flag.cancel();
                    if seen.fetch_add(1, Ordering::Relaxed) > 0 {
                        #[allow(clippy::exit, reason = "the user insists; sandboxes end with their helper")]
                        std::process::exit(130);
                    }
                }
            });
        })
        .context("cannot watch signals")?;
    Ok(cancel)
}
