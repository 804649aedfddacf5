//! What a run came to: a table for people, JSON for programs, an exit code for cron.

use serde::Serialize;

use crate::output::{lines, table};

/// How one thing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Result {
    /// It was due and is done.
    Done,
    /// It was not due.
    NothingToDo,
    /// It is due, and this is a dry run.
    Planned,
    /// It could not be done.
    Failed,
    /// It is due and was not begun: the window is closed, or somebody stopped the run.
    NotStarted,
    /// It was begun and waits.
    Paused,
    /// It was begun and goes on in its server without this program.
    Running,
}

impl Result {
    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::NothingToDo => "nothing to do",
            Self::Planned => "planned",
            Self::Failed => "failed",
            Self::NotStarted => "not started",
            Self::Paused => "paused",
            Self::Running => "running",
        }
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Action {
    RotateMasterKey,
    RotateDataKey,
    /// Somebody else has begun it, or an earlier run.
    FinishRotation,
    /// Looking at it did not get that far.
    Look,
}

impl Action {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RotateMasterKey => "rotate master key",
            Self::RotateDataKey => "rotate data key",
            Self::FinishRotation => "finish rotation",
            Self::Look => "look",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    /// Name of the target in the configuration.
    pub(crate) target: String,
    pub(crate) kind: &'static str,
    /// Tablespace, file, or what else has a key.
    pub(crate) object: String,
    pub(crate) action: Action,
    pub(crate) result: Result,
    /// Why it is due, why not, or what went wrong.
    pub(crate) detail: String,
    pub(crate) seconds: f64,
}

/// What a run came to.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) config: String,
    pub(crate) dry_run: bool,
    pub(crate) started: String,
    pub(crate) ended: String,
    pub(crate) window: Option<WindowReport>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) exit_code: u8,
}

#[derive(Debug, Serialize)]
pub(crate) struct WindowReport {
    /// When the run began.
    pub(crate) open: bool,
    /// Absent when it was closed.
    pub(crate) ends: Option<String>,
    pub(crate) next_opening: Option<String>,
}

/// Something failed.
pub(crate) const FAILED: u8 = 1;
/// Something is due that the window or somebody's pause kept from being finished.
pub(crate) const UNFINISHED: u8 = 3;
/// Another run is under way.
pub(crate) const BUSY: u8 = 4;

/// For cron: a failure is what somebody has to look at, whatever else there is.
pub(crate) fn exit_code(entries: &[Entry]) -> u8 {
    let any = |wanted: &[Result]| entries.iter().any(|entry| wanted.contains(&entry.result));
    if any(&[Result::Failed]) {
        FAILED
    } else if any(&[Result::NotStarted, Result::Paused, Result::Running]) {
        UNFINISHED
    } else {
        0
    }
}

impl Report {
    pub(crate) fn human(&self) -> String {
        let mut rows = table(&["target", "object", "action", "result", "time", "detail"]);
        for entry in &self.entries {
            rows.add_row([
                entry.target.clone(),
                entry.object.clone(),
                entry.action.name().to_owned(),
                entry.result.name().to_owned(),
                if entry.seconds >= 0.05 { format!("{:.1} s", entry.seconds) } else { String::new() },
                entry.detail.clone(),
            ]);
        }
        let mut text = lines(&rows);
        let count = |result: Result| self.entries.iter().filter(|entry| entry.result == result).count();
        let counts: Vec<_> = [
            Result::Done,
            Result::Planned,
            Result::NothingToDo,
            Result::NotStarted,
            Result::Paused,
            Result::Running,
            Result::Failed,
        ]
        .into_iter()
        .filter(|result| count(*result) > 0)
        .map(|result| format!("{} {}", count(result), result.name()))
        .collect();
        text += &format!(
            "\n{}.",
            if counts.is_empty() { "nothing to look at".to_owned() } else { counts.join(", ") }
        );
        if let Some(opening) =
            self.window.as_ref().filter(|window| !window.open).and_then(|w| w.next_opening.as_ref())
        {
            text += &format!(" The window is closed until {opening}.");
        }
        if self.dry_run {
            text += " This was a dry run: nothing was changed.";
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_counts_before_what_is_left() {
        let entry = |result| Entry {
            target: "t".into(),
            kind: "postgresql",
            object: "o".into(),
            action: Action::RotateDataKey,
            result,
            detail: String::new(),
            seconds: 0.0,
        };
        let code = |results: &[Result]| exit_code(&results.iter().copied().map(entry).collect::<Vec<_>>());
        assert_eq!(code(&[]), 0);
        assert_eq!(code(&[Result::Done, Result::NothingToDo, Result::Planned]), 0);
        for left in [Result::NotStarted, Result::Paused, Result::Running] {
            assert_eq!(code(&[Result::Done, left]), UNFINISHED);
            assert_eq!(code(&[left, Result::Failed]), FAILED);
        }
    }
}
