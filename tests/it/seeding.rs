//! `keyway dev --seed`: fixtures for other projects. Made once, found again, completed after a crash, or refused as a whole.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::rig::{Clients, Seams, opens_as, pb};

/// What docs/rigs.md shows.
const EXAMPLE: &str = include_str!("../../examples/seed.toml");

/// A `keyway dev` of two HSMs in two zones, with a seed.
struct Dev {
    home: tempfile::TempDir,
    running: Option<Child>,
}

impl Dev {
    fn new(seed: &str) -> Self {
        let home = tempfile::Builder::new().prefix("keyway-it-").tempdir().unwrap();
        let dev = Self { home, running: None };
        dev.write_seed(seed);
        dev
    }

    fn write_seed(&self, seed: &str) {
        std::fs::write(self.home.path().join("seed.toml"), seed).unwrap();
    }

    fn data_dir(&self) -> PathBuf {
        self.home.path().join("dev")
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyway"));
        command.args(["dev", "--grpc-addr", "off", "--http-addr", "off", "--nodes", "2", "--zones", "2"]).args(flags);
        command.args(["--data-dir", "dev", "--seed", "seed.toml"]).current_dir(self.home.path()).stdin(Stdio::null());
        command
    }

    fn start(&mut self, flags: &[&str]) {
        let log = std::fs::File::create(self.home.path().join("log")).unwrap();
        self.running = Some(self.command(flags).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Until everything is there that the seed names.
    async fn ready(&mut self) -> Clients {
        self.ready_with(&[]).await
    }

    async fn ready_with(&mut self, flags: &[&str]) -> Clients {
        self.start(flags);
        let waited = self.keyway(&["wait", "--timeout", "120s", "--dev"]).arg(self.data_dir()).output().unwrap();
        let log = std::fs::read_to_string(self.home.path().join("log")).unwrap();
        assert!(waited.status.success(), "{waited:?}\n{log}");
        Clients::unix(&self.data_dir().join("keyway.sock")).await
    }

    fn keyway(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyway"));
        command.env("KEYWAY_ADDR", format!("unix:{}", self.data_dir().join("keyway.sock").display())).args(args);
        command
    }

    fn kill(&mut self) {
        let mut daemon = self.running.take().expect("running");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Starts it, which must fail; how, and what it said.
    fn refused(&self, flags: &[&str]) -> (Option<i32>, String) {
        let Output { status, stderr, .. } = self.command(flags).output().unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default());
        }
    }
}

/// What a seed makes, as clients see it.
struct Seeded<'a> {
    clients: &'a mut Clients,
    cluster: String,
}

impl Seeded<'_> {
    async fn of(clients: &mut Clients) -> Seeded<'_> {
        let clusters = clients.clusters.describe_clusters(pb::DescribeClustersRequest::default()).await.unwrap();
        let cluster = clusters.into_inner().clusters[0].cluster_id.clone();
        Seeded { clients, cluster }
    }

    async fn stores(&mut self) -> Vec<pb::KeyStore> {
        let all = self.clients.stores.describe_key_stores(pb::DescribeKeyStoresRequest::default()).await.unwrap();
        all.into_inner().key_stores
    }

    async fn key(&mut self, name: &str) -> pb::Key {
        let request = pb::DescribeKeyRequest { key_id: name.to_owned(), ..Default::default() };
        self.clients.keys.describe_key(request).await.unwrap().into_inner().key.unwrap()
    }

    async fn keys(&mut self) -> Vec<String> {
        let all = self.clients.keys.list_keys(pb::ListKeysRequest::default()).await.unwrap().into_inner();
        all.keys.into_iter().map(|key| key.key_id).collect()
    }

    /// Under a login with this password: the labels, and so the names, of the user's own keys.
    async fn labels_of(&mut self, user: &str, password: &str) -> Vec<String> {
        let (cluster_id, username, password) = (self.cluster.clone(), user.to_owned(), password.to_owned());
        let request = pb::LoginRequest { cluster_id: cluster_id.clone(), username, password, ttl: None };
        let token = self.clients.users.login(request).await.unwrap().into_inner().login_token;
        let mut request = tonic::Request::new(pb::ListKeysRequest { cluster_id, ..Default::default() });
        request.metadata_mut().insert("x-keyway-login", token.parse().unwrap());
        let listed = self.clients.keys.list_keys(request).await.unwrap().into_inner();
        listed.keys.into_iter().map(|key| key.hsm_label).collect()
    }
}

