//! A broker of one's own: a child process with a fresh site in a temporary directory, on loopback.
//!
//! It is made by the commands that a user would give, so that what is shown is what users get.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::{Instant, interval};

use super::exit::Failure;
use crate::{client::Profile, net::Address};

/// A broker in a child process. Dropping it kills the process and removes the directory.
#[derive(Debug)]
pub(super) struct LocalBroker {
    dir: TempDir,
    child: Child,
    address: SocketAddr,
}

/// A child that does not serve by then will not.
const START_MAX: Duration = Duration::from_secs(30);
/// How often the address file is looked for.
const POLL: Duration = Duration::from_millis(5);

impl LocalBroker {
    /// Makes a site and starts its node. `within` is where the temporary directory goes.
    pub(super) async fn start(within: Option<&Path>) -> Result<Self, Failure> {
        let dir = match within {
            Some(within) => TempDir::with_prefix_in("dunlin-", within),
            None => TempDir::with_prefix("dunlin-"),
        };
        let dir = dir.map_err(|error| cannot("make a temporary directory", &error))?;
        write_config(dir.path(), 0)?;
        let made = program()?
            .args(["init", "--json", "--site", "local", "--node", "local"])
            .args(["--config".as_ref(), config_of(dir.path()).as_os_str()])
            .args(["--admin-profile".as_ref(), profile_of(dir.path()).as_os_str()])
            .stdout(Stdio::null())
            .status()
            .map_err(|error| cannot("run this program", &error))?;
        if !made.success() {
            return Err(Failure::runtime("the broker's site could not be made"));
        }
        let child = spawn(dir.path())?;
        let mut broker = Self { dir, child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        broker.address = broker.wait_for_address().await?;
        // From now on the same port, so that clients find it again.
        write_config(broker.dir.path(), broker.address.port())?;
        Ok(broker)
    }

    /// What clients connect with.
    pub(super) fn profile(&self) -> Result<Profile, Failure> {
        let mut profile = Profile::load(&profile_of(self.dir.path()))?;
        profile.addresses = vec![
            Address::new(&self.address.ip().to_string(), self.address.port())
                .map_err(Failure::runtime)?,
        ];
        Ok(profile)
    }

    /// Its process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its databases.
    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Ends the process as a crash would: by SIGKILL.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map_err(|error| cannot("kill the broker", &error))?;
        Ok(())
    }

    /// Starts the process again on the same data and the same port.
    pub(super) async fn restart(&mut self) -> Result<(), Failure> {
        self.child = spawn(self.dir.path())?;
        self.address = self.wait_for_address().await?;
        Ok(())
    }

    async fn wait_for_address(&mut self) -> Result<SocketAddr, Failure> {
        let file = address_of(self.dir.path());
        let deadline = Instant::now() + START_MAX;
        let mut ticks = interval(POLL);
        while Instant::now() < deadline {
            ticks.tick().await;
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Failure::runtime(format!("the broker ended at its start: {status}")));
            }
            let Ok(text) = fs::read_to_string(&file) else { continue };
            let Some(Ok(address)) = text.lines().next().map(str::parse) else { continue };
            fs::remove_file(&file).map_err(|error| cannot("remove its address file", &error))?;
            return Ok(address);
        }
        Err(Failure::runtime(format!("the broker did not serve within {START_MAX:?}")))
    }
}

impl Drop for LocalBroker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path) -> Result<Child, Failure> {
    program()?
        .arg("serve")
        .args(["--config".as_ref(), config_of(dir).as_os_str()])
        .args(["--address-file".as_ref(), address_of(dir).as_os_str()])
        // Ends with us, however we end: then nobody holds the other side.
        .arg("--stop-with-stdin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| cannot("start the broker", &error))
}

fn program() -> Result<Command, Failure> {
    let program = std::env::current_exe().map_err(|error| cannot("find this program", &error))?;
    Ok(Command::new(program))
}

fn write_config(dir: &Path, port: u16) -> Result<(), Failure> {
    let data = dir.join("data");
    let text = format!(
        "[node]\nname = \"local\"\ndata_dir = {data:?}\n\
         [listen]\naddress = \"127.0.0.1:{port}\"\nhttp = \"off\"\n\
         [storage]\nlow_space = \"64MiB\"\nballast = \"16MiB\"\n\
         [log]\nlevel = \"error\"\nformat = \"text\"\n"
    );
    fs::write(config_of(dir), text).map_err(|error| cannot("write a configuration", &error))
}

fn config_of(dir: &Path) -> PathBuf {
    dir.join("dunlin.toml")
}

fn profile_of(dir: &Path) -> PathBuf {
    dir.join("client.toml")
}

fn address_of(dir: &Path) -> PathBuf {
    dir.join("address")
}

fn cannot(what: &str, error: &std::io::Error) -> Failure {
    Failure::runtime(format!("cannot {what}: {error}"))
}
