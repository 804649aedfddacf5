//! The keys of one PostgreSQL cluster.
//!
//! Nothing is remembered here: what is under way is a state in the server's keyring. A run that was killed is gone on with by looking
//! again: a tablespace that is `rotating` is waited for, one whose key is young is left alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::Postgres;
use super::gate::Phase;
use super::policy::{Aged, Verdict, throttle};
use super::report::{Action, Entry, Result as End};
use super::show::Bar;
use super::{Recorder, Run};
use crate::job::{Job, KEEP_UP, Kind, PHASE_PAUSED, Steer};
use crate::output::with_causes;
use crate::server::{ServerError, Session, get};

/// For a server that restarts: its jobs go on after that.
const AWAY: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(2);
/// A rotation that begins and begins without an end is not one.
const MAX_BEGINNINGS: u32 = 3;

const SPACES: &str = "
    SELECT t.name::text, t.state, t.key_version, extract(epoch FROM k.created)::float8
    FROM tde.tablespaces t LEFT JOIN tde.keys k ON k.line = t.key_line AND k.key_version = t.key_version
    WHERE t.state <> 'plain' OR t.name = ANY ($1) ORDER BY t.name";
const WAL: &str = "
    SELECT w.key_version, extract(epoch FROM k.created)::float8
    FROM tde.wal_status() w JOIN tde.keys k ON k.line = w.line AND k.key_version = w.key_version";
const MASTER: &str = "
    SELECT version, extract(epoch FROM created)::float8 FROM tde.master_key_versions()
    WHERE data_keys > 0 ORDER BY version LIMIT 1";

/// A tablespace and the key that it is written under.
#[derive(Clone, Debug)]
struct Space {
    name: String,
    state: String,
    version: Option<i32>,
    /// Seconds since 1970.
    created: Option<f64>,
}

/// What a cluster has.
struct Facts {
    /// By the server's clock, which made the times.
    now: f64,
    spaces: Vec<Space>,
    wal: Option<(i32, f64)>,
    /// The oldest version of the master key that is needed, and when it was made.
    master: Option<(i32, Option<f64>)>,
}

/// Looks at a cluster, and does what is due.
pub(super) async fn run(target: Arc<Postgres>, run: Arc<Run>) -> Vec<Entry> {
    let recorder = Recorder::new(&target.name, "postgresql");
    let (session, facts) = match look(&target).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            let detail = "a standby: its primary rotates the keys, and this server follows".to_owned();
            return vec![recorder.entry("server", Action::Look, End::NothingToDo, detail)];
        }
        Err(error) => return vec![recorder.failed("server", Action::Look, &error)],
    };
    let mut entries = Vec::new();
    for name in &target.tablespaces {
        if !facts.spaces.iter().any(|space| space.name == *name) {
            let detail = "there is no such tablespace".to_owned();
            entries.push(recorder.entry(&format!("tablespace {name}"), Action::Look, End::Failed, detail));
        }
    }
    // Before data keys: what they are wrapped under then is the new one.
    if let Some((version, created)) = facts.master {
        entries.extend(master(&target, &run, &session, &facts, version, created).await);
    }
    if let Some((version, created)) = facts.wal.filter(|_| target.wal_key)
        && let Some(verdict) = Aged::DataKey(version.unsigned_abs()).judge(&target.policy, created, facts.now)
    {
        entries.push(wal(&target, &run, &session, verdict).await);
    }
    drop(session);
    let wanted = |space: &&Space| target.tablespaces.is_empty() || target.tablespaces.contains(&space.name);
    let mut spaces: Vec<_> = facts.spaces.iter().filter(wanted).cloned().collect();
    // What is under way already has the first places.
    spaces.sort_by_key(|space| space.state != "rotating");
    let mut tasks = Vec::new();
    for space in spaces {
        let (target, run) = (Arc::clone(&target), Arc::clone(&run));
        let now = facts.now;
        tasks.push(tokio::spawn(async move { tablespace(&target, &run, space, now).await }));
    }
    for task in tasks {
        match task.await {
            Ok(entry) => entries.extend(entry),
            Err(error) => entries.push(recorder.failed("server", Action::RotateDataKey, &error)),
        }
    }
    entries
}

