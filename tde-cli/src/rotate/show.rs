//! What a run shows while it works: a bar for each rotation on a terminal, lines elsewhere, as for a journal.

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Between two lines about the same rotation.
const EVERY: Duration = Duration::from_secs(60);

/// Standard error, shared by everything that runs.
pub(crate) struct Show {
    bars: Option<MultiProgress>,
}

impl Show {
    pub(crate) fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    pub(crate) fn say(&self, text: &str) {
        match &self.bars {
            // Nothing is left to be done when standard error is closed.
            Some(bars) => drop(bars.println(text)),
            None => {
                drop(std::io::Write::write_all(&mut std::io::stderr(), format!("tde: {text}\n").as_bytes()))
            }
        }
    }

    /// For something that begins now.
    pub(crate) fn begin(&self, label: String) -> Bar<'_> {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(1)).with_prefix(label.clone());
            // The template is a constant.
            match ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} %  {msg}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        if bar.is_none() {
            self.say(&format!("{label}: begins"));
        }
        Bar { show: self, label, bar, said: Mutex::new(Instant::now()) }
    }
}

/// One rotation under way; it disappears in the end, when the table says what came of it.
pub(crate) struct Bar<'a> {
    show: &'a Show,
    label: String,
    bar: Option<ProgressBar>,
    said: Mutex<Instant>,
}

impl Bar<'_> {
    pub(crate) fn at(&self, position: u64, total: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total.max(1));
            bar.set_position(position);
            bar.set_message(message.to_owned());
            return;
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.elapsed() >= EVERY {
            *said = Instant::now();
            let percent = (position.saturating_mul(100)).checked_div(total).unwrap_or(0).min(100);
            self.show.say(&format!("{}: {percent} %, {message}", self.label));
        }
    }

    pub(crate) fn end(self, how: &str) {
        match &self.bar {
            Some(bar) => bar.finish_and_clear(),
            None => self.show.say(&format!("{}: {how}", self.label)),
        }
    }
}
