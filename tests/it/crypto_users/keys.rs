//! Keys of crypto users' own: made, used and destroyed under a login, in that user's tokens alone.

mod absence;
mod bounds;
mod crash;
mod found;
mod kinds;

use tonic::Request;
use tonic::metadata::MetadataValue;

use super::*;
use crate::rig::{Object, wait_async};

const HSMS: [&str; 3] = ["hsm-1", "hsm-2", "hsm-3"];
/// The key-encryption key and the canary in each token.
const KEYWAYS_OWN: usize = 2;

/// A crypto user who is logged in, and what he does with his keys.
struct User {
    clients: Clients,
    cluster: String,
    token: String,
}

impl User {
    /// Made, and logged in.
    async fn new(rig: &Rig, clients: &Clients, name: &str) -> Self {
        clients.clone().create_user(rig, name, FIRST).await.expect("made");
        Self::log_in(rig, clients, name).await
    }

    async fn log_in(rig: &Rig, clients: &Clients, name: &str) -> Self {
        let token = logs_in(clients, rig, name, FIRST).await.expect("logged in").login_token;
        Self { clients: clients.clone(), cluster: rig.cluster_id(), token }
    }

    /// The same login, with another connection or daemon.
    fn at(&self, clients: &Clients) -> Self {
        Self { clients: clients.clone(), cluster: self.cluster.clone(), token: self.token.clone() }
    }

    fn named(&self, label: &str) -> String {
        format!("hsm:{}/{label}", self.cluster)
    }

    fn with_login<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let token = MetadataValue::try_from(&self.token).expect("base64");
        request.metadata_mut().insert("x-keyway-login", token);
        request
    }

    async fn create(&self, label: &str) -> Result<pb::Key, Status> {
        let (cluster_id, hsm_label) = (self.cluster.clone(), label.to_owned());
        self.create_as(pb::CreateKeyRequest { cluster_id, hsm_label, ..Default::default() }).await
    }

    async fn create_as(&self, request: pb::CreateKeyRequest) -> Result<pb::Key, Status> {
        let made = self.clients.keys.clone().create_key(self.with_login(request)).await?;
        Ok(made.into_inner().key.expect("it is told"))
    }

    async fn describe(&self, key_id: &str) -> Result<pb::Key, Status> {
        let request = pb::DescribeKeyRequest { key_id: key_id.to_owned(), ..Default::default() };
        let told = self.clients.keys.clone().describe_key(self.with_login(request)).await?;
        Ok(told.into_inner().key.expect("it is told"))
    }

    async fn list(&self) -> Result<Vec<pb::Key>, Status> {
        let request = pb::ListKeysRequest { cluster_id: self.cluster.clone(), ..Default::default() };
        Ok(self.clients.keys.clone().list_keys(self.with_login(request)).await?.into_inner().keys)
    }

    async fn labels(&self) -> Vec<String> {
        self.list().await.expect("listed").into_iter().map(|key| key.hsm_label).collect()
    }

    async fn encrypt(&self, key_id: &str) -> Result<pb::EncryptResponse, Status> {
        let (key_id, plaintext) = (key_id.to_owned(), b"hers".to_vec());
        let request = pb::EncryptRequest { key_id, plaintext, ..Default::default() };
        Ok(self.clients.crypto.clone().encrypt(self.with_login(request)).await?.into_inner())
    }

    /// `key_id` may be empty.
    async fn decrypt(&self, key_id: &str, ciphertext: &[u8]) -> Result<pb::DecryptResponse, Status> {
        let (key_id, ciphertext) = (key_id.to_owned(), ciphertext.to_vec());
        let request = pb::DecryptRequest { key_id, ciphertext, ..Default::default() };
        Ok(self.clients.crypto.clone().decrypt(self.with_login(request)).await?.into_inner())
    }

    async fn data_key(&self, key_id: &str) -> Result<pb::GenerateDataKeyResponse, Status> {
        use pb::generate_data_key_request::Length;
        let length = Some(Length::NumberOfBytes(32));
        let request = pb::GenerateDataKeyRequest { key_id: key_id.to_owned(), length, ..Default::default() };
        Ok(self.clients.crypto.clone().generate_data_key(self.with_login(request)).await?.into_inner())
    }

    async fn hidden_data_key(&self, key_id: &str) -> Result<pb::GenerateDataKeyWithoutPlaintextResponse, Status> {
        use pb::generate_data_key_without_plaintext_request::Length;
        let length = Some(Length::DataKeySpec(pb::DataKeySpec::Aes256.into()));
        let request =
            pb::GenerateDataKeyWithoutPlaintextRequest { key_id: key_id.to_owned(), length, ..Default::default() };
        let made = self.clients.crypto.clone().generate_data_key_without_plaintext(self.with_login(request)).await?;
        Ok(made.into_inner())
    }

    async fn destroy(&self, key_id: &str) -> Result<(), Status> {
        let request = pb::DestroyHsmKeyRequest { key_id: key_id.to_owned() };
        self.clients.keys.clone().destroy_hsm_key(self.with_login(request)).await.map(drop)
    }

    /// Waits until the key is proven on these HSMs, and on no other.
    async fn until_on(&self, key_id: &str, hsms: &[&str]) -> pb::Key {
        wait_async(|| async {
            let key = self.describe(key_id).await.expect("it is there");
            let proven = key.nodes.iter().filter(|on| on.proof() == pb::KeyProof::Used);
            let proven: Vec<_> = proven.map(|on| on.hsm_id.as_str()).collect();
            (proven == hsms).then_some(key)
        })
        .await
    }
}

