//! Anybody's gRPC client can do the main job: what it needs to know, the daemon tells by reflection.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::rig::Rig;
use crate::rig::generic::{Generic, Reflection, Refused};

/// `attack at dawn`, as JSON writes bytes.
const PLAINTEXT: &str = "YXR0YWNrIGF0IGRhd24=";

#[tokio::test]
async fn a_client_that_knows_none_of_our_files_does_the_main_job() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let client = Generic::learn(&rig.tcp(), Reflection::V1).await;

    let made = call(
        &client,
        "KeyStoreService/CreateKeyStore",
        json!({
            "keyStoreName": "main",
            "clusterId": rig.cluster_id(),
            "keyStorePassword": rig.password(),
            "trustAnchorCertificate": rig.trust_anchor(),
        }),
    )
    .await;
    let store = json!({ "keyStoreId": made["keyStoreId"] });
    let connecting = call(&client, "KeyStoreService/ConnectKeyStore", store.clone()).await;
    assert_eq!(connecting["keyStore"]["keyStoreName"], "main");
    until_connected(&client, &store).await;

    let key = call(&client, "KeyService/CreateKey", store.clone()).await["key"].take();
    assert_eq!((&key["state"], &key["keySpec"]), (&json!("KEY_STATE_ENABLED"), &json!("KEY_SPEC_SYMMETRIC_DEFAULT")));
    encrypt_and_decrypt(&client, &key["keyId"]).await;
    make_a_data_key(&client, &key["keyId"]).await;
    let random = call(&client, "CryptoService/GenerateRandom", json!({ "numberOfBytes": 32 })).await;
    assert_eq!(random["plaintext"].as_str().map(str::len), Some(44), "32 bytes in base64");

    let described = call(&client, "KeyService/DescribeKey", json!({ "keyId": key["arn"] })).await;
    assert_eq!(described["key"]["keyId"], key["keyId"]);
    let listed = call(&client, "KeyService/ListKeys", store).await;
    assert_eq!(listed["keys"].as_array().map(Vec::len), Some(1));
    assert_eq!(listed["keys"][0]["keyId"], key["keyId"]);
    let stores = call(&client, "KeyStoreService/DescribeKeyStores", json!({})).await;
    assert_eq!(stores["keyStores"][0]["keyCount"], 1);

    let older = Generic::learn(&rig.tcp(), Reflection::V1Alpha).await;
    let ours = |client: &Generic| -> Vec<String> {
        let files = client.files().into_iter();
        files.filter(|file| file.starts_with("keyway/")).collect()
    };
    assert_eq!(ours(&older), ours(&client));
    encrypt_and_decrypt(&older, &key["keyId"]).await;
}

async fn until_connected(client: &Generic, store: &Value) {
    let mut watch = client.watch("keyway.v1.KeyStoreService/WatchKeyStore", store.clone()).await;
    let watching = async {
        loop {
            let told = watch.next().await;
            match told["keyStore"]["connectionState"].as_str() {
                Some("CONNECTION_STATE_CONNECTED") => return,
                Some("CONNECTION_STATE_CONNECTING") => {}
                other => panic!("{other:?}: {told}"),
            }
        }
    };
    tokio::time::timeout(crate::rig::PATIENCE, watching).await.expect("it connects");
}

async fn encrypt_and_decrypt(client: &Generic, key: &Value) {
    let context = json!({ "tenant": "blue" });
    let asked = json!({ "keyId": key, "plaintext": PLAINTEXT, "encryptionContext": context });
    let sealed = call(client, "CryptoService/Encrypt", asked).await;
    assert_ne!(sealed["ciphertext"], PLAINTEXT);
    let asked = json!({ "ciphertext": sealed["ciphertext"], "encryptionContext": context });
    let opened = call(client, "CryptoService/Decrypt", asked).await;
    assert_eq!(opened["plaintext"], PLAINTEXT);
}

async fn make_a_data_key(client: &Generic, key: &Value) {
    let asked = json!({ "keyId": key, "dataKeySpec": "DATA_KEY_SPEC_AES_256" });
    let made = call(client, "CryptoService/GenerateDataKey", asked).await;
    let opened = call(client, "CryptoService/Decrypt", json!({ "ciphertext": made["ciphertext"] })).await;
    assert_eq!(opened["plaintext"], made["plaintext"]);
}

async fn call(client: &Generic, method: &str, request: Value) -> Value {
    let answer = client.call(&format!("keyway.v1.{method}"), request).await;
    answer.unwrap_or_else(|refused| panic!("{method}: {refused:?}"))
}

#[tokio::test]
async fn reflection_serves_every_service_and_what_errors_are_told_in() {
    let rig = Rig::new().nodes(2).zones(2).start();
    for reflection in [Reflection::V1, Reflection::V1Alpha] {
        let client = Generic::learn(&rig.tcp(), reflection).await;
        let services: BTreeSet<&str> = client.services().iter().map(String::as_str).collect();
        let wanted =
            ["KeyStoreService", "ClusterService", "CryptoUserService", "KeyService", "CryptoService", "ServerService"];
        for service in wanted {
            assert!(
                services.contains(format!("keyway.v1.{service}").as_str()),
                "{reflection:?}: no {service} in {services:?}"
            );
        }
        assert!(services.contains("grpc.health.v1.Health"), "{services:?}");
        let files = client.files();
        for file in ["google/rpc/status.proto", "google/rpc/error_details.proto"] {
            assert!(files.contains(file), "{reflection:?}: no {file} in {files:?}");
        }

        let asked = json!({ "keyId": "no key", "plaintext": "" });
        let Refused { code, status } =
            client.call("keyway.v1.CryptoService/Encrypt", asked).await.expect_err("nothing to encrypt");
        assert_eq!(code, tonic::Code::InvalidArgument);
        let details = status["details"].as_array().expect("details");
        let of = |name: &str| {
            let url = format!("type.googleapis.com/google.rpc.{name}");
            let found = details.iter().find(|detail| detail["@type"] == url.as_str());
            found.unwrap_or_else(|| panic!("no {name} in {status}"))
        };
        assert_eq!((&of("ErrorInfo")["reason"], &of("ErrorInfo")["domain"]), (&json!("VALIDATION"), &json!("keyway")));
        assert_eq!(of("BadRequest")["fieldViolations"][0]["field"], "plaintext");
        assert!(of("Help")["links"][0]["url"].as_str().is_some_and(|url| !url.is_empty()));
        assert!(of("RequestInfo")["requestId"].as_str().is_some_and(|id| !id.is_empty()));

        let health = client.call("grpc.health.v1.Health/Check", json!({})).await;
        assert_eq!(health.expect("served")["status"], "SERVING");
    }
}

#[test]
fn this_client_is_built_without_our_files() {
    let ours = [concat!("keyway", "::proto"), concat!("rig::", "pb"), concat!("Cli", "ents")];
    for text in [include_str!("reflection.rs"), include_str!("rig/generic.rs")] {
        for name in ours {
            assert!(!text.contains(name), "it knows {name}");
        }
    }
}