/// `None` for a standby.
async fn look(target: &Postgres) -> Result<Option<(Session, Facts)>, ServerError> {
    let session = Session::open(&target.server).await?;
    let row = session.row("SELECT pg_is_in_recovery(), extract(epoch FROM now())::float8", &[]).await?;
    if get(&session, &row, 0)? {
        return Ok(None);
    }
    let now = get(&session, &row, 1)?;
    let mut spaces = Vec::new();
    for row in session.rows(SPACES, &[&target.tablespaces]).await? {
        spaces.push(Space {
            name: get(&session, &row, 0)?,
            state: get(&session, &row, 1)?,
            version: get(&session, &row, 2)?,
            created: get(&session, &row, 3)?,
        });
    }
    let mut facts = Facts { now, spaces, wal: None, master: None };
    if let Some(row) = session.rows(WAL, &[]).await?.first() {
        facts.wal = Some((get(&session, row, 0)?, get(&session, row, 1)?));
    }
    // This asks the HSM, which may be slow and writes an audit log.
    if target.policy.master_key.is_some()
        && let Some(row) = session.rows(MASTER, &[]).await?.first()
    {
        facts.master = Some((get(&session, row, 0)?, get(&session, row, 1)?));
    }
    Ok(Some((session, facts)))
}

async fn master(
    target: &Postgres,
    run: &Run,
    session: &Session,
    facts: &Facts,
    version: i32,
    created: Option<f64>,
) -> Option<Entry> {
    let recorder = Recorder::new(&target.name, "postgresql");
    let (object, action) = ("master key", Action::RotateMasterKey);
    let Some(created) = created else {
        let detail = format!(
            "the HSM does not say when master-key version {version} was made: rotate it with SELECT tde.rotate_master_key()"
        );
        return Some(recorder.entry(object, action, End::Failed, detail));
    };
    let aged = Aged::MasterKey(version.unsigned_abs());
    let reason = match aged.judge(&target.policy, created, facts.now)? {
        Verdict::Leave(why) => return Some(recorder.entry(object, action, End::NothingToDo, why)),
        Verdict::Due(why) => why,
    };
    let _turn = match run.turn(&recorder, object, action, &reason).await {
        Ok(turn) => turn,
        Err(entry) => return Some(entry),
    };
    let rotate = async {
        // Clusters may share an HSM: another one's turn may have come first.
        let row = session.rows(MASTER, &[]).await?;
        if let Some(row) = row.first()
            && get::<i32>(session, row, 0)? > version
        {
            return Ok(None);
        }
        let row = session.row("SELECT tde.rotate_master_key()", &[]).await?;
        Ok::<_, ServerError>(Some(get::<i32>(session, &row, 0)?))
    };
    Some(match rotate.await {
        Ok(Some(new)) => {
            let detail = format!("{reason}; every data key is wrapped under version {new}");
            recorder.entry(object, action, End::Done, detail)
        }
        Ok(None) => recorder.entry(object, action, End::Done, format!("{reason}; done meanwhile")),
        Err(error) => recorder.failed(object, action, &error),
    })
}

async fn wal(target: &Postgres, run: &Run, session: &Session, verdict: Verdict) -> Entry {
    let recorder = Recorder::new(&target.name, "postgresql");
    let (object, action) = ("write-ahead log", Action::RotateDataKey);
    let reason = match verdict {
        Verdict::Leave(why) => return recorder.entry(object, action, End::NothingToDo, why),
        Verdict::Due(why) => why,
    };
    let _turn = match run.turn(&recorder, object, action, &reason).await {
        Ok(turn) => turn,
        Err(entry) => return entry,
    };
    match session.row("SELECT tde.rotate_wal_key()", &[]).await.and_then(|row| get::<i32>(session, &row, 0)) {
        Ok(new) => {
            let detail = format!("{reason}; segments that are begun from now on are under version {new}");
            recorder.entry(object, action, End::Done, detail)
        }
        Err(error) => recorder.failed(object, action, &error),
    }
}

