//! `tde hsm audit`.

use std::collections::VecDeque;

use clap::{Args, Subcommand};
use hsm_engine::audit::{AuditReport, Record};
use hsm_engine::{ErrorKind, HsmError};
use serde::Serialize;

use super::options::{OfficerArgs, Result, StoreArgs, UserArgs};
use crate::output::{Output, facts, lines, table, with_causes};
use crate::{CliResult, Outcome};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check the audit log; with a PIN also that it was written by this HSM and that nothing is missing at its end
    Verify(VerifyArgs),
    /// Show the audit log
    Show(ShowArgs),
    /// As the crypto officer, let a log that is damaged begin anew, so that users can log in again
    Restart(RestartArgs),
}

#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    user: UserArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    user: UserArgs,
    /// Only the last N records
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

#[derive(Args, Debug)]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    officer: OfficerArgs,
}

pub(super) fn run(command: &Command, output: &Output) -> CliResult {
    match command {
        Command::Verify(args) => verify(args, output),
        Command::Show(args) => show(args, output),
        Command::Restart(args) => restart(args, output),
    }
}

#[derive(Serialize)]
struct Restarted {
    restarted: bool,
}

fn restart(args: &RestartArgs, output: &Output) -> CliResult {
    let hsm = args.store.open()?;
    hsm.restart_audit(args.officer.name(), &args.officer.pin()?)?;
    output.show(&Restarted { restarted: true }, |_| {
        "The audit log goes on in a new file. The damaged one was left as it is, for whoever looks into it.".into()
    })?;
    Ok(Outcome::Good)
}

#[derive(Serialize)]
struct Verdict {
    ok: bool,
    /// Whether a PIN made it possible to check who wrote the log and that its end is there.
    authenticated: bool,
    records: Option<u64>,
    segments: Option<u32>,
    /// Files before those, set aside when a damaged log was restarted.
    set_aside: Option<u32>,
    first: Option<String>,
    last: Option<String>,
    boots: Option<u32>,
    unvouched: Option<u64>,
    error: Option<String>,
}

fn verify(args: &VerifyArgs, output: &Output) -> CliResult {
    let verdict = match check(&args.store, &args.user, &mut |_| {}) {
        Ok(report) => Verdict::good(&report),
        Err(error) if is_problem(error.as_ref()) => Verdict::bad(with_causes(error.as_ref())),
        Err(error) => return Err(error),
    };
    output.show(&verdict, human)?;
    Ok(if verdict.ok { Outcome::Good } else { Outcome::Problem })
}

/// With a PIN logs in, which itself reads the end of the log; without one checks what can be checked.
fn check(store: &StoreArgs, user: &UserArgs, visit: &mut dyn FnMut(&Record)) -> Result<AuditReport> {
    let hsm = store.open()?;
    match user.login_if_given(&hsm, store.uri()?) {
        None => Ok(hsm.verify_audit(visit)?),
        Some(session) => {
            let session = session?;
            let report = session.verify_audit(visit)?;
            session.close()?;
            Ok(report)
        }
    }
}

/// What is wrong with the log, as opposed to what kept this command from looking.
fn is_problem(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<HsmError>().is_some_and(|e| e.kind() == ErrorKind::Damaged)
}

impl Verdict {
    fn good(report: &AuditReport) -> Self {
        Self {
            ok: true,
            authenticated: report.authenticated,
            records: Some(report.records),
            segments: Some(report.segments),
            set_aside: Some(report.set_aside),
            first: Some(report.first.to_string()),
            last: Some(report.last.to_string()),
            boots: Some(report.boots),
            unvouched: Some(report.unvouched),
            error: None,
        }
    }

    fn bad(error: String) -> Self {
        Self {
            ok: false,
            authenticated: false,
            records: None,
            segments: None,
            set_aside: None,
            first: None,
            last: None,
            boots: None,
            unvouched: None,
            error: Some(error),
        }
    }
}

fn human(v: &Verdict) -> String {
    if let Some(error) = &v.error {
        return format!("BAD  {error}\n");
    }
    let count = |n: Option<u64>| n.unwrap_or(0).to_string();
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let mut out = facts(&[
        ("Records", count(v.records)),
        ("First", text(&v.first)),
        ("Last", text(&v.last)),
        ("Boots", v.boots.unwrap_or(0).to_string()),
    ]);
    out.push_str(if v.authenticated {
        "\nOK   No record was changed, removed or added, and the end is there.\n"
    } else {
        "\nOK   The chain is whole. Who wrote it and whether its end is there needs a PIN: give --pin-file.\n"
    });
    if let Some(n) = v.set_aside.filter(|n| *n > 0) {
        out.push_str(&format!(
            "     {n} older files were set aside when the log was restarted after damage.\n"
        ));
    }
    if let Some(n) = v.unvouched.filter(|n| *n > 0) {
        out.push_str(&format!("     The last {n} (failed logins) will be vouched for by the next login.\n"));
    }
    out
}

#[derive(Serialize)]
struct Row {
    sequence: u64,
    time: String,
    boots: u32,
    user: String,
    event: &'static str,
    detail: String,
    outcome: String,
}

impl From<&Record> for Row {
    fn from(r: &Record) -> Self {
        Self {
            sequence: r.sequence,
            time: r.time.to_string(),
            boots: r.boots,
            user: r.user.clone(),
            event: r.event.name(),
            detail: r.event.to_string(),
            outcome: r.outcome.to_string(),
        }
    }
}

/// Shows what there is even if the log is damaged further on; the error then follows.
fn show(args: &ShowArgs, output: &Output) -> CliResult {
    let keep = args.last.unwrap_or(usize::MAX);
    let mut rows = VecDeque::new();
    let result = check(&args.store, &args.user, &mut |record| {
        if rows.len() == keep {
            rows.pop_front();
        }
        if keep > 0 {
            rows.push_back(Row::from(record));
        }
    });
    if result.is_ok() || !rows.is_empty() {
        output.show(&rows, |rows| {
            let mut out = table(&["#", "time", "boot", "user", "event", "detail", "outcome"]);
            for r in rows {
                let (sequence, boots) = (r.sequence.to_string(), r.boots.to_string());
                out.add_row([&sequence, &r.time, &boots, &r.user, r.event, &r.detail, &r.outcome]);
            }
            lines(&out)
        })?;
    }
    result.map(|_| Outcome::Good)
}
