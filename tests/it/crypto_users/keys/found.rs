//! Keys that another program made in a user's tokens: used where they are and nowhere else, if their name is one key's.

use super::*;

impl Rig {
    /// Makes a key in a user's token, past keyway.
    fn add_user_key(&self, hsm: &str, user: &str, args: &[&str]) {
        let configuration = self.user_token(hsm, user).join("softhsm2.conf");
        let args = [&["--keygen"], args].concat();
        crate::rig::pkcs11_tool_as(&configuration, user, FIRST, &args);
    }
}

const AES: [&str; 2] = ["--key-type", "aes:32"];

fn key<'a>(label: &'a str, id: &'a str) -> Vec<&'a str> {
    [&AES[..], &["--label", label, "--id", id]].concat()
}

/// Alice, whose tokens hold these keys of another program's from before she logged in.
async fn with_keys(keys: &[(&str, Vec<&str>)]) -> (Rig, Clients, User) {
    let rig = Rig::new().start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    for (hsm, args) in keys {
        rig.add_user_key(hsm, "alice", args);
    }
    let alice = User::log_in(&rig, &clients, "alice").await;
    // Every HSM is there to be asked.
    alice.create("made").await.unwrap();
    alice.until_on(&alice.named("made"), &HSMS).await;
    (rig, clients, alice)
}

#[tokio::test]
async fn a_found_key_is_listed_described_used_and_destroyed_where_it_is() {
    let (rig, _, alice) = with_keys(&[("hsm-2", key("orders", "c0ffee"))]).await;
    let (by_label, by_id) = (alice.named("orders"), alice.named("id=c0ffee"));
    let listed = alice.list().await.unwrap();
    let told: Vec<_> = listed.iter().map(|key| (key.key_id.as_str(), key.hsm_label.as_str())).collect();
    assert_eq!(told, [(alice.named("made").as_str(), "made"), (by_id.as_str(), "orders")]);
    assert_eq!((listed[1].state(), listed[1].key_spec()), (pb::KeyState::Enabled, pb::KeySpec::SymmetricDefault));
    assert!(listed[1].create_time.is_none());
    let described = alice.describe(&by_label).await.unwrap();
    assert_eq!((described.key_id.as_str(), described.hsm_label.as_str()), (by_id.as_str(), "orders"));
    assert_eq!(described.nodes.iter().map(|on| on.hsm_id.as_str()).collect::<Vec<_>>(), ["hsm-2"]);

    let encrypted = alice.encrypt(&by_label).await.unwrap();
    assert_eq!((encrypted.key_id.as_str(), encrypted.key_version), (by_id.as_str(), 0));
    for name in [by_label.as_str(), by_id.as_str(), ""] {
        let decrypted = alice.decrypt(name, &encrypted.ciphertext).await.unwrap();
        assert_eq!((decrypted.plaintext.as_slice(), decrypted.key_id.as_str()), (&b"hers"[..], by_id.as_str()));
    }
    let described = alice.until_on(&by_id, &["hsm-2"]).await;
    assert_eq!(described.hsm_label, "orders");
    assert!(described.uses > 0, "its uses are counted");
    assert_eq!(alice.list().await.unwrap().len(), 2);
    for (hsm, labels) in [("hsm-1", &["made"][..]), ("hsm-2", &["made", "orders"]), ("hsm-3", &["made"])] {
        rig.until_labelled(hsm, "alice", labels).await;
    }

    alice.destroy(&by_label).await.unwrap();
    rig.until_labelled("hsm-2", "alice", &["made"]).await;
    refused("it is gone", alice.describe(&by_label).await, "NOT_FOUND", "");
    refused("it is gone", alice.describe(&by_id).await, "NOT_FOUND", "");
    refused("it is gone", alice.decrypt("", &encrypted.ciphertext).await, "INVALID_CIPHERTEXT", "ciphertext");
    assert_eq!(alice.labels().await, ["made"]);
}

#[tokio::test]
async fn a_found_key_is_known_again_by_another_daemon_and_not_copied_to_any_hsm() {
    // Also one that its maker lets go: nobody is to try.
    let extractable = [key("orders", "c0ffee"), vec!["--extractable"]].concat();
    let (mut rig, _, alice) = with_keys(&[("hsm-2", extractable)]).await;
    let name = alice.named("id=c0ffee");
    let ciphertext = alice.encrypt(&name).await.unwrap().ciphertext;
    rig.kill_daemon();
    rig.start_daemon();
    let alice = alice.at(&rig.clients().await);
    let decrypted = wait_async(|| async { alice.decrypt("", &ciphertext).await.ok() }).await;
    assert_eq!(decrypted.plaintext, b"hers");
    // Every HSM is level without it.
    alice.create("more").await.unwrap();
    alice.until_on(&alice.named("more"), &HSMS).await;
    alice.until_on(&name, &["hsm-2"]).await;
    rig.until_labelled("hsm-1", "alice", &["made", "more"]).await;
    assert!(!rig.log().contains("could not be wrapped"), "nor is it tried: {}", rig.log());
}

