//! `keyway serve` as operators run it: a configuration file, mutual TLS, tokens that are there already.

mod configuration;
mod handshake;

use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_types::StatusExt;

use crate::rig::{Clients, Rig, Served, pb, reason, refused};

const ADMIN: &str = "platform-engineer";
const WORKLOAD: &str = "spiffe://example.org/payments";

/// Tokens of a development cluster whose daemon has ended, served by `keyway serve`; in this order, so that the daemon
/// goes before the tokens.
async fn served() -> (Rig, Served) {
    let (served, rig) = Served::over(Rig::new().nodes(2).zones(2), &[ADMIN, WORKLOAD], |_| String::new()).await;
    (rig, served)
}

#[tokio::test]
async fn a_client_named_among_the_admins_does_the_main_job_and_another_is_denied_it() {
    let (rig, served) = served().await;
    let admin = served.transport.client(ADMIN);
    let mut admin = served.clients(Some(&admin)).await.expect("it is let in");
    assert_eq!(who(&mut admin).await, (ADMIN.to_owned(), pb::CallerSource::Certificate));
    let store = admin.connected_store(&rig, "main").await;
    let key = admin.key(&store).await;
    assert!(key.arn.starts_with("arn:aws:kms:us-east-1:123456789012:key/"), "{}", key.arn);

    let workload = served.transport.workload(WORKLOAD);
    let mut workload = served.clients(Some(&workload)).await.expect("it is let in");
    assert_eq!(who(&mut workload).await.0, WORKLOAD, "a SPIFFE id comes before the common name");
    let ciphertext = workload.encrypt(&key.key_id, b"attack at dawn").await;
    assert_eq!(admin.decrypt(&ciphertext).await.expect("it opens"), b"attack at dawn");

    let mallory = served.transport.client("mallory");
    let mut mallory = served.clients(Some(&mallory)).await.expect("it is let in");
    assert_eq!(who(&mut mallory).await, ("mallory".to_owned(), pb::CallerSource::Certificate));
    deny_everything(&mut mallory, &store, &key.key_id, &ciphertext).await;
    drop(served);
}

async fn who(clients: &mut Clients) -> (String, pb::CallerSource) {
    let me = clients.users.who_am_i(pb::WhoAmIRequest {}).await;
    let me = me.expect("anybody may ask").into_inner();
    (me.caller.clone(), me.source())
}

/// What is there and what is not there are denied alike.
async fn deny_everything(mallory: &mut Clients, store: &str, key: &str, ciphertext: &[u8]) {
    let denied = |action: &str, status: tonic::Status| {
        let details = status.get_error_details();
        let info = details.error_info().expect("checked before");
        assert_eq!((info.metadata["caller"].as_str(), info.metadata["action"].as_str()), ("mallory", action));
    };
    for key_id in [key, "alias/nobody"] {
        let request = pb::EncryptRequest { key_id: key_id.to_owned(), plaintext: b"x".to_vec(), ..Default::default() };
        let answer = mallory.crypto.encrypt(request).await;
        denied("Encrypt", refused(key_id, answer, "ACCESS_DENIED", ""));
        let request = pb::DescribeKeyRequest { key_id: key_id.to_owned(), ..Default::default() };
        let answer = mallory.keys.describe_key(request).await;
        denied("DescribeKey", refused(key_id, answer, "ACCESS_DENIED", ""));
    }
    let answer = mallory.decrypt(ciphertext).await;
    denied("Decrypt", refused("decrypting", answer, "ACCESS_DENIED", ""));
    let answer = mallory.stores.delete_key_store(pb::DeleteKeyStoreRequest { key_store_id: store.to_owned() });
    denied("DeleteKeyStore", refused("deleting", answer.await, "ACCESS_DENIED", ""));
    let answer = mallory.stores.create_key_store(pb::CreateKeyStoreRequest::default()).await;
    denied("CreateKeyStore", refused("a store", answer, "ACCESS_DENIED", ""));
    let answer = mallory.stores.watch_key_store(pb::WatchKeyStoreRequest { key_store_id: store.to_owned() });
    denied("WatchKeyStore", refused("watching", answer.await, "ACCESS_DENIED", ""));
    let answer = mallory.keys.list_keys(pb::ListKeysRequest::default()).await;
    denied("ListKeys", refused("listing", answer, "ACCESS_DENIED", ""));
    let answer = mallory.crypto.generate_random(pb::GenerateRandomRequest::default()).await;
    denied("GenerateRandom", refused("random bytes", answer, "ACCESS_DENIED", ""));
    let answer = mallory.clusters.describe_clusters(pb::DescribeClustersRequest::default()).await;
    denied("DescribeClusters", refused("clusters", answer, "ACCESS_DENIED", ""));
    let answer = mallory.crypto.re_encrypt(pb::ReEncryptRequest::default()).await;
    denied("ReEncryptFrom", refused("re-encrypting", answer, "ACCESS_DENIED", ""));
    // A stream is anybody's who has a name; each item is asked for itself.
    let random = pb::pipeline_request::Request::GenerateRandom(pb::GenerateRandomRequest::default());
    let items = [1, 2].map(|id| pb::PipelineRequest { id, timeout: None, request: Some(random.clone()) });
    let mut answers = mallory.crypto.pipeline(tokio_stream::iter(items)).await.expect("a stream").into_inner();
    for _ in 0..2 {
        let answer = answers.message().await.expect("it goes on").expect("it goes on");
        let Some(pb::pipeline_response::Response::Error(error)) = answer.response else { panic!("{answer:?}") };
        assert_eq!(error.code, i32::from(tonic::Code::PermissionDenied), "{error:?}");
    }
    assert!(answers.message().await.expect("it ends with OK").is_none());
}

