use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;
use crate::model::{
    AliasName, CkaId, ClusterId, ConnectionErrorCode, ConnectionState, CryptoUser, HsmId, KeyId, KeySpec, KeyState,
    KeyStoreId, KeyVersion, Password, PasswordVersion, Probe, Realm, TrustAnchor, Username,
};

mod clusters;
mod crypto_users;
mod drifts;
mod hsm_keys;
mod key_life;
mod made_hsms;
mod opening;
mod passwords;
mod plans;
mod rotations;
mod updates;

const V1: KeyVersion = KeyVersion::FIRST;
const OFF: ConnectionState = ConnectionState::Disconnected;
const LIMITS: KeyLimits = KeyLimits { keys: 1_000, request_retention: Duration::from_secs(60) };

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn settings(&self) -> Settings {
        Settings { database: self.0.path().join("data/records.sqlite3"), sealing_key: self.0.path().join("key") }
    }

    async fn open(&self) -> Records {
        Records::open(&self.settings()).await.unwrap()
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

fn cluster(letter: char) -> ClusterId {
    format!("cluster-2{}", letter.to_string().repeat(10)).parse().unwrap()
}

fn kmsuser(cluster: &ClusterId) -> CryptoUser {
    CryptoUser::kmsuser(cluster.clone())
}

fn hsm(number: u8) -> HsmId {
    format!("hsm-{number}").parse().unwrap()
}

fn realm(region: &str) -> Realm {
    Realm { region: region.parse().unwrap(), account: "123456789012".parse().unwrap() }
}

fn store(name: &str, on: char) -> KeyStoreRecord {
    KeyStoreRecord {
        id: KeyStoreId::random(),
        name: name.parse().unwrap(),
        cluster: cluster(on),
        realm: Some(realm("us-east-1")),
        trust_anchor: authority(),
        state: ConnectionState::Disconnected,
        state_changed: at(0),
        connect_attempt: 0,
        last_error: None,
        password_version: PasswordVersion(0),
        password_rotated: None,
        created: at(0),
    }
}

/// Always the same one.
fn authority() -> TrustAnchor {
    static ANCHOR: std::sync::OnceLock<TrustAnchor> = std::sync::OnceLock::new();
    let made = || {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        TrustAnchor::parse(&pem).unwrap()
    };
    ANCHOR.get_or_init(made).clone()
}

fn password(text: &str) -> Password {
    Password::for_key_store(text.to_owned()).unwrap()
}

async fn moved(records: &Records, id: &KeyStoreId, from: ConnectionState, to: ConnectionState) -> bool {
    let change = KeyStoreChange { to, at: at(1), connect_attempt: 1, last_error: None };
    records.move_key_store(id, from, &change).await.unwrap()
}

async fn connected_store(records: &Records) -> KeyStoreRecord {
    let record = store("main", 'a');
    records.add_key_store(&record, &password("hunter22"), 10).await.unwrap();
    assert!(moved(records, &record.id, ConnectionState::Disconnected, ConnectionState::Connected).await);
    record
}

fn new_key(store: &KeyStoreRecord) -> NewKey {
    NewKey {
        id: KeyId::random(),
        home: NewKeyHome::KeyStore { store: store.id.clone(), state: ConnectionState::Connected },
        cluster: store.cluster.clone(),
        spec: KeySpec::SymmetricDefault,
        description: "d".to_owned(),
        tags: [("k".to_owned(), "v".to_owned())].into(),
        alias: None,
        created: at(2),
        hsms: vec![hsm(1), hsm(2), hsm(3)],
        request: None,
    }
}

async fn enabled_key(records: &Records, store: &KeyStoreRecord) -> KeyId {
    let new = new_key(store);
    assert_eq!(records.begin_key(&new, &LIMITS).await.unwrap(), BegunKey::Begun);
    let proven = [hsm(1), hsm(2)];
    assert!(records.finish_key(new.id, V1, &Probe(vec![1]), (&proven, &[hsm(3)]), |_| true, at(3)).await.unwrap());
    new.id
}

/// Nothing in the product can, yet.
async fn forget_key(records: &Records, key: KeyId) {
    let delete = sqlx::query("DELETE FROM keys WHERE id = ?").bind(key.as_bytes().as_slice());
    delete.execute(&records.0.write).await.unwrap();
}

#[tokio::test]
async fn a_store_is_added_once_per_name_and_cluster_and_within_the_quota() {
    let home = Home::new();
    let records = home.open().await;
    let secret = password("hunter22");
    let first = store("one", 'a');
    assert_eq!(records.add_key_store(&first, &secret, 2).await.unwrap(), AddedKeyStore::Added(PasswordVersion(1)));
    assert_eq!(records.add_key_store(&store("one", 'b'), &secret, 2).await.unwrap(), AddedKeyStore::NameInUse);
    assert_eq!(records.add_key_store(&store("two", 'a'), &secret, 2).await.unwrap(), AddedKeyStore::ClusterInUse);
    records.add_key_store(&store("two", 'b'), &secret, 2).await.unwrap();
    assert_eq!(records.add_key_store(&store("three", 'c'), &secret, 2).await.unwrap(), AddedKeyStore::Full);
    assert_eq!(records.key_stores().await.unwrap().len(), 2);
}

#[tokio::test]
async fn where_a_store_was_made_is_written_once() {
    let home = Home::new();
    let records = home.open().await;
    let from_before = KeyStoreRecord { realm: None, ..store("before", 'a') };
    records.add_key_store(&from_before, &password("hunter22"), 2).await.unwrap();
    records.add_key_store(&store("since", 'b'), &password("hunter22"), 2).await.unwrap();
    let realms = || async { records.key_stores().await.unwrap().into_iter().map(|it| (it.name, it.realm)) };
    for (name, found) in realms().await {
        assert_eq!(found.is_some(), name.as_str() == "since");
    }
    for region in ["eu-west-1", "eu-west-2"] {
        for store in records.key_stores().await.unwrap() {
            records.set_realm(&store.id, &realm(region)).await.unwrap();
        }
    }
    for (name, found) in realms().await {
        assert_eq!(found, Some(realm(if name.as_str() == "since" { "us-east-1" } else { "eu-west-1" })));
    }
}

#[tokio::test]
async fn what_was_written_is_there_after_the_records_are_opened_again() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let key = enabled_key(&records, &record).await;
    let fault = ConnectionFault {
        code: ConnectionErrorCode::InvalidCredentials,
        message: "refused".to_owned(),
        hsm: Some(hsm(1)),
        time: at(5),
    };
    let change = KeyStoreChange { to: ConnectionState::Failed, at: at(5), connect_attempt: 2, last_error: Some(fault) };
    assert!(records.move_key_store(&record.id, ConnectionState::Connected, &change).await.unwrap());
    drop(records);

    let records = home.open().await;
    let found = records.key_stores().await.unwrap().remove(0);
    assert_eq!((found.id, found.state, found.connect_attempt), (record.id, ConnectionState::Failed, 2));
    assert_eq!(found.last_error.unwrap().hsm, Some(hsm(1)));
    let stored = records.password(&record.cluster, &Username::kmsuser(), PasswordVersion(1)).await.unwrap();
    assert_eq!(stored.unwrap().expose(), "hunter22");
    let key = records.key(key).await.unwrap().unwrap();
    assert_eq!((key.state, key.versions[0].probe.clone()), (KeyState::Enabled, Some(Probe(vec![1]))));
    assert_eq!(key.created, at(2));
}

