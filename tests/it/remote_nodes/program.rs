//! A program of the operator's, on the daemon's host, that changes the password while no host has a worker of the user's.

use std::os::unix::fs::PermissionsExt;

use crate::rig::{Rig, pb};
use crate::rotation::{HSMS, versions};

#[tokio::test]
async fn a_program_changes_the_password_while_nobody_is_logged_in_on_any_host() {
    let mut rig = Rig::new().faulty().remote().start();
    let program = rig.home.path().join("program.sh");
    std::fs::write(&program, include_str!("../rotation/program.sh")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(rig.home.path().join("mode"), "good").unwrap();
    let tokens = HSMS.map(|hsm| format!(", {:?}", rig.token_configuration(hsm))).concat();
    let strategy = format!("\"command\"\nrotation_command = [{program:?}, \"{{user}}\"{tokens}]");
    rig.restart_with(|configuration| {
        configuration.replace("password_rotation = \"none\"", &format!("password_rotation = {strategy}"))
    });

    let mut clients = rig.clients().await;
    let store = clients.connected_store(&rig, "main").await;
    let told = clients.all_healthy(&store).await;
    assert_eq!(told.connection_state(), pb::ConnectionState::Connected);
    assert_eq!(versions(&told), [2; 3]);
    assert!(HSMS.iter().all(|hsm| !rig.opens(hsm, &rig.password())));
    assert_eq!(std::fs::read_to_string(rig.home.path().join("workers")).unwrap(), "", "somebody was logged in");
    clients.a_key_works(&store).await;
    assert_eq!(HSMS.map(|hsm| rig.refusals(hsm)), [0; 3]);
}
