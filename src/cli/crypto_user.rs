//! `keyway crypto-user …`: create, list, delete, change a password, reset one; log in, and out.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::model::Plaintext;
use crate::proto::v1::{
    ChangePasswordRequest, CreateCryptoUserRequest, CryptoUser, DeleteCryptoUserRequest, ListCryptoUsersRequest,
    ListCryptoUsersResponse, LoginRequest, LogoutRequest, ResetPasswordRequest,
};

use super::bytes::{self, Form, Secrecy, is_standard, to_write};
use super::connect::{CALL, Client};
use super::failure::Failure;
use super::paging::every_page;
use super::password;
use super::table::{Cell, Paint, Table, Tone};
use super::{parse, words};

#[derive(Debug, Subcommand)]
pub(super) enum CryptoUserCommand {
    Create(CreateArgs),
    List(ListArgs),
    Delete(DeleteArgs),
    ChangePassword(ChangeArgs),
    ResetPassword(ResetArgs),
    Login(LoginArgs),
    /// End the login whose token --login-file names
    Logout,
}

/// Whose, and where.
#[derive(Debug, Args)]
struct Who {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: String,
    /// The crypto user's name
    #[arg(value_name = "USER")]
    username: String,
}

/// Make a crypto user on every HSM of a cluster
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  keyway crypto-user create cluster-2abcdefghij alice --password-file alice.password

The password is asked for on the terminal unless --password-file is given. An HSM that cannot be reached gets the user
when it is back.")]
pub(super) struct CreateArgs {
    #[command(flatten)]
    who: Who,
    /// A file whose first line is the password; `-` for stdin
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Demand a second factor at login
    #[arg(long)]
    require_second_factor: bool,
}

/// List the crypto users of a cluster, and on which HSMs they are
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: String,
}

/// Delete a crypto user, with every key that is his, on every HSM of a cluster
#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    #[command(flatten)]
    who: Who,
}

/// Change a crypto user's password, knowing the present one
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  keyway crypto-user change-password cluster-2abcdefghij alice --password-file old --new-password-file new

Passwords are asked for on the terminal unless they are in files.")]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    who: Who,
    /// A file whose first line is the present password; `-` for stdin
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// A file whose first line is the new password
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
}

/// Give a crypto user a new password without the present one, and unlock the user
#[derive(Debug, Args)]
pub(super) struct ResetArgs {
    #[command(flatten)]
    who: Who,
    /// A file whose first line is the new password; `-` for stdin
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// Log in as a crypto user, to use keys that are the user's own
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  keyway crypto-user login cluster-2abcdefghij alice --out alice.login
  keyway key create --cluster cluster-2abcdefghij --label orders --login-file alice.login
  keyway crypto-user logout --login-file alice.login

The password is asked for on the terminal unless --password-file is given. Whoever can read the token, and is the same
caller to the daemon, is logged in.")]
pub(super) struct LoginArgs {
    #[command(flatten)]
    who: Who,
    /// A file whose first line is the password; `-` for stdin
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Where the login's token goes, readable by you alone; `-` for stdout
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How long the login lasts, for instance 90s or 1h [default: 15m; at most 12h]
    #[arg(long, value_name = "DURATION", value_parser = parse::timeout)]
    ttl: Option<Duration>,
}

impl CryptoUserCommand {
    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        match self {
            Self::Create(args) => create(client, args).await,
            Self::List(args) => list(client, args).await,
            Self::Delete(args) => delete(client, args).await,
            Self::ChangePassword(args) => change_password(client, args).await,
            Self::ResetPassword(args) => reset_password(client, args).await,
            Self::Login(args) => login(client, args).await,
            Self::Logout => logout(client).await,
        }
    }
}

async fn create(client: &Client, args: CreateArgs) -> Result<(), Failure> {
    let CreateArgs { who: Who { cluster_id, username }, password_file, require_second_factor } = args;
    let password = password::new_of_crypto_user(password_file.as_deref(), &username)?;
    let daemon = client.connect(CALL).await?;
    let password = password.expose().to_owned();
    let request = CreateCryptoUserRequest { cluster_id, username, password, require_second_factor };
    let response = daemon.crypto_users().create_crypto_user(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| table(response.user.as_slice(), paint))
}

async fn list(client: &Client, args: ListArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let users = every_page(async |page_token| {
        let cluster_id = args.cluster_id.clone();
        let request = ListCryptoUsersRequest { cluster_id, page_token, ..Default::default() };
        let page = daemon.crypto_users().list_crypto_users(daemon.request(request)).await?.into_inner();
        Ok((page.users, page.next_page_token))
    })
    .await?;
    let all = ListCryptoUsersResponse { users, next_page_token: String::new() };
    client.output.show(&all, |all, paint| table(&all.users, paint))
}

