//! A bar on a terminal, and Ctrl-C.

use std::io::IsTerminal as _;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// Shows how far a command is and tells it when to stop.
#[derive(Clone)]
pub(super) struct Progress {
    shown: bool,
    stop: Arc<AtomicBool>,
}

/// The person at the terminal does not want to wait any longer.
#[derive(Debug, thiserror::Error)]
#[error("stopped; {0}")]
pub(super) struct Stopped(pub(super) &'static str);

impl Progress {
    /// From now on Ctrl-C and SIGTERM do not end the program but are told by [`stopped`](Self::stopped); a second one does end it.
    pub(super) fn new(output: &Output) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))?;
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        Ok(Self { shown: !output.is_json() && std::io::stderr().is_terminal(), stop })
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
        match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}
