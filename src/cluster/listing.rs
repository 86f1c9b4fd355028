//! What is in a node's token altogether, read page by page.
//!
//! A worker holds one listing and gives pages of it; who comes with an older one is told so, and
//! begins anew. What it means that an object is there, or is not, is for the rooms above.

use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::Instant;

use crate::link::v1::objects::Object;
use crate::link::v1::{self, request::Verb, response::Outcome};

use super::connection::{Connection, Failure};
use super::failover::Effect;
use super::member::Member;

/// How long one page may take. The first one makes the worker search its whole token.
const PAGE: Duration = Duration::from_secs(120);
/// A listing that was lost this often is given up.
const MOST_BEGINNINGS: u32 = 3;

/// A node's objects, as they were when the listing began. Begun anew, it gives some of them twice.
pub struct Listing<'a> {
    connection: &'a Connection,
    member: &'a Member,
    /// Two listings of one node would make each other begin anew.
    _alone: MutexGuard<'a, ()>,
    number: u64,
    offset: u32,
    beginnings: u32,
    ended: bool,
}

impl Connection {
    /// Begins to list a node's objects, once nobody else does.
    pub async fn list_objects<'a>(&'a self, member: &'a Member) -> Listing<'a> {
        let alone = member.listing.lock().await;
        Listing { connection: self, member, _alone: alone, number: 0, offset: 0, beginnings: 1, ended: false }
    }
}

impl Listing<'_> {
    /// The next objects; `None` after the last.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Object>>, Failure> {
        while !self.ended {
            let verb = Verb::ListObjects(v1::ListObjects { listing: self.number, offset: self.offset });
            let asked = self.connection.ask(self.member, verb, Effect::Repeatable, Instant::now() + PAGE).await;
            let page = match asked {
                Ok(Outcome::Objects(page)) => page,
                Ok(_) => return Err(Failure::OutOfTurn),
                // The worker is another one by now, or its session was: it does not know this listing.
                Err(Failure::BadInput) if self.number != 0 && self.beginnings < MOST_BEGINNINGS => {
                    (self.number, self.offset, self.beginnings) = (0, 0, self.beginnings + 1);
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            self.ended = page.next_offset >= page.total;
            if !self.ended && page.next_offset <= self.offset {
                return Err(Failure::OutOfTurn);
            }
            (self.number, self.offset) = (page.listing, page.next_offset);
            // Objects that went away meanwhile are left out: a page may be empty and have a successor.
            if !page.objects.is_empty() {
                return Ok(Some(page.objects));
            }
        }
        Ok(None)
    }
}
