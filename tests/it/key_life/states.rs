//! Every call about a key, in every state it can be in.

use std::time::Duration;

use tonic::Request;

use super::*;

/// A key in one of its states, and the calls that are made about it.
struct Subject {
    clients: Clients,
    key: String,
    /// Another one, for the aliases that are moved.
    other: String,
    ciphertext: Vec<u8>,
}

/// `OK`, or the reason why not; by state: ENABLED, DISABLED, PENDING_DELETION, UNAVAILABLE.
type Row = (&'static str, [&'static str; 4]);

const OK: &str = "OK";
const OFF: &str = "DISABLED";
const BAD: &str = "KMS_INVALID_STATE";

/// AWS's page of key states, by call.
const TABLE: [Row; 22] = [
    ("Encrypt", [OK, OFF, BAD, BAD]),
    ("Decrypt", [OK, OFF, BAD, BAD]),
    ("ReEncrypt", [OK, OFF, BAD, BAD]),
    ("GenerateDataKey", [OK, OFF, BAD, BAD]),
    ("GenerateDataKeyWithoutPlaintext", [OK, OFF, BAD, BAD]),
    ("DescribeKey", [OK, OK, OK, OK]),
    ("EnableKey", [OK, OK, BAD, OK]),
    ("DisableKey", [OK, OK, BAD, OK]),
    ("ScheduleKeyDeletion", [OK, OK, BAD, OK]),
    ("CancelKeyDeletion", [BAD, BAD, OK, BAD]),
    ("UpdateKeyDescription", [OK, OK, BAD, OK]),
    ("CreateAlias", [OK, OK, BAD, OK]),
    ("UpdateAlias", [OK, OK, BAD, OK]),
    ("DeleteAlias", [OK, OK, OK, OK]),
    ("ListAliases", [OK, OK, OK, OK]),
    ("TagResource", [OK, OK, BAD, OK]),
    ("UntagResource", [OK, OK, BAD, OK]),
    ("ListResourceTags", [OK, OK, OK, OK]),
    ("RotateKeyOnDemand", [OK, OFF, BAD, BAD]),
    ("EnableKeyRotation", [OK, OFF, BAD, OK]),
    ("DisableKeyRotation", [OK, OFF, BAD, OK]),
    ("ListKeyVersions", [OK, OK, OK, OK]),
];

impl Subject {
    async fn new(clients: &Clients, store: &str) -> Self {
        let mut clients = clients.clone();
        let (key, other) = (clients.key(store).await.key_id, clients.key(store).await.key_id);
        let ciphertext = clients.encrypt(&key, b"kept").await;
        clients.create_alias("alias/goes", &key).await.expect("made");
        clients.create_alias("alias/moves", &other).await.expect("made");
        Self { clients, key, other, ciphertext }
    }

    /// From whatever state the last call has left.
    async fn put_in(&mut self, state: pb::KeyState) {
        let (clients, key) = (&mut self.clients, self.key.clone());
        let _ = clients.cancel_deletion(&key).await;
        match state {
            pb::KeyState::Enabled => drop(clients.enable(&key).await.expect("enabled")),
            pb::KeyState::Disabled => drop(clients.disable(&key).await.expect("disabled")),
            pb::KeyState::PendingDeletion => drop(clients.schedule_deletion(&key, 7).await.expect("scheduled")),
            other => panic!("{other:?} is no state to be put in"),
        }
        // What the last round may have taken or moved.
        let other = self.other.clone();
        let moved = pb::UpdateAliasRequest { alias_name: "alias/moves".to_owned(), target_key_id: other.clone() };
        self.clients.keys.update_alias(moved).await.expect("the other key is enabled");
        let fresh = pb::DeleteAliasRequest { alias_name: "alias/fresh".to_owned() };
        let _ = self.clients.keys.delete_alias(fresh).await;
        let _ = self.clients.create_alias("alias/goes", &other).await;
    }