#[tokio::test]
async fn what_a_seed_names_is_made_once_found_again_and_put_right_where_it_can_be() {
    let mut dev = Dev::new(EXAMPLE);
    let mut clients = dev.ready().await;
    let mut seeded = Seeded::of(&mut clients).await;
    let [store] = &seeded.stores().await[..] else { panic!("one key store") };
    assert_eq!((store.key_store_name.as_str(), store.connection_state()), ("orders", pb::ConnectionState::Connected));
    let orders = seeded.key("alias/orders").await;
    assert_eq!((orders.description.as_str(), orders.state()), ("customers' orders", pb::KeyState::Enabled));
    assert_eq!(seeded.labels_of("alice", "correct-horse-battery").await, ["diary"]);
    let token = dev.data_dir().join("hsms/hsm-1/kmsuser/softhsm2.conf");
    assert!(opens_as(&token, "kmsuser", "letters4andmore"), "the password is the seed's");
    let keys = seeded.keys().await;
    assert_eq!(keys.len(), 2);

    // What tests do to fixtures.
    let cluster = seeded.cluster.clone();
    clients.disconnect(&store.key_store_id).await;
    let (username, new_password) = ("alice".to_owned(), "another-password".to_owned());
    let changed = pb::ResetPasswordRequest { cluster_id: cluster.clone(), username, new_password };
    clients.users.reset_password(changed).await.unwrap();
    dev.kill();
    let mut clients = dev.ready().await;
    let mut seeded = Seeded::of(&mut clients).await;
    assert_eq!(seeded.stores().await[0].connection_state(), pb::ConnectionState::Connected);
    assert_eq!(seeded.keys().await, keys, "the keys are the ones that were made first");
    assert_eq!(seeded.labels_of("alice", "correct-horse-battery").await, ["diary"]);

    // A seed that has grown.
    dev.kill();
    let more = "[keys.\"alias/more\"]\nkey_store = \"invoices\"\n[key_stores.invoices]\ncluster = \"second\"\n\
                [crypto_users.alice.keys.\"a b\"]\n[crypto_users.bob]\npassword = \"correct-horse\"\n\
                [crypto_users.bob.keys.x]\n";
    let grown = format!(
        "{}{more}",
        EXAMPLE.replace("[keys.\"alias/letters\"]", "[keys.\"alias/letters\"]\nkey_store = \"orders\"")
    );
    dev.write_seed(&grown);
    let mut clients = dev.ready().await;
    let mut seeded = Seeded { clients: &mut clients, cluster };
    let stores = seeded.stores().await;
    assert!(stores.len() == 2 && stores.iter().all(|store| store.connection_state() == pb::ConnectionState::Connected));
    assert_ne!(stores[0].cluster_id, stores[1].cluster_id);
    let all = seeded.keys().await;
    assert!(all.len() == 3 && keys.iter().all(|key| all.contains(key)), "{all:?}");
    let more = seeded.key("alias/more").await;
    assert!(stores.iter().any(|store| store.key_store_id == more.key_store_id && store.key_store_name == "invoices"));
    assert_eq!(seeded.labels_of("alice", "correct-horse-battery").await, ["a b", "diary"]);
    assert_eq!(seeded.labels_of("bob", "correct-horse").await, ["x"]);

    // And one that contradicts what is there.
    dev.kill();
    for (was, is, field) in [
        ("customers' orders", "nobody's", "keys.\"alias/orders\".description"),
        ("key_store = \"invoices\"", "key_store = \"orders\"", "keys.\"alias/more\".key_store"),
        ("cluster = \"second\"", "cluster = \"third\"", "key_stores.\"invoices\".cluster"),
        ("alice's own", "anybody's", "crypto_users.alice.keys.\"diary\".description"),
        ("letters4andmore", "letters4andless", "crypto_users.kmsuser.password"),
    ] {
        dev.write_seed(
            &grown.replace(was, is).replace(
                "[keys.\"alias/more\"]",
                "[keys.\"alias/new\"]\nkey_store = \"orders\"\n[keys.\"alias/more\"]",
            ),
        );
        let (code, said) = dev.refused(&[]);
        assert!(code == Some(2) && said.contains(field), "{field}: {code:?} {said}");
        assert!(!said.contains("letters4"), "{said}");
        assert!(!dev.data_dir().join("cluster.json").exists(), "it does not say that it is ready");
    }
}