async fn delete(client: &Client, args: DeleteArgs) -> Result<(), Failure> {
    let Who { cluster_id, username } = args.who;
    let daemon = client.connect(CALL).await?;
    let request = DeleteCryptoUserRequest { cluster_id, username: username.clone() };
    let response = daemon.crypto_users().delete_crypto_user(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |_, _| format!("deleted {username}\n"))
}

async fn change_password(client: &Client, args: ChangeArgs) -> Result<(), Failure> {
    let ChangeArgs { who: Who { cluster_id, username }, password_file, new_password_file } = args;
    let present = password::present_of_crypto_user(password_file.as_deref(), &username)?;
    let new = password::new_of_crypto_user(new_password_file.as_deref(), &username)?;
    let daemon = client.connect(CALL).await?;
    let (current_password, new_password) = (present.expose().to_owned(), new.expose().to_owned());
    let request = ChangePasswordRequest { cluster_id, username: username.clone(), current_password, new_password };
    let response = daemon.crypto_users().change_password(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, _| changed(&username, &response.pending_hsm_ids))
}

async fn reset_password(client: &Client, args: ResetArgs) -> Result<(), Failure> {
    let ResetArgs { who: Who { cluster_id, username }, password_file } = args;
    let new = password::new_of_crypto_user(password_file.as_deref(), &username)?;
    let daemon = client.connect(CALL).await?;
    let new_password = new.expose().to_owned();
    let request = ResetPasswordRequest { cluster_id, username: username.clone(), new_password };
    let response = daemon.crypto_users().reset_password(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, _| changed(&username, &response.pending_hsm_ids))
}

async fn login(client: &Client, args: LoginArgs) -> Result<(), Failure> {
    let LoginArgs { who: Who { cluster_id, username }, password_file, out, ttl } = args;
    let password = password::present_of_crypto_user(password_file.as_deref(), &username)?;
    let daemon = client.connect(CALL).await?;
    let password = password.expose().to_owned();
    let ttl = ttl.and_then(|ttl| ttl.try_into().ok());
    let request = LoginRequest { cluster_id, username: username.clone(), password, ttl };
    let mut response = daemon.crypto_users().login(daemon.request(request)).await?.into_inner();
    if let Some(out) = to_write(Some(&out), client.output) {
        let token = Plaintext::new(std::mem::take(&mut response.login_token).into_bytes());
        bytes::write(Some(out), token.expose(), Form::Raw, Secrecy::Plaintext)?;
    }
    client.output.show(&response, |response, _| match is_standard(Some(&out)) {
        true => String::new(),
        false => format!("logged in as {username} until {}\n", words::time(&response.expire_time)),
    })
}

async fn logout(client: &Client) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let response = daemon.crypto_users().logout(daemon.request(LogoutRequest {})).await?.into_inner();
    client.output.show(&response, |_, _| "logged out\n".to_owned())
}

fn changed(username: &str, pending: &[String]) -> String {
    match pending {
        [] => format!("{username} has the new password on every HSM\n"),
        _ => format!("{username} has the new password; {} will have it when back\n", pending.join(", ")),
    }
}

/// A line for each user; one that is not the same on every HSM says where.
fn table(users: &[CryptoUser], paint: Paint) -> String {
    let mut table =
        Table::new(["USER", "HSMS", "MISSING ON", "LOCKED ON", "FAILED LOGINS", "SECOND FACTOR", "KEY STORE"]);
    for user in users {
        let where_it_is = |wanted: fn(&crate::proto::v1::CryptoUserOnHsm) -> bool| {
            let hsms = user.hsms.iter().filter(|on| wanted(on)).map(|on| on.hsm_id.as_str());
            hsms.collect::<Vec<_>>().join(", ")
        };
        let present = user.hsms.iter().filter(|on| on.present).count();
        let failed = user.hsms.iter().map(|on| on.failed_logins).max().unwrap_or_default();
        table.row([
            user.username.as_str().into(),
            format!("{present}/{}", user.hsms.len()).into(),
            Cell::toned(where_it_is(|on| !on.present), Tone::Bad),
            Cell::toned(where_it_is(|on| on.locked), Tone::Bad),
            failed.to_string().into(),
            if user.second_factor { "required" } else { "" }.into(),
            user.key_store_id.as_str().into(),
        ]);
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::CryptoUserOnHsm;

    #[test]
    fn a_user_that_is_on_some_hsms_only_is_told_with_those_that_lack_it() {
        let on = |hsm: &str, present, locked, failed_logins| CryptoUserOnHsm {
            hsm_id: hsm.to_owned(),
            present,
            locked,
            failed_logins,
        };
        let alice = CryptoUser {
            username: "alice".to_owned(),
            hsms: vec![on("hsm-1", true, false, 0), on("hsm-2", true, true, 5), on("hsm-3", false, false, 0)],
            ..CryptoUser::default()
        };
        let text = table(&[alice], Paint::Plain);
        let line: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line, ["alice", "2/3", "hsm-3", "hsm-2", "5", "-", "-"], "{text}");
    }
}
