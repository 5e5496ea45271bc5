//! The commands that a person starts with.

use std::{
    fs,
    process::{Command, Output, Stdio},
    time::Duration,
};

use tokio::time::{Instant, interval};

use super::{Site, node::metric};

impl Site {
    pub(super) fn run(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
        let address = self.broker.profile().addresses[0].to_string();
        command
            .args(args)
            .arg("--profile")
            .arg(self.broker.dir().join("client.toml"))
            .args(["--server", &address])
            .env_remove("DUNLIN_SERVER")
            .env_remove("DUNLIN_PROFILE");
        command
    }

    #[track_caller]
    pub(super) fn runs(&self, args: &[&str]) -> Vec<u8> {
        let output = self.run(args);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {complaint}");
        output.stdout
    }

    #[track_caller]
    pub(super) fn fails(&self, args: &[&str], code: i32, says: &str) {
        let output = self.run(args);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {complaint}");
        assert!(complaint.contains(says), "{complaint}");
    }
}

/// What the process has sent last must arrive: nobody sends it again once it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_has_ended_is_gone_for_the_node_at_once() {
    // Sooner than the node finds out by itself.
    const SOON: Duration = Duration::from_secs(3);
    let site = Site::start().await;
    site.runs(&["topic", "create", "left", "--partitions", "1"]);
    site.runs(&["pub", "left", "one"]);
    for round in 0..30 {
        site.runs(&["sub", "left", "--from", "earliest", "--until-caught-up"]);
        let ended = Instant::now();
        let mut looks = interval(Duration::from_millis(10));
        // One is the test's own.
        while metric(&site.get("/metrics").await, "dunlin_connections") > 1.0 {
            assert!(ended.elapsed() < SOON, "round {round}: the node still has the connection");
            looks.tick().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_lines_comes_back_byte_for_byte() {
    let site = Site::start().await;
    let files: [(&str, &[u8]); 5] = [
        ("plain", b"one\ntwo\nthree\n"),
        ("no-end", b"one\n\ntwo"),
        ("windows", b"one\r\ntwo\r\n\r\n"),
        ("no-text", b"\xff\xfe\0\n\x80\n\n\n"),
        ("empty-lines", b"\n\n\n"),
    ];
    for (name, content) in files {
        let file = site.broker.dir().join(name);
        fs::write(&file, content).unwrap();
        site.runs(&["topic", "create", name, "--partitions", "1"]);
        site.runs(&["pub", name, "--file", file.to_str().unwrap()]);
        let lines = content.split_inclusive(|byte| *byte == b'\n').count().to_string();
        let by_count = site.runs(&["sub", name, "--from", "earliest", "--count", &lines]);
        assert_eq!(by_count, content, "{name}");
        let to_the_end = site.runs(&["sub", name, "--from", "earliest", "--until-caught-up"]);
        assert_eq!(to_the_end, content, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_keys_and_headers_are_shown_on_demand() {
    let site = Site::start().await;
    site.runs(&["topic", "create", "t", "--retention-age", "7d", "--retention-bytes", "1GiB"]);
    site.runs(&["pub", "t", "21.5", "21.6", "--key", "temp", "--header", "unit=C"]);
    let plain = site.runs(&["sub", "t", "--from", "0", "--count", "2", "--key", "--headers"]);
    assert_eq!(plain, b"temp\tunit=C\t21.5\ntemp\tunit=C\t21.6\n");
    let json = site.runs(&["sub", "t", "--from", "-1h", "--count", "1", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((&json["value"], &json["key"]), (&"21.5".into(), &"temp".into()));
    let shown = String::from_utf8(site.runs(&["topic", "show", "t"])).unwrap();
    assert!(shown.contains("7days") && shown.contains("1.0 GiB"), "{shown}");
    let listed = site.runs(&["topic", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
    assert_eq!(listed[0]["name"], "t");
    site.runs(&["topic", "set", "t", "--retention-age", "forever"]);
    site.runs(&["topic", "delete", "t", "--yes"]);
    assert!(site.runs(&["topic", "list"]).starts_with(b"no topics"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_has_its_exit_code_and_its_hint() {
    let site = Site::start().await;
    site.fails(&["pub", "nowhere", "a"], 1, "dunlin topic create nowhere");
    site.fails(&["sub", "nowhere"], 1, "dunlin topic create nowhere");
    site.fails(&["topic", "delete", "a"], 2, "--yes");
    site.fails(&["topic", "set", "a"], 2, "nothing to change");
    site.fails(&["sub", "a", "--from", "newest"], 2, "earliest, latest");
    site.fails(&["pub", "a//b", "x"], 2, "empty level");
    site.fails(&["pub", "a", "--file", "/no/such/file"], 1, "/no/such/file");
    site.runs(&["topic", "create", "long"]);
    let file = site.broker.dir().join("long");
    fs::write(&file, [&b"short\n"[..], &vec![b'x'; 2 << 20], b"\n"].concat()).unwrap();
    site.fails(&["pub", "long", "--file", file.to_str().unwrap()], 1, "line 2 of");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_is_no_error() {
    let site = Site::start().await;
    site.runs(&["topic", "create", "pipe"]);
    let file = site.broker.dir().join("lines");
    fs::write(&file, "a line of some length\n".repeat(50_000)).unwrap();
    site.runs(&["pub", "pipe", "--file", file.to_str().unwrap()]);
    let mut command = site.command(&["sub", "pipe", "--from", "earliest"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}
