//! A bar on a terminal, and Ctrl-C.

use std::io::IsTerminal as _;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// Shows how far a command is and tells it when to stop.
#[derive(Clone)]
pub(crate) struct Progress {
    shown: bool,
    stop: Arc<AtomicBool>,
    /// The newest bar, for whoever shows it elsewhere.
    bar: Arc<Mutex<Option<ProgressBar>>>,
}

/// The person at the terminal does not want to wait any longer.
#[derive(Debug, thiserror::Error)]
#[error("stopped; {0}")]
pub(crate) struct Stopped(pub(super) &'static str);

impl Progress {
    /// From now on Ctrl-C and SIGTERM do not end the program but are told by [`stopped`](Self::stopped); a second one does end it.
    pub(super) fn new(output: &Output) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))?;
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let shown = !output.is_json() && std::io::stderr().is_terminal();
        Ok(Self { shown, stop, bar: Arc::default() })
    }

    /// For work that somebody else shows, and stops by this.
    pub(crate) fn of(stop: &Arc<AtomicBool>) -> Self {
        Self { shown: false, stop: Arc::clone(stop), bar: Arc::default() }
    }

    /// How far the newest bar is, of how much, and what is being done.
    pub(crate) fn now(&self) -> (u64, u64, &'static str) {
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        bar.as_ref().map_or((0, 0, "looking"), |bar| {
            (bar.position(), bar.length().unwrap_or_default(), "rewriting pages")
        })
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// What a loop does next.
    pub(super) fn flow(&self) -> ControlFlow<()> {
        if self.stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// A bar over `total` pages; `what` says what is done with them.
    pub(super) fn bar(&self, what: &'static str, total: u64) -> ProgressBar {
        let target = if self.shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{msg:11} {wide_bar} {percent:>3} %  {per_sec}  {eta}");
        // The template is a constant.
        let bar = ProgressBar::with_draw_target(Some(total), target).with_message(what);
        let bar = match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        bar
    }
}