#[tokio::test]
async fn a_store_moves_only_from_the_state_it_is_in() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    use ConnectionState::{Connected, Disconnected, Disconnecting};
    assert!(!moved(&records, &record.id, Disconnected, Connected).await);
    assert!(moved(&records, &record.id, Connected, Disconnecting).await);
}

#[tokio::test]
async fn a_store_is_deleted_when_disconnected_and_empty_and_its_password_version_never_comes_again() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    assert_eq!(records.delete_key_store(&record.id, OFF).await.unwrap(), DeletedKeyStore::Changed);
    let key = enabled_key(&records, &record).await;
    moved(&records, &record.id, ConnectionState::Connected, ConnectionState::Disconnected).await;
    assert_eq!(records.delete_key_store(&record.id, OFF).await.unwrap(), DeletedKeyStore::HasKeys(1));
    forget_key(&records, key).await;
    assert_eq!(records.delete_key_store(&record.id, OFF).await.unwrap(), DeletedKeyStore::Deleted);
    assert_eq!(records.delete_key_store(&record.id, OFF).await.unwrap(), DeletedKeyStore::Gone);
    let gone = records.password(&record.cluster, &Username::kmsuser(), PasswordVersion(1)).await.unwrap();
    assert!(gone.is_none());
    let again = records.add_key_store(&store("main", 'a'), &password("hunter23"), 10).await.unwrap();
    assert_eq!(again, AddedKeyStore::Added(PasswordVersion(2)));
}

