//! The operations listener: who is told what of a daemon that works, fails, drains or is asked too much.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use faulty_pkcs11::Function::*;
use faulty_pkcs11::Rule;
use faulty_pkcs11::ckr::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::failing::ready;
use crate::rig::{Clients, PATIENCE, Rig, Served, Web, kill, pb, wait_async};

const ENCRYPT: &str = "CryptoService/Encrypt";

#[tokio::test]
async fn metrics_tell_what_happened() {
    let (rig, mut clients, store, key) = ready().await;
    let (web, cluster) = (rig.web(), rig.cluster_id());
    for _ in 0..25 {
        clients.encrypt(&key, b"attack at dawn").await;
    }
    assert!(clients.decrypt(b"KW, but no ciphertext").await.is_err());
    let told = web.until("keyway_requests_total", &[("rpc", ENCRYPT), ("code", "OK")], |n| n == 25.0).await;
    assert_eq!(told.sum("keyway_request_duration_seconds_count", &[("rpc", ENCRYPT)]), 25.0);
    assert_eq!(told.sum("keyway_hsm_operations_total", &[("operation", "encrypt"), ("outcome", "done")]), 25.0);
    assert_eq!(told.sum("keyway_requests_in_flight", &[("rpc", ENCRYPT)]), 0.0);
    let refused = [("rpc", "CryptoService/Decrypt"), ("code", "INVALID_ARGUMENT"), ("reason", "INVALID_CIPHERTEXT")];
    assert_eq!(told.sum("keyway_requests_total", &refused), 1.0);
    assert_eq!(told.sum("keyway_hsm_health", &[("cluster", &cluster), ("state", "HEALTHY")]), 3.0);
    assert_eq!(told.sum("keyway_hsm_health", &[("cluster", &cluster)]), 3.0, "each HSM is in one state");
    assert_eq!(told.sum("keyway_key_store_state", &[("key_store", &store), ("state", "CONNECTED")]), 1.0);
    assert_eq!(told.sum("keyway_key_store_keys", &[("key_store", &store)]), 1.0);
    assert_eq!(told.sum("keyway_key_store_connect_attempts_total", &[("key_store", &store)]), 1.0);
    assert_eq!(told.sum("keyway_hsm_logins_total", &[("outcome", "accepted")]), 3.0);
    assert!(told.sum("keyway_hsm_canary_duration_seconds_count", &[]) > 0.0);
    assert!(told.sum("keyway_records_write_duration_seconds_count", &[]) > 0.0);
    assert!(told.sum("keyway_connections", &[]) >= 1.0);

    // A worker dies, and another takes its place.
    kill(rig.worker_of("hsm-1"));
    clients.until_replaced(&store, "hsm-1", 1).await;
    let told = web.until("keyway_hsm_worker_restarts_total", &[("hsm", "hsm-1")], |n| n == 1.0).await;
    assert_eq!(told.sum("keyway_hsm_worker_restarts_total", &[]), 1.0);

    // An HSM fails: requests move on to others.
    rig.faults("hsm-2").set([Rule::fail(C_Encrypt, CKR_DEVICE_ERROR)]);
    wait_async(|| async {
        clients.clone().encrypt(&key, b"by another").await;
        (web.metrics().await.sum("keyway_hsm_requests_moved_total", &[("hsm", "hsm-2")]) > 0.0).then_some(())
    })
    .await;
    rig.faults("hsm-2").clear();

    // A password is refused once, and then no more.
    rig.faults("hsm-3").set([Rule::fail(C_Login, CKR_PIN_INCORRECT)]);
    kill(rig.worker_of("hsm-3"));
    clients.until_health(&store, "hsm-3", pb::HsmHealth::LoginRefused).await;
    let told = web.until("keyway_hsm_logins_total", &[("hsm", "hsm-3"), ("outcome", "refused")], |n| n == 1.0).await;
    assert_eq!(told.sum("keyway_hsm_logins_total", &[("outcome", "refused")]), 1.0);
    assert_eq!(told.sum("keyway_hsm_login_attempts_left", &[("hsm", "hsm-3")]), 0.0);
    assert_eq!(told.sum("keyway_hsm_health", &[("hsm", "hsm-3"), ("state", "LOGIN_REFUSED")]), 1.0);

    // What was counted of an HSM stays counted though its Connection ends.
    clients.disconnect(&store).await;
    let told = web.until("keyway_key_store_state", &[("state", "DISCONNECTED")], |n| n == 1.0).await;
    assert_eq!(told.sum("keyway_hsm_logins_total", &[("hsm", "hsm-3"), ("outcome", "refused")]), 1.0);
    assert_eq!(told.sum("keyway_hsm_sessions", &[]), 0.0);
}

