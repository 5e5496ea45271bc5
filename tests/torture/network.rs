//! Where the nodes of a site live: hosts of their own on one switch, if this machine lets us make them, else loopback.

use std::{
    fs::{self, File},
    io::Write as _,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    process::{self, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::wire::{Quality, Wires};

/// Number of the host that clients live on.
const CLIENTS: usize = 99;
/// The near ends of cables lie so many numbers above their nodes.
const WIRED: usize = 100;
/// Of every node.
pub(crate) const PORT: u16 = 7440;

/// The hosts of a site. What was made is removed with it.
#[derive(Debug)]
pub(crate) enum Network {
    /// All on this host, each node at an address of its own.
    Loopback,
    /// All on this host, each behind a cable that can be bad.
    Wired(Wires),
    /// A network namespace each, on a bridge in another.
    Switch(Switch),
}

impl Network {
    /// One with namespaces, or why there can be none.
    pub(crate) fn switched(hosts: usize) -> Result<Self, String> {
        let serial = SERIAL.fetch_add(1, SeqCst);
        clear_what_others_left();
        let switch =
            Switch { prefix: format!("{PREFIX}{}-{serial}", process::id()), rules: Vec::new() };
        let numbers = (0..hosts).chain([CLIENTS]);
        // What was made before it failed goes with the value.
        numbers.fold(switch.make(), |made, host| made.and_then(|()| switch.add_host(host)))?;
        switch.apply()?;
        Ok(Self::Switch(switch))
    }

    /// One whose cables can be made bad, good at first.
    pub(crate) fn wired(hosts: usize) -> Self {
        let port = |host| (loopback(host), PORT).into();
        let pairs = (0..hosts).map(|host| (port(host + WIRED), port(host))).collect();
        Self::Wired(Wires::new(pairs, 1).unwrap())
    }

    /// Where others find a host, if not at its own address.
    fn advertised(&self, host: usize) -> Option<Ipv4Addr> {
        matches!(self, Self::Wired(_)).then(|| loopback(host + WIRED))
    }

    pub(crate) fn wires(&self) -> Option<&Wires> {
        match self {
            Self::Wired(wires) => Some(wires),
            Self::Loopback | Self::Switch(_) => None,
        }
    }

    /// Where others find a node.
    pub(crate) fn found_at(&self, host: usize) -> String {
        let address = self.advertised(host).unwrap_or_else(|| self.address(host));
        format!("{address}:{PORT}")
    }

    pub(crate) fn address(&self, host: usize) -> Ipv4Addr {
        let last = u8::try_from(host + 1).unwrap();
        match self {
            Self::Loopback | Self::Wired(_) => loopback(host),
            Self::Switch(_) => Ipv4Addr::new(10, 77, 0, last),
        }
    }

    /// A command that runs on a host. Its process is the program itself.
    pub(crate) fn command(&self, host: usize, program: &str) -> Command {
        match self {
            Self::Loopback | Self::Wired(_) => Command::new(program),
            Self::Switch(switch) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &switch.host(host), program]);
                command
            }
        }
    }

    /// Moves this thread to where clients live; those that it starts are there too.
    pub(crate) fn enter(&self) {
        if let Self::Switch(switch) = self {
            let file = File::open(format!("/run/netns/{}", switch.host(CLIENTS))).unwrap();
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        }
    }

    /// All cuts and losses end.
    pub(crate) fn heal(&mut self) -> Result<(), String> {
        match self {
            Self::Loopback => {}
            Self::Wired(wires) => wires.set(Quality::default()),
            Self::Switch(switch) => switch.heal()?,
        }
        Ok(())
    }

    pub(crate) fn switch(&mut self) -> Option<&mut Switch> {
        match self {
            Self::Loopback | Self::Wired(_) => None,
            Self::Switch(switch) => Some(switch),
        }
    }
}

/// An address of this process, so that runs beside each other do not meet.
fn loopback(host: usize) -> Ipv4Addr {
    let [.., high, low] = process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + high % 120, low, u8::try_from(host + 1).unwrap())
}

/// Hosts on a bridge whose ports can lose frames.
#[derive(Debug)]
pub(crate) struct Switch {
    prefix: String,
    rules: Vec<Rule>,
}

/// Frames from one host to another, or from or to all of them, of which so many of a thousand are lost.
#[derive(Clone, Debug)]
struct Rule {
    from: Option<usize>,
    to: Option<usize>,
    lost: u32,
}

impl Switch {
    /// No frame passes between the two, and nobody is told.
    pub(crate) fn cut(&mut self, a: usize, b: usize) -> Result<(), String> {
        let rule = |from, to| Rule { from: Some(from), to: Some(to), lost: 1_000 };
        self.rules.extend([rule(a, b), rule(b, a)]);
        self.apply()
    }

    /// The host hears nobody and nobody hears it, clients too, and no side is told.
    pub(crate) fn isolate(&mut self, host: usize) -> Result<(), String> {
        let rule = |from, to| Rule { from, to, lost: 1_000 };
        self.rules.extend([rule(Some(host), None), rule(None, Some(host))]);
        self.apply()
    }

