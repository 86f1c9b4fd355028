//! Crypto users: made, deleted and given passwords on every HSM of a cluster, also on one that was away.

mod absence;
mod crash;
mod life;
mod logins;

use tonic::Status;

use crate::rig::{Clients, Rig, pb, refused};

pub(crate) const FIRST: &str = "correct:horse4";
pub(crate) const SECOND: &str = "battery-staple5";
pub(crate) const WRONG: &str = "not-the-password";

impl Rig {
    pub(crate) fn user_token(&self, hsm: &str, user: &str) -> std::path::PathBuf {
        self.path(&format!("hsms/{hsm}/users/{user}"))
    }

    pub(crate) fn creation_of(&self, user: &str, password: &str) -> pb::CreateCryptoUserRequest {
        pb::CreateCryptoUserRequest {
            cluster_id: self.cluster_id(),
            username: user.to_owned(),
            password: password.to_owned(),
            require_second_factor: false,
        }
    }

    /// Whether the user's own token on an HSM lets him in, asked past keyway.
    pub(crate) fn user_opens(&self, hsm: &str, user: &str, password: &str) -> bool {
        crate::rig::opens_as(&self.user_token(hsm, user).join("softhsm2.conf"), user, password)
    }

    /// The HSM's tokens are out of reach until it is put back.
    pub(crate) fn take_away(&self, hsm: &str) -> std::path::PathBuf {
        let (here, away) = (self.path(&format!("hsms/{hsm}/users")), self.path(&format!("hsms/{hsm}/away")));
        std::fs::rename(here, &away).expect("it is here");
        away
    }

    pub(crate) fn put_back(&self, hsm: &str) {
        let (here, away) = (self.path(&format!("hsms/{hsm}/users")), self.path(&format!("hsms/{hsm}/away")));
        std::fs::rename(away, here).expect("it is away");
    }
}

impl Clients {
    pub(crate) async fn create_user(
        &mut self,
        rig: &Rig,
        user: &str,
        password: &str,
    ) -> Result<pb::CryptoUser, Status> {
        let request = rig.creation_of(user, password);
        Ok(self.users.create_crypto_user(request).await?.into_inner().user.expect("it is told"))
    }

    pub(crate) async fn delete_user(&mut self, rig: &Rig, user: &str) -> Result<(), Status> {
        let request = pb::DeleteCryptoUserRequest { cluster_id: rig.cluster_id(), username: user.to_owned() };
        self.users.delete_crypto_user(request).await.map(drop)
    }

    /// Those that still lack it.
    pub(crate) async fn reset_password(&mut self, rig: &Rig, user: &str, new: &str) -> Result<Vec<String>, Status> {
        let request = pb::ResetPasswordRequest {
            cluster_id: rig.cluster_id(),
            username: user.to_owned(),
            new_password: new.to_owned(),
        };
        Ok(self.users.reset_password(request).await?.into_inner().pending_hsm_ids)
    }

    /// Those that still lack it.
    pub(crate) async fn change_user_password(
        &mut self,
        rig: &Rig,
        user: &str,
        present: &str,
        new: &str,
    ) -> Result<Vec<String>, Status> {
        let request = pb::ChangePasswordRequest {
            cluster_id: rig.cluster_id(),
            username: user.to_owned(),
            current_password: present.to_owned(),
            new_password: new.to_owned(),
        };
        Ok(self.users.change_password(request).await?.into_inner().pending_hsm_ids)
    }

    pub(crate) async fn list_users(&mut self, rig: &Rig) -> Vec<pb::CryptoUser> {
        let request = pb::ListCryptoUsersRequest { cluster_id: rig.cluster_id(), ..Default::default() };
        self.users.list_crypto_users(request).await.expect("they can be listed").into_inner().users
    }

    pub(crate) async fn user(&mut self, rig: &Rig, name: &str) -> Option<pb::CryptoUser> {
        self.list_users(rig).await.into_iter().find(|user| user.username == name)
    }

    pub(crate) async fn log_in(&mut self, rig: &Rig, user: &str, password: &str) -> Result<pb::LoginResponse, Status> {
        let request = pb::LoginRequest {
            cluster_id: rig.cluster_id(),
            username: user.to_owned(),
            password: password.to_owned(),
            ttl: None,
        };
        Ok(self.users.login(request).await?.into_inner())
    }
}

/// Logs in as soon as an HSM has the user's present password.
pub(crate) async fn logs_in(
    clients: &Clients,
    rig: &Rig,
    user: &str,
    password: &str,
) -> Result<pb::LoginResponse, Status> {
    crate::rig::wait_async(|| {
        let mut clients = clients.clone();
        async move {
            match clients.log_in(rig, user, password).await {
                Err(status) if crate::rig::reason(&status).1 == "NO_NODE" => None,
                answer => Some(answer),
            }
        }
    })
    .await
}

/// Waits until whoever was doing something for a user of the cluster has done it on every HSM that is there. Tokens are
/// not to be looked into past keyway before: SoftHSM2 writes a token anew at each login, as it was when it was opened.
pub(crate) async fn all_done(clients: &mut Clients, rig: &Rig, user: &str) {
    refused("comes after it", clients.create_user(rig, user, FIRST).await, "ALREADY_EXISTS", "");
}

pub(crate) fn present_on(user: &pb::CryptoUser) -> Vec<&str> {
    user.hsms.iter().filter(|on| on.present).map(|on| on.hsm_id.as_str()).collect()
}