#[tokio::test]
async fn a_scrape_tells_all_that_the_document_has_and_nothing_that_is_anybodys_secret() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let alias = pb::CreateAliasRequest { alias_name: "alias/payroll".to_owned(), target_key_id: key.clone() };
    clients.keys.create_alias(alias).await.expect("it is made");
    let plaintext = b"attack at dawn";
    let ciphertext = clients.encrypt("alias/payroll", plaintext).await;
    clients.decrypt(&ciphertext).await.expect("it opens");
    let told = rig.web().until("keyway_ready", &[], |ready| ready == 1.0).await;

    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(name, _)| name);
    let documented: BTreeSet<_> =
        rows.filter(|name| name.starts_with("keyway_") || name.starts_with("process_")).collect();
    let of_nodes = BTreeSet::from(["keyway_node_links", "keyway_node_links_limit"]);
    let names = told.names().into_iter().collect::<BTreeSet<_>>();
    assert_eq!(names, documented.difference(&of_nodes).copied().collect());

    let secrets = [&rig.password(), &key, "payroll", "attack", "kmsuser", &rig.home.path().display().to_string()];
    for secret in secrets {
        assert!(!told.0.contains(secret), "{secret}");
        assert!(!rig.web().get("/readyz").await.body.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn openmetrics_is_told_to_who_asks_for_it_and_a_head_without_a_body() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let ask = |method: &str, accept: &str| {
        format!("{method} /metrics HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\nconnection: close\r\n\r\n")
    };
    let open = rig.web().send(ask("GET", "application/openmetrics-text;version=1.0.0").as_bytes()).await;
    assert!(open.head.contains("application/openmetrics-text; version=1.0.0"), "{}", open.head);
    assert!(open.body.trim_end().ends_with("# EOF"), "{}", open.body);
    let usual = rig.web().send(ask("GET", "*/*").as_bytes()).await;
    assert!(usual.head.contains("text/plain; version=0.0.4") && !usual.body.contains("# EOF"), "{}", usual.head);
    let head = rig.web().send(ask("HEAD", "*/*").as_bytes()).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let page = rig.web().get("/docs/errors").await;
    assert!(page.head.contains("text/html") && page.body.contains("id=\"NO_NODE\""), "{}", page.head);
    assert_eq!(rig.web().get("/docs/decisions").await.status, 404);

    // Where errors refer to.
    let mut clients = rig.clients().await;
    let refused = clients.decrypt(b"no ciphertext").await.expect_err("it is none");
    let details = refused.get_error_details();
    let link = &details.help().expect("it helps").links[0].url;
    assert_eq!(*link, format!("http://{}/docs/errors#INVALID_CIPHERTEXT", rig.web().0));
    assert!(page.body.contains("id=\"INVALID_CIPHERTEXT\""));
}

#[tokio::test]
async fn a_daemon_without_an_hsm_is_ready_and_without_its_records_is_not() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    clients.all_healthy(&store).await;
    let cluster = rig.cluster_id();
    for hsm in ["hsm-1", "hsm-2"] {
        let request = pb::DrainHsmRequest { cluster_id: cluster.clone(), hsm_id: hsm.to_owned(), ..Default::default() };
        clients.clusters.drain_hsm(request).await.expect("it is drained");
        clients.until_health(&store, hsm, pb::HsmHealth::Drained).await;
    }
    let told = rig.web().get("/readyz").await;
    assert_eq!(told.status, 200, "{told:?}");
    assert_eq!(told.body, format!("ready\n{store}: CONNECTED, 0 of 2 HSMs serve\n"));

    let records = format!("sqlite:{}", rig.path("daemon/records.sqlite3").display());
    let records = sqlx::SqlitePool::connect(&records).await.expect("a database");
    sqlx::query("ALTER TABLE key_stores RENAME TO gone").execute(&records).await.expect("it is renamed");
    let told = until_status(&rig.web(), "/readyz", 503).await;
    assert!(told.starts_with("the records do not answer\n"), "{told}");
    assert_eq!(health(&clients).await, ServingStatus::NotServing, "it is one answer");
    assert_eq!(rig.web().get("/livez").await.status, 200, "a new process would not reach them either");
    sqlx::query("ALTER TABLE gone RENAME TO key_stores").execute(&records).await.expect("it is renamed");
    until_status(&rig.web(), "/readyz", 200).await;
    wait_async(|| async { (health(&clients).await == ServingStatus::Serving).then_some(()) }).await;
}

