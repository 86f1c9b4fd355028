//! In whose name keys are made and used, and through which Connection: a key store's through its own, a crypto user's
//! through the one of his login.
//!
//! The rule stands here alone. A key store's keys are used through their store and in no other way, also not under a login
//! as its kmsuser; a crypto user's are nobody's but his, and whoever is not logged in as him is told that there are none.

use std::sync::Arc;

use tokio::time::Instant;

use crate::authz::{Action, Permit};
use crate::cluster::{Connection, Failure};
use crate::keystore::Store;
use crate::keystore::lifecycle::Event;
use crate::model::{CkaId, ClusterId, CryptoUser, HsmKeyMark, HsmKeyName, KeyId, KeyRef, Username};
use crate::records::Unavailable;
use crate::users::{self, Acting, ShownLogins};

use super::change::refused;
use super::describe::Unusable;
use super::found::Sighting;
use super::lifecycle::{self, Operation};
use super::{Error, Key, Keys};

/// Whose a key is, as this daemon knows them.
#[derive(Debug)]
pub(super) enum Home {
    KeyStore(Arc<Store>),
    User { user: CryptoUser, mark: HsmKeyMark },
}

/// In whose name something is done with keys.
#[derive(Debug)]
pub(super) enum Owner {
    KeyStore(Arc<Store>),
    User(Acting),
}

/// A key that the caller may use, and in whose name.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) key: Arc<Key>,
    pub(super) owner: Owner,
}

/// A crypto user's key as its name leads to it.
#[derive(Debug)]
pub(super) enum Named {
    Recorded(KeyId),
    /// Another program's, of which nothing is written down.
    Sighted(Sighting),
}

/// The login may have ended meanwhile.
pub(super) fn connection_of_user(acting: &Acting) -> Result<Arc<Connection>, Error> {
    if acting.connection.is_closed() { Err(users::Error::LoginExpired.into()) } else { Ok(acting.connection.clone()) }
}

impl Keys {
    /// The Connection through which keys of this owner are made or used, when his state allows it.
    pub(super) fn connection_of(&self, owner: &Owner, what: Event) -> Result<Arc<Connection>, Error> {
        match owner {
            Owner::KeyStore(store) => self.connection_of_store(store, what),
            Owner::User(acting) => connection_of_user(acting),
        }
    }

    pub(super) fn connection_of_store(&self, store: &Store, what: Event) -> Result<Arc<Connection>, Error> {
        let allowed = store.connection_for(what);
        let connection = allowed.map_err(|state| Error::StoreNotConnected { store: store.id(), state })?;
        if let Some(connection) = connection {
            return Ok(connection);
        }
        let cluster = store.record().cluster;
        match self.0.clusters.get(&cluster) {
            Some(_) => Err(Error::Hsm(Failure::NoNode)),
            None => Err(Error::Undeclared { store: store.id(), cluster }),
        }
    }

    /// The Connection to use the key through, when the key's state lets it be used.
    pub(super) fn connection_behind(&self, reached: &Reached) -> Result<Arc<Connection>, Error> {
        let connection = self.connection_of(&reached.owner, Event::Use);
        let unavailable = match &connection {
            Err(Error::StoreNotConnected { store, state }) => Some((store.clone(), Unusable::KeyStore(*state))),
            Ok(_) | Err(_) => None,
        };
        let state = reached.key.state.shown(unavailable.is_none());
        lifecycle::check(Operation::Use, state).map_err(|refusal| refused(refusal, reached.key.id, unavailable))?;
        connection
    }

    /// As whom the caller is logged in to the cluster.
    pub(super) async fn acting<A: Action>(
        &self,
        permit: &Permit<A>,
        logins: &ShownLogins,
        cluster: &ClusterId,
        deadline: Instant,
    ) -> Result<Acting, Error> {
        let acting = self.0.users.acting(permit.caller(), logins, cluster, deadline).await?;
        if acting.username == Username::kmsuser() { Err(Error::OfKmsuser) } else { Ok(acting) }
    }