#[tokio::test]
async fn a_daemon_told_to_stop_ends_its_streams_and_itself_and_its_successor_goes_on() {
    let (rig, mut served) = served().await;
    let mut clients = served.clients_on_the_socket().await;
    assert_eq!(who(&mut clients).await.1, pb::CallerSource::UnixSocket);
    let info = clients.server.get_server_info(pb::GetServerInfoRequest {}).await;
    assert!(!info.expect("the daemon's own user").into_inner().dev);
    let store = clients.connected_store(&rig, "main").await;
    let key = clients.key(&store).await;
    let ciphertext = clients.encrypt(&key.key_id, b"from before").await;

    let (code, said) = served.run_another();
    assert_eq!(code, Some(1), "{said}");
    let data_dir = served.data_dir();
    assert!(said.contains(&data_dir.display().to_string()), "it does not name {data_dir:?}: {said}");
    assert!(said.contains("another"), "it does not say why: {said}");
    assert_eq!(clients.decrypt(&ciphertext).await.expect("the first is unharmed"), b"from before");

    let request = pb::WatchKeyStoreRequest { key_store_id: store.clone() };
    let mut watch = clients.stores.watch_key_store(request).await.expect("it is watched").into_inner();
    watch.message().await.expect("the stream begins");
    let request = pb::WatchClusterRequest { cluster_id: rig.cluster_id() };
    let mut cluster = clients.clusters.watch_cluster(request).await.expect("it is watched").into_inner();
    cluster.message().await.expect("the stream begins");
    let mut health = HealthClient::new(clients.channel.clone());
    let request = HealthCheckRequest { service: format!("key-store/{store}") };
    let mut health = health.watch(request).await.expect("it is watched").into_inner();
    let told = health.message().await.expect("the stream begins").expect("the stream begins");
    assert_eq!(told.status(), ServingStatus::Serving);
    served.tell_to_stop();
    let told = health.message().await.expect("the stream lasts").expect("the stream lasts");
    assert_eq!(told.status(), ServingStatus::NotServing);
    drop(health);
    for ended in [last_word(&mut watch).await, last_word(&mut cluster).await] {
        assert_eq!(reason(&ended), (tonic::Code::Unavailable, "DRAINING".to_owned()), "{ended:?}");
    }
    let status = served.ended().await;
    assert_eq!(status.code(), Some(0), "{}", served.log());

    let mut served = tokio::task::spawn_blocking(move || {
        served.start_daemon();
        served
    })
    .await
    .expect("it starts again");
    let mut clients = served.clients_on_the_socket().await;
    assert_eq!(opened(&mut clients, &ciphertext).await, b"from before");
    served.tell_to_stop();
    assert!(served.ended().await.success());
}

/// What a stream ends with.
async fn last_word<T>(stream: &mut tonic::Streaming<T>) -> tonic::Status {
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return tonic::Status::ok("it ended"),
            Err(status) => return status,
        }
    }
}

/// Decrypts as soon as a node is back.
async fn opened(clients: &mut Clients, ciphertext: &[u8]) -> Vec<u8> {
    crate::rig::wait_async(|| {
        let mut clients = clients.clone();
        async move {
            match clients.decrypt(ciphertext).await {
                Ok(plaintext) => Some(plaintext),
                Err(status) => {
                    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
                    None
                }
            }
        }
    })
    .await
}