#[tokio::test]
async fn names_and_passwords_go_by_cloudhsms_rules_and_a_name_is_taken_in_every_case() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    for name in ["", "../alice", "a.b", "with-hyphen", "with space", "é", &"a".repeat(32)] {
        refused(name, clients.create_user(&rig, name, FIRST).await, "VALIDATION", "username");
        refused(name, clients.delete_user(&rig, name).await, "VALIDATION", "username");
        refused(name, clients.log_in(&rig, name, FIRST).await, "VALIDATION", "username");
    }
    for password in ["", "short1", "with space1", "ümlaut1234", "a\nline-more", &"a".repeat(33)] {
        refused(password, clients.create_user(&rig, "alice", password).await, "VALIDATION", "password");
        refused(password, clients.reset_password(&rig, "alice", password).await, "VALIDATION", "new_password");
        let changed = clients.change_user_password(&rig, "alice", password, FIRST).await;
        refused(password, changed, "VALIDATION", "current_password");
    }
    let reset = clients.reset_password(&rig, "kmsuser", "co:lon-and-more").await;
    let status = refused("kmsuser's must do for key stores", reset, "VALIDATION", "new_password");
    assert!(!status.message().contains("co:lon"), "{}", status.message());

    clients.create_user(&rig, &"a".repeat(31), &"p".repeat(7)).await.unwrap();
    clients.create_user(&rig, "Alice_2", &"P".repeat(32)).await.unwrap();
    for taken in ["alice_2", "Alice_2", "kmsuser", "KMSUSER"] {
        refused(taken, clients.create_user(&rig, taken, "letters4").await, "ALREADY_EXISTS", "");
    }
    let elsewhere = pb::ListCryptoUsersRequest { cluster_id: "cluster-2zzzzzzzzzz".to_owned(), ..Default::default() };
    let answer = clients.users.list_crypto_users(elsewhere).await;
    refused("no such cluster", answer, "CLOUD_HSM_CLUSTER_NOT_FOUND", "");
}

#[tokio::test]
async fn the_commands_make_list_change_reset_and_delete_with_passwords_from_files() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let cluster = rig.cluster_id();
    for (name, text) in [("first", FIRST), ("second", SECOND), ("wrong", WRONG)] {
        std::fs::write(rig.path(name), format!("{text}\n")).unwrap();
    }
    let file = |name: &str| rig.path(name).display().to_string();
    let run = |args: &[&str]| {
        let output = rig.keyway(args).stdin(std::process::Stdio::null()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let of_alice = |verb: &'static str| ["crypto-user", verb, &cluster, "alice"].map(str::to_owned);
    let with = |verb: &'static str, more: &[&str]| {
        let args: Vec<_> = of_alice(verb).into_iter().chain(more.iter().map(|arg| (*arg).to_owned())).collect();
        run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (code, said) = with("create", &["--password-file", &file("first")]);
    assert!(code == Some(0) && said.contains("alice") && said.contains("2/2"), "{said}");
    let (code, said) = with("create", &[]);
    assert!(code == Some(2) && said.contains("--password-file"), "{said}");
    let (_, listed) = run(&["crypto-user", "list", &cluster]);
    assert!(listed.contains("alice") && listed.contains("kmsuser"), "{listed}");
    let both = |present: &str, new: &str| {
        with("change-password", &["--password-file", &file(present), "--new-password-file", &file(new)])
    };
    let (code, said) = both("wrong", "second");
    assert!(code == Some(1) && said.contains("INVALID_CREDENTIALS"), "{said}");
    let (code, said) = both("first", "second");
    assert!(code == Some(0) && rig.user_opens("hsm-2", "alice", SECOND), "{said}");
    let (code, said) = with("reset-password", &["--password-file", &file("first")]);
    assert!(code == Some(0) && rig.user_opens("hsm-2", "alice", FIRST), "{said}");
    let (code, said) = with("delete", &[]);
    assert!(code == Some(0) && !rig.user_token("hsm-1", "alice").exists(), "{said}");
}

#[tokio::test]
async fn where_no_directory_is_declared_for_them_users_are_not_keyways_and_strangers_may_do_nothing() {
    let mut rig = Rig::new().nodes(2).zones(2).start();
    assert!(rig.stop_daemon().success());
    let served = crate::rig::Served::start(&rig, &["ops"]);
    let mut clients = served.clients_on_the_socket().await;
    let cluster = pb::DescribeClustersRequest::default();
    let clusters = clients.clusters.describe_clusters(cluster).await.unwrap().into_inner().clusters;
    assert!(!clusters[0].manages_users);
    let mut every = Vec::new();
    every.extend(
        everything(&mut clients, &rig).await.into_iter().map(|(call, answer)| (call, answer, "UNSUPPORTED_OPERATION")),
    );
    let stranger = served.transport.client("stranger");
    let mut strangers = served.clients(Some(&stranger)).await.unwrap();
    every.extend(
        everything(&mut strangers, &rig).await.into_iter().map(|(call, answer)| (call, answer, "ACCESS_DENIED")),
    );
    for (call, answer, reason) in every {
        refused(call, answer, reason, "");
    }
}

/// What every call that changes, lists or tries a user is answered.
async fn everything(clients: &mut Clients, rig: &Rig) -> Vec<(&'static str, Result<(), Status>)> {
    let list = pb::ListCryptoUsersRequest { cluster_id: rig.cluster_id(), ..Default::default() };
    vec![
        ("create", clients.create_user(rig, "alice", FIRST).await.map(drop)),
        ("delete", clients.delete_user(rig, "alice").await),
        ("list", clients.users.list_crypto_users(list).await.map(drop)),
        ("reset", clients.reset_password(rig, "alice", FIRST).await.map(drop)),
        ("change", clients.change_user_password(rig, "alice", FIRST, SECOND).await.map(drop)),
        ("log in", clients.log_in(rig, "alice", FIRST).await.map(drop)),
        ("log in as kmsuser", clients.log_in(rig, "kmsuser", "letters4").await.map(drop)),
    ]
}
