//! `keyway dev`: what it says of itself, and who one is to it.

use crate::rig::{Clients, Rig, pb};

#[tokio::test]
async fn the_daemon_says_who_it_is_and_who_one_is() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let info = clients.server.get_server_info(pb::GetServerInfoRequest {}).await.unwrap().into_inner();
    assert!(info.dev);
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    let me = clients.users.who_am_i(pb::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!(me.source(), pb::CallerSource::UnixSocket);
    let mut over_tcp = Clients::tcp(&rig.tcp()).await;
    let me = over_tcp.users.who_am_i(pb::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!((me.source(), me.caller.as_str()), (pb::CallerSource::Loopback, "loopback"));
}
