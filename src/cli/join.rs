//! `dunlin join`: makes this machine a node of a site that is there.
//!
//! The invite, the key and the disk's number are written down before anybody is asked, so that a join that was cut off
//! goes on as the same one.

use std::{
    fs,
    io::{self, Read as _},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    ConfigFile, Global, aside, cert,
    exit::Failure,
    init::{Files, make_directory, next_command, parent_of, service_user},
    now,
    output::Table,
    remote::block_on,
    units,
};
use crate::{
    config::{Config, host_name},
    discovery::{CaPrefix, Until, gather},
    limits::{DISCOVER_JOIN, INVITE_LEN_MAX},
    net::{
        Address, Invite,
        advertise::advertised,
        authority::{CA_CERTIFICATE_FILE, CA_KEY_FILE, IssuedCertificate, NodeRequest},
        joiner::{self, JoinError},
        secret_file::{self, Access, FileError},
        tls::{NODE_CERTIFICATE_FILE, NODE_KEY_FILE},
    },
    server::joined::{JOINED_FILE, Joined},
    types::{InviteToken, NodeId, NodeName, NodeRole, SiteName},
    wire::{JoinRequest, JoinWelcome, Octets, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN},
};

/// `dunlin join`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The node of the invite is asked only after it has proven to be of the invite's site. When the\n\
    addresses in the invite do not answer, the site is looked for on this network (multicast DNS).\n\
    Nothing is overwritten: a machine that has data or certificates is refused, or with --move-data-aside\n\
    they are moved into directories aside-N beside them. A join that was cut off goes on when it is run\n\
    again with the same invite.\n\n\
    Examples:\n  \
    dunlin join dunlin-invite-1.pWRzaXRl...\n  \
    dunlin join - --name edge-2 --advertise edge-2.plant.example < invite\n  \
    dunlin join --move-data-aside dunlin-invite-1.pWRzaXRl... --name edge-2b"
)]
pub struct Join {
    /// The invite that 'dunlin invite' printed on a node of the site, or - to read it from standard input
    token: String,
    #[command(flatten)]
    config: ConfigFile,
    /// Begin anew: what this machine has of a site is moved aside, nothing of it is deleted. It is
    /// another node then, with another name, as long as the site has the old one
    #[arg(long)]
    move_data_aside: bool,
    /// Name of this node [default: as configured, else the host name]
    #[arg(long, value_name = "NAME")]
    name: Option<NodeName>,
    /// Where its databases will lie [default: as configured]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// UDP address that it will listen on [default: as configured]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where others will find it; give it again for more [default: as configured, else the address listened on]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<Address>,
}

/// What a join has made.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    site: SiteName,
    node: NodeName,
    id: NodeId,
    role: NodeRole,
    files: Vec<PathBuf>,
    /// Where what the machine had is now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aside: Vec<PathBuf>,
    /// Lines that the configuration needs, because they were given here.
    set: Vec<String>,
    next: String,
}

