//! Looks after each node that serves: is it the token it was, does its canary answer, and how soon.
//!
//! A node's word that all is well proves nothing: a token whose directory has vanished goes on saying
//! `CKR_OK`. So each half second the token's serial number is read and its canary used, by one small
//! request of our own. What callers send decides nothing here, beyond having the node looked at sooner.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;
use crate::link::v1::fault::{Bucket, Kind};
use crate::link::v1::{self, Request, request::Verb, response::Outcome};
use crate::node::CallError;

use super::connection::Connection;
use super::member::Member;
use super::pace;

/// How often a node is looked at.
const EVERY: Duration = Duration::from_millis(500);
/// A node under suspicion is looked at no more often than this.
const AT_MOST_EVERY: Duration = Duration::from_millis(50);
/// A canary that takes longer is as slow as can be; that nothing is stuck is the link's care.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was heard of a canary.
#[derive(Debug, Clone, Copy)]
enum Canary {
    Took(Duration),
    /// Nothing, nor anything else of its worker.
    Silent,
}

/// Looks after the node until told to stop.
pub(super) async fn keep_checked(connection: Arc<Connection>, member: Arc<Member>, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        () = keep(&connection, &member) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

async fn keep(connection: &Connection, member: &Member) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = async {
                tokio::time::sleep(AT_MOST_EVERY).await;
                member.suspected.notified().await;
            } => {}
        }
        if let Some(load) = member.proved_load() {
            check(connection, member, load.login).await;
        }
    }
}

async fn check(connection: &Connection, member: &Member, login: u64) {
    // Unread records say nothing about the node.
    let Ok(kek) = connection.kek().await else { return };
    let Some(canary_probe) = kek.canary_probe else { return };
    let verb = Verb::CheckToken(v1::CheckToken { canary_cka_id: kek.canary_id.to_vec(), canary_probe: canary_probe.0 });
    let request = &mut Request { verb: Some(verb), ..Request::default() };
    let mut answer = member.node.call_beside(request, Instant::now() + PATIENCE).await;
    if matches!(&answer, Err(CallError::Fault(fault)) if fault.bucket() == Bucket::Session) {
        // One session was spoiled, which says nothing about the next.
        answer = member.node.call_beside(request, Instant::now() + PATIENCE).await;
    }
    match answer {
        Ok(Outcome::Checked(checked)) => {
            {
                let mut checks = member.lock_checks();
                (checks.last_proof, checks.without_room) = (Some(clock::now()), 0);
            }
            let took = Duration::from_micros(checked.canary_us);
            connection.common.host.tallies().of(&member.node.spec).canary_answered(took);
            // What the canary waited behind says what callers asked for, not how quick the HSM is.
            note_pace(connection, member, login, Canary::Took(took));
        }
        Ok(_) => tracing::error!(hsm = %member.node.hsm(), "a worker's answer is another request's"),
        // Every thread may be at that, as callers asked, whatever the HSM's pace. That nothing is stuck is the link's care.
        Err(CallError::LateAfter) if member.node.is_at_slow_work() => {}
        // Behind much else it may be late; but a worker that is at something else answers that.
        Err(CallError::LateAfter) if member.node.silent_for().is_some_and(|silence| silence >= PATIENCE) => {
            note_pace(connection, member, login, Canary::Silent);
        }
        Err(CallError::LateAfter) => note_pace(connection, member, login, Canary::Took(PATIENCE)),
        // The link's end tells everybody.
        Err(
            CallError::Died
            | CallError::Cut
            | CallError::NotServing
            | CallError::Full
            | CallError::LateBefore
            | CallError::TooLong,
        ) => {}
        Err(CallError::Fault(fault)) => heed(member, login, &fault),
    }
}

fn heed(member: &Member, login: u64, fault: &v1::Fault) {
    let hsm = member.node.hsm();
    match fault.kind() {
        Kind::KeyMissing => {
            tracing::warn!(%hsm, "the canary is gone: the token was emptied, or is another");
            member.set_proved(0);
            member.doubted.notify_one();
        }
        // Late: it waited too long behind others. A protocol fault would be ours.
        Kind::Late | Kind::Protocol => {
            tracing::debug!(%hsm, function = fault.function, ckr = fault.ckr, "the canary was not asked");
        }
        // Busy, not broken, unless it stays so.
        Kind::Capacity if !member.lock_checks().is_full_for_good() => {
            tracing::debug!(%hsm, function = fault.function, ckr = fault.ckr, "no room for the canary");
        }
        // The same request was good when the node was proved: what it does not support any more, it does not serve.
        Kind::Capacity
        | Kind::BadInput
        | Kind::Unsupported
        | Kind::Unspecified
        | Kind::BadCiphertext
        | Kind::LoginLost
        | Kind::PinIncorrect
        | Kind::PinLocked
        | Kind::UserLoggedIn
        | Kind::UserNotFound
        | Kind::PinRefused
        | Kind::TokenAbsent
        | Kind::DeviceRemoved
        | Kind::Module
        | Kind::Device => {
            let reason = format!("its canary does not answer: {} answered 0x{:x}", fault.function, fault.ckr);
            member.node.give_up(login, &reason);
        }
    }
}

/// A node much slower than its siblings is put aside until it is as quick again.
fn note_pace(connection: &Connection, member: &Member, login: u64, canary: Canary) {
    let members = connection.members();
    let others = members.iter().filter(|other| other.node.hsm() != member.node.hsm() && other.is_proved());
    let siblings = pace::of_siblings(others.filter_map(|other| other.lock_checks().pace.typical()).collect());
    let mut checks = member.lock_checks();
    if std::mem::replace(&mut checks.paced, login) != login {
        // What a former worker took, or its host that was away, says nothing of this one.
        checks.pace = pace::Pace::default();
    }
    let was = checks.pace.is_slow();
    match canary {
        Canary::Took(took) => checks.pace.note(took, siblings),
        Canary::Silent => checks.pace.note_silence(PATIENCE, siblings),
    }
    let is = checks.pace.is_slow();
    drop(checks);
    if was != is {
        let reason = match (is, canary, siblings) {
            (true, Canary::Took(took), Some(siblings)) => {
                format!("its canary takes {took:.0?}, the others' {siblings:.0?}")
            }
            (true, Canary::Silent, _) => format!("nothing was heard of it for {PATIENCE:.0?}"),
            (true, Canary::Took(_), None) | (false, _, _) => "as quick as the others again".to_owned(),
        };
        tracing::warn!(hsm = %member.node.hsm(), slow = is, reason, "a node's pace changed");
    }
    member.set_slow(is);
    let reason = match (is, canary) {
        (true, Canary::Silent) => "nothing is heard of it; asked when no other can be",
        (true, Canary::Took(_)) => "much slower than its siblings; asked when no other can be",
        (false, _) => "logged in, proved and level",
    };
    member.node.pace(login, is, reason);
}