impl Clients {
    /// Has an HSM put out of use.
    async fn drain(&mut self, rig: &Rig, hsm: &str) {
        let request = pb::DrainHsmRequest {
            cluster_id: rig.cluster_id(),
            hsm_id: hsm.to_owned(),
            note: "new fans".to_owned(),
            drain_timeout: None,
        };
        self.clusters.drain_hsm(request).await.expect("drained");
    }
}

impl Rig {
    /// What a user's own token on an HSM holds beside the key-encryption key and the canary, past keyway.
    fn user_objects(&self, hsm: &str, user: &str) -> Vec<Object> {
        let objects = self.all_user_objects(hsm, user).into_iter();
        objects.filter(|object| !object.label.starts_with("keyway:")).collect()
    }

    fn all_user_objects(&self, hsm: &str, user: &str) -> Vec<Object> {
        crate::rig::objects_as(&self.user_token(hsm, user).join("softhsm2.conf"), user, FIRST)
    }

    /// Waits until a user's token holds as many keys as there are labels; then they are these. It is looked into past keyway
    /// but once: whoever logs in there has SoftHSM2 write the token anew, and its worker may meet it half written.
    async fn until_labelled(&self, hsm: &str, user: &str, labels: &[&str]) {
        let directory = self.user_token(hsm, user).join("tokens");
        let objects = || {
            let tokens = std::fs::read_dir(&directory).into_iter().flatten().flatten();
            let files = tokens.flat_map(|token| std::fs::read_dir(token.path()).into_iter().flatten().flatten());
            let names = files.filter_map(|file| file.file_name().into_string().ok());
            names.filter(|name| name.ends_with(".object") && name != "token.object").count()
        };
        wait_async(|| async { (objects() == KEYWAYS_OWN + labels.len()).then_some(()) }).await;
        let mut found: Vec<_> = self.user_objects(hsm, user).into_iter().map(|object| object.label).collect();
        found.sort_unstable();
        assert_eq!(found, labels, "{hsm}");
    }
}

