//! `dunlin init`: a new site on this machine.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{ConfigFile, Global, cert, exit::Failure, now, output::Table};
use crate::{
    client::profile::{self, SYSTEM_PROFILE},
    config::host_name,
    net::{
        Address, SiteAuthority,
        authority::{CA_CERTIFICATE_FILE, CA_KEY_FILE, Validity},
        secret_file::{self, Access, FileError, Owner},
        tls::{NODE_CERTIFICATE_FILE, NODE_KEY_FILE},
    },
    types::{ClientName, NodeName, SiteName},
};

/// `dunlin init`
#[derive(Debug, clap::Args)]
#[command(after_help = "Nothing is overwritten: if any of the files exists, none is made.\n\n\
    Examples:\n  \
    dunlin init\n  \
    dunlin init --site plant-north --address edge-1.plant.example")]
pub struct Init {
    #[command(flatten)]
    config: ConfigFile,
    /// Name of the site [default: the name of the node]
    #[arg(long, value_name = "NAME")]
    site: Option<SiteName>,
    /// Name of this node [default: as configured, else the host name]
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// Where clients find this node; give it again for more [default: 127.0.0.1 and its port]
    #[arg(long = "address", value_name = "HOST:PORT")]
    addresses: Vec<Address>,
    /// Profile to make for the administrator [default: /etc/dunlin/client.toml for root, else your own]
    #[arg(long, value_name = "FILE")]
    admin_profile: Option<PathBuf>,
}

#[derive(Serialize)]
struct Made {
    site: SiteName,
    node: NodeName,
    ca_fingerprint: String,
    files: Vec<PathBuf>,
    admin_profile: PathBuf,
    next: String,
    #[serde(skip)]
    renamed: bool,
}

impl Init {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        let config = self.config.load()?;
        let node = self.node.or_else(|| config.node.name.clone()).unwrap_or_else(host_name);
        let node_differs = config.node.name.as_ref().is_some_and(|name| *name != node);
        let site = match self.site {
            Some(site) => site,
            None => node.as_str().parse().map_err(Failure::usage)?,
        };
        let admin_profile = match self.admin_profile.or_else(default_admin_profile) {
            Some(path) => path,
            None => return Err(Failure::usage("no home directory: give --admin-profile FILE")),
        };
        let pki = config.pki_dir();
        refuse_to_overwrite(&pki, &admin_profile)?;

        let validity = Validity::as_long_as_the_authority(now());
        let authority = SiteAuthority::create(site, now())?;
        let hosts: Vec<String> = self.addresses.iter().map(|a| a.host().to_owned()).collect();
        let own = authority.issue_node(&node, &hosts, validity)?;
        let addresses = cert::addresses_or_own(self.addresses, &config);
        let profile = cert::client_profile(&authority, admin_name(), addresses, validity)?;

        let owner = service_user(&config.node.data_dir)?;
        if pki.starts_with(&config.node.data_dir) {
            make_directory(&config.node.data_dir, 0o700, owner)?;
        }
        make_directory(parent_of(&pki), 0o755, None)?;
        make_directory(&pki, 0o700, owner)?;
        make_directory(parent_of(&admin_profile), 0o755, None)?;
        let mut files = Files::default();
        authority.save(&pki, owner)?;
        files.made.extend([CA_CERTIFICATE_FILE, CA_KEY_FILE].map(|file| pki.join(file)));
        files.write(
            pki.join(NODE_CERTIFICATE_FILE),
            &own.certificate_pem,
            Access::Public,
            owner,
        )?;
        files.write(pki.join(NODE_KEY_FILE), &own.key_pem, Access::Private, owner)?;
        profile.save(&admin_profile, None)?;
        files.made.push(admin_profile.clone());

        let made = Made {
            site: authority.site().clone(),
            node,
            ca_fingerprint: authority.fingerprint().to_string(),
            files: files.keep(),
            admin_profile,
            next: next_command(&self.config),
            renamed: node_differs,
        };
        global.output().show(&made, Made::in_words)
    }
}

