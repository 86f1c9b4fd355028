//! Who is logged in as a crypto user: proved once, then known by a token that only the caller has.
//!
//! A login is bound to its caller and ends by itself. It holds no HSM's session: what it is for is proved, no more.

use std::time::{Duration, SystemTime};

use crate::authz::{Caller, Permit, action};
use crate::clock;
use crate::cluster;
use crate::model::{ClusterId, Password, Username};
use crate::records::{AddedLogin, UserLoginRecord};

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
        self.outlive(&self.0.proofs, async move { this.log_in_now(&cluster, &caller, new).await }).await
    }

    async fn log_in_now(
        &self,
        id: &ClusterId,
        caller: &Caller,
        new: NewLogin,
    ) -> Result<(LoginToken, SystemTime), Error> {
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
    ) -> Result<(LoginToken, SystemTime), Error> {
        let NewLogin { subject, password, ttl } = new;
        let username = subject.username().clone();
        let version = self.prove(id, cluster, &username, &password).await?;
        let record = self.0.records.crypto_user(id, &username).await?;
        if record.is_some_and(|record| record.second_factor) {
            return Err(Error::SecondFactor(username));
        }
        let (token, now) = (LoginToken::random(), clock::now());
        let login = UserLoginRecord {
            token_sha256: token.sha256(),
            cluster: id.clone(),
            username,
            caller: caller.name().to_owned(),
            ttl,
            expires: now + ttl,
        };
        let most = self.0.settings.max_logins;
        match self.0.records.add_user_login(&login, version, most, now).await? {
            AddedLogin::Added => Ok((token, login.expires)),
            AddedLogin::Full => Err(Error::TooManyLogins(most)),
            AddedLogin::Outdated => Err(Error::Conflict),
        }
    }

    /// Makes the caller's login last as long again as when it was made: until when.
    pub async fn renew(&self, permit: Permit<action::RenewLogin>, token: &LoginToken) -> Result<SystemTime, Error> {
        let renewed = self.0.records.renew_user_login(&token.sha256(), permit.caller().name(), clock::now()).await?;
        renewed.map(|login| login.expires).ok_or(Error::LoginExpired)
    }

    /// Ends the caller's login, if it has not ended.
    pub async fn log_out(&self, permit: Permit<action::Logout>, token: &LoginToken) -> Result<(), Error> {
        Ok(self.0.records.end_user_login(&token.sha256(), permit.caller().name()).await?)
    }

    /// Whose login it is that the caller shows.
    pub async fn login_of(&self, caller: &Caller, token: &LoginToken) -> Result<Login, Error> {
        let login = self.0.records.user_login(&token.sha256(), caller.name(), clock::now()).await?;
        login.map(Login::from).ok_or(Error::LoginExpired)
    }
}