#[tokio::test]
async fn a_login_is_tried_once_unless_it_was_good_before() {
    let home = Home::new();
    let records = home.open().await;
    let (on, user, version) = (cluster('a'), Username::kmsuser(), PasswordVersion(1));
    let begin = |node| {
        let (records, on, user) = (records.clone(), on.clone(), user.clone());
        async move { records.begin_login(&on, &hsm(node), &user, version).await.unwrap() }
    };
    // Never answered: not again, until an operator says so.
    assert_eq!(begin(1).await, LoginLeave::Granted);
    assert_eq!(begin(1).await, LoginLeave::Unsettled);
    assert_eq!(begin(2).await, LoginLeave::Granted, "each node has its own");
    records.forgive_unsettled(&on, &user).await.unwrap();
    assert_eq!(begin(1).await, LoginLeave::Granted);
    // Good once: again and again, until the first refusal.
    records.login_succeeded(&on, &hsm(1), &user, version).await.unwrap();
    assert_eq!(begin(1).await, LoginLeave::GrantedAgain);
    assert_eq!(begin(1).await, LoginLeave::GrantedAgain);
    records.login_refused(&on, &hsm(1), &user, version).await.unwrap();
    assert_eq!(begin(1).await, LoginLeave::Refused);
    records.forgive_unsettled(&on, &user).await.unwrap();
    assert_eq!(begin(1).await, LoginLeave::Refused, "a refusal is not forgiven");
    assert_eq!(records.begin_login(&on, &hsm(1), &user, PasswordVersion(2)).await.unwrap(), LoginLeave::Granted);
}

#[tokio::test]
async fn an_operator_grants_one_login_on_one_node_and_no_more() {
    let home = Home::new();
    let records = home.open().await;
    let (on, user, version) = (cluster('a'), Username::kmsuser(), PasswordVersion(1));
    let begin = async |node| records.begin_login(&on, &hsm(node), &user, version).await.unwrap();
    for node in 1..=2 {
        begin(node).await;
        records.login_succeeded(&on, &hsm(node), &user, version).await.unwrap();
        assert_eq!(begin(node).await, LoginLeave::GrantedAgain);
        records.login_refused(&on, &hsm(node), &user, version).await.unwrap();
    }
    records.allow_one_login(&on, &hsm(1), &user, version).await.unwrap();
    assert_eq!(begin(2).await, LoginLeave::Refused, "the other node was not meant");
    // What it accepted before the refusal does not make this more than one try.
    assert_eq!(begin(1).await, LoginLeave::Granted);
    assert_eq!(begin(1).await, LoginLeave::Unsettled);
}

#[tokio::test]
async fn what_an_operator_grants_is_remembered_until_the_node_has_answered() {
    let home = Home::new();
    let records = home.open().await;
    let (on, user, version) = (cluster('a'), Username::kmsuser(), PasswordVersion(1));
    let standing = async || records.login_standing_on(&on, &hsm(1), &user, version).await.unwrap();
    // Also on a node that was never asked.
    records.allow_one_login(&on, &hsm(1), &user, version).await.unwrap();
    assert_eq!(standing().await, Standing::Granted);
    records.begin_login(&on, &hsm(1), &user, version).await.unwrap();
    assert_eq!(standing().await, Standing::Unsettled);
    records.login_not_made(&on, &hsm(1), &user, version).await.unwrap();
    assert_eq!(standing().await, Standing::Granted, "it was not made");
    assert_eq!(records.begin_login(&on, &hsm(1), &user, version).await.unwrap(), LoginLeave::Granted);
    records.login_refused(&on, &hsm(1), &user, version).await.unwrap();
    assert_eq!(standing().await, Standing::Refused);
    records.allow_one_login(&on, &hsm(1), &user, version).await.unwrap();
    records.begin_login(&on, &hsm(1), &user, version).await.unwrap();
    records.login_succeeded(&on, &hsm(1), &user, version).await.unwrap();
    assert_eq!(standing().await, Standing::Proven);
    records.allow_one_login(&on, &hsm(1), &user, version).await.unwrap();
    assert_eq!(standing().await, Standing::Proven, "what it accepts needs no leave");
}