#[tokio::test]
async fn a_key_made_under_a_login_is_on_every_hsm_of_its_user_and_used_by_its_label() {
    let rig = Rig::new().start();
    let clients = rig.clients().await;
    let alice = User::new(&rig, &clients, "alice").await;
    let request = pb::CreateKeyRequest {
        cluster_id: rig.cluster_id(),
        hsm_label: "pay roll/1".to_owned(),
        description: "for the payroll".to_owned(),
        ..Default::default()
    };
    let key = alice.create_as(request).await.unwrap();
    let name = alice.named("pay%20roll%2F1");
    assert_eq!((key.key_id.as_str(), key.arn.as_str(), key.key_store_id.as_str()), (name.as_str(), "", ""));
    assert_eq!((key.cluster_id.as_str(), key.hsm_label.as_str()), (rig.cluster_id().as_str(), "pay roll/1"));
    assert_eq!(
        (key.state(), key.key_spec(), key.current_version),
        (pb::KeyState::Enabled, pb::KeySpec::SymmetricDefault, 0)
    );
    assert_eq!(key.description, "for the payroll");

    let described = alice.until_on(&name, &HSMS).await;
    assert_eq!((described.key_id, described.hsm_label), (name.clone(), "pay roll/1".to_owned()));
    let id = rig.user_objects("hsm-1", "alice").remove(0).id;
    for hsm in HSMS {
        let objects = rig.user_objects(hsm, "alice");
        assert_eq!(objects, [Object { id: id.clone(), label: "pay roll/1".to_owned() }], "{hsm}");
        assert!(
            rig.objects(hsm).iter().all(|object| object.label != "pay roll/1"),
            "kmsuser's tokens have nothing of it"
        );
    }
    let by_id = alice.named(&format!("id={id}"));
    assert_eq!(alice.describe(&by_id).await.unwrap().key_id, name);

    let encrypted = alice.encrypt(&name).await.unwrap();
    assert_eq!((encrypted.key_id.as_str(), encrypted.key_version), (name.as_str(), 0));
    for key_id in [name.as_str(), by_id.as_str(), ""] {
        let decrypted = alice.decrypt(key_id, &encrypted.ciphertext).await.unwrap();
        assert_eq!((decrypted.plaintext.as_slice(), decrypted.key_id.as_str()), (&b"hers"[..], name.as_str()));
        assert_eq!(decrypted.key_version, 0);
    }
    let data_key = alice.data_key(&name).await.unwrap();
    assert_eq!(data_key.key_id, name);
    assert_eq!(alice.decrypt("", &data_key.ciphertext).await.unwrap().plaintext, data_key.plaintext);
    let hidden = alice.hidden_data_key(&name).await.unwrap();
    assert_eq!(alice.decrypt(&name, &hidden.ciphertext).await.unwrap().plaintext.len(), 32);

    alice.create("b").await.unwrap();
    alice.create("a").await.unwrap();
    assert_eq!(alice.labels().await, ["a", "b", "pay roll/1"]);
    let other = alice.decrypt(&alice.named("a"), &encrypted.ciphertext).await;
    refused("another key of hers", other, "INCORRECT_KEY", "key_id");
}

#[tokio::test]
async fn a_users_key_is_nobody_elses_and_no_key_stores() {
    let rig = Rig::new().start();
    let mut clients = rig.clients().await;
    let store = clients.connected_store(&rig, "main").await;
    let stores = clients.key(&store).await;
    let alice = User::new(&rig, &clients, "alice").await;
    let bob = User::new(&rig, &clients, "bob").await;
    alice.create("orders").await.unwrap();
    let name = alice.named("orders");
    let ciphertext = alice.encrypt(&name).await.unwrap().ciphertext;

    refused("another user", bob.describe(&name).await, "NOT_FOUND", "");
    refused("another user", bob.encrypt(&name).await, "NOT_FOUND", "");
    refused("another user", bob.decrypt(&name, &ciphertext).await, "NOT_FOUND", "");
    refused("another user", bob.decrypt("", &ciphertext).await, "INVALID_CIPHERTEXT", "ciphertext");
    refused("another user", bob.destroy(&name).await, "NOT_FOUND", "");
    assert!(bob.labels().await.is_empty());
    bob.create("orders").await.expect("a label is one user's");
    let decrypted = bob.decrypt(&name, &ciphertext).await;
    refused("his own of that name", decrypted, "INCORRECT_KEY", "key_id");

    let nobody = |key_id: &str| pb::DescribeKeyRequest { key_id: key_id.to_owned(), ..Default::default() };
    refused("no login", clients.keys.describe_key(nobody(&name)).await, "LOGIN_REQUIRED", "");
    refused("no login", clients.decrypt(&ciphertext).await, "INVALID_CIPHERTEXT", "ciphertext");
    let list = pb::ListKeysRequest { cluster_id: rig.cluster_id(), ..Default::default() };
    refused("no login", clients.keys.list_keys(list).await, "LOGIN_REQUIRED", "");
    let create = pb::CreateKeyRequest { cluster_id: rig.cluster_id(), hsm_label: "x".to_owned(), ..Default::default() };
    refused("no login", clients.keys.create_key(create).await, "LOGIN_REQUIRED", "");
    let destroy = pb::DestroyHsmKeyRequest { key_id: name.clone() };
    refused("no login", clients.keys.destroy_hsm_key(destroy).await, "LOGIN_REQUIRED", "");

    // The login is its caller's alone.
    let plaintext = Clients::tcp(&rig.tcp()).await;
    let other_caller = alice.at(&plaintext);
    refused("another caller", other_caller.encrypt(&name).await, "LOGIN_EXPIRED", "");
    refused("another caller", other_caller.decrypt("", &ciphertext).await, "INVALID_CIPHERTEXT", "ciphertext");

    // Its UUID, which its ciphertexts tell, names it to nobody.
    let uuid = uuid::Uuid::from_slice(&ciphertext[4..20]).unwrap().to_string();
    for user in [&alice, &bob] {
        refused("by its UUID", user.describe(&uuid).await, "NOT_FOUND", "");
        refused("by its UUID", user.encrypt(&uuid).await, "NOT_FOUND", "");
        refused("by its UUID", user.decrypt(&uuid, &ciphertext).await, "NOT_FOUND", "");
    }
    let alias = pb::CreateAliasRequest { alias_name: "alias/x".to_owned(), target_key_id: uuid };
    refused("by its UUID", clients.keys.create_alias(alias).await, "NOT_FOUND", "");
    let all = clients.keys.list_keys(pb::ListKeysRequest::default()).await.unwrap().into_inner().keys;
    assert_eq!(all.iter().map(|key| &key.key_id).collect::<Vec<_>>(), [&stores.key_id], "those of key stores");
    assert_eq!(clients.describe_key(&stores.key_id).await.key_id, stores.key_id);
    assert_eq!(alice.decrypt("", &clients.encrypt(&stores.key_id, b"x").await).await.unwrap().plaintext, b"x");
    let drift = pb::ListDriftRequest { cluster_id: rig.cluster_id(), ..Default::default() };
    let drifts = clients.clusters.list_drift(drift).await.unwrap().into_inner().drifts;
    assert!(drifts.is_empty(), "what users have in their tokens is no drift: {drifts:?}");
}

