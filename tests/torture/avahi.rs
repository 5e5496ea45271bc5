//! dunlin beside avahi: what the one announces the other finds, on other hosts and on its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use dunlin::{
    client::{FoundNode, NodeId, Trust},
    discovery::{Announcement, CaPrefix},
    types::NodeRole,
};
use tempfile::TempDir;

use super::{lab::until, network::run, site::succeeds};

/// A daemon with a bus of its own on one host. Nothing of it is seen elsewhere on this machine. It ends with this, and with us.
pub(crate) struct Avahi {
    shell: Child,
    // Dropped after the daemons have ended.
    dir: TempDir,
}

/// One line of `avahi-browse --parsable --resolve`.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) family: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) said: Announcement,
}

impl Avahi {
    /// Starts one in a network namespace, if this machine has what it takes: else that is said.
    pub(crate) fn start(space: &str) -> Option<Self> {
        let needs = [("avahi-daemon", "-V"), ("avahi-browse", "-V"), ("dbus-daemon", "--version")];
        if let Some(why) = needs.iter().find_map(|(tool, ask)| run(tool, &[ask]).err()) {
            println!("no avahi ({why}): nothing is shown beside it");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("dunlin-avahi-").tempdir().unwrap();
        fs::write(dir.path().join("bus.conf"), BUS).unwrap();
        let daemon = format!(
            "[server]\nhost-name={space}\nallow-interfaces=eth0\nuse-ipv4=yes\nuse-ipv6=yes\n\
             [wide-area]\nenable-wide-area=no\n[publish]\npublish-workstation=no\n"
        );
        fs::write(dir.path().join("avahi.conf"), daemon).unwrap();
        fs::create_dir(dir.path().join("services")).unwrap();
        fs::write(dir.path().join("services/static.service"), STATIC).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut shell = Command::new("ip");
        // The mounts are those of this command alone: `ip netns exec` gives it a mount namespace.
        shell.args(["netns", "exec", space, "sh", "-ec", DAEMONS, "sh"]).arg(dir.path());
        shell.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        Some(Self { shell: shell.spawn().unwrap(), dir })
    }

    /// Nodes as `avahi-browse` resolves them on this host; none while the daemon is not up.
    pub(crate) fn browse(&self) -> Vec<Resolved> {
        let shell = self.shell.id().to_string();
        let browse = ["avahi-browse", "--resolve", "--parsable", "--terminate", "_dunlin._udp"];
        let found = run("nsenter", &[&["-t", &shell, "-m", "-n"][..], &browse].concat());
        let Ok(found) = found else { return vec![] };
        let text = String::from_utf8(found.stdout).unwrap();
        text.lines().filter_map(|line| resolved(line.strip_prefix("=;")?)).collect()
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

impl Drop for Avahi {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- avahi\n{}", fs::read_to_string(self.log()).unwrap_or_default());
        }
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// `eth0;IPv4;n0;_dunlin._udp;local;host.local;10.77.0.1;7440;"v=1" "id=1"`
fn resolved(line: &str) -> Option<Resolved> {
    let fields: Vec<&str> = line.splitn(9, ';').collect();
    let [_, family, instance, _, _, _, address, port, txt] = fields[..] else { return None };
    let keys = txt.split('"').filter_map(|key| key.split_once('='));
    Some(Resolved {
        family: family.to_owned(),
        address: address.to_owned(),
        port: port.parse().unwrap(),
        said: Announcement::from_txt(&unescaped(instance), keys).unwrap(),
    })
}

/// What is no letter stands there as three decimal digits.
fn unescaped(name: &str) -> String {
    let mut parts = name.split('\\');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let (digits, rest) = part.split_at_checked(3).unwrap_or((part, ""));
        match digits.parse::<u8>() {
            Ok(byte) => text + &char::from(byte).to_string() + rest,
            Err(_) => text + part,
        }
    })
}

/// Whether a host resolves all these nodes by both families, where they are and as they are.
pub(crate) async fn resolves(on: &Avahi, nodes: &[FoundNode]) {
    let mut last = vec![];
    let all = |found: &[Resolved]| {
        nodes.iter().all(|node| {
            ["IPv4", "IPv6"].iter().all(|family| {
                let of_it = |one: &&Resolved| one.said.id == node.id && one.family == **family;
                found.iter().filter(of_it).any(|one| is_as(one, node))
            })
        })
    };
    until("avahi resolves all nodes by both families", async || {
        last = on.browse();
        all(&last)
    })
    .await;
    for one in &last {
        println!("  avahi: {} {} {} {}", one.said.node, one.family, one.address, one.port);
    }
}

fn is_as(one: &Resolved, node: &FoundNode) -> bool {
    let said = &one.said;
    let same = (said.site.as_str(), said.node.as_str(), said.role, said.weight)
        == (node.site.as_str(), node.node.as_str(), node.role, node.weight);
    let at =
        node.addresses.iter().any(|at| at.ip().to_string() == one.address && at.port() == one.port);
    same && at && said.version == node.version && said.ca.to_string() == node.ca
}

/// Whether this is the node of the static file, with all that stands there.
pub(crate) fn is_static(node: &FoundNode) -> bool {
    let ca: CaPrefix = STATIC_CA.parse().unwrap();
    node.ca == ca.to_string()
        && (node.site.as_str(), node.node.as_str(), node.id) == ("elsewhere", "by-hand", NodeId(77))
        && (node.role, node.weight, node.load) == (NodeRole::Witness, 30, 5)
        && node.version == "0.9"
        && node.addresses.iter().all(|at| at.port() == 7_999)
        && node.trust == Trust::Unknown
}

/// The file of a host on which avahi announces a node that does not do so itself.
const STATIC: &str = r#"<?xml version="1.0" standalone='no'?>
<!DOCTYPE service-group SYSTEM "avahi-service.dtd">
<service-group>
  <name>by-hand</name>
  <service>
    <type>_dunlin._udp</type>
    <port>7999</port>
    <txt-record>v=0.9</txt-record>
    <txt-record>cluster=elsewhere</txt-record>
    <txt-record>id=77</txt-record>
    <txt-record>role=witness</txt-record>
    <txt-record>w=30</txt-record>
    <txt-record>load=5</txt-record>
    <txt-record>ca=00000000000000ff</txt-record>
  </service>
</service-group>
"#;
const STATIC_CA: &str = "00000000000000ff";

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/>
    <allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
</busconfig>
"#;

const DAEMONS: &str = r#"
mount -t tmpfs none /run
mkdir /run/dbus /run/avahi-daemon
mount --bind "$1/services" /etc/avahi/services
dbus-daemon --config-file="$1/bus.conf" --nofork --nopidfile &
bus=$!
while ! [ -S /run/dbus/system_bus_socket ]; do sleep 0.02; done
avahi-daemon --file="$1/avahi.conf" --no-drop-root --no-rlimits --no-chroot &
avahi=$!
trap 'kill $avahi $bus; wait' EXIT
read -r _ || true
"#;

/// What `dunlin discover` prints, for programs.
pub(crate) fn discovered(program: &str, profile: &Path) -> serde_json::Value {
    let mut command = Command::new(program);
    command.args(["discover", "--json", "--profile"]).arg(profile);
    serde_json::from_str(&succeeds(&mut command, "")).unwrap()
}