impl Made {
    fn in_words(&self) -> String {
        let mut table = Table::of_facts();
        table.row(["site", self.site.as_str()]).row(["node", self.node.as_str()]);
        table.row(["ca sha-256", &self.ca_fingerprint]);
        for (i, file) in self.files.iter().enumerate() {
            table.row([if i == 0 { "made" } else { "" }, &file.display().to_string()]);
        }
        let mut text = table.to_text();
        text.push_str(&format!(
            "\nKeep {CA_KEY_FILE} safe: whoever has it can be anyone in this site.\n"
        ));
        if self.renamed {
            text.push_str(&format!(
                "Set name = \"{}\" under [node] in the configuration.\n",
                self.node
            ));
        }
        text.push_str(&format!("Next: {}\n", self.next));
        text
    }
}

/// The files made so far: all stay, or none.
#[derive(Default)]
pub(super) struct Files {
    made: Vec<PathBuf>,
}

impl Files {
    pub(super) fn write(
        &mut self,
        path: PathBuf,
        text: &str,
        access: Access,
        owner: Option<Owner>,
    ) -> Result<(), FileError> {
        secret_file::write_new(&path, text.as_bytes(), access, owner)?;
        self.made.push(path);
        Ok(())
    }

    pub(super) fn keep(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.made)
    }
}

impl Drop for Files {
    /// A site that is half made could not be made again.
    fn drop(&mut self) {
        for path in &self.made {
            let _ = fs::remove_file(path);
        }
    }
}

/// Looks at all files before the first is made.
fn refuse_to_overwrite(pki: &Path, admin_profile: &Path) -> Result<(), Failure> {
    let files = [CA_CERTIFICATE_FILE, CA_KEY_FILE, NODE_CERTIFICATE_FILE, NODE_KEY_FILE];
    if let Some(path) =
        files.map(|file| pki.join(file)).into_iter().find(|p| secret_file::exists(p))
    {
        let hint = "this node belongs to a site already; nothing was changed";
        return Err(Failure::from(FileError::Exists { path }).hint(hint));
    }
    if secret_file::exists(admin_profile) {
        let path = admin_profile.into();
        let hint = "nothing was changed: name another file with --admin-profile FILE";
        return Err(Failure::from(FileError::Exists { path }).hint(hint));
    }
    Ok(())
}

/// Root makes files for the service: its user owns the data directory, which the package has made.
pub(super) fn service_user(data_dir: &Path) -> Result<Option<Owner>, FileError> {
    if !is_root() || !secret_file::exists(data_dir) {
        return Ok(None);
    }
    Owner::of(data_dir).map(Some)
}

pub(super) fn make_directory(path: &Path, mode: u32, owner: Option<Owner>) -> Result<(), Failure> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    let owned = made.and_then(|()| match owner {
        Some(owner) => std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid)),
        None => Ok(()),
    });
    owned.map_err(|error| {
        let failure = Failure::runtime(format!("cannot make {}: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => failure.hint(
                "run as root, or set [node] data_dir to a directory of yours (--config FILE)",
            ),
            _ => failure,
        }
    })
}