#[tokio::test]
async fn a_seeding_that_was_killed_is_finished_by_the_next_start_and_leaves_nothing_twice() {
    // In the middle of a user and of a key, and between two keys.
    for point in ["user-given", "create-begun", "create-made", "seeded-key"] {
        let mut dev = Dev::new("[crypto_users.kmsuser]\npassword = \"letters4andmore\"\n");
        dev.ready().await;
        dev.kill();
        dev.write_seed(EXAMPLE);
        let seams = Seams(vec![dev.data_dir().join("daemon/seams")]);
        std::fs::create_dir_all(dev.data_dir().join("daemon/seams")).unwrap();
        seams.stop_at(point);
        dev.start(&[]);
        seams.wait_until_stopped_at(point).await;
        dev.kill();
        seams.let_pass(point);
        assert!(!dev.data_dir().join("cluster.json").exists(), "{point}: it said that it was ready");

        let mut clients = dev.ready().await;
        let mut seeded = Seeded::of(&mut clients).await;
        assert_eq!(seeded.keys().await.len(), 2, "{point}");
        for alias in ["alias/orders", "alias/letters"] {
            assert_eq!(seeded.key(alias).await.state(), pb::KeyState::Enabled, "{point}");
        }
        assert_eq!(seeded.labels_of("alice", "correct-horse-battery").await, ["diary"], "{point}");
    }
}

#[test]
fn a_seed_that_is_wrong_is_refused_by_file_and_place_before_anything_is_made() {
    let dev = Dev::new("");
    let long = format!("#{}\n", "x".repeat(1 << 20));
    for (seed, place) in [
        ("[key_stores.orders]\nnaem = \"x\"\n", "seed.toml: line 2: unknown field `naem`"),
        ("[key_stores.orders]\n[key_stores.orders]\n", "seed.toml: line 2: duplicate key"),
        (
            "[key_stores.orders]\n[keys.\"alias/a\"]\nkey_store = \"x\"\n",
            "seed.toml: keys.\"alias/a\".key_store: there is no",
        ),
        ("[crypto_users.alice]\npassword = \"hunter\"\n", "seed.toml: crypto_users.alice.password: a crypto user's"),
        (&long, "seed.toml: is longer than"),
    ] {
        dev.write_seed(seed);
        let (code, said) = dev.refused(&[]);
        assert!(code == Some(2) && said.contains(place) && !said.contains("hunter"), "{seed:.40}: {code:?} {said}");
        assert!(!dev.data_dir().exists(), "{said}");
    }
    std::fs::remove_file(dev.home.path().join("seed.toml")).unwrap();
    let (code, said) = dev.refused(&["--reset"]);
    assert!(code == Some(2) && said.contains("seed.toml: No such file"), "{said}");
}

#[tokio::test]
async fn a_cluster_and_a_server_are_called_as_one_asks() {
    let mut dev = Dev::new("");
    let cluster = "cluster-2abcdefghij";
    let names = |dev: &Dev| subject_alternatives(&dev.data_dir().join("server.crt"));
    let mut clients = dev.ready_with(&["--cluster-id", cluster, "--san", "kms", "--san", "192.0.2.1"]).await;
    assert_eq!(Seeded::of(&mut clients).await.cluster, cluster);
    assert!(names(&dev).contains("DNS:kms, IP Address:192.0.2.1"), "{}", names(&dev));
    let client = std::fs::read(dev.data_dir().join("client.crt")).unwrap();
    dev.kill();
    let (code, said) = dev.refused(&["--cluster-id", "cluster-2abcdefghik"]);
    assert!(code == Some(2) && said.contains("--cluster-id"), "{said}");
    let mut clients = dev.ready().await;
    assert_eq!(Seeded::of(&mut clients).await.cluster, cluster, "it keeps its id");
    assert!(!names(&dev).contains("kms"), "{}", names(&dev));
    assert_eq!(std::fs::read(dev.data_dir().join("client.crt")).unwrap(), client, "clients' certificates stay");
}

fn subject_alternatives(certificate: &Path) -> String {
    let args = ["x509", "-noout", "-ext", "subjectAltName", "-in"];
    let output = Command::new("openssl").args(args).arg(certificate).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}
