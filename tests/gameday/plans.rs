//! The plans, to be read as a list. Each begins and ends with a time in which nothing happens.

use std::time::Duration;

use super::plan::{Plan, Promise};
use crate::rig::{Loss, Weather};

const ALL: [&str; 3] = ["hsm-1", "hsm-2", "hsm-3"];
/// Hosts are dealt out to the zones in turn: of six, these stand in zone b.
const ZONE_B: [&str; 2] = ["hsm-2", "hsm-5"];
const BOTH: [Promise; 2] = [Promise::Unharmed, Promise::Back];

pub fn plans() -> Vec<Plan> {
    vec![
        Plan::new("lose-one-node", "One node is lost")
            .story("The host of one HSM of three loses its power, and gets it back.")
            .promises(&BOTH)
            .strike("killed", &["hsm-2"], |stage, hsm| stage.host(hsm).kill())
            .hold()
            .back("started", &["hsm-2"], |stage, hsm| stage.host(hsm).start())
            .until_well(),
        Plan::new("freeze-one-node", "One node is frozen")
            .story("Every process on one host of three stands still, and goes on.")
            .promises(&BOTH)
            // Held twice: an HSM is told as lost after ten seconds without a word from its host.
            .strike("frozen", &["hsm-2"], |stage, hsm| stage.host(hsm).container().freeze())
            .hold()
            .hold()
            .back("thawed", &["hsm-2"], |stage, hsm| stage.host(hsm).container().thaw())
            .until_well(),
        Plan::new("lose-a-zone", "A zone is lost")
            .story("Both hosts of one zone of three lose their power at once, and get it back.")
            .two_in_each_zone()
            .promises(&BOTH)
            .strike("killed", &ZONE_B, |stage, hsm| stage.host(hsm).kill())
            .hold()
            .back("started", &ZONE_B, |stage, hsm| stage.host(hsm).start())
            .until_well(),
        Plan::new("cut-a-zone", "A zone is cut off")
            .story("One zone of three loses its network, while its hosts run on; then it heals.")
            .two_in_each_zone()
            .promises(&BOTH)
            .strike("cut off", &ZONE_B, |stage, hsm| stage.host(hsm).container().disconnect())
            .hold()
            .hold()
            .back("connected", &ZONE_B, |stage, hsm| stage.host(hsm).container().connect())
            .until_well(),
        Plan::new("slow-zone", "A zone is slow")
            .story("Every byte to and from one zone of three is 200 ms late, each way.")
            .two_in_each_zone()
            .promises(&BOTH)
            .caveat("A slow network makes no HSM SLOW: health is what an HSM's own calls take. Calls avoid it.")
            .strike("200 ms away", &ZONE_B, |stage, hsm| {
                stage.host(hsm).network(Weather::Late(Duration::from_millis(200)));
            })
            .hold()
            .back("near again", &ZONE_B, |stage, hsm| stage.host(hsm).network(Weather::Fair))
            .until_well(),
        Plan::new("lossy-network", "The network loses packets")
            .story("One packet in twenty between the daemon and every node is lost, and sent again.")
            .promises(&BOTH)
            .strike("loses 5 %", &ALL, |stage, hsm| {
                stage.host(hsm).network(Weather::Lossy(Loss { percent: 5, seed: 1 }));
            })
            .hold()
            .back("loses nothing", &ALL, |stage, hsm| stage.host(hsm).network(Weather::Fair))
            .until_well(),
        rolling_restart(),
        Plan::new("restored-empty", "A node is restored empty")
            .story("One host of three is lost, and comes back with an HSM that holds no key.")
            .promises(&[Promise::Unharmed])
            .caveat("How soon it is HEALTHY: it is SYNCING until it was given the cluster's own key and all others.")
            .strike("killed", &["hsm-2"], |stage, hsm| stage.host(hsm).kill())
            .hold()
            .back("started, empty", &["hsm-2"], |stage, hsm| {
                stage.rig.empty_token(hsm);
                stage.host(hsm).start();
            })
            .until_well(),
        Plan::new("all-down", "Everything is lost")
            .story("All hosts lose their power; then they come back one by one.")
            .promises(&[Promise::Back])
            .caveat("With no HSM left calls are refused at once (NO_NODE).")
            .strike("killed", &ALL, |stage, hsm| stage.host(hsm).kill())
            .hold()
            .back("started", &["hsm-1"], |stage, hsm| stage.host(hsm).start())
            .hold()
            .back("started", &["hsm-2"], |stage, hsm| stage.host(hsm).start())
            .hold()
            .back("started", &["hsm-3"], |stage, hsm| stage.host(hsm).start())
            .until_well(),
        Plan::new("upgrade-daemon", "The daemon is replaced")
            .story("Another binary takes the daemon's place: an orderly end, and a start on the same data.")
            .asked_again()
            .promises(&[Promise::Unharmed])
            .caveat("There is one daemon: while it is away nobody is answered. Callers who ask again are, later.")
            .incident("the daemon is replaced", |stage| stage.rig.upgrade_daemon())
            .until_well(),
        Plan::new("kill-daemon", "The daemon is killed")
            .story("The daemon ends in the middle of everything, and is started again at once.")
            .asked_again()
            .promises(&[Promise::Unharmed])
            .caveat("There is one daemon: while it is away nobody is answered. Callers who ask again are, later.")
            .incident("the daemon is killed and started", |stage| {
                stage.rig.kill_daemon();
                stage.rig.start_daemon();
            })
            .until_well(),
        Plan::new("rotate-password", "The password changes")
            .story("The key store is disconnected and connected again, and every HSM gets a new password.")
            .rotating()
            .caveat("Disconnecting stops callers by design: KMS_INVALID_STATE until the store is CONNECTED.")
            .incident("disconnected, and connected with new passwords", |stage| stage.reconnect())
            .until_well(),
    ]
}

/// Each in turn, as an operator updates them: the next one when all are well.
fn rolling_restart() -> Plan {
    let plan = Plan::new("rolling-restart", "Every node restarts in turn")
        .story("Each host is stopped and started, the next when all HSMs are HEALTHY.");
    ALL.iter().fold(plan.promises(&BOTH), |plan, hsm| {
        plan.strike("stopped", &[hsm], |stage, hsm| stage.host(hsm).container().stop())
            .back("started", &[hsm], |stage, hsm| stage.host(hsm).start())
            .until_well()
    })
}