#[tokio::test]
async fn the_security_officers_pin_is_counted_on_each_node_by_itself_and_an_operators_word_covers_it() {
    let home = Home::new();
    let records = home.open().await;
    let (on, user, version) = (cluster('a'), Username::kmsuser(), PasswordVersion(3));
    let (so, pin) = (Username::security_officer(), PasswordVersion::SO_PIN);
    assert!(so.as_str().parse::<Username>().is_err(), "a crypto user can be named like this");
    let begin = async |node| records.begin_login(&on, &hsm(node), &so, pin).await.unwrap();
    for node in 1..=3 {
        assert_eq!(begin(node).await, LoginLeave::Granted);
        records.begin_login(&on, &hsm(node), &user, version).await.unwrap();
        records.login_succeeded(&on, &hsm(node), &user, version).await.unwrap();
    }
    records.login_refused(&on, &hsm(1), &so, pin).await.unwrap();
    records.login_refused(&on, &hsm(2), &so, pin).await.unwrap();
    // Connecting forgives what was not answered, the operator's word on one node what was refused there.
    records.forgive_unsettled(&on, &user).await.unwrap();
    records.allow_one_login(&on, &hsm(1), &user, version).await.unwrap();
    assert_eq!(begin(1).await, LoginLeave::Granted);
    assert_eq!(begin(1).await, LoginLeave::Unsettled);
    assert_eq!(begin(2).await, LoginLeave::Refused);
    assert_eq!(begin(3).await, LoginLeave::Granted);
    // And the user's password, good all the while, stays so.
    assert_eq!(records.login_standing_on(&on, &hsm(1), &user, version).await.unwrap(), Standing::Proven);
}

#[tokio::test]
async fn a_drained_hsm_stays_so_until_it_is_resumed_and_the_note_can_change() {
    let home = Home::new();
    let records = home.open().await;
    let on = cluster('a');
    assert_eq!(records.drained_hsms().await.unwrap(), []);
    records.drain_hsm(&on, &hsm(1), "new firmware", at(1)).await.unwrap();
    records.drain_hsm(&on, &hsm(1), "new firmware, again", at(2)).await.unwrap();
    drop(records);
    let records = home.open().await;
    let note = "new firmware, again".to_owned();
    let drained = super::hsms::DrainRecord { cluster: on.clone(), hsm: hsm(1), note, since: at(1) };
    assert_eq!(records.drained_hsms().await.unwrap(), [drained]);
    records.resume_hsm(&on, &hsm(1)).await.unwrap();
    assert_eq!(records.drained_hsms().await.unwrap(), []);
}

#[tokio::test]
async fn a_tokens_serial_is_remembered_until_an_operator_says_otherwise() {
    let home = Home::new();
    let records = home.open().await;
    let (on, user) = (cluster('a'), Username::kmsuser());
    assert_eq!(records.token_serial(&on, &hsm(1), &user).await.unwrap(), None);
    records.set_token_serial(&on, &hsm(1), &user, "c0ffee").await.unwrap();
    assert_eq!(records.token_serial(&on, &hsm(1), &user).await.unwrap().as_deref(), Some("c0ffee"));
    records.forget_token_serial(&on, &hsm(1)).await.unwrap();
    assert_eq!(records.token_serial(&on, &hsm(1), &user).await.unwrap(), None);
}