#[tokio::test]
async fn what_is_kmsusers_is_used_through_the_key_store_alone() {
    let rig = Rig::new().start();
    let mut clients = rig.clients().await;
    let store = clients.connected_store(&rig, "main").await;
    let key = clients.key(&store).await.key_id;
    let id = rig.objects("hsm-1").into_iter().find(|object| object.label.contains(&key)).expect("it is there").id;
    clients.disconnect(&store).await;
    let token = logs_in(&clients, &rig, "kmsuser", &rig.password()).await.unwrap().login_token;
    let kmsuser = User { clients: clients.clone(), cluster: rig.cluster_id(), token };
    for name in [kmsuser.named(&format!("id={id}")), kmsuser.named("orders")] {
        refused(&name, kmsuser.describe(&name).await, "VALIDATION", "x-keyway-login");
        refused(&name, kmsuser.encrypt(&name).await, "VALIDATION", "x-keyway-login");
        refused(&name, kmsuser.destroy(&name).await, "VALIDATION", "x-keyway-login");
    }
    refused("his keys", kmsuser.list().await, "VALIDATION", "x-keyway-login");
    refused("a key", kmsuser.create("orders").await, "VALIDATION", "x-keyway-login");
    refused("the store's", kmsuser.encrypt(&key).await, "KMS_INVALID_STATE", "");
}

#[tokio::test]
async fn a_destroyed_key_is_gone_from_every_hsm_at_once_and_its_label_is_free() {
    let rig = Rig::new().start();
    let clients = rig.clients().await;
    let alice = User::new(&rig, &clients, "alice").await;
    alice.create("kept").await.unwrap();
    alice.create("orders").await.unwrap();
    let name = alice.named("orders");
    let ciphertext = alice.encrypt(&name).await.unwrap().ciphertext;
    alice.until_on(&name, &HSMS).await;
    alice.until_on(&alice.named("kept"), &HSMS).await;
    alice.destroy(&name).await.unwrap();
    for hsm in HSMS {
        rig.until_labelled(hsm, "alice", &["kept"]).await;
    }
    refused("it is gone", alice.describe(&name).await, "NOT_FOUND", "");
    refused("it is gone", alice.encrypt(&name).await, "NOT_FOUND", "");
    refused("it is gone", alice.decrypt("", &ciphertext).await, "INVALID_CIPHERTEXT", "ciphertext");
    refused("it is gone", alice.destroy(&name).await, "NOT_FOUND", "");
    assert_eq!(alice.labels().await, ["kept"]);

    alice.create("orders").await.expect("the label is free");
    refused("another key", alice.decrypt(&name, &ciphertext).await, "INCORRECT_KEY", "key_id");
    alice.encrypt(&alice.named("kept")).await.unwrap();
}

