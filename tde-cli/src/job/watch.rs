//! `tde job watch`: a bar for each job on a terminal, lines elsewhere, an object a line with `--json`.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Result;
use super::view::Job;
use crate::output::Output;
use crate::server::{Server, ServerError, Session};
use crate::{CliResult, Outcome};

/// Jobs survive the server's restart: how long to wait for it, and between two tries.
const AWAY: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(2);
/// As shells say it of a program that SIGINT or SIGTERM has ended.
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

/// A job as it was when it was first seen, and as it is.
struct Watched {
    first: Job,
    now: Job,
    /// Gone from the server's list, which forgets ended jobs at a restart.
    gone: bool,
}

impl Watched {
    fn ended(&self) -> bool {
        self.gone || self.now.is_done()
    }

    fn as_it_was_begun(&self) -> bool {
        self.now.kind == self.first.kind && (self.now.reached_its_aim() || self.gone)
    }

    fn verdict(&self) -> String {
        let (job, now) = (self.now.job, &self.now);
        let tablespace = now.tablespace.as_deref().unwrap_or("(dropped)");
        let state = now.state.as_deref().unwrap_or("gone");
        match (self.gone, self.now.kind == self.first.kind) {
            (true, _) => format!("Job {job} is over: the server does not list it any more."),
            (false, true) => format!("Job {job} has ended: tablespace {tablespace} is {state}."),
            (false, false) => {
                format!("Job {job} was turned back and has ended: tablespace {tablespace} is {state}.")
            }
        }
    }
}