impl Join {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        block_on(async { global.output().show(&self.join().await?, Done::in_words) })
    }

    /// With all that is not in the configuration left as it is.
    pub(super) fn as_configured(token: &InviteToken, config: PathBuf) -> Self {
        Self {
            token: token.as_str().to_owned(),
            config: ConfigFile { path: Some(config) },
            move_data_aside: false,
            name: None,
            data_dir: None,
            listen: None,
            advertise: vec![],
        }
    }

    /// Makes this machine a node.
    pub(super) async fn join(self) -> Result<Done, Failure> {
        let invite = self.invite()?;
        let (config, set) = self.configuration()?;
        let name = self.name.or_else(|| config.node.name.clone()).unwrap_or_else(host_name);
        let (data, pki) = (&config.node.data_dir, config.pki_dir());
        let kept = Draft::load(data)?.filter(|draft| draft.is_of(&invite, &name));
        if let Some(draft) = &kept {
            draft.clear_what_it_wrote(data, &pki);
        }
        let old = match self.move_data_aside {
            true => aside::check_stopped(data).map(|()| aside::OldAuthority::load(&pki))?,
            false => refuse_to_overwrite(data, &pki).map(|()| None)?,
        };
        let owner = service_user(data)?;
        make_directory(data, 0o700, owner)?;
        make_directory(parent_of(&pki), 0o755, None)?;
        make_directory(&pki, 0o700, owner)?;
        let draft = match kept {
            Some(draft) => draft,
            None => Draft::begin(&invite, &name, data)?,
        };
        let addresses = advertised(&config.listen.advertise, config.listen.address);
        let request = draft.request(&invite, &addresses)?;
        let welcome = joiner::join(
            &invite,
            &request,
            look_round(&invite, config.discovery.domain.as_deref()),
        )
        .await?;
        let own = |welcome: &JoinWelcome| IssuedCertificate {
            certificate_pem: welcome.certificate_pem.clone(),
            key_pem: draft.key.clone(),
        };
        joiner::check(&invite, &request, own(&welcome), &welcome, now())?;

        // Not before the site has said yes.
        let aside = match self.move_data_aside {
            true => aside::move_aside(data, &pki)?,
            false => Vec::new(),
        };
        let mut files = Files::default();
        if let Some(key) = old.as_ref().and_then(|old| old.key_of(&welcome.ca_pem)) {
            // The site has no other, perhaps.
            files.write(pki.join(CA_KEY_FILE), key, Access::Private, owner)?;
        }
        files.write(pki.join(NODE_KEY_FILE), &draft.key, Access::Private, owner)?;
        let certificate = pki.join(NODE_CERTIFICATE_FILE);
        files.write(certificate, &welcome.certificate_pem, Access::Public, owner)?;
        files.write(pki.join(CA_CERTIFICATE_FILE), &welcome.ca_pem, Access::Public, owner)?;
        // Last: where it is, all else is.
        joined(&welcome, draft.disk_id).save(data, owner)?;
        let mut made = files.keep();
        made.push(data.join(JOINED_FILE));
        // What is left of it is in no one's way but holds a key.
        let _ = fs::remove_file(data.join(DRAFT_FILE));
        Ok(Done {
            site: welcome.site,
            node: name,
            id: welcome.node,
            role: welcome.role,
            files: made,
            aside,
            set,
            next: next_command(&self.config),
        })
    }

    fn invite(&self) -> Result<Invite, Failure> {
        let mut text = self.token.clone();
        if text == "-" {
            text.clear();
            let mut input = io::stdin().lock().take(INVITE_LEN_MAX as u64);
            input
                .read_to_string(&mut text)
                .map_err(|error| Failure::runtime(format!("cannot read the invite: {error}")))?;
        }
        let invite: Invite = text.parse().map_err(|error| {
            Failure::usage(error).hint("make one on a node of the site: dunlin invite")
        })?;
        if invite.is_expired(units::timestamp(now())) {
            let expired = units::rfc3339(invite.expires);
            let message = format!("the invite expired at {expired}, by the clock of this machine");
            return Err(Failure::runtime(message).hint(
                "make a new one on a node of the site: dunlin invite; if it is new, set the clock",
            ));
        }
        Ok(invite)
    }

    /// What is configured with what was given, and the lines that the file lacks for it.
    fn configuration(&self) -> Result<(Config, Vec<String>), Failure> {
        let mut config = self.config.load()?;
        let mut set = Vec::new();
        if let Some(name) =
            self.name.as_ref().filter(|name| config.node.name.as_ref() != Some(name))
            && config.node.name.is_some()
        {
            set.push(format!("[node] name = \"{name}\""));
        }
        if let Some(dir) = self.data_dir.as_ref().filter(|dir| **dir != config.node.data_dir) {
            set.push(format!("[node] data_dir = \"{}\"", dir.display()));
            config.node.data_dir.clone_from(dir);
        }
        if let Some(listen) = self.listen.filter(|listen| *listen != config.listen.address) {
            set.push(format!("[listen] address = \"{listen}\""));
            config.listen.address = listen;
        }
        if !self.advertise.is_empty() && self.advertise != config.listen.advertise {
            let quoted: Vec<_> = self.advertise.iter().map(|a| format!("\"{a}\"")).collect();
            set.push(format!("[listen] advertise = [{}]", quoted.join(", ")));
            config.listen.advertise.clone_from(&self.advertise);
        }
        Ok((config, set))
    }
}

impl Done {
    fn in_words(&self) -> String {
        let mut table = Table::of_facts();
        table.row(["site", self.site.as_str()]).row(["node", self.node.as_str()]);
        table.row(["number", &self.id.to_string()]).row(["role", self.role.as_str()]);
        for (i, file) in self.files.iter().enumerate() {
            table.row([if i == 0 { "made" } else { "" }, &file.display().to_string()]);
        }
        for (i, dir) in self.aside.iter().enumerate() {
            table.row([if i == 0 { "moved to" } else { "" }, &dir.display().to_string()]);
        }
        let mut text = table.to_text();
        text.push('\n');
        for line in &self.set {
            text.push_str(&format!("Set in the configuration before the start: {line}\n"));
        }
        text.push_str(&format!("Next: {}\n", self.next));
        text
    }
}

