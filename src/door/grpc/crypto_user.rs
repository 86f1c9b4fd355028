//! `CryptoUserService`.

use tonic::{Request, Response, Status};

use crate::authz::{CallerSource, action};
use crate::model::{ClusterId, HsmId, Username};
use crate::proto::v1 as pb;
use crate::proto::v1::crypto_user_service_server::CryptoUserService;
use crate::users::{self, NewLogin, NewUser, Subject, UserView, Users};

use super::{Faces, caller, convert, status, tell};

#[derive(Clone)]
pub(super) struct Service(pub(super) Faces);

impl Service {
    fn users(&self) -> &Users {
        &self.0.0.users
    }

    /// Whose password is to be tried: kmsuser's needs a permit more.
    fn subject<T>(&self, request: &Request<T>, user: &Username) -> Result<Subject, Status> {
        match Subject::other(user.clone()) {
            Some(subject) => Ok(subject),
            None => Ok(Subject::kmsuser(&self.0.permit::<action::LoginAsKmsuser, _>(request)?)),
        }
    }
}

/// What is done on HSMs goes on when its caller has waited long enough.
async fn in_time<T>(
    deadline: tokio::time::Instant,
    work: impl Future<Output = Result<T, users::Error>>,
) -> Result<T, Status> {
    match tokio::time::timeout_at(deadline, work).await {
        Ok(done) => done.map_err(status::users),
        Err(_) => Err(status::late()),
    }
}

#[tonic::async_trait]
impl CryptoUserService for Service {
    async fn create_crypto_user(
        &self,
        request: Request<pb::CreateCryptoUserRequest>,
    ) -> Result<Response<pb::CreateCryptoUserResponse>, Status> {
        let permit = self.0.permit::<action::CreateCryptoUser, _>(&request)?;
        let deadline = super::deadline(&request);
        let asked = request.into_inner();
        let (cluster, username) = whose(&asked.cluster_id, &asked.username)?;
        let password = convert::crypto_user_password("password", &username, asked.password)?;
        let new = NewUser { username, password, second_factor: asked.require_second_factor };
        let made = in_time(deadline, self.users().create(permit, &cluster, new)).await?;
        Ok(Response::new(pb::CreateCryptoUserResponse { user: Some(told(&cluster, made)) }))
    }

    async fn delete_crypto_user(
        &self,
        request: Request<pb::DeleteCryptoUserRequest>,
    ) -> Result<Response<pb::DeleteCryptoUserResponse>, Status> {
        let permit = self.0.permit::<action::DeleteCryptoUser, _>(&request)?;
        let deadline = super::deadline(&request);
        let (cluster, username) = whose(&request.get_ref().cluster_id, &request.get_ref().username)?;
        in_time(deadline, self.users().delete(permit, &cluster, &username)).await?;
        Ok(Response::new(pb::DeleteCryptoUserResponse {}))
    }

    async fn list_crypto_users(
        &self,
        request: Request<pb::ListCryptoUsersRequest>,
    ) -> Result<Response<pb::ListCryptoUsersResponse>, Status> {
        let permit = self.0.permit::<action::ListCryptoUsers, _>(&request)?;
        let asked = request.into_inner();
        let cluster: ClusterId = convert::parse("cluster_id", &asked.cluster_id)?;
        let limit = convert::page_size(asked.page_size)? as usize;
        let after = convert::page_token::<Username>(&asked.page_token)?;
        let listed = self.users().list(permit, &cluster, after.as_ref(), limit).await;
        let (users, more) = listed.map_err(status::users)?;
        let next_page_token = match users.last() {
            Some(last) if more => convert::next_page_token(&last.username),
            Some(_) | None => String::new(),
        };
        let users = users.into_iter().map(|user| told(&cluster, user)).collect();
        Ok(Response::new(pb::ListCryptoUsersResponse { users, next_page_token }))
    }

    async fn change_password(
        &self,
        request: Request<pb::ChangePasswordRequest>,
    ) -> Result<Response<pb::ChangePasswordResponse>, Status> {
        let permit = self.0.permit::<action::ChangePassword, _>(&request)?;
        let deadline = super::deadline(&request);
        let (cluster, username) = whose(&request.get_ref().cluster_id, &request.get_ref().username)?;
        let subject = self.subject(&request, &username)?;
        let asked = request.into_inner();
        let present = convert::crypto_user_password("current_password", &username, asked.current_password)?;
        let new = convert::crypto_user_password("new_password", &username, asked.new_password)?;
        let pending = in_time(deadline, self.users().change_password(permit, &cluster, subject, present, new)).await?;
        Ok(Response::new(pb::ChangePasswordResponse { pending_hsm_ids: names(&pending) }))
    }

