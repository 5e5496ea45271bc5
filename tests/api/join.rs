//! How a machine becomes a node: the invite, who is believed, who is let in, and what the commands leave behind.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, SystemTime},
};

use dunlin::{
    client::{Client, Code, ConnectError, NodeRole, RequestError},
    net::{
        Address, Identity, Invite, SiteAuthority,
        authority::{IssuedCertificate, NodeRequest},
        joiner::{self, JoinError},
        tls::Credentials,
    },
    server::joined::Joined,
    types::{InviteSecret, NodeId},
    wire::{Fault, JoinRequest, JoinWelcome, Octets},
};

use super::Site;

impl Site {
    async fn invited(&self, lifetime: Option<Duration>) -> Invite {
        let invited = self.client.cluster().invite(NodeRole::Data, lifetime, &[]).await.unwrap();
        invited.token.as_str().parse().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.broker.dir().join("log")).unwrap()
    }
}

/// A machine that wants to join.
struct Machine {
    key: NodeRequest,
    disk_id: u128,
    name: &'static str,
}

impl Machine {
    fn new(name: &'static str, disk_id: u128) -> Self {
        Self { key: NodeRequest::new().unwrap(), disk_id, name }
    }

    fn request(&self, invite: &Invite) -> JoinRequest {
        JoinRequest {
            version_min: 1,
            version_max: 1,
            invite: invite.id,
            secret: invite.secret,
            name: self.name.parse().unwrap(),
            disk_id: self.disk_id,
            csr: Octets(self.key.csr.clone()),
            addresses: vec!["10.0.0.8:7440".into()],
            software: "test/1".into(),
        }
    }

    async fn join(&self, invite: &Invite) -> Result<JoinWelcome, JoinError> {
        joiner::join(invite, &self.request(invite), async { vec![] }).await
    }