    async fn call(&mut self, call: &str) -> Result<(), Status> {
        use pb::generate_data_key_request::Length;
        use pb::generate_data_key_without_plaintext_request::Length as HiddenLength;
        let (key_id, target_key_id) = (self.key.clone(), self.key.clone());
        let Clients { keys, crypto, .. } = &mut self.clients;
        match call {
            "Encrypt" => {
                let request = pb::EncryptRequest { key_id, plaintext: b"more".to_vec(), ..Default::default() };
                crypto.encrypt(request).await.map(drop)
            }
            "Decrypt" => {
                let request = pb::DecryptRequest { ciphertext: self.ciphertext.clone(), ..Default::default() };
                crypto.decrypt(request).await.map(drop)
            }
            "ReEncrypt" => {
                let ciphertext = self.ciphertext.clone();
                let request =
                    pb::ReEncryptRequest { ciphertext, destination_key_id: self.other.clone(), ..Default::default() };
                crypto.re_encrypt(request).await.map(drop)
            }
            "GenerateDataKey" => {
                let length = Some(Length::NumberOfBytes(32));
                let request = pb::GenerateDataKeyRequest { key_id, length, ..Default::default() };
                crypto.generate_data_key(request).await.map(drop)
            }
            "GenerateDataKeyWithoutPlaintext" => {
                let length = Some(HiddenLength::NumberOfBytes(32));
                let request = pb::GenerateDataKeyWithoutPlaintextRequest { key_id, length, ..Default::default() };
                crypto.generate_data_key_without_plaintext(request).await.map(drop)
            }
            "DescribeKey" => keys.describe_key(pb::DescribeKeyRequest { key_id, ..Default::default() }).await.map(drop),
            "EnableKey" => keys.enable_key(pb::EnableKeyRequest { key_id }).await.map(drop),
            "DisableKey" => keys.disable_key(pb::DisableKeyRequest { key_id }).await.map(drop),
            "ScheduleKeyDeletion" => {
                let request = pb::ScheduleKeyDeletionRequest { key_id, pending_window_days: 7 };
                keys.schedule_key_deletion(request).await.map(drop)
            }
            "CancelKeyDeletion" => keys.cancel_key_deletion(pb::CancelKeyDeletionRequest { key_id }).await.map(drop),
            "UpdateKeyDescription" => {
                let request = pb::UpdateKeyDescriptionRequest { key_id, description: "words".to_owned() };
                keys.update_key_description(request).await.map(drop)
            }
            "CreateAlias" => {
                let request = pb::CreateAliasRequest { alias_name: "alias/fresh".to_owned(), target_key_id };
                keys.create_alias(request).await.map(drop)
            }
            "UpdateAlias" => {
                let request = pb::UpdateAliasRequest { alias_name: "alias/moves".to_owned(), target_key_id };
                keys.update_alias(request).await.map(drop)
            }
            "DeleteAlias" => {
                keys.delete_alias(pb::DeleteAliasRequest { alias_name: "alias/goes".to_owned() }).await.map(drop)
            }
            "ListAliases" => keys.list_aliases(pb::ListAliasesRequest { key_id, ..Default::default() }).await.map(drop),
            "TagResource" => {
                let tags = [("team".to_owned(), "red".to_owned())].into();
                keys.tag_resource(pb::TagResourceRequest { key_id, tags }).await.map(drop)
            }
            "UntagResource" => {
                let request = pb::UntagResourceRequest { key_id, tag_keys: vec!["team".to_owned()] };
                keys.untag_resource(request).await.map(drop)
            }
            "ListResourceTags" => keys.list_resource_tags(pb::ListResourceTagsRequest { key_id }).await.map(drop),
            "RotateKeyOnDemand" => {
                let request = pb::RotateKeyOnDemandRequest { key_id, ..Default::default() };
                keys.rotate_key_on_demand(request).await.map(drop)
            }
            "EnableKeyRotation" => {
                let request = pb::EnableKeyRotationRequest { key_id, ..Default::default() };
                keys.enable_key_rotation(request).await.map(drop)
            }
            "DisableKeyRotation" => keys.disable_key_rotation(pb::DisableKeyRotationRequest { key_id }).await.map(drop),
            "ListKeyVersions" => {
                let request = pb::ListKeyVersionsRequest { key_id, ..Default::default() };
                keys.list_key_versions(request).await.map(drop)
            }
            other => panic!("no such call: {other}"),
        }
    }

    /// Makes the call in a state in which the key is told as `shown`, and has the answer that the table has.
    async fn answers(&mut self, (call, expected): (&str, &str), (state, shown): (pb::KeyState, pb::KeyState)) {
        self.put_in(state).await;
        let told = self.clients.describe_key(&self.key.clone()).await;
        assert_eq!(told.state(), shown, "before {call}");
        assert_eq!(told.deletion_time.is_some(), state == pb::KeyState::PendingDeletion, "{told:?}");
        let answer = self.call(call).await;
        let what = format!("{call} while {shown:?}");
        if expected == OK {
            answer.unwrap_or_else(|status| panic!("{what}: {status:?}"));
        } else {
            refused(&what, answer, expected, "");
        }
    }
}

