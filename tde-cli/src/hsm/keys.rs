//! `tde hsm key`: objects of the HSM.

use hsm_engine::objects::{
    AttributeType as A, Class, Generate, KeyType, ObjectId, Scope, Template, Token, Value,
};
use serde::Serialize;
use uuid::Uuid;

use super::options::{Result, StoreArgs, UserArgs};
use crate::output::{Output, lines, table};
use crate::{CliResult, Outcome};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the keys, certificates and data that the user sees
    List(ListArgs),
    /// Make an AES key, or a pair of keys
    Create(CreateArgs),
    /// Destroy an object
    Delete(OneArgs),
    /// Let another crypto user use a key; nothing but the owner wraps, changes, shares or destroys it
    Share(ShareArgs),
    /// End that
    Unshare(ShareArgs),
    /// Set how many approvals a key needs (0, or 2 to 8)
    Quorum(QuorumArgs),
}

#[derive(clap::Args, Debug)]
pub(crate) struct Login {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    user: UserArgs,
    /// Id of a request that was approved, where the key asks for approvals
    #[arg(long, value_name = "ID")]
    request: Option<Uuid>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    login: Login,
    /// Only objects with this label
    #[arg(long)]
    label: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct CreateArgs {
    /// What to make
    kind: Kind,
    /// Its label
    #[arg(long)]
    label: String,
    /// May leave wrapped
    #[arg(long)]
    extractable: bool,
    /// May wrap and unwrap other keys
    #[arg(long)]
    wrap: bool,
    /// May derive others
    #[arg(long)]
    derive: bool,
    #[command(flatten)]
    login: Login,
}

#[derive(clap::Args, Debug)]
pub(crate) struct OneArgs {
    /// Id of the object
    #[arg(value_name = "ID")]
    id: Uuid,
    #[command(flatten)]
    login: Login,
}

#[derive(clap::Args, Debug)]
pub(crate) struct ShareArgs {
    /// Id of the key
    #[arg(value_name = "ID")]
    id: Uuid,
    /// The other user
    #[arg(long, value_name = "NAME")]
    with: String,
    #[command(flatten)]
    login: Login,
}

#[derive(clap::Args, Debug)]
pub(crate) struct QuorumArgs {
    /// Id of the key
    #[arg(value_name = "ID")]
    id: Uuid,
    /// Approvals for each use
    #[arg(long = "to-use", value_name = "N", default_value_t = 0)]
    to_use: u8,
    /// Approvals for wrapping, changing, sharing and destroying
    #[arg(long = "to-manage", value_name = "N", default_value_t = 0)]
    to_manage: u8,
    #[command(flatten)]
    login: Login,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Kind {
    Aes128,
    Aes256,
    Rsa2048,
    Rsa3072,
    Rsa4096,
    P256,
    P384,
    P521,
    Ed25519,
}

#[derive(Serialize)]
struct Keys {
    keys: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    id: String,
    label: String,
    class: &'static str,
    r#type: String,
    extractable: bool,
    shared_with: Vec<String>,
}

#[derive(Serialize)]
struct Made {
    ids: Vec<String>,
}

#[derive(Serialize)]
struct Said {
    done: String,
}

impl Login {
    fn token(&self) -> Result<Token> {
        let token = Token::open(self.user.login(&self.store.open()?, self.store.uri()?)?.0)?;
        if let Some(request) = self.request {
            token.session().present(request);
        }
        Ok(token)
    }
}

pub(super) fn run(command: &Command, output: &Output) -> CliResult {
    let done = match command {
        Command::List(args) => return list(args, output),
        Command::Create(args) => return create(args, output),
        Command::Delete(args) => {
            let token = args.login.token()?;
            token.destroy(ObjectId::from_uuid(args.id))?;
            token.close()?;
            format!("Object {} is destroyed; backups from before still have it.", args.id)
        }
        Command::Share(args) => share(args, true)?,
        Command::Unshare(args) => share(args, false)?,
        Command::Quorum(args) => {
            let token = args.login.token()?;
            token.set_key_quorum(ObjectId::from_uuid(args.id), args.to_use, args.to_manage)?;
            token.close()?;
            format!(
                "Key {} needs {} approvals to be used, {} to be managed.",
                args.id, args.to_use, args.to_manage
            )
        }
    };
    output.show(&Said { done }, |s| s.done.clone())?;
    Ok(Outcome::Good)
}

fn share(args: &ShareArgs, shared: bool) -> Result<String> {
    let token = args.login.token()?;
    token.share(ObjectId::from_uuid(args.id), &args.with, shared)?;
    token.close()?;
    let how = if shared { "may use" } else { "may no longer use" };
    Ok(format!("User {} {how} key {}.", args.with, args.id))
}

fn text(token: &Token, id: ObjectId, attribute: A) -> String {
    match token.get(id, attribute) {
        Ok(Value::Bytes(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        _ => String::new(),
    }
}

fn number(token: &Token, id: ObjectId, attribute: A) -> Option<u64> {
    match token.get(id, attribute) {
        Ok(Value::Number(n)) => Some(n),
        _ => None,
    }
}

fn row(token: &Token, id: ObjectId) -> Result<Row> {
    let class = number(token, id, A::Class).and_then(Class::from_number);
    let key_type = number(token, id, A::KeyType).and_then(KeyType::from_number);
    let bits = number(token, id, A::ModulusBits).or(number(token, id, A::ValueLen).map(|n| 8 * n));
    let name = match key_type {
        Some(KeyType::Rsa) => "RSA",
        Some(KeyType::Ec) => "EC",
        Some(KeyType::Edwards) => "Ed25519",
        Some(KeyType::Aes) => "AES",
        Some(KeyType::GenericSecret | KeyType::Purpose(_)) => "secret",
        None => "",
    };
    Ok(Row {
        id: id.to_string(),
        label: text(token, id, A::Label),
        class: match class {
            Some(Class::Data) => "data",
            Some(Class::Certificate) => "certificate",
            Some(Class::PublicKey) => "public key",
            Some(Class::PrivateKey) => "private key",
            Some(Class::SecretKey) => "secret key",
            None => "object",
        },
        r#type: bits.map_or(name.into(), |bits| format!("{name} {bits}")),
        extractable: matches!(token.get(id, A::Extractable), Ok(Value::Bool(true))),
        shared_with: token.shared_with(id)?,
    })
}

fn list(args: &ListArgs, output: &Output) -> CliResult {
    let token = args.login.token()?;
    let scope = token.new_scope();
    let mut wanted = Template::new();
    if let Some(label) = &args.label {
        wanted.push(A::Label, Value::Bytes(label.clone().into_bytes()));
    }
    let found = token.find(&scope, &wanted)?;
    let keys = found.into_iter().map(|id| row(&token, id)).collect::<Result<_>>()?;
    drop(scope);
    token.close()?;
    output.show(&Keys { keys }, |view| {
        let mut rows = table(&["id", "label", "class", "type", "extractable", "shared with"]);
        for k in &view.keys {
            let extractable = if k.extractable { "yes" } else { "no" };
            rows.add_row([&k.id, &k.label, k.class, &k.r#type, extractable, &k.shared_with.join(", ")]);
        }
        lines(&rows)
    })?;
    Ok(Outcome::Good)
}

fn create(args: &CreateArgs, output: &Output) -> CliResult {
    let token = args.login.token()?;
    let scope = token.new_scope();
    let ids = make(&token, &scope, args)?;
    drop(scope);
    token.close()?;
    let ids = ids.iter().map(ToString::to_string).collect();
    output.show(&Made { ids }, |m| m.ids.iter().map(|id| format!("{id}\n")).collect())?;
    Ok(Outcome::Good)
}

fn make(token: &Token, scope: &Scope, args: &CreateArgs) -> Result<Vec<ObjectId>> {
    let common = || {
        Template::new()
            .with(A::Token, Value::Bool(true))
            .with(A::Label, Value::Bytes(args.label.clone().into_bytes()))
    };
    let flag = Value::Bool;
    let bytes = match args.kind {
        Kind::Aes128 => Some(16),
        Kind::Aes256 => Some(32),
        _ => None,
    };
    if let Some(n) = bytes {
        let t = common()
            .with(A::ValueLen, Value::Number(n))
            .with(A::Extractable, flag(args.extractable))
            .with(A::Wrap, flag(args.wrap))
            .with(A::Unwrap, flag(args.wrap))
            .with(A::Derive, flag(args.derive));
        return Ok(vec![token.generate_key(scope, Generate::Aes, t)?]);
    }
    let curve = |der: &[u8]| common().with(A::EcParams, Value::Bytes(der.to_vec()));
    let rsa = |bits| common().with(A::ModulusBits, Value::Number(bits));
    let (how, public) = match args.kind {
        Kind::Rsa2048 => (Generate::Rsa, rsa(2048)),
        Kind::Rsa3072 => (Generate::Rsa, rsa(3072)),
        Kind::Rsa4096 => (Generate::Rsa, rsa(4096)),
        Kind::P256 => (Generate::Ec, curve(&[0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07])),
        Kind::P384 => (Generate::Ec, curve(&[0x06, 0x05, 0x2B, 0x81, 0x04, 0x00, 0x22])),
        Kind::P521 => (Generate::Ec, curve(&[0x06, 0x05, 0x2B, 0x81, 0x04, 0x00, 0x23])),
        Kind::Ed25519 | Kind::Aes128 | Kind::Aes256 => {
            (Generate::Edwards, curve(&[0x06, 0x03, 0x2B, 0x65, 0x70]))
        }
    };
    let private = common()
        .with(A::Extractable, flag(args.extractable))
        .with(A::Unwrap, flag(args.wrap))
        .with(A::Derive, flag(args.derive));
    let (public, private) =
        token.generate_key_pair(scope, how, public.with(A::Wrap, flag(args.wrap)), private)?;
    Ok(vec![public, private])
}