/// Where what is seen goes.
enum Screen<'a> {
    Bars { all: MultiProgress, bars: BTreeMap<i64, ProgressBar> },
    Lines { output: &'a Output, said: BTreeMap<i64, String> },
    Json { output: &'a Output },
}

impl<'a> Screen<'a> {
    fn new(output: &'a Output) -> Self {
        if output.is_json() {
            Self::Json { output }
        } else if std::io::stdout().is_terminal() && std::io::stderr().is_terminal() {
            Self::Bars { all: MultiProgress::new(), bars: BTreeMap::new() }
        } else {
            Self::Lines { output, said: BTreeMap::new() }
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(if matches!(self, Self::Bars { .. }) { 1 } else { 10 })
    }

    fn show(&mut self, job: &Job) -> Result<()> {
        match self {
            Self::Bars { all, bars } => {
                let bar = bars.entry(job.job).or_insert_with(|| {
                    let template = "{prefix} {wide_bar} {percent:>3} %  {msg}";
                    let bar = all.add(ProgressBar::new(1));
                    // The template is a constant.
                    match ProgressStyle::with_template(template) {
                        Ok(style) => bar.with_style(style),
                        Err(_) => bar,
                    }
                });
                bar.set_prefix(format!("job {} {}", job.job, job.title()));
                bar.set_length(job.blocks_total.max(1).unsigned_abs());
                bar.set_position(if job.is_done() { u64::MAX } else { job.position() });
                bar.set_message(job.details());
            }
            Self::Lines { output, said } => {
                let line = format!("job {} {}: {} %, {}\n", job.job, job.title(), job.percent, job.details());
                if said.get(&job.job) != Some(&line) {
                    output.raw(line.as_bytes())?;
                    said.insert(job.job, line);
                }
            }
            Self::Json { output } => output.raw(format!("{}\n", serde_json::to_string(job)?).as_bytes())?,
        }
        Ok(())
    }

    /// For people: it is said on standard error when programs read the output.
    fn say(&mut self, text: &str) -> Result<()> {
        match self {
            Self::Bars { all, .. } => all.println(text)?,
            Self::Lines { output, .. } => output.raw(format!("{text}\n").as_bytes())?,
            Self::Json { output } => output.note(text),
        }
        Ok(())
    }

    fn close(&mut self, job: i64) {
        if let Self::Bars { bars, .. } = self
            && let Some(bar) = bars.get(&job)
        {
            bar.finish();
        }
    }
}

/// Ctrl-C and SIGTERM from here on.
fn signals() -> std::io::Result<mpsc::Receiver<u8>> {
    let (send, receive) = mpsc::channel(1);
    for (kind, code) in [(SignalKind::interrupt(), INTERRUPTED), (SignalKind::terminate(), TERMINATED)] {
        let (mut signals, send) = (signal(kind)?, send.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if send.send(code).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(receive)
}

pub(super) async fn run(
    server: &Server,
    wanted: &[i64],
    interval: Option<Duration>,
    output: &Output,
) -> CliResult {
    let mut stop = signals()?;
    let mut screen = Screen::new(output);
    let interval = interval.unwrap_or_else(|| screen.interval());
    let mut session = Session::open(server).await?;
    let mut watched = BTreeMap::new();
    for job in Job::all(&session).await? {
        if wanted.contains(&job.job) || (wanted.is_empty() && !job.is_done()) {
            watched.insert(job.job, Watched { first: job.clone(), now: job, gone: false });
        }
    }
    if let Some(missing) = wanted.iter().find(|number| !watched.contains_key(number)) {
        output.problem(&format!("{}: there is no job {missing}; see `tde job list`", server.name()))?;
        return Ok(Outcome::Problem);
    }
    if watched.is_empty() {
        screen.say("No job is under way.")?;
        return Ok(Outcome::Good);
    }
    loop {
        for one in watched.values() {
            screen.show(&one.now)?;
        }
        for one in watched.values().filter(|one| one.ended()) {
            screen.close(one.now.job);
        }
        if watched.values().all(Watched::ended) {
            break;
        }
        if let Ok(Some(code)) = tokio::time::timeout(interval, stop.recv()).await {
            let numbers: Vec<_> =
                watched.values().filter(|one| !one.ended()).map(|one| one.now.job.to_string()).collect();
            let (noun, verb) = if numbers.len() == 1 { ("Job", "goes") } else { ("Jobs", "go") };
            screen.say(&format!(
                "{noun} {} {verb} on in the server; `tde job watch` shows more, `tde job pause` stops one.",
                numbers.join(", ")
            ))?;
            return Ok(Outcome::Code(code));
        }
        let jobs = match look(server, &mut session, &mut stop, &mut screen).await? {
            Seen::Jobs(jobs) => jobs,
            Seen::Stopped(code) => return Ok(Outcome::Code(code)),
        };
        for one in watched.values_mut().filter(|one| !one.ended()) {
            match jobs.iter().find(|job| job.job == one.now.job) {
                Some(job) => one.now = job.clone(),
                None => one.gone = true,
            }
        }
    }
    for one in watched.values() {
        screen.say(&one.verdict())?;
    }
    let good = watched.values().all(Watched::as_it_was_begun);
    Ok(if good { Outcome::Good } else { Outcome::Problem })
}

enum Seen {
    Jobs(Vec<Job>),
    Stopped(u8),
}

/// The jobs now, from a new connection if the server has ended the old one.
async fn look(
    server: &Server,
    session: &mut Session,
    stop: &mut mpsc::Receiver<u8>,
    screen: &mut Screen<'_>,
) -> std::result::Result<Seen, Box<dyn std::error::Error + Send + Sync>> {
    let mut error = match Job::all(session).await {
        Ok(jobs) => return Ok(Seen::Jobs(jobs)),
        Err(error) => error,
    };
    let begin = Instant::now();
    screen.say(&format!(
        "{}: the connection is lost; jobs go on after a restart, trying again",
        server.name()
    ))?;
    loop {
        if !error.is_passing() || begin.elapsed() > AWAY {
            return Err(error.into());
        }
        if let Ok(Some(code)) = tokio::time::timeout(RETRY, stop.recv()).await {
            return Ok(Seen::Stopped(code));
        }
        let again: std::result::Result<Vec<Job>, ServerError> = async {
            *session = Session::open(server).await?;
            Job::all(session).await
        }
        .await;
        match again {
            Ok(jobs) => return Ok(Seen::Jobs(jobs)),
            Err(again) => error = again,
        }
    }
}