#[tokio::test]
async fn every_call_about_a_key_is_answered_as_its_state_has_it() {
    use pb::KeyState::{Disabled, Enabled, PendingDeletion, Unavailable};
    let (_rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    clients.all_healthy(&store).await;
    let mut subject = Subject::new(&clients, &store).await;
    for (call, [enabled, disabled, pending, _]) in TABLE {
        subject.answers((call, enabled), (Enabled, Enabled)).await;
        subject.answers((call, disabled), (Disabled, Disabled)).await;
        subject.answers((call, pending), (PendingDeletion, PendingDeletion)).await;
    }
    clients.disconnect(&store).await;
    for (call, [.., pending, unavailable]) in TABLE {
        subject.answers((call, unavailable), (Enabled, Unavailable)).await;
        subject.answers((call, unavailable), (Disabled, Unavailable)).await;
        subject.answers((call, pending), (PendingDeletion, PendingDeletion)).await;
    }
    // What was changed meanwhile shows after the next connect.
    subject.put_in(PendingDeletion).await;
    let cancelled = clients.cancel_deletion(&subject.key).await.unwrap();
    assert_eq!(cancelled.state(), Unavailable);
    clients.connect(&store).await;
    clients.all_healthy(&store).await;
    assert_eq!(clients.describe_key(&subject.key).await.state(), Disabled);
    clients.enable(&subject.key).await.unwrap();
    assert_eq!(clients.decrypt(&subject.ciphertext).await.unwrap(), b"kept");
}

#[tokio::test]
async fn a_key_that_is_being_made_is_there_for_nobody_but_describe_key() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).seams().connected().await;
    clients.all_healthy(&store).await;
    let mut subject = Subject::new(&clients, &store).await;
    rig.stop_at("create-begun");
    let mut request = Request::new(pb::CreateKeyRequest { key_store_id: store, ..Default::default() });
    request.set_timeout(Duration::from_secs(2));
    let status = clients.keys.create_key(request).await.expect_err("its maker has stopped");
    let details = tonic_types::StatusExt::get_error_details(&status);
    subject.key = details.error_info().expect("it has one").metadata["keyId"].clone();
    assert_eq!(clients.describe_key(&subject.key).await.state(), pb::KeyState::Creating);
    for (call, _) in
        TABLE.iter().filter(|(call, _)| !["Decrypt", "ReEncrypt", "DescribeKey", "DeleteAlias"].contains(call))
    {
        refused(call, subject.call(call).await, "NOT_FOUND", "");
    }
}

#[tokio::test]
async fn a_change_whose_caller_leaves_before_its_answer_holds_for_every_use_after_it() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    clients.create_alias("alias/orders", &key).await.unwrap();
    clients.try_encrypt("alias/orders").await.expect("the daemon remembers both by now");

    let records = format!("sqlite://{}", rig.path("daemon/records.sqlite3").display());
    let records = sqlx::SqlitePool::connect(&records).await.unwrap();
    let is_written = async |written: &str| {
        wait_async(|| async {
            let found: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(written)).fetch_one(&records).await.unwrap();
            (found > 0).then_some(())
        })
        .await;
    };
    let held = records.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let mut disable = Request::new(pb::DisableKeyRequest { key_id: key.clone() });
    disable.set_timeout(Duration::from_secs(1));
    assert!(clients.keys.disable_key(disable).await.is_err(), "nothing can be written just now");
    held.rollback().await.unwrap();
    is_written("SELECT count(*) FROM keys WHERE state = 'DISABLED'").await;
    let refusal = wait_async(|| async { clients.clone().try_encrypt(&key).await.err() }).await;
    refused("nobody heard of it", Err::<(), _>(refusal), "DISABLED", "");
    clients.disable(&key).await.expect("it is asked for again");
    refused("it is disabled", clients.try_encrypt(&key).await, "DISABLED", "");

    clients.enable(&key).await.unwrap();
    let held = records.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let mut delete = Request::new(pb::DeleteAliasRequest { alias_name: "alias/orders".to_owned() });
    delete.set_timeout(Duration::from_secs(1));
    assert!(clients.keys.delete_alias(delete).await.is_err(), "nor this");
    held.rollback().await.unwrap();
    is_written("SELECT NOT EXISTS (SELECT 1 FROM aliases WHERE name = 'alias/orders')").await;
    let refusal = wait_async(|| async { clients.clone().try_encrypt("alias/orders").await.err() }).await;
    refused("nobody's name", Err::<(), _>(refusal), "NOT_FOUND", "");
}

#[tokio::test]
async fn no_use_that_begins_after_a_key_was_disabled_is_served_and_none_after_it_was_enabled_is_refused() {
    let (_rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    // Others use it all the while: what they have read before the change must not be remembered after it.
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (mut clients, key) = (clients.clone(), key.clone());
            tokio::spawn(async move {
                loop {
                    let _ = clients.try_encrypt(&key).await;
                }
            })
        })
        .collect();
    let uses = clients.describe_key(&key).await.uses;
    for _ in 0..50 {
        assert_eq!(clients.disable(&key).await.unwrap().state(), pb::KeyState::Disabled);
        refused("it is disabled", clients.try_encrypt(&key).await, "DISABLED", "");
        assert_eq!(clients.enable(&key).await.unwrap().state(), pb::KeyState::Enabled);
        clients.try_encrypt(&key).await.expect("it is enabled");
    }
    callers.iter().for_each(tokio::task::JoinHandle::abort);
    let told = clients.describe_key(&key).await;
    assert!(told.uses <= uses.max(1) + 65_536, "a change of state spends no block of uses: {uses}, {}", told.uses);
    assert!(told.last_use_time.is_some());
}