#[tokio::test]
async fn an_attempt_that_was_not_made_is_not_spent_and_the_standing_tells_each_node() {
    let home = Home::new();
    let records = home.open().await;
    let (on, user, version) = (cluster('a'), Username::kmsuser(), PasswordVersion(1));
    for node in 1..=4 {
        records.begin_login(&on, &hsm(node), &user, version).await.unwrap();
    }
    records.login_not_made(&on, &hsm(1), &user, version).await.unwrap();
    records.login_succeeded(&on, &hsm(2), &user, version).await.unwrap();
    records.login_refused(&on, &hsm(3), &user, version).await.unwrap();
    let standing = records.login_standing(&on, &user).await.unwrap();
    let expected = [Standing::Untried, Standing::Proven, Standing::Refused, Standing::Unsettled];
    let expected: Vec<_> = (1..).zip(expected).map(|(node, standing)| (hsm(node), version, standing)).collect();
    assert_eq!(standing, expected);
    assert_eq!(records.begin_login(&on, &hsm(1), &user, version).await.unwrap(), LoginLeave::Granted);
    records.login_not_made(&on, &hsm(3), &user, version).await.unwrap();
    assert_eq!(records.begin_login(&on, &hsm(3), &user, version).await.unwrap(), LoginLeave::Refused);
    assert!(records.login_standing(&cluster('b'), &user).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_attempt_left_open_by_a_crash_is_still_open_afterwards() {
    let home = Home::new();
    let records = home.open().await;
    let (on, user, version) = (cluster('a'), Username::kmsuser(), PasswordVersion(1));
    records.begin_login(&on, &hsm(1), &user, version).await.unwrap();
    drop(records);
    let records = home.open().await;
    assert_eq!(records.begin_login(&on, &hsm(1), &user, version).await.unwrap(), LoginLeave::Unsettled);
}

#[tokio::test]
async fn the_first_names_of_a_kek_and_the_first_probe_stand() {
    let home = Home::new();
    let records = home.open().await;
    let kek = |byte| KekRecord {
        cluster: cluster('a'),
        username: Username::kmsuser(),
        kek_id: [byte; 16],
        canary_id: [byte; 16],
        made_on: hsm(byte),
        canary_probe: None,
    };
    assert_eq!(records.begin_kek(&kek(1)).await.unwrap(), kek(1));
    assert_eq!(records.begin_kek(&kek(2)).await.unwrap(), kek(1));
    for probe in [vec![1], vec![2]] {
        records.finish_kek(&cluster('a'), &Username::kmsuser(), &Probe(probe)).await.unwrap();
    }
    let found = records.kek(&cluster('a'), &Username::kmsuser()).await.unwrap().unwrap();
    assert_eq!(found.canary_probe, Some(Probe(vec![1])));
}

#[tokio::test]
async fn a_key_that_is_being_made_is_neither_listed_nor_named() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let alias: AliasName = "alias/x".parse().unwrap();
    let new = NewKey { alias: Some(alias.clone()), ..new_key(&record) };
    records.begin_key(&new, &LIMITS).await.unwrap();
    assert_eq!(records.key_id_of_alias(&alias).await.unwrap(), None);
    assert!(records.list_keys(None, None, 10).await.unwrap().is_empty());
    assert!(records.list_aliases(None, None, 10).await.unwrap().is_empty());
    assert!(records.keys_lacking(&kmsuser(&record.cluster), &hsm(1), None, 10).await.unwrap().is_empty());
    let creating = records.creating_keys(&kmsuser(&record.cluster)).await.unwrap();
    assert_eq!(creating[0].versions[0].on.len(), 3);
    let taken = NewKey { alias: Some(alias.clone()), ..new_key(&record) };
    assert_eq!(records.begin_key(&taken, &LIMITS).await.unwrap(), BegunKey::AliasInUse);

    assert!(records.finish_key(new.id, V1, &Probe(vec![1]), (&[hsm(1), hsm(2)], &[]), |_| true, at(3)).await.unwrap());
    assert_eq!(records.key_id_of_alias(&alias).await.unwrap(), Some(new.id));
    assert!(!records.finish_key(new.id, V1, &Probe(vec![2]), (&[], &[]), |_| true, at(4)).await.unwrap(), "only once");
    let left = records.clear_creating(new.id, &hsm(3)).await.unwrap();
    assert_eq!(left.hsms, 3, "an enabled key is not cleared");
}

#[tokio::test]
async fn a_key_that_was_never_finished_keeps_no_store_from_being_deleted_wherever_the_store_went() {
    let home = Home::new();
    let records = home.open().await;
    let mut record = connected_store(&records).await;
    let alias: AliasName = "alias/x".parse().unwrap();
    let unfinished = NewKey { alias: Some(alias.clone()), ..new_key(&record) };
    records.begin_key(&unfinished, &LIMITS).await.unwrap();
    let key = enabled_key(&records, &record).await;
    assert!(moved(&records, &record.id, ConnectionState::Connected, OFF).await);
    (record.state, record.password_version) = (OFF, PasswordVersion(1));
    assert_eq!(records.delete_key_store(&record.id, OFF).await.unwrap(), DeletedKeyStore::HasKeys(1));
    assert!(records.key(unfinished.id).await.unwrap().is_some(), "a refusal changes nothing");

    forget_key(&records, key).await;
    let away = KeyStoreUpdate { cluster: Some(cluster('b')), ..Default::default() };
    assert!(matches!(records.update_key_store(&record, &away).await.unwrap(), UpdatedKeyStore::Updated(_)));
    assert_eq!(records.delete_key_store(&record.id, OFF).await.unwrap(), DeletedKeyStore::Deleted);
    assert!(records.key(unfinished.id).await.unwrap().is_none());
    let second = connected_store(&records).await;
    let named_again = NewKey { alias: Some(alias), ..new_key(&second) };
    assert_eq!(records.begin_key(&named_again, &LIMITS).await.unwrap(), BegunKey::Begun, "its alias is free");
}

#[tokio::test]
async fn an_abandoned_key_goes_with_its_last_node_and_frees_its_alias_and_its_request() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let claim = RequestClaim { caller: "me".to_owned(), request_id: "r".to_owned(), body_sha256: [1; 32] };
    let alias = "alias/x".parse::<AliasName>().unwrap();
    let new = || NewKey { alias: Some(alias.clone()), request: Some(claim.clone()), ..new_key(&record) };
    let abandoned = new();
    records.begin_key(&abandoned, &LIMITS).await.unwrap();
    let replay = records.begin_key(&new(), &LIMITS).await.unwrap();
    assert_eq!(replay, BegunKey::Replay { id: abandoned.id, state: KeyState::Creating });
    for (node, left) in [(1, 2), (1, 2), (2, 1), (3, 0), (3, 0)] {
        assert_eq!(records.clear_creating(abandoned.id, &hsm(node)).await.unwrap().hsms, left);
    }
    assert!(records.key(abandoned.id).await.unwrap().is_none());
    assert!(!records.finish_key(abandoned.id, V1, &Probe(vec![1]), (&[hsm(1)], &[]), |_| true, at(3)).await.unwrap());
    // A node that answers late finds nothing to write to, and that is no failure of the records.
    records.set_presence(abandoned.id, V1, (&cluster('a'), &hsm(1)), Proof::Used, at(4)).await.unwrap();
    assert!(records.key(abandoned.id).await.unwrap().is_none());
    assert_eq!(records.begin_key(&new(), &LIMITS).await.unwrap(), BegunKey::Begun);
}