#[tokio::test]
async fn a_name_that_several_keys_have_is_refused_and_each_goes_by_its_id() {
    let keys = [
        ("hsm-1", key("twice", "01")),
        ("hsm-1", key("twice", "02")),
        ("hsm-1", key("spread", "03")),
        ("hsm-2", key("spread", "04")),
        ("hsm-1", key("differs", "05")),
        ("hsm-2", key("differs", "05")),
        ("hsm-3", key("one", "06")),
        ("hsm-3", key("other", "06")),
    ];
    let (_rig, _, alice) = with_keys(&keys).await;
    for label in ["twice", "spread"] {
        let name = alice.named(label);
        let status = refused(label, alice.describe(&name).await, "AMBIGUOUS_LABEL", "");
        assert!(status.message().contains("id=<hex>"), "{}", status.message());
        refused(label, alice.encrypt(&name).await, "AMBIGUOUS_LABEL", "");
        refused(label, alice.destroy(&name).await, "AMBIGUOUS_LABEL", "");
        refused(label, alice.create(label).await, "ALREADY_EXISTS", "");
    }
    for id in ["id=01", "id=02", "id=03", "id=04"] {
        let encrypted = alice.encrypt(&alice.named(id)).await.unwrap();
        assert_eq!(alice.decrypt("", &encrypted.ciphertext).await.unwrap().key_id, alice.named(id));
    }
    // One id, and nobody can tell that the keys are the same: they are not.
    refused("two keys", alice.encrypt(&alice.named("differs")).await, "AMBIGUOUS_LABEL", "");
    refused("two keys", alice.encrypt(&alice.named("id=05")).await, "AMBIGUOUS_LABEL", "");
    for name in ["one", "other", "id=06"] {
        refused(name, alice.encrypt(&alice.named(name)).await, "AMBIGUOUS_LABEL", "");
    }
    let both = alice.list().await.unwrap().into_iter().find(|key| key.key_id == alice.named("id=06")).unwrap();
    assert_eq!(both.state(), pb::KeyState::Unavailable);
}

#[tokio::test]
async fn what_is_not_as_keyway_could_use_it_is_told_and_not_used() {
    let small = ["--key-type", "aes:16", "--label", "small", "--id", "01"];
    let nameless = [&AES[..], &["--label", "nameless"]].concat();
    let keys = [("hsm-1", small.to_vec()), ("hsm-1", nameless)];
    let (rig, _, alice) = with_keys(&keys).await;
    for (label, why) in [("small", "AES-256"), ("nameless", "CKA_ID")] {
        let name = alice.named(label);
        let key = alice.describe(&name).await;
        if label == "small" {
            let key = key.unwrap();
            assert_eq!((key.state(), key.key_spec()), (pb::KeyState::Unavailable, pb::KeySpec::Unspecified));
            assert!(key.state_reason.contains(why), "{}", key.state_reason);
        } else {
            let status = refused(label, key, "KMS_INVALID_STATE", "");
            assert!(status.message().contains(why), "{}", status.message());
        }
        let status = refused(label, alice.encrypt(&name).await, "KMS_INVALID_STATE", "");
        assert!(status.message().contains(why), "{}", status.message());
        refused(label, alice.destroy(&name).await, "KMS_INVALID_STATE", "");
    }
    for kek in rig.all_user_objects("hsm-1", "alice") {
        let name = alice.named(&format!("id={}", kek.id));
        if kek.label.starts_with("keyway:") {
            refused(&kek.label, alice.describe(&name).await, "NOT_FOUND", "");
            refused(&kek.label, alice.destroy(&name).await, "NOT_FOUND", "");
        }
    }
    rig.until_labelled("hsm-1", "alice", &["made", "nameless", "small"]).await;
}

#[tokio::test]
async fn a_found_key_is_not_destroyed_while_an_hsm_that_holds_it_is_away() {
    let (rig, mut operator, alice) = with_keys(&[("hsm-2", key("orders", "c0ffee"))]).await;
    let name = alice.named("id=c0ffee");
    alice.encrypt(&name).await.unwrap();
    alice.until_on(&name, &["hsm-2"]).await;
    operator.drain(&rig, "hsm-2").await;
    let status = wait_async(|| async { alice.destroy(&name).await.err() }).await;
    assert!(status.message().contains("hsm-2"), "{}", status.message());
    refused("its HSM is away", alice.encrypt(&name).await, "KEY_UNAVAILABLE", "");
    operator.resume_hsm(&rig.cluster_id(), "hsm-2", false).await;
    wait_async(|| async { alice.destroy(&name).await.ok() }).await;
    rig.until_labelled("hsm-2", "alice", &["made"]).await;
}

