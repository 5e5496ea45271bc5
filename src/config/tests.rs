use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("d.toml"))
}

#[track_caller]
fn refused(text: &str, start: &str, parts: &[&str]) {
    let error = parse(text).expect_err(text).to_string();
    assert!(error.starts_with(start), "{error}");
    for part in parts {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_empty_file_is_the_defaults() {
    assert_eq!(parse("").expect("allowed"), Config::default());
}

#[test]
fn every_key_can_be_set() {
    let text = r#"
[node]
name = "edge-1"
data_dir = "/srv/dunlin"
pki_dir = "/etc/dunlin/pki"
[listen]
address = "10.0.0.7:17440"
advertise = ["edge-1.plant.example", "10.0.0.7:17440"]
http = "off"
allow_anonymous = true
[storage]
shards = 12
cache = "16MiB"
low_space = "1GiB"
ballast = 1048576
[discovery]
mdns = false
domain = "plant.example"
tsig_key_file = "/etc/dunlin/zone.key"
domain_server = "10.0.0.53"
[cluster]
heartbeat = "200ms"
fence_after = "2s"
[limits]
connections = 100
streams_per_connection = 8
inflight_bytes_per_connection = "4MiB"
handshakes_per_address = 5
[topic_defaults]
partitions = 12
retention_age = "forever"
retention_bytes = "10GiB"
retention_records = 1000
[log]
level = "debug"
format = "json"
"#;
    let config = parse(text).expect("allowed");
    assert_eq!(config.node.name.as_ref().map(|name| name.as_str()), Some("edge-1"));
    assert_eq!(config.pki_dir(), Path::new("/etc/dunlin/pki"));
    assert_eq!(config.listen.http, None);
    assert_eq!(config.listen.advertise[0].to_string(), "edge-1.plant.example:7440");
    assert_eq!(config.storage.ballast, MIB);
    assert!(!config.discovery.mdns);
    assert_eq!(config.discovery.domain.as_deref(), Some("plant.example"));
    let server = config.discovery.domain_server.as_ref().map(ToString::to_string);
    assert_eq!(server.as_deref(), Some("10.0.0.53:53"));
    assert_eq!(config.discovery.tsig_key_file, Some("/etc/dunlin/zone.key".into()));
    let settings = config.topic_defaults.settings();
    assert_eq!((settings.partitions, settings.retention.age_ms), (12, None));
    assert_eq!(settings.retention.bytes, Some(10 * 1024 * MIB));
    assert_eq!(config.cluster.heartbeat, Duration::from_millis(200));
    assert_eq!(config.cluster.fence_after, Duration::from_secs(2));
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn what_is_shown_reads_back_as_the_same() {
    for text in ["", "[topic_defaults]\nretention_age = \"36h\"\n[storage]\ncache = 33554433"] {
        let config = parse(text).expect("allowed");
        assert_eq!(parse(&config.to_toml()).expect("allowed"), config.effective());
    }
    assert!(Config::default().to_toml().contains("retention_age = \"7d\""));
    assert!(Config::default().to_toml().contains("cache = \"32MiB\""));
}

#[test]
fn an_unknown_key_is_refused_with_the_allowed_ones() {
    refused(
        "[listen]\nadress = \"[::]:1\"\n",
        "d.toml:2:1: key 'listen.adress': no such key, allowed are ",
        &["address, advertise, http, allow_anonymous"],
    );
    refused("\n[lisen]\n", "d.toml:2:2: key 'lisen': no such key", &["listen", "topic_defaults"]);
}

#[test]
fn a_bad_value_is_refused_with_what_is_allowed() {
    refused("[listen]\naddress = \"here\"", "d.toml:2:11: key 'listen.address':", &["[::]:7440"]);
    refused("[listen]\naddress = 7440", "d.toml:2:11: key 'listen.address':", &["[::]:7440"]);
    refused("[log]\nlevel = \"loud\"", "d.toml:2:9: key 'log.level':", &["loud", "trace"]);
    refused("[node]\nname = \"a b\"", "d.toml:2:8: key 'node.name':", &["' '"]);
    refused("[storage]\ncache = \"a lot\"", "d.toml:2:9: key 'storage.cache':", &["1MiB", "64GiB"]);
    refused(
        "[topic_defaults]\nretention_age = \"soon\"",
        "d.toml:2:17: key 'topic_defaults.retention_age':",
        &["forever", "7d"],
    );
    refused("log.level = true", "d.toml:1:13: key 'log.level':", &[]);
}

#[test]
fn a_value_out_of_range_is_refused_with_the_range() {
    refused("[storage]\nshards = 65", "d.toml:2:10: key 'storage.shards':", &["65", "1 to 64"]);
    refused("[storage]\nshards = -1", "d.toml:2:10: key 'storage.shards':", &["-1", "1 to 64"]);
    refused("[limits]\nconnections = 0", "d.toml:2:15: key 'limits.connections':", &["1 to"]);
    refused("storage.cache = \"1KiB\"", "d.toml:1:17: key 'storage.cache':", &["1KiB", "1MiB"]);
    refused(
        "[topic_defaults]\npartitions = 257",
        "d.toml:2:14: key 'topic_defaults.partitions':",
        &["1 to 256"],
    );
}

#[test]
fn few_lost_heartbeats_depose_nobody() {
    let key = "d.toml:2:15: key 'cluster.fence_after':";
    refused("[cluster]\nfence_after = \"100ms\"", key, &["600ms", "10s"]);
    refused("[cluster]\nfence_after = 700", key, &["600ms"]);
    refused("[cluster]\nheartbeat = \"1ms\"", "d.toml:2:13: key 'cluster.heartbeat':", &["100ms"]);
    refused(
        "[cluster]\nheartbeat = \"200ms\"",
        "d.toml: key 'cluster.fence_after':",
        &["700ms", "6 times", "200ms"],
    );
}

#[test]
fn a_name_server_listens_at_port_53_unless_it_is_said() {
    let of = |text: &str| {
        let text = format!(
            "discovery = {{ domain = 'a', tsig_key_file = 'k', domain_server = '{text}' }}"
        );
        parse(&text).expect("allowed").discovery.domain_server.map(|server| server.to_string())
    };
    for (text, read) in [
        ("ns1.plant.example", "ns1.plant.example:53"),
        ("ns1:5353", "ns1:5353"),
        ("10.0.0.7:7440", "10.0.0.7:7440"),
        ("fd77::7440", "[fd77::7440]:53"),
        ("[fd77::1]:7440", "[fd77::1]:7440"),
    ] {
        assert_eq!(of(text).as_deref(), Some(read));
    }
    assert_eq!(of("auto"), None);
}

#[test]
fn registering_needs_a_domain_and_a_key() {
    let key = "[discovery]\ntsig_key_file = \"k\"";
    refused(key, "d.toml:2:1: key 'discovery.tsig_key_file':", &["discovery.domain"]);
    refused(
        "[discovery]\ndomain = \"a\"\ndomain_server = \"ns1\"",
        "d.toml:3:1: key 'discovery.domain_server':",
        &["discovery.tsig_key_file"],
    );
    refused("[discovery]\ndomain_server = \"a b\"", "d.toml:2:17: key", &["auto", "10.0.0.53:53"]);
    refused("[discovery]\ntsig_key_file = 5", "d.toml:2:17: key", &["a path"]);
}

#[test]
fn http_stays_on_loopback() {
    refused("[listen]\nhttp = \"0.0.0.0:1\"", "d.toml:2:8: key 'listen.http':", &["loopback"]);
    assert!(parse("[listen]\nhttp = \"[::1]:7441\"").is_ok());
    assert_eq!(parse("[listen]\nhttp = \"\"").expect("allowed").listen.http, None);
}

#[test]
fn ballast_must_not_open_a_full_disk() {
    refused(
        "[storage]\nballast = \"1GiB\"",
        "d.toml:2:1: key 'storage.ballast':",
        &["1GiB", "256MiB"],
    );
    refused("[storage]\nlow_space = \"32MiB\"", "d.toml: key 'storage.ballast':", &["64MiB"]);
}

#[test]
fn a_file_that_is_no_toml_is_refused_with_its_place() {
    refused("[listen]\naddress = \n", "d.toml:2:", &[]);
    refused("ä = [\n", "d.toml:", &[]);
}

#[test]
fn a_named_file_must_exist() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("none.toml");
    let error = Config::load(Some(&path)).expect_err("missing").to_string();
    assert!(error.contains("none.toml"), "{error}");
}
