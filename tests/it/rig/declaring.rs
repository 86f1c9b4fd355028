//! A daemon whose cluster is declared otherwise while it runs: HSMs of its own machine, or of other hosts.

use super::{Builder, Clients, Rig, Served, wait_async};

/// `keyway serve`, with a configuration that changes.
pub struct Declaring {
    /// `None`: the rig's own daemon, which serves the nodes of other hosts. It ends before the rig looks for what is left over.
    served: Option<Served>,
    pub rig: Rig,
}

impl Declaring {
    pub async fn over(rig: Builder) -> (Self, Clients) {
        let this = if rig.remote {
            Self { rig: rig.start(), served: None }
        } else {
            let (served, rig) = Served::over(rig, &["ops"], |_| String::new()).await;
            Self { rig, served: Some(served) }
        };
        let clients = this.clients().await;
        (this, clients)
    }

    pub async fn clients(&self) -> Clients {
        match &self.served {
            Some(served) => served.clients_on_the_socket().await,
            None => self.rig.clients().await,
        }
    }

    /// The configuration as it stands in the file now.
    pub fn configuration(&self) -> String {
        match &self.served {
            Some(served) => served.configuration(),
            None => std::fs::read_to_string(self.rig.path("serve.toml")).expect("it is served"),
        }
    }

    pub fn log(&self) -> String {
        self.served.as_ref().map_or_else(|| self.rig.log(), Served::log)
    }

    /// Another configuration from now on, which the daemon is told and nobody waits for.
    pub fn declare(&self, configuration: &str) {
        match &self.served {
            Some(served) => {
                served.put("keyway.toml", configuration);
                served.hang_up();
            }
            None => {
                std::fs::write(self.rig.path("serve.toml"), configuration).expect("our directory");
                let daemon = self.rig.daemon.as_ref().expect("running").id();
                super::signal(daemon, rustix::process::Signal::HUP);
            }
        }
    }

    /// The same, until the daemon has said what it made of it.
    pub async fn reload(&self, configuration: &str) {
        let said = || self.log().matches("SIGHUP").count();
        let before = said();
        self.declare(configuration);
        wait_async(|| async { (said() > before).then_some(()) }).await;
    }

    /// `kill -9`, and another daemon on what the file says.
    pub fn begin_anew(&mut self) {
        match &mut self.served {
            Some(served) => {
                served.kill_daemon();
                served.start_daemon();
            }
            None => {
                let configuration = self.configuration();
                self.rig.kill_daemon();
                self.rig.serve(&configuration);
            }
        }
    }
}

/// The configuration without one of its HSMs.
pub fn without(configuration: &str, hsm: &str) -> String {
    let (mut kept, mut is_its) = (String::new(), false);
    for line in configuration.lines() {
        if line.starts_with('[') {
            is_its = line.ends_with(&format!(".nodes.{hsm}]"));
        }
        if !is_its {
            kept.extend([line, "\n"]);
        }
    }
    assert!(kept.len() < configuration.trim_end().len(), "{hsm} is not there:\n{configuration}");
    kept
}

/// The configuration with a line more for one of its HSMs.
pub fn with_line_for(configuration: &str, hsm: &str, line: &str) -> String {
    let section = format!(".nodes.{hsm}]\n");
    assert!(configuration.contains(&section), "{hsm} is not there:\n{configuration}");
    configuration.replace(&section, &format!("{section}{line}\n"))
}