#[tokio::test]
async fn a_page_of_keys_is_whole_in_order_and_of_one_store() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let other = store("other", 'b');
    records.add_key_store(&other, &password("hunter22"), 10).await.unwrap();
    moved(&records, &other.id, ConnectionState::Disconnected, ConnectionState::Connected).await;
    let mut keys = Vec::new();
    for _ in 0..5 {
        keys.push(enabled_key(&records, &record).await);
    }
    keys.sort();
    let elsewhere = enabled_key(&records, &other).await;
    let ids = |page: &[KeyRecord]| page.iter().map(|key| key.id).collect::<Vec<_>>();
    let first = records.list_keys(Some(&record.id), None, 3).await.unwrap();
    assert_eq!(ids(&first), keys[..3]);
    let rest = records.list_keys(Some(&record.id), Some(keys[2]), 3).await.unwrap();
    assert_eq!(ids(&rest), keys[3..]);
    assert_eq!(ids(&records.list_keys(Some(&other.id), None, 10).await.unwrap()), [elsewhere]);
    assert_eq!(records.list_keys(None, None, 10).await.unwrap().len(), 6);
    assert_eq!(records.count_keys(&record.id).await.unwrap(), 5);
    let proofs: Vec<_> = first[0].versions[0].on.iter().map(|on| (on.hsm.clone(), on.proof)).collect();
    assert_eq!(proofs, [(hsm(1), Proof::Used), (hsm(2), Proof::Used), (hsm(3), Proof::Unknown)]);
}