    /// Every frame is lost with this chance, in thousandths.
    pub(crate) fn lose(&mut self, lost: u32) -> Result<(), String> {
        self.rules.push(Rule { from: None, to: None, lost });
        self.apply()
    }

    /// The cable of a host is pulled or put back: both ends see that.
    pub(crate) fn plug(&self, host: usize, state: &str) -> Result<(), String> {
        run("ip", &["-n", &self.middle(), "link", "set", &format!("p{host}"), state]).map(drop)
    }

    fn heal(&mut self) -> Result<(), String> {
        self.rules.clear();
        self.apply()
    }

    /// The rules replace those before in one step.
    fn apply(&self) -> Result<(), String> {
        let mut text = String::from(
            "table bridge torture\ndelete table bridge torture\ntable bridge torture { chain cuts {\n\
             type filter hook forward priority 0; policy accept;\n",
        );
        for Rule { from, to, lost } in &self.rules {
            if let Some(from) = from {
                text.push_str(&format!("iifname \"p{from}\" "));
            }
            if let Some(to) = to {
                text.push_str(&format!("oifname \"p{to}\" "));
            }
            if *lost < 1_000 {
                text.push_str(&format!("ip protocol udp numgen random mod 1000 < {lost} "));
            }
            text.push_str("drop\n");
        }
        text.push_str("}\n}\n");
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.middle(), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("no ip: {error}"))?;
        // Dropped behind the write: nft reads to the end.
        let written = nft.stdin.take().unwrap().write_all(text.as_bytes());
        let output = nft.wait_with_output().map_err(|error| error.to_string())?;
        match (output.status.success(), written) {
            (true, Ok(())) => Ok(()),
            _ => Err(format!("nft: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    fn make(&self) -> Result<(), String> {
        let middle = self.middle();
        run("ip", &["netns", "add", &middle])?;
        // Without the delay of 0 a new port is mute for 15 s.
        let bridge = ["link", "add", "br0", "type", "bridge", "mcast_snooping", "0"];
        run("ip", &[&["-n", &middle][..], &bridge, &["forward_delay", "0"]].concat())?;
        run("ip", &["-n", &middle, "link", "set", "br0", "up"]).map(drop)
    }

    fn add_host(&self, number: usize) -> Result<(), String> {
        let host = self.host(number);
        run("ip", &["netns", "add", &host])?;
        run("ip", &["-n", &host, "link", "set", "lo", "up"])?;
        self.add_cable(&host, "eth0", &format!("p{number}"))?;
        let address = format!("10.77.0.{}/24", number + 1);
        run("ip", &["-n", &host, "addr", "add", &address, "dev", "eth0"])?;
        run("ip", &["-n", &host, "link", "set", "eth0", "up"]).map(drop)
    }

    /// A cable from a host to a port of the bridge; the host's end is down.
    pub(crate) fn add_cable(&self, host: &str, interface: &str, port: &str) -> Result<(), String> {
        let middle = self.middle();
        let pair = ["link", "add", interface, "type", "veth", "peer", "name", port];
        run("ip", &[&["-n", host][..], &pair, &["netns", &middle]].concat())?;
        run("ip", &["-n", &middle, "link", "set", port, "master", "br0", "up"]).map(drop)
    }

    /// Gives a host an IPv6 address beside the other one.
    pub(crate) fn add_ipv6(&self, host: &str, last: usize) -> Result<(), String> {
        let address = format!("fd77::{last:x}/64");
        run("ip", &["-n", host, "addr", "add", &address, "dev", "eth0", "nodad"]).map(drop)
    }

    /// Where this process is.
    pub(crate) fn clients_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, u8::try_from(CLIENTS + 1).unwrap())
    }

    /// The host that this process is on.
    pub(crate) fn clients(&self) -> String {
        self.host(CLIENTS)
    }

    fn middle(&self) -> String {
        format!("{}-sw", self.prefix)
    }

    pub(crate) fn host(&self, number: usize) -> String {
        format!("{}-{number}", self.prefix)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        remove_all(&format!("{}-", self.prefix));
    }
}

/// Namespaces of test processes that were ended the hard way.
fn clear_what_others_left() {
    for name in names() {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            // Someone else may do the same.
            let _ = run("ip", &["netns", "del", &name]);
        }
    }
}

fn remove_all(prefix: &str) {
    for name in names().filter(|name| name.starts_with(prefix)) {
        if let Err(error) = run("ip", &["netns", "del", &name]) {
            eprintln!("namespace {name} stays: {error}");
        }
    }
}

fn names() -> impl Iterator<Item = String> {
    let found = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    found.filter_map(|entry| entry.file_name().into_string().ok())
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<Output, String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{program} {}: {complaint}", arguments.join(" ")))
}

const PREFIX: &str = "dunlin-t";
static SERIAL: AtomicU32 = AtomicU32::new(0);
