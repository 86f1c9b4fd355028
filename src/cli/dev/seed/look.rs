//! What there is of a seed already, asked of the daemon.

use std::collections::BTreeMap;

use crate::cli::connect::Daemon;
use crate::cli::failure::Failure;
use crate::cli::paging::every_page;
use crate::model::{AliasName, HsmLabel, KeyStoreName, Username};
use crate::proto::v1::{DescribeKeyRequest, DescribeKeyStoresRequest, Key, KeyState, KeyStore, ListCryptoUsersRequest};

use super::file::{Seed, User};
use super::{Bed, log_out};

/// What there is of a seed already.
pub(super) struct Present {
    pub(super) key_stores: BTreeMap<KeyStoreName, KeyStore>,
    pub(super) keys: BTreeMap<AliasName, Key>,
    /// Which key store each cluster carries.
    pub(super) carried: BTreeMap<String, String>,
    pub(super) users: BTreeMap<Username, Standing>,
}

/// A crypto user who is there.
pub(super) enum Standing {
    /// With the seed's password, and these of the seed's keys.
    Known(BTreeMap<HsmLabel, Key>),
    /// He has another password, or was locked out by somebody's guesses.
    Barred,
}

impl Bed<'_> {
    pub(super) async fn present(&self, seed: &Seed) -> Result<Present, Failure> {
        let all = every_page(async |page_token| {
            let request = DescribeKeyStoresRequest { page_token, ..Default::default() };
            let page = self.daemon.key_stores().describe_key_stores(self.daemon.request(request)).await?.into_inner();
            Ok((page.key_stores, page.next_page_token))
        })
        .await?;
        let carried = all.iter().map(|store| (store.cluster_id.clone(), store.key_store_name.clone())).collect();
        let mut key_stores = BTreeMap::new();
        for store in all {
            if let Some(name) = seed.key_stores.keys().find(|name| name.as_str() == store.key_store_name) {
                key_stores.insert(name.clone(), store);
            }
        }
        let mut keys = BTreeMap::new();
        for alias in seed.keys.keys() {
            if let Some(key) = described(&self.daemon, alias.as_str()).await? {
                keys.insert(alias.clone(), key);
            }
        }
        let mut users = BTreeMap::new();
        for (name, user) in &seed.users {
            if self.clusters.contains_key(&user.cluster) && self.is_there(name, user).await? {
                users.insert(name.clone(), self.standing(name, user).await?);
            }
        }
        Ok(Present { key_stores, keys, carried, users })
    }

    async fn is_there(&self, name: &Username, user: &User) -> Result<bool, Failure> {
        let all = every_page(async |page_token| {
            let cluster_id = self.cluster(&user.cluster);
            let request = ListCryptoUsersRequest { cluster_id, page_token, ..Default::default() };
            let page = self.daemon.crypto_users().list_crypto_users(self.daemon.request(request)).await?.into_inner();
            Ok((page.users, page.next_page_token))
        })
        .await?;
        Ok(all.iter().any(|there| there.username == name.as_str()))
    }

    async fn standing(&self, name: &Username, user: &User) -> Result<Standing, Failure> {
        let login = match self.login(name, user).await {
            Err(refused) if refused.is("INVALID_CREDENTIALS") || refused.is("THROTTLING") => {
                return Ok(Standing::Barred);
            }
            login => login?,
        };
        let keys = self.keys_of(&login, user).await;
        log_out(&login).await?;
        keys.map(Standing::Known)
    }

    /// Those of the seed's that are there.
    pub(super) async fn keys_of(&self, login: &Daemon, user: &User) -> Result<BTreeMap<HsmLabel, Key>, Failure> {
        let mut keys = BTreeMap::new();
        for label in user.keys.keys() {
            if let Some(key) = described(login, &self.name_of(user, label)).await? {
                keys.insert(label.clone(), key);
            }
        }
        Ok(keys)
    }
}

/// The key of this name, when it has been made.
pub(super) async fn described(daemon: &Daemon, key_id: &str) -> Result<Option<Key>, Failure> {
    let request = DescribeKeyRequest { key_id: key_id.to_owned(), ..Default::default() };
    match daemon.keys().describe_key(daemon.request(request)).await.map_err(Failure::from) {
        Ok(response) => Ok(response.into_inner().key.filter(|key| key.state() != KeyState::Creating)),
        Err(failure) if failure.is("NOT_FOUND") => Ok(None),
        Err(failure) => Err(failure),
    }
}