#[tokio::test]
async fn a_found_key_is_not_destroyed_while_an_hsm_that_may_hold_it_was_not_looked_at() {
    let (rig, mut operator, alice) = with_keys(&[("hsm-2", key("orders", "c0ffee"))]).await;
    let name = alice.named("id=c0ffee");
    operator.drain(&rig, "hsm-3").await;
    let not_destroyed = async || {
        let status = wait_async(|| async { alice.destroy(&name).await.err() }).await;
        assert_eq!(crate::rig::reason(&status).1, "NO_NODE", "{status:?}");
        assert!(status.message().contains("hsm-3"), "{}", status.message());
        rig.until_labelled("hsm-2", "alice", &["made", "orders"]).await;
    };
    not_destroyed().await;
    assert_eq!(alice.describe(&name).await.unwrap().uses, 0, "it was not written down");
    alice.encrypt(&name).await.unwrap();
    not_destroyed().await;
    operator.resume_hsm(&rig.cluster_id(), "hsm-3", false).await;
    wait_async(|| async { alice.destroy(&name).await.ok() }).await;
    rig.until_labelled("hsm-2", "alice", &["made"]).await;
}

#[tokio::test]
async fn a_name_that_differs_in_its_version_alone_is_not_the_keys() {
    let (rig, _, alice) = with_keys(&[]).await;
    let objects = rig.user_objects("hsm-1", "alice");
    let made = &objects[0].id;
    assert!(alice.describe(&alice.named(&format!("id={made}"))).await.is_ok());
    let next = format!("id={}2", made.strip_suffix('1').expect("the first version"));
    refused("no such version", alice.describe(&alice.named(&next)).await, "NOT_FOUND", "");
    refused("no such version", alice.destroy(&alice.named(&next)).await, "NOT_FOUND", "");
    assert_eq!(alice.labels().await, ["made"]);
}

#[tokio::test]
async fn a_found_key_is_seen_by_who_has_just_logged_in_on_whichever_hsm_it_is() {
    let rig = Rig::new().start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    for (number, hsm) in HSMS.iter().enumerate() {
        rig.add_user_key(hsm, "alice", &key(hsm, &format!("0{number}")));
    }
    let alice = User::log_in(&rig, &clients, "alice").await;
    assert_eq!(alice.labels().await, HSMS);
    for hsm in HSMS {
        let encrypted = alice.encrypt(&alice.named(hsm)).await.unwrap();
        assert_eq!(alice.decrypt("", &encrypted.ciphertext).await.unwrap().plaintext, b"hers");
    }
}

#[tokio::test]
async fn keys_that_another_program_makes_while_their_user_is_logged_in_are_seen_as_they_are() {
    let (rig, _, alice) = with_keys(&[]).await;
    for (hsm, key) in [("hsm-1", key("one", "01")), ("hsm-2", key("two", "02")), ("hsm-3", key("two", "02"))] {
        rig.add_user_key(hsm, "alice", &key);
    }
    let ciphertext = alice.encrypt(&alice.named("one")).await.unwrap().ciphertext;
    assert_eq!(alice.decrypt("", &ciphertext).await.unwrap().key_id, alice.named("id=01"));
    refused("two keys", alice.encrypt(&alice.named("id=02")).await, "AMBIGUOUS_LABEL", "");
}

#[tokio::test]
async fn an_hsm_that_hangs_is_left_out_when_keys_are_listed_and_made() {
    let (rig, _, alice) = with_keys(&[("hsm-1", key("orders", "01"))]).await;
    let worker = rig.workers_as("alice")["hsm-3"];
    crate::rig::signal(worker, rustix::process::Signal::STOP);
    assert_eq!(alice.labels().await, ["made", "orders"]);
    alice.create("more").await.expect("two HSMs are enough");
    crate::rig::signal(worker, rustix::process::Signal::CONT);
}

#[tokio::test]
async fn what_is_labelled_as_keyways_own_is_no_key_of_the_users() {
    let (_rig, _, alice) = with_keys(&[("hsm-2", key("keyway:canary", "0a"))]).await;
    assert_eq!(alice.labels().await, ["made"]);
    refused("a canary", alice.describe(&alice.named("id=0a")).await, "NOT_FOUND", "");
    refused("a canary", alice.encrypt(&alice.named("id=0a")).await, "NOT_FOUND", "");
    refused("a canary", alice.destroy(&alice.named("id=0a")).await, "NOT_FOUND", "");
}

#[tokio::test]
async fn a_found_key_of_a_users_successor_is_not_taken_for_the_one_he_had() {
    let (rig, mut clients, alice) = with_keys(&[("hsm-2", key("orders", "c0ffee"))]).await;
    let name = alice.named("id=c0ffee");
    let ciphertext = alice.encrypt(&name).await.unwrap().ciphertext;
    clients.users.logout(alice.with_login(pb::LogoutRequest {})).await.unwrap();
    clients.delete_user(&rig, "alice").await.unwrap();
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    rig.add_user_key("hsm-2", "alice", &key("orders", "c0ffee"));
    let alice = User::log_in(&rig, &clients, "alice").await;
    let decrypted = alice.decrypt("", &ciphertext).await;
    refused("made with the one before", decrypted, "INVALID_CIPHERTEXT", "ciphertext");
    let ciphertext = alice.encrypt(&name).await.unwrap().ciphertext;
    assert_eq!(alice.decrypt("", &ciphertext).await.unwrap().plaintext, b"hers");
}
