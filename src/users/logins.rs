//! Who is logged in as a crypto user: proved once, then known by a token that only the caller has.
//!
//! A login is bound to its caller and ends by itself. While one lasts, its user has a Connection (`connections`).

use std::time::{Duration, SystemTime};

use crate::authz::{Caller, Permit, action};
use crate::clock;
use crate::cluster;
use crate::model::{ClusterId, Password, Username};
use crate::node::heard_out;
use crate::records::{AddedLogin, UserLoginRecord};

use super::token::Whose;
use super::{Error, LoginToken, Subject, Users};

/// Who wants to log in, and for how long.
#[derive(Debug)]
pub struct NewLogin {
    pub subject: Subject,
    pub password: Password,
    pub ttl: Duration,
}

/// A login that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub cluster: ClusterId,
    pub username: Username,
    pub expires: SystemTime,
}

/// What was made for a caller who logs in, until he takes it.
struct Made {
    token: LoginToken,
    login: UserLoginRecord,
    password: Password,
    unclaimed: Unclaimed,
}

/// Ends a login whose caller has left without its token: nobody else could, and it would have a place until it expires.
struct Unclaimed(Option<(Users, Caller, [u8; 32])>);

impl Drop for Unclaimed {
    fn drop(&mut self) {
        let Some((users, caller, token_sha256)) = self.0.take() else { return };
        let runtime = users.0.runtime.clone();
        runtime.spawn(async move {
            if let Err(error) = users.end_login(&caller, &token_sha256).await {
                tracing::warn!(caller = caller.name(), %error, "a login that nobody waits for lasts until it expires");
            }
        });
    }
}

impl From<UserLoginRecord> for Login {
    fn from(record: UserLoginRecord) -> Self {
        Self { cluster: record.cluster, username: record.username, expires: record.expires }
    }
}

impl Users {
    /// Logs the caller in: the token, and until when it is good.
    pub async fn log_in(
        &self,
        permit: Permit<action::Login>,
        cluster: &ClusterId,
        new: NewLogin,
    ) -> Result<(LoginToken, SystemTime), Error> {
        let (this, cluster, caller) = (self.clone(), cluster.clone(), permit.caller().clone());
        let made = self.outlive(&self.0.proofs, async move { this.log_in_now(&cluster, &caller, new).await }).await?;
        let Made { token, login, password, mut unclaimed } = made;
        unclaimed.0 = None;
        let expires = login.expires;
        self.connect_in_the_background(permit.caller(), login, password);
        Ok((token, expires))
    }

    async fn log_in_now(&self, id: &ClusterId, caller: &Caller, new: NewLogin) -> Result<Made, Error> {
        let cluster = self.managed(id)?;
        let user = new.subject.username().clone();
        // A key store that would connect meanwhile waits, and then finds the login.
        self.resting(id, &user, self.log_in_resting(id, &cluster, caller, new)).await?
    }

    async fn log_in_resting(
        &self,
        id: &ClusterId,
        cluster: &cluster::Settings,
        caller: &Caller,
        new: NewLogin,
    ) -> Result<Made, Error> {
        let NewLogin { subject, password, ttl } = new;
        let username = subject.username().clone();
        let proved = self.prove(id, cluster, &username, &password).await?;
        let record = self.0.records.crypto_user(id, &username).await?;
        if record.is_some_and(|record| record.second_factor) {
            return Err(Error::SecondFactor(username));
        }
        let (token, now) = (LoginToken::random(), clock::now());
        let whose = Whose { cluster: id, username: &username, caller };
        let sealed = token.seal(whose, &password).ok_or(Error::NoRandomness)?;
        let login = UserLoginRecord {
            token_sha256: token.sha256(),
            cluster: id.clone(),
            username,
            caller: caller.name().to_owned(),
            ttl,
            expires: now + ttl,
            sealed,
            version: proved.version,
        };
        let most = self.0.settings.max_logins;
        match self.0.records.add_user_login(&login, &proved.on, most, now).await? {
            AddedLogin::Added(version) => {
                let unclaimed = Unclaimed(Some((self.clone(), caller.clone(), login.token_sha256)));
                Ok(Made { token, login: UserLoginRecord { version, ..login }, password, unclaimed })
            }
            AddedLogin::Full => Err(Error::TooManyLogins(most)),
            AddedLogin::Outdated => Err(Error::Conflict),
        }
    }

    /// Makes the caller's login last as long again as when it was made: until when.
    pub async fn renew(&self, permit: Permit<action::RenewLogin>, token: &LoginToken) -> Result<SystemTime, Error> {
        let (hash, caller) = (token.sha256(), permit.caller());
        let renewed = self.0.records.renew_user_login(&hash, caller.name(), clock::now()).await?;
        let login = renewed.ok_or(Error::LoginExpired)?;
        self.login_changed(&login.cluster, &login.username, &hash);
        // Whoever goes on with a login after a restart of ours finds it warm.
        self.connect_soon(caller, token, &login);
        Ok(login.expires)
    }

    /// Ends the caller's login, if it has not ended.
    pub async fn log_out(&self, permit: Permit<action::Logout>, token: &LoginToken) -> Result<(), Error> {
        let (this, caller, hash) = (self.clone(), permit.caller().clone(), token.sha256());
        // The login is ended in the records and then forgotten here: both, also when its caller leaves in between.
        heard_out(self.0.runtime.spawn(async move { this.end_login(&caller, &hash).await })).await
    }

    async fn end_login(&self, caller: &Caller, token_sha256: &[u8; 32]) -> Result<(), Error> {
        let ended = self.0.records.end_user_login(token_sha256, caller.name()).await;
        // Whatever was answered, the records may have ended it.
        self.forget_login(token_sha256);
        if let Some((cluster, user)) = ended? {
            self.login_changed(&cluster, &user, token_sha256);
        }
        Ok(())
    }

    /// Whose login it is that the caller shows.
    pub async fn login_of(&self, caller: &Caller, token: &LoginToken) -> Result<Login, Error> {
        let login = self.record_of(&token.sha256(), caller).await?;
        login.map(Login::from).ok_or(Error::LoginExpired)
    }
}