    #[track_caller]
    fn refused(result: Result<JoinWelcome, JoinError>) -> Fault {
        match result {
            Err(JoinError::Refused { fault, .. }) => *fault,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_machine_with_an_invite_becomes_a_node_once_and_hears_it_as_often_as_it_asks() {
    let site = Site::start().await;
    let invite = site.invited(None).await;
    let machine = Machine::new("n-2", 2);
    let welcome = machine.join(&invite).await.unwrap();
    let own = |welcome: &JoinWelcome| IssuedCertificate {
        certificate_pem: welcome.certificate_pem.clone(),
        key_pem: machine.key.key_pem.clone(),
    };
    let (request, now) = (machine.request(&invite), SystemTime::now());
    joiner::check(&invite, &request, own(&welcome), &welcome, now).unwrap();
    let credentials = Credentials { ca_pem: welcome.ca_pem.clone(), own: Some(own(&welcome)) };
    let identity = credentials.identity().unwrap().as_ref().map(Identity::to_uri);
    assert_eq!(identity.as_deref(), Some("dunlin://own/node/n-2"));
    assert_eq!((welcome.shards, welcome.role), (12, NodeRole::Data));
    assert_eq!(welcome.nodes.len(), 1, "the other one");
    assert!(welcome.node > NodeId(1));

    let again = machine.join(&invite).await.unwrap();
    assert_eq!(again.node, welcome.node, "its answer may have been lost");
    joiner::check(&invite, &request, own(&again), &again, now).unwrap();

    for other in [Machine::new("n-3", 3), Machine::new("n-2", 3), Machine::new("n-3", 2)] {
        let fault = Machine::refused(other.join(&invite).await);
        assert_eq!(fault.code, Code::Forbidden);
        assert!(fault.message.contains("used by node 'n-2'"), "{fault}");
        assert!(fault.hint.unwrap().contains("dunlin invite"));
    }
    let status = site.client.cluster().status().await.unwrap();
    let names: Vec<_> = status.nodes.iter().map(|node| (&*node.name, node.started)).collect();
    assert_eq!(names, [("own", true), ("n-2", false)]);
    assert_eq!(status.invites, 0);
}

#[tokio::test]
async fn who_has_no_good_invite_stays_out_and_both_sides_say_why() {
    let mut site = Site::start().await;
    site.reconfigure(|config| config.replace("level = 'warn'", "level = 'info'")).await;
    let invite = site.invited(None).await;
    let machine = Machine::new("n-2", 2);

    let wrong = Invite { secret: InviteSecret::new(1), ..invite.clone() };
    let fault = Machine::refused(machine.join(&wrong).await);
    assert_eq!(fault.code, Code::Forbidden);
    assert!(fault.hint.unwrap().contains("dunlin invite"));
    assert!(
        Machine::refused(machine.join(&Invite { id: 1, ..invite.clone() }).await).hint.is_some()
    );

    let short = site.invited(Some(Duration::from_millis(1))).await;
    let fault = Machine::refused(machine.join(&short).await);
    assert!(fault.message.contains("expired"), "{fault}");

    let rubbish = JoinRequest { csr: Octets(vec![1, 2, 3]), ..machine.request(&invite) };
    let fault = Machine::refused(joiner::join(&invite, &rubbish, async { vec![] }).await);
    assert_eq!(fault.code, Code::Invalid);
    let taken = Machine::new("own", 2);
    let fault = Machine::refused(taken.join(&invite).await);
    assert!(fault.hint.unwrap().contains("--name"), "{}", fault.message);

    // None of them has used it up.
    machine.join(&invite).await.unwrap();
    let log = site.log();
    assert!(log.contains("join refused") && log.contains("machine joined the site"), "{log}");
    assert!(!log.contains(site.invited(None).await.to_token().as_str()), "{log}");
}

#[tokio::test]
async fn a_node_of_another_site_never_hears_the_secret() {
    let (site, other) = (Site::start().await, Site::start().await);
    let mut invite = site.invited(None).await;
    invite.addresses = other.broker.profile().addresses.clone();
    let error = Machine::new("n-2", 2).join(&invite).await.unwrap_err();
    // Both sites are called the same: only the authority tells them apart.
    assert!(matches!(error, JoinError::NotThisSite { .. }), "{error}");
    assert!(error.to_string().contains("the secret was not sent"), "{error}");
    assert!(other.log().lines().all(|line| !line.contains("join refused")), "{}", other.log());

    // The next address is tried.
    invite.addresses.extend(site.broker.profile().addresses.clone());
    Machine::new("n-2", 2).join(&invite).await.unwrap();
}

#[tokio::test]
async fn a_node_without_the_authoritys_key_says_so_and_uses_no_invite_up() {
    let site = Site::start().await;
    let invite = site.invited(None).await;
    let key = site.broker.data_dir().join("pki/ca.key");
    let away = site.broker.dir().join("ca.key");
    fs::rename(&key, &away).unwrap();
    let machine = Machine::new("n-2", 2);
    let fault = Machine::refused(machine.join(&invite).await);
    assert!(fault.message.contains("ca.key") && fault.hint.is_some(), "{fault}");
    fs::rename(&away, &key).unwrap();
    machine.join(&invite).await.unwrap();
}

#[tokio::test]
async fn who_has_no_certificate_may_only_join_and_is_told_so() {
    let site = Site::start().await;
    let mut profile = site.broker.profile().clone();
    (profile.certificate, profile.key) = (None, None);
    let error = Client::connect(&profile).await.unwrap_err();
    let ConnectError::CertificateRefused { why, .. } = &error else { panic!("{error:?}") };
    assert!(why.contains("without a certificate"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("cert issue")));
    assert!(error.is_definite());

    let open = Site::with_settings("").await;
    let mut open = open;
    open.reconfigure(|config| config.replace("[listen]\n", "[listen]\nallow_anonymous = true\n"))
        .await;
    let mut profile = open.broker.profile().clone();
    (profile.certificate, profile.key) = (None, None);
    let nobody = Client::connect(&profile).await.unwrap();
    let refused = nobody.cluster().invite(NodeRole::Data, None, &[]).await;
    assert!(matches!(refused, Err(RequestError::Fault(fault)) if fault.code == Code::Forbidden));
}

#[tokio::test]
async fn nodes_are_weighed_drained_and_removed_and_what_cannot_be_says_why() {
    let site = Site::start().await;
    let cluster = site.client.cluster();
    let invite = site.invited(None).await;
    let node = Machine::new("n-2", 2).join(&invite).await.unwrap().node;
    cluster.set_node(node, Some(50), Some(true)).await.unwrap();
    let status = cluster.status().await.unwrap();
    let found = status.nodes.iter().find(|found| found.id == node).unwrap();
    assert_eq!((found.weight, found.draining), (50, true));
    let own = status.nodes.iter().find(|node| node.name == "own").unwrap();
    assert!(own.liveness.is_some_and(|liveness| liveness.up), "{own:?}");
    assert_eq!(status.shards.len(), 12);
    assert!(status.shards.iter().all(|shard| shard.primary == Some(own.id)));

    let fault = |result: Result<(), RequestError>| match result {
        Err(RequestError::Fault(fault)) => fault,
        other => panic!("{other:?}"),
    };
    let refused = fault(cluster.set_node(NodeId(999), Some(1), None).await);
    assert!(refused.hint.unwrap().contains("cluster status"));
    let refused = fault(cluster.remove_node(own.id).await);
    assert!(refused.hint.unwrap().contains("cluster drain"), "{}", refused.message);
    cluster.remove_node(node).await.unwrap();
    assert_eq!(cluster.status().await.unwrap().nodes.len(), 1);
    let year = Duration::from_secs(365 * 24 * 3600);
    let long = cluster.invite(NodeRole::Data, Some(year), &[]).await;
    assert!(matches!(long, Err(RequestError::Fault(fault)) if fault.message.contains("7 days")));
}

/// Runs the program as a person on the new machine would.
fn join(dir: &std::path::Path, token: &str, more: &[&str]) -> Output {
    let config = dir.join("new.toml");
    let text = format!("[node]\nname = 'n-2'\ndata_dir = '{}'\n", dir.join("new").display());
    fs::write(&config, text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_dunlin"))
        .args(["join", token, "--config"])
        .arg(&config)
        .args(more)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn complains(output: &Output, code: i32, says: &[&str]) {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{complaint}");
    for part in says {
        assert!(complaint.contains(part), "{complaint}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_lead_from_an_invite_to_the_files_of_a_node() {
    let site = Site::start().await;
    let invited = site.run(&["invite", "--role", "witness", "--expires", "10m"]);
    let told = String::from_utf8(invited.stderr).unwrap();
    assert!(told.contains("dunlin join") && told.contains("Only this machine"), "{told}");
    let token = String::from_utf8(invited.stdout).unwrap();
    let dir = site.broker.dir();

    complains(&join(dir, "nonsense", &[]), 2, &["no invite", "dunlin invite"]);
    complains(&join(dir, &token.trim()[..60], &[]), 2, &["cut short"]);
    let mut old: Invite = token.parse().unwrap();
    old.expires.0 = 1;
    complains(&join(dir, old.to_token().as_str(), &[]), 1, &["expired", "dunlin invite"]);
    // A machine with a site of its own is left alone.
    let own = site.broker.data_dir();
    let taken = join(dir, &token, &["--data-dir", own.to_str().unwrap()]);
    complains(&taken, 1, &["exists already", "belongs to a site already"]);

    let output = join(dir, &token, &["--listen", "127.0.0.1:7450", "--json"]);
    complains(&output, 0, &[]);
    let done: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((done["node"].as_str(), done["role"].as_str()), (Some("n-2"), Some("witness")));
    assert!(done["set"][0].as_str().unwrap().contains("127.0.0.1:7450"), "{done}");

    let data: PathBuf = dir.join("new");
    let joined = Joined::load(&data).unwrap().unwrap();
    assert_eq!((joined.site.as_str(), joined.shards, joined.role), ("own", 12, NodeRole::Witness));
    assert_eq!(done["id"].as_u64(), Some(joined.node.0));
    assert!(!data.join("joining").exists(), "it holds a key");
    for (file, mode) in
        [("joined", 0o600), ("pki/node.key", 0o600), ("pki/node.pem", 0o644), ("pki", 0o700)]
    {
        let found = fs::metadata(data.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{file}");
    }
    let identity = Credentials::of_node(&data.join("pki")).unwrap().identity().unwrap().unwrap();
    assert_eq!(identity.to_uri(), "dunlin://own/node/n-2");

    complains(&join(dir, &token, &[]), 1, &["exists already"]);
    let shown = String::from_utf8(site.runs(&["cluster", "status"])).unwrap();
    assert!(shown.contains("n-2") && shown.contains("never started"), "{shown}");
    site.runs(&["node", "weight", "n-2", "0"]);
    site.runs(&["cluster", "drain", "n-2"]);
    site.runs(&["cluster", "undrain", "n-2"]);
    site.runs(&["cluster", "remove", "n-2"]);
    site.fails(&["cluster", "remove", "n-2"], 1, "its nodes are own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_was_cut_off_goes_on_as_the_same_machine() {
    let mut site = Site::start().await;
    let invite = site.invited(None).await;
    let token = invite.to_token();
    let dir = site.broker.dir().to_owned();
    let data = dir.join("new");
    site.broker.stop().await.unwrap();
    complains(&join(&dir, token.as_str(), &[]), 1, &["no answer"]);
    let draft = fs::read_to_string(data.join("joining")).unwrap();
    site.broker.restart().await.unwrap();

    complains(&join(&dir, token.as_str(), &[]), 0, &[]);
    let joined = Joined::load(&data).unwrap().unwrap();
    assert!(draft.contains(&format!("{:032x}", joined.disk_id)), "the same disk");

    // The power went before the last file, and the answer with it.
    fs::remove_file(data.join("joined")).unwrap();
    fs::write(data.join("joining"), &draft).unwrap();
    fs::set_permissions(data.join("joining"), fs::Permissions::from_mode(0o600)).unwrap();
    complains(&join(&dir, token.as_str(), &[]), 0, &[]);
    assert_eq!(Joined::load(&data).unwrap().unwrap(), joined);
}

#[tokio::test]
async fn an_invite_leads_where_the_node_says_that_it_is() {
    let mut site = Site::start().await;
    site.reconfigure(|config| {
        config.replace("[listen]\n", "[listen]\nadvertise = ['edge-1.plant.example:17']\n")
    })
    .await;
    let want: Vec<Address> = vec!["edge-1.plant.example:17".parse().unwrap()];
    assert_eq!(site.invited(None).await.addresses, want);
    assert_eq!(
        site.client.welcome().await.unwrap().nodes[0].addresses,
        ["edge-1.plant.example:17"]
    );
    let authority = SiteAuthority::load(&site.broker.data_dir().join("pki")).unwrap();
    assert_eq!(site.invited(None).await.ca, authority.fingerprint());
}
