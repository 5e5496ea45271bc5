//! A broker of one's own: fresh certificates, a directory, and a child process that can be killed and started again.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};

use super::{cert, exit::Failure, join::Join, now};
use crate::{
    Server,
    client::Profile,
    config::Config,
    net::{
        Address, SiteAuthority,
        authority::Validity,
        secret_file::{self, Access},
        tls::{NODE_CERTIFICATE_FILE, NODE_KEY_FILE},
    },
    types::{ClientName, InviteToken, NodeName, SiteName},
};

/// A broker that runs as a child process. It is killed when this is dropped.
#[derive(Debug)]
pub struct OwnBroker {
    program: PathBuf,
    dir: TempDir,
    profile: Profile,
    address: Option<SocketAddr>,
    http: Option<SocketAddr>,
    child: Option<Child>,
}

impl OwnBroker {
    /// Makes a site in a new directory below `parent`, by default the system's place for temporary files, and starts
    /// its node: `program` is the dunlin executable, `settings` are further lines of its configuration.
    ///
    /// # Errors
    /// If the directory or the certificates cannot be made, or the node does not start.
    pub async fn start(
        program: &Path,
        parent: Option<&Path>,
        settings: &str,
    ) -> Result<Self, Failure> {
        let mut broker = Self::found(program, parent, NAME, settings)?;
        broker.restart().await?;
        Ok(broker)
    }

    /// The first node of a site, not started yet.
    pub(super) fn found(
        program: &Path,
        parent: Option<&Path>,
        name: &str,
        settings: &str,
    ) -> Result<Self, Failure> {
        let dir = new_directory(parent)?;
        let profile = make_site(dir.path(), name)?;
        Self::prepare(program, dir, profile, name, settings)
    }

    /// A further node of the site to which `profile` leads, not started yet: it joins with this invite.
    pub(super) async fn join(
        program: &Path,
        parent: &Path,
        profile: &Profile,
        token: &InviteToken,
        (name, settings): (&str, &str),
    ) -> Result<Self, Failure> {
        let dir = new_directory(Some(parent))?;
        let broker = Self::prepare(program, dir, profile.clone(), name, settings)?;
        Join::as_configured(token, broker.config_file()).join().await?;
        Ok(broker)
    }

    fn prepare(
        program: &Path,
        dir: TempDir,
        profile: Profile,
        name: &str,
        settings: &str,
    ) -> Result<Self, Failure> {
        let program = program.into();
        let broker = Self { program, dir, profile, address: None, http: None, child: None };
        broker.configure(name, settings)?;
        Ok(broker)
    }