#[tokio::test]
async fn metrics_are_told_while_the_records_hang_and_without_them() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    clients.all_healthy(&store).await;
    clients.key(&store).await;
    let web = rig.web();
    web.until("keyway_key_store_keys", &[], |keys| keys == 1.0).await;
    let records = format!("sqlite:{}", rig.path("daemon/records.sqlite3").display());
    let records = sqlx::SqlitePool::connect(&records).await.expect("a database");
    // Who counts the keys comes to no end.
    let endless = "CREATE VIEW keys AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) \
                   SELECT gone.* FROM gone, n";
    for change in ["ALTER TABLE keys RENAME TO gone", endless] {
        sqlx::query(change).execute(&records).await.expect("it is changed");
    }
    let without = web.until("keyway_key_store_keys", &[], |keys| keys == 0.0);
    let told = tokio::time::timeout(Duration::from_secs(10), without).await.expect("it does not wait for them");
    assert_eq!(told.sum("keyway_hsm_health", &[("state", "HEALTHY")]), 2.0);
}

async fn until_status(web: &Web, path: &str, status: u16) -> String {
    wait_async(|| async { Some(web.get(path).await).filter(|told| told.status == status) }).await.body
}

/// Of the daemon as a whole.
async fn health(clients: &Clients) -> ServingStatus {
    let mut health = HealthClient::new(clients.channel.clone());
    health.check(HealthCheckRequest::default()).await.expect("it is told").into_inner().status()
}

#[tokio::test]
async fn a_daemon_that_drains_lives_and_is_not_ready() {
    let http = |_: &Rig| "\n[http]\nlisten = \"127.0.0.1:0\"".to_owned();
    let (mut served, rig) = Served::over(Rig::new().nodes(2).zones(2).faulty(), &["ops"], http).await;
    let (web, mut clients) = (served.web(), served.clients_on_the_socket().await);
    until_status(&web, "/readyz", 200).await;
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    for hsm in ["hsm-1", "hsm-2"] {
        rig.faults(hsm).set([Rule::delay(C_Encrypt, Duration::from_secs(3))]);
    }
    let call = tokio::spawn(async move { clients.encrypt(&key, b"until then").await });
    web.until("keyway_requests_in_flight", &[("rpc", ENCRYPT)], |n| n == 1.0).await;
    served.tell_to_stop();
    let told = until_status(&web, "/readyz", 503).await;
    assert!(told.starts_with("draining\n"), "{told}");
    assert_eq!(web.get("/livez").await.status, 200);
    assert!(!call.is_finished(), "it drained too soon for this to show anything");
    assert_eq!(web.metrics().await.sum("keyway_ready", &[]), 0.0);
    assert!(!call.await.expect("it is answered").is_empty());
    assert!(served.ended().await.success());
}

