//! `keyway dev --seed`: fixtures for other projects, made by the calls that anybody would make them with.
//!
//! To be repeated at each start, like [`super::making`]: what is there is left as it is, what is missing is made, and what
//! is there otherwise than the file says is refused before anything else is made.
//!
//! ```text
//!   file ─▶ look ─▶ differ ─▶ clusters ─▶ crypto users ─▶ key stores, connected ─▶ keys ─▶ users' own keys
//! ```

mod differ;
mod file;
mod look;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::cli::connect::{Client, Daemon};
use crate::cli::failure::Failure;
use crate::cli::{health, key_store, settle};
use crate::model::{HsmKeyMark, HsmKeyName, HsmLabel, KeyStoreName, Username};
use crate::proto::v1::{
    Cluster, ConnectKeyStoreRequest, ConnectionState, CreateCryptoUserRequest, CreateKeyRequest, CreateKeyStoreRequest,
    DisconnectKeyStoreRequest, KeyStore, LoginRequest, LogoutRequest, ResetPasswordRequest,
};

use super::assets::{self, Assets};
use super::{Shape, making};
use file::{ClusterName, NewKey, User};
use look::{Standing, described};

pub(super) use file::{BadSeed, Seed};

/// The daemon gives up connecting a key store after ten minutes; it shall be the one to say so.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// HSMs that are on their way after a restart, and what a start that was cut short left of a key, are waited for.
const SETTLING: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Makes what the seed has and the daemon has not, and connects its key stores.
pub(super) async fn plant(assets: &Assets, shape: &Shape, own: &Cluster, seed: &Seed) -> Result<(), Failure> {
    let daemon = Client::of_socket(assets.path(assets::SOCKET)).connect(PATIENCE).await?;
    let own = [(ClusterName::devs_own(), own.cluster_id.clone())].into();
    let mut bed = Bed { assets, shape, daemon, clusters: own };
    for name in seed.further_clusters().into_iter().filter(|name| noted(assets).contains_key(name.as_str())) {
        bed.bring_up(name).await?;
    }
    let present = bed.present(seed).await?;
    differ::refuse(seed, &bed.clusters, &present)?;
    for name in seed.further_clusters() {
        bed.bring_up(name).await?;
    }
    for (name, user) in seed.users.iter().filter(|(name, _)| !present.users.contains_key(name)) {
        bed.make_user(name, user).await.map_err(|failure| failure.about(&format!("crypto_users.{name}")))?;
    }
    for (name, cluster) in &seed.key_stores {
        let present = present.key_stores.get(name);
        bed.connect_store(name, cluster, present)
            .await
            .map_err(|failure| failure.about(&format!("key_stores.{name:?}")))?;
    }
    for (alias, (store, key)) in seed.keys.iter().filter(|(alias, _)| !present.keys.contains_key(alias)) {
        let key_store_id = key_store::find(&bed.daemon, store.to_string()).await?.key_store_id;
        let request = CreateKeyRequest { key_store_id, alias: alias.to_string(), ..request(key) };
        let made = make_key(&bed.daemon, alias.as_str(), request).await;
        made.map_err(|failure| failure.about(&format!("keys.{alias:?}")))?;
    }
    for (name, user) in &seed.users {
        let made = bed.make_keys_of(name, user, present.users.get(name)).await;
        made.map_err(|failure| failure.about(&format!("crypto_users.{name}")))?;
    }
    Ok(())
}

/// Names that former seeds had for clusters, with the clusters' ids. What of it cannot be read is found again by its request.
fn noted(assets: &Assets) -> BTreeMap<String, String> {
    assets.read_json(assets::SEEDED).ok().flatten().unwrap_or_default()
}

/// Where a seed goes.
struct Bed<'a> {
    assets: &'a Assets,
    shape: &'a Shape,
    daemon: Daemon,
    /// Those that are there.
    clusters: BTreeMap<ClusterName, String>,
}