    /// Starts the node again, on the same data and port, and waits until it serves.
    ///
    /// # Errors
    /// If it does not start in time.
    pub async fn restart(&mut self) -> Result<(), Failure> {
        let address_file = self.dir.path().join("address");
        // The file of the last start must not be taken for this one's.
        let _ = fs::remove_file(&address_file);
        let log = fs::File::options().create(true).append(true).open(self.log_file());
        let log = log.map_err(|error| Failure::runtime(format!("no log file: {error}")))?;
        let mut command = Command::new(&self.program);
        command
            .arg("serve")
            .arg("--config")
            .arg(self.config_file())
            .arg("--address-file")
            .arg(&address_file)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            // Ends with us, however we end: then nobody holds the other side.
            .arg("--stop-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        let child = command.spawn().map_err(|error| {
            Failure::runtime(format!("cannot start {}: {error}", self.program.display()))
        })?;
        let child = self.child.insert(child);
        let (address, http) = match wait_for(&address_file, child).await {
            Ok(addresses) => addresses,
            Err(why) => {
                let log = self.log();
                let last: Vec<&str> = log.lines().rev().take(3).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                return Err(Failure::runtime(format!("the broker {why}: {}", last.join("; "))));
            }
        };
        self.http = http;
        if self.address.is_none() {
            self.address = Some(address);
            self.profile.addresses = vec![reachable(address)?];
            let config = fs::read_to_string(self.config_file()).unwrap_or_default();
            let fixed = config.replace(ADDRESS, &format!("address = '{address}'"));
            self.write_config(&fixed)?;
        }
        Ok(())
    }

    /// Ends the node as a power cut would, as far as a process can.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub async fn kill(&mut self) -> Result<(), Failure> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().await.map_err(|error| Failure::runtime(format!("cannot kill: {error}")))
    }

    /// Ends the node in order.
    ///
    /// # Errors
    /// If it does not end, or not well.
    pub async fn stop(&mut self) -> Result<(), Failure> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // An error says that it has ended already.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        match timeout(STOP_MAX, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(Failure::runtime(format!("the broker ended with {status}"))),
            Ok(Err(error)) => Err(Failure::runtime(format!("cannot wait: {error}"))),
            Err(_) => Err(Failure::runtime("the broker does not stop")),
        }
    }

    /// The process, while it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// What it answers to a `GET` of this path, such as `/metrics`: status line, headers and body.
    ///
    /// # Errors
    /// If it does not run, or does not answer.
    pub async fn http_get(&self, path: &str) -> Result<String, Failure> {
        let Some(http) = self.http else { return Err(Failure::runtime("the broker has no HTTP")) };
        let get = async {
            let mut stream = TcpStream::connect(http).await?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: own\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        match timeout(HTTP_MAX, get).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Failure::runtime(format!("the broker's {path}: {error}"))),
            Err(_) => Err(Failure::runtime(format!("the broker does not answer {path}"))),
        }
    }

    /// Lets the next start take another port, as on a machine that has got another address.
    ///
    /// # Errors
    /// If its configuration cannot be changed.
    pub fn forget_address(&mut self) -> Result<(), Failure> {
        let Some(address) = self.address.take() else { return Ok(()) };
        let config = fs::read_to_string(self.config_file()).unwrap_or_default();
        self.write_config(&config.replace(&format!("address = '{address}'"), ADDRESS))
    }

    /// What it has written to its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Its databases.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A profile that leads to it.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Its directory: what is written there goes away with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn configure(&self, name: &str, settings: &str) -> Result<(), Failure> {
        let data = self.data_dir();
        self.write_config(&format!(
            "[node]\nname = '{name}'\ndata_dir = '{}'\n\n\
             [listen]\n{ADDRESS}\nhttp = '127.0.0.1:0'\n\n\
             [log]\nlevel = 'warn'\nformat = 'text'\n\n{settings}\n",
            data.display()
        ))
    }

    fn write_config(&self, text: &str) -> Result<(), Failure> {
        fs::write(self.config_file(), text)
            .map_err(|error| Failure::runtime(format!("cannot write the configuration: {error}")))
    }

    fn config_file(&self) -> PathBuf {
        self.dir.path().join("dunlin.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

/// A broker inside this process, for documentation that runs.
#[derive(Debug)]
pub struct BrokerHere {
    _server: Server,
    site: OwnBroker,
}

impl BrokerHere {
    /// Makes a site in a new directory and serves it.
    ///
    /// # Panics
    /// If that does not work: then the example that asked for it does not either.
    pub async fn start() -> Self {
        let small = "[storage]\nlow_space = '64MiB'\nballast = '16MiB'\n";
        let mut site = OwnBroker::found(Path::new(""), None, NAME, small).expect("a directory");
        let config = Config::load(Some(&site.config_file())).expect("a good configuration");
        let server = Server::start(config).await.expect("a broker");
        site.profile.addresses = vec![reachable(server.address()).expect("a bound address")];
        Self { _server: server, site }
    }

    /// A profile that leads to it.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        self.site.profile()
    }
}

fn new_directory(parent: Option<&Path>) -> Result<TempDir, Failure> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("dunlin-");
    let dir = match parent {
        Some(parent) => builder.tempdir_in(parent),
        None => builder.tempdir(),
    };
    dir.map_err(|error| Failure::runtime(format!("no directory: {error}")))
}

/// Makes authority, node and client of a new site, and returns the client's profile.
pub(super) fn make_site(dir: &Path, node: &str) -> Result<Profile, Failure> {
    let pki = dir.join("data/pki");
    fs::create_dir_all(&pki).map_err(|error| Failure::runtime(format!("no directory: {error}")))?;
    let word = "the name is a plain word";
    let site: SiteName = "own".parse().expect(word);
    let node: NodeName = node.parse().expect(word);
    let client: ClientName = "own".parse().expect(word);
    let validity = Validity::as_long_as_the_authority(now());
    let authority = SiteAuthority::create(site, now())?;
    authority.save(&pki, None)?;
    let own = authority.issue_node(&node, &[], validity)?;
    let certificate = own.certificate_pem.as_bytes();
    secret_file::write_new(&pki.join(NODE_CERTIFICATE_FILE), certificate, Access::Public, None)?;
    let key = own.key_pem.as_bytes();
    secret_file::write_new(&pki.join(NODE_KEY_FILE), key, Access::Private, None)?;
    let anywhere = "127.0.0.1".parse().expect("a plain address");
    let profile = cert::client_profile(&authority, client, vec![anywhere], validity)?;
    // For those who want to look at it by hand.
    profile.save(&dir.join("client.toml"), None)?;
    Ok(profile)
}

/// The addresses that the child writes once it serves: of QUIC, and of HTTP if it has that.
async fn wait_for(
    file: &Path,
    child: &mut Child,
) -> Result<(SocketAddr, Option<SocketAddr>), String> {
    let deadline = Instant::now() + START_MAX;
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        let mut lines = text.lines().map(|line| line.parse().ok());
        if let Some(address) = lines.next().flatten() {
            return Ok((address, lines.next().flatten()));
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("ended with {status}"));
        }
        if timeout_at(deadline, looks.tick()).await.is_err() {
            return Err(format!("did not serve within {} s", START_MAX.as_secs()));
        }
    }
}

fn reachable(address: SocketAddr) -> Result<Address, Failure> {
    Address::new(&address.ip().to_string(), address.port()).map_err(Failure::runtime)
}

/// Of a node that is alone.
const NAME: &str = "own";
/// Port 0 until the first start has got one.
const ADDRESS: &str = "address = '127.0.0.1:0'";
const HTTP_MAX: Duration = Duration::from_secs(5);
const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);