    /// The key that a request names, if the caller may know of it.
    pub(super) async fn reach<A: Action>(
        &self,
        permit: &Permit<A>,
        logins: &ShownLogins,
        key: &KeyRef,
        deadline: Instant,
    ) -> Result<Reached, Error> {
        let id = match key {
            KeyRef::Id(_) | KeyRef::Alias(_) => self.resolve(key).await?,
            KeyRef::Hsm(name) => {
                let acting = self.acting(permit, logins, &name.cluster, deadline).await?;
                let id = self.id_of_users(&acting, name, deadline).await?;
                return Ok(Reached { key: self.find(id).await?, owner: Owner::User(acting) });
            }
        };
        let key = self.find(id).await?;
        match &key.home {
            Home::KeyStore(store) => Ok(Reached { owner: Owner::KeyStore(store.clone()), key }),
            Home::User { .. } => Err(Error::NotFound(id.to_string())),
        }
    }

    /// The key that a ciphertext says it was made with. A crypto user's is there for him alone.
    pub(super) async fn reach_by_id<A: Action>(
        &self,
        permit: &Permit<A>,
        logins: &ShownLogins,
        id: KeyId,
        deadline: Instant,
    ) -> Result<Reached, Error> {
        let key = self.find(id).await?;
        let owner = match &key.home {
            Home::KeyStore(store) => Owner::KeyStore(store.clone()),
            Home::User { user, mark } => {
                // Before any HSM is waited for: whoever is not told of the key is told so at once.
                if !self.is_logged_in_as(permit, logins, user).await? {
                    return Err(Error::NotFound(id.to_string()));
                }
                if self.recorded(user, mark).await? != Some(id) {
                    // It went with its user, whose place another has taken.
                    self.forget(id);
                    return Err(Error::NotFound(id.to_string()));
                }
                let acting = self.acting(permit, logins, &user.cluster, deadline).await?;
                if acting.username != user.username {
                    return Err(users::Error::LoginExpired.into());
                }
                Owner::User(acting)
            }
        };
        Ok(Reached { key, owner })
    }

    async fn is_logged_in_as<A: Action>(
        &self,
        permit: &Permit<A>,
        logins: &ShownLogins,
        user: &CryptoUser,
    ) -> Result<bool, Error> {
        match self.0.users.as_whom(permit.caller(), logins, &user.cluster).await {
            Ok(username) => Ok(username == user.username),
            Err(users::Error::LoginRequired | users::Error::LoginExpired) => Ok(false),
            Err(other) => Err(other.into()),
        }
    }

    /// The id of a crypto user's key. One that another program made is written down for that.
    async fn id_of_users(&self, acting: &Acting, name: &HsmKeyName, deadline: Instant) -> Result<KeyId, Error> {
        match self.named(acting, name, deadline).await? {
            Named::Recorded(id) => Ok(id),
            Named::Sighted(found) => self.adopt(&acting.connection, found, (&name.mark, deadline)).await,
        }
    }

    /// The one key that goes by the name. Nothing is written down.
    pub(super) async fn named(&self, acting: &Acting, name: &HsmKeyName, deadline: Instant) -> Result<Named, Error> {
        let connection = &acting.connection;
        if let Some(id) = self.recorded(&connection.user(), &name.mark).await? {
            return Ok(Named::Recorded(id));
        }
        let found = self.sight(connection, &name.mark, deadline).await?;
        let mut found = found.ok_or_else(|| Error::NotFound(name.to_string()))?;
        if let (HsmKeyMark::Label(_), Some(by_id)) = (&name.mark, found.mark()) {
            if let Some(id) = self.recorded(&connection.user(), &by_id).await? {
                return Ok(Named::Recorded(id));
            }
            // The label stands for one key; its CKA_ID must as well.
            found = self.sight(connection, &by_id, deadline).await?.ok_or_else(|| Error::NotFound(name.to_string()))?;
        }
        Ok(Named::Sighted(found))
    }

    /// The id of a crypto user's key that the records know.
    pub(super) async fn recorded(&self, user: &CryptoUser, mark: &HsmKeyMark) -> Result<Option<KeyId>, Unavailable> {
        let cka_id = match mark {
            HsmKeyMark::Label(label) => return self.0.records.user_key(user, label).await,
            HsmKeyMark::Id(cka_id) => cka_id,
        };
        if let Some((key, version)) = CkaId::parse(cka_id) {
            let id = CkaId::of(key, version);
            if self.0.records.known_keys(user, &[id]).await?.contains(&id) {
                return Ok(Some(key));
            }
        }
        self.0.records.found_key(user, cka_id).await
    }
}