    async fn reset_password(
        &self,
        request: Request<pb::ResetPasswordRequest>,
    ) -> Result<Response<pb::ResetPasswordResponse>, Status> {
        let permit = self.0.permit::<action::ResetPassword, _>(&request)?;
        let deadline = super::deadline(&request);
        let asked = request.into_inner();
        let (cluster, username) = whose(&asked.cluster_id, &asked.username)?;
        let password = convert::crypto_user_password("new_password", &username, asked.new_password)?;
        let pending = in_time(deadline, self.users().reset_password(permit, &cluster, &username, password)).await?;
        Ok(Response::new(pb::ResetPasswordResponse { pending_hsm_ids: names(&pending) }))
    }

    async fn login(&self, request: Request<pb::LoginRequest>) -> Result<Response<pb::LoginResponse>, Status> {
        let permit = self.0.permit::<action::Login, _>(&request)?;
        let deadline = super::deadline(&request);
        let (cluster, username) = whose(&request.get_ref().cluster_id, &request.get_ref().username)?;
        let subject = self.subject(&request, &username)?;
        let asked = request.into_inner();
        let ttl = convert::login_ttl(asked.ttl)?;
        let password = convert::crypto_user_password("password", &username, asked.password)?;
        let new = NewLogin { subject, password, ttl };
        let (token, expires) = in_time(deadline, self.users().log_in(permit, &cluster, new)).await?;
        Ok(Response::new(pb::LoginResponse { login_token: token.expose(), expire_time: tell::time(expires) }))
    }

    async fn renew_login(
        &self,
        request: Request<pb::RenewLoginRequest>,
    ) -> Result<Response<pb::RenewLoginResponse>, Status> {
        let permit = self.0.permit::<action::RenewLogin, _>(&request)?;
        let token = convert::login_token(request.metadata())?;
        let expires = self.users().renew(permit, &token).await.map_err(status::users)?;
        Ok(Response::new(pb::RenewLoginResponse { expire_time: tell::time(expires) }))
    }

    async fn logout(&self, request: Request<pb::LogoutRequest>) -> Result<Response<pb::LogoutResponse>, Status> {
        let permit = self.0.permit::<action::Logout, _>(&request)?;
        let token = convert::login_token(request.metadata())?;
        self.users().log_out(permit, &token).await.map_err(status::users)?;
        Ok(Response::new(pb::LogoutResponse {}))
    }

    /// Needs no permit: anybody who is somebody may know who.
    async fn who_am_i(&self, request: Request<pb::WhoAmIRequest>) -> Result<Response<pb::WhoAmIResponse>, Status> {
        let caller = caller(&request)?;
        let source = match caller.source() {
            CallerSource::Certificate => pb::CallerSource::Certificate,
            CallerSource::UnixSocket { .. } => pb::CallerSource::UnixSocket,
            CallerSource::Loopback => pb::CallerSource::Loopback,
        };
        let mut response =
            pb::WhoAmIResponse { caller: caller.name().to_owned(), source: source.into(), ..Default::default() };
        if let Some(token) = convert::login_token_if_any(request.metadata())? {
            let login = self.users().login_of(caller, &token).await.map_err(status::users)?;
            response.cluster_id = login.cluster.to_string();
            response.username = login.username.to_string();
            response.expire_time = tell::time(login.expires);
        }
        Ok(Response::new(response))
    }
}

fn whose(cluster: &str, username: &str) -> Result<(ClusterId, Username), Status> {
    Ok((convert::parse("cluster_id", cluster)?, convert::parse("username", username)?))
}

fn told(cluster: &ClusterId, user: UserView) -> pb::CryptoUser {
    let hsms = user.hsms.into_iter().map(|(hsm, on)| pb::CryptoUserOnHsm {
        hsm_id: hsm.to_string(),
        present: on.is_present,
        locked: on.is_locked,
        failed_logins: i32::try_from(on.failed_logins).unwrap_or(i32::MAX),
    });
    pb::CryptoUser {
        cluster_id: cluster.to_string(),
        username: user.username.to_string(),
        second_factor: user.second_factor,
        hsms: hsms.collect(),
        key_store_id: user.key_store.map(|store| store.to_string()).unwrap_or_default(),
    }
}

fn names(hsms: &[HsmId]) -> Vec<String> {
    hsms.iter().map(HsmId::to_string).collect()
}