/// One tablespace; nothing if the policy does not ask for it.
async fn tablespace(target: &Postgres, run: &Run, space: Space, now: f64) -> Option<Entry> {
    let recorder = Recorder::new(&target.name, "postgresql");
    let object = format!("tablespace {}", space.name);
    let version = space.version.unwrap_or_default().unsigned_abs();
    let (action, reason) = match space.state.as_str() {
        "rotating" => {
            (Action::FinishRotation, format!("pages are being rewritten under key version {version}"))
        }
        "encrypted" => {
            let verdict = match space.created {
                Some(created) => Aged::DataKey(version).judge(&target.policy, created, now)?,
                None => {
                    let detail = format!("the keyring has no time for key version {version}");
                    return Some(recorder.entry(&object, Action::RotateDataKey, End::Failed, detail));
                }
            };
            match verdict {
                Verdict::Due(why) => (Action::RotateDataKey, why),
                Verdict::Leave(why) => {
                    return Some(recorder.entry(&object, Action::RotateDataKey, End::NothingToDo, why));
                }
            }
        }
        "plain" => {
            return Some(recorder.entry(
                &object,
                Action::Look,
                End::Failed,
                "it is not encrypted".to_owned(),
            ));
        }
        other => {
            let detail = format!("it is {other}: keys are rotated when that has ended");
            return Some(recorder.entry(&object, Action::Look, End::NothingToDo, detail));
        }
    };
    let turn = run.turn(&recorder, &object, action, &reason).await;
    if let Err(entry) = turn {
        // What runs outside of the window is paused if that is wanted, also after a run that was killed.
        if entry.result != End::NotStarted || action != Action::FinishRotation || !run.gate.pauses() {
            return Some(entry);
        }
    }
    let bar = run.show.begin(format!("{}: {object}: {}", target.name, action.name()));
    let begin = Instant::now();
    let mut work = Work { target, run, space: &space, session: None, begun: 0, bar: &bar };
    let (end, detail) = match work.run().await {
        Ok(end) => end,
        Err(error) => (End::Failed, with_causes(&error)),
    };
    let detail = if end == End::Failed { detail } else { format!("{reason}; {detail}") };
    bar.end(&detail);
    let mut entry = recorder.entry(&object, action, end, detail);
    entry.seconds = begin.elapsed().as_secs_f64();
    Some(entry)
}

/// A rotation under way.
struct Work<'a> {
    target: &'a Postgres,
    run: &'a Run,
    space: &'a Space,
    session: Option<Session>,
    begun: u32,
    bar: &'a Bar<'a>,
}

/// What to do next.
enum Next {
    Begin,
    Wait(Option<Box<Job>>),
    End(End, String),
}