#[tokio::test]
async fn a_request_id_makes_one_key_even_when_used_at_the_same_time() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let claim = |body| RequestClaim { caller: "me".to_owned(), request_id: "r".to_owned(), body_sha256: [body; 32] };
    let tries = (0..20).map(|_| {
        let (records, new) = (records.clone(), NewKey { request: Some(claim(1)), ..new_key(&record) });
        async move { records.begin_key(&new, &LIMITS).await.unwrap() }
    });
    let outcomes = futures_util::future::join_all(tries).await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == BegunKey::Begun).count(), 1);
    let replays = outcomes.iter().filter(|outcome| matches!(outcome, BegunKey::Replay { .. })).count();
    assert_eq!(replays, 19);
    let other = NewKey { request: Some(claim(2)), ..new_key(&record) };
    assert_eq!(records.begin_key(&other, &LIMITS).await.unwrap(), BegunKey::RequestReused);
    let much_later = NewKey { created: at(1_000), ..other };
    assert_eq!(records.begin_key(&much_later, &LIMITS).await.unwrap(), BegunKey::Begun, "ids are forgotten in time");
}

#[tokio::test]
async fn keys_are_begun_only_in_a_connected_store_with_room() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let narrow = KeyLimits { keys: 1, ..LIMITS };
    assert_eq!(records.begin_key(&new_key(&record), &narrow).await.unwrap(), BegunKey::Begun);
    assert_eq!(records.begin_key(&new_key(&record), &narrow).await.unwrap(), BegunKey::TooManyKeys);
    moved(&records, &record.id, ConnectionState::Connected, ConnectionState::Disconnecting).await;
    assert_eq!(records.begin_key(&new_key(&record), &LIMITS).await.unwrap(), BegunKey::StoreChanged);
}

#[tokio::test]
async fn what_a_node_lacks_is_what_was_never_proven_there() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let mut keys = Vec::new();
    for _ in 0..5 {
        keys.push(enabled_key(&records, &record).await);
    }
    keys.sort();
    let lacking = |node, after, limit| {
        let (records, on) = (records.clone(), record.cluster.clone());
        async move { records.keys_lacking(&kmsuser(&on), &hsm(node), after, limit).await.unwrap() }
    };
    assert!(lacking(1, None, 10).await.is_empty());
    let first = lacking(3, None, 2).await;
    let names: Vec<_> = first.iter().map(|lacking| (lacking.key, lacking.version)).collect();
    assert_eq!(names, [(keys[0], V1), (keys[1], V1)]);
    assert_eq!((first[0].spec, &first[0].probe), (KeySpec::SymmetricDefault, &Probe(vec![1])));
    assert_eq!(lacking(3, Some(names[1]), 10).await.len(), 3);
    records.set_presence(keys[0], V1, (&cluster('a'), &hsm(3)), Proof::Used, at(9)).await.unwrap();
    assert_eq!(lacking(3, None, 10).await.len(), 4);
    records.doubt_presence(&kmsuser(&record.cluster), &hsm(1), at(9)).await.unwrap();
    assert_eq!(lacking(1, None, 10).await.len(), 5);
    assert_eq!(lacking(2, None, 10).await.len(), 0);
    records.expect_keys(&kmsuser(&record.cluster), &hsm(9), at(9)).await.unwrap();
    assert_eq!(lacking(9, None, 10).await.len(), 5, "a node nobody has seen lacks everything");
    records.expect_keys(&kmsuser(&record.cluster), &hsm(2), at(9)).await.unwrap();
    assert_eq!(
        lacking(2, None, 10).await.len(),
        0,
        "what is expected of a node takes nothing from what is known of it"
    );
}

