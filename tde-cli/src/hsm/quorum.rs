//! `tde hsm quorum`: approvals of several people for what one alone must not do.
//!
//! Approvers sign offline, for example
//! `openssl pkeyutl -sign -rawin -inkey ed25519.pem -in request -out signature`, or with an RSA key
//! `openssl dgst -sha256 -sign rsa.pem -out signature request`.

use std::fs;
use std::path::PathBuf;

use clap::ValueEnum;
use hsm_engine::{Request, Service};
use serde::Serialize;
use uuid::Uuid;

use super::options::{OfficerArgs, Result, StoreArgs, UserArgs};
use crate::output::{Output, lines, table};
use crate::{CliResult, Outcome};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show what needs approvals, who can approve, and which requests wait
    List(ListArgs),
    /// As the crypto officer, set how many approvals a service needs (0, or 2 to 8)
    Set(SetArgs),
    /// Write what a user signs to register a key, or with the signature register it
    Register(RegisterArgs),
    /// Ask for approvals: writes the bytes that approvers sign
    Ask(AskArgs),
    /// Hand in somebody's signature on a request
    Approve(ApproveArgs),
}

#[derive(clap::Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    user: UserArgs,
}

#[derive(clap::Args, Debug)]
pub(crate) struct SetArgs {
    /// What needs approvals
    service: ServiceName,
    /// How many
    needed: u8,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    officer: OfficerArgs,
    /// Id of a request that was approved, where changing the policy needs approvals
    #[arg(long, value_name = "ID")]
    request: Option<Uuid>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct RegisterArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    user: UserArgs,
    /// The bytes to sign are written to this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["public_key", "signature"])]
    to_sign: Option<PathBuf>,
    /// The public key, DER (`openssl pkey -pubout -outform DER`): RSA or Ed25519
    #[arg(long, value_name = "FILE", requires = "signature")]
    public_key: Option<PathBuf>,
    /// The signature on the bytes that --to-sign wrote
    #[arg(long, value_name = "FILE", requires = "public_key")]
    signature: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct AskArgs {
    /// What is to be done
    service: ServiceName,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    user: UserArgs,
    /// The key, for the services of keys
    #[arg(long, value_name = "ID")]
    key: Option<Uuid>,
    /// The bytes to sign are written to this file
    #[arg(long, value_name = "FILE")]
    to_sign: PathBuf,
}

#[derive(clap::Args, Debug)]
pub(crate) struct ApproveArgs {
    /// Id of the request
    #[arg(value_name = "ID")]
    request: Uuid,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    user: UserArgs,
    /// Who approves
    #[arg(long, value_name = "NAME")]
    by: String,
    /// The signature
    #[arg(long, value_name = "FILE")]
    signature: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ServiceName {
    Users,
    Policy,
    KeyUse,
    KeyManage,
}

impl From<ServiceName> for Service {
    fn from(name: ServiceName) -> Self {
        match name {
            ServiceName::Users => Self::Users,
            ServiceName::Policy => Self::Policy,
            ServiceName::KeyUse => Self::KeyUse,
            ServiceName::KeyManage => Self::KeyManage,
        }
    }
}

#[derive(Serialize)]
struct View {
    quorum: Vec<Quorum>,
    approvers: Vec<Approver>,
    requests: Vec<Row>,
}

#[derive(Serialize)]
struct Quorum {
    service: String,
    needed: u8,
}

#[derive(Serialize)]
struct Approver {
    user: String,
    second_factor: bool,
}

#[derive(Serialize)]
struct Row {
    id: String,
    service: String,
    user: String,
    key: Option<String>,
    expires: String,
    needed: u8,
    approvals: Vec<String>,
}

#[derive(Serialize)]
struct Said {
    done: String,
}

impl From<Request> for Row {
    fn from(r: Request) -> Self {
        Self {
            id: r.id.to_string(),
            service: r.service.to_string(),
            user: r.user,
            key: r.key.map(|k| k.to_string()),
            expires: r.expires.to_string(),
            needed: r.needed,
            approvals: r.approvals,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("give --to-sign FILE first, then --public-key FILE and --signature FILE")]
struct HalfARegistration;

pub(super) fn run(command: &Command, output: &Output) -> CliResult {
    match command {
        Command::List(args) => return list(args, output),
        Command::Ask(args) => return ask(args, output),
        Command::Set(args) => {
            let session = args.officer.login(&args.store.open()?)?;
            if let Some(request) = args.request {
                session.present(request);
            }
            let service = args.service.into();
            session.set_quorum(service, args.needed)?;
            session.close()?;
            say(output, format!("For {service} {} approvals are needed.", args.needed))?;
        }
        Command::Register(args) => say(output, register(args)?)?,
        Command::Approve(args) => {
            let session = args.user.login(&args.store.open()?, args.store.uri()?)?.0;
            session.approve(args.request, &args.by, &fs::read(&args.signature)?)?;
            session.close()?;
            say(output, format!("{} approved request {}.", args.by, args.request))?;
        }
    }
    Ok(Outcome::Good)
}

fn say(output: &Output, done: String) -> Result<()> {
    Ok(output.show(&Said { done }, |s| s.done.clone())?)
}

fn register(args: &RegisterArgs) -> Result<String> {
    let session = args.user.login(&args.store.open()?, args.store.uri()?)?.0;
    let said = match (&args.to_sign, &args.public_key, &args.signature) {
        (Some(file), _, _) => {
            fs::write(file, session.registration())?;
            format!("Sign the bytes in {} with the key to register.", file.display())
        }
        (None, Some(public), Some(signature)) => {
            session.register_key(&fs::read(public)?, &fs::read(signature)?, false)?;
            format!("User {} approves with the key in {}.", session.user(), public.display())
        }
        _ => return Err(HalfARegistration.into()),
    };
    session.close()?;
    Ok(said)
}

fn list(args: &ListArgs, output: &Output) -> CliResult {
    let session = args.user.login(&args.store.open()?, args.store.uri()?)?.0;
    let policy = session.policy()?;
    let requests = session.approval_requests()?;
    session.close()?;
    let view = View {
        quorum: policy.quorum.iter().map(|(s, n)| Quorum { service: s.to_string(), needed: *n }).collect(),
        approvers: policy
            .people
            .into_iter()
            .map(|(user, second_factor)| Approver { user, second_factor })
            .collect(),
        requests: requests.into_iter().map(Row::from).collect(),
    };
    output.show(&view, |view| {
        let mut text = String::new();
        for q in &view.quorum {
            text += &format!("{} needs {} approvals.\n", q.service, q.needed);
        }
        let names: Vec<&str> = view.approvers.iter().map(|a| a.user.as_str()).collect();
        text +=
            &format!("Can approve: {}\n", if names.is_empty() { "nobody".into() } else { names.join(", ") });
        let mut rows = table(&["request", "for", "of", "approved by", "until"]);
        for r in &view.requests {
            rows.add_row([&r.id, &r.service, &r.user, &r.approvals.join(", "), &r.expires]);
        }
        if !view.requests.is_empty() {
            text += &lines(&rows);
        }
        text
    })?;
    Ok(Outcome::Good)
}

fn ask(args: &AskArgs, output: &Output) -> CliResult {
    let session = args.user.login(&args.store.open()?, args.store.uri()?)?.0;
    let request = session.ask_approval(args.service.into(), args.key, 0)?;
    session.close()?;
    fs::write(&args.to_sign, &request.to_sign)?;
    let file = args.to_sign.display().to_string();
    output.show(&Row::from(request), |r| {
        format!("Request {} for {}: approvers sign the bytes in {file} until {}.", r.id, r.service, r.expires)
    })?;
    Ok(Outcome::Good)
}