impl Work<'_> {
    /// Looks, acts, and looks again, over restarts of the server, until there is an end.
    async fn run(&mut self) -> Result<(End, String), ServerError> {
        let mut away: Option<Instant> = None;
        loop {
            match self.step().await {
                Ok(Some(end)) => return Ok(end),
                Ok(None) => away = None,
                Err(error) => {
                    self.session = None;
                    let since = *away.get_or_insert_with(Instant::now);
                    if !error.is_passing() || since.elapsed() > AWAY {
                        return Err(error);
                    }
                    if matches!(self.run.gate.phase(), Phase::Stopped(_)) {
                        return Ok((
                            End::Running,
                            "the server is away; its job goes on after its start".to_owned(),
                        ));
                    }
                    self.run.gate.nap(RETRY).await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<(End, String)>, ServerError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => Session::open(&self.target.server).await?,
        };
        let next = self.look(&session).await?;
        match next {
            Next::End(end, detail) => return Ok(Some((end, detail))),
            Next::Begin => {
                self.begun += 1;
                self.throttle(&session).await?;
                session.rows("SELECT tde.rotate_data_key($1)", &[&self.space.name]).await?;
            }
            Next::Wait(job) => {
                if let Some(end) = self.wait(&session, job).await? {
                    return Ok(Some(end));
                }
            }
        }
        self.session = Some(session);
        Ok(None)
    }

    async fn look(&self, session: &Session) -> Result<Next, ServerError> {
        let name = &self.space.name;
        let query = "SELECT state, key_version FROM tde.tablespaces WHERE name = $1";
        let rows = session.rows(query, &[name]).await?;
        let Some(row) = rows.first() else {
            return Ok(Next::End(End::Done, "it was dropped meanwhile".to_owned()));
        };
        let (state, version): (String, Option<i32>) = (get(session, row, 0)?, get(session, row, 1)?);
        let was_rotating = self.space.state == "rotating";
        Ok(match state.as_str() {
            "rotating" => {
                let mut jobs = Job::all(session).await?.into_iter();
                let of_this = |job: &Job| {
                    job.tablespace.as_ref() == Some(name) && job.kind == Kind::Rotate && !job.is_done()
                };
                Next::Wait(jobs.find(of_this).map(Box::new))
            }
            "encrypted" if was_rotating || version > self.space.version => {
                let version = version.unwrap_or_default();
                Next::End(End::Done, format!("every page is under version {version}"))
            }
            "encrypted" if self.begun < MAX_BEGINNINGS => Next::Begin,
            "encrypted" => Next::End(
                End::Failed,
                "the rotation was begun again and again and its key did not change".to_owned(),
            ),
            other => {
                Next::End(End::Failed, format!("it is {other} now: somebody else does something with it"))
            }
        })
    }

    /// A moment, or what ends the waiting.
    async fn wait(
        &self,
        session: &Session,
        job: Option<Box<Job>>,
    ) -> Result<Option<(End, String)>, ServerError> {
        let gate = &self.run.gate;
        if let Some(job) = &job {
            self.bar.at(job.position(), job.blocks_total.max(0).unsigned_abs(), &job.details());
            let paused = job.phase == PHASE_PAUSED;
            if gate.pauses() && paused {
                let detail =
                    format!("paused at {} % at the end of the window; the next run goes on", job.percent);
                return Ok(Some((End::Paused, detail)));
            } else if gate.pauses() && !job.paused {
                Steer::Pause.apply(session, job.job).await?;
            } else if paused && gate.resumes() {
                Steer::Resume.apply(session, job.job).await?;
            } else if paused && !gate.pauses() {
                let detail = format!("somebody has paused job {}: tde job resume {0}", job.job);
                return Ok(Some((End::Paused, detail)));
            }
        }
        if matches!(gate.phase(), Phase::Stopped(_)) {
            return Ok(Some((End::Running, "it goes on in the server".to_owned())));
        }
        gate.nap(KEEP_UP).await;
        Ok(None)
    }

    /// Sets how fast the server's jobs may be, if that is to be something else. It stays so.
    async fn throttle(&self, session: &Session) -> Result<(), ServerError> {
        let Some(rate) = self.target.policy.max_rate else { return Ok(()) };
        let (pages, pause) = throttle(rate);
        let query = "SELECT current_setting('pg_tde.job_cost_limit')::int = $1::int4
            AND (SELECT setting::float8 FROM pg_settings WHERE name = 'pg_tde.job_cost_delay') = $2::float8";
        let row = session.row(query, &[&pages, &pause]).await?;
        if !get::<bool>(session, &row, 0)? {
            session.run(&format!("ALTER SYSTEM SET pg_tde.job_cost_limit = {pages}")).await?;
            session.run(&format!("ALTER SYSTEM SET pg_tde.job_cost_delay = '{pause}ms'")).await?;
            session.run("SELECT pg_reload_conf()").await?;
        }
        Ok(())
    }
}
