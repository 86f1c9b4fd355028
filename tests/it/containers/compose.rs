//! The cluster that `scripts/cluster` starts, daemon and all.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};

use crate::rig::{Web, engine};

/// A cluster beside any other; gone when it is dropped.
struct Composed {
    project: String,
    tag: String,
    port: u16,
    http_port: u16,
}

impl Composed {
    fn new(tag: String) -> Self {
        // Free a moment ago, and not asked for by anybody else who asks as we do.
        let free = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
        let [port, http_port] = free.map(|listener| listener.local_addr().expect("bound").port());
        Self { project: format!("keyway-test-{}", std::process::id()), tag, port, http_port }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cluster"));
        command.args(args).env("KEYWAY_PROJECT", &self.project).env("KEYWAY_TAG", &self.tag);
        command.env("KEYWAY_PORT", self.port.to_string()).env("KEYWAY_HTTP_PORT", self.http_port.to_string());
        command.output().expect("the script")
    }

    #[track_caller]
    fn does(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "scripts/cluster {args:?}: {said}");
        said
    }

    #[track_caller]
    fn uses_its_key(&self, into: &str) {
        let without_plaintext = ["--without-plaintext", "--ciphertext-out", into];
        self.does(&[&["keyway", "generate-data-key", "--key", "alias/demo"], &without_plaintext[..]].concat());
    }
}

impl Drop for Composed {
    fn drop(&mut self) {
        let down = self.run(&["down"]);
        assert!(down.status.success() || std::thread::panicking(), "{down:?}");
    }
}

#[tokio::test]
async fn the_cluster_that_compose_starts_serves_without_one_hsm_and_keeps_its_keys_over_a_restart() {
    let Some(engine) = engine() else { return };
    let cluster = Composed::new(engine.tag());
    let said = cluster.does(&["up"]);
    assert!(said.contains("the key store \"demo\" is connected"), "{said}");
    cluster.does(&["keyway", "key", "create", "--key-store", "demo", "--alias", "alias/demo"]);
    cluster.does(&["compose", "pause", "hsm-2"]);
    cluster.uses_its_key("/run/keyway/first");
    // From the host, as a Prometheus there would.
    let web = Web(format!("127.0.0.1:{}", cluster.http_port));
    assert!(web.get("/readyz").await.body.starts_with("ready\n"));
    let asked = [("rpc", "CryptoService/GenerateDataKeyWithoutPlaintext"), ("code", "OK")];
    let told = web.until("keyway_requests_total", &asked, |calls| calls >= 1.0).await;
    assert_eq!(told.sum("keyway_hsm_health", &[]), 3.0);
    cluster.does(&["compose", "unpause", "hsm-2"]);
    // Everything stops and starts again, and what was made stays.
    cluster.does(&["compose", "stop"]);
    let said = cluster.does(&["up"]);
    assert!(said.contains("the key store \"demo\" is connected"), "{said}");
    let key = cluster.does(&["keyway", "key", "describe", "alias/demo"]);
    assert!(key.contains("ENABLED"), "{key}");
    cluster.uses_its_key("/run/keyway/second");
}
