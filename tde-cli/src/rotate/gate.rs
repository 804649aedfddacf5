//! Who may start now: so many at a time, inside the window, until somebody stops the run.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::window::Window;

/// The clock is looked at again and again: it may be set, and the machine may sleep.
const LOOK: Duration = Duration::from_secs(1);

/// Whether work may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// Outside of the window.
    Closed,
    /// Somebody wants the run to end; the exit code that says so.
    Stopped(u8),
}

/// Shared by everything that starts work.
#[derive(Clone)]
pub(crate) struct Gate {
    permits: Arc<Semaphore>,
    phase: watch::Receiver<Phase>,
    pause_running: bool,
    /// For work in threads.
    interrupt: Arc<AtomicBool>,
}

impl Gate {
    /// Watches the window and the signals from now on.
    ///
    /// # Errors
    /// No signal handler can be set.
    pub(crate) fn new(at_most: usize, window: Option<&Window>) -> std::io::Result<Self> {
        let pause_running = window.is_some_and(|window| window.pause_running);
        let end = window.map(|window| window.end_if_open(Timestamp::now()));
        let (send, phase) = watch::channel(if end == Some(None) { Phase::Closed } else { Phase::Open });
        let send = Arc::new(send);
        let interrupt = Arc::new(AtomicBool::new(end == Some(None) && pause_running));
        if let Some(Some(end)) = end {
            let (send, interrupt) = (Arc::clone(&send), Arc::clone(&interrupt));
            tokio::spawn(async move {
                while Timestamp::now() < end {
                    tokio::time::sleep(LOOK).await;
                }
                send.send_if_modified(|phase| {
                    let open = *phase == Phase::Open;
                    *phase = if open { Phase::Closed } else { *phase };
                    open
                });
                interrupt.fetch_or(pause_running, Ordering::Relaxed);
            });
        }
        for (kind, code) in [(SignalKind::interrupt(), 130), (SignalKind::terminate(), 143)] {
            let (mut signals, send, interrupt) = (signal(kind)?, Arc::clone(&send), Arc::clone(&interrupt));
            tokio::spawn(async move {
                let mut first = true;
                while signals.recv().await.is_some() {
                    if !first {
                        // Whoever asks twice does not want to wait for a file's next mark; nothing is lost by that.
                        std::process::exit(code.into());
                    }
                    first = false;
                    interrupt.store(true, Ordering::Relaxed);
                    send.send_replace(Phase::Stopped(code));
                }
            });
        }
        Ok(Self { permits: Arc::new(Semaphore::new(at_most)), phase, pause_running, interrupt })
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// None comes: the window is closed, or the run ends.
    pub(crate) async fn enter(&self) -> Result<OwnedSemaphorePermit, Phase> {
        // One place in the queue for the whole wait: first come, first served.
        let mut turn = pin!(Arc::clone(&self.permits).acquire_owned());
        loop {
            let turn = tokio::time::timeout(LOOK, turn.as_mut()).await;
            match (self.phase(), turn) {
                (Phase::Open, Ok(Ok(permit))) => return Ok(permit),
                (Phase::Open, Err(_)) => {}
                // Nobody closes the semaphore; if somebody did, nobody would get a turn.
                (Phase::Open, Ok(Err(_))) => return Err(Phase::Closed),
                // A turn that comes in the same moment is not taken.
                (ended, _) => return Err(ended),
            }
        }
    }

    /// Waits that long, or until the window closes or the run ends.
    pub(crate) async fn nap(&self, time: Duration) {
        let mut phase = self.phase.clone();
        let before = *phase.borrow_and_update();
        // Nobody is left to say so: the time counts.
        let _ended = tokio::time::timeout(time, phase.wait_for(|now| *now != before)).await;
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether rotations that run are to be paused now.
    pub(crate) fn pauses(&self) -> bool {
        self.pause_running && self.phase() == Phase::Closed
    }

    /// Whether paused rotations are this program's to let go on.
    pub(crate) fn resumes(&self) -> bool {
        self.pause_running && self.phase() == Phase::Open
    }

    /// Set when work in threads shall stop at its next mark.
    pub(crate) fn interrupt(&self) -> &Arc<AtomicBool> {
        &self.interrupt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_enter_at_a_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let gate = Gate::new(2, None).unwrap();
            let (first, second) = (gate.enter().await.unwrap(), gate.enter().await.unwrap());
            assert!(tokio::time::timeout(Duration::from_millis(50), gate.enter()).await.is_err(), "a third");
            drop(first);
            drop(gate.enter().await.unwrap());
            drop(second);
        });
    }
}