#[tokio::test]
async fn hostile_http_is_refused_and_costs_nothing() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let web = rig.web();
    let before = rig.resources();
    let long = "x".repeat(64 << 10);
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let requests = [
        ("another method", "POST /metrics HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), 405),
        ("a path that is not there", "GET /secrets HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(), 404),
        ("a way out", "GET /docs/../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(), 404),
        ("a body", format!("GET /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 65536\r\n\r\n{long}"), 413),
        ("a chunked body", "GET /livez HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n".to_owned(), 413),
        ("a long header", format!("GET /livez HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n"), 431),
        ("many headers", format!("GET /livez HTTP/1.1\r\nhost: x\r\n{many}\r\n"), 431),
        ("a long path", format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n"), 431),
        ("no HTTP", "\u{16}\u{3}\u{1} hello\r\n\r\n".to_owned(), 400),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 0),
    ];
    for (what, request, status) in requests {
        let answer = web.send(request.as_bytes()).await;
        // What is cut off in the middle may be reset before the answer is read.
        let cut_off = answer.status == 0 && matches!(status, 0 | 413 | 431 | 400);
        assert!(answer.status == status || cut_off, "{what}: {answer:?}");
        assert!(!answer.body.contains("root:"), "{what}");
    }
    assert_eq!(web.get("/livez").await.status, 200);

    // Whoever says nothing, or not all of it, has a place for ten seconds. Callers do not notice.
    let (mut silent, begun) = (Vec::new(), Instant::now());
    for number in 0..64 {
        let mut stream = web.connect().await;
        if number % 2 == 0 {
            stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x").await.expect("it is read");
        }
        silent.push(stream);
    }
    let ciphertext = clients.encrypt(&key, b"meanwhile").await;
    assert_eq!(clients.decrypt(&ciphertext).await.expect("it opens"), b"meanwhile");
    assert_eq!(web.get("/livez").await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(40), "their places are given back late: {:?}", begun.elapsed());
    for stream in &mut silent {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        let _ = closed.expect("it is closed");
    }
    drop(silent);
    wait_async(|| async { (rig.resources().descriptors <= before.descriptors).then_some(()) }).await;
    assert!(rig.resources().threads <= before.threads);
}

#[tokio::test]
async fn a_node_tells_of_its_links() {
    let mut rig = Rig::new().nodes(2).zones(2).remote().start();
    let mut clients = rig.clients().await;
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    let host = rig.host("hsm-2");
    host.stop();
    host.configure(|configuration| format!("http = {{ listen = \"127.0.0.1:0\" }}\n{configuration}"));
    host.start();
    let web = host.web();
    assert_eq!(web.get("/livez").await.status, 200);
    assert_eq!(web.get("/readyz").await.body, "ready\n");
    clients.all_healthy(&store).await;
    let told = web.until("keyway_node_links", &[], |links| links >= 1.0).await;
    assert_eq!(told.sum("keyway_node_links_limit", &[]), 256.0);
    assert!(told.sum("process_resident_memory_bytes", &[]) > 0.0);
}

#[test]
fn dev_listens_beyond_the_loopback_only_when_it_is_told_to() {
    let home = tempfile::tempdir().unwrap();
    let mut dev = std::process::Command::new(env!("CARGO_BIN_EXE_keyway"));
    dev.args(["dev", "--grpc-addr", "off", "--http-addr", "0.0.0.0:0", "--data-dir"]).arg(home.path().join("dev"));
    let refused = dev.output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("--http-addr 0.0.0.0:0 is not on the loopback"), "{said}");
}
