//! What the server says of its jobs.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::output::{lines, table, time};
use crate::server::{ServerError, Session, get};

/// Between two looks at a job by somebody who only waits for its end.
pub(crate) const KEEP_UP: Duration = Duration::from_millis(500);
/// As `tde.jobs` calls it.
pub(crate) const PHASE_PAUSED: &str = "paused";
const PHASE_DONE: &str = "done";
const PHASE_VERIFYING: &str = "verifying files";

const QUERY: &str = "
    SELECT j.job, j.kind, j.tablespace::text, j.phase, j.database::text, j.relation::text, j.blocks_done, j.blocks_total,
           coalesce(p.blocks_verified, 0), p.mb_per_second::float8, extract(epoch FROM p.estimated_end)::float8,
           coalesce(p.paused, false), p.pid, p.waits_for, j.attempts, extract(epoch FROM j.started)::float8, t.state,
           extract(epoch FROM clock_timestamp())::float8
    FROM tde.jobs j
    LEFT JOIN tde.job_progress p ON p.job = j.job
    LEFT JOIN tde.tablespaces t ON t.name = j.tablespace
    ORDER BY j.job";

/// What a job does with a tablespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Encrypt,
    Decrypt,
    Rotate,
    /// One that this program does not know.
    Other,
}

impl Kind {
    fn of(name: &str) -> Self {
        match name {
            "encrypt" => Self::Encrypt,
            "decrypt" => Self::Decrypt,
            "rotate" => Self::Rotate,
            _ => Self::Other,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Rotate => "rotate",
            Self::Other => "change",
        }
    }

    /// The state of the tablespace when it has ended as it was begun.
    fn aim(self) -> Option<&'static str> {
        match self {
            Self::Encrypt | Self::Rotate => Some("encrypted"),
            Self::Decrypt => Some("plain"),
            Self::Other => None,
        }
    }
}

/// A line of `tde.jobs` with that of `tde.job_progress`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Job {
    pub(crate) job: i64,
    pub(crate) kind: Kind,
    /// Absent when it was dropped.
    pub(crate) tablespace: Option<String>,
    pub(crate) phase: String,
    pub(crate) database: Option<String>,
    /// Its name, or its OID when it is in another database than the one that was asked.
    pub(crate) relation: Option<String>,
    pub(crate) blocks_done: i64,
    pub(crate) blocks_total: i64,
    pub(crate) blocks_verified: i64,
    pub(crate) percent: i64,
    pub(crate) mb_per_second: Option<f64>,
    /// Of the present phase, at its present rate.
    pub(crate) seconds_left: Option<i64>,
    pub(crate) paused: bool,
    pub(crate) pid: Option<i32>,
    pub(crate) waits_for: Option<String>,
    pub(crate) attempts: i32,
    #[serde(serialize_with = "as_time")]
    pub(crate) started: f64,
    /// Of the tablespace, now.
    pub(crate) state: Option<String>,
}

fn as_time<S: Serializer>(seconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time(seconds.max(0.0) as u64))
}

impl Job {
    /// Those that are under way, and those that ended lately.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub(crate) async fn all(session: &Session) -> Result<Vec<Self>, ServerError> {
        let mut jobs = Vec::new();
        for row in session.rows(QUERY, &[]).await? {
            let (phase, done, total): (String, i64, i64) =
                (get(session, &row, 3)?, get(session, &row, 6)?, get(session, &row, 7)?);
            let verified: i64 = get(session, &row, 8)?;
            let (end, now): (Option<f64>, f64) = (get(session, &row, 10)?, get(session, &row, 17)?);
            let reached = if phase == PHASE_VERIFYING { verified } else { done };
            let percent = if total > 0 { (reached.saturating_mul(100) / total).clamp(0, 100) } else { 0 };
            let relation: Option<String> = get(session, &row, 5)?;
            jobs.push(Self {
                job: get(session, &row, 0)?,
                kind: Kind::of(get(session, &row, 1)?),
                tablespace: get(session, &row, 2)?,
                database: get(session, &row, 4)?,
                relation: relation.filter(|relation| relation != "0"),
                blocks_done: done,
                blocks_total: total,
                blocks_verified: verified,
                percent: if phase == PHASE_DONE { 100 } else { percent },
                mb_per_second: get::<Option<f64>>(session, &row, 9)?.filter(|rate| *rate > 0.0),
                seconds_left: end.map(|end| (end - now).max(0.0).round() as i64),
                paused: get(session, &row, 11)?,
                pid: get(session, &row, 12)?,
                waits_for: get(session, &row, 13)?,
                attempts: get(session, &row, 14)?,
                started: get(session, &row, 15)?,
                state: get(session, &row, 16)?,
                phase,
            });
        }
        Ok(jobs)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.phase == PHASE_DONE
    }

    /// Whether the tablespace is as the job was to make it.
    pub(crate) fn reached_its_aim(&self) -> bool {
        self.is_done() && self.kind.aim().is_some_and(|aim| self.state.as_deref() == Some(aim))
    }

    /// Blocks of the present phase, for a bar.
    pub(crate) fn position(&self) -> u64 {
        let blocks = if self.phase == PHASE_VERIFYING { self.blocks_verified } else { self.blocks_done };
        blocks.max(0).unsigned_abs()
    }

    /// `rotate ts`.
    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.kind.name(), self.tablespace.as_deref().unwrap_or("(dropped)"))
    }

    /// Phase, rate, time, and what it is at.
    pub(crate) fn details(&self) -> String {
        let mut parts = vec![self.phase.clone()];
        if let Some(rate) = self.mb_per_second.filter(|_| !self.paused) {
            parts.push(format!("{rate:.1} MB/s"));
        }
        if let Some(left) = self.seconds_left.filter(|_| !self.paused && !self.is_done()) {
            parts.push(format!("about {} left", duration(left.unsigned_abs())));
        }
        if let Some(relation) = self.relation.as_ref().filter(|_| !self.is_done()) {
            let database = self.database.as_ref().map_or(String::new(), |name| format!("{name}."));
            parts.push(format!("at {database}{relation}"));
        }
        if let Some(others) = &self.waits_for {
            parts.push(format!("waits for {others}"));
        }
        if self.attempts > 0 {
            parts.push(format!("attempt {}", self.attempts + 1));
        }
        parts.join(", ")
    }
}

/// `3 h 12 min`, `12 min`, `40 s`.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

pub(super) fn table_of(jobs: &[Job]) -> String {
    if jobs.is_empty() {
        return "No jobs.\n".to_owned();
    }
    let mut rows = table(&["job", "kind", "tablespace", "phase", "done", "MB/s", "left", "at"]);
    for job in jobs {
        let at = match (&job.waits_for, &job.relation) {
            (Some(others), _) => format!("waits for {others}"),
            (None, Some(relation)) if !job.is_done() => {
                format!("{}.{relation}", job.database.as_deref().unwrap_or_default())
            }
            _ => String::new(),
        };
        rows.add_row([
            job.job.to_string(),
            job.kind.name().to_owned(),
            job.tablespace.clone().unwrap_or_else(|| "(dropped)".to_owned()),
            job.phase.clone(),
            format!("{} %", job.percent),
            job.mb_per_second.map(|rate| format!("{rate:.1}")).unwrap_or_default(),
            job.seconds_left.map(|left| duration(left.unsigned_abs())).unwrap_or_default(),
            at,
        ]);
    }
    lines(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let expected =
            [(0, "0 s"), (119, "119 s"), (121, "2 min"), (7199, "119 min"), (11_520, "3 h 12 min")];
        for (seconds, text) in expected {
            assert_eq!(duration(seconds), text);
        }
    }
}
