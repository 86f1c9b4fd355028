//! Crypto users as the HSMs and the records show them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::authz::{Permit, action};
use crate::cluster;
use crate::model::{ClusterId, HsmId, KeyStoreId, Username};
use crate::records::CryptoUserRecord;

use super::{Error, Users};

/// A crypto user as the HSMs and the records show him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserView {
    pub username: Username,
    pub second_factor: bool,
    pub hsms: Vec<(HsmId, OnHsm)>,
    /// The key store that uses kmsuser.
    pub key_store: Option<KeyStoreId>,
}

/// A crypto user on one HSM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnHsm {
    pub is_present: bool,
    pub is_locked: bool,
    pub failed_logins: u32,
}

impl Users {
    /// A page of the users of a cluster, by name, and whether there are more; kmsuser also when keyway did not make him.
    pub async fn list(
        &self,
        _permit: Permit<action::ListCryptoUsers>,
        id: &ClusterId,
        after: Option<&Username>,
        limit: usize,
    ) -> Result<(Vec<UserView>, bool), Error> {
        let cluster = self.0.key_stores.declared().get(id).ok_or_else(|| Error::ClusterNotFound(id.clone()))?;
        if !cluster.manages_users() {
            return Err(Error::NotManaged(id.clone()));
        }
        let records = self.0.records.crypto_users(id).await?;
        let mut users: BTreeMap<_, _> = records.iter().map(|user| (user.username.clone(), Some(user))).collect();
        let kmsuser = Username::kmsuser();
        if let Entry::Vacant(nobody_made_him) = users.entry(kmsuser.clone()) {
            let view = self.view(id, &cluster, &kmsuser, None).await;
            if view.key_store.is_some() || view.hsms.iter().any(|(_, on)| on.is_present) {
                nobody_made_him.insert(None);
            }
        }
        users.retain(|name, _| after.is_none_or(|after| name > after));
        let page: Vec<_> = users.iter().take(limit).map(|(name, record)| (name, *record)).collect();
        Ok((self.views(id, &cluster, &page).await, users.len() > limit))
    }

    pub(super) async fn view(
        &self,
        id: &ClusterId,
        cluster: &cluster::Settings,
        user: &Username,
        record: Option<&CryptoUserRecord>,
    ) -> UserView {
        self.views(id, cluster, &[(user, record)]).await.remove(0)
    }

    async fn views(
        &self,
        id: &ClusterId,
        cluster: &cluster::Settings,
        users: &[(&Username, Option<&CryptoUserRecord>)],
    ) -> Vec<UserView> {
        let names: Vec<_> = users.iter().map(|(user, _)| *user).collect();
        let standings = self.standings_of_all(id, cluster, &names).await;
        let each = users.iter().enumerate().map(|(index, (user, record))| {
            let is_kmsuser = **user == Username::kmsuser();
            let hsms = standings.iter().map(|(hsm, all)| {
                let known = record.and_then(|record| record.hsms.get(hsm));
                // Who may have been made elsewhere, where keyway has no word of him: the HSM's is taken.
                let was_given = known.map_or(is_kmsuser, |on| on.given);
                let on = match all[index] {
                    // What is there and was never given whole is half made.
                    Some(standing) => OnHsm {
                        is_present: standing.is_present && was_given,
                        is_locked: standing.is_locked,
                        failed_logins: standing.failed_logins,
                    },
                    None => OnHsm { is_present: known.is_some_and(|on| on.given), is_locked: false, failed_logins: 0 },
                };
                (hsm.clone(), on)
            });
            UserView {
                username: (*user).clone(),
                second_factor: record.is_some_and(|record| record.second_factor),
                hsms: hsms.collect(),
                key_store: self.0.key_stores.on_cluster(id).filter(|_| is_kmsuser).map(|store| store.id()),
            }
        });
        each.collect()
    }
}