impl Bed<'_> {
    fn cluster(&self, name: &ClusterName) -> String {
        self.clusters[name].clone()
    }

    /// Makes a cluster like dev's own, or finds it, and keeps its name in mind: only then a key store may be on it.
    async fn bring_up(&mut self, name: &ClusterName) -> Result<(), Failure> {
        if self.clusters.contains_key(name) {
            return Ok(());
        }
        let id = making::bring_up_another(self.assets, self.shape, name.as_str()).await?.cluster_id;
        let mut noted = noted(self.assets);
        noted.insert(name.as_str().to_owned(), id.clone());
        self.assets.write_json(assets::SEEDED, &noted).map_err(|error| Failure::local(error.to_string()))?;
        self.clusters.insert(name.clone(), id);
        Ok(())
    }

    fn name_of(&self, user: &User, label: &HsmLabel) -> String {
        let cluster = self.cluster(&user.cluster).parse().expect("the daemon's own id");
        HsmKeyName { cluster, mark: HsmKeyMark::Label(label.clone()) }.to_string()
    }

    async fn make_user(&self, name: &Username, user: &User) -> Result<(), Failure> {
        let request = CreateCryptoUserRequest {
            cluster_id: self.cluster(&user.cluster),
            username: name.to_string(),
            password: user.password.expose().to_owned(),
            require_second_factor: false,
        };
        self.daemon.crypto_users().create_crypto_user(self.daemon.request(request)).await?;
        Ok(())
    }

    /// Makes the key store if it is not there, and has it connected, with an HSM that serves.
    async fn connect_store(
        &self,
        name: &KeyStoreName,
        cluster: &ClusterName,
        present: Option<&KeyStore>,
    ) -> Result<(), Failure> {
        if present.is_none() {
            let local = |error: assets::AssetsError| Failure::local(error.to_string());
            let request = CreateKeyStoreRequest {
                key_store_name: name.to_string(),
                cluster_id: self.cluster(cluster),
                key_store_password: self.assets.password().map_err(local)?,
                trust_anchor_certificate: self.assets.read("customerCA.crt").map_err(local)?,
            };
            self.daemon.key_stores().create_key_store(self.daemon.request(request)).await?;
        }
        let mut asked = false;
        let id = loop {
            let store = key_store::find(&self.daemon, name.to_string()).await?;
            let key_store_id = store.key_store_id.clone();
            match store.connection_state() {
                ConnectionState::Connected => break key_store_id,
                ConnectionState::Failed if asked => return Err(settle::not_connected(&store)),
                // As after a test that made it fail: it is disconnected before it is connected again.
                ConnectionState::Failed => {
                    let request = DisconnectKeyStoreRequest { key_store_id, drain_timeout: None };
                    self.daemon.key_stores().disconnect_key_store(self.daemon.request(request)).await?;
                }
                ConnectionState::Disconnected => {
                    let request = ConnectKeyStoreRequest { key_store_id };
                    self.daemon.key_stores().connect_key_store(self.daemon.request(request)).await?;
                    asked = true;
                }
                ConnectionState::Connecting | ConnectionState::Disconnecting | ConnectionState::Unspecified => {
                    self.pause(&format!("key store {name} to be connected")).await?;
                }
            }
        };
        while health::ask(&self.daemon, &format!("key-store/{id}"), PATIENCE).await?.status() != ServingStatus::Serving
        {
            self.pause(&format!("an HSM of key store {name} to serve")).await?;
        }
        Ok(())
    }

    async fn pause(&self, what_for: &str) -> Result<(), Failure> {
        let late = |_| Failure::late(format!("{} minutes were not enough for {what_for}", PATIENCE.as_secs() / 60));
        timeout_at(self.daemon.deadline, sleep(LOOK_AGAIN)).await.map_err(late)
    }

    /// Sees to it that the user has the seed's password, and makes the keys of his that are not there.
    async fn make_keys_of(&self, name: &Username, user: &User, standing: Option<&Standing>) -> Result<(), Failure> {
        match standing {
            Some(Standing::Known(there)) if there.len() == user.keys.len() => return Ok(()),
            None if user.keys.is_empty() => return Ok(()),
            Some(Standing::Barred) => self.reset(name, user).await?,
            Some(Standing::Known(_)) | None => {}
        }
        let login = self.login(name, user).await?;
        let made = self.make_keys_under(&login, name, user).await;
        log_out(&login).await?;
        made
    }

    async fn make_keys_under(&self, login: &Daemon, name: &Username, user: &User) -> Result<(), Failure> {
        let there = self.keys_of(login, user).await?;
        differ::refuse_of_user(name, user, &there)?;
        for (label, key) in user.keys.iter().filter(|(label, _)| !there.contains_key(label)) {
            let (cluster_id, hsm_label) = (self.cluster(&user.cluster), label.as_str().to_owned());
            let request = CreateKeyRequest { cluster_id, hsm_label, ..request(key) };
            make_key(login, &self.name_of(user, label), request).await?;
        }
        Ok(())
    }

    /// The daemon, as this user is shown it.
    async fn login(&self, name: &Username, user: &User) -> Result<Daemon, Failure> {
        let request = LoginRequest {
            cluster_id: self.cluster(&user.cluster),
            username: name.to_string(),
            password: user.password.expose().to_owned(),
            ttl: None,
        };
        let login = self.daemon.crypto_users().login(self.daemon.request(request)).await?.into_inner();
        self.daemon.logged_in(&login.login_token)
    }

    async fn reset(&self, name: &Username, user: &User) -> Result<(), Failure> {
        let request = ResetPasswordRequest {
            cluster_id: self.cluster(&user.cluster),
            username: name.to_string(),
            new_password: user.password.expose().to_owned(),
        };
        self.daemon.crypto_users().reset_password(self.daemon.request(request)).await?;
        Ok(())
    }
}

async fn log_out(login: &Daemon) -> Result<(), Failure> {
    login.crypto_users().logout(login.request(LogoutRequest {})).await?;
    Ok(())
}

/// What the key says of itself; neither where it is nor what it is called.
fn request(key: &NewKey) -> CreateKeyRequest {
    let NewKey { spec, usage, description, tags } = key;
    CreateKeyRequest {
        key_spec: differ::wire_spec(*spec).into(),
        key_usage: usage.unwrap_or_default().into(),
        description: description.clone().unwrap_or_default(),
        tags: tags.clone().into_iter().collect(),
        ..Default::default()
    }
}

/// Makes the key of this name. One whose making was cut short, or whose answer was lost, keeps the name until it has been
/// settled; then it is there, or the name is free again.
async fn make_key(daemon: &Daemon, key_id: &str, request: CreateKeyRequest) -> Result<(), Failure> {
    let until = Instant::now() + SETTLING;
    loop {
        let failure: Failure = match daemon.keys().create_key(daemon.request(request.clone())).await {
            Ok(_) => break,
            Err(status) => status.into(),
        };
        let passes = failure.is_passing() || failure.leaves_doubt() || failure.is("ALREADY_EXISTS");
        if !passes || Instant::now() >= until {
            return Err(failure);
        }
        if described(daemon, key_id).await?.is_some() {
            break;
        }
        sleep(LOOK_AGAIN).await;
    }
    #[cfg(debug_assertions)]
    crate::seams::stop_point("seeded-key");
    Ok(())
}