#[tokio::test]
async fn a_login_goes_on_with_its_keys_when_the_daemon_was_restarted() {
    let mut rig = Rig::new().start();
    let clients = rig.clients().await;
    let alice = User::new(&rig, &clients, "alice").await;
    alice.create("orders").await.unwrap();
    let name = alice.named("orders");
    let ciphertext = alice.encrypt(&name).await.unwrap().ciphertext;
    for orderly in [true, false] {
        if orderly {
            assert!(rig.stop_daemon().success());
        } else {
            rig.kill_daemon();
        }
        rig.start_daemon();
        let alice = alice.at(&rig.clients().await);
        assert_eq!(alice.decrypt(&name, &ciphertext).await.unwrap().plaintext, b"hers");
        assert_eq!(alice.labels().await, ["orders"]);
    }
}

#[tokio::test]
async fn a_user_who_is_deleted_takes_his_keys_along() {
    let rig = Rig::new().start();
    let mut clients = rig.clients().await;
    let alice = User::new(&rig, &clients, "alice").await;
    alice.create("orders").await.unwrap();
    let ciphertext = alice.encrypt(&alice.named("orders")).await.unwrap().ciphertext;
    clients.users.logout(alice.with_login(pb::LogoutRequest {})).await.unwrap();
    refused("logged out", alice.encrypt(&alice.named("orders")).await, "LOGIN_EXPIRED", "");
    clients.delete_user(&rig, "alice").await.unwrap();

    let alice = User::new(&rig, &clients, "alice").await;
    assert!(alice.labels().await.is_empty());
    refused("the former's", alice.decrypt("", &ciphertext).await, "INVALID_CIPHERTEXT", "ciphertext");
    alice.create("orders").await.expect("the label is free");
    alice.encrypt(&alice.named("orders")).await.unwrap();
}

#[tokio::test]
async fn the_commands_make_use_and_destroy_a_key_with_a_login_in_a_file() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    let file = |name: &str| rig.home.path().join(name).display().to_string();
    std::fs::write(file("password"), FIRST).unwrap();
    std::fs::write(file("plain"), "hers").unwrap();
    let (cluster, login, name) = (rig.cluster_id(), file("login"), format!("hsm:{}/pay%20roll", rig.cluster_id()));
    let done = |args: &[&str]| {
        let output = rig.keyway(args).output().expect("it runs");
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert!(output.status.success(), "{args:?}: {said}");
        said
    };
    let said =
        done(&["crypto-user", "login", &cluster, "alice", "--password-file", &file("password"), "--out", &login]);
    assert!(said.contains("alice"), "{said}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&login).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let token = std::fs::read_to_string(&login).unwrap();
    assert!(!said.contains(token.trim()), "a token is shown to nobody");
    assert!(done(&["whoami", "--login-file", &login]).contains("alice"));
    let with = |args: &[&str]| done(&[args, &["--login-file", &login]].concat());
    assert!(with(&["key", "create", "--cluster", &cluster, "--label", "pay roll"]).contains(&name));
    assert!(with(&["key", "list", "--cluster", &cluster]).contains(&name));
    assert!(with(&["key", "describe", &name]).contains("pay roll"));
    with(&["encrypt", "--key", &name, &file("plain"), &file("secret")]);
    with(&["decrypt", &file("secret"), &file("again")]);
    assert_eq!(std::fs::read_to_string(file("again")).unwrap(), "hers");
    with(&["key", "destroy", &name]);
    assert!(!with(&["key", "list", "--cluster", &cluster]).contains(&name));
    with(&["crypto-user", "logout"]);
    let output = rig.keyway(&["key", "list", "--cluster", &cluster, "--login-file", &login]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let output = rig.keyway(&["key", "list", "--login-file", &file("nowhere")]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}