pub(super) fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn default_admin_profile() -> Option<PathBuf> {
    if is_root() { Some(SYSTEM_PROFILE.into()) } else { profile::user_profile() }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn admin_name() -> ClientName {
    match "admin".parse() {
        Ok(name) => name,
        Err(error) => unreachable!("a plain word is a name: {error}"),
    }
}

pub(super) fn next_command(config: &ConfigFile) -> String {
    match &config.path {
        Some(path) => format!("dunlin serve --config {}", path.display()),
        None => "dunlin serve".into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        cli::{Cli, exit::Exit},
        client::profile::Profile,
        net::{
            Credentials,
            tls::{self, ALPN_CLIENT, ClientAuth},
        },
    };

    struct Machine {
        dir: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let text =
                format!("[node]\nname = 'edge-1'\ndata_dir = '{}/data'\n", dir.path().display());
            fs::write(dir.path().join("d.toml"), text).expect("written");
            Self { dir }
        }

        fn path(&self, file: &str) -> PathBuf {
            self.dir.path().join(file)
        }

        fn run(&self, args: &[&str]) -> Result<(), Failure> {
            let config = self.path("d.toml");
            let config = config.to_str().expect("UTF-8");
            let rest = ["--config", config, "--json"];
            let args = ["dunlin"].iter().chain(args).chain(&rest);
            let cli = Cli::try_parse_from(args).expect("good arguments");
            cli.command.run(&cli.global)
        }

        fn init(&self) -> Result<(), Failure> {
            let profile = self.path("admin.toml");
            self.run(&["init", "--admin-profile", profile.to_str().expect("UTF-8")])
        }
    }

    #[track_caller]
    fn told(result: Result<(), Failure>) -> (Exit, String) {
        match result.expect_err("refused") {
            Failure::Told { exit, message, .. } => (exit, message),
            Failure::ClosedPipe => panic!("nothing was told"),
        }
    }

    #[test]
    fn a_new_site_can_serve_and_be_dialled() {
        let machine = Machine::new();
        machine.init().expect("made");
        let node = Credentials::of_node(&machine.path("data/pki")).expect("read");
        tls::server_config(&node, ClientAuth::Required, &[ALPN_CLIENT], now()).expect("sound");
        let identity = node.identity().expect("readable").expect("named");
        assert_eq!(identity.to_uri(), "dunlin://edge-1/node/edge-1");
        let profile = Profile::load(&machine.path("admin.toml")).expect("read");
        tls::client_config(&profile.credentials(), &[ALPN_CLIENT]).expect("sound");
        assert_eq!(profile.site.as_str(), "edge-1");
        assert_eq!(profile.addresses, ["127.0.0.1:7440".parse().expect("address")]);
    }

    #[test]
    fn a_second_init_changes_nothing() {
        let machine = Machine::new();
        machine.init().expect("made");
        let before = fs::read(machine.path("data/pki/ca.pem")).expect("read");
        let (exit, message) = told(machine.init());
        assert_eq!(exit, Exit::Runtime);
        assert!(message.contains("ca.pem exists already"), "{message}");
        assert_eq!(fs::read(machine.path("data/pki/ca.pem")).expect("read"), before);
    }

    #[test]
    fn one_file_in_the_way_and_none_is_made() {
        let machine = Machine::new();
        fs::write(machine.path("admin.toml"), "mine").expect("written");
        let (_, message) = told(machine.init());
        assert!(message.contains("admin.toml exists already"), "{message}");
        assert!(!machine.path("data").exists());
    }

    #[test]
    fn what_fails_half_way_leaves_nothing() {
        let machine = Machine::new();
        let mut files = Files::default();
        files.write(machine.path("one"), "1", Access::Private, None).expect("written");
        fs::write(machine.path("two"), "theirs").expect("written");
        files.write(machine.path("two"), "2", Access::Private, None).expect_err("refused");
        drop(files);
        assert!(!machine.path("one").exists());
        assert!(machine.path("two").exists());
    }

    #[test]
    fn a_certificate_is_issued_once_for_a_file() {
        let machine = Machine::new();
        machine.init().expect("made");
        let out = machine.path("press.toml");
        let out = out.to_str().expect("UTF-8");
        let issue = ["cert", "issue", "press", "--out", out, "--address", "edge-1.example"];
        machine.run(&issue).expect("issued");
        let profile = Profile::load(Path::new(out)).expect("read");
        assert_eq!(profile.name.as_str(), "press");
        assert_eq!(profile.addresses, ["edge-1.example:7440".parse().expect("address")]);
        assert_eq!(told(machine.run(&issue)).0, Exit::Runtime);
    }

    #[test]
    fn a_node_without_an_authority_issues_nothing() {
        let machine = Machine::new();
        let out = machine.path("press.toml");
        let (exit, message) =
            told(machine.run(&["cert", "issue", "press", "--out", out.to_str().expect("UTF-8")]));
        assert_eq!(exit, Exit::Config);
        assert!(message.contains("ca.pem"), "{message}");
        assert!(!out.exists());
    }
}