#[tokio::test]
async fn keys_that_go_with_a_node_are_those_that_none_of_the_others_was_proven_to_hold() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let (one, _other) = (enabled_key(&records, &record).await, enabled_key(&records, &record).await);
    let user = kmsuser(&record.cluster);
    let going_with =
        async |hsm: HsmId, others: &[HsmId]| records.count_keys_only_on(&user, &hsm, others).await.unwrap();
    assert_eq!(going_with(hsm(1), &[hsm(2), hsm(3)]).await, 0);
    assert_eq!(going_with(hsm(1), &[hsm(3)]).await, 2, "it may be there, and was not proven");
    assert_eq!(going_with(hsm(1), &[]).await, 2);
    assert_eq!(going_with(hsm(3), &[]).await, 0, "it holds none, for all that is known");
    records.set_presence(one, V1, (&record.cluster, &hsm(3)), Proof::Used, at(4)).await.unwrap();
    assert_eq!(going_with(hsm(1), &[hsm(3)]).await, 1);
    let another = CryptoUser { username: "alice".parse().unwrap(), ..kmsuser(&record.cluster) };
    assert_eq!(
        records.count_keys_only_on(&another, &hsm(1), &[]).await.unwrap(),
        0,
        "each user's go with his own token"
    );
}

#[tokio::test]
async fn a_key_may_be_on_any_node_where_it_was_not_looked_for_in_vain() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let key = enabled_key(&records, &record).await;
    let set = async |node, proof| {
        records.set_presence(key, V1, (&record.cluster, &hsm(node)), proof, at(4)).await.unwrap();
    };
    let may_be = async || records.may_be_somewhere(key, V1, &record.cluster).await.unwrap();
    for node in 1..=3 {
        set(node, Proof::Missing).await;
    }
    assert!(!may_be().await);
    set(2, Proof::Different).await;
    assert!(!may_be().await);
    set(2, Proof::Unknown).await;
    assert!(may_be().await);
    set(2, Proof::Used).await;
    assert!(may_be().await);
    assert!(!records.may_be_somewhere(key, V1, &cluster('b')).await.unwrap());
}

#[tokio::test]
async fn uses_are_reserved_in_blocks_up_to_the_ceiling() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let key = enabled_key(&records, &record).await;
    assert_eq!(records.reserve_uses(key, V1, 10, 25).await.unwrap(), Reserved::Block { from: 1, to: 11 });
    assert_eq!(records.reserve_uses(key, V1, 10, 25).await.unwrap(), Reserved::Block { from: 11, to: 21 });
    assert_eq!(records.reserve_uses(key, V1, 10, 25).await.unwrap(), Reserved::Block { from: 21, to: 25 });
    assert_eq!(records.reserve_uses(key, V1, 10, 25).await.unwrap(), Reserved::Exhausted);
    assert_eq!(records.reserve_uses(KeyId::random(), V1, 10, 25).await.unwrap(), Reserved::Exhausted);
    let all = records.reserve_uses(key, V1, u64::MAX, u64::MAX).await.unwrap();
    assert_eq!(all, Reserved::Block { from: 25, to: i64::MAX.unsigned_abs() }, "the count never goes back");
}

#[tokio::test]
async fn aliases_are_unique_bounded_and_listed_in_order() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let (key, other) = (enabled_key(&records, &record).await, enabled_key(&records, &record).await);
    let create = |name: &str, key, most| {
        let (records, name) = (records.clone(), name.parse::<AliasName>().unwrap());
        async move { records.create_alias(&name, key, at(4), most).await.unwrap() }
    };
    assert_eq!(create("alias/b", key, 2).await, CreatedAlias::Created);
    assert_eq!(create("alias/a", key, 2).await, CreatedAlias::Created);
    assert_eq!(create("alias/c", key, 2).await, CreatedAlias::TooMany);
    assert_eq!(create("alias/a", other, 2).await, CreatedAlias::InUse);
    assert_eq!(create("alias/z", KeyId::random(), 2).await, CreatedAlias::NoSuchKey);
    let names: Vec<_> = records
        .list_aliases(Some(key), None, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|alias| alias.name.to_string())
        .collect();
    assert_eq!(names, ["alias/a", "alias/b"]);
    let after: AliasName = "alias/a".parse().unwrap();
    assert_eq!(records.list_aliases(None, Some(&after), 10).await.unwrap().len(), 1);
}