/// Where nodes of the invite's site announce themselves on this network. An invite that names this machine itself leads
/// nowhere else.
async fn look_round(invite: &Invite, domain: Option<&str>) -> Vec<Address> {
    if invite.addresses.iter().any(cert::is_loopback) {
        return Vec::new();
    }
    let site = Some(CaPrefix::of(invite.ca.as_bytes()));
    match gather(site, domain, Until::Found(DISCOVER_JOIN)).await {
        Ok(table) => {
            let found = table.order(DISCOVER_JOIN, rand::random());
            let address =
                |socket: SocketAddr| Address::new(&socket.ip().to_string(), socket.port());
            found.into_iter().filter_map(|socket| address(socket).ok()).collect()
        }
        Err(error) => {
            tracing::debug!(%error, "the site cannot be looked for");
            Vec::new()
        }
    }
}

/// A join that has begun: kept until it is done, because the site may know its disk already.
#[derive(Serialize, Deserialize)]
struct Draft {
    invite: String,
    name: NodeName,
    #[serde(with = "crate::server::joined::hex")]
    disk_id: u128,
    key: String,
}

impl Draft {
    fn begin(invite: &Invite, name: &NodeName, data: &Path) -> Result<Self, Failure> {
        let draft = Self {
            invite: invite.id.to_string(),
            name: name.clone(),
            disk_id: rand::random(),
            key: NodeRequest::new()?.key_pem,
        };
        let text = toml::to_string(&draft).map_err(Failure::runtime)?;
        let path = data.join(DRAFT_FILE);
        // One of another invite: the site has no node of it, or one that never came.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::runtime(format!("cannot remove {}: {error}", path.display())));
            }
            _ => {}
        }
        secret_file::write_new(&path, text.as_bytes(), Access::Private, None)?;
        Ok(draft)
    }

    fn load(data: &Path) -> Result<Option<Self>, Failure> {
        let path = data.join(DRAFT_FILE);
        let text = match secret_file::read_private(&path) {
            Ok(text) => text,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // It holds a key: what is wrong with it is not quoted.
        toml::from_str(&text).map(Some).map_err(|_| {
            Failure::config(format!("{} is no join that has begun", path.display()))
                .hint("remove it, and make a new invite: dunlin invite")
        })
    }

    fn is_of(&self, invite: &Invite, name: &NodeName) -> bool {
        self.invite == invite.id.to_string() && self.name == *name
    }

    /// A join that was cut off among its last files may write them again. They are its own if the key is.
    fn clear_what_it_wrote(&self, data: &Path, pki: &Path) {
        let is_ours =
            secret_file::read_private(&pki.join(NODE_KEY_FILE)).is_ok_and(|key| key == self.key);
        if is_ours && !secret_file::exists(&data.join(JOINED_FILE)) {
            for file in [CA_CERTIFICATE_FILE, NODE_CERTIFICATE_FILE, NODE_KEY_FILE] {
                // One that stays is found by the next check, which names it.
                let _ = fs::remove_file(pki.join(file));
            }
        }
    }

    fn request(&self, invite: &Invite, addresses: &[Address]) -> Result<JoinRequest, Failure> {
        Ok(JoinRequest {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: PROTOCOL_VERSION,
            invite: invite.id,
            secret: invite.secret,
            name: self.name.clone(),
            disk_id: self.disk_id,
            csr: Octets(NodeRequest::of_key(&self.key)?.csr),
            addresses: addresses.iter().map(Address::to_string).collect(),
            software: crate::SOFTWARE.to_owned(),
        })
    }
}

fn joined(welcome: &JoinWelcome, disk_id: u128) -> Joined {
    Joined {
        site: welcome.site.clone(),
        node: welcome.node,
        disk_id,
        shards: welcome.shards,
        role: welcome.role,
        nodes: welcome.nodes.clone(),
    }
}

/// Looks at all that a machine which belongs to a site may have.
fn refuse_to_overwrite(data: &Path, pki: &Path) -> Result<(), Failure> {
    let databases = ["data.redb", "journal", "meta.redb", JOINED_FILE].map(|file| data.join(file));
    let keys = [CA_CERTIFICATE_FILE, CA_KEY_FILE, NODE_CERTIFICATE_FILE, NODE_KEY_FILE];
    let found = databases.into_iter().chain(keys.map(|file| pki.join(file)));
    match found.into_iter().find(|path| secret_file::exists(path)) {
        None => Ok(()),
        Some(path) => Err(Failure::from(FileError::Exists { path }).hint(
            "this machine belongs to a site already, nothing was changed: to let it join anew, stop it and \
             add --move-data-aside, or name other directories with --data-dir",
        )),
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        let failure = Self::runtime(&error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// A join that has begun, in the data directory.
const DRAFT_FILE: &str = "joining";
